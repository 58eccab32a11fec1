"""Mean and centred sums of a stream of numbers."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from landscape.streams._host import CHUNK, host


@dataclass(frozen=True)
class Moments:
    """Count, mean and centred sums M_p = sum (x - mean)^p, p = 2, 3, 4, of a stream of numbers.

    Merged by the pairwise formulas of Chan, Golub & LeVeque (1979) for M2 and of Pebay
    (SAND2008-6212, 2008) for M3 and M4: no cancellation of raw power sums.
    count: of the numbers; m2, m3, m4: M_2, M_3 and M_4.

    Example:
        >>> whole = streams.Moments.of([1.0, 2.0]).merge(streams.Moments.of([3.0, 6.0]))
        >>> whole.count, whole.mean, round(whole.variance, 6)
        (4, 3.0, 4.666667)
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
        for start in range(0, flat.size, CHUNK):
            total = total.merge(_moments_of_block(flat[start : start + CHUNK]))
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


def spread_of_rounding(values: np.ndarray, eps: float) -> float:
    """Standard deviation that equal values of relative error eps may have: less is no signal.

    values: of any shape. Returns it in units of the values.

    Example:
        >>> bool(streams.spread_of_rounding(np.array([1.0, 1.0]), 1e-7) < 1e-5)
        True
    """
    return 10 * eps * float(np.abs(values).max(initial=0.0))


def _moments_of_block(values: np.ndarray) -> Moments:
    x = values.astype(np.float64)
    mean = float(x.mean())
    x = x - mean
    square = x * x
    return Moments(
        x.size, mean, float(square.sum()), float((square * x).sum()), float((square * square).sum())
    )
