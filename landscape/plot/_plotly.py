"""Drawings to plotly figures: the twins of the static ones, with hover labels."""

import math
from dataclasses import dataclass
from functools import singledispatch
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.basedatatypes import BasePlotlyType
from plotly.subplots import make_subplots

from landscape.plot import _plotly_planes as _planes
from landscape.plot import style
from landscape.plot._plotly_planes import single as _single
from landscape.plot.drawing import (
    Axis,
    Band,
    Bars,
    Contours,
    Drawing,
    Field,
    Gaps,
    Label,
    Line,
    Matrix,
    Panel,
    Points,
    Rule,
    Surface,
    bar_ticks,
)
from landscape.plot.ticks import exact, fixed, log_ticks

# plotly 7 offers an upload of the figure unless it is told not to.
CONFIG: dict[str, object] = {
    "showSendToCloud": False,
    "displaylogo": False,
    "responsive": True,
    "modeBarButtonsToRemove": ["select2d", "lasso2d", "autoScale2d"],
    "toImageButtonOptions": {"format": "svg"},
}
_SYMBOLS = {
    "circle": "circle",
    "square": "square",
    "diamond": "diamond",
    "triangle": "triangle-up",
    "cross": "cross",
    "x": "x",
    "bar": "line-ns",
    "none": "circle",
}
_DASHES = {"solid": "solid", "dash": "dash", "dot": "dot"}
_PIXELS_PER_INCH = 150
_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"


def render(drawing: Drawing, *, width: str | float = "neurips") -> go.Figure:
    """Draw with the columns that `width` allows; the page decides on the pixels across.

    drawing: of `plot.figures`.

    Example:
        >>> page = interactive.render(figures.margins(runs["margins"]))
        >>> len(page.data) > 0
        True
    """
    rows, columns = drawing.grid(style.venue(width).width)
    whole = columns == drawing.columns and drawing.widths
    top, bottom = 34, 56 + _legend_pixels(drawing)
    height = int(rows * max(drawing.panel_height * _PIXELS_PER_INCH, 150)) + top + bottom
    plot = height - top - bottom
    figure = make_subplots(
        rows=rows,
        cols=columns,
        shared_xaxes={"all": "all", "grid": "columns"}.get(drawing.share_x, False),
        shared_yaxes={"all": "all", "grid": "rows"}.get(drawing.share_y, False),
        column_widths=list(drawing.widths) if whole else None,
        subplot_titles=[panel.title.replace("\n", "<br>") for panel in drawing.panels],
        horizontal_spacing=_planes.spacing(drawing, columns),
        vertical_spacing=min((44 if drawing.share_x else 78) / plot, 0.9 / max(rows - 1, 1)),
        specs=[[{"type": "scene" if drawing.solid else "xy"}] * columns for _ in range(rows)],
    )
    named: set[str] = set()
    for index, panel in enumerate(drawing.with_limits(columns)):
        row, column = divmod(index, columns)
        for mark in panel.marks:
            _draw(mark, _PanelPlace(figure, drawing, panel, row + 1, column + 1, named))
        last = index + columns >= len(drawing.panels)
        if panel.z is not None:
            _planes.scene_axes(figure, panel, row + 1, column + 1)
            continue
        if any(isinstance(mark, Field) or getattr(mark, "equal", False) for mark in panel.marks):
            _planes.equal_axes(figure, row + 1, column + 1)
        _axis(figure, panel.x, "x", row, column, bool(drawing.share_x) and not last)
        _axis(figure, panel.y, "y", row, column, bool(drawing.share_y) and column > 0)
    figure.update_annotations(font_size=12.5)
    figure.update_layout(
        height=height,
        margin={"l": 10, "r": 10, "t": top, "b": bottom},
        font={"family": _FONT, "size": 12, "color": style.INK},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        showlegend=drawing.legend,
        legend={"orientation": "h", "x": 0, "y": -48 / plot, "yanchor": "top", "itemwidth": 30},
        hoverlabel={"font": {"family": _FONT, "size": 12}},
        dragmode="zoom",
        modebar={"bgcolor": "rgba(0,0,0,0)", "color": "#b5b5b5", "activecolor": style.INK},
        barmode="overlay",
        meta={
            "name": drawing.name,
            "title": drawing.title,
            "caption": drawing.caption,
            "columns": columns,
        },
    )
    _planes.arrange_bars(figure)
    figure.update_xaxes(automargin=True)
    figure.update_yaxes(automargin=True)
    return figure


