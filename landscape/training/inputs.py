"""What goes into a training, made uniform and checked before the first step."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from landscape import devices
from landscape.errors import LandscapeError
from landscape.problems import DataSplits, Split
from landscape.risk import IGNORED, BatchLosses
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
    x, y = data.train.x, data.train.y
    if correctness and (y.is_floating_point() or y.ndim > 1):
        raise LandscapeError(
            f"correctness=True was asked of the recorder and the targets of {data.name} are not "
            f"classes; leave it False."
        )
    if x.is_floating_point() and not bool(x.isfinite().all()):
        raise LandscapeError(f"The training inputs of {data.name} are not all finite; clean them.")


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
    return any(not y.is_floating_point() and bool((y == value).any()) for y in parts)


def logits(output: Any) -> Tensor:
    """The tensor of a model that returns more than one."""
    if isinstance(output, Tensor):
        return output
    return output.logits if hasattr(output, "logits") else output[0]


def cast(data: DataSplits, dtype: torch.dtype) -> DataSplits:
    """Data with floating-point numbers of another precision."""

    def of(values: Tensor) -> Tensor:
        return values.to(dtype) if values.is_floating_point() else values

    def part(held: Split) -> Split:
        return Split(of(held.x), of(held.y), of(held.y_clean))

    return replace(
        data,
        train=part(data.train),
        val=None if data.val is None else part(data.val),
        test=None if data.test is None else part(data.test),
    )


@torch.no_grad()
def check_output(model: nn.Module, data: DataSplits) -> None:
    """One forward pass in eval mode: a wrong model or label is named before training."""
    x, y = data.train.x[:2], data.train.y
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
