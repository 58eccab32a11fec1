"""Hypotheses that one control decides: is it the mask, or would SGD stopped early do as well?

A trial holds every variant that it is about against one control. What must be equal for the
comparison to mean anything (effective radius for masks, training loss for early stopping) is
checked, and where it is not, nothing is called supported or contradicted.
"""

import math
from dataclasses import dataclass

from landscape.metrics import METRICS
from landscape.report import words
from landscape.report.family import Claim, Difference, Family
from landscape.report.rules import COMPATIBLE, CONFOUNDED, CONTRADICTED, SUPPORTED, UNRESOLVED

MASKED = ("zsharp", "ssam_f", "ssam_d")
# Variant and control are matched in a quantity within this share of it.
MATCHED = 0.15


@dataclass(frozen=True)
class Trial:
    """A trial as data.

    control: recipe of the control. about: recipes that it is about; empty for every variant that is
    better than the first reference. equal: the quantity that must be matched. supports: whether
    the claim is supported where variants are better than the control ("it is the mask"), or where
    the control does as well ("stopping early does it").
    """

    key: str
    claim: str
    control: str
    about: tuple[str, ...]
    equal: str
    supports: str


TRIALS = (
    Trial("mask", "better because of which coordinates are perturbed", "random_mask", MASKED,
          "rho_eff", "better"),
    Trial("early_stopping", "better as SGD would be if it were stopped early", "sgd", (),
          "train_loss", "equal"),
)  # fmt: skip


@dataclass(frozen=True)
class Tried:
    """A trial in one setting: its word, why, and what the next study needs."""

    setting: str
    key: str
    claim: str
    word: str
    reasons: tuple[str, ...]
    claims: tuple[Claim, ...]
    needs: tuple[str, ...]


def trials(family: Family, setting: str) -> list[Tried]:
    """Every trial for which variants and metric are there."""
    held_out = METRICS[family.study.metric].held_out
    if (setting, family.study.metric) not in family.values or not held_out:
        return []
    found = (_try(family, setting, trial) for trial in TRIALS)
    return [one for one in found if one is not None]


def _about(family: Family, setting: str, trial: Trial) -> list[str]:
    study = family.study
    rows = [row for row in study.rows(setting) if not study.is_control(row, setting)]
    if trial.about:
        return [row for row in rows if study.recipe(row) in trial.about]
    base = next(iter(study.references(setting)), "")
    found = [one.a for one in family.to(setting, base) if one.decision.beyond > 0]
    return [row for row in rows if row in found]


def _try(family: Family, setting: str, trial: Trial) -> Tried | None:
    rows = _about(family, setting, trial)
    if not rows:
        return None
    partners = {row: _closest(family, setting, trial, row) for row in rows}
    if not any(partners.values()):
        what = {"sgd": "SGD stopped early", "random_mask": "a random mask"}[trial.control]
        reason = f"there is no control ({what})"
        return Tried(setting, trial.key, trial.claim, UNRESOLVED, (reason,), (), ("controls",))
    made = {
        row: one
        for row, other in partners.items()
        if other and (one := family.get(setting, row, other)) is not None
    }
    matched = [row for row, one in made.items() if _is_matched(family, trial, one)]
    better = [row for row, one in made.items() if one.decision.beyond > 0]
    not_above = [row for row, one in made.items() if one.decision.equivalent or one.sign < 0]
    word = _word(trial, made, matched, better, not_above)
    reasons = _reasons(family, setting, trial, made, matched)
    needs = () if word in (SUPPORTED, CONTRADICTED) else ("seeds",)
    if len(matched) < len(made):
        needs = (f"match:{trial.equal}",)
    said = word in (SUPPORTED, CONTRADICTED)
    claims = (Claim(word, setting, trial.equal, trial.key),) if said else ()
    return Tried(setting, trial.key, trial.claim, word, reasons, claims, needs)


def _closest(family: Family, setting: str, trial: Trial, row: str) -> str | None:
    """Of all controls, the one closest to a row in what has to be equal."""
    study = family.study
    level = _level(family, setting, trial.equal, row)
    found = [
        (abs(_level(family, setting, trial.equal, other) - level), other)
        for control in study.control_families(setting, trial.control)
        if (other := study.partner(setting, row, control)) is not None
    ]
    known = [pair for pair in found if math.isfinite(pair[0])]
    return min(known or found, key=lambda pair: pair[0])[1] if found else None


def _word(
    trial: Trial, made: dict[str, Difference], matched: list[str], better: list[str],
    not_above: list[str],
) -> str:  # fmt: skip
    """Most of the variants decide, and only those that are matched with the control."""
    for_it, against = (better, not_above) if trial.supports == "better" else (not_above, better)
    half = len(made) / 2
    if sum(row in matched for row in for_it) > half:
        return SUPPORTED
    if sum(row in matched for row in against) > half:
        return CONTRADICTED
    if len(for_it) > half:
        return CONFOUNDED if trial.supports == "better" else COMPATIBLE
    return UNRESOLVED


def _is_matched(family: Family, trial: Trial, one: Difference) -> bool:
    a, b = (_level(family, one.setting, trial.equal, name) for name in (one.a, one.b))
    return math.isfinite(a) and math.isfinite(b) and abs(a - b) <= MATCHED * max(abs(a), abs(b))


def _level(family: Family, setting: str, key: str, row: str) -> float:
    values = family.values.get((setting, key))
    plain = values.plain(row) if values is not None else []
    return float(sum(plain) / len(plain)) if len(plain) else math.nan


def _reasons(
    family: Family, setting: str, trial: Trial, made: dict[str, Difference], matched: list[str]
) -> tuple[str, ...]:  # fmt: skip
    study, name = family.study, METRICS[trial.equal].name
    controls = list(dict.fromkeys(one.b for one in made.values()))
    said = []
    for row, one in made.items():
        level = words.number(_level(family, setting, trial.equal, row))
        how = {1: "better", -1: "worse", 0: "not resolved"}[one.sign]
        how = "as good" if one.decision.equivalent else how
        said.append(
            f"{study.label(setting, row)} {how} ({words.effect(one.metric, one.decision)}; {name} "
            f"{level})"
        )
    owned = [
        f"{study.label(setting, row)} ({name} "
        f"{words.number(_level(family, setting, trial.equal, row))})"
        for row in controls
    ]
    lead = f"against {words.listing(owned)}: {words.listing(said)}"
    if len(matched) == len(made):
        return (lead,)
    return lead, f"{name} is matched within {100 * MATCHED:.0f} % for {len(matched)} of {len(made)}"
