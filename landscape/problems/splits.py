"""What every kind of data becomes: splits of tensors in memory."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from landscape.errors import LandscapeError
from landscape.risk import IGNORED, columns, sha256_of

_PARTS = ("train", "val", "test")


@dataclass(frozen=True)
class Split:
    """Inputs x (n, ...), targets y (n,) as seen, and y_clean, the same without label noise."""

    x: Tensor
    y: Tensor
    y_clean: Tensor

    def __len__(self) -> int:
        return len(self.x)

    def __repr__(self) -> str:
        return f"Split({len(self):,} rows; x {tuple(self.x.shape)}, y {tuple(self.y.shape)})"

    @property
    def wrong(self) -> Tensor:
        """Which labels are noise, bool (n,)."""
        wrong = self.y != self.y_clean
        return wrong if wrong.ndim == 1 else wrong.flatten(1).any(1)

    def to(self, device: torch.device | str) -> "Split":
        """The same split on a device."""
        return Split(self.x.to(device), self.y.to(device), self.y_clean.to(device))


@dataclass(frozen=True)
class DataSplits:
    """Train, validation and test data of one problem; `provenance` is JSON-able.

    val and test may be None. num_classes: classes of integer targets, columns of others.
    """

    train: Split
    val: Split | None
    test: Split | None
    num_classes: int
    name: str
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        sizes = ", ".join(
            f"{part} {len(split):,}"
            for part in _PARTS
            if (split := getattr(self, part)) is not None
        )
        shape = " × ".join(map(str, self.input_shape)) or "scalar"
        return f"DataSplits({self.name!r}: {sizes}; inputs {shape}, {self.num_classes} classes)"

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one example."""
        return tuple(self.train.x.shape[1:])

    @cached_property
    def sha256(self) -> dict[str, str]:
        """SHA-256 of the tensors of each part that is there, hashed once."""
        held = {name: getattr(self, name) for name in _PARTS}
        return {k: sha256_of((v.x, v.y, v.y_clean)) for k, v in held.items() if v is not None}

    def to(self, device: torch.device | str) -> "DataSplits":
        """The same data on a device."""
        held = {name: getattr(self, name) for name in _PARTS}
        return replace(self, **{k: v.to(device) for k, v in held.items() if v is not None})


def as_splits(value: Any, *, name: str) -> DataSplits:
    """Your own data as DataSplits.

    value: a DataSplits; or a dict with "train" and perhaps "val" and "test", or a tuple (train,
    test) or (train, val, test), of parts; a part is a Split, a pair (x, y) or triple (x, y,
    y_clean) of arrays, or a DataLoader or Dataset of such examples, read once. Integer targets are
    class numbers from 0; -100 is ignored.
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


def _classes(parts: list[Split]) -> int:
    y = parts[0].y
    if y.is_floating_point():
        return y.shape[1] if y.ndim > 1 else 1
    return 1 + max(int(max(part.y.max(), part.y_clean.max())) for part in parts)


def _split(name: str, part: Any) -> Split:
    if isinstance(part, Split):
        return part
    if isinstance(part, DataLoader) or (
        not isinstance(part, (tuple, list)) and hasattr(part, "__getitem__")
    ):
        part = columns(part, name)
    try:
        x, y, *clean = (torch.as_tensor(value) for value in part)
        clean = clean[0] if clean else y
    except (TypeError, ValueError, RuntimeError):
        raise LandscapeError(
            f"{name} is {type(part).__name__}, neither a pair (x, y) of arrays nor a dataset of "
            f"such examples."
        ) from None
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
    return Split(x, y, clean.clone())
