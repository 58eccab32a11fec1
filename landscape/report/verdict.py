"""What a weighed hypothesis is called on the page, with the numbers and the deciding experiment."""

import math
from dataclasses import dataclass

from landscape import stats
from landscape.metrics import METRICS
from landscape.report import words
from landscape.report.experiments import Experiment, deciding
from landscape.report.family import Claim, Family
from landscape.report.rules import (
    COMPATIBLE,
    CONFOUNDED,
    CONTRADICTED,
    SUPPORTED,
    UNRESOLVED,
    Weighed,
    resolved,
    weigh,
)
from landscape.report.trials import trials
from landscape.stats import Association


@dataclass(frozen=True)
class Verdict:
    """One hypothesis in one setting: its word, why, and what would decide it.

    multiverse: in how many ways to ask it the word is the same, where a page has asked them all.
    """

    setting: str
    key: str
    claim: str
    word: str
    reasons: tuple[str, ...]
    claims: tuple[Claim, ...]
    experiment: Experiment | None = None
    multiverse: str = ""


def verdicts(family: Family, setting: str) -> list[Verdict]:
    """Every hypothesis that the measurements of a setting can speak to."""
    found = [_of_cause(family, one) for one in weigh(family, setting)]
    return found + [
        Verdict(setting, one.key, one.claim, one.word, one.reasons, one.claims,
                deciding(family, setting, one.key, one.word, one.needs))
        for one in trials(family, setting)
    ]  # fmt: skip


def _of_cause(family: Family, one: Weighed) -> Verdict:
    reasons = _reasons(family, one)
    experiment = None
    if one.word not in (SUPPORTED, CONTRADICTED):
        experiment = deciding(family, one.setting, one.hypothesis.key, one.word, _needs(one))
    return Verdict(
        one.setting, one.hypothesis.key, one.hypothesis.claim, one.word, tuple(reasons),
        one.claims, experiment,
    )  # fmt: skip


def _reasons(family: Family, one: Weighed) -> list[str]:
    effects, hypothesis = one.effects, one.hypothesis
    reasons = []
    if effects.total:
        agree = len(effects.agree)
        verb = "agrees" if 1 in (agree, effects.total) else "agree"
        reasons.append(
            f"{agree} of {words.count(effects.total, 'effect')} outside the margin {verb} "
            f"({hypothesis.agrees} and better, or the reverse)"
        )
        if effects.oppose:
            reasons.append(f"{_names(family, one, effects.oppose)} the other way round")
        if effects.same:
            reasons.append(
                f"{_names(family, one, effects.same)} with an effect and an equal dose (within "
                f"{100 * METRICS[hypothesis.quantity].margin:.0f} %)"
            )
    else:
        said = "no effect against a reference can be asked"
        if one.base:
            label = family.study.label(one.setting, one.base)
            said = f"no variant's effect against {label} is resolved outside the margin"
        reasons.append(said)
    if effects.dose_only:
        reasons.append(
            f"{_names(family, one, effects.dose_only)} {hypothesis.agrees}, with a gain above the "
            f"margin excluded"
        )
    if one.left_out:
        names = _names(family, one, one.left_out)
        verb = "does" if len(one.left_out) == 1 else "do"
        reasons.append(
            f"{names} {verb} not perturb and {'is' if verb == 'does' else 'are'} left out where "
            f"the effective radius is asked"
        )
    if one.far:
        label = family.study.label
        runs = [
            f"{label(one.setting, row)} seed {seed} (far from the others in {names})"
            for (row, seed), names in one.far.items()
        ]
        many = f"{words.count(len(runs), 'run')} far from the others"
        shown = words.listing(runs) if len(runs) < 4 else many
        reasons.append(f"left out of dose and response: {shown}")
    reasons.append(association_words(one.plain))
    if math.isfinite(one.within):
        reasons.append(f"over axes within variants r = {_signed(one.within)}")
    if math.isfinite(one.given.p) and resolved(one.plain):
        given = " and ".join(METRICS[name].name for name in one.conditioned)
        reasons.append(f"given {given}: {association_words(one.given)}")
    if one.word == CONFOUNDED:
        reasons.append(f"{METRICS[one.confounder].name} goes with both")
    return reasons + [f"not shown: {text}" for text in _still(one)]


def _still(one: Weighed) -> list[str]:
    """Conditions that fail, where the rest would support."""
    return list(one.failing) if one.word in (COMPATIBLE, CONFOUNDED) else []


def _needs(one: Weighed) -> tuple[str, ...]:
    """What the deciding experiment has to add."""
    needs = []
    if any("no control" in text for text in one.failing):
        needs.append("controls")
    if short := _too_few(one):
        needs.append(f"variants:{short}")
    needs += [f"measure:{name}" for name in one.hypothesis.given if name not in one.conditioned]
    if one.word == CONFOUNDED:
        needs.append(f"match:{one.confounder}")
    if one.word in (UNRESOLVED, COMPATIBLE):
        needs.append("seeds")
    return tuple(needs)


def _too_few(one: Weighed) -> int:
    """How many variants more it takes before dose and response can be asked given the others."""
    needed = 2 + stats.SMALLEST_DF + len(one.hypothesis.given)
    # Those that do not perturb are no part where the effective radius is given.
    return max(0, needed - min(one.plain.n, one.given.n or one.plain.n))


def association_words(one: Association) -> str:
    """Dose and response over variants in numbers."""
    if not math.isfinite(one.p):
        return f"{words.count(one.n, 'variant')}: too few for dose and response"
    verb = "go together" if resolved(one) else "not resolved to go together"
    numbers = f"r = {_signed(one.r)}, adjusted {words.p_value(one.p)}"
    return f"dose and response over {one.n} variants {verb}: {numbers}"


def _signed(r: float) -> str:
    return f"{r:+.2f}".replace("-", "−")


def _names(family: Family, one: Weighed, rows: tuple[str, ...]) -> str:
    return words.listing([family.study.label(one.setting, row) for row in rows])
