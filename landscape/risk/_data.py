"""Data of any form as rows: one table where the batches fit together, a list of them where not."""

import contextlib
import functools
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from inspect import Parameter, signature
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from landscape.errors import LandscapeError

TARGET_KEYS = ("labels", "label", "targets", "target", "y")
FORMS = "a DataLoader, a Dataset, one batch (inputs, targets) or dict, or a list of batches"


@dataclass(frozen=True)
class Batch:
    """Rows start..start+count of the data: model(*args, **kwargs) against targets."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    targets: Any
    start: int
    count: int

    def tree(self) -> tuple[Any, ...]:
        return self.args, self.kwargs, self.targets

    def leaves(self) -> list[Tensor]:
        return pytree.tree_leaves(self.tree())

    def rows(self, start: int, count: int) -> "Batch":
        return self.mapped(lambda leaf: leaf[start : start + count], self.start + start, count)

    def mapped(
        self,
        function: Callable[[Tensor], Tensor],
        start: int | None = None,
        count: int | None = None,
    ) -> "Batch":
        args, kwargs, targets = pytree.tree_map(function, self.tree())
        start = self.start if start is None else start
        return Batch(args, kwargs, targets, start, self.count if count is None else count)


@dataclass
class Examples:
    """All rows, on the device when they fit; `cut` gives views of at most `size` rows."""

    chunks: list[Batch]
    num_examples: int
    device: torch.device
    resident: bool
    # What each row adds to the denominator of the mean, (N,) in float64.
    weights: Tensor = field(default_factory=lambda: torch.empty(0))
    _cuts: dict[int, list[Batch]] = field(default_factory=dict)

    @functools.cached_property
    def row_bytes(self) -> int:
        total = sum(leaf.nbytes for chunk in self.chunks for leaf in chunk.leaves())
        return max(1, total // self.num_examples)

    def on_device(self, batch: Batch) -> Batch:
        """The batch itself when the data are resident."""
        if self.resident:
            return batch
        return batch.mapped(lambda leaf: leaf.to(self.device, non_blocking=True))

    def in_dtype(self, dtype: torch.dtype) -> "Examples":
        """The same rows with floating-point values in another dtype."""
        chunks = [
            chunk.mapped(lambda leaf: leaf.to(dtype) if leaf.is_floating_point() else leaf)
            for chunk in self.chunks
        ]
        return Examples(chunks, self.num_examples, self.device, self.resident, self.weights)

    def take(self, rows: Tensor) -> "Examples":
        """These rows (indices, any order) as examples of their own."""
        chunks, start, weights = [], 0, []
        for chunk in self.chunks:
            here = rows[(rows >= chunk.start) & (rows < chunk.start + chunk.count)] - chunk.start
            if len(here):
                part = chunk.mapped(lambda leaf, here=here: leaf[here.to(leaf.device)])
                chunks.append(replace(part, start=start, count=len(here)))
                weights.append(self.weights[here + chunk.start])
                start += len(here)
        return Examples(chunks, start, self.device, self.resident, torch.cat(weights))

    def cut(self, size: int) -> list[Batch]:
        """Views of at most `size` rows; put each `on_device` before use."""
        if size not in self._cuts:
            self._cuts[size] = [
                chunk if size >= chunk.count else chunk.rows(at, min(size, chunk.count - at))
                for chunk in self.chunks
                for at in range(0, chunk.count, size)
            ]
        return self._cuts[size]


def collect(
    data: Any,
    forward: Callable[..., Any],
    *,
    device: torch.device,
    dtype: torch.dtype,
) -> Examples:
    """Read `data` once, copy it, and give every row its place; RNG states are left as they were."""
    with kept_rng(data):
        raw = list(_batches_of(data))
    chunks, start = [], 0
    for number, given in enumerate(raw):
        args, kwargs, targets = _split(given, forward, number)
        tree = pytree.tree_map(lambda leaf: _tensor(leaf, dtype), (args, kwargs, targets))
        count = _count_rows(tree, number)
        if count:
            chunks.append(Batch(*tree, start=start, count=count))
            start += count
    if start == 0:
        raise LandscapeError(
            f"The data are empty ({len(raw)} batches, 0 examples); a risk needs at least one "
            f"example. Give {FORMS}."
        )
    chunks = _joined(chunks, start)
    size = sum(leaf.nbytes for chunk in chunks for leaf in chunk.leaves())
    resident = device.type != "cuda" or size <= torch.cuda.mem_get_info(device)[0] // 2
    if resident:
        chunks = [chunk.mapped(lambda leaf: leaf.to(device)) for chunk in chunks]
    return Examples(chunks, start, device, resident)


@contextlib.contextmanager
def kept_rng(data: Any = None) -> Iterator[None]:
    """Restore the global generators of torch, numpy and Python, and those of a DataLoader."""
    own = [
        generator
        for generator in (
            getattr(data, "generator", None),
            getattr(getattr(data, "sampler", None), "generator", None),
        )
        if isinstance(generator, torch.Generator)
    ]
    states = [generator.get_state() for generator in own]
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    cpu, python, legacy = torch.get_rng_state(), random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        yield
    finally:
        torch.set_rng_state(cpu)
        random.setstate(python)
        np.random.set_state(legacy)  # noqa: NPY002
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)
        for generator, state in zip(own, states, strict=True):
            generator.set_state(state)


def _batches_of(data: Any) -> Iterable[Any]:
    if isinstance(data, DataLoader):
        _refuse_random_items(data.dataset)
        return data
    if isinstance(data, TensorDataset):
        return [data.tensors]
    if isinstance(data, Dataset):
        _refuse_random_items(data)
        if not isinstance(data, IterableDataset) and len(data) == 0:
            return []
        return DataLoader(data, batch_size=1024)
    if isinstance(data, Mapping | tuple):
        return [data]
    if isinstance(data, list):
        many = all(isinstance(item, tuple | list | Mapping) for item in data)
        return data if many else [data]
    if isinstance(data, Tensor) or not isinstance(data, Iterable):
        raise LandscapeError(f"data is a {type(data).__name__}; possible are {FORMS}.")
    return data


def _refuse_random_items(dataset: Any) -> None:
    """Augmentation would make the risk another function at every pass."""
    if isinstance(dataset, IterableDataset | TensorDataset) or not hasattr(dataset, "__len__"):
        return
    size = len(dataset)
    for index in sorted({round(i * (size - 1) / 7) for i in range(8)} if size else ()):
        first, second = (pytree.tree_leaves(dataset[index]) for _ in range(2))
        if not all(_same(a, b) for a, b in zip(first, second, strict=True)):
            raise LandscapeError(
                f"{type(dataset).__name__}[{index}] differs from one reading to the next (random "
                f"augmentation?); give the data without augmentation, or one fixed draw of them."
            )


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return torch.equal(a, b) or bool(torch.isnan(a).any() if a.is_floating_point() else False)
    if isinstance(a, np.ndarray):
        return bool(np.array_equal(a, b))
    return bool(a == b)


def _split(
    given: Any, forward: Callable[..., Any], number: int
) -> tuple[tuple[Any, ...], dict[str, Any], Any]:
    """(args, kwargs, targets) of one batch as given."""
    if isinstance(given, Mapping):
        return _split_dict(dict(given), forward, number)
    if not isinstance(given, tuple | list) or len(given) != 2:
        found = f"{len(given)} parts" if isinstance(given, tuple | list) else type(given).__name__
        raise LandscapeError(
            f"Batch {number} has {found}; a batch is (inputs, targets) or a dict with the targets "
            f"under one of {', '.join(TARGET_KEYS)}."
        )
    inputs, targets = given
    if isinstance(inputs, Mapping):
        return (), dict(inputs), targets
    return (tuple(inputs) if isinstance(inputs, tuple | list) else (inputs,)), {}, targets


def _split_dict(
    given: dict[str, Any], forward: Callable[..., Any], number: int
) -> tuple[tuple[Any, ...], dict[str, Any], Any]:
    key = next((key for key in TARGET_KEYS if key in given), None)
    if key is None:
        raise LandscapeError(
            f"Batch {number} has the keys {', '.join(map(repr, given))}; the targets must be under "
            f"one of {', '.join(TARGET_KEYS)}."
        )
    targets = given.pop(key)
    parameters = signature(forward).parameters
    if any(p.kind is Parameter.VAR_KEYWORD for p in parameters.values()):
        return (), given, targets
    known = {name: value for name, value in given.items() if name in parameters}
    if known:
        return (), known, targets
    if len(given) == 1:
        return tuple(given.values()), {}, targets
    raise LandscapeError(
        f"Batch {number} has the inputs {', '.join(map(repr, given))}; the model's forward takes "
        f"{', '.join(parameters)}. Rename the keys, or give (inputs, targets)."
    )


def _tensor(leaf: Any, dtype: torch.dtype) -> Any:
    if isinstance(leaf, np.ndarray | np.generic | int | float | bool):
        leaf = torch.as_tensor(leaf)
    if not isinstance(leaf, Tensor):
        return leaf
    cast = dtype if leaf.is_floating_point() else leaf.dtype
    return leaf.detach().to(cast, copy=True)


def _count_rows(tree: Any, number: int) -> int:
    leaves = pytree.tree_leaves(tree)
    odd = [type(leaf).__name__ for leaf in leaves if not isinstance(leaf, Tensor)]
    if odd or not leaves:
        raise LandscapeError(
            f"Batch {number} holds {', '.join(odd) or 'nothing'}; inputs and targets must be "
            f"tensors or arrays whose first axis runs over examples."
        )
    sizes = sorted({leaf.shape[0] if leaf.ndim else -1 for leaf in leaves})
    if len(sizes) != 1 or sizes[0] < 0:
        raise LandscapeError(
            f"The tensors of batch {number} have shapes {[tuple(leaf.shape) for leaf in leaves]}; "
            f"their first axes must be equal, one row per example."
        )
    return sizes[0]


def _joined(chunks: list[Batch], num_examples: int) -> list[Batch]:
    """One table if all rows have one shape, else the batches as they came."""
    if len(chunks) == 1:
        return chunks
    flat = [pytree.tree_flatten(chunk.tree()) for chunk in chunks]
    alike = {
        (str(spec), tuple((leaf.shape[1:], leaf.dtype) for leaf in leaves)) for leaves, spec in flat
    }
    if len(alike) != 1:
        return chunks
    columns = [torch.cat(column) for column in zip(*(leaves for leaves, _ in flat), strict=True)]
    return [Batch(*pytree.tree_unflatten(columns, flat[0][1]), start=0, count=num_examples)]
