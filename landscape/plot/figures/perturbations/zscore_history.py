"""How the distribution of the gradient within a tensor changes over the training."""

import numpy as np
import xarray as xr

from landscape.plot import runs, style
from landscape.plot.drawing import Axis, Band, Drawing, Label, Line, Mark, Panel, Points
from landscape.plot.figures._shared import chosen, shortened, strings
from landscape.plot.figures.perturbations.zscores import not_shown, ridge
from landscape.plot.runs import VariantRuns

SHOWN = ("sam", "zsharp")
MOST = 3  # tensors, evenly from the first to the last
_SCALE = 1.6  # rows that a normal law is high


def zscore_history(
    ds: xr.Dataset,
    *,
    setting: str | None = None,
    tensors: tuple[str, ...] | None = None,
    variants: tuple[str, ...] = SHOWN,
) -> Drawing:
    """Ridgelines of the standardized gradient over the steps of a training, with the threshold.

    A row of panels per variant (`variants`, the first two of the study if it has none), a column
    per tensor: those named, or three of those with two dimensions or more.

    Example:
        >>> drawing = figures.zscore_history(runs["zscore_history"])
        >>> drawing.title
        'How the gradient within a tensor changes over the training'
    """
    ds = runs.first_seeds(runs.in_setting(ds, setting))
    runs.require(ds, "density", "threshold", "z")
    names = list(tensors) if tensors is not None else _three(ds)
    shown = chosen(ds, variants)
    panels = tuple(
        _over_time(v, name, said)
        for v in shown
        for name, said in zip(names, shortened(names), strict=True)
    )
    percentile = runs.provenance(ds, "percentile") or "0.95"
    rows = max((len(p.y.ticks or ()) for p in panels), default=1)
    return Drawing(
        "zscore_history",
        "How the gradient within a tensor changes over the training",
        "z = (g − μ)/σ within a tensor, of the first pass's gradient on the mini-batch of a step, "
        f"first seed; a ridge per recorded step, the first on top. Dashed: normal law. Ticks and "
        f"number: the |z| that a share {percentile} stays below, ZSharp's threshold; 1.96 for a "
        "normal law at 0.95. All ridges have one scale." + not_shown(ds, shown),
        panels,
        columns=max(1, len(names)),
        panel_height=0.7 + 0.2 * rows,
        narrowest=1.4,
        share_x="all",
        share_y="grid",
        legend=True,
    )


def _three(ds: xr.Dataset) -> list[str]:
    names = strings(ds.tensor)
    wide = [n for n, ndim in zip(names, ds["ndim"].values.ravel(), strict=False) if ndim > 1]
    wide = wide or names
    places = np.unique(np.linspace(0, len(wide) - 1, MOST).round().astype(int))
    return [wide[i] for i in places]


def _over_time(v: VariantRuns, name: str, said: str) -> Panel:
    one = v.ds.isel(run=0).sel(tensor=name).transpose("step", "bin", ...)
    z, size = np.asarray(one.z.values, float), float(one["size"])
    known = np.flatnonzero(np.isfinite(one.threshold.values))
    density = one.density.values[known]
    steps, threshold = one.step.values[known], one.threshold.values[known]
    floors = np.arange(len(known), dtype=float)[::-1]
    tallest = float(np.nanmax(density, initial=0.4))
    scale = min(_SCALE / 0.4, 2.4 / tallest)
    marks: list[Mark] = []
    for floor, row in zip(floors, density, strict=True):
        x, height = ridge(z, row, size)
        y = floor + scale * height
        marks.append(Band(x, np.full(len(x), floor), y, v.label, v.color, opacity=0.35))
        marks.append(Line(x, y, v.label, v.color, width=0.9, legend=False))
    normal = np.append(np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi), np.nan)
    marks.append(
        Line(
            np.tile(np.append(z, np.nan), len(floors)),
            np.concatenate([floor + scale * normal for floor in floors]) if len(floors) else z[:0],
            "normal law", "#000000", "dash", 0.7,
        )
    )  # fmt: skip
    marks.append(
        Points(np.concatenate([-threshold, threshold]), np.tile(floors + 0.16, 2), "threshold",
               style.INK, "bar", size=5)
    )  # fmt: skip
    marks += [
        Label(5.9, float(floor) + 0.35, f"{value:.2f}", style.MUTED, "right")
        for floor, value in zip(floors, threshold, strict=True)
        if np.isfinite(value)
    ]
    ticks = tuple((float(f), f"step {int(s)}") for f, s in zip(floors, steps, strict=True))
    return Panel(
        Axis("z-score of the gradient", limits=(-6, 6)),
        Axis(limits=(-0.3, len(known) + 1.6), ticks=ticks),
        tuple(marks),
        f"{v.label}\n{said}",
    )
