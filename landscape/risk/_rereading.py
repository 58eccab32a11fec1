"""A risk is over a fixed set: data that another reading gives otherwise are refused by name."""

import contextlib
import itertools
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from landscape.errors import LandscapeError
from landscape.risk._draws import Draws, moved
from landscape.risk._plain import length, mark, plain

# Items that are read again whatever they draw, items between two looks at the generators, and items
# that draw without effect (p = 0, or seeded by their index) before that is believed of the others.
_ITEMS, _BETWEEN, _MOST_IDLE = 48, 32, 64


def refuse_random_items(dataset: Any) -> None:
    """Augmentation would make the risk another function at every pass."""
    if not _has_items(dataset):
        return
    size = len(dataset)
    spread = {round(i * (size - 1) / (_ITEMS - 1)) for i in range(_ITEMS)} if size else ()
    draws = Draws(dataset)
    for index in sorted(spread):
        try:
            varies = draws.varies(lambda i=index: plain(dataset[i]))
        except Exception as error:
            raise LandscapeError(
                f"Item {index} of the data ({type(dataset).__name__}) cannot be read: "
                f"{type(error).__name__}: {str(error)[:300]}."
            ) from error
        if varies:
            raise _random_item(dataset, index)


def _has_items(dataset: Any) -> bool:
    streamed = isinstance(dataset, IterableDataset | TensorDataset)
    return not streamed and hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")


def _random_item(dataset: Any, index: Any) -> LandscapeError:
    return LandscapeError(
        f"{type(dataset).__name__}[{index}] differs from one reading to the next (random "
        f"augmentation?); give the data without augmentation, or one fixed draw of them."
    )


class _Watched(Dataset):
    """A dataset whose items are read once more, by other random numbers, where they draw any."""

    def __init__(self, dataset: Any) -> None:
        self._dataset, self._draws, self._states = dataset, None, []
        self._recent: list[Any] = []
        self._idle = 0
        if hasattr(dataset, "__getitems__"):
            self.__getitems__ = self._many

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.__dict__["_dataset"], name)

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: Any) -> Any:
        self._begin()
        found = self._dataset[index]
        self._read([index])
        return found

    def _many(self, indices: list[Any]) -> list[Any]:
        self._begin()
        found = self._dataset.__getitems__(indices)
        self._read(list(indices))
        return found

    def _begin(self) -> None:
        if self._draws is None:  # in the worker that reads
            self._draws = Draws(self._dataset)
            self._states = self._draws.states()

    def _read(self, indices: list[Any]) -> None:
        self._recent += indices
        if len(self._recent) >= _BETWEEN:
            self.look()

    def look(self) -> None:
        """Refuse the items read since the last look if they draw and differ."""
        recent, self._recent = self._recent, []
        if self._draws is None or self._idle >= _MOST_IDLE:
            return
        now = self._draws.states()
        if moved(self._states, now):
            for index in recent:
                if self._draws.varies(lambda i=index: plain(self._dataset[i])):
                    raise _random_item(self._dataset, index)
                self._idle += 1
        self._states = now


@contextlib.contextmanager
def watched(batches: Iterable[Any]) -> Generator[None]:
    """Within it, the items that a DataLoader reads are looked at; the loader is as it was after."""
    dataset = batches.dataset if isinstance(batches, DataLoader) else None
    if not _has_items(dataset):
        yield
        return
    seen = _Watched(dataset)
    # A DataLoader refuses to have it set, for the sake of its sampler, which is not concerned.
    object.__setattr__(batches, "dataset", seen)
    try:
        yield
        seen.look()
    finally:
        object.__setattr__(batches, "dataset", dataset)


def refuse_random_collate(loader: DataLoader) -> None:
    """Refuse a collate_fn that makes other batches of the same items (mixing, masking)."""
    dataset, collate = loader.dataset, loader.collate_fn
    if isinstance(dataset, IterableDataset) or collate is None:
        return
    items = [dataset[i] for i in range(min(4, length(dataset) or 0))]
    try:
        differs = Draws(collate).varies(lambda: plain(collate(items)))
    except Exception:
        return  # said where the batches are read
    if differs:
        name = getattr(collate, "__qualname__", type(collate).__name__)
        raise LandscapeError(
            f"The DataLoader's collate_fn ({name}) makes other batches of the same items each time "
            f"(random augmentation, mixing or masking?); give the data without it, or one fixed "
            f"draw: a list of batches."
        )


def refuse_other_reading(batches: Iterable[Any], found: list[Any], data: Any) -> None:
    """What is iterated and has no items that could be read twice is read a second time.

    Another order, or another cut into batches, is the same set; what is used up (a generator)
    cannot be tried.
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
    if not again or list(map(mark, again)) == list(map(mark, found)):
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
        sized = [leaf for leaf in leaves if hasattr(leaf, "__len__")]
        sizes = {len(leaf) if _has_rows(leaf) else -1 for leaf in sized}
        if len(sizes) != 1 or min(sizes) < 0 or any(isinstance(leaf, str) for leaf in leaves):
            yield mark(batch)
            continue
        for row in range(sizes.pop()):
            yield mark([leaf[row] if hasattr(leaf, "__len__") else leaf for leaf in leaves])


def _has_rows(leaf: Any) -> bool:
    return not isinstance(leaf, Tensor) or (leaf.ndim > 0 and leaf.layout is torch.strided)
