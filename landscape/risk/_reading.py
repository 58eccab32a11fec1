"""The door for data: whatever people hold, read once, as (args, kwargs, targets) of each batch."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, is_dataclass
from inspect import Parameter, signature
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from landscape.errors import LandscapeError
from landscape.risk._plain import TARGET_KEYS, length, mark, plain
from landscape.risk._rereading import (
    refuse_other_reading,
    refuse_random_collate,
    refuse_random_items,
    watched,
)
from landscape.risk._samplers import rows_chosen
from landscape.risk._sparse import bytes_of

# Who takes a batch apart: we for loss(output, target), nobody for loss(model, batch).
Form = Literal["outputs", "batch", "causal_lm"]
FORMS = "a DataLoader, a Dataset, one batch (inputs, targets) or dict, or a list of batches"
_MOST_BATCHES, _MOST_BYTES = 100_000, 2**32
_IGNORED = -100
_OF_WORKER = f"{LandscapeError.__module__}.{LandscapeError.__name__}: "
_MOST_ITEMS = 1000  # of which the first that cannot be read is looked for

Parts = tuple[tuple[Any, ...], dict[str, Any], Any]


@dataclass(frozen=True)
class Given:
    """What data were found to be.

    parts: (args, kwargs, targets) of every batch; own: whether the batches are the caller's own;
    chosen: (rows given, rows of the dataset) where a loader leaves some out.
    """

    parts: list[Parts]
    own: bool
    chosen: tuple[int, int] | None


def read(data: Any, forward: Callable[..., Any], form: Form, *, distributed: bool = False) -> Given:
    """All batches of the data, refused by name where they are no fixed set of examples."""
    chosen = rows_chosen(data, distributed=distributed) if isinstance(data, DataLoader) else None
    named = form != "batch"
    raw = [plain(given, named=named) for given in _ended(_batches_of(data, form), data)]
    split = {"outputs": _split, "batch": _whole, "causal_lm": _shifted}[form]
    parts = [split(given, forward, number) for number, given in enumerate(raw)]
    if form != "batch":
        _refuse_other_structure(parts)
    own = not (isinstance(data, Dataset) and not isinstance(data, list))
    return Given(parts, own, chosen)


def _batches_of(data: Any, form: Form) -> Iterable[Any]:
    if isinstance(data, DataLoader):
        refuse_random_items(data.dataset)
        refuse_random_collate(data)
        return data
    if isinstance(data, TensorDataset):
        return [data.tensors]
    if isinstance(data, Dataset):
        refuse_random_items(data)
        if not isinstance(data, IterableDataset) and len(data) == 0:
            return []
        return DataLoader(data, batch_size=1024)
    if (
        isinstance(data, Mapping | tuple)
        or is_dataclass(data)
        or (form != "outputs" and isinstance(data, Tensor))
    ):
        return [data]
    if isinstance(data, list):
        one = any(isinstance(item, Tensor | np.ndarray | str | int | float) for item in data)
        return [data] if one else data
    if form == "batch" and not isinstance(data, Iterable | str):
        return [data]
    if isinstance(data, Tensor | str | np.ndarray) or not isinstance(data, Iterable):
        raise LandscapeError(f"data is a {type(data).__name__}; possible are {FORMS}.")
    return data


def _ended(batches: Iterable[Any], data: Any) -> list[Any]:
    """All batches of what ends; a loader without an end, or that fails, is named."""
    with watched(batches):
        found = list(_drawn(batches, data))
    refuse_other_reading(batches, found, data)
    return found


def _drawn(batches: Iterable[Any], data: Any) -> Iterator[Any]:
    name, known = type(data).__name__, length(batches)
    source = iter(batches)
    seen: list[int] = []
    size = count = 0
    while True:
        try:
            batch = next(source)
        except StopIteration:
            return
        except LandscapeError as error:  # of a worker with its traceback
            said = str(error).removesuffix("\\n").rpartition(_OF_WORKER)[2]
            raise LandscapeError(said) from error
        except Exception as error:
            raise _unread(data, count, error) from error
        yield batch
        count += 1
        if known is not None:
            if count > known + (1 if isinstance(batches, DataLoader) else 0):
                raise _endless(name, f"len() says {known} batches, and there are more")
            continue
        size += _bytes(batch)
        seen.append(mark(batch))
        half, odd = divmod(count, 2)
        if not odd and half > 1 and seen[half] == seen[0] and seen[:half] == seen[half:]:
            raise _endless(name, f"its first {half} batches come again after them")
        if count > _MOST_BATCHES or size > _MOST_BYTES:
            raise _endless(name, f"{count} batches ({size / 2**30:.2g} GiB) were read")


def _bytes(batch: Any) -> int:
    return sum(
        bytes_of(leaf) if isinstance(leaf, Tensor) else getattr(leaf, "nbytes", 64)
        for leaf in pytree.tree_leaves(plain(batch))
    )


def _endless(name: str, seen: str) -> LandscapeError:
    return LandscapeError(
        f"The data ({name}) do not seem to end: {seen}. A risk is over a fixed set of examples; "
        f"give so many batches as a list, such as list(itertools.islice(data, 100))."
    )


def _unread(data: Any, number: int, error: Exception) -> LandscapeError:
    """Name the data, the item and the cure."""
    dataset = data.dataset if isinstance(data, DataLoader) else data
    name = type(dataset).__name__
    first = str(error).strip().splitlines()
    reason = f"{type(error).__name__}: {first[-1][:300]}" if first else type(error).__name__
    item, held = None, ""
    if hasattr(dataset, "__getitem__") and not isinstance(dataset, Tensor):
        for index in range(min(_MOST_ITEMS, length(dataset) or 1)):
            try:
                each = dataset[index]
                item = each if index == 0 else item
            except Exception as again:
                return LandscapeError(
                    f"Item {index} of the data ({name}) cannot be read: {type(again).__name__}: "
                    f"{again}."
                )
        kinds = [_kind(leaf) for leaf in pytree.tree_leaves(plain(item))]
        held = f" Item 0 holds {', '.join(kinds[:8])}."
    kinds = held.lower()
    if "image" in kinds:
        cure = (
            "Give the dataset a transform that makes tensors of its images, such as "
            "torchvision.transforms.ToTensor()."
        )
    elif isinstance(data, DataLoader):
        cure = (
            "Give the DataLoader a collate_fn that makes one batch of such items (padding them to "
            "one length, say), or a dataset whose items are tensors of one shape."
        )
    else:
        cure = (
            "Give a DataLoader with the collate_fn that training uses, or a dataset whose items "
            "are tensors of one shape."
        )
    return LandscapeError(
        f"Batch {number} of the data ({name}) cannot be read ({reason}).{held} {cure}"
    )


def _kind(leaf: Any) -> str:
    if isinstance(leaf, Tensor | np.ndarray):
        return f"{type(leaf).__name__} {tuple(leaf.shape)}"
    return type(leaf).__name__


def _refuse_other_structure(parts: list[Parts]) -> None:
    specs = [pytree.tree_structure(part) for part in parts]
    for number, (first, spec) in enumerate(zip(itertools.repeat(specs[0]), specs, strict=False)
                                           if specs else ()):  # fmt: skip
        if spec != first:
            raise LandscapeError(
                f"Batch {number} is made otherwise than batch 0: {_outline(parts[number])} after "
                f"{_outline(parts[0])}. Give all batches the same keys and parts."
            )


def _outline(part: Parts) -> str:
    args, kwargs, _ = part
    names = [repr(name) for name in kwargs]
    return f"{len(args)} inputs" + (f" and the keys {', '.join(names)}" if names else "")


def _split(given: Any, forward: Callable[..., Any], number: int) -> Parts:
    """(args, kwargs, targets) of one batch as given."""
    if isinstance(given, Mapping):
        return _split_dict(dict(given), forward, number)
    if not isinstance(given, tuple | list) or len(given) != 2:
        found = f"{len(given)} parts" if isinstance(given, tuple | list) else type(given).__name__
        raise LandscapeError(
            f"Batch {number} has {found}; a batch is (inputs, targets), with several inputs as "
            f"((x1, x2), targets), or a dict with the targets under one of "
            f"{', '.join(TARGET_KEYS)}. For anything else give a loss that is a function of "
            f"(model, batch)."
        )
    inputs, targets = given
    if isinstance(inputs, Mapping):
        return (), dict(inputs), targets
    several = type(inputs) in (tuple, list)
    return (tuple(inputs) if several else (inputs,)), {}, targets


def _split_dict(given: dict[str, Any], forward: Callable[..., Any], number: int) -> Parts:
    key = next((key for key in TARGET_KEYS if key in given), None)
    if key is None:
        raise LandscapeError(
            f"Batch {number} has the keys {', '.join(map(repr, given))}; the targets must be under "
            f"one of {', '.join(TARGET_KEYS)}."
        )
    targets = given.pop(key)
    args, kwargs = inputs_of(given, forward, number)
    for other in TARGET_KEYS:
        if other in given and other not in kwargs and mark(given[other]) != mark(targets):
            raise LandscapeError(
                f"Batch {number} has targets under {key!r} and others under {other!r}, which the "
                f"model's forward does not take; leave out what the loss shall not be of."
            )
    return args, kwargs, targets


def targets_of(batch: Any) -> tuple[Any, Tensor | None]:
    """Inputs and targets of (inputs, targets), or of a dict that names them; None: there are none.

    Of a dict the inputs are what stands beside the targets.
    """
    inputs, found = batch, None
    if isinstance(batch, Mapping):
        key = next((key for key in TARGET_KEYS if key in batch), None)
        inputs = {name: value for name, value in batch.items() if name != key}
        found = None if key is None else batch[key]
    elif isinstance(batch, tuple | list) and len(batch) == 2:
        inputs, found = batch
    return inputs, found if isinstance(found, Tensor) and found.ndim else None


def parts_of(given: Any, forward: Callable[..., Any], form: Form) -> Parts:
    """(args, kwargs, targets) of one batch."""
    split = {"outputs": _split, "batch": _whole, "causal_lm": _shifted}[form]
    return split(plain(given, named=form != "batch"), forward, 0)


def inputs_of(
    given: Mapping[str, Any], forward: Callable[..., Any], number: int = 0
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Of a dict what forward takes, by its names."""
    parameters = signature(forward).parameters
    if any(p.kind is Parameter.VAR_KEYWORD for p in parameters.values()):
        return (), dict(given)
    known = {name: value for name, value in given.items() if name in parameters}
    if known:
        return (), known
    if len(given) == 1:
        return tuple(given.values()), {}
    raise LandscapeError(
        f"Batch {number} has the inputs {', '.join(map(repr, given))}; the model's forward takes "
        f"{', '.join(parameters)}. Rename the keys, or give (inputs, targets)."
    )


