"""Seeds, intervals, paired tests and rank correlation: what the numbers of a study allow to say.

Everything takes plain arrays. Values that are not finite (a diverged run) are left out and counted
in `missing`; an estimate from one value has no interval (`low` and `high` are NaN).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from landscape.errors import LandscapeError
from landscape.streams import holm as holm

LEVEL = 0.95
SMALLEST_WILCOXON = 6
_EXACT_PERMUTATIONS = 7


@dataclass(frozen=True)
class Interval:
    """An estimate with the two-sided interval [low, high] from n values; NaN ends where n < 2."""

    estimate: float
    low: float
    high: float
    n: int
    missing: int = 0
    level: float = LEVEL

    @property
    def known(self) -> bool:
        """Whether there is an interval at all."""
        return math.isfinite(self.low) and math.isfinite(self.high)

    def excludes(self, value: float) -> bool:
        """Whether `value` lies outside of the interval (False where there is none)."""
        return self.known and not self.low <= value <= self.high


@dataclass(frozen=True)
class Paired:
    """Mean of a - b over pairs, with the t statistic and the two-sided p of a paired t-test."""

    difference: Interval
    t: float
    p: float


@dataclass(frozen=True)
class RankCorrelation:
    """Kendall's tau_b over n configurations with a permutation p and a bootstrap interval."""

    tau: float
    p: float
    low: float
    high: float
    n: int


def _finite(values: ArrayLike) -> tuple[np.ndarray, int]:
    array = np.asarray(values, dtype=np.float64).ravel()
    keep = np.isfinite(array)
    return array[keep], int((~keep).sum())


def mean_ci(values: ArrayLike, *, level: float = LEVEL) -> Interval:
    """Mean ± t_{n-1} s / sqrt(n): mean of the finite values with its t-interval over seeds.

    values: any shape, one number per seed. Returns the units of `values`.
    """
    finite, missing = _finite(values)
    n = finite.size
    if n == 0:
        return Interval(math.nan, math.nan, math.nan, 0, missing, level)
    mean = float(finite.mean())
    if n == 1:
        return Interval(mean, math.nan, math.nan, 1, missing, level)
    half = float(stats.t.ppf((1 + level) / 2, n - 1) * finite.std(ddof=1) / math.sqrt(n))
    return Interval(mean, mean - half, mean + half, n, missing, level)


def geometric_mean_ci(values: ArrayLike, *, level: float = LEVEL) -> Interval:
    """Exp of the mean logarithm with its t-interval, for positive quantities of any scale.

    Values that are not positive have no logarithm; they count as missing.
    """
    array = np.asarray(values, dtype=np.float64).ravel()
    with np.errstate(invalid="ignore", divide="ignore"):
        logs = np.where(array > 0, np.log(array), np.nan)
    return _exponential(mean_ci(logs, level=level))


def _exponential(ci: Interval) -> Interval:
    return Interval(
        math.exp(ci.estimate), math.exp(ci.low), math.exp(ci.high), ci.n, ci.missing, ci.level
    )


def paired(a: ArrayLike, b: ArrayLike, *, level: float = LEVEL) -> Paired:
    """Mean of a_i - b_i over pairs with t-interval, t and two-sided p (paired t-test, n - 1 df).

    a, b: (n,), the same seeds in the same order. One pair has no interval and no p. Pairs that all
    differ by the same amount (possible when accuracies are counts) carry no information on the
    spread: t, p and interval are NaN, unless all differences are 0, where p = 1.
    """
    left, right = _pairs(a, b)
    difference = left - right
    ci = mean_ci(difference, level=level)
    finite, _ = _finite(difference)
    if ci.n < 2:
        return Paired(ci, math.nan, math.nan)
    spread = float(finite.std(ddof=1))
    if spread <= 16 * np.finfo(np.float64).eps * max(1.0, float(np.abs(finite).max())):
        same = bool(np.all(finite == 0))
        flat = Interval(ci.estimate, math.nan, math.nan, ci.n, ci.missing, level)
        return Paired(flat, 0.0 if same else math.nan, 1.0 if same else math.nan)
    t = ci.estimate / (spread / math.sqrt(ci.n))
    return Paired(ci, t, float(2 * stats.t.sf(abs(t), ci.n - 1)))


