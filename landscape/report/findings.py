"""What the numbers say, in sentences; every sentence is made from claims that can be checked."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from landscape import stats
from landscape.metrics import FLATNESS, METRICS, Metric
from landscape.report import words
from landscape.report.family import Claim, Difference, Family
from landscape.report.fitted import fitted
from landscape.report.rules import COMPATIBLE, CONFOUNDED, CONTRADICTED, SUPPORTED, UNRESOLVED
from landscape.report.statements import Statement
from landscape.report.study import StudyResults
from landscape.report.trainings import trainings
from landscape.report.verdict import Verdict, verdicts


@dataclass(frozen=True)
class Answer:
    """The headline, the findings behind it, and the verdicts per hypothesis and setting."""

    headline: str
    findings: tuple[Statement, ...]
    verdicts: tuple[Verdict, ...]
    headline_claims: tuple[Claim, ...] = ()

    @property
    def claims(self) -> tuple[Claim, ...]:
        """Everything that is asserted."""
        parts = (*self.findings, *self.verdicts)
        return (*self.headline_claims, *(claim for one in parts for claim in one.claims))


def answer(family: Family) -> Answer:
    """Compute what the report says from the numbers alone."""
    study = family.study
    findings: list[Statement] = []
    found: list[Verdict] = []
    for setting in study.settings:
        findings += _diverged(study, setting)
        findings += _repeated(family, setting)
        here = verdicts(family, setting)
        found += here
        for reference in study.references(setting):
            findings += _against_reference(family, setting, reference)
        findings += _questions(family, setting)
        findings += _against_random(family, setting)
        findings += _early_stopping(family, setting)
        findings += _flatness(family, setting, here)
        findings += fitted(family, setting)
    headline, claims = _headline(family, found)
    return Answer(headline, tuple(findings), tuple(found), claims)


def _diverged(study: StudyResults, setting: str) -> list[Statement]:
    """Rows that lost seeds: they are counted, and are no evidence of flatness or accuracy."""
    lost = [t for t in trainings(study) if t.setting == setting and t.diverged]
    if not lost:
        return []
    lead = f"Not every training went well: {'; '.join(f'{t.label} {t.seeds}' for t in lost)}."
    reasons = "; ".join(f"{t.label} {t.reason}" for t in lost if t.reason)
    text = f"What diverged is counted and not measured: it is neither flat nor trained. {reasons}"
    return [Statement(setting, lead, text)]


def _repeated(family: Family, setting: str) -> list[Statement]:
    """Rows under two names that have the same values in every seed."""
    label = family.study.label
    pairs = [
        f"{label(setting, row)} has every value of {label(setting, other)}"
        for row, other in family.repeated(setting).items()
    ]
    if not pairs:
        return []
    lead = f"The same numbers in every seed: {'; '.join(pairs)}."
    text = "Where explanations are weighed, both are one point."
    return [Statement(setting, lead, text)]


def _metric(family: Family, setting: str) -> Metric:
    return family.values[setting, family.study.metric].metric


def _where(family: Family, setting: str) -> str:
    study = family.study
    title = study.title(setting)
    if title and title != setting:
        return f" with {title}"
    return "" if setting in ("", "default") else f" in {setting}"


def _told(family: Family, one: Difference, *, seen: bool = False) -> str:
    """A row with its difference: plain, adjusted interval, and what could have been seen."""
    inside = [words.plain_difference(one.metric, one.plain), words.effect(one.metric, one.decision)]
    if seen and math.isfinite(one.decision.detectable):
        inside.append(f"{words.detectable(one.metric, one.decision)} would have been seen")
    if one.decision.interval.n < 2 and not one.decision.failed:
        inside.append("one seed in common" if one.decision.interval.n else "no seed in common")
    if one.decision.failed:
        runs = words.count(one.decision.failed, "run")
        inside.append(f"{runs} failed, so nothing is decided")
    text = "; ".join(part for part in inside if part)
    return f"{family.study.label(one.setting, one.a)} ({text})"


def _claims(differences: Iterable[Difference]) -> tuple[Claim, ...]:
    return tuple(claim for one in differences for claim in one.claims)


def _sorted(differences: Iterable[Difference]) -> list[Difference]:
    def size(one: Difference) -> float:
        estimate = one.decision.interval.estimate
        return -estimate if math.isfinite(estimate) else math.inf

    return sorted(differences, key=lambda one: (size(one), one.a))


def _grouped(
    family: Family, metric: Metric, differences: Sequence[Difference], *, of: str = ""
) -> str:
    """Better, worse, as good and not resolved, each with its numbers. of: whose they are."""
    groups: dict[str, list[str]] = {}
    for one in _sorted(differences):
        if one.sign:
            title = metric.comparative if one.sign > 0 else metric.opposite
        elif one.decision.equivalent:
            title = f"equal within {words.margin(metric, one.decision)}"
        else:
            title = "not resolved"
        open_ = title == "not resolved"
        groups.setdefault(title, []).append(_told(family, one, seen=open_))
    return " ".join(
        f"{words.sentence(of + title)}: {words.listing(told)}." for title, told in groups.items()
    )


def _against_reference(family: Family, setting: str, reference: str) -> list[Statement]:
    study = family.study
    against = family.to(setting, reference)
    if not against:
        return []
    metric, name = _metric(family, setting), study.label(setting, reference)
    counted = family.counted(against)
    tested = [one for one in against if one.decision.tested]
    if not tested:
        size = max((one.decision.interval.n for one in against), default=0)
        why = "one seed" if size == 1 else "no common seeds or no spread between them"
        why = "runs failed" if all(one.decision.failed for one in against) else why
        lead = f"No difference to {name} can be tested ({why})."
        shown = "; ".join(
            f"{study.label(setting, one.a)} {words.plain_difference(metric, one.plain)}"
            for one in _sorted(against)
            if math.isfinite(one.plain)
        )
        text = f"Seen, and not to be told from chance: {shown}." if shown else ""
        return [Statement(setting, lead, text)]
    noun = study.noun(setting)
    lead = f"{_outcome(family, metric, counted, noun, name)}."
    controls = [one for one in against if one not in counted]
    text = _grouped(family, metric, counted)
    if controls:
        text += f" {_grouped(family, metric, controls, of='controls, not counted, ')}"
    return [Statement(setting, lead, text.strip(), _claims(against))]


def _outcome(
    family: Family, metric: Metric, counted: Sequence[Difference], noun: str, name: str
) -> str:
    """How many variants are better than a reference, and how many worse. name: the reference's."""
    if not counted:
        return f"All that is compared with {name} are controls"
    better = [one for one in counted if one.sign > 0]
    worse = sum(one.sign < 0 for one in counted)
    if worse == len(counted) == 1:
        only = family.study.label(counted[0].setting, counted[0].a)
        return f"{only} has a {metric.opposite} than {name}"
    if better:
        only = family.study.label(better[0].setting, better[0].a)
        text = f"{_many(len(better), len(counted), noun, only)} {metric.comparative} than {name}"
    else:
        text = f"No {noun} is resolved to have a {metric.comparative} than {name}"
    have = "has" if worse == 1 else "have"
    return text + (f", and {worse} {have} a {metric.opposite}" if worse else "")


