"""What came out: accuracies with their differences, flatness beside accuracy, training history."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import xarray as xr

from landscape import metrics, stats
from landscape.plot import runs
from landscape.plot.compared import PER_EXAMPLE, Values, compared
from landscape.plot.drawing import (
    Axis,
    Band,
    Dash,
    Drawing,
    Line,
    Mark,
    Panel,
    Points,
    Rule,
)
from landscape.plot.labels import beside
from landscape.plot.runs import VariantRuns
from landscape.stats import Decision

_REFERENCES = ("sgd", "sam")


def headline(
    ds: xr.Dataset,
    *,
    setting: str | None = None,
    metric: str = "test_accuracy",
    references: Sequence[str] = _REFERENCES,
    decided: Mapping[tuple[str, str], Decision] | None = None,
) -> Drawing:
    """The metric of each variant (seeds, mean, 95 % t-interval), and differences beside it.

    ds: generalization. Variants are ordered from worse to better. Differences are paired by seed,
    on the metric's scale (a factor of the error, of the loss), with simultaneous 95 % intervals.
    decided: (variant, reference) -> decision of a larger family, as the report makes it; without,
    the differences shown here are the family.

    Example:
        >>> drawing = figures.headline(runs["generalization"])
        >>> drawing.title
        'Test accuracy by variant'
    """
    ds = runs.in_setting(ds, setting)
    runs.require(ds, metric)
    row = metrics.metric(metric)
    found = list(runs.variants(ds))
    values = compared(row, {v.id: v.ds for v in found}, _with_examples(found, metric))
    factor = 100 if row.is_share else 1
    found = runs.order_by(found, [values.mean(v.id) for v in found])
    ticks = tuple((float(place), v.label) for place, v in enumerate(found))
    rows = Axis(limits=(-0.6, len(found) - 0.4), ticks=ticks)
    marks: list[Mark] = []
    for place, v in enumerate(found):
        ci = stats.metric_ci(values.metric, v.ds[metric].values)
        mean, low, high = (factor * end for end in (ci.estimate, ci.low, ci.high))
        marks.append(_seeds(factor * v.ds[metric].values, place, v))
        marks.append(_estimate(mean, low, high, place, v))
    units = "%" if row.is_share else row.units
    panels = [Panel(Axis(row.name, units), rows, tuple(marks))]
    decided = _decide(values, found, references) if decided is None else decided
    for reference in references:
        pairs = {v.id: runs.partner(found, v, reference) for v in found}
        if any(base is not None for base in pairs.values()):
            panels.append(_differences(values.metric, found, pairs, reference, decided, rows))
    how = " (geometric)" if values.metric.scale == "log" else ""
    how = " (its interval made on the logit)" if row.is_share else how
    what = "a difference" if row.scale == "linear" else f"a factor of the {row.what}"
    return Drawing(
        "headline",
        f"{runs.sentence(row.name)} by variant",
        f"Small: one seed each ({runs.seed_count(ds)}). Large: mean{how} with its 95 % "
        f"t-interval over seeds. Right: {what}, paired by seed (same initial weights and data "
        "order), with intervals that are simultaneous over all comparisons: one that leaves "
        "out the line is resolved. None is drawn where nothing can be decided.",
        tuple(panels),
        columns=len(panels),
        panel_height=0.45 + 0.17 * len(found),
        narrowest=1.3,
        share_y="grid",
        legend=False,
        widths=(1.25, *[1.0] * (len(panels) - 1)),
    )


def _with_examples(found: Sequence[VariantRuns], metric: str) -> dict[str, xr.Dataset]:
    return {v.id: v.ds for v in found if PER_EXAMPLE.get(metric, "") in v.ds}


def _decide(
    values: Values, found: Sequence[VariantRuns], references: Sequence[str]
) -> dict[tuple[str, str], Decision]:
    """The differences to the references as one family; a pair of references once."""
    pairs: list[tuple[str, str]] = []
    for reference in references:
        for v in found:
            base = runs.partner(found, v, reference)
            if base is not None and (base.id, v.id) not in pairs:
                pairs.append((v.id, base.id))
    made = stats.simultaneous({(a, b): values.contrast(a, b, "metric") for a, b in pairs})
    return made | {(b, a): one.turned() for (a, b), one in made.items()}


def _seeds(values: np.ndarray, row: float, v: VariantRuns) -> Points:
    hover = [f"seed {seed}" for seed in v.ds.seed.values]
    return Points(
        values, np.full(len(values), float(row)), v.label, v.color, v.symbol, size=2.6,
        opacity=0.45, legend=False, hover=hover,
    )  # fmt: skip


def _estimate(
    value: float, low: float, high: float, row: float, v: VariantRuns, legend: bool = False
) -> Points:
    known = np.isfinite(low)
    return Points(
        np.array([value]), np.array([float(row)]), v.label, v.color, v.symbol, size=5,
        x_low=np.array([low]) if known else None, x_high=np.array([high]) if known else None,
        legend=legend, hover=["mean" + ("" if known else ", no interval (one value)")],
    )  # fmt: skip


def _differences(
    metric: metrics.Metric,
    found: list[VariantRuns],
    pairs: Mapping[str, VariantRuns | None],
    reference: str,
    decided: Mapping[tuple[str, str], Decision],
    rows: Axis,
) -> Panel:
    log = metric.scale != "linear"
    marks: list[Mark] = [Rule("x", 1.0 if log else 0.0, "no difference", "solid")]
    scale = 100 if metric.is_share else 1
    for place, v in enumerate(found):
        base = pairs[v.id]
        one = None if base is None else decided.get((v.id, base.id))
        if one is None or not np.isfinite(one.interval.estimate):
            continue
        ci = one.interval
        ends = [ci.estimate, ci.low, ci.high]
        value, *both = [metric.factor(e) if log else scale * metric.better * e for e in ends]
        low, high = sorted(both) if np.isfinite(both).all() else (np.nan, np.nan)
        marks.append(_estimate(value, low, high, place, v))
    other = runs.reference_label(found, reference)
    name = f"{metric.what}, factor to {other}" if log else f"difference to {other}"
    units = "1" if log else ("points" if metric.is_share else metric.units)
    return Panel(Axis(name, units, log=log), rows, tuple(marks))


def pair_by_seed(
    a: xr.Dataset, b: xr.Dataset, name: str
) -> tuple[list[int], np.ndarray, np.ndarray]:
    """Seeds that both have, and the values of `name` in a and b in that order."""
    left = dict(zip(a.seed.values.tolist(), a[name].values.tolist(), strict=True))
    right = dict(zip(b.seed.values.tolist(), b[name].values.tolist(), strict=True))
    seeds = sorted(set(left) & set(right))
    return seeds, np.array([left[s] for s in seeds]), np.array([right[s] for s in seeds])


def flatness_vs_accuracy(
    generalization: xr.Dataset,
    eigenvalues: xr.Dataset | None = None,
    sharpness: xr.Dataset | None = None,
    *,
    setting: str | None = None,
    rho: float | None = None,
    metric: str = "test_accuracy",
) -> Drawing:
    """Test error against lambda_1, Gaussian sharpness at `rho`, and training loss, a panel each.

    The metric is on the scale that it is compared on: of an accuracy, its error on a logarithmic
    axis. Faint points are seeds, large ones variant means with 95 % intervals in both directions,
    named where there is room. The panel titles hold Kendall's tau over variants. rho: default, the
    middle of the measured radii.

    Example:
        >>> drawing = figures.flatness_vs_accuracy(
        ...     runs["generalization"], runs["top_eigenvalues"], runs["sharpness"]
        ... )
        >>> drawing.title
        'Is the flatter model the better one?'
    """
    outcome = runs.in_setting(generalization, setting)
    columns: list[tuple[str, str, xr.DataArray]] = []
    if eigenvalues is not None:
        ds = runs.in_setting(eigenvalues, setting)
        columns.append((r"largest eigenvalue λ₁", "nats", ds.eigenvalue.isel(rank=0)))
    if sharpness is not None:
        ds = runs.in_setting(sharpness, setting)
        radius = middle(ds.rho.values) if rho is None else rho
        values = ds.gaussian.sel(rho=radius, method="nearest")
        columns.append((f"Gaussian sharpness at ρ = {float(values.rho):.3g}", "nats", values))
    columns.append(("training loss", "nats", outcome.train_loss))
    whole = [_against(outcome, metric, *column) for column in columns]
    far, near = _apart([means for _, means in whole])
    panels = [panel for panel, _ in whole] + [_within(panel, near) for panel, _ in whole if near]
    close = f" Below: without {', '.join(far)}, which lie{'s' * (len(far) == 1)} far off."
    return Drawing(
        "flatness_vs_accuracy",
        "Is the flatter model the better one?"
        if metrics.metric(metric).held_out
        else f"Does {metrics.metric(metric).name} go with flatness?",
        "Small: one seed each. Large: variant means (geometric on a logarithmic axis) with 95 % "
        "t-intervals over seeds, each for itself. τ is Kendall's rank correlation over all means "
        "that are shown, controls too, a description: above 0 where the flatter one is the better "
        "one; training loss is shown because it confounds curvature." + (close if near else ""),
        tuple(panels),
        columns=len(whole),
        panel_height=1.6 if near else 1.9,
        narrowest=1.5,
        share_y="grid",
    )


_Means = Mapping[str, tuple[float, float, str]]  # by label: both means, and the colour


def middle(values: np.ndarray) -> float:
    """The middle one of sorted values (the lower of two)."""
    ordered = np.sort(np.asarray(values, float))
    return float(ordered[(len(ordered) - 1) // 2])


def _against(
    outcome: xr.Dataset, metric: str, label: str, units: str, flatness: xr.DataArray
) -> tuple[Panel, _Means]:
    row = metrics.metric(metric)
    by_run = dict(zip(flatness.run.values.tolist(), flatness.values.tolist(), strict=True))
    x_log = all(not value <= 0 for value in by_run.values())
    y_log = row.scale != "linear" and not np.any(_compared(row, outcome[metric].values) <= 0)
    marks: list[Mark] = []
    means: dict[str, tuple[float, float, str]] = {}
    for v in runs.variants(outcome):
        x = np.array([by_run.get(run, np.nan) for run in v.ds.run.values.tolist()])
        y = _compared(row, v.ds[metric].values)
        a = (stats.geometric_mean_ci if x_log else stats.mean_ci)(x)
        bounds = None if row.bounds is None else (100 * row.bounds[0], 100.0)
        b = stats.geometric_mean_ci(y) if y_log else stats.mean_ci(y, bounds=bounds)
        if bounds is not None:  # no error is above 100 %
            b = replace(b, high=min(b.high, bounds[1]))
        if not a.n or not b.n:
            continue
        means[v.label] = (a.estimate, b.estimate, v.color)
        marks.append(
            Points(x, y, v.label, v.color, v.symbol, size=2.2, opacity=0.4, legend=False,
                   hover=[f"seed {seed}" for seed in v.ds.seed.values])
        )  # fmt: skip
        marks.append(
            Points(
                np.array([a.estimate]), np.array([b.estimate]), v.label, v.color, v.symbol, size=5,
                x_low=np.array([a.low]) if a.known else None,
                x_high=np.array([a.high]) if a.known else None,
                y_low=np.array([b.low]) if b.known else None,
                y_high=np.array([b.high]) if b.known else None,
            )
        )  # fmt: skip
    title = ""
    if len(means) >= 4:
        better = -1 if _is_error(row) else row.better
        pairs = [(x, -better * y) for x, y, _ in means.values()]
        tau = stats.kendall(*zip(*pairs, strict=True), seed=0)
        title = f"τ = {tau.tau:+.2f}".replace("-", "−")
    name = row.name.replace("accuracy", "error") if _is_error(row) else row.name
    panel = Panel(
        Axis(label, units, log=x_log),
        Axis(name, "%" if row.is_share else row.units, log=y_log),
        tuple(marks),
        title,
    )
    return _labelled(panel), means


def _apart(found: Sequence[_Means]) -> tuple[list[str], list[str]]:
    """Variants far from the others up the panels, and the others; none where all are seen well.

    Far: beyond the median by more than five times the median distance from it, of the logarithm.
    Their panels have room for the others only where those take less than a third of it.
    """
    heights = {name: mean[1] for means in found for name, mean in means.items()}
    if len(heights) < 5 or min(heights.values()) <= 0:
        return [], []
    up = np.log(list(heights.values()))
    away = np.abs(up - np.median(up))
    near = away <= 5 * np.median(away)
    if near.all() or near.sum() < 3 or np.ptp(up[near]) > np.ptp(up) / 3:
        return [], []
    names = np.array(list(heights))
    return names[~near].tolist(), names[near].tolist()


def _within(panel: Panel, near: Sequence[str]) -> Panel:
    """The panel again, on axes that hold the variants `near` and their intervals."""
    marks = [mark for mark in panel.marks if isinstance(mark, Points) and mark.name in near]
    return _labelled(replace(panel, marks=tuple(replace(m, legend=False) for m in marks), title=""))


def _labelled(panel: Panel) -> Panel:
    """The panel with names beside the means that have room for one: the legend has the rest."""
    return replace(panel, marks=(*panel.marks, *beside(panel)))


def _is_error(row: metrics.Metric) -> bool:
    return row.scale == "log_error"


def _compared(row: metrics.Metric, values: np.ndarray) -> np.ndarray:
    """A metric as it is drawn: the error in % of an accuracy, other shares in %."""
    if _is_error(row):
        return 100 * (1 - values)
    return 100 * values if row.is_share else values


def history(ds: xr.Dataset, *, setting: str | None = None) -> Drawing:
    """Training loss and validation accuracy over epochs, mean and 95 % t-interval over seeds.

    Example:
        >>> drawing = figures.history(runs["history"])
        >>> drawing.title
        'Training history'
    """
    ds = runs.in_setting(ds, setting)
    runs.require(ds, "train_loss", "val_accuracy")
    panels = []
    for name, label, units, factor in (
        ("train_loss", "training loss", "nats", 1),
        ("val_accuracy", "validation accuracy", "%", 100),
    ):
        marks: list[Mark] = []
        for v in runs.variants(ds):
            log = name == "train_loss"
            marks += curve(v, factor * v.ds[name], "epoch", log=log, bounds=(0.0, 100.0))
        panels.append(Panel(Axis("epoch"), Axis(label, units, log=name == "train_loss"),
                            tuple(marks)))  # fmt: skip
    return Drawing(
        "history",
        "Training history",
        f"Mean over {runs.seed_count(ds)}, band: its 95 % t-interval. The loss is the running mean "
        "of the first pass of each step (unperturbed weights, training mode).",
        tuple(panels),
        columns=2,
        panel_height=1.9,
        narrowest=2.2,
    )


def curve(
    v: VariantRuns,
    values: xr.DataArray,
    dim: str,
    *,
    log: bool = False,
    bounds: tuple[float, float] | None = None,
    name: str | None = None,
    color: str | None = None,
    dash: Dash = "solid",
    legend: bool = True,
) -> list[Mark]:
    """Mean over runs along `dim` with the band of its 95 % t-interval (geometric if `log`).

    bounds: what the quantity cannot leave, and neither does the band.
    """
    table = values.transpose("run", dim).values
    cis = [
        stats.geometric_mean_ci(column) if log else stats.mean_ci(column, bounds=bounds)
        for column in table.T
    ]
    x = np.asarray(values[dim].values, float)
    keep = np.array([ci.n > 0 for ci in cis])
    estimate, low, high = (
        np.array([getattr(ci, key) for ci in cis])[keep] for key in ("estimate", "low", "high")
    )
    color, name = color or v.color, name or v.label
    symbol = v.symbol if color == v.color else "none"
    line = Line(x[keep], estimate, name, color, dash=dash, legend=legend, symbol=symbol)
    if not np.isfinite(low).any():
        return [line]
    return [Band(x[keep], low, high, name, color, opacity=0.14), line]
