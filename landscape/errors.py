"""What a user of the package is meant to read or to catch."""

from typing import Any


class LandscapeError(ValueError):
    """What was asked, what is possible, what to do: one sentence each, with the values.

    Commands print the message alone and exit with `exit_code`; code may catch it as ValueError.
    """

    exit_code = 2


class Interrupted(KeyboardInterrupt):
    """Ctrl-C during a measurement: `partial` is what was known by then, marked as such, or None.

    A KeyboardInterrupt, so that a program stops as it would without it.
    """

    def __init__(self, message: str, partial: Any = None) -> None:
        super().__init__(message)
        self.partial = partial
