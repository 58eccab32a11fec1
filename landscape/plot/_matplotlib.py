"""Drawings to matplotlib figures, without pyplot and without changing global settings."""

import io
import re
import string
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from itertools import zip_longest
from textwrap import fill
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from matplotlib import rc_context, rcParams
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.contour import QuadContourSet
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.layout_engine import (
    ConstrainedLayoutEngine,
    LayoutEngine,
    PlaceHolderLayoutEngine,
)
from matplotlib.ticker import (
    FixedLocator,
    FuncFormatter,
    MaxNLocator,
    NullLocator,
    ScalarFormatter,
)

from landscape.plot import derived, style
from landscape.plot._matplotlib_marks import draw
from landscape.plot.drawing import (
    WHOLE,
    Axis,
    Contours,
    Drawing,
    Field,
    Line,
    Matrix,
    Panel,
    Surface,
    bar_ticks,
)
from landscape.plot.ticks import exact, log_ticks, short

if TYPE_CHECKING:
    pass

_DPI = 200
_LEAST = (0.36, 0.25)  # of a panel's width and height, which names and titles leave it
_LETTERS = (32, 20, 12, 6)  # of names, where longer ones leave the panels less
_COLLAPSED = "constrained_layout not applied"
_TALLEST = 2.6  # inches of a plane or surface that has a figure to itself


class PaperFigure(Figure):
    """A figure outside of pyplot that a notebook shows all the same.

    Once it is laid out it has no engine: matplotlib draws a figure that has one twice to save it.
    """

    def get_layout_engine(self) -> LayoutEngine | None:
        found = super().get_layout_engine()
        return None if isinstance(found, PlaceHolderLayoutEngine) else found

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png")
        return buffer.getvalue()


def _literal(value: Any) -> Any:
    """The same with dollars that are printed: between two of them matplotlib reads formulas."""
    if isinstance(value, str):
        return value.replace("$", r"\$")
    if isinstance(value, np.ndarray) and value.dtype.kind in "UO":
        return np.array([_literal(v) for v in value.ravel()], object).reshape(value.shape)
    if is_dataclass(value) and not isinstance(value, type):
        held = {f.name: getattr(value, f.name) for f in fields(value) if f.init}
        changed = {name: _literal(part) for name, part in held.items()}
        same = all(changed[name] is part for name, part in held.items())
        return value if same else replace(value, **changed)
    if type(value) in (tuple, list):
        parts = [_literal(part) for part in value]
        same = all(a is b for a, b in zip(parts, value, strict=True))
        return value if same else type(value)(parts)
    if type(value) is dict:
        return {_literal(key): _literal(part) for key, part in value.items()}
    return value


def render(
    drawing: Drawing, *, width: str | float = "neurips", letters: bool = False, dpi: int = _DPI
) -> Figure:
    """Draw at `width` (a venue's name or inches), ready for `save`; a letter before each panel.

    drawing: of `plot.figures`. letters: (a), (b), … before the panels. dpi: of pictures inside of a
    PDF, and of PNG.

    Example:
        >>> figure = static.render(figures.margins(runs["margins"]), width="icml-column")
        >>> round(float(figure.get_figwidth()), 2)
        3.25
    """
    drawing, venue = _literal(drawing), style.venue(width)
    figure, room = _laid_out(drawing, venue, letters=letters, dpi=dpi)
    for most in _LETTERS:
        if room >= 1:
            break
        shown = derived.shortened(drawing, most)
        other, more = _laid_out(shown, venue, letters=letters, dpi=dpi)
        if more > room:
            figure, room = other, more
    return figure


