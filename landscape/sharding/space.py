"""Where each coordinate of theta lies: tensors one after another, each cut in a way of its own."""

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from landscape.errors import LandscapeError
from landscape.sharding.cuts import Cut, local

_DRAWN = 2**22  # numbers of a stream at once; whole blocks of 16, see `Space.drawn`


@dataclass(frozen=True, eq=False)
class Piece:
    """One tensor of theta: its whole shape, the shape of what lies here, and how it is cut.

    owned: this process is the one whose part counts in sums, of those that hold the same part.
    """

    shape: tuple[int, ...]
    here: tuple[int, ...]
    cut: Cut | None
    owned: bool

    @property
    def numel(self) -> int:
        """Elements of the whole."""
        return math.prod(self.shape)

    @property
    def numel_here(self) -> int:
        """Elements of what lies here."""
        return math.prod(self.here)

    def own(self, whole: Tensor) -> Tensor:
        """What lies here of a whole tensor that every process has, in memory of its own."""
        if self.cut is None:
            return whole
        part = self.cut.own(whole)
        held = part.untyped_storage().nbytes()
        return part if held <= part.numel() * part.itemsize else part.clone()

    def whole(self, part: Tensor) -> Tensor:
        """The whole tensor, gathered."""
        return part if self.cut is None else self.cut.whole(part.contiguous())