def _legend_pixels(drawing: Drawing) -> int:
    names = {
        mark.name
        for panel in drawing.panels
        for mark in panel.marks
        if getattr(mark, "legend", False)
    }
    return 22 * -(-len(names) // 5) if drawing.legend else 0


def _axis(figure: go.Figure, axis: Axis, which: str, row: int, column: int, hidden: bool) -> None:
    options: dict[str, Any] = {
        "title": {"text": "" if hidden else axis.title, "standoff": 6},
        "showticklabels": not hidden,
        "type": "log" if axis.log else "linear",
        "gridcolor": style.GRID,
        "linecolor": style.MUTED,
        "showline": True,
        "zeroline": False,
    }
    if axis.few:
        options["nticks"] = 4
    if axis.limits is not None:
        ends = [math.log10(end) for end in axis.limits] if axis.log else list(axis.limits)
        options["range"] = ends
        if axis.log:
            options["tickvals"] = log_ticks(*axis.limits, 4 if axis.few else 6)
            options["ticktext"] = [exact(tick) for tick in options["tickvals"]]
    if axis.ticks is not None:
        options["tickvals"] = [position for position, _ in axis.ticks]
        options["ticktext"] = [text for _, text in axis.ticks]
        options["showgrid"] = False
    elif which == "x":
        options["tickangle"] = 0
    # Named directly: `update_xaxes` goes through all axes to find it.
    getattr(figure.get_subplot(row + 1, column + 1), f"{which}axis").update(options)


def _hover(panel: Panel, x: str = "x") -> str:
    x = f"%{{{x}:.4~g}}" if panel.x.ticks is None else ""
    y = "%{y:.4~g}" if panel.y.ticks is None else ""
    lines = [
        f"{axis.label}: {place} {'' if axis.units == '1' else axis.units}".strip()
        for axis, place in ((panel.x, x), (panel.y, y))
        if place and axis.label
    ]
    return "<br>".join(lines)


def _rows(panel: Panel, mark: Points | Bars) -> list[str] | None:
    """Which row or column of the panel each point stands in, by name, and what is said of it."""
    said = list(mark.hover) if isinstance(mark, Points) and mark.hover is not None else None
    texts = [[text] for text in said] if said is not None else [[] for _ in range(len(mark.x))]
    known = said is not None
    for axis, values in ((panel.y, mark.y), (panel.x, mark.x)):
        if not axis.ticks or (axis is panel.x and isinstance(mark, Bars)):
            continue
        known = True
        places = np.array([place for place, _ in axis.ticks])
        for text, value in zip(texts, np.asarray(values, float), strict=True):
            nearest = int(np.argmin(np.abs(places - value))) if np.isfinite(value) else 0
            name = axis.ticks[nearest][1]
            text += [name] if name != mark.name and abs(places[nearest] - value) <= 0.5 else []
    return [", ".join(dict.fromkeys(filter(None, text))) for text in texts] if known else None


def _head(panel: Panel, mark: Points | Line | Bars, text: list[str] | None = None) -> str:
    """Name of the mark, of the panel it is on, and the text of a point."""
    title = panel.title.split("\n")[0]
    parts = [f"<b>{mark.name}</b>", title if title != mark.name else ""]
    parts.append("%{text}" if text is not None and any(text) else "")
    return "<br>".join(filter(None, parts)) + "<br>"


def _legend(mark: Points | Line | Bars, named: set[str]) -> dict[str, object]:
    show = mark.legend and mark.name not in named
    named.add(mark.name) if show else None
    return {"name": mark.name, "legendgroup": mark.group or mark.name, "showlegend": show}


def _rgba(color: str, opacity: float) -> str:
    red, green, blue = (int(color[index : index + 2], 16) for index in (1, 3, 5))
    return f"rgba({red},{green},{blue},{opacity})"


@dataclass(frozen=True)
class _PanelPlace:
    """One panel of a figure, and the names that its legend has so far."""

    figure: go.Figure
    drawing: Drawing
    panel: Panel
    row: int
    col: int
    named: set[str]

    def add(self, trace: BasePlotlyType) -> None:
        # The page can tell whose panel a trace is on where its own name is that of a quantity.
        trace.update(meta=self.panel.title.split("\n")[0] or None)
        self.figure.add_trace(trace, row=self.row, col=self.col)


@singledispatch
def _draw(mark: object, at: _PanelPlace) -> None:
    raise TypeError(f"no way to draw {type(mark).__name__} at {at.row}, {at.col}")


@_draw.register
def _(mark: Points, at: _PanelPlace) -> None:
    hollow = np.zeros(len(mark.x), bool) if mark.hollow is None else np.asarray(mark.hollow)
    symbol = _SYMBOLS[mark.symbol]
    errors = {
        f"error_{axis}": {
            "type": "data",
            "symmetric": False,
            "array": _single(np.asarray(high) - centre),
            "arrayminus": _single(centre - np.asarray(low)),
            "thickness": 1.4,
            "width": 0,
            "color": _rgba(mark.color, mark.opacity),
        }
        for axis, centre, low, high in (
            ("x", np.asarray(mark.x), mark.x_low, mark.x_high),
            ("y", np.asarray(mark.y), mark.y_low, mark.y_high),
        )
        if low is not None
    }
    text = _rows(at.panel, mark)
    head = _head(at.panel, mark, text)
    at.add(
        go.Scatter(
            x=_single(mark.x),
            y=_single(mark.y),
            mode="markers",
            marker={
                "symbol": [f"{symbol}-open" if empty else symbol for empty in hollow]
                if hollow.any()
                else symbol,
                "size": 0.1 if mark.symbol == "none" else 1.8 * mark.size,
                "color": mark.color,
                "opacity": mark.opacity,
                "line": {
                    "width": 1.6 if mark.symbol == "bar" or hollow.all() else 0.6,
                    "color": mark.color,
                },
            },
            text=text,
            customdata=None if mark.true_x is None else _single(mark.true_x),
            hovertemplate=head
            + _hover(at.panel, "x" if mark.true_x is None else "customdata")
            + "<extra></extra>",
            **errors,
            **_legend(mark, at.named),
        )
    )


@_draw.register
def _(mark: Line, at: _PanelPlace) -> None:
    at.add(
        go.Scatter(
            x=_single(mark.x),
            y=_single(mark.y),
            mode="lines" if mark.symbol == "none" else "lines+markers",
            marker={"symbol": _SYMBOLS[mark.symbol], "size": 6, "maxdisplayed": 6},
            line={"color": mark.color, "dash": _DASHES[mark.dash], "width": 1.5 * mark.width},
            opacity=mark.opacity,
            hovertemplate=f"{_head(at.panel, mark)}{_hover(at.panel)}<extra></extra>",
            **_legend(mark, at.named),
        )
    )


@_draw.register
def _(mark: Band, at: _PanelPlace) -> None:
    x = np.asarray(mark.x)
    keep = np.isfinite(mark.low) & np.isfinite(mark.high)
    around = np.concatenate([x[keep], x[keep][::-1]])
    edge = np.concatenate([np.asarray(mark.high)[keep], np.asarray(mark.low)[keep][::-1]])
    at.add(
        go.Scatter(
            x=_single(around),
            y=_single(edge),
            mode="lines",
            fill="toself",
            line={"width": 0},
            fillcolor=_rgba(mark.color, mark.opacity),
            hoverinfo="skip",
            name=mark.name,
            legendgroup=mark.group or mark.name,
            showlegend=False,
        )
    )


@_draw.register
def _(mark: Bars, at: _PanelPlace) -> None:
    fill = "rgba(0,0,0,0)" if mark.outline else mark.color
    border = {"color": style.INK if mark.outline else mark.color, "width": 1 if mark.outline else 0}
    x = "%{base:.4~g} to %{x:.4~g}" if np.any(mark.base) else "%{x:.4~g}"
    label = at.panel.x.label
    units = "" if at.panel.x.units == "1" else at.panel.x.units
    said = f"{label}: {x} {units}".strip(": ") if at.panel.x.ticks is None else ""
    text = _rows(at.panel, mark)
    at.add(
        go.Bar(
            x=_single(np.asarray(mark.x) - mark.base),
            y=_single(mark.y),
            base=mark.base,
            width=mark.thickness,
            orientation="h",
            opacity=mark.opacity,
            marker={"color": fill, "line": border},
            text=text,
            textposition="none",
            hovertemplate=f"{_head(at.panel, mark, text)}{said}<extra></extra>",
            **_legend(mark, at.named),
        )
    )


@_draw.register
def _(mark: Rule, at: _PanelPlace) -> None:
    add = at.figure.add_vline if mark.axis == "x" else at.figure.add_hline
    options: dict[str, object] = {mark.axis: mark.value}
    options["line"] = {"color": mark.color, "dash": _DASHES[mark.dash], "width": 1}
    add(row=at.row, col=at.col, exclude_empty_subplots=False, **options)
    if not mark.text:
        return
    # The text that add_vline offers takes the value of a logarithmic axis for its logarithm.
    log = (at.panel.x if mark.axis == "x" else at.panel.y).log
    across = {"x": "y", "y": "x"}[mark.axis]
    place = {
        mark.axis: math.log10(mark.value) if log else mark.value,
        across: 1 if mark.axis == "x" else 0,
        f"{across}ref": f"{across} domain",
    }
    at.figure.add_annotation(
        text=mark.text,
        showarrow=False,
        xanchor="left",
        yanchor="top" if mark.axis == "x" else "bottom",
        font={"size": 10, "color": mark.color},
        row=at.row,
        col=at.col,
        **place,
    )


@_draw.register
def _(mark: Matrix, at: _PanelPlace) -> None:
    text = [
        [_cell(value, mark.digits) if np.isfinite(value) else "" for value in line]
        for line in mark.values
    ]
    values, (low, high) = mark.coloured, mark.limits
    bar: dict[str, object] = {"title": {"text": Axis(mark.name, mark.units).title}, "thickness": 12}
    sharing = [m for p in at.drawing.panels for m in p.marks
               if isinstance(m, Matrix) and m.name == mark.name]  # fmt: skip
    ticks = bar_ticks(sharing)
    if mark.log:
        values = np.log10(values)
        low, high = math.log10(low), math.log10(high)
    if ticks is not None:
        places = np.array(list(ticks))
        bar |= {"tickvals": np.log10(places) if mark.log else places,
                "ticktext": list(ticks.values())}  # fmt: skip
    cells = [[f"{r} and {c}" for c in mark.columns] for r in mark.rows]
    hover = "%{customdata}<br>" + f"{mark.name}: %{{text}}"
    if mark.signs:  # the text of a cell is its sign, and its number is said with its name
        cells = [[f"{cell}<br>{mark.name}: {number}" for cell, number in zip(*both, strict=True)]
                 for both in zip(cells, text, strict=True)]  # fmt: skip
        text = np.where(mark.above, "▲", np.where(mark.below, "▼", "")).tolist()
        hover = "%{customdata}"
    at.add(
        go.Heatmap(
            x=np.arange(len(mark.columns)),
            y=np.arange(len(mark.rows)),
            z=_single(values),
            zmin=low,
            zmax=high,
            colorscale=style.DIVERGING if mark.diverging else "Viridis",
            text=text,
            texttemplate="%{text}" if mark.signs or mark.digits is not None else None,
            customdata=cells,
            hovertemplate=f"{hover}<extra></extra>",
            name=mark.name,
            showscale=not at.named & {mark.name},
            colorbar=bar,
        )
    )
    at.named.add(mark.name)


def _cell(value: float, digits: int | None) -> str:
    return f"{value:.3g}" if digits is None else fixed(value, digits)


@_draw.register
def _(mark: Contours, at: _PanelPlace) -> None:
    at.add(_planes.contours(mark, scale=mark.name not in at.named))
    at.named.add(mark.name)


@_draw.register
def _(mark: Field, at: _PanelPlace) -> None:
    at.add(_planes.field(mark))


@_draw.register
def _(mark: Gaps, at: _PanelPlace) -> None:
    at.add(_planes.gaps(mark))


@_draw.register
def _(mark: Surface, at: _PanelPlace) -> None:
    at.add(_planes.surface(mark, at.panel))


@_draw.register
def _(mark: Label, at: _PanelPlace) -> None:
    at.figure.add_annotation(
        x=math.log10(mark.x) if at.panel.x.log else mark.x,
        y=math.log10(mark.y) if at.panel.y.log else mark.y,
        text=mark.text,
        showarrow=False,
        xanchor=mark.anchor,
        xshift={"left": 6, "right": -6, "center": 0}[mark.anchor],
        yshift=14 * mark.lift,
        font={"color": mark.color, "size": 11},
        row=at.row,
        col=at.col,
    )
