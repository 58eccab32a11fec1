"""Any loss as sums over rows, and what these sums are divided by."""

import copy
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from landscape.errors import LandscapeError
from landscape.risk._data import Batch
from landscape.risk._head import Deferred, Head
from landscape.risk._memory import Memory
from landscape.risk._plain import TARGET_KEYS
from landscape.risk._reading import Form, inputs_of, parts_of
from landscape.risk._torch_losses import TorchLoss

IGNORED = -100
REDUCTIONS = ("none", "mean", "sum", "whole")
_MODEL_NAMES = ("model", "net", "network", "module")
_CLASSES = (nn.CrossEntropyLoss, nn.NLLLoss, nn.MultiMarginLoss)
Returns = Literal["rows", "mean", "sum", "ratio"]


class Criterion:
    """Any loss with the reduction taken out of it: numerators of rows, and what divides their sum.

    The risk is (sum of the numerators of all rows) / (sum of their weights), or the sum of the
    numerators alone where `sums`, as the criterion itself would reduce one batch of all rows.

    form: how batches are read, and what the loss takes: "outputs" (output, target), "batch" (model,
    batch), "causal_lm" logits and shifted labels. returns: "rows" losses of rows (B, ...), the
    "mean" or "sum" of them (), or a "ratio" of (numerator, denominator). counts: what a mean is
    over: "rows", "labels" that are not -100, or "next labels", those after the first token of each
    row.
    """

    def __init__(
        self,
        loss: Callable[..., Any] | str,
        reduction: str | None,
        *,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        if reduction is not None and reduction not in REDUCTIONS:
            raise LandscapeError(
                f"reduction={reduction!r} declared; possible are None, 'none' (a loss for each "
                f"example), 'mean' and 'sum' (of the rows given) and 'whole' (one batch of all)."
            )
        self.declared = reduction
        self.form: Form = "outputs"
        self.name, self.counts = _name(loss), "rows"
        if isinstance(loss, str):
            loss, self.form = _named(loss)
        if isinstance(loss, type):
            raise LandscapeError(
                f"loss is the class {loss.__name__}; give an instance of it, such as "
                f"{loss.__name__}()."
            )
        if not callable(loss):
            raise LandscapeError(
                f"loss is a {type(loss).__name__}; give a callable loss(output, target), such as "
                f"torch.nn.CrossEntropyLoss(), or loss(model, batch)."
            )
        self.torch = TorchLoss.of(loss)
        if self.torch is None and self.form == "outputs" and _takes_model(loss):
            self.form = "batch"
        own = self.torch.options["reduction"] if self.torch else _own_reduction(loss)
        if reduction == "sum" and own is not None:
            raise LandscapeError(
                f"reduction='sum' declared of {self.name}, which has a reduction of its own "
                f"({own!r}); set that one."
            )
        self.own = own
        self.sums = own == "sum" or reduction == "sum"
        self.is_classifier = self.torch is not None and issubclass(self.torch.kind, _CLASSES)
        ignored = (
            self.torch.options["ignore_index"]
            if self.torch
            else getattr(loss, "ignore_index", -100)
        )
        self.ignore_index = IGNORED if ignored is None else ignored
        self.returns: Returns = "rows"
        if own is None and reduction in ("mean", "sum"):
            self.returns = reduction
        self.frozen = []
        if isinstance(loss, nn.Module):
            self.frozen = [name for name, p in loss.named_parameters() if p.requires_grad]
            loss = copy.deepcopy(loss).eval().to(device=device, dtype=dtype).requires_grad_(False)
        self.reduced = loss
        if own is not None:
            if isinstance(getattr(loss, "reduction", None), str):
                unreduced: Any = copy.copy(loss)
                unreduced.reduction = "none"
                loss = unreduced
            else:
                loss = functools.partial(loss, reduction="none")
        if isinstance(loss, functools.partial):
            loss = _partial_moved(loss, device, dtype)
        self.loss = loss
        self.memory = Memory(loss)
        self.head: Head | None = None  # of language models whose logits would be too large

    @property
    def per_example(self) -> bool:
        """Whether single rows have a loss."""
        return self.returns == "rows"

    def of(self, model: Callable[..., Any], batch: Batch) -> tuple[Any, Tensor]:
        """Output (None where the loss calls the model itself) and numerators of a batch."""
        if self.form == "batch":
            return None, self._sums(self._of_batch(model, batch), batch.targets, batch.count)
        output = self.output(model, batch)
        return output, self(output, batch.targets, batch.count)

    def output(self, model: Callable[..., Any], batch: Batch) -> Any:
        """What the model returns; logits of a `head` are `Deferred`."""
        if self.head is not None and isinstance(model, nn.Module):
            return self.head.run(model, *batch.args, **batch.kwargs)
        return model(*batch.args, **batch.kwargs)

    def __call__(self, output: Any, target: Any, count: int) -> Tensor:
        """Numerators of the rows (count,), or their sum () if the loss tells no more."""
        return self._sums(self._called(output, target), target, count)

    def of_rows(
        self,
        model: Callable[..., Any],
        batch: Batch,
        look: Callable[[Any], None] = lambda _: None,
    ) -> tuple[Any, Tensor, Tensor | None]:
        """Output, what the loss returns, and the denominator where it returns one; unchecked.

        look: shown the output before the loss is.
        """
        if self.form == "batch":
            output, returned = None, self._of_batch(model, batch)
        else:
            output = self.output(model, batch)
            look(output)
            returned = self._called(output, batch.targets)
        if isinstance(returned, tuple):
            numerator, denominator = self._pair(returned)
            return output, numerator, denominator
        return output, self._tensor(returned, batch.count), None

    def _of_batch(self, model: Callable[..., Any], batch: Batch) -> Any:
        # Aliases: what a loss sets on its inputs (requires_grad_) must not stay on the data.
        with self.memory.first():
            return self.loss(model, batch.mapped(Tensor.detach).targets)

    def _called(self, output: Any, target: Any) -> Any:
        if self.form == "causal_lm":
            output = _classes_first(output, target)
        try:
            if isinstance(logits := logits_of(output), Deferred):
                if logits.classes_first and logits.hidden.shape[:2] == target.shape:
                    return logits.losses(self.loss, target)
                output = logits.dense()
            if self.torch is not None:
                return self.torch.called(self.loss, logits_of(output), target)
            with self.memory.first():
                return self.loss(output, target)
        except IndexError as error:
            raise LandscapeError(
                f"{self.name} failed on the targets ({error}); class targets must lie within the "
                f"number of outputs, {_shape(output)}."
            ) from error
        except (AttributeError, TypeError) as error:
            if self.torch is not None and not isinstance(logits_of(output), Tensor):
                raise LandscapeError(
                    f"{self.name} takes a tensor, and the model returns a "
                    f"{type(output).__name__}; give a loss(output, target) that takes out what is "
                    f"meant, such as lambda output, target: torch.nn.functional.cross_entropy("
                    f"output[0], target, reduction='none')."
                ) from error
            if self.torch is not None or logits_of(output) is output:
                raise
            raise LandscapeError(
                f"{self.name} fails on the model's {type(output).__name__} "
                f"({str(error).splitlines()[0]}); a loss that is not torch's gets the whole "
                f"output, so take its .logits where those are meant."
            ) from error

    def _tensor(self, returned: Any, count: int) -> Tensor:
        if isinstance(returned, Tensor) and returned.is_complex():
            raise LandscapeError(
                f"{self.name} returned complex numbers ({str(returned.dtype)[6:]}), and a loss is "
                f"real; return their real part or absolute value, whichever is minimized."
            )
        if isinstance(returned, Tensor):
            return returned
        raise LandscapeError(
            f"{self.name} returned a {type(returned).__name__}; it must return a tensor of "
            f"{count} losses, one per example, their mean, or (numerator, denominator)."
        )

    def _pair(self, returned: tuple[Any, ...]) -> tuple[Tensor, Tensor]:
        kinds = ", ".join(type(each).__name__ for each in returned)
        number = Tensor | np.ndarray | np.number | int | float
        if (
            len(returned) != 2
            or not isinstance(returned[0], Tensor)
            or not isinstance(returned[1], number)
        ):
            raise LandscapeError(
                f"{self.name} returned {len(returned)} values ({kinds}); possible are a tensor of "
                f"losses, their mean, or (numerator, denominator). Return the loss alone."
            )
        denominator = torch.as_tensor(returned[1])
        if denominator.requires_grad:
            raise self.no_denominator("depends on the weights")
        return returned[0], denominator

    def no_denominator(self, why: str) -> LandscapeError:
        """What to say of a pair whose second value cannot divide the first."""
        return LandscapeError(
            f"{self.name} returned two values, which are read as (numerator, denominator): sums "
            f"over the rows of a batch, the second of targets or weights of examples alone. This "
            f"second value {why}. Return the loss alone, or both sums."
        )

    def _sums(self, returned: Any, target: Any, count: int) -> Tensor:
        if self.returns == "ratio":
            if not isinstance(returned, tuple):
                returned = self._tensor(returned, count)
                return returned.sum()
            return self._pair(returned)[0].sum()
        losses = self._tensor(returned, count)
        if self.returns == "rows":
            self._refuse_no_rows(losses, count)
            return losses if losses.ndim == 1 else losses.flatten(1).sum(1)
        if losses.numel() != 1:
            # Losses of rows where their mean was declared: their mean, then.
            losses = losses.mean() if self.returns == "mean" else losses.sum()
        losses = losses.reshape(())
        if self.returns == "sum":
            return losses
        weight = self.weights(target, count, 1).sum()
        # A mean over no label is 0/0, and adds nothing.
        return losses * weight.to(losses) if float(weight) else (losses * 0).nan_to_num()

    def of_batch(self, output: Any, target: Any, count: int) -> Tensor:
        """Losses (count,) whose mean is the criterion of this batch."""
        losses = self._tensor(self._called(output, target), count)
        if losses.ndim == 0 or losses.shape[0] != count:
            raise LandscapeError(
                f"The loss {self.name} returned one number for {count} examples (shape "
                f"{tuple(losses.shape)}); return one loss per example, or give it a `reduction`."
            )
        weights = self.weights(target, count, losses.numel() // count).sum()
        total = losses.reshape(count, -1).sum(1)
        return total * (count if self.sums else count / weights.to(total))

    def _refuse_no_rows(self, losses: Tensor, count: int) -> None:
        if losses.ndim and losses.shape[0] == count:
            return
        raise LandscapeError(
            f"{self.name} returned shape {tuple(losses.shape)} for {count} examples; return "
            f"one loss per example, or declare reduction='mean' if it is their mean (or a mean "
            f"over their tokens), 'sum' if their sum."
        )

    def weights(self, target: Any, count: int, elements: int) -> Tensor:
        """What each of the rows adds to the denominator (count,), float64 on the CPU.

        elements: unreduced losses of one row.
        """
        if self.counts != "rows":
            labels = labels_of(target)
            if labels is None:
                raise LandscapeError(
                    f"{self.name} is a mean over labels, and the targets of one batch "
                    f"({type(target).__name__}) hold none; give every batch its labels."
                )
            labels = labels[:, 1:] if self.counts == "next labels" else labels
            return labels.ne(self.ignore_index).reshape(count, -1).sum(1).double().cpu()
        if self.torch is not None:
            return self.torch.weights(target, count, elements)
        return torch.full((count,), float(elements), dtype=torch.float64)

    def fitted(self, returns: Returns, counts: str = "rows") -> "Criterion":
        """The same loss, known to return this."""
        other = copy.copy(self)
        other.returns, other.counts = returns, counts
        return other

    def with_head(self, head: Head | None) -> "Criterion":
        """The same loss, that makes the logits of this layer itself."""
        other = copy.copy(self)
        other.head = head
        return other

    def as_reduced(self) -> "Criterion":
        """The criterion as it was given, as a mean or sum whose rows are not known."""
        other = self.fitted("sum" if self.sums else "mean")
        other.loss, other.memory = self.reduced, Memory(self.reduced)
        return other

    def described(self) -> dict[str, Any]:
        """Name, options and reduction, as JSON types."""
        if self.torch is not None:
            pieces = {} if self.head is None else {"tokens_at_once": self.head.tokens}
            return {"criterion": self.torch.kind.__name__, **self.torch.described(), **pieces}
        frozen = {"frozen_in_loss": self.frozen} if self.frozen else {}
        if self.memory.names:
            frozen["kept_by_loss"] = self.memory.names[:20]
        mean = {"rows": self.own or "mean", "mean": "mean", "sum": "sum", "ratio": "ratio"}
        found = {"criterion": self.name, "reduction": mean[self.returns]}
        if self.counts != "rows":
            found["mean_over"] = self.counts
        return found | frozen

    def in_dtype(self, dtype: torch.dtype) -> "Criterion":
        """The same criterion with its own tensors (class weights) in another dtype."""
        other = copy.copy(self)
        if isinstance(self.loss, nn.Module):
            other.loss = copy.deepcopy(self.loss).to(dtype=dtype)
        if isinstance(self.loss, functools.partial):
            other.loss = _partial_moved(self.loss, None, dtype)
        if other.loss is not self.loss:
            other.memory = self.memory.of(other.loss)
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
        classes = output.shape[-1 if self.form == "causal_lm" else 1]
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


class BatchLosses:
    """(output, target) of one batch -> losses (B,) whose mean is the criterion of this batch.

    loss: a criterion of torch, or a function of (output, target).

    Example:
        >>> from landscape.risk import BatchLosses
        >>> x, y = data
        >>> each = BatchLosses(nn.CrossEntropyLoss())(model(x), y)
        >>> mean = nn.CrossEntropyLoss()(model(x), y)
        >>> tuple(each.shape), bool(torch.isclose(each.mean(), mean))
        ((48,), True)
    """

    def __init__(self, loss: Callable[..., Any] | str) -> None:
        self._loss = loss
        self._known: dict[tuple[torch.device, torch.dtype], Criterion] = {}

    def __call__(self, output: Any, target: Any) -> Tensor:
        like = _tensor_in(output)
        return self.criterion(like).of_batch(output, target, len(like))

    def criterion(self, like: Tensor) -> Criterion:
        """The criterion where this tensor is."""
        place = (like.device, like.dtype)
        if place not in self._known:
            self._known[place] = Criterion(self._loss, None, device=place[0], dtype=place[1])
        return self._known[place]


class ModelLosses:
    """(model, batch as given) -> output and losses whose mean is the criterion of this batch.

    Losses are one per row, or their mean () where the loss tells no more. output: None where the
    loss calls the model itself.
    """

    def __init__(self, loss: Callable[..., Any] | str) -> None:
        self._losses = BatchLosses(loss)

    def __call__(self, model: nn.Module, batch: Any) -> tuple[Any, Tensor]:
        like = next(p for p in model.parameters() if p.is_floating_point())
        criterion = self._losses.criterion(like)
        args, kwargs, targets = parts_of(batch, model.forward, criterion.form)
        if criterion.form == "batch":
            _, value, denominator = criterion.of_rows(model, Batch((), {}, targets, 0, 1))
            if denominator is not None:
                return None, value.sum() / denominator.sum()
            several = value.numel() > 1
            return None, value.reshape(len(value), -1).mean(1) if several else value.reshape(())
        output = model(*args, **kwargs)
        return output, self._losses(output, targets)


def _tensor_in(output: Any) -> Tensor:
    """The logits, or the first tensor with rows of an output of several."""
    like = logits_of(output)
    if isinstance(like, Tensor):
        return like
    return next(t for t in pytree.tree_leaves(like) if isinstance(t, Tensor) and t.ndim)


def errors_of(output: Any, target: Any, ignore_index: int = IGNORED) -> Tensor | None:
    """Wrong predictions (B,), argmax against class or probability targets; None for other tasks.

    A row with a NaN output counts as wrong, one whose target is ignored does not.
    """
    output = logits_of(output)
    if not (isinstance(output, Tensor) and isinstance(target, Tensor) and output.ndim == 2):
        return None
    if output.shape[1] < 2:
        return None
    if target.is_floating_point() and target.shape == output.shape:
        if not _are_probabilities(target):
            return None
        target = target.argmax(1)
    if target.is_floating_point() or target.shape != output.shape[:1]:
        return None
    wrong = (output.argmax(1) != target) | output.isnan().any(1)
    return wrong & (target != ignore_index)


def counted(target: Any, ignore_index: int) -> int:
    """Targets that a share of wrong predictions is over."""
    if not isinstance(target, Tensor) or target.is_floating_point() or target.ndim != 1:
        return len(target) if isinstance(target, Tensor) else 0
    return int((target != ignore_index).sum())


def labels_of(target: Any) -> Tensor | None:
    """Integer targets (B, ...), alone or in a batch that is a dict; None where there are none."""
    if isinstance(target, Mapping):
        target = next((target[key] for key in TARGET_KEYS if key in target), None)
    fits = isinstance(target, Tensor) and target.ndim and not target.is_floating_point()
    return target if fits else None


def _are_probabilities(target: Tensor) -> bool:
    total = target.sum(1)
    return bool((target >= 0).all()) and torch.allclose(total, torch.ones_like(total), atol=1e-3)


def _named(loss: str) -> tuple[Callable[..., Any], Form]:
    if loss == "model":
        return _of_model, "batch"
    if loss == "causal_lm":
        return nn.CrossEntropyLoss(), "causal_lm"
    raise LandscapeError(
        f"loss={loss!r}: the named losses are 'model' (the output's own .loss) and 'causal_lm' "
        f"(next tokens); else give a callable, such as torch.nn.CrossEntropyLoss()."
    )


def _of_model(model: Callable[..., Any], batch: Any) -> Tensor:
    """The loss that the model computes of a batch with labels, as transformers' models do."""
    forward = getattr(model, "forward", model)
    args, kwargs = (batch, {}) if isinstance(batch, tuple | list) else ((batch,), {})
    if isinstance(batch, Mapping):
        args, kwargs = inputs_of(batch, forward)
    output = model(*args, **kwargs)
    loss = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
    if not isinstance(loss, Tensor):
        given = f"keys {', '.join(map(repr, batch))}" if isinstance(batch, Mapping) else "parts"
        raise LandscapeError(
            f"loss='model' takes the output's own .loss, but the model's {type(output).__name__} "
            f"has none for a batch of the {given}; give the labels with the batch, as "
            f"{{'input_ids': ..., 'labels': ...}}, or another loss."
        )
    return loss


def _classes_first(output: Any, target: Any) -> Tensor:
    logits = logits_of(output)
    fits = isinstance(logits, Tensor) and logits.ndim == 3 and logits.shape[:2] == target.shape
    if not fits:
        raise LandscapeError(
            f"loss='causal_lm' needs logits (B, T, V) for labels {tuple(target.shape)}; the model "
            f"returns {_shape(logits)}."
        )
    return logits.transpose(1, 2)


def _takes_model(loss: Callable[..., Any]) -> bool:
    """Whether it is loss(model, batch), said by the name of its first argument."""
    target = loss.forward if isinstance(loss, nn.Module) else loss
    try:
        names = list(inspect.signature(target).parameters)
    except (TypeError, ValueError):
        return False
    return len(names) > 1 and names[0] in _MODEL_NAMES


def takes_batch(loss: Any) -> bool:
    """Whether a loss calls the model with the batch itself: loss(model, batch), or a name of ours.

    Those have no outputs and targets that a measurement of predictions could read.
    """
    return isinstance(loss, str) or _takes_model(loss)


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


def _partial_moved(
    loss: functools.partial, device: torch.device | None, dtype: torch.dtype
) -> functools.partial:
    """With its tensors (class weights) where the outputs are."""

    def moved(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return value.to(device=device, dtype=dtype if value.is_floating_point() else value.dtype)

    keywords = {key: moved(value) for key, value in loss.keywords.items()}
    return functools.partial(loss.func, *map(moved, loss.args), **keywords)


def _name(loss: Any) -> str:
    if isinstance(loss, str):
        return loss
    if isinstance(loss, functools.partial):
        return _name(loss.func)
    name = getattr(loss, "__qualname__", type(loss).__name__)
    smoothing = getattr(loss, "label_smoothing", 0.0)
    return f"{name}(label_smoothing={smoothing})" if smoothing else name


def _shape(output: Any) -> str:
    return (
        f"outputs of shape {tuple(output.shape)}" if isinstance(output, Tensor) else "its outputs"
    )
