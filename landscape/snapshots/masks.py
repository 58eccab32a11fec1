"""Masks and histograms of many steps, read from the disk as they are needed."""

import zipfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from landscape.errors import LandscapeError
from landscape.snapshots.files import (
    GRID,
    Tensors,
    check_choice,
    check_same,
    each_snapshot,
    read_tensors,
)
from landscape.streams import Grid, Histogram, Overlap, PackedMasks

_TILE = 1 << 12  # words of 64 coordinates per snapshot and pass of a comparison
_TOGETHER = 8  # pairs per numpy call: what stays in the cache


@dataclass(frozen=True)
class _Member:
    """An array of an archive: where its bytes lie."""

    path: Path
    offset: int
    size: int


def _verified(path: Path, tensors: Tensors) -> _Member | None:
    """The masks of a snapshot after reading every byte of them once; None when it has none."""
    with zipfile.ZipFile(path) as archive:
        identity = np.load(archive.open("tensors.npy"), allow_pickle=False).tobytes()
        check_same(tensors, identity.decode(), str(path))
        if "mask_bits.npy" not in archive.namelist():
            return None
        info = archive.getinfo("mask_bits.npy")
        with archive.open(info) as stream:
            version = np.lib.format.read_magic(stream)
            read = np.lib.format.read_array_header_1_0
            shape, _, dtype = read(stream) if version == (1, 0) else ((-1,), False, None)
            expected = sum((size + 7) // 8 for size in tensors.sizes)
            if shape != (expected,) or dtype != np.uint8 or info.compress_type != 0:
                raise ValueError(f"masks of {shape} bytes where {expected} were expected")
            while stream.read(1 << 20):  # the checksum is compared at the end
                pass
        with path.open("rb") as handle:
            handle.seek(info.header_offset + 26)
            names = int.from_bytes(handle.read(2), "little")
            extra = int.from_bytes(handle.read(2), "little")
        start = info.header_offset + 30 + names + extra
        return _Member(path, start + info.file_size - expected, expected)


def read_masks(folder: Path, *, on_error: str = "raise") -> "MaskSeries":
    """Masks of all snapshots of a run, verified and left on the disk; empty if it has none.

    A damaged or cut snapshot raises, or is left out and named in `skipped` with on_error="skip".
    Tensors that were added or removed between snapshots raise, named.
    """
    check_choice(on_error)
    tensors = read_tensors(folder)
    if tensors is None:
        return MaskSeries(Tensors((), (), (), ()), np.empty(0, np.int64), ())
    found, skipped = each_snapshot(folder, tensors, on_error, _verified)
    steps = np.array([step for step, _ in found], dtype=np.int64)
    return MaskSeries(tensors, steps, tuple(m for _, m in found), tuple(skipped))


@dataclass(frozen=True)
class MaskSeries:
    """Masks of many steps on the disk: `series[i]` reads one, `overlap` streams through all."""

    tensors: Tensors
    steps: np.ndarray
    members: tuple[_Member, ...]
    skipped: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the tensors."""
        return self.tensors.names

    @property
    def sizes(self) -> tuple[int, ...]:
        """Elements of each tensor."""
        return self.tensors.sizes

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kind of each tensor."""
        return self.tensors.kinds

    @property
    def ndims(self) -> tuple[int, ...]:
        """Axes of each tensor."""
        return self.tensors.ndims

    def __len__(self) -> int:
        return len(self.members)

    def __getitem__(self, index: int) -> PackedMasks:
        member = self.members[index]
        bits = np.fromfile(member.path, np.uint8, member.size, offset=member.offset)
        return PackedMasks(self.names, self.sizes, bits)

    def __iter__(self) -> Iterator[tuple[int, PackedMasks]]:
        return ((int(step), self[i]) for i, step in enumerate(self.steps))

    def counts(self) -> np.ndarray:
        """Selected coordinates, (snapshots, tensors)."""
        return self._counts.copy()

    @cached_property
    def _counts(self) -> np.ndarray:
        return _common(self, np.arange(len(self))[:, None].repeat(2, axis=1))

    def overlap(self, pairs: Sequence[tuple[int, int]]) -> Overlap:
        """Overlap of pairs of snapshots (indices), fields (pairs, tensors).

        The files are read once, in tiles of a few kB of every snapshot: memory does not grow with
        the network.
        """
        index = np.asarray(pairs, dtype=np.int64).reshape(-1, 2)
        if index.size and not (index.min() >= 0 and index.max() < len(self)):
            raise LandscapeError(
                f"Pairs of snapshots {index.min()}..{index.max()} were asked of {len(self)}; use "
                f"indices 0..{len(self) - 1}."
            )
        common = _common(self, index)
        return Overlap(
            size=np.broadcast_to(np.array(self.sizes, np.int64), common.shape).copy(),
            first=self._counts[index[:, 0]],
            second=self._counts[index[:, 1]],
            common=common,
        )

    def lagged(self, lags: Iterable[int]) -> tuple[np.ndarray, list[Overlap]]:
        """Overlap of masks `lag` steps apart, as `streams.persistence`: (lags found, overlaps)."""
        place = {int(step): i for i, step in enumerate(self.steps)}
        groups = {
            lag: [(i, place[s + lag]) for s, i in place.items() if s + lag in place]
            for lag in sorted(set(lags))
        }
        groups = {lag: pairs for lag, pairs in groups.items() if pairs}
        whole = self.overlap([pair for pairs in groups.values() for pair in pairs])
        parts, start = [], 0
        for pairs in groups.values():
            span = slice(start, start + len(pairs))
            parts.append(
                Overlap(whole.size[span], whole.first[span], whole.second[span], whole.common[span])
            )
            start += len(pairs)
        return np.array(list(groups), dtype=np.int64), parts


def _common(series: MaskSeries, pairs: np.ndarray) -> np.ndarray:
    """Coordinates that both masks of each pair select, (pairs, tensors)."""
    common = np.zeros((len(pairs), len(series.sizes)), np.int64)
    order = np.argsort(pairs[:, 0], kind="stable")
    firsts, starts = np.unique(pairs[order, 0], return_index=True)
    groups = list(zip(firsts, np.split(order, starts[1:]), strict=True)) if len(pairs) else []
    for span, heads_of, owners in _tiles(series.sizes):
        words, heads = _read_tile(series.members, span, heads_of)
        both = np.empty((_TOGETHER, words.shape[1]), np.uint64)
        bits = np.empty(both.shape, np.uint8)
        for first, members in groups:
            for at in range(0, len(members), _TOGETHER):
                some = members[at : at + _TOGETHER]
                n = len(some)
                np.take(words, pairs[some, 1], axis=0, out=both[:n], mode="clip")  # "raise" copies
                np.bitwise_and(both[:n], words[first], out=both[:n])
                np.bitwise_count(both[:n], out=bits[:n])
                found = np.add.reduceat(bits[:n], heads, axis=1, dtype=np.int64)
                common[some[:, None], owners] += found
    return common


def _tiles(sizes: Sequence[int]) -> Iterator[tuple[slice, list[int], list[int]]]:
    """Stretches of the packed bytes: their span, where each tensor begins in them, and which."""
    room = 8 * _TILE
    begin, position, starts, owners = 0, 0, [], []
    for tensor, size in enumerate(sizes):
        left = (size + 7) // 8
        while left:
            if position - begin >= room:
                yield slice(begin, position), starts, owners
                begin, starts, owners = position, [], []
            taken = min(left, room - (position - begin))
            starts.append(position - begin)
            owners.append(tensor)
            position, left = position + taken, left - taken
    if owners:
        yield slice(begin, position), starts, owners


def _read_tile(
    members: Sequence[_Member], span: slice, starts: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Words (snapshots, n) of one stretch, each tensor on its own words, and where they begin."""
    lengths = np.diff([*starts, span.stop - span.start])
    words = (lengths + 7) // 8
    heads = np.concatenate([[0], np.cumsum(words)[:-1]])
    found = np.zeros((len(members), 8 * int(words.sum())), np.uint8)
    for row, member in zip(found, members, strict=True):
        with member.path.open("rb", buffering=0) as handle:
            handle.seek(member.offset + span.start)
            raw = np.frombuffer(handle.read(span.stop - span.start), np.uint8)
        for start, length, head in zip(starts, lengths, 8 * heads, strict=True):
            row[head : head + length] = raw[start : start + length]
    return found.view(np.uint64), heads


@dataclass(frozen=True)
class ZScores:
    """Z-scores of the first pass's gradient at the snapshots: counts (S, tensors, bins + 3).

    The last three columns count what lies below and above the grid, and NaN (no spread).
    """

    tensors: Tensors
    steps: np.ndarray
    counts: np.ndarray
    skipped: tuple[str, ...] = ()
    grid: Grid = GRID

    def histogram(self, index: int, tensor: int) -> Histogram:
        """Histogram of one snapshot and tensor."""
        row = self.counts[index, tensor].astype(np.int64)
        below, above, nan = (int(n) for n in row[-3:])
        return Histogram(self.grid, row[:-3], below, above, nan)


def _counts(path: Path, tensors: Tensors) -> np.ndarray:
    with zipfile.ZipFile(path) as archive:
        identity = np.load(archive.open("tensors.npy"), allow_pickle=False).tobytes()
        check_same(tensors, identity.decode(), str(path))
        return np.load(archive.open("zscore_counts.npy"), allow_pickle=False)


def read_zscores(folder: Path, *, on_error: str = "raise") -> ZScores:
    """Z-score counts of all snapshots of a run, damaged ones as in `read_masks`."""
    check_choice(on_error)
    tensors = read_tensors(folder) or Tensors((), (), (), ())
    found, skipped = each_snapshot(folder, tensors, on_error, _counts)
    counts = [content for _, content in found]
    empty = np.zeros((0, len(tensors), GRID.bins + 3), np.uint32)
    steps = np.array([step for step, _ in found], dtype=np.int64)
    return ZScores(tensors, steps, np.stack(counts) if counts else empty, tuple(skipped))
