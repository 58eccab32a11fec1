"""What the figures of tensors, masks and variants share: rows, dots, matrices, colours of kinds."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import xarray as xr

from landscape import stats
from landscape.plot import runs, style
from landscape.plot.drawing import Axis, Bars, Mark, Matrix, Points
from landscape.plot.runs import Variant

LEAST = 4  # seeds; on a logarithmic axis an interval of fewer spans decades and says nothing
MANY = 24  # rows from which on they stand closer


def height(rows: int) -> float:
    """Inches of a panel with one row per tensor or module."""
    return 0.5 + (0.1 if rows <= MANY else 0.082) * rows


def strings(array: xr.DataArray) -> list[str]:
    """A coordinate as text; of the first run where each run carries its own."""
    values = array.isel(run=0).values if "run" in array.dims else array.values
    return [str(value) for value in values]


def row_axis(names: Sequence[str], *, label: str = "") -> Axis:
    """One row per name, the first on top."""
    ticks = tuple((float(row), name) for row, name in enumerate(names))
    return Axis(label, limits=(len(names) - 0.4, -0.6), ticks=ticks)


def kind_strip(kinds: Sequence[str], left: float, right: float) -> list[Mark]:
    """Rows 0, 1, … coloured by kind between `left` and `right`."""
    found = np.array(kinds)
    marks: list[Mark] = []
    for kind in dict.fromkeys(kinds):
        rows = np.flatnonzero(found == kind).astype(float)
        marks.append(
            Bars(np.full(len(rows), right), rows, kind, style.kind(kind), 1.0, base=left)
        )  # fmt: skip
    return marks


def kind_key(kinds: Iterable[str]) -> list[Mark]:
    """Entries of the legend for colours that mean kinds, without a point on the panel."""
    nowhere = np.array([np.nan])
    return [
        Points(nowhere, nowhere, kind, style.kind(kind), "square") for kind in dict.fromkeys(kinds)
    ]


def labels(ds: xr.Dataset) -> dict[str, str]:
    """Names of the study's variants for readers, by id."""
    return dict(zip(map(str, ds.variant.values), map(str, ds.label.values), strict=True))


def spoken(name: str, known: Mapping[str, str]) -> str:
    """Name of a variant for readers: the study's own, else the recipe's."""
    return known.get(name, style.LABELS.get(name, name))


def chosen(ds: xr.Dataset, wanted: Sequence[str]) -> list[Variant]:
    """The variants named, in the order of the study; the first two where none of them is there."""
    found = list(runs.variants(ds))
    return [v for v in found if v.id in wanted or v.family in wanted] or found[:2]


def dots(
    table: np.ndarray,
    rows: np.ndarray,
    name: str,
    color: str,
    symbol: str = "circle",
    *,
    size: float = 4.5,
    hollow: bool = False,
    legend: bool = True,
    log: bool = False,
    least: int = 2,
) -> list[Mark]:
    """Per row (run, row): faint seeds, and their mean (geometric if `log`) with its t-interval.

    least: seeds below which no interval is drawn.
    """
    summary = stats.geometric_mean_ci if log else stats.mean_ci
    cis = [summary(column) for column in table.T]
    mean, low, high = (np.array([getattr(ci, key) for ci in cis]) for key in ENDS)
    known = np.isfinite(low) & np.isfinite(high) & (len(table) >= least)
    marks: list[Mark] = []
    if len(table) > 1:
        marks.append(
            Points(table.ravel(), np.tile(rows, len(table)), name, color, symbol, size=0.5 * size,
                   opacity=0.4, legend=False)
        )  # fmt: skip
    marks.append(
        Points(
            mean, rows, name, color, symbol, size=size, legend=legend,
            hollow=np.full(len(rows), hollow),
            x_low=np.where(known, low, mean), x_high=np.where(known, high, mean),
        )
    )  # fmt: skip
    return marks


ENDS = ("estimate", "low", "high")


def square(
    names: Sequence[str], shown: Sequence[str], first: Sequence[str], second: Sequence[str],
    values: np.ndarray, label: str, limits: tuple[float, float] = (-1.0, 1.0),
) -> tuple[Axis, Axis, Matrix]:  # fmt: skip
    """Axes and symmetric matrix of values of pairs, without a diagonal; around 0, or from 0 on."""
    table = np.full((len(names), len(names)), np.nan)
    for a, b, value in zip(first, second, values, strict=True):
        i, j = names.index(a), names.index(b)
        table[i, j] = table[j, i] = value
    ticks = tuple((float(i), text) for i, text in enumerate(shown))
    size = len(names)
    return (
        Axis(ticks=ticks, limits=(-0.5, size - 0.5)),
        Axis(ticks=ticks, limits=(size - 0.5, -0.5)),
        Matrix(table, tuple(shown), tuple(shown), label, "1", limits, diverging=limits[0] < 0),
    )
