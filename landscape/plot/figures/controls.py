"""Would another mask have done as well? A variant's perturbation beside its controls."""

import numpy as np
import xarray as xr

from landscape.plot import runs, style
from landscape.plot.drawing import Axis, Drawing, Mark, Panel, Points, Rule
from landscape.plot.figures._shared import row_axis, strings
from landscape.plot.runs import Variant

_COLUMNS = (  # variable, its spread over drawn masks, label, units
    ("radius", "", "‖e‖", "1"),
    ("loss_increase", "loss_increase_std", "on the batch", "nats"),
    ("loss_increase_full", "loss_increase_full_std", "on all data", "nats"),
)
_COLORS = {"variant": "#d55e00", "random": "#222222", "top gradient": "#117733"}
_DRAWS = 2  # SDs over drawn masks to either side


def perturbation_controls(ds: xr.Dataset, *, setting: str | None = None) -> Drawing:
    """Radius and loss increase of each variant's perturbation beside random and top-|g| masks.

    One row of panels per variant; controls at equal radius and at equal first-order increase, on
    all tensors (filled) and without those of one dimension (hollow).
    """
    ds = runs.in_setting(ds, setting)
    runs.require(ds, "radius", "loss_increase", "loss_increase_full")
    shown = [v for v in runs.variants(ds) if bool(np.isfinite(v.ds.loss_increase).any())]
    controls = strings(ds.control)
    axis = row_axis(controls)
    panels = [
        Panel(
            Axis(label, units),
            axis,
            tuple(_beside(v, name, spread, controls)),
            v.label if name == "radius" else "",
        )
        for v in shown
        for name, spread, label, units in _COLUMNS
    ]
    return Drawing(
        "perturbation_controls",
        "Would a random mask, or the largest |g|, have done as well?",
        "Effective radius and loss increase L(θ + e) − L(θ) of the variant's own perturbation "
        "beside masks of the same density in every tensor: drawn at random, or of the largest |g|, "
        "scaled to the same radius or to the same first-order increase gᵀe. Filled: all tensors; "
        "hollow: without those of one dimension. Faint: one seed each "
        f"({runs.seed_count(ds)}); line: mean ± {_DRAWS} SD over the draws of a random mask. "
        "A variant whose point lies on those of its random masks gains nothing from its choice of "
        "coordinates at this θ. A larger increase is not better training: it says how much of the "
        "radius finds the loss.",
        tuple(panels),
        columns=len(_COLUMNS),
        panel_height=0.55 + 0.2 * len(controls),
        narrowest=1.3,
        share_y="all",
    )


def _beside(v: Variant, name: str, spread: str, controls: list[str]) -> list[Mark]:
    marks: list[Mark] = []
    supports = strings(v.ds.support)
    for row, control in enumerate(controls):
        color = _COLORS[next((key for key in _COLORS if control.startswith(key)), "variant")]
        for index, support in enumerate(supports):
            at = v.ds.sel(control=control, support=support)
            seeds = at[name].values.astype(float)
            if not np.isfinite(seeds).any():
                continue
            y = np.array([row + 0.26 * (index - 0.5 * (len(supports) - 1))])
            mean = np.array([np.nanmean(seeds)])
            wide = _DRAWS * np.nan_to_num(np.nanmean(at[spread].values)) if spread else 0.0
            if len(seeds) > 1:
                marks.append(
                    Points(seeds, np.repeat(y, len(seeds)), support, color, size=2.2,
                           opacity=0.4, legend=False)
                )  # fmt: skip
            marks.append(
                Points(mean, y, support, color, hollow=np.array([index > 0]), legend=False,
                       x_low=mean - wide, x_high=mean + wide)
            )  # fmt: skip
            if row == 0 and index == 0:
                marks.append(Rule("x", float(mean[0]), "", "dot", style.MUTED))
    return marks
