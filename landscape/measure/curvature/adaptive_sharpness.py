"""Sharpness that knows the scale of the weights, and sharpness of single mini-batches."""

import functools
from collections.abc import Iterable, Sequence

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from landscape import vectors
from landscape.checks import check_choice, check_count
from landscape.errors import LandscapeError
from landscape.measure.curvature.sharpness import check_rho
from landscape.measure.measuring import Measuring, generator, normal_draws, numbers
from landscape.results import Variable
from landscape.risk import EmpiricalRisk, Objective

NORMS = ("linf", "l2")


def adaptive_sharpness(
    risk: EmpiricalRisk,
    theta: Float[Tensor, "P"],
    *,
    rho: float | Sequence[float] = (1e-3, 3e-3, 1e-2, 3e-2),
    norm: str = "linf",
    normalize_logits: bool = False,
    ascent_steps: int = 20,
    restarts: int = 1,
    num_pairs: int = 8,
    batch_size: int | None = None,
    num_batches: int | None = None,
    seed: int,
) -> xr.Dataset:
    """Element-wise adaptive sharpness, max of L(theta + |theta| d) - L(theta) over ‖d‖ <= rho.

    worst_case(rho): best of ascent_steps projected steps in d from theta and from `restarts` random
    d of norm rho, in the norm "linf" or "l2"; a lower bound (arXiv:2302.07011, c = |theta|). One
    restart raised it by 9 % at rho = 0.03 ("linf", SGD), three more by 0.1 %.
    batch_size: m-sharpness of this kind, the mean over a seeded partition into batches of m
    examples (at most num_batches of them; the rest is left out), each climbed by itself as an
    optimizer meets it, worst_case_stderr(rho) over the batches (NaN for one); None is all examples
    at once. gaussian(rho), gaussian_stderr(rho): mean over d
    ~ N(0, rho² I), antithetic pairs, draws common to all radii and models. Unchanged when layers
    are rescaled without changing the function. normalize_logits: the loss of (f - mean f)/‖f - mean
    f‖ per example instead of f, so that the output's scale does not count either; its values depend
    on the number of classes. BatchNorm in eval mode. Cost: about R ((1 + restarts) ascent_steps +
    num_pairs).

    Example:
        >>> found = measure.adaptive_sharpness(risk, theta, rho=[0.01, 0.03], seed=0)
        >>> found.worst_case.dims, found.worst_case.attrs["units"]
        (('rho',), 'nats')
        >>> bool((found.worst_case.diff("rho") > 0).all())
        True
    """
    check_choice("norm", norm, NORMS)
    check_count("ascent_steps", ascent_steps, 1)
    check_count("restarts", restarts, 0)
    check_count("num_pairs", num_pairs, 2)
    radii = check_rho(rho)
    own = risk.with_bn("eval")
    measuring = Measuring("adaptive_sharpness", own, theta)
    theta = measuring.theta
    measuring.finite_loss()
    objective = Objective(own, theta, transform=_centred_logits if normalize_logits else None)
    batches = _partition(own, batch_size, num_batches, seed)
    centers = [objective.loss(theta, rows) for rows in batches]
    draws = normal_draws(seed, num_pairs, theta)
    starts = [torch.zeros_like(theta), *normal_draws(seed, max(restarts, 1), theta, offset=1)]
    starts = starts[: 1 + restarts]
    scale = theta.abs()
    center = objective.loss(theta)
    worst, pairs = [], []
    for radius in radii:
        worst.append(
            [
                _highest(
                    _ascend(objective, rows, theta, scale, radius, norm, ascent_steps, start)
                    for start in starts
                )
                - before
                for rows, before in zip(batches, centers, strict=True)
            ]
        )
        pairs.append(
            [
                0.5 * sum(objective.loss(theta + sign * radius * scale * d) for sign in (1, -1))
                - center
                for d in draws
            ]
        )
    average, highest = numbers(pairs), numbers(worst)
    several = len(batches) > 1
    spread = np.array([row.std(ddof=1) / len(row) ** 0.5 if several else np.nan for row in highest])
    error = np.array([row.std(ddof=1) / num_pairs**0.5 for row in average])
    variables = {
        "worst_case": Variable(
            "rho",
            np.array([row.mean() for row in highest]),
            "nats",
            "Worst-case adaptive sharpness",
        ),
        "worst_case_stderr": Variable("rho", spread, "nats", "Standard error over batches"),
        "gaussian": Variable(
            "rho",
            np.array([row.mean() for row in average]),
            "nats",
            "Average-case adaptive sharpness",
        ),
        "gaussian_stderr": Variable("rho", error, "nats", "Standard error over antithetic pairs"),
        "center": Variable((), float(center), "nats", "Objective at theta"),
    }
    options = {
        "norm": norm,
        "normalize_logits": normalize_logits,
        "ascent_steps": ascent_steps,
        "restarts": restarts,
        "num_pairs": num_pairs,
        "batch_size": batch_size,
        "num_batches": len(batches),
        "seed": seed,
    }
    coords = {"rho": Variable("rho", np.array(radii), "1", "Relative radius ρ")}
    return measuring.result(variables, coords=coords, options=options)


