"""What a mini-batch adds to the full gradient, and how far the weights have moved."""

from collections.abc import Sequence

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from landscape import vectors
from landscape.errors import LandscapeError
from landscape.measure.curvature.sharpness import check_rho
from landscape.measure.measuring import (
    Measuring,
    check_theta,
    generator,
    numbers,
    split,
    tensor_coords,
)
from landscape.results import Variable
from landscape.risk import EmpiricalRisk, Objective

PARTS = ("batch gradient", "full part", "noise part", "EMA residual")


def gradient_noise(
    risk: EmpiricalRisk,
    theta: Float[Tensor, "P"],
    *,
    batch_size: int = 64,
    rho: float = 0.05,
    ema: float = 0.9,
    lr: float = 0.0,
    seed: int,
) -> xr.Dataset:
    """Parts of a mini-batch gradient g_B: along the full gradient g, and the noise g_B - (g_B·u) u.

    u = g/‖g‖ (arXiv:2403.12350). Over the disjoint batches of a seeded partition of the N
    examples: cosine(batch) = cos(g_B, g), full_share(batch) = its square, the energy of the full
    part. loss_increase_batch(batch, direction), loss_increase_full(batch, direction), nats: on the
    batch and on all examples after a step of length rho along g_B, its full part, its noise part,
    or "EMA residual", g_B - M, the noise as F-SAM finds it: M is the average of the batches before,
    M <- ema M + (1 - ema) g_B from the first one on; ema_cosine(batch) = cos(M, g), of the average
    that includes the batch. batch_cosine(batch) = cos(g_{t-1}(theta), g_t(theta - lr g_{t-1})), the
    staleness of a perturbation from the last step's gradient (asynchronous variants): lr=0 leaves
    the weights, so that only the batch changes. Both first batches have no past: NaN.
    Unbiased for examples drawn at random (arXiv:1812.06162, appendix A.1): gradient_energy = (N
    ‖g‖² - B E‖g_B‖²)/(N - B), noise_trace = (E‖g_B‖² - ‖g‖²)/(1/B - 1/N), whose ratio noise_scale
    is a number of examples; snr(tensor) = gradient_energy/(noise_trace/B) per tensor, NaN or
    negative where the noise hides the gradient. BatchNorm in eval mode. Cost: about 5 + 1.4 N/B
    gradients.
    batch_size: B.

    Example:
        >>> found = measure.gradient_noise(risk, theta, batch_size=8, seed=0)
        >>> found.sizes["batch"]
        6
    """
    (radius,) = check_rho(rho)
    if not 0 <= ema < 1 or not lr >= 0:
        raise LandscapeError(
            f"ema={ema} and lr={lr} were asked; ema is the weight of the past in [0, 1) and lr a "
            f"learning rate >= 0."
        )
    own = risk.with_bn("eval")
    measuring = Measuring("gradient_noise", own, theta)
    theta = measuring.theta
    center = float(measuring.finite_loss())
    total = own.num_examples
    if not 1 <= batch_size <= total // 2:
        raise LandscapeError(
            f"batch_size={batch_size} was asked of {total} examples; two disjoint batches are "
            f"needed, so choose 1 to {total // 2}."
        )
    order = torch.randperm(total, generator=generator(seed))
    batches = [rows for rows in order.split(batch_size) if len(rows) == batch_size]
    g = own.gradient(theta)
    found = _along_batches(own, theta, g, batches, radius=radius, ema=ema, lr=lr, center=center)
    energies, cosine = found["energies"], found["cosine"]
    mean, whole = np.mean(energies, axis=0), numbers(_energies(own, g))
    signal, noise = _unbiased(whole.sum(), mean.sum(), batch_size, total)
    tensor_signal, tensor_noise = _unbiased(whole, mean, batch_size, total)
    with np.errstate(divide="ignore", invalid="ignore"):
        snr = np.where(tensor_noise > 0, tensor_signal / (tensor_noise / batch_size), np.nan)
    dims = ("batch", "direction")
    squared = "nats² / parameter²"
    variables = {
        "cosine": Variable("batch", cosine, "1", "cos(g_B, g)"),
        "full_share": Variable("batch", cosine**2, "1", "Share of ‖g_B‖² along g"),
        "ema_cosine": Variable("batch", found["ema_cosine"], "1", "cos(EMA of g_B, g)"),
        "batch_cosine": Variable(
            "batch", found["batch_cosine"], "1", "cos of consecutive batch gradients"
        ),
        "loss_increase_batch": Variable(
            dims, found["on_batch"], "nats", "Loss increase on the batch"
        ),
        "loss_increase_full": Variable(
            dims, found["on_all"], "nats", "Loss increase on all examples"
        ),
        "gradient_energy": Variable((), signal, squared, "‖gradient‖² of the population"),
        "noise_trace": Variable((), noise, squared, "Trace of the gradient's covariance"),
        "noise_scale": Variable((), _positive_ratio(noise, signal), "examples", "Noise scale"),
        "snr": Variable("tensor", snr, "1", "Signal-to-noise ratio of the batch gradient"),
    }
    coords = {
        **tensor_coords(own.layout),
        "batch": np.arange(len(batches)),
        "direction": np.array(PARTS, dtype=object),
    }
    options = {"batch_size": batch_size, "rho": radius, "ema": ema, "lr": lr, "seed": seed}
    return measuring.result(variables, coords=coords, options=options)


