"""Each kind of mark on the axes of matplotlib."""

from functools import singledispatch
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib import colormaps, rcParams
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.colors import LightSource, ListedColormap, LogNorm, Normalize, PowerNorm
from matplotlib.contour import QuadContourSet
from matplotlib.image import AxesImage
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator

from landscape.plot import style
from landscape.plot.drawing import (
    Band,
    Bars,
    Contours,
    Field,
    Gaps,
    Label,
    Line,
    Matrix,
    Points,
    Rule,
    Surface,
)
from landscape.plot.ticks import fixed, log_ticks, short

if TYPE_CHECKING:
    from mpl_toolkits.mplot3d import Axes3D

_SYMBOLS = {
    "circle": "o",
    "square": "s",
    "diamond": "D",
    "triangle": "^",
    "cross": "P",
    "x": "X",
    "bar": "|",
    "none": "",
}
_WHITE = "#ffffff"
_DASHES = {"solid": "-", "dash": (0, (4, 2)), "dot": (0, (1, 1.5))}


def _small() -> float:
    return float(rcParams["xtick.labelsize"])


@singledispatch
def draw(mark: object, ax: Axes) -> object:
    """Draw a mark; of one whose colours mean values, what a colour bar explains."""
    raise TypeError(f"no way to draw {type(mark).__name__} on {ax}")


@draw.register
def _(mark: Points, ax: Axes) -> None:
    hollow = np.zeros(len(mark.x), bool) if mark.hollow is None else np.asarray(mark.hollow)
    for line, across, low, high in (
        (ax.hlines, mark.y, mark.x_low, mark.x_high),
        (ax.vlines, mark.x, mark.y_low, mark.y_high),
    ):
        if low is not None and high is not None:
            line(across, low, high, color=mark.color, lw=0.9, alpha=mark.opacity, zorder=2.5)
    label = mark.name if mark.legend else None
    edge = style.INK if mark.color == _WHITE else _WHITE
    for chosen, face in ((~hollow, mark.color), (hollow, "white")):
        if not chosen.any() and (face == "white" or hollow.any()):
            continue
        ax.plot(
            np.where(chosen, mark.x, np.nan),
            np.where(chosen, mark.y, np.nan),
            linestyle="none",
            marker=_SYMBOLS[mark.symbol],
            markersize=mark.size,
            markerfacecolor=face,
            markeredgecolor=mark.color if face == "white" or mark.symbol == "bar" else edge,
            markeredgewidth=0.8 if face == "white" or mark.symbol == "bar" else 0.4,
            alpha=mark.opacity,
            label=label,
            zorder=1.8 if mark.color == style.PALE else 3 if mark.size > 3.5 else 2.8,
        )
        label = None


