"""Which coordinates variants select, compared with each other and with chance."""

import itertools
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from jaxtyping import Bool, Float
from scipy.stats import binom
from torch import Tensor

from landscape import results, sam
from landscape.errors import LandscapeError
from landscape.measure._common import Measuring, tensor_coords
from landscape.measure._counterfactual import Counterfactual
from landscape.plane import Filters, is_one_d
from landscape.results import Variable
from landscape.risk import EmpiricalRisk
from landscape.streams import Overlap, PackedMasks
from landscape.streams import persistence as pair_by_lag

LAGS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)


def mask_overlap(
    risk: EmpiricalRisk,
    theta: Float[Tensor, "P"],
    *,
    variants: Mapping[str, sam.Variant],
    batch_size: int = 64,
    bn: str = "batch",
    states: Mapping[str, dict[str, Any]] | None = None,
    seed: int,
) -> xr.Dataset:
    """Overlap of the masks that several variants would use at one theta, on one seeded batch.

    Per pair and tensor: jaccard = o/(K+M-o), expected_jaccard under independence with the sizes
    fixed (hypergeometric; d/(2-d) for equal density d), kappa = 2(o-E)/(K+M-2E), the overlap
    corrected for chance, and z_score = (o-E)/sqrt(Var). *_all(pair): over all tensors against the
    stratified null, where expectation and variance are sums over tensors. Two masks that select all
    or nothing of a tensor cannot be told from chance there: NaN. Coordinates of a filter are
    correlated, so that z_score overstates significance: z_score_filter and expected_jaccard_filter
    are against the second mask with its filters (output channels) permuted as wholes, moments exact
    (Hoeffding 1951); what is shared by position within a filter counts as chance there. Read kappa
    as the effect, the scores as gates. Cost: 2 gradients of the batch per variant.
    """
    if len(variants) < 2:
        raise LandscapeError(
            f"mask_overlap got {len(variants)} variant; it compares two or more, by name."
        )
    measuring = Measuring("mask_overlap", risk, theta)
    measuring.finite_loss()
    here = Counterfactual(risk, measuring.theta, batch_size=batch_size, bn=bn, seed=seed)
    flat = {
        name: here.flat_mask(
            # A seed each: two variants that draw at random must not share their draws.
            here.perturb(
                variant,
                state=None if states is None else states.get(name),
                seed=seed + zlib.crc32(name.encode()),
            )
        )
        for name, variant in variants.items()
    }
    masks = {name: PackedMasks.of(risk.layout.unflatten(mask)) for name, mask in flat.items()}
    pairs = list(itertools.combinations(masks, 2))
    overlap = _stack([masks[a].overlap(masks[b]) for a, b in pairs])
    rule = Filters.of(risk)
    moments = np.array([filter_null(rule, flat[a], flat[b]) for a, b in pairs])
    variables = overlap_variables(overlap, ("pair", "tensor"))
    variables |= _filter_variables(overlap, moments[..., 0], moments[..., 1])
    coords = {
        **tensor_coords(risk.layout),
        "pair": np.array([f"{a} | {b}" for a, b in pairs], dtype=object),
        "first": ("pair", np.array([a for a, _ in pairs], dtype=object)),
        "second": ("pair", np.array([b for _, b in pairs], dtype=object)),
    }
    options = {
        "variants": {name: variant.name for name, variant in variants.items()},
        "batch_size": here.batch_size,
        "batch_bn": bn,
        "null": "hypergeometric, stratified over tensors; *_filter: filters permuted",
        "seed": seed,
    }
    return measuring.result(variables, coords=coords, options=options)


