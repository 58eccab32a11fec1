"""Why the better variants are better: each hypothesis as data, and one rule that weighs it.

A hypothesis names a quantity, the direction in which it predicts better variants to differ, the
quantities that must not explain the same (they are conditioned on), and the controls that must not
do as well without it. The rule reads differences from the family and associations over variants:

supported      effects lie outside the margin; dose goes with response over variants (one at several
               values of an axis, rho among them, is one point: its mean over runs but for
               outlying ones), and also over the axis within variants; it still does given training
               loss and effective radius, in whatever form these enter; and no control does better
               than its own dose predicts, while variants of more dose do better than the control.
confounded     dose goes with response, but not given the others, and one of these goes with both.
contradicted   most resolved effects, two at least, run against the prediction, and so do the
               variants among each other (where these are too few to ask, no effect agrees); or
               there are no effects, and for most variants of more dose, two at least, a gain above
               the margin is excluded.
compatible     most resolved effects, two at least, agree, or the dose goes with the response, and
               a condition of "supported" fails or could not be checked.
not resolved   none of these.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import scipy

from landscape import stats
from landscape.metrics import METRICS
from landscape.report import words
from landscape.report.family import ALPHA, DOSES, Claim, Family
from landscape.report.study import StudyResults
from landscape.stats import Association

SUPPORTED, CONFOUNDED, CONTRADICTED = "supported", "confounded", "contradicted"
COMPATIBLE, UNRESOLVED = "compatible", "not resolved"
WORDS = (SUPPORTED, CONFOUNDED, CONTRADICTED, COMPATIBLE, UNRESOLVED)

# Variants that have to go with a prediction, or against it, before either is said: one may be odd.
MOST = 2
# Share of the associations' error for the measures of flatness, given the same covariates; the
# other hypotheses share the rest.
FLATNESS_SHARE = 0.8
# Share of the first setting, where comparisons are declared for it; the others are beside it.
FIRST_SHARE = 0.75


Form = Literal["scaled", "raw"]


@dataclass(frozen=True)
class Hypothesis:
    """One explanation, as data.

    quantity: a row of the metric table. sign: +1 where better variants are predicted to be better
    in it (flatter), −1 where they are predicted to be worse in it (a higher training loss). given:
    quantities that are conditioned on. controls: recipes whose rows must not do better than their
    dose predicts; one of them must be there. agrees, opposes: how a variant with and against the
    dose is called. claim: the sentence that is weighed.
    """

    key: str
    quantity: str
    sign: int
    given: tuple[str, ...]
    controls: tuple[str, ...]
    agrees: str
    opposes: str
    claim: str


BOTH = ("train_loss", "rho_eff")
_CONTROLS = ("random_mask", "sgd")


def _flatter(key: str) -> Hypothesis:
    name = METRICS[key].name
    return Hypothesis(
        f"flatter_{key}", key, 1, BOTH, _CONTROLS, "flatter", "sharper",
        f"better because flatter, by {name}",
    )  # fmt: skip


RULES = (
    "Supported: an effect lies outside the margin, dose goes with response over variants (and over "
    "an axis, such as rho, within them; a variant counts once, by its runs but for outlying ones), "
    "it still does given training loss and effective radius in every form that was tried, and "
    "controls do no better than their own dose predicts. Confounded: not given these, and one of "
    "them goes with both and explains more. "
    "Contradicted: most effects, two at least, run the other way and so do variants among each "
    "other (none agrees, where these are too few to ask), or the dose is there and a gain above "
    "the margin is excluded. Compatible: most effects, two at least, agree, and a condition of "
    "“supported” fails. Not resolved: none of "
    "these. Controls are not counted as variants. Correlation is not mechanism."
)

HYPOTHESES = (
    _flatter("lambda1"),
    _flatter("trace"),
    _flatter("gaussian"),
    _flatter("worst"),
    Hypothesis("radius", "rho_eff", 1, ("train_loss",), ("random_mask",), "perturbed less far",
               "perturbed further", "better because the effective radius is smaller"),
    Hypothesis("fitting", "train_loss", -1, ("rho_eff",), ("sgd",), "fitted more slowly",
               "fitted faster", "better because the training data are fitted more slowly"),
    Hypothesis("energy", "norm_energy", 1, BOTH, ("random_mask",), "more on normalization layers",
               "less on normalization layers",
               "better because normalization layers are perturbed more"),
    Hypothesis("norm", "theta_norm", -1, BOTH, ("sgd",), "of larger norm", "of smaller norm",
               "better because the weights grow larger"),
    Hypothesis("memorization", "mislabelled_fit", 1, ("rho_eff",), ("sgd",),
               "fits fewer wrong labels", "fits more wrong labels",
               "better because fewer wrong labels are learned"),
)  # fmt: skip


@dataclass(frozen=True)
class Effects:
    """Rows whose effect is outside the margin, by what the hypothesis says of them."""

    agree: tuple[str, ...]
    oppose: tuple[str, ...]
    same: tuple[str, ...]  # the effect is there, and the dose is equal within its margin
    open: tuple[str, ...]
    dose_only: tuple[str, ...]  # the dose is there, and an effect above the margin is excluded
    dosed: int  # rows with a resolved dose as predicted

    @property
    def total(self) -> int:
        """Rows with an effect."""
        return len(self.agree) + len(self.oppose) + len(self.same) + len(self.open)


@dataclass(frozen=True)
class Weighed:
    """A hypothesis in one setting: its word, and every number behind it."""

    setting: str
    hypothesis: Hypothesis
    word: str
    effects: Effects
    plain: Association
    given: Association
    conditioned: tuple[str, ...]  # of hypothesis.given, what was measured
    confounder: str  # the quantity that goes with both, if any
    failing: tuple[str, ...]  # conditions of "supported" that do not hold, in words
    base: str  # the reference of the effects: the first that has the quantity, "" without one
    left_out: tuple[str, ...]  # rows that do not perturb, where the effective radius is asked
    far: Mapping[tuple[str, int], str]  # outlying runs (row, seed), no part of dose and response,
    # and the quantities (a name each) in which they are
    within: float  # correlation of dose and response over axes within variants, NaN without axes

    @property
    def claims(self) -> tuple[Claim, ...]:
        """What the word asserts; "compatible" and "not resolved" assert nothing."""
        where = (self.setting, self.hypothesis.quantity)
        said = self.word in (SUPPORTED, CONFOUNDED, CONTRADICTED)
        made = [Claim(self.word, *where, self.hypothesis.key)] if said else []
        if resolved(self.plain):
            made.append(Claim("associated", *where, self.hypothesis.key))
        return tuple(made)


def resolved(one: Association) -> bool:
    """Whether an association is resolved (its p is adjusted already)."""
    return math.isfinite(one.p) and one.p < ALPHA


def weigh(family: Family, setting: str) -> list[Weighed]:
    """Weigh every hypothesis whose quantity was measured in a setting."""
    points = _VariantPoints(family, setting)
    known = [h for h in HYPOTHESES if (setting, h.quantity) in family.values]
    if len(points.rows) < 2 or (setting, family.study.metric) not in family.values:
        return []
    if not METRICS[family.study.metric].held_out:
        # What is better on the training data needs no explanation by flatness.
        return []
    known = [h for h in known if h.quantity != family.study.metric]
    share = DOSES * _share_of(family.study, setting)
    groups: dict[tuple[str, ...], list[Hypothesis]] = {}
    for one in known:
        groups.setdefault(one.given, []).append(one)
    weighed = {}
    for names, members in groups.items():
        part = share * _part(names, groups)
        measured = tuple(name for name in names if (setting, name) in family.values)
        plain = points.associations(members, (), part)
        # Asked only of what goes together at all: a fixed sequence, which costs nothing.
        given = points.associations(members, measured, part)
        for one, *both in zip(members, plain, given, strict=True):
            weighed[one] = _weighed(points, one, *both, measured)
    return [weighed[one] for one in known]


def _part(names: tuple[str, ...], groups: Collection[tuple[str, ...]]) -> float:
    """The part of the associations' error of the hypotheses with the same covariates."""
    if len(groups) == 1:
        return 1.0
    others = len(groups) - (BOTH in groups)
    return FLATNESS_SHARE if names == BOTH else (1 - FLATNESS_SHARE) / others


