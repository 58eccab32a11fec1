"""Weights files by their content: safetensors, files of torch.save, folders cut into shards.

Nothing in a file is run. What torch's restricted reader does not know is refused by name, but for
data that cannot act: numpy's numbers are read, paths and `argparse.Namespace` become blanks.
"""

import hashlib
import json
import re
import warnings
import zipfile
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn

from landscape.errors import LandscapeError
from landscape.storage import check_zip, file_sha256, is_plain_name, sealed_sha256

_INDEX = ".index.json"
_FOLDER = (
    "model.safetensors.index.json", "pytorch_model.bin.index.json", "model.safetensors",
    "pytorch_model.bin", "diffusion_pytorch_model.safetensors",
)  # fmt: skip
_TEXT = bytes([*b"\t\n\r", *range(32, 127)])
_FOREIGN: tuple[tuple[bytes, str], ...] = (
    (b"\x89HDF", "an HDF5 file (Keras keeps weights so)"),
    (
        b"version https://git-lfs",
        "a Git LFS pointer and not the file; run `git lfs pull` beside it",
    ),
    (b"\x1f\x8b", "compressed with gzip; unpack it first"),
    (b"GGUF", "a GGUF file, whose weights are quantized"),
    (b"\x93NUMPY", "a numpy array"),
)


@dataclass(frozen=True)
class WeightsFile:
    """What lies in a weights file: nested mappings and lists with tensors in them.

    sha256: of the file; of the shards' names and hashes for an index. checksum: what the file
    itself says of its bytes ("sha256", "crc32"), None where the format has none. beside: other
    weights files of the folder that was given, which were not read.
    """

    path: Path
    content: Any
    sha256: str
    checksum: str | None
    shard: bool = False
    beside: tuple[str, ...] = ()


def digest(path: str | Path) -> str:
    """SHA-256 of a weights file, or of the names and hashes of all shards of an index or folder."""
    path = _file_of(Path(path))
    if not path.name.endswith(_INDEX):
        return file_sha256(path)
    shards = sorted({path.name, *_weight_map(path).values()})
    listed = [[name, file_sha256(path.parent / name)] for name in shards]
    return hashlib.sha256(json.dumps(listed).encode()).hexdigest()


def read(path: str | Path, *, trust_pickle: str | None = None) -> WeightsFile:
    """Read a weights file whatever its name ends in; a folder is searched for its index.

    trust_pickle: SHA-256 of a file whose code may run (a whole pickled model), typed in by whoever
    trusts it.
    """
    given, path = Path(path), _file_of(Path(path))
    beside = tuple(found.name for found in _in_folder(given) if found != path)
    with _whole(path):
        if path.name.endswith(_INDEX):
            return replace(_read_shards(path), beside=beside)
        content, checksum = _content(path, trust_pickle)
        shard = re.search(r"-\d+-of-\d+\.", path.name) is not None
        return WeightsFile(path, content, file_sha256(path), checksum, shard, beside)


def read_own(path: Path) -> tuple[dict[str, torch.Tensor], str]:
    """Tensors of a file that `save_tensors` wrote, and the digest that it carries and has."""
    if not path.is_file():
        raise LandscapeError(f"The weights file {path} does not exist.")
    with _whole(path):
        digest = sealed_sha256(path)
        if digest is None:
            raise LandscapeError(
                f"{path} carries no digest, as weights of a training do: it was changed, or "
                f"written by an older version. Remove the run's folder and train again."
            )
        return load_file(path), digest


def _in_folder(path: Path) -> list[Path]:
    return [path / name for name in _FOLDER if (path / name).is_file()]


def _file_of(path: Path) -> Path:
    try:
        if path.is_dir():
            found = _in_folder(path)
            if not found:
                raise LandscapeError(
                    f"{path} is a folder without {', '.join(_FOLDER[:4])}; give the weights file. "
                    f"(Distributed checkpoints: `python -m torch.distributed.checkpoint."
                    f"format_utils dcp_to_torch FOLDER FILE` makes one file.)"
                )
            return found[0]
        if path.is_file():
            return path
    except LandscapeError:
        raise
    except (OSError, ValueError) as error:
        raise LandscapeError(f"The weights file {str(path)!r} cannot be opened: {error}.") from None
    raise LandscapeError(f"The weights file {path} does not exist.")


