"""What a loss keeps from one call to the next: put back, so that a loss is a function."""

import contextlib
import functools
from collections.abc import Generator
from inspect import getattr_static
from types import CellType, FunctionType, MethodType
from typing import Any

from torch import Tensor, nn

from landscape.risk._sparse import equal
from landscape.risk._state import alike, contents_of, refill

_CONTAINERS = (list, dict, set)
_NUMBERS = (int, float)
_SMALL = 2**16
_MISSING = object()
_CALL = "__call__"

# (which of the namespaces, name within it), and (value, what it held)
_Slot = tuple[int, str]
_Held = tuple[Any, Any]


class Memory:
    """Attributes and buffers of a loss, what its function closes over, numbers that it reads.

    A count of calls, a weight that changes with it, a running mean: what the first calls changed is
    within every later call as it was before them, and after it as it was found, since the
    caller may go on training with the same loss. Containers are followed one level deep.
    """

    def __init__(self, loss: Any) -> None:
        self._spaces = _namespaces(loss)
        self._first = self._all()
        self._slots: set[_Slot] = set()

    def watch(self) -> None:
        """Take note of what calls have changed so far, and undo it."""
        now = self._all()
        self._slots |= {
            slot for slot in now.keys() | self._first.keys()
            if not _same(now.get(slot, (_MISSING, None)), self._first.get(slot, (_MISSING, None)))
        }  # fmt: skip
        self._put(self._first)

    @contextlib.contextmanager
    def first(self) -> Generator[None]:
        """Within it everything is as before the first call."""
        if not self._slots:
            yield
            return
        now = self._all()
        self._put(self._first)
        try:
            yield
        finally:
            self._put(now)

    def of(self, loss: Any) -> "Memory":
        """That of a copy of the loss."""
        other = Memory(loss)
        other._slots = set(self._slots)
        return other

    @property
    def names(self) -> list[str]:
        """What calls change."""
        return sorted({name for _, name in self._slots})

    def _all(self) -> dict[_Slot, _Held]:
        return {
            (number, name): (value, _content(value))
            for number, (space, names) in enumerate(self._spaces)
            for name, value in _items(space, names)
        }

    def _put(self, held: dict[_Slot, _Held]) -> None:
        for slot in self._slots:
            space, _ = self._spaces[slot[0]]
            value, content = held.get(slot, (_MISSING, None))
            _write(space, slot[1], value)
            if isinstance(value, _CONTAINERS):
                refill(value, content)
            elif isinstance(value, Tensor) and not equal(value.detach(), content):
                value.data.copy_(content)


def _namespaces(loss: Any) -> list[tuple[Any, tuple[str, ...] | None]]:
    """Dictionaries and cells with the names in them that count; None: all."""
    found: list[tuple[Any, tuple[str, ...] | None]] = []
    call: Any = loss
    if isinstance(loss, functools.partial):
        return _namespaces(loss.func)
    if isinstance(loss, MethodType):
        call, owner = loss.__func__, loss.__self__
        # A module whose method it is is the model, often, and of that others take care.
        found += [] if isinstance(owner, nn.Module | type) else _attributes(owner)
    elif isinstance(loss, nn.Module):
        call = type(loss).forward
        for module in loss.modules():
            found += [*_attributes(module), (module._buffers, None)]
    elif not isinstance(loss, type):
        call = loss if isinstance(loss, FunctionType) else getattr_static(type(loss), _CALL, None)
        found += _attributes(loss)
    if isinstance(call, FunctionType):
        found += [(cell, (name,)) for name, cell in
                  zip(call.__code__.co_freevars, call.__closure__ or (), strict=True)]  # fmt: skip
        found.append((call.__globals__, call.__code__.co_names))
    return found


def _attributes(owner: Any) -> list[tuple[Any, tuple[str, ...] | None]]:
    return [(owner.__dict__, None)] if isinstance(getattr(owner, "__dict__", None), dict) else []


def _items(space: Any, names: tuple[str, ...] | None) -> list[tuple[str, Any]]:
    """Of functions' names the numbers and containers alone."""
    if names is None:
        return list(space.items())
    read = [(name, _read(space, name)) for name in names]
    return [(name, value) for name, value in read if isinstance(value, _NUMBERS + _CONTAINERS)]


def _read(space: Any, name: str) -> Any:
    if not isinstance(space, CellType):
        return space.get(name)
    try:
        return space.cell_contents
    except ValueError:  # not filled
        return None


def _write(space: Any, name: str, value: Any) -> None:
    if isinstance(space, CellType):
        space.cell_contents = value
    elif value is _MISSING:
        space.pop(name, None)
    else:
        space[name] = value


def _content(value: Any) -> Any:
    if isinstance(value, _CONTAINERS):
        return contents_of(value)
    small = isinstance(value, Tensor) and value.numel() <= _SMALL and not value.is_meta
    return value.detach().clone() if small else value


def _same(a: _Held, b: _Held) -> bool:
    if a[0] is not b[0]:
        return isinstance(a[0], _NUMBERS) and type(a[0]) is type(b[0]) and a[0] == b[0]
    if isinstance(a[0], _CONTAINERS):
        return alike(a[1], b[1])
    return a[1] is b[1] or not isinstance(a[0], Tensor) or equal(a[1], b[1])
