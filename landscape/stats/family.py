"""Many differences at once: one family of tests with intervals that agree with its decisions.

Each difference is a mean over seeds, studentized. The family's error, that any difference is called
resolved which is none, stays below its level by the law of the largest |t| (max-t, Westfall and
Young 1993): from eight seeds on by flipping the signs of whole seeds, which keeps the correlation
of all differences; below that, where 2^n sign vectors are too few, by Student's law with Šidák's
bound for the maximum (1967), which holds for any correlation of normal numerators. Everything is
single-step, so an interval leaves out 0 exactly where the adjusted p is below the level.
"""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import scipy

from landscape.stats.intervals import LEVEL, Interval

FLIPS_FROM = 8  # seeds
_DRAWS = 4096
# Degrees of freedom that the mean variance of a quantity's differences adds to each own variance.
# Four: with three to seven seeds and scales up to fourfold apart the family's error stays at its
# level, which benchmarks/planted.py simulates; the whole pool (as if all were equal) does not.
PRIOR_DF = 4.0
_POWER = 0.8

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class Contrast:
    """A difference by seed, on a scale on which larger is better.

    seeds, differences: (n,), the seeds that both sides have. examples: (n, N), what each test
    example adds to each seed's difference (influence, its mean over examples is 0), where the
    difference is one of N examples; then the choice of the examples is part of the error, crossed
    with the seeds. least_variance: what seeds and examples together leave of the error at the
    least, also where no example of these tells the sides apart. quantity: differences with the same
    one inform each other's variance. margin: a smaller difference counts as none. failed: seeds of
    either side without a finite value.

    Example:
        >>> contrast = stats.Contrast(seeds=[0, 1, 2], differences=np.array([0.01, 0.02, 0.03]))
        >>> round(float(contrast.differences.mean()), 6)
        0.02
    """

    seeds: Sequence[int]
    differences: np.ndarray
    quantity: Hashable = ""
    margin: float = 0.0
    examples: np.ndarray | None = None
    failed: int = 0
    least_variance: float = 0.0


@dataclass(frozen=True)
class Decision:
    """What the family says of one difference.

    interval: simultaneous over the family. p: adjusted. smallest_p: no difference can have a
    smaller one with these seeds. detectable: the true difference that is resolved with probability
    0.8. method: "sign flips", "Student" or "" where nothing could be tested.
    margin, failed: as of the `Contrast`.

    Example:
        >>> apart = np.linspace(0.9, 1.1, 8)
        >>> decision = stats.simultaneous({"sam": stats.Contrast(range(8), apart)})["sam"]
        >>> decision.method, decision.sign, decision.p < 0.05
        ('sign flips', 1, True)
    """

    interval: Interval
    p: float
    smallest_p: float
    detectable: float
    margin: float
    failed: int
    method: str

    @property
    def tested(self) -> bool:
        """Whether there was anything to test: two seeds at least, spread, and no failed run."""
        return math.isfinite(self.p)

    @property
    def sign(self) -> int:
        """+1 better, −1 worse, 0 not resolved."""
        if not self.interval.excludes(0):
            return 0
        return 1 if self.interval.estimate > 0 else -1

    @property
    def beyond(self) -> int:
        """`sign` where the whole interval lies outside the margin, else 0."""
        outside = self.interval.low > self.margin or self.interval.high < -self.margin
        return self.sign if outside else 0

    @property
    def equivalent(self) -> bool:
        """Whether the whole interval lies within the margin."""
        inside = -self.margin < self.interval.low and self.interval.high < self.margin
        return self.interval.known and inside

    def turned(self) -> "Decision":
        """The decision on b − a."""
        ci = self.interval
        other = Interval(-ci.estimate, -ci.high, -ci.low, ci.n, ci.missing, ci.level)
        return replace(self, interval=other)


