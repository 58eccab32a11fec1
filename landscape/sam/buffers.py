"""What a forward pass changes in a model besides gradients: its buffers, saved and put back."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from landscape.sam.shards import local


class Buffers:
    """All buffers of a model: running statistics, spectral vectors, queues, codebooks, counters.

    Every one is copied, since nothing tells which a forward pass changes: code that writes through
    `.data` leaves no trace. They are put back in place, where graphs hold their addresses.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._where: list[tuple[Any, str, Tensor]] = []
        self._saved: list[Tensor] = []

    @torch.no_grad()
    def save(self) -> None:
        """Remember all buffers."""
        self._where = [
            (m, name, b)
            for m in self._model.modules()
            if len(m._buffers)
            for name, b in m._buffers.items()
            if b is not None
        ]
        now = [local(b) for _, _, b in self._where]
        if len(self._saved) != len(now) or not all(map(_alike, self._saved, now)):
            self._saved = [torch.empty_like(b) for b in now]
        if now:
            torch._foreach_copy_(self._saved, now)

    @torch.no_grad()
    def restore(self, unless: Tensor | None = None) -> None:
        """Put them back; where the 0-d bool `unless` is true, leave them as they are."""
        for m, name, b in self._where:
            if m._buffers.get(name) is not b:  # a forward pass may bind the name to another tensor
                if unless is not None:
                    return self._choose(unless)
                m._buffers[name] = b
        now = [local(b) for _, _, b in self._where]
        if unless is not None:
            for b, s in zip(now, self._saved, strict=True):
                b.copy_(torch.where(unless.to(b.device), b, s))
        elif now:
            torch._foreach_copy_(now, self._saved)
        return None

    def _choose(self, unless: Tensor) -> None:
        """As `restore`, where a name is bound to another tensor: the host has to know."""
        if not bool(unless):
            self.restore()

    def changed(self, other: "Buffers") -> list[nn.Module]:
        """Modules whose buffers were saved differently there; waits for the device."""
        if len(self._where) != len(other._where):
            return [self._model]
        pairs = zip(self._where, self._saved, other._where, other._saved, strict=True)
        return [m for (m, _, b), s, (_, _, c), t in pairs if b is not c or not torch.equal(s, t)]

    @contextlib.contextmanager
    def kept(self, active: bool = True) -> Iterator[None]:
        """Undo what the block does to them."""
        if active:
            self.save()
        try:
            yield
        finally:
            if active:
                self.restore()


def _alike(a: Tensor, b: Tensor) -> bool:
    return (a.shape, a.stride(), a.dtype, a.device) == (b.shape, b.stride(), b.dtype, b.device)
