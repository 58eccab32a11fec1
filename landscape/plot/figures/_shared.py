"""What the figures of tensors, masks and variants share: rows, dots, matrices, colours of kinds."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import xarray as xr

from landscape import stats
from landscape.plot import runs, style
from landscape.plot.drawing import Axis, Bars, Mark, Matrix, Points
from landscape.plot.runs import VariantRuns

LEAST = 4  # seeds; on a logarithmic axis an interval of fewer spans decades and says nothing
MOST = 72  # rows of a figure, beyond which tensors are put together
MANY = 24  # rows from which on they stand closer


def height(rows: int) -> float:
    """Inches of a panel with one row per tensor or module."""
    return 0.5 + (0.11 if rows <= MANY else 0.1) * rows


def strings(array: xr.DataArray) -> list[str]:
    """A coordinate as text; of the first run where each run carries its own."""
    values = array.isel(run=0).values if "run" in array.dims else array.values
    return [str(value) for value in values]


def shortened(names: Sequence[str]) -> list[str]:
    """Names of tensors without the parts that all of them begin with (`model.encoder.`)."""
    if not names:
        return []
    parts = [name.split(".") for name in names]
    shared = 0
    while all(len(p) > shared + 1 and p[: shared + 1] == parts[0][: shared + 1] for p in parts):
        shared += 1
    return _without_most_common([p[shared:] for p in parts])


_NEARLY_ALL = 0.9


def _without_most_common(parts: list[list[str]]) -> list[str]:
    """Names without what nearly all begin with (`vit.` beside `classifier`), still apart.

    A number says nothing without the word before it, which stays.
    """
    while True:
        first = Counter(p[0] for p in parts if len(p) > 2 and not p[1].isdigit())
        word, count = first.most_common(1)[0] if first else ("", 0)
        having = sum(p[0] == word for p in parts)
        shorter = [p[1:] if p[0] == word and len(p) > 1 else p for p in parts]
        apart = len({tuple(p) for p in shorter}) == len({tuple(p) for p in parts})
        if count < _NEARLY_ALL * len(parts) or count < having or not apart:
            return [".".join(p) for p in parts]
        parts = shorter


def by_layer(ds: xr.Dataset, most: int = MOST) -> tuple[xr.Dataset, str]:
    """The result with at most `most` rows along `tensor`, and words on what was put together.

    Tensors of one layer and kind become one row: as deep a layer as there is room for. Energy and
    parameter shares add up, the density is that of all coordinates together, and of ratios to the
    weights the largest is kept. Where even that leaves too many rows, those of most energy are
    shown and the rest is one row.
    """
    names = shortened(strings(ds.tensor))
    if len(names) <= most:
        return ds.assign_coords(tensor=names), ""
    kinds = strings(ds.kind)
    parts = [name.split(".") for name in names]
    depths = range(max(map(len, parts)) - 1, 0, -1)
    keys = [(names[i], kinds[i]) for i in range(len(names))]
    for depth in depths:
        keys = [(".".join(p[:depth]), kind) for p, kind in zip(parts, kinds, strict=True)]
        if len(set(keys)) <= most:
            break
    groups = list(dict.fromkeys(keys))
    rest = ""
    if len(groups) > most:
        share = np.nan_to_num(ds.energy_share).reshape(-1, len(names)).mean(0)
        total = {g: share[[k == g for k in keys]].sum() for g in groups}
        kept = set(sorted(groups, key=total.__getitem__, reverse=True)[: most - 1])
        last = (f"the other {len(groups) - len(kept)}", "other")
        keys = [key if key in kept else last for key in keys]
        groups = [g for g in groups if g in kept] + [last]
        rest = " Those with most energy are shown, the others are one row."
    where = np.array([groups.index(key) for key in keys])
    sizes = np.broadcast_to(np.asarray(ds["size"].values)[..., :], (len(names),)).astype(float)
    found = {}
    for name in ds.data_vars:
        array = ds[name]
        if "tensor" not in array.dims:
            found[name] = array
            continue
        table = array.transpose(..., "tensor")
        together = [_together(str(name), table.values[..., where == g], sizes[where == g])
                    for g in range(len(groups))]  # fmt: skip
        found[name] = (table.dims, np.stack(together, axis=-1))
    kept_coords = {name: c for name, c in ds.coords.items() if "tensor" not in c.dims}
    shown = xr.Dataset(found, coords=kept_coords, attrs=ds.attrs).assign_coords(
        tensor=[f"{layer} ({kind})" if kind != "other" else layer for layer, kind in groups],
        kind=("tensor", [kind for _, kind in groups]),
    )
    words = f" The {len(names)} tensors are put together by layer and kind: "
    words += f"{runs.count(len(groups), 'row')}."
    return shown, words + rest


def _together(name: str, values: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """One row for several tensors: shares add up, densities weigh by size, ratios are largest."""
    if name.endswith("share"):
        return values.sum(-1)
    if name == "density":
        return (values * sizes).sum(-1) / sizes.sum()
    known = np.where(np.isfinite(values), values, -np.inf).max(-1)
    return np.where(np.isfinite(known), known, np.nan)


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
    return [key(kind, "square", style.kind(kind)) for kind in dict.fromkeys(kinds)]


def key(name: str, symbol: str, color: str = style.INK, *, size: float = 4.5) -> Points:
    """An entry of the legend for marks whose colours mean something else, without a point."""
    nowhere = np.array([np.nan])
    return Points(nowhere, nowhere, name, color, symbol, size=size)


def labels(ds: xr.Dataset) -> dict[str, str]:
    """Names of the study's variants for readers, by id."""
    return dict(zip(map(str, ds.variant.values), map(str, ds.label.values), strict=True))


def spoken(name: str, known: Mapping[str, str]) -> str:
    """Name of a variant for readers: the study's own, else the recipe's."""
    return known.get(name, style.LABELS.get(name, name))


def chosen(ds: xr.Dataset, wanted: Sequence[str]) -> list[VariantRuns]:
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
