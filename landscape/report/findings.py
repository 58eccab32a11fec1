"""What the numbers say, in sentences: which variants differ, whether they are flatter, how sure."""

import math
from dataclasses import dataclass

from landscape import stats
from landscape.plot.runs import Variant
from landscape.report import words
from landscape.report.evidence import (
    MEASURES,
    Comparison,
    differences_to,
    flatness,
    flatness_ratio,
)
from landscape.report.study import Study
from landscape.report.trainings import trainings
from landscape.report.verdict import (
    COMPATIBLE,
    CONTRADICTED,
    INCONCLUSIVE,
    SUPPORTED,
    Verdict,
    verdict,
)


@dataclass(frozen=True)
class Finding:
    """A short lead and the sentences that back it, in one setting."""

    setting: str
    lead: str
    text: str


@dataclass(frozen=True)
class Answer:
    """The headline, the findings behind it, and the verdicts per measure and setting."""

    headline: str
    findings: tuple[Finding, ...]
    verdicts: tuple[Verdict, ...]


def answer(study: Study, made: list[Comparison]) -> Answer:
    """Compute what the report says from the numbers alone."""
    findings: list[Finding] = []
    verdicts: list[Verdict] = []
    for setting in study.settings:
        findings += _diverged(study, setting)
        findings += _who_is_better(study, made, setting)
        findings += _questions(study, setting)
        findings += _against_random(study, setting)
        found = [verdict(study, made, setting, measure) for measure in MEASURES]
        here = [verdict for verdict in found if verdict is not None]
        verdicts += here
        findings += _flatness_finding(study, setting, here)
        findings += _early_stopping(study, setting)
    return Answer(_headline(study, made, verdicts), tuple(findings), tuple(verdicts))


def _diverged(study: Study, setting: str) -> list[Finding]:
    """Rows that lost seeds: they are counted, and are no evidence of flatness or accuracy."""
    lost = [t for t in trainings(study) if t.setting == setting and t.diverged]
    if not lost:
        return []
    lead = f"Not every training went well: {'; '.join(f'{t.label} {t.seeds}' for t in lost)}."
    reasons = "; ".join(f"{t.label} {t.reason}" for t in lost if t.reason)
    text = f"What diverged is counted and not measured: it is neither flat nor trained. {reasons}"
    return [Finding(setting, lead, text)]


def _where(study: Study, setting: str) -> str:
    title = study.title(setting)
    if title and title != setting:
        return f"with {title}"
    return "" if setting in ("", "default") else f"in {setting}"


def _gain(study: Study, one: Comparison) -> str:
    ci = one.paired.difference
    inside = [words.points(ci.estimate)]
    if ci.known:
        inside.append(words.interval(ci, words.points))
    elif ci.n > 1:
        inside.append("in every seed")
    return f"{study.label(one.setting, one.variant)} ({' '.join(inside)})"


def _who_is_better(study: Study, made: list[Comparison], setting: str) -> list[Finding]:
    findings = []
    for reference in study.references(setting):
        against = differences_to(study, made, setting, reference)
        if not against:
            continue
        name = study.label(setting, reference)
        tested = [one for one in against if math.isfinite(one.p)]
        if not tested:
            size = max((one.paired.difference.n for one in against), default=0)
            why = "one seed" if size == 1 else "no common seeds or no spread between them"
            best = max(against, key=lambda one: _low_if_nan(one.paired.difference.estimate))
            findings.append(
                Finding(
                    setting,
                    f"No difference to {name} can be tested ({why}).",
                    f"Largest difference seen, in points: {_gain(study, best)}; without more "
                    "seeds it cannot be told from chance.",
                )
            )
            continue
        better = [one for one in against if one.sign > 0]
        worse = [one for one in against if one.sign < 0]
        even = [one for one in against if one.sign == 0]
        how = "after Holm's correction" if tested[0].declared else "(exploratory, p not corrected)"
        lead = (
            f"{_many(len(better), len(against))} better than {name} {how}"
            + (f", {len(worse)} worse" if worse else "")
            + "."
        )
        parts = []
        for title, group in (("Better", better), ("Worse", worse), ("Cannot be told apart", even)):
            ordered = sorted(group, key=lambda one: -_low_if_nan(one.paired.difference.estimate))
            if ordered:
                parts.append(f"{title}: {words.listing([_gain(study, one) for one in ordered])}.")
        findings.append(Finding(setting, lead, " ".join(["Differences in points.", *parts])))
    return findings


def _many(n: int, total: int) -> str:
    verb = "is" if n == 1 else "are"
    if n == 0:
        return f"None of {words.count(total, 'variant')} is"
    if n == total:
        return f"All {words.count(total, 'variant')} {verb}" if total > 1 else "The variant is"
    return f"{n} of {total} variants {verb}"


def _low_if_nan(value: float) -> float:
    return value if math.isfinite(value) else -math.inf


