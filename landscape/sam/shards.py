"""Sums over tensors that are cut over processes (DTensor), and what needs them whole.

Everything elementwise runs on the local parts, in place. What runs over all coordinates goes
through a `Shards`: sums are added up over the processes that hold the parts (one message of 8 bytes
per tensor), and whatever needs a whole tensor (a quantile, the k largest, a random draw) gathers
it, so that its answer is that of one process.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from landscape.sharding import Cut
from landscape.sharding import is_cut as is_cut
from landscape.sharding import local as local

# A list of tensors stays one, a list with gaps keeps them.
MaybeTensor = TypeVar("MaybeTensor", Tensor, Tensor | None)


@dataclass(frozen=True)
class Shards:
    """The cuts of several tensors, in their order; None for one that every process has whole."""

    cuts: tuple[Cut | None, ...]
    by_name: dict[str, Cut | None]

    @staticmethod
    def of(names: Sequence[str], tensors: Sequence[Tensor]) -> "Shards | None":
        """Their cuts, None when all are whole."""
        cuts = tuple(map(Cut.of, tensors))
        return Shards(cuts, dict(zip(names, cuts, strict=True))) if any(cuts) else None

    def only(self, keep: Sequence[int]) -> "Shards":
        """The cuts of some of the tensors, in the order asked; names are those of all."""
        return Shards(tuple(self.cuts[i] for i in keep), self.by_name)

    def __getitem__(self, which: int | str) -> Cut | None:
        return self.by_name[which] if isinstance(which, str) else self.cuts[which]

    def sum(self, values: Sequence[MaybeTensor]) -> list[MaybeTensor]:
        """0-d values of the parts added up over the parts of each tensor; float64 on the way."""
        import torch.distributed as dist

        out = list(values)
        groups: dict[Any, list[tuple[int, Tensor]]] = {}
        for i, (cut, value) in enumerate(zip(self.cuts, out, strict=True)):
            if cut is not None and cut.dims and value is not None:
                groups.setdefault((cut.mesh, cut.dims), []).append((i, value))
        for (mesh, dims), parts in groups.items():
            together = torch.stack([value.double() for _, value in parts])
            for dim in dims:
                dist.all_reduce(together, group=mesh.get_group(dim))
            for (i, part), total in zip(parts, together.unbind(), strict=True):
                out[i] = total.to(part.dtype)
        return out

    def mean(self, value: Tensor) -> Tensor:
        """The mean of a 0-d value over all processes; nothing waits for it."""
        import torch.distributed as dist

        mesh = next(c for c in self.cuts if c is not None).mesh
        total = value.detach().double().clone()
        for dim in range(mesh.ndim):
            dist.all_reduce(total, group=mesh.get_group(dim))
        return (total / mesh.size()).to(value.dtype)

    def highest(self, value: Tensor) -> float:
        """The largest of a 0-d value over all processes; waits for it."""
        import torch.distributed as dist

        cut = next(c for c in self.cuts if c is not None)
        largest = value.detach().double().clone()
        for dim in range(cut.mesh.ndim):
            dist.all_reduce(largest, op=dist.ReduceOp.MAX, group=cut.mesh.get_group(dim))
        return float(largest)

    def agree(self, answer: bool | Tensor) -> bool | Tensor:
        """Whether the answer is True in every process; a tensor stays one and does not wait."""
        import torch.distributed as dist

        cut = next(c for c in self.cuts if c is not None)
        device = answer.device if isinstance(answer, Tensor) else torch.device(cut.mesh.device_type)
        flag = torch.as_tensor(answer, device=device).to(torch.int32)
        for dim in range(cut.mesh.ndim):
            dist.all_reduce(flag, op=dist.ReduceOp.MIN, group=cut.mesh.get_group(dim))
        return flag.bool() if isinstance(answer, Tensor) else bool(flag)
