"""Planes for plotly: fields of cells, gaps, rotating surfaces, and places of colour bars."""

from typing import Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import ArrayLike

from landscape.plot import style
from landscape.plot.drawing import (
    Axis,
    Contours,
    Drawing,
    Field,
    Gaps,
    Matrix,
    Panel,
    Surface,
)
from landscape.plot.ticks import even_ticks, exact, log_ticks, short

_COLOURED = Matrix | Contours | Field | Surface
_GAP = "#c9c9c9"


def field(mark: Field) -> go.Heatmap:
    """A cell per value; cells that are not finite stay empty."""
    values, (low, high) = np.asarray(mark.values, float).T, mark.limits
    bar: dict[str, object] = {"title": {"text": Axis(mark.name, mark.units).title, "side": "right"}}
    if mark.log:
        ticks = log_ticks(low, high)
        values = np.log10(np.where(values > 0, values, np.nan))
        bar |= {"tickvals": np.log10(ticks), "ticktext": [short(tick) for tick in ticks]}
        low, high = np.log10([low, high])
    return go.Heatmap(
        x=single(mark.x),
        y=single(mark.y),
        z=single(values),
        customdata=single(mark.values.T),
        zmin=low,
        zmax=high,
        colorscale=style.DIVERGING if mark.diverging else "Viridis",
        name=mark.name,
        hoverongaps=False,
        hovertemplate="%{x:.3g}, %{y:.3g}<br>"
        + f"{mark.name}: %{{customdata:.4g}} {'' if mark.units == '1' else mark.units}"
        + "<extra></extra>",
        colorbar={"thickness": 12, **bar},
    )


def gaps(mark: Gaps) -> go.Heatmap:
    """Grey cells that say what stands there instead of a number."""
    values = np.asarray(mark.values, float).T
    odd = ~np.isfinite(values)
    return go.Heatmap(
        x=single(mark.x),
        y=single(mark.y),
        z=np.where(odd, 0.0, np.nan),
        text=[[_word(value) for value in row] for row in values],
        colorscale=[[0, _GAP], [1, _GAP]],
        showscale=False,
        hoverongaps=False,
        name=mark.name,
        hovertemplate="%{x:.3g}, %{y:.3g}<br>%{text}<extra></extra>",
    )


def _word(value: float) -> str:
    if np.isfinite(value):
        return ""
    return "NaN" if np.isnan(value) else "infinity" if value > 0 else "minus infinity"


def surface(mark: Surface, panel: Panel) -> go.Surface:
    """Heights over a plane; the contours on the floor follow the pointer."""
    bottom, top = mark.heights(np.array(mark.limits))
    heights = mark.heights().T
    ticks = log_ticks(*mark.limits) if mark.log else None
    bar: dict[str, object] = {"title": {"text": Axis(mark.name, mark.units).title, "side": "right"}}
    if ticks is not None:
        bar |= {"tickvals": np.log10(ticks), "ticktext": [short(tick) for tick in ticks]}
    size = (top - bottom) / 12
    lines = {"show": True, "start": bottom, "end": top, "size": size, "usecolormap": True}
    return go.Surface(
        x=single(mark.x),
        y=single(mark.y),
        z=single(np.clip(heights, bottom, top)),
        surfacecolor=single(np.clip(heights, bottom, top)),
        customdata=single(mark.values.T),
        cmin=bottom,
        cmax=top,
        colorscale="Viridis",
        connectgaps=False,
        name=mark.name,
        contours={"z": {**lines, "project": {"z": True}, "highlightcolor": style.INK}},
        lighting={"ambient": 0.75, "diffuse": 0.5, "specular": 0.05, "roughness": 0.9},
        hovertemplate=f"{panel.x.label}: %{{x:.3g}}<br>{panel.y.label}: %{{y:.3g}}<br>"
        + f"{mark.name}: %{{customdata:.4g}} {'' if mark.units == '1' else mark.units}"
        + "<extra></extra>",
        colorbar={"thickness": 12, "len": 0.8, **bar},
    )


def equal_axes(figure: go.Figure, row: int, column: int) -> None:
    """One unit is as long up as across.

    That stands at the axis that matches no other: plotly ignores it at one that does. Where both
    match, the axes that they match have it.
    """
    x = next(figure.select_xaxes(row=row, col=column))
    y = next(figure.select_yaxes(row=row, col=column))
    for axis, other in ((y, x), (x, y)):
        if axis.matches is None:
            axis.update(scaleanchor=other.plotly_name.replace("axis", ""), scaleratio=1)
            break
    for axis in (x, y):
        axis.update(constrain="domain")


