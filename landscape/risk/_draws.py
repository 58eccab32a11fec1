"""Whether an item of the data is the same at every reading: it is read under chosen random numbers.

Two readings that agree tell little of an augmentation that seldom acts. What an item draws is seen
in the states of the generators that it can reach; an item that draws is read again where the next
draws are the least and the largest that there are (`random() < p` is then true for every p > 0, and
false for every p < 1), and from other seeds. What draws and stays the same (p = 0, p = 1, a dataset
that seeds itself by the index) is no random data.
"""

import contextlib
import functools
import math
import random
from collections.abc import Callable, Generator, Iterator, Mapping
from types import FunctionType, MethodType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from landscape.risk._sparse import equal

_WORDS = 624  # of a Mersenne Twister's state
_EXTREME = 64  # words that are the least or the largest; then others, so that rejections end
_SEEDS, _MOST_SEEDS, _THOROUGH = 6, 64, 2
_MOST_OBJECTS = 2000

Generators = random.Random | np.random.RandomState | np.random.Generator | torch.Generator
Reading = Callable[[], Any]


class Draws:
    """The generators that reading some data may draw from: the global ones, and held ones."""

    def __init__(self, *holders: object) -> None:
        self._sources: list[Any] = [
            torch.default_generator,
            np.random.mtrand._rand,
            random._inst,
            *_held(holders),
        ]
        self._fresh = 0  # generators that were made and seeded from the system's entropy
        self._thorough = _THOROUGH

    def varies(self, read: Reading) -> bool:
        """Whether reading again gives something else; the generators are left as they were."""
        before = [_state(source) for source in self._sources]
        with self._counting():
            try:
                first, moved = read(), self._moved(before)
                if _differs(first, read()):
                    return True
                return moved and any(_differs(first, other) for other in self._others(read))
            finally:
                for source, state in zip(self._sources, before, strict=True):
                    _put(source, state)

    def _others(self, read: Reading) -> Iterator[Any]:
        """Readings under the least and the largest draws, and under other seeds."""
        seeds = _MOST_SEEDS if self._thorough > 0 else _SEEDS
        self._thorough -= 1
        for words in ("least", "largest", *range(seeds)):
            for source in self._sources:
                _set_next(source, words)
            with contextlib.suppress(Exception):  # of extremes that nobody draws
                yield read()

    def states(self) -> list[Any]:
        """Where every source stands."""
        return [_state(source) for source in self._sources]

    def _moved(self, before: list[Any]) -> bool:
        return self._fresh > 0 or moved(before, self.states())

    @contextlib.contextmanager
    def _counting(self) -> Generator[None]:
        """Count what numpy takes of the system's entropy: default_rng() without a seed."""
        module: Any = np.random.bit_generator
        taken = getattr(module, "randbits", None)
        if taken is None:
            yield
            return

        def counted(bits: int) -> int:
            self._fresh += 1
            return taken(bits)

        self._fresh, module.randbits = 0, counted
        try:
            yield
        finally:
            module.randbits = taken


def moved(before: list[Any], now: list[Any]) -> bool:
    """Whether one of the sources has drawn between two `Draws.states`."""
    return not all(map(_same, before, now))


def _differs(first: Any, second: Any) -> bool:
    a, b = pytree.tree_leaves(first), pytree.tree_leaves(second)
    return len(a) != len(b) or not all(map(_same, a, b))


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


def _held(holders: tuple[object, ...]) -> list[Generators]:
    """Generators in attributes, containers, closures and the names that the methods read."""
    found: list[Generators] = []
    seen: set[int] = set()
    todo: list[object] = list(holders)
    while todo and len(seen) < _MOST_OBJECTS:
        each = todo.pop()
        if id(each) in seen or isinstance(each, _PLAIN):
            continue
        seen.add(id(each))
        if isinstance(each, Generators):
            found.append(each)
        else:
            todo.extend(_parts(each))
    ours = (torch.default_generator, np.random.mtrand._rand, random._inst)
    return [source for source in found if all(source is not other for other in ours)]


_PLAIN = (str, bytes, int, float, complex, bool, type(None), type, Tensor, np.ndarray)


