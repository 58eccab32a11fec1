"""Slices of the loss around a solution."""

import numpy as np
import xarray as xr

from landscape import stats
from landscape.plot import runs
from landscape.plot.drawing import Axis, Band, Drawing, Line, Mark, Panel
from landscape.plot.figures.surfaces._planes import normalization, random_axes
from landscape.plot.runs import VariantRuns

_WINDOWS = ((1.0, "|α| ≤ 1"), (0.25, "|α| ≤ 0.25"))
_PER_ROW = 4


def loss_slice(
    ds: xr.Dataset,
    other: xr.Dataset | None = None,
    *,
    setting: str | None = None,
    references: tuple[str, ...] = ("sgd", "sam"),
    variable: str = "loss",
) -> Drawing:
    """Loss along several directions in two windows; a second BatchNorm mode in its own columns.

    ds, other: loss_slice in two modes (other may be None). Each row holds the references and up to
    four variants, so that lines can be told apart. variable: what is drawn, "loss" or another one
    of the result along the lines (error_rate; test_loss, test_error_rate of `also`).

    Example:
        >>> drawing = figures.loss_slice(runs["loss_slice"], runs["loss_slice_eval"])
        >>> drawing.title
        'Loss along random directions'
    """
    runs.require(ds, variable)
    modes = [runs.in_setting(part, setting) for part in (ds, other) if part is not None]
    ids = [v.id for v in runs.variants(modes[0])]
    # Of a reference with several rows, none is common to all.
    common = [name for name in references if name in ids]
    rest = [name for name in ids if name not in common]
    # A line of few points (one that was brought along) may have none in the narrow window.
    grid = np.abs(modes[0].alpha.values)
    reach = float(grid.max())
    windows = [window for window in _WINDOWS if (grid <= window[0] + 1e-9).sum() > 2]
    windows = windows or [(reach, f"|α| ≤ {reach:g}")]
    groups = [list(part) for part in np.array_split(rest, max(1, -(-len(rest) // _PER_ROW)))]
    panels = [
        _slice_panel(part, [*common, *group], variable, width, title)
        for group in groups
        for part in modes
        for width, title in windows
    ]
    kind = runs.provenance(modes[0], "plane")
    along = "random directions" if random_axes(modes[0]) else kind or "given directions"
    return Drawing(
        "loss_slice",
        f"{runs.sentence(str(ds[variable].attrs.get('long_name', variable)))} along {along}",
        _caption(modes),
        tuple(panels),
        columns=max(1, len(windows)) * len(modes),
        panel_height=1.3,
        share_x="grid",
    )


def _caption(modes: list[xr.Dataset]) -> str:
    ds = modes[0]
    directions = runs.count(ds.sizes["direction"], "direction")
    bands = (
        f"Mean over {directions} and {runs.seed_count(ds)}; band: 95 % t-interval "
        "over seeds of the mean over directions"
        if max(v.ds.sizes["run"] for v in runs.variants(ds)) > 1
        else f"{directions} of one checkpoint each (one seed): no interval"
        if ds.sizes["direction"] == 1
        else f"Mean over {directions}; band: its 95 % t-interval over directions, which "
        "speaks about these checkpoints alone (one seed); a claim about variants needs seeds"
    )
    how = normalization(ds)
    radius = ", so α = 1 is a different distance in each" if "own" in how else ""
    shared = (
        f"All models share the directions{f', {how}' if how else ''}{radius}."
        if random_axes(ds)
        else f"Directions: {runs.provenance(ds, 'directions') or 'not recorded'}."
    )
    cosine = (
        f" Cosine of two directions at most {float(ds.largest_cosine.max()):.2f}."
        if "largest_cosine" in ds and bool(ds.largest_cosine.notnull().any())
        else ""
    )
    return (
        f"{bands}. {shared}{cosine} Frozen BatchNorm statistics (eval) exaggerate the rise; the "
        f"two modes must not be compared with each other.{_objective(modes)}"
    )


def _objective(modes: list[xr.Dataset]) -> str:
    words = dict.fromkeys(runs.provenance(part, "objective") for part in modes)
    return "".join(f" Objective: {each}." for each in words if each)


def _slice_panel(
    ds: xr.Dataset, names: list[str], variable: str, width: float, title: str
) -> Panel:
    ds = ds.sel(alpha=slice(-width - 1e-9, width + 1e-9))
    marks: list[Mark] = []
    for v in runs.variants(ds):
        if v.id in names:
            marks += _slice_curve(v, variable)
    mode = runs.provenance(ds, "bn")
    name = str(ds[variable].attrs.get("long_name", variable))
    y = Axis(name[0].lower() + name[1:], runs.units(ds, variable))
    return Panel(Axis("α", limits=(-width, width), few=True), y, tuple(marks), f"{mode}\n{title}")


def _slice_curve(v: VariantRuns, variable: str) -> list[Mark]:
    loss = v.ds[variable].transpose("run", "direction", "alpha").values
    table = loss.mean(axis=1) if loss.shape[0] > 1 else loss[0]
    cis = [stats.mean_ci(column) for column in table.T]
    x = np.asarray(v.ds.alpha.values, float)
    estimate, low, high = (
        np.array([getattr(ci, key) for ci in cis]) for key in ("estimate", "low", "high")
    )
    line = Line(x, estimate, v.label, v.color, symbol=v.symbol, ends=True)
    return [Band(x, low, high, v.label, v.color), line]
