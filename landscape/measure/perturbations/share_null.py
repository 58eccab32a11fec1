"""Where the share of a quantity in a random mask lies, when few coordinates hold most of it."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from landscape import vectors
from landscape.measure.measuring import numbers

_HEADS, _DRAWS = 64, 2000


def selected_shares(
    parts: Sequence[Tensor], counts: Sequence[int], *, seed: int, draws: int = _DRAWS
) -> np.ndarray:
    """Draws (draws,) of sum of q over a random mask with `counts[l]` of the coordinates of part l.

    The 64 largest |q| of each part are drawn one by one, the sum over the others from the normal
    law with the mean and variance of drawing without replacement; exact for parts up to 64.
    """
    sizes = [part.numel() for part in parts]
    return drawn_shares(numbers(summary(parts)), sizes, counts, seed=seed, draws=draws)


def summary(parts: Sequence[Tensor]) -> Tensor:
    """All that the draws need of q, on its device: (L, 3 + 64), of each part its sum, mean and
    variance of what is not among the largest, and the largest (zeros after the last).
    """
    return torch.stack([_summary(part.double()) for part in parts])


def _summary(part: Tensor) -> Tensor:
    size = part.numel()
    largest = part.abs().topk(min(_HEADS, size)).indices
    heads, tail = part[largest], part.clone()
    tail[largest] = 0.0
    others = max(size - len(heads), 1)
    mean = tail.sum() / others
    gaps = tail - mean
    gaps[largest] = 0.0
    known = torch.stack([part.sum(), mean, vectors.squared_norm(gaps) / others])
    return torch.cat([known, heads, heads.new_zeros(_HEADS - len(heads))])


def drawn_shares(
    seen: np.ndarray, sizes: Sequence[int], counts: Sequence[int], *, seed: int, draws: int = _DRAWS
) -> np.ndarray:
    """See `selected_shares`; seen: the `summary`, on the host."""
    source = np.random.default_rng(seed)
    total = np.zeros(draws)
    for (whole, mean, variance, *heads), size, count in zip(seen, sizes, counts, strict=True):
        if count in (0, size):
            total += whole * (count > 0)
            continue
        heads = np.array(heads[:size])
        taken = source.hypergeometric(len(heads), size - len(heads), count, size=draws)
        order = source.random((draws, len(heads))).argsort(axis=1).argsort(axis=1)
        total += np.where(order < taken[:, None], heads, 0.0).sum(1)
        if tail := size - len(heads):
            rest = count - taken
            spread = rest * (1 - rest / tail) * variance * tail / max(tail - 1, 1)
            total += rest * mean + np.sqrt(np.maximum(spread, 0.0)) * source.standard_normal(draws)
    return total
