"""Overlap of two masks against chance."""

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Overlap:
    """Overlap o of two masks with K and M of N coordinates selected, and what chance would give.

    Every field is an integer array (...,). The null: both masks independent with their sizes fixed,
    o ~ Hypergeometric(N, K, M), E[o] = KM/N, Var[o] = KM(N-K)(N-M) / (N^2 (N-1)). Over several
    tensors the null is stratified (`pooled`): expectation and variance are sums over tensors, since
    densities differ between them. Coordinates of one filter are correlated, so that z overstates
    significance and grows with N; kappa is the effect size.
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

    def pooled(self) -> "PooledOverlap":
        """Over the last axis (tensors), against the stratified null."""
        return PooledOverlap(
            selected=(self.first + self.second).sum(-1),
            common=self.common.sum(-1),
            expected_common=self.expected_common.sum(-1),
            variance=self.variance.sum(-1),
        )


@dataclass(frozen=True)
class PooledOverlap:
    """Overlap summed over tensors; `selected` = K + M. Expectation and variance are stratified."""

    selected: np.ndarray
    common: np.ndarray
    expected_common: np.ndarray
    variance: np.ndarray

    @property
    def jaccard(self) -> np.ndarray:
        """O / (K + M - o)."""
        return _ratio(self.common, self.selected - self.common)

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