def _questions(study: Study, setting: str) -> list[Finding]:
    """The questions that the study file asks: each pair's difference, all pairs one family."""
    asked = study.comparisons.get("questions") or []
    per_variant = study.values("generalization", study.metric, setting)
    if setting != study.comparisons.get("setting") or not per_variant:
        return []
    made = {}
    rows = {(a, b): study.row_pairs(setting, a, b) for q in asked for a, b in q["pairs"]}
    for a, b in (pair for pairs in rows.values() for pair in pairs):
        _, ours, theirs = study.paired(per_variant, a, b, study.metric)
        made[a, b] = stats.paired(ours, theirs)
    adjusted = dict(zip(made, stats.holm([pair.p for pair in made.values()]), strict=True))
    findings = []
    for question in asked:
        parts = []
        for a, b in (pair for x, y in question["pairs"] for pair in rows[x, y]):
            ci, p = made[a, b].difference, adjusted[a, b]
            parts.append(
                f"{study.label(setting, a)} − {study.label(setting, b)}: "
                f"{words.points(ci.estimate, 2)} "
                + (
                    words.interval(ci, lambda v: words.points(v, 2))
                    if ci.known
                    else "(no interval)"
                )
                + (f", {words.p_value(p)}" if math.isfinite(p) else "")
                + f" (n = {ci.n})"
            )
        how = (
            f"Points, 95 % intervals, p after Holm over the {words.count(len(made), 'pair')} asked"
        )
        findings.append(Finding(setting, question["asked"], f"{how}. {'; '.join(parts)}."))
    return findings


def _random_masks(study: Study, setting: str) -> list[Variant]:
    """The controls that draw their coordinates; the first one is what variants are held against."""
    return [v for v in study.variants(setting) if study.recipes.get(v.id) == "random_mask"]


def _named(controls: list[Variant]) -> str:
    """Which random mask, where there are several."""
    return f"a random mask ({controls[0].label})" if len(controls) > 1 else "a random mask"


def _to_random_mask(study: Study, setting: str) -> tuple[list[str], list[str], list[str]]:
    """Variants not told apart from the random mask, better, and worse, in words."""
    control = next((v.id for v in _random_masks(study, setting)), None)
    per_variant = study.values("generalization", study.metric, setting)
    same, above, below = [], [], []
    for v in study.variants(setting) if per_variant else []:
        if control is None or v.id == control or study.recipes.get(v.id) == "sgd":
            continue
        _, a, b = study.paired(per_variant, v.id, control, study.metric)
        ci = stats.paired(a, b).difference
        group = same if not ci.excludes(0) else (above if ci.estimate > 0 else below)
        known = words.interval(ci, words.points) or "no interval"
        group.append(f"{v.label} ({words.points(ci.estimate)} {known})")
    return same, above, below


def _against_random(study: Study, setting: str) -> list[Finding]:
    """Which variants can be told from a random mask (exploratory)."""
    same, above, below = _to_random_mask(study, setting)
    if not (same or above or below):
        return []
    total, named = len(same) + len(above) + len(below), _named(_random_masks(study, setting))
    lead = (
        f"{len(same)} of {total} variants cannot be told from {named}."
        if same
        else f"Every variant can be told from {named}."
    )
    parts = [
        f"{title}: {words.listing(group)}."
        for title, group in (
            ("Not told apart", same),
            ("Better than the random mask", above),
            ("Worse", below),
        )
        if group
    ]
    return [Finding(setting, lead, " ".join(["Exploratory, 95 % intervals in points.", *parts]))]


def _early_stopping(study: Study, setting: str) -> list[Finding]:
    """SGD with a shorter schedule: how much of the gain is slower fitting?"""
    references = study.references(setting)
    base = next((name for name in references if study.recipes.get(name) == "sgd"), None)
    early = next(
        (
            v.id
            for v in study.variants(setting)
            if study.recipes.get(v.id) == "sgd" and v.id != base and v.id not in references
        ),
        None,
    )
    per_variant = study.values("generalization", study.metric, setting)
    if base is None or early is None or early not in per_variant:
        return []
    losses = study.values("generalization", "train_loss", setting)

    def loss(name: str) -> str:
        if name not in losses:
            return "unknown"
        return words.number(stats.mean_ci(losses[name].train_loss.values).estimate)

    label = study.label(setting, early)
    gain = stats.paired(*study.paired(per_variant, early, base, study.metric)[1:]).difference
    text = (
        f"{label}: {words.points(gain.estimate)} points to {study.label(setting, base)} "
        f"{words.interval(gain, words.points)} at a training loss of {loss(early)} (SGD "
        f"{loss(base)}"
    )
    sam = next((name for name in references if study.recipes.get(name) == "sam"), None)
    if sam is None:
        return [Finding(setting, "A control: SGD with a shorter schedule.", text + ").")]
    rest = stats.paired(*study.paired(per_variant, sam, early, study.metric)[1:]).difference
    text += (
        f", SAM {loss(sam)}). SAM is {words.points(rest.estimate)} points above it "
        f"{words.interval(rest, words.points)}."
    )
    lead = _early_lead(gain, rest, label)
    return [Finding(setting, lead, text)]


