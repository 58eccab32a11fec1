"""Where the share of a quantity in a random mask lies, when few coordinates hold most of it."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

_HEADS, _DRAWS = 64, 2000


def selected_shares(
    parts: Sequence[Tensor], counts: Sequence[int], *, seed: int, draws: int = _DRAWS
) -> np.ndarray:
    """Draws (draws,) of sum of q over a random mask with `counts[l]` of the coordinates of part l.

    The 64 largest |q| of each part are drawn one by one, the sum over the others from the normal
    law with the mean and variance of drawing without replacement; exact for parts up to 64.
    """
    source = np.random.default_rng(seed)
    total = np.zeros(draws)
    for part, count in zip(parts, counts, strict=True):
        size = part.numel()
        if count in (0, size):
            total += float(part.sum()) * (count > 0)
            continue
        largest = part.abs().topk(min(_HEADS, size)).indices
        heads = part[largest].double().cpu().numpy()
        others = torch.ones(size, dtype=torch.bool, device=part.device)
        others[largest] = False
        total += _without_replacement(heads, part[others].double(), count, source, draws)
    return total


def _without_replacement(
    heads: np.ndarray, tail: Tensor, count: int, source: np.random.Generator, draws: int
) -> np.ndarray:
    taken = source.hypergeometric(len(heads), len(tail), count, size=draws)
    order = source.random((draws, len(heads))).argsort(axis=1).argsort(axis=1)
    found = np.where(order < taken[:, None], heads, 0.0).sum(1)
    if not len(tail):
        return found
    rest, size = count - taken, len(tail)
    variance = float(tail.var(correction=0)) * size / max(size - 1, 1)
    spread = np.sqrt(np.maximum(rest * (1 - rest / size) * variance, 0.0))
    return found + rest * float(tail.mean()) + spread * source.standard_normal(draws)
