"""One mean, one difference or one ratio over seeds, with its own interval."""

import functools
import math
from dataclasses import dataclass

import numpy as np
import scipy
from numpy.typing import ArrayLike

from landscape.errors import LandscapeError
from landscape.metrics import Metric

LEVEL = 0.95
SMALLEST_WILCOXON = 6


@dataclass(frozen=True)
class Interval:
    """An estimate with the two-sided interval [low, high] from n values; NaN ends where n < 2.

    Example:
        >>> interval = stats.mean_ci([1.0, 2.0, 3.0])
        >>> interval.estimate, interval.n, interval.low < 2 < interval.high
        (2.0, 3, True)
    """

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
    """Mean of a - b over pairs, with the t statistic and the two-sided p of a paired t-test.

    difference: an `Interval`, of the mean difference.

    Example:
        >>> found = stats.paired([0.92, 0.93, 0.95], [0.90, 0.91, 0.92])
        >>> round(found.difference.estimate, 4), found.p < 0.05
        (0.0233, True)
    """

    difference: Interval
    t: float
    p: float


def _finite(values: ArrayLike) -> tuple[np.ndarray, int]:
    array = np.asarray(values, dtype=np.float64).ravel()
    keep = np.isfinite(array)
    return array[keep], int((~keep).sum())


@functools.cache
def _quantile(share: float, df: int) -> float:
    """Of Student's law; a page asks for the same few very often."""
    return float(scipy.stats.t.ppf(share, df))


def mean_ci(
    values: ArrayLike, *, bounds: tuple[float, float] | None = None, level: float = LEVEL
) -> Interval:
    """Mean ± t_{n-1} s / sqrt(n): mean of the finite values with its t-interval over seeds.

    values: any shape, one number per seed. Returns the units of `values`. bounds: (low, high) that
    the quantity cannot leave, 0 and 1 of a share. With y = (mean − low) / (high − low) and h half
    of the t-interval of y, the interval is then that of logit y ± h / (y (1 − y)), turned back (the
    delta method): equal to the t-interval where h is small, and never beyond the bounds. Values
    that are beyond them are no shares, and have the plain interval.
    Student (1908).

    Example:
        >>> found = stats.mean_ci([0.97, 0.98, 0.99, 1.0], bounds=(0, 1))
        >>> round(found.estimate, 4), found.high < 1
        (0.985, True)
    """
    finite, missing = _finite(values)
    n = finite.size
    if n == 0:
        return Interval(math.nan, math.nan, math.nan, 0, missing, level)
    mean = float(finite.mean())
    if n == 1:
        return Interval(mean, math.nan, math.nan, 1, missing, level)
    half = float(_quantile((1 + level) / 2, n - 1) * finite.std(ddof=1) / math.sqrt(n))
    if bounds is not None and bounds[0] <= finite.min() and finite.max() <= bounds[1]:
        low, high = _within(mean, half, *bounds)
        return Interval(mean, low, high, n, missing, level)
    return Interval(mean, mean - half, mean + half, n, missing, level)


def _within(mean: float, half: float, low: float, high: float) -> tuple[float, float]:
    """Ends of mean ± half on the logit scale between two bounds."""
    width = high - low
    y = (mean - low) / width
    if not 0 < y < 1:  # then all values are equal
        return mean, mean
    center, reach = scipy.special.logit(y), half / width / (y * (1 - y))
    ends = scipy.special.expit(np.array([center - reach, center + reach]))
    return low + width * float(ends[0]), low + width * float(ends[1])


def metric_ci(metric: Metric, values: ArrayLike, *, level: float = LEVEL) -> Interval:
    """The mean of a quantity over seeds with an interval of values that it can have.

    Shares: the mean, with its interval within their bounds. Quantities on a logarithmic scale, as
    losses and curvature: the geometric mean, where all values are positive. Others: the mean.
    metric: what is known of the quantity (`landscape.metrics.metric(name)`): its scale and bounds.
    By definition, as `mean_ci` and `geometric_mean_ci`.

    Example:
        >>> from landscape.metrics import metric
        >>> found = stats.metric_ci(metric("test_accuracy"), [97.0, 98.0, 99.0])
        >>> found.estimate, found.high < 100
        (98.0, False)
    """
    if metric.bounds is not None:
        return mean_ci(values, bounds=metric.bounds, level=level)
    finite, _ = _finite(values)
    if metric.scale == "log" and bool((finite > 0).all()):
        return geometric_mean_ci(values, level=level)
    return mean_ci(values, level=level)


def geometric_mean_ci(values: ArrayLike, *, level: float = LEVEL) -> Interval:
    """Exp of the mean logarithm with its t-interval, for positive quantities of any scale.

    Values that are not positive have no logarithm; they count as missing.
    values: any shape. By definition of the geometric mean; the interval is Student's (1908) of the
    logarithms.

    Example:
        >>> found = stats.geometric_mean_ci([1.0, 10.0, 100.0])
        >>> round(found.estimate, 6), found.n
        (10.0, 3)
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
    Student (1908). The difference has the units of a.

    Example:
        >>> found = stats.paired([3.0, 4.0, 6.0], [1.0, 2.0, 3.0])
        >>> round(found.difference.estimate, 4), found.difference.n
        (2.3333, 3)
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
    return Paired(ci, t, float(2 * scipy.stats.t.sf(abs(t), ci.n - 1)))


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
    By definition; the interval is Student's (1908) of the logarithms.

    Example:
        >>> round(stats.geometric_ratio([2.0, 4.0], [1.0, 2.0]).estimate, 6)
        2.0
    """
    left, right = _pairs(a, b)
    with np.errstate(invalid="ignore", divide="ignore"):
        logs = np.where((left > 0) & (right > 0), np.log(left) - np.log(right), np.nan)
    return _exponential(mean_ci(logs, level=level))


def wilcoxon(differences: ArrayLike) -> float:
    """Two-sided p of the Wilcoxon signed-rank test on paired differences; zeros are dropped.

    Fewer than 6 differences cannot reach p < 0.05 whatever their values, so they are refused.
    differences (n,): one per pair. Wilcoxon (1945), Individual comparisons by ranking methods.

    Example:
        >>> round(stats.wilcoxon([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]), 5)
        0.03125
    """
    finite, _ = _finite(differences)
    if finite.size < SMALLEST_WILCOXON:
        raise LandscapeError(
            f"Wilcoxon's test on {finite.size} pairs cannot reach p < 0.05; it needs at least "
            f"{SMALLEST_WILCOXON}. Use the paired t-test or run more seeds."
        )
    if not np.any(finite):
        return 1.0
    return float(scipy.stats.wilcoxon(finite).pvalue)


def sampling_error(accuracy: float, num_examples: int) -> float:
    """sqrt(p (1 - p) / N): the standard error of an accuracy p that comes from N test examples.

    num_examples: N. Returns a share, as p is. Binomial, by definition.

    Example:
        >>> round(stats.sampling_error(0.9, 1000), 6)
        0.009487
    """
    if num_examples < 1:
        raise LandscapeError(f"num_examples={num_examples} test examples; at least 1 is needed.")
    return math.sqrt(max(accuracy * (1 - accuracy), 0.0) / num_examples)
