"""One table of figures, two renderers: how a figure becomes a function of its twin."""

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

from landscape.errors import LandscapeError
from landscape.plot import derived, figures
from landscape.plot.drawing import Drawing


def twins(module: str, render: Callable[..., Any]) -> Callable[[str], Callable[..., Any]]:
    """The `__getattr__` of a module with one function per figure.

    Each takes its figure's own arguments, `width`, and `highlight` (ids or labels of variants; the
    others are pale), and is rendered instead of a `Drawing`.
    """

    @functools.cache
    def find(name: str) -> Callable[..., Any]:
        if name not in figures.__all__:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        return _twin(getattr(figures, name), module, render)

    return find


def _twin(figure: Callable[..., Any], module: str, render: Callable[..., Any]) -> Any:
    @functools.wraps(figure)
    def draw(
        *data: Any,
        width: str | float = "neurips",
        highlight: Sequence[str] | None = None,
        **options: Any,
    ) -> Any:
        drawing = figure(*data, **options)
        if highlight is not None:
            drawing = highlighted(drawing, highlight, *data)
        return render(drawing, width=width)

    own = inspect.signature(figure)
    draw.__module__ = module
    signature = own.replace(
        parameters=[*own.parameters.values(), *_ADDED],
        return_annotation=inspect.signature(render).return_annotation,
    )
    vars(draw)["__signature__"] = signature
    return draw


_ADDED = [
    inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)
    for name, default, kind in (
        ("width", "neurips", str | float),
        ("highlight", None, Sequence[str] | None),
    )
]


def highlighted(drawing: Drawing, chosen: Sequence[str], *data: Any) -> Drawing:
    """The drawing of `data` with the chosen variants, by id or label, before pale others."""
    labels: dict[str, str] = {}
    for ds in data:
        if ds is not None and "label" in ds.coords and "variant" in ds.coords:
            names = zip(ds.variant.values.ravel(), ds.label.values.ravel(), strict=True)
            labels |= {str(name): str(label) for name, label in names}
    unknown = [name for name in chosen if name not in labels and name not in labels.values()]
    if unknown:
        raise LandscapeError(
            f"To highlight {', '.join(map(repr, unknown))} was asked; the variants here are "
            f"{', '.join(labels) or 'none'}."
        )
    return derived.highlighting(drawing, [labels.get(n, n) for n in chosen], list(labels.values()))