def _many(n: int, total: int, noun: str, only: str) -> str:
    if n == total:
        every = {1: f"{only} has a", 2: f"Both {noun}s have a"}
        return every.get(total, f"All {total} {noun}s have a")
    return f"{n} of {words.count(total, noun)} {'has' if n == 1 else 'have'} a"


def _questions(family: Family, setting: str) -> list[Statement]:
    """The questions that the study file asks: each pair's difference, in the family of the page."""
    study = family.study
    asked = study.comparisons.get("questions") or []
    if setting != study.comparisons.get("setting"):
        return []
    findings = []
    for question in asked:
        pairs = [p for a, b in question["pairs"] for p in study.row_pairs(setting, a, b)]
        made = [one for a, b in pairs if (one := family.get(setting, a, b)) is not None]
        parts = []
        for one in made:
            names = f"{study.label(setting, one.a)} − {study.label(setting, one.b)}"
            state = {1: "better", -1: "worse", 0: "not resolved"}[one.sign]
            state = "equal within the margin" if one.decision.equivalent else state
            parts.append(
                f"{names}: {words.plain_difference(one.metric, one.plain)}, "
                f"{words.effect(one.metric, one.decision) or 'no interval'}, "
                f"{words.p_value(one.decision.p)} (n = {one.decision.interval.n}): {state}"
            )
        if parts:
            text = f"Intervals and p adjusted for the whole page. {'; '.join(parts)}."
            findings.append(Statement(setting, question["asked"], text, _claims(made)))
    return findings


