"""The printed sentences of a page, read back: what each one asserts, from its words alone.

A page is held against a planted truth by `Claim`s that the report makes beside its sentences. A
sentence could say more than its claims do. Here the text is parsed by a grammar that has to know
every sentence: what it does not know is refused, so that no new sentence goes unread. The overview
is read as well: an interval that leaves out its line says that a difference is resolved.
"""

import math
import re
from collections.abc import Iterator, Sequence

import numpy as np

from landscape.metrics import FLATNESS, METRICS, Metric
from landscape.plot.drawing import Points, Rule
from landscape.report.evidence import Table, table
from landscape.report.family import Claim, Family
from landscape.report.findings import Answer, answer
from landscape.report.overview import overview
from landscape.report.statements import Statement
from landscape.report.study import StudyResults
from landscape.report.verdict import Verdict

NAME = r"[\w.-]+"
ENTRY = re.compile(rf"({NAME}) \(([^()]*)\)")


class UnknownSentenceError(Exception):
    """A sentence that the grammar does not know."""


def asserted(study: StudyResults) -> tuple[Answer, dict[str, list[Claim]]]:
    """The answer of a study's page, and everything that the page asserts, by place."""
    family = Family.of(study)
    said = answer(family)
    tables = [table(family, setting) for setting in study.settings]
    return said, {
        "headline": list(said.headline_claims),
        "findings": [claim for one in said.findings for claim in one.claims],
        "verdicts": [claim for one in said.verdicts for claim in one.claims],
        "tables": [claim for one in tables for claim in one.claims],
        "pictures": [claim for one in family.made.values() for claim in one.claims],
        "sentences": printed(family, said, tables),
    }


def printed(family: Family, said: Answer, tables: Sequence[Table] | None = None) -> list[Claim]:
    """What the printed sentences, verdicts, notes and overviews of a page assert."""
    settings = family.study.settings
    tables = [table(family, setting) for setting in settings] if tables is None else tables
    claims = list(_headline(family, said.headline))
    for finding in said.findings:
        claims += _finding(family, finding)
    for verdict in said.verdicts:
        claims += _verdict(verdict)
    for setting, shown in zip(settings, tables, strict=True):
        claims += _overview(family, setting)
        for note in shown.notes:
            _note(note)
    return claims


def _pair(kind: str, setting: str, key: str, a: str, b: str, margin: float = 0.0) -> Claim:
    return Claim(kind, setting, key, a, b, margin)


def _headline(family: Family, text: str) -> Iterator[Claim]:
    """Counts of better variants become claims on the variants that the tables call so."""
    study = family.study
    setting = study.settings[0]
    head, _, flat = text.partition("; ")
    if flat and flat != "flatness was not measured.":
        yield from _flat_words(family, setting, flat.split(" Nothing is said")[0])
    known = re.fullmatch(
        r"(All \d+ (?:variant|row)s have|\d+ of \d+ (?:variant|row)s? (?:has|have)|"
        r"Both (?:variant|row)s have|[\w.-]+ has|No (?:variant|row) is resolved to have) "
        r"a [\w ]+? than [\w.-]+(?: in \w+)?(?: \([^)]*\))?"
        r"(?:, and \d+ (?:has|have) a [\w ]+?)?(?: \([^)]*\))?(?:, but [^;]*)?\.?"
        r"(?: Nothing is said.*)?|All that is compared with [\w.-]+(?: in \w+)? are controls\.?|"
        r"\d+ variants?(?: \([^)]*\))? measured.*|One seed per variant cannot say.*|"
        r"No difference to [\w.-]+(?: in \w+)? can be tested\.",
        head,
    )
    if known is None:
        raise UnknownSentenceError(head)


def _flat_words(family: Family, setting: str, text: str) -> Iterator[Claim]:
    names = {METRICS[key].name: key for key in FLATNESS if (setting, key) in family.values}
    for part in re.split(r"(?=“better because flatter” is|whether flatness matters)", text):
        for word in ("supported", "confounded", "contradicted"):
            if f"flatter” is {word}" not in part:
                continue
            every = "whatever the measure" in part
            for name, key in names.items():
                if every or name in part:
                    yield Claim(word, setting, key, f"flatter_{key}")


