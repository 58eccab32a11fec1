"""Curvature at the solution: eigenvalues, trace, spectral density, finite-radius sharpness."""

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


def top_eigenvalues(ds: xr.Dataset, *, setting: str | None = None) -> Drawing:
    """Leading Hessian eigenvalues of each variant: seeds with residual bars, geometric means.

    Values that are not converged are hollow.
    """
    ds = runs.in_setting(ds, setting)
    runs.require(ds, "eigenvalue", "residual_norm", "converged")
    found = list(runs.variants(ds))
    found = runs.order_by(
        found, [-stats.geometric_mean_ci(v.ds.eigenvalue.isel(rank=0)).estimate for v in found]
    )
    ranks = ds.sizes["rank"]
    marks: list[Mark] = []
    for row, v in enumerate(found):
        for rank in range(ranks):
            y = row + 0.34 - 0.68 * (rank + 0.5) / ranks
            marks += _eigenvalue(v, rank, y)
    rows = tuple((float(row), v.label) for row, v in enumerate(found))
    positive = not bool((ds.eigenvalue <= 0).any())
    bn = runs.provenance(ds, "bn")
    number = runs.provenance(ds, "num_examples")
    return Drawing(
        "top_eigenvalues",
        f"The {ranks} largest eigenvalues of the Hessian",
        f"From top to bottom in each row: λ₁ to λ{_below(ranks)}. Dots: one seed each "
        f"({runs.seed_count(ds)}), with the residual ‖Hv − λv‖ as a bar (mostly narrower than the "
        "dot); upright bars: geometric mean. Hollow: not converged. Hessian of the loss on "
        f"{number} examples, BatchNorm mode {bn}.",
        (
            Panel(
                Axis("eigenvalue", "nats", log=positive),
                Axis(limits=(-0.6, len(found) - 0.4), ticks=rows),
                tuple(marks),
            ),
        ),
        panel_height=0.4 + 0.27 * len(found),
        legend=False,
    )


def _below(number: int) -> str:
    return "".join("₀₁₂₃₄₅₆₇₈₉"[int(digit)] for digit in str(number))


def _eigenvalue(v: Variant, rank: int, y: float) -> list[Mark]:
    part = v.ds.isel(rank=rank)
    values, residual = part.eigenvalue.values, part.residual_norm.values
    converged = np.nan_to_num(part.converged.values.astype(float)).astype(bool)
    level = np.full(len(values), y)
    seeds = Points(
        values, level, v.label, v.color, size=2.8, opacity=0.75, hollow=~converged,
        x_low=values - residual, x_high=values + residual, legend=False,
        hover=[
            f"λ{_below(rank + 1)}, seed {seed}, residual {r:.1e}"
            + ("" if ok else ", not converged")
            for seed, r, ok in zip(part.seed.values, residual, converged, strict=True)
        ],
    )  # fmt: skip
    ci = stats.geometric_mean_ci(values)
    if ci.n < 2:
        return [seeds]
    mean = Points(
        np.array([ci.estimate]), np.array([y]), v.label, v.color, "bar", size=5.5, legend=False,
        hover=[f"geometric mean of λ{_below(rank + 1)}"],
    )  # fmt: skip
    return [seeds, mean]


def hessian_trace(ds: xr.Dataset, *, setting: str | None = None) -> Drawing:
    """Trace of the Hessian per variant: seeds with Hutchinson's standard error, mean with CI."""
    ds = runs.in_setting(ds, setting)
    runs.require(ds, "trace", "trace_stderr")
    found = list(runs.variants(ds))
    found = runs.order_by(found, [-stats.geometric_mean_ci(v.ds.trace).estimate for v in found])
    marks: list[Mark] = []
    for row, v in enumerate(found):
        values, error = v.ds.trace.values, v.ds.trace_stderr.values
        y = np.full(len(values), float(row) - 0.15)
        marks.append(
            Points(values, y, v.label, v.color, size=2.6, opacity=0.6, legend=False,
                   x_low=values - error, x_high=values + error,
                   hover=[f"seed {seed}" for seed in v.ds.seed.values])
        )  # fmt: skip
        ci = stats.geometric_mean_ci(values)
        marks.append(
            Points(np.array([ci.estimate]), np.array([row + 0.15]), v.label, v.color, v.symbol,
                   size=4.5, legend=False,
                   x_low=np.array([ci.low]) if ci.known else None,
                   x_high=np.array([ci.high]) if ci.known else None)
        )  # fmt: skip
    rows = tuple((float(row), v.label) for row, v in enumerate(found))
    positive = not bool((ds.trace - ds.trace_stderr <= 0).any())
    return Drawing(
        "hessian_trace",
        "Trace of the Hessian",
        "Large: geometric mean over seeds with its 95 % t-interval. Small: one seed each, with "
        f"Hutchinson's standard error from {ds.sizes.get('probe', 0)} probes that all models "
        f"share. BatchNorm mode {runs.provenance(ds, 'bn')}.",
        (
            Panel(
                Axis("trace", "nats", log=positive),
                Axis(limits=(-0.6, len(found) - 0.4), ticks=rows),
                tuple(marks),
            ),
        ),
        panel_height=0.4 + 0.2 * len(found),
        legend=False,
    )