def _share_of(study: StudyResults, setting: str) -> float:
    """The part of the associations' error that one setting has: the first one most of it.

    Only settings with enough variants for dose and response share.
    """
    counts = {
        name: len(study.by_variant(
            name, [row for row in study.rows(name) if not study.is_control(row, name)]
        ))
        for name in study.settings
    }  # fmt: skip
    enough = [name for name in study.settings
              if counts[name] >= 2 + stats.SMALLEST_DF]  # fmt: skip
    if len(enough) < 2 or setting not in enough:
        return 1.0 / max(len(enough), 1)
    rest = (1 - FIRST_SHARE) / (len(enough) - 1)
    return FIRST_SHARE if setting == enough[0] else rest


class _VariantPoints:
    """Variants of one setting as points: dose and response, means over seeds and own axes."""

    def __init__(self, family: Family, setting: str) -> None:
        self.family, self.setting, self.study = family, setting, family.study
        again = family.repeated(setting)
        rows = [row for row in self.study.rows(setting) if row not in again]
        self.rows = [row for row in rows if not self.study.is_control(row, setting)]
        self.controls = [row for row in rows if row not in self.rows]
        # Rows of one variant have more in common than its axis: they are no points of their own.
        self.variants = self.study.by_variant(setting, self.rows)
        self.far = self._far()
        self._known: dict[tuple[str, Form], dict[str, float]] = {}

    def mean(self, key: str, row: str) -> float:
        """Mean of a quantity on its scale; NaN where a run failed or is not there."""
        return self._by_row(key, "scaled")[row]

    def means(self, key: str, form: Form = "scaled") -> np.ndarray:
        """Mean of a quantity by variant, on its scale or as measured."""
        found = self._by_row(key, form)
        return np.array([np.mean([found[row] for row in rows]) for rows in self.variants.values()])

    def _by_row(self, key: str, form: Form) -> dict[str, float]:
        """Means of rows and controls as if each had every seed, without runs outlying in anything.

        One run, sharp and bad at once, would make a correlation of its own, also where it is far
        off in one of the two alone: noise may hide the other.
        """
        if (key, form) not in self._known:
            values = self.family.values.get((self.setting, key))
            table = {} if values is None else getattr(values, form)
            self._known[key, form] = stats.row_means({
                row: {s: v for s, v in table.get(row, {}).items() if (row, s) not in self.far}
                for row in (*self.rows, *self.controls)
            })  # fmt: skip
        return self._known[key, form]

    def _far(self) -> dict[tuple[str, int], str]:
        """(row, seed) of runs of variants that are far from the others, and in which quantities."""
        keys = dict.fromkeys([self.study.metric, *(one.quantity for one in HYPOTHESES)])
        known = [self.family.values[self.setting, key] for key in keys
                 if (self.setting, key) in self.family.values]  # fmt: skip
        found: dict[tuple[str, int], list[str]] = {}
        for values in known:
            for row, seed, _ in values.outlying:
                if row in self.rows:
                    found.setdefault((row, seed), []).append(values.metric.name)
        return {run: words.listing(names) for run, names in found.items()}

    def response(self) -> np.ndarray:
        """The metric by variant, larger is better."""
        return self.means(self.study.metric)

    def dose(self, one: Hypothesis) -> np.ndarray:
        """The hypothesis's quantity by variant, larger as predicted of better ones."""
        return one.sign * self.means(one.quantity)

    def within(self, one: Hypothesis) -> float:
        """Correlation of dose and response over rows, each less its variant's mean."""
        left: list[np.ndarray] = []
        for rows in self.variants.values():
            pairs = np.array([
                (one.sign * self.mean(one.quantity, row), self.mean(self.study.metric, row))
                for row in rows
            ])  # fmt: skip
            pairs = pairs[np.isfinite(pairs).all(1)]
            left.append(pairs - pairs.mean(0) if len(pairs) > 1 else np.zeros((0, 2)))
        x, y = np.concatenate(left).T if left else (np.zeros(0), np.zeros(0))
        if x.size < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
            return math.nan
        return float(x @ y / np.sqrt((x @ x) * (y @ y)))

    def associations(
        self, asked: Sequence[Hypothesis], given: Sequence[str], share: float
    ) -> list[Association]:
        """Dose and response of several hypotheses, given quantities in their least kind form."""
        doses = [self.dose(one) for one in asked]
        found = [
            stats.dose_response(doses, self.response(), covariates)
            for covariates in self._forms(given)
        ]
        worst = []
        for several in zip(*found, strict=True):
            one = max(several, key=lambda a: a.p if math.isfinite(a.p) else math.inf)
            worst.append(Association(one.r, float(np.minimum(one.p / share, 1.0)), one.n, one.df))
        return worst

    def _forms(self, given: Sequence[str]) -> list[np.ndarray | None]:
        """Covariates on their scale, as measured and as ranks: which is right is not known."""
        if not given:
            return [None]
        scaled = [self.means(name) for name in given]
        plain = [self.means(name, "raw") for name in given]
        return [np.array(scaled), np.array(plain), np.array([_ranks(v) for v in plain])]

    def left_out(self, keys: Sequence[str]) -> tuple[str, ...]:
        """Rows that do not perturb, where the effective radius is among what is asked."""
        values = self.family.values.get((self.setting, "rho_eff"))
        if values is None or "rho_eff" not in keys:
            return ()
        return tuple(row for row in self.rows if row not in values.raw)

    def effects(self, one: Hypothesis) -> Effects:
        """Which rows have an effect outside the margin, and which way their dose differs."""
        placed: dict[str, list[str]] = {"agree": [], "oppose": [], "same": [], "open": []}
        only, dosed = [], 0
        base = self.family.base(self.setting, one.quantity)
        for row in self.rows if base else ():
            partner = self.study.partner(self.setting, row, base)
            if not partner:
                continue
            effect = self.family.get(self.setting, row, partner)
            dose = self.family.get(self.setting, row, partner, one.quantity)
            if effect is None or dose is None:
                continue
            way, towards = effect.decision.beyond, one.sign * dose.sign
            dosed += towards > 0
            if way:
                same = "same" if dose.decision.equivalent else "open"
                place = {1: "agree", -1: "oppose", 0: same}[way * towards]
                placed[place].append(row)
            elif towards > 0 and effect.decision.interval.high < effect.decision.margin:
                only.append(row)
        groups = {name: tuple(rows) for name, rows in placed.items()}
        return Effects(**groups, dose_only=tuple(only), dosed=dosed)

    def any_effect(self) -> bool:
        """Whether any difference of a variant to a reference or control is outside the margin."""
        key = self.study.metric
        return any(
            one.decision.beyond and one.metric.key == key and one.a in self.rows
            for one in self.family.made.values()
            if one.setting == self.setting
        )

    def confounder(self, one: Hypothesis, given: Sequence[str]) -> str:
        """Of `given`, what goes with dose and response and leaves the dose less to explain than it.

        It correlates with both (|r| above one half) and tells more of the response than the dose
        does, alone and given each other: a bystander that goes with both by chance does not.
        """
        found = {}
        x, y = self.dose(one), self.response()
        for name in given:
            z = self.means(name, "raw")
            with_dose, with_response, plain = (
                abs(stats.partial_correlation(a, b)) for a, b in ((z, x), (z, y), (x, y))
            )
            rest = abs(stats.partial_correlation(z, y, [x]))
            more = with_response > plain and rest > abs(stats.partial_correlation(x, y, [z]))
            if min(with_dose, with_response) > 0.5 and more:
                found[name] = min(with_dose, with_response)
        return max(found, key=lambda name: found[name], default="")

    def control_reasons(self, one: Hypothesis) -> list[str]:
        """What the controls say against it, in words; also that there is none."""
        label = lambda row: self.study.label(self.setting, row)  # noqa: E731
        rows = [row for row in self.controls if self.study.recipe(row) in one.controls]
        reasons = []
        x, y = self.dose(one), self.response()
        present = np.isfinite(x) & np.isfinite(y)
        checked = 0
        for row in rows:
            dose = one.sign * self.mean(one.quantity, row)
            seen = self.mean(self.study.metric, row)
            if not (math.isfinite(dose) and math.isfinite(seen)):
                continue
            checked += 1
            if seen > _prediction_limit(x[present], y[present], dose):
                reasons.append(f"{label(row)} (control) lies above the prediction for its dose")
            more = [r for r in self.rows if one.sign * self.mean(one.quantity, r) > dose]
            made = [d for r in more if (d := self.family.get(self.setting, r, row)) is not None]
            above = any(one.sign > 0 for one in made)
            if made and not above and len(more) > len(self.rows) / 2:
                reasons.append(f"no variant is resolved above {label(row)} (control)")
        if not checked:
            names = " or ".join({"sgd": "SGD stopped early"}.get(r, "a random mask")
                                for r in one.controls)  # fmt: skip
            reasons.append(f"there is no control ({names})")
        return reasons


