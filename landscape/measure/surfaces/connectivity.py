"""How models are connected: barriers on lines, curves that avoid them, planes through three."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from landscape import plane as planes
from landscape import vectors
from landscape.checks import check_count
from landscape.errors import LandscapeError
from landscape.measure.measuring import Measuring, check_theta, generator, numbers
from landscape.measure.surfaces.grids import loss_plane
from landscape.measure.surfaces.values import objective
from landscape.results import Variable
from landscape.risk import BNMode, EmpiricalRisk, Objective


def barrier_matrix(
    risk: EmpiricalRisk,
    models: Mapping[str, Float[Tensor, "P"]],
    *,
    points: int = 11,
    bn: BNMode = "recalibrate",
) -> xr.Dataset:
    """Max over alpha of L((1-alpha) a + alpha b) - ((1-alpha) L(a) + alpha L(b)), all pairs (a, b).

    models: names (runs) to weights of one architecture. loss(pair, alpha) in nats, error_rate(pair,
    alpha), barrier(pair) and error_barrier(pair), never below 0 (arXiv:1912.05671), distance(pair)
    = ‖b - a‖; coordinates first(pair), second(pair) name the models. BatchNorm statistics are
    re-estimated at every point; those of one model (bn="eval") are refused, because they belong to
    no other. A barrier is symmetric, so that each pair is measured once. Networks with permuted
    units are far apart here though their functions agree (arXiv:2209.04836).
    Cost: one pass over the data per model and points - 2 per pair; recalibration as for
    `loss_slice`.
    bn: "full_batch" or "recalibrate".

    Example:
        >>> found = measure.barrier_matrix(risk, {"seed 0": theta, "seed 1": other}, points=5)
        >>> found.loss.dims, found.first.values.tolist(), found.second.values.tolist()
        (('pair', 'alpha'), ['seed 0'], ['seed 1'])
    """
    check_count("points", points, 3)
    if len(models) < 2:
        raise LandscapeError(
            f"A barrier is between two models; {len(models)} were given. Give two or more."
        )
    own = _comparable(risk, bn)
    names = list(models)
    thetas = [check_theta(own, models[name], name=name) for name in names]
    measuring = Measuring("barrier_matrix", own, thetas[0])
    ends = [_values(own, theta) for theta in thetas]
    grid = np.arange(points) / (points - 1)
    rows, distances, pairs = [], [], list(combinations(range(len(names)), 2))
    for a, b in pairs:
        line = planes.interpolation(thetas[a], thetas[b], labels=(names[a], names[b]))
        distances.append(line.norms[0])
        between = [_values(own, line.point(alpha)) for alpha in grid[1:-1]]
        rows.append([ends[a], *between, ends[b]])
    variables = _barriers("pair", grid, rows, distances)
    coords = {
        "alpha": Variable("alpha", grid, "1", "Position between the two models"),
        "first": ("pair", np.array([names[a] for a, _ in pairs], dtype=object)),
        "second": ("pair", np.array([names[b] for _, b in pairs], dtype=object)),
    }
    shas = {name: own.fingerprint(theta) for name, theta in zip(names, thetas, strict=True)}
    options = {"models": shas, "points": points, "objective": objective(own)}
    return measuring.result(variables, coords=coords, options=options)


def barrier(
    risk: EmpiricalRisk,
    theta: Float[Tensor, "P"],
    *,
    others: Mapping[str, Float[Tensor, "P"]],
    points: int = 11,
    bn: BNMode = "recalibrate",
) -> xr.Dataset:
    """One row of `barrier_matrix`: from theta to each of `others`, by name along `other`.

    loss(other, alpha) and error_rate(other, alpha), theta at alpha = 0; barrier(other),
    error_barrier(other), distance(other). A model is at distance 0 of itself, without a barrier.
    Cost: one pass over the data for theta and points - 1 for every other model; recalibration
    as for `loss_slice`.
    Definition: arXiv:1912.05671.

    Example:
        >>> found = measure.barrier(risk, theta, others={"seed 1": other}, points=5)
        >>> found.barrier.dims, bool((found.barrier >= 0).all())
        (('other',), True)
    """
    check_count("points", points, 3)
    if not others:
        raise LandscapeError("A barrier is between two models; no other one was given.")
    own = _comparable(risk, bn)
    measuring = Measuring("barrier", own, theta)
    measuring.finite_loss()
    start = _values(own, measuring.theta)
    grid = np.arange(points) / (points - 1)
    rows, distances, shas = [], [], {}
    for name, other in others.items():
        end = check_theta(own, other, name=name)
        shas[name] = own.fingerprint(end)
        if torch.equal(end, measuring.theta):
            rows.append([start] * points)
            distances.append(torch.zeros((), dtype=torch.float64, device=own.device))
            continue
        line = planes.interpolation(measuring.theta, end, labels=("theta", name))
        between = [_values(own, line.point(alpha)) for alpha in grid[1:-1]]
        rows.append([start, *between, _values(own, end)])
        distances.append(line.norms[0])
    coords = {
        "alpha": Variable("alpha", grid, "1", "Position between the two models"),
        "other": np.array(list(others), dtype=object),
    }
    return measuring.result(
        _barriers("other", grid, rows, distances),
        coords=coords,
        options={"others": shas, "points": points, "objective": objective(own)},
    )


def _barriers(
    dim: str, grid: np.ndarray, rows: list[list[tuple[Tensor, Tensor]]], distances: list[Tensor]
) -> dict[str, Variable]:
    losses, errors = np.moveaxis(numbers(rows), -1, 0)
    return {
        "loss": Variable((dim, "alpha"), losses, "nats", "Loss"),
        "error_rate": Variable((dim, "alpha"), errors, "1", "Error rate"),
        "barrier": Variable(dim, height(grid, losses), "nats", "Loss barrier"),
        "error_barrier": Variable(dim, height(grid, errors), "1", "Error barrier"),
        "distance": Variable(dim, numbers(distances), "1", "Distance of the two models"),
    }


@dataclass(frozen=True)
class CurveTraining:
    """How the bend of a Bezier curve is trained: SGD with Nesterov momentum, cosine to 0.

    steps: of SGD, one mini-batch of `batch_size` examples each. lr: the rate at the start.
    momentum: Nesterov's. The method is that of arXiv:1802.10026.

    Example:
        >>> quick = measure.CurveTraining(steps=20, batch_size=16)
        >>> quick.steps, quick.lr
        (20, 0.05)
        >>> curve = measure.bezier(risk, theta, end=other, training=quick, points=3, seed=0)
        >>> curve.loss.sizes["alpha"]
        3
    """

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
    bn: BNMode = "recalibrate",
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
    Cost: 2 points passes (recalibration: see `loss_slice`), and steps * batch_size / N gradients.

    Example:
        >>> quick = measure.CurveTraining(steps=20, batch_size=16)
        >>> found = measure.bezier(risk, theta, end=other, training=quick, points=5, seed=0)
        >>> found.loss.dims, bool(found.detour >= 1)
        (('alpha',), True)
    """
    check_count("points", points, 3)
    how = training or CurveTraining()
    own = _comparable(risk, bn)
    measuring = Measuring("bezier", own, theta)
    measuring.finite_loss()
    a, b = measuring.theta, check_theta(own, end, name="end")
    line = planes.interpolation(a, b)
    control, history = _trained(own, a, b, how, seed)
    grid = np.arange(points) / (points - 1)
    curve = [curve_point(a, control, b, t) for t in grid]
    bent = numbers([_values(own, point) for point in curve])
    straight = numbers([_values(own, line.point(t)) for t in grid[1:-1]])
    straight = np.concatenate([bent[:1], straight, bent[-1:]])
    variables = {
        "loss": Variable("alpha", bent[:, 0], "nats", "Loss on the curve"),
        "error_rate": Variable("alpha", bent[:, 1], "1", "Error rate on the curve"),
        "linear_loss": Variable("alpha", straight[:, 0], "nats", "Loss on the line"),
        "linear_error_rate": Variable("alpha", straight[:, 1], "1", "Error rate on the line"),
        "barrier": Variable((), height(grid, bent[:, 0]), "nats", "Barrier on the curve"),
        "linear_barrier": Variable((), height(grid, straight[:, 0]), "nats", "Barrier on the line"),
        "distance": Variable((), float(line.norms[0]), "1", "Distance of the two models"),
        "detour": Variable((), _length(a, control, b) / float(line.norms[0]), "1", "Detour"),
        "training_loss": Variable((), history, "nats", "Loss at the end of the training"),
        "control_point": Variable("parameter", control.cpu().numpy(), "1", "Control point"),
    }
    coords = {"alpha": Variable("alpha", grid, "1", "Position t on the curve")}
    options = {
        "end_sha256": own.fingerprint(b),
        "objective": objective(own),
        "points": points,
        "seed": seed,
        **{f"curve_{name}": value for name, value in vars(how).items()},
    }
    return measuring.result(variables, coords=coords, options=options)


