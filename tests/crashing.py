"""Ends a process, or fills the disk, at the k-th change that it makes below a folder."""

import errno
import os
import sys
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

import cloudpickle

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate")
KILLED = 9


class Disk:
    """Counts what is opened to write, synced, renamed, removed or made below `folder`.

    at: the change that does not happen any more. how: "kill" ends the process there, as SIGKILL
    would; "torn" also leaves half of what was appended and not synced; "full" refuses this and all
    further openings and folders, as a disk without space does.
    """

    def __init__(self, folder: Path, at: int, how: str) -> None:
        self.folder, self.at, self.how = str(folder), at, how
        self.count = 0
        self.log: list[str] = []
        self.appended: tuple[str, int] | None = None
        self.stopped = False

    def __enter__(self) -> "Disk":
        sys.addaudithook(self._hear)  # for good: `stopped` ends it
        self.fsync = os.fsync
        os.fsync = self._fsync
        return self

    def __exit__(self, *_: object) -> None:
        self.stopped = True
        os.fsync = self.fsync

    def _fsync(self, handle: int) -> None:
        self._change("fsync", os.readlink(f"/proc/self/fd/{handle}"))
        self.fsync(handle)
        self.appended = None  # what the disk has is not torn any more

    def _hear(self, event: str, arguments: tuple) -> None:
        if self.stopped or not (event == "open" or event in CHANGES):
            return
        path = arguments[0]
        if isinstance(path, bytes):
            path = os.fsdecode(path)
        if not isinstance(path, str) or not path.startswith(self.folder):
            return
        if event == "open" and not arguments[2] & WRITING:
            return
        self._change(event, path)
        if event == "open" and arguments[2] & os.O_APPEND:
            self.appended = (path, os.path.getsize(path) if os.path.exists(path) else 0)

    def _change(self, what: str, path: str) -> None:
        self.count += 1
        self.log.append(f"{what} {Path(path).name}")
        if self.count < self.at:
            return
        if self.how == "full":
            if what in ("open", "fsync", "os.mkdir"):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
            return
        self.stopped = True  # what follows is not the study's
        if self.how == "torn" and self.appended is not None:
            torn, before = self.appended
            if os.path.exists(torn) and os.path.getsize(torn) > before:
                handle = os.open(torn, os.O_RDWR)
                os.ftruncate(handle, (before + os.path.getsize(torn) + 1) // 2)
        os._exit(KILLED)


def in_a_child(work: Callable[[], object]) -> tuple[int, str]:
    """Exit code of `work` in a process of its own, and the error that it ended with.

    Forked from a server in which no backward pass ran: autograd's threads do not survive a fork.
    """
    context = get_context("forkserver")
    context.set_forkserver_preload(
        ["landscape.study.running", "landscape.report", "tests.crashing"]
    )
    receive, send = context.Pipe(duplex=False)
    child = context.Process(target=_tried, args=(cloudpickle.dumps(work), send))
    child.start()
    send.close()
    try:
        said = receive.recv()
    except EOFError:  # it was killed
        said = ""
    child.join()
    return child.exitcode, said


def _tried(work: bytes, send: Connection) -> None:
    code, said = 0, ""
    try:
        cloudpickle.loads(work)()
    except BaseException as error:
        code, said = 1, f"{type(error).__name__}: {error}"
    send.send(said)
    os._exit(code)
