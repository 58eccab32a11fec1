"""What came out: accuracies with their differences, flatness beside accuracy, training history."""

from collections.abc import Mapping, Sequence

import numpy as np
import xarray as xr

from landscape import stats
from landscape.plot import runs
from landscape.plot.drawing import Axis, Band, Drawing, Line, Mark, Panel, Points, Rule
from landscape.plot.runs import Variant

_REFERENCES = ("sgd", "sam")


def headline(
    ds: xr.Dataset,
    *,
    setting: str | None = None,
    metric: str = "test_accuracy",
    references: Sequence[str] = _REFERENCES,
) -> Drawing:
    """Accuracy of each variant (seeds, mean, 95 % t-interval), and paired differences beside it.

    ds: generalization. One pair of panels; variants ordered by mean.
    """
    ds = runs.in_setting(ds, setting)
    runs.require(ds, metric)
    found = list(runs.variants(ds))
    cis = {v.id: stats.mean_ci(v.ds[metric].values) for v in found}
    found = runs.order_by(found, [cis[v.id].estimate for v in found])
    ticks = tuple((float(row), v.label) for row, v in enumerate(found))
    rows = Axis(limits=(-0.6, len(found) - 0.4), ticks=ticks)
    marks: list[Mark] = []
    for row, v in enumerate(found):
        seeds, ci = 100 * v.ds[metric].values, cis[v.id]
        marks.append(_seeds(seeds, row, v))
        marks.append(_estimate(100 * ci.estimate, 100 * ci.low, 100 * ci.high, row, v))
    name = metric.replace("_", " ")
    panels = [Panel(Axis(name, "%"), rows, tuple(marks))]
    for reference in references:
        pairs = {v.id: runs.partner(found, v, reference) for v in found}
        if any(base is not None for base in pairs.values()):
            panels.append(_differences(found, pairs, reference, metric, rows))
    return Drawing(
        "headline",
        f"{name.capitalize()} by variant",
        f"Small: one seed each ({runs.seed_count(ds)}). Large: mean with its 95 % t-interval over "
        "seeds. Right: differences paired by seed (same initial weights and data order); an "
        "interval that leaves out 0 is not yet corrected for the number of comparisons.",
        tuple(panels),
        columns=len(panels),
        panel_height=0.45 + 0.17 * len(found),
        narrowest=1.3,
        share_y="grid",
        legend=False,
        widths=(1.25, *[1.0] * (len(panels) - 1)),
    )


def _seeds(values: np.ndarray, row: float, v: Variant) -> Points:
    hover = [f"seed {seed}" for seed in v.ds.seed.values]
    return Points(
        values, np.full(len(values), float(row)), v.label, v.color, v.symbol, size=2.6,
        opacity=0.45, legend=False, hover=hover,
    )  # fmt: skip


def _estimate(
    value: float, low: float, high: float, row: float, v: Variant, legend: bool = False
) -> Points:
    known = np.isfinite(low)
    return Points(
        np.array([value]), np.array([float(row)]), v.label, v.color, v.symbol, size=5,
        x_low=np.array([low]) if known else None, x_high=np.array([high]) if known else None,
        legend=legend, hover=["mean" + ("" if known else ", no interval (one value)")],
    )  # fmt: skip