@draw.register
def _(mark: Line, ax: Axes) -> None:
    label = mark.name if mark.legend else None
    # Symbols stand where the line is: of a spectrum most points have nothing to show.
    known = np.flatnonzero(np.isfinite(mark.x) & np.isfinite(mark.y)).tolist()
    ax.plot(
        mark.x, mark.y, color=mark.color, linestyle=_DASHES[mark.dash], linewidth=mark.width,
        alpha=mark.opacity, label=label, marker=_SYMBOLS[mark.symbol], markersize=3.2,
        markeredgecolor="white", markeredgewidth=0.3, markevery=known[:: max(1, len(known) // 5)],
        # A white path is seen on the palest contours too.
        path_effects=[withStroke(linewidth=mark.width + 1, foreground=style.INK)]
        if mark.color == _WHITE else None,
    )  # fmt: skip


@draw.register
def _(mark: Band, ax: Axes) -> None:
    ax.fill_between(mark.x, mark.low, mark.high, color=mark.color, alpha=mark.opacity, linewidth=0)


@draw.register
def _(mark: Bars, ax: Axes) -> None:
    look: dict[str, Any] = (
        {"facecolor": "none", "edgecolor": style.INK, "linewidth": 0.6}
        if mark.outline
        else {"color": mark.color, "linewidth": 0, "alpha": mark.opacity}
    )
    ax.barh(
        mark.y, np.asarray(mark.x) - mark.base, height=mark.thickness, left=mark.base,
        label=mark.name if mark.legend else None, **look,
    )  # fmt: skip


@draw.register
def _(mark: Rule, ax: Axes) -> None:
    line = ax.axvline if mark.axis == "x" else ax.axhline
    line(mark.value, color=mark.color, linestyle=_DASHES[mark.dash], linewidth=0.8, zorder=1.5)
    if mark.text:
        place: dict[str, Any] = (
            {"xy": (mark.value, 1), "xycoords": ("data", "axes fraction"), "xytext": (2, -1),
             "va": "top", "ha": "left"}
            if mark.axis == "x"
            else {"xy": (0, mark.value), "xycoords": ("axes fraction", "data"), "xytext": (2, 1),
                  "va": "bottom", "ha": "left"}
        )  # fmt: skip
        ax.annotate(
            mark.text,
            textcoords="offset points",
            fontsize=_small(),
            color=mark.color,
            **place,
        )


@draw.register
def _(mark: Matrix, ax: Axes) -> AxesImage:
    cmap = colormaps[style.DIVERGING if mark.diverging else style.SEQUENTIAL]
    low, high = mark.limits
    norm = LogNorm(low, high) if mark.log else Normalize(low, high)
    shown = np.ma.masked_invalid(mark.coloured)
    image = ax.imshow(shown, cmap=cmap, norm=norm, aspect="auto", interpolation="nearest")
    ax.spines[:].set_visible(False)
    for (row, column), value in np.ndenumerate(mark.values):
        if mark.digits is not None and np.isfinite(value):
            # The diverging map is dark at both ends, the sequential one at its lower end.
            share = (value - low) / (high - low)
            dark = abs(share - 0.5) > 0.33 if mark.diverging else share < 0.5
            ax.text(
                column, row, fixed(value, mark.digits), ha="center", va="center", fontsize=_small(),
                color="white" if dark else style.INK,
            )  # fmt: skip
    if mark.signs:
        _signs(mark, ax)
    return image


def _signs(mark: Matrix, ax: Axes) -> None:
    """Triangles in the cells beyond the colours, as large as a cell lets them be."""
    inches = min(ax.bbox.width / len(mark.columns), ax.bbox.height / len(mark.rows))
    size = min(4.0, 0.4 * 72 * inches / ax.figure.dpi)
    for where, symbol in ((mark.above, "^"), (mark.below, "v")):
        rows, columns = np.nonzero(where)
        ax.plot(columns, rows, symbol, color="white", markersize=size, markeredgewidth=0)


@draw.register
def _(mark: Contours, ax: Axes) -> QuadContourSet:
    low, high = mark.levels[0], mark.levels[-1]
    known = np.ma.masked_invalid(mark.values.T)
    values = np.clip(known, low, high)
    norm = LogNorm(low, high) if mark.log else PowerNorm(0.5 if mark.root else 1, low, high)
    filled = ax.contourf(
        mark.x, mark.y, values, levels=mark.levels, norm=norm, cmap=style.SEQUENTIAL
    )
    ax.contour(
        mark.x, mark.y, values, levels=mark.levels, colors="white", linewidths=0.3, alpha=0.6
    )
    if mark.equal:
        ax.set_aspect("equal")
    return filled


@draw.register
def _(mark: Field, ax: Axes) -> QuadMesh:
    low, high = mark.limits
    values = np.ma.masked_invalid(mark.values.T)
    norm = (LogNorm if mark.log else Normalize)(low, high)
    cmap = colormaps[style.DIVERGING if mark.diverging else style.SEQUENTIAL]
    mesh = ax.pcolormesh(mark.x, mark.y, values, norm=norm, cmap=cmap, shading="nearest")
    ax.set_aspect("equal")
    return mesh


@draw.register
def _(mark: Gaps, ax: Axes) -> None:
    cells = np.ma.masked_where(np.isfinite(mark.values.T), np.zeros(mark.values.T.shape))
    colors = ListedColormap([style.GRID])
    ax.pcolor(
        mark.x, mark.y, cells, cmap=colors, shading="nearest", hatch="/////", zorder=1.2,
        edgecolor=style.MUTED, linewidth=0,
    )  # fmt: skip


@draw.register(Surface)
def _(mark: Surface, ax: "Axes3D") -> None:
    bottom, top = mark.heights(np.array(mark.limits))
    floor = bottom - 0.35 * (top - bottom)
    x, y = np.meshgrid(mark.x, mark.y, indexing="ij")
    heights = np.clip(mark.heights(), bottom, top)
    options: dict[str, Any] = {"cmap": colormaps[style.SEQUENTIAL], "vmin": bottom, "vmax": top}
    lit = LightSource(azdeg=225, altdeg=55).shade(
        np.where(np.isfinite(heights), heights, bottom), vert_exag=0.6, blend_mode="soft",
        dx=(x[-1, 0] - x[0, 0]) / len(x) / (top - bottom), **options,
    )  # fmt: skip
    # No face has a corner that is not finite.
    ax.plot_surface(x, y, heights, rstride=1, cstride=1, facecolors=lit, shade=False,
                    linewidth=0, antialiased=True)  # fmt: skip
    levels = np.linspace(bottom, top, 12)
    below = np.ma.masked_invalid(heights)
    ax.contour(x, y, below, levels=levels, zdir="z", offset=floor, linewidths=0.5, **options)
    ax.set_zlim(floor, top)
    ax.view_init(elev=28, azim=-60)
    # Labels stand outside of the box, which is cut at the edge of the axes; they are as large in a
    # small panel.
    inches = ax.bbox.width / ax.figure.dpi
    ax.set_box_aspect((1, 1, 0.75), zoom=max(0.7, 1.12 - 0.39 / inches))
    ax.tick_params(pad=-3)
    for which in (ax.xaxis, ax.yaxis):
        which.set_major_locator(MaxNLocator(3, symmetric=True))
    # Nothing is as low as the floor: it has no tick.
    heights = MaxNLocator(4).tick_values(bottom, top)
    ax.zaxis.set_major_locator(FixedLocator([tick for tick in heights if bottom <= tick <= top]))
    # matplotlib types the first two as axes of a plane.
    axes: tuple[Any, ...] = (ax.xaxis, ax.yaxis, ax.zaxis)
    for axis, pad in zip(axes, (-4, -4, -7), strict=True):
        axis.labelpad = pad
        axis.set_pane_color((1, 1, 1, 0))
        axis._axinfo["grid"].update(color=style.GRID, linewidth=0.4)
    if mark.log:
        ticks = log_ticks(*mark.limits)
        ax.zaxis.set_major_locator(FixedLocator(list(np.log10(ticks))))
        ax.zaxis.set_major_formatter(FuncFormatter(lambda value, _: short(10**value)))


@draw.register
def _(mark: Label, ax: Axes) -> None:
    shift = {"left": 5, "right": -5, "center": 0}[mark.anchor]
    ax.annotate(
        mark.text, (mark.x, mark.y), xytext=(shift, 1.1 * _small() * mark.lift),
        textcoords="offset points",
        ha=mark.anchor, va="center", fontsize=_small(), color=mark.color,
    )  # fmt: skip
