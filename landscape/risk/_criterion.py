"""Any loss as sums over rows, and what these sums are divided by."""

import copy
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from landscape.errors import LandscapeError
from landscape.risk._torch_losses import TorchLoss

_CLASS_LOSSES = (nn.CrossEntropyLoss, nn.NLLLoss, nn.MultiMarginLoss)
_CLASS_FUNCTIONS = (F.cross_entropy, F.nll_loss, F.multi_margin_loss)


class Criterion:
    """`loss(output, target)` with the reduction taken out of it: numerators and their weights.

    The risk is (sum of the numerators of all rows) / (sum of their weights), or the sum of the
    numerators alone where `sums`, as the criterion itself would reduce one batch of all rows.
    `per_example` is False for a callable declared reduction="mean".
    """

    def __init__(
        self,
        loss: Callable[[Any, Any], Tensor],
        reduction: str | None,
        *,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        if not callable(loss):
            raise LandscapeError(
                f"loss is a {type(loss).__name__}; give a callable loss(output, target), such as "
                f"torch.nn.CrossEntropyLoss()."
            )
        if reduction not in (None, "none", "mean"):
            raise LandscapeError(
                f"reduction={reduction!r} declared; possible are None, 'none' (per-example losses) "
                f"and 'mean' (mean over the rows given)."
            )
        self.name = _name(loss)
        self.torch = TorchLoss.of(loss)
        self.per_example = reduction != "mean" or self.torch is not None
        self.is_classifier = isinstance(loss, _CLASS_LOSSES) or loss in _CLASS_FUNCTIONS
        self.ignore_index = getattr(loss, "ignore_index", -100)
        own = self.torch.options["reduction"] if self.torch else _own_reduction(loss)
        if isinstance(loss, nn.Module):
            loss = copy.deepcopy(loss).eval().to(device=device, dtype=dtype).requires_grad_(False)
        if self.per_example and own is not None:
            if isinstance(getattr(loss, "reduction", None), str):
                loss = copy.copy(loss)
                loss.reduction = "none"
            else:
                loss = functools.partial(loss, reduction="none")
        if isinstance(loss, functools.partial):
            moved = {key: _moved(value, device, dtype) for key, value in loss.keywords.items()}
            loss = functools.partial(loss.func, *loss.args, **moved)
        self.own = own
        self.sums = own == "sum"
        self.loss = loss

    def __call__(self, output: Any, target: Any, count: int) -> Tensor:
        """Numerators of the rows (count,), or their sum () if a mean was declared.

        A mean counts as many times as it has rows.
        """
        losses = self.unreduced(output, target, count)
        if losses.ndim < 2:
            return losses if losses.ndim else losses * count
        return losses.flatten(1).sum(1)

    def unreduced(self, output: Any, target: Any, count: int) -> Tensor:
        """Losses (count, ...), one per row, token, pixel or output unit; () for a declared mean."""
        output = logits_of(output)
        try:
            losses = (
                self.torch.called(self.loss, output, target)
                if self.torch
                else self.loss(output, target)
            )
        except IndexError as error:
            raise LandscapeError(
                f"{self.name} failed on the targets ({error}); class targets must lie within the "
                f"number of outputs, {_shape(output)}."
            ) from error
        if not isinstance(losses, Tensor):
            raise LandscapeError(
                f"{self.name} returned a {type(losses).__name__}; it must return a tensor of "
                f"{count} losses, one per example."
            )
        if not self.per_example:
            if losses.numel() != 1:
                raise LandscapeError(
                    f"{self.name} is declared reduction='mean' but returned shape "
                    f"{tuple(losses.shape)}; return one number, or drop the declaration."
                )
            return losses.reshape(())
        if losses.ndim == 0 or losses.shape[0] != count:
            raise LandscapeError(
                f"{self.name} returned shape {tuple(losses.shape)} for {count} examples; return "
                f"one loss per example, or declare reduction='mean' if it is their mean."
            )
        return losses

    def weights(self, target: Any, count: int, elements: int) -> Tensor:
        """What each of the rows adds to the denominator (count,), float64 on the CPU.

        elements: unreduced losses of one row.
        """
        if self.torch is not None:
            return self.torch.weights(target, count, elements)
        return torch.full((count,), float(elements), dtype=torch.float64)

    def described(self) -> dict[str, Any]:
        """Name, options and reduction, as JSON types."""
        if self.torch is not None:
            return {"criterion": self.torch.kind.__name__, **self.torch.described()}
        reduction = self.own or ("none" if self.per_example else "mean")
        return {"criterion": self.name, "reduction": reduction}

    def in_dtype(self, dtype: torch.dtype) -> "Criterion":
        """The same criterion with its own tensors (class weights) in another dtype."""
        other = copy.copy(self)
        if isinstance(self.loss, nn.Module):
            other.loss = copy.deepcopy(self.loss).to(dtype=dtype)
        if isinstance(self.loss, functools.partial):
            keywords = {k: _moved(v, None, dtype) for k, v in self.loss.keywords.items()}
            other.loss = functools.partial(self.loss.func, *self.loss.args, **keywords)
        return other

    def check_targets(self, output: Any, target: Any, start: int) -> None:
        """Refuse class targets outside of 0..C-1, where the loss is known to index with them."""
        output = logits_of(output)
        if not (
            self.is_classifier
            and isinstance(output, Tensor)
            and isinstance(target, Tensor)
            and output.ndim >= 2
            and not target.is_floating_point()
        ):
            return
        classes = output.shape[1]
        bad = ((target < 0) | (target >= classes)) & (target != self.ignore_index)
        if bool(bad.any()):
            row = start + int(bad.reshape(len(bad), -1).any(1).nonzero()[0])
            value = int(target[bad][0])
            raise LandscapeError(
                f"Target {value} of example {row} is out of range: the model has {classes} "
                f"outputs, so targets are 0..{classes - 1}. Use a model with more outputs or mend "
                f"the labels."
            )


def logits_of(output: Any) -> Any:
    """The tensor that a loss takes: `.logits` of a Hugging Face output, else the output itself."""
    if isinstance(output, Tensor):
        return output
    logits = getattr(output, "logits", None)
    if isinstance(logits, Tensor):
        return logits
    if isinstance(output, Mapping) and isinstance(output.get("logits"), Tensor):
        return output["logits"]
    return output


def errors_of(output: Any, target: Any) -> Tensor | None:
    """Wrong predictions (B,), argmax against class or probability targets; None for other tasks.

    A row with a NaN output counts as wrong.
    """
    output = logits_of(output)
    if not (isinstance(output, Tensor) and isinstance(target, Tensor) and output.ndim == 2):
        return None
    if output.shape[1] < 2:
        return None
    if target.is_floating_point() and target.shape == output.shape:
        target = target.argmax(1)
    if target.is_floating_point() or target.shape != output.shape[:1]:
        return None
    return (output.argmax(1) != target) | output.isnan().any(1)


def _own_reduction(loss: Callable[..., Any]) -> str | None:
    """The `reduction` of a criterion or of a function that takes one, else None."""
    own = getattr(loss, "reduction", None)
    if isinstance(own, str):
        return own
    try:
        parameter = inspect.signature(loss).parameters.get("reduction")
    except (TypeError, ValueError):
        return None
    if parameter is None:
        return None
    return parameter.default if isinstance(parameter.default, str) else "mean"


def _moved(value: Any, device: torch.device | None, dtype: torch.dtype) -> Any:
    if not isinstance(value, Tensor):
        return value
    return value.to(device=device, dtype=dtype if value.is_floating_point() else value.dtype)


def _name(loss: Any) -> str:
    name = getattr(loss, "__qualname__", type(loss).__name__)
    smoothing = getattr(loss, "label_smoothing", 0.0)
    return f"{name}(label_smoothing={smoothing})" if smoothing else name


def _shape(output: Any) -> str:
    return (
        f"outputs of shape {tuple(output.shape)}" if isinstance(output, Tensor) else "its outputs"
    )
