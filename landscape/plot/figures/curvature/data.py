"""Curvature beside what it depends on: mini-batches, the amount of data, the step, the epoch."""

import numpy as np
import xarray as xr

from landscape import stats
from landscape.plot import runs, style
from landscape.plot.drawing import Axis, Dash, Drawing, Line, Mark, Panel, Points
from landscape.plot.figures._shared import key, row_axis
from landscape.plot.figures.outcome.headline import curve
from landscape.plot.runs import VariantRuns


def minibatch_eigenvalues(ds: xr.Dataset, *, setting: str | None = None) -> Drawing:
    """Largest eigenvalues of single mini-batches, those of all examples marked.

    Example:
        >>> drawing = figures.minibatch_eigenvalues(runs["minibatch_eigenvalues"])
        >>> drawing.title
        'Eigenvalues of single mini-batches'
    """
    ds = runs.in_setting(ds, setting)
    runs.require(ds, "eigenvalue", "whole_eigenvalue", "converged")
    found, ranks = list(runs.variants(ds)), ds.sizes["rank"]
    marks: list[Mark] = [key("one batch", "circle", style.MUTED, size=3.0)]
    marks += [mark for row, v in enumerate(found) for mark in _batches(v, row, ranks)]
    positive = not bool((ds.eigenvalue <= 0).any())
    decay = float(runs.provenance(ds, "weight_decay") or 0)
    return Drawing(
        "minibatch_eigenvalues",
        "Eigenvalues of single mini-batches",
        f"Dots: {'the largest eigenvalue' if ranks == 1 else f'λ₁ (top) to λ{ranks}'} of the "
        f"Hessian on each of {runs.count(ds.sizes['batch'], 'batch', 'disjoint batches')} of "
        f"size {runs.provenance(ds, 'batch_size')}, {runs.seed_count(ds)}; hollow: not "
        "converged. Bars: the same on all examples, one per seed; batches lie above it "
        "on average, since the largest eigenvalue is convex. Loss "
        f"{runs.provenance(ds, 'loss')}, weight decay {decay:g}; BatchNorm mode "
        f"{runs.provenance(ds, 'bn')}.",
        (
            Panel(
                Axis("eigenvalue", "nats", log=positive),
                row_axis([v.label for v in found]),
                tuple(marks),
            ),
        ),
        panel_height=0.45 + 0.34 * len(found),
    )


def _batches(v: VariantRuns, row: int, ranks: int) -> list[Mark]:
    ds = v.ds.transpose("run", "batch", "rank", ...)
    seeds, batches = ds.sizes["run"], ds.sizes["batch"]
    # Spread within the row, the same at every call: seeds apart, batches in a zigzag.
    spread = (np.arange(batches) % 5 - 2) * 0.035
    marks: list[Mark] = []
    for rank in range(ranks):
        centre = row - 0.36 + 0.72 * (rank + 0.5) / ranks
        lane = 0.5 / ranks
        for seed in range(seeds):
            y = centre + lane * ((seed + 0.5) / seeds - 0.5)
            values = ds.eigenvalue.values[seed, :, rank]
            known = np.isfinite(values)
            marks.append(
                Points(
                    values[known], (y + spread / ranks)[known], v.label, v.color, size=3.0,
                    opacity=0.7, legend=False,
                    hollow=~ds.converged.values[seed, :, rank].astype(bool)[known],
                    hover=[f"λ{rank + 1}, batch {b}, seed {ds.seed.values[seed]}"
                           for b in np.flatnonzero(known)],
                )
            )  # fmt: skip
            whole = float(ds.whole_eigenvalue.values[seed, rank])
            marks.append(
                Points(np.array([whole]), np.array([y]), "all examples", style.INK, "bar",
                       size=7, hover=[f"λ{rank + 1}, seed {ds.seed.values[seed]}"])
            )  # fmt: skip
    return marks


def data_bracket(ds: xr.Dataset, *, setting: str | None = None) -> Drawing:
    """λ₁ of subsets against their size, and the curvature that they promise the other examples.

    Example:
        >>> drawing = figures.data_bracket(runs["data_bracket"])
        >>> drawing.title
        'How much of λ₁ is the sample?'
    """
    ds = runs.in_setting(ds, setting)
    runs.require(ds, "sized_eigenvalue", "sized_held_out", "upper", "lower", "lower_spread")
    total = int(runs.provenance(ds, "num_examples"))
    panels = [
        Panel(
            Axis("examples", log=True),
            Axis("curvature", "nats", log=True),
            tuple(_bracket(v, total)),
            v.label,
        )
        for v in runs.variants(ds)
    ]
    return Drawing(
        "data_bracket",
        "How much of λ₁ is the sample?",
        "Filled: λ₁ of a subset, biased upwards. Hollow: curvature of the examples left out along "
        "the subset's eigenvector vᴬ, biased downwards. The largest eigenvalue of the distribution "
        "lies between the two in expectation. Dots: one subset each; lines: their mean, over "
        f"{runs.seed_count(ds)}. Right end: λ₁ of all {total} examples, and the cross-fitted "
        "estimate with its spread over folds, which share data: a scale, no standard error. "
        "BatchNorm mode eval.",
        tuple(panels),
        columns=3,
        panel_height=1.7,
        narrowest=1.7,
        share_y="all",
    )


