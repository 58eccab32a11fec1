"""The command line: thin, and quick to start; the work is imported inside the commands.

Exit codes: 0 all well · 1 some runs failed (the others are done) · 2 bad input, one sentence says
what · 70 an error of ours, whose traceback is kept in a file · 130 stopped by Ctrl-C. Progress goes
to stderr; paths and --json to stdout.
"""

import os
import signal
import sys
import tempfile
import traceback
import warnings
from typing import Protocol, runtime_checkable

from landscape.cli.program import app
from landscape.errors import LandscapeError

# isort: split
from landscape.cli import working  # noqa: F401 -- registers its commands, in the order of --help

# isort: split
from landscape.cli import reading, tools  # noqa: F401

__all__ = ["app", "main"]


def main() -> None:
    """Entry point: one sentence for whatever goes wrong; a traceback of ours goes to a file."""
    signal.signal(signal.SIGTERM, _terminated)
    warnings.formatwarning = _warning  # ty: ignore[invalid-assignment]  # takes what it needs not
    try:
        code = app(standalone_mode=False)
    except LandscapeError as error:
        print(f"error: {error}", file=sys.stderr)
        code = error.exit_code
    except KeyboardInterrupt:
        code = 130
    except Exception as error:
        code = _usage_error(error)
        if code is None:
            code = _unforeseen(error)
    if code == 130:  # typer turns Ctrl-C into this code without a word
        print("Stopped. Nothing is lost: the same command continues where it was.", file=sys.stderr)
    sys.exit(code or 0)


def _unforeseen(error: Exception) -> int:
    """Exit code of an error that nobody foresaw: where its traceback was kept is said."""
    if isinstance(error, BrokenPipeError):  # whoever read our output has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="landscape-", suffix=".log", delete=False, encoding="utf-8"
        ) as handle:
            print("landscape", *sys.argv[1:], file=handle)
            traceback.print_exception(error, file=handle)
        kept = f"The traceback is in {handle.name}; please report it with that file."
    except OSError as full:
        kept = f"Its traceback could not be kept ({full.strerror})."
    said = " ".join(str(error).split())[:300]
    print(f"error: something went wrong inside landscape ({type(error).__name__}: {said}). {kept}",
          file=sys.stderr)  # fmt: skip
    return 70


@runtime_checkable
class _Shown(Protocol):
    """An error of the option parser, whichever package that is taken from."""

    exit_code: int

    def show(self) -> None: ...


def _usage_error(error: Exception) -> int | None:
    """Exit code of the option parser's own errors, which know how to show themselves."""
    if isinstance(error, _Shown):
        error.show()
        return error.exit_code
    return 130 if type(error).__name__ == "Abort" else None


def _warning(message: object, *_: object) -> str:
    """A warning as it is said to people, without the line of code that it comes from."""
    return f"warning: {message}\n"


def _terminated(*_: object) -> None:
    raise KeyboardInterrupt