def _weighed(
    points: _VariantPoints, one: Hypothesis, plain: Association, given: Association,
    conditioned: tuple[str, ...],
) -> Weighed:  # fmt: skip
    effects = points.effects(one)
    confounder = points.confounder(one, conditioned) if resolved(plain) else ""
    within = points.within(one)
    failing = list(_failing(points, one, effects, plain, given, conditioned))
    if within <= 0:
        failing.append("over axes within variants dose and response do not go the same way")
    word = _word(effects, plain, given, confounder, failing)
    return Weighed(
        points.setting, one, word, effects, plain, given, conditioned, confounder, tuple(failing),
        points.family.base(points.setting, one.quantity),
        points.left_out((one.quantity, *conditioned)),
        points.far, within,
    )  # fmt: skip


def _failing(
    points: _VariantPoints, one: Hypothesis, effects: Effects, plain: Association,
    given: Association, conditioned: tuple[str, ...],
) -> list[str]:  # fmt: skip
    """Conditions of "supported" that do not hold."""
    reasons = []
    if not points.any_effect():
        reasons.append("no effect is resolved outside the margin")
    if len(effects.oppose) >= max(len(effects.agree), 1):
        reasons.append("as many resolved effects oppose it as agree")
    if not resolved(plain):
        reasons.append("dose and response over variants are not resolved to go together")
    absent = [METRICS[name].name for name in one.given if name not in conditioned]
    if absent:
        reasons.append(f"{' and '.join(absent)} not measured, so not conditioned on")
    elif not resolved(given):
        names = " and ".join(METRICS[name].name for name in one.given)
        reasons.append(f"not resolved given {names}")
    return reasons + points.control_reasons(one)


