"""The door for data: whatever people hold, read once, as (args, kwargs, targets) of each batch."""

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from dataclasses import fields, is_dataclass
from inspect import Parameter, signature
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from landscape.errors import LandscapeError
from landscape.risk._sparse import bytes_of, content_of, equal

# Who takes a batch apart: we for loss(output, target), nobody for loss(model, batch).
Form = Literal["outputs", "batch", "causal_lm"]
TARGET_KEYS = ("labels", "label", "targets", "target", "y")
FORMS = "a DataLoader, a Dataset, one batch (inputs, targets) or dict, or a list of batches"
_MOST_BATCHES, _MOST_BYTES = 100_000, 2**32
_IGNORED = -100
# Items that are read twice: 0.81^48 is the chance to miss an augmentation of every tenth. Items of
# which the first that cannot be read is looked for.
_ITEMS, _MOST_ITEMS = 48, 1000

Parts = tuple[tuple[Any, ...], dict[str, Any], Any]


def read(data: Any, forward: Callable[..., Any], form: Form) -> tuple[list[Parts], bool]:
    """(args, kwargs, targets) of every batch, and whether the batches are the caller's own."""
    named = form != "batch"
    raw = [plain(given, named=named) for given in _ended(_batches_of(data, form), data)]
    split = {"outputs": _split, "batch": _whole, "causal_lm": _shifted}[form]
    parts = [split(given, forward, number) for number, given in enumerate(raw)]
    if form != "batch":
        _refuse_other_structure(parts)
    return parts, not (isinstance(data, Dataset) and not isinstance(data, list))


def columns(data: Any, name: str) -> tuple[Any, ...]:
    """All of a DataLoader or a Dataset as whole columns: (inputs, targets) or one more.

    Of items that are dicts the inputs are the one entry beside the targets. Raises LandscapeError,
    with `name`, for items that are random, cannot be read, or do not fit one table.
    """
    try:
        batches = [
            _pair_of(plain(batch, named=is_dataclass(batch)))
            for batch in _ended(_batches_of(data, "outputs"), data)
        ]
        if len({len(batch) for batch in batches}) != 1:
            raise LandscapeError("Its batches have different numbers of parts, or there are none.")
        joined = [
            [torch.as_tensor(part) for part in column] for column in zip(*batches, strict=True)
        ]
        shapes = {tuple(part.shape[1:]) for part in joined[0]}
        if len(shapes) != 1:
            raise LandscapeError(
                f"Its inputs have shapes {sorted(shapes)[:4]}; a study trains on one table, so "
                f"give all examples one shape (pad them)."
            )
        return tuple(torch.cat(column) for column in joined)
    except LandscapeError as error:
        raise LandscapeError(f"{name}: {error}") from error
    except (TypeError, ValueError, RuntimeError) as error:
        raise LandscapeError(
            f"{name} is a {type(data).__name__} whose batches are no tensors ({error}); give pairs "
            f"(x, y) of tensors."
        ) from error


def _pair_of(batch: Any) -> tuple[Any, ...]:
    if not isinstance(batch, Mapping):
        if isinstance(batch, tuple | list) and len(batch) in (2, 3):
            return tuple(batch)
        found = f"{len(batch)} parts" if isinstance(batch, tuple | list) else type(batch).__name__
        raise LandscapeError(f"Its items have {found}; give pairs (x, y), or (x, y, y_clean).")
    target = next((key for key in TARGET_KEYS if key in batch), None)
    inputs = [key for key in batch if key != target]
    if target is None or len(inputs) != 1:
        raise LandscapeError(
            f"Its items have the keys {', '.join(map(repr, batch))}; a study needs one input and "
            f"the targets under one of {', '.join(TARGET_KEYS)}. Give pairs (x, y)."
        )
    return batch[inputs[0]], batch[target]


def plain(tree: Any, *, named: bool = True) -> Any:
    """Every Mapping (transformers' BatchEncoding) as a dict, at any depth.

    named: so also dataclasses, and named tuples with targets in more or fewer than two parts.
    """
    if named and is_dataclass(tree) and not isinstance(tree, type | Mapping):
        tree = {each.name: getattr(tree, each.name) for each in fields(tree)}
    if named and isinstance(tree, tuple) and len(tree) != 2 and set(TARGET_KEYS) & {*_names(tree)}:
        tree = dict(zip(_names(tree), tree, strict=True))
    if isinstance(tree, Mapping):
        return {key: plain(value, named=named) for key, value in tree.items()}
    if type(tree) in (list, tuple):
        return type(tree)(plain(value, named=named) for value in tree)
    return tree


def _names(named: tuple[Any, ...]) -> tuple[str, ...]:
    return getattr(named, "_fields", ())


def _batches_of(data: Any, form: Form) -> Iterable[Any]:
    if isinstance(data, DataLoader):
        refuse_random_items(data.dataset)
        _refuse_random_collate(data)
        _refuse_random_choice(data)
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
    name = type(data).__name__
    length = _length(batches)
    found: list[Any] = []
    seen: list[int] = []
    size = 0
    source = iter(batches)
    while True:
        try:
            batch = next(source)
        except StopIteration:
            _refuse_other_reading(batches, found, data)
            return found
        except LandscapeError:
            raise
        except Exception as error:
            raise _unread(data, len(found), error) from error
        found.append(batch)
        if length is not None:
            if len(found) > length + (1 if isinstance(batches, DataLoader) else 0):
                raise _endless(name, f"len() says {length} batches, and there are more")
            continue
        size += _bytes(batch)
        seen.append(_mark(batch))
        half, odd = divmod(len(seen), 2)
        if not odd and half > 1 and seen[half] == seen[0] and seen[:half] == seen[half:]:
            raise _endless(name, f"its first {half} batches come again after them")
        if len(found) > _MOST_BATCHES or size > _MOST_BYTES:
            raise _endless(name, f"{len(found)} batches ({size / 2**30:.2g} GiB) were read")