def simultaneous(
    contrasts: Mapping[Key, Contrast], *, share: float = 1.0, level: float = LEVEL
) -> dict[Key, Decision]:
    """Decide all contrasts together; the order in which they are given changes nothing.

    share: of the error 1 − level that this family may make, where several families make up a
    page; p is divided by it. Sign flips are used where every contrast has 8 seeds or more. The
    resampling of signs is by seed and by test example, from a fixed stream; the names of seeds do
    not matter. A contrast with failed runs is not tested: the runs that are left went well.
    Max-t of Westfall & Young (1993); below eight seeds the bound of Šidák (1967).

    Example:
        >>> apart = {"sam": np.linspace(0.9, 1.1, 8), "mine": np.linspace(-1, 1, 8)}
        >>> found = stats.simultaneous({k: stats.Contrast(range(8), d) for k, d in apart.items()})
        >>> {name: decision.sign for name, decision in found.items()}
        {'sam': 1, 'mine': 0}
    """
    kept = {
        key: c
        for key, c in contrasts.items()
        if not c.failed and np.isfinite(c.differences).sum() > 1
    }
    nothing = {key: _untested(c, level) for key, c in contrasts.items() if key not in kept}
    if not kept:
        return nothing
    table = _SeedTable(list(kept.values()))
    alpha = (1 - level) * share
    made = _by_flips if table.n.min() >= FLIPS_FROM else _by_student
    p, critical, smallest = made(table, alpha)
    method = "sign flips" if made is _by_flips else "Student"
    decided = {}
    for j, (key, c) in enumerate(kept.items()):
        mean, se = float(table.mean[j]), float(table.se[j])
        n = int(table.n[j])
        if not se > 0:
            decided[key] = _untested(c, level)
            continue
        half = float(critical[j]) * se
        ci = Interval(mean, mean - half, mean + half, n, c.failed, level)
        detectable = half + float(scipy.stats.norm.ppf(_POWER)) * se
        decided[key] = Decision(
            ci, min(1.0, float(p[j]) / share), min(1.0, smallest / share), detectable, c.margin,
            c.failed, method,
        )  # fmt: skip
    return {key: decided.get(key) or nothing[key] for key in contrasts}


def _untested(c: Contrast, level: float) -> Decision:
    finite = c.differences[np.isfinite(c.differences)]
    # Differences of exactly 0 in every seed are one and the same model, but where other examples
    # might tell two apart.
    same = finite.size > 1 and not c.failed and bool(np.all(finite == 0))
    same = same and not c.least_variance
    mean = float(finite.mean()) if finite.size else math.nan
    ends = (0.0, 0.0) if same else (math.nan, math.nan)
    ci = Interval(mean, *ends, finite.size, c.failed, level)
    return Decision(ci, 1.0 if same else math.nan, math.nan, math.nan, c.margin, c.failed, "")


class _SeedTable:
    """All contrasts as columns over the union of their seeds, with their standard errors."""

    def __init__(self, contrasts: Sequence[Contrast]) -> None:
        seeds = sorted({seed for c in contrasts for seed in c.seeds})
        self.values = np.zeros((len(seeds), len(contrasts)))
        present = np.zeros_like(self.values)
        for j, c in enumerate(contrasts):
            for seed, value in zip(c.seeds, c.differences, strict=True):
                if math.isfinite(value):
                    self.values[seeds.index(seed), j], present[seeds.index(seed), j] = value, 1
        # Flips are drawn by place: seeds in an order of their values, so that no name matters.
        order = np.lexsort(np.sort(self.values, axis=1).T)
        self.values, present = self.values[order], present[order]
        self.n = present.sum(0)
        self.squares = (self.values**2).sum(0)
        self.mean = self.values.sum(0) / self.n
        kinds = {kind: i for i, kind in enumerate(dict.fromkeys(c.quantity for c in contrasts))}
        self.kind = np.array([kinds[c.quantity] for c in contrasts])
        members = np.bincount(self.kind)
        # A prior cannot know more than the variances that it is the mean of.
        self.prior_df = np.minimum(PRIOR_DF, (members[self.kind] - 1) * (self.n - 1) / 2)
        parts = [_example_part(c) for c in contrasts]
        self.example_variance = np.array([variance for variance, _ in parts])
        self.least = np.array([c.least_variance for c in contrasts])
        self.examples = [influence for _, influence in parts]
        self.se = self.standard_errors(self.mean[None])[0]
        # What neither seeds nor examples show has no values of its own to be drawn from.
        self.unseen = np.where(self.se**2 > self.least, 0.0, self.least)

    @property
    def df(self) -> np.ndarray:
        return self.n - 1 + self.prior_df

    def standard_errors(self, means: np.ndarray) -> np.ndarray:
        """(draws, contrasts), of means that sign flips made: flips keep the sum of squares."""
        own = np.maximum(self.squares - self.n * means**2, 0) / (self.n - 1)
        pooled = np.empty_like(own)
        for kind in range(self.kind.max() + 1):
            pooled[:, self.kind == kind] = own[:, self.kind == kind].mean(1, keepdims=True)
        variance = (self.prior_df * pooled + (self.n - 1) * own) / self.df
        # Rounding is no spread.
        floor = (64 * np.finfo(float).eps) ** 2 * self.squares / self.n
        variance = np.where(variance > floor, variance, 0.0)
        return np.sqrt(np.maximum(variance / self.n + self.example_variance, self.least))


