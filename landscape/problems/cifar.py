"""CIFAR-10 and CIFAR-100 from their python archives, read without running what is in them."""

import hashlib
import io
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from landscape.errors import LandscapeError

_SITE = "https://www.cs.toronto.edu/~kriz/"
# MD5 of the published archives and of the files in them.
ARCHIVES = {
    "cifar10": ("cifar-10-python.tar.gz", "c58f30108f718f92721af3b95e74349a"),
    "cifar100": ("cifar-100-python.tar.gz", "eb9058c3a382ffc7106e4002c42a8d85"),
}
FOLDERS = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}
FILES = {
    "cifar10": {
        "data_batch_1": "c99cafc152244af753f735de768cd75f",
        "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
        "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
        "data_batch_4": "634d18415352ddfa80567beed471001a",
        "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
        "test_batch": "40351d587109b95175f43aff81a1287e",
    },
    "cifar100": {
        "train": "16019d7e3df5f24257cddd939b257f8d",
        "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
    },
}
LABELS = {"cifar10": b"labels", "cifar100": b"fine_labels"}
CLASSES = {"cifar10": 10, "cifar100": 100}


def read_cifar(
    name: str, data_dir: str | Path | None, *, verify: bool = True
) -> tuple[np.ndarray, np.ndarray, int, int, dict[str, Any]]:
    """Images (n, 3, 32, 32) in [0, 1], labels (n,), how many are test (the last), classes, origin.

    data_dir holds the archive or the folder that it unpacks to (or is that folder).
    """
    archive, md5 = ARCHIVES[name]
    where = f"Get {_SITE}{archive} and give the folder that holds it as --data-dir."
    if data_dir is None:
        raise LandscapeError(
            f"{name} is not part of this package and no data_dir was given. {where}"
        )
    root = Path(data_dir)
    for folder in (root / FOLDERS[name], root):
        if all((folder / part).is_file() for part in FILES[name]):
            return _read_parts(name, folder, _reader(folder), verify)
    path = root if root.name == archive else root / archive
    if not path.is_file():
        raise LandscapeError(f"{root} holds neither {archive} nor {FOLDERS[name]}/. {where}")
    if verify:
        with path.open("rb") as handle:
            _check(path, hashlib.file_digest(handle, "md5").hexdigest(), md5)
    try:
        with tarfile.open(path, "r:*") as tar:
            held = {Path(m.name).name: m for m in tar.getmembers() if m.isfile()}
            absent = [part for part in FILES[name] if part not in held]
            if absent:
                raise LandscapeError(
                    f"{path} lacks {', '.join(absent)}: it is not the python version of {name}. "
                    f"{where}"
                )

            def read(part: str) -> bytes:
                return tar.extractfile(held[part]).read()  # ty: ignore[missing-union-attribute]  # a file

            # The archive as a whole was checked above.
            return _read_parts(name, path, read, False)
    except (tarfile.TarError, EOFError, OSError) as error:
        raise LandscapeError(
            f"{path} is not a readable archive ({type(error).__name__}: {error}). {where}"
        ) from None


def _reader(folder: Path) -> Callable[[str], bytes]:
    return lambda part: (folder / part).read_bytes()


def _check(path: Path, found: str, expected: str) -> None:
    if found != expected:
        raise LandscapeError(
            f"{path} has MD5 {found} and the published file {expected}: it is damaged or another "
            f"version. Download it again, or read it as it is with verify=False ("
            f"`verify = false` under [problem] of a study)."
        )


def _read_parts(
    name: str, where: Path, read: Callable[[str], bytes], verify: bool
) -> tuple[np.ndarray, np.ndarray, int, int, dict[str, Any]]:
    images, labels, md5 = [], [], {}
    for part, expected in FILES[name].items():
        content = read(part)
        md5[part] = hashlib.md5(content, usedforsecurity=False).hexdigest()
        if verify:
            _check(where / part, md5[part], expected)
        pixels, classes = _batch(name, where / part, content)
        images.append(pixels)
        labels.append(classes)
    x = np.concatenate(images).reshape(-1, 3, 32, 32).astype(np.float32) / np.float32(255)
    return x, np.concatenate(labels), len(labels[-1]), CLASSES[name], {"md5": md5}


def _batch(name: str, path: Path, content: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Pixels (n, 3072) uint8 and labels (n,) of one file."""
    found = read_pickle(io.BytesIO(content), path)
    found = {k.encode() if isinstance(k, str) else k: v for k, v in found.items()} if isinstance(
        found, dict) else {}  # fmt: skip
    pixels, labels = found.get(b"data"), found.get(LABELS[name])
    good = (
        isinstance(pixels, np.ndarray)
        and pixels.dtype == np.uint8
        and pixels.ndim == 2
        and pixels.shape[1] == 3072
        and isinstance(labels, (list, np.ndarray))
        and len(labels) == len(pixels)
    )
    if not good:
        raise LandscapeError(
            f"{path} is not a batch of {name}: it must hold 'data' (n, 3072) uint8 and "
            f"{LABELS[name].decode()!r} (n,)."
        )
    labels = np.asarray(labels)
    if labels.dtype.kind not in "iu" or labels.min() < 0 or labels.max() >= CLASSES[name]:
        raise LandscapeError(f"{path} has a label outside 0..{CLASSES[name] - 1}.")
    return pixels, labels.astype(np.int64)


def read_pickle(file: BinaryIO, path: Path) -> Any:
    """Unpickle numbers, strings, containers and numpy arrays; anything else is refused by name."""
    try:
        return _Unpickler(file, encoding="bytes").load()
    except LandscapeError as error:
        raise LandscapeError(f"{path} {error}") from None
    except Exception as error:  # a damaged stream raises whatever its bytes happen to ask for
        raise LandscapeError(
            f"{path} is not a whole pickle ({type(error).__name__}: {error}). Download it again."
        ) from None


def _encode(text: str, encoding: str) -> bytes:
    """What Python 3 writes for bytes in protocol 2."""
    return text.encode(encoding)


_RECONSTRUCT = np.empty(0).__reduce__()[0]
_ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): _encode,
    ("builtins", "bytes"): bytes,
    ("__builtin__", "bytes"): bytes,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """Only what a numpy array of numbers needs."""
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise LandscapeError(
                f"asks for {module}.{name}, which no CIFAR file does; it was not run. Download the "
                f"published file."
            ) from None
