"""Who works in a folder, one at a time, on file systems that several machines share.

A claim is a file that only one process can make (O_EXCL, which NFS keeps since version 3) and that
its owner touches every few seconds. One that was not touched for a minute is nobody's, and one
whose process ended on this machine is so at once. Ages are differences of times that the file
system gave: the clocks of two machines need not agree.
"""

import getpass
import json
import os
import platform
import threading
import time
import uuid
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from landscape import storage
from landscape.errors import LandscapeError

BEAT, SILENCE = 5.0, 60.0  # seconds between beats; after how many without one nobody works
_ours: set[str] = set()  # tokens of the claims that this process holds


@dataclass(frozen=True)
class Worker:
    """Who said last that it works in a folder, and how many seconds ago.

    where: machine and process, which tell on that machine whether it still runs; with the name of
    the job of a batch system, which one that was requeued has kept.
    """

    owner: str
    began: float
    heard: float
    token: str = ""
    where: tuple[str, int] = ("", 0)
    job: str = ""

    @property
    def alive(self) -> bool:
        """Whether it was heard of lately; a machine that is stopped or cut off is not."""
        return self.heard < SILENCE

    def still_works(self) -> bool:
        """Whether it is alive, as far as this process can tell."""
        if not self.alive:
            return False
        if self.job and self.job == _job() and self.token not in _ours:
            return False  # this very job, before the batch system started it again
        machine, process = self.where
        if machine != platform.node():
            return True
        if process == os.getpid():
            return self.token in _ours
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            return False
        except OSError:
            return True
        return True


class WorkClaim:
    """A claim that is held; `lost` once another process has taken it over."""

    def __init__(self, path: Path, token: str) -> None:
        self.path, self.token = path, token
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    @property
    def lost(self) -> bool:
        """Whether the file is another's, because this process was not heard of for too long."""
        found = read(self.path)
        return found is not None and found.token not in ("", self.token)

    def check(self) -> None:
        """Refuse to go on where another process works now."""
        if self.lost:
            found = read(self.path)
            who = found.owner if found else "another process"
            raise LandscapeError(
                f"{self.path.parent} was taken over by {who}, because this process was not heard "
                f"of for {SILENCE:.0f} s (it was stopped, or its disk did not answer)."
            )

    def _beat(self) -> None:
        while not self._done.wait(BEAT):
            with suppress(OSError):
                if not self.lost:
                    os.utime(self.path)

    def release(self) -> None:
        """Stop beating, and take the file away if it is still ours."""
        self._done.set()
        self._thread.join()
        try:
            _remove(self.path, lambda found: found.token == self.token)
        finally:  # on a full disk the file may stay: it is nobody's
            _ours.discard(self.token)


@contextmanager
def claim(path: Path, *, wait: Callable[[Worker], None] | None = None) -> Generator[WorkClaim]:
    """Hold `path` as long as the block lasts.

    wait: called each second while another holds it; without one that is refused by its name.
    """
    token = uuid.uuid4().hex
    while (other := _take(path, token)) is not None:
        if wait is None:
            raise LandscapeError(
                f"{path.parent} is being worked on by {other.owner}, heard of {other.heard:.0f} s "
                f"ago; wait for it or stop it."
            )
        wait(other)
        time.sleep(min(1.0, BEAT))
    held = WorkClaim(path, token)
    held._thread.start()
    try:
        yield held
    finally:
        held.release()


def _take(path: Path, token: str) -> Worker | None:
    """Make the file; whoever holds it, if somebody does."""
    while not _made(path, token):
        found = _fresh(path)
        copied = found.token if found is not None and _stands_still(path) else ""
        if found is not None and found.still_works() and not copied:
            return found
        _remove(path, partial(_is_nobodys, copied=copied))
    return None


def _is_nobodys(found: Worker, *, copied: str) -> bool:
    return found.token == copied != "" or not found.still_works()


def _stands_still(path: Path) -> bool:
    """Whether its time lies ahead and nobody moves it, as in a copy, or where a clock was put back.

    Who holds it gives it the time of now with each beat.
    """
    with suppress(OSError):
        before = path.stat().st_mtime_ns
        if _age(path) < -SILENCE:
            time.sleep(3 * BEAT)
            return path.stat().st_mtime_ns == before
    return False


def _made(path: Path, token: str) -> bool:
    said = {
        "owner": owner(), "began": time.time(), "token": token,
        "where": [platform.node(), os.getpid()], "job": _job(),
    }  # fmt: skip
    with storage.writing(path):
        storage.make_room(path)
        try:
            handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        except FileExistsError:
            return False
        _ours.add(token)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(said, file)
    return True


def _fresh(path: Path) -> Worker | None:
    """Who holds it, its age by the clock of the file system."""
    with storage.writing(path):
        return read(path, now=_now(path))


def _now(path: Path) -> float:
    """The time that the file system gives to a file now."""
    probe = storage.aside(path)
    probe.touch()
    try:
        return probe.stat().st_mtime
    finally:
        probe.unlink(missing_ok=True)


def _age(path: Path) -> float:
    return _now(path) - path.stat().st_mtime


def _remove(path: Path, which: Callable[[Worker], bool]) -> None:
    """Take a claim away if it is such a one; one process at a time looks and does so.

    Otherwise a second that had seen the same dead claim would take away that of the first.
    """
    key = path.with_name(f"{path.name}.key")
    with suppress(OSError):
        try:
            os.close(os.open(key, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        except FileExistsError:
            if _age(key) > SILENCE:  # of one who was killed between these lines
                key.unlink()
            time.sleep(0.01)
            return
        try:
            found = _fresh(path)
            if found is not None and which(found):
                path.unlink()
        finally:
            key.unlink()


def read(path: Path, *, now: float | None = None) -> Worker | None:
    """Who holds a claim, or did and did not say that it ended; None where nobody does."""
    try:
        heard = max(0.0, (time.time() if now is None else now) - path.stat().st_mtime)
        text = path.read_text(encoding="utf-8")
    except OSError:
        return None
    try:
        said = json.loads(text)
        machine, process = said.get("where") or ("", 0)
        return Worker(
            str(said["owner"]), float(said["began"]), heard, str(said.get("token", "")),
            (str(machine), int(process)), str(said.get("job", "")),
        )  # fmt: skip
    except (KeyError, TypeError, ValueError, AttributeError):
        # Being written just now, or by one who was killed in between.
        return Worker("somebody who did not say its name", 0.0, heard)


def owner() -> str:
    """This process, in words for people."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # no name for this number
        user = "somebody"
    job = f", {_job()}" if _job() else ""
    return f"{user}@{platform.node()}, process {os.getpid()}{job}"


def _job() -> str:
    """The job of a batch system that this process is; empty outside of one."""
    number = os.environ.get("SLURM_JOB_ID", "")
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    if array and task:
        number = f"{array}_{task}"
    return f"Slurm job {number}" if number else ""
