"""What goes into a training, made uniform and checked before the first step."""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from landscape import devices
from landscape.errors import LandscapeError
from landscape.problems import Batches, DataSplits
from landscape.risk import IGNORED, BatchLosses, ModelLosses
from landscape.training.options import TrainingOptions


def check_data(
    data: DataSplits, options: TrainingOptions, device: torch.device, *, correctness: bool = False
) -> None:
    """Refuse data or a device that cannot be trained on."""
    if options.amp != "off" and not devices.is_accelerator(device):
        raise LandscapeError(
            f"amp={options.amp!r} was asked on {device}; mixed precision needs a CUDA device: use "
            f"amp='off' or another device."
        )
    if (device.index or 0) >= devices.count(device.type):
        kind = device.type.upper() if device.type == "cuda" else device.type
        raise LandscapeError(f"device={device} was asked and no {kind} device is here; use cpu.")
    if len(data.train) < 2:
        raise LandscapeError(
            f"{data.name} has {len(data.train)} training example; give at least 2."
        )
    train = data.train
    y = None if isinstance(train, Batches) else train.y
    if correctness and (y is None or y.is_floating_point() or y.ndim > 1):
        raise LandscapeError(
            f"correctness=True was asked of the recorder and the targets of {data.name} are not "
            f"classes; leave it False."
        )
    inputs = train.examples.leaves() if isinstance(train, Batches) else [train.x]
    if any(x.is_floating_point() and not bool(x.isfinite().all()) for x in inputs):
        raise LandscapeError(f"The training inputs of {data.name} are not all finite; clean them.")
    check_form(data, options)


def check_form(data: DataSplits, options: TrainingOptions) -> None:
    """Refuse options that batches of this form cannot have."""
    train = data.train
    if not isinstance(train, Batches):
        return
    if options.augment != "none":
        raise LandscapeError(
            f"augment={options.augment!r} changes images (n, channels, height, width), and the "
            f"data of {data.name} are {train!r}; use augment='none'."
        )
    if not train.made_of_rows and options.batch_size != 1:
        raise LandscapeError(
            f"batch_size={options.batch_size} was asked of {data.name}, whose examples are whole "
            f"batches ({train!r}), of which no two are joined; set [training] batch_size = 1."
        )


def whole_losses(
    loss: Any, options: TrainingOptions
) -> Callable[[nn.Module, Any], tuple[Any, Tensor]]:
    """(model, batch) -> its output, where that is known, and losses (B,) or their mean ()."""
    if options.label_smoothing and type(loss) not in (nn.CrossEntropyLoss, type(None)):
        name = loss if isinstance(loss, str) else type(loss).__name__
        raise LandscapeError(
            f"label_smoothing={options.label_smoothing} belongs to the cross-entropy and the loss "
            f"is {name}; put it into the loss, or set it to 0."
        )
    if loss is None or options.label_smoothing:
        loss = nn.CrossEntropyLoss(label_smoothing=options.label_smoothing)
    return ModelLosses(loss)


def per_example(
    loss: Any, options: TrainingOptions, data: DataSplits | None = None
) -> Callable[[Tensor, Tensor], Tensor]:
    """criterion(output, y) -> (B,), whose mean is the criterion of the batch as torch takes it.

    Class weights and ignored targets divide as they do there. data: all that y will be of, if that
    is known.
    """
    plain = (
        type(loss) is nn.CrossEntropyLoss
        and loss.weight is None
        and loss.ignore_index < 0
        and loss.reduction == "mean"
    )
    quick = loss is None or plain
    smoothing = 0.0
    if quick:
        smoothing = options.label_smoothing or getattr(loss, "label_smoothing", 0.0)
        ignored = getattr(loss, "ignore_index", IGNORED)
        loss = nn.CrossEntropyLoss(label_smoothing=smoothing, ignore_index=ignored)
    elif options.label_smoothing:
        raise LandscapeError(
            f"label_smoothing={options.label_smoothing} belongs to the cross-entropy and the loss "
            f"is {type(loss).__name__}; put it into the loss, or set it to 0."
        )
    known = BatchLosses(loss)
    # Asked of the data once: of every batch a device would have to be waited for.
    some = data is None or (quick and _any_target_is(loss.ignore_index, data))

    def values(output: Tensor, y: Tensor) -> Tensor:
        if quick and y.ndim == 1 and not (some and bool((y == loss.ignore_index).any())):
            return F.cross_entropy(output, y, reduction="none", label_smoothing=smoothing)
        return known(output, y)

    return values


def _any_target_is(value: int, data: DataSplits) -> bool:
    parts = [part.y for part in (data.train, data.val, data.test) if part is not None]
    known = [y for y in parts if y is not None and not y.is_floating_point()]
    return any(bool((y == value).any()) for y in known)


def logits(output: Any) -> Tensor:
    """The tensor of a model that returns more than one."""
    if isinstance(output, Tensor):
        return output
    return output.logits if hasattr(output, "logits") else output[0]


def cast(data: DataSplits, dtype: torch.dtype) -> DataSplits:
    """Data with floating-point numbers of another precision."""
    return data.mapped(lambda leaf: leaf.to(dtype) if leaf.is_floating_point() else leaf)


@torch.no_grad()
def check_losses(
    model: nn.Module, data: DataSplits, losses: Callable[[Any], Any], batch: tuple[Any, ...]
) -> None:
    """One evaluation of a batch in eval mode: what cannot be trained on is named before it is."""
    model.eval()
    try:
        value = losses(batch)
    except LandscapeError:
        raise
    except Exception as error:
        raise LandscapeError(
            f"{type(model).__name__} or its loss fails on a batch of {data.name} "
            f"({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}); choose "
            f"a model and a loss for such data."
        ) from error
    finally:
        model.train()
    value = value[0] if isinstance(value, tuple) else value
    if not bool(value.isfinite().all()):
        raise LandscapeError(
            f"The loss of {type(model).__name__} on {data.name} is not finite at its initial "
            f"weights; check them."
        )


@torch.no_grad()
def check_output(model: nn.Module, data: DataSplits) -> None:
    """One forward pass in eval mode: a wrong model or label is named before training."""
    train: Any = data.train
    x, y = train.x[:2], train.y
    model.eval()
    try:
        output = logits(model(x))
    except (RuntimeError, ValueError, TypeError) as error:
        raise LandscapeError(
            f"{type(model).__name__} cannot take inputs of shape {tuple(x.shape)} from {data.name} "
            f"({str(error).splitlines()[0]}); choose a model for such data."
        ) from error
    finally:
        model.train()
    if not bool(output.isfinite().all()):
        raise LandscapeError(
            f"{type(model).__name__} returns values that are not all finite at its initial "
            f"weights; check them."
        )
    if not y.is_floating_point() and y.ndim == 1:
        highest, width = int(y.max()), output.shape[1] if output.ndim > 1 else math.nan
        if not width > highest:
            raise LandscapeError(
                f"{type(model).__name__} returns outputs of shape {tuple(output.shape)} and "
                f"{data.name} has the label {highest}; a model of {data.num_classes} classes "
                f"returns (n, {data.num_classes})."
            )
