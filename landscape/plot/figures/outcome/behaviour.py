"""What else may explain a gain: noise, calibration, norms, features, margins, robustness."""

from collections.abc import Sequence

import numpy as np
import xarray as xr

from landscape import stats
from landscape.plot import runs, style
from landscape.plot.drawing import Axis, Drawing, Line, Mark, Panel, Points, Rule
from landscape.plot.figures._shared import dots, height, row_axis, strings
from landscape.plot.figures.outcome.headline import curve
from landscape.plot.runs import VariantRuns

# Rows of one variant each that carry several quantities: colour and symbol by quantity.
_LOOKS = (("#0072b2", "circle"), ("#d55e00", "square"), ("#009e73", "diamond"), ("#cc79a7", "x"))


def _by_variant(
    found: Sequence[VariantRuns],
    names: Sequence[str],
    words: Sequence[str] | None = None,
    *,
    log: bool = False,
) -> list[Mark]:
    """One row per variant with its seeds and mean; several quantities side by side in the row."""
    marks: list[Mark] = []
    for row, v in enumerate(found):
        for index, name in enumerate(names):
            y = np.array([row + 0.2 * (index - 0.5 * (len(names) - 1))])
            color, symbol = _LOOKS[index] if words else (v.color, v.symbol)
            text = words[index] if words else v.label
            marks += dots(v.ds[name].values[:, None].astype(float), y, text, color, symbol,
                          legend=bool(words), log=log)  # fmt: skip
    return marks


def gradient_noise(ds: xr.Dataset, *, setting: str | None = None) -> Drawing:
    """Agreement of a batch's gradient with the full one, and the loss change along its parts.

    Example:
        >>> drawing = figures.gradient_noise(runs["gradient_noise"])
        >>> drawing.title
        'What does a mini-batch add to the full gradient?'
    """
    ds = runs.in_setting(ds, setting)
    runs.require(ds, "cosine", "loss_increase_batch", "loss_increase_full", "noise_scale")
    ds = ds.assign(cosine=ds.cosine.mean("batch"))
    parts = strings(ds.direction)
    steps = {key: ds[f"loss_increase_{key}"].mean("batch") for key in ("batch", "full")}
    ds = ds.assign(
        {f"{key}_{part}": table.sel(direction=part) for key, table in steps.items()
         for part in parts}
    )  # fmt: skip
    found = list(runs.variants(ds))
    axis = row_axis([v.label for v in found])
    start: list[Mark] = [Rule("x", 0.0, "none", "solid")]
    panels = (
        Panel(Axis("cos(g_B, g)", few=True), axis, (*start, *_by_variant(found, ["cosine"]))),
        Panel(
            Axis("noise scale", "examples", log=True, few=True), axis,
            tuple(_by_variant(found, ["noise_scale"], log=True)),
        ),
        *(
            Panel(Axis(label, "nats", few=True), axis,
                  (*start, *_by_variant(found, [f"{key}_{part}" for part in parts], parts)))
            for key, label in (("batch", "loss change, batch"), ("full", "loss change, all data"))
        ),
    )  # fmt: skip
    radius = runs.provenance(ds, "rho")
    size = runs.provenance(ds, "batch_size")
    return Drawing(
        "gradient_noise",
        "What does a mini-batch add to the full gradient?",
        "Cosine between the gradient of a mini-batch and that of all data. Simple noise scale, the "
        f"batch size at which noise and signal are equal (geometric mean{_hidden(ds)}). Loss "
        f"change on the batch and on all data, a step of length {radius} "
        f"along the batch gradient (B = {size}), along its part in the full gradient's direction, "
        "along the rest, and along what is left of it without a moving average of batch gradients "
        f"(F-SAM). Mean over batches and over {runs.seed_count(ds)} with its 95 % "
        "t-interval; faint: seeds.",
        panels,
        columns=4 if max(len(v.label) for v in found) <= 12 else 2,
        panel_height=0.5 + 0.22 * len(found),
        narrowest=1.3,
        share_y="grid",
    )


