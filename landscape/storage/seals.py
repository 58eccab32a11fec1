"""Digests: whether a file still has the bytes that were written.

A safetensors file carries its own in its metadata: the SHA-256 of the file with 64 zeros in the
place of the digest, so that every byte of it counts. An archive (.npz, .pt) carries that of all
bytes before it at its end, in the archive's comment: a program that writes it anew leaves none.
"""

import hashlib
import json
import zipfile
from pathlib import Path

from landscape.errors import LandscapeError
from landscape.storage.writing import check_file, reading

SEAL = "landscape_sha256"
_EMPTY = "0" * 64
_COMMENT = f"{SEAL}:".encode()
_HEX = frozenset("0123456789abcdef")


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with reading(path), Path(path).open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def check_zip(path: Path) -> list[str]:
    """Names of an archive's members once names, sizes and CRC-32 of all are found to be right."""
    check_file(path)
    with zipfile.ZipFile(path) as archive:
        infos = archive.infolist()
        names = [info.filename for info in infos]
        if len(set(names)) < len(names):
            raise LandscapeError(f"{path} holds two members of one name; copy it again.")
        for info in infos:
            with archive.open(info) as member:
                size = sum(len(part) for part in iter(lambda: member.read(1 << 20), b""))
            # torch takes what is marked a directory for one, and reads memory instead of it.
            marked = bool(info.external_attr & 0x10) and not info.is_dir()
            if size != info.file_size or marked:
                raise LandscapeError(f"{path} is damaged in {info.filename}; copy it again.")
    return names


def seal_zip(path: Path) -> None:
    """Put the digest into the comment of an archive that has none yet."""
    with Path(path).open("r+b") as handle:
        handle.seek(-2, 2)  # the length of the comment ends an archive without one
        handle.write((len(_COMMENT) + 64).to_bytes(2, "little") + _COMMENT)
        handle.seek(0)
        digest = hashlib.file_digest(handle, "sha256").hexdigest()
        handle.seek(0, 2)
        handle.write(digest.encode())


def check_sealed_zip(path: Path) -> None:
    """ValueError for an archive whose bytes are not those that `seal_zip` saw."""
    check_file(path)
    found, size = hashlib.sha256(), Path(path).stat().st_size - 64
    with Path(path).open("rb") as handle:
        tail = b""
        while size > 0 and (part := handle.read(min(1 << 20, size))):
            found.update(part)
            tail, size = (tail + part)[-len(_COMMENT) :], size - len(part)
        said = handle.read()
    if tail != _COMMENT:
        raise ValueError("it carries no digest: it was cut, or another program wrote it anew")
    if found.hexdigest().encode() != said:
        raise ValueError("its bytes differ from the SHA-256 that it carries")


def unsealed() -> dict[str, str]:
    """Metadata to write into a safetensors file that `seal` is to complete."""
    return {SEAL: _EMPTY}


def seal(path: Path) -> str:
    """Put the digest into a safetensors file that was written with `unsealed` metadata.

    The metadata are put in order first: safetensors writes them in another one each time.
    """
    head, _ = _header(path)
    table = json.loads(head)
    table["__metadata__"] = dict(sorted(table["__metadata__"].items()))
    head = json.dumps(table, separators=(",", ":"), ensure_ascii=False).encode().ljust(len(head))
    digest = _digest(path, head)
    with Path(path).open("r+b") as handle:
        handle.seek(8)
        handle.write(head.replace(f'"{SEAL}":"{_EMPTY}"'.encode(), f'"{SEAL}":"{digest}"'.encode()))
    return digest


def sealed_sha256(path: Path) -> str | None:
    """The digest in a safetensors file if it is right, None without one; another one raises."""
    try:
        head, place = _header(path)
    except (OSError, ValueError, KeyError):
        return None
    said = head[place : place + 64].decode("ascii", "replace")
    blank = head[:place] + _EMPTY.encode() + head[place + 64 :]
    if not set(said) <= _HEX or _digest(path, blank) != said:
        raise LandscapeError(
            f"{path} was changed after it was written: its bytes differ from the SHA-256 that it "
            f"carries. Take the file from a copy, or make it again."
        )
    return said


def metadata(path: Path) -> dict[str, str]:
    """What a safetensors file says of itself, not compared with its bytes; empty without it."""
    try:
        head, _ = _header(path)
    except (OSError, ValueError, KeyError):
        return {}
    return json.loads(head)["__metadata__"]


def declared_sha256(path: Path) -> str | None:
    """The digest that a safetensors file carries, not compared with its bytes; None without one."""
    try:
        head, place = _header(path)
    except (OSError, ValueError, KeyError):
        return None
    return head[place : place + 64].decode("ascii", "replace")


def _header(path: Path) -> tuple[bytes, int]:
    """The JSON header of a safetensors file, and where in it the digest stands."""
    check_file(path)
    with Path(path).open("rb") as handle:
        size = int.from_bytes(handle.read(8), "little")
        if size > 100 << 20:
            raise ValueError("no safetensors header")
        head = handle.read(size)
    metadata = json.loads(head).get("__metadata__", {})
    return head, head.index(f'"{SEAL}":"{metadata[SEAL]}"'.encode()) + len(SEAL) + 4


def _digest(path: Path, head: bytes) -> str:
    found = hashlib.sha256(len(head).to_bytes(8, "little") + head)
    with Path(path).open("rb") as handle:
        handle.seek(8 + len(head))
        while part := handle.read(1 << 20):
            found.update(part)
    return found.hexdigest()
