"""Which coordinates variants select, compared with each other and with chance."""

import itertools
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from landscape import results, sam
from landscape.checks import check_count
from landscape.errors import LandscapeError
from landscape.measure.measuring import Measuring, numbers, pair_coords, split, tensor_coords
from landscape.measure.perturbations.counterfactual import Counterfactual, check_variants
from landscape.measure.perturbations.filter_null import (
    FilterNull,
    Permutations,
    filter_mean,
    kappa_above,
)
from landscape.plane import Filters
from landscape.results import Variable
from landscape.risk import EmpiricalRisk
from landscape.streams import Overlap, PackedMasks, holm, stacked

COMPARISONS = ("two batches", "batch and all data")
TITLES = {
    "jaccard": "Jaccard index",
    "expected_jaccard": "Jaccard index expected by chance",
    "coefficient": "Overlap coefficient",
    "kappa": "Overlap above chance, κ",
    "z_score": "Overlap above chance in standard deviations of the null",
    "p_value": "P(overlap at least as large by chance)",
}


def mask_overlap(
    risk: EmpiricalRisk,
    theta: Float[Tensor, "P"],
    *,
    variants: Mapping[str, sam.Variant],
    batch_size: int = 64,
    bn: str = "batch",
    states: Mapping[str, dict[str, Any]] | None = None,
    num_permutations: int = 999,
    seed: int,
) -> xr.Dataset:
    """Overlap of the masks that several variants would use at one theta, on one seeded batch.

    Per pair and tensor: jaccard = o/(K+M-o), expected_jaccard under independence with the sizes
    fixed (hypergeometric; d/(2-d) for equal density d), coefficient = o/min(K, M), kappa =
    2(o-E)/(K+M-2E), the overlap corrected for chance, z_score = (o-E)/sqrt(Var) and p_value, the
    null's exact upper tail. *_all(pair): over all tensors against the stratified null, where
    expectation and variance are sums over tensors (p_value_all by the normal law). Two masks that
    select all or nothing of a tensor cannot be told from chance there: NaN.

    Coordinates of a filter are correlated, so that z_score and p_value overstate significance:
    *_filter are against the second mask with its filters (output channels) permuted as wholes,
    moments exact (Hoeffding 1951), p_value_filter from num_permutations seeded permutations, (1 +
    those that reach o)/(1 + all). What is shared by position within a filter counts as chance
    there. p_holm(pair, tensor), p_holm_filter_all(pair): Holm over all that this result tests. Read
    kappa as the effect, p as a gate: p falls with the size of a tensor, kappa does not.
    density(direction, tensor): share selected by each variant. Cost: one gradient of the
    batch for all variants, and one for each that finds an ascent of its own.
    kappa is Cohen's, doi:10.1177/001316446002000104; bn: "batch", the statistics of that batch, or
    "eval".

    Example:
        >>> variants = {"zsharp": sam.zsharp(percentile=0.5), "top": sam.topk_gradient(density=0.5)}
        >>> found = measure.mask_overlap(risk, theta, variants=variants, batch_size=16, seed=0)
        >>> found.kappa.dims, bool((found.jaccard_all <= 1).all())
        (('pair', 'tensor'), True)
    """
    check_variants("mask_overlap", variants)
    if len(variants) < 2:
        raise LandscapeError(
            f"mask_overlap got {len(variants)} variant; it compares two or more, by name."
        )
    check_count("num_permutations", num_permutations, 1)
    measuring = Measuring("mask_overlap", risk, theta)
    measuring.finite_loss()
    here = Counterfactual(risk, measuring.theta, batch_size=batch_size, bn=bn, seed=seed)
    flat = {
        name: here.flat_mask(
            # A seed each: two variants that draw at random must not share their draws.
            here.perturb(variant, state=_state(states, name), seed=seed + zlib.crc32(name.encode()))
        )
        for name, variant in variants.items()
    }
    pairs = list(itertools.combinations(flat, 2))
    overlap = _overlaps(risk, [(flat[a], flat[b]) for a, b in pairs])
    permutations = Permutations(Filters.of(risk), count=num_permutations, seed=seed)
    nulls = permutations.nulls([(flat[a], flat[b]) for a, b in pairs])
    variables = overlap_variables(overlap, ("pair", "tensor"))
    variables |= _gates(variables) | _filter_variables(overlap, nulls)
    variables["density"] = Variable(
        ("direction", "tensor"), _densities(risk, flat.values()), "1", "Share selected"
    )
    coords = {
        **tensor_coords(risk.layout),
        **pair_coords(pairs),
        "direction": np.array(list(flat), dtype=object),
    }
    options = {
        "variants": {name: variant.name for name, variant in variants.items()},
        "batch_size": here.batch_size,
        "bn": bn,
        "batch_bn": bn,
        "null": "hypergeometric, stratified over tensors; *_filter: filters permuted",
        "num_permutations": num_permutations,
        "seed": seed,
    }
    return measuring.result(variables, coords=coords, options=options)


