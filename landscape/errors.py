"""What a user of the package is meant to read or to catch."""

import re
from typing import Any

__all__ = ["Interrupted", "LandscapeError"]

_UNSEEN = re.compile(
    r"[\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff\ufeff]"
)


def _spelled(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape", "backslashreplace").decode()


class LandscapeError(ValueError):
    """What was asked, what is possible, what to do: one sentence each, with the values.

    Commands print the message alone and exit with `exit_code`; code may catch it as ValueError.
    Names from files of others are in it: characters that are not seen (ends of lines, what moves
    a terminal's cursor or turns the direction of writing) are spelled as in Python.

    Example:
        >>> try:
        ...     measure.top_eigenvalues(risk, theta, k=1000, seed=0)
        ... except LandscapeError as error:
        ...     print(error)
        k=1000 eigenpairs asked of an operator of size P=83, and it has 83; k must be at most 83.
    """

    exit_code = 2

    def __init__(self, message: object = "") -> None:
        super().__init__(_UNSEEN.sub(_spelled, str(message)))


class Interrupted(KeyboardInterrupt):
    """Ctrl-C during a measurement: `partial` is what was known by then, marked as such, or None.

    A KeyboardInterrupt, so that a program stops as it would without it.

    Example:
        >>> from landscape.errors import Interrupted
        >>> try:
        ...     raise Interrupted("Ctrl-C after 3 of 10 probes.", partial=3)
        ... except Interrupted as stop:
        ...     print(stop.partial)
        3
    """

    def __init__(self, message: str, partial: Any = None) -> None:
        super().__init__(message)
        self.partial = partial
