"""Orthonormal rows in blocks: more are added without copying those that are there."""

from collections.abc import Iterator

import torch
from torch import Tensor

from landscape import vectors
from landscape.sharding import own

_ROWS = 16  # of a block; what is allocated and not yet used
_SLAB = 2**20


class Basis:
    """Rows of length `size`; the first are `locked` (n, size), which is read, not copied.

    room: as many more as are expected at most, so that no more are allocated.
    """

    def __init__(self, locked: Tensor, room: int | None = None) -> None:
        self.blocks = [locked] if len(locked) else []
        self.like, self.size = locked, locked.shape[1]
        self.most = None if room is None else len(locked) + room

    def __len__(self) -> int:
        """Rows that are allocated."""
        return sum(map(len, self.blocks))

    def __getitem__(self, row: int) -> Tensor:
        for block in self.blocks:
            if row < len(block):
                return block[row]
            row -= len(block)
        raise IndexError(row)

    def at(self, row: int) -> Tensor:
        """A row to be written, the one after the last at most."""
        there = len(self)
        if row == there:
            left = _ROWS if self.most is None else max(1, min(_ROWS, self.most - there))
            self.blocks.append(self.like.new_empty((left, self.size)))
        return self[row]

    def put(self, row: int, vector: Tensor) -> None:
        """Write a row, the one after the last at most."""
        self.at(row).copy_(vector)

    def spare(self, first: int, count: int) -> Tensor:
        """Zeros (count, size) in the place of rows that are allocated and not in use, or new."""
        for block in self.blocks:
            part = block[max(first, 0) : max(first, 0) + count]
            if len(part) == count:
                return part.zero_()
            first -= len(block)
        return self.like.new_zeros((count, self.size))

    def parts(self, first: int, last: int) -> Iterator[Tensor]:
        """Rows first..last - 1, block by block."""
        for block in self.blocks:
            part = block[max(first, 0) : max(last, 0)]
            if len(part):
                yield part
            first, last = first - len(block), last - len(block)

    def without_(self, w: Tensor, first: int, last: int) -> tuple[Tensor, Tensor]:
        """W - Qᵀ Q w in place of w, and Q w in float64, with Q these rows.

        Q w as of what is nearly orthogonal (`vectors.project`): what its rounding leaves of a large
        part is small, and goes with the next projection.
        """
        parts = list(self.parts(first, last))
        if not parts:
            return w, torch.zeros(0, dtype=torch.float64, device=w.device)
        overlaps = [vectors.project(Q, w, small=True) for Q in parts]
        for Q, c in zip(parts, overlaps, strict=True):
            w = vectors.without_(w, Q, c)
        return w, torch.cat(overlaps)

    def combine(self, C: Tensor, first: int) -> Tensor:
        """C Q (m, size) with Q the rows from `first`, as many as C has columns."""
        total = self.like.new_zeros((len(C), self.size))
        at = 0
        for Q in self.parts(first, first + C.shape[1]):
            total.addmm_(C[:, at : at + len(Q)].to(Q), Q)
            at += len(Q)
        return total

    def turn(self, C: Tensor, first: int) -> None:
        """C Q in place of the first rows of Q, in slabs, so that nothing is doubled."""
        rows = list(map(own, self.parts(first, first + C.shape[1])))
        turning = list(map(own, self.parts(first, first + len(C))))
        for start in range(0, rows[0].shape[1], _SLAB):
            slab = slice(start, start + _SLAB)
            Q = torch.cat([part[:, slab] for part in rows])
            turned, at = vectors.combine(C, Q), 0
            for part in turning:
                part[:, slab] = turned[at : at + len(part)]
                at += len(part)
