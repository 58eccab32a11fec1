"""Slices of the loss around a solution."""

import numpy as np
import xarray as xr

from landscape import stats
from landscape.plot import runs
from landscape.plot.drawing import Axis, Band, Drawing, Line, Mark, Panel
from landscape.plot.runs import Variant

_WINDOWS = ((1.0, "|α| ≤ 1"), (0.25, "|α| ≤ 0.25"))
_PER_ROW = 4


def loss_slice(
    ds: xr.Dataset,
    other: xr.Dataset | None = None,
    *,
    setting: str | None = None,
    references: tuple[str, ...] = ("sgd", "sam"),
) -> Drawing:
    """Loss along random directions in two windows; a second BatchNorm mode in its own columns.

    ds, other: loss_slice in two modes (other may be None). Each row holds the references and up to
    four variants, so that lines can be told apart.
    """
    modes = [runs.in_setting(part, setting) for part in (ds, other) if part is not None]
    ids = [v.id for v in runs.variants(modes[0])]
    common = [name for name in references if name in ids]
    rest = [name for name in ids if name not in common]
    # A line of few points (one that was brought along) may have none in the narrow window.
    grid = np.abs(modes[0].alpha.values)
    reach = float(grid.max())
    windows = [window for window in _WINDOWS if (grid <= window[0] + 1e-9).sum() > 2]
    windows = windows or [(reach, f"|α| ≤ {reach:g}")]
    groups = [list(part) for part in np.array_split(rest, max(1, -(-len(rest) // _PER_ROW)))]
    panels = [
        _slice_panel(part, [*common, *group], width, title)
        for group in groups
        for part in modes
        for width, title in windows
    ]
    directions = modes[0].sizes["direction"]
    bands = (
        f"Mean over {directions} directions and {runs.seed_count(modes[0])}; band: 95 % t-interval "
        "over seeds of the mean over directions"
        if max(v.ds.sizes["run"] for v in runs.variants(modes[0])) > 1
        else f"Mean over {directions} directions; band: its 95 % t-interval over directions (one "
        "seed)"
    )
    return Drawing(
        "loss_slice",
        "Loss along random directions",
        f"{bands}. All models share the directions, normalized per filter to each model's own "
        "weights, so α = 1 is a different distance in each. Frozen BatchNorm statistics (eval) "
        "exaggerate the rise; the two modes must not be compared with each other.",
        tuple(panels),
        columns=max(1, len(windows)) * len(modes),
        panel_height=1.3,
        share_x="grid",
    )


def _slice_panel(ds: xr.Dataset, names: list[str], width: float, title: str) -> Panel:
    ds = ds.sel(alpha=slice(-width - 1e-9, width + 1e-9))
    marks: list[Mark] = []
    for v in runs.variants(ds):
        if v.id in names:
            marks += _slice_curve(v)
    mode = runs.provenance(ds, "bn")
    limits = (-width, width)
    return Panel(Axis("α", limits=limits), Axis("loss", "nats"), tuple(marks), f"{mode}\n{title}")


def _slice_curve(v: Variant) -> list[Mark]:
    loss = v.ds.loss.transpose("run", "direction", "alpha").values
    table = loss.mean(axis=1) if loss.shape[0] > 1 else loss[0]
    cis = [stats.mean_ci(column) for column in table.T]
    x = np.asarray(v.ds.alpha.values, float)
    estimate, low, high = (
        np.array([getattr(ci, key) for ci in cis]) for key in ("estimate", "low", "high")
    )
    return [Band(x, low, high, v.label, v.color), Line(x, estimate, v.label, v.color)]
