"""The `ValueHistogram` of a tensor, counted on the device that holds it."""

import math
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from landscape.streams import Moments, ValueHistogram
from landscape.streams.moments import merged
from landscape.streams.values import BITS, CHUNK, CODES

_RUN, _LANES = 128, 8  # of numpy's pairwise sums
# Codes whose bits of the exponent are all set: those of NaN and of infinite numbers.
_NOT_FINITE = np.arange(CODES) >> (23 - BITS) & 0xFF == 0xFF


def counted(values: Tensor) -> ValueHistogram:
    """`ValueHistogram.of` a tensor, of which the host reads once, and as much for any size.

    On the CPU every number is that of `ValueHistogram.of`, to the last bit. An accelerator adds up
    the squares of a bin in any order unless torch is told to be deterministic. Moments are NaN
    where a value is NaN or beyond float32.
    """
    flat = values.detach().reshape(-1)
    parts = flat.split(CHUNK) if flat.numel() else ()
    filled = {n: _filled(n, flat.device) for n in {len(part) for part in parts}}
    counts, one = flat.new_zeros(CODES, dtype=torch.int64), flat.new_ones(1, dtype=torch.int64)
    squares = flat.new_zeros(CODES, dtype=torch.float64)
    zeros, moments = flat.new_zeros((), dtype=torch.int64), Moments(0, *squares.new_zeros(4))
    for part in parts:
        wide = part.double()
        moments = merged(moments, _moments(wide, filled[len(part)]), _power)
        zeros += (wide == 0).sum()
        code = part.float().view(torch.int32).long()
        code.bitwise_right_shift_(BITS).bitwise_and_(CODES - 1)
        counts.index_add_(0, code, one.expand_as(code))
        squares += torch.zeros_like(squares).index_add_(0, code, wide * wide)
    few: list[Any] = [moments.mean, moments.m2, moments.m3, moments.m4, zeros.double()]
    return _as_read(torch.cat([counts.double(), squares, torch.stack(few)]).cpu().numpy())


def _as_read(told: np.ndarray) -> ValueHistogram:
    """What the host has read: counts, squares, four moments and the number of zeros."""
    counts, squares = told[:CODES].astype(np.int64), told[CODES : 2 * CODES]
    *four, zeros = told[2 * CODES :].tolist()
    not_finite = int(counts[_NOT_FINITE].sum())
    counts[_NOT_FINITE] = 0
    live = np.flatnonzero(counts)
    moments = Moments(int(counts.sum()), *([math.nan] * 4 if not_finite else four))
    return ValueHistogram(live, counts[live], squares[live], moments, int(zeros), not_finite)


# numpy adds up runs of at most 128 numbers in eight lanes, and what the runs give in pairs. The
# same additions, of many runs at once, are rounded likewise on every device.


def _filled(n: int, device: torch.device) -> Bool[Tensor, "runs c"]:
    """Where n numbers are laid out: run by run, and the last n mod 8 in the columns behind."""
    sizes, longest = torch.full((1,), n, device=device), n
    while longest > _RUN:
        # A run that is short enough becomes a pair with nothing.
        first = torch.where(sizes > _RUN, sizes // (2 * _LANES) * _LANES, 0)
        sizes = torch.stack([first, sizes - first], 1).reshape(-1)
        longest -= longest // (2 * _LANES) * _LANES
    column = torch.arange(_RUN + n % _LANES, device=device)
    whole = (sizes // _LANES * _LANES)[:, None]
    return torch.where(column < _RUN, column < whole, column - _RUN < sizes[:, None] - whole)


def _moments(x: Float[Tensor, "n"], filled: Bool[Tensor, "runs c"]) -> Moments:
    """`Moments.of` one chunk, as 0-d tensors."""
    gaps = x.new_zeros(filled.shape).masked_scatter_(filled, x).T.contiguous()
    mean = _sum(gaps) / len(x)
    gaps.sub_(mean).masked_fill_(~filled.T, 0.0)
    square = gaps * gaps
    m2, m3 = _sum(square), _sum(gaps.mul_(square))
    return Moments(len(x), *torch.stack([mean, m2, m3, _sum(square.square_())]))


def _sum(columns: Float[Tensor, "c runs"]) -> Float[Tensor, ""]:
    """Sum of runs that lie side by side: of every eighth number, of these, and of the runs."""
    total, *others = columns[:_RUN].split(_LANES)
    for lanes in others:
        total = total + lanes
    total = _paired(total)
    for column in columns[_RUN:]:
        total = total + column
    return _paired(total)


def _paired(x: Tensor) -> Tensor:
    """Sums of neighbours along the first axis, then of neighbouring sums."""
    while len(x) > 1:
        x = x[::2] + x[1::2]
    return x[0]


def _power(x: Tensor, n: int) -> Tensor:
    """x**n rounded as Python's: for a number n torch multiplies, which is rounded otherwise."""
    return x ** x.new_full((), n)
