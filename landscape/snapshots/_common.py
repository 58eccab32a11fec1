"""Coordinates that masks on the disk have in common, counted while the next bytes are read."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from landscape.cores import usable_cores
from landscape.errors import LandscapeError

_BLOCK = 1 << 26  # bytes of all snapshots together that are read at once
_CALL = 1 << 16  # words of 64 coordinates per numpy call: its results stay in the cache
_SUM = 512  # words whose bits a sum of 16 bits can hold


@dataclass(frozen=True)
class Member:
    """An array of an archive: where its bytes lie."""

    path: Path
    offset: int
    size: int


@dataclass(frozen=True)
class _Stretch:
    """Bytes of the packed masks: where each tensor begins in them, and in words of its own."""

    span: slice
    starts: tuple[int, ...]
    owners: tuple[int, ...]

    @property
    def lengths(self) -> np.ndarray:
        """Bytes of each tensor."""
        return np.diff([*self.starts, self.span.stop - self.span.start])

    @property
    def heads(self) -> np.ndarray:
        """First word of each tensor, and behind the last one."""
        return np.concatenate([[0], np.cumsum((self.lengths + 7) // 8)])


@dataclass(frozen=True)
class _PairRun:
    """Pairs (first + i, second + i) for i < count, at `place` in the order of the runs."""

    first: int
    second: int
    count: int
    place: int


def common(members: Sequence[Member], sizes: Sequence[int], pairs: np.ndarray) -> np.ndarray:
    """Coordinates that both masks of each pair (n, 2) select, (n, tensors).

    One thread reads ahead, one for each usable core compares.
    """
    counts = np.zeros((len(pairs), len(sizes)), np.int64)
    if not len(pairs):
        return counts
    order, runs = _runs(pairs)
    # Long runs take few columns of many masks at a time, which together fit the cache.
    width = int(np.clip(_CALL * len(runs) // len(pairs) // _SUM, 1, _CALL // _SUM // 2)) * _SUM
    with ThreadPoolExecutor(usable_cores()) as comparing:
        for words, stretch in _read_ahead(members, sizes):
            heads = stretch.heads

            def compare(at: int, words=words, heads=heads) -> tuple[np.ndarray, np.ndarray]:
                columns = np.ascontiguousarray(words[:, at : at + width])  # rows far apart collide
                return _compare(columns, heads - at, runs, len(pairs))

            for place, found in comparing.map(compare, range(0, words.shape[1], width)):
                counts[:, np.array(stretch.owners)[place]] += found
    counts[order] = counts.copy()
    return counts


def _runs(pairs: np.ndarray) -> tuple[np.ndarray, list[_PairRun]]:
    """Pairs in an order in which most follow each other by one, and the stretches that do."""
    order = np.lexsort((pairs[:, 0], pairs[:, 1] - pairs[:, 0]))
    steps = np.diff(pairs[order], axis=0)
    starts = [0, *(np.flatnonzero((steps != 1).any(axis=1)) + 1), len(order)]
    return order, [
        _PairRun(int(pairs[order[a], 0]), int(pairs[order[a], 1]), int(b - a), int(a))
        for a, b in pairwise(starts)
    ]


def _compare(
    words: np.ndarray, heads: np.ndarray, runs: Sequence[_PairRun], num_pairs: int
) -> tuple[np.ndarray, np.ndarray]:
    """Which of the tensors that begin at `heads` these words hold, and the counts of the pairs."""
    width = words.shape[1]
    place = np.flatnonzero((heads[:-1] < width) & (heads[1:] > 0))
    first = np.maximum(heads[place], 0)
    cuts = np.union1d(first, np.arange(0, width, _SUM))  # no sum of 16 bits overflows
    whole = np.searchsorted(cuts, first)
    rows = max(1, _CALL // width)
    both = np.empty((rows, width), np.uint64)
    bits = np.empty((rows, width), np.uint8)
    found = np.empty((num_pairs, len(place)), np.int64)
    for run in runs:
        for at in range(0, run.count, rows):
            n = min(rows, run.count - at)
            a, b = run.first + at, run.second + at
            np.bitwise_and(words[a : a + n], words[b : b + n], out=both[:n])
            np.bitwise_count(both[:n], out=bits[:n])
            sums = np.add.reduceat(bits[:n], cuts, axis=1, dtype=np.uint16)
            np.add.reduceat(sums, whole, axis=1, dtype=np.int64, out=found[run.place + at :][:n])
    return place, found


def _read_ahead(
    members: Sequence[Member], sizes: Sequence[int]
) -> Iterator[tuple[np.ndarray, _Stretch]]:
    """Words (snapshots, n) of one stretch after the other; the next one is read meanwhile."""
    room = max(8, _BLOCK // len(members) // 8 * 8)
    stretches = list(_stretches(sizes, room))
    most = max(int(stretch.heads[-1]) for stretch in stretches)
    spare = [np.empty((len(members), most), np.uint64) for _ in stretches[:2]]
    with ThreadPoolExecutor(1) as reading:
        coming = reading.submit(_read, members, stretches[0], spare[0])
        for i, stretch in enumerate(stretches):
            words = coming.result()
            if i + 1 < len(stretches):
                coming = reading.submit(_read, members, stretches[i + 1], spare[(i + 1) % 2])
            yield words, stretch


def _stretches(sizes: Sequence[int], room: int) -> Iterator[_Stretch]:
    """The packed bytes cut into stretches of `room` bytes."""
    begin, position, starts, owners = 0, 0, [], []
    for tensor, size in enumerate(sizes):
        left = (size + 7) // 8
        while left:
            if position - begin >= room:
                yield _Stretch(slice(begin, position), tuple(starts), tuple(owners))
                begin, starts, owners = position, [], []
            taken = min(left, room - (position - begin))
            starts.append(position - begin)
            owners.append(tensor)
            position, left = position + taken, left - taken
    if owners:
        yield _Stretch(slice(begin, position), tuple(starts), tuple(owners))


def _read(members: Sequence[Member], stretch: _Stretch, spare: np.ndarray) -> np.ndarray:
    """Words (snapshots, n) of a stretch, each tensor on words of its own, within `spare`."""
    words = spare[:, : stretch.heads[-1]]
    words[:, stretch.heads[1:] - 1] = 0  # what is behind the last byte of a tensor
    spans = list(zip(8 * stretch.heads[:-1], stretch.lengths, strict=True))
    for row, member in zip(words, members, strict=True):
        target = memoryview(row.view(np.uint8))
        try:
            with member.path.open("rb", buffering=0) as file:
                file.seek(member.offset + stretch.span.start)
                whole = all(file.readinto(target[a : a + n]) == n for a, n in spans)
        except OSError as error:
            raise _gone(member, error.strerror or str(error)) from None
        if not whole:
            raise _gone(member, "it is shorter now")
    return words


def _gone(member: Member, why: str) -> LandscapeError:
    return LandscapeError(
        f"{member.path} was whole when its masks were opened and cannot be read any more ({why}). "
        f"Open them again with `snapshots.read_masks`."
    )