def _to_random(family: Family, setting: str) -> list[tuple[str, list[Difference]]]:
    """Each random mask of the study, and every variant's difference to it."""
    study = family.study
    controls = study.control_families(setting, "random_mask")
    several = len(controls) > 1
    found = []
    for control in controls:
        partners = {row: study.partner(setting, row, control) for row in study.rows(setting)}
        made = [
            one
            for row, partner in partners.items()
            if partner and (one := family.get(setting, row, partner)) is not None
            and not study.is_control(row, setting) and study.recipe(row) != "sgd"
        ]  # fmt: skip
        label = study.label(setting, control)
        found.append((f"a random mask ({label})" if several else "a random mask", made))
    return found


def _against_random(family: Family, setting: str) -> list[Statement]:
    """Which variants can be told from a random mask."""
    findings, noun = [], family.study.noun(setting)
    for named, made in _to_random(family, setting):
        tested = [one for one in made if one.decision.tested]
        if not tested:
            continue
        told = [one for one in tested if one.sign]
        lead = (
            f"{len(told)} of {words.count(len(tested), noun)} can be told from {named}."
            if told
            else f"No {noun} can be told from {named}."
        )
        text = _grouped(family, _metric(family, setting), made)
        findings.append(Statement(setting, lead, text, _claims(made)))
    return findings


def _early_stopping(family: Family, setting: str) -> list[Statement]:
    """SGD with a shorter schedule beside the references: how much of a gain is slower fitting?"""
    found = (_one_early(family, setting, row) for row in family.study.controls(setting, "sgd"))
    return [finding for findings in found for finding in findings]


def _one_early(family: Family, setting: str, early: str) -> list[Statement]:
    study = family.study
    references = study.references(setting)
    if not references:
        return []
    partners = [study.partner(setting, early, name) for name in references]
    made = [one for ref in partners if ref and (one := family.get(setting, early, ref)) is not None]
    tested = [one for one in made if one.decision.tested]
    if not tested:
        return []
    label = study.label(setting, early)
    to_base = next((one for one in tested if one.b == partners[0]), None)
    to_other = next((one for one in tested if one.b != partners[0]), None)
    lead = _early_lead(family, label, to_base, to_other)
    parts = []
    for one in tested:
        parts.append(
            f"to {study.label(setting, one.b)} {words.plain_difference(one.metric, one.plain)}; "
            f"{words.effect(one.metric, one.decision)}"
        )
    losses = family.values.get((setting, "train_loss"))
    text = f"{label}, a control: {words.listing(parts)}."
    if losses is not None:
        shown = [
            f"{study.label(setting, row)} "
            f"{words.number(stats.metric_ci(losses.metric, losses.plain(row)).estimate)}"
            for row in (early, *(row for row in partners if row))
        ]
        text += f" Training loss: {words.listing(shown)}; this decides only where these are equal."
    return [Statement(setting, lead, text, _claims(tested))]


