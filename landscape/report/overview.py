"""The first picture of the page: every variant against the reference, and how flat it is."""

import math
from collections.abc import Sequence

import numpy as np

from landscape.metrics import FLATNESS, METRICS, Metric
from landscape.plot import runs
from landscape.plot.drawing import Axis, Bars, Drawing, Mark, Panel, Points, Rule
from landscape.report import words
from landscape.report.family import Difference, Family

_BESIDE = ("rho_eff", "train_loss")  # what flatness may only stand for
_BAND = "#b9b39f"


def overview(family: Family, setting: str) -> Drawing | None:
    """Differences to the first reference, a row per variant: outcome, flatness, radius, fit.

    Intervals are those that the page decides by, so that picture and sentence cannot disagree. The
    band is the interval of the control with a random mask. None where there is nothing to compare.
    """
    study = family.study
    references = study.references(setting)
    keys = [study.metric, *(k for k in FLATNESS if (setting, k) in family.values)][:3]
    keys += [k for k in _BESIDE if (setting, k) in family.values and k != study.metric]
    if not references:
        return None
    bases = {key: family.base(setting, key) for key in keys}
    columns = {key: family.to(setting, base, key) for key, base in bases.items()}
    columns = {key: found for key, found in columns.items() if any(map(_known, found))}
    if study.metric not in columns:
        return None
    order = sorted(columns[study.metric], key=lambda one: _rank(one))
    rows = [one.a for one in order]
    looks = {v.id: v for v in study.variants(setting)}
    shown = [looks[row] for row in rows]
    ticks = tuple((float(place), v.label) for place, v in enumerate(shown))
    axis = Axis(limits=(-0.6, len(rows) - 0.4), ticks=ticks)
    random = {r for name in study.control_families(setting, "random_mask")
              for r in study.rows_of(setting, name)}  # fmt: skip
    other = study.label(setting, references[0])
    panels = tuple(
        _panel(
            {one.a: one for one in found},
            shown,
            axis,
            random,
            METRICS[key],
            study.label(setting, bases[key]),
        )
        for key, found in columns.items()
    )
    notes = [
        f" {words.sentence(METRICS[key].name)}: against {study.label(setting, base)}, as {other} "
        f"has none."
        for key, base in bases.items()
        if key in columns and base != references[0]
    ]
    if random & set(rows):
        notes.append(" Grey: the interval of the random mask.")
    return Drawing(
        "overview",
        f"Each variant against {other}",
        f"{_seeds(family, setting)}{''.join(notes)} From left to right: the outcome, "
        "flatness, and what flatness may stand for.",
        panels,
        columns=len(panels),
        panel_height=0.5 + 0.17 * len(rows),
        narrowest=1.1,
        share_y="grid",
        legend=False,
        widths=(1.4, *[1.0] * (len(panels) - 1)),
    )


def _known(one: Difference) -> bool:
    return math.isfinite(one.decision.interval.estimate)


def _rank(one: Difference) -> float:
    estimate = one.decision.interval.estimate
    return estimate if math.isfinite(estimate) else -math.inf


def _seeds(family: Family, setting: str) -> str:
    counts = [v.ds.sizes["run"] for v in family.study.variants(setting)]
    if max(counts) == 1:
        return "One seed each, paired: there is no interval, and nothing can be decided."
    return (
        f"Mean over {runs.span(counts, 'seed')}, paired by seed, with the simultaneous 95 % "
        "intervals that the page decides by: one that leaves out the line is resolved; none is "
        "drawn where nothing can be decided."
    )


def _ends(metric: Metric, one: Difference) -> tuple[float, float, float]:
    """Estimate, low and high as they are drawn: factors, or differences in the quantity's unit."""
    ci = one.decision.interval
    if metric.scale != "linear":
        value, *both = (metric.factor(end) for end in (ci.estimate, ci.low, ci.high))
    else:
        unit = (100 if metric.is_share else 1) * metric.better
        value, *both = (unit * end for end in (ci.estimate, ci.low, ci.high))
    low, high = sorted(both) if np.isfinite(both).all() else (math.nan, math.nan)
    return value, low, high


def _panel(
    found: dict[str, Difference],
    shown: Sequence[runs.VariantRuns],
    rows: Axis,
    random: set[str],
    metric: Metric,
    other: str,
) -> Panel:
    metric = next(iter(found.values())).metric if found else metric
    log = metric.scale != "linear"
    marks: list[Mark] = []
    for row in random & set(found):
        _, low, high = _ends(metric, found[row])
        if math.isfinite(low):
            middle, whole = (len(shown) - 1) / 2, float(len(shown))
            marks.append(
                Bars(np.array([high]), np.array([middle]), "random mask", _BAND, whole, base=low,
                     legend=False, opacity=0.35)
            )  # fmt: skip
    marks.append(Rule("x", 1.0 if log else 0.0, "no difference", "solid"))
    for place, v in enumerate(shown):
        one = found.get(v.id)
        if one is None or not _known(one):
            continue
        value, low, high = _ends(metric, one)
        marks.append(
            Points(np.array([value]), np.array([float(place)]), v.label, v.color, v.symbol, size=5,
                   x_low=np.array([low]) if math.isfinite(low) else None,
                   x_high=np.array([high]) if math.isfinite(high) else None, legend=False)
        )  # fmt: skip
    name = f"× {other}" if log else f"minus {other}"
    units = "1" if log else ("points" if metric.is_share else metric.units)
    title = metric.what if log else metric.name
    return Panel(Axis(name, units, log=log, few=True), rows, tuple(marks), title)
