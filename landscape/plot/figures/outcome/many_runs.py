"""What many runs say together: quantities along an axis of the study, sharpness beside the gap."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from landscape import stats
from landscape.plot import runs, style
from landscape.plot.drawing import (
    SYMBOLS,
    Axis,
    Dash,
    Drawing,
    Line,
    Mark,
    Panel,
    Points,
)
from landscape.plot.figures.outcome.headline import middle

_FOLLOWED = ("test_accuracy", "val_accuracy", "train_loss", "eigenvalue", "trace", "gaussian",
             "worst_case")  # fmt: skip
_DASHES: tuple[Dash, ...] = ("solid", "dash", "dot")


def along_axis(
    generalization: xr.Dataset,
    eigenvalues: xr.Dataset | None = None,
    trace: xr.Dataset | None = None,
    sharpness: xr.Dataset | None = None,
    *,
    setting: str | None = None,
    axis: str | None = None,
) -> Drawing:
    """Accuracy, loss and flatness against an axis of the study (rho, lr, ...), a line per variant.

    One row of panels per axis, or that of `axis` alone; no panel where no variant varies. Rings:
    the value that validation chooses.

    Example:
        >>> drawing = figures.along_axis(runs["generalization"], runs["top_eigenvalues"])
        >>> drawing.title
        'What changes along the axes of the study'
    """
    names = ("generalization", "top_eigenvalues", "hessian_trace", "sharpness")
    given = zip(names, (generalization, eigenvalues, trace, sharpness), strict=True)
    data = {name: runs.in_setting(ds, setting) for name, ds in given if ds is not None}
    axes = [axis] if axis is not None else list(stats.axes_of(data))
    found = {name: ds for name in axes if (ds := stats.along_axis(data, name)) is not None}
    shown = [q for q in stats.QUANTITIES if q.variable in _FOLLOWED
             and any(q.variable in ds for ds in found.values())]  # fmt: skip
    if any("test_accuracy" in ds for ds in found.values()):
        shown = [q for q in shown if q.variable != "val_accuracy"]
    # Rows of a grid have names of their own; a line has the look of the recipe that they vary.
    looks = {v.family: style.VARIANTS.get(v.family, (v.color, v.symbol))
             for v in reversed(list(runs.variants(next(iter(data.values())))))}  # fmt: skip
    panels = [
        Panel(
            _along(name, ds),
            Axis(q.name, "%" if q.is_share else q.units, log=_log(ds, q.variable)),
            tuple(_followed(ds, q.variable, looks)),
        )
        for name, ds in found.items()
        for q in shown
        if q.variable in ds
    ]  # fmt: skip
    radius = ""
    if sharpness is not None:
        radius = f" Sharpness at ρ = {middle(sharpness.rho.values):.3g}."
    ringed = any("chosen" in ds for ds in found.values())
    return Drawing(
        "along_axis",
        f"What changes along {' and '.join(found) or 'the axes of the study'}",
        f"Mean over {runs.seed_count(generalization)} (loss and λ₁ geometric) with its 95 % "
        f"t-interval, each for itself.{radius}"
        + (" Ring: the value that validation data choose." if ringed else ""),
        tuple(panels),
        columns=min(4, max(1, len(shown))),
        panel_height=1.5,
        narrowest=1.3,
    )


def _numbers(ds: xr.Dataset) -> bool:
    return ds.value.dtype.kind == "f"


def _along(name: str, ds: xr.Dataset) -> Axis:
    if not _numbers(ds):
        words = list(dict.fromkeys(map(str, ds.value.values)))
        return Axis(name, ticks=tuple((float(i), word) for i, word in enumerate(words)))
    values = ds.value.values
    wide = bool((values > 0).all()) and values.max() >= 4 * values.min()
    return Axis("ρ" if name == "rho" else name, log=wide)


def _log(ds: xr.Dataset, name: str) -> bool:
    """Whether everything drawn has a logarithm, of what spans scales; accuracies never."""
    if name.endswith("accuracy"):
        return False
    drawn = np.concatenate([ds[name + end].values for end in ("", "_low", "_high")])
    drawn = drawn[np.isfinite(drawn)]
    return bool(drawn.size and (drawn > 0).all() and drawn.max() > 4 * drawn.min())


def _followed(ds: xr.Dataset, name: str, looks: Mapping[str, Any]) -> list[Mark]:
    marks: list[Mark] = []
    factor = 100 if name.endswith("accuracy") else 1
    keys = list(zip(ds["family"].values.tolist(), ds.line.values.tolist(), strict=True))
    words = list(dict.fromkeys(map(str, ds.value.values)))
    several = {key[0] for key in keys if sum(k[0] == key[0] for k in dict.fromkeys(keys)) > 1}
    seen: list[str] = []
    for number, key in enumerate(dict.fromkeys(keys)):
        part = ds.isel(variant=[i for i, k in enumerate(keys) if k == key])
        x = np.array([v if _numbers(ds) else words.index(str(v)) for v in part.value.values], float)
        middle_, low, high = (factor * part[name + end].values for end in ("", "_low", "_high"))
        family, line = key
        label = style.LABELS.get(family, family) + (f", {line}" if family in several else "")
        color, symbol = looks.get(family, style.variant(family, number))
        dash: Dash = _DASHES[seen.count(family) % len(_DASHES)]
        if seen.count(family):  # lines of one family have its colour
            others = [s for s in SYMBOLS if s != symbol]
            symbol = others[(seen.count(family) - 1) % len(others)]
        seen.append(family)
        known = np.isfinite(low) & np.isfinite(high)
        marks.append(Line(x, middle_, label, color, dash, legend=False))
        marks.append(
            Points(x, middle_, label, color, symbol, y_low=np.where(known, low, middle_),
                   y_high=np.where(known, high, middle_))
        )  # fmt: skip
        if "chosen" in part and (ringed := part.chosen.values == 1).any():
            marks.append(
                Points(x[ringed], middle_[ringed], "chosen by validation", style.INK, "circle",
                       size=9, hollow=np.ones(int(ringed.sum()), bool))
            )  # fmt: skip
    # Rings first: the dot within must be seen.
    return sorted(marks, key=lambda m: getattr(m, "name", "") != "chosen by validation")


def sharpness_vs_gap(
    generalization: xr.Dataset,
    eigenvalues: xr.Dataset | None = None,
    sharpness: xr.Dataset | None = None,
    *,
    setting: str | None = None,
    rho: float | None = None,
) -> Drawing:
    """Sharpness against the generalization gap, a point per run, as arXiv:2302.07011 draws it.

    The gap is test loss minus training loss. Titles: Kendall's tau over all runs, and the median
    of the taus within the variants, which says whether sharpness orders runs of one recipe.

    Example:
        >>> drawing = figures.sharpness_vs_gap(
        ...     runs["generalization"], runs["top_eigenvalues"], runs["sharpness"]
        ... )
        >>> drawing.title
        'Does sharpness order the generalization gap?'
    """
    outcome = runs.in_setting(generalization, setting)
    runs.require(outcome, "loss_gap")
    columns: list[tuple[str, xr.DataArray]] = []
    if eigenvalues is not None:
        columns.append(("λ₁", runs.in_setting(eigenvalues, setting).eigenvalue.isel(rank=0)))
    if sharpness is not None:
        ds = runs.in_setting(sharpness, setting)
        radius = middle(ds.rho.values) if rho is None else rho
        for name, words in (("gaussian", "Gaussian"), ("worst_case", "worst-case")):
            if name in ds:
                at = ds[name].sel(rho=radius, method="nearest")
                columns.append((f"{words} sharpness at ρ = {float(at.rho):.3g}", at))
    panels = tuple(_against_gap(outcome, *column) for column in columns)
    return Drawing(
        "sharpness_vs_gap",
        "Does sharpness order the generalization gap?",
        "A point per run. τ: Kendall's rank correlation over all runs of the setting; within: the "
        "median of the correlations within each variant of four runs or more. Runs of one variant "
        "are no independent draws of sharpness, so that τ over all of them describes this study "
        "and tests nothing (arXiv:2302.07011 finds the sign to depend on the setting).",
        panels,
        columns=max(1, len(panels)),
        panel_height=1.9,
        narrowest=1.6,
        share_y="grid",
    )


def _against_gap(outcome: xr.Dataset, label: str, flatness: xr.DataArray) -> Panel:
    by_run = dict(zip(flatness.run.values.tolist(), flatness.values.tolist(), strict=True))
    marks: list[Mark] = []
    within, every = [], []
    for v in runs.variants(outcome):
        x = np.array([by_run.get(run, np.nan) for run in v.ds.run.values.tolist()])
        y = v.ds.loss_gap.values
        pairs = [(a, b) for a, b in zip(x, y, strict=True) if np.isfinite(a) and np.isfinite(b)]
        every += pairs
        if not pairs:
            continue
        within.append(_tau(pairs))
        marks.append(
            Points(x, y, v.label, v.color, v.symbol, size=4.0, opacity=0.85,
                   hover=[f"seed {seed}" for seed in v.ds.seed.values])
        )  # fmt: skip
    title = ""
    tau = _tau(every)
    if np.isfinite(tau):
        within = [t for t in within if np.isfinite(t)]
        title = f"τ = {tau:+.2f}" + (f", within {np.median(within):+.2f}" if within else "")
    positive = bool(every) and min(a for a, _ in every) > 0
    return Panel(
        Axis(label, "nats", log=positive), Axis("test − training loss", "nats"), tuple(marks),
        title.replace("-", "−"),
    )  # fmt: skip


def _tau(pairs: list[tuple[float, float]]) -> float:
    """Kendall's tau, without a test; NaN below four pairs, or where all are equal."""
    if len(pairs) < 4:
        return np.nan
    x, y = zip(*pairs, strict=True)
    return stats.kendall(x, y, seed=0, num_permutations=1, num_bootstrap=1).tau
