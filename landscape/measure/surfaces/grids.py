"""Loss along lines and over planes through theta, exactly as direct evaluation would give it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from landscape import plane as planes
from landscape import vectors
from landscape.measure.measuring import Measuring, numbers
from landscape.measure.surfaces.adaptive_grid import adaptive
from landscape.measure.surfaces.axes import at_theta, axis_variables, own_grid, symmetric_grid
from landscape.measure.surfaces.tiles_on_disk import Tiles, risk_key
from landscape.measure.surfaces.values import Cells
from landscape.plane import Plane
from landscape.results import Variable
from landscape.risk import BNMode, EmpiricalRisk


def loss_slice(
    risk: EmpiricalRisk,
    theta: Float[Tensor, "P"],
    *,
    directions: Plane | None = None,
    num_directions: int = 8,
    normalize: str = "filter",
    one_d: str = "zero",
    radius: float = 1.0,
    points: int = 21,
    alphas: Float[np.ndarray, "a"] | None = None,
    bn: BNMode = "recalibrate",
    also: Mapping[str, EmpiricalRisk] | None = None,
    tiles: Path | None = None,
    name: str = "loss_slice",
    seed: int,
) -> xr.Dataset:
    """L(theta + alpha d_i) for alpha in [-radius, radius] along several directions d_i.

    loss(direction, alpha) in nats and error_rate(direction, alpha), each equal to direct evaluation
    of the risk there; alpha is in units of the direction, whose absolute length is
    direction_norm(direction); largest_cosine is the largest |cosine| between two of them (NaN for
    one). center_loss is the loss at theta, which every line holds at alpha =
    0; theta_norm tells the absolute scale of filter-normalized directions.
    directions: a `Plane` at theta (say of eigenvectors); else random ones of `seed`, the same draws
    for every model, normalized to this one (arXiv:1712.09913, section 4). alphas: own grid instead.
    bn="recalibrate" re-estimates BatchNorm's running statistics at every point; "eval" keeps those
    of the checkpoint, as the original did. NaN and infinity are kept as they are.

    loss_stderr (`EmpiricalRisk.standard_error`): how far the loss may lie from that of the
    population the N examples were drawn from; rise_stderr, the same for L(point) - L(theta), is
    smaller, because all cells use the same examples. Of training examples the population is the
    training set: theta was fitted to it, and fresh data lie further off. Both hold the BatchNorm
    statistics fixed; under "recalibrate", which takes them from the same examples, the loss far
    from theta varies more (simulated, rms of error / stderr: 1.0-1.2 with 256 examples, up to 2.0
    with 64; 0.8-1.2 under "eval"), and the variables say so in their names.
    also: risks of the same model on other data, {"test": risk}, give test_loss, test_error_rate and
    test_loss_stderr at the same points; under bn="recalibrate" with the BatchNorm statistics of the
    measured examples.
    tiles: a folder that keeps one file per direction, as for `loss_plane`.
    Cost: num_directions * (points - 1) + 1 forward passes over the data. Recalibration adds none
    where the examples are one batch; in several it adds a pass per BatchNorm layer, up to there.

    Example:
        >>> found = measure.loss_slice(risk, theta, num_directions=2, points=5, bn="eval", seed=0)
        >>> found.loss.shape, found.alpha.values.tolist()
        ((2, 5), [-1.0, -0.5, 0.0, 0.5, 1.0])
        >>> bool(np.allclose(found.loss.sel(alpha=0), risk.loss(theta)))
        True
    """
    own = risk.with_bn(bn)
    measuring = Measuring(name, own, theta)
    grid = symmetric_grid("alpha", radius, points) if alphas is None else own_grid("alpha", alphas)
    cells = Cells(measuring, also)
    if directions is None:
        directions = planes.random(
            own,
            measuring.theta,
            num_directions=num_directions,
            normalize=normalize,
            one_d=one_d,
            seed=seed,
        )
    line = at_theta(directions, measuring.theta)
    values, notes = _lines(cells, line, grid, tiles)
    cells.check(values[:, grid == 0, 0])

    dims = ("direction", "alpha")
    variables = {
        **cells.variables(dims, values),
        "direction_norm": Variable("direction", numbers(line.norms), "1", "Length ‖d‖"),
        "largest_cosine": Variable((), line.largest_cosine, "1", "Largest |cosine| of two"),
        "center_loss": Variable((), cells.loss, "nats", "Loss of the checkpoint"),
        "theta_norm": Variable((), _norm(measuring.theta), "1", "Parameter norm ‖θ‖"),
    }
    coords = {
        "alpha": Variable("alpha", grid, "‖d‖", "Position α along the direction"),
        "direction": np.array(line.labels, dtype=object),
    }
    return measuring.result(
        variables,
        coords=coords,
        options={**line.provenance(), "seed": seed, **cells.provenance(), **notes},
    )


def loss_plane(
    risk: EmpiricalRisk,
    theta: Float[Tensor, "P"],
    *,
    directions: Plane | None = None,
    normalize: str = "filter",
    one_d: str = "zero",
    radius: float = 1.0,
    points: int = 21,
    alphas: Float[np.ndarray, "a"] | None = None,
    betas: Float[np.ndarray, "b"] | None = None,
    bn: BNMode = "recalibrate",
    also: Mapping[str, EmpiricalRisk] | None = None,
    tiles: Path | None = None,
    tolerance: float | None = None,
    name: str = "loss_plane",
    seed: int,
) -> xr.Dataset:
    """L(theta + alpha d_1 + beta d_2) on a grid that holds theta itself at (0, 0).

    loss(alpha, beta) in nats and error_rate(alpha, beta), each equal to direct evaluation of the
    risk there. axis_cosine is the cosine of the two axes (random ones are not orthogonalized, since
    that would break their filter norms); alpha_norm, beta_norm their absolute lengths.
    directions, normalize, one_d, bn, alphas, betas, also, standard errors: as for `loss_slice`. A
    random plane illustrates; it is not evidence: the spread over directions is as large as that
    between variants.
    tolerance: None evaluates every cell. A number, say 0.01, quarters blocks of cells until a
    spline of log L is estimated to be within that relative error at every cell (of the range of L,
    where L is not positive). evaluated(alpha, beta) tells the evaluated cells, whose values are
    exact, from the interpolated ones, where only the loss is known and interpolation_error(alpha,
    beta) is its estimated error; a random sample of these is evaluated to test the estimate, with
    its outcome in the provenance. A surface that no spline holds is evaluated whole.
    tiles: a folder that keeps one file per alpha; the same call after Ctrl-C, a kill or a full disk
    goes on from there and gives the same arrays to the last bit. A damaged file is named in a
    warning and computed again; tiles of another grid are refused.
    Cost: points² forward passes over the data; recalibration as for `loss_slice`.
    The figure is that of arXiv:1712.09913, section 4.

    Example:
        >>> found = measure.loss_plane(risk, theta, radius=0.5, points=5, bn="eval", seed=0)
        >>> found.loss.dims, found.loss.attrs["units"]
        (('alpha', 'beta'), 'nats')
        >>> center = found.loss.sel(alpha=0, beta=0)
        >>> bool(np.isclose(center, risk.loss(theta)))
        True
    """
    own = risk.with_bn(bn)
    measuring = Measuring(name, own, theta)
    first = symmetric_grid("alpha", radius, points) if alphas is None else own_grid("alpha", alphas)
    second = symmetric_grid("beta", radius, points) if betas is None else own_grid("beta", betas)
    cells = Cells(measuring, also)
    if directions is None:
        directions = planes.random(
            own, measuring.theta, num_directions=2, normalize=normalize, one_d=one_d, seed=seed
        )
    surface = at_theta(directions, measuring.theta, axes=2)
    values, extra, notes = _filled(cells, surface, (first, second), tiles, tolerance, seed)
    cells.check(values[first == 0][:, second == 0, 0])

    dims = ("alpha", "beta")
    variables = {
        **cells.variables(dims, values),
        **extra,
        "center_loss": Variable((), cells.loss, "nats", "Loss of the checkpoint"),
        **axis_variables(surface),
        "theta_norm": Variable((), _norm(measuring.theta), "1", "Parameter norm ‖θ‖"),
    }
    coords = {
        "alpha": Variable("alpha", first, "‖d₁‖", f"α along {surface.labels[0]}"),
        "beta": Variable("beta", second, "‖d₂‖", f"β along {surface.labels[1]}"),
    }
    return measuring.result(
        variables,
        coords=coords,
        options={**surface.provenance(), "seed": seed, **cells.provenance(), **notes},
    )


class _Tiled:
    """Values at points, tile by tile; from disk where a tile is there and whole."""

    def __init__(self, cells: Cells, folder: Path | None, key: Mapping[str, Any]) -> None:
        self._cells = cells
        self._store = None
        if folder is not None:
            self._store = Tiles(folder, {**_key(cells), **key})
        self._made = self._resumed = 0

    def __call__(self, points: Sequence[Sequence[float]]) -> np.ndarray:
        """Values (len(points), names) of the next tile."""
        cells = self._cells

        def compute() -> tuple[np.ndarray, float]:
            before = cells.risk.cost
            return cells.at(points), cells.risk.cost - before

        if self._store is None:
            return compute()[0]
        name = f"tile-{self._made:04d}"
        values, cost, kept = self._store.get(name, points, len(cells.names), compute)
        # The result says what the grid cost, not what was left of it to pay.
        cells.risk.spend(cost if kept else 0.0)
        self._made += 1
        self._resumed += kept
        return values

    @property
    def notes(self) -> dict[str, int]:
        """For the provenance."""
        if self._store is None:
            return {}
        return {"tiles": self._made, "tiles_resumed": self._resumed}


def _lines(
    cells: Cells, line: Plane, grid: np.ndarray, folder: Path | None
) -> tuple[np.ndarray, dict[str, int]]:
    """Values (direction, alpha, names), one tile per direction."""
    count = len(line.directions)
    leading = [(0.0,) * i for i in range(count)]
    ends = [(float(grid[0]),), (*leading[-1], float(grid[-1]))]
    cells.over(line, probes=[(0.0,), *ends], points=count * len(grid))
    tiled = _Tiled(cells, folder, {"plane_sha256": line.fingerprint(), "alphas": _hex(grid)})
    values = np.empty((count, len(grid), len(cells.names)))
    values[0] = tiled([(float(a),) for a in grid])
    for i in range(1, count):
        # The centre lies on every line; evaluated again on the first, it proves determinism.
        values[i, grid == 0] = values[0, grid == 0]
        values[i, grid != 0] = tiled([(*leading[i], float(a)) for a in grid[grid != 0]])
    return values, tiled.notes


def _filled(
    cells: Cells,
    plane: Plane,
    axes: tuple[np.ndarray, np.ndarray],
    folder: Path | None,
    tolerance: float | None,
    seed: int,
) -> tuple[np.ndarray, dict[str, Variable], dict[str, Any]]:
    """Values (alpha, beta, names), variables of an adaptive grid, and what to say of it."""
    first, second = axes
    corners = [(float(a), float(second[-1])) for a in _ends(first)]
    cells.over(plane, probes=[(0.0, 0.0), *corners], points=len(first) * len(second))
    adapted = {} if tolerance is None else {"tolerance": tolerance, "seed": seed}
    grid = {
        "plane_sha256": plane.fingerprint(),
        "alphas": _hex(first),
        "betas": _hex(second),
    }
    tiled = _Tiled(cells, folder, {**grid, **adapted})

    def evaluate(wanted: Sequence[tuple[int, int]]) -> np.ndarray:
        # A tile is one alpha of a full grid, and as many cells of an adaptive one.
        points = [(float(first[i]), float(second[j])) for i, j in wanted]
        size = len(second)
        return np.concatenate([tiled(points[s : s + size]) for s in range(0, len(points), size)])

    if tolerance is None:
        found = evaluate(list(np.ndindex(len(first), len(second))))
        return found.reshape(len(first), len(second), -1), {}, dict(tiled.notes)
    surface = adaptive(evaluate, first, second, tolerance=tolerance, seed=seed)
    dims = ("alpha", "beta")
    of = "Relative error" if surface.notes["tolerance_of"] == "loss" else "Error over the range"
    extra = {
        "evaluated": Variable(dims, surface.evaluated, "1", "Evaluated, not interpolated"),
        "interpolation_error": Variable(dims, surface.error, "1", f"{of} of the loss, estimated"),
    }
    return surface.values, extra, {**surface.notes, **tiled.notes}


def _key(cells: Cells) -> dict[str, Any]:
    return {
        **risk_key(cells.risk),
        **{f"{name}_risk": risk_key(other) for name, other in cells.also.items()},
        "evaluation": cells.method,
        "names": list(cells.names),
    }


def _ends(axis: np.ndarray) -> tuple[float, float]:
    return axis[0], axis[-1]


def _hex(axis: np.ndarray) -> list[str]:
    return [float(value).hex() for value in axis]


def _norm(theta: Tensor) -> float:
    return float(vectors.norm(theta))