def batch_overlap(
    risk: EmpiricalRisk,
    theta: Float[Tensor, "P"],
    *,
    variants: Mapping[str, sam.Variant],
    batch_size: int = 64,
    num_batches: int = 4,
    bn: str = "batch",
    states: Mapping[str, dict[str, Any]] | None = None,
    seed: int,
) -> xr.Dataset:
    """Overlap of one variant's own masks on different data: how much of a mask is the batch's.

    `direction` names the variants; comparison "two batches": all pairs of num_batches disjoint
    seeded batches, "batch and all data": each of them with the mask of all examples as one batch.
    jaccard, expected_jaccard, coefficient, kappa and z_score as in `mask_overlap`, kappa_filter
    against permuted filters: means over the pairs, (direction, comparison, tensor), and
    *_all(direction, comparison) over all tensors. kappa_all_std: SD of kappa_all over the pairs.
    Pairs share batches and are not independent: z_score is that of one pair, and does not grow with
    their number. A variant without a mask is NaN. Cost: a gradient of each batch, and of all
    examples, for all variants.
    bn: "batch", the statistics of each batch, or "eval". kappa is Cohen's,
    doi:10.1177/001316446002000104.

    Example:
        >>> variants = {"zsharp": sam.zsharp(0.05, percentile=0.5)}
        >>> found = measure.batch_overlap(
        ...     risk, theta, variants=variants, batch_size=16, num_batches=2, seed=0
        ... )
        >>> found.kappa_all.dims, found.comparison.values.tolist()
        (('direction', 'comparison'), ['two batches', 'batch and all data'])
    """
    check_variants("batch_overlap", variants)
    if not variants:
        raise LandscapeError("batch_overlap got no variant; name at least one with a mask.")
    check_count("num_batches", num_batches, 2)
    measuring = Measuring("batch_overlap", risk, theta)
    measuring.finite_loss()
    here = Counterfactual(risk, measuring.theta, batch_size=batch_size, bn=bn, seed=seed)
    batches = [*here.batches(num_batches), torch.arange(risk.num_examples)]
    rule, columns = Filters.of(risk), []
    masks: dict[str, list[Tensor]] = {name: [] for name in variants}
    for i, rows in enumerate(batches):  # variants within: they share the gradient of a batch
        for name, variant in variants.items():
            draws = seed + zlib.crc32(name.encode()) + i
            made = here.perturb(variant, state=_state(states, name), rows=rows, seed=draws)
            masks[name].append(here.flat_mask(made))
    for *single, whole in masks.values():
        columns.append(
            [
                _repeated(risk, rule, pairs)
                for pairs in (list(itertools.combinations(single, 2)), [(m, whole) for m in single])
            ]
        )
    dims, words = ("direction", "comparison"), "SD over pairs of κ, all tensors"
    variables = {"kappa_all_std": _column(columns, "kappa_all_std", dims, words)}
    for name, title in _REPEATED.items():
        variables[name] = _column(columns, name, (*dims, "tensor"), title)
        variables[f"{name}_all"] = _column(columns, f"{name}_all", dims, f"{title}, all tensors")
    counts = [num_batches * (num_batches - 1) // 2, num_batches]
    variables["num_pairs"] = Variable("comparison", np.array(counts), "1", "Pairs of masks")
    coords = {
        **tensor_coords(risk.layout),
        "direction": np.array(list(variants), dtype=object),
        "comparison": np.array(COMPARISONS, dtype=object),
    }
    options = {
        "variants": {name: variant.name for name, variant in variants.items()},
        "batch_size": here.batch_size,
        "num_batches": num_batches,
        "bn": bn,
        "batch_bn": bn,
        "seed": seed,
    }
    return measuring.result(variables, coords=coords, options=options)


def saved_mask_overlap(
    masks: Mapping[str, PackedMasks],
    *,
    kinds: Mapping[str, str] | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> xr.Dataset:
    """Overlap of masks that were saved by several runs, such as the seeds of one variant.

    As `mask_overlap` without the permuted filters: (pair, tensor) and *_all(pair); `pair`, `first`
    and `second` name the runs. Runs from different initial weights share no meaning of a
    coordinate: kappa is then expected at 0, and what is above it lies in the position, not in the
    filter. kinds: kind of each tensor by name. Masks of different models are refused, by name.
    kappa is Cohen's, doi:10.1177/001316446002000104.

    Example:
        >>> one = streams.PackedMasks.of({"w": np.array([True, True, False, False])})
        >>> two = streams.PackedMasks.of({"w": np.array([True, False, True, False])})
        >>> found = measure.saved_mask_overlap({"seed 0": one, "seed 1": two})
        >>> round(float(found.jaccard_all[0]), 4), round(float(found.kappa_all[0]), 4)
        (0.3333, 0.0)
    """
    if len(masks) < 2:
        raise LandscapeError(
            f"{len(masks)} set of saved masks was given; an overlap needs two or more, by name."
        )
    pairs = list(itertools.combinations(masks, 2))
    overlap = stacked([masks[a].overlap(masks[b]) for a, b in pairs])
    variables = overlap_variables(overlap, ("pair", "tensor"))
    coords = saved_coords(next(iter(masks.values())), kinds) | pair_coords(pairs)
    return results.make(
        "saved_mask_overlap",
        variables | _gates(variables),
        coords=coords,
        provenance={"masks": list(masks), **(provenance or {})},
    )


# --- parts ------------------------------------------------------------------------------------


def overlap_variables(overlap: Overlap, dims: tuple[str, str]) -> dict[str, Variable]:
    """The overlap's statistics per tensor, and pooled over tensors with the suffix `_all`."""
    pooled = overlap.pooled()
    each = {
        name: Variable(dims, getattr(overlap, name), "1", title) for name, title in TITLES.items()
    }
    every = {
        f"{name}_all": Variable(dims[:1], getattr(pooled, name), "1", f"{title}, all tensors")
        for name, title in TITLES.items()
    }
    return each | every


def saved_coords(masks: PackedMasks, kinds: Mapping[str, str] | None) -> dict[str, Any]:
    """Coordinates along `tensor` of packed masks, whose kinds are known from elsewhere."""
    kinds = kinds or {}
    column = np.array([kinds.get(name, "other") for name in masks.names], dtype=object)
    return {
        "tensor": np.array(masks.names, dtype=object),
        "kind": ("tensor", column),
        "size": ("tensor", np.array(masks.sizes)),
    }


def _gates(variables: Mapping[str, Variable]) -> dict[str, Variable]:
    """Holm's adjustment of p_value over all that is tested, and of p_value_all."""
    return {
        name.replace("p_value", "p_holm"): Variable(
            variables[name].dims,
            adjusted(variables[name].values),
            "1",
            f"{variables[name].long_name}, Holm",
        )
        for name in ("p_value", "p_value_all")
    }


def adjusted(p: np.ndarray) -> np.ndarray:
    """Holm over the comparisons that can be made at all."""
    p = np.asarray(p, dtype=np.float64)
    found = np.full(p.shape, np.nan)
    known = np.isfinite(p)
    found[known] = holm(p[known])
    return found


def _filter_variables(overlap: Overlap, nulls: Sequence[FilterNull]) -> dict[str, Variable]:
    """Scores against permuted filters."""
    mean, variance = (np.array([getattr(n, k) for n in nulls]) for k in ("mean", "variance"))
    drawn = np.array([null.drawn for null in nulls])  # (pair, tensor, draw)
    common, selected = overlap.common, overlap.first + overlap.second
    every, above = variance.sum(-1), (common - mean).sum(-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        score = np.where(variance > 0, (common - mean) / np.sqrt(variance), np.nan)
        pooled = np.where(every > 0, above / np.sqrt(every), np.nan)
        jaccard = np.where(selected > 0, mean / (selected - mean), np.nan)
    p = np.where(variance > 0, _share_reached(drawn, common), np.nan)
    p_all = np.where(every > 0, _share_reached(drawn.sum(1), common.sum(-1)), np.nan)
    kappa_all = kappa_above(common.sum(-1), selected.sum(-1), mean.sum(-1))
    words = {
        "expected_jaccard_filter": (jaccard, "Jaccard index expected with permuted filters"),
        "kappa_filter": (kappa_above(common, selected, mean), "Overlap above permuted filters, κ"),
        "z_score_filter": (score, "Overlap above that of permuted filters in standard deviations"),
        "p_value_filter": (p, "Share of permutations of filters that overlap as much"),
    }
    pooled_words = {"kappa_filter": kappa_all, "z_score_filter": pooled, "p_value_filter": p_all}
    variables = {
        name: Variable(("pair", "tensor"), values, "1", title)
        for name, (values, title) in words.items()
    }
    variables |= {
        f"{name}_all": Variable("pair", values, "1", f"{words[name][1]}, all tensors")
        for name, values in pooled_words.items()
    }
    variables["p_holm_filter_all"] = Variable(
        "pair", adjusted(p_all), "1", f"{words['p_value_filter'][1]}, all tensors, Holm"
    )
    return variables


def _share_reached(drawn: np.ndarray, common: np.ndarray) -> np.ndarray:
    return (1 + (drawn >= common[..., None]).sum(-1)) / (1 + drawn.shape[-1])


def _column(
    columns: Sequence[Sequence[Mapping[str, Any]]], name: str, dims: tuple[str, ...], title: str
) -> Variable:
    return Variable(dims, np.array([[cell[name] for cell in row] for row in columns]), "1", title)


_REPEATED = {
    **{name: title for name, title in TITLES.items() if name != "p_value"},
    "kappa_filter": "Overlap above permuted filters, κ",
}


def _repeated(
    risk: EmpiricalRisk, rule: Filters, pairs: Sequence[tuple[Tensor, Tensor]]
) -> dict[str, Any]:
    """Means over pairs of masks that are repetitions of one comparison, of those that are known."""
    overlap = _overlaps(risk, pairs)
    pooled = overlap.pooled()
    mean = numbers([filter_mean(rule, a, b) for a, b in pairs])
    selected = overlap.first + overlap.second
    kappas = kappa_above(overlap.common, selected, mean)
    every = kappa_above(overlap.common.sum(-1), selected.sum(-1), mean.sum(-1))
    found = {"kappa_filter": _mean(kappas), "kappa_filter_all": _mean(every)}
    for name in _REPEATED:
        if name != "kappa_filter":
            found[name] = _mean(getattr(overlap, name))
            found[f"{name}_all"] = _mean(getattr(pooled, name))
    return found | {"kappa_all_std": np.std(pooled.kappa, ddof=1) if len(pairs) > 1 else np.nan}


def _mean(values: np.ndarray) -> np.ndarray:
    known = np.isfinite(values)
    with np.errstate(invalid="ignore"):
        return np.where(known, values, 0.0).sum(0) / known.sum(0)


def _overlaps(risk: EmpiricalRisk, pairs: Sequence[tuple[Tensor, Tensor]]) -> Overlap:
    """Overlap (pair, tensor) of flat masks."""
    table = [
        [[(a, b, a & b)[i].sum() for a, b in zip(*(split(risk.layout, m) for m in pair),
          strict=True)] for i in range(3)]
        for pair in pairs
    ]  # fmt: skip
    counts = numbers(table).astype(np.int64)
    size = np.array([t.numel for t in risk.layout.tensors])
    first, second, common = counts[:, 0], counts[:, 1], counts[:, 2]
    return Overlap(np.broadcast_to(size, common.shape), first, second, common)


def _densities(risk: EmpiricalRisk, masks: Any) -> np.ndarray:
    return numbers([[part.double().mean() for part in split(risk.layout, m)] for m in masks])


def _state(states: Mapping[str, dict[str, Any]] | None, name: str) -> dict[str, Any] | None:
    return None if states is None else states.get(name)
