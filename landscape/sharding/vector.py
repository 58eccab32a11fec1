"""Flat vectors over the parameters of a sharded model, which behave as whole ones.

A `ShardedVector` has the shape (*k, P) of the whole and in memory only what lies in this process.
Elementwise arithmetic stays there; sums, dots and norms are added up over the processes; a slice of
whole tensors and its view in the tensor's shape are such vectors again and write through. Any other
operation gets the whole, gathered, and gives an ordinary tensor that every process has (one in
place writes back what lies here): right whatever is asked, and as large as what it was asked of.
What would write into a copy of a part that is no whole tensor, or draw random numbers, is refused.
Every process must ask for the same things in the same order.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from landscape.sharding.cuts import is_cut, local
from landscape.sharding.space import Space


class ShardedVector(Tensor):
    """Vectors (*k, P) of a `Space`, of which `here` (*k, p) lies in this process.

    shape: of the tail in place of (P,), where the space is one tensor; `here` then has that of its
    part. Not part of a graph.
    """

    here: Tensor
    space: Space
    tail: tuple[int, ...]
    # What an operation does with such vectors: of `operations`, which are written in terms of them.
    run: ClassVar[Callable[[Any, Any, Any], Any]]

    @staticmethod
    def __new__(
        cls, here: Tensor, space: Space, tail: tuple[int, ...] | None = None
    ) -> "ShardedVector":
        """Vectors of which `here` is this process's part."""
        tail = (space.size,) if tail is None else tail
        lead = here.shape[: here.ndim - len(tail)]
        made = Tensor._make_wrapper_subclass(
            cls, (*lead, *tail), dtype=here.dtype, device=here.device
        )
        made.here, made.space, made.tail = here, space, tail
        return made

    @property
    def flat(self) -> bool:
        """Whether its last axis is that of theta."""
        return self.tail == (self.space.size,)

    def whole(self) -> Tensor:
        """An ordinary tensor with all of it, gathered."""
        rows = self.here.reshape((*lead_of(self), self.space.size_here))
        return self.space.whole(rows).reshape(self.shape)

    def numpy(self, *, force: bool = False) -> Any:
        """The whole, as an array."""
        return self.whole().numpy(force=force)

    def tolist(self) -> Any:
        """The whole, as lists."""
        return self.whole().tolist()

    # numpy's protocol.
    def __array__(self, dtype: Any = None) -> Any:
        return self.whole().__array__() if dtype is None else self.whole().__array__(dtype)

    def __reduce_ex__(self, proto: Any) -> Any:
        return self.whole().__reduce_ex__(proto)

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return (
            f"ShardedVector(shape={tuple(self.shape)}, {self.here.numel()} elements in this "
            f"process, dtype={self.dtype}, device={self.device})"
        )

    @classmethod
    def __torch_dispatch__(  # ty: ignore[incompatible-method-override]  # torch's own is no method
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return cls.run(func, args, kwargs or {})


def lead_of(v: ShardedVector) -> tuple[int, ...]:
    """Lengths of the axes before its tail."""
    return tuple(v.shape[: v.ndim - len(v.tail)])


def is_sharded(x: Any) -> bool:
    """Whether it is such a vector."""
    return isinstance(x, ShardedVector)


def own(x: Tensor) -> Tensor:
    """What of it lies in this process; the tensor itself where it is an ordinary one."""
    return x.here if isinstance(x, ShardedVector) else x


def whole(x: Tensor) -> Tensor:
    """An ordinary tensor with all of it."""
    return x.whole() if isinstance(x, ShardedVector) else x


def joined(space: Space, tensors: Sequence[Tensor]) -> ShardedVector:
    """The vector of one tensor per piece: whole, a DTensor, or what of it lies here."""
    parts = []
    for piece, tensor in zip(space.pieces, tensors, strict=True):
        part = local(tensor.here if isinstance(tensor, ShardedVector) else tensor).detach()
        if part.numel() != piece.numel_here:
            part = piece.own(part.reshape(piece.shape))
        parts.append(part.reshape(-1))
    return ShardedVector(torch.cat(parts), space)


def write(to: Tensor, value: Tensor) -> None:
    """Copy a tensor's values into a parameter, each of them whole or cut in the same way."""
    if is_cut(to) or isinstance(value, ShardedVector):
        to, value = local(to), own(value)
    to.copy_(value)


def wholes(x: Tensor) -> Iterator[Tensor]:
    """A vector (P,) in pieces, gathered one after another."""
    return x.space.wholes(x.here) if isinstance(x, ShardedVector) else iter([x])


def operands(*values: Any) -> tuple[Space | None, list[Any]]:
    """The space of those that are sharded, None where none is, and what of each lies here."""
    space = next((value.space for value in values if is_sharded(value)), None)
    return space, list(values) if space is None else [part_of(value, space) for value in values]


def part_of(x: Any, space: Space) -> Any:
    """Of vectors of the space what lies here; anything else as it is."""
    if is_sharded(x):
        return x.here
    vectors = isinstance(x, Tensor) and x.ndim and x.shape[-1] == space.size > 1
    return space.own(x) if vectors else x
