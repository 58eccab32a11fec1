"""Drawings that have moments as moving pictures: GIF, MP4, and HTML with a slider by plotly.

A drawing has moments where its marks say `when` each point is there: a training's path over the
epochs. Every picture has the axes of the whole, and the last one is the figure that stands still.
"""

import io
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
from matplotlib import rc_context
from PIL import Image

from landscape.errors import LandscapeError
from landscape.plot import _plotly, derived, style
from landscape.plot._matplotlib import render
from landscape.plot.drawing import Drawing
from landscape.storage import write_atomically

__all__ = ["SECONDS", "SUFFIXES", "moving", "save"]

SUFFIXES = (".gif", ".mp4")
SECONDS = 0.35  # a picture; the last one stands longer
_LAST = 4
_RATE = 20  # pictures a second of a film, of which players expect some


def save(drawing: Drawing, path: Path, *, width: str | float = "neurips", dpi: int = 120) -> Path:
    """Write the moments of a drawing as .gif, which repeats, or .mp4; the same bytes every time.

    .mp4 (H.264) is encoded by the ffmpeg that `pip install sam-landscape[video]` brings, or else by
    the one on the PATH.
    """
    path, moments = Path(path), _moments(drawing)
    if path.suffix not in SUFFIXES:
        raise LandscapeError(
            f"{path.name} ends in {path.suffix!r}; moving pictures are {', '.join(SUFFIXES)}."
        )
    write = _gif if path.suffix == ".gif" else _mp4(path.name)
    pictures = [_picture(derived.until(drawing, moment), width, dpi) for moment in moments]
    return write_atomically(path, lambda file: write(pictures, file))


def _gif(pictures: list[Image.Image], file: Path) -> None:
    # One palette, that of the last picture, which has every colour: no flicker.
    last = pictures[-1].quantize(256, dither=Image.Dither.NONE)
    frames = [p.quantize(palette=last, dither=Image.Dither.NONE) for p in pictures[:-1]] + [last]
    times = [int(1000 * SECONDS)] * (len(frames) - 1) + [int(1000 * _LAST * SECONDS)]
    frames[0].save(
        file, format="GIF", save_all=True, append_images=frames[1:], duration=times, loop=0
    )


def _mp4(name: str) -> Callable[[list[Image.Image], Path], None]:
    encoder = _ffmpeg(name)

    def write(pictures: list[Image.Image], file: Path) -> None:
        # Colours are kept for two by two pixels together: both sides are even.
        wide, high = (2 * (-(-side // 2)) for side in pictures[0].size)
        even = [Image.new("RGB", (wide, high), "white") for _ in pictures]
        for whole, picture in zip(even, pictures, strict=True):
            whole.paste(picture)
        times = round(SECONDS * _RATE)
        shown = [p.tobytes() for p in even for _ in range(times)]
        shown += [even[-1].tobytes()] * (times * (_LAST - 1))
        # One thread, and no word on the encoder or the day: the same bytes every time.
        command = [
            encoder, "-y", "-loglevel", "error", "-f", "rawvideo", "-pix_fmt", "rgb24",
            "-s", f"{wide}x{high}", "-r", str(_RATE), "-i", "-", "-an", "-c:v", "libx264",
            "-threads", "1", "-crf", "18", "-pix_fmt", "yuv420p", "-movflags", "+faststart",
            "-fflags", "+bitexact", "-flags:v", "+bitexact", "-f", "mp4", str(file),
        ]  # fmt: skip
        done = subprocess.run(command, input=b"".join(shown), capture_output=True, check=False)
        if done.returncode:
            said = done.stderr.decode(errors="replace").strip()[-300:]
            raise LandscapeError(
                f"{name}: {encoder} could not encode it ({said}); write .gif instead."
            )

    return write


def _ffmpeg(name: str) -> str:
    """The encoder, looked for before anything is drawn."""
    try:
        from imageio_ffmpeg import get_ffmpeg_exe

        return get_ffmpeg_exe()
    except (ImportError, RuntimeError):  # not installed; or it has none for this machine
        found = shutil.which("ffmpeg")
    if found is None:
        raise LandscapeError(
            f"{name}: .mp4 is encoded by ffmpeg, which is not installed; "
            f"`pip install sam-landscape[video]`, or write .gif."
        )
    return found


def _picture(drawing: Drawing, width: str | float, dpi: int) -> Image.Image:
    buffer = io.BytesIO()
    figure = render(drawing, width=width, dpi=dpi)
    with rc_context(style.RC):
        figure.savefig(buffer, format="png", bbox_inches=None)
    buffer.seek(0)
    return Image.open(buffer).convert("RGB")


def _moments(drawing: Drawing) -> list[float]:
    moments = derived.moments(drawing)
    if len(moments) < 2:
        raise LandscapeError(
            f"The figure {drawing.name!r} has {len(moments)} moments; a moving picture needs two: "
            f"`trajectory` has one per kept checkpoint."
        )
    return moments


def moving(drawing: Drawing, *, width: str | float = "neurips") -> go.Figure:
    """The plotly figure with its moments as frames, a slider and a button."""
    moments = _moments(drawing)
    whole = derived.until(drawing, moments[-1])
    figure = _plotly.render(whole, width=width)
    for moment in moments:
        now = _plotly.render(derived.until(drawing, moment), width=width)
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
