"""What a forward pass changes in a model besides gradients, saved and put back."""

import contextlib
import operator
from collections.abc import Generator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from landscape.sam.finite import chosen
from landscape.sam.shards import local
from landscape.sam.trained import Trained, unwrap


class Buffers:
    """All buffers of a model: running statistics, spectral vectors, queues, codebooks, counters.

    Every one is copied, since nothing tells which a forward pass changes: code that writes through
    `.data` leaves no trace. They are put back in place, where graphs hold their addresses.
    frozen: parameters that count with them (`frozen_beside`). A buffer in the memory of trained
    weights, of which they are views, is the weights, and left to the step.
    """

    def __init__(self, model: nn.Module, frozen: Sequence[Tensor] = ()) -> None:
        self._model, self._frozen = model, frozen
        self._modules: list[nn.Module] = []
        self._where: list[tuple[Any, str, Tensor]] = []
        self._now: list[Tensor] = []  # their local parts
        self._saved: list[Tensor] = []
        self._seen: list[Tensor | None] = []  # all buffers, with those that are weights

    @torch.no_grad()
    def save(self, beside: "Buffers | None" = None) -> None:
        """Remember all buffers; beside: saved before in the same step, of the same modules."""
        self._modules = _modules(self._model) if beside is None else beside._modules
        seen: list[Tensor | None] = [b for m in self._modules for b in m._buffers.values()]
        seen += self._frozen
        if len(seen) != len(self._seen) or not all(map(operator.is_, seen, self._seen)):
            self._seen = seen
            self._find()
        if self._now:
            torch._foreach_copy_(self._saved, self._now)

    def _find(self) -> None:
        found = [
            (m, name, b) for m in self._modules for name, b in m._buffers.items() if b is not None
        ]
        weights = _in_memory_of_weights(self._model, [b for _, _, b in found])
        self._where = [place for place in found if id(place[2]) not in weights]
        self._where += [(self._model, "", p) for p in self._frozen]
        self._now = [local(b) for _, _, b in self._where]
        self._saved = [torch.empty_like(b) for b in self._now]

    @torch.no_grad()
    def restore(self, unless: Tensor | None = None) -> None:
        """Put them back; where the 0-d bool `unless` is true, leave them as they are."""
        for m, name, b in self._where:
            if (
                name and m._buffers.get(name) is not b
            ):  # a forward pass may bind the name to another tensor
                if unless is not None:
                    return self._choose(unless)
                m._buffers[name] = b
        if unless is not None:
            if self._now:
                torch._foreach_copy_(self._now, chosen(unless, self._now, self._saved))
        elif self._now:
            torch._foreach_copy_(self._now, self._saved)
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
    def kept(self, active: bool = True, beside: "Buffers | None" = None) -> Generator[None]:
        """Undo what the block does to them."""
        if active:
            self.save(beside)
        try:
            yield
        finally:
            if active:
                self.restore()


def frozen_beside(model: nn.Module, trained: Trained) -> list[Tensor]:
    """Frozen parameters that a forward pass may move: the averaged weights of a teacher.

    Those of a model with no more frozen numbers than trained ones; a large backbone under adapters
    or a new head is taken at its word.
    """
    frozen: list[Tensor] = [p for p in unwrap(model).parameters() if not p.requires_grad]
    few = sum(p.numel() for p in frozen) <= sum(p.numel() for p in trained.parameters)
    return frozen if few and trained.shards is None else []


def _in_memory_of_weights(model: nn.Module, buffers: Sequence[Tensor]) -> set[int]:
    """Ids of the buffers that share their storage with a trained parameter."""
    trained = (local(p) for p in model.parameters() if p.requires_grad)
    places = {p.untyped_storage().data_ptr() for p in trained if p.numel()}
    return {id(b) for b in buffers if local(b).untyped_storage().data_ptr() in places}


def _modules(model: nn.Module) -> list[nn.Module]:
    """As `model.modules()`, which spends its time on names."""
    found, seen, rest = [], {id(model)}, [model]
    while rest:
        module = rest.pop()
        found.append(module)
        for child in module._modules.values():
            if child is not None and id(child) not in seen:
                seen.add(id(child))
                rest.append(child)
    return found