def _early_lead(
    family: Family, label: str, to_base: Difference | None, to_other: Difference | None
) -> str:
    if to_other is not None:
        other = family.study.label(to_other.setting, to_other.b)
        if to_other.decision.equivalent:
            return f"{label} does as well as {other} within the margin."
        if to_other.sign < 0:
            better = to_base is not None and to_base.sign > 0
            also = " and does better than the first reference" if better else ""
            return f"{label} does not do as well as {other}{also}."
        if to_other.sign > 0:
            return f"{label} does better than {other}."
    if to_base is not None and to_base.sign:
        base = family.study.label(to_base.setting, to_base.b)
        how = "better" if to_base.sign > 0 else "worse"
        rest = "" if to_other is None else "; its difference to the other reference is not resolved"
        return f"{label} does {how} than {base}{rest}."
    return f"Whether {label} does as well is not resolved."


def _flatness(family: Family, setting: str, found: Sequence[Verdict]) -> list[Statement]:
    here = [one for one in found if one.key.startswith("flatter_")]
    if not here:
        return []
    groups: dict[str, list[str]] = {}
    for one in here:
        groups.setdefault(one.word, []).append(METRICS[one.key.removeprefix("flatter_")].name)
    if len(groups) == 1:
        lead = f"“Better because flatter” is {next(iter(groups))}, whatever the measure."
    else:
        said = [f"{word} ({words.listing(names)})" for word, names in groups.items()]
        lead = f"“Better because flatter” depends on the measure: {words.listing(said)}."
    text, claims = _ratios(family, setting)
    text = text or "No difference in flatness could be tested."
    return [Statement(setting, lead, text, claims)]


def _ratios(family: Family, setting: str) -> tuple[str, tuple[Claim, ...]]:
    """Which rows are resolved flatter and sharper than the first reference, by each measure."""
    study = family.study
    references = study.references(setting)
    parts, claims = [], []
    for key in FLATNESS:
        if family.base(setting, key) != references[0]:
            continue  # the ratios of one paragraph are to one reference
        made = [one for one in family.to(setting, references[0], key) if one.decision.tested]
        if not made:
            continue
        claims += _claims(made)
        sides = []
        for sign, title in ((1, "flatter"), (-1, "sharper")):
            group = _sorted(one for one in made if one.sign == sign)
            shown = [
                f"{study.label(setting, one.a)} ("
                f"{words.effect(one.metric, one.decision).removeprefix(f'{one.metric.what} × ')})"
                for one in group
            ]
            if shown:
                sides.append(f"{title} {words.listing(shown)}")
        open_ = sum(one.sign == 0 for one in made)
        if open_:
            sides.append(f"{open_} not resolved")
        parts.append(f"{words.sentence(made[0].metric.name)}: {', '.join(sides)}")
    if not parts:
        return "", ()
    name = study.label(setting, references[0])
    # A negative trace has no logarithm.
    linear = [METRICS[key].name for key in FLATNESS
              if (values := family.values.get((setting, key))) is not None
              and values.metric.scale == "linear"]  # fmt: skip
    but = f" (of {words.listing(linear)} the interval of differences)" if linear else ""
    text = f"Ratios to {name}{but} with adjusted intervals, controls included. {'. '.join(parts)}."
    return text, tuple(claims)


