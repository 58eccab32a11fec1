"""Figures for the page: plotly twins of `static`, with the same names, signatures and numbers.

`width` decides only on the number of columns; the page decides on pixels. `CONFIG` is the
configuration to show them with: nothing is sent anywhere.
"""

from pathlib import Path

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from landscape.errors import LandscapeError
from landscape.plot import figures
from landscape.plot._plotly import CONFIG, render
from landscape.plot._twins import drawn_by
from landscape.storage import write_text

__all__ = [*figures.__all__, "CONFIG", "render", "save"]


def save(figure: go.Figure, path: Path, *, shared: bool = False) -> Path:
    """Write a page of one figure that opens without a network (.html).

    It holds plotly.js (5 MB); `shared` puts that beside it once, as plotly.min.js, for many pages.
    """
    path = Path(path)
    if path.suffix != ".html":
        raise LandscapeError(f"{path.name} ends in {path.suffix!r}; a page is written as .html.")
    if shared and not (path.parent / "plotly.min.js").exists():
        write_text(path.parent / "plotly.min.js", get_plotlyjs())
    source = "directory" if shared else True
    return write_text(path, figure.to_html(config=CONFIG, include_plotlyjs=source))


_drawn = drawn_by(render)
headline = _drawn(figures.headline)
flatness_vs_accuracy = _drawn(figures.flatness_vs_accuracy)
history = _drawn(figures.history)
top_eigenvalues = _drawn(figures.top_eigenvalues)
hessian_trace = _drawn(figures.hessian_trace)
spectral_density = _drawn(figures.spectral_density)
sharpness = _drawn(figures.sharpness)
loss_slice = _drawn(figures.loss_slice)
loss_plane = _drawn(figures.loss_plane)
perturbation = _drawn(figures.perturbation)
energy_over_time = _drawn(figures.energy_over_time)
perturbation_over_time = _drawn(figures.perturbation_over_time)
gradient_zscores = _drawn(figures.gradient_zscores)
mask_overlap = _drawn(figures.mask_overlap)
mask_persistence = _drawn(figures.mask_persistence)
