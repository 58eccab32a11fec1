"""Curvature at the solution: eigenvalues, traces, norms, blocks, and what points along them."""

import numpy as np
import xarray as xr

from landscape import stats
from landscape.plot import runs, style
from landscape.plot.drawing import Axis, Drawing, Mark, Panel, Points, Rule
from landscape.plot.figures._shared import (
    LEAST,
    dots,
    height,
    key,
    labels,
    row_axis,
    spoken,
    strings,
)
from landscape.plot.runs import VariantRuns


def top_eigenvalues(ds: xr.Dataset, *, setting: str | None = None) -> Drawing:
    """Leading Hessian eigenvalues of each variant: seeds with residual bars, geometric means.

    Values that are not converged are hollow.

    Example:
        >>> drawing = figures.top_eigenvalues(runs["top_eigenvalues"])
        >>> drawing.title
        'The largest eigenvalue of the Hessian'
    """
    ds = runs.in_setting(ds, setting)
    runs.require(ds, "eigenvalue", "residual_norm", "converged")
    found = list(runs.variants(ds))
    found = runs.order_by(
        found, [-stats.geometric_mean_ci(v.ds.eigenvalue.isel(rank=0)).estimate for v in found]
    )
    ranks = ds.sizes["rank"]
    marks: list[Mark] = [key("one seed", "circle", style.MUTED, size=2.8)]
    if max(v.ds.sizes["run"] for v in found) > 1:
        marks.append(key("geometric mean over seeds", "bar", style.MUTED))
    for row, v in enumerate(found):
        for rank in range(ranks):
            y = row + 0.34 - 0.68 * (rank + 0.5) / ranks
            marks += _eigenvalue(v, rank, y)
    rows = tuple((float(row), v.label) for row, v in enumerate(found))
    positive = not bool((ds.eigenvalue <= 0).any())
    bn = runs.provenance(ds, "bn")
    number = runs.provenance(ds, "num_examples")
    order = f"From top to bottom in each row: λ₁ to λ{_below(ranks)}. " if ranks > 1 else ""
    return Drawing(
        "top_eigenvalues",
        f"The {ranks} largest eigenvalues of the Hessian"
        if ranks > 1
        else "The largest eigenvalue of the Hessian",
        f"{order}Dots: one seed each ({runs.seed_count(ds)}), with a bar that holds an "
        "eigenvalue for certain (residual and rounding; mostly narrower than the dot); "
        "upright bars: geometric mean. Hollow: not converged. Hessian of the loss on "
        f"{number} examples, BatchNorm mode {bn}.",
        (
            Panel(
                Axis("eigenvalue", "nats", log=positive),
                Axis(limits=(-0.6, len(found) - 0.4), ticks=rows),
                tuple(marks),
            ),
        ),
        panel_height=0.4 + 0.27 * len(found),
    )


def _below(number: int) -> str:
    return "".join("₀₁₂₃₄₅₆₇₈₉"[int(digit)] for digit in str(number))


