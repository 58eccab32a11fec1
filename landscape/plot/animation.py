"""Drawings that have moments as moving pictures: GIF by Pillow, HTML with a slider by plotly.

A drawing has moments where its marks say `when` each point is there: a training's path over the
epochs. Every picture has the axes of the whole, and the last one is the figure that stands still.
"""

import io
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
from matplotlib import rc_context
from PIL import Image

from landscape.errors import LandscapeError
from landscape.plot import _plotly, style
from landscape.plot._matplotlib import render
from landscape.plot.drawing import Drawing
from landscape.storage import write_atomically

SECONDS = 0.35  # a picture; the last one stands longer
_LAST = 4


def save_gif(
    drawing: Drawing, path: Path, *, width: str | float = "neurips", dpi: int = 120
) -> Path:
    """Write the moments of a drawing as a GIF that repeats; the same bytes every time."""
    path, moments = Path(path), _moments(drawing)
    if path.suffix != ".gif":
        raise LandscapeError(f"{path.name} ends in {path.suffix!r}; moving pictures are .gif.")
    pictures = [_picture(drawing.until(moment), width, dpi) for moment in moments]
    # One palette, that of the last picture, which has every colour: no flicker.
    last = pictures[-1].quantize(256, dither=Image.Dither.NONE)
    frames = [p.quantize(palette=last, dither=Image.Dither.NONE) for p in pictures[:-1]] + [last]
    times = [int(1000 * SECONDS)] * (len(frames) - 1) + [int(1000 * _LAST * SECONDS)]
    return write_atomically(
        path,
        lambda file: frames[0].save(
            file, format="GIF", save_all=True, append_images=frames[1:], duration=times, loop=0
        ),
    )


def _picture(drawing: Drawing, width: str | float, dpi: int) -> Image.Image:
    buffer = io.BytesIO()
    figure = render(drawing, width=width, dpi=dpi)
    with rc_context(style.RC):
        figure.savefig(buffer, format="png", bbox_inches=None)
    buffer.seek(0)
    return Image.open(buffer).convert("RGB")


def _moments(drawing: Drawing) -> list[float]:
    moments = drawing.moments
    if len(moments) < 2:
        raise LandscapeError(
            f"The figure {drawing.name!r} has {len(moments)} moments; a moving picture needs two: "
            f"`trajectory` has one per kept checkpoint."
        )
    return moments


def moving(drawing: Drawing, *, width: str | float = "neurips") -> go.Figure:
    """The plotly figure with its moments as frames, a slider and a button."""
    moments = _moments(drawing)
    whole = drawing.until(moments[-1])
    figure = _plotly.render(whole, width=width)
    for moment in moments:
        now = _plotly.render(drawing.until(moment), width=width)
        changed = [
            (index, go.Scatter(x=trace.x, y=trace.y))
            for index, trace in enumerate(now.data)
            if isinstance(trace, go.Scatter) and not _equal(trace, figure.data[index])
        ]
        figure.frames += (
            go.Frame(
                data=[trace for _, trace in changed],
                traces=[index for index, _ in changed],
                name=f"{moment:g}",
            ),
        )
    # A frame names the traces of all frames: what changed in one must be restored in the next.
    every = sorted({index for frame in figure.frames for index in frame.traces})
    figure.frames = [_whole(frame, every, figure) for frame in figure.frames]
    # Without this plotly.js moves the points from frame to frame, and drops the contours.
    at_once = {"transition": {"duration": 0}}
    still = {"mode": "immediate", "frame": {"duration": 0, "redraw": True}, **at_once}
    figure.update_layout(
        sliders=[
            {
                "active": len(moments) - 1,
                "currentvalue": {"prefix": "epoch "},
                **at_once,
                "pad": {"t": 70, "l": 80},
                "steps": [
                    {"label": f"{m:g}", "method": "animate", "args": [[f"{m:g}"], still]}
                    for m in moments
                ],
            }
        ],
        updatemenus=[
            {
                "type": "buttons",
                "showactive": False,
                "x": 0,
                "y": 0,
                "pad": {"t": 78},
                "xanchor": "left",
                "yanchor": "top",
                "buttons": [
                    {
                        "label": "play",
                        "method": "animate",
                        "args": [
                            None,
                            {"frame": {"duration": 1000 * SECONDS, "redraw": True}, **at_once},
                        ],
                    }
                ],
            }
        ],
        height=figure.layout.height + 110,
        margin_b=(figure.layout.margin.b or 60) + 110,
    )
    return figure


def _equal(a: go.Scatter, b: go.Scatter) -> bool:
    return all(
        np.array_equal(np.asarray(getattr(a, k), float), np.asarray(getattr(b, k), float), True)
        for k in ("x", "y")
    )


def _whole(frame: go.Frame, every: list[int], figure: go.Figure) -> go.Frame:
    own = dict(zip(frame.traces, frame.data, strict=True))
    data = [own.get(i) or go.Scatter(x=figure.data[i].x, y=figure.data[i].y) for i in every]
    return go.Frame(data=data, traces=every, name=frame.name)
