"""Tensors that are cut over processes (DTensor): what of them lies here, and the whole of it."""

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


def is_cut(tensor: Tensor) -> "TypeGuard[DTensor]":
    """Whether a tensor is a DTensor; none exists where its module was never imported."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def local(tensor: Tensor) -> Tensor:
    """What of it lies in this process, in the same memory; the tensor itself where it is whole."""
    if not is_cut(tensor):
        return tensor
    own = tensor.detach()
    return own.to_local() if is_cut(own) else own


@dataclass(frozen=True)
class Cut:
    """How one tensor is cut: its mesh of processes, its placements there, and the whole's shape."""

    mesh: Any
    placements: tuple[Any, ...]
    shape: torch.Size
    stride: tuple[int, ...]

    @staticmethod
    def of(tensor: Tensor) -> "Cut | None":
        """The cut of a DTensor, None for any other."""
        if not is_cut(tensor):
            return None
        return Cut(
            tensor.device_mesh, tuple(tensor.placements), tensor.shape, tuple(tensor.stride())
        )

    @property
    def dims(self) -> tuple[int, ...]:
        """Dimensions of the mesh over which the parts differ, interleaved ones among them."""
        return tuple(i for i, p in enumerate(self.placements) if not p.is_replicate())

    def local(self, tensor: "DTensor") -> Tensor:
        """This process's part of a DTensor of the same whole, however that is placed."""
        if tuple(tensor.placements) != self.placements:
            tensor = tensor.redistribute(self.mesh, self.placements)
        return local(tensor)

    def joined(self, part: Tensor) -> "DTensor":
        """The DTensor of which `part` is this process's part."""
        from torch.distributed.tensor import DTensor

        return DTensor.from_local(
            part, self.mesh, self.placements, run_check=False, shape=self.shape, stride=self.stride
        )

    def whole(self, part: Tensor) -> Tensor:
        """The whole tensor, gathered."""
        if part.dtype == torch.bool:  # not every backend sends these
            return self.whole(part.to(torch.uint8)).bool()
        return self.joined(part).full_tensor()

    def own(self, whole: Tensor) -> Tensor:
        """This process's part of a tensor that every process has; nothing is sent."""
        from torch.distributed.tensor import distribute_tensor

        return distribute_tensor(whole, self.mesh, self.placements, src_data_rank=None).to_local()
