"""Which rows of its dataset a DataLoader gives, and whether these are one fixed set.

What is measured is the exact loss over the rows that the loader gives in one epoch, each once:

    sampler, option                              what is done
    in order, shuffle=True, RandomSampler        all rows
    SubsetRandomSampler, (batch) samplers of     these rows; `rows_of_dataset` in the provenance
      the user's that give fixed rows              says how many of how many
    drop_last=True in order                      all but those of the last batch; said so too
    drop_last=True with shuffle=True             refused where rows are lost: others each time
    WeightedRandomSampler, replacement=True,     refused: other rows each time
      num_samples below the dataset's size
    rows given more than once (padding of a      refused: they would count twice
      DistributedSampler, oversampling)
    DistributedSampler and its kind              refused: the share of one process; taken with
                                                   distributed=True, where no row is padded
"""

import itertools
from collections import Counter
from typing import Any

from torch.utils.data import DataLoader, IterableDataset

from landscape.errors import LandscapeError
from landscape.risk._plain import length

_MOST_BATCHES = 100_000
_PROCESSES = ("num_replicas", "num_processes", "world_size")  # as samplers call their number


def rows_chosen(loader: DataLoader, *, distributed: bool) -> tuple[int, int] | None:
    """(rows given, rows of the dataset) where some are left out, else None; refused if not fixed.

    distributed: the processes are to give a share each.
    """
    if isinstance(loader.dataset, IterableDataset):
        return None
    processes = _processes(loader)
    if processes > 1 and not distributed:
        raise LandscapeError(
            f"The DataLoader's sampler ({_kind(loader)}) gives one of {processes} processes its "
            f"share of the data; give the dataset (.dataset) to measure all of it, or "
            f"distributed=True in every process."
        )
    batches = loader.batch_sampler
    given = loader.sampler if batches is None else batches
    if length(given) is None:
        return None

    def chosen() -> Counter[Any]:
        read = itertools.islice(iter(given), _MOST_BATCHES)
        return Counter(read if batches is None else itertools.chain.from_iterable(read))

    try:
        rows, again, size = chosen(), chosen(), length(loader.dataset)
    except Exception:
        return None  # said where the batches are read
    if rows != again:
        _refuse_choice(loader)
    if size is None:
        return None
    repeated = sum(count - 1 for count in rows.values())
    if processes > 1:
        # Of the other processes' rows nothing is known here but how many there are.
        repeated = max(repeated, int(getattr(loader.sampler, "total_size", 0)) - size)
    if repeated:
        raise LandscapeError(
            f"The DataLoader gives {repeated} of the {size} rows of its dataset again "
            f"({_kind(loader)}), which would count twice in a mean over them; give its dataset "
            f"(.dataset)"
            + (
                f", or to each process rows without padding: "
                f"Subset(dataset, range(rank, {size}, {processes}))."
                if processes > 1
                else ", or list(loader) where the repetition is meant."
            )
        )
    return (len(rows), size) if len(rows) < size and processes == 1 else None


def _refuse_choice(loader: DataLoader) -> None:
    drops = " that drops the last, incomplete batch" * bool(loader.drop_last)
    raise LandscapeError(
        f"The DataLoader chooses other examples at each reading ({_kind(loader)}{drops}), so that "
        f"its loss is no fixed number; give its dataset (.dataset), a loader without random "
        f"choice, or one fixed draw: list(loader)."
    )


def _processes(loader: DataLoader) -> int:
    """Among how many processes the sampler shares the rows out; 1 where it does not."""
    found = 1
    for sampler in (loader.sampler, loader.batch_sampler):
        for name in _PROCESSES:
            value = getattr(sampler, name, None)
            found = max(found, value if isinstance(value, int) else 1)
    return found


def _kind(loader: DataLoader) -> str:
    own = loader.batch_sampler
    plain = own is None or type(own).__module__.startswith("torch.utils.data")
    return type(loader.sampler if plain else own).__name__
