"""The points of a surface: grids that hold the checkpoint, and planes that start at it."""

import numpy as np
import torch
from torch import Tensor

from landscape.checks import check_count
from landscape.errors import LandscapeError
from landscape.measure.measuring import numbers
from landscape.plane import Plane
from landscape.results import Variable

# Axes closer than this to one line are told apart by rounding alone.
_DEPENDENT = 1e-10


def at_theta(directions: Plane, theta: Tensor, *, axes: int | None = None) -> Plane:
    """The plane in the dtype and on the device of theta; refused if its origin is elsewhere."""
    if axes is not None and len(directions.directions) != axes:
        raise LandscapeError(
            f"A plane with {len(directions.directions)} directions was given; loss_plane draws "
            f"{axes}. Pass a Plane of {axes} directions, or use loss_slice."
        )
    if directions.origin.shape != theta.shape:
        raise LandscapeError(
            f"The directions have {directions.origin.numel()} coordinates and the model P = "
            f"{theta.numel()}; make them from a checkpoint of the same architecture."
        )
    if not torch.equal(directions.origin.to(theta), theta):
        raise LandscapeError(
            "The plane's origin is not theta; measure at plane.origin, or make the plane at theta."
        )
    plane = Plane(
        theta,
        directions.directions.to(theta),
        directions.kind,
        directions.labels,
        directions.details,
    )
    if axes == 2 and abs(cosine := float(plane.cosines[0, 1])) > 1 - _DEPENDENT:
        raise LandscapeError(
            f"The directions {' and '.join(plane.labels)} are dependent (cosine {cosine:.12f}), so "
            f"that they span no plane; give two that differ, or use loss_slice."
        )
    return plane


def axis_variables(plane: Plane) -> dict[str, Variable]:
    """Cosine and absolute lengths of the two axes."""
    lengths = numbers(plane.norms)
    return {
        "axis_cosine": Variable((), float(plane.cosines[0, 1]), "1", "Cosine of the two axes"),
        "alpha_norm": Variable((), lengths[0], "1", "Length of the first axis"),
        "beta_norm": Variable((), lengths[1], "1", "Length of the second axis"),
    }


def symmetric_grid(axis: str, radius: float, points: int) -> np.ndarray:
    """An odd number of points in [-radius, radius] with 0 exactly in the middle.

    axis: the name that an error gives it. Returns (points,), by definition; an even number of
    points is refused.

    Example:
        >>> measure.symmetric_grid("alpha", 1.0, 5).tolist()
        [-1.0, -0.5, 0.0, 0.5, 1.0]
    """
    check_count("points", points, 3)
    if points % 2 == 0:
        raise LandscapeError(
            f"points={points} along {axis} leaves out {axis} = 0, the checkpoint itself; "
            f"use an odd number such as {points + 1}."
        )
    if not 0 < radius < float("inf"):
        raise LandscapeError(
            f"radius={radius} along {axis} gives a range of no width; use a number above 0."
        )
    # Mirrored, so that 0 is exact and the grid symmetric to the last bit.
    half = radius * np.arange(1, points // 2 + 1) / (points // 2)
    return np.concatenate([-half[::-1], [0.0], half])


def own_grid(axis: str, values: np.ndarray) -> np.ndarray:
    """A caller's points in ascending order; refused if they leave out 0."""
    grid = np.asarray(values, dtype=np.float64).reshape(-1)
    if not np.isfinite(grid).all() or len(np.unique(grid)) != len(grid) or len(grid) < 2:
        raise LandscapeError(
            f"The grid along {axis} must hold two or more different finite values; "
            f"{len(grid)} were given with {len(np.unique(grid))} different ones."
        )
    if not (grid == 0).any():
        raise LandscapeError(
            f"The grid along {axis} from {grid.min():g} to {grid.max():g} leaves out {axis} = 0, "
            f"the checkpoint itself; add 0 to it."
        )
    return np.sort(grid)
