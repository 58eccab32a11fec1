"""How models are connected: barriers on straight lines, and on curves trained to avoid them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from landscape import plane as planes
from landscape.errors import LandscapeError
from landscape.measure._common import Measuring, check_count, check_theta, generator
from landscape.measure._inside import RowLosses, model_at, spend
from landscape.results import Variable
from landscape.risk import EmpiricalRisk


def barrier_matrix(
    risk: EmpiricalRisk,
    models: Mapping[str, Float[Tensor, "P"]],
    *,
    points: int = 11,
    bn: str = "recalibrate",
) -> xr.Dataset:
    """Max over alpha of L((1-alpha) a + alpha b) - ((1-alpha) L(a) + alpha L(b)), all pairs (a, b).

    models: names (runs) to weights of one architecture. loss(pair, alpha) in nats, error_rate(pair,
    alpha), barrier(pair) and error_barrier(pair), never below 0 (arXiv:1912.05671), distance(pair)
    = ‖b - a‖; coordinates first(pair), second(pair) name the models. BatchNorm statistics are
    re-estimated at every point; those of one model (bn="eval") are refused, because they belong to
    no other. A barrier is symmetric, so that each pair is measured once. Networks with permuted
    units are far apart here though their functions agree (arXiv:2209.04836).
    Cost: one pass over the data per model and points - 2 per pair, twice with recalibration.
    """
    check_count("points", points, 3)
    if len(models) < 2:
        raise LandscapeError(
            f"A barrier is between two models; {len(models)} were given. Give two or more."
        )
    own = _comparable(risk, bn)
    names = list(models)
    thetas = [check_theta(own, models[name]) for name in names]
    measuring = Measuring("barrier_matrix", own, thetas[0])
    ends = [_values(own, theta) for theta in thetas]
    grid = np.arange(points) / (points - 1)
    rows, distances, pairs = [], [], list(combinations(range(len(names)), 2))
    for a, b in pairs:
        line = planes.interpolation(thetas[a], thetas[b], labels=(names[a], names[b]))
        distances.append(float(line.norms[0]))
        between = [_values(own, line.point(alpha)) for alpha in grid[1:-1]]
        rows.append([ends[a], *between, ends[b]])
    losses, errors = np.moveaxis(np.array(rows), -1, 0)
    variables = {
        "loss": Variable(("pair", "alpha"), losses, "nats", "Loss"),
        "error_rate": Variable(("pair", "alpha"), errors, "1", "Error rate"),
        "barrier": Variable("pair", barrier(grid, losses), "nats", "Loss barrier"),
        "error_barrier": Variable("pair", barrier(grid, errors), "1", "Error barrier"),
        "distance": Variable("pair", np.array(distances), "1", "Distance of the two models"),
    }
    coords = {
        "alpha": Variable("alpha", grid, "1", "Position between the two models"),
        "first": ("pair", np.array([names[a] for a, _ in pairs], dtype=object)),
        "second": ("pair", np.array([names[b] for _, b in pairs], dtype=object)),
    }
    shas = {name: own.fingerprint(theta) for name, theta in zip(names, thetas, strict=True)}
    return measuring.result(variables, coords=coords, options={"models": shas, "points": points})


@dataclass(frozen=True)
class CurveTraining:
    """How the bend of a Bezier curve is trained: SGD with Nesterov momentum, cosine to 0."""

    steps: int = 400
    lr: float = 0.05
    momentum: float = 0.9
    batch_size: int = 128

    def __post_init__(self) -> None:
        check_count("steps", self.steps, 1)
        check_count("batch_size", self.batch_size, 1)
        if not (0 < self.lr < math.inf and 0 <= self.momentum < 1):
            raise LandscapeError(
                f"lr={self.lr}, momentum={self.momentum} cannot train a curve; use lr above 0 and "
                f"momentum in [0, 1)."
            )


def bezier(
    risk: EmpiricalRisk,
    theta: Float[Tensor, "P"],
    *,
    end: Float[Tensor, "P"],
    training: CurveTraining | None = None,
    points: int = 21,
    bn: str = "recalibrate",
    seed: int,
) -> xr.Dataset:
    """L(phi(alpha)) on phi(t) = (1-t)² theta + 2t(1-t) c + t² end, c trained to keep it low.

    c minimizes E[L(phi(t))], t ~ U(0, 1), one t a mini-batch (arXiv:1802.10026, Eqs. 2 and 5), from
    the middle of the line; its gradient is 2t(1-t) ∇L(phi(t)), BatchNorm using each mini-batch, and
    the risk's weight decay is part of L. Then loss(alpha) and error_rate(alpha) are those of the
    whole risk, with BatchNorm statistics re-estimated at each point, beside linear_loss(alpha) on
    the straight line at the same points. barrier and linear_barrier: height above the straight
    chord of the end losses; detour = length of the curve / ‖end - theta‖; control_point(parameter)
    is c. training_loss: mean over the last tenth of the steps. A low curve shows that the two are
    connected; a barrier on it shows only that this training found no better one.
    Cost: 2 points passes, twice with recalibration, and steps * batch_size / N gradients.
    """
    check_count("points", points, 3)
    how = training or CurveTraining()
    own = _comparable(risk, bn)
    measuring = Measuring("bezier", own, theta)
    measuring.finite_loss()
    a, b = measuring.theta, check_theta(own, end)
    line = planes.interpolation(a, b)
    control, history = _trained(own, a, b, how, seed)
    grid = np.arange(points) / (points - 1)
    curve = [curve_point(a, control, b, t) for t in grid]
    bent = np.array([_values(own, point) for point in curve])
    straight = np.array([bent[0], *(_values(own, line.point(t)) for t in grid[1:-1]), bent[-1]])
    variables = {
        "loss": Variable("alpha", bent[:, 0], "nats", "Loss on the curve"),
        "error_rate": Variable("alpha", bent[:, 1], "1", "Error rate on the curve"),
        "linear_loss": Variable("alpha", straight[:, 0], "nats", "Loss on the line"),
        "linear_error_rate": Variable("alpha", straight[:, 1], "1", "Error rate on the line"),
        "barrier": Variable((), barrier(grid, bent[:, 0]), "nats", "Barrier on the curve"),
        "linear_barrier": Variable(
            (), barrier(grid, straight[:, 0]), "nats", "Barrier on the line"
        ),
        "distance": Variable((), float(line.norms[0]), "1", "Distance of the two models"),
        "detour": Variable((), _length(a, control, b) / float(line.norms[0]), "1", "Detour"),
        "training_loss": Variable((), history, "nats", "Loss at the end of the training"),
        "control_point": Variable("parameter", control.cpu().numpy(), "1", "Control point"),
    }
    coords = {"alpha": Variable("alpha", grid, "1", "Position t on the curve")}
    options = {
        "end_sha256": own.fingerprint(b),
        "points": points,
        "seed": seed,
        **{f"curve_{name}": value for name, value in vars(how).items()},
    }
    return measuring.result(variables, coords=coords, options=options)


def curve_point(
    a: Float[Tensor, "P"], control: Float[Tensor, "P"], b: Float[Tensor, "P"], t: float
) -> Float[Tensor, "P"]:
    """Phi(t) = (1-t)² a + 2t(1-t) control + t² b, exactly a and b at the ends."""
    if t in (0, 1):
        return (b if t else a).clone()
    return (1 - t) ** 2 * a + 2 * t * (1 - t) * control + t**2 * b


def barrier(grid: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Largest height of values (..., points) above the chord of their ends; NaN stays NaN."""
    chord = values[..., :1] * (1 - grid) + values[..., -1:] * grid
    return (values - chord).max(axis=-1)