def spectral_density(
    ds: xr.Dataset, *, setting: str | None = None, reference: str = "sgd"
) -> Drawing:
    """Density of Hessian eigenvalues by stochastic Lanczos quadrature, one panel per variant."""
    ds = runs.first_seeds(runs.in_setting(ds, setting))
    runs.require(ds, "ritz_value", "weight")
    low, high = float(ds.ritz_value.min()), float(ds.ritz_value.max())
    grid = np.linspace(low - 0.05 * (high - low), high + 0.05 * (high - low), 240)
    sigma = 0.01 * (high - low)
    lines = {v.id: (v, _density(v.ds, grid, sigma)) for v in runs.variants(ds)}
    floor = 1e-5 / max(high - low, 1e-12)
    panels = []
    for v, (mean, _) in lines.values():
        marks: list[Mark] = []
        if reference in lines and v.id != reference:
            other, (base, _) = lines[reference]
            marks.append(
                Line(
                    grid, np.where(base > floor, base, np.nan), other.label, other.color, width=0.9
                )
            )
        marks.append(Line(grid, np.where(mean > floor, mean, np.nan), v.label, v.color))
        panels.append(
            Panel(Axis("eigenvalue", "nats"), Axis("density", "1/nats", log=True), tuple(marks),
                  v.label)
        )  # fmt: skip
    return Drawing(
        "spectral_density",
        "Spectral density of the Hessian",
        f"Stochastic Lanczos quadrature, mean of {ds.sizes['probe']} probes, first seed only, "
        f"drawn as Gaussians of width {sigma:.2g} nats. BatchNorm mode "
        f"{runs.provenance(ds, 'bn')}.",
        tuple(panels),
        columns=4,
        panel_height=1.15,
        share_x="all",
        share_y="all",
    )


def _density(ds: xr.Dataset, grid: np.ndarray, sigma: float) -> tuple[np.ndarray, np.ndarray]:
    run = ds.isel(run=0)
    per_probe = stats.broaden(run.ritz_value.values, run.weight.values, grid, sigma=sigma)
    return per_probe.mean(0), per_probe.std(0)


def sharpness(ds: xr.Dataset, *, setting: str | None = None, reference: str = "sgd") -> Drawing:
    """Loss increase against radius, and its ratio to the reference variant, for three measures."""
    ds = runs.in_setting(ds, setting)
    found = list(runs.variants(ds))
    base = next((v for v in found if v.id == reference), None)
    panels: list[Panel] = []
    for name, label in _SHARPNESS.items():
        if name not in ds or not bool(np.isfinite(ds[name]).any()):
            continue
        marks = tuple(mark for v in found for mark in curve(v, v.ds[name], "rho", log=True))
        radius = Axis("radius ρ", log=True)
        panels.append(Panel(radius, Axis("loss increase", "nats", log=True), marks, label))
        if base is not None and len(found) > 1:
            panels.append(_ratios(found, base, name, radius))
    columns = 2 if base is not None and len(found) > 1 else min(3, len(panels))
    return Drawing(
        "sharpness",
        "Sharpness at a finite radius",
        "Left: increase of the loss at distance ρ, geometric mean over "
        f"{runs.seed_count(ds)} with the band of its 95 % t-interval. Right: paired ratio to "
        f"{base.label if base else 'the reference'} with its 95 % t-interval; below 1 is flatter. "
        f"BatchNorm mode {runs.provenance(ds, 'bn')}.",
        tuple(panels),
        columns=columns,
        panel_height=1.55,
        narrowest=2.0,
        share_x="all",
    )


def _ratios(found: list[Variant], base: Variant, name: str, radius: Axis) -> Panel:
    marks: list[Mark] = [Rule("y", 1.0, "equal", "solid")]
    others = [v for v in found if v.id != base.id]
    for v, step in zip(others, cycle(np.linspace(-1, 1, max(len(others), 2))), strict=False):
        rho, ratio = [], []
        for value in v.ds.rho.values.tolist():
            _, ours, theirs = pair_by_seed(v.ds.sel(rho=value), base.ds.sel(rho=value), name)
            rho.append(value * 1.006 ** (step * len(others)))
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
    return Panel(radius, Axis(f"ratio to {base.label}", log=True), tuple(marks))
