"""Files that are whole or absent: atomic writes, and one sentence for whatever a disk refuses."""

import errno
import os
import re
import shutil
import socket
import stat
import time
import uuid
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import NamedTemporaryFile

from landscape.errors import LandscapeError

_TEMPORARY = ".landscape-"  # then the process, its machine and the name that the file will have
_DAY = 86400.0
_locks: set[Path] = set()

# Libraries wrap what the system said: h5py in text, safetensors in text, torch in a position.
_SAID = re.compile(r"errno = (\d+)|os error (\d+)|\[Errno (\d+)\]")
_LIBRARY = re.compile(
    r"PytorchStreamWriter|inline_container|file write failed|unexpected pos|I/O error"
    r"|Unable to (?:synchronously )?(?:write|flush|create|close|extend|open)"
    r"|requested and \d+ written"
)
_FULL = {errno.ENOSPC, errno.EDQUOT}
_DENIED = {errno.EACCES, errno.EROFS, errno.EPERM}
_NO_PLACE = {errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENOENT, errno.ENAMETOOLONG,
             errno.EINVAL, errno.ELOOP}  # fmt: skip


@contextmanager
def writing(path: Path) -> Generator[None]:
    """Turn whatever a disk refuses into one sentence that names the file."""
    try:
        yield
    except LandscapeError:
        raise
    except Exception as error:
        number = _errno(error)
        if number is None and not isinstance(error, OSError) and not _LIBRARY.search(str(error)):
            raise
        raise LandscapeError(_refused(path, number, error)) from error


@contextmanager
def reading(path: Path) -> Generator[None]:
    """Turn a file that cannot be read into one sentence that names it."""
    try:
        check_file(path)
        yield
    except FileNotFoundError:
        raise LandscapeError(f"{path} does not exist.") from None
    except OSError as error:
        raise LandscapeError(f"{path} cannot be read: {error.strerror or error}.") from error


def check_file(path: Path) -> None:
    """OSError for a pipe, a socket or a device: reading one may wait for ever, or never end."""
    kind = os.stat(path).st_mode
    if not (stat.S_ISREG(kind) or stat.S_ISDIR(kind)):
        raise OSError(errno.EINVAL, "it is a pipe, a socket or a device, and no file")


def _errno(error: BaseException) -> int | None:
    """What the system said, whichever library passed it on."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno:
            return seen.errno
        found = _SAID.search(str(seen))
        if found:
            return int(next(group for group in found.groups() if group))
        seen = seen.__cause__ or seen.__context__
    return None


def _refused(path: Path, number: int | None, error: Exception) -> str:
    if number in _FULL or (number is None and _is_full(path)):
        return (
            f"The disk is full: {path} was not written (what was there before is untouched). "
            f"Free some space and run the same command again; it resumes."
        )
    if number == errno.EFBIG:
        return (
            f"{path} was not written: it is larger than a file may be here (ulimit -f, or the file "
            f"system). Raise the limit and run the same command again; it resumes."
        )
    if number in _DENIED:
        return f"No permission to write {path}. Choose another folder with --out."
    if number in _NO_PLACE:
        return (
            f"{path} cannot be made there: {os.strerror(number)}. Choose another folder with --out."
        )
    said = os.strerror(number) if number else str(error).splitlines()[0]
    return f"{path} was not written: {said}. Run the same command again; it resumes."


def _is_full(path: Path) -> bool:
    with suppress(OSError):
        return free_bytes(path) < 1 << 20
    return False


def hold(lock: Path) -> None:
    """Write below the folder of a lock only while it lies there: one taken away stays away.

    The lock goes with the rest even where a write, running meanwhile, makes the folder again.
    """
    _locks.add(Path(lock))


def make_room(path: Path) -> None:
    """Make the folder of a file, unless the folder that is held has gone."""
    for lock in _locks:
        if lock.parent in path.parents and not lock.exists():
            raise LandscapeError(
                f"{lock.parent} was removed while it was worked in; {path.name} was not written. "
                f"Run the command again to begin anew."
            )
    path.parent.mkdir(parents=True, exist_ok=True)


def aside(path: Path) -> Path:
    """An unused name beside `path`, which `sweep` removes once this process has ended."""
    name = f"{_TEMPORARY}{os.getpid()}-{_host()}-{uuid.uuid4().hex[:8]}{path.suffix}"
    return path.with_name(name)


def write_atomically(path: Path, write: Callable[[Path], object]) -> Path:
    """Call `write(temporary)` beside `path`, fsync, rename: readers see the old or the new file."""
    path = Path(path)
    with writing(path):
        make_room(path)
        with NamedTemporaryFile(
            dir=path.parent, prefix=f"{_TEMPORARY}{os.getpid()}-{_host()}-", suffix=path.suffix,
            delete=False,
        ) as handle:  # fmt: skip
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


def _host() -> str:
    return re.sub(r"\W", "", socket.gethostname())[:16] or "here"


def is_temporary(path: Path) -> bool:
    """Whether a write of ours that was not finished left it."""
    return path.name.startswith(_TEMPORARY)


def sweep(root: Path) -> list[Path]:
    """Remove what killed writes left behind anywhere below `root`; the files that were removed."""
    gone = []
    for folder, _, names in os.walk(root):
        for name in names:
            if is_temporary(Path(name)) and _is_dead(Path(folder) / name):
                with suppress(OSError):
                    (Path(folder) / name).unlink()
                    gone.append(Path(folder) / name)
    return gone


def _is_dead(temporary: Path) -> bool:
    """Whether nobody writes it any more; on another machine, whether it is a day old."""
    process, _, rest = temporary.name.removeprefix(_TEMPORARY).partition("-")
    if not process.isdigit() or rest.partition("-")[0] != _host():
        with suppress(OSError):
            return time.time() - temporary.stat().st_mtime > _DAY
        return False
    if int(process) == os.getpid():
        return False
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_text(path: Path, text: str) -> Path:
    """Write UTF-8 text atomically; half of a surrogate pair becomes a question mark."""
    content = text.encode("utf-8", "replace")
    return write_atomically(path, lambda temporary: temporary.write_bytes(content))


def free_bytes(path: Path) -> int:
    """Free space of the disk that holds `path` (or its nearest existing parent)."""
    path = Path(path).absolute()
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free
