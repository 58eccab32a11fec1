"""z-score statistics of one set of gradient entries, exact or from a histogram."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy import stats
from torch import Tensor

from landscape import vectors
from landscape.streams import Grid, ValueHistogram

LEVELS = np.linspace(0.0, 8.0, 33)
PERCENTILES = (0.5, 0.8, 0.9, 0.95, 0.98, 0.99)
SHARES = np.array([0, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6,
                   0.7, 0.8, 0.9, 1.0])  # fmt: skip
NORMAL_QUANTILES = np.linspace(-3.5, 3.5, 57)
PROBABILITIES = stats.norm.cdf(NORMAL_QUANTILES)

AT = ("threshold", "kept_share", "captured_energy", "topk_jaccard")
EMPTY = ("one element", "zero gradient", "zero variance")
KNOWN = ("mean", "std", "zero_share", "finite")  # also where there are no z-scores
UNUSUAL = ("few elements", "ties", "exact zeros")


@dataclass(frozen=True)
class Marks:
    """Where distributions are looked at, on one device: percentiles, levels, shares, bins of z."""

    percentiles: Float[Tensor, " p"]
    levels: Float[Tensor, " l"]
    shares: Float[Tensor, " s"]
    probabilities: Float[Tensor, " q"]
    edges: Float[Tensor, " b"]
    percentile: float
    grid: Grid

    @classmethod
    def of(cls, percentile: float, grid: Grid, device: torch.device) -> "Marks":
        """The percentile asked comes first, before those of every result."""
        told = ((percentile, *PERCENTILES), LEVELS, SHARES, PROBABILITIES, grid.edges)
        ends = np.cumsum([len(values) for values in told])
        every = torch.tensor(np.concatenate(told)).to(device)
        return cls(*every.tensor_split(ends[:-1].tolist()), percentile, grid)


@dataclass(frozen=True)
class FourMoments:
    """Mean, standard deviation (unbiased), skewness and excess kurtosis, 0-d in float64."""

    mean: Tensor
    std: Tensor
    skewness: Tensor
    kurtosis: Tensor

    @classmethod
    def of(cls, values: Float[Tensor, "n"]) -> "FourMoments":
        """Those of the values, by centred sums in float64."""
        n, wide = values.numel(), values.double()
        mean = wide.mean()
        gaps = wide - mean
        squares = gaps.square()
        m2, m3, m4 = squares.sum(), vectors.dot(squares, gaps), vectors.squared_norm(squares)
        known = m2.square() > 0
        return cls(
            mean,
            (m2 / (n - 1)).sqrt(),
            torch.where(known, math.sqrt(n) * m3 / m2**1.5, torch.nan),
            torch.where(known, n * m4 / m2.square() - 3.0, torch.nan),
        )


@dataclass(frozen=True)
class CountedValues:
    """n values in ascending order: x (k,), of which each stands for a run of equal ones.

    squares (k + 1,): sum of squares of all values before each run, the last of all values. ends
    (k + 1,): how many values lie before each run; None where every value stands by itself. eps:
    relative error of a value. All on one device, and nothing here waits for it.
    """

    x: Float[Tensor, "k"]
    squares: Float[Tensor, "k+1"]
    ends: Int[Tensor, "k+1"] | None
    num: int
    spread: FourMoments
    eps: float
    histogram: ValueHistogram | None = None

    @classmethod
    def of(cls, values: Any) -> "CountedValues":
        """Every value by itself; a tensor without elements is a zero that does not count."""
        flat = torch.as_tensor(values).detach().reshape(-1)
        flat, num = flat.float() if flat.element_size() < 4 else flat, len(flat)
        flat = flat if num else flat.new_zeros(1)
        x = vectors.ascending(flat)
        squares = _before(x.double().square())
        return cls(x, squares, None, num, FourMoments.of(flat), torch.finfo(flat.dtype).eps)

    @classmethod
    def within(
        cls, histogram: ValueHistogram, device: torch.device | None = None
    ) -> "CountedValues":
        """The centres of a histogram's bins, on this device."""
        order = np.argsort(histogram.centres)
        x, counts, squares = (
            torch.from_numpy(values[order]).to(device)
            for values in (histogram.centres, histogram.counts, histogram.squares)
        )
        moments = histogram.moments
        known = (moments.mean, moments.std, moments.skewness, moments.excess_kurtosis)
        return cls(
            x,
            _before(squares),
            _before(counts),
            moments.count,
            FourMoments(*torch.tensor(known, dtype=torch.float64).to(device)),
            2.0**-24,
            histogram,
        )

    @cached_property
    def z(self) -> Float[Tensor, "k"]:
        """Standardized values, ascending as well."""
        return (self.x.double() - self.spread.mean) / self.spread.std

    @cached_property
    def zeros(self) -> Int[Tensor, ""]:
        """How many are exactly zero."""
        if self.histogram is not None:
            return torch.tensor(self.histogram.zeros).to(self.x.device)
        return _within(self, self.x, self.x.new_zeros(())).size.clamp(max=self.num)

    @cached_property
    def sizes(self) -> "CountedValues":
        """|x|, ascending."""
        if self.ends is None:
            x = vectors.ascending(self.x.abs())
            return replace(self, x=x, squares=_before(x.double().square()))
        x, order = self.x.abs().sort()
        squares, ends = (_before(each.diff()[order]) for each in (self.squares, self.ends))
        return replace(self, x=x, squares=squares, ends=ends)

    @property
    def empty(self) -> Int[Tensor, ""]:
        """Why there are no z-scores, 1 + its place in EMPTY; 0 where there are."""
        largest = torch.maximum(self.x[0].abs(), self.x[-1].abs()).double()
        varies = self.spread.std > 10 * self.eps * largest
        why = torch.where(varies, 0, 3)
        why = torch.where(self.zeros == self.num, 2, why)
        return torch.ones_like(why) if self.num == 1 else why

    # y is x or z: both ascend, and a place is that of a value among all n.

    def value(self, y: Tensor, place: Int[Tensor, "m"]) -> Tensor:
        """The values at these places."""
        if self.ends is not None:
            place = torch.searchsorted(self.ends, place, right=True) - 1
        return y[place.clamp(0, len(y) - 1)]

    def below(self, y: Tensor, bounds: Tensor, *, equal: bool = False) -> Int[Tensor, "m"]:
        """How many values lie below these bounds, or at most at them."""
        found = torch.searchsorted(y, bounds, right=equal)
        return found if self.ends is None else self.ends[found]

    def energy(self, places: Int[Tensor, "m"]) -> Float[Tensor, "m"]:
        """Sum of squares of the values before these places, linear inside equal values."""
        if self.ends is None:
            return self.squares[places.clamp(min=0)]
        run = (torch.searchsorted(self.ends, places, right=True) - 1).clamp(max=len(self.x) - 1)
        start, size = self.ends[run], self.ends[run + 1] - self.ends[run]
        share = (places - start).double() / size.clamp(min=1)
        return self.squares[run] + share * (self.squares[run + 1] - self.squares[run])

    def nearest(self, y: Tensor, count: Int[Tensor, "m"]) -> Int[Tensor, "m"]:
        """Where the `count` values nearest to y = 0 begin: they are neighbours."""
        count = count.clamp(min=1)
        most = self.num - count
        low, high = torch.zeros_like(count), most
        for _ in range(self.num.bit_length()):
            middle = (low + high) >> 1
            # The first of them is farther than the one behind the last.
            apart = -self.value(y, middle) > self.value(y, middle + count)
            low, high = torch.where(apart, middle + 1, low), torch.where(apart, high, middle)
        return torch.minimum(low, most)

    def distance(self, y: Tensor, rank: Int[Tensor, "m"]) -> Tensor:
        """Order statistics of |y|, counted from 0."""
        first = self.nearest(y, rank + 1)
        return torch.maximum(-self.value(y, first), self.value(y, first + rank))

    def ties(self, low: Tensor, at_most: Tensor) -> Tensor:
        """Values tied at the lower order statistic; in a stream only exact zeros can be told."""
        if self.histogram is None:
            return at_most
        mean, distance = self.spread.mean.abs(), low * self.spread.std
        return torch.where((distance - mean).abs() <= 1e-9 * mean + 1e-38, self.zeros, 1)

    def error(self, percentile: float) -> Tensor:
        """Half of the interval in which the threshold certainly lies."""
        if self.histogram is None:
            return torch.zeros_like(self.spread.std)
        moments = self.histogram.moments
        low, high = self.histogram.distance_quantile(moments.mean, percentile)
        return 0.5 * (high - low) / self.spread.std


