"""How many basins a sampled surface has, and which of them its errors could have made.

The merge tree of sublevel sets: as the level rises, a basin is born at a local minimum and dies
where it meets an older, deeper one. Functions of results alone: nothing here evaluates a model.
"""

from dataclasses import dataclass

import numpy as np
import scipy
import xarray as xr

from landscape import results
from landscape.errors import LandscapeError
from landscape.results import Variable

__all__ = ["LEVEL", "Basins", "merge_tree", "persistence"]

LEVEL = 0.95


@dataclass(frozen=True)
class Basins:
    """Basins of a field, the most persistent first.

    cell (m, 2): row and column of the minimum. birth (m,): its value. death (m,): the value of the
    saddle where it meets a deeper one; inf for the deepest of each connected part. into (m,): the
    basin that it joins there, -1 for none.
    """

    cell: np.ndarray
    birth: np.ndarray
    death: np.ndarray
    into: np.ndarray

    @property
    def persistence(self) -> np.ndarray:
        """Death - birth."""
        return self.death - self.birth


def merge_tree(values: np.ndarray) -> Basins:
    """Basins of the sublevel sets of `values` (a, b), by union-find (elder rule).

    Cells that share an edge or a corner touch: the sublevel filtration of the cubical complex whose
    squares are the cells. What is not finite is never reached. A plateau is one cell of it; basins
    that die where they are born are none.
    """
    field = np.asarray(values, float)
    if field.ndim != 2 or not np.isfinite(field).any():
        raise LandscapeError(
            f"values of shape {field.shape} with {int(np.isfinite(field).sum())} finite cells; "
            f"give a grid (a, b) with at least one."
        )
    root: dict[tuple[int, int], tuple[int, int]] = {}
    ended: dict[tuple[int, int], tuple[float, tuple[int, int]]] = {}
    handed: dict[tuple[int, int], tuple[int, int]] = {}  # died where it was born

    def top(cell: tuple[int, int]) -> tuple[int, int]:
        while root[cell] != cell:
            root[cell] = root[root[cell]]
            cell = root[cell]
        return cell

    for flat in np.argsort(field, axis=None, kind="stable"):
        i, j = divmod(int(flat), field.shape[1])
        if not np.isfinite(field[i, j]):
            continue
        around = {(i + a, j + b) for a in (-1, 0, 1) for b in (-1, 0, 1)} - {(i, j)}
        found = sorted({top(c) for c in around if c in root}, key=lambda c: (field[c], c))
        root[i, j] = found[0] if found else (i, j)
        for younger in found[1:]:
            root[younger] = found[0]
            if field[i, j] > field[younger]:
                ended[younger] = (float(field[i, j]), found[0])
            else:
                handed[younger] = found[0]
    last = {top(cell) for cell in root}
    kept = [*ended, *last]
    kept.sort(key=lambda c: (field[c] - (ended[c][0] if c in ended else np.inf), field[c], c))
    place = {cell: number for number, cell in enumerate(kept)}

    def lasting(cell: tuple[int, int]) -> int:
        while cell in handed:
            cell = handed[cell]
        return place[cell]

    return Basins(
        np.array(kept),
        np.array([field[c] for c in kept]),
        np.array([ended[c][0] if c in ended else np.inf for c in kept]),
        np.array([lasting(ended[c][1]) if c in ended else -1 for c in kept]),
    )


def persistence(
    ds: xr.Dataset, *, variable: str = "loss", most: int = 20, level: float = LEVEL
) -> xr.Dataset:
    """Basins of one loss_plane: birth, death and persistence of its local minima, in nats.

    ds: one result, without runs. birth, death, persistence (point), the most persistent first, at
    most `most`; into: the number of the basin that it joins (-1: none, death is inf), alpha, beta:
    where its minimum lies; num_basins: how many there are.

    Two functions on one grid whose values differ by at most d have diagrams at a bottleneck
    distance of at most d (Cohen-Steiner, Edelsbrunner and Harer 2007, doi:10.1007/
    s00454-006-1276-5), so that a persistence changes by at most 2 d. interpolation_bound: d between
    this grid and the one whose every cell is evaluated, as far as the interpolation's estimated
    errors hold; 0 where every cell was evaluated. sampling_bound: d between the rise of the loss
    over that of the checkpoint on these examples and on all of their kind, with confidence
    `level` for all cells at once (normal, Bonferroni over the cells, from rise_stderr); NaN where
    the result has none. certain (point): persistence > 2 (interpolation_bound + sampling_bound),
    false where a bound is not known. A basin between cells is not seen.
    """
    if "run" in ds.dims:
        raise LandscapeError(
            f"The result has {ds.sizes['run']} runs; give one of them, ds.isel(run=0)."
        )
    if variable not in ds or not {"alpha", "beta"} <= set(ds[variable].dims):
        raise LandscapeError(
            f"{variable!r} over a plane is needed; the result has {', '.join(map(str, ds))}."
        )
    values = ds[variable].transpose("alpha", "beta").values.astype(float)
    found = merge_tree(values)
    shown = slice(None, most)
    interpolated, sampled = _interpolation(ds, variable, values), _sampling(ds, variable, level)
    least = 2 * (interpolated + sampled)
    units = str(ds[variable].attrs.get("units", "1"))
    certain = found.persistence[shown] > least  # nothing is above NaN
    variables = {
        "birth": Variable("point", found.birth[shown], units, "Value at the local minimum"),
        "death": Variable("point", found.death[shown], units, "Value at the saddle"),
        "persistence": Variable("point", found.persistence[shown], units, "Persistence"),
        "into": Variable("point", found.into[shown], "1", "Number of the basin that it joins"),
        "alpha": Variable("point", ds.alpha.values[found.cell[shown, 0]], "‖d₁‖", "α"),
        "beta": Variable("point", ds.beta.values[found.cell[shown, 1]], "‖d₂‖", "β"),
        "certain": Variable("point", certain, "1", "Beyond both bounds"),
        "num_basins": Variable((), len(found.birth), "1", "Local minima"),
        "interpolation_bound": Variable((), interpolated, units, "Bottleneck bound, interpolation"),
        "sampling_bound": Variable((), sampled, units, "Bottleneck bound, choice of examples"),
        "highest": Variable((), np.max(values[np.isfinite(values)]), units, "Highest cell"),
    }
    coords = {"point": np.arange(len(certain))}
    options = {"variable": variable, "most": most, "level": level, "neighbours": 8}
    return results.make("surface_persistence", variables, coords=coords, provenance=options)


def _interpolation(ds: xr.Dataset, variable: str, values: np.ndarray) -> float:
    """Largest estimated error of a cell; other variables than the loss are never interpolated."""
    if "interpolation_error" not in ds or variable != "loss":
        return 0.0
    error = ds.interpolation_error.transpose("alpha", "beta").values.astype(float)
    finite = np.isfinite(values) & np.isfinite(error)
    if not finite.any():
        return 0.0
    of_loss = results.provenance(ds).get("tolerance_of", "loss") == "loss"
    scale = np.abs(values) if of_loss else np.ptp(values[finite])
    return float(np.max((error * scale)[finite], initial=0.0))


def _sampling(ds: xr.Dataset, variable: str, level: float) -> float:
    if variable != "loss" or "rise_stderr" not in ds:
        return float("nan")
    errors = ds.rise_stderr.values[np.isfinite(ds.rise_stderr.values)]
    if not errors.size:
        return float("nan")
    z = scipy.stats.norm.isf((1 - level) / 2 / errors.size)
    return float(z * errors.max())
