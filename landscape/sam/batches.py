"""The examples of a batch: how many it holds, and some of them, whatever its containers."""

import collections
import copy
import dataclasses
import numbers
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from landscape.errors import LandscapeError

Sizes = set[int] | None  # how many examples a part of a batch may hold; None: any, it is a constant
Path = tuple[Any, ...]
_LISTS = (list, tuple, collections.deque)
_ADVICE = (
    "give SAM(..., select=f) with f(batch, index) -> the examples of an index (a slice or a tensor "
    "of whole numbers) and f(batch, None) -> their number"
)


class BatchCutter:
    """Cuts batches: tensors and arrays along their first axis, containers part by part.

    Mappings, dataclasses and named tuples hold one part under each name. A list or tuple holds
    parts too, as (inputs, targets), or one entry per example: what the sizes of everything leave
    open is decided by an earlier batch, or refused. Texts, numbers, None and 0-d tensors are for
    all examples; a list of them has one per example. select: the caller's own way to cut.
    """

    def __init__(self, select: Callable[[Any, Any], Any] | None = None) -> None:
        self.own = select
        self._per_example: dict[Path, bool] = {}

    def size(self, batch: Any) -> int:
        """The number of examples."""
        if self.own is not None:
            return int(self.own(batch, None))
        sizes = _sizes(batch, ())
        if sizes is None or len(sizes) != 1:
            found = (
                "no tensor or list whose length" if sizes is None else f"{sorted(sizes)}, any of"
            )
            raise LandscapeError(
                f"a batch of type {type(batch).__name__} was to be cut into examples and has "
                f"{found} which could be their number; {_ADVICE}."
            )
        return next(iter(sizes))

    def select(self, batch: Any, index: slice | Tensor) -> Any:
        """The examples `index`, in the containers of the batch."""
        if self.own is not None:
            return self.own(batch, index)
        return self._select(batch, index, self.size(batch), ())

    def _select(self, part: Any, index: Any, size: int, path: Path) -> Any:
        named = _named(part)
        if named is not None:
            chosen = {k: self._select(v, index, size, (*path, k)) for k, v in named.items()}
            return _rebuilt(part, chosen)
        if isinstance(part, _LISTS):
            if self._is_per_example(part, size, path):
                return _entries(part, index)
            return type(part)(self._select(v, index, size, (*path, i)) for i, v in enumerate(part))
        if _sizes(part, path) is None:
            return part
        try:
            if isinstance(part, Tensor):
                return part[index.to(part.device) if isinstance(index, Tensor) else index]
            if hasattr(part, "ndim"):  # an array; one of pandas by position, whatever its labels
                rows = getattr(part, "iloc", part)
                return rows[index.cpu().numpy() if isinstance(index, Tensor) else index]
            return part[index]
        except (TypeError, ValueError, IndexError, KeyError, RuntimeError) as error:
            raise LandscapeError(
                f"{_place(path)} is a {type(part).__name__}, which cannot be cut into examples "
                f"({str(error)[:80]}); {_ADVICE}."
            ) from error

    def _is_per_example(self, part: Sequence[Any], size: int, path: Path) -> bool:
        inside = _fields(part, path)
        per_example = len(part) == size and (inside is None or size not in inside)
        as_parts = inside is not None and size in inside and (len(part) != size or not path)
        if not per_example and not as_parts and len(part):
            if path not in self._per_example:
                raise LandscapeError(
                    f"{_place(path)} is a {type(part).__name__} of {size}, whose "
                    f"entries have {size} rows themselves: it may hold {size} parts of all "
                    f"examples, or one entry for each; {_ADVICE}."
                )
            return self._per_example[path]
        self._per_example[path] = per_example
        return per_example


def _sizes(part: Any, path: Path) -> Sizes:
    """How many examples a part may hold."""
    if part is None or isinstance(part, (str, bytes, numbers.Number, torch.device, torch.dtype)):
        return None
    if isinstance(part, Tensor) or (hasattr(part, "ndim") and hasattr(part, "shape")):
        if not part.ndim:
            return None
        return {int(part.size(0) if isinstance(part, Tensor) else part.shape[0])}
    named = _named(part)
    if named is not None:
        found = {k: _sizes(v, (*path, k)) for k, v in named.items()}
        together = _common(found.values())
        if together is not None and not together:
            held = ", ".join(f"{k!r} {_said(s)}" for k, s in found.items() if s is not None)
            raise LandscapeError(
                f"the parts of {_place(path)} disagree in their number of examples: {held}; let "
                f"all have one entry per example, or {_ADVICE}."
            )
        return together
    if isinstance(part, _LISTS):
        inside = _fields(part, path)
        if inside is None:
            return {len(part)} if len(part) else None
        if not path and all(_named(v) is not None for v in part):
            # One mapping for each example, as a label beside each tells, or one for each view.
            return {len(part)} if any(map(_holds_numbers, part)) else inside | {len(part)}
        if path:
            return inside | {len(part)}
        return inside or _examples_or_refuse(part, path)
    if hasattr(part, "__len__") and hasattr(part, "__getitem__"):
        return {len(part)}
    raise LandscapeError(
        f"{_place(path)} is a {type(part).__name__}, which cannot be cut into examples; {_ADVICE}."
    )


