"""How the gradient is distributed within each tensor, and what a z-score filter would keep."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from landscape import results, vectors
from landscape.checks import check_choice, check_count, check_fraction
from landscape.errors import LandscapeError
from landscape.measure.measuring import Measuring
from landscape.measure.perturbations import zscore_statistics
from landscape.measure.perturbations.counterfactual import Counterfactual
from landscape.measure.perturbations.counting import counted
from landscape.measure.perturbations.zscore_statistics import CountedValues, Marks, read, zscore_row
from landscape.params import TensorInfo
from landscape.plane import Filters, is_one_d
from landscape.results import Variable
from landscape.risk import EmpiricalRisk
from landscape.sharding import whole
from landscape.streams import Grid, ValueHistogram

SOURCES = ("full", "mini-batch", "example", "residual")
GROUPINGS = ("tensor", "channel", "net")
EXACT_UP_TO = 1 << 22
_GRID = Grid(bins=241)
_TITLES = {
    "mean": ("nats / parameter", "Mean of the gradient, μ"),
    "std": ("nats / parameter", "Standard deviation of the gradient, σ"),
    "mean_over_std": ("1", "Mean over standard deviation, μ/σ"),
    "skewness": ("1", "Skewness of z"),
    "excess_kurtosis": ("1", "Excess kurtosis of z"),
    "threshold": ("1", "Threshold on |z|"),
    "kept_share": ("1", "Share of coordinates kept"),
    "captured_energy": ("1", "Share of ‖g‖² kept"),
    "topk_jaccard": ("1", "Jaccard of the z-mask and the top-|g| mask"),
    "overflow": ("1", "Share of z outside the histogram"),
    "gini": ("1", "Gini index of g²"),
    "zero_share": ("1", "Share of exact zeros"),
    "tie_share": ("1", "Share of coordinates tied at the threshold"),
    "threshold_error": ("1", "Half width of the threshold's certain interval"),
}
_CURVES = {
    "density": ("bin", "Density of z"),
    "exceedance": ("level", "P(|z| > level)"),
    "lorenz": ("share", "Share of ‖g‖² in the largest |z|"),
    "z_quantile": ("probability", "Quantile of z"),
    **{f"{name}_at": ("percentile", _TITLES[name][1]) for name in zscore_statistics.AT},
}
_SPREAD = ("threshold", "captured_energy", "topk_jaccard")


def gradient_zscores(
    risk: EmpiricalRisk,
    theta: Float[Tensor, "P"],
    *,
    percentile: float = 0.95,
    source: str = "full",
    grouping: str = "tensor",
    batch_size: int = 64,
    num_batches: int = 4,
    bn: str = "batch",
    state: Mapping[str, Any] | None = None,
    exact_up_to: int = EXACT_UP_TO,
    grid: Grid = _GRID,
    seed: int = 0,
) -> xr.Dataset:
    """Distribution of z = (g - mu) / sigma in each tensor of a gradient, and what |z| selects.

    mu and sigma (unbiased) run over the elements of the tensor (arXiv:2505.02369), of each output
    channel (grouping="channel": rows named `name[i]`, 1-D tensors whole) or of the net.
    source: "full", the gradient of the risk; "mini-batch", of num_batches disjoint seeded batches,
    each standardized by itself and the statistics averaged (<name>_std: SD over the draws);
    "example", of num_batches single examples; "residual", a batch's gradient minus the average
    gradient M that F-SAM subtracts, from the slot state of an optimizer or, without one, the mean
    over all batches. bn: "batch" or "eval", the BatchNorm mode of batches.

    density(tensor, bin): of z on [-12, 12), the share beyond in overflow. threshold: quantile of
    |z| at `percentile`, linear between order statistics; the mask is |z| > threshold, strictly,
    which keeps (n-1) - floor(percentile (n-1)) elements without ties (kept_share).
    captured_energy: ‖m g‖²/‖g‖²; topk_jaccard: against the equally many largest |g|, 1 where
    centring changes nothing; <name>_at(tensor, percentile): the same at other levels.
    exceedance(tensor, level) = P(|z| > level); lorenz(tensor, share): energy in the share of
    largest |z|; gini of g²; z_quantile(tensor, probability). reference_<curve>(law, ...): the same
    of standardized normal, Laplace, t5 and t3 laws (at 0.95 the energies .279, .424, .412, .585).
    Tensors of more than exact_up_to elements are seen through a `ValueHistogram`, counted where
    they are in one pass of bounded memory; threshold_error is half of the interval that certainly
    holds their threshold.

    flag(tensor), joined by "; ": "zero gradient", "zero variance" and "one element" (no z-scores:
    NaN), "few elements" (n < 1/(1-percentile)), "ties" at the threshold, "exact zeros". Raises
    LandscapeError for NaN or infinite gradients, with the tensor's name. Cost: one gradient, or
    num_batches of a batch.
    grid: the bins of z. batch_size: examples of such a mini-batch.

    Example:
        >>> found = measure.gradient_zscores(risk, theta, percentile=0.5, num_batches=1, seed=0)
        >>> found.tensor.values.tolist()[:2], found.threshold.dims
        (['0.weight', '0.bias'], ('tensor',))
    """
    _check(percentile, source, grouping, grid)
    measuring = Measuring("gradient_zscores", risk, theta)
    sources = _Gradients(measuring, batch_size, num_batches, bn, state, seed)
    groups = _groups(risk, measuring.theta, grouping)
    mean, marks = _Averages(), Marks.of(percentile, grid, risk.device)
    for number, g in enumerate(sources.of(source)):
        rows = []
        for group in groups:
            values = whole(group.of(g))
            if values.numel() <= exact_up_to:
                points = CountedValues.of(values)
            else:
                seen = counted(values)
                if seen.not_finite:
                    raise _not_finite(group.name, values, number)
                points = CountedValues.within(seen, values.device)
            rows.append(zscore_row(points, marks) | {"finite": vectors.is_finite(values)})
        found = read(rows)
        for group, row in zip(groups, found, strict=True):
            if not row.pop("finite"):
                raise _not_finite(group.name, group.of(g), number)
        mean.add(found)
    options = {
        "percentile": percentile,
        "source": source,
        "grouping": grouping,
        "num_draws": mean.draws,
        **sources.said(source),
    }
    return measuring.result(
        _variables(mean),
        coords=_group_coords(groups, measuring.theta) | _curve_coords(grid),
        options=options,
    )


def streamed_zscores(
    histograms: Mapping[str, ValueHistogram],
    *,
    percentile: float = 0.95,
    kinds: Mapping[str, str] | None = None,
    grid: Grid = _GRID,
    provenance: Mapping[str, Any] | None = None,
) -> xr.Dataset:
    """`gradient_zscores` of gradients that were streamed into one histogram per tensor name.

    For tensors of any size, any number of batches and several processes: each fills its own
    `ValueHistogram.of(gradient)`, which are merged in any order. mu and sigma are those of all
    merged values, exact; thresholds and shares are within the histogram's bins
    (threshold_error(tensor), certain). kinds: kind of each tensor by name. Raises LandscapeError
    where a histogram has seen NaN or infinite values, or nothing.
    histograms: tensor name -> `ValueHistogram`. percentile: the level of the threshold on |z|
    (arXiv:2505.02369). grid: the bins of z that densities are given on.

    Example:
        >>> gradient = np.random.default_rng(0).normal(size=10_000)
        >>> seen = {"w": streams.ValueHistogram.of(gradient[:5000])}
        >>> seen["w"] = seen["w"].merge(streams.ValueHistogram.of(gradient[5000:]))
        >>> found = measure.streamed_zscores(seen, percentile=0.95)
        >>> round(float(found.kept_share[0]), 2)
        0.05
    """
    _check(percentile, "full", "tensor", grid)
    if not histograms or not all(isinstance(h, ValueHistogram) for h in histograms.values()):
        found = ", ".join(sorted({type(h).__name__ for h in histograms.values()}))
        raise LandscapeError(
            f"streamed_zscores got {found or 'no histogram'}; pass a ValueHistogram for each "
            f"tensor, such as {{'conv.weight': ValueHistogram.of(gradient)}}."
        )
    for name, histogram in histograms.items():
        if histogram.not_finite or not histogram.moments.count:
            raise LandscapeError(
                f"The histogram of {name} has {histogram.moments.count} finite values and "
                f"{histogram.not_finite} that are NaN or infinite; z-scores need finite gradients "
                f"alone. Stream the steps before the training diverged."
            )
    mean = _Averages()
    marks = Marks.of(percentile, grid, torch.device("cpu"))
    mean.add(read([zscore_row(CountedValues.within(h), marks) for h in histograms.values()]))
    names = list(histograms)
    coords = {
        "tensor": np.array(names, dtype=object),
        "kind": ("tensor", np.array([(kinds or {}).get(n, "other") for n in names], dtype=object)),
        "size": ("tensor", np.array([h.moments.count for h in histograms.values()])),
    }
    return results.make(
        "gradient_zscores",
        _variables(mean),
        coords=coords | _curve_coords(grid),
        provenance={"percentile": percentile, "source": "streamed", **(provenance or {})},
    )


def _check(percentile: float, source: str, grouping: str, grid: Grid) -> None:
    check_fraction("percentile", percentile, one=False)
    check_choice("source", source, SOURCES)
    check_choice("grouping", grouping, GROUPINGS)
    check_count("bins", grid.bins, 1)


def _not_finite(name: str, values: Tensor, draw: int) -> LandscapeError:
    bad = int((~torch.isfinite(values)).sum())
    return LandscapeError(
        f"The gradient of {name} has {bad} NaN or infinite values of {values.numel()} (draw "
        f"{draw}); z-scores need a finite gradient. Check the checkpoint and the inputs."
    )


@dataclass(frozen=True)
class _Group:
    """Coordinates that are standardized together: all, a tensor, or one of its filters."""

    name: str
    tensor: TensorInfo | None = None
    filters: Filters | None = None
    index: int = 0

    def of(self, g: Tensor) -> Tensor:
        """Their gradient."""
        if self.tensor is None:
            return g
        part = g[self.tensor.start : self.tensor.stop]
        return part if self.filters is None else self.filters.rows(self.tensor, part)[self.index]


def _groups(risk: EmpiricalRisk, theta: Tensor, grouping: str) -> list[_Group]:
    if grouping == "net":
        return [_Group("all")]
    rule = Filters.of(risk)
    groups = []
    for tensor in risk.layout.tensors:
        if grouping == "tensor" or is_one_d(tensor):
            groups.append(_Group(tensor.name, tensor))
            continue
        count = len(rule.rows(tensor, theta[tensor.start : tensor.stop]))
        groups += [_Group(f"{tensor.name}[{i}]", tensor, rule, i) for i in range(count)]
    return groups


def _group_coords(groups: Sequence[_Group], theta: Tensor) -> dict[str, Any]:
    tensors = [group.tensor for group in groups]
    columns = {
        "owner": [t.name if t else "all" for t in tensors],
        "kind": [t.kind if t else "other" for t in tensors],
    }
    return {
        "tensor": np.array([group.name for group in groups], dtype=object),
        **{k: ("tensor", np.array(values, dtype=object)) for k, values in columns.items()},
        "size": ("tensor", np.array([group.of(theta).numel() for group in groups])),
        "ndim": ("tensor", np.array([t.ndim if t else 1 for t in tensors])),
    }


class _Gradients:
    """Draws of the gradient, flat (P,), by source."""

    def __init__(
        self,
        measuring: Measuring,
        batch_size: int,
        num_batches: int,
        bn: str,
        state: Mapping[str, Any] | None,
        seed: int,
    ) -> None:
        self.measuring, self.state, self.bn, self.seed = measuring, state, bn, seed
        self.batch_size, self.num_batches = batch_size, num_batches

    def of(self, source: str) -> Iterator[Tensor]:
        """Each draw."""
        risk, theta = self.measuring.risk, self.measuring.theta
        if source == "full":
            loss, g = risk.loss_and_gradient(theta)
            self.measuring.check_loss(loss)
            yield g
            return
        self.measuring.finite_loss()
        check_count("num_batches", self.num_batches, 1)
        size = 1 if source == "example" else self.batch_size
        # One example has no statistics of a batch.
        bn = "eval" if source == "example" else self.bn
        here = Counterfactual(risk, theta, batch_size=size, bn=bn, seed=self.seed)
        average = self._average(here) if source == "residual" else None
        for rows in here.batches(self.num_batches):
            g = here.gradient(rows)
            yield g if average is None else g - average

    def _average(self, here: Counterfactual) -> Tensor:
        ema = (self.state or {}).get("source", {}).get("ema")
        return here.mean_gradient if ema is None else here.flat(dict(ema))

    def said(self, source: str) -> dict[str, Any]:
        """Provenance."""
        if source == "full":
            return {}
        live = source == "residual" and "ema" in (self.state or {}).get("source", {})
        return {
            "batch_size": 1 if source == "example" else self.batch_size,
            "batch_bn": "eval" if source == "example" else self.bn,
            "seed": self.seed,
            **({"average": "live state" if live else "mean of all batches"}
               if source == "residual" else {}),
        }  # fmt: skip


class _Averages:
    """Mean and SD over draws of every statistic; rows without a value in a draw are left out."""

    def __init__(self) -> None:
        self.draws = 0
        self.sums: dict[str, np.ndarray] = {}
        self.squares: dict[str, np.ndarray] = {}
        self.known: dict[str, np.ndarray] = {}
        self.flags: list[list[str]] = []

    def add(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """One draw."""
        self.draws += 1
        self.flags = self.flags or [[] for _ in rows]
        for row, flags in zip(rows, self.flags, strict=True):
            flags += [flag for flag in row["flag"].split("; ") if flag and flag not in flags]
        for name in (*_TITLES, *_CURVES):
            values = np.array([row[name] for row in rows])
            known = np.isfinite(values)
            filled = np.where(known, values, 0.0)
            for store, part in (
                (self.sums, filled), (self.squares, filled**2), (self.known, known.astype(float))
            ):  # fmt: skip
                store[name] = store.get(name, 0.0) + part

    def mean(self, name: str) -> np.ndarray:
        """Mean over the draws."""
        with np.errstate(invalid="ignore"):
            return self.sums[name] / self.known[name]

    def std(self, name: str) -> np.ndarray:
        """Unbiased SD over the draws, NaN below two."""
        n = self.known[name]
        with np.errstate(invalid="ignore", divide="ignore"):
            variance = (self.squares[name] - self.sums[name] ** 2 / n) / (n - 1)
        return np.sqrt(np.maximum(np.where(n > 1, variance, np.nan), 0.0))


def _variables(mean: _Averages) -> dict[str, Variable]:
    variables = {
        name: Variable("tensor", mean.mean(name), units, title)
        for name, (units, title) in _TITLES.items()
    }
    variables |= {
        name: Variable(("tensor", dim), mean.mean(name), "1", title)
        for name, (dim, title) in _CURVES.items()
    }
    variables |= {
        f"{name}_std": Variable(
            "tensor", mean.std(name), "1", f"{_TITLES[name][1]}, SD over the draws"
        )
        for name in _SPREAD
    }
    variables["flag"] = Variable(
        "tensor",
        np.array(["; ".join(flags) for flags in mean.flags], dtype=object),
        "1",
        "What is unusual",
    )
    dims = ("level", "percentile", "percentile", "share", "probability")
    for dim, (name, values) in zip(dims, zscore_statistics.references().items(), strict=True):
        title = f"{name.removeprefix('reference_').capitalize()} of the law"
        variables[name] = Variable(("law", dim), values, "1", title)
    return variables


def _curve_coords(grid: Grid) -> dict[str, Any]:
    return {
        "bin": np.arange(grid.bins),
        "z": Variable("bin", grid.centres, "1", "z-score"),
        "level": zscore_statistics.LEVELS,
        "percentile": np.array(zscore_statistics.PERCENTILES),
        "share": zscore_statistics.SHARES,
        "probability": zscore_statistics.PROBABILITIES,
        "normal_quantile": Variable(
            "probability", zscore_statistics.NORMAL_QUANTILES, "1", "Quantile of the normal law"
        ),
        "law": np.array(list(zscore_statistics.LAWS), dtype=object),
    }