def _early_lead(gain: stats.Interval, rest: stats.Interval, label: str) -> str:
    helps = gain.excludes(0) and gain.estimate > 0
    remains = rest.excludes(0) and rest.estimate > 0
    if helps and remains:
        return f"{label} recovers part of SAM's gain, not all of it."
    if helps:
        return f"{label} does as well as SAM within the intervals: slower fitting may explain it."
    if remains:
        return f"Stopping SGD early does not reproduce SAM's gain ({label} is the control)."
    return f"The control {label} decides nothing: the intervals are too wide."


def _flatness_finding(study: Study, setting: str, verdicts: list[Verdict]) -> list[Finding]:
    if not verdicts:
        return []
    by_word: dict[str, list[str]] = {}
    for one in verdicts:
        by_word.setdefault(one.word, []).append(one.measure)
    said = [f"{word} by {words.listing(names)}" for word, names in by_word.items()]
    if len(by_word) == 1:
        lead = f"“Better because flatter” is {next(iter(by_word))} by every measure."
    else:
        lead = f"“Better because flatter” depends on the measure: {words.listing(said)}."
    ratios = _ratio_words(study, setting)
    return [Finding(setting, lead, ratios)]


def _ratio_words(study: Study, setting: str) -> str:
    """Ratios of lambda_1 and Gaussian sharpness to the reference, smallest first."""
    base = study.references(setting)[0]
    parts = []
    for measure in (MEASURES[0], MEASURES[2]):
        values = flatness(study, measure, setting)
        found = {
            name: flatness_ratio(study, measure, setting, name, base)
            for name in values
            if name not in study.rows_of(setting, base)
        }
        ordered = sorted(
            (item for item in found.items() if item[1].n), key=lambda item: item[1].estimate
        )
        if not ordered:
            continue
        (low, first), (high, last) = ordered[0], ordered[-1]
        text = f"{study.label(setting, low)} {words.number(first.estimate, 2)}"
        if first.known:
            text += f" {words.interval(first, lambda value: words.number(value, 2))}"
        if high != low:
            text += f" to {study.label(setting, high)} {words.number(last.estimate, 2)}"
            if last.known:
                text += f" {words.interval(last, lambda value: words.number(value, 2))}"
        parts.append(f"{measure.name}: {text}")
    if not parts:
        return ""
    name = study.label(setting, base)
    text = words.sentence("; ".join(parts))
    intervals = ", 95 % intervals" if "[" in text else ""
    return f"Ratio to {name}, below 1 is flatter{intervals}. {text}."


def _headline(study: Study, made: list[Comparison], verdicts: list[Verdict]) -> str:
    setting = study.settings[0]
    references = study.references(setting)
    where = _where(study, setting)
    against = differences_to(study, made, setting, references[0]) if references else []
    if not against:
        total = len(study.variants(setting))
        what = "no accuracy was measured" if total > 1 else "there is nothing to compare it with"
        return f"{words.count(total, 'variant')} measured {where}".rstrip() + f": {what}."
    reference = study.label(setting, references[0])
    where = f" {where}" if where else ""
    better = [one for one in against if one.sign > 0]
    if all(math.isnan(one.p) for one in against):
        return (
            f"One seed per variant cannot say which is better{where}; what follows is description."
            if max(one.paired.difference.n for one in against) == 1
            else f"No difference to {reference}{where} can be tested."
        )
    how = "generalizes" if len(better) == 1 else "generalize"
    who = (
        f"No variant generalizes detectably better than {reference}{where}"
        if not better
        else f"{_share(len(better), len(against))} {how} better than {reference}{where}"
    )
    verdict = _headline_flatness([v for v in verdicts if v.setting == setting], bool(better))
    return f"{who}{_headline_control(study, setting, bool(better))}{verdict}"


def _headline_control(study: Study, setting: str, any_better: bool) -> str:
    """Said first of all where a gain is not due to the choice of coordinates."""
    same, above, below = _to_random_mask(study, setting)
    if not any_better or not same:
        return ""
    named = _named(_random_masks(study, setting))
    if not above:
        return f", but none of them detectably better than {named}"
    even = len(same) + len(below)
    return f", but {even} of {even + len(above)} not detectably better than {named}"


def _share(n: int, total: int) -> str:
    if n == total:
        return f"All {words.count(total, 'variant')}" if total > 1 else "The variant"
    return f"{n} of {words.count(total, 'variant')}"


def _headline_flatness(verdicts: list[Verdict], any_better: bool) -> str:
    found = {verdict.word for verdict in verdicts}
    if not found:
        return "; flatness was not measured."
    if found == {SUPPORTED}:
        return ", and by every measure the better ones are the flatter ones."
    if found <= {SUPPORTED, COMPATIBLE}:
        return (
            ". The better ones are also flatter: flatness may be the reason, but that is not shown."
        )
    if found == {CONTRADICTED}:
        return (
            ", but not because they are flatter: every measure contradicts that."
            if any_better
            else ", although some are flatter by every measure."
        )
    if found == {INCONCLUSIVE}:
        return "; whether flatness matters here is inconclusive."
    if not any_better:
        return ", although some are flatter."
    against = [v.measure for v in verdicts if v.word == CONTRADICTED]
    if against:
        return f"; flatness does not explain it by {words.listing(against)}."
    return "; whether they are better because they are flatter depends on the measure."
