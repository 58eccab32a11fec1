"""How the gradient of the first pass was distributed in each tensor, over the recorded steps."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from landscape import results
from landscape.checks import check_count, check_fraction
from landscape.errors import LandscapeError
from landscape.results import Variable
from landscape.snapshots import ZScores
from landscape.streams.histograms import Histogram


def zscore_history(
    recorded: ZScores,
    *,
    percentile: float = 0.95,
    most: int = 8,
    provenance: Mapping[str, Any] | None = None,
) -> xr.Dataset:
    """Density of z = (g - μ)/σ within each tensor, and the threshold on |z|, at recorded steps.

    recorded: `snapshots.read_zscores` of one training, histograms of the gradient of the first pass
    of a step on its own mini-batch. density(step, tensor, bin) over z(bin); threshold(step,
    tensor): the |z| that a share `percentile` of the coordinates stays below, ZSharp's threshold
    (arXiv:2505.02369), linear inside a bin of the histogram, inf beyond the grid; overflow(step,
    tensor): share of coordinates beyond the grid. NaN where a gradient has no spread. At most
    `most` steps, evenly from the first recorded one to the last. Cost: none, files are read.

    Example:
        >>> found = measure.zscore_history(snapshots.read_zscores(folder), percentile=0.5, most=2)
        >>> found.density.dims, found.threshold.sizes["step"]
        (('step', 'tensor', 'bin'), 2)
    """
    check_fraction("percentile", percentile)
    check_count("most", most, 2)
    if len(recorded.steps) < 2:
        raise LandscapeError(
            f"{len(recorded.steps)} snapshots with z-scores; their change over the training needs "
            f"two: record at more steps."
        )
    chosen = np.unique(np.linspace(0, len(recorded.steps) - 1, most).round().astype(int))
    tensors = recorded.tensors
    shape = (len(chosen), len(tensors))
    density = np.full((*shape, recorded.grid.bins), np.nan)
    threshold, overflow = np.full(shape, np.nan), np.full(shape, np.nan)
    for row, index in enumerate(chosen):
        for tensor in range(len(tensors)):
            found = recorded.histogram(int(index), tensor)
            if found.total:
                density[row, tensor] = found.density
                threshold[row, tensor] = _threshold(found, percentile)
                overflow[row, tensor] = (found.below + found.above) / found.total
    each = ("step", "tensor")
    variables = {
        "density": Variable((*each, "bin"), density, "1", "Density of z"),
        "threshold": Variable(each, threshold, "1", "Threshold on |z|"),
        "overflow": Variable(each, overflow, "1", "Share of z outside the histogram"),
    }
    coords = {
        "step": Variable("step", recorded.steps[chosen], "steps", "Step of the training"),
        "tensor": np.array(tensors.names, dtype=object),
        "kind": ("tensor", np.array(tensors.kinds, dtype=object)),
        "ndim": ("tensor", np.array(tensors.ndims)),
        "size": ("tensor", np.array(tensors.sizes)),
        "z": Variable("bin", recorded.grid.centres, "1", "Standardized gradient z"),
    }
    said = {"percentile": percentile, "skipped": list(recorded.skipped), **(provenance or {})}
    return results.make("zscore_history", variables, coords=coords, provenance=said)


def _threshold(found: Histogram, percentile: float) -> float:
    """The |z| that a share of the values stays below: quantile of the histogram folded at 0."""
    middle = found.grid.bins // 2
    right, left = found.counts[middle + 1 :], found.counts[:middle][::-1]
    # The middle bin is cut at 0 into halves of |z|: half as wide as the others.
    counts = np.concatenate([[found.counts[middle]], right + left])
    edges = np.concatenate([[0.0], (np.arange(len(counts)) + 0.5) * found.grid.width])
    target = percentile * found.total
    cumulative = np.cumsum(counts)
    if target > cumulative[-1]:
        return np.inf
    place = int(np.searchsorted(cumulative, target))
    before = cumulative[place] - counts[place]
    share = (target - before) / max(int(counts[place]), 1)
    return float(edges[place] + share * (edges[place + 1] - edges[place]))
