"""Loss between two models and along a training."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from landscape import plane as planes
from landscape import sam
from landscape.checks import check_count
from landscape.errors import LandscapeError
from landscape.measure.measuring import Measuring, check_checkpoints, check_theta, numbers
from landscape.measure.perturbations.counterfactual import Counterfactual
from landscape.measure.surfaces.grids import loss_slice
from landscape.measure.surfaces.values import objective
from landscape.plane import Plane
from landscape.results import Variable
from landscape.risk import BNMode, EmpiricalRisk


def interpolation(
    risk: EmpiricalRisk,
    theta: Float[Tensor, "P"],
    *,
    end: Float[Tensor, "P"],
    points: int = 21,
    bn: BNMode = "recalibrate",
) -> xr.Dataset:
    """L((1 - alpha) theta + alpha end) for alpha in [0, 1], and the barrier between the two.

    loss(alpha) in nats, error_rate(alpha); barrier = max over alpha of L - ((1 - alpha) L(theta) +
    alpha L(end)), never below 0, and error_barrier likewise (arXiv:1912.05671). distance = ‖end -
    theta‖. bn="recalibrate" gives every point its own BatchNorm statistics: with those of one end
    the barrier is an artefact. Networks with permuted units are far apart here though their
    functions agree. Cost: points forward passes; recalibration as for `loss_slice`.

    Example:
        >>> found = measure.interpolation(risk, theta, end=other, points=5)
        >>> found.alpha.values.tolist(), bool(found.barrier >= 0)
        ([0.0, 0.25, 0.5, 0.75, 1.0], True)
    """
    check_count("points", points, 3)
    own = risk.with_bn(bn)
    measuring = Measuring("interpolation", own, theta)
    measuring.finite_loss()
    end = check_theta(own, end, name="end")
    line = planes.interpolation(measuring.theta, end)
    grid = np.arange(points) / (points - 1)
    # The last point is the end itself, not theta plus a rounded difference.
    found = [own.evaluate(line.point(alpha) if alpha < 1 else end) for alpha in grid]
    losses = numbers([each.loss for each in found])
    rates = [each.error_rate for each in found if each.error_rate is not None]
    errors = numbers(rates) if rates else np.full(points, np.nan)
    variables = {
        "loss": Variable("alpha", losses, "nats", "Loss"),
        "error_rate": Variable("alpha", errors, "1", "Error rate"),
        "barrier": Variable((), _barrier(grid, losses), "nats", "Loss barrier"),
        "error_barrier": Variable((), _barrier(grid, errors), "1", "Error barrier"),
        "distance": Variable((), float(line.norms[0]), "1", "Distance of the two models"),
    }
    coords = {"alpha": Variable("alpha", grid, "1", "Position between the two models")}
    options = {
        "end_sha256": own.fingerprint(end),
        "points": points,
        "objective": objective(own),
    }
    return measuring.result(variables, coords=coords, options=options)


def trajectory(
    risk: EmpiricalRisk,
    checkpoints: Sequence[Float[Tensor, "P"]],
    *,
    num_directions: int = 2,
    epochs: Sequence[int] | None = None,
    grid: int = 0,
    margin: float = 0.25,
    bn: BNMode = "recalibrate",
) -> xr.Dataset:
    """A training projected on its principal directions, with what the projection leaves out.

    Directions: uncentred principal components of w_t - w_T (`plane.trajectory`), origin at the last
    checkpoint. coordinate(epoch, direction), explained_share(direction) and, as its null,
    random_walk_share(direction), what a random walk of as many steps in high dimension explains
    (arXiv:1806.08805 shows that these shares are large too). residual(epoch) = distance of the
    checkpoint from the plane; loss(epoch) at the checkpoint beside surface_loss(epoch) at its
    projection: where they differ, the drawn surface is not what the training saw. largest_cosine
    between two of the directions is 0 up to rounding. epochs: those of the checkpoints along
    `epoch`, counted from 0 by default. grid: cells from the last checkpoint to the far end of each
    axis; the plane is then drawn as well, plane_loss(alpha, beta), `margin` beyond. alpha and beta
    are in units of alpha_unit, beta_unit, the largest |coordinate| along each direction, so that
    trainings of different lengths share them. Cost: two forward passes per checkpoint and about 2
    (grid (1 + margin))² for the plane; recalibration as for `loss_slice`. checkpoints: weights (P,)
    in the order of training. num_directions: of the projection.

    Example:
        >>> found = measure.trajectory(risk, [other, (other + theta) / 2, theta], num_directions=1)
        >>> bool(np.isclose(found.explained_share[0], 1))
        True
    """
    own = risk.with_bn(bn)
    points = check_checkpoints(own, checkpoints)
    if epochs is not None and len(epochs) != len(points):
        raise LandscapeError(
            f"{len(epochs)} epochs were given for {len(points)} checkpoints; give one for each."
        )
    plane = planes.trajectory(points, num_directions=num_directions)
    measuring = Measuring("trajectory", own, points[-1])
    coordinates = np.array(plane.details["coordinates"])
    losses = numbers([own.loss(w) for w in points])
    surface = numbers([own.loss(plane.point(*row)) for row in coordinates])
    variables = {
        "coordinate": Variable(("epoch", "direction"), coordinates, "1", "Coordinate"),
        "explained_share": Variable(
            "direction", np.array(plane.details["explained_share"]), "1", "Share of ‖w − w_T‖²"
        ),
        "random_walk_share": Variable(
            "direction",
            random_walk_share(len(points), num_directions),
            "1",
            "Share a random walk would have",
        ),
        "residual": Variable(
            "epoch", np.array(plane.details["residual"]), "1", "Distance from the plane"
        ),
        "largest_cosine": Variable((), plane.largest_cosine, "1", "Largest |cosine| of two axes"),
        "loss": Variable("epoch", losses, "nats", "Loss of the checkpoint"),
        "surface_loss": Variable("epoch", surface, "nats", "Loss of its projection"),
    }
    coords: dict[str, Any] = {
        "epoch": np.arange(len(points)) if epochs is None else np.asarray(epochs),
        "direction": np.array(plane.labels, dtype=object),
    }
    options = {
        "plane_sha256": plane.fingerprint(),
        "num_checkpoints": len(points),
        "objective": objective(own),
    }
    if grid:
        drawn, axes = _drawn(own, plane, np.abs(coordinates).max(axis=0), grid, margin)
        variables |= drawn
        coords |= axes
    return measuring.result(variables, coords=coords, options=options)


def _drawn(
    risk: EmpiricalRisk, plane: Plane, extent: np.ndarray, grid: int, margin: float
) -> tuple[dict[str, Variable], dict[str, Variable]]:
    """The loss on a grid around the projected trajectory, in units of its extent."""
    check_count("grid", grid, 1)
    if len(extent) != 2:
        raise LandscapeError(
            f"A plane has two directions and num_directions={len(extent)} was asked; use 2, or "
            f"grid=0 for the projection alone."
        )
    beyond = math.ceil(margin * grid - 1e-9)
    # Directions point at the first checkpoint, so that the training runs from alpha = 1 to 0.
    alphas = np.arange(-beyond, grid + beyond + 1) / grid
    betas = np.arange(-grid - beyond, grid + beyond + 1) / grid
    # A training on one line has no extent along the second direction: draw it as wide as long.
    unit = np.where(extent > 1e-6 * extent.max(), extent, extent.max())
    losses = numbers(
        [[risk.loss(plane.point(a * unit[0], b * unit[1])) for b in betas] for a in alphas]
    )
    names = ("First", "Second")
    variables = {
        "plane_loss": Variable(("alpha", "beta"), losses, "nats", "Loss on the plane"),
        **{
            f"{axis}_unit": Variable((), float(length), "1", f"{name} axis: length of 1")
            for axis, name, length in zip(("alpha", "beta"), names, unit, strict=True)
        },
    }
    axes = {
        "alpha": Variable("alpha", alphas, "alpha_unit", "Position along the first direction"),
        "beta": Variable("beta", betas, "beta_unit", "Position along the second direction"),
    }
    return variables, axes


def perturbation_slice(
    risk: EmpiricalRisk,
    theta: Float[Tensor, "P"],
    *,
    variants: Mapping[str, sam.Variant],
    batch_size: int = 64,
    batch_bn: str = "batch",
    radius: float = 1.5,
    points: int = 25,
    bn: BNMode = "eval",
    seed: int,
) -> xr.Dataset:
    """L(theta + alpha e_v) along each variant's own perturbation e_v, alpha = 1 being the step.

    e_v is what the variant v would add to theta on one seeded batch (`perturbation`). As
    `loss_slice`: loss(direction, alpha) of all examples, and batch_loss(direction, alpha) of the
    batch that e_v was made for, on which it was meant to rise; direction_norm(direction) = ‖e_v‖.
    `direction` names the variants. batch_bn: statistics that the ascent step uses, see
    `perturbation`. Variants that perturb nothing (SGD) are refused.
    Cost: two gradients of the batch per variant, and those of `loss_slice`.
    By definition of the line. bn: the mode in which the risk is evaluated; radius, points: the grid
    of alpha, from -radius to radius.

    Example:
        >>> variants = {"sam": sam.sam(0.1), "adaptive": sam.asam(0.5)}
        >>> found = measure.perturbation_slice(
        ...     risk, theta, variants=variants, batch_size=16, points=5, seed=0
        ... )
        >>> found.loss.dims, found.direction.values.tolist()
        (('direction', 'alpha'), ['sam', 'adaptive'])
    """
    own = risk.with_bn(bn)
    theta = check_theta(own, theta)
    found, rows = perturbations(
        risk, theta, variants=variants, batch_size=batch_size, bn=batch_bn, seed=seed
    )
    return loss_slice(
        own,
        theta,
        directions=planes.perturbations(theta, found, unit=False),
        radius=radius,
        points=points,
        bn=bn,
        also={"batch": risk.subset(rows)},
        name="perturbation_slice",
        seed=seed,
    )


def perturbations(
    risk: EmpiricalRisk,
    theta: Float[Tensor, "P"],
    *,
    variants: Mapping[str, sam.Variant],
    batch_size: int = 64,
    bn: str = "batch",
    seed: int,
) -> tuple[dict[str, Tensor], Tensor]:
    """The e (P,) that each variant would add to theta on one seeded batch, and the batch's rows."""
    if not variants:
        raise LandscapeError("The perturbations of no variant were asked; name at least one.")
    here = Counterfactual(risk, theta, batch_size=batch_size, bn=bn, seed=seed)
    found = {name: here.flat(here.perturb(variant).e) for name, variant in variants.items()}
    still = [name for name, e in found.items() if not bool(e.any())]
    if still:
        raise LandscapeError(
            f"{still[0]!r} perturbs nothing here, so there is no line along its perturbation; "
            f"leave it out."
        )
    return found, here.rows


def random_walk_share(num_checkpoints: int, num_directions: int) -> np.ndarray:
    """Shares of the principal directions of x_t - x_T for a random walk in infinite dimension.

    There the Gram matrix of the offsets tends to min(T - s, T - t): its eigenvalues are exact.
    """
    left = np.arange(num_checkpoints - 1, -1, -1)
    values = np.linalg.eigvalsh(np.minimum.outer(left, left).astype(np.float64))[::-1]
    return values[:num_directions] / values.sum()


def _barrier(grid: np.ndarray, values: np.ndarray) -> float:
    return float((values - ((1 - grid) * values[0] + grid * values[-1])).max())