def _word(
    effects: Effects, plain: Association, given: Association, confounder: str,
    failing: Sequence[str],
) -> str:  # fmt: skip
    against, half = len(effects.oppose) + len(effects.same), effects.total / 2
    if not failing:
        return SUPPORTED
    if not effects.total:
        excluded = len(effects.dose_only)
        excludes = excluded >= MOST and 2 * excluded > effects.dosed and not resolved(plain)
        return CONTRADICTED if excludes else UNRESOLVED
    # All effects are against one reference: what is odd about it must not decide alone, nor may
    # one variant.
    turned = plain.r < 0 if math.isfinite(plain.r) else not effects.agree
    if against > half and against >= MOST and turned:
        return CONTRADICTED
    if resolved(plain):
        return CONFOUNDED if confounder and not resolved(given) else COMPATIBLE
    agrees = len(effects.agree) >= MOST and len(effects.agree) > half
    return COMPATIBLE if agrees else UNRESOLVED


def _prediction_limit(x: np.ndarray, y: np.ndarray, at: float) -> float:
    """Upper end of the 95 % prediction interval of a line through (x, y), at one more x."""
    n = x.size
    if n < 4 or np.ptp(x) <= 1e-9 * np.abs(x).max():
        return math.inf
    slope, intercept = np.polyfit(x, y, 1)
    left = y - slope * x - intercept
    variance = float(left @ left) / (n - 2)
    leverage = 1 + 1 / n + (at - x.mean()) ** 2 / float(((x - x.mean()) ** 2).sum())
    return float(
        intercept + slope * at + scipy.stats.t.ppf(0.975, n - 2) * math.sqrt(variance * leverage)
    )


def _ranks(values: np.ndarray) -> np.ndarray:
    return scipy.stats.rankdata(values, nan_policy="omit")
