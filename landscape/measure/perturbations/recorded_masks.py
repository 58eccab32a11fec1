"""The masks of one training over its steps: how long they last, and what they select most."""

import itertools
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import scipy
import xarray as xr

from landscape import results
from landscape.errors import LandscapeError
from landscape.measure.perturbations.overlap import saved_coords
from landscape.results import Variable
from landscape.snapshots import MaskSeries
from landscape.streams import Overlap, PackedMasks, half_life
from landscape.streams import persistence as pair_by_lag

Snapshots = Sequence[tuple[int, PackedMasks]] | MaskSeries
_FIELDS = ("size", "first", "second", "common")
_TITLES = {
    "jaccard": "Jaccard index",
    "expected_jaccard": "Jaccard index expected by chance",
    "coefficient": "Overlap coefficient",
    "kappa": "Overlap above chance, κ",
}


def mask_persistence(
    snapshots: Snapshots,
    *,
    lags: Iterable[int] | None = None,
    kinds: Mapping[str, str] | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> xr.Dataset:
    """Overlap of a training's own masks `lag` steps apart, and the lag at which it is halved.

    snapshots: (step, masks) recorded at any steps, or what `snapshots.read_masks` returns, which is
    streamed from the disk. lags: those wanted; by default the smallest that occurs from every power
    of two on. jaccard(lag), expected_jaccard, coefficient and kappa pool all pairs of
    a lag and all tensors against the stratified null; kappa_tensor(lag, tensor) the pairs of one
    tensor. num_pairs(lag) says how many pairs a value rests on. half_life, half_life_tensor(tensor)
    in steps: the lag at which kappa is 1/2, linear from kappa(0) = 1; inf where it stays above up
    to the last lag; what is below the first lag was not observed but interpolated. kinds: kind of
    each tensor by name.
    kappa is Cohen's, doi:10.1177/001316446002000104; the half life is our own definition.

    Example:
        >>> found = measure.mask_persistence(snapshots.read_masks(folder))
        >>> found.kappa.dims, bool((found.kappa <= 1).all())
        (('lag',), True)
    """
    _check(snapshots)
    series = isinstance(snapshots, MaskSeries)
    steps = snapshots.steps.tolist() if series else sorted(step for step, _ in snapshots)
    wanted = occurring_lags(steps) if lags is None else sorted(set(lags))
    found, overlaps = snapshots.lagged(wanted) if series else pair_by_lag(snapshots, wanted)
    if not len(found):
        raise LandscapeError(
            f"{len(steps)} mask snapshots at steps {steps[:6]} hold no two that are "
            f"{', '.join(map(str, wanted[:6])) or 'any'} steps apart; record more snapshots "
            f"or ask for lags that occur."
        )
    # All (pair, tensor) counts are strata of a lag's null; of a tensor's, its pairs.
    pooled = [Overlap(*(getattr(o, f).reshape(-1) for f in _FIELDS)).pooled() for o in overlaps]
    each = np.array([Overlap(*(getattr(o, f).T for f in _FIELDS)).pooled().kappa for o in overlaps])
    variables = {
        name: Variable("lag", np.array([float(getattr(p, name)) for p in pooled]), "1", title)
        for name, title in _TITLES.items()
    }
    kappa = variables["kappa"].values
    variables |= {
        "kappa_tensor": Variable(("lag", "tensor"), each, "1", f"{_TITLES['kappa']}, one tensor"),
        "half_life": Variable((), half_life(found, kappa), "steps", "Lag at which κ = ½"),
        "half_life_tensor": Variable(
            "tensor", half_life(found, each), "steps", "Lag at which κ = ½, one tensor"
        ),
        "num_pairs": Variable(
            "lag", np.array([o.size.shape[0] for o in overlaps]), "1", "Pairs of snapshots"
        ),
    }
    first = next(iter(snapshots))[1]
    if series:
        kinds = dict(zip(snapshots.names, snapshots.kinds, strict=True)) | dict(kinds or {})
    coords = {"lag": Variable("lag", found, "steps", "Steps between two masks")}
    return results.make(
        "mask_persistence",
        variables,
        coords=coords | saved_coords(first, kinds),
        provenance={"num_snapshots": len(snapshots), **(provenance or {})},
    )


def occurring_lags(steps: Sequence[int]) -> list[int]:
    """Distances between the steps: of all that occur, the smallest from every power of two on."""
    at = np.asarray(sorted(set(steps)))
    apart = np.unique(np.abs(at[:, None] - at[None]))
    apart = apart[apart > 0]
    if not len(apart):
        return []
    powers = 2 ** np.arange(int(apart[-1]).bit_length())
    return sorted({int(apart[np.searchsorted(apart, p)]) for p in powers if p <= apart[-1]})


def mask_selection(
    snapshots: Snapshots,
    *,
    kinds: Mapping[str, str] | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> xr.Dataset:
    """How often each coordinate is selected over T snapshots, against independent draws.

    share(tensor, bin): share of coordinates selected `bin` times, 0..T; expected_share(tensor,
    bin): the binomial law of T draws at the tensor's mean density. over_dispersion(tensor):
    variance of the selection frequency over that of independent masks of the same densities, sum_t
    d_t (1 - d_t) / T² (1 at chance, NaN where all or nothing is always selected); frequency_std:
    its square root before division. effective_support(tensor): exp(entropy of the selections)/n, 1
    where all coordinates are selected equally often. T counts the snapshots that `spread_out`
    keeps: the recorder's come in bursts, in which one mask would be counted many times. Where masks
    live longer than these are apart (`mask_persistence`), over_dispersion above 1 is persistence
    too, and not preference alone. kinds: kind of each tensor by name, as in `ParamLayout`.
    Over-dispersion and effective support are definitions of our own.

    Example:
        >>> found = measure.mask_selection(snapshots.read_masks(folder))
        >>> found.share.dims, bool(np.allclose(found.share.sum("bin"), 1))
        (('tensor', 'bin'), True)
    """
    recorded = len(snapshots)
    first, times, density = _times(snapshots)
    total = len(density)
    rows = [_selection(count, density[:, i], total) for i, count in enumerate(times)]
    bins = ("tensor", "bin")
    titles = {
        "share": (bins, "Share of coordinates selected that often"),
        "expected_share": (bins, "Share expected of independent masks"),
        "over_dispersion": ("tensor", "Spread of the selection frequency over chance"),
        "frequency_std": ("tensor", "SD of the selection frequency over the coordinates"),
        "effective_support": ("tensor", "Effective share of coordinates in use"),
        "density": ("tensor", "Mean share selected"),
    }
    variables = {
        name: Variable(dims, np.array([row[name] for row in rows]), "1", title)
        for name, (dims, title) in titles.items()
    }
    if isinstance(snapshots, MaskSeries):
        kinds = dict(zip(snapshots.names, snapshots.kinds, strict=True)) | dict(kinds or {})
    coords = saved_coords(first, kinds) | {"bin": np.arange(total + 1)}
    return results.make(
        "mask_selection",
        variables,
        coords=coords,
        provenance={"num_snapshots": total, "num_recorded": recorded, **(provenance or {})},
    )


def mask_filters(
    snapshots: Snapshots,
    *,
    tensor: str,
    shape: Sequence[int],
    provenance: Mapping[str, Any] | None = None,
) -> xr.Dataset:
    """Which filters of one layer are selected: share of the snapshots, by output and input channel.

    Of the snapshots, those that `spread_out` keeps.
    frequency(channel, input): mean over snapshots and positions of the kernel;
    channel_frequency(channel): over the whole filter; expected: the tensor's mean density, which
    independent masks have everywhere; over_dispersion: variance of channel_frequency over that of
    independent coordinates, d (1 - d)/(T m) with m coordinates a filter. shape: of the tensor, with
    output channels on axis 0 and input channels on axis 1.
    Definition of our own.

    Example:
        >>> masks = snapshots.read_masks(folder)
        >>> found = measure.mask_filters(masks, tensor="0.weight", shape=(8, 4))
        >>> found.frequency.shape, found.channel_frequency.shape
        ((8, 4), (8,))
    """
    _check(snapshots)
    shape = tuple(shape)
    known = next(iter(snapshots))[1] if len(snapshots) else None
    sizes = dict(zip(known.names, known.sizes, strict=True)) if known else {}
    if tensor not in sizes or len(shape) < 2 or sizes[tensor] != np.prod(shape):
        raise LandscapeError(
            f"mask_filters was asked for {tensor!r} of shape {shape}; the snapshots have "
            f"{', '.join(f'{n} ({s})' for n, s in list(sizes.items())[:6]) or 'no tensors'}. Name "
            f"one of them, with its shape of two or more axes."
        )
    first, times, density = _times(snapshots)
    index = first.names.index(tensor)
    total, mean = len(density), float(density[:, index].mean())
    frequency = times[index].reshape(*shape[:2], -1).mean(-1) / total
    channel = frequency.mean(1)
    chance = mean * (1 - mean) / (total * sizes[tensor] / shape[0])
    spread = float(channel.var()) / chance if chance > 0 else np.nan
    words = "Share of snapshots in which a weight is selected"
    variables = {
        "frequency": Variable(("channel", "input"), frequency, "1", words),
        "channel_frequency": Variable("channel", channel, "1", f"{words}, whole filter"),
        "expected": Variable((), mean, "1", f"{words}, everywhere by chance"),
        "over_dispersion": Variable((), spread, "1", "Spread between filters over chance"),
    }
    coords = {"channel": np.arange(shape[0]), "input": np.arange(shape[1])}
    said = {"tensor": tensor, "shape": list(shape), "num_snapshots": total}
    said |= {"num_recorded": len(snapshots)}
    return results.make(
        "mask_filters", variables, coords=coords, provenance={**said, **(provenance or {})}
    )


def _check(snapshots: Snapshots) -> None:
    if isinstance(snapshots, str | os.PathLike):
        raise LandscapeError(
            f"Masks were asked of the path {snapshots}; open them with "
            f"snapshots.read_masks({str(snapshots)!r})."
        )


def spread_out(steps: Sequence[int]) -> list[int]:
    """Of recorded steps, those that stand for equally long parts of the training.

    A recorder keeps bursts: a step and 1, 2, 4, ... steps after it, for overlaps over short times.
    A mean over all of these counts what was seen at the start of a burst many times. Kept are steps
    at least g apart, with the smallest power of two g for which no gap is longer than 4 g: of steps
    at equal distances all of them. Of what is left of bursts a power of two is kept, so that runs
    of one length, whose steps are drawn, have equally many.
    """
    at = sorted(set(steps))
    gap = 1
    while True:
        kept = at[:1]
        for step in at[1:]:
            if step - kept[-1] >= gap:
                kept.append(step)
        if len(kept) < 3 or max(b - a for a, b in itertools.pairwise(kept)) <= 4 * gap:
            break
        gap *= 2
    if len(kept) == len(at):
        return kept
    places = np.linspace(0, len(kept) - 1, 1 << (len(kept).bit_length() - 1))
    return [kept[round(place)] for place in places]


def _times(snapshots: Snapshots) -> tuple[PackedMasks, list[np.ndarray], np.ndarray]:
    """Names and sizes, times each coordinate is selected per tensor, densities (T, tensors).

    Over the snapshots that `spread_out` keeps.
    """
    _check(snapshots)
    if len(snapshots) < 2:
        raise LandscapeError(
            f"{len(snapshots)} mask snapshot was given; selection frequencies need two or more."
        )
    each = _spread_masks(snapshots)
    first = next(each)
    times, densities = [np.zeros(size, np.uint32) for size in first.sizes], []
    for masks in itertools.chain([first], each):
        masks.check_same(first)
        densities.append(masks.counts() / np.array(masks.sizes))
        for count, mask in zip(times, masks.unpacked(), strict=True):
            count += mask
    return first, times, np.array(densities)


def _spread_masks(snapshots: Snapshots) -> Iterator[PackedMasks]:
    """Masks of the snapshots that `spread_out` keeps; one that is left out is not read."""
    if isinstance(snapshots, MaskSeries):
        steps = snapshots.steps.tolist()
        kept = set(spread_out(steps))
        return (snapshots[place] for place, step in enumerate(steps) if step in kept)
    kept = set(spread_out([step for step, _ in snapshots]))
    return (masks for step, masks in snapshots if step in kept)


def _selection(times: np.ndarray, density: np.ndarray, total: int) -> dict[str, Any]:
    """Statistics of one tensor: times selected per coordinate, density per snapshot."""
    mean = float(density.mean())
    chance = float((density * (1 - density)).sum()) / total**2
    # Everything follows from how many coordinates were selected k times.
    counts = np.bincount(times, minlength=total + 1).astype(np.float64)
    share, k = counts / len(times), np.arange(total + 1)
    variance = float((share * (k / total - (share * k).sum() / total) ** 2).sum())
    weight = k / max((counts * k).sum(), 1.0)
    entropy = -float((counts[1:] * weight[1:] * np.log(np.maximum(weight[1:], 1e-300))).sum())
    return {
        "share": share,
        "expected_share": scipy.stats.binom.pmf(k, total, mean),
        "over_dispersion": variance / chance if chance > 0 else np.nan,
        "frequency_std": variance**0.5,
        "effective_support": float(np.exp(entropy)) / len(times) if counts[1:].any() else 0.0,
        "density": mean,
    }
