"""Whether "better because flatter" holds, by one measure in one setting, and why."""

import math
from dataclasses import dataclass

import numpy as np

from landscape import stats
from landscape.report import words
from landscape.report.evidence import Comparison, Measure, differences_to, flatness, flatness_ratio
from landscape.report.study import Study

SUPPORTED, COMPATIBLE = "supported", "compatible"
CONTRADICTED, INCONCLUSIVE = "contradicted", "inconclusive"
# Below this a gain in accuracy counts as none: one percentage point.
SMALL = 0.01


@dataclass(frozen=True)
class Verdict:
    """Whether "better because flatter" holds in one setting by one measure, and why."""

    setting: str
    measure: str
    word: str
    reasons: tuple[str, ...]


def verdict(study: Study, made: list[Comparison], setting: str, measure: Measure) -> Verdict | None:
    """Whether the better variants are the flatter ones, by one measure in one setting."""
    values = flatness(study, measure, setting)
    references = study.references(setting)
    base = references[0] if references else ""
    rows = study.rows_of(setting, base)
    if len(values) < 2 or not any(name in values for name in rows):
        return None
    against = {one.variant: one for one in differences_to(study, made, setting, base)}
    if not against or all(math.isnan(one.p) for one in against.values()):
        reason = "no difference in accuracy can be tested with the seeds there are"
        return Verdict(setting, measure.name, INCONCLUSIVE, (reason,))
    ratios = {
        name: flatness_ratio(study, measure, setting, name, base)
        for name in values
        if name not in rows
    }
    seen = _Seen(
        {v.id: v.label for v in study.variants(setting)},
        frozenset(n for n in ratios if study.recipes.get(n) == "sgd"),
        against,
        [n for n, ci in ratios.items() if ci.known and ci.high < 1],
        [n for n, ci in ratios.items() if ci.known and ci.low > 1],
        [n for n, one in against.items() if one.sign > 0 and n in ratios],
    )
    if not seen.better:
        return _null_verdict(setting, measure, seen)
    return _claim(setting, measure, seen, *_association(study, setting, values))


@dataclass(frozen=True)
class _Seen:
    """What was seen in one setting by one measure; controls are shorter schedules of SGD."""

    labels: dict[str, str]
    controls: frozenset[str]
    against: dict[str, Comparison]
    flatter: list[str]
    sharper: list[str]
    better: list[str]

    def names(self, group: list[str]) -> str:
        return words.listing([self.labels.get(name, name) for name in group])


def _claim(
    setting: str,
    measure: Measure,
    seen: _Seen,
    tau: stats.RankCorrelation,
    partial: stats.RankCorrelation,
) -> Verdict:
    """The verdict where some variants are better.

    A control that is better and sharper shows another way to a gain: the claim about the others is
    then compatible at best, not contradicted.
    """
    variants = [n for n in seen.better if n not in seen.controls]
    against = [n for n in variants if n in seen.sharper]
    other = [n for n in seen.better if n in seen.controls and n in seen.sharper]
    worse = [n for n, one in seen.against.items() if one.sign < 0 and n in seen.flatter]
    agree = [n for n in variants if n in seen.flatter]
    reasons = [f"{len(agree)} of {words.count(len(variants), 'better variant')} flatter"]
    if against:
        reasons.append(f"{seen.names(against)}: better but sharper")
    if worse:
        reasons.append(f"{seen.names(worse)}: flatter but worse")
    if other:
        reasons.append(f"the control {seen.names(other)} is better and sharper")
    reasons += _tau_words(tau, partial)
    if against or worse:
        word = CONTRADICTED
    elif not agree:
        word = INCONCLUSIVE
    else:
        ordered = math.isfinite(tau.p) and tau.p < 0.05 and tau.tau < 0
        beyond = math.isfinite(partial.high) and partial.high < 0
        every = len(agree) == len(variants) and not other
        word = SUPPORTED if ordered and beyond and every else COMPATIBLE
    return Verdict(setting, measure.name, word, tuple(reasons))


def _null_verdict(setting: str, measure: Measure, seen: _Seen) -> Verdict:
    """No variant is better: flatter ones speak against the claim if their gain is bounded."""
    if not seen.flatter:
        reason = "no variant is better, and none is flatter beyond its interval"
        return Verdict(setting, measure.name, INCONCLUSIVE, (reason,))
    gains = [seen.against[n].paired.difference for n in seen.flatter if n in seen.against]
    bound = max((ci.high for ci in gains if ci.known), default=math.nan)
    reason = f"{seen.names(seen.flatter)}: flatter, but no variant is better"
    if math.isfinite(bound) and bound < SMALL:
        limit = f"gains above {words.points(bound)} points are excluded (95 %)"
        return Verdict(setting, measure.name, CONTRADICTED, (reason, limit))
    limit = "a gain of one point is not excluded" if math.isfinite(bound) else "no interval"
    return Verdict(setting, measure.name, INCONCLUSIVE, (reason, limit))


def _association(
    study: Study, setting: str, values: dict[str, np.ndarray]
) -> tuple[stats.RankCorrelation, stats.RankCorrelation]:
    """Kendall's tau of flatness and accuracy over variant means, and given training loss."""
    accuracy = study.values("generalization", study.metric, setting)
    losses = study.values("generalization", "train_loss", setting)
    ids = [name for name in values if name in accuracy]
    x = [stats.geometric_mean_ci(values[name]).estimate for name in ids]
    y = [stats.mean_ci(accuracy[name][study.metric].values).estimate for name in ids]
    z = [
        stats.mean_ci(losses[name].train_loss.values).estimate if name in losses else math.nan
        for name in ids
    ]
    return stats.kendall(x, y, seed=0), stats.partial_kendall(x, y, z, seed=0)


def _tau_words(tau: stats.RankCorrelation, partial: stats.RankCorrelation) -> list[str]:
    if not math.isfinite(tau.p):
        return [f"{words.count(tau.n, 'variant')}: too few for a rank correlation"]
    said = [f"τ with accuracy over {tau.n} variants {_signed(tau.tau)}, {words.p_value(tau.p)}"]
    if math.isfinite(partial.tau):
        said.append(
            f"given training loss {_signed(partial.tau)} "
            f"[{_signed(partial.low)}, {_signed(partial.high)}]"
        )
    return said


def _signed(value: float) -> str:
    return "?" if not math.isfinite(value) else f"{value:+.2f}".replace("-", "−")
