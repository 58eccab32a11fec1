"""What a figure shows, apart from how it is rendered: marks on panels, with labels and units.

A `Drawing` is data. `static.render` and `interactive.render` turn it into matplotlib and plotly.
Positions are data coordinates; categories are integers with tick labels.

What marks share: `name` is the entry in the legend and `legend` whether there is one; marks of one
`group` are shown and hidden together. `color` is hexadecimal, `opacity` from 0 to 1, `units` as on
an axis. `when`: the moment at which each point appears, in animations. `true_x`: what hovering says
where x was moved to be seen.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from landscape.errors import LandscapeError
from landscape.plot.ticks import log_ticks, short

__all__ = [
    "SYMBOLS",
    "WHOLE",
    "Axis",
    "Band",
    "Bars",
    "Cell",
    "Contours",
    "Dash",
    "Drawing",
    "Field",
    "Gaps",
    "Label",
    "Line",
    "Mark",
    "Matrix",
    "Panel",
    "Points",
    "Rule",
    "Surface",
    "bar_ticks",
]

# Axes that count something: no ticks between whole numbers.
WHOLE = ("epoch", "severity")
SYMBOLS = ("circle", "square", "diamond", "triangle", "cross", "x", "bar")

Dash = Literal["solid", "dash", "dot"]


@dataclass(frozen=True)
class Axis:
    """A labelled axis; units "1" are not written. `ticks` names positions (categories).

    few: three ticks or so, for small panels.
    label: the quantity in words. log: a logarithmic scale. limits: (low, high), else those of the
    data.

    Example:
        >>> plot.drawing.Axis("loss", "nats").title
        'loss (nats)'
    """

    label: str = ""
    units: str = "1"
    log: bool = False
    limits: tuple[float, float] | None = None
    ticks: tuple[tuple[float, str], ...] | None = None
    few: bool = False

    @property
    def title(self) -> str:
        """The label with its units in brackets."""
        return self.label if self.units in ("", "1") else f"{self.label} ({self.units})"


@dataclass(frozen=True)
class Points:
    """Markers with optional intervals [x_low, x_high] and [y_low, y_high]; hollow ones are open.

    x, y (n,). hollow (n,): which are open. symbol: "circle", "square", ...; size: in points; hover:
    a text for each point.

    Example:
        >>> points = plot.drawing.Points(np.zeros(2), np.ones(2), "SAM", "#0072b2")
        >>> points.symbol
        'circle'
    """

    x: np.ndarray
    y: np.ndarray
    name: str
    color: str
    symbol: str = "circle"
    hollow: np.ndarray | None = None
    x_low: np.ndarray | None = None
    x_high: np.ndarray | None = None
    y_low: np.ndarray | None = None
    y_high: np.ndarray | None = None
    size: float = 4.5
    opacity: float = 1.0
    legend: bool = True
    hover: Sequence[str] | None = None
    true_x: np.ndarray | None = None  # what hovering says where x is moved to be seen
    group: str = ""  # legend entry that shows and hides it; default its name
    when: np.ndarray | None = None  # moment at which each point is there (animations)


@dataclass(frozen=True)
class Line:
    """A polyline.

    x, y (n,). dash: "solid", "dash" or "dot"; width in points. symbol: on a few of the
    points, "none" for no; ends: whether it is named at its right end instead of in the legend.

    Example:
        >>> line = plot.drawing.Line(np.arange(3.0), np.arange(3.0) ** 2, "SAM", "#0072b2")
        >>> line.dash
        'solid'
    """

    x: np.ndarray
    y: np.ndarray
    name: str
    color: str
    dash: Dash = "solid"
    width: float = 1.2
    opacity: float = 1.0
    legend: bool = True
    group: str = ""  # legend entry that shows and hides it; default its name
    symbol: str = "none"  # a few of them along the line, for readers of grey print
    ends: bool = False  # named at its right end instead of in the legend of a static figure
    when: np.ndarray | None = None  # moment at which each point is there (animations)


@dataclass(frozen=True)
class Band:
    """The region low <= y <= high.

    x, low, high (n,).

    Example:
        >>> x = np.arange(3.0)
        >>> plot.drawing.Band(x, x - 1, x + 1, "95 %", "#0072b2").opacity
        0.18
    """

    x: np.ndarray
    low: np.ndarray
    high: np.ndarray
    name: str
    color: str
    opacity: float = 0.18
    group: str = ""


@dataclass(frozen=True)
class Bars:
    """Horizontal bars that end at x in rows y, starting at `base`; outlined ones are not filled.

    x, y, base (n,). thickness: of a row's height; outline: drawn without a filling.

    Example:
        >>> bars = plot.drawing.Bars(np.array([0.3, 0.7]), np.array([0.0, 1.0]), "share", "#0072b2")
        >>> bars.base
        0.0
    """

    x: np.ndarray
    y: np.ndarray
    name: str
    color: str
    thickness: float = 0.7
    base: float | np.ndarray = 0.0
    outline: bool = False
    legend: bool = True
    group: str = ""
    opacity: float = 1.0


@dataclass(frozen=True)
class Rule:
    """A straight line across the panel at x (vertical) or y (horizontal) = value.

    axis: "x" or "y"; text: what stands beside it; dash: as of a `Line`.

    Example:
        >>> plot.drawing.Rule("y", 1.0, text="chance").dash
        'dash'
    """

    axis: Literal["x", "y"]
    value: float
    name: str = ""
    dash: Dash = "dash"
    color: str = "#555555"
    text: str = ""


@dataclass(frozen=True)
class Matrix:
    """A heat map of values (rows, columns); diverging ones are centred at 0.

    digits: of the number in each cell, None writes none. log: logarithmic colours; what has no
    logarithm is left blank, as NaN is.
    limits: values at the ends of the colours; the bar of colours says where values lie beyond.
    signs: cells beyond the ends have a sign, and those without a logarithm are below the lower end.

    Example:
        >>> plot.drawing.Matrix(np.eye(2), ("a", "b"), ("a", "b"), "κ", "1", (-1.0, 1.0)).digits
        2
    """

    values: np.ndarray
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    name: str
    units: str
    limits: tuple[float, float]
    diverging: bool = True
    digits: int | None = 2
    log: bool = False
    signs: bool = False

    @property
    def coloured(self) -> np.ndarray:
        """Values as the colours show them; NaN where a cell is blank."""
        if self.signs:
            return np.clip(self.values, *self.limits)
        return np.where(self.values > 0, self.values, np.nan) if self.log else self.values

    @property
    def below(self) -> np.ndarray:
        """Cells whose value is under the lower end of the colours."""
        return (self.signs | ~np.isnan(self.coloured)) & (self.values < self.limits[0] * _ALMOST)

    @property
    def above(self) -> np.ndarray:
        """Cells whose value is over the upper end."""
        return self.values * _ALMOST > self.limits[1]


_ALMOST = 1 - 1e-9  # ends of colours are rounded


@dataclass(frozen=True)
class Contours:
    """Filled contours of values (x, y) at `levels`, logarithmically or evenly spaced.

    root: levels and colours are even in the square root, which shows the ground of a bowl.
    Around values that are not finite there is no contour; `Gaps` shows them.
    log: levels and colours are even in the logarithm. equal: both axes have one scale.

    Example:
        >>> x = np.linspace(-1, 1, 3)
        >>> bowl = x[:, None] ** 2 + x**2 + 1
        >>> contours = plot.drawing.Contours(x, x, bowl, np.array([1.0, 2.0]), "loss", "nats")
        >>> contours.scaled(bowl).shape
        (3, 3)
    """

    x: np.ndarray
    y: np.ndarray
    values: np.ndarray
    levels: np.ndarray
    name: str
    units: str
    log: bool = True
    equal: bool = True
    root: bool = False

    def scaled(self, values: np.ndarray) -> np.ndarray:
        """Values on the scale on which levels and colours are even."""
        return np.log10(values) if self.log else np.sqrt(values) if self.root else values

    def plain(self, scaled: float) -> float:
        """The value that a number on that scale stands for."""
        return 10**scaled if self.log else scaled**2 if self.root else scaled


@dataclass(frozen=True)
class Field:
    """A cell per value (x, y), coloured from limits[0] to limits[1]; diverging around 0.

    values (len(x), len(y)). log: logarithmic colours.

    Example:
        >>> x = np.linspace(-1, 1, 3)
        >>> plot.drawing.Field(x, x, x[:, None] * x, "curvature", "nats", (-1.0, 1.0)).diverging
        False
    """

    x: np.ndarray
    y: np.ndarray
    values: np.ndarray
    name: str
    units: str
    limits: tuple[float, float]
    diverging: bool = False
    log: bool = False


@dataclass(frozen=True)
class Gaps:
    """Hatched cells (x, y) where `values` is not finite: nothing is drawn in their place.

    name: its entry in the legend.

    Example:
        >>> x = np.linspace(-1, 1, 3)
        >>> plot.drawing.Gaps(x, x, np.full((3, 3), np.nan)).name
        'not finite'
    """

    x: np.ndarray
    y: np.ndarray
    values: np.ndarray
    name: str = "not finite"


@dataclass(frozen=True)
class Surface:
    """Values (x, y) as heights over a plane, with their contours on its floor; a 3-D panel.

    values (len(x), len(y)). limits: heights at the ends of the colours. log: heights are logarithms
    to base 10.

    Example:
        >>> x = np.linspace(-1, 1, 3)
        >>> bowl = x[:, None] ** 2 + x**2
        >>> surface = plot.drawing.Surface(x, x, bowl, (0.0, 2.0), "loss", "nats", log=False)
        >>> float(surface.heights().max())
        2.0
    """

    x: np.ndarray
    y: np.ndarray
    values: np.ndarray
    limits: tuple[float, float]
    name: str
    units: str
    log: bool = True

    def heights(self, values: np.ndarray | None = None) -> np.ndarray:
        """Values as they are drawn: their logarithm, or themselves; NaN where there is none."""
        values = np.asarray(self.values if values is None else values, float)
        known = np.isfinite(values) & ((values > 0) | (not self.log))
        values = np.where(known, values, 1.0)
        return np.where(known, np.log10(values) if self.log else values, np.nan)


@dataclass(frozen=True)
class Label:
    """Text at a point of the data.

    x, y: where, in units of the axes; anchor: which end of the text lies there; lift: lines of text
    by which it stands higher.

    Example:
        >>> plot.drawing.Label(0.0, 1.0, "SAM").anchor
        'left'
    """

    x: float
    y: float
    text: str
    color: str = "#222222"
    anchor: Literal["left", "right", "center"] = "left"
    name: str = ""  # it has no entry in a legend
    lift: float = 0.0


def bar_ticks(marks: Sequence[Matrix]) -> dict[float, str] | None:
    """Ticks of the bar of colours that matrices share, value to text; None for a plain scale.

    marks: of one figure. An end beyond which some value lies says so.

    Example:
        >>> drawn = figures.energy_map(runs["perturbation_history"])
        >>> found = plot.drawing.bar_ticks([drawn.panels[0].marks[0]])
        >>> found is None or all(isinstance(text, str) for text in found.values())
        True
    """
    (low, high), log = marks[0].limits, marks[0].log
    below, above = (any(getattr(m, which).any() for m in marks) for which in ("below", "above"))
    if not (log or below or above):
        return None
    inner = log_ticks(low, high) if log else np.linspace(low, high, 5).tolist()
    found = {tick: short(tick) for tick in inner}
    if not (below or above):
        return found
    # What stands too near to an end that is named gives way.
    apart = (high / low) ** 0.12 if log else 0.12 * (high - low)
    far = (lambda a, b: max(a, b) / min(a, b) > apart) if log else (lambda a, b: abs(a - b) > apart)
    ends = {low: "≤ "} if below else {}
    ends |= {high: "≥ "} if above else {}
    kept = {t: text for t, text in found.items() if all(far(t, end) for end in ends)}
    return dict(sorted((kept | {end: sign + short(end) for end, sign in ends.items()}).items()))


Cell = str | float | None
Mark = Points | Line | Band | Bars | Rule | Matrix | Contours | Field | Gaps | Surface | Label


@dataclass(frozen=True)
class Panel:
    """Marks on one pair of axes; a panel whose mark is a `Surface` has a third one, z.

    x, y: the axes. title: above the panel.

    Example:
        >>> line = plot.drawing.Line(np.arange(3.0), np.arange(3.0), "SAM", "#0072b2")
        >>> x, y = plot.drawing.Axis("epoch"), plot.drawing.Axis("loss", "nats")
        >>> panel = plot.drawing.Panel(x, y, (line,))
        >>> figure = plot.drawing.Drawing("mine", "My figure", "A caption.", (panel,))
        >>> len(list(figure.rows()))
        3
    """

    x: Axis
    y: Axis
    marks: tuple[Mark, ...]
    title: str = ""
    z: Axis | None = None


@dataclass(frozen=True)
class Drawing:
    """Panels in reading order on a grid of at most `columns`, with the words that go with them.

    `panel_height` is in inches at print size; `share_x`/`share_y` give all panels ("all") or the
    panels of one column/row ("grid") the same axis and label it once.
    name: of the figure's function. title, caption: words for readers; the caption states seeds,
    BatchNorm mode and interval. narrowest: inches below which a panel is not made; widths: of the
    columns, relative to each other; legend: whether there is one.

    Example:
        >>> drawing = figures.margins(runs["margins"])
        >>> drawing.name, len(drawing.panels) > 0
        ('margins', True)
    """

    name: str
    title: str
    caption: str
    panels: tuple[Panel, ...]
    columns: int = 1
    panel_height: float = 1.6
    narrowest: float = 1.2
    share_x: Literal["", "all", "grid"] = ""
    share_y: Literal["", "all", "grid"] = ""
    legend: bool = True
    widths: tuple[float, ...] = field(default=())

    def rows(self) -> list[dict[str, Cell]]:
        """Every number drawn, as tidy rows: panel, mark, name, and the mark's own columns."""
        return [
            {"panel": index + 1, "title": panel.title.replace("\n", " "), **row}
            for index, panel in enumerate(self.panels)
            for mark in panel.marks
            for row in _rows(mark, panel)
        ]

    @property
    def solid(self) -> bool:
        """Whether the panels are three-dimensional (all of them, or none)."""
        return bool(self.panels) and self.panels[0].z is not None

    def grid(self, width: float) -> tuple[int, int]:
        """Rows and columns at `width` inches: fewer columns where panels would be too narrow."""
        if not self.panels:
            raise LandscapeError(f"The figure {self.name!r} has nothing to draw from this result.")
        columns = max(1, min(self.columns, len(self.panels), int(width / self.narrowest)))
        while self.columns % columns and self.share_y == "grid":
            columns -= 1
        return -(-len(self.panels) // columns), columns

    def with_limits(self, columns: int) -> tuple[Panel, ...]:
        """Panels whose logarithmic axes have limits: those of the data of the panels that share."""
        panels = list(self.panels)
        for which, share in (("x", self.share_x), ("y", self.share_y)):
            groups: dict[int, list[int]] = {}
            for index in range(len(panels)):
                place = index % columns if which == "x" else index // columns
                key = {"all": 0, "grid": place}.get(share, index)
                groups.setdefault(key, []).append(index)
            for members in groups.values():
                _limit([panels[index] for index in members], which, panels, members)
        return tuple(panels)


_ALONG = ("x", "y", "x_low", "x_high", "y_low", "y_high", "low", "high", "hollow")


def _rows(mark: Mark, panel: Panel) -> Iterator[dict[str, Cell]]:
    """One row per number of a mark; positions that are names are given as these names too."""
    head = {"mark": type(mark).__name__.lower(), "name": getattr(mark, "name", "")}
    if isinstance(mark, Label | Gaps):
        return
    if isinstance(mark, Rule):
        yield {**head, mark.axis: mark.value}
    elif isinstance(mark, Matrix):
        for (row, column), value in np.ndenumerate(mark.values):
            yield {**head, "row": mark.rows[row], "column": mark.columns[column], "value": value}
    elif isinstance(mark, Contours | Field | Surface):
        for (i, j), value in np.ndenumerate(mark.values):
            yield {**head, "x": mark.x[i], "y": mark.y[j], "value": value}
    else:
        columns = {key: getattr(mark, key, None) for key in _ALONG}
        known = {key: np.ravel(value) for key, value in columns.items() if value is not None}
        if np.any(base := getattr(mark, "base", 0.0)):
            known["base"] = np.broadcast_to(base, known["x"].shape)
        names = {key: dict(axis.ticks or ()) for key, axis in (("x", panel.x), ("y", panel.y))}
        for index in range(len(known["x"])):
            row = {key: value[index] for key, value in known.items()}
            said = {f"{k}_name": names[k][row[k]] for k in ("x", "y") if row.get(k) in names[k]}
            yield {**head, **row, **said}


def _limit(group: list[Panel], which: str, panels: list[Panel], members: list[int]) -> None:
    axes = [getattr(panel, which) for panel in group]
    if not axes[0].log or axes[0].limits is not None:
        return
    values = [v for panel in group for mark in panel.marks for v in extent(mark, which)]
    found = np.concatenate([np.ravel(v) for v in values]) if values else np.array([])
    found = found[np.isfinite(found) & (found > 0)]
    if found.size:
        low, high = float(found.min()), float(found.max())
        # Two values that differ by rounding alone are one value.
        pad = (high / low) ** 0.06 if high > 1.001 * low else 1.5
        for index in members:
            axis = replace(getattr(panels[index], which), limits=(low / pad, high * pad))
            panels[index] = replace(panels[index], **{which: axis})


def extent(mark: Mark, which: str) -> list[np.ndarray]:
    """Every position that a mark has along x or y."""
    names = (
        ("x", "x_low", "x_high", "base")
        if which == "x"
        else ("y", "y_low", "y_high", "low", "high")
    )
    found = [getattr(mark, name, None) for name in names]
    found += [np.array([mark.value])] if isinstance(mark, Rule) and mark.axis == which else []
    return [np.asarray(v, float) for v in found if v is not None]


def even_columns(count: int, most: int) -> int:
    """Columns, about `most`, that leave fewest places empty; the larger number of equals."""
    if count <= most:
        return max(count, 1)
    return min(range(most, max(most - 2, 1), -1), key=lambda columns: -count % columns)