def _pairs(a: ArrayLike, b: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    left = np.asarray(a, dtype=np.float64).ravel()
    right = np.asarray(b, dtype=np.float64).ravel()
    if left.shape != right.shape:
        raise LandscapeError(
            f"Pairs need equally many values, got {left.size} and {right.size}; "
            f"give the values of the seeds that both variants have, in the same order."
        )
    return left, right


def geometric_ratio(a: ArrayLike, b: ArrayLike, *, level: float = LEVEL) -> Interval:
    """Exp of the mean of log(a_i / b_i) over pairs with its t-interval: a ratio, 1 = equal.

    a, b: (n,) positive, paired by seed. Pairs without a logarithm count as missing.
    """
    left, right = _pairs(a, b)
    with np.errstate(invalid="ignore", divide="ignore"):
        logs = np.where((left > 0) & (right > 0), np.log(left) - np.log(right), np.nan)
    return _exponential(mean_ci(logs, level=level))


def wilcoxon(differences: ArrayLike) -> float:
    """Two-sided p of the Wilcoxon signed-rank test on paired differences; zeros are dropped.

    Fewer than 6 differences cannot reach p < 0.05 whatever their values, so they are refused.
    """
    finite, _ = _finite(differences)
    if finite.size < SMALLEST_WILCOXON:
        raise LandscapeError(
            f"Wilcoxon's test on {finite.size} pairs cannot reach p < 0.05; it needs at least "
            f"{SMALLEST_WILCOXON}. Use the paired t-test or run more seeds."
        )
    if not np.any(finite):
        return 1.0
    return float(stats.wilcoxon(finite).pvalue)


def sampling_error(accuracy: float, num_examples: int) -> float:
    """sqrt(p (1 - p) / N): the standard error of an accuracy p that comes from N test examples."""
    if num_examples < 1:
        raise LandscapeError(f"num_examples={num_examples} test examples; at least 1 is needed.")
    return math.sqrt(max(accuracy * (1 - accuracy), 0.0) / num_examples)


def kendall(
    x: ArrayLike,
    y: ArrayLike,
    *,
    seed: int,
    num_permutations: int = 9999,
    num_bootstrap: int = 2000,
    level: float = LEVEL,
) -> RankCorrelation:
    """Kendall's tau_b between x and y over configurations, tested by permuting configurations.

    x, y: (n,), one value per configuration (the mean over its seeds: seeds of one variant are not
    independent configurations). p is exact over all permutations for n <= 7, else Monte Carlo with
    (1 + hits) / (1 + num_permutations). The interval: percentile bootstrap over configurations.
    n < 4 has p and interval NaN.
    """
    left, right = _complete(x, y)
    n = left.size
    if n < 2:
        return RankCorrelation(math.nan, math.nan, math.nan, math.nan, n)
    sx, sy = _signs(left), _signs(right)
    tau = float(_tau_b(sx, sy))
    if n < 4 or math.isnan(tau):
        return RankCorrelation(tau, math.nan, math.nan, math.nan, n)
    rng = np.random.default_rng(seed)
    if n <= _EXACT_PERMUTATIONS:
        orders = np.array(list(permutations(range(n))))
        p = float(np.mean(_hits(sx, sy, orders, tau)))
    else:
        orders = rng.permuted(np.tile(np.arange(n), (num_permutations, 1)), axis=1)
        p = float((1 + np.sum(_hits(sx, sy, orders, tau))) / (1 + num_permutations))
    picks = rng.integers(0, n, size=(num_bootstrap, n))
    taus = _tau_b(_pick(sx, picks), _pick(sy, picks))
    low, high = _percentiles(taus, level)
    return RankCorrelation(tau, p, low, high, n)


def partial_kendall(
    x: ArrayLike,
    y: ArrayLike,
    given: ArrayLike,
    *,
    seed: int,
    num_bootstrap: int = 2000,
    level: float = LEVEL,
) -> RankCorrelation:
    """Kendall's partial tau of x and y given z, with a bootstrap interval over configurations.

    (tau_xy - tau_xz tau_yz) / sqrt((1 - tau_xz^2)(1 - tau_yz^2)). No p: the sampling law of
    a partial tau has no permutation that keeps both other correlations. Undefined (NaN) where z
    orders the configurations exactly as x or y does.
    """
    left, right, third = _complete(x, y, given)
    n = left.size
    if n < 4:
        return RankCorrelation(math.nan, math.nan, math.nan, math.nan, n)
    signs = [_signs(values) for values in (left, right, third)]
    picks = np.random.default_rng(seed).integers(0, n, size=(num_bootstrap, n))
    low, high = _percentiles(_partial(*(_pick(sign, picks) for sign in signs)), level)
    return RankCorrelation(float(_partial(*signs)), math.nan, low, high, n)


def _complete(*columns: ArrayLike) -> Sequence[np.ndarray]:
    arrays = [np.asarray(column, dtype=np.float64).ravel() for column in columns]
    if len({array.size for array in arrays}) != 1:
        raise LandscapeError(
            f"A rank correlation needs equally many values, got "
            f"{' and '.join(str(array.size) for array in arrays)}."
        )
    keep = np.all([np.isfinite(array) for array in arrays], axis=0)
    return [array[keep] for array in arrays]


def _signs(values: np.ndarray) -> np.ndarray:
    """Signs of all differences; what differs by rounding alone (means of accuracies) is a tie."""
    apart = values[:, None] - values[None, :]
    size = np.maximum(np.abs(values[:, None]), np.abs(values[None, :]))
    return np.where(np.abs(apart) <= 1e-12 * size, 0.0, np.sign(apart))


def _pick(signs: np.ndarray, picks: np.ndarray) -> np.ndarray:
    return signs[picks[:, :, None], picks[:, None, :]]


def _tau_b(sx: np.ndarray, sy: np.ndarray) -> np.ndarray:
    """tau_b from sign matrices (..., n, n): concordance over the geometric mean of untied pairs."""
    concordance = np.sum(sx * sy, axis=(-2, -1))
    untied = np.sqrt(np.sum(sx * sx, axis=(-2, -1)) * np.sum(sy * sy, axis=(-2, -1)))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(untied > 0, concordance / untied, np.nan)


def _hits(sx: np.ndarray, sy: np.ndarray, orders: np.ndarray, tau: float) -> np.ndarray:
    taus = _tau_b(sx[None], _pick(sy, orders))
    return np.abs(taus) >= abs(tau) - 1e-12


def _partial(sx: np.ndarray, sy: np.ndarray, sz: np.ndarray) -> np.ndarray:
    xy, xz, yz = _tau_b(sx, sy), _tau_b(sx, sz), _tau_b(sy, sz)
    free = (1 - xz**2) * (1 - yz**2)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(free > 1e-12, (xy - xz * yz) / np.sqrt(free), np.nan)


def _percentiles(values: np.ndarray, level: float) -> tuple[float, float]:
    finite = values[np.isfinite(values)]
    if finite.size < 2:
        return math.nan, math.nan
    low, high = np.quantile(finite, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def broaden(nodes: ArrayLike, weights: ArrayLike, grid: ArrayLike, *, sigma: float) -> np.ndarray:
    """sum_i w_i N(x; node_i, sigma²): a density on `grid` from quadrature nodes and weights.

    nodes, weights: (..., k), weights summing to 1 along the last axis. Returns (..., len(grid)) in
    units of 1/node. sigma: the width that a point mass is drawn with.
    """
    nodes, weights = np.asarray(nodes, float), np.asarray(weights, float)
    z = (np.asarray(grid, float) - nodes[..., None]) / sigma
    return np.nansum(weights[..., None] * stats.norm.pdf(z), axis=-2) / sigma


def hierarchical_difference(
    correct_a: ArrayLike,
    correct_b: ArrayLike,
    *,
    seed: int,
    num_bootstrap: int = 2000,
    level: float = LEVEL,
) -> Interval:
    """Mean accuracy difference with a bootstrap over seeds and, within them, test examples.

    correct_a, correct_b: (seeds, examples) of 0 and 1, paired in both dimensions. One resampling of
    the examples is shared by all seeds, because all seeds are scored on the same test set; so the
    interval also covers the choice of test examples, which a t-interval over seeds does not.
    """
    a, b = np.atleast_2d(np.asarray(correct_a, float)), np.atleast_2d(np.asarray(correct_b, float))
    if a.shape != b.shape:
        raise LandscapeError(
            f"Paired predictions need one shape (seeds, examples), got {a.shape} and {b.shape}."
        )
    difference = a - b
    seeds, examples = difference.shape
    rng = np.random.default_rng(seed)
    weights = rng.multinomial(examples, np.full(examples, 1 / examples), size=num_bootstrap)
    per_seed = weights @ difference.T / examples
    picks = rng.integers(0, seeds, size=(num_bootstrap, seeds))
    low, high = _percentiles(np.take_along_axis(per_seed, picks, axis=1).mean(axis=1), level)
    return Interval(float(difference.mean()), low, high, seeds, 0, level)
