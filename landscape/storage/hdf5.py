"""HDF5 files, opened once it is found that the library can read them to an end.

A damaged heap of texts makes HDF5 run for ever, where no signal ends it; a link or an external
array reads other files than the one that was given; and a few kilobytes may state an array that
fills the memory.
"""

import mmap
import struct
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import h5py

_HEAP = struct.Struct("<4sB3xQ")  # signature, version, bytes of the collection
_OBJECT = struct.Struct("<HH4xQ")  # index (0: what is free), references, bytes
_SMALL, _RATIO = 1 << 30, 64  # more bytes than the first, and than the second times the file's


@contextmanager
def open_hdf5(path: Path) -> Generator[h5py.File]:
    """An HDF5 file to read; ValueError where it is damaged, leads elsewhere, or is a bomb."""
    size = _check_heaps(path)
    with h5py.File(path, "r") as file:
        for name in file:
            _check_member(file, name, size)
        yield file


def _check_heaps(path: Path) -> int:
    """Walk each heap as HDF5 does, which must end; bytes of the file."""
    if not Path(path).is_file():
        raise ValueError("it is no file that could be read")
    with Path(path).open("rb") as handle:
        if not handle.seek(0, 2):
            raise ValueError("it is empty")
        with mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as content:
            at = content.find(b"GCOL")
            while at >= 0:
                _check_heap(content, at)
                at = content.find(b"GCOL", at + 4)
            return len(content)


def _check_heap(content: mmap.mmap, at: int) -> None:
    if at + _HEAP.size > len(content):
        return
    _, version, size = _HEAP.unpack_from(content, at)
    if version != 1 or at + size > len(content):
        return  # numbers or text that look like one; of a heap HDF5 says so itself
    place, end = at + _HEAP.size, at + size
    while place + _OBJECT.size <= end:
        index, _, size = _OBJECT.unpack_from(content, place)
        step = _OBJECT.size + (size + 7) // 8 * 8 if index else size
        if not 0 < step <= end - place:
            raise ValueError(f"its heap at byte {at} is damaged")
        place += step


def _check_member(file: h5py.File, name: str, size: int) -> None:
    if not isinstance(file.get(name, getlink=True), h5py.HardLink):
        raise ValueError(f"{name} is a link to another place or file; copy what it leads to")
    found = file[name]
    if not isinstance(found, h5py.Dataset):
        return
    if found.is_virtual or found.external:
        raise ValueError(f"the numbers of {name} lie in another file; copy them into this one")
    if found.nbytes > max(_SMALL, _RATIO * size):
        raise ValueError(
            f"{name} would take {found.nbytes / 1e9:.1f} GB, in a file of {size} bytes"
        )
