"""Surfaces as shapes: two beside each other for a first page, and the basins that they have."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import xarray as xr

from landscape import persistence
from landscape.errors import LandscapeError
from landscape.plot import runs
from landscape.plot.drawing import Axis, Bars, Drawing, Label, Mark, Panel
from landscape.plot.figures._shared import row_axis
from landscape.plot.figures.surfaces._planes import random_axes
from landscape.plot.figures.surfaces.planes import loss_surface
from landscape.plot.ticks import short

_SHOWN = 5  # basins of a variant
_MOST_CELLS = 200_000  # of a plane: a merge tree of more takes minutes


def surface_pair(
    ds: xr.Dataset,
    *,
    setting: str | None = None,
    between: Sequence[str] = (),
    references: tuple[str, ...] = ("sgd", "sam"),
    variable: str = "loss",
) -> Drawing:
    """Two surfaces of `loss_plane` side by side, large: one linear scale, contours on the floor.

    The picture of arXiv:1712.09913, Fig. 1, with the measured cells as its corners and neither
    logarithm nor smoothing. between: two variants by id; default the first two references, or the
    first two there are. The same surfaces as meshes: `plot.meshes`.

    Example:
        >>> drawing = figures.surface_pair(runs["loss_plane"])
        >>> drawing.title
        'Loss over a plane of random directions'
    """
    ds = runs.first_seeds(runs.in_setting(ds, setting))
    found = [v.id for v in runs.variants(ds)]
    wanted = list(between) or [name for name in references if name in found]
    wanted = (wanted + [name for name in found if name not in wanted])[: max(2, len(between))]
    unknown = [name for name in wanted if name not in found]
    if unknown or len(wanted) != 2:
        raise LandscapeError(
            f"between={', '.join(wanted) or 'nothing'} was asked; give two of {', '.join(found)}."
        )
    kept = np.flatnonzero(np.isin(ds.variant.values.astype(str), wanted))
    drawn = loss_surface(ds.isel(run=kept), references=tuple(wanted), variable=variable)
    rows, columns = ds.sizes["alpha"], ds.sizes["beta"]
    whole = "evaluated" not in ds or bool(ds.evaluated.isel(run=kept).all())
    cells = f"Each of the {rows} × {columns} cells is a corner of the surface" + (
        "" if whole else ", evaluated or interpolated"
    )
    return replace(
        drawn,
        name="surface_pair",
        caption=f"{drawn.caption} {cells}; nothing is smoothed or cut off.",
        columns=2,
        panel_height=2.4,
        narrowest=1.2,
    )


def surface_persistence(
    ds: xr.Dataset, *, setting: str | None = None, variable: str = "loss"
) -> Drawing:
    """Basins of each surface as bars from their minimum to the saddle where they join another.

    ds: loss_plane; its merge trees are those of `landscape.persistence`. Outlined bars are within
    what the errors of the cells could have made. No panel where no cell is finite, or where there
    are more than 200 000.

    Example:
        >>> drawing = figures.surface_persistence(runs["loss_plane"])
        >>> drawing.title
        'Basins of the sampled surfaces'
    """
    ds = runs.first_seeds(runs.in_setting(ds, setting))
    runs.require_plane(ds, variable)
    names: list[str] = []
    marks: list[Mark] = []
    counts, bounds, most = [], [], 0
    if ds.sizes["alpha"] * ds.sizes["beta"] > _MOST_CELLS:
        return Drawing("surface_persistence", "Basins of the sampled surfaces", "", ())
    for v in runs.variants(ds):
        if not bool(np.isfinite(v.ds[variable]).any()):
            counts.append(f"{v.label} no finite cell")
            continue
        found = persistence.persistence(
            v.ds.isel(run=0).drop_vars("run"), variable=variable, most=_SHOWN
        )
        start = len(names)
        counts.append(f"{v.label} {int(found.num_basins)}")
        most = max(most, int(found.num_basins))
        bounds.append(float(found.interpolation_bound + found.sampling_bound))
        highest = float(found.highest)
        last = np.where(np.isfinite(found.death), found.death, highest)
        rows = start + np.arange(found.sizes["point"], dtype=float)
        sure = found.certain.values.astype(bool)
        for one, outline in ((sure, False), (~sure, True)):
            marks.append(
                Bars(last[one], rows[one], v.label, v.color, 0.62, base=found.birth.values[one],
                     outline=outline, legend=False)
            )  # fmt: skip
        # A basin that is alone needs no word: the caption counts them.
        alone = int(found.num_basins) == 1
        joins = ["deepest" if d == np.inf and not alone else "" for d in found.death.values]
        marks += [
            Label(float(end), float(row), text)
            for end, row, text in zip(last, rows, joins, strict=True)
            if text
        ]
        names += [v.label, *[""] * (found.sizes["point"] - 1)]
    beyond = f"; the {_SHOWN} most persistent are shown" if most > _SHOWN else ""
    if not names:
        return Drawing("surface_persistence", "Basins of the sampled surfaces", "", ())
    known = [bound for bound in bounds if np.isfinite(bound)]
    error = (
        f"Outlined: shorter than twice what the choice of examples and interpolation could have "
        f"made of it (95 % for all cells at once; at most {short(max(known))} "
        f"{_units(ds, variable)} per cell)."
        if known
        else "Outlined, all of them: the result has no errors of its cells."
    )
    low = min(float(np.min(m.base)) for m in marks if isinstance(m, Bars) and len(m.x))
    high = max(float(np.max(m.x)) for m in marks if isinstance(m, Bars) and len(m.x))
    # The word beside the longest bar has room on a telephone too.
    named = any(isinstance(mark, Label) for mark in marks)
    reach = high + (0.5 if named else 0.03) * (high - low)
    random = " Random directions: illustration, not evidence." if random_axes(ds) else ""
    return Drawing(
        "surface_persistence",
        "Basins of the sampled surfaces",
        "Each bar is a local minimum of the sampled plane, from its value to that of the saddle "
        "where it joins a deeper one, or to the highest cell (0-dimensional persistence of "
        "sublevel sets; cells that touch are neighbours). "
        f"Local minima: {', '.join(counts)}{beyond}. {error} Basins between "
        f"cells, and outside of this plane, are not seen.{random}",
        (
            Panel(
                Axis(str(ds[variable].attrs.get("long_name", variable)).lower(),
                     _units(ds, variable), limits=(low - 0.02 * (high - low), reach)),
                row_axis(names),
                tuple(marks),
            ),
        ),
        panel_height=0.5 + 0.17 * len(names),
    )  # fmt: skip


def _units(ds: xr.Dataset, variable: str) -> str:
    return runs.units(ds, variable)