def _bracket(v: VariantRuns, total: int) -> list[Mark]:
    sizes = v.ds.sample_size.values.astype(float)
    folds = int(v.ds.sizes["fold"])
    fitted = total * (1 - 1 / folds)
    marks: list[Mark] = []
    ends: dict[str, tuple[float, np.ndarray, str, Dash]] = {
        "sized_eigenvalue": (total, v.ds.upper.values, "λ₁ of the subset", "solid"),
        "sized_held_out": (fitted, v.ds.lower.values, "the others, along its vᴬ", "dash"),
    }
    for name, (last, end, label, dash) in ends.items():
        table = v.ds[name].transpose("run", "sample_size", "batch").values
        x = np.broadcast_to(sizes[:, None], table.shape[1:])
        for run in table:
            # A curvature of 0 or less has no place on a logarithmic axis.
            seen = run > 0
            marks.append(
                Points(x[seen], run[seen], label, v.color, size=2.6, opacity=0.5, legend=False,
                       hollow=np.full(int(seen.sum()), dash == "dash"))
            )  # fmt: skip
        means = np.append(np.nanmean(table, axis=(0, 2)), end.mean())
        places = np.append(sizes, last)
        order = np.argsort(places)
        marks.append(Line(places[order], means[order], label, v.color, dash=dash))
    error = float(v.ds.lower_spread.values.mean())
    middle, low = float(v.ds.lower.values.mean()), float((v.ds.lower - v.ds.lower_spread).mean())
    marks.append(
        Points(np.array([float(total)]), np.array([float(v.ds.upper.values.mean())]),
               "λ₁ of all examples", style.INK, "square", size=4.5)
    )  # fmt: skip
    marks.append(
        Points(np.array([fitted]), np.array([middle]), "cross-fitted", style.INK, "diamond",
               size=4.5, hollow=np.array([True]),
               y_low=np.array([max(low, 1e-3 * middle)]), y_high=np.array([middle + error]))
    )  # fmt: skip
    return marks


def training_curvature(ds: xr.Dataset, *, setting: str | None = None) -> Drawing:
    """λ₁ at the checkpoints of a training, beside the edges of stability of its steps.

    Example:
        >>> drawing = figures.training_curvature(runs["training_curvature"])
        >>> drawing.title
        'Curvature along training'
    """
    ds = runs.in_setting(ds, setting)
    runs.require(ds, "eigenvalue", "plain_edge", "sgd_edge", "sam_edge", "converged")
    top = ds.eigenvalue.isel(rank=0)
    edges = np.concatenate([ds[name].values.ravel() for name in ("plain_edge", "sam_edge")])
    edges = edges[np.isfinite(edges) & (edges > 0)]
    values = top.values[np.isfinite(top.values) & (top.values > 0)]
    if not values.size:
        values = np.array([1.0])
    highest = max(values.max(), min(edges.min(), 100 * values.max()) if edges.size else 0)
    limits = (float(values.min()) / 1.5, 4 * float(highest))
    panels = [
        Panel(
            Axis(runs.provenance(ds, "epoch_is").replace(", ", " or ") or "epoch"),
            Axis("curvature", "nats", log=True, limits=limits),
            tuple(_training(v, limits)),
            v.label,
        )
        for v in runs.variants(ds)
    ]
    dots = "(band: 95 % t-interval), dots: seeds"
    if max(v.ds.sizes["run"] for v in runs.variants(ds)) < 3:
        dots = "dots: seeds"
    return Drawing(
        "training_curvature",
        "Curvature along training",
        f"Line: largest eigenvalue λ₁, geometric mean over {runs.seed_count(ds)}; {dots}, hollow "
        "where not converged. Where λ₁ lies above the edge of its "
        "rule, full-batch steps at the rate η of the end of that epoch diverge on a quadratic: 2/η "
        "plain, 2(1+β)/η with momentum β, λ* for SAM, which depends on ‖g‖. Mini-batches keep λ₁ "
        "below. An edge above the panel is drawn at its upper end. "
        f"BatchNorm mode {runs.provenance(ds, 'bn')}; running statistics of each checkpoint.",
        tuple(panels),
        columns=3,
        panel_height=1.8,
        narrowest=1.7,
        share_x="all",
        share_y="all",
    )


_EDGES: dict[str, tuple[str, Dash, str]] = {
    "plain_edge": ("2/η", "dot", style.MUTED),
    "sgd_edge": ("2(1+β)/η", "dash", style.MUTED),
    "sam_edge": ("λ* of SAM", "solid", style.INK),
}


