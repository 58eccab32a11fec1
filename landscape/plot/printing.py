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
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
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


def save_all(prints: Sequence[Print]) -> list[list[Path]]:
    """Write every figure; paths in the order of `prints`. The bytes are those of one process."""
    count = max(1, min(usable_cores(), len(prints) // _WORTH))
    shares = [prints[start::count] for start in range(count)]
    helpers = [_start(share) for share in shares[1:]]
    try:
        _save(shares[0])
        for helper, share in zip(helpers, shares[1:], strict=True):
            if helper is None or helper.wait() != 0:
                _save(share)  # where something is wrong with a figure, this says what
    finally:
        for helper in helpers:
            if helper is not None and helper.poll() is None:
                helper.kill()
                helper.wait()
    return [[each.path.with_suffix(suffix) for suffix in each.suffixes] for each in prints]


def _save(prints: Sequence[Print]) -> None:
    for each in prints:
        each.save()


def _start(prints: Sequence[Print]) -> "subprocess.Popen[bytes] | None":
    """A helper at work on some figures; None where the system starts none."""
    here = str(Path(__file__).parents[2])
    known = [here, *filter(None, [os.environ.get("PYTHONPATH")])]
    try:
        with TemporaryFile() as told:
            pickle.dump((os.getpid(), _settings(), prints), told)
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
    """Life of a helper: the figures of its standard input, as long as the caller lives."""
    caller, settings, prints = pickle.load(sys.stdin.buffer)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        matplotlib.rcParams.update(settings)
    warnings.simplefilter("error")  # the caller draws such a figure again, and is warned
    for each in prints:
        if os.getppid() != caller:
            sys.exit(1)
        each.save()