def _differences(
    found: list[Variant],
    pairs: Mapping[str, Variant | None],
    reference: str,
    metric: str,
    rows: Axis,
) -> Panel:
    marks: list[Mark] = [Rule("x", 0.0, "no difference", "solid")]
    for row, v in enumerate(found):
        base = pairs[v.id]
        if base is None:
            continue
        _, ours, theirs = pair_by_seed(v.ds, base.ds, metric)
        ci = stats.paired(ours, theirs).difference
        marks.append(_estimate(100 * ci.estimate, 100 * ci.low, 100 * ci.high, row, v))
    label = f"difference to {runs.reference_label(found, reference)}"
    return Panel(Axis(label, "points"), rows, tuple(marks))


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
    """Accuracy against lambda_1, Gaussian sharpness at `rho`, and training loss, one panel each.

    Faint points are seeds, large ones variant means with 95 % intervals in both directions. The
    panel titles hold Kendall's tau over variants. rho: default, the middle of the measured radii.
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
    panels = tuple(_against(outcome, metric, *column) for column in columns)
    return Drawing(
        "flatness_vs_accuracy",
        "Is the flatter model the better one?",
        "Small: one seed each. Large: variant means (geometric across, arithmetic up) with 95 % "
        "t-intervals over seeds. τ is Kendall's rank correlation over variant means, with a "
        "permutation p; training loss is shown because it confounds curvature.",
        panels,
        columns=len(panels),
        panel_height=1.9,
        narrowest=1.5,
        share_y="grid",
    )


def middle(values: np.ndarray) -> float:
    """The middle one of sorted values (the lower of two)."""
    ordered = np.sort(np.asarray(values, float))
    return float(ordered[(len(ordered) - 1) // 2])


def _against(
    outcome: xr.Dataset, metric: str, label: str, units: str, flatness: xr.DataArray
) -> Panel:
    by_run = dict(zip(flatness.run.values.tolist(), flatness.values.tolist(), strict=True))
    marks: list[Mark] = []
    means: list[tuple[float, float]] = []
    positive = True
    for v in runs.variants(outcome):
        x = np.array([by_run.get(run, np.nan) for run in v.ds.run.values.tolist()])
        y = 100 * v.ds[metric].values
        positive &= not np.any(x <= 0)
        a, b = stats.geometric_mean_ci(x), stats.mean_ci(y)
        if not a.n or not b.n:
            continue
        means.append((a.estimate, b.estimate))
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
        tau = stats.kendall(*zip(*means, strict=True), seed=0)
        p = "p < 0.001" if tau.p < 0.001 else f"p = {tau.p:.2g}"
        title = f"τ = {tau.tau:+.2f}, {p}".replace("-", "−")
    return Panel(
        Axis(label, units, log=positive), Axis(metric.replace("_", " "), "%"), tuple(marks), title
    )


def history(ds: xr.Dataset, *, setting: str | None = None) -> Drawing:
    """Training loss and validation accuracy over epochs, mean and 95 % t-interval over seeds."""
    ds = runs.in_setting(ds, setting)
    runs.require(ds, "train_loss", "val_accuracy")
    panels = []
    for name, label, units, factor in (
        ("train_loss", "training loss", "nats", 1),
        ("val_accuracy", "validation accuracy", "%", 100),
    ):
        marks: list[Mark] = []
        for v in runs.variants(ds):
            marks += curve(v, factor * v.ds[name], "epoch", log=name == "train_loss")
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
    v: Variant,
    values: xr.DataArray,
    dim: str,
    *,
    log: bool = False,
    name: str | None = None,
    color: str | None = None,
    dash: str = "solid",
    legend: bool = True,
) -> list[Mark]:
    """Mean over runs along `dim` with the band of its 95 % t-interval (geometric if `log`)."""
    summary = stats.geometric_mean_ci if log else stats.mean_ci
    table = values.transpose("run", dim).values
    cis = [summary(column) for column in table.T]
    x = np.asarray(values[dim].values, float)
    keep = np.array([ci.n > 0 for ci in cis])
    estimate, low, high = (
        np.array([getattr(ci, key) for ci in cis])[keep] for key in ("estimate", "low", "high")
    )
    color, name = color or v.color, name or v.label
    symbol = v.symbol if color == v.color else "none"
    line = Line(x[keep], estimate, name, color, dash=dash, legend=legend, symbol=symbol)  # type: ignore[arg-type]
    if not np.isfinite(low).any():
        return [line]
    return [Band(x[keep], low, high, name, color, opacity=0.14), line]
