"""Many static figures at once, on every core that may be used.

Helpers are fresh interpreters that are handed drawings. Nothing is forked, so threads and locks of
the caller stay where they are, and its script is not run again, as `multiprocessing` would. What a
helper does not finish is drawn here: with one core, or where no process can be started, everything.
"""

import os
import pickle
import subprocess
import sys
import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import Any

import matplotlib

from landscape.cores import usable_cores
from landscape.plot import static
from landscape.plot.drawing import Drawing

_WORTH = 5  # figures that take as long as starting a helper
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
        drawn = static.render(self.drawing, width=self.width, letters=self.letters, dpi=self.dpi)
        return [static.save(drawn, self.path.with_suffix(suffix)) for suffix in self.suffixes]


class Printing:
    """Figures that helpers draw while the caller does something else; it draws what they have left.

    with Printing(prints):  # helpers are at work
        ...
    # all are there, with the bytes of one process

    Each figure is claimed by whoever begins it: helpers go from the first on, the caller from the
    last back. Paths in the order of `prints` are `paths`.
    """

    def __init__(self, prints: Sequence[Print]) -> None:
        self.prints = tuple(prints)
        self.paths = [[one.path.with_suffix(end) for end in one.suffixes] for one in self.prints]
        self.helpers: list[subprocess.Popen[bytes]] = []
        self._claims: TemporaryDirectory[str] | None = None

    def __enter__(self) -> "Printing":
        wanted = min(usable_cores(), len(self.prints) // _WORTH) - 1
        with suppress(OSError):  # without a place for claims it is alone
            self._claims = TemporaryDirectory(prefix="landscape-figures-") if wanted > 0 else None
            started = [_start(self.prints, self.claims) for _ in range(wanted)]
            self.helpers = [helper for helper in started if helper is not None]
        return self

    @property
    def claims(self) -> str:
        """The folder in which a figure is claimed; "" where nobody else draws."""
        return "" if self._claims is None else self._claims.name

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            if kind is None:
                self._finish()
        finally:
            for helper in self.helpers:
                if helper.poll() is None:
                    helper.kill()
                    helper.wait()
            if self._claims is not None:
                self._claims.cleanup()

    def _finish(self) -> None:
        own = [n for n in reversed(range(len(self.prints))) if self._draw(n)]
        if any([helper.wait() for helper in self.helpers]):
            for number in set(range(len(self.prints))) - set(own):
                self.prints[number].save()  # where something is wrong with one, this says what

    def _draw(self, number: int) -> bool:
        if not _claim(self.claims, number):
            return False
        self.prints[number].save()
        return True


def save_all(prints: Sequence[Print]) -> list[list[Path]]:
    """Write every figure; paths in the order of `prints`."""
    with Printing(prints) as printing:
        return printing.paths


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


def _start(prints: Sequence[Print], claims: str) -> "subprocess.Popen[bytes] | None":
    """A helper at work on the figures; None where the system starts none."""
    here = str(Path(__file__).parents[2])
    known = [here, *filter(None, [os.environ.get("PYTHONPATH")])]
    try:
        with TemporaryFile() as told:
            pickle.dump((os.getpid(), _settings(), prints, claims), told)
            told.seek(0)
            return subprocess.Popen(
                [sys.executable, "-c", _HELPER],
                stdin=told,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(known)},
            )
    except (OSError, TypeError, AttributeError, pickle.PickleError):
        return None


def _settings() -> dict[str, Any]:
    """The caller's own settings of matplotlib, which are drawn with; no window system is asked."""
    return {key: value for key, value in dict(matplotlib.rcParams).items() if key != "backend"}


def _help() -> None:
    """Life of a helper: figures of its standard input, as long as the caller lives."""
    caller, settings, prints, claims = pickle.load(sys.stdin.buffer)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        matplotlib.rcParams.update(settings)
    warnings.simplefilter("error")  # the caller draws such a figure again, and is warned
    for number, each in enumerate(prints):
        if os.getppid() != caller:
            sys.exit(1)
        if _claim(claims, number):
            each.save()
