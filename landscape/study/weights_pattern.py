"""Weights that a study file names: a path, or a pattern with the run's own words in braces."""

import glob
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from landscape.errors import LandscapeError


def weights_files(
    where: str, given: Any, fields: Mapping[str, Any], base: Path
) -> tuple[str, dict[int, str]]:
    """The weights of a run, and with {step} in the pattern those of all its steps."""
    if not isinstance(given, str) or "{" not in given:
        return _weights_file(where, given, base), {}
    pattern = re.sub(r"\{step(:[^}]*)?\}", "{step}", given)
    try:
        named = pattern.format(**{**fields, "step": "{step}"})
    except (KeyError, IndexError, ValueError, AttributeError, TypeError) as error:
        raise LandscapeError(
            f"{where} weights = {given!r} cannot be filled in ({type(error).__name__}: "
            f"{error}). Possible: {{variant}}, {{seed}}, {{setting}}, {{step}} and any axis, "
            f"as {{rho}}; a brace of the name itself is doubled."
        ) from None
    if "{step}" not in named:
        return _weights_file(where, named, base), {}
    before, _, after = named.partition("{step}")
    found, start = {}, str(base / before)
    if before.endswith("/"):
        start += "/"
    for path in map(Path, glob.glob(glob.escape(start) + "*" + glob.escape(after))):
        step = str(path)[len(start) :].removesuffix(after)
        if step.isdigit():
            found[int(step)] = str(path.absolute())
    if not found:
        raise LandscapeError(
            f"{where} weights = {given!r}: no file is called {named!r} with a whole number for "
            f"{{step}} ({base})."
        )
    trail = dict(sorted(found.items()))
    return list(trail.values())[-1], trail


def _weights_file(where: str, given: Any, base: Path) -> str:
    """The whole path of a weights file, an index of shards or a folder with one."""
    if not isinstance(given, str) or not given or "\0" in given:
        raise LandscapeError(f"{where} weights = {given!r} must be the path of a file, in quotes.")
    path = base / given
    if not path.exists():
        raise LandscapeError(f"{where} weights file {given!r} does not exist ({path}).")
    return str(path.absolute())
