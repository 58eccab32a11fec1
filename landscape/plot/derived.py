"""Drawings made from a drawing: some variants before pale others, and what is there at a moment."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from landscape.plot.drawing import (
    Axis,
    Band,
    Contours,
    Drawing,
    Field,
    Line,
    Mark,
    Panel,
    Points,
    extent,
)
from landscape.plot.style import PALE


def highlighting(drawing: Drawing, chosen: Sequence[str], among: Sequence[str]) -> Drawing:
    """The drawing with the marks named `chosen` as they are and the others of `among` pale.

    Pale ones lie behind, have one common entry in the legend, and bands of theirs go.
    """
    pale = [name for name in among if name not in chosen]
    if not pale:
        return drawing
    kept = replace(drawing, panels=tuple(_highlighted(p, chosen, pale) for p in drawing.panels))
    shown = {m.name for p in drawing.panels for m in p.marks if getattr(m, "name", "") in pale}
    words = f" Pale: {', '.join(name for name in pale if name in shown)}." if shown else ""
    return replace(kept, caption=drawing.caption + words)


def moments(drawing: Drawing) -> list[float]:
    """When something of it appears, in order; none in a drawing without time."""
    found = [when for p in drawing.panels for m in p.marks if (when := _when(m)) is not None]
    return np.unique(np.concatenate(found)).tolist() if found else []


def until(drawing: Drawing, moment: float) -> Drawing:
    """What is there at a moment, on the axes of the whole."""
    return replace(drawing, panels=tuple(_until(panel, moment) for panel in drawing.panels))


def _highlighted(panel: Panel, chosen: Sequence[str], pale: Sequence[str]) -> Panel:
    behind: list[Mark] = []
    front: list[Mark] = []
    others = f"others ({len(pale)})"
    for mark in panel.marks:
        if getattr(mark, "name", "") not in pale or not isinstance(mark, Line | Points | Band):
            named = isinstance(mark, Line) and mark.name in chosen and mark.legend
            front.append(replace(mark, width=1.6 * mark.width, ends=True) if named else mark)
        elif isinstance(mark, Line):
            behind.append(replace(mark, color=PALE, width=0.7 * mark.width, symbol="none",
                                  name=others))  # fmt: skip
        elif isinstance(mark, Points):
            behind.append(replace(mark, color=PALE, name=others, x_low=None, x_high=None,
                                  y_low=None, y_high=None))  # fmt: skip
    return replace(panel, marks=(*behind, *front))


def _when(mark: Mark) -> np.ndarray | None:
    return mark.when if isinstance(mark, Line | Points) else None


def _until(panel: Panel, moment: float) -> Panel:
    if all(_when(mark) is None for mark in panel.marks):
        return panel
    marks = []
    for mark in panel.marks:
        if isinstance(mark, Line | Points) and mark.when is not None:
            y = np.where(np.asarray(mark.when) <= moment, np.asarray(mark.y, float), np.nan)
            mark = replace(mark, y=y)
        marks.append(mark)
    axes = {which: _held(panel, which) for which in ("x", "y")}
    return replace(panel, marks=tuple(marks), **axes)


def _held(panel: Panel, which: str) -> Axis:
    """The axis with the limits of all that the panel shows, so that it does not move."""
    axis = getattr(panel, which)
    found = [np.ravel(v) for mark in panel.marks for v in extent(mark, which)]
    values = np.concatenate(found) if found else np.array([])
    values = values[np.isfinite(values) & ((values > 0) | (not axis.log))]
    plane = any(isinstance(mark, Contours | Field) for mark in panel.marks)
    if axis.limits is not None or plane or not values.size:
        return axis
    low, high = float(values.min()), float(values.max())
    if axis.log:
        pad = (high / low) ** 0.06 if high > 1.001 * low else 1.5
        return replace(axis, limits=(low / pad, high * pad))
    pad = 0.04 * (high - low) or 0.5
    return replace(axis, limits=(low - pad, high + pad))