def m_sharpness(
    risk: EmpiricalRisk,
    theta: Float[Tensor, "P"],
    *,
    rho: float | Sequence[float] = (0.05, 0.1),
    batch_sizes: Sequence[int] = (1, 4, 16, 64),
    seed: int,
) -> xr.Dataset:
    """Mean over disjoint batches B of m examples of L_B(theta + rho g_B/‖g_B‖) - L_B(theta).

    m_sharpness(rho, batch) in nats with m along `batch` (arXiv:2010.01412, section 4.1;
    arXiv:2206.06232), m_sharpness_stderr over batches. The batches are a seeded partition, the same
    for every model; examples left over by a size are not used. A size above N is refused. BatchNorm
    in eval mode. Cost: 1 + R/3 gradients for every m.
    batch_sizes: the values of m.

    Example:
        >>> found = measure.m_sharpness(risk, theta, rho=0.1, batch_sizes=[4, 16], seed=0)
        >>> found.m_sharpness.dims, found.batch.values.tolist()
        (('rho', 'batch'), [4, 16])
    """
    radii, own = check_rho(rho), risk.with_bn("eval")
    measuring = Measuring("m_sharpness", own, theta)
    theta = measuring.theta
    measuring.finite_loss()
    for size in batch_sizes:
        if not 1 <= size <= own.num_examples:
            raise LandscapeError(
                f"m={size} was asked of {own.num_examples} examples; choose batch sizes between 1 "
                f"and {own.num_examples}."
            )
    objective = Objective(own, theta)
    order = torch.randperm(own.num_examples, generator=generator(seed))
    mean = np.full((len(radii), len(batch_sizes)), np.nan)
    error = np.full_like(mean, np.nan)
    for column, size in enumerate(batch_sizes):
        batches = [rows for rows in order.split(size) if len(rows) == size]
        each = numbers([_one_step(objective, theta, rows, radii) for rows in batches])
        mean[:, column] = each.mean(0)
        if len(batches) > 1:
            error[:, column] = each.std(0, ddof=1) / len(batches) ** 0.5
    dims = ("rho", "batch")
    variables = {
        "m_sharpness": Variable(dims, mean, "nats", "m-sharpness"),
        "m_sharpness_stderr": Variable(dims, error, "nats", "Standard error over batches"),
    }
    coords = {
        "rho": Variable("rho", np.array(radii), "1", "Radius ρ"),
        "batch": Variable("batch", np.array(list(batch_sizes)), "examples", "Examples per batch m"),
    }
    return measuring.result(variables, coords=coords, options={"seed": seed})


def _centred_logits(output: Tensor) -> Tensor:
    """(f - mean f) / ‖f - mean f‖ for every example."""
    centred = output - output.mean(dim=-1, keepdim=True)
    return centred / torch.linalg.vector_norm(centred, dim=-1, keepdim=True).clamp_min(
        torch.finfo(output.dtype).tiny
    )


def _partition(
    risk: EmpiricalRisk, batch_size: int | None, num_batches: int | None, seed: int
) -> list[Tensor | None]:
    """Rows of disjoint batches of one size; None, for all examples, where no size is given."""
    if batch_size is None:
        return [None]
    check_count("batch_size", batch_size, 1, most=risk.num_examples)
    if num_batches is not None:
        check_count("num_batches", num_batches, 1)
    order = torch.randperm(risk.num_examples, generator=generator(seed))
    return [rows for rows in order.split(batch_size) if len(rows) == batch_size][:num_batches]


def _ascend(
    objective: Objective,
    rows: Tensor | None,
    theta: Tensor,
    scale: Tensor,
    radius: float,
    norm: str,
    steps: int,
    start: Tensor,
) -> Tensor:
    """Best objective of these rows seen on theta + scale * d, ‖d‖ <= radius, from a direction.

    Where the objective is flat d stays, without a question to the device.
    """
    best = theta.new_full((), -torch.inf, dtype=torch.float64)
    length = start.abs().max() if norm == "linf" else vectors.norm(start)
    d = start * (radius / torch.where(length > 0, length, 1.0))
    for step in range(steps):
        loss, gradient = objective.gradient(theta + scale * d, rows)
        best = torch.fmax(best, loss)
        gradient = gradient * scale
        if norm == "linf":
            # The first step reaches a corner; later ones shrink, so that a flip can settle.
            stride = radius * (1.0 if step == 0 else 2.0 * 0.8 ** (step - 1))
            d = (d + stride * gradient.sign()).clamp(-radius, radius)
        else:
            length = vectors.norm(gradient)
            d = d + radius * gradient / torch.where(length > 0, length, 1.0)
            d = d * (radius / vectors.norm(d).clamp_min(radius))
    return torch.fmax(best, objective.loss(theta + scale * d, rows))


def _highest(values: Iterable[Tensor]) -> Tensor:
    """The largest that is a number."""
    return functools.reduce(torch.fmax, values)


def _one_step(
    objective: Objective, theta: Tensor, rows: Tensor, radii: Sequence[float]
) -> list[Tensor]:
    loss, gradient = objective.gradient(theta, rows)
    norm = vectors.norm(gradient)
    u = gradient / torch.where(norm > 0, norm, 1.0)  # no step where the gradient is 0
    return [objective.loss(theta + r * u, rows) - loss for r in radii]
