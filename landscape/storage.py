"""Files that are whole or absent: atomic writes, append-only lines, and a study's folder.

Everything that a study leaves on disk goes through this module, so that a killed process, a full
disk or a half-copied folder can be told from a finished result.
"""

import errno
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

from landscape.errors import LandscapeError

STUDY_FORMAT = 1


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


@dataclass(frozen=True)
class StudyFolder:
    """Where the parts of a study lie.

    STUDY/  study.toml · resolved.json · runs/<run>/{spec.json, history.jsonl, snapshots/,
    checkpoints/, results/<measurement>.nc, done.json} · results/<measurement>.nc · figures/ ·
    report.html · report.md
    """

    root: Path

    @property
    def study_toml(self) -> Path:
        """The study file as it was given."""
        return self.root / "study.toml"

    @property
    def resolved(self) -> Path:
        """Every choice spelled out, with versions, threads and the list of runs."""
        return self.root / "resolved.json"

    @property
    def runs(self) -> Path:
        """One folder per run."""
        return self.root / "runs"

    @property
    def results(self) -> Path:
        """Measurements combined over runs, one netCDF file each."""
        return self.root / "results"

    @property
    def figures(self) -> Path:
        """Static figures and the data behind them."""
        return self.root / "figures"

    @property
    def report(self) -> Path:
        """The self-contained page."""
        return self.root / "report.html"

    def run(self, run_id: str) -> Path:
        """Folder of one run."""
        return self.runs / run_id

    def check(self) -> dict[str, Any]:
        """Return resolved.json, refusing a folder that is no study or of another format."""
        if not self.root.is_dir():
            raise LandscapeError(f"{self.root} is not a folder. Give the folder of a study.")
        if not self.resolved.exists():
            raise LandscapeError(
                f"{self.root} holds no resolved.json, so it is not a study folder. "
                f"`landscape run study.toml --out {self.root}` makes one."
            )
        resolved = read_json(self.resolved)
        found = resolved.get("format") if isinstance(resolved, dict) else None
        if found != STUDY_FORMAT:
            raise LandscapeError(
                f"{self.root} was made with study format {found}; this version reads format "
                f"{STUDY_FORMAT}. Use the version that made it, or run the study into a new folder."
            )
        return resolved


def free_bytes(path: Path) -> int:
    """Free space of the disk that holds `path` (or its nearest existing parent)."""
    path = Path(path).absolute()
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def slug(text: str) -> str:
    """Lower-case letters, digits and dashes: a name that is safe in any file system."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
