"""Mergeable summaries of long streams: moments, histograms, bit-packed masks and their overlap.

One formula, one place: the measurements and the recorder of a training both use these. Every
summary of a whole equals the merge of the summaries of its parts, in any order and for any split,
so that a tensor of 10^8 elements, a hundred batches or four processes cost one pass and bounded
memory.
Numpy only; torch tensors are accepted and copied to the host.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from landscape.errors import LandscapeError

_CHUNK = 1 << 20  # elements per pass: float64 temporaries stay below 10 MB


def host(values: Any) -> np.ndarray:
    """Values as a numpy array on the host; half precision is widened (numpy has no bfloat16)."""
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        if values.is_floating_point() and values.element_size() < 4:
            values = values.float()
        values = values.numpy()
    return np.asarray(values)


# --- moments ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Moments:
    """Count, mean and centred sums M_p = sum (x - mean)^p, p = 2, 3, 4, of a stream of numbers.

    Merged by the pairwise formulas of Chan, Golub & LeVeque (1979) for M2 and of Pebay
    (SAND2008-6212, 2008) for M3 and M4: no cancellation of raw power sums.
    """

    count: int = 0
    mean: float = 0.0
    m2: float = 0.0
    m3: float = 0.0
    m4: float = 0.0

    @classmethod
    def of(cls, values: Any) -> "Moments":
        """Moments of an array of any shape, accumulated in float64 in blocks of bounded memory."""
        flat = host(values).reshape(-1)
        total = cls()
        for start in range(0, flat.size, _CHUNK):
            total = total.merge(_moments_of_block(flat[start : start + _CHUNK]))
        return total

    def merge(self, other: "Moments") -> "Moments":
        """Moments of both streams together."""
        if self.count == 0 or other.count == 0:
            return other if self.count == 0 else self
        a, b = float(self.count), float(other.count)
        n = a + b
        delta = other.mean - self.mean
        step = delta / n
        m2 = self.m2 + other.m2 + a * b * delta * step
        m3 = (
            self.m3
            + other.m3
            + a * b * (a - b) * delta * step**2
            + 3.0 * step * (a * other.m2 - b * self.m2)
        )
        m4 = (
            self.m4
            + other.m4
            + a * b * (a * a - a * b + b * b) * delta * step**3
            + 6.0 * step**2 * (a * a * other.m2 + b * b * self.m2)
            + 4.0 * step * (a * other.m3 - b * self.m3)
        )
        return Moments(self.count + other.count, self.mean + b * step, m2, m3, m4)

    @property
    def variance(self) -> float:
        """Unbiased variance M2 / (n - 1), NaN below two values (as torch.std)."""
        return self.m2 / (self.count - 1) if self.count > 1 else math.nan

    @property
    def std(self) -> float:
        """Square root of the unbiased variance."""
        return math.sqrt(self.variance) if self.count > 1 else math.nan

    @property
    def skewness(self) -> float:
        """Population skewness sqrt(n) M3 / M2^1.5, NaN where the variance is zero."""
        return math.sqrt(self.count) * self.m3 / self.m2**1.5 if self._spread() else math.nan

    @property
    def excess_kurtosis(self) -> float:
        """Population kurtosis minus the normal law's 3, n M4 / M2^2 - 3; NaN at zero variance."""
        return self.count * self.m4 / self.m2**2 - 3.0 if self._spread() else math.nan

    def _spread(self) -> bool:
        return self.count > 1 and self.m2 > 0 and math.isfinite(self.m2) and self.m2**2 > 0


def _moments_of_block(values: np.ndarray) -> Moments:
    x = values.astype(np.float64)
    mean = float(x.mean())
    x = x - mean
    square = x * x
    return Moments(
        x.size, mean, float(square.sum()), float((square * x).sum()), float((square * square).sum())
    )


# --- histograms ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Grid:
    """Equal bins on [low, high): an odd number on a symmetric range has a bin centred at 0."""

    low: float = -12.0
    high: float = 12.0
    bins: int = 2401

    @property
    def width(self) -> float:
        """Width of one bin."""
        return (self.high - self.low) / self.bins

    @property
    def edges(self) -> np.ndarray:
        """Edges of the bins, (bins + 1,)."""
        return np.linspace(self.low, self.high, self.bins + 1)

    @property
    def centres(self) -> np.ndarray:
        """Centres of the bins, (bins,)."""
        return self.low + self.width * (np.arange(self.bins) + 0.5)


@dataclass(frozen=True)
class Histogram:
    """Counts on a fixed grid, with what fell below, above and on NaN counted and never dropped."""

    grid: Grid
    counts: np.ndarray
    below: int = 0
    above: int = 0
    nan: int = 0

    @classmethod
    def of(cls, values: Any, grid: Grid) -> "Histogram":
        """Histogram of an array of any shape."""
        flat = host(values).reshape(-1)
        total = cls(grid, np.zeros(grid.bins, np.int64))
        for start in range(0, flat.size, _CHUNK):
            total = total.merge(_histogram_of_block(flat[start : start + _CHUNK], grid))
        return total

    def merge(self, other: "Histogram") -> "Histogram":
        """Histogram of both streams together; they must share the grid."""
        if self.grid != other.grid:
            raise LandscapeError(
                f"Histograms on different grids cannot be merged: {self.grid} and {other.grid}. "
                f"Record both on one grid."
            )
        return Histogram(
            self.grid,
            self.counts + other.counts,
            self.below + other.below,
            self.above + other.above,
            self.nan + other.nan,
        )

    @property
    def total(self) -> int:
        """Number of values that are not NaN."""
        return int(self.counts.sum()) + self.below + self.above

    @property
    def density(self) -> np.ndarray:
        """Probability density per bin, (bins,); integrates to 1 - P(overflow)."""
        total = self.total
        if total == 0:
            return np.full(self.grid.bins, np.nan)
        return self.counts / (total * self.grid.width)

    def quantile(self, level: float) -> float:
        """Quantile, linear inside its bin: within one bin width of the exact value on the grid.

        A quantile in the overflow is -inf or inf: the grid does not know it.
        """
        total = self.total
        if total == 0:
            return math.nan
        target = level * total
        if target < self.below:
            return -math.inf
        cumulative = self.below + np.cumsum(self.counts)
        position = int(np.searchsorted(cumulative, target))
        if position >= self.grid.bins:
            return math.inf if self.above else self.grid.high
        before = cumulative[position] - self.counts[position]
        share = (target - before) / max(int(self.counts[position]), 1)
        return float(self.grid.low + self.grid.width * (position + share))


