"""One variant beside another: every quantity of the two, and what the study says of them."""

import math
from collections.abc import Iterator

import numpy as np

from landscape import results, stats
from landscape.errors import LandscapeError
from landscape.metrics import METRICS
from landscape.plot.compared import Values
from landscape.report import words
from landscape.report.document import Document, Part, table_of
from landscape.report.family import Difference, Family, asked
from landscape.report.findings import answer
from landscape.report.study import StudyResults
from landscape.stats import Decision

_HEAD = ("quantity", "{a}", "{b}", "difference", "effect [interval], p", "decided", "as")


def diagnose(
    study: StudyResults, variant: str, against: str, setting: str | None = None
) -> Document:
    """What differs between two variants, in one setting (the study's first): outcome, then causes.

    Where the page decided a difference, its decision is shown. What it did not is decided here,
    together, as one family of its own that was asked after the numbers were there: exploratory.
    variant, against: ids of two variants of the study.

    Example:
        >>> document = report.diagnose(report.StudyResults.read(finished), "zsharp", "sam")
        >>> document.title, len(document.parts)
        ('zsharp against sam', 2)
    """
    setting = study.settings[0] if setting is None else setting
    if setting not in study.settings:
        raise LandscapeError(
            f"setting {setting!r} asked; the study has {', '.join(study.settings)}."
        )
    a, b = (_row(study, setting, name) for name in (variant, against))
    if a == b:
        raise LandscapeError(f"{variant!r} is to be compared with itself; name two variants.")
    family = Family.of(study)
    found = list(_differences(family, setting, a, b))
    left, right = study.label(setting, a), study.label(setting, b)
    said = answer(family)
    texts = [
        f"{one.lead} {one.text}".strip()
        for one in said.findings
        if one.setting == setting
        and any({c.subject, c.other} == {a, b} for c in one.claims)
    ]  # fmt: skip
    weighed = [v for v in said.verdicts if v.setting == setting]
    parts = [
        Part(
            "Every quantity of both",
            (
                "Means over seeds are on the scale of each quantity (geometric on a logarithm). A "
                "difference is the mean of differences paired by seed, which need not be that of "
                "the two means. Intervals and p are adjusted: "
                '"the page" for everything that the report states, "exploratory" for the '
                "quantities of this pair that the report does not compare, which were asked after "
                "the numbers were there.",
            ),
            tuple(text.format(a=left, b=right) for text in _HEAD),
            table_of([_written(family, one, how) for one, how in found]),
        )
    ]
    if texts:
        parts.append(Part("What the report says of the two", tuple(texts)))
    if weighed:
        parts.append(
            Part(
                "Each explanation, over all variants of this setting",
                (),
                ("explanation", "is", "because"),
                table_of([(v.claim, v.word, "; ".join(v.reasons)) for v in weighed]),
            )
        )
    data = {
        "study": study.resolved.get("name", ""), "setting": setting, "variant": a, "against": b,
        "differences": [_numbers(one, how) for one, how in found],
        "verdicts": [{"key": v.key, "word": v.word, "claim": v.claim} for v in weighed],
    }  # fmt: skip
    where = f", {study.title(setting)}" if len(study.settings) > 1 else ""
    document = Document(
        "diagnose", f"{left} against {right}{where}", _answer(study, found, left, right),
        tuple(parts), data,
    )  # fmt: skip
    return results.units.said_in(document, study.loss_unit)


def _row(study: StudyResults, setting: str, name: str) -> str:
    rows = study.rows_of(setting, name)
    if len(rows) == 1:
        return rows[0]
    known = ", ".join(study.rows(setting))
    if rows:
        raise LandscapeError(f"{name!r} has the rows {', '.join(rows)}; name one of them.")
    raise LandscapeError(f"variant {name!r} asked; setting {setting!r} has {known}.")


def _differences(family: Family, setting: str, a: str, b: str) -> Iterator[tuple[Difference, str]]:
    """Each quantity that both have, with whose decision it is; the compared metric first."""
    study = family.study
    keys = [key for key in asked(study) if _both(family.values.get((setting, key)), a, b)]
    own = {
        key: family.values[setting, key].contrast(
            a, b, (setting, key), study.margin if key == study.metric else None
        )
        for key in keys
        if family.get(setting, a, b, key) is None
    }
    decided = stats.simultaneous(own) if own else {}
    for key in keys:
        one = family.get(setting, a, b, key)
        if one is not None:
            yield one, "the page"
        else:
            values = family.values[setting, key]
            plain = values.plain_difference(a, b)
            made = Difference(setting, a, b, values.metric, plain, decided[key], False)
            yield made, "exploratory"


