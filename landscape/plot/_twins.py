"""One table of figures, two renderers: how a figure becomes a function of its twin."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

from landscape.plot.drawing import Drawing


def drawn_by(
    render: Callable[..., Any],
) -> Callable[[Callable[..., Drawing]], Callable[..., Any]]:
    """A decorator: the figure's own arguments plus `width`, rendered instead of a `Drawing`."""
    returned = inspect.signature(render).return_annotation

    def twin(figure: Callable[..., Drawing]) -> Callable[..., Any]:
        @functools.wraps(figure)
        def draw(*data: Any, width: str | float = "neurips", **options: Any) -> Any:
            return render(figure(*data, **options), width=width)

        own = inspect.signature(figure)
        width = inspect.Parameter(
            "width", inspect.Parameter.KEYWORD_ONLY, default="neurips", annotation=str | float
        )
        draw.__signature__ = own.replace(  # type: ignore[attr-defined]
            parameters=[*own.parameters.values(), width], return_annotation=returned
        )
        return draw

    return twin