def _whole(given: Any, _forward: Callable[..., Any], _number: int) -> Parts:
    return (), {}, given


def _shifted(given: Any, forward: Callable[..., Any], number: int) -> Parts:
    """Token t against label t + 1; the label counts where it is not -100 and is attended to."""
    named: Any = given
    if isinstance(given, tuple | list) and len(given) in (1, 2):
        named = dict(zip(("input_ids", "labels"), given, strict=False))
    elif isinstance(given, Tensor | np.ndarray):
        named = {"input_ids": given}
    if not isinstance(named, Mapping) or "input_ids" not in named:
        keys = f" with the keys {', '.join(map(repr, given))}" if isinstance(given, Mapping) else ""
        raise LandscapeError(
            f"loss='causal_lm' needs token ids: batch {number} is a {type(given).__name__}{keys}"
            f"; give a dict with 'input_ids' (B, T) and, if there are, 'attention_mask' and "
            f"'labels', or (input_ids, labels)."
        )
    named = dict(named)
    labels = torch.as_tensor(named.pop("labels", named["input_ids"])).clone()
    mask = named.get("attention_mask")
    if labels.ndim != 2 or labels.is_floating_point():
        raise LandscapeError(
            f"loss='causal_lm' needs integer labels (B, T); batch {number} has {labels.dtype} of "
            f"shape {tuple(labels.shape)}."
        )
    if mask is not None:
        mask = torch.as_tensor(mask)
        if mask.shape != labels.shape:
            raise LandscapeError(
                f"loss='causal_lm': attention_mask of batch {number} has shape "
                f"{tuple(mask.shape)} and the labels have {tuple(labels.shape)}."
            )
        labels[mask == 0] = _IGNORED
    last = torch.full_like(labels[:, :1], _IGNORED)
    args, kwargs = inputs_of(named, forward, number)
    return args, kwargs, torch.cat([labels[:, 1:], last], dim=1)
