"""Drawings made from a drawing: some variants before pale others, and what is there at a moment."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from landscape.plot import runs
from landscape.plot.drawing import (
    Axis,
    Band,
    Contours,
    Drawing,
    Field,
    Label,
    Line,
    Mark,
    Panel,
    Points,
    extent,
)
from landscape.plot.labels import beside
from landscape.plot.style import PALE

_MANY = 6  # lines of variants on one panel, beyond which they cannot be told apart


def highlighting(drawing: Drawing, chosen: Sequence[str], among: Sequence[str]) -> Drawing:
    """The drawing with the marks named `chosen` as they are and the others of `among` pale.

    Pale ones lie behind, have one common entry in the legend, and bands of theirs go. Chosen lines
    are named at their ends, and chosen points of scatters beside them. The panel of one variant,
    which its title names, stays as it is.
    """
    pale = [name for name in among if name not in chosen]
    if not pale:
        return drawing
    panels = [
        panel if panel.title.split("\n")[0] in among else _highlighted(panel, chosen, pale)
        for panel in drawing.panels
    ]
    kept = replace(drawing, panels=tuple(panels))
    shown = {
        mark.name
        for before, after in zip(drawing.panels, panels, strict=True)
        for mark in before.marks
        if before is not after and getattr(mark, "name", "") in pale
    }
    words = f" Pale: {', '.join(name for name in pale if name in shown)}." if shown else ""
    return replace(kept, caption=drawing.caption + words)


def crowded(drawing: Drawing, among: Sequence[str]) -> bool:
    """Whether a panel has more lines of the variants `among` than can be told apart."""
    named = [
        {mark.name for mark in panel.marks if isinstance(mark, Line)} & set(among)
        for panel in drawing.panels
    ]
    return any(len(names) > _MANY for names in named)


def shortened(drawing: Drawing, most: int) -> Drawing:
    """The drawing with names of rows, columns and marks of at most `most` letters, still apart.

    Where a title or the name of an axis holds one of them, it is short there too.
    """
    found = [text for p in drawing.panels for axis in (p.x, p.y) for _, text in axis.ticks or ()]
    found += [mark.name for p in drawing.panels for mark in p.marks]
    found += [mark.text for p in drawing.panels for mark in p.marks if isinstance(mark, Label)]
    names = list(dict.fromkeys(found))
    short = dict(zip(names, runs.drawable(names, most), strict=True))

    long = sorted((name for name in names if name != short[name]), key=len, reverse=True)

    def within(text: str) -> str:
        for name in long:
            text = text.replace(name, short[name])
        return text

    def axis(one: Axis) -> Axis:
        ticks = one.ticks and tuple((place, short[text]) for place, text in one.ticks)
        return replace(one, ticks=ticks, label=within(one.label))

    def mark(one: Mark) -> Mark:
        text = {"text": short[one.text]} if isinstance(one, Label) else {}
        return replace(one, name=short[one.name], **text)

    panels = [
        replace(p, x=axis(p.x), y=axis(p.y), marks=tuple(map(mark, p.marks)), title=within(p.title))
        for p in drawing.panels
    ]
    return replace(drawing, panels=tuple(panels))


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
        if isinstance(mark, Label) and mark.text in (*pale, *chosen):
            continue  # they are placed anew
        if getattr(mark, "name", "") not in pale or not isinstance(mark, Line | Points | Band):
            named = isinstance(mark, Line) and mark.name in chosen and mark.legend
            front.append(replace(mark, width=1.4 * mark.width, ends=True) if named else mark)
        elif isinstance(mark, Line):
            behind.append(replace(mark, color=PALE, width=0.7 * mark.width, symbol="none",
                                  name=others, ends=False))  # fmt: skip
        elif isinstance(mark, Points):
            behind.append(replace(mark, color=PALE, name=others, x_low=None, x_high=None,
                                  y_low=None, y_high=None))  # fmt: skip
    shown = replace(panel, marks=(*behind, *front))
    return replace(shown, marks=(*shown.marks, *beside(shown, chosen)))


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