def _before(values: Tensor) -> Tensor:
    """Sums of all values before each, and of all."""
    return torch.cat([values.new_zeros(1), values.cumsum(0)])


def zscore_row(points: CountedValues, marks: Marks) -> dict[str, Tensor]:
    """Every statistic of one row of `gradient_zscores`, on the device; `read` tells them.

    Where `empty` is not 0 there are no z-scores, and only mean, std and zero_share mean anything.
    """
    n, z, spread = points.num, points.z, points.spread
    kept = _kept(points, marks.percentiles)
    binned = points.below(z, marks.edges)
    tail = n - _within(points, z, marks.levels).size
    few = n * (1 - marks.percentiles[0]) < 1
    row = {
        "mean": spread.mean,
        "std": spread.std,
        "zero_share": points.zeros.double() / max(n, 1),
        "mean_over_std": spread.mean / spread.std,
        "skewness": spread.skewness,
        "excess_kurtosis": spread.kurtosis,
        "overflow": (n - (binned[-1] - binned[0])).double() / n,
        "density": binned.diff().double() / (n * marks.grid.width),
        "exceedance": tail.double() / n,
        "lorenz": _top_energy(points, marks.shares * n),
        "gini": _gini(points),
        "z_quantile": _quantiles(points, marks.probabilities),
        "tie_share": kept["ties"][0].double() / n,
        "threshold_error": points.error(marks.percentile),
    }
    row |= {name: kept[name][0] for name in AT}
    row |= {f"{name}_at": kept[name][1:] for name in AT}
    return row | {
        "empty": points.empty,
        "unusual": torch.stack([few, kept["ties"][0] > 1, points.zeros > 0]),
    }


