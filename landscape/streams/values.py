"""Distribution of a stream of numbers of any scale, in one pass, with certain bounds."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from landscape.streams._host import CHUNK, host
from landscape.streams.moments import Moments

BITS = 15  # bits of a float32 that are cut off; sign, exponent and 8 bits of mantissa stay
CODES = 1 << (32 - BITS)
_ROUNDING = 2.0**-23  # of the cast to float32


@dataclass(frozen=True)
class ValueHistogram:
    """Counts and sums of squares of numbers that share their first 17 bits as float32.

    A fixed grid of relative bin width at most 2^-8 on the whole range of float32: it needs no
    knowledge of the scale, so that one pass serves where z-scores would need two, the first for
    mean and deviation. `moments` are exact. codes (k,), counts (k,) and squares (k,) hold the
    occupied bins; at most 2^17 exist (3 MB). Merging is exact for any split.
    zeros: exact zeros; not_finite: NaN and infinite values, in no bin.

    Example:
        >>> whole = streams.ValueHistogram.of([1.0, 2.0]).merge(streams.ValueHistogram.of([0.0]))
        >>> whole.moments.mean, whole.zeros
        (1.0, 1)
    """

    codes: np.ndarray
    counts: np.ndarray
    squares: np.ndarray
    moments: Moments
    zeros: int = 0
    not_finite: int = 0

    @classmethod
    def of(cls, values: Any) -> "ValueHistogram":
        """Histogram of an array of any shape; NaN, and what float32 cannot hold, is counted."""
        flat = host(values).reshape(-1)
        counts, squares = np.zeros(CODES, np.int64), np.zeros(CODES)
        moments, zeros, not_finite = Moments(), 0, 0
        for start in range(0, flat.size, CHUNK):
            with np.errstate(over="ignore"):
                part = flat[start : start + CHUNK]
                narrow = part.astype(np.float32)
            good = np.isfinite(narrow)
            if not good.all():
                not_finite += int((~good).sum())
                part, narrow = part[good], narrow[good]
            if not part.size:
                continue
            wide = part.astype(np.float64)
            code = narrow.view(np.uint32) >> BITS
            counts += np.bincount(code, minlength=CODES)
            squares += np.bincount(code, weights=wide * wide, minlength=CODES)
            moments = moments.merge(Moments.of(wide))
            zeros += int((part == 0).sum())
        live = np.flatnonzero(counts)
        return cls(live, counts[live], squares[live], moments, zeros, not_finite)

    def merge(self, other: "ValueHistogram") -> "ValueHistogram":
        """Histogram of both streams together."""
        codes, place = np.unique(np.concatenate([self.codes, other.codes]), return_inverse=True)
        counts, squares = np.zeros(len(codes), np.int64), np.zeros(len(codes))
        np.add.at(counts, place, np.concatenate([self.counts, other.counts]))
        np.add.at(squares, place, np.concatenate([self.squares, other.squares]))
        return ValueHistogram(
            codes,
            counts,
            squares,
            self.moments.merge(other.moments),
            self.zeros + other.zeros,
            self.not_finite + other.not_finite,
        )

    @property
    def edges(self) -> tuple[np.ndarray, np.ndarray]:
        """Lower and upper end of each occupied bin, widened by the rounding to float32."""
        first = (self.codes.astype(np.uint32) << BITS).view(np.float32).astype(np.float64)
        last = (((self.codes + 1).astype(np.uint64) << BITS) - 1).astype(np.uint32)
        last = last.view(np.float32).astype(np.float64)
        negative = self.codes >= CODES // 2
        low, high = np.where(negative, last, first), np.where(negative, first, last)
        return low - np.abs(low) * _ROUNDING, high + np.abs(high) * _ROUNDING

    @property
    def centres(self) -> np.ndarray:
        """Middle of each occupied bin."""
        low, high = self.edges
        return 0.5 * (low + high)

    def distances(self, centre: float) -> tuple[np.ndarray, np.ndarray]:
        """Smallest and largest |x - centre| that the values of each bin can have."""
        low, high = self.edges
        near = np.maximum(np.maximum(low - centre, centre - high), 0.0)
        return near, np.maximum(np.abs(low - centre), np.abs(high - centre))

    def distance_quantile(self, centre: float, level: float) -> tuple[float, float]:
        """Bounds of the `level`-quantile of |x - centre|, linear between order statistics.

        Certain: every value lies in its bin, so that each order statistic lies between those of the
        bins' near and far ends.
        """
        near, far = self.distances(centre)
        return (
            weighted_quantile(near, self.counts, level),
            weighted_quantile(far, self.counts, level),
        )


def weighted_quantile(values: np.ndarray, counts: np.ndarray, level: float) -> float:
    """Quantile of values that occur `counts` times each, linear between order statistics."""
    order = np.argsort(values)
    cumulative = np.cumsum(counts[order])
    position = level * (cumulative[-1] - 1)
    rank = int(np.floor(position))
    low, high = (
        values[order[np.searchsorted(cumulative, r, side="right")]]
        for r in (rank, min(rank + 1, int(cumulative[-1]) - 1))
    )
    return float(low + (position - rank) * (high - low))
