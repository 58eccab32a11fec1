"""Many static figures at once, on every core that may be used.

Helpers are fresh interpreters that are handed drawings. Nothing is forked, so threads and locks of
the caller stay where they are, and its script is not run again, as `multiprocessing` would. What a
helper does not finish is drawn here: with one core, or where no process can be started, everything.
"""

import gc
import importlib
import os
import pickle
import subprocess
import sys
import warnings
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Any, cast

import matplotlib

from landscape.cores import usable_cores
from landscape.plot import static
from landscape.plot.drawing import Drawing

_WORTH = 5  # figures that take as long as starting a helper
# What matplotlib loads when it draws and saves first.
_LATE = ("matplotlib.backends.backend_agg", "matplotlib.backends.backend_pdf")
_HELPER = "from landscape.plot.printing import _help; _help()"


@dataclass(frozen=True)
class Print:
    """A drawing and the files it becomes: `path` with each suffix, laid out as `static.render`."""

    drawing: Drawing
    path: Path
    suffixes: tuple[str, ...]
    width: str | float = "neurips"
    letters: bool = False
    dpi: int = 200

    def save(self) -> list[Path]:
        """Draw and write it in this process."""
        with _nothing_collected():
            drawn = static.render(
                self.drawing, width=self.width, letters=self.letters, dpi=self.dpi
            )
            return [static.save(drawn, self.path.with_suffix(suffix)) for suffix in self.suffixes]


@contextmanager
def _nothing_collected() -> Generator[None]:
    """Nothing of a figure is rubbish while it is drawn: looking for some takes a fifth of it."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


class Printing:
    """Figures that helpers draw while the caller does something else; it draws what they have left.

    with Printing(expected=40) as printing:  # helpers load what they need
        ...
        paths = printing.begin(prints)  # and are at work
        ...
        paths += printing.begin(more)
    # all are there, with the bytes of one process

    expected: about how many there will be; for few no helper is started.
    Each figure is claimed by whoever begins it: helpers go from the first on, the caller from the
    last back.
    """

    def __init__(self, expected: int) -> None:
        self.expected = expected
        self.prints: list[Print] = []
        self.helpers: list[subprocess.Popen[bytes]] = []
        self._claims: TemporaryDirectory[str] | None = None

    def __enter__(self) -> "Printing":
        wanted = min(usable_cores(), self.expected // _WORTH) - 1
        with suppress(OSError):  # without a place for claims it is alone
            self._claims = TemporaryDirectory(prefix="landscape-figures-") if wanted > 0 else None
            started = [_start() for _ in range(wanted)]
            self.helpers = [helper for helper in started if helper is not None]
        return self

    def begin(self, prints: Sequence[Print]) -> list[list[Path]]:
        """Hand figures to the helpers; the files that each will be."""
        first = len(self.prints)
        self.prints += prints
        told = _told(first, prints, self.claims) if self.helpers else ""
        for helper in self.helpers if told else ():
            with suppress(OSError):  # it has ended
                _input(helper).write(os.fsencode(told) + b"\n")
                _input(helper).flush()
        return [[one.path.with_suffix(end) for end in one.suffixes] for one in prints]

    @property
    def claims(self) -> str:
        """The folder in which a figure is claimed; "" where nobody else draws."""
        return "" if self._claims is None else self._claims.name

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            if kind is None:
                self._finish()
        finally:
            self._say_that_no_more_follow()
            for helper in self.helpers:
                if helper.poll() is None:
                    helper.kill()
                    helper.wait()
            if self._claims is not None:
                self._claims.cleanup()

    def _finish(self) -> None:
        self._say_that_no_more_follow()
        own = [n for n in reversed(range(len(self.prints))) if self._draw(n)]
        if any([helper.wait() for helper in self.helpers]):
            for number in set(range(len(self.prints))) - set(own):
                self.prints[number].save()  # where something is wrong with one, this says what

    def _say_that_no_more_follow(self) -> None:
        for helper in self.helpers:
            with suppress(OSError):  # it has ended
                _input(helper).close()

    def _draw(self, number: int) -> bool:
        if not _claim(self.claims, number):
            return False
        self.prints[number].save()
        return True


def save_all(prints: Sequence[Print]) -> list[list[Path]]:
    """Write every figure; paths in the order of `prints`."""
    with Printing(len(prints)) as printing:
        return printing.begin(prints)


def _claim(claims: str, number: int) -> bool:
    """Whether the figure is this process's to draw, now that it asks.

    Where it cannot be said that it is, as on a full disk, two draw it: they write the same bytes.
    """
    if claims:
        try:
            os.mkdir(os.path.join(claims, str(number)))
        except FileExistsError:
            return False
        except OSError:
            return True
    return True


def _start() -> "subprocess.Popen[bytes] | None":
    """A helper that waits to be told of figures; None where the system starts none."""
    here = str(Path(__file__).parents[2])
    known = [here, *filter(None, [os.environ.get("PYTHONPATH")])]
    try:
        return subprocess.Popen(
            [sys.executable, "-c", _HELPER],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(known)},
        )
    except OSError:
        return None


def _told(first: int, prints: Sequence[Print], claims: str) -> str:
    """A file that says all that a helper must know; "" where it cannot be written."""
    path = os.path.join(claims, f"told-{first}")
    try:
        with open(path, "wb") as file:
            pickle.dump((os.getpid(), _settings(), first, tuple(prints), claims), file)
    except (OSError, TypeError, AttributeError, pickle.PickleError):
        return ""
    return path


def _input(helper: "subprocess.Popen[bytes]") -> "IO[bytes]":
    return cast("IO[bytes]", helper.stdin)


def _settings() -> dict[str, Any]:
    """The caller's own settings of matplotlib, which are drawn with; no window system is asked."""
    return {key: value for key, value in dict(matplotlib.rcParams).items() if key != "backend"}


def _help() -> None:
    """Life of a helper: figures of the files that its standard input names, until that ends."""
    for name in _LATE:
        importlib.import_module(name)
    for line in sys.stdin.buffer:
        content = Path(os.fsdecode(line.rstrip(b"\n"))).read_bytes()
        caller, settings, first, prints, claims = pickle.loads(content)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            matplotlib.rcParams.update(settings)
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # the caller draws such a figure again, and is warned
            for number, each in enumerate(prints, first):
                if os.getppid() != caller:
                    sys.exit(1)
                if _claim(claims, number):
                    each.save()