def _laid_out(
    drawing: Drawing, venue: style.Venue, *, letters: bool, dpi: int
) -> tuple[PaperFigure, float]:
    """The figure, and the room that its names leave its narrowest panel, of what that needs."""
    inches = venue.width
    rows, columns = drawing.grid(inches)
    with rc_context(style.rc(venue)):
        labels = sorted({name for panel in drawing.panels for name in _legend_names(panel)})
        heights = _heights(drawing, rows, columns, inches)
        beside = 0.35 + _legend_height(drawing, labels, inches)
        # No figure is higher than a page of the venue, unless its legend alone is.
        fits = min(1.0, max(0.3, (venue.height - beside) / sum(heights)))
        heights = [fits * height for height in heights]
        height = sum(heights) + beside
        layout = ConstrainedLayoutEngine(w_pad=0.03, h_pad=0.04, wspace=0.02, hspace=0.03)
        figure = PaperFigure(figsize=(inches, height), dpi=dpi, layout=layout)
        whole = columns == drawing.columns
        ratios = list(drawing.widths) if drawing.widths and whole else None
        share: dict[str, Literal["all", False]] = {"all": "all", "": False}
        grid = figure.subplots(
            rows,
            columns,
            squeeze=False,
            sharex=share.get(drawing.share_x, "col"),
            sharey=share.get(drawing.share_y, "row"),
            width_ratios=ratios,
            height_ratios=heights,
            subplot_kw={"projection": "3d"} if drawing.solid else None,
        )
        wrap = max(8, int((inches - _beside(drawing)) / columns / (0.0086 * venue.text)))
        keys: dict[tuple, _Key] = {}
        marked = string.ascii_lowercase if letters and len(drawing.panels) > 1 else ""
        panels = zip_longest(drawing.with_limits(columns), marked[: len(drawing.panels)])
        for index, ((panel, letter), ax) in enumerate(zip(panels, grid.flat, strict=False)):
            for mark, mappable in _panel(panel, ax, wrap, letter):
                key = keys.setdefault(_scale(mark), _Key(mark, mappable))
                key.axes.append(ax)
                key.marks.append(mark)
            if index % columns == columns - 1 or index == len(drawing.panels) - 1:
                # Beside the last panel of a row that is not full there is room already.
                full = index % columns == columns - 1
                _end_labels(panel, ax, heights[index // columns], reserve=full)
        _label_once(drawing, grid, columns)
        for ax in list(grid.flat)[len(drawing.panels) :]:
            ax.remove()
        for key in keys.values():
            crossed = {list(grid.flat).index(ax) // columns for ax in key.axes}
            _colorbar(key, figure, sum(heights[row] for row in crossed))
        if drawing.legend:
            ended = {m.name for p in drawing.panels for m in p.marks if getattr(m, "ends", False)}
            _legend(figure, grid, inches, ended)
        # Lay out once: saving as several formats need not solve for the positions again.
        with warnings.catch_warnings():
            warnings.filterwarnings("error", _COLLAPSED)
            try:
                layout.execute(figure)
                room = min(
                    share
                    for index, ax in enumerate(list(grid.flat)[: len(drawing.panels)])
                    for share in _room(figure, ax, inches / columns, heights[index // columns])
                )
            except UserWarning:
                room = 0.0
        figure.set_layout_engine("none")
    return figure, room


def _room(figure: Figure, ax: Axes, width: float, height: float) -> tuple[float, float]:
    """Width and height of a panel, of the least share of what was planned, in inches."""
    place = ax.get_position(original=True)
    return (
        float(place.width * figure.get_figwidth() / width / _LEAST[0]),
        float(place.height * figure.get_figheight() / height / _LEAST[1]),
    )


def _small() -> float:
    return float(rcParams["xtick.labelsize"])


def _beside(drawing: Drawing) -> float:
    """Inches left of the panels for the names of the rows, and right of them for a colour bar."""
    rows = [text for panel in drawing.panels for _, text in panel.y.ticks or ()]
    bar = any(isinstance(mark, _Coloured) for panel in drawing.panels for mark in panel.marks)
    return 0.062 * max(map(len, rows), default=0) + 0.6 * bar


def _heights(drawing: Drawing, rows: int, columns: int, inches: float) -> list[float]:
    """Inches of each row: of planes on one scale, what their width gives; of others, as drawn.

    A plane in a row that is too low for it would have white space beside it, and in one that is
    too high above it.
    """
    room = (inches - _beside(drawing) - 0.35) / columns
    found = []
    for row in range(rows):
        panels = drawing.panels[row * columns : (row + 1) * columns]
        shapes = [_shape(panel) for panel in panels]
        known = [shape for shape in shapes if shape is not None]
        if drawing.solid:
            found.append(min(0.78 * inches / columns, _TALLEST))
        elif len(known) == len(panels):
            lines = max(len(panel.title.splitlines()) for panel in panels)
            # Ticks and labels take their part; those of rows that share axes stand once.
            across = room - (0.08 if _once(panels, "y") else 0.42)
            found.append(min(across * max(known), _TALLEST) + 0.15 * lines + 0.2)
        else:
            found.append(drawing.panel_height)
    return found


def _shape(panel: Panel) -> float | None:
    """Height over width of a panel whose axes have one scale; None for others."""
    for mark in panel.marks:
        if isinstance(mark, Field) or (isinstance(mark, Contours) and mark.equal):
            sides = []
            for axis, values in ((panel.x, mark.x), (panel.y, mark.y)):
                low, high = axis.limits or (float(values.min()), float(values.max()))
                sides.append(abs(high - low))
            return sides[1] / sides[0] if min(sides) > 0 else 1.0
    return None


def _once(panels: Sequence[Panel], which: str) -> bool:
    """Whether an axis that all panels have, over one range, needs its name only once."""
    axes = [getattr(panel, which) for panel in panels]
    return axes[0].limits is not None and all(axis == axes[0] for axis in axes)


def _end_labels(panel: Panel, ax: Axes, height: float, *, reserve: bool) -> None:
    """Names at the right ends of lines, moved apart until they can be read."""
    ends = []
    for mark in panel.marks:
        if isinstance(mark, Line) and mark.ends:
            known = np.flatnonzero(np.isfinite(mark.x) & np.isfinite(mark.y))
            if len(known):
                last = known[np.argmax(np.asarray(mark.x)[known])]
                point = (float(mark.x[last]), float(mark.y[last]))
                ends.append(
                    (ax.transAxes.inverted().transform(ax.transData.transform(point)), mark)
                )
    gap, floor = 1.15 * _small() / 72 / height, -np.inf
    for (x, y), mark in sorted(ends, key=lambda end: end[0][1]):
        floor = max(y, floor + gap)
        text = ax.annotate(
            mark.name, (x, y), xytext=(1.02, floor), textcoords="axes fraction", xycoords="axes "
            "fraction", va="center", fontsize=_small(), color=mark.color, annotation_clip=False,
        )  # fmt: skip
        text.set_in_layout(reserve)


def _legend_names(panel: Panel) -> list[str]:
    return [mark.name for mark in panel.marks if getattr(mark, "legend", False)]


def _legend_columns(names: list[str], inches: float) -> int:
    longest = max((len(name) for name in names), default=1)
    return max(1, min(len(names), int(inches / (0.32 + 0.060 * longest))))


def _legend_height(drawing: Drawing, names: list[str], inches: float) -> float:
    if not drawing.legend or not names:
        return 0.0
    return 0.16 * -(-len(names) // _legend_columns(names, inches)) + 0.08


def _legend(figure: Figure, grid: np.ndarray, inches: float, ended: set[str]) -> None:
    """One legend of all panels, without the names that stand at the ends of lines."""
    entries: dict[str, Artist] = {}
    for ax in grid.flat:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            if label not in ended:
                entries.setdefault(label, handle)
    if entries:
        rows = -(-len(entries) // _legend_columns(list(entries), inches))
        columns = -(-len(entries) // rows)  # rows of one length, if that can be
        figure.legend(
            list(entries.values()), list(entries), loc="outside lower center", ncols=columns
        )


def _label_once(drawing: Drawing, grid: np.ndarray, columns: int) -> None:
    """Shared axes are named at the left and at the bottom only."""
    count = len(drawing.panels)
    for index, ax in enumerate(list(grid.flat)[:count]):
        last = index + columns >= count
        row = index // columns
        here, below = ([*drawing.panels[r * columns : (r + 1) * columns]] for r in (row, row + 1))
        planes = all(_shape(panel) is not None for panel in here)
        if planes and index % columns and _once(here, "y"):
            ax.tick_params(labelleft=False)
            ax.set_ylabel("")
        # Whole rows above planes with the same axes: a column would end without a name.
        if planes and len(below) == columns and all(map(_same_x, here, below)):
            ax.tick_params(labelbottom=False)
            ax.set_xlabel("")
        if drawing.share_x:
            ax.tick_params(labelbottom=last)
            ax.set_xlabel(ax.get_xlabel() if last else "")
        if drawing.share_y and index % columns:
            ax.set_ylabel("")
            ax.tick_params(labelleft=False)


def _same_x(above: Panel, below: Panel) -> bool:
    return _once([above, below], "x")


def _longest(text: str) -> int:
    """Letters of the longest word, and eight at least."""
    return max(8, *map(len, text.split()), 0)


def _wrapped(text: str, width: int) -> str:
    """Lines of a width; a number stays with its unit and its equals sign."""
    together = re.sub(r" (?=[%=×])|(?<=[=×]) ", "\u00a0", text)
    return fill(together, width, break_on_hyphens=False).replace("\u00a0", " ")


_Coloured = Matrix | Contours | Field | Surface
_Mappable = AxesImage | QuadContourSet | QuadMesh


def _panel(
    panel: Panel, ax: Axes, wrap: int, letter: str | None
) -> list[tuple[_Coloured, _Mappable]]:
    """Draw the panel; return the marks that need a colour bar, with what it explains."""
    _axis(panel.x, ax, "x", wrap)
    _axis(panel.y, ax, "y", wrap)
    if panel.z is not None:
        _axis(panel.z, ax, "z", wrap)
    # A title begins at the axes: the name of the vertical one, and a letter in the first line,
    # take of its room.
    room = wrap - (5 if panel.y.label and panel.z is None and _shape(panel) is None else 0)
    lines = [
        _wrapped(line, max(room - (3 if letter and not n else 0), min(wrap, _longest(line))))
        for n, line in enumerate(panel.title.splitlines())
    ]
    title = "\n".join(lines)
    # The box of a surface is lower than its axes.
    height = None if panel.z is None else 0.95
    ax.set_title(rf"$\bf{{{letter}}}$  {title}" if letter else title, y=height)
    drawn = [(mark, draw(mark, ax)) for mark in panel.marks]
    coloured = [
        (mark, shown)
        for mark, shown in drawn
        if isinstance(mark, _Coloured) and isinstance(shown, _Mappable)
    ]
    if coloured:
        ax.grid(False)
    return coloured


@dataclass(frozen=True)
class _Key:
    """What one bar of colours explains: the panels, and the marks on them."""

    mark: _Coloured
    mappable: _Mappable
    axes: list[Axes] = field(default_factory=list)
    marks: list[_Coloured] = field(default_factory=list)


def _scale(mark: _Coloured) -> tuple:
    """One bar serves all panels whose colours mean the same."""
    ends = tuple(mark.levels) if isinstance(mark, Contours) else mark.limits
    return (type(mark), mark.name, *ends)


def _colorbar(key: _Key, figure: Figure, height: float) -> None:
    mark = key.mark
    if isinstance(mark, Contours):
        bar = figure.colorbar(key.mappable, ax=key.axes, pad=0.01, fraction=0.04, aspect=30)
        # As many as stand apart on a bar of this height.
        ticks = mark.levels[:: max(1, -(-len(mark.levels) // min(8, max(3, int(height / 0.22)))))]
    else:
        bar = figure.colorbar(key.mappable, ax=key.axes, pad=0.02, fraction=0.046, aspect=30)
        bar.outline.set_visible(False)
        ticks = log_ticks(*mark.limits) if mark.log else None
    if isinstance(mark, Matrix):
        said = bar_ticks([m for m in key.marks if isinstance(m, Matrix)])
        if said is not None:
            bar.ax.yaxis.set_minor_locator(NullLocator())
            bar.set_ticks(list(said), labels=list(said.values()))
    elif ticks is not None:
        bar.ax.yaxis.set_major_locator(FixedLocator(list(ticks)))
        bar.ax.yaxis.set_minor_locator(NullLocator())
        bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
    bar.set_label(Axis(mark.name, mark.units).title)


class _WholeLabels(ScalarFormatter):
    """Each label says its value: a power of ten beside the axis would run into the axis' title."""

    def __init__(self) -> None:
        super().__init__(useOffset=False)
        self.set_scientific(False)

    def __call__(self, x: float, pos: int | None = None) -> str:
        axis: Any = self.axis  # set by the axis that it is of
        furthest = max(map(abs, axis.get_view_interval()))
        return super().__call__(x, pos) if 1e-3 <= furthest < 1e5 else exact(x)


def _axis(axis: Axis, ax: Axes, which: str, wrap: int) -> None:
    title = _wrapped(axis.title, wrap) if which == "x" else axis.title
    if which == "y" and ax.get_figure() is not None:
        # As long as the panel is high: not to run into what is above and below.
        title = _wrapped(title, max(12, int(1.3 * ax.bbox.height / ax.figure.dpi / 0.062)))
    ax.set(**{f"{which}label": title})
    most = max(2, min(6, wrap // 4)) if which == "x" else 6
    target = getattr(ax, f"{which}axis")
    if axis.log:
        ax.set(**{f"{which}scale": "log"})
        target.set_minor_locator(NullLocator())
        target.set_major_formatter(FuncFormatter(lambda value, _: exact(value)))
    if axis.limits is not None:
        ax.set(**{f"{which}lim": axis.limits})
        if axis.log:
            target.set_major_locator(FixedLocator(log_ticks(*axis.limits, most)))
    if axis.ticks is not None:
        target.set_major_locator(FixedLocator([position for position, _ in axis.ticks]))
        labels = {round(position, 6): text for position, text in axis.ticks}
        target.set_major_formatter(FuncFormatter(lambda value, _: labels.get(round(value, 6), "")))
        target.set_tick_params(length=0)
        target.grid(False)
        if which == "x" and max((len(text) for _, text in axis.ticks), default=0) > 4:
            ax.tick_params(axis="x", labelrotation=35)
            for label in ax.get_xticklabels():
                label.set(ha="right", rotation_mode="anchor")
    elif not axis.log:
        whole = axis.label in WHOLE
        target.set_major_locator(
            MaxNLocator(2 if axis.few else 5 if which == "y" else min(4, most), integer=whole)
        )
        target.set_major_formatter(_WholeLabels())
