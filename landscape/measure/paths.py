"""Loss between two models and along a training."""

from collections.abc import Sequence

import numpy as np
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from landscape import plane as planes
from landscape.measure._common import Measuring, check_count, check_theta
from landscape.results import Variable
from landscape.risk import EmpiricalRisk


def interpolation(
    risk: EmpiricalRisk,
    theta: Float[Tensor, "P"],
    *,
    end: Float[Tensor, "P"],
    points: int = 11,
    bn: str = "recalibrate",
) -> xr.Dataset:
    """L((1 - alpha) theta + alpha end) for alpha in [0, 1], and the barrier between the two.

    loss(alpha) in nats, error_rate(alpha); barrier = max over alpha of L - ((1 - alpha) L(theta) +
    alpha L(end)), never below 0, and error_barrier likewise (arXiv:1912.05671). distance = ‖end -
    theta‖. bn="recalibrate" gives every point its own BatchNorm statistics: with those of one end
    the barrier is an artefact. Networks with permuted units are far apart here though their
    functions agree. Cost: points forward passes, twice with recalibration.
    """
    check_count("points", points, 3)
    own = risk.with_bn(bn)
    measuring = Measuring("interpolation", own, theta)
    measuring.finite_loss()
    end = check_theta(own, end)
    line = planes.interpolation(measuring.theta, end)
    grid = np.arange(points) / (points - 1)
    # The last point is the end itself, not theta plus a rounded difference.
    found = [own.evaluate(line.point(alpha) if alpha < 1 else end) for alpha in grid]
    losses = np.array([float(each.loss) for each in found])
    errors = np.array(
        [np.nan if each.error_rate is None else float(each.error_rate) for each in found]
    )
    variables = {
        "loss": Variable("alpha", losses, "nats", "Loss"),
        "error_rate": Variable("alpha", errors, "1", "Error rate"),
        "barrier": Variable((), _barrier(grid, losses), "nats", "Loss barrier"),
        "error_barrier": Variable((), _barrier(grid, errors), "1", "Error barrier"),
        "distance": Variable((), float(line.norms[0]), "1", "Distance of the two models"),
    }
    coords = {"alpha": Variable("alpha", grid, "1", "Position between the two models")}
    options = {"end_sha256": own.fingerprint(end), "points": points}
    return measuring.result(variables, coords=coords, options=options)


def trajectory(
    risk: EmpiricalRisk,
    checkpoints: Sequence[Float[Tensor, "P"]],
    *,
    num_directions: int = 2,
    bn: str = "recalibrate",
) -> xr.Dataset:
    """A training projected on its principal directions, with what the projection leaves out.

    Directions: uncentred principal components of w_t - w_T (`plane.trajectory`), origin at the last
    checkpoint. coordinate(epoch, direction), explained_share(direction) and, as its null,
    random_walk_share(direction), what a random walk of as many steps in high dimension explains
    (arXiv:1806.08805 shows that these shares are large too). residual(epoch) = distance of the
    checkpoint from the plane; loss(epoch) at the checkpoint beside surface_loss(epoch) at its
    projection: where they differ, the drawn surface is not what the training saw. `epoch` counts
    the checkpoints from 0. Cost: two forward passes per checkpoint.
    """
    own = risk.with_bn(bn)
    points = [check_theta(own, w) for w in checkpoints]
    plane = planes.trajectory(points, num_directions=num_directions)
    measuring = Measuring("trajectory", own, points[-1])
    coordinates = np.array(plane.details["coordinates"])
    losses = np.array([float(own.loss(w)) for w in points])
    surface = np.array([float(own.loss(plane.point(*row))) for row in coordinates])
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
        "loss": Variable("epoch", losses, "nats", "Loss of the checkpoint"),
        "surface_loss": Variable("epoch", surface, "nats", "Loss of its projection"),
    }
    coords = {
        "epoch": np.arange(len(points)),
        "direction": np.array(plane.labels, dtype=object),
    }
    options = {"plane_sha256": plane.fingerprint(), "num_checkpoints": len(points)}
    return measuring.result(variables, coords=coords, options=options)


def random_walk_share(num_checkpoints: int, num_directions: int) -> np.ndarray:
    """Shares of the principal directions of x_t - x_T for a random walk in infinite dimension.

    There the Gram matrix of the offsets tends to min(T - s, T - t): its eigenvalues are exact.
    """
    left = np.arange(num_checkpoints - 1, -1, -1)
    values = np.linalg.eigvalsh(np.minimum.outer(left, left).astype(np.float64))[::-1]
    return values[:num_directions] / values.sum()


def _barrier(grid: np.ndarray, values: np.ndarray) -> float:
    return float((values - ((1 - grid) * values[0] + grid * values[-1])).max())