@contextmanager
def _whole(path: Path) -> Generator[None]:
    """Damaged files fail in as many ways as they have bytes; each is one sentence."""
    try:
        yield
    except LandscapeError:
        raise
    except Exception as error:
        said = str(error).splitlines()[0] if str(error) else ""
        what = f"{type(error).__name__}: {said}" if said else type(error).__name__
        raise LandscapeError(
            f"{path} is not a whole weights file ({what}); copy it again."
        ) from None


def _content(path: Path, trust_pickle: str | None) -> tuple[Any, str | None]:
    """Content and kind of checksum of one file."""
    with path.open("rb") as handle:
        head = handle.read(512)
    if not head:
        raise LandscapeError(f"{path} is empty; copy it again.")
    if zipfile.is_zipfile(path) and head[:2] == b"PK":
        _check_zip(path)
        return _unpickled(path, trust_pickle), "crc32"
    for magic, words in _FOREIGN:
        if head.startswith(magic):
            raise LandscapeError(f"{path} is {words}; give a file of torch.save or safetensors.")
    if head.lstrip()[:1] == b"<":
        raise LandscapeError(f"{path} is a web page and not weights: the download failed.")
    if head[:1] == b"{":
        raise LandscapeError(
            f"{path} is JSON; of JSON only an index of shards holds weights, by a name that ends "
            f"in {_INDEX}."
        )
    if _is_safetensors(path, head):
        return load_file(path), "sha256" if sealed_sha256(path) else None
    if path.suffix == ".safetensors":
        raise LandscapeError(f"{path} is not a whole safetensors file; copy it again.")
    if not head.translate(None, _TEXT):
        raise LandscapeError(f"{path} is text and not weights ({head[:40].decode()!r}).")
    return _unpickled(path, trust_pickle), None


def _is_safetensors(path: Path, head: bytes) -> bool:
    size = int.from_bytes(head[:8], "little")
    return len(head) > 8 and head[8:9] == b"{" and 8 + size <= path.stat().st_size


def _check_zip(path: Path) -> None:
    """Refuse damage, which torch does not look for, and archives of something else."""
    names = check_zip(path)
    if any(name.endswith("/constants.pkl") for name in names):
        raise LandscapeError(
            f"{path} is a TorchScript program, not weights; its code was not run. Where you trust "
            f"it: torch.save(torch.jit.load({path.name!r}).state_dict(), 'weights.pt')."
        )
    if not any(name.endswith("/data.pkl") or name == "data.pkl" for name in names):
        found = ", ".join(names[:4]) or "nothing"
        raise LandscapeError(
            f"{path} is an archive of {found}, and not of torch.save. Give the file that "
            f"torch.save(model.state_dict(), path) writes, or a safetensors file."
        )


class _Blank:
    """Stands for an object that is no weights; takes whatever it is given and does nothing."""

    def __new__(cls, *_: Any, **__: Any) -> "_Blank":
        return super().__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        return

    def __setstate__(self, state: Any) -> None:
        return


_BLANK = (
    "argparse.Namespace", "types.SimpleNamespace",
    *(f"{module}.{kind}Path" for module in ("pathlib", "pathlib._local")
      for kind in ("Posix", "Windows", "PurePosix", "PureWindows", "")),
    "datetime.datetime", "datetime.timedelta", "datetime.date", "torch.torch_version.TorchVersion",
    "builtins.slice", "builtins.range", "builtins.complex", "uuid.UUID", "decimal.Decimal",
    "fractions.Fraction", "pytorch_lightning.utilities.parsing.AttributeDict",
    "lightning_fabric.utilities.data.AttributeDict",
    "lightning.fabric.utilities.data.AttributeDict",
)  # fmt: skip


def _harmless() -> list[Any]:
    """What may be named in a file beside tensors: numpy's numbers as they are, the rest blank."""
    numbers: list[tuple[Any, str]] = [(np.ndarray, "numpy.ndarray"), (np.dtype, "numpy.dtype")]
    # What numpy itself names when it pickles a number and an array, wherever its version keeps it.
    pickling = {
        "scalar": np.float64(0).__reduce__()[0],
        "_reconstruct": np.empty(0).__reduce__()[0],
    }
    for module in ("numpy.core.multiarray", "numpy._core.multiarray"):
        numbers += [(function, f"{module}.{name}") for name, function in pickling.items()]
    for kind in vars(np.dtypes).values():
        if isinstance(kind, type) and issubclass(kind, np.dtype):
            numbers += [(kind, f"numpy.dtypes.{kind.__name__}"), (kind, f"numpy.{kind.__name__}")]
    return [*numbers, *((_Blank, name) for name in _BLANK)]


