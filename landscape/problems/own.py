"""What users bring as Python objects, by "package.module:callable"."""

import importlib
import inspect
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from landscape.errors import LandscapeError


def import_object(spec: str) -> Callable[..., Any]:
    """The callable named "package.module:callable"; the current folder is looked in as well.

    spec: that name. Raises LandscapeError where there is none, with what was found.

    Example:
        >>> problems.import_object("torch.nn:CrossEntropyLoss") is nn.CrossEntropyLoss
        True
    """
    module_name, colon, path = spec.partition(":")
    if not colon or not module_name or not path:
        raise LandscapeError(
            f"{spec!r} does not name a callable; write 'package.module:callable', for example "
            f"'my_code.models:make'."
        )
    here = str(Path.cwd())
    if here not in sys.path and "" not in sys.path:
        sys.path.insert(0, here)
    importlib.invalidate_caches()
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and (module_name == error.name or module_name.startswith(error.name + ".")):
            raise LandscapeError(
                f"No module {error.name!r} for {spec!r} in {here} or the installed packages; run "
                f"from the folder that holds it, or install it."
            ) from None
        raise LandscapeError(
            f"{module_name} needs {error.name!r}, which is not installed."
        ) from error
    except Exception as error:
        raise LandscapeError(
            f"Importing {module_name} failed: {type(error).__name__}: {error}."
        ) from error
    for part in path.split("."):
        if not hasattr(found, part):
            public = [n for n in vars(found) if not n.startswith("_") and callable(vars(found)[n])]
            raise LandscapeError(
                f"{module_name} has no {path!r}; it has {', '.join(public) or 'no callable'}."
            )
        found = getattr(found, part)
    if not callable(found):
        raise LandscapeError(f"{spec} is a {type(found).__name__} and cannot be called.")
    return found


def call_with_accepted(function: Callable[..., Any], options: Mapping[str, Any]) -> Any:
    """Call with those options that the signature names (all of them if it takes **kwargs)."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return function()
    if not any(p.kind is p.VAR_KEYWORD for p in parameters):
        names = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
        options = {key: value for key, value in options.items() if key in names}
    return function(**options)
