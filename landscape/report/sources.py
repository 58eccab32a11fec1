"""What a sentence of the page rests on: figures, rows of the table, files with their digests."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from landscape.metrics import METRICS
from landscape.report.family import Claim
from landscape.report.paper import Section
from landscape.report.rules import HYPOTHESES
from landscape.report.study import StudyResults
from landscape.report.verdict import Verdict
from landscape.storage import folder_name


@dataclass(frozen=True)
class Source:
    """One result that a sentence was read from.

    figures: (anchor, title) where it is drawn. rows: (anchor, label) of the variants spoken of.
    path, sha256: the file below the study's folder ("" for one without a digest). command: prints
    its numbers, in that folder.
    """

    figures: tuple[tuple[str, str], ...]
    rows: tuple[tuple[str, str], ...]
    path: str
    sha256: str
    command: str


def row_anchor(setting: str, label: str) -> str:
    """Identity of a row of the evidence table."""
    return f"row-{folder_name(setting)}-{folder_name(label)}"


def sources(
    study: StudyResults, sections: Sequence[Section], claims: Iterable[Claim], setting: str
) -> list[Source]:
    """A source for each result that the claims are about, in the order of the claims."""
    claims = list(claims)
    names: dict[str, list[str]] = {}
    for claim in claims:
        metric = METRICS.get(claim.quantity)
        name = metric.measurement if metric else _outcome(study)
        if name in study.data:
            spoken = names.setdefault(name, [])
            spoken += [row for row in (claim.subject, claim.other) if row not in spoken]
    known = {v.id: v.label for v in study.variants(setting)}
    found = []
    for name, spoken in names.items():
        drawn = tuple(
            (one.stem, one.drawing.title)
            for section in sections
            for one in section.figures
            if name in one.measurements[:1] and one.setting == setting
        )
        rows = tuple((row_anchor(setting, known[r]), known[r]) for r in spoken if r in known)
        file = f"results/{name}.nc"
        found.append(
            Source(drawn[:1], rows, file, study.digests.get(name) or "",
                   f"landscape convert {file} {name}.csv")
        )  # fmt: skip
    return found


def spoken_of(study: StudyResults, claims: Iterable[Claim]) -> list[str]:
    """Labels of the variants that claims are about; none where they are about all."""
    found: dict[str, None] = {}
    for claim in claims:
        known = {v.id: v.label for v in study.variants(claim.setting)}
        found |= dict.fromkeys(known[row] for row in (claim.subject, claim.other) if row in known)
    return list(found)


def claims_of(verdict: Verdict) -> tuple[Claim, ...]:
    """What a verdict asserts, or, where it asserts nothing, what it was weighed by."""
    quantity = {h.key: h.quantity for h in HYPOTHESES}.get(verdict.key, "")
    return verdict.claims or (Claim("", verdict.setting, quantity),)


def _outcome(study: StudyResults) -> str:
    """A verdict is about the compared metric."""
    metric = METRICS.get(study.metric)
    return metric.measurement if metric else "generalization"