def _trained(
    risk: EmpiricalRisk, a: Tensor, b: Tensor, how: CurveTraining, seed: int
) -> tuple[Tensor, float]:
    """The control point, and the mean training loss of the last tenth of the steps."""
    model = model_at(risk, a)
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.train()
    rows = RowLosses(risk, model)
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    source, control = generator(seed), (a + b) / 2
    velocity, losses = torch.zeros_like(control), []
    size = min(how.batch_size, risk.num_examples)
    order = torch.empty(0, dtype=torch.long)
    for step in range(how.steps):
        if len(order) < size:
            order = torch.randperm(risk.num_examples, generator=source)
        batch, order = order[:size], order[size:]
        t = float(torch.rand((), generator=source, dtype=torch.float64))
        point = curve_point(a, control, b, t)
        loss, gradient = _gradient(risk, rows, named, point, batch)
        losses.append(loss)
        gradient = 2 * t * (1 - t) * gradient
        velocity = how.momentum * velocity + gradient
        lr = how.lr * 0.5 * (1 + math.cos(math.pi * step / how.steps))
        control = control - lr * (gradient + how.momentum * velocity)
    spend(risk, how.steps * size / risk.num_examples)
    if not bool(torch.isfinite(control).all()):
        raise LandscapeError(
            f"The curve's training diverged within {how.steps} steps of lr={how.lr}; lower lr."
        )
    tail = losses[-max(1, how.steps // 10) :]
    return control, float(torch.stack(tail).mean())


def _gradient(
    risk: EmpiricalRisk,
    rows: RowLosses,
    named: dict[str, Tensor],
    point: Tensor,
    batch: Tensor,
) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        for name, value in risk.layout.unflatten(point).items():
            named[name].copy_(value)
    with torch.enable_grad():
        loss = rows(batch).mean()
        parts = torch.autograd.grad(loss, list(named.values()), materialize_grads=True)
    gradient = risk.layout.flatten(dict(zip(named, parts, strict=True)))
    decay = risk.weight_decay
    return loss.detach() + 0.5 * decay * point.square().sum(), gradient + decay * point


def _comparable(risk: EmpiricalRisk, bn: str) -> EmpiricalRisk:
    if bn == "eval" and risk.has_batchnorm:
        raise LandscapeError(
            "bn='eval' asked for a path between models, but running statistics belong to one of "
            "them and give an artefact elsewhere; use bn='recalibrate' or bn='full_batch'."
        )
    return risk.with_bn(bn)


def _values(risk: EmpiricalRisk, theta: Tensor) -> tuple[float, float]:
    found = risk.evaluate(theta)
    return float(found.loss), math.nan if found.error_rate is None else float(found.error_rate)


def _length(a: Tensor, control: Tensor, b: Tensor) -> float:
    """∫‖phi'(t)‖dt by Gauss-Legendre: phi' is linear in t."""
    nodes, weights = np.polynomial.legendre.leggauss(32)
    u, v = (control - a).double(), (b - control).double()
    speeds = [2 * float(torch.linalg.vector_norm((1 - t) * u + t * v)) for t in (nodes + 1) / 2]
    return float(np.dot(weights, speeds) / 2)
