"""Would another mask have done as well? A variant's perturbation beside its controls."""

import numpy as np
import xarray as xr

from landscape import stats
from landscape.plot import runs, style
from landscape.plot.drawing import Axis, Drawing, Mark, Panel, Points, Rule
from landscape.plot.figures._shared import row_axis, strings
from landscape.plot.runs import VariantRuns

_COLUMNS = (  # variable, its spread over drawn masks, label, units
    ("radius", "", "‖e‖", "1"),
    ("loss_increase", "loss_increase_std", "rise on the batch", "nats"),
    ("loss_increase_full", "loss_increase_full_std", "rise on all data", "nats"),
)
_COLORS = {"random": "#222222", "top gradient": "#117733"}
_DRAWS = 2  # SDs over drawn masks to either side


def perturbation_controls(ds: xr.Dataset, *, setting: str | None = None) -> Drawing:
    """Radius and loss increase of each variant's perturbation beside random and top-|g| masks.

    One row of panels per variant; controls at equal radius and at equal first-order increase, on
    all tensors (filled) and without those of one dimension (hollow).

    Example:
        >>> drawing = figures.perturbation_controls(runs["perturbation_controls"])
        >>> drawing.title
        'Would a random mask, or the largest |g|, have done as well?'
    """
    ds = runs.in_setting(ds, setting)
    runs.require(ds, "radius", "loss_increase", "loss_increase_full")
    found = [v for v in runs.variants(ds) if bool(np.isfinite(v.ds.loss_increase).any())]
    shown = [v for v in found if not _same(v.ds)]
    same = ", ".join(v.label for v in found if _same(v.ds))
    controls = strings(ds.control)
    axis = row_axis(controls)
    panels = [
        Panel(
            Axis(label, units, log=True),
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
        "hollow: without those of one dimension. Large: geometric mean over "
        f"{runs.seed_count(ds)}; faint: one seed each, with {_DRAWS} SD over the draws of a random "
        "mask to either side. Logarithmic scale: an increase below 0 is not drawn. A variant whose "
        "points lie on those of its random masks gains nothing from its choice of coordinates at "
        "this θ. A larger increase is not better training: it says how much of the radius finds "
        "the loss." + (f" All of these are one and the same for {same}." if same else ""),
        tuple(panels),
        columns=len(_COLUMNS),
        panel_height=0.55 + 0.2 * len(controls),
        narrowest=1.3,
        share_y="all",
    )


def _same(ds: xr.Dataset) -> bool:
    """Whether the variant selects all or nothing of every tensor: every control is the variant."""
    full = ds.radius.sel(support="all tensors").transpose("run", "control").values
    return bool(np.allclose(full, full[:, :1], equal_nan=True))


def _beside(v: VariantRuns, name: str, spread: str, controls: list[str]) -> list[Mark]:
    supports, nowhere = strings(v.ds.support), np.array([np.nan])
    marks: list[Mark] = [
        Points(nowhere, nowhere, support, style.MUTED, hollow=np.array([index > 0]))
        for index, support in enumerate(supports)
    ]
    for row, control in enumerate(controls):
        color = next((_COLORS[key] for key in _COLORS if control.startswith(key)), v.color)
        for index, support in enumerate(supports):
            at = v.ds.sel(control=control, support=support)
            seeds = at[name].values.astype(float)
            seeds = np.where(seeds > 0, seeds, np.nan)
            mean = stats.geometric_mean_ci(seeds)
            if not mean.n:
                continue
            y = row + 0.26 * (index - 0.5 * (len(supports) - 1))
            wide = _DRAWS * (at[spread].values.astype(float) if spread else 0 * seeds)
            marks += [
                Points(seeds, np.full(len(seeds), y), support, color, size=2.2, opacity=0.45,
                       x_low=np.maximum(seeds - wide, 0.05 * seeds), x_high=seeds + wide,
                       legend=False),
                Points(np.array([mean.estimate]), np.array([y]), support, color,
                       hollow=np.array([index > 0]), legend=False),
            ]  # fmt: skip
            if row == 0 and index == 0:
                marks.append(Rule("x", mean.estimate, "the variant", "dot", style.MUTED))
    return marks