def _eigenvalue(v: VariantRuns, rank: int, y: float) -> list[Mark]:
    part = v.ds.isel(rank=rank)
    values = part.eigenvalue.values
    bound = (part.bound if "bound" in part else part.residual_norm).values
    converged = np.nan_to_num(part.converged.values.astype(float)).astype(bool)
    level = np.full(len(values), y)
    seeds = Points(
        values, level, v.label, v.color, size=2.8, opacity=0.75, hollow=~converged,
        x_low=values - bound, x_high=values + bound, legend=False,
        hover=[
            f"λ{_below(rank + 1)}, seed {seed}, ± {b:.1e}" + ("" if ok else ", not converged")
            for seed, b, ok in zip(part.seed.values, bound, converged, strict=True)
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
    """Trace of the Hessian per variant: seeds with Hutchinson's standard error, mean with CI.

    Example:
        >>> drawing = figures.hessian_trace(runs["hessian_trace"])
        >>> drawing.title
        'Trace of the Hessian'
    """
    ds = runs.in_setting(ds, setting)
    runs.require(ds, "trace", "trace_stderr")
    found = _descending(ds, "trace")
    return Drawing(
        "hessian_trace",
        "Trace of the Hessian",
        "Large: geometric mean over seeds with its 95 % t-interval. Small: one seed each, with "
        f"Hutchinson's standard error from {runs.count(ds.sizes.get('probe', 0), 'probe')} that "
        f"all models share. BatchNorm mode {runs.provenance(ds, 'bn')}.",
        (_scalars(ds, found, "trace", "trace", "nats"),),
        panel_height=0.4 + 0.2 * len(found),
        legend=False,
    )


def frobenius(ds: xr.Dataset, *, setting: str | None = None) -> Drawing:
    """Frobenius norm of the Hessian and its trace weighted by the squared parameters.

    Example:
        >>> drawing = figures.frobenius(runs["frobenius"])
        >>> drawing.title
        'Norm of the Hessian, and curvature that rescaling leaves alone'
    """
    ds = runs.in_setting(ds, setting)
    runs.require(ds, "frobenius_squared", "weighted_trace", "weighted_trace_stderr")
    found = _descending(ds, "weighted_trace")
    return Drawing(
        "frobenius",
        "Norm of the Hessian, and curvature that rescaling leaves alone",
        "Left: squared Frobenius norm, the sum of all squared eigenvalues. Right: trace weighted "
        "by the squared parameters, the mean increase for relative changes of the weights, which "
        "rescaled ReLU layers leave alone. Large: "
        "geometric mean over seeds with its 95 % t-interval; small: one seed each, with its "
        f"standard error over its probes ({runs.provenance(ds, 'num_probes')}). BatchNorm mode "
        f"{runs.provenance(ds, 'bn')}.",
        (
            _scalars(ds, found, "frobenius_squared", "squared Frobenius norm", "nats²"),
            _scalars(ds, found, "weighted_trace", "Σ w² · diagonal of H", "nats"),
        ),
        columns=2,
        panel_height=0.4 + 0.2 * len(found),
        narrowest=2.2,
        share_y="all",
        legend=False,
    )


def _descending(ds: xr.Dataset, name: str) -> list[VariantRuns]:
    found = list(runs.variants(ds))
    return runs.order_by(found, [-stats.geometric_mean_ci(v.ds[name]).estimate for v in found])


def _scalars(ds: xr.Dataset, found: list[VariantRuns], name: str, label: str, units: str) -> Panel:
    """One row per variant: seeds with the standard error over probes, geometric mean with CI."""
    marks: list[Mark] = []
    for row, v in enumerate(found):
        values, error = v.ds[name].values, v.ds[f"{name}_stderr"].values
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
    positive = not bool((ds[name] - ds[f"{name}_stderr"] <= 0).any())
    return Panel(
        Axis(label, units, log=positive),
        Axis(limits=(-0.6, len(found) - 0.4), ticks=rows),
        tuple(marks),
    )


def gauss_newton_eigenvalues(
    ggn: xr.Dataset, hessian: xr.Dataset, *, setting: str | None = None
) -> Drawing:
    """Eigenvalues of the Hessian over those of the Gauss-Newton matrix, rank by rank.

    ggn: gauss_newton_eigenvalues, hessian: top_eigenvalues of the same runs.

    Example:
        >>> drawing = figures.gauss_newton_eigenvalues(
        ...     runs["gauss_newton_eigenvalues"], runs["top_eigenvalues"]
        ... )
        >>> drawing.title
        'Is the curvature that of the loss, or of the network?'
    """
    ggn, hessian = (runs.in_setting(ds, setting) for ds in (ggn, hessian))
    runs.require(ggn, "eigenvalue", "converged")
    runs.require(hessian, "eigenvalue", "converged")
    ranks = min(ggn.sizes["rank"], hessian.sizes["rank"])
    marks: list[Mark] = [Rule("y", 1.0, "equal", "solid")]
    for v in runs.variants(ggn.isel(rank=slice(ranks))):
        kept = np.isin(v.ds.run.values, hessian.run.values)
        mine = v.ds.isel(run=kept)
        rows = [int(np.flatnonzero(hessian.run.values == run)[0]) for run in mine.run.values]
        theirs = hessian.isel(run=rows, rank=slice(ranks))
        both = mine.converged.values.astype(bool) & theirs.converged.values.astype(bool)
        hover = [f"λ{_below(r + 1)}, seed {s}" for s in mine.seed.values for r in range(ranks)]
        x, y = mine.eigenvalue.values, theirs.eigenvalue.values
        marks.append(
            Points(x.ravel(), (y / x).ravel(), v.label, v.color, v.symbol, size=3.6,
                   hollow=~both.ravel(), hover=hover, opacity=0.85)
        )  # fmt: skip
    positive = bool((ggn.eigenvalue.fillna(1) > 0).all())
    return Drawing(
        "gauss_newton_eigenvalues",
        "Is the curvature that of the loss, or of the network?",
        "Leading eigenvalues of the Hessian over those of the Gauss-Newton matrix, rank by rank, "
        "all seeds. At 1 the curvature is that of the loss through a linearized network, which is "
        "where a fitted network ends; off it the network's own second derivative counts. Hollow: "
        f"not converged. BatchNorm mode {runs.provenance(ggn, 'bn')}.",
        (
            Panel(
                Axis("Gauss-Newton eigenvalue", "nats", log=positive),
                Axis("Hessian over Gauss-Newton"),
                tuple(marks),
            ),
        ),
        panel_height=2.0,
    )


def block_curvature(ds: xr.Dataset, *, setting: str | None = None) -> Drawing:
    """Per block: share of the trace, share of the parameters, and the largest eigenvalue.

    Example:
        >>> drawing = figures.block_curvature(runs["block_curvature"])
        >>> drawing.title
        'Which tensors curve?'
    """
    ds = runs.in_setting(ds, setting)
    runs.require(ds, "eigenvalue", "trace", "parameter_share")
    names = strings(ds["block"])
    low = 10 ** np.floor(np.log10(max(float(ds.parameter_share.min()), 1e-6)))
    panels = [
        Panel(
            Axis("share", log=True, limits=(low, 1.5)),
            row_axis(names),
            (key("share of the trace", "circle", style.MUTED), *_block(v, low)),
            f"{v.label}\ntr H {_mean(v.ds.trace.sum('block')):.3g}, "
            f"λ₁ {_mean(v.ds.eigenvalue.max('block')):.3g}",
        )
        for v in runs.variants(ds)
    ]
    return Drawing(
        "block_curvature",
        f"Which {runs.provenance(ds, 'by')}s curve?",
        "Filled: share of the trace of the Hessian that lies in the diagonal block, mean over "
        f"{runs.seed_count(ds)} with its 95 % t-interval (hollow circle: a negative trace, at its "
        "size). Upright bars: share of the parameters. Titles: whole trace, and the largest λ₁ of "
        "a block. Diamonds: largest eigenvalue of the block over "
        "that of the largest block (hollow: not converged). BatchNorm mode "
        f"{runs.provenance(ds, 'bn')}.",
        tuple(panels),
        columns=3,
        panel_height=height(len(names)) + 0.45,
        narrowest=1.7,
        share_x="all",
        share_y="all",
    )


def _mean(values: xr.DataArray) -> float:
    return float(np.nanmean(values.values))


def _block(v: VariantRuns, low: float) -> list[Mark]:
    trace = v.ds.trace.transpose("run", "block").values
    share = trace / trace.sum(1, keepdims=True)
    top = v.ds.eigenvalue.transpose("run", "block").values
    top = (top / np.nanmax(top, axis=1, keepdims=True)).mean(0)
    cis = [stats.mean_ci(column) for column in share.T]
    mean = np.array([ci.estimate for ci in cis])
    rows = np.arange(len(mean), dtype=float)
    up, down = mean > low, mean < -low
    owned = v.ds.parameter_share.isel(run=0).values
    marks: list[Mark] = [
        Points(owned, rows, "share of the parameters", style.MUTED, "bar", size=6),
        Points(mean[up], rows[up], "share of the trace", v.color, v.symbol, legend=False),
    ]
    wide = up & np.array([ci.known for ci in cis])
    if wide.any():
        ends = np.array([[max(ci.low, low), ci.high] for ci in cis])[wide]
        marks.append(
            Points(mean[wide], rows[wide], "95 % interval", style.INK, "none", legend=False,
                   x_low=ends[:, 0], x_high=ends[:, 1])
        )  # fmt: skip
    if down.any():
        marks.append(
            Points(-mean[down], rows[down], "negative trace", v.color, "circle", size=3.5,
                   hollow=np.ones(int(down.sum()), bool))
        )  # fmt: skip
    seen = top > low
    bad = ~v.ds.converged.values.astype(bool).all(0)
    marks.append(
        Points(top[seen], rows[seen], "λ₁ over the largest", style.INK, "diamond", size=2.8,
               hollow=bad[seen])
    )  # fmt: skip
    return marks


def alignment(ds: xr.Dataset, *, setting: str | None = None) -> Drawing:
    """Energy of gradient and perturbations in the top eigenspace, against two kinds of chance.

    Example:
        >>> drawing = figures.alignment(runs["alignment"])
        >>> drawing.title
        'Do perturbations point where the loss curves?'
    """
    ds = runs.in_setting(ds, setting)
    runs.require(ds, "captured", "expected_isotropic", "expected_matched")
    known, panels = labels(ds), []
    shares = np.concatenate([ds[name].values.ravel() for name in ("captured", "expected_matched")])
    lowest = min(shares[shares > 0].min(initial=1.0), float(ds.expected_isotropic.min()))
    # Two seeds may leave an interval open over many decades.
    axis = Axis("share of ‖e‖²", log=True, limits=(float(lowest) / 3, 2.0))
    for v in runs.variants(ds):
        names = strings(v.ds["direction"])
        rows = np.arange(len(names), dtype=float)
        seen = v.ds.transpose("run", "direction", ...)
        chance = float(seen.expected_isotropic.mean())
        marks: list[Mark] = [
            key("the direction itself", "circle", style.MUTED),
            Rule("x", chance, "isotropic chance", "dot", text="k/P"),
        ]
        matched = seen.expected_matched.values
        marks += dots(matched, rows - 0.16, "same energy per tensor", style.MUTED, "x",
                      size=3.6, log=True, least=LEAST)  # fmt: skip
        marks += dots(seen.captured.values, rows + 0.16, "energy in the top eigenspace", v.color,
                      size=4.5, log=True, legend=False, least=LEAST)  # fmt: skip
        shown = ["gradient" if n == "gradient" else spoken(n, known) for n in names]
        panels.append(
            Panel(axis, row_axis(shown), tuple(marks),
                  f"at θ of {v.label}")
        )  # fmt: skip
    return Drawing(
        "alignment",
        "Do perturbations point where the loss curves?",
        f"Coloured: energy of the direction in the span of the {runs.provenance(ds, 'k')} leading "
        f"eigenvectors, geometric mean over {runs.seed_count(ds)} with its 95 % t-interval (from "
        f"{LEAST} seeds on; of fewer, the seeds themselves are what is known). "
        "Crosses: expected of a random direction with the same energy in every tensor, the null "
        "to read it against; dotted: of an isotropic one, k/P. Intervals may leave the panel. "
        "Alignment is not mechanism. "
        f"BatchNorm mode {runs.provenance(ds, 'bn')}.",
        tuple(panels),
        columns=3,
        panel_height=0.55 + 0.17 * ds.sizes["direction"],
        narrowest=1.8,
        share_x="all",
        share_y="all",
    )
