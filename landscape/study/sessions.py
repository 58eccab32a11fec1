"""Who works on a run: a file with a heartbeat while it lasts, and a line when it has ended.

Only for people who look on (`landscape status`): nothing that is measured depends on either.
"""

import getpass
import os
import platform
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from landscape import storage
from landscape.errors import LandscapeError

BEAT, SILENCE = 5.0, 60.0  # seconds between beats; after how many without one nobody works


@dataclass(frozen=True)
class Worker:
    """Who said last that it works on a run, and how many seconds ago."""

    owner: str
    began: float
    heard: float

    @property
    def alive(self) -> bool:
        """Whether it was heard of lately; a machine that is stopped or cut off is not."""
        return self.heard < SILENCE


@contextmanager
def session(folder: Path) -> Generator[None]:
    """Say that this process works on a run, as long as the block lasts, and how it ended."""
    path, began = _heartbeat(folder), time.time()
    owner = _owner()
    with suppress(LandscapeError):
        storage.write_json(path, {"owner": owner, "began": began})
    done = threading.Event()
    beat = threading.Thread(target=_beat, args=(path, done), daemon=True)
    beat.start()
    ended, note = "done", ""
    try:
        yield
    except Exception as error:
        ended, note = "failed", f"{error}"
        raise
    except BaseException:
        ended = "stopped"
        raise
    finally:
        done.set()
        beat.join()
        line = {"owner": owner, "began": began, "seconds": time.time() - began, "ended": ended}
        with suppress(LandscapeError, OSError):
            storage.append_line(_log(folder), line | {"note": note})
            path.unlink()


def worker(folder: Path) -> Worker | None:
    """Who works on a run, or did and did not say that it ended; None where nobody does."""
    path = _heartbeat(folder)
    try:
        heard = max(0.0, time.time() - path.stat().st_mtime)
        said = storage.read_json(path)
        return Worker(str(said["owner"]), float(said["began"]), heard)
    except (OSError, LandscapeError, KeyError, TypeError, ValueError):
        return None


def ended(folder: Path) -> list[dict[str, Any]]:
    """The sessions of a run that said how they ended, in time; torn lines are left out."""
    if not _log(folder).exists():
        return []
    return storage.read_lines(_log(folder), on_error="skip")[0]


def _beat(path: Path, done: threading.Event) -> None:
    while not done.wait(BEAT):
        with suppress(OSError):
            os.utime(path)


def _owner() -> str:
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # no name for this number
        user = "somebody"
    return f"{user}@{platform.node()}, process {os.getpid()}"


def _heartbeat(folder: Path) -> Path:
    return folder / "working.json"


def _log(folder: Path) -> Path:
    return folder / "sessions.jsonl"