def _hidden(ds: xr.Dataset) -> str:
    """How many runs have no noise scale, in words."""
    none = int((~np.isfinite(ds.noise_scale)).sum())
    whole = ds.sizes["run"]
    return f"; without the {none} of {whole} runs where noise hides the signal" if none else ""


def calibration(ds: xr.Dataset, *, setting: str | None = None) -> Drawing:
    """Reliability diagram, expected calibration error, and confidence minus accuracy.

    Example:
        >>> drawing = figures.calibration(runs["calibration"])
        >>> drawing.title
        'Do the probabilities mean what they say?'
    """
    ds = runs.in_setting(ds, setting)
    runs.require(ds, "confidence", "accuracy", "ece", "confidence_gap")
    found = list(runs.variants(ds))
    diagonal = np.array([0.0, 0.5, 1.0])
    marks: list[Mark] = [Line(diagonal, diagonal, "calibrated", style.MUTED, "dash", 0.9)]
    for v in found:
        filled = v.ds["count"].sum("run") > 0
        x, y = (
            v.ds[name].where(v.ds["count"] > 0).isel(bin=np.flatnonzero(filled)).mean("run").values
            for name in ("confidence", "accuracy")
        )
        marks.append(Line(x, y, v.label, v.color, opacity=0.8, width=0.9))
        marks.append(Points(x, y, v.label, v.color, v.symbol, size=3, legend=False))
    names = ("ece", "confidence_gap")
    percent = list(runs.variants(ds.assign({name: 100 * ds[name] for name in names})))
    errors = _by_variant(percent, names, ("calibration error", "confidence − accuracy"))
    ends = Axis("confidence", limits=(0.0, 1.02)), Axis("accuracy", limits=(0.0, 1.02))
    axis = row_axis([v.label for v in found])
    return Drawing(
        "calibration",
        "Do the probabilities mean what they say?",
        "Left: expected calibration error, and mean confidence minus accuracy; below 0 the model "
        "is under-confident, which the error alone does not say. Right: accuracy by confidence, in "
        "bins of equal width (bins hold very different numbers of examples). Mean over "
        f"{runs.seed_count(ds)} with its 95 % t-interval; faint: seeds. Training on wrong labels "
        "lowers the confidence on clean test data.",
        (
            Panel(Axis("points of a hundred"), axis, (Rule("x", 0.0, "none", "solid"), *errors)),
            Panel(*ends, tuple(marks)),
        ),
        columns=2,
        panel_height=max(1.9, 0.5 + 0.22 * len(found)),
        narrowest=1.9,
    )


def norms(ds: xr.Dataset, *, setting: str | None = None) -> Drawing:
    """Norm of each tensor and its distance from the initial weights, one symbol per variant.

    Example:
        >>> drawing = figures.norms(runs["norms"])
        >>> drawing.title
        'How large are the weights, and how far have they moved?'
    """
    ds = runs.in_setting(ds, setting)
    runs.require(ds, "weight_norm", "distance")
    names = strings(ds.tensor)
    columns = (("weight_norm", "‖w‖"), ("distance", "‖w − w₀‖"))
    return _rows(
        ds, names, "tensor",
        [(name, label) for name, label in columns if bool(np.isfinite(ds[name]).any())],
        "norms",
        "How large are the weights, and how far have they moved?",
        "Norm of each tensor at the end, and its distance from the initial weights; geometric mean "
        f"over {runs.seed_count(ds)}. A layer before a norm layer has the same function at any "
        "norm: there a smaller norm only makes curvature larger and steps longer.",
        log=True,
    )  # fmt: skip


