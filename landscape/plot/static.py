"""Figures for paper: matplotlib `Figure`s in a venue's width, with embedded fonts.

Every function takes results and `width` (a name in `style.WIDTHS` or inches). `save` writes PDF
(TrueType fonts), PNG or SVG. What each figure shows: the function of the same name in `figures`.
"""

from pathlib import Path

from matplotlib import rc_context
from matplotlib.figure import Figure

from landscape.errors import LandscapeError
from landscape.plot import figures, style
from landscape.plot._matplotlib import render
from landscape.plot._twins import twins
from landscape.storage import write_atomically

SUFFIXES = (".pdf", ".png", ".svg")

__all__ = [*figures.__all__, "render", "save"]


def save(figure: Figure, path: Path) -> Path:
    """Write a figure as the suffix says (.pdf, .png, .svg), atomically, fonts embedded."""
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise LandscapeError(
            f"{path.name} ends in {path.suffix!r}; figures are written as {', '.join(SUFFIXES)}."
        )
    metadata = {"CreationDate": None} if path.suffix == ".pdf" else None
    with rc_context(style.RC):
        return write_atomically(path, lambda file: figure.savefig(file, metadata=metadata))


__getattr__ = twins(__name__, render)


def __dir__() -> list[str]:
    return sorted(__all__)
