"""The command line: thin, and quick to start; the work is imported inside the commands.

Exit codes: 0 all well · 1 some runs failed (the others are done) · 2 bad input, one sentence says
what · 130 stopped by Ctrl-C. Progress goes to stderr; paths and --json to stdout.
"""

import signal
import sys

from landscape.cli.commands import app
from landscape.errors import LandscapeError

__all__ = ["app", "main"]


def main() -> None:
    """Entry point: one sentence for the user's mistakes, a traceback only for ours."""
    signal.signal(signal.SIGTERM, _terminated)
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
            raise
    if code == 130:  # typer turns Ctrl-C into this code without a word
        print("Stopped. Nothing is lost: the same command continues where it was.", file=sys.stderr)
    sys.exit(code or 0)


def _usage_error(error: Exception) -> int | None:
    """Exit code of the option parser's own errors, which know how to show themselves."""
    if hasattr(error, "show") and hasattr(error, "exit_code"):
        error.show()
        return error.exit_code
    return 130 if type(error).__name__ == "Abort" else None


def _terminated(*_: object) -> None:
    raise KeyboardInterrupt