def _both(values: Values | None, a: str, b: str) -> bool:
    """Whether both have a finite value: SGD has no energy of a perturbation to compare."""
    return values is not None and all(np.isfinite(values.plain(row)).any() for row in (a, b))


def _decided(one: Difference) -> str:
    decision = one.decision
    if not decision.tested:
        return "no test possible"
    within = words.margin(one.metric, decision)
    if one.sign:
        word = one.metric.comparative if one.sign > 0 else one.metric.opposite
        return f"{word}, by less than {within}" if decision.equivalent else word
    return f"equal within {within}" if decision.equivalent else "not resolved"


def _written(family: Family, one: Difference, how: str) -> tuple[str, ...]:
    values = family.values[one.setting, one.metric.key]
    means = [stats.metric_ci(values.metric, values.plain(row)) for row in (one.a, one.b)]
    effect = words.effect(one.metric, one.decision)
    p = words.p_value(one.decision.p)
    finite = METRICS[one.metric.key].measurement == "sharpness"
    at = f" at ρ = {words.trimmed(family.study.radius)}" if finite else ""
    return (
        words.sentence(METRICS[one.metric.key].name) + (" (%)" if one.metric.is_share else "") + at,
        *(f"{words.value(one.metric, ci.estimate)} (n = {ci.n})" for ci in means),
        words.plain_difference(one.metric, one.plain),
        ", ".join(part for part in (effect, p) if part),
        _decided(one),
        how,
    )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _numbers(one: Difference, how: str) -> dict[str, object]:
    decision: Decision = one.decision
    return {
        "quantity": one.metric.key, "plain": _finite(one.plain), "scale": one.metric.scale,
        "estimate": _finite(decision.interval.estimate), "low": _finite(decision.interval.low),
        "high": _finite(decision.interval.high), "n": decision.interval.n,
        "p": _finite(decision.p), "sign": one.sign, "equivalent": bool(decision.equivalent),
        "decided_by": how,
    }  # fmt: skip


def _answer(study: StudyResults, found: list[tuple[Difference, str]], left: str, right: str) -> str:
    """Better or worse in the compared metric, and in what else the two differ."""
    main = next((one for one, _ in found if one.metric.key == study.metric), None)
    if main is None:
        first = f"{left} and {right} have no {study.metric.replace('_', ' ')} in common."
    else:
        name = main.metric.name
        text = words.plain_difference(main.metric, main.plain)
        p = words.p_value(main.decision.p)
        small = ", and less than the margin" if main.decision.equivalent else ""
        first = {
            1: f"{left} has {main.metric.comparative} than {right} ({text}, {p}{small}).",
            -1: f"{left} has {main.metric.opposite} than {right} ({text}, {p}{small}).",
            0: f"{words.sentence(name)} of {left} and {right}: {_decided(main)} ({text}, {p}).",
        }[main.sign]
    others = [one for one, _ in found if one is not main]
    own = {one.metric.key for one, how in found if how == "exploratory"}
    resolved = [one for one in others if one.sign]
    names = {
        one.metric.key: METRICS[one.metric.key].name
        + (" (exploratory)" if one.metric.key in own else "")
        for one in resolved
    }
    apart = [names[one.metric.key] for one in resolved if not one.decision.equivalent]
    little = [names[one.metric.key] for one in resolved if one.decision.equivalent]
    rest = len(others) - len(resolved)
    if not others:
        return first
    if not resolved:
        return f"{first} In no other quantity is a difference resolved."
    said = [f"in {words.listing(apart)}"] if apart else []
    if little:
        said.append(f"by less than the margin in {words.listing(little)}")
    if rest:
        left_over = words.count(rest, "other quantity", "other quantities")
        said.append(f"in {left_over} no difference is resolved")
    return f"{first} They differ {'; '.join(said)}. What differs need not be the cause."
