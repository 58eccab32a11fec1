"""z-score statistics of one set of gradient entries, exact or from a histogram."""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from scipy import stats

from landscape.streams import Grid, Moments, ValueHistogram, host, spread_of_rounding

LEVELS = np.linspace(0.0, 8.0, 33)
PERCENTILES = (0.5, 0.8, 0.9, 0.95, 0.98, 0.99)
SHARES = np.array([0, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6,
                   0.7, 0.8, 0.9, 1.0])  # fmt: skip
NORMAL_QUANTILES = np.linspace(-3.5, 3.5, 57)
PROBABILITIES = stats.norm.cdf(NORMAL_QUANTILES)

SCALARS = (
    "mean", "std", "mean_over_std", "skewness", "excess_kurtosis", "threshold", "kept_share",
    "captured_energy", "topk_jaccard", "overflow", "gini", "zero_share", "tie_share",
    "threshold_error",
)  # fmt: skip
AT = ("threshold", "kept_share", "captured_energy", "topk_jaccard")
EMPTY = ("zero gradient", "zero variance", "one element")


@dataclass(frozen=True)
class CountedValues:
    """Values x (n,) that occur `counts` times, with the sum of squares of those occurrences."""

    x: np.ndarray
    counts: np.ndarray
    squares: np.ndarray
    moments: Moments
    zeros: int
    eps: float
    histogram: ValueHistogram | None = None

    @classmethod
    def of(cls, values: Any) -> "CountedValues":
        """Every value by itself."""
        flat = host(values).reshape(-1)
        x = flat.astype(np.float64)
        eps = float(np.finfo(flat.dtype).eps) if flat.dtype.kind == "f" else 2.0**-52
        return cls(x, np.ones(x.size, np.int64), x * x, Moments.of(x), int((x == 0).sum()), eps)

    @classmethod
    def within(cls, histogram: ValueHistogram) -> "CountedValues":
        """The centres of a histogram's bins."""
        return cls(
            histogram.centres,
            histogram.counts,
            histogram.squares,
            histogram.moments,
            histogram.zeros,
            2.0**-24,
            histogram,
        )

    @property
    def num(self) -> int:
        """Number of values."""
        return self.moments.count

    @property
    def empty(self) -> str:
        """Why there are no z-scores, or ""."""
        if self.num == 1:
            return "one element"
        if self.zeros == self.num:
            return "zero gradient"
        varies = self.moments.std > spread_of_rounding(self.x, self.eps)
        return "" if varies else "zero variance"

    @cached_property
    def z(self) -> np.ndarray:
        """Standardized values."""
        return (self.x - self.moments.mean) / self.moments.std

    def ties(self, low: float, at_most: int) -> int:
        """Values tied at the lower order statistic; in a stream only exact zeros can be told."""
        if self.histogram is None:
            return at_most
        mean, distance = abs(self.moments.mean), low * self.moments.std
        return self.zeros if abs(distance - mean) <= 1e-9 * mean + 1e-38 else 1

    @cached_property
    def by_distance(self) -> "Ordered":
        """In the order of |z|."""
        return Ordered.of(np.abs(self.z), self.counts, self.squares)

    @cached_property
    def by_size(self) -> "Ordered":
        """In the order of |x|."""
        return Ordered.of(np.abs(self.x), self.counts, self.squares)


@dataclass(frozen=True)
class Ordered:
    """Values in ascending order, with cumulative counts and sums of squares up to each."""

    values: np.ndarray
    counts: np.ndarray
    squares: np.ndarray

    @classmethod
    def of(cls, values: np.ndarray, counts: np.ndarray, squares: np.ndarray) -> "Ordered":
        """Sorted."""
        order = np.argsort(values)
        return cls(values[order], np.cumsum(counts[order]), np.cumsum(squares[order]))

    def rank(self, rank: int) -> float:
        """Order statistic, counted from 0."""
        last = int(self.counts[-1]) - 1
        return float(self.values[np.searchsorted(self.counts, min(rank, last), side="right")])

    def at_most(self, bound: float) -> tuple[int, float]:
        """Count and sum of squares of the values up to and including `bound`."""
        index = int(np.searchsorted(self.values, bound, side="right"))
        return (int(self.counts[index - 1]), float(self.squares[index - 1])) if index else (0, 0.0)

    def top_energy(self, counts: np.ndarray) -> np.ndarray:
        """Share of the squares in the `counts` largest values, linear inside equal values."""
        ends = np.concatenate([[0], self.counts])
        sums = np.concatenate([[0.0], self.squares])
        return 1.0 - np.interp(self.counts[-1] - counts, ends, sums) / self.squares[-1]


def zscore_row(points: CountedValues, percentile: float, grid: Grid) -> dict[str, Any]:
    """Every statistic of one row of `gradient_zscores`; NaN where there are no z-scores."""
    row = _nothing(grid)
    row |= {
        "mean": points.moments.mean,
        "std": points.moments.std,
        "zero_share": points.zeros / max(points.num, 1),
    }
    if points.empty:
        return row | {"flag": points.empty}
    moments, ordered = points.moments, points.by_distance
    at = [_kept(points, level) for level in (percentile, *PERCENTILES)]
    inside = (points.z >= grid.low) & (points.z < grid.high)
    density, _ = np.histogram(points.z[inside], grid.edges, weights=points.counts[inside])
    tail = np.array([points.num - ordered.at_most(level)[0] for level in LEVELS])
    row |= {
        "mean_over_std": moments.mean / moments.std,
        "skewness": moments.skewness,
        "excess_kurtosis": moments.excess_kurtosis,
        "overflow": float(points.counts[~inside].sum()) / points.num,
        "density": density / (points.num * grid.width),
        "exceedance": tail / points.num,
        "lorenz": ordered.top_energy(SHARES * points.num),
        "gini": _gini(points.by_size),
        "z_quantile": _quantiles(points),
        "tie_share": at[0]["ties"] / points.num,
        "threshold_error": _error(points, percentile),
    }
    row |= {name: at[0][name] for name in AT}
    row |= {f"{name}_at": np.array([each[name] for each in at[1:]]) for name in AT}
    return row | {"flag": _flags(points, percentile, at[0]["ties"])}