def _headline(family: Family, found: Sequence[Verdict]) -> tuple[str, tuple[Claim, ...]]:
    study = family.study
    setting = study.settings[0]
    where = _where(family, setting)
    references = study.references(setting)
    against = family.to(setting, references[0]) if references else []
    if not against:
        rows = study.rows(setting)
        total = len(study.by_variant(setting, rows))
        measured = (setting, study.metric) in family.values
        what = "there is nothing to compare it with" if total == 1 else "nothing could be compared"
        if not measured and total > 1:
            noun = METRICS[study.metric].name
            what = f"no {noun} was measured; [comparisons] metric can name another outcome"
        lost = [t.label for t in trainings(study) if t.setting == setting and t.seeds[:2] == "0 "]
        what += f", as no training of {words.listing(lost)} went well" if lost and measured else ""
        each = f" ({words.count(len(rows), 'row')} along its axes)" if total < len(rows) else ""
        return f"{words.count(total, 'variant')}{each} measured{where}: {what}.", ()
    metric, name = _metric(family, setting), study.label(setting, references[0])
    counted = family.counted(against)
    if not any(one.decision.tested for one in counted or against):
        if max(one.decision.interval.n for one in counted or against) == 1:
            return (
                f"One seed per variant cannot say which is better{where}; what follows is "
                "description."
            ), ()
        return f"No difference to {name}{where} can be tested.", ()
    better = [one for one in counted if one.sign > 0]
    worse = [one for one in counted if one.sign < 0]
    claims, noun = list(_claims((*better, *worse))), study.noun(setting)
    text = _outcome(family, metric, counted, noun, f"{name}{where}")
    if not better:
        text += _could_have_seen(metric, [one for one in counted if not one.sign])
    random_text, random_claims = _headline_random(family, setting, better)
    flat = any((setting, key) in family.values for key in FLATNESS)
    text += random_text + _headline_flatness(found, setting, metric, measured=flat)
    if not metric.held_out:
        text += f" Nothing is said on generalization, which {metric.name} does not measure."
    return text, (*claims, *random_claims)


def _could_have_seen(metric: Metric, counted: Sequence[Difference]) -> str:
    """The smallest difference that this study could have seen, of the variant it saw best."""
    sizes = [one.decision for one in counted if math.isfinite(one.decision.detectable)]
    if not sizes:
        return ""
    least = min(sizes, key=lambda d: d.detectable)
    seen = words.detectable(metric, least)
    return f" (the smallest difference that would have been seen: {seen})"


def _headline_random(
    family: Family, setting: str, better: Sequence[Difference]
) -> tuple[str, tuple[Claim, ...]]:
    """Said first of all where a gain is not resolved to be due to the choice of coordinates."""
    controls = _to_random(family, setting)
    rows = {one.a for one in better}
    named = controls[0][0] if len(controls) == 1 else "every random mask"
    made = [[one for one in found if one.a in rows] for _, found in controls]
    held = {one.a for found in made for one in found}
    above = held.intersection(*({one.a for one in found if one.sign > 0} for found in made))
    claims = _claims(one for found in made for one in found if one.a in above)
    if not held or len(above) == len(held):
        return "", claims
    if not above:
        who = "it" if len(held) == 1 else "none of them"
        return f", but {who} is {'not ' * (who == 'it')}resolved to do better than {named}", ()
    open_ = len(held) - len(above)
    verb = "is" if open_ == 1 else "are"
    return (
        f", but {open_} of these {len(held)} {verb} not resolved to do better than {named}",
        claims,
    )


def _headline_flatness(
    found: Sequence[Verdict], setting: str, metric: Metric, *, measured: bool
) -> str:
    here = [v for v in found if v.setting == setting and v.key.startswith("flatter_")]
    if not here and not metric.held_out:
        return "."
    if not here and measured:
        return "; whether flatness matters cannot be asked of fewer than two variants."
    if not here:
        return "; flatness was not measured."
    by_word: dict[str, list[str]] = {}
    for one in here:
        by_word.setdefault(one.word, []).append(METRICS[one.key.removeprefix("flatter_")].name)
    texts = {
        SUPPORTED: "“better because flatter” is supported",
        COMPATIBLE: "“better because flatter” is compatible with this and not shown",
        CONFOUNDED: "“better because flatter” is confounded",
        CONTRADICTED: "“better because flatter” is contradicted",
        UNRESOLVED: "whether flatness matters is not resolved",
    }
    if len(by_word) == 1:
        word = next(iter(by_word))
        every = f", whatever the measure ({len(here)})"
        every = every if len(here) > 1 else f" (by {by_word[word][0]})"
        return f"; {texts[word]}{'' if word == UNRESOLVED else every}."
    parts = [f"{texts[word]} (by {words.listing(names)})" for word, names in by_word.items()]
    return f"; {', '.join(parts[:-1])}, and {parts[-1]}."
