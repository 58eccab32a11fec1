"""What is left of a network when its weights or its inputs are disturbed."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from landscape import vectors
from landscape.checks import check_count
from landscape.measure.measuring import Measuring, generator, numbers
from landscape.plane import Filters, is_one_d
from landscape.results import Variable
from landscape.risk import EmpiricalRisk, Objective

STRENGTHS = {
    "weight noise": (0.05, 0.1, 0.2, 0.3, 0.5),
    "weight rounding": (8, 6, 5, 4, 3),
    "input noise": (0.1, 0.2, 0.4, 0.6, 0.8),
    "blur": (0.5, 0.75, 1.0, 1.5, 2.0),
    "contrast": (0.75, 0.5, 0.35, 0.2, 0.1),
}
UNITS = {
    "weight noise": "SD over RMS weight of the filter",
    "weight rounding": "bits",
    "input noise": "SD over SD of the inputs",
    "blur": "pixels",
    "contrast": "share of contrast kept",
}
_SEVERITIES = (1, 2, 3, 4, 5)
Transform = Callable[[Tensor], Tensor]


def robustness(
    risk: EmpiricalRisk, theta: Float[Tensor, "P"], *, num_draws: int = 4, seed: int
) -> xr.Dataset:
    """Loss and accuracy with disturbed weights or inputs, five severities each.

    With w_f a filter (an output channel; a 1-D tensor is one) and r(w_f) its root mean square:
    "weight noise": w_f + s r(w_f) n, n ~ N(0, I), mean and SD over num_draws draws, the same draws
    for every model of one architecture. "weight rounding": b-bit symmetric integers per filter of
    the tensors of two axes or more, w_f -> c round(w_f/c), c = max|w_f|/(2^(b-1) - 1); 8 bits is
    severity 1. "input noise": x + s sd(x) n, sd over all inputs, one draw for all models; "blur":
    Gaussian kernel of SD s pixels along every spatial axis, the edge values repeated; "contrast": m
    + c (x - m), m the mean of each channel of an example. The last three, in the manner of
    arXiv:1903.12261 with our own strengths, are NaN where inputs are not real numbers with
    channels and space (N, C, ...).

    accuracy(corruption, severity), NaN for other tasks than classification, loss(corruption,
    severity) in nats, accuracy_std (weight noise, else 0), strength(corruption, severity) in
    strength_unit(corruption), and clean_accuracy, clean_loss. BatchNorm keeps its running
    statistics. Cost: 21 + 5 num_draws forward passes.

    Example:
        >>> found = measure.robustness(risk, theta, num_draws=2, seed=0)
        >>> found.accuracy.sizes["severity"], found.corruption.values.tolist()[:2]
        (5, ['weight noise', 'weight rounding'])
    """
    check_count("num_draws", num_draws, 2)
    own = risk.with_bn("eval")
    measuring = Measuring("robustness", own, theta)
    theta = measuring.theta
    measuring.finite_loss()
    seen: dict[tuple[int, ...], list[Tensor]] = {(): [_evaluate(own, theta)]}
    for i, (name, strengths) in enumerate(STRENGTHS.items()):
        found = _disturbed(own, theta, name, strengths, num_draws, seed)
        seen |= {(i, j): draws for j, draws in enumerate(found)}
    pairs = numbers([each for draws in seen.values() for each in draws])  # waits once
    pairs[:, 1] = 1 - pairs[:, 1]
    read = iter(pairs)
    clean = next(read)
    shape = (len(STRENGTHS), len(_SEVERITIES))
    loss, accuracy, spread = np.full((3, *shape), np.nan)
    for at, draws in list(seen.items())[1:]:
        if draws:
            found = np.array([next(read) for _ in draws])
            loss[at], accuracy[at] = found.mean(0)
            spread[at] = found[:, 1].std(ddof=1) if len(found) > 1 else 0.0
    both = ("corruption", "severity")
    variables = {
        "accuracy": Variable(both, accuracy, "1", "Accuracy"),
        "accuracy_std": Variable(both, spread, "1", "SD of the accuracy over draws"),
        "loss": Variable(both, loss, "nats", "Loss"),
        "strength": Variable(both, np.array(list(STRENGTHS.values()), float), "1", "Strength"),
        "clean_accuracy": Variable((), clean[1], "1", "Accuracy, undisturbed"),
        "clean_loss": Variable((), clean[0], "nats", "Loss, undisturbed"),
    }
    coords = {
        "corruption": np.array(list(STRENGTHS), dtype=object),
        "strength_unit": ("corruption", np.array(list(UNITS.values()), dtype=object)),
        "severity": np.array(_SEVERITIES),
    }
    return measuring.result(
        variables, coords=coords, options={"num_draws": num_draws, "seed": seed}
    )


def _disturbed(
    risk: EmpiricalRisk,
    theta: Tensor,
    name: str,
    strengths: Sequence[float],
    num_draws: int,
    seed: int,
) -> list[list[Float[Tensor, "2"]]]:
    """(loss, error rate) of every draw, per strength; none where the corruption does not apply."""
    if name == "weight noise":
        source = generator(seed)
        draws = (_noise(risk, theta, source) for _ in range(num_draws))
        rows = [
            [_evaluate(risk, _noisy(risk, theta, strength, draw)) for strength in strengths]
            for draw in draws
        ]
        return [list(each) for each in zip(*rows, strict=True)]
    if name == "weight rounding":
        return [[_evaluate(risk, _rounded(risk, theta, int(bits)))] for bits in strengths]
    transforms = [_INPUTS[name](risk, strength, seed) for strength in strengths]
    there = [transform for transform in transforms if transform is not None]
    if not there:
        return [[] for _ in strengths]
    objective = Objective(risk, theta)
    return [[_evaluate(objective.through(transform), theta)] for transform in there]


def _evaluate(here: EmpiricalRisk | Objective, theta: Tensor) -> Float[Tensor, "2"]:
    """Mean loss and share of wrong predictions (NaN when it is no classification)."""
    seen = here.evaluate(theta)
    rate = torch.full_like(seen.loss, math.nan) if seen.error_rate is None else seen.error_rate
    return torch.stack([seen.loss, rate])


# --- weights ----------------------------------------------------------------------------------


def _noise(risk: EmpiricalRisk, theta: Tensor, source: torch.Generator) -> Float[Tensor, "P"]:
    """Standard normal numbers, of which every strength takes a multiple."""
    drawn = torch.empty_like(theta)
    for tensor in risk.layout.tensors:
        draw = torch.randn(tensor.numel, generator=source, dtype=torch.float64)
        drawn[tensor.start : tensor.stop] = draw.to(theta, non_blocking=True)
    return drawn


def _noisy(
    risk: EmpiricalRisk, theta: Tensor, strength: float, noise: Float[Tensor, "P"]
) -> Float[Tensor, "P"]:
    rule, moved = Filters.of(risk), torch.empty_like(theta)
    for tensor in risk.layout.tensors:
        span = slice(tensor.start, tensor.stop)
        rows = rule.rows(tensor, theta[span])
        size = (vectors.row_norms(rows) / rows.shape[1] ** 0.5).to(rows)[:, None]
        moved[span] = rule.flat(tensor, rows + strength * size * rule.rows(tensor, noise[span]))
    return moved


def _rounded(risk: EmpiricalRisk, theta: Tensor, bits: int) -> Float[Tensor, "P"]:
    rule, rounded = Filters.of(risk), theta.clone()
    for tensor in risk.layout.tensors:
        if is_one_d(tensor):
            continue
        span = slice(tensor.start, tensor.stop)
        rows = rule.rows(tensor, theta[span])
        step = rows.abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)
        live = torch.where(step > 0, step, 1.0)
        rounded[span] = rule.flat(tensor, torch.round(rows / live) * step)
    return rounded


# --- inputs -----------------------------------------------------------------------------------


def _images(risk: EmpiricalRisk) -> list[Tensor] | None:
    """The inputs of all chunks, where each is one real tensor (n, channels, ...)."""
    inputs = risk.inputs
    fit = all(
        len(args) == 1 and not kwargs and isinstance(args[0], Tensor)
        and args[0].is_floating_point() and args[0].ndim >= 3
        for args, kwargs in inputs
    )  # fmt: skip
    return [args[0] for args, _ in inputs] if fit else None


def _input_noise(risk: EmpiricalRisk, strength: float, seed: int) -> Transform | None:
    inputs = _images(risk)
    if inputs is None:
        return None
    flat = torch.cat([x.double().reshape(-1) for x in inputs])
    scale, source = strength * flat.std(), generator(seed)

    def noisy(x: Tensor) -> Tensor:
        # In the order of the data: one draw per example for every model.
        draw = torch.randn(x.shape, generator=source, dtype=torch.float64)
        return x + scale * draw.to(x, non_blocking=True)

    return noisy


def _blur(risk: EmpiricalRisk, strength: float, seed: int) -> Transform | None:  # noqa: ARG001
    return (lambda x: blurred(x, strength)) if _images(risk) is not None else None


def _contrast(risk: EmpiricalRisk, strength: float, seed: int) -> Transform | None:  # noqa: ARG001
    if _images(risk) is None:
        return None

    def lower(x: Tensor) -> Tensor:
        mean = x.mean(tuple(range(2, x.ndim)), keepdim=True)
        return mean + strength * (x - mean)

    return lower


def blurred(x: Float[Tensor, "N C ..."], sigma: float) -> Float[Tensor, "N C ..."]:
    """Gaussian blur along every axis after the channels, cut at 4 sigma, edges repeated."""
    reach = max(1, math.ceil(4 * sigma))
    offsets = torch.arange(-reach, reach + 1, dtype=torch.float64)
    kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)
    kernel = (kernel / kernel.sum()).to(x, non_blocking=True)[None, None]
    for axis in range(2, x.ndim):
        lines = x.movedim(axis, -1)
        shape = lines.shape
        flat = F.pad(lines.reshape(-1, 1, shape[-1]), (reach, reach), mode="replicate")
        x = F.conv1d(flat, kernel).view(shape).movedim(-1, axis)
    return x


_INPUTS = {"input noise": _input_noise, "blur": _blur, "contrast": _contrast}
