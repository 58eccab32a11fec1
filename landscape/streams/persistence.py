"""Masks of one training, some steps apart."""

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import ArrayLike

from landscape.streams.masks import PackedMasks
from landscape.streams.overlap import Overlap, stacked


def persistence(
    snapshots: Sequence[tuple[int, PackedMasks]], lags: Iterable[int]
) -> tuple[np.ndarray, list[Overlap]]:
    """Overlap of masks `lag` steps apart: for each lag that occurs, counts summed over its pairs.

    snapshots: (step, masks) in any order. Returns the lags found (L,) and per lag an `Overlap` with
    axes (pairs, tensors), to be pooled by the caller.

    Example:
        >>> masks = [streams.PackedMasks.of({"w": np.arange(4) < n}) for n in (1, 2, 3)]
        >>> lags, found = streams.persistence(list(enumerate(masks)), [1, 2])
        >>> lags.tolist(), [one.common.ravel().tolist() for one in found]
        ([1, 2], [[1, 2], [1]])
    """
    by_step = dict(snapshots)
    found, overlaps = [], []
    for lag in sorted(set(lags)):
        pairs = [(step, step + lag) for step in sorted(by_step) if step + lag in by_step]
        if not pairs:
            continue
        found.append(lag)
        overlaps.append(stacked([by_step[a].overlap(by_step[b]) for a, b in pairs]))
    return np.array(found, dtype=np.int64), overlaps


def half_life(lags: ArrayLike, kappa: ArrayLike) -> np.ndarray:
    """Lag at which kappa has fallen to 1/2, linear between kappa(0) = 1 and the lags (L,) given.

    kappa: (L, ...). Below the first lag masks were not compared: a smaller value says "sooner".
    inf where kappa stays above 1/2 up to the last lag, NaN where kappa is not known.

    Example:
        >>> streams.half_life([1, 2, 4], np.array([0.9, 0.7, 0.3])).tolist()
        3.0
    """
    x = np.concatenate([[0.0], np.asarray(lags, np.float64)])
    y = np.asarray(kappa, np.float64)
    y = np.concatenate([np.ones((1, *y.shape[1:])), y]).reshape(len(x), -1)
    found = np.full(y.shape[1], np.inf)
    for column, values in enumerate(y.T):
        known = np.isfinite(values)
        t, v = x[known], values[known]
        below = np.flatnonzero(v <= 0.5)
        if len(t) < 2:
            found[column] = np.nan
        elif len(below):
            i = int(below[0])
            share = (v[i - 1] - 0.5) / (v[i - 1] - v[i])
            found[column] = t[i - 1] + share * (t[i] - t[i - 1])
    return found.reshape(np.shape(kappa)[1:])