def features(ds: xr.Dataset, *, setting: str | None = None) -> Drawing:
    """Components for 99 % of the variance, stable rank and dead units per module, in depth.

    Example:
        >>> drawing = figures.features(runs["features"])
        >>> drawing.title
        'How many directions do the features use?'
    """
    ds = runs.in_setting(ds, setting)
    runs.require(ds, "components", "stable_rank", "dead_share")
    return _rows(
        ds.assign(dead_share=100 * ds.dead_share), strings(ds["module"]), "module",
        [("components", "components"), ("stable_rank", "stable rank"),
         ("dead_share", "dead units (%)")],
        "features",
        "How many directions do the features use?",
        "Per module, from the input on: principal components that hold 99 % of the variance of its "
        "output, its stable rank ‖A‖²_F/‖A‖², and the share of units that are never active; mean "
        f"over {runs.seed_count(ds)}. The number of components is at most the number of examples "
        "and the width of the module: compare within a row, not between rows.",
        log=False,
    )  # fmt: skip


def _rows(
    ds: xr.Dataset,
    names: Sequence[str],
    dim: str,
    columns: Sequence[tuple[str, str]],
    figure: str,
    title: str,
    caption: str,
    *,
    log: bool,
) -> Drawing:
    """Rows of tensors or modules, one panel per quantity, one symbol per variant."""
    rows = np.arange(len(names), dtype=float)
    panels = []
    for name, label in columns:
        marks: list[Mark] = []
        for v in runs.variants(ds):
            table = v.ds[name].transpose("run", dim).values.astype(float)
            mean = stats.geometric_mean_ci if log else stats.mean_ci
            centre = np.array([mean(column).estimate for column in table.T])
            marks.append(Points(centre, rows, v.label, v.color, v.symbol, size=3.4))
        nothing = not log and not np.nan_to_num(ds[name].values).any()
        axis = Axis(label, log=log, limits=(-0.1, 1.0) if nothing else None)
        panels.append(Panel(axis, row_axis(names), tuple(marks)))
    return Drawing(
        figure,
        title,
        caption,
        tuple(panels),
        columns=len(panels),
        panel_height=height(len(names)) + 0.1,
        narrowest=1.5,
        share_y="all",
    )


def margins(ds: xr.Dataset, *, setting: str | None = None) -> Drawing:
    """Quantiles of the margin over the examples, plain and over the spectral product.

    Example:
        >>> drawing = figures.margins(runs["margins"])
        >>> drawing.title
        'How far are the examples from the decision boundary?'
    """
    ds = runs.in_setting(ds, setting)
    runs.require(ds, "margin_quantile", "normalized_quantile")
    panels = []
    for name, label in (
        ("margin_quantile", "margin"),
        ("normalized_quantile", "normalized margin"),
    ):
        marks: list[Mark] = [Rule("y", 0.0, "decision boundary", "solid")]
        for v in runs.variants(ds):
            marks += curve(v, v.ds[name], "percentile")
        panels.append(Panel(Axis("quantile of the examples"), Axis(label), tuple(marks)))
    return Drawing(
        "margins",
        "How far are the examples from the decision boundary?",
        "Quantiles of the margin, the logit of the label minus the largest other one (below 0: "
        "wrong), and of the margin over the norm of the centred logits, which does not see their "
        f"scale; mean over {runs.seed_count(ds)}, band: 95 % t-interval.",
        tuple(panels),
        columns=2,
        panel_height=1.8,
        narrowest=2.0,
    )