def _unpickled(path: Path, trust_pickle: str | None) -> Any:
    if trust_pickle is not None:
        found = file_sha256(path)
        if found != trust_pickle.lower():
            raise LandscapeError(
                f"{path} has the SHA-256 {found} and {trust_pickle} is trusted: another file. It "
                f"was not opened."
            )
        return _load(path, weights_only=False)
    try:
        with torch.serialization.safe_globals(_harmless()):
            return _load(path, weights_only=True)
    except Exception as error:
        strange = _strange_objects(path, error)
        if not strange:
            raise
        raise LandscapeError(_not_run(path, strange)) from None


def _load(path: Path, *, weights_only: bool) -> Any:
    # From an open file: by the name of one, torch would guess its format.
    with path.open("rb") as handle, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.load(handle, map_location="cpu", weights_only=weights_only)


def _strange_objects(path: Path, error: Exception) -> list[str]:
    """Names of what the file wants to make beside tensors; none where it is merely damaged."""
    known = {name for _, name in _harmless()}
    try:
        named = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # files of before torch 1.6 cannot be listed
        named = re.findall(r"GLOBAL (\S+)", str(error))
    return sorted(set(named) - known)


def _not_run(path: Path, strange: list[str]) -> str:
    shown = ", ".join(strange[:4]) + (f" and {len(strange) - 4} more" if len(strange) > 4 else "")
    return (
        f"{path} holds Python objects beside tensors ({shown}); making them would run code of the "
        f"file, so nothing of it was run. Where the model is at hand: "
        f"torch.save(model.state_dict(), 'weights.pt'). Where you trust the file: `landscape "
        f"weights {path.name} --trust-pickle {file_sha256(path)} --out weights.safetensors` (that "
        f"is its SHA-256; compare it with the source's) runs it once and keeps the weights alone."
    )


def _weight_map(path: Path) -> Mapping[str, str]:
    """Which file of the folder holds which tensor, from the index of a sharded checkpoint."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise LandscapeError(f"{path} is not whole JSON ({error}); copy it again.") from None
    table = found.get("weight_map") if isinstance(found, dict) else None
    if not isinstance(table, dict) or not table:
        raise LandscapeError(
            f"{path} is no index of a sharded checkpoint: it needs a table weight_map of names and "
            f"files."
        )
    for name, file in table.items():
        if not isinstance(file, str) or not is_plain_name(file):
            raise LandscapeError(f"{path}: {name!r} is said to lie in {file!r}, no file beside it.")
        if not (path.parent / file).is_file():
            raise LandscapeError(f"{path} names {file}, which is not beside it; copy all shards.")
    return table


def _read_shards(path: Path) -> WeightsFile:
    table = _weight_map(path)
    merged: dict[str, Any] = {}
    checksums = set()
    for file in dict.fromkeys(table.values()):
        part = path.parent / file
        with _whole(part):
            content, checksum = _content(part, None)
        checksums.add(checksum)
        wanted = {name for name, where in table.items() if where == file}
        lacking = sorted(wanted - set(content if isinstance(content, Mapping) else ()))
        if lacking:
            raise LandscapeError(f"{part} lacks {lacking[0]}, which {path.name} says it holds.")
        merged |= {name: content[name] for name in wanted}
    checksum = checksums.pop() if len(checksums) == 1 else None
    return WeightsFile(path, merged, digest(path), checksum)


def tensors_of(content: Any) -> Iterator[tuple[tuple[str, ...], str, Any]]:
    """(where, name, tensor or array) of all in nested mappings, lists and trusted modules."""
    yield from _walk(content, (), set())


def _walk(content: Any, where: tuple[str, ...], above: set[int]) -> Iterator[Any]:
    if id(content) in above or len(where) > 16:  # a pickle may hold itself
        return
    above = above | {id(content)}
    if isinstance(content, nn.Module):
        content = content.state_dict()
    if isinstance(content, Mapping):
        items = [(key, value) for key, value in content.items() if isinstance(key, (str, int))]
    elif isinstance(content, (list, tuple)):
        items = list(enumerate(content))
    else:
        return
    for key, value in items:
        if isinstance(value, np.ndarray) and value.dtype.kind in "fiubc":
            yield where, str(key), value.astype(value.dtype.newbyteorder("="))
        elif isinstance(value, torch.Tensor) and value.is_nested:  # several, and of no shape
            yield from _walk(value.unbind(), (*where, str(key)), above)
        elif isinstance(value, torch.Tensor):
            yield where, str(key), value
        else:
            yield from _walk(value, (*where, str(key)), above)