def _nothing(grid: Grid) -> dict[str, Any]:
    sizes = {
        "density": grid.bins,
        "exceedance": len(LEVELS),
        "lorenz": len(SHARES),
        "z_quantile": len(PROBABILITIES),
        **{f"{name}_at": len(PERCENTILES) for name in AT},
    }
    empty: dict[str, Any] = {name: np.full(size, np.nan) for name, size in sizes.items()}
    return empty | dict.fromkeys(SCALARS, math.nan) | {"flag": ""}


def _kept(points: CountedValues, percentile: float) -> dict[str, float]:
    """The z-mask |z| > threshold at one percentile.

    The threshold is linear between two order statistics, and what exceeds it is what exceeds the
    lower one: rounding can push the interpolated value past a tie.
    """
    ordered = points.by_distance
    position = percentile * (points.num - 1)
    rank = math.floor(position)
    low, high = ordered.rank(rank), ordered.rank(rank + 1)
    below, energy = ordered.at_most(low)
    kept = points.num - below
    return {
        "threshold": low + (position - rank) * (high - low),
        "kept_share": kept / points.num,
        "captured_energy": 1.0 - energy / float(ordered.squares[-1]),
        "topk_jaccard": _topk_jaccard(points, low, kept),
        "ties": points.ties(low, below - rank),
    }


def _topk_jaccard(points: CountedValues, low: float, kept: int) -> float:
    if kept == 0:
        return math.nan
    # A tie at the edge of the top-k may be broken either way: it is counted for the z-mask.
    edge = points.by_size.rank(points.num - kept)
    size, mask = np.abs(points.x), np.abs(points.z) > low
    sure = points.counts[size > edge].sum()
    ties = points.counts[mask & (size == edge)].sum()
    common = points.counts[mask & (size > edge)].sum() + min(ties, kept - sure)
    return float(common / (2 * kept - common))


def _gini(ordered: Ordered) -> float:
    """1 - 2 x the area under the Lorenz curve of the squares, from small to large."""
    shares = np.concatenate([[0], ordered.counts]) / ordered.counts[-1]
    sums = np.concatenate([[0.0], ordered.squares]) / ordered.squares[-1]
    return 1.0 - float((np.diff(shares) * (sums[1:] + sums[:-1])).sum())


def _quantiles(points: CountedValues) -> np.ndarray:
    """Quantiles of z, linear between order statistics."""
    if points.histogram is None:
        return np.quantile(points.z, PROBABILITIES)
    ordered = Ordered.of(points.z, points.counts, points.squares)
    return np.array([ordered.rank(int(p * (points.num - 1))) for p in PROBABILITIES])


def _error(points: CountedValues, percentile: float) -> float:
    """Half of the interval in which the threshold certainly lies."""
    if points.histogram is None:
        return 0.0
    low, high = points.histogram.distance_quantile(points.moments.mean, percentile)
    return 0.5 * (high - low) / points.moments.std


def _flags(points: CountedValues, percentile: float, ties: float) -> str:
    found = {
        "few elements": points.num * (1 - percentile) < 1,
        "ties": ties > 1,
        "exact zeros": points.zeros > 0,
    }
    return "; ".join(name for name, holds in found.items() if holds)


# --- what standardized laws would give --------------------------------------------------------

LAWS = {
    "normal": stats.norm(),
    "laplace": stats.laplace(scale=math.sqrt(0.5)),
    "t5": stats.t(5, scale=math.sqrt(3 / 5)),
    "t3": stats.t(3, scale=math.sqrt(1 / 3)),
}


def captured(name: str, threshold: float) -> float:
    """E[z²; |z| > threshold] of a law of `LAWS`, in closed form."""
    t = float(threshold)
    if name == "normal":
        return float(2 * (t * stats.norm.pdf(t) + stats.norm.sf(t)))
    if name == "laplace":
        s = math.sqrt(2) * t
        return math.exp(-s) * (1 + s + s * s / 2)
    nu = int(name[1:])
    # x = z sqrt(nu / (nu - 2)) has Student's density; x² weights it to a Beta(3/2, nu/2 - 1) law of
    # x² / (nu + x²).
    x = t * math.sqrt(nu / (nu - 2))
    return float(stats.beta.sf(x * x / (nu + x * x), 1.5, nu / 2 - 1))


def references() -> dict[str, np.ndarray]:
    """Exceedance, thresholds, energies, Lorenz curves and quantiles of the laws, by name."""
    thresholds = np.array([[law.isf((1 - p) / 2) for p in PERCENTILES] for law in LAWS.values()])
    edges = np.array([[law.isf(share / 2) for share in SHARES] for law in LAWS.values()])
    nothing = np.isinf(edges)  # beyond the last point of a law
    return {
        "reference_exceedance": np.array([2 * law.sf(LEVELS) for law in LAWS.values()]),
        "reference_threshold": thresholds,
        "reference_energy": _captured(thresholds),
        "reference_lorenz": np.where(nothing, 0.0, _captured(np.where(nothing, 0.0, edges))),
        "reference_quantile": np.array([law.ppf(PROBABILITIES) for law in LAWS.values()]),
    }


def _captured(thresholds: np.ndarray) -> np.ndarray:
    return np.array(
        [[captured(name, t) for t in row] for name, row in zip(LAWS, thresholds, strict=True)]
    )