def _along_batches(
    own: EmpiricalRisk,
    theta: Tensor,
    g: Tensor,
    batches: Sequence[Tensor],
    *,
    radius: float,
    ema: float,
    lr: float,
    center: float,
) -> dict[str, np.ndarray]:
    """What is measured of one batch after the other, their average going along."""
    objective, u = Objective(own, theta), g / vectors.norm(g)
    nothing = g.new_full((), torch.nan, dtype=torch.float64)
    cosine, ema_cosine, stale, on_batch, on_all = [], [], [], [], []
    energies, average, last = [], g, g
    for i, rows in enumerate(batches):
        loss, g_batch = objective.gradient(theta, rows)
        energies.append(_energies(own, g_batch))
        cosine.append(vectors.cosine(g_batch, u))
        full = vectors.dot(g_batch, u) * u
        parts = [g_batch, full, g_batch - full]
        if i:  # the first batch has no past
            there = g_batch if lr == 0 else objective.gradient(theta - lr * last, rows)[1]
            stale.append(vectors.cosine(last, there))
            parts.append(g_batch - average)
        else:
            stale.append(nothing)
        points = [theta + radius * part / vectors.norm(part) for part in parts]
        missing = [nothing] * (len(PARTS) - len(parts))
        on_batch.append([objective.loss(point, rows) - loss for point in points] + missing)
        on_all.append([own.loss(point).double() - center for point in points] + missing)
        average = ema * average + (1 - ema) * g_batch if i else g_batch
        ema_cosine.append(vectors.cosine(average, u))
        last = g_batch
    return {
        "energies": numbers(energies), "cosine": numbers(cosine),
        "ema_cosine": numbers(ema_cosine), "batch_cosine": numbers(stale),
        "on_batch": numbers(on_batch), "on_all": numbers(on_all),
    }  # fmt: skip


def norms(
    risk: EmpiricalRisk,
    theta: Float[Tensor, "P"],
    *,
    initial: Float[Tensor, "P"] | None = None,
) -> xr.Dataset:
    """‖w_l‖ per tensor and in all, and the distance ‖w_l - w_l0‖ from `initial` weights.

    weight_norm(tensor), theta_norm; distance(tensor), total_distance (NaN without `initial`). A
    layer before BatchNorm has the same function at any norm, its curvature goes as 1/‖w_l‖².
    By definition; all norms are l2.

    Example:
        >>> found = measure.norms(risk, theta, initial=other)
        >>> bool(np.isclose(found.theta_norm, theta.norm()))
        True
        >>> bool(np.isclose(found.total_distance, (theta - other).norm()))
        True
    """
    measuring = Measuring("norms", risk, theta)
    theta = measuring.theta
    start = torch.full_like(theta, torch.nan) if initial is None else check_theta(risk, initial)
    weight, moved = (numbers(_energies(risk, v)) ** 0.5 for v in (theta, theta - start))
    variables = {
        "weight_norm": Variable("tensor", weight, "1", "Norm ‖w‖ of the tensor"),
        "distance": Variable("tensor", moved, "1", "Distance from the initial weights"),
        "theta_norm": Variable((), float((weight**2).sum() ** 0.5), "1", "Parameter norm ‖θ‖"),
        "total_distance": Variable(
            (), float((moved**2).sum() ** 0.5), "1", "Distance from the initial weights, all"
        ),
    }
    options = {"initial_sha256": None if initial is None else risk.fingerprint(start)}
    return measuring.result(variables, coords=tensor_coords(risk.layout), options=options)


def _energies(risk: EmpiricalRisk, vector: Tensor) -> Tensor:
    """‖v_l‖² per tensor."""
    return torch.stack([vectors.squared_norm(part) for part in split(risk.layout, vector)])


def _unbiased(whole: np.ndarray, batch: np.ndarray, size: int, total: int) -> tuple:
    """Population ‖G‖² and tr Σ from the mean energies at two batch sizes."""
    signal = (total * whole - size * batch) / (total - size)
    return signal, (batch - whole) / (1 / size - 1 / total)


def _positive_ratio(noise: float, signal: float) -> float:
    return float(noise / signal) if signal > 0 else float("nan")
