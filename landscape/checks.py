"""Checks of arguments, check_x(name, value, ...): the value, or what is possible.

`name` is the argument as the caller wrote it.
"""

import difflib
import math
from collections.abc import Collection
from numbers import Integral, Real
from typing import Any

from landscape.errors import LandscapeError

__all__ = [
    "LARGEST_SEED",
    "MOST",
    "check_choice",
    "check_count",
    "check_flag",
    "check_fraction",
    "check_number",
    "check_rho",
]

MOST = 10**9  # of anything that is counted one by one
LARGEST_SEED = 2**63 - 1  # what a generator takes


def check_count(
    name: str, value: Any, least: int = 1, *, most: int | None = None, hint: str = ""
) -> int:
    """A whole number >= `least`, and <= `most`."""
    if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
        raise LandscapeError(f"{name}={value!r} was asked; give a whole number >= {least}{hint}.")
    if most is not None and value > most:
        raise LandscapeError(f"{name}={value!r} was asked; give {most} at most.")
    return int(value)


def check_flag(name: str, value: Any) -> bool:
    """True or False."""
    if not isinstance(value, bool):
        raise LandscapeError(f"{name}={value!r} is neither true nor false.")
    return value


def _finite(value: Any) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond all floats
        return False


def check_number(
    name: str,
    value: Any,
    *,
    least: float = -math.inf,
    most: float = math.inf,
    beyond: bool = False,
    below: bool = False,
) -> float:
    """A finite number >= least (> with beyond=True) and <= most (< with below=True)."""
    bounds = [f"{'>' if beyond else '>='} {least:g}"] if math.isfinite(least) else []
    bounds += [f"{'<' if below else '<='} {most:g}"] if math.isfinite(most) else []
    bound = f"{name} {' and '.join(bounds)}" if bounds else "any"
    if not isinstance(value, Real) or isinstance(value, bool):
        raise LandscapeError(f"{name}={value!r} is not a number; give one with {bound}.")
    inside = (value > least if beyond else value >= least) and (
        value < most if below else value <= most
    )
    if not _finite(value) or not inside:
        raise LandscapeError(f"{name}={value} was asked; it must be finite and {bound}.")
    return float(value)


def check_rho(name: str, value: Any) -> float:
    """A radius, finite and >= 0."""
    if not isinstance(value, Real) or isinstance(value, bool):
        raise LandscapeError(f"{name}={value!r} is not a number; give a radius {name} >= 0.")
    if not _finite(value) or value < 0:
        raise LandscapeError(f"{name}={value} was asked; a radius is finite and {name} >= 0.")
    return float(value)


def check_fraction(name: str, value: Any, *, zero: bool = True, one: bool = True) -> float:
    """A number in [0, 1], without 0 when zero=False, without 1 when one=False."""
    bounds = f"{'[' if zero else '('}0, 1{']' if one else ')'}"
    if not isinstance(value, Real) or isinstance(value, bool):
        raise LandscapeError(f"{name}={value!r} is not a number in {bounds}.")
    if 2 <= value <= 100:
        raise LandscapeError(
            f"{name}={value} is outside {bounds}: did you mean {name}={value / 100:g}?"
        )
    if not 0 <= value <= 1 or (value == 0 and not zero) or (value == 1 and not one):
        raise LandscapeError(f"{name}={value} is outside {bounds}.")
    return float(value)


def check_choice(name: str, value: Any, choices: Collection[Any]) -> Any:
    """One of the choices, all of which the message lists, the closest first."""
    if value not in choices:
        words = [each for each in choices if isinstance(each, str)]
        close = difflib.get_close_matches(str(value), words, n=1)
        hint = f" did you mean {close[0]!r}?" if close else ""
        raise LandscapeError(
            f"{name}={value!r} is unknown;{hint} choose one of {', '.join(map(repr, choices))}."
        )
    return value
