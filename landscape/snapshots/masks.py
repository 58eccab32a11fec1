"""Masks and histograms of many steps, read from the disk as they are needed."""

import zipfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from landscape import storage
from landscape.checks import check_choice
from landscape.errors import LandscapeError
from landscape.snapshots._common import Member, common
from landscape.snapshots.files import (
    GRID,
    ON_ERROR,
    Tensors,
    check_snapshot,
    each_snapshot,
    read_tensors,
)
from landscape.streams import Grid, Histogram, Overlap, PackedMasks


def _verified(path: Path, tensors: Tensors) -> Member | None:
    """The masks of a snapshot after reading every byte of them once; None when it has none."""
    with zipfile.ZipFile(path) as archive:
        check_snapshot(archive, path, tensors)
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
        return Member(path, start + info.file_size - expected, expected)


def read_masks(folder: Path, *, on_error: str = "raise") -> "MaskSeries":
    """Masks of all snapshots of a run, verified and left on the disk; empty if it has none.

    A damaged or cut snapshot raises, or is left out and named in `skipped` with on_error="skip".
    Tensors that were added or removed between snapshots raise, named.

    Example:
        >>> masks = training.read_masks(folder)
        >>> masks.names[:2], len(masks) == len(masks.steps)
        (('0.weight', '0.bias'), True)
    """
    check_choice("on_error", on_error, ON_ERROR)
    tensors = read_tensors(folder)
    if tensors is None:
        return MaskSeries(Tensors((), (), (), ()), np.empty(0, np.int64), ())
    found, skipped = each_snapshot(folder, tensors, on_error, _verified)
    steps = np.array([step for step, _ in found], dtype=np.int64)
    return MaskSeries(tensors, steps, tuple(m for _, m in found), tuple(skipped))


@dataclass(frozen=True)
class MaskSeries:
    """Masks of many steps on the disk: `series[i]` reads one, `overlap` streams through all.

    members: where each snapshot's masks lie.

    Example:
        >>> masks = snapshots.read_masks(folder)
        >>> masks.names[0], masks[0].sizes[0]
        ('0.weight', 32)
    """

    tensors: Tensors
    steps: np.ndarray
    members: tuple[Member, ...]
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
        return common(self.members, self.sizes, self._itself)

    @property
    def _itself(self) -> np.ndarray:
        return np.arange(len(self))[:, None].repeat(2, axis=1)

    def overlap(self, pairs: Sequence[tuple[int, int]]) -> Overlap:
        """Overlap of pairs of snapshots (indices), fields (pairs, tensors).

        The files are read once, some 64 MB of all snapshots at a time, the next while these are
        compared: memory does not grow with the network.
        """
        index = np.asarray(pairs, dtype=np.int64).reshape(-1, 2)
        if index.size and not (index.min() >= 0 and index.max() < len(self)):
            raise LandscapeError(
                f"Pairs of snapshots {index.min()}..{index.max()} were asked of {len(self)}; use "
                f"indices 0..{len(self) - 1}."
            )
        known = "_counts" in self.__dict__
        asked = index if known else np.concatenate([index, self._itself])
        found = common(self.members, self.sizes, asked)
        if not known:  # counted on the way: a mask has all its coordinates in common with itself
            self.__dict__["_counts"] = found[len(index) :]
        found = found[: len(index)]
        return Overlap(
            size=np.broadcast_to(np.array(self.sizes, np.int64), found.shape).copy(),
            first=self._counts[index[:, 0]],
            second=self._counts[index[:, 1]],
            common=found,
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


@dataclass(frozen=True)
class ZScores:
    """Z-scores of the first pass's gradient at the snapshots: counts (S, tensors, bins + 3).

    The last three columns count what lies below and above the grid, and NaN (no spread).

    Example:
        >>> seen = snapshots.read_zscores(folder)
        >>> seen.counts.shape[1:], seen.histogram(0, 0).total
        ((6, 244), 32)
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
        check_snapshot(archive, path, tensors)
        counts = storage.read_array(archive, "zscore_counts")
        if counts.shape != (len(tensors), GRID.bins + 3) or counts.dtype != np.uint32:
            raise ValueError(f"z-scores {counts.dtype} {counts.shape}")
        return counts


def read_zscores(folder: Path, *, on_error: str = "raise") -> ZScores:
    """Z-score counts of all snapshots of a run, damaged ones as in `read_masks`.

    Example:
        >>> seen = training.read_zscores(folder)
        >>> seen.counts.ndim, len(seen.tensors.names)
        (3, 6)
    """
    check_choice("on_error", on_error, ON_ERROR)
    tensors = read_tensors(folder) or Tensors((), (), (), ())
    found, skipped = each_snapshot(folder, tensors, on_error, _counts)
    counts = [content for _, content in found]
    empty = np.zeros((0, len(tensors), GRID.bins + 3), np.uint32)
    steps = np.array([step for step, _ in found], dtype=np.int64)
    return ZScores(tensors, steps, np.stack(counts) if counts else empty, tuple(skipped))