class Space:
    """The vectors (P,) over some tensors: what of each lies here, and sums over all processes.

    Every process has every tensor cut the same way; processes that hold the same part of one hold
    the same values, and the lowest of them counts it. Sums reach every process with the same bits.
    """

    def __init__(self, pieces: Sequence[Piece]) -> None:
        self.pieces = tuple(pieces)
        self.bounds = [0]
        self.bounds_here = [0]
        for piece in self.pieces:
            self.bounds.append(self.bounds[-1] + piece.numel)
            self.bounds_here.append(self.bounds_here[-1] + piece.numel_here)
        self.size, self.size_here = self.bounds[-1], self.bounds_here[-1]
        self._parts: dict[tuple[int, int], Space] = {}

    @classmethod
    def of(cls, tensors: Sequence[Tensor]) -> "Space":
        """Of the parameters of a model, DTensors and whole ones, which all processes have."""
        cuts = [Cut.of(t) for t in tensors]
        held = [_held(cut) for cut in cuts]
        shapes = [tuple(t.shape) for t in tensors]
        told: list[tuple[list[tuple[int, ...]], list[tuple[int, ...]]]] = [
            ([], []) for _ in range(dist.get_world_size())
        ]
        dist.all_gather_object(told, (shapes, held))
        if any(other != shapes for other, _ in told):
            raise LandscapeError(
                f"The {len(told)} processes hold different parameters ({len(tensors)} tensors in "
                f"this one, {', '.join(str(len(other)) for other, _ in told)} in all), as stages "
                f"of a pipeline do; a risk needs a model that every process has a part of each "
                f"tensor of (fully_shard, tensor parallel)."
            )
        rank = dist.get_rank()
        owner = [
            next(r for r, (_, places) in enumerate(told) if places[i] == held[i])
            for i in range(len(tensors))
        ]
        return cls(
            [
                Piece(shape, tuple(local(t).shape), cut if cut and cut.dims else None, o == rank)
                for shape, t, cut, o in zip(shapes, tensors, cuts, owner, strict=True)
            ]
        )

    def piecewise(self, first: int, last: int) -> "Space | None":
        """The space of the coordinates first..last - 1, where these are whole tensors."""
        if (first, last) == (0, self.size):
            return self
        if (first, last) not in self._parts:
            if first not in self.bounds or last not in self.bounds or last <= first:
                return None
            i, j = self.bounds.index(first), self.bounds.index(last)
            self._parts[first, last] = Space(self.pieces[i:j])
        return self._parts[first, last]

    def here(self, bound: int) -> int:
        """Where a tensor begins among what lies here."""
        return self.bounds_here[self.bounds.index(bound)]

    def same(self, other: "Space") -> bool:
        """Whether both are over the same tensors."""
        return self.pieces == other.pieces

    @functools.cached_property
    def owned(self) -> list[tuple[int, int]]:
        """Runs of what lies here that count in sums, as few as there are."""
        runs: list[tuple[int, int]] = []
        for piece, first in zip(self.pieces, self.bounds_here, strict=False):
            last = first + piece.numel_here
            if not piece.owned or first == last:
                continue
            if runs and runs[-1][1] == first:
                first, _ = runs.pop()
            runs.append((first, last))
        return runs

    def counted(self, part: Tensor) -> Tensor:
        """Of (*k, p) here the columns that count in sums."""
        if self.owned == [(0, self.size_here)]:
            return part
        runs = [part[..., first:last] for first, last in self.owned]
        return torch.cat(runs, -1) if runs else part[..., :0]

    def sum(self, value: Tensor) -> Tensor:
        """Values of what counts here, added up over all processes."""
        total = value.clone()
        dist.all_reduce(total)
        return total

    def every(self, value: Tensor) -> Tensor:
        """Values of all processes (processes, *shape)."""
        found = [torch.empty_like(value) for _ in range(dist.get_world_size())]
        dist.all_gather(found, value.contiguous())
        return torch.stack(found)

    def agreed(self, value: Tensor) -> Tensor:
        """The first process's value, of what all of them computed and rounding may have split."""
        told = value.clone()
        dist.broadcast(told, 0)
        return told

    @property
    def num_processes(self) -> int:
        """Processes of the default group, over which the tensors are cut."""
        return dist.get_world_size()

    def refuse_other(self, value: object, what: str, instead: str) -> None:
        """Refuse in every process what is not the same in all."""
        told: list[object] = [None] * self.num_processes
        dist.all_gather_object(told, value)
        if any(other != value for other in told):
            raise LandscapeError(
                f"The {self.num_processes} processes have different {what}, and those of a sharded "
                f"model compute together; {instead}."
            )

    def own(self, whole: Tensor) -> Tensor:
        """What lies here of whole vectors (*k, P)."""
        lead = whole.shape[:-1]
        here = whole.new_empty((*lead, self.size_here))
        for row, part in zip(whole.reshape(-1, self.size), _rows(here), strict=True):
            for piece, value, place in zip(
                self.pieces, row.split(_numels(self.pieces)), self.split(part), strict=True
            ):
                place.copy_(piece.own(value.reshape(piece.shape)).reshape(-1))
        return here

    def split(self, part: Tensor) -> list[Tensor]:
        """Views of what lies here (*k, p), one per tensor, flat."""
        return list(part.split([piece.numel_here for piece in self.pieces], -1))

    def whole(self, part: Tensor) -> Tensor:
        """Whole vectors (*k, P) of what lies here (*k, p); every process gets them."""
        lead = part.shape[:-1]
        found = part.new_empty((*lead, self.size))
        for row, values in zip(found.reshape(-1, self.size), _rows(part), strict=True):
            for place, value in zip(
                row.split(_numels(self.pieces)), self.wholes(values), strict=True
            ):
                place.copy_(value.reshape(-1))
        return found

    def wholes(self, part: Tensor) -> Iterator[Tensor]:
        """Of one vector the whole tensors, one after another."""
        for piece, value in zip(self.pieces, self.split(part), strict=True):
            yield piece.whole(value.reshape(piece.here))

    def drawn(self, draw: Callable[[int], Tensor], like: Tensor) -> Tensor:
        """What lies here of draw(P): every process draws all of the stream, a tensor at a time.

        In blocks of 2²², since torch's normal numbers come in blocks of 16 and end otherwise.
        """
        here = like.new_empty(self.size_here)
        ahead = torch.empty(0, dtype=like.dtype, device=like.device)
        left = self.size
        for piece, place in zip(self.pieces, self.split(here), strict=True):
            parts, missing = [ahead], piece.numel - len(ahead)
            while missing > 0:
                # The last block is not left shorter than 16.
                count = left if left < _DRAWN + 16 else _DRAWN
                parts.append(draw(count).to(ahead))
                left, missing = left - count, missing - count
            found = torch.cat(parts)
            ahead = found[piece.numel :].clone()
            place.copy_(piece.own(found[: piece.numel].reshape(piece.shape)).reshape(-1))
        return here


def _numels(pieces: Sequence[Piece]) -> list[int]:
    return [piece.numel for piece in pieces]


def _rows(rows: Tensor) -> Iterator[Tensor]:
    return iter(rows.reshape(math.prod(rows.shape[:-1]), rows.shape[-1]))


def _held(cut: Cut | None) -> tuple[int, ...]:
    """Which part of the tensor is here: the place along the mesh's dimensions that cut it."""
    if cut is None:
        return ()
    place = cut.mesh.get_coordinate()
    if place is None:
        raise LandscapeError(
            "A parameter lies on a mesh of processes that this process is no part of; a risk needs "
            "a model that every process has a part of each tensor of (fully_shard, tensor "
            "parallel)."
        )
    if any(placement.is_partial() for placement in cut.placements):
        raise LandscapeError(
            "A parameter is a sum over processes that was not taken (Partial); redistribute it to "
            "Shard or Replicate first."
        )
    return tuple(place[dim] for dim in cut.dims)