def memorization(ds: xr.Dataset, *, setting: str | None = None) -> Drawing:
    """Fit of clean and of mislabelled training examples, over epochs, and forgetting events.

    Example:
        >>> drawing = figures.memorization(runs["memorization"])
        >>> drawing.title
        'What became of the wrong labels?'
    """
    ds = runs.in_setting(ds, setting)
    runs.require(ds, "clean_fit", "mislabelled_fit", "mislabelled_recovered")
    shares = ("clean_fit", "mislabelled_fit", "mislabelled_recovered")
    found = list(runs.variants(ds.assign({name: 100 * ds[name] for name in shares})))
    axis = row_axis([v.label for v in found])
    words = ("clean labels", "wrong labels", "wrong labels, true class")
    shown = [pair for pair in zip(shares, words, strict=True) if np.isfinite(ds[pair[0]]).any()]
    marks = _by_variant(found, *zip(*shown, strict=True))
    panels = [Panel(Axis("predicted", "%"), axis, tuple(marks))]
    forgetting = ("forgetting_clean", "forgetting_mislabelled")
    if forgetting[0] in ds:
        shown = [pair for pair in zip(forgetting, words, strict=False)
                 if np.isfinite(ds[pair[0]]).any()]  # fmt: skip
        marks = _by_variant(found, *zip(*shown, strict=True)) if shown else []
        panels.append(Panel(Axis("forgetting events"), axis, tuple(marks)))
    for name, label in (
        ("clean_fit_epoch", "clean labels"),
        ("mislabelled_fit_epoch", "wrong labels"),
    ):
        if name in ds and bool(np.isfinite(ds[name]).any()):
            marks = [
                m
                for v in runs.variants(ds)
                for m in curve(v, 100 * v.ds[name], "epoch", bounds=(0.0, 100.0))
            ]
            fitted = Axis("predicted as labelled", "%", limits=(-3, 103))
            panels.append(Panel(Axis("epoch"), fitted, tuple(marks), label))
    return Drawing(
        "memorization",
        "What became of the wrong labels?",
        f"{_memorized(ds)} Mean over {runs.seed_count(ds)} with its 95 % t-interval; faint: seeds. "
        "A model that is stopped early fits fewer wrong labels too.",
        tuple(panels),
        columns=2,
        panel_height=max(1.5, 0.5 + 0.22 * len(found)),
        narrowest=2.0,
        share_y="grid",
    )


def _memorized(ds: xr.Dataset) -> str:
    """What the panels of `memorization` hold, and what they lack."""
    said = "Training examples: share predicted as labelled at the end"
    if bool(np.isfinite(ds.mislabelled_fit).any()):
        said += ", and share of those with wrong labels predicted as their true class"
    else:
        said += "; no label is known to be wrong"
    if "forgetting_clean" in ds:
        return (
            f"{said}. Mean number of times that an example went from right to wrong between the "
            "epochs that were kept, and both fits over them."
        )
    return f"{said}. Forgetting and fits over the epochs need weights kept on the way (keep_every)."


def robustness(ds: xr.Dataset, *, setting: str | None = None) -> Drawing:
    """Accuracy against the severity of noise on the weights, rounding, and corrupted inputs.

    Example:
        >>> drawing = figures.robustness(runs["robustness"])
        >>> drawing.title
        'What is left of the accuracy when weights or inputs are disturbed?'
    """
    ds = runs.in_setting(ds, setting)
    runs.require(ds, "accuracy", "clean_accuracy", "corruption", "severity")
    severity = np.append(0.0, np.asarray(ds.severity.values, float))
    panels = []
    for name in strings(ds.corruption):
        table = ds.accuracy.sel(corruption=name)
        if not bool(np.isfinite(table).any()):
            continue
        clean = ds.clean_accuracy.values[:, None]
        values = np.concatenate([clean, table.transpose("run", "severity").values], axis=1)
        whole = xr.DataArray(values, dims=("run", "severity"), coords={"severity": severity})
        marks: list[Mark] = []
        for v in runs.variants(ds):
            mine = whole.isel(run=np.flatnonzero(ds.variant.values == v.id))
            marks += curve(v, 100 * mine, "severity", bounds=(0.0, 100.0))
        panels.append(Panel(Axis("severity"), Axis("accuracy", "%", limits=(-3, 103)), tuple(marks),
                            name))  # fmt: skip
    return Drawing(
        "robustness",
        "What is left of the accuracy when weights or inputs are disturbed?",
        "Accuracy by severity; 0 is undisturbed. Severities are steps of one disturbance each and "
        f"not comparable between panels (strengths in the results). Mean over "
        f"{runs.seed_count(ds)}, band: 95 % t-interval.",
        tuple(panels),
        columns=3,
        panel_height=1.3,
        narrowest=1.6,
        share_x="all",
        share_y="all",
    )
