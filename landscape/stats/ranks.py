"""Kendall's rank correlation over configurations."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np
from numpy.typing import ArrayLike

from landscape.errors import LandscapeError
from landscape.stats.intervals import LEVEL

_EXACT_PERMUTATIONS = 7
# Below this a percentile bootstrap over configurations covers far less than it says.
SMALLEST_BOOTSTRAP = 10


@dataclass(frozen=True)
class RankCorrelation:
    """Kendall's tau_b over n configurations with a permutation p and a bootstrap interval.

    tau: between -1 and 1.

    Example:
        >>> found = stats.kendall([1, 2, 3, 4], [1, 2, 3, 4], seed=0)
        >>> found.tau, found.n, round(found.p, 4)
        (1.0, 4, 0.0833)
    """

    tau: float
    p: float
    low: float
    high: float
    n: int


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
    (1 + hits) / (1 + num_permutations). The interval: percentile bootstrap over configurations,
    from ten on; with fewer it would cover far less than `level`, and there is none. n < 4 has no p.
    Kendall (1945), The treatment of ties in ranking problems. num_permutations, num_bootstrap:
    draws of `seed`.

    Example:
        >>> found = stats.kendall([1, 2, 3, 4, 5], [2, 1, 3, 4, 5], seed=0)
        >>> round(found.tau, 4), 0 < found.p < 1
        (0.8, True)
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
    low = high = math.nan
    if n >= SMALLEST_BOOTSTRAP:
        picks = rng.integers(0, n, size=(num_bootstrap, n))
        low, high = _percentiles(_tau_b(_pick(sx, picks), _pick(sy, picks)), level)
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
    """Kendall's partial tau of x and y given z, with a bootstrap interval from ten variants on.

    (tau_xy - tau_xz tau_yz) / sqrt((1 - tau_xz^2)(1 - tau_yz^2)). No p: the sampling law of
    a partial tau has no permutation that keeps both other correlations. Undefined (NaN) where z
    orders the configurations exactly as x or y does. A partial tau that is not 0 does not show an
    effect beyond z, because ranks lose how much of x and y is z: `dose_response` decides that.
    Kendall (1942), Partial rank correlation. num_bootstrap: draws of `seed`.

    Example:
        >>> x, y, z = [1, 2, 3, 4, 5], [1, 2, 3, 5, 4], [2, 1, 5, 3, 4]
        >>> found = stats.partial_kendall(x, y, z, seed=0)
        >>> found.n, -1 <= found.tau <= 1
        (5, True)
    """
    left, right, third = _complete(x, y, given)
    n = left.size
    if n < 4:
        return RankCorrelation(math.nan, math.nan, math.nan, math.nan, n)
    signs = [_signs(values) for values in (left, right, third)]
    if n < SMALLEST_BOOTSTRAP:
        return RankCorrelation(float(_partial(*signs)), math.nan, math.nan, math.nan, n)
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
