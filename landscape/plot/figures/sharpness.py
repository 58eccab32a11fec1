"""Sharpness at a finite radius: plain, relative to the weights, of single mini-batches."""

from collections.abc import Mapping
from itertools import cycle

import numpy as np
import xarray as xr

from landscape import stats
from landscape.plot import runs
from landscape.plot.drawing import Axis, Drawing, Line, Mark, Panel, Points, Rule
from landscape.plot.figures.outcome import curve, pair_by_seed
from landscape.plot.runs import Variant

_SHARPNESS = {
    "one_step": "one ascent step",
    "worst_case": "worst case found",
    "gaussian": "Gaussian average",
}
_ADAPTIVE = {"worst_case": "worst case found", "gaussian": "Gaussian average"}


def sharpness(ds: xr.Dataset, *, setting: str | None = None, reference: str = "sgd") -> Drawing:
    """Loss increase against radius, and its ratio to the reference variant, for three measures.

    The one step is taken apart into its first- and second-order terms where they were measured.
    """
    ds = runs.in_setting(ds, setting)
    found = list(runs.variants(ds))
    panels, columns = _against_radius(ds, found, _SHARPNESS, reference, "radius ρ")
    base = _named(found, reference)
    apart = "one_step_first_order" in ds and "one_step_second_order" in ds
    terms = _terms(found) if apart and _known(ds["one_step_second_order"]) else []
    return Drawing(
        "sharpness",
        "Sharpness at a finite radius",
        "Left: increase of the loss at distance ρ, geometric mean over "
        f"{runs.seed_count(ds)} with the band of its 95 % t-interval. Right: paired ratio to "
        f"{base} with its 95 % t-interval; below 1 is flatter. "
        + ("Last row: the step's first-order term ρ‖g‖ (solid) and second-order term "
           "½ρ²gᵀHg/‖g‖² (dashed), and the second over the first. " if terms else "")
        + f"BatchNorm mode {runs.provenance(ds, 'bn')}.",
        tuple([*panels, *terms]),
        columns=columns,
        panel_height=1.55,
        narrowest=2.0,
        share_x="all",
    )  # fmt: skip


def adaptive_sharpness(
    ds: xr.Dataset, *, setting: str | None = None, reference: str = "sgd"
) -> Drawing:
    """Loss increase where every weight moves by at most a share of itself, and its ratios."""
    ds = runs.in_setting(ds, setting)
    found = list(runs.variants(ds))
    panels, columns = _against_radius(ds, found, _ADAPTIVE, reference, "relative radius ρ")
    base = _named(found, reference)
    norm = {"linf": "ℓ∞", "l2": "ℓ2"}.get(str(runs.provenance(ds, "norm")), "given")
    logits = "normalized" if runs.provenance(ds, "normalize_logits") == "True" else "plain"
    return Drawing(
        "adaptive_sharpness",
        "Sharpness relative to the size of the weights",
        f"Increase of the loss over |θ|·d with ‖d‖ ≤ ρ in the {norm} norm, which rescaled layers "
        f"leave alone; {logits} logits. "
        f"Geometric mean over {runs.seed_count(ds)} with the band of its 95 % t-interval; right: "
        f"paired ratio to {base}. BatchNorm mode eval.",
        tuple(panels),
        columns=columns,
        panel_height=1.55,
        narrowest=2.0,
        share_x="all",
    )


def m_sharpness(ds: xr.Dataset, *, setting: str | None = None) -> Drawing:
    """Mean one-step sharpness of batches of m examples against m, one panel per radius."""
    ds = runs.in_setting(ds, setting)
    runs.require(ds, "m_sharpness")
    found = list(runs.variants(ds))
    panels = []
    for rho in ds.rho.values.tolist():
        marks: list[Mark] = []
        for v in found:
            values = v.ds["m_sharpness"].sel(rho=rho)
            marks += curve(v, values, "batch", log=True)
            mean = [stats.geometric_mean_ci(column).estimate for column in values.values.T]
            marks.append(
                Points(values["batch"].values.astype(float), np.array(mean), v.label, v.color,
                       v.symbol, size=3.2, legend=False)
            )  # fmt: skip
        panels.append(
            Panel(
                Axis("examples per batch m", log=True),
                Axis("loss increase", "nats", log=True),
                tuple(marks),
                f"ρ = {rho:.3g}",
            )
        )
    return Drawing(
        "m_sharpness",
        "Sharpness of single mini-batches",
        "Mean over disjoint batches of the increase of a batch's own loss after one step of "
        f"length ρ along its own gradient; geometric mean over {runs.seed_count(ds)}, band: its "
        "95 % t-interval. With m = N it is the sharpness of all examples. BatchNorm mode eval.",
        tuple(panels),
        columns=min(3, len(panels)),
        panel_height=1.8,
        narrowest=1.8,
        share_y="all",
    )