def _finding(family: Family, finding: Statement) -> Iterator[Claim]:
    setting, metric = finding.setting, METRICS[family.study.metric]
    lead, text = finding.lead, finding.text
    against = re.search(r"(?:than|with) ([\w.-]+?)(?:,|\.$|\.| \(| are controls)", lead) or (
        re.search(r"told from a random mask(?: \(([\w.-]+)\))?\.", lead)
    )
    if lead.startswith((
        "Not every training", "Training loss at the end is not equal", "The same numbers in every",
        "Training loss was level",
    )):  # fmt: skip
        return
    if lead.startswith("“Better because flatter”"):
        yield from _ratios(family, setting, text)
        return
    if text.startswith("Intervals and p adjusted"):
        yield from _question(setting, metric, text)
        return
    if ", a control: " in text:
        yield from _early(family, setting, metric, lead)
        return
    if against is None and "can be tested" not in lead:
        raise UnknownSentenceError(lead)
    masks = family.study.controls(setting, "random_mask")
    other = (against and against.group(1)) or next(iter(masks), "")
    yield from _groups(setting, metric, other, text)


def _groups(setting: str, metric: Metric, other: str, text: str) -> Iterator[Claim]:
    """“Higher test accuracy: a (...), b (...). Not resolved: c (...).”"""
    titles = {
        metric.comparative: "better", metric.opposite: "worse", "not resolved": "",
        "seen, and not to be told from chance": "",
    }  # fmt: skip
    rest = re.sub(r"\([^()]*\)", lambda m: m.group().replace(". ", "; "), text)
    for sentence in re.split(r"(?<=\))\.\s*|\.\s+(?=[A-Z])", rest):
        title, _, listed = sentence.replace("Controls, not counted, ", "").partition(": ")
        key = title[:1].lower() + title[1:]
        within = re.fullmatch(r"equal within ([\d.]+) .*", key)
        if not sentence.strip() or key in ("seen, and not to be told from chance",):
            continue
        if within is None and key not in titles:
            raise UnknownSentenceError(sentence)
        for name, inside in ENTRY.findall(listed):
            if "so nothing is decided" in inside and (within or titles[key]):
                raise UnknownSentenceError(sentence)
            if within is not None:
                share = float(within.group(1))
                size = metric.threshold(share / 100) if metric.scale != "linear" else share / 100
                yield _pair("within", setting, metric.key, name, other, size)
            elif titles[key] == "better":
                yield _pair("better", setting, metric.key, name, other)
            elif titles[key] == "worse":
                yield _pair("better", setting, metric.key, other, name)


def _question(setting: str, metric: Metric, text: str) -> Iterator[Claim]:
    found = re.findall(rf"({NAME}) − ({NAME}): [^;]*?\(n = \d+\): ([\w ]+)", text)
    if not found:
        raise UnknownSentenceError(text)
    for a, b, state in found:
        if state == "better":
            yield _pair("better", setting, metric.key, a, b)
        elif state == "worse":
            yield _pair("better", setting, metric.key, b, a)
        elif state == "equal within the margin":
            yield _pair("within", setting, metric.key, a, b, metric.threshold())
        elif state != "not resolved":
            raise UnknownSentenceError(text)


def _early(family: Family, setting: str, metric: Metric, lead: str) -> Iterator[Claim]:
    base = family.study.references(setting)[0]
    key = metric.key
    if m := re.fullmatch(rf"({NAME}) does as well as ({NAME}) within the margin\.", lead):
        yield _pair("within", setting, key, *m.groups(), metric.threshold())
    elif m := re.fullmatch(
        rf"({NAME}) does not do as well as ({NAME})( and does better than the first reference)?\.",
        lead,
    ):
        yield _pair("better", setting, key, m.group(2), m.group(1))
        if m.group(3):
            yield _pair("better", setting, key, m.group(1), base)
    elif m := re.fullmatch(rf"({NAME}) does (better|worse) than ({NAME})(; [^.]*)?\.", lead):
        a, b = (m.group(1), m.group(3))[:: 1 if m.group(2) == "better" else -1]
        yield _pair("better", setting, key, a, b)
    elif not re.fullmatch(rf"Whether {NAME} does as well is not resolved\.", lead):
        raise UnknownSentenceError(lead)


