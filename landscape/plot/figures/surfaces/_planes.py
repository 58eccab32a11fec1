"""What the figures of planes share: levels, contours, gaps, dots."""

from collections.abc import Iterable, Sequence

import numpy as np
import xarray as xr

from landscape.plot import runs, style
from landscape.plot.drawing import Contours, Gaps, Mark, Points

_CENTRE = "checkpoint"


def shared_levels(
    tables: Iterable[np.ndarray], count: int, *, root: bool = False, linear: bool = False
) -> tuple[np.ndarray, bool]:
    """Levels over all tables, logarithmic where every finite value is above 0.

    root: even in the square root from 0 on. linear: even.
    """
    found = np.concatenate([np.ravel(np.asarray(table, float)) for table in tables])
    found = found[np.isfinite(found)]
    low, high = (float(found.min()), float(found.max())) if found.size else (0.0, 1.0)
    if root:
        return (high if high > 0 else 1.0) * np.linspace(0, 1, count) ** 2, False
    if low > 0 and not linear:
        low, high = (low, high) if high > low * 1.001 else (low * 0.9, low * 1.1)
        return np.geomspace(low, high, count), True
    low, high = (low, high) if high > low else (low - 1.0, low + 1.0)
    return np.linspace(low, high, count), False


def contours(
    one: xr.Dataset,
    variable: str,
    units: str,
    ticks: np.ndarray,
    *,
    log: bool,
    equal: bool = True,
    name: str = "loss",
    root: bool = False,
) -> list[Mark]:
    """Contours of one run's plane, and its gaps."""
    values = one[variable].transpose("alpha", "beta").values.astype(float)
    x, y = one.alpha.values.astype(float), one.beta.values.astype(float)
    return [
        *gaps(x, y, values),
        Contours(x, y, values, ticks, name, units, log=log, equal=equal, root=root),
    ]


def gaps(x: np.ndarray, y: np.ndarray, values: np.ndarray) -> list[Mark]:
    """Hatching where values are not finite; nothing where all are."""
    return [Gaps(x, y, values)] if holes(values) else []


def centre() -> Points:
    """The checkpoint that the plane goes through."""
    return Points(
        np.array([0.0]), np.array([0.0]), _CENTRE, "#ffffff", "x", size=4.0, legend=False,
        hover=[_CENTRE],
    )  # fmt: skip


def dots(
    x: np.ndarray, y: np.ndarray, where: np.ndarray, name: str, *, hollow: bool = False
) -> list[Mark]:
    """A dot in every cell (x, y) of `where`."""
    i, j = np.nonzero(where)
    if not len(i):
        return []
    open_ones = np.ones(len(i), bool) if hollow else None
    size = 2.2 if hollow else 1.4
    return [Points(x[i], y[j], name, style.INK, "circle", hollow=open_ones, size=size)]


def holes(values: np.ndarray) -> bool:
    """Whether some values are not finite."""
    return not bool(np.isfinite(values).all())


def largest(values: Sequence[float] | np.ndarray) -> float:
    """Largest |value|, for a scale around 0."""
    finite = np.abs(np.asarray(values, float))
    finite = finite[np.isfinite(finite)]
    return float(finite.max()) if finite.size and finite.max() > 0 else 1.0


_NORMALIZED = {
    "filter": "normalized per filter to {}",
    "layer": "normalized per tensor to {}",
    "global": "of the length of {}",
    "none": "not normalized",
}


def random_axes(ds: xr.Dataset) -> bool:
    """Whether the directions are random ones."""
    return runs.provenance(ds, "plane") == "random"


def normalization(ds: xr.Dataset) -> str:
    """How random directions were scaled, as a clause; "" where the result does not say."""
    whose = {"given weights": "common weights"}.get(
        runs.provenance(ds, "reference"), "each model's own weights"
    )
    words = _NORMALIZED.get(runs.provenance(ds, "normalize"), "").format(whose)
    if words and runs.provenance(ds, "orthogonalized") == "True":
        words += ", then orthogonalized"
    return words


def mode(ds: xr.Dataset) -> str:
    """The BatchNorm mode and the objective, for a caption."""
    words = runs.provenance(ds, "objective")
    objective = f" Objective: {words}." if words else ""
    return f"BatchNorm mode {runs.provenance(ds, 'bn')}.{objective}"