def _named(found: list[Variant], reference: str) -> str:
    """The words for a reference: of its one row, or of the variant whose rows are meant."""
    rows = [v.label for v in found if reference in (v.id, v.family)]
    return rows[0] if len(rows) == 1 else f"{reference} at equal axes" if rows else "the reference"


def _known(values: xr.DataArray) -> bool:
    return bool(np.isfinite(values).any())


def _against_radius(
    ds: xr.Dataset,
    found: list[Variant],
    measures: Mapping[str, str],
    reference: str,
    label: str,
) -> tuple[list[Panel], int]:
    pairs = [(v, base) for v in found if (base := runs.partner(found, v, reference)) is not None]
    compared = bool(pairs)
    panels: list[Panel] = []
    for name, title in measures.items():
        if name not in ds or not _known(ds[name]):
            continue
        marks = tuple(mark for v in found for mark in curve(v, v.ds[name], "rho", log=True))
        radius = Axis(label, log=True)
        panels.append(Panel(radius, Axis("loss increase", "nats", log=True), marks, title))
        if compared:
            panels.append(_ratios(pairs, name, radius))
    return panels, 2 if compared else min(3, len(panels))


def _terms(found: list[Variant]) -> list[Panel]:
    """First- and second-order term of the ascent step, and the second over the first."""
    both: list[Mark] = []
    share: list[Mark] = [Rule("y", 1.0, "equal", "solid", text="curvature counts as much")]
    for v in found:
        first, second = v.ds["one_step_first_order"], v.ds["one_step_second_order"]
        lines = curve(v, first, "rho", log=True)
        lines += curve(v, second, "rho", log=True, dash="dash", legend=False)
        both += [mark for mark in lines if isinstance(mark, Line)]
        share += curve(v, second / first, "rho", log=True)
    radius = Axis("radius ρ", log=True)
    return [
        Panel(
            radius,
            Axis("loss increase", "nats", log=True),
            tuple(both),
            "one ascent step: its two terms",
        ),
        Panel(radius, Axis("second over first", log=True), tuple(share)),
    ]


def _ratios(pairs: list[tuple[Variant, Variant]], name: str, radius: Axis) -> Panel:
    marks: list[Mark] = [Rule("y", 1.0, "equal", "solid")]
    steps = cycle(np.linspace(-1, 1, max(len(pairs), 2)))
    for (v, base), step in zip(pairs, steps, strict=False):
        rho, ratio = [], []
        for value in v.ds.rho.values.tolist():
            _, ours, theirs = pair_by_seed(v.ds.sel(rho=value), base.ds.sel(rho=value), name)
            rho.append(value * 1.006 ** (step * len(pairs)))
            ratio.append(stats.geometric_ratio(ours, theirs))
        known = any(ci.known for ci in ratio)
        marks.append(
            Points(
                np.array(rho), np.array([ci.estimate for ci in ratio]), v.label, v.color, v.symbol,
                size=3.2, legend=False,
                y_low=np.array([ci.low for ci in ratio]) if known else None,
                y_high=np.array([ci.high for ci in ratio]) if known else None,
                hover=[f"ρ = {value:.3g}" for value in v.ds.rho.values],
            )
        )  # fmt: skip
    labels = {base.label for _, base in pairs}
    name = labels.pop() if len(labels) == 1 else "the reference"
    return Panel(radius, Axis(f"ratio to {name}", log=True), tuple(marks))
