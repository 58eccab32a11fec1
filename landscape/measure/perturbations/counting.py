"""The `ValueHistogram` of a tensor, counted on the device that holds it."""

import math
from functools import reduce

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from landscape.streams import Moments, ValueHistogram
from landscape.streams.values import BITS, CHUNK, CODES

# Codes whose bits of the exponent are all set: those of NaN and of infinite numbers.
_NOT_FINITE = np.arange(CODES) >> (23 - BITS) & 0xFF == 0xFF


def counted(values: Tensor) -> ValueHistogram:
    """`ValueHistogram.of` a tensor, in float64 sums of the device's order.

    The host reads once: two numbers for each of 2^17 bins (2 MB), and 40 bytes for every 2^20
    values, their moments and zeros. An accelerator adds up the squares of a bin in any order unless
    torch is told to be deterministic. Moments are NaN where a value is NaN or beyond float32.
    """
    flat = values.detach().reshape(-1)
    parts = flat.split(CHUNK) if flat.numel() else ()
    found = flat.new_zeros(2 * CODES + 5 * len(parts), dtype=torch.float64)
    counts, squares, rows = found.split([CODES, CODES, 5 * len(parts)])
    spare = found.new_empty((2, min(CHUNK, len(flat))))  # new memory takes as long as the sums
    for part, row in zip(parts, rows.view(-1, 5), strict=True):
        wide, square = spare[:, : len(part)]
        wide.copy_(part)
        code = (part.float().view(torch.int32) >> BITS).bitwise_and_(CODES - 1)
        # torch.bincount would wait for the device.
        counts.index_add_(0, code, found.new_ones(1).expand_as(code))
        squares += torch.zeros_like(squares).index_add_(0, code, torch.mul(wide, wide, out=square))
        zeros = len(part) - part.count_nonzero()
        row.copy_(torch.stack([*_sums(wide, square), zeros.double()]))
    return _as_read(found.cpu().numpy(), [len(part) for part in parts])


def _as_read(found: np.ndarray, sizes: list[int]) -> ValueHistogram:
    """What the host has read: counts, squares, and a row for each chunk of such sizes."""
    counts, squares = found[:CODES].astype(np.int64), found[CODES : 2 * CODES]
    rows = found[2 * CODES :].reshape(-1, 5)
    not_finite = int(counts[_NOT_FINITE].sum())
    counts[_NOT_FINITE] = 0
    moments = Moments(int(counts.sum()), *[math.nan] * 4)
    if not not_finite:
        chunks = zip(sizes, rows[:, :4].tolist(), strict=True)
        moments = reduce(Moments.merge, (Moments(n, *row) for n, row in chunks), Moments())
    live, zeros = np.flatnonzero(counts), int(rows[:, 4].sum())
    return ValueHistogram(live, counts[live], squares[live], moments, zeros, not_finite)


def _sums(x: Float[Tensor, "n"], square: Float[Tensor, "n"]) -> list[Float[Tensor, ""]]:
    """Mean and three centred sums of one chunk; both tensors are written."""
    mean = x.mean()
    x.sub_(mean)
    m2 = torch.mul(x, x, out=square).sum()
    return [mean, m2, x.mul_(square).sum(), square.square_().sum()]