def three_points(
    risk: EmpiricalRisk,
    models: Mapping[str, Float[Tensor, "P"]],
    *,
    cells: int = 8,
    margin: float = 0.25,
    bn: BNMode = "recalibrate",
    seed: int = 0,
) -> xr.Dataset:
    """The loss on the plane through three models, a at (0, 0), b at (1, 0), c at (0, 1).

    models: three names and weights of one architecture. As `loss_plane`, with `cells` grid cells
    between two models and `margin` of that distance around them; the axes are oblique in general
    (axis_cosine), b - a and c - a. model_alpha(point), model_beta(point) place the models and
    model_loss(point) is the loss of each, which the grid hits to rounding. BatchNorm statistics are
    re-estimated at every point, since those of one model belong to no other.
    Cost: (cells (1 + 2 margin) + 1)² forward passes; recalibration as for `loss_slice`.
    The plane is that of arXiv:1802.10026, Fig. 1.

    Example:
        >>> third = EmpiricalRisk(make_model(seed=2), nn.CrossEntropyLoss(), data).theta.double()
        >>> models = {"seed 0": theta, "seed 1": other, "seed 2": third}
        >>> found = measure.three_points(risk, models, cells=2)
        >>> found.model_alpha.values.tolist(), found.model_beta.values.tolist()
        ([0.0, 1.0, 0.0], [0.0, 0.0, 1.0])
    """
    check_count("cells", cells, 1)
    if len(models) != 3:
        raise LandscapeError(
            f"A plane goes through three models; {len(models)} were given. Give three."
        )
    if not 0 <= margin < math.inf:
        raise LandscapeError(f"margin={margin} was asked; give a number from 0 on, such as 0.25.")
    own = _comparable(risk, bn)
    names = list(models)
    a, b, c = (check_theta(own, models[name], name=name) for name in names)
    beyond = math.ceil(margin * cells - 1e-9)
    # Whole numbers over `cells`: 0 and 1, where the models are, are exact.
    axis = np.arange(-beyond, cells + beyond + 1) / cells
    ds = loss_plane(
        own,
        a,
        directions=planes.through(a, b, c, labels=(names[0], names[1], names[2])),
        alphas=axis,
        betas=axis,
        bn=bn,
        name="three_points",
        seed=seed,
    )
    losses = numbers([own.loss(theta) for theta in (a, b, c)])
    placed = {
        "model_alpha": Variable("point", np.array([0.0, 1.0, 0.0]), "1", "α of the model"),
        "model_beta": Variable("point", np.array([0.0, 0.0, 1.0]), "1", "β of the model"),
        "model_loss": Variable("point", losses, "nats", "Loss of the model"),
    }
    points = np.array(names, dtype=object)
    return ds.assign({k: v.as_xarray() for k, v in placed.items()}).assign_coords(point=points)


