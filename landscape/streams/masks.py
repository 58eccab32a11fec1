"""Boolean masks of a model, one bit a coordinate."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from landscape.errors import LandscapeError
from landscape.streams._host import host
from landscape.streams.overlap import Overlap

_POPCOUNT = np.array([bin(byte).count("1") for byte in range(256)], dtype=np.uint8)


@dataclass(frozen=True)
class PackedMasks:
    """Boolean masks of named tensors, one bit a coordinate; each tensor starts on a byte.

    `names` and `sizes` are aligned; `bits` (uint8) holds ceil(size / 8) bytes per tensor in order.

    Example:
        >>> masks = streams.PackedMasks.of({"w": np.array([[True, False], [True, True]])})
        >>> masks.sizes, masks.counts().tolist(), masks.unpack()["w"].tolist()
        ((4,), [3], [True, False, True, True])
    """

    names: tuple[str, ...]
    sizes: tuple[int, ...]
    bits: np.ndarray

    @classmethod
    def of(cls, masks: Mapping[str, Any]) -> "PackedMasks":
        """Pack named boolean arrays (any shapes)."""
        if not masks:
            raise LandscapeError("No mask to pack: pass at least one named boolean tensor.")
        arrays = {name: host(mask).reshape(-1).astype(bool) for name, mask in masks.items()}
        bits = np.concatenate([np.packbits(array) for array in arrays.values()])
        return cls(tuple(arrays), tuple(array.size for array in arrays.values()), bits)

    def __post_init__(self) -> None:
        expected = sum(_bytes(size) for size in self.sizes)
        if self.bits.size != expected:
            raise LandscapeError(
                f"Packed masks of {len(self.sizes)} tensors need {expected} bytes and "
                f"{self.bits.size} were found: the snapshot is cut or of another model."
            )

    def unpacked(self) -> Iterator[np.ndarray]:
        """The masks one tensor at a time, flat, as 0 and 1 (uint8)."""
        ends = np.cumsum([_bytes(size) for size in self.sizes])
        for size, part in zip(self.sizes, np.split(self.bits, ends[:-1]), strict=True):
            yield np.unpackbits(part, count=size)

    def unpack(self) -> dict[str, np.ndarray]:
        """The masks as flat boolean arrays by name."""
        return {
            name: mask.view(bool) for name, mask in zip(self.names, self.unpacked(), strict=True)
        }

    def counts(self) -> np.ndarray:
        """Selected coordinates per tensor, (tensors,)."""
        return self._count(self.bits)

    def check_same(self, other: "PackedMasks") -> None:
        """Refuse masks of other tensors, naming what was added, removed or has another size."""
        if (self.names, self.sizes) == (other.names, other.sizes):
            return
        mine, theirs = (dict(zip(m.names, m.sizes, strict=True)) for m in (self, other))
        differing = [
            *(f"{n} ({mine[n]} and {theirs[n]})" for n in mine if n in theirs
              and mine[n] != theirs[n]),
            *(f"{n} ({mine[n]}, only in the first)" for n in mine if n not in theirs),
            *(f"{n} ({theirs[n]}, only in the second)" for n in theirs if n not in mine),
        ] or ["their order"]  # fmt: skip
        raise LandscapeError(
            f"Masks of different models cannot be compared; they differ in "
            f"{', '.join(differing[:3])}. Compare masks on the same named tensors."
        )

    def overlap(self, other: "PackedMasks") -> "Overlap":
        """Overlap with another set of masks on the same tensors, tensor by tensor."""
        self.check_same(other)
        return Overlap(
            size=np.array(self.sizes, dtype=np.int64),
            first=self.counts(),
            second=other.counts(),
            common=self._count(self.bits & other.bits),
        )

    def _count(self, bits: np.ndarray) -> np.ndarray:
        starts = np.concatenate([[0], np.cumsum([_bytes(size) for size in self.sizes])[:-1]])
        return np.add.reduceat(_POPCOUNT[bits], starts, dtype=np.int64)


def _bytes(size: int) -> int:
    return (size + 7) // 8