def _ratios(family: Family, setting: str, text: str) -> Iterator[Claim]:
    base = family.study.references(setting)[0]
    body = text.partition("controls included. ")[2]
    names = {METRICS[key].name.lower(): key for key in FLATNESS}
    for part in re.split(r"\.\s+(?=[λHGW])|\.$", body):
        if not part.strip():
            continue
        name, _, rest = part.partition(": ")
        if name.lower() not in names:
            raise UnknownSentenceError(part)
        for side, listed in re.findall(r"(flatter|sharper) (.*?)(?=, sharper |, \d+ not|$)", rest):
            for row in re.findall(rf"({NAME}) \((?:[\d.e∞−]+ )?\[", listed):
                pair = (row, base) if side == "flatter" else (base, row)
                yield _pair("better", setting, names[name.lower()], *pair)


REASONS = (
    r"\d+ of \d+ effects? outside the margin agrees? \([^)]*\)",
    r"no variant's effect against .* is resolved outside the margin",
    r"no effect against a reference can be asked",
    r".* the other way round", r".* with an effect and an equal dose \([^)]*\)",
    r".*, with a gain above the margin excluded", r"\d+ variants?: too few for dose and response",
    r"(given [^:]*: )?dose and response over \d+ variants "
    r"(go together|not resolved to go together): r = .*",
    r".* goes with both", r"not shown: .*", r"there is no control \(.*\)",
    r"against .*", r".* is matched within \d+ % for \d+ of \d+",
    r".* (does|do) not perturb and (is|are) left out .*",
    r"over axes within variants r = .*",
    r"left out of dose and response: .*far from the others.*",
)  # fmt: skip


def _verdict(verdict: Verdict) -> Iterator[Claim]:
    quantity = next((c.quantity for c in verdict.claims), "")
    for reason in verdict.reasons:
        if not any(re.fullmatch(pattern, reason) for pattern in REASONS):
            raise UnknownSentenceError(reason)
        if re.match(r"dose and response over \d+ variants go together", reason):
            yield Claim("associated", verdict.setting, quantity, verdict.key)
    if verdict.word in ("supported", "confounded", "contradicted"):
        yield Claim(verdict.word, verdict.setting, quantity, verdict.key)


NOTES = (
    "One seed per variant", "Differences are paired by seed", "Declared before the first",
    "It is not known whether this was declared", "Declared was ", "The declaration was changed",
    "As good as: ", "Nothing is called as good as another: ",
    "Far from the other runs", "Gaussian sharpness over ½ρ² tr H/P", "λ₁, trace and sharpness: ",
    "± after λ₁ is the largest residual", "Means over seeds: of ", "No interval, as all seeds ",
)  # fmt: skip


def _note(note: str) -> None:
    if not note.startswith(NOTES):
        raise UnknownSentenceError(note)


def _overview(family: Family, setting: str) -> Iterator[Claim]:
    """An interval that leaves out the line of no difference is a claim."""
    drawing = overview(family, setting)
    titles = {m.what if m.scale != "linear" else m.name: m for m in METRICS.values()}
    titles["error"] = METRICS[family.study.metric]
    for panel in drawing.panels if drawing is not None else ():
        metric = titles[panel.title]
        line = next(mark.value for mark in panel.marks if isinstance(mark, Rule))
        base = panel.x.label.removeprefix("× ").removeprefix("minus ")
        for mark in panel.marks:
            if not isinstance(mark, Points) or mark.x_low is None:
                continue
            low, high = float(np.squeeze(mark.x_low)), float(np.squeeze(mark.x_high))
            if not math.isfinite(low) or low <= line <= high:
                continue
            lower_is_better = metric.better < 0 or panel.title == "error"
            better = (high < line) == lower_is_better
            pair = (mark.name, base) if better else (base, mark.name)
            yield _pair("better", setting, metric.key, *pair)