def curve_point(
    a: Float[Tensor, "P"], control: Float[Tensor, "P"], b: Float[Tensor, "P"], t: float
) -> Float[Tensor, "P"]:
    """Phi(t) = (1-t)² a + 2t(1-t) control + t² b, exactly a and b at the ends."""
    if t in (0, 1):
        return (b if t else a).clone()
    return (1 - t) ** 2 * a + 2 * t * (1 - t) * control + t**2 * b


def height(grid: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Largest height of values (..., points) above the chord of their ends; NaN stays NaN."""
    chord = values[..., :1] * (1 - grid) + values[..., -1:] * grid
    return (values - chord).max(axis=-1)


def _trained(
    risk: EmpiricalRisk, a: Tensor, b: Tensor, how: CurveTraining, seed: int
) -> tuple[Tensor, float]:
    """The control point, and the mean training loss of the last tenth of the steps."""
    objective = Objective(risk, a, batch_statistics=True)
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
        loss, gradient = objective.gradient(point, batch)
        losses.append(loss)
        gradient = 2 * t * (1 - t) * gradient
        velocity = how.momentum * velocity + gradient
        lr = how.lr * 0.5 * (1 + math.cos(math.pi * step / how.steps))
        control = control - lr * (gradient + how.momentum * velocity)
    if not bool(torch.isfinite(control).all()):
        raise LandscapeError(
            f"The curve's training diverged within {how.steps} steps of lr={how.lr}; lower lr."
        )
    tail = losses[-max(1, how.steps // 10) :]
    return control, float(sum(tail)) / len(tail)


def _comparable(risk: EmpiricalRisk, bn: BNMode) -> EmpiricalRisk:
    if bn == "eval" and risk.has_batchnorm:
        raise LandscapeError(
            "bn='eval' asked for a path between models, but running statistics belong to one of "
            "them and give an artefact elsewhere; use bn='recalibrate' or bn='full_batch'."
        )
    return risk.with_bn(bn)


def _values(risk: EmpiricalRisk, theta: Tensor) -> tuple[Tensor, Tensor]:
    """Loss and error rate, NaN where nothing is classified; on the device."""
    found = risk.evaluate(theta)
    rate = found.loss.new_full((), torch.nan) if found.error_rate is None else found.error_rate
    return found.loss, rate


def _length(a: Tensor, control: Tensor, b: Tensor) -> float:
    """∫‖phi'(t)‖dt by Gauss-Legendre: phi' is linear in t."""
    nodes, weights = np.polynomial.legendre.leggauss(32)
    u, v = (control - a).double(), (b - control).double()
    speeds = 2 * numbers([vectors.norm((1 - t) * u + t * v) for t in (nodes + 1) / 2])
    return float(np.dot(weights, speeds) / 2)