def filter_null(
    rule: Filters, first: Bool[Tensor, "P"], second: Bool[Tensor, "P"]
) -> list[tuple[float, float]]:
    """Mean and variance per tensor of o when the filters of `second` are permuted at random.

    With O_ij = |A_i and B_j| over the F filters: E[o] = sum_ij O_ij / F and Var[o] = sum_ij (O_ij -
    O_i. - O_.j + O_..)² / (F - 1), bars being means (Hoeffding 1951). The elements of a
    1-D tensor are its filters.
    """
    moments = []
    for tensor in rule.layout.tensors:
        span = slice(tensor.start, tensor.stop)
        A, B = (rule.rows(tensor, mask[span]).float() for mask in (first, second))
        if is_one_d(tensor):
            A, B = A.T, B.T
        overlaps = (A @ B.T).double()
        mean = float(overlaps.sum()) / len(A)
        centred = overlaps - overlaps.mean(0, keepdim=True)
        centred = centred - centred.mean(1, keepdim=True)
        variance = float(centred.square().sum()) / (len(A) - 1) if len(A) > 1 else 0.0
        moments.append((mean, variance if variance > 1e-9 * max(mean, 1e-9) else 0.0))
    return moments


def _filter_variables(
    overlap: Overlap, mean: np.ndarray, variance: np.ndarray
) -> dict[str, Variable]:
    """Scores against permuted filters; mean and variance are (pair, tensor)."""
    dims = ("pair", "tensor")
    selected = overlap.first + overlap.second
    with np.errstate(divide="ignore", invalid="ignore"):
        score = np.where(variance > 0, (overlap.common - mean) / np.sqrt(variance), np.nan)
        every = variance.sum(-1)
        pooled = (overlap.common - mean).sum(-1) / np.sqrt(every)
        jaccard = np.where(selected > 0, mean / (selected - mean), np.nan)
    long_name = "Overlap above that of permuted filters in standard deviations"
    return {
        "expected_jaccard_filter": Variable(
            dims, jaccard, "1", "Jaccard index expected with permuted filters"
        ),
        "z_score_filter": Variable(dims, score, "1", long_name),
        "z_score_filter_all": Variable(
            dims[:1], np.where(every > 0, pooled, np.nan), "1", f"{long_name}, all tensors"
        ),
    }


def mask_persistence(
    snapshots: Sequence[tuple[int, PackedMasks]],
    *,
    lags: Iterable[int] = LAGS,
    provenance: Mapping[str, Any] | None = None,
) -> xr.Dataset:
    """Overlap of a training's own masks `lag` steps apart: jaccard(lag), expected_jaccard, kappa.

    snapshots: (step, masks) recorded at any steps; each lag pools all its pairs and tensors against
    the stratified null. num_pairs(lag) says how many pairs of snapshots a value rests on.
    """
    found, overlaps = pair_by_lag(snapshots, lags)
    if not len(found):
        steps = sorted(step for step, _ in snapshots)
        raise LandscapeError(
            f"{len(steps)} mask snapshots at steps {steps[:6]} hold no two that are "
            f"{', '.join(map(str, sorted(set(lags))[:6]))} steps apart; record more snapshots "
            f"or ask for lags that occur."
        )
    pooled = [_pairs_as_strata(overlap).pooled() for overlap in overlaps]
    variables = {
        name: Variable("lag", np.array([float(getattr(p, name)) for p in pooled]), "1", long_name)
        for name, long_name in _LONG.items()
        if name != "z_score"
    }
    variables["num_pairs"] = Variable(
        "lag", np.array([overlap.size.shape[0] for overlap in overlaps]), "1", "Pairs of snapshots"
    )
    coords = {"lag": Variable("lag", found, "steps", "Steps between two masks")}
    return results.make(
        "mask_persistence",
        variables,
        coords=coords,
        provenance={"num_snapshots": len(snapshots), **(provenance or {})},
    )


