"""Data of any form as rows: one table where the batches fit together, a list of them where not."""

import contextlib
import copy
import functools
import hashlib
import random
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from landscape import devices
from landscape.errors import LandscapeError
from landscape.risk._reading import FORMS, Form, read
from landscape.risk._sparse import bytes_of, content_of, is_sparse

_TOKENS = 2**12  # of all rows that are tried at once


@dataclass(frozen=True)
class Batch:
    """Rows start..start+count of the data: model(*args, **kwargs) against targets.

    Where the loss is a function of (model, batch), targets are the batch as it was given.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    targets: Any
    start: int
    count: int

    def tree(self) -> tuple[Any, ...]:
        return self.args, self.kwargs, self.targets

    def leaves(self) -> list[Tensor]:
        found: list[Tensor] = []

        def keep(leaf: Tensor) -> Tensor:
            found.append(leaf)
            return leaf

        self.mapped(keep)
        return found

    def rows(self, start: int, count: int) -> "Batch":
        return self.mapped(lambda leaf: leaf[start : start + count], self.start + start, count)

    def mapped(
        self,
        function: Callable[[Tensor], Tensor],
        start: int | None = None,
        count: int | None = None,
    ) -> "Batch":
        args, kwargs, targets = pytree.tree_map(functools.partial(_of_leaf, function), self.tree())
        start = self.start if start is None else start
        return Batch(args, kwargs, targets, start, self.count if count is None else count)


def _of_leaf(function: Callable[[Tensor], Tensor], leaf: Any) -> Any:
    """The function of a tensor, or of all tensors of an object: by its `apply`, as graphs have one.

    Else of its attributes (dataclasses, namespaces, batch classes of the user's).
    """
    if isinstance(leaf, Tensor):
        return function(leaf)
    own = getattr(leaf, "__dict__", None)
    if not own or isinstance(leaf, type | nn.Module):
        return leaf
    made = copy.copy(leaf)
    if callable(getattr(made, "apply", None)):
        return made.apply(function)
    inner = functools.partial(_of_leaf, function)
    for key, value in own.items():
        object.__setattr__(made, key, pytree.tree_map(inner, value))
    return made


@dataclass
class Examples:
    """All rows, on the device when they fit; `cut` gives views of at most `size` rows.

    apart: whether rows may be taken apart; if not, the batches of `units` rows are what can be
    evaluated. weights: what each row adds to the denominator of the mean, (N,) in float64, or None
    where only a pass can tell. chosen: (rows given, rows of the dataset) where a loader leaves some
    out.
    """

    chunks: list[Batch]
    num_examples: int
    device: torch.device
    resident: bool
    units: tuple[int, ...] = ()
    apart: bool = True
    given: bool = True
    weights: Tensor | None = None
    chosen: tuple[int, int] | None = None
    _cuts: dict[int, list[Batch]] = field(default_factory=dict)

    @functools.cached_property
    def row_bytes(self) -> int:
        total = sum(bytes_of(leaf) for chunk in self.chunks for leaf in chunk.leaves())
        return max(1, total // self.num_examples)

    @functools.cached_property
    def num_tokens(self) -> int:
        """The longest row of indices that goes into the model, 1 where there is none."""
        inputs = [leaf for chunk in self.chunks for leaf in _inputs_of(chunk) if len(leaf)]
        indices = [leaf for leaf in inputs if leaf.dtype in (torch.int32, torch.int64)]
        return max([1, *(leaf[0].numel() for leaf in indices)])

    def most_to_try(self, count: int) -> int:
        """At most `count` rows, and few of long sequences: each token costs a layer's width."""
        return min(count, max(2, _TOKENS // self.num_tokens))

    def leaves(self) -> Iterator[Tensor]:
        """All tensors: inputs and targets, table by table."""
        for chunk in self.chunks:
            yield from chunk.leaves()

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
        return replace(self, chunks=chunks, _cuts={})

    def take(self, rows: Tensor) -> "Examples":
        """These rows (indices, any order) as examples of their own; whole units if not apart."""
        if not self.apart:
            return self._of_units(self.whole_units(rows))
        chunks, start, weights = [], 0, []
        for chunk in self.chunks:
            here = rows[(rows >= chunk.start) & (rows < chunk.start + chunk.count)] - chunk.start
            if len(here):
                part = chunk.mapped(lambda leaf, here=here: leaf[here.to(leaf.device)])
                chunks.append(replace(part, start=start, count=len(here)))
                weights.append(here + chunk.start)
                start += len(here)
        own = None if self.weights is None else self.weights[torch.cat(weights)]
        units = tuple(chunk.count for chunk in chunks)
        return replace(self, chunks=chunks, num_examples=start, units=units, weights=own, _cuts={})

    def as_units(self) -> "Examples":
        """The same, whose batches as given are not taken apart."""
        return replace(self, apart=False, _cuts={})

    def whole_units(self, rows: Tensor) -> list[Batch]:
        """The units that are made of these rows, in order; refused if a unit would be cut."""
        wanted = rows.sort().values.tolist()
        units = [unit for unit in self.cut(0) if unit.start in set(wanted)]
        if wanted != [row for unit in units for row in range(unit.start, unit.start + unit.count)]:
            sizes = sorted(set(self.units))
            raise LandscapeError(
                f"{len(wanted)} of {self.num_examples} examples asked, but the loss couples the "
                f"examples of a batch, so only whole batches can be taken: {len(self.units)} of "
                f"{', '.join(map(str, sizes[:5]))} examples. Use a measurement of all examples, "
                f"or a loss whose rows do not depend on each other."
            )
        return units

    def _of_units(self, units: list[Batch]) -> "Examples":
        start, chunks = 0, []
        for unit in units:
            chunks.append(replace(unit, start=start))
            start += unit.count
        rows = [torch.arange(unit.start, unit.start + unit.count) for unit in units]
        weights = None if self.weights is None else self.weights[torch.cat(rows)]
        return replace(
            self, chunks=chunks, num_examples=start, units=tuple(u.count for u in units),
            weights=weights, _cuts={},
        )  # fmt: skip

    def cut(self, size: int) -> list[Batch]:
        """Views of at most `size` rows, or the units; put each `on_device` before use."""
        size = size if self.apart else 0
        if size not in self._cuts:
            self._cuts[size] = self._pieces(size) if self.apart else self._units()
        return self._cuts[size]

    def _pieces(self, size: int) -> list[Batch]:
        return [
            chunk if size >= chunk.count else chunk.rows(at, min(size, chunk.count - at))
            for chunk in self.chunks
            for at in range(0, chunk.count, size)
        ]

    def _units(self) -> list[Batch]:
        found, sizes = [], iter(self.units)
        for chunk in self.chunks:
            at = 0
            while at < chunk.count:
                count = next(sizes)
                found.append(chunk if count == chunk.count else chunk.rows(at, count))
                at += count
        return found

    def few(self, count: int) -> Batch:
        """At most `count` rows of the largest table, spread over it; the smallest unit if whole."""
        if not self.apart:
            return min(self.cut(0), key=lambda unit: unit.count)
        chunk = max(self.chunks, key=lambda chunk: chunk.count)
        return spread_rows(chunk, self.most_to_try(count))


def _inputs_of(chunk: Batch) -> list[Tensor]:
    leaves = pytree.tree_leaves((chunk.args, chunk.kwargs))
    return [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.ndim > 1]


def spread_rows(chunk: Batch, count: int) -> Batch:
    """At most `count` rows of a batch, evenly spread from its first to its last."""
    if chunk.count <= count:
        return chunk
    rows = torch.linspace(0, chunk.count - 1, count).round().long()
    return chunk.mapped(lambda leaf: leaf[rows.to(leaf.device)], chunk.start, count)


def collect(
    data: Any,
    forward: Callable[..., Any],
    *,
    device: torch.device,
    dtype: torch.dtype | None,
    form: Form = "outputs",
    whole_batches: bool = False,
    distributed: bool = False,
) -> Examples:
    """Read `data` once, copy it, and give every row its place; RNG states are left as they were.

    whole_batches: batches need not be made of rows. distributed: other processes have the rest.
    """
    with kept_rng(data):
        given = read(data, forward, form, distributed=distributed)
    chunks, start, rows = [], 0, True
    for number, tree in enumerate(given.parts):
        tree = pytree.tree_map(functools.partial(_tensor, dtype=dtype, objects=whole_batches), tree)
        count, made_of_rows = _count_rows(tree, number, whole_batches)
        rows &= made_of_rows
        if count:
            chunks.append(Batch(*tree, start=start, count=count))
            start += count
    if start == 0:
        raise LandscapeError(
            f"The data are empty ({len(given.parts)} batches, 0 examples); a risk needs at least "
            f"one example. Give {FORMS}."
        )
    units = tuple(chunk.count for chunk in chunks)
    chunks = _joined(chunks, start) if rows else chunks
    size = sum(bytes_of(leaf) for chunk in chunks for leaf in chunk.leaves())
    free = devices.free_memory(device)
    resident = free is None or size <= free // 2
    if resident:
        chunks = [chunk.mapped(lambda leaf: leaf.to(device)) for chunk in chunks]
    return Examples(
        chunks, start, device, resident, units, apart=rows, given=given.own, chosen=given.chosen
    )


def gathered(data: Any) -> Examples:
    """Data of any form, read once and copied: the batches as they were given are the `targets`.

    Rows of one table where they fit one, in their own dtypes, on the CPU. Raises LandscapeError for
    data that are no fixed set, or cannot be read.
    """
    return collect(
        data, gathered, device=torch.device("cpu"), dtype=None, form="batch", whole_batches=True
    )


@contextlib.contextmanager
def kept_rng(data: Any = None) -> Generator[None]:
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
    places = [torch.device("cpu"), *devices.in_use()]
    drawn = [devices.rng_state(place) for place in places]
    python, legacy = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        yield
    finally:
        for place, state in zip(places, drawn, strict=True):
            devices.set_rng_state(state, place)
        random.setstate(python)
        np.random.set_state(legacy)  # noqa: NPY002
        for generator, state in zip(own, states, strict=True):
            generator.set_state(state)


def _tensor(leaf: Any, *, dtype: torch.dtype | None, objects: bool) -> Any:
    if isinstance(leaf, np.ndarray | np.generic) and leaf.dtype.kind in "biufc":
        leaf = torch.as_tensor(leaf)
    if isinstance(leaf, int | float | bool) and not objects:
        leaf = torch.as_tensor(leaf)
    cast = functools.partial(_own, dtype=dtype)
    return cast(leaf) if isinstance(leaf, Tensor) else _of_leaf(cast, leaf) if objects else leaf


def _own(leaf: Tensor, dtype: torch.dtype | None) -> Tensor:
    return leaf.detach().to((leaf.is_floating_point() and dtype) or leaf.dtype, copy=True)


def _count_rows(tree: Any, number: int, whole: bool) -> tuple[int, bool]:
    """Rows of a batch, and whether all of it is made of them.

    A batch that is not (one graph, packed sequences) has as many as it has targets, or is one.
    """
    leaves = pytree.tree_leaves(tree)
    if any(isinstance(leaf, Tensor) and leaf.is_nested for leaf in leaves):
        raise LandscapeError(
            f"Batch {number} holds a nested tensor, which has no shape; pad it to one: "
            f"torch.nested.to_padded_tensor(x, padding)."
        )
    odd = [type(leaf).__name__ for leaf in leaves if not isinstance(leaf, Tensor)]
    if (odd and not whole) or not leaves:
        images = any("Image" in name for name in odd)
        cure = " A transform such as torchvision's ToTensor makes tensors of images." * images
        raise LandscapeError(
            f"Batch {number} holds {', '.join(odd[:8]) or 'nothing'}; inputs and targets must be "
            f"tensors or arrays whose first axis runs over examples.{cure}"
        )
    sizes = {_rows_of(tensor) for leaf in leaves for tensor in _tensors_of(leaf) or [None]}
    if len(sizes) == 1 and min(sizes) >= 0:
        return sizes.pop(), True
    if whole:
        target = tree[2]
        rows = isinstance(target, Tensor) and target.ndim and len(tree[0]) + len(tree[1])
        return (len(target) if rows else 1), False
    if any(leaf.ndim == 0 for leaf in leaves):
        raise LandscapeError(
            f"Batch {number} has tensors of shapes {[tuple(leaf.shape) for leaf in leaves][:8]}; "
            f"numbers and single examples are no rows. Give tensors or arrays "
            f"(torch.as_tensor of lists), and single examples through a loader: "
            f"DataLoader(examples, batch_size=32)."
        )
    sparse = next((leaf for leaf in leaves if is_sparse(leaf)), None)
    if sparse is not None:
        raise LandscapeError(
            f"Batch {number} holds a sparse tensor of shape {tuple(sparse.shape)} "
            f"({str(sparse.layout).removeprefix('torch.')}), of which no rows can be taken. Where "
            f"it belongs to the whole batch (a graph), declare reduction='whole'; where its rows "
            f"are examples, give to_dense() of it."
        )
    shapes = [tuple(leaf.shape) for leaf in leaves]
    more = f" and {len(shapes) - 8} more" if len(shapes) > 8 else ""
    raise LandscapeError(
        f"The tensors of batch {number} have shapes {shapes[:8]}{more}; "
        f"their first axes must be equal, one row per example. Where a batch is one graph or "
        f"packed sequences and is not made of rows, declare reduction='mean'; pad lists of unequal "
        f"length to one tensor, as a DataLoader's collate_fn does."
    )


def _tensors_of(leaf: Any) -> list[Tensor]:
    """The tensor itself, or those that an object holds."""
    found: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    _of_leaf(keep, leaf)
    return found


def _rows_of(tensor: Tensor | None) -> int:
    """Its first axis; -1 where there are no rows."""
    return -1 if tensor is None or not tensor.ndim or is_sparse(tensor) else tensor.shape[0]


def _joined(chunks: list[Batch], num_examples: int) -> list[Batch]:
    """One table if all rows are tensors of one shape, else the batches as they came."""
    if len(chunks) == 1:
        return chunks
    flat = [pytree.tree_flatten(chunk.tree()) for chunk in chunks]
    if not all(isinstance(leaf, Tensor) for leaves, _ in flat for leaf in leaves):
        return chunks  # objects of the user's
    alike = {
        (str(spec), tuple((leaf.shape[1:], leaf.dtype) for leaf in leaves)) for leaves, spec in flat
    }
    if len(alike) != 1:
        return chunks
    columns = [torch.cat(column) for column in zip(*(leaves for leaves, _ in flat), strict=True)]
    return [Batch(*pytree.tree_unflatten(columns, flat[0][1]), start=0, count=num_examples)]


def sha256_of(tensors: Iterable[Tensor], names: str = "") -> str:
    """SHA-256 of the bytes, dtypes and shapes of tensors.

    names: hashed too, where tensors of other names shall count as others.

    Example:
        >>> from landscape.risk import sha256_of
        >>> a, b = sha256_of([torch.zeros(3)]), sha256_of([torch.ones(3)])
        >>> len(a), a == b
        (64, False)
    """
    digest = hashlib.sha256(names.encode())
    for leaf in tensors:
        digest.update(f"{leaf.dtype}{tuple(leaf.shape)}".encode())
        for content in content_of(leaf):
            digest.update(content)
    return digest.hexdigest()