def _training(v: VariantRuns, limits: tuple[float, float]) -> list[Mark]:
    marks: list[Mark] = []
    epochs = v.ds.epoch.values.astype(float)
    for name, (label, dash, color) in _EDGES.items():
        edge = _mean_edge(v.ds[name].transpose("run", "epoch").values)
        if np.isfinite(edge).any():
            # Whole over the panel: an edge beyond it, or of a rate that ended at 0, runs along its
            # upper end.
            inside = np.minimum(np.where(np.isfinite(edge), edge, np.inf), 0.97 * limits[1])
            marks.append(Line(epochs, inside, label, color, dash=dash, width=0.9))
    top = v.ds.isel(rank=0).transpose("run", "epoch", ...)
    mean = curve(v, top.eigenvalue, "epoch", log=True)
    # Of two seeds an interval says little that the dots do not.
    marks += mean if top.sizes["run"] > 2 else mean[-1:]
    for seed, row, ok in zip(
        top.seed.values, top.eigenvalue.values, top.converged.values, strict=True
    ):
        marks.append(
            Points(epochs, row, v.label, v.color, size=2.4, opacity=0.8, legend=False,
                   hollow=~np.nan_to_num(ok.astype(float)).astype(bool),
                   hover=[f"seed {seed}"] * len(epochs))
        )  # fmt: skip
    return marks


def _mean_edge(values: np.ndarray) -> np.ndarray:
    """Mean over runs of the finite edges (a rate of 0 has none), NaN where there are none."""
    known = np.isfinite(values)
    with np.errstate(invalid="ignore"):
        return np.where(known, values, 0.0).sum(0) / np.where(known.any(0), known.sum(0), np.nan)


def critical_sharpness(
    ds: xr.Dataset, eigenvalues: xr.Dataset | None = None, *, setting: str | None = None
) -> Drawing:
    """2 over the smallest rate that raises the loss, beside λ₁ of the same runs.

    eigenvalues: top_eigenvalues, if it was measured.

    Example:
        >>> drawing = figures.critical_sharpness(
        ...     runs["critical_sharpness"], runs["top_eigenvalues"]
        ... )
        >>> drawing.title
        'Curvature from losses alone'
    """
    ds = runs.in_setting(ds, setting)
    runs.require(ds, "critical_sharpness", "rate_lower", "rate_upper", "bracketed")
    found = list(runs.variants(ds))
    tops = {} if eigenvalues is None else _largest(runs.in_setting(eigenvalues, setting))
    marks: list[Mark] = [key("2/η_c", "diamond")]
    if tops:
        marks.append(key("λ₁", "circle"))
    for row, v in enumerate(found):
        ok = v.ds.bracketed.values.astype(bool)
        with np.errstate(divide="ignore"):
            low, high = 2 / v.ds.rate_upper.values[ok], 2 / v.ds.rate_lower.values[ok]
        marks += _row(v, v.ds.critical_sharpness.values[ok], row - 0.15, "diamond", "2/η_c",
                      low, high)  # fmt: skip
        if v.id in tops:
            marks += _row(v, tops[v.id], row + 0.15, "circle", "λ₁")
    lost = int((~ds.bracketed.values.astype(bool)).sum())
    return Drawing(
        "critical_sharpness",
        "Curvature from losses alone",
        "Diamonds: critical sharpness 2/η_c, η_c the smallest step along the gradient that raises "
        "the loss; on a quadratic it is gᵀHg/‖g‖², at most λ₁ (circles). Small: one seed each, "
        f"large: geometric mean over {runs.seed_count(ds)} with its 95 % t-interval. "
        + (f"Left out: {runs.count(lost, 'run')} without a bracket. " if lost else "")
        + f"BatchNorm mode {runs.provenance(ds, 'bn')}.",
        (
            Panel(
                Axis("curvature", "nats", log=True),
                row_axis([v.label for v in found]),
                tuple(marks),
            ),
        ),
        panel_height=0.45 + 0.24 * len(found),
    )


def _largest(ds: xr.Dataset) -> dict[str, np.ndarray]:
    return {v.id: v.ds.eigenvalue.isel(rank=0).values for v in runs.variants(ds)}


def _row(
    v: VariantRuns,
    values: np.ndarray,
    y: float,
    symbol: str,
    name: str,
    low: np.ndarray | None = None,
    high: np.ndarray | None = None,
) -> list[Mark]:
    """Seeds with their brackets, and the geometric mean with its interval."""
    values = np.where(values > 0, values, np.nan)
    ci = stats.geometric_mean_ci(values)
    if not ci.n:
        return []
    level = np.full(len(values), y)
    return [
        Points(values, level, name, v.color, symbol, size=2.4, opacity=0.5, legend=False,
               x_low=low, x_high=high),
        Points(np.array([ci.estimate]), np.array([y]), f"{v.label}: {name}", v.color, symbol,
               size=4.8, legend=False,
               x_low=np.array([ci.low]) if ci.known else None,
               x_high=np.array([ci.high]) if ci.known else None),
    ]  # fmt: skip