@dataclass(frozen=True)
class _Neighbours:
    """Those among the ascending values from place `first` up to the one before `last`."""

    first: Int[Tensor, "m"]
    last: Int[Tensor, "m"]

    @property
    def size(self) -> Int[Tensor, "m"]:
        return (self.last - self.first).clamp(min=0)

    def common(self, other: "_Neighbours") -> Int[Tensor, "m"]:
        """How many values are in both."""
        last = torch.minimum(self.last, other.last)
        return _Neighbours(torch.maximum(self.first, other.first), last).size


def _within(points: CountedValues, y: Tensor, bound: Tensor, *, equal: bool = True) -> _Neighbours:
    """The values with |y| <= bound, or < bound."""
    first = points.below(y, -bound, equal=not equal)
    return _Neighbours(first, points.below(y, bound, equal=equal))


def _kept(points: CountedValues, levels: Float[Tensor, " p"]) -> dict[str, Tensor]:
    """The z-mask |z| > threshold at each percentile.

    The threshold is linear between two order statistics, and what exceeds it is what exceeds the
    lower one: rounding can push the interpolated value past a tie.
    """
    n, position = points.num, levels * (points.num - 1)
    rank = position.floor().long()
    both = points.distance(points.z, torch.cat([rank, (rank + 1).clamp(max=n - 1)]))
    low, high = both.chunk(2)
    left_out = _within(points, points.z, low)
    kept = n - left_out.size
    energy = points.energy(left_out.last) - points.energy(left_out.first)
    return {
        "threshold": torch.lerp(low, high, position - rank),
        "kept_share": kept.double() / n,
        "captured_energy": 1.0 - energy / points.squares[-1],
        "topk_jaccard": _topk_jaccard(points, left_out, kept),
        "ties": points.ties(low, left_out.size - rank),
    }


