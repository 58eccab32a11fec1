"""Masks of one training, some steps apart."""

from collections.abc import Iterable, Sequence

import numpy as np

from landscape.streams.masks import PackedMasks
from landscape.streams.overlap import Overlap


def persistence(
    snapshots: Sequence[tuple[int, PackedMasks]], lags: Iterable[int]
) -> tuple[np.ndarray, list[Overlap]]:
    """Overlap of masks `lag` steps apart: for each lag that occurs, counts summed over its pairs.

    snapshots: (step, masks) in any order. Returns the lags found (L,) and per lag an `Overlap` with
    axes (pairs, tensors), to be pooled by the caller.
    """
    by_step = dict(snapshots)
    found, overlaps = [], []
    for lag in sorted(set(lags)):
        pairs = [(step, step + lag) for step in sorted(by_step) if step + lag in by_step]
        if not pairs:
            continue
        each = [by_step[a].overlap(by_step[b]) for a, b in pairs]
        stacked = (
            np.stack([getattr(overlap, field) for overlap in each])
            for field in ("size", "first", "second", "common")
        )
        found.append(lag)
        overlaps.append(Overlap(*stacked))
    return np.array(found, dtype=np.int64), overlaps
