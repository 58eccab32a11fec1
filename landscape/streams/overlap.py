"""Overlap of two masks against chance."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import scipy
from numpy.typing import ArrayLike


@dataclass(frozen=True)
class Overlap:
    """Overlap o of two masks with K and M of N coordinates selected, and what chance would give.

    Every field is an integer array (...,). The null: both masks independent with their sizes fixed,
    o ~ Hypergeometric(N, K, M), E[o] = KM/N, Var[o] = KM(N-K)(N-M) / (N^2 (N-1)). Over several
    tensors the null is stratified (`pooled`): expectation and variance are sums over tensors, since
    densities differ between them. Coordinates of one filter are correlated, so that z overstates
    significance and grows with N; kappa is the effect size.
    size: N; first: K; second: M; common: o.

    Example:
        >>> one = streams.Overlap(*(np.array([n]) for n in (10, 4, 5, 2)))
        >>> one.jaccard.round(4).tolist(), one.expected_common.tolist(), one.kappa.tolist()
        ([0.2857], [2.0], [0.0])
    """

    size: np.ndarray
    first: np.ndarray
    second: np.ndarray
    common: np.ndarray

    @property
    def jaccard(self) -> np.ndarray:
        """O / (K + M - o); NaN for two empty masks."""
        return _ratio(self.common, self.first + self.second - self.common)

    @property
    def coefficient(self) -> np.ndarray:
        """Overlap coefficient o / min(K, M); NaN where one mask is empty."""
        return _ratio(self.common, np.minimum(self.first, self.second))

    @property
    def expected_common(self) -> np.ndarray:
        """E[o] = KM/N under the null."""
        return _ratio(self.first * self.second.astype(np.float64), self.size)

    @property
    def variance(self) -> np.ndarray:
        """Var[o] under the null."""
        n, k, m = (x.astype(np.float64) for x in (self.size, self.first, self.second))
        return k * m * (n - k) * (n - m) / (n**2 * np.maximum(n - 1, 1))

    @property
    def expected_jaccard(self) -> np.ndarray:
        """E[J] under the null, second order in the spread of o; d / (2 - d) for equal density d."""
        return _expected_jaccard(self.first + self.second, self.expected_common, self.variance)

    @property
    def kappa(self) -> np.ndarray:
        """Cohen's kappa 2(o - E) / (K + M - 2E), 0 at chance; (o/K - d) / (1 - d) for density d.

        NaN where one mask selects all or nothing: chance then explains any overlap.
        """
        return _kappa(self.common, self.first + self.second, self.expected_common, self.variance)

    @property
    def z_score(self) -> np.ndarray:
        """(o - E[o]) / sqrt(Var[o]); NaN where the null has no spread."""
        return _ratio(self.common - self.expected_common, np.sqrt(self.variance))

    @property
    def p_value(self) -> np.ndarray:
        """P(overlap >= o) under the null, exact: the upper tail of the hypergeometric law.

        NaN where the null has no spread. A gate, not an effect: it falls with N at equal kappa.
        """
        p = scipy.stats.hypergeom.sf(self.common - 1, self.size, self.first, self.second)
        return np.where(self.variance > 0, p, np.nan)

    def pooled(self) -> "PooledOverlap":
        """Over the last axis (tensors), against the stratified null."""
        return PooledOverlap(
            selected=(self.first + self.second).sum(-1),
            smaller=np.minimum(self.first.sum(-1), self.second.sum(-1)),
            common=self.common.sum(-1),
            expected_common=self.expected_common.sum(-1),
            variance=self.variance.sum(-1),
        )


@dataclass(frozen=True)
class PooledOverlap:
    """Overlap summed over tensors. Expectation and variance are stratified.

    `selected` = K + M and `smaller` = min(K, M), of all tensors together.
    common: o; expected_common and variance: of o under the null.

    Example:
        >>> two = streams.Overlap(*(np.array(n) for n in ([10, 10], [5, 2], [5, 2], [5, 0])))
        >>> round(float(two.pooled().jaccard), 4)
        0.5556
    """

    selected: np.ndarray
    smaller: np.ndarray
    common: np.ndarray
    expected_common: np.ndarray
    variance: np.ndarray

    @property
    def jaccard(self) -> np.ndarray:
        """O / (K + M - o)."""
        return _ratio(self.common, self.selected - self.common)

    @property
    def coefficient(self) -> np.ndarray:
        """Overlap coefficient o / min(K, M); NaN where one mask is empty."""
        return _ratio(self.common, self.smaller)

    @property
    def expected_jaccard(self) -> np.ndarray:
        """E[J] under the stratified null."""
        return _expected_jaccard(self.selected, self.expected_common, self.variance)

    @property
    def kappa(self) -> np.ndarray:
        """2(o - E) / (K + M - 2E) with the stratified E; NaN where no tensor can tell."""
        return _kappa(self.common, self.selected, self.expected_common, self.variance)

    @property
    def z_score(self) -> np.ndarray:
        """(o - E) / sqrt(sum of the tensors' variances)."""
        return _ratio(self.common - self.expected_common, np.sqrt(self.variance))

    @property
    def p_value(self) -> np.ndarray:
        """P(Z >= z) of the normal law, which the sum over tensors is close to."""
        return scipy.stats.norm.sf(self.z_score)


def stacked(overlaps: Sequence[Overlap]) -> Overlap:
    """Overlaps of one shape along a new first axis.

    overlaps: two or more of one shape.

    Example:
        >>> one = streams.Overlap(*(np.array([n]) for n in (10, 4, 5, 2)))
        >>> streams.stacked([one, one]).common.shape
        (2, 1)
    """
    names = [field.name for field in fields(Overlap)]
    return Overlap(*(np.stack([getattr(each, name) for each in overlaps]) for name in names))


def holm(p_values: ArrayLike) -> np.ndarray:
    """Holm's step-down adjustment: the family-wise error stays below alpha if adjusted p < alpha.

    p_values: (m,), the whole declared family. A NaN (a comparison that could not be made) stays NaN
    but still counts in m, so that a gap in a study never makes the other comparisons easier.
    Holm (1979), A simple sequentially rejective multiple test procedure.

    Example:
        >>> streams.holm([0.01, 0.04, 0.5]).round(4).tolist()
        [0.03, 0.08, 0.5]
    """
    p = np.asarray(p_values, dtype=np.float64).ravel()
    adjusted = np.full(p.shape, np.nan)
    running = 0.0
    order = [index for index in np.argsort(p) if np.isfinite(p[index])]
    for rank, index in enumerate(order):
        running = max(running, min(1.0, (p.size - rank) * p[index]))
        adjusted[index] = running
    return adjusted


def _ratio(numerator: Any, denominator: Any) -> np.ndarray:
    denominator = np.asarray(denominator, dtype=np.float64)
    safe = np.where(denominator == 0, 1.0, denominator)
    return np.where(denominator == 0, np.nan, np.asarray(numerator, dtype=np.float64) / safe)


def _expected_jaccard(selected: Any, mean: Any, variance: Any) -> np.ndarray:
    # J(o) = o / (S - o) has J'' = 2S / (S - o)^3.
    union = np.asarray(selected - mean, dtype=np.float64)
    return _ratio(mean, union) + _ratio(selected * variance, union**3)


def _kappa(common: Any, selected: Any, expected: Any, variance: Any) -> np.ndarray:
    room = np.where(np.asarray(variance) > 0, selected - 2 * expected, 0.0)
    return _ratio(2 * (common - expected), room)
