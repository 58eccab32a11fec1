"""Sharpness at a finite radius: plain, relative to the weights, of single mini-batches."""

from collections.abc import Mapping
from itertools import cycle

import numpy as np
import xarray as xr

from landscape import stats
from landscape.plot import runs
from landscape.plot.drawing import Axis, Drawing, Line, Mark, Panel, Points, Rule
from landscape.plot.figures.outcome.headline import curve, pair_by_seed
from landscape.plot.runs import VariantRuns

_SHARPNESS = {
    "one_step": "one ascent step",
    "worst_case": "worst case found",
    "gaussian": "Gaussian average",
}
_ADAPTIVE = {"worst_case": "worst case found", "gaussian": "Gaussian average"}


def sharpness(ds: xr.Dataset, *, setting: str | None = None, reference: str = "sgd") -> Drawing:
    """Loss increase against radius, and its ratio to the reference variant, for three measures.

    Example:
        >>> drawing = figures.sharpness(runs["sharpness"])
        >>> drawing.title
        'Sharpness at a finite radius'
    """
    ds = runs.in_setting(ds, setting)
    found = list(runs.variants(ds))
    panels, columns = _against_radius(ds, found, _SHARPNESS, reference, "radius ρ")
    base = runs.reference_label(found, reference)
    return Drawing(
        "sharpness",
        "Sharpness at a finite radius",
        "Above: increase of the loss at distance ρ, geometric mean over "
        f"{runs.seed_count(ds)} with the band of its 95 % t-interval. Below: paired ratio to "
        f"{base} with its 95 % t-interval; below 1 is flatter. "
        f"BatchNorm mode {runs.provenance(ds, 'bn')}.",
        tuple(panels),
        columns=columns,
        panel_height=1.7,
        narrowest=1.6,
        share_x="all",
    )


def sharpness_terms(ds: xr.Dataset, *, setting: str | None = None) -> Drawing:
    """The ascent step taken apart into its first- and second-order terms, against the radius.

    Example:
        >>> drawing = figures.sharpness_terms(runs["sharpness"])
        >>> drawing.title
        'Is the ascent step slope or curvature?'
    """
    ds = runs.in_setting(ds, setting)
    runs.require(ds, "one_step_first_order", "one_step_second_order")
    return Drawing(
        "sharpness_terms",
        "Is the ascent step slope or curvature?",
        "Left: first-order term ρ‖g‖ (solid) and second-order term ½ρ²gᵀHg/‖g‖² (dashed) of one "
        f"ascent step of length ρ; geometric mean over {runs.seed_count(ds)}. Right: the second "
        "over the first, with the band of its 95 % t-interval; at 1 curvature counts as much as "
        f"slope. BatchNorm mode {runs.provenance(ds, 'bn')}.",
        tuple(_terms(list(runs.variants(ds)))),
        columns=2,
        panel_height=1.8,
        narrowest=2.0,
    )


def adaptive_sharpness(
    ds: xr.Dataset, *, setting: str | None = None, reference: str = "sgd"
) -> Drawing:
    """Loss increase where every weight moves by at most a share of itself, and its ratios.

    Example:
        >>> drawing = figures.adaptive_sharpness(runs["adaptive_sharpness"])
        >>> drawing.title
        'Sharpness relative to the size of the weights'
    """
    ds = runs.in_setting(ds, setting)
    found = list(runs.variants(ds))
    panels, columns = _against_radius(ds, found, _ADAPTIVE, reference, "relative radius ρ")
    base = runs.reference_label(found, reference)
    norm = {"linf": "ℓ∞", "l2": "ℓ2"}.get(str(runs.provenance(ds, "norm")), "given")
    logits = "normalized" if runs.provenance(ds, "normalize_logits") == "True" else "plain"
    return Drawing(
        "adaptive_sharpness",
        "Sharpness relative to the size of the weights",
        f"Increase of the loss over |θ|·d with ‖d‖ ≤ ρ in the {norm} norm, which rescaled layers "
        f"leave alone; {logits} logits. "
        f"Geometric mean over {runs.seed_count(ds)} with the band of its 95 % t-interval; below: "
        f"paired ratio to {base}. BatchNorm mode eval.",
        tuple(panels),
        columns=columns,
        panel_height=1.55,
        narrowest=2.0,
        share_x="all",
    )


def m_sharpness(ds: xr.Dataset, *, setting: str | None = None) -> Drawing:
    """Mean one-step sharpness of batches of m examples against m, one panel per radius.

    Example:
        >>> drawing = figures.m_sharpness(runs["m_sharpness"])
        >>> drawing.title
        'Sharpness of single mini-batches'
    """
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


def _known(values: xr.DataArray) -> bool:
    return bool(np.isfinite(values).any())


def _against_radius(
    ds: xr.Dataset,
    found: list[VariantRuns],
    measures: Mapping[str, str],
    reference: str,
    label: str,
) -> tuple[list[Panel], int]:
    pairs = [(v, base) for v in found if (base := runs.partner(found, v, reference)) is not None]
    present = {n: t for n, t in measures.items() if n in ds and _known(ds[n])}
    radius, panels = Axis(label, log=True), []
    for name, title in present.items():
        marks = tuple(mark for v in found for mark in curve(v, v.ds[name], "rho", log=True))
        panels.append(Panel(radius, Axis("loss increase", "nats", log=True), marks, title))
    if pairs:
        panels += [_ratios(pairs, name, radius) for name in present]
    return panels, len(present)


def _terms(found: list[VariantRuns]) -> list[Panel]:
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


def _ratios(pairs: list[tuple[VariantRuns, VariantRuns]], name: str, radius: Axis) -> Panel:
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
                true_x=v.ds.rho.values,
            )
        )  # fmt: skip
    labels = {base.label for _, base in pairs}
    name = labels.pop() if len(labels) == 1 else "the reference"
    return Panel(radius, Axis(f"ratio to {name}", log=True), tuple(marks))
