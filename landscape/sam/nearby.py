"""The loss around w, for slots that need more than g1: its values, gradients, Hessian products."""

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from landscape import devices
from landscape.errors import LandscapeError
from landscape.sam.buffers import Buffers
from landscape.sam.passes import Passes

Offsets = Sequence[Tensor | None]


class Nearby:
    """Passes of the step's batch around w; everything is as before afterwards."""

    def __init__(self, passes: Passes, buffers: Buffers) -> None:
        self._passes, self._buffers, self._trained = passes, buffers, passes.trained
        self.rng: Any = None  # the random state that all passes of the step are to see

    def loss_at(self, names: Sequence[str], offsets: Offsets) -> Tensor:
        """The loss at w + offsets, without gradients."""
        with self._moved(names, offsets):
            return self._passes.of_all(self._passes.loss())

    def gradient_at(
        self,
        names: Sequence[str],
        offsets: Offsets | None = None,
        *,
        batch: Any = None,
        objective: Callable[[Any, Any], Tensor] | None = None,
    ) -> list[Tensor]:
        """The gradient at w + offsets of the tensors named, zeros where the loss reaches none."""
        return self._backward(names, offsets, batch, objective)[1]

    def value_and_gradient_at(
        self, names: Sequence[str], offsets: Offsets | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """The loss and its gradient at w + offsets."""
        loss, found = self._backward(names, offsets, None, None)
        return self._passes.of_all(loss), found

    def _backward(
        self, names: Sequence[str], offsets: Offsets | None, batch: Any, objective: Any
    ) -> tuple[Tensor, list[Tensor]]:
        with self._moved(names, offsets):
            loss = self._passes.backward(batch=batch, objective=objective)
            found = self._trained.gradients(self._passes.signs)
        return loss, self._zeros_for_none(names, [found[i] for i in self._at(names)])

    def hessian_product(
        self, names: Sequence[str], v: Offsets, offsets: Offsets | None = None
    ) -> list[Tensor]:
        """H v at w + offsets, over the tensors named."""
        if self._passes.losses is None or self._trained.shards is not None:
            raise LandscapeError(
                "a Hessian product differentiates the loss twice, which step(closure), whose "
                "backward pass frees its graph, and sharded parameters cannot offer; call "
                "step(losses, batch) with whole parameters."
            )
        parameters = [self._trained.parameters[i] for i in self._at(names)]
        with self._moved(names, offsets):
            product = self._passes.hessian_product(parameters, v)
        return self._zeros_for_none(names, product)

    def _at(self, names: Sequence[str]) -> list[int]:
        return [self._trained.index[n] for n in names]

    def _zeros_for_none(self, names: Sequence[str], found: Sequence[Tensor | None]) -> list[Tensor]:
        tensors = self._trained.tensors()
        return [
            torch.zeros_like(tensors[i]) if g is None else g
            for i, g in zip(self._at(names), found, strict=True)
        ]

    @contextmanager
    def _moved(self, names: Sequence[str], offsets: Offsets | None) -> Generator[None]:
        """At w + offsets, with `.grad`, buffers and weights put back at the end."""
        pairs = zip(names, offsets or (), strict=offsets is not None)
        moves = {n: x for n, x in pairs if x is not None}
        grads = [p.grad for p in self._trained.parameters]
        device = self._trained.parameters[0].device
        now = None if self.rng is None else devices.rng_state(device)
        with self._buffers.kept(), self._passes.at(moves, moved_by=True):
            try:
                if now is not None:
                    devices.set_rng_state(self.rng, device)
                yield
            finally:
                if now is not None:
                    devices.set_rng_state(now, device)
                for p, g in zip(self._trained.parameters, grads, strict=True):
                    p.grad = g