def _example_part(c: Contrast) -> tuple[float, np.ndarray | None]:
    """Variance by the choice of examples beyond what the spread over seeds holds, and its draws.

    Crossed effects: the variance of example means is sigma_example² + sigma_both² / n, and the
    second is in the spread over seeds already.
    """
    if c.examples is None or not c.examples.size:
        return 0.0, None
    rows = np.asarray(c.examples, float)
    rows = rows[np.isfinite(rows).all(1)]
    n, count = rows.shape
    if count < 2 or not n:
        return 0.0, None
    mean = rows.mean(0)
    whole = float(mean.var(ddof=1)) / count
    both = float(((rows - mean) ** 2).sum()) / ((n - 1) * (count - 1) * n * count) if n > 1 else 0.0
    beyond = max(whole - both, 0.0)
    influence = (mean - mean.mean()) * math.sqrt(beyond / whole) / count if whole > 0 else None
    return beyond, influence


def _by_student(table: _SeedTable, alpha: float) -> tuple[np.ndarray, np.ndarray, float]:
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.abs(table.mean) / table.se
    m = int((table.se > 0).sum())
    raw = 2 * scipy.stats.t.sf(t, table.df)
    adjusted = -np.expm1(m * np.log1p(-np.minimum(raw, 1 - 1e-16)))
    each = -math.expm1(math.log1p(-alpha) / max(m, 1))
    return adjusted, scipy.stats.t.isf(each / 2, table.df), 0.0


def _by_flips(table: _SeedTable, alpha: float) -> tuple[np.ndarray, np.ndarray, float]:
    rng = np.random.default_rng(20101412)
    seeds = len(table.values)
    signs = _signs(seeds, rng, again=any(influence is not None for influence in table.examples))
    means = signs @ table.values / table.n
    shaken = {i: influence for i, influence in enumerate(table.examples) if influence is not None}
    for size in sorted({influence.size for influence in shaken.values()}):
        own = {i: influence for i, influence in shaken.items() if influence.size == size}
        flips = rng.integers(0, 2, (len(signs), size), dtype=np.int8).astype(np.float32) * 2 - 1
        means[:, list(own)] += flips @ np.stack(list(own.values()), 1).astype(np.float32)
    for i in np.flatnonzero((table.unseen > 0) & np.isfinite(table.unseen)):
        means[:, i] += math.sqrt(table.unseen[i]) * rng.standard_normal(len(signs))
    errors = table.standard_errors(signs @ table.values / table.n)
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.where(errors > 0, np.abs(means) / errors, 0.0)
        seen = np.where(table.se > 0, np.abs(table.mean) / table.se, 0.0)
    largest = np.sort(t.max(1))[::-1]
    # The observed signs are one of the draws, so no p is 0.
    p = np.searchsorted(-largest, -seen * (1 - 1e-12), side="right") / len(largest)
    smallest = 2.0 / 2**seeds if seeds <= 12 else 1 / len(largest)
    p = np.maximum(p, smallest)
    allowed = math.ceil(alpha * len(largest)) - 1
    possible = allowed >= 1 and smallest < alpha
    critical = largest[allowed] * (1 + 1e-12) if possible else math.inf
    return p, np.full(len(seen), critical), smallest


def _signs(seeds: int, rng: np.random.Generator, *, again: bool) -> np.ndarray:
    """All sign vectors, `again` as often as fit into the draws; random ones beyond twelve seeds."""
    if seeds > 12:
        signs = rng.integers(0, 2, (_DRAWS, seeds)) * 2 - 1
        signs[0] = 1
        return signs.astype(float)
    every = (np.arange(2**seeds)[:, None] >> np.arange(seeds)) & 1
    return np.tile(every * 2.0 - 1, (_DRAWS // 2**seeds if again else 1, 1))
