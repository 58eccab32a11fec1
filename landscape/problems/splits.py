"""What every kind of data becomes: splits of tensors in memory."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from landscape.errors import LandscapeError
from landscape.problems.batches import Batches, outline
from landscape.risk import IGNORED, Examples, gathered, sha256_of, targets_of

_PARTS = ("train", "val", "test")


@dataclass(frozen=True)
class Split:
    """Inputs x (n, ...), targets y (n,) as seen, and y_clean, the same without label noise.

    keys: of inputs and targets where batches are dicts.

    Example:
        >>> x, y = data
        >>> part = problems.Split(x, y, y_clean=torch.arange(48) % 3)
        >>> int((part.y != part.y_clean).sum())
        6
    """

    x: Tensor
    y: Tensor
    y_clean: Tensor
    keys: tuple[str, str] | None = None

    def __len__(self) -> int:
        return len(self.x)

    def __repr__(self) -> str:
        return f"Split({len(self):,} rows; x {tuple(self.x.shape)}, y {tuple(self.y.shape)})"

    @property
    def wrong(self) -> Tensor:
        """Which labels are noise, bool (n,)."""
        wrong = self.y != self.y_clean
        return wrong if wrong.ndim == 1 else wrong.flatten(1).any(1)

    def mapped(self, function: Callable[[Tensor], Tensor]) -> "Split":
        """The same with a function of every tensor."""
        made = map(function, (self.x, self.y, self.y_clean))
        return Split(*made, keys=self.keys)

    def to(self, device: torch.device | str) -> "Split":
        """The same split on a device."""
        return self.mapped(lambda leaf: leaf.to(device))

    @property
    def data(self) -> Any:
        """All of it, as a risk takes it."""
        return self.given(self.x, self.y)

    def given(self, x: Tensor, y: Tensor) -> Any:
        """A batch in the form that it was given in."""
        return (x, y) if self.keys is None else dict(zip(self.keys, (x, y), strict=True))

    @property
    def num_rows(self) -> int:
        """Examples as a risk counts them."""
        return len(self.x)

    def some(self, count: int, *, seed: int) -> "Split":
        """`count` rows to be measured, with the classes in proportion."""
        rows = stratified(self.y, count, seed=seed)
        return self.mapped(lambda leaf: leaf[rows])

    @property
    def sha256(self) -> str:
        """SHA-256 of the tensors."""
        return sha256_of((self.x, self.y, self.y_clean))


@dataclass(frozen=True)
class DataSplits:
    """Train, validation and test data of one problem; `provenance` is JSON-able.

    val and test may be None. num_classes: classes of integer targets, columns of others, 0 where
    targets are not known.
    train, val, test: a `Split` each.

    Example:
        >>> splits = problems.as_splits(make_splits(), name="mine")
        >>> splits.num_classes, len(splits.train.x), len(splits.test.x)
        (3, 48, 24)
    """

    train: Split | Batches
    val: Split | Batches | None
    test: Split | Batches | None
    num_classes: int
    name: str
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        sizes = ", ".join(
            f"{part} {len(split):,}"
            for part in _PARTS
            if (split := getattr(self, part)) is not None
        )
        return f"DataSplits({self.name!r}: {sizes}; {self._inputs()}, {self.num_classes} classes)"

    def _inputs(self) -> str:
        if isinstance(self.train, Batches):
            return f"batches of {outline(self.train.data[0])}"
        return f"inputs {' × '.join(map(str, self.input_shape)) or 'scalar'}"

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one example; () where a batch is more than one input and its targets."""
        return () if isinstance(self.train, Batches) else tuple(self.train.x.shape[1:])

    @cached_property
    def sha256(self) -> dict[str, str]:
        """SHA-256 of the tensors of each part that is there, hashed once."""
        held = {name: getattr(self, name) for name in _PARTS}
        return {k: v.sha256 for k, v in held.items() if v is not None}

    def mapped(self, function: Callable[[Tensor], Tensor]) -> "DataSplits":
        """The same with a function of every tensor."""
        held = {name: getattr(self, name) for name in _PARTS}
        return replace(self, **{k: v.mapped(function) for k, v in held.items() if v is not None})

    def to(self, device: torch.device | str) -> "DataSplits":
        """The same data on a device."""
        return self.mapped(lambda leaf: leaf.to(device))