def _topk_jaccard(points: CountedValues, left_out: _Neighbours, kept: Int[Tensor, " p"]) -> Tensor:
    n, x = points.num, points.x
    # A tie at the edge of the top-k may be broken either way: it is counted for the z-mask.
    edge = points.sizes.value(points.sizes.x, n - kept)
    small, smaller = _within(points, x, edge), _within(points, x, edge, equal=False)
    in_neither, surely = left_out.common(small), n - small.size
    ties = (small.size - smaller.size) - (in_neither - left_out.common(smaller))
    common = n - (left_out.size + small.size - in_neither) + torch.minimum(ties, kept - surely)
    return torch.where(kept > 0, common.double() / (2 * kept - common), torch.nan)


def _top_energy(points: CountedValues, counts: Float[Tensor, " s"]) -> Float[Tensor, " s"]:
    """Share of the squares in the `counts` largest |z|, linear between whole numbers of them."""
    others = (points.num - counts).clamp(0, points.num)
    whole = torch.cat([others.floor(), others.ceil()]).long()
    first = points.nearest(points.z, whole)
    low, high = (points.energy(first + whole) - points.energy(first)).chunk(2)
    return 1.0 - torch.lerp(low, high, others - others.floor()) / points.squares[-1]


def _gini(points: CountedValues) -> Float[Tensor, ""]:
    """1 - 2 x the area under the Lorenz curve of the squares, from small to large."""
    sums, ends = points.sizes.squares, points.sizes.ends
    if ends is None:
        area = 2 * sums.sum() - sums[-1]
    else:
        area = vectors.dot(ends.diff().double(), sums[1:] + sums[:-1])
    return 1.0 - area / (points.num * sums[-1])


def _quantiles(points: CountedValues, levels: Float[Tensor, " q"]) -> Float[Tensor, " q"]:
    """Quantiles of z, linear between order statistics."""
    position = levels * (points.num - 1)
    rank = position.floor().long()
    low, high = (points.value(points.z, place) for place in (rank, rank + 1))
    return torch.lerp(low, high, position - rank)


# --- on the host ------------------------------------------------------------------------------


def read(rows: Sequence[dict[str, Tensor]]) -> list[dict[str, Any]]:
    """Rows with their flags in words; a device is read once for all of them."""
    sizes = {name: value.shape for name, value in rows[0].items()}
    parts = [torch.cat([value.double().reshape(-1) for value in row.values()]) for row in rows]
    ends = np.cumsum([shape.numel() for shape in sizes.values()])[:-1]
    return [
        _in_words(
            {
                name: part if shape else float(part[0])
                for (name, shape), part in zip(sizes.items(), np.split(row, ends), strict=True)
            }
        )
        for row in torch.stack(parts).cpu().numpy()
    ]


def _in_words(row: dict[str, Any]) -> dict[str, Any]:
    """The row with `flag` in the place of the numbers that it is told by."""
    empty, unusual = int(row.pop("empty")), row.pop("unusual")
    if not empty:
        flags = [name for name, holds in zip(UNUSUAL, unusual, strict=True) if holds]
        return row | {"flag": "; ".join(flags)}
    known = {name: row[name] for name in KNOWN if name in row}
    nothing = {name: value * math.nan for name, value in row.items()}
    return nothing | known | {"flag": EMPTY[empty - 1]}


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
