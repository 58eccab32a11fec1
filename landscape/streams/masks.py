"""Boolean masks of a model, one bit a coordinate."""

from collections.abc import Mapping
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

    def unpack(self) -> dict[str, np.ndarray]:
        """The masks as flat boolean arrays by name."""
        ends = np.cumsum([_bytes(size) for size in self.sizes])
        parts = np.split(self.bits, ends[:-1])
        return {
            name: np.unpackbits(part, count=size).astype(bool)
            for name, size, part in zip(self.names, self.sizes, parts, strict=True)
        }

    def counts(self) -> np.ndarray:
        """Selected coordinates per tensor, (tensors,)."""
        return self._count(self.bits)

    def overlap(self, other: "PackedMasks") -> "Overlap":
        """Overlap with another set of masks on the same tensors, tensor by tensor."""
        if (self.names, self.sizes) != (other.names, other.sizes):
            differing = [
                f"{name} ({size})"
                for name, size in zip(self.names, self.sizes, strict=True)
                if (name, size) not in set(zip(other.names, other.sizes, strict=True))
            ] or ["another order or more tensors"]
            raise LandscapeError(
                f"Masks of different models cannot be compared; they differ in "
                f"{', '.join(differing[:3])}. Compare masks on the same named tensors."
            )
        return Overlap(
            size=np.array(self.sizes, dtype=np.int64),
            first=self.counts(),
            second=other.counts(),
            common=self._count(self.bits & other.bits),
        )

    def _count(self, bits: np.ndarray) -> np.ndarray:
        per_byte = _POPCOUNT[bits].astype(np.int64)
        starts = np.concatenate([[0], np.cumsum([_bytes(size) for size in self.sizes])[:-1]])
        return np.add.reduceat(per_byte, starts)


def _bytes(size: int) -> int:
    return (size + 7) // 8
