"""Ends a process, or fills the disk, at the k-th change that it makes below a folder.

Or copies the folder at every change: what a kill there would leave, all of them in one run.
"""

import errno
import os
import shutil
import sys
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

import cloudpickle

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate")
KILLED = 9


_hooked: list[bool] = []
_listening: list["Disk"] = []  # the one that is at work; a hook of Python stays for good


def _hear(event: str, arguments: tuple) -> None:
    for disk in _listening:
        disk.hear(event, arguments)


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
        if not _hooked:
            _hooked.append(True)
            sys.addaudithook(_hear)
        _listening.append(self)
        self.fsync = os.fsync
        os.fsync = self._fsync
        return self

    def __exit__(self, *_: object) -> None:
        self.stopped = True
        _listening.remove(self)
        os.fsync = self.fsync

    def _fsync(self, handle: int) -> None:
        self._change("fsync", os.readlink(f"/proc/self/fd/{handle}"))
        self.fsync(handle)
        self.appended = None  # what the disk has is not torn any more

    def hear(self, event: str, arguments: tuple) -> None:
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
            _tear(*self.appended)
        os._exit(KILLED)


def _tear(path: str, before: int) -> bool:
    """Take half of what was appended; whether there was anything."""
    if not os.path.exists(path) or os.path.getsize(path) <= before:
        return False
    handle = os.open(path, os.O_RDWR)
    os.ftruncate(handle, (before + os.path.getsize(path) + 1) // 2)
    os.close(handle)
    return True


class States(Disk):
    """Copies `folder` to kept/kill-<n> before change n, and to kept/torn-<n> where that differs.

    Those are the files that `Disk` leaves when it ends the process there: what the process holds in
    buffers of its own is in neither.
    """

    def __init__(self, folder: Path, kept: Path) -> None:
        super().__init__(folder, 1 << 30, "kill")
        self.kept = kept

    def _change(self, what: str, path: str) -> None:
        super()._change(what, path)
        self.stopped = True
        if os.path.isdir(self.folder):
            shutil.copytree(self.folder, self.kept / f"kill-{self.count}")
            if self.appended is not None:
                torn, before = self.appended
                copy = self.kept / f"torn-{self.count}"
                shutil.copytree(self.folder, copy)
                if not _tear(str(copy / os.path.relpath(torn, self.folder)), before):
                    shutil.rmtree(copy)
        else:
            (self.kept / f"kill-{self.count}").mkdir(parents=True)
        self.stopped = False


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
