"""Counts on a fixed grid."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from landscape.errors import LandscapeError
from landscape.streams._host import CHUNK, host


@dataclass(frozen=True)
class Grid:
    """Equal bins on [low, high): an odd number on a symmetric range has a bin centred at 0.

    Example:
        >>> grid = streams.Grid(low=-1.0, high=1.0, bins=5)
        >>> grid.width, grid.centres.round(6).tolist()
        (0.4, [-0.8, -0.4, 0.0, 0.4, 0.8])
    """

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
    """Counts on a fixed grid, with what fell below, above and on NaN counted and never dropped.

    counts (bins,): what fell into each bin; nan: how many were NaN.

    Example:
        >>> found = streams.Histogram.of([0.0, 0.1, 5.0], streams.Grid(-1.0, 1.0, 5))
        >>> found.counts.tolist(), found.above, found.total
        ([0, 0, 2, 0, 0], 1, 3)
    """

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
        for start in range(0, flat.size, CHUNK):
            total = total.merge(_histogram_of_block(flat[start : start + CHUNK], grid))
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
