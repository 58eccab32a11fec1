"""JSON that carries a digest of itself: whole documents, and lines that are appended."""

import hashlib
import json
import math
import os
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from landscape.errors import LandscapeError
from landscape.storage.seals import SEAL
from landscape.storage.writing import make_room, reading, write_atomically, write_text, writing

_CHECK = b', "crc32": "'  # the last entry of a line; what stands before it is what it is of
_TAIL = len(_CHECK) + 8 + len(b'"}')
ON_ERROR = ("raise", "skip")
Kinds = Mapping[str, type | tuple[type, ...]]
NOTHING: Kinds = {}


def digest_of(value: Any) -> str:
    """SHA-256 of canonical JSON."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def write_json(path: Path, value: dict[str, Any]) -> Path:
    """Write JSON with its digest, atomically; NaN is refused because JSON has none (store null)."""
    sealed = {**value, SEAL: digest_of(value)}
    return write_text(path, json.dumps(sealed, indent=2, allow_nan=False) + "\n")


def load_json(path: Path) -> Any:
    """What a JSON file says, by whomever it was written; a missing or broken one is named."""
    path = Path(path)
    with reading(path):
        content = path.read_bytes()
    try:
        return json.loads(content.decode("utf-8"), parse_constant=_no_number, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise LandscapeError(
            f"{path} is not valid JSON ({error}). It was damaged or written by something else; "
            f"remove it and run the command that made it again."
        ) from None


def _finite(word: str) -> float:
    value = float(word)
    return value if math.isfinite(value) else _no_number(word)


def _no_number(word: str) -> Any:
    raise ValueError(f"{word} is no number of JSON")


def read_json(path: Path) -> dict[str, Any]:
    """Read a document of `write_json`; one that was changed since is named and refused."""
    return unsealed_json(path, load_json(path))


def unsealed_json(path: Path, value: Any) -> dict[str, Any]:
    """The document without its digest, once that is found to be right."""
    if not isinstance(value, dict) or not isinstance(value.get(SEAL), str):
        raise LandscapeError(
            f"{path} carries no digest ({SEAL}): it was written by hand or by an older version. "
            f"Remove it and run the command that made it again."
        )
    rest = {key: item for key, item in value.items() if key != SEAL}
    if digest_of(rest) != value[SEAL]:
        raise LandscapeError(
            f"{path} was changed after it was written: its content differs from the SHA-256 that "
            f"it carries. Take it from a copy, or remove it and run the command that made it again."
        )
    return rest


def _line(record: dict[str, Any]) -> bytes:
    body = json.dumps(record).encode()[:-1]
    return body + _CHECK + b'%08x"}\n' % zlib.crc32(body)


def _record(line: bytes) -> dict[str, Any] | None:
    """The record of one line, None where its checksum is not right."""
    body, tail = line[:-_TAIL], line[-_TAIL:]
    if tail != _CHECK + b'%08x"}' % zlib.crc32(body):
        return None
    try:
        return json.loads(body + b"}")
    except (ValueError, RecursionError):
        return None


def append_line(path: Path, record: dict[str, Any]) -> None:
    """Append one JSON line with its checksum and wait until the disk has it.

    What a crash left of a line is removed first.
    """
    path = Path(path)
    with writing(path):
        make_room(path)
        with path.open("ab+") as handle:
            end = handle.tell()
            whole = _end_of_lines(handle, end)
            if whole < end:
                handle.truncate(whole)
            try:
                handle.write(_line(record))
                handle.flush()
                os.fsync(handle.fileno())
            except OSError:
                handle.truncate(whole)
                raise


def _end_of_lines(handle: Any, end: int) -> int:
    """Where the last whole line ends."""
    place = end
    while place > 0:
        start = max(0, place - 4096)
        handle.seek(start)
        found = handle.read(place - start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        place = start
    return 0


def fits(record: Any, kinds: Kinds) -> bool:
    """Whether it is a document with these entries, each of its type; True and False are no numbers.

    kinds: the type, or types, of each.
    """
    return isinstance(record, dict) and all(
        isinstance(record.get(name), kind)
        and (kind is bool or not isinstance(record.get(name), bool))
        for name, kind in kinds.items()
    )


def read_lines(
    path: Path, *, on_error: str = "raise", kinds: Kinds = NOTHING
) -> tuple[list[dict[str, Any]], int]:
    """The records of a file of lines, and how many lines were left out.

    A last line that a crash has torn is left out. A line that differs from its checksum, or lacks
    one of the entries of `kinds` (`fits`), raises, or is left out with on_error="skip".
    """
    path = Path(path)
    if not path.exists():
        return [], 0
    with reading(path):
        *lines, torn = path.read_bytes().split(b"\n")
    records, left_out = [], int(bool(torn))
    for number, line in enumerate(lines, 1):
        record = _record(line)
        if record is not None and fits(record, kinds):
            records.append(record)
        elif on_error == "skip":
            left_out += 1
        else:
            wrong = "differs from its checksum" if record is None else "is of another file"
            raise LandscapeError(
                f"{path} was changed after it was written: line {number} {wrong}. Take it from a "
                f"copy, or remove {path.parent} and run the command that made it again."
            )
    return records, left_out


def truncate_lines(path: Path, keep: Callable[[dict[str, Any]], bool]) -> None:
    """Rewrite a file of lines with the records that `keep` accepts (resuming at a checkpoint)."""
    records, _ = read_lines(path)
    kept = b"".join(_line(record) for record in records if keep(record))
    write_atomically(path, lambda temporary: temporary.write_bytes(kept))
