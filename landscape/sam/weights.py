"""The weights of a step: moved to w + e in place, and restored from a copy of w, bit for bit."""

import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


class Weights:
    """Weights that are at w, or at w + e while a copy of w is held.

    They move in place, whoever else reads their memory: a view, a transposed weight, the buffer
    from which `fully_shard` gathers, a recorded graph. Subtracting e would not give w back exactly.
    """

    def __init__(self, model: nn.Module) -> None:
        fsdp: Any = getattr(sys.modules.get("torch.distributed.fsdp"), "FSDPModule", None)
        self._gathering = (
            [] if fsdp is None else [m for m in model.modules() if isinstance(m, fsdp)]
        )
        self._at_w: list[tuple[list[Tensor], list[Tensor]]] = []

    @property
    def moved(self) -> bool:
        """Whether they are elsewhere than at w."""
        return bool(self._at_w)

    def differ(self) -> bool:
        """Whether any weight is elsewhere than at w; waits for the device."""
        return any(not torch.equal(w, old) for ws, olds in self._at_w for w, old in zip(ws, olds))

    def move(self, weights: Sequence[Tensor], directions: Sequence[Tensor], factor: float) -> None:
        """Add factor * direction to each weight; `restore` takes it back."""
        if weights:
            self._keep(weights)
            torch._foreach_add_(list(weights), list(directions), alpha=factor)

    def put(self, weights: Sequence[Tensor], values: Sequence[Tensor]) -> None:
        """Give each weight other values; `restore` takes it back."""
        if weights:
            self._keep(weights)
            torch._foreach_copy_(list(weights), list(values))

    def _keep(self, weights: Sequence[Tensor]) -> None:
        self._forget_gathered()
        copies = [torch.empty_like(w) for w in weights]
        torch._foreach_copy_(copies, list(weights))
        self._at_w.append((list(weights), copies))

    def restore(self) -> None:
        """Back to w."""
        if self._at_w:
            self._forget_gathered()
        while self._at_w:
            torch._foreach_copy_(*self._at_w.pop())

    def _forget_gathered(self) -> None:
        """Let `fully_shard` gather anew: a forward pass without a backward one leaves it gathered.

        The next pass would otherwise run at the weights before the move.
        """
        for module in self._gathering:
            module.reshard()
