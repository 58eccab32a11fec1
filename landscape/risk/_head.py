"""Logits left to the loss, so that nobody has to hold all of them.

The logits of one sequence of 4096 tokens over a vocabulary of 128 thousand take 2 GB, a derivative
several times that. Where a language model ends with a linear map, its loss is a sum over tokens of
hidden state, weight and label; it and its derivatives are then taken in pieces of tokens.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from landscape.risk._pieces import Tensors, in_pieces

Loss = Callable[[Tensor, Tensor], Tensor]
_PRODUCTS = (torch.matmul, Tensor.matmul, Tensor.__matmul__)


class TouchedError(RuntimeError):
    """The model computes with its logits."""


class Deferred(Tensor):
    """Logits (B, T, V) that nobody has computed: their shape, and what they are made of.

    hidden (B, T, D); weights: (V, D), and (V,) where there is a bias; tokens: of a piece;
    classes_first: the shape is (B, V, T), as torch's cross-entropy wants it.
    """

    hidden: Tensor
    weights: Sequence[Tensor]
    tokens: int
    classes_first: bool

    @staticmethod
    def __new__(
        cls, hidden: Tensor, weights: Sequence[Tensor], tokens: int, classes_first: bool = False
    ) -> "Deferred":
        rows, length, classes = *hidden.shape[:-1], len(weights[0])
        shape = (rows, classes, length) if classes_first else (rows, length, classes)
        made = torch.Tensor._make_wrapper_subclass(
            cls, shape, dtype=hidden.dtype, device=hidden.device
        )
        made.hidden, made.weights, made.tokens = hidden, weights, tokens
        made.classes_first = classes_first
        return made

    @classmethod
    def __torch_dispatch__(  # ty: ignore[incompatible-method-override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> "Deferred":
        own, aten = args[0], torch.ops.aten
        first = own.classes_first
        if func is aten._to_copy.default and kwargs == {"dtype": own.dtype}:
            return cls(own.hidden, own.weights, own.tokens, first)
        if func is aten.detach.default:
            return cls(own.hidden.detach(), own.weights, own.tokens, first)
        axes = {axis % 3 for axis in args[1:]} if func is aten.transpose.int else set()
        if axes == {1, 2} or (func is aten.permute.default and list(args[1]) == [0, 2, 1]):
            return cls(own.hidden, own.weights, own.tokens, not first)
        raise TouchedError(f"{func} of logits that are not computed")

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"Deferred({tuple(self.shape)})"

    def dense(self) -> Tensor:
        """The logits."""
        logits = F.linear(self.hidden, *self.weights)
        return logits.transpose(1, 2) if self.classes_first else logits

    def losses(self, loss: Loss, labels: Tensor) -> Tensor:
        """Loss of each token (B, T), of its logits (n, V) and labels (n,)."""

        def of_piece(rows: Tensors, shared: Tensors) -> tuple[Tensors, Tensors]:
            hidden, target = rows
            return [loss(F.linear(hidden, *shared), target)], []

        rows = [self.hidden.flatten(0, -2), labels.reshape(-1)]
        return in_pieces(of_piece, rows, self.weights, self.tokens)[0].view(labels.shape)

    def curved(
        self, loss: Loss, labels: Tensor, pushed: Tensor, directions: Tensors
    ) -> tuple[Tensor, list[Tensor]]:
        """∇²_z of the losses' sum, times the change of the logits z along a direction, pulled back.

        pushed: the change of the hidden states; directions: those of `weights`. Returns what comes
        back to hidden states and to weights.
        """

        def of_piece(rows: Tensors, shared: Tensors) -> tuple[Tensors, Tensors]:
            hidden, change, target = rows
            own, along = shared[: len(directions)], shared[len(directions) :]
            with torch.enable_grad():
                logits = F.linear(hidden, *own).detach().requires_grad_()
                (slope,) = torch.autograd.grad(
                    loss(logits, target).sum(), logits, create_graph=True
                )
                moved = F.linear(change, own[0]) + F.linear(hidden, *along)
                (bent,) = torch.autograd.grad(slope, logits, moved, materialize_grads=True)
            return [bent @ own[0]], [bent.T @ hidden, bent.sum(0)][: len(directions)]

        flat = [t.detach().flatten(0, -2) for t in (self.hidden, pushed)]
        with torch.no_grad():
            found = in_pieces(
                of_piece, [*flat, labels.reshape(-1)], [*self.weights, *directions], self.tokens
            )
        return found[0].view_as(self.hidden), found[1:]


@dataclass(frozen=True)
class Head:
    """The map to the logits of `classes` tokens, by one of the model's own tensors (classes, D).

    tokens: of a piece.
    """

    classes: int
    tokens: int

    def run(self, model: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """The model's output with `Deferred` logits; without where it computes with them."""
        try:
            return self.deferred(model, *args, **kwargs)
        except TouchedError:
            return model(*args, **kwargs)

    def deferred(self, model: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """The same; raises TouchedError where it computes with them."""
        own = [p for p in model.parameters() if p.ndim == 2 and len(p) == self.classes]
        with _Leaving(own, self.tokens):
            return model(*args, **kwargs)


class _Leaving(TorchFunctionMode):
    """Linear maps by one of these tensors are left to the loss."""

    def __init__(self, weights: Sequence[Tensor], tokens: int) -> None:
        super().__init__()
        self._weights, self._tokens = weights, tokens

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = None
        if func is F.linear:
            found = self._by(*args, **(kwargs or {}))
        elif func in _PRODUCTS and len(args) == 2:
            found = self._by(args[0], args[1].T) if _is_matrix(args[1]) else None
        return func(*args, **(kwargs or {})) if found is None else found

    def _by(self, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Deferred | None:
        own = next((p for p in self._weights if _is_same(p, weight)), None)
        if own is None or input.ndim != 3:
            return None
        return Deferred(input, [own] if bias is None else [own, bias], self._tokens)


def _is_matrix(x: Any) -> bool:
    return isinstance(x, Tensor) and x.ndim == 2


def _is_same(parameter: Tensor, weight: Tensor) -> bool:
    """Whether a weight is the parameter, or its transpose's transpose."""
    return weight is parameter or (
        weight.data_ptr() == parameter.data_ptr()
        and weight.shape == parameter.shape
        and weight.stride() == parameter.stride()
    )
