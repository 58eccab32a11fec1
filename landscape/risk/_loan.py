"""The caller's own model on loan: ours within, and bit for bit what it was outside."""

from collections.abc import Generator
from contextlib import contextmanager
from types import TracebackType

import torch
from torch import Tensor, nn

from landscape.errors import LandscapeError
from landscape.risk._copying import real_or_complex
from landscape.risk._state import State


class Loan:
    """Context within which the modules have our tensors, modes and forwards; re-entrant.

    The caller's numbers are never written: its parameters and buffers point to memory of ours
    within, and to their own again afterwards, whatever was raised. Giving back can be repeated, and
    is where it was interrupted (Ctrl-C).
    """

    def __init__(self, model: nn.Module, *, device: torch.device, dtype: torch.dtype) -> None:
        self._model, self._depth = model, 0
        self._tensors: list[Tensor] = [*model.parameters(), *model.buffers()]
        elsewhere = next((t for t in self._tensors if t.device != device), None)
        if elsewhere is not None:
            raise LandscapeError(
                f"device={str(device)!r} asked with borrow=True, but the model has tensors on "
                f"{str(elsewhere.device)!r}; a borrowed model stays where it is."
            )
        self._ours = [t.detach().to(real_or_complex(t, dtype), copy=True) for t in self._tensors]
        self._dressed: State | None = None
        self._theirs: State | None = None
        self._returns: list[_Kept] = []

    @contextmanager
    def first_use(self) -> Generator[None]:
        """Within it the model is made what it shall be in every later use."""
        with self:
            yield
            self._flags = [t.requires_grad for t in self._tensors]
            self._dressed = State(self._model, values=False)

    def __enter__(self) -> None:
        self._depth += 1
        if self._depth > 1:
            return
        try:
            self._take()
        except BaseException:
            self._finish()
            raise

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self._finish()
        except BaseException:
            self._finish()
            raise

    def _take(self) -> None:
        self._theirs = State(self._model, values=False)
        self._returns = [_Kept(tensor) for tensor in self._tensors]
        for kept, ours in zip(self._returns, self._ours, strict=True):
            kept.lend(ours)
        if self._dressed is not None:
            self._dressed.restore()
            for tensor, flag in zip(self._tensors, self._flags, strict=True):
                tensor.requires_grad_(flag)

    def _finish(self) -> None:
        """Idempotent, but for the count, which is last."""
        if self._depth == 1:
            for kept in self._returns:
                kept.give_back()
            if self._theirs is not None:
                self._theirs.restore()
            self._returns, self._theirs = [], None
        self._depth = max(0, self._depth - 1)


class _Kept:
    """What belongs to one tensor of the caller."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor, self._data = tensor, tensor.data
        self._grad, self._flag = tensor.grad, tensor.requires_grad
        # Hooks on gradients would change ours.
        self._hooks = tensor._backward_hooks
        self._held = dict(self._hooks) if self._hooks else {}

    def lend(self, ours: Tensor) -> None:
        if self._hooks:
            self._hooks.clear()
        self._tensor.data = ours
        self._tensor.grad = None

    def give_back(self) -> None:
        if self._tensor.is_leaf:
            self._tensor.requires_grad_(self._flag)
        self._tensor.data = self._data
        self._tensor.grad = self._grad
        if self._hooks is not None:
            self._hooks.update(self._held)