def _histogram_of_block(values: np.ndarray, grid: Grid) -> Histogram:
    x = values.astype(np.float64)
    nan = np.isnan(x)
    x = x[~nan]
    below, above = x < grid.low, x >= grid.high
    inside = x[~(below | above)]
    # The last edge can be reached by rounding of (x - low) / width alone.
    index = np.minimum(((inside - grid.low) / grid.width).astype(np.int64), grid.bins - 1)
    counts = np.bincount(index, minlength=grid.bins)
    return Histogram(grid, counts, int(below.sum()), int(above.sum()), int(nan.sum()))


# --- masks -----------------------------------------------------------------------------------

_POPCOUNT = np.array([bin(byte).count("1") for byte in range(256)], dtype=np.uint8)


@dataclass(frozen=True)
class PackedMasks:
    """Boolean masks of named tensors, one bit a coordinate; each tensor starts on a byte.

    `names` and `sizes` are aligned; `bits` (uint8) holds ceil(size / 8) bytes per tensor in order.
    """

    names: tuple[str, ...]
    sizes: tuple[int, ...]
    bits: np.ndarray

    @classmethod
    def of(cls, masks: Mapping[str, Any]) -> "PackedMasks":
        """Pack named boolean arrays (any shapes)."""
        if not masks:
            raise LandscapeError("No mask to pack: pass at least one named boolean tensor.")
        arrays = {name: host(mask).reshape(-1).astype(bool) for name, mask in masks.items()}
        bits = np.concatenate([np.packbits(array) for array in arrays.values()])
        return cls(tuple(arrays), tuple(array.size for array in arrays.values()), bits)

    def __post_init__(self) -> None:
        expected = sum(_bytes(size) for size in self.sizes)
        if self.bits.size != expected:
            raise LandscapeError(
                f"Packed masks of {len(self.sizes)} tensors need {expected} bytes and "
                f"{self.bits.size} were found: the snapshot is cut or of another model."
            )

    def unpack(self) -> dict[str, np.ndarray]:
        """The masks as flat boolean arrays by name."""
        ends = np.cumsum([_bytes(size) for size in self.sizes])
        parts = np.split(self.bits, ends[:-1])
        return {
            name: np.unpackbits(part, count=size).astype(bool)
            for name, size, part in zip(self.names, self.sizes, parts, strict=True)
        }

    def counts(self) -> np.ndarray:
        """Selected coordinates per tensor, (tensors,)."""
        return self._count(self.bits)

    def overlap(self, other: "PackedMasks") -> "Overlap":
        """Overlap with another set of masks on the same tensors, tensor by tensor."""
        if (self.names, self.sizes) != (other.names, other.sizes):
            differing = [
                f"{name} ({size})"
                for name, size in zip(self.names, self.sizes, strict=True)
                if (name, size) not in set(zip(other.names, other.sizes, strict=True))
            ] or ["another order or more tensors"]
            raise LandscapeError(
                f"Masks of different models cannot be compared; they differ in "
                f"{', '.join(differing[:3])}. Compare masks on the same named tensors."
            )
        return Overlap(
            size=np.array(self.sizes, dtype=np.int64),
            first=self.counts(),
            second=other.counts(),
            common=self._count(self.bits & other.bits),
        )

    def _count(self, bits: np.ndarray) -> np.ndarray:
        per_byte = _POPCOUNT[bits].astype(np.int64)
        starts = np.concatenate([[0], np.cumsum([_bytes(size) for size in self.sizes])[:-1]])
        return np.add.reduceat(per_byte, starts)


def _bytes(size: int) -> int:
    return (size + 7) // 8


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


def persistence(
    snapshots: Sequence[tuple[int, PackedMasks]], lags: Iterable[int]
) -> tuple[np.ndarray, list[Overlap]]:
    """Overlap of masks `lag` steps apart: for each lag that occurs, counts summed over its pairs.

    snapshots: (step, masks) in any order. Returns the lags found (L,) and per lag an `Overlap` with
    axes (pairs, tensors), to be pooled by the caller.
    """
    by_step = dict(snapshots)
    found, overlaps = [], []
    for lag in sorted(set(lags)):
        pairs = [(step, step + lag) for step in sorted(by_step) if step + lag in by_step]
        if not pairs:
            continue
        each = [by_step[a].overlap(by_step[b]) for a, b in pairs]
        stacked = (
            np.stack([getattr(overlap, field) for overlap in each])
            for field in ("size", "first", "second", "common")
        )
        found.append(lag)
        overlaps.append(Overlap(*stacked))
    return np.array(found, dtype=np.int64), overlaps
