"""A study's names for data, models and losses: ours, or "package.module:callable" with its hash.

Nothing of the user's is imported here: a file is found and hashed, so that a changed model file
makes new runs, and a name that leads nowhere is refused before anything starts.
"""

import difflib
import importlib.util
import re
import sys
import traceback
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path

from landscape.errors import LandscapeError
from landscape.storage import file_sha256
from landscape.study.spec import Problem, fingerprint

_CALLABLE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")


@contextmanager
def importable(base: Path) -> Generator[None]:
    """Let modules beside the study file, and in the current folder, be imported."""
    added = [str(base), str(Path.cwd())]
    sys.path[:0] = added
    try:
        yield
    finally:
        for entry in added:
            sys.path.remove(entry)


@contextmanager
def calling(base: Path, name: str) -> Generator[None]:
    """Call the user's callable `name` within; what it raises is said to be its own, with its place.

    Where `name` is one of ours, nothing is changed.
    """
    try:
        with importable(base):
            yield
    except LandscapeError:
        raise
    except Exception as error:
        if not is_callable_name(name):
            raise
        last = traceback.extract_tb(error.__traceback__)[-1]
        said = " ".join(str(error).split())[:300]
        raise LandscapeError(
            f"{name} failed: {type(error).__name__}: {said} ({last.filename}, line {last.lineno})."
        ) from error


def is_callable_name(name: str) -> bool:
    """Whether `name` has the form "package.module:callable"."""
    return _CALLABLE.fullmatch(name) is not None


def check_names(where: str, problem: Problem) -> None:
    """Refuse data, model or loss names that are neither ours nor "package.module:callable"."""
    from landscape.problems.data import DATA
    from landscape.problems.models import LOSSES, MODELS

    choices = {"data": DATA, "model": tuple(MODELS), "loss": tuple(LOSSES)}
    for key, names in choices.items():
        value = getattr(problem, key)
        if not isinstance(value, str):
            raise LandscapeError(f"{where} {key} = {value!r} must be a name.")
        if value in names or is_callable_name(value):
            continue
        close = difflib.get_close_matches(value, names, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise LandscapeError(
            f"{where} {key}: unknown {value!r}.{hint} Possible: {', '.join(names)}, or your own as "
            f'"package.module:callable".'
        )


def fingerprints(
    problem: Problem, base: Path, weights: str | None, recipe: str, trail: Mapping[int, str]
) -> dict[str, str]:
    """Hashes of the user's files that decide the numbers: modules named, and the weights."""
    from landscape.problems.weights_file import digest

    found = {"weights": digest(weights)[:16]} if weights else {}
    if trail:
        found["trail"] = fingerprint([[step, digest(path)] for step, path in trail.items()])
    for name in (problem.data, problem.model, problem.loss, recipe):
        if is_callable_name(name):
            found[name] = file_sha256(module_file(name, base))[:16]
    return found


def module_file(name: str, base: Path) -> Path:
    """The file of the module in "package.module:callable"."""
    module = name.partition(":")[0]
    with importable(base):
        importlib.invalidate_caches()
        try:
            spec = importlib.util.find_spec(module)
        except (ImportError, ValueError):
            spec = None
    if spec is None or spec.origin is None or not Path(spec.origin).is_file():
        raise LandscapeError(
            f"{name}: no module {module!r} beside the study file ({base}), in the current folder "
            f"or installed. Write package.module:callable, without .py."
        )
    return Path(spec.origin)