def _parts(each: Any) -> list[object]:
    if isinstance(each, MethodType):
        return [each.__self__, each.__func__]
    if isinstance(each, functools.partial):
        return [each.func, *each.args, *each.keywords.values()]
    if isinstance(each, FunctionType):
        cells = [cell.cell_contents for cell in each.__closure__ or () if _is_filled(cell)]
        named = [each.__globals__.get(name) for name in each.__code__.co_names]
        return [*cells, *(n for n in named if isinstance(n, Generators | FunctionType))]
    if isinstance(each, Mapping):
        return list(each.values())
    if isinstance(each, list | tuple | set | frozenset):
        return list(each)[:_MOST_OBJECTS]
    methods = (getattr(type(each), name, None) for name in _METHODS)
    return [*vars(each).values(), *methods] if hasattr(each, "__dict__") else []


_METHODS = ("__getitem__", "__getitems__", "__call__", "forward", "__iter__")


def _is_filled(cell: Any) -> bool:
    try:
        return cell.cell_contents is not cell
    except ValueError:
        return False


def _state(source: Any) -> Any:
    if isinstance(source, random.SystemRandom):
        return math.nan  # it has none, and may always have drawn
    if isinstance(source, random.Random):
        return source.getstate()
    if isinstance(source, torch.Generator):
        return source.get_state()
    state = source.bit_generator.state if isinstance(source, np.random.Generator) else None
    return _Comparable(source.get_state() if state is None else state)


class _Comparable:
    """A state of numpy's, whose arrays `==` does not compare to one truth."""

    def __init__(self, state: Any) -> None:
        self.state = state

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Comparable) and not _differs(_listed(self), _listed(other))

    __hash__ = object.__hash__


def _listed(state: _Comparable) -> list[Any]:
    return pytree.tree_leaves(state.state)


def _put(source: Any, state: Any) -> None:
    if isinstance(source, random.SystemRandom):
        return
    if isinstance(source, random.Random):
        source.setstate(state)
    elif isinstance(source, torch.Generator):
        source.set_state(state)
    elif isinstance(source, np.random.Generator):
        source.bit_generator.state = state.state
    else:
        source.set_state(state.state)


def _set_next(source: Any, words: str | int) -> None:
    """The next draws of a source: "least", "largest", or those of a seed."""
    seed = {"least": 1, "largest": 2}.get(words, 3) if isinstance(words, str) else 100 + words
    key = np.random.RandomState(seed).randint(0, 2**32, _WORDS, dtype=np.uint64)
    if isinstance(words, str):
        key[:_EXTREME] = 0 if words == "least" else _ALL_ONES
    if isinstance(source, random.Random):
        if type(source).getstate is random.Random.getstate:
            source.setstate((3, (*key.tolist(), 0), None))
    elif isinstance(source, torch.Generator):
        _set_torch(source, key, seed)
    elif isinstance(source, np.random.RandomState):
        if source.get_state(legacy=False)["bit_generator"] == "MT19937":
            source.set_state(("MT19937", key.astype(np.uint32), 0, 0, 0.0))
    else:
        kind: Any = type(source.bit_generator)
        source.bit_generator.state = kind(seed).state


def _set_torch(source: torch.Generator, key: np.ndarray, seed: int) -> None:
    source.manual_seed(seed)
    if source.device.type == "cpu":
        # Seed, words left until the next 624, whether seeded, the next word, and the words: what
        # is kept behind them (a second normal number) is empty after the seeding.
        state = source.get_state().numpy().copy()
        with contextlib.suppress(RuntimeError, ValueError):  # another layout: the seed remains
            state[8:12] = np.frombuffer(np.int32(_WORDS).tobytes(), np.uint8)
            state[16:24] = 0
            state[24 : 24 + 8 * _WORDS] = np.frombuffer(key.tobytes(), np.uint8)
            source.set_state(torch.from_numpy(state))


def _untempered(word: int) -> int:
    """The word of a Mersenne Twister's state that is put out as `word`."""
    y = word ^ (word >> 18)
    y ^= (y << 15) & 0xEFC60000
    left = y
    for _ in range(5):
        left = y ^ ((left << 7) & 0x9D2C5680)
    y = left & 0xFFFFFFFF
    right = y
    for _ in range(3):
        right = y ^ (right >> 11)
    return right


_ALL_ONES = _untempered(0xFFFFFFFF)