def _refuse_other_reading(batches: Iterable[Any], found: list[Any], data: Any) -> None:
    """What is iterated and has no items that could be read twice is read a second time.

    Another order is the same set; what is used up (a generator) cannot be tried.
    """
    stream = isinstance(data, DataLoader) and isinstance(data.dataset, IterableDataset)
    stream |= isinstance(data, IterableDataset)
    if isinstance(data, list | Mapping | tuple | Dataset | DataLoader) and not stream:
        return
    source = iter(batches)
    if source is batches:
        return
    try:
        again = list(itertools.islice(source, len(found) + 1))
    except Exception:
        return
    if len(again) != len(found) or list(map(_mark, again)) == list(map(_mark, found)):
        return
    if Counter(_row_marks(again)) != Counter(_row_marks(found)):
        raise LandscapeError(
            f"The data ({type(data).__name__}) hold other examples at a second reading (random "
            f"augmentation, masking or choice?). A risk is over a fixed set of examples; give the "
            f"data without it, or one fixed draw: list(data)."
        )


def _row_marks(batches: list[Any]) -> Iterator[int]:
    """A mark of every row of all batches, whatever their order."""
    for batch in batches:
        leaves, _ = pytree.tree_flatten(plain(batch))
        sizes = {len(leaf) for leaf in leaves if hasattr(leaf, "__len__")}
        if len(sizes) != 1 or any(isinstance(leaf, str) for leaf in leaves):
            yield _mark(batch)
            continue
        for row in range(sizes.pop()):
            yield _mark([leaf[row] if hasattr(leaf, "__len__") else leaf for leaf in leaves])


def _refuse_random_choice(loader: DataLoader) -> None:
    """Refuse a sampler that chooses other examples each time: with replacement, or a part."""
    batches = getattr(loader, "batch_sampler", None)
    if isinstance(loader.dataset, IterableDataset) or batches is None or _length(batches) is None:
        return

    def chosen() -> Counter[Any]:
        return Counter(itertools.chain.from_iterable(itertools.islice(batches, _MOST_BATCHES)))

    try:
        differs = chosen() != chosen()
    except Exception:
        return  # said where the batches are read
    if differs:
        kind = type(loader.sampler).__name__
        drops = " that drops the last, incomplete batch" * bool(loader.drop_last)
        raise LandscapeError(
            f"The DataLoader chooses other examples at each reading ({kind}{drops}), so that its "
            f"loss is no fixed number; give its dataset (.dataset), a loader without random "
            f"choice, or one fixed draw: list(loader)."
        )


def _length(batches: object) -> int | None:
    try:
        return len(batches) if isinstance(batches, Sized) else None
    except (TypeError, NotImplementedError):
        return None


def _bytes(batch: Any) -> int:
    return sum(
        bytes_of(leaf) if isinstance(leaf, Tensor) else getattr(leaf, "nbytes", 64)
        for leaf in pytree.tree_leaves(plain(batch))
    )


def _mark(batch: Any) -> int:
    leaves = [
        tuple(content_of(leaf)) if isinstance(leaf, Tensor) else repr(leaf)
        for leaf in pytree.tree_leaves(plain(batch))
    ]
    return hash(tuple(leaves))


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
        for index in range(min(_MOST_ITEMS, _length(dataset) or 1)):
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


def refuse_random_items(dataset: Any) -> None:
    """Augmentation would make the risk another function at every pass."""
    if isinstance(dataset, IterableDataset | TensorDataset) or not hasattr(dataset, "__len__"):
        return
    size = len(dataset)
    spread = {round(i * (size - 1) / (_ITEMS - 1)) for i in range(_ITEMS)} if size else ()
    for index in sorted(spread):
        try:
            first, second = (pytree.tree_leaves(plain(dataset[index])) for _ in range(2))
        except Exception as error:
            raise LandscapeError(
                f"Item {index} of the data ({type(dataset).__name__}) cannot be read: "
                f"{type(error).__name__}: {str(error)[:300]}."
            ) from error
        if len(first) != len(second) or not all(map(_same, first, second)):
            raise LandscapeError(
                f"{type(dataset).__name__}[{index}] differs from one reading to the next (random "
                f"augmentation?); give the data without augmentation, or one fixed draw of them."
            )


def _refuse_random_collate(loader: DataLoader) -> None:
    dataset = loader.dataset
    if isinstance(dataset, IterableDataset) or loader.collate_fn is None:
        return
    items = [dataset[i] for i in range(min(4, _length(dataset) or 0))]
    try:
        first, second = (pytree.tree_leaves(plain(loader.collate_fn(items))) for _ in range(2))
    except Exception:
        return  # said where the batches are read
    if len(first) != len(second) or not all(map(_same, first, second)):
        name = getattr(loader.collate_fn, "__qualname__", type(loader.collate_fn).__name__)
        raise LandscapeError(
            f"The DataLoader's collate_fn ({name}) makes other batches of the same items each time "
            f"(random augmentation, mixing or masking?); give the data without it, or one fixed "
            f"draw: a list of batches."
        )


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and equal(a, b)
    if isinstance(a, np.ndarray):
        return bool(np.array_equal(a, b))
    if hasattr(a, "tobytes") and hasattr(b, "tobytes"):
        return a.tobytes() == b.tobytes()
    try:
        return bool(a == b) or type(a).__eq__ is object.__eq__
    except (RuntimeError, ValueError, TypeError):
        return True


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
    return args, kwargs, targets


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
