"""Arrays in .npz archives, read whole: numpy itself stops before the checksum is compared."""

import io
import zipfile
from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np

from landscape.errors import LandscapeError
from landscape.storage.seals import check_sealed_zip, seal_zip
from landscape.storage.writing import write_atomically


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray | np.generic]) -> Path:
    """Write named arrays uncompressed, atomically, with the digest of all."""

    def write(temporary: Path) -> None:
        with temporary.open("wb") as handle:
            np.savez(handle, **arrays)  # ty: ignore[invalid-argument-type] -- names are never options
        seal_zip(temporary)

    return write_atomically(path, write)


def read_array(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    """One array of an archive, after its checksum was found to be right."""
    content = archive.read(f"{name}.npy")
    stream = io.BytesIO(content)
    array = np.lib.format.read_array(stream, allow_pickle=False)
    if stream.tell() != len(content):
        raise ValueError(f"{name} is followed by {len(content) - stream.tell()} bytes")
    return array


def read_arrays(path: Path, names: Collection[str]) -> dict[str, np.ndarray]:
    """Named arrays of an archive; damage is one sentence, and other members are not looked at."""
    try:
        check_sealed_zip(path)
        with zipfile.ZipFile(path) as archive:
            return {name: read_array(archive, name) for name in names}
    except (OSError, KeyError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile,
            MemoryError) as error:  # fmt: skip
        raise LandscapeError(
            f"{path} is not a whole archive ({type(error).__name__}: {error})."
        ) from None