def scene_axes(figure: go.Figure, panel: Panel, row: int, column: int) -> None:
    """Titles, ticks and the floor of a 3-D panel."""
    mark = next(mark for mark in panel.marks if isinstance(mark, Surface))
    bottom, top = (float(end) for end in mark.heights(np.array(mark.limits)))
    look = {"gridcolor": style.GRID, "backgroundcolor": "rgba(0,0,0,0)", "zeroline": False}
    small = {"size": 11}
    # Whole, even where the loss is not finite at its ends.
    ends = {"x": mark.x[[0, -1]].tolist(), "y": mark.y[[0, -1]].tolist()}
    z: dict[str, object] = {"range": [bottom - 0.35 * (top - bottom), top + 0.02 * (top - bottom)]}
    if not mark.log:
        # Nothing is as low as the floor: it has no tick.
        ticks = even_ticks(bottom, top)
        z |= {"tickvals": ticks, "ticktext": [exact(tick) for tick in ticks]}
    if mark.log:
        ticks = log_ticks(*mark.limits)
        z |= {"tickvals": np.log10(ticks), "ticktext": [short(tick) for tick in ticks]}
    figure.update_scenes(
        row=row,
        col=column,
        **{
            f"{which}axis": {
                "title": {"text": axis.title, "font": small},
                "tickfont": small,
                "range": ends[which],
                **look,
            }
            for which, axis in (("x", panel.x), ("y", panel.y))
        },
        # Its title would stand outside of the scene; the colour bar has the same words.
        zaxis={"title": {"text": ""}, "tickfont": small, **look, **z},
        aspectmode="manual",
        aspectratio={"x": 1, "y": 1, "z": 0.75},
        camera={"eye": {"x": 1.4, "y": -1.57, "z": 0.9}, "center": {"x": 0, "y": 0, "z": -0.15}},
        dragmode="orbit",
    )


def blank(scaled: np.ndarray, mark: Contours) -> np.ndarray:
    """NaN where the value was not finite, which clipping would hide."""
    return np.where(np.isfinite(mark.values.T), scaled, np.nan)


def spacing(drawing: Drawing, columns: int) -> float:
    """Share of the width between panels: more where a colour bar stands between them."""
    if columns == 1:
        return 0.0
    last: dict[str, int] = {}
    for index, panel in enumerate(drawing.panels):
        last |= {mark.name: index for mark in panel.marks if isinstance(mark, _COLOURED)}
    inner = len(last) > 1 and any(index % columns < columns - 1 for index in last.values())
    if inner:
        return 0.14
    return 0.02 if drawing.share_y or drawing.solid else 0.08


def arrange_bars(figure: go.Figure) -> None:
    """One colour bar for each scale, beside the last panel that it explains if there are several.

    Traces of one name share their colours.
    """
    found: dict[str, list[go.Heatmap | go.Contour | go.Surface]] = {}
    for trace in figure.data:
        if isinstance(trace, go.Heatmap | go.Contour | go.Surface):
            found.setdefault(trace.name, []).append(trace)
    shown = [traces for traces in found.values() if any(t.showscale is not False for t in traces)]
    for traces in shown:
        for trace in traces:
            trace.showscale = trace is traces[-1]
        if len(shown) > 1:
            (_, right), (low, high) = _domains(figure, traces[-1])
            bar = traces[-1].colorbar
            bar.update(x=right + 0.005, xanchor="left", len=high - low)
            bar.update(y=(low + high) / 2, yanchor="middle")


def _domains(figure: go.Figure, trace: Any) -> tuple[tuple[float, float], tuple[float, float]]:
    if isinstance(trace, go.Surface):
        domain = figure.layout[trace.scene or "scene"].domain
        return domain.x, domain.y
    axes = [f"{name[0]}axis{name[1:]}" for name in (trace.xaxis or "x", trace.yaxis or "y")]
    return figure.layout[axes[0]].domain, figure.layout[axes[1]].domain


def single(values: ArrayLike) -> np.ndarray:
    """Half the size of the page: six digits are more than a screen shows.

    The ends of an interval of few seeds may lie beyond what single precision holds. What is
    rounding beside the largest, as the middle of a symmetric grid, is 0.
    """
    table = np.asarray(values, np.float64)
    widest = np.abs(table[np.isfinite(table)]).max(initial=0.0)
    table = np.where(np.abs(table) < 1e-14 * widest, 0.0, table)
    largest = float(np.finfo(np.float32).max)
    return np.where(np.isfinite(table), np.clip(table, -largest, largest), table).astype(np.float32)


def contours(mark: Contours, *, scale: bool) -> go.Contour:
    """Filled contours, with a bar of colours where `scale`."""
    scaled, levels = mark.scaled, mark.scaled(mark.levels)
    ticks = levels[:: max(1, len(levels) // 6)]
    return go.Contour(
        x=single(mark.x),
        y=single(mark.y),
        z=single(blank(scaled(np.clip(mark.values.T, *mark.levels[[0, -1]])), mark)),
        customdata=single(mark.values.T),
        zmin=levels[0],
        zmax=levels[-1],
        contours={
            "start": levels[0],
            "end": levels[-1],
            "size": levels[1] - levels[0],
            "coloring": "heatmap",
        },
        line={"width": 0.5, "color": "rgba(255,255,255,0.6)"},
        colorscale="Viridis",
        name=mark.name,
        showscale=scale,
        hovertemplate="%{x:.2f}, %{y:.2f}<br>"
        + f"{mark.name}: %{{customdata:.4g}} {mark.units}<extra></extra>",
        colorbar={
            "title": {"text": Axis(mark.name, mark.units).title, "side": "right"},
            "tickvals": list(ticks),
            "ticktext": [short(mark.plain(tick)) for tick in ticks],
            "thickness": 12,
        },
    )