def mask_selection(
    snapshots: Sequence[tuple[int, PackedMasks]],
    *,
    kinds: Mapping[str, str] | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> xr.Dataset:
    """How often each coordinate is selected over T snapshots, against independent draws.

    share(tensor, bin): share of coordinates selected `bin` times, 0..T; expected_share(tensor,
    bin): the binomial law of T draws at the tensor's mean density. over_dispersion(tensor):
    variance of the selection frequency over that of independent masks of the same densities, sum_t
    d_t (1 - d_t) / T² (1 at chance, NaN where all or nothing is always selected).
    effective_support(tensor): exp(entropy of the selections)/n, 1 where all coordinates are
    selected equally often. kinds: kind of each tensor by name, as in `ParamLayout`.
    """
    if len(snapshots) < 2:
        raise LandscapeError(
            f"{len(snapshots)} mask snapshot was given; selection frequencies need two or more."
        )
    first = snapshots[0][1]
    times = {name: np.zeros(size) for name, size in zip(first.names, first.sizes, strict=True)}
    densities = []
    for _, masks in snapshots:
        # Also refuses snapshots of another model.
        densities.append(first.overlap(masks).second / np.array(first.sizes))
        for name, mask in masks.unpack().items():
            times[name] += mask
    total, density = len(snapshots), np.array(densities)
    rows = [_selection(count, density[:, i], total) for i, count in enumerate(times.values())]
    bins = ("tensor", "bin")
    titles = {
        "share": (bins, "Share of coordinates selected that often"),
        "expected_share": (bins, "Share expected of independent masks"),
        "over_dispersion": ("tensor", "Spread of the selection frequency over chance"),
        "effective_support": ("tensor", "Effective share of coordinates in use"),
        "density": ("tensor", "Mean share selected"),
    }
    variables = {
        name: Variable(dims, np.array([row[name] for row in rows]), "1", title)
        for name, (dims, title) in titles.items()
    }
    coords = {
        "tensor": np.array(first.names, dtype=object),
        "kind": (
            "tensor",
            np.array([(kinds or {}).get(name, "other") for name in first.names], dtype=object),
        ),
        "size": ("tensor", np.array(first.sizes)),
        "bin": np.arange(total + 1),
    }
    return results.make(
        "mask_selection",
        variables,
        coords=coords,
        provenance={"num_snapshots": total, **(provenance or {})},
    )


def _selection(times: np.ndarray, density: np.ndarray, total: int) -> dict[str, Any]:
    """Statistics of one tensor: times selected per coordinate, density per snapshot."""
    mean = float(density.mean())
    chance = float((density * (1 - density)).sum()) / total**2
    weights = times[times > 0] / max(times.sum(), 1.0)
    return {
        "share": np.bincount(times.astype(np.int64), minlength=total + 1) / len(times),
        "expected_share": binom.pmf(np.arange(total + 1), total, mean),
        "over_dispersion": (times / total).var() / chance if chance > 0 else np.nan,
        "effective_support": float(np.exp(-(weights * np.log(weights)).sum())) / len(times)
        if len(weights)
        else 0.0,
        "density": mean,
    }


_LONG = {
    "jaccard": "Jaccard index",
    "expected_jaccard": "Jaccard index expected by chance",
    "kappa": "Overlap above chance, κ",
    "z_score": "Overlap above chance in standard deviations of the null",
}


def overlap_variables(overlap: Overlap, dims: tuple[str, str]) -> dict[str, Variable]:
    """The overlap's statistics per tensor, and pooled over tensors with the suffix `_all`."""
    pooled = overlap.pooled()
    each = {
        name: Variable(dims, getattr(overlap, name), "1", long_name)
        for name, long_name in _LONG.items()
    }
    every = {
        f"{name}_all": Variable(dims[:1], getattr(pooled, name), "1", f"{long_name}, all tensors")
        for name, long_name in _LONG.items()
    }
    return each | every


def _stack(overlaps: Sequence[Overlap]) -> Overlap:
    return Overlap(
        *(
            np.stack([getattr(overlap, field) for overlap in overlaps])
            for field in ("size", "first", "second", "common")
        )
    )


def _pairs_as_strata(overlap: Overlap) -> Overlap:
    """All (pair, tensor) counts on one axis: the null of a lag is a sum over both."""
    return Overlap(
        *(getattr(overlap, field).reshape(-1) for field in ("size", "first", "second", "common"))
    )
