"""Files that are whole or absent: atomic writes and append-only lines."""

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

from landscape.errors import LandscapeError


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn a full disk or a missing permission into one sentence that names the file."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise LandscapeError(
                f"The disk is full: {path} was not written (what was there before is untouched). "
                f"Free some space and run the same command again; it resumes."
            ) from error
        if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
            raise LandscapeError(
                f"No permission to write {path}. Choose another folder with --out."
            ) from error
        raise


def write_atomically(path: Path, write: Callable[[Path], None]) -> Path:
    """Call `write(temporary)` beside `path`, fsync, rename: readers see the old or the new file."""
    path = Path(path)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with NamedTemporaryFile(
            dir=path.parent, prefix=f".{path.stem}-", suffix=path.suffix, delete=False
        ) as handle:
            temporary = Path(handle.name)
        try:
            write(temporary)
            with temporary.open("rb") as handle:
                os.fsync(handle.fileno())
            temporary.chmod(0o666 & ~_umask())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    return path


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_text(path: Path, text: str) -> Path:
    """Write UTF-8 text atomically."""
    return write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_json(path: Path, value: Any) -> Path:
    """Write JSON atomically; NaN is refused because JSON has none (store null)."""
    return write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read JSON; a missing or broken file is named."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise LandscapeError(f"{path} does not exist.") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise LandscapeError(
            f"{path} is not valid JSON ({error}). It was damaged or written by something else; "
            f"remove it and run the command that made it again."
        ) from None


def append_line(path: Path, record: dict[str, Any]) -> None:
    """Append one JSON line and flush it to the operating system.

    A line torn by a crash is completed by a newline first, so that it stays one bad line.
    """
    path = Path(path)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab+") as handle:
            if handle.tell() > 0:
                handle.seek(-1, os.SEEK_END)
                if handle.read(1) != b"\n":
                    handle.write(b"\n")
            handle.write(json.dumps(record).encode() + b"\n")


def read_lines(path: Path) -> tuple[list[dict[str, Any]], int]:
    """Return the whole records of a JSON-lines file and the number of torn lines left out."""
    records, torn = [], 0
    if not Path(path).exists():
        return records, torn
    for line in Path(path).read_bytes().splitlines():
        try:
            records.append(json.loads(line))
        except (json.JSONDecodeError, UnicodeDecodeError):
            torn += 1
    return records, torn


def truncate_lines(path: Path, keep: Callable[[dict[str, Any]], bool]) -> None:
    """Rewrite a JSON-lines file with the records that `keep` accepts (resuming at a checkpoint)."""
    records, _ = read_lines(path)
    kept = [record for record in records if keep(record)]
    write_text(path, "".join(json.dumps(record) + "\n" for record in kept))


def free_bytes(path: Path) -> int:
    """Free space of the disk that holds `path` (or its nearest existing parent)."""
    path = Path(path).absolute()
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free
