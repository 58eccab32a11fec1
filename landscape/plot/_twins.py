"""One table of figures, two renderers: how a figure becomes a function of its twin."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

from landscape.plot import figures


def twins(module: str, render: Callable[..., Any]) -> Callable[[str], Callable[..., Any]]:
    """The `__getattr__` of a module with one function per figure.

    Each takes its figure's own arguments and `width`, and is rendered instead of a `Drawing`.
    """

    @functools.cache
    def find(name: str) -> Callable[..., Any]:
        if name not in figures.__all__:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        return _twin(getattr(figures, name), module, render)

    return find


def _twin(figure: Callable[..., Any], module: str, render: Callable[..., Any]) -> Any:
    @functools.wraps(figure)
    def draw(*data: Any, width: str | float = "neurips", **options: Any) -> Any:
        return render(figure(*data, **options), width=width)

    own = inspect.signature(figure)
    width = inspect.Parameter(
        "width", inspect.Parameter.KEYWORD_ONLY, default="neurips", annotation=str | float
    )
    draw.__module__ = module
    draw.__signature__ = own.replace(  # type: ignore[attr-defined]
        parameters=[*own.parameters.values(), width],
        return_annotation=inspect.signature(render).return_annotation,
    )
    return draw
