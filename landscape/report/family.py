"""Every difference that the page states, decided together; and the claims that sentences make.

The page may make one error in twenty, that is: print any false claim. That share is divided
beforehand: PRIMARY for the declared metric against references and controls (and the pairs of
questions), OTHER for every other difference (further settings, flatness, radius, ...), DOSES for
associations over variants (`report.rules`). Within each, `stats.simultaneous` decides all at once.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import numpy as np

from landscape import stats
from landscape.metrics import METRICS, Metric
from landscape.plot.compared import Values
from landscape.report.observed import observe
from landscape.report.study import StudyResults
from landscape.stats import Decision

PRIMARY, OTHER, DOSES = 0.35, 0.25, 0.4
ALPHA = 1 - stats.LEVEL


@dataclass(frozen=True)
class Claim:
    """What a sentence asserts, apart from its words.

    kind: "better" (subject is better than other in the quantity), "outside" (by more than the
    margin), "within" (they differ by less than the margin), "associated" (over variants, rows that
    are better in the quantity are better in the metric), or a word of a verdict on the hypothesis
    `subject` ("supported", "contradicted", ...).
    """

    kind: str
    setting: str
    quantity: str
    subject: str = ""
    other: str = ""
    margin: float = 0.0


@dataclass(frozen=True)
class Difference:
    """a − b in one quantity: how large, and what the family decided.

    plain: mean difference in the quantity's own unit. primary: declared before the numbers.
    """

    setting: str
    a: str
    b: str
    metric: Metric
    plain: float
    decision: Decision
    primary: bool

    @property
    def sign(self) -> int:
        """+1 where a is better, −1 where it is worse, 0 where that is not resolved."""
        return self.decision.sign

    @property
    def claims(self) -> tuple[Claim, ...]:
        """What the decision asserts; nothing where nothing is resolved."""
        where = (self.setting, self.metric.key)
        better, worse = (self.a, self.b), (self.b, self.a)
        made = []
        if self.sign:
            made.append(Claim("better", *where, *(better if self.sign > 0 else worse)))
        if self.decision.beyond:
            pair = better if self.decision.beyond > 0 else worse
            made.append(Claim("outside", *where, *pair, self.decision.margin))
        if self.decision.equivalent:
            made.append(Claim("within", *where, *better, self.decision.margin))
        return tuple(made)

    def turned(self) -> "Difference":
        """B − a."""
        return replace(self, a=self.b, b=self.a, plain=-self.plain, decision=self.decision.turned())


@dataclass(frozen=True)
class Family:
    """All differences of a study, in every setting; `get` turns them round as needed."""

    study: StudyResults
    values: dict[tuple[str, str], Values]  # by setting and key of the quantity
    made: dict[tuple[str, str, str, str], Difference] = field(default_factory=dict)

    @classmethod
    def of(cls, study: StudyResults) -> "Family":
        """Make and decide every difference that the page may state."""
        values = {
            (setting, key): found
            for setting in study.settings
            for key in asked(study)
            if (found := observe(study, setting, key)) is not None
        }
        primary, other = {}, {}
        for (setting, key), found in values.items():
            for a, b, declared in _pairs(study, setting, key, found):
                margin = study.margin if key == study.metric else None
                contrast = found.contrast(a, b, (setting, key), margin)
                (primary if declared else other)[setting, a, b, key] = contrast
        family = cls(study, values)
        for contrasts, share in ((primary, PRIMARY), (other, OTHER)):
            decided = stats.simultaneous(contrasts, share=share)
            for place, decision in decided.items():
                setting, a, b, key = place
                found = values[setting, key]
                family.made[place] = Difference(
                    setting, a, b, found.metric, found.plain_difference(a, b), decision,
                    contrasts is primary,
                )  # fmt: skip
        return family

    def get(self, setting: str, a: str, b: str, key: str = "") -> Difference | None:
        """The difference a − b, turned round if b − a was made."""
        key = key or self.study.metric
        if (setting, a, b, key) in self.made:
            return self.made[setting, a, b, key]
        back = self.made.get((setting, b, a, key))
        return None if back is None else back.turned()

    def base(self, setting: str, key: str) -> str:
        """The first reference that has the quantity: SGD does not perturb and has no radius."""
        found = self.values.get((setting, key))
        return "" if found is None else _base(self.study, setting, found)

    def to(self, setting: str, reference: str, key: str = "") -> list[Difference]:
        """Every row of a setting minus its partner of one reference."""
        rows = self.study.rows(setting)
        partners = {row: self.study.partner(setting, row, reference) for row in rows}
        found = (self.get(setting, a, b, key) for a, b in partners.items() if b is not None)
        return [one for one in found if one is not None]

    def counted(self, differences: Iterable[Difference]) -> list[Difference]:
        """Those of variants: controls are not counted among them."""
        return [d for d in differences if not self.study.is_control(d.a, d.setting)]

    def repeated(self, setting: str) -> dict[str, str]:
        """Rows that have every value of an earlier row, seed by seed, and that row.

        Two names of one model are no two variants. Shares of examples may be equal by chance, so
        that a row without another value is nobody's double.
        """
        # What a recipe perturbs is no property of the model that it left.
        here = [values for (where, _), values in self.values.items()
                if where == setting and values.metric.measurement != "perturbation"]  # fmt: skip
        first: dict[tuple[tuple[tuple[int, float], ...], ...], str] = {}
        found = {}
        for row in self.study.rows(setting):
            seen = tuple(tuple(sorted(values.raw.get(row, {}).items())) for values in here)
            numbers = [v for one, values in zip(here, seen, strict=True)
                       if not one.metric.is_share for _, v in values]  # fmt: skip
            if not numbers or not np.isfinite(numbers).all() or not np.any(numbers):
                continue
            other = first.setdefault(seen, row)
            if other != row:
                found[row] = other
        return found

    @property
    def size(self) -> tuple[int, int]:
        """How many differences were decided as primary, and how many others."""
        primary = sum(one.primary for one in self.made.values())
        return primary, len(self.made) - primary


def asked(study: StudyResults) -> list[str]:
    """Quantities that the page compares: the metric, and every row of the table beside outcomes."""
    causes = [key for key, one in METRICS.items() if one.measurement != "generalization"]
    return list(dict.fromkeys([study.metric, *causes, "train_loss", "mislabelled_fit"]))


def _base(study: StudyResults, setting: str, found: Values) -> str:
    for reference in study.references(setting):
        if any(np.isfinite(found.plain(row)).any() for row in study.rows_of(setting, reference)):
            return reference
    return ""


def _pairs(
    study: StudyResults, setting: str, key: str, found: Values
) -> list[tuple[str, str, bool]]:
    """(a, b, declared) of one quantity: each pair of rows once."""
    references = study.references(setting)
    primary = setting == study.settings[0] and key == study.metric
    against = references if key == study.metric else [_base(study, setting, found)]
    pairs: dict[tuple[str, str], bool] = {}

    def add(a: str, b: str | None, declared: bool) -> None:
        if b is not None and a != b and (a, b) not in pairs and (b, a) not in pairs:
            pairs[a, b] = declared

    for reference in against:
        for row in study.rows(setting):
            add(row, study.partner(setting, row, reference), primary)
    if key == study.metric:
        if setting == study.comparisons.get("setting"):
            for question in study.comparisons.get("questions") or []:
                for a, b in question["pairs"]:
                    for left, right in study.row_pairs(setting, a, b):
                        add(left, right, primary)
        for recipe in ("random_mask", "sgd"):
            for control in study.control_families(setting, recipe):
                for row in study.rows(setting):
                    add(row, study.partner(setting, row, control), primary)
    return [(a, b, declared) for (a, b), declared in pairs.items()]
