"""What is being done in a run, line by line: for people, and for who waits for it elsewhere."""

import time
import traceback
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from landscape.study.claims import owner
from landscape.study.pool import Report

EVERY = 5.0  # seconds between lines that only say how far it is


def path(folder: Path) -> Path:
    """The log of a run."""
    return folder / "log.txt"


@contextmanager
def logged(folder: Path, report: Report) -> Generator[Report]:
    """A report that is also written down, with who works and how it ended.

    A log that a disk refuses is left: what decides is whether the results can be written.
    """
    spoke, said = 0.0, ""

    def heard(fraction: float, note: str) -> None:
        nonlocal spoke, said
        now = time.monotonic()
        if note != said or now - spoke >= EVERY:
            spoke, said = now, note
            _write(folder, f"{100 * fraction:3.0f} %  {note}")
        report(fraction, note)

    _write(folder, f"  0 %  begun by {owner()}")
    try:
        yield heard
    except BaseException as error:
        _write(folder, f"  0 %  ended by {type(error).__name__}: {error}")
        _write(folder, "".join(traceback.format_exception(error)), plain=True)
        raise
    _write(folder, "100 %  done")


def far(folder: Path) -> tuple[float, str] | None:
    """The fraction that is done and the note, of the last whole line; None before there is one."""
    with suppress(OSError, ValueError):
        with path(folder).open("rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - 2000))
            lines = file.read().decode("utf-8", "replace").split("\n")[:-1]
        share, found, note = lines[-1][20:].partition(" %  ")
        if found:
            return float(share) / 100, note
    return None


def _write(folder: Path, text: str, *, plain: bool = False) -> None:
    stamp = "" if plain else time.strftime("%Y-%m-%d %H:%M:%S ")
    with suppress(OSError), path(folder).open("a", encoding="utf-8") as file:
        file.write(f"{stamp}{text.rstrip()}\n")