def as_splits(value: Any, *, name: str) -> DataSplits:
    """Your own data as DataSplits.

    value: a DataSplits; or a dict with "train" and perhaps "val" and "test", or a tuple (train,
    test) or (train, val, test), of parts; a part is a Split, a pair (x, y) or triple (x, y,
    y_clean) of arrays, or a DataLoader or Dataset of such examples, read once. Integer targets are
    class numbers from 0; -100 is ignored. Anything else that `EmpiricalRisk` takes is a part too
    (`Batches`): ((x1, x2), y), a dict with targets or without, objects, lists of such batches, and
    loaders and datasets of them.

    Example:
        >>> splits = problems.as_splits({"train": data, "test": make_data(24, 2)}, name="mine")
        >>> splits.val is None, tuple(splits.train.x.shape)
        (True, (48, 4))
    """
    if isinstance(value, DataSplits):
        return value
    if isinstance(value, Mapping) and "train" in value:
        unknown = [str(k) for k in value if k not in _PARTS]
        if unknown:
            raise LandscapeError(
                f"{name} has parts {', '.join(unknown)}; possible: train, val, test."
            )
        held = [value.get(part) for part in _PARTS]
    elif isinstance(value, (tuple, list)) and len(value) in (2, 3):
        held = [value[0], None, value[1]] if len(value) == 2 else list(value)
    else:
        raise LandscapeError(
            f"{name} returned {type(value).__name__}; return a DataSplits, a dict of train, val "
            f"and test, or (train, test) or (train, val, test), each a pair (x, y) or a dataset."
        )
    parts = train, val, test = [
        None if part is None else _split(f"{name} ({title})", part)
        for title, part in zip(_PARTS, held, strict=True)
    ]
    if train is None:
        raise LandscapeError(f"{name} has no training data; its first part is None.")
    known = [part for part in parts if part is not None]
    said = {
        "data": name,
        "splits": [0 if part is None else len(part) for part in parts],
        "wrong_labels": [0 if part is None else int(part.wrong.sum()) for part in parts],
    }
    return DataSplits(train, val, test, _classes(known), name, said)


def _classes(parts: list[Split | Batches]) -> int:
    y = parts[0].y
    if y is None:
        return 0
    if y.is_floating_point():
        return y.shape[1] if y.ndim > 1 else 1
    known = [each for part in parts for each in (part.y, part.y_clean) if each is not None]
    return 1 + max(int(each.max()) for each in known)


def _split(name: str, part: Any) -> Split | Batches:
    if isinstance(part, Split | Batches):
        return part
    try:
        arrays = _arrays(part)
        if arrays is not None:
            return _table(name, arrays)
        examples = gathered(part)
        if not any(True for _ in examples.leaves()):
            raise LandscapeError(
                f"It is {type(part).__name__} without a tensor; return a DataSplits, or train and "
                f"test each as a pair (x, y) of arrays, a dataset, or batches of such examples."
            )
        columns = _columns(examples)
        return Batches.of(examples) if columns is None else _table(name, *columns)
    except LandscapeError as error:
        raise LandscapeError(f"{name}: {str(error).removeprefix(f'{name}: ')}") from error


def _columns(examples: Examples) -> tuple[list[Tensor], tuple[str, str] | None] | None:
    """Inputs, targets and perhaps clean targets as one tensor each, and the keys of a dict of two.

    None where the batches are made otherwise.
    """
    if not examples.apart or len(examples.chunks) != 1:
        return None
    batch = examples.chunks[0].targets
    parts = list(batch.values()) if isinstance(batch, dict) else batch
    if not isinstance(parts, tuple | list) or len(parts) not in (2, 3):
        return None
    if not all(isinstance(each, Tensor) for each in parts):
        return None
    if not isinstance(batch, dict):
        return list(parts), None
    inputs, targets = targets_of(batch)
    if len(inputs) != 1 or targets is None:
        return None
    name = next(iter(inputs))
    key = next(key for key in batch if key != name)
    return [inputs[name], targets], (name, key)


def _arrays(part: Any) -> list[Tensor] | None:
    """(x, y) or (x, y, y_clean) of arrays as tensors; None where it is something else."""
    if not isinstance(part, tuple | list) or len(part) not in (2, 3):
        return None
    if any(isinstance(each, Mapping | str) or not hasattr(each, "__len__") for each in part):
        return None
    try:
        made = [torch.as_tensor(each) for each in part]
    except (TypeError, ValueError, RuntimeError):
        return None
    return made if all(each.ndim for each in made) else None


def _table(name: str, given: list[Tensor], keys: tuple[str, str] | None = None) -> Split:
    x, y, clean = (*given, given[1])[:3]
    if len(x) != len(y) or len(y) != len(clean) or len(x) == 0:
        raise LandscapeError(
            f"{name} has {len(x)} inputs and {len(y)} targets; give as many of each, and some."
        )
    if not y.is_floating_point():
        y, clean = y.long(), clean.long()
        negative = y[(y < 0) & (y != IGNORED)]
        if len(negative):
            raise LandscapeError(
                f"{name} has label {int(negative.min())}; classes are counted from 0, and only "
                f"{IGNORED} is ignored."
            )
    if x.dtype in (torch.uint8, torch.bool):  # pixels; larger integers are tokens
        x = x.float()
    return Split(x, y, clean.clone(), keys)


def stratified(y: Tensor, count: int, *, seed: int) -> Tensor:
    """Rows of `count` examples with the classes in proportion (largest remainders), in data order.

    Targets that are not classes are drawn uniformly. All rows when count >= N.
    """
    total = len(y)
    if count >= total:
        return torch.arange(total)
    order = torch.randperm(total, generator=torch.Generator().manual_seed(seed))
    if y.is_floating_point() or y.ndim != 1:
        return order[:count].sort().values
    classes, sizes = torch.unique(y, return_counts=True)
    exact = sizes.double() * count / total
    take = exact.floor().long()
    rest = (exact - take).argsort(descending=True, stable=True)[: count - int(take.sum())]
    take[rest] += 1
    shuffled = y[order]
    rows = [order[shuffled == c][:n] for c, n in zip(classes, take.tolist(), strict=True)]
    return torch.cat(rows).sort().values