def _holds_numbers(part: Any) -> bool:
    """Whether a mapping has numbers of its own beside tensors."""
    values = (_named(part) or {}).values()
    return any(isinstance(v, numbers.Number) or getattr(v, "ndim", 1) == 0 for v in values)


def _fields(part: Sequence[Any], path: Path) -> Sizes:
    """As parts of all examples: what their sizes allow; empty where they disagree."""
    try:
        return _common([_sizes(v, (*path, i)) for i, v in enumerate(part)])
    except LandscapeError:
        return set()


def _examples_or_refuse(part: Sequence[Any], path: Path) -> set[int]:
    """The whole batch is a list whose entries disagree: one example each, or a mistake."""
    if all(_named(v) is not None or isinstance(v, _LISTS) for v in part):
        return {len(part)}
    held = [_sizes(v, (*path, i)) for i, v in enumerate(part)]
    if isinstance(part, list) and all(s is not None for s in held) and len(part) > 2:
        return {len(part)}
    said = ", ".join(f"entry {i} {_said(s)}" for i, s in enumerate(held) if s is not None)
    raise LandscapeError(
        f"the parts of the batch disagree in their number of examples: {said}; let all have one "
        f"entry per example, or {_ADVICE}."
    )


def _common(sizes: Any) -> Sizes:
    """The sizes that all parts allow."""
    there = [s for s in sizes if s is not None]
    return set.intersection(*there) if there else None


def _named(part: Any) -> dict[Any, Any] | None:
    """The parts under their names, of a mapping, dataclass or named tuple."""
    if isinstance(part, Mapping):
        return {k: part[k] for k in part}
    if dataclasses.is_dataclass(part) and not isinstance(part, type):
        return {f.name: getattr(part, f.name) for f in dataclasses.fields(part)}
    if isinstance(part, tuple) and hasattr(part, "_fields"):
        return dict(zip(part._fields, part, strict=True))
    return None


def _rebuilt(part: Any, chosen: dict[Any, Any]) -> Any:
    """The same container with other contents."""
    if isinstance(part, tuple):
        return type(part)(**chosen)
    if not isinstance(part, Mapping):  # a dataclass, whose own fields may not be arguments of it
        new = copy.copy(part)
        for k, v in chosen.items():
            object.__setattr__(new, k, v)
        return new
    try:
        new = copy.copy(part)
        for k, v in chosen.items():
            new[k] = v
    except TypeError:  # a mapping that cannot be written to
        return chosen
    return new


def _entries(part: Any, index: slice | Tensor) -> Any:
    which = range(len(part))[index] if isinstance(index, slice) else index.tolist()
    return type(part)(part[i] for i in which)


def _said(sizes: Sizes) -> str:
    return " or ".join(map(str, sorted(sizes))) if sizes else "(its own parts disagree)"


def _place(path: Path) -> str:
    inside = "".join(f"[{k!r}]" for k in path)
    return f"the part {inside} of the batch" if path else "the batch"


def check_lasts(batch: Any) -> None:
    """Refuse what the first pass uses up."""
    if isinstance(batch, Iterator):
        raise LandscapeError(
            f"the batch is a {type(batch).__name__}, an iterator, of which the second pass would "
            "see other examples than the first, or none; give what it yields: next(batch), or "
            "list(batch)."
        )


def check_one_each(values: Tensor, size: int) -> None:
    """Where a batch is cut or ranked, one loss belongs to one example."""
    if len(values) != size:
        raise LandscapeError(
            f"losses(batch) returned {len(values)} losses for {size} examples, and here they are "
            "cut or ranked by example; let it return one per example, shape (B,), such as the mean "
            "over the tokens of each."
        )


def part_of(batch: Any, where: int | str, option: str, what: str) -> Tensor:
    """The whole numbers at `where` in a batch, which the option `option` of a variant names."""
    try:
        found = None if isinstance(batch, Tensor) else batch[where]
    except (IndexError, KeyError, TypeError):
        found = None
    if isinstance(found, Tensor) and not found.is_floating_point():
        return found
    has = f"keys {list(batch)}" if isinstance(batch, Mapping) else f"{_kind(batch)}"
    raise LandscapeError(
        f"{option}={where!r} says where {what} are in a batch, as a tensor of whole numbers, and "
        f"this batch is {has}; put them there or change {option}."
    )


def _kind(batch: Any) -> str:
    many = isinstance(batch, (tuple, list))
    return f"a {type(batch).__name__} of {len(batch)}" if many else f"a {type(batch).__name__}"
