"""Figures for the page: plotly twins of `static`, with the same names, signatures and numbers.

`width` decides only on the number of columns; the page decides on pixels. `CONFIG` is the
configuration to show them with: nothing is sent anywhere.
"""

from pathlib import Path

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from landscape.errors import LandscapeError
from landscape.plot import figures, pages
from landscape.plot._plotly import CONFIG, render
from landscape.plot._twins import twins
from landscape.storage import write_text

__all__ = [*figures.__all__, "CONFIG", "render", "save"]


def save(figure: go.Figure, path: Path, *, shared: bool = False) -> Path:
    """Write a page of one figure that opens without a network (.html).

    It holds plotly.js (5 MB); `shared` puts that beside it once, as plotly.min.js, for many pages.
    path: the file, ending in .html; it is returned.

    Example:
        >>> page = interactive.margins(runs["margins"])
        >>> interactive.save(page, "margins.html", shared=True).name
        'margins.html'
    """
    path = Path(path)
    if path.suffix != ".html":
        raise LandscapeError(f"{path.name} ends in {path.suffix!r}; a page is written as .html.")
    if shared and not (path.parent / "plotly.min.js").exists():
        write_text(path.parent / "plotly.min.js", get_plotlyjs())
    return write_text(path, pages.single(figure, path.stem, shared=shared))


__getattr__ = twins(__name__, render)


def __dir__() -> list[str]:
    return sorted(__all__)
