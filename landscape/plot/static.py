"""Figures for paper: matplotlib `Figure`s in a venue's width, with embedded fonts.

Every function takes results and `width` (a name in `style.VENUES` or inches). `save` writes PDF
(TrueType fonts), PNG, SVG or PGF. What each shows: the function of the same name in `figures`.
"""

import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from matplotlib import rc_context, rcParams
from matplotlib.backends import backend_pgf
from matplotlib.backends.backend_pgf import LatexError, RendererPgf
from matplotlib.figure import Figure

from landscape.errors import LandscapeError
from landscape.plot import figures, style
from landscape.plot._matplotlib import render
from landscape.plot._twins import twins
from landscape.plot.latex import typeset
from landscape.storage import write_atomically

SUFFIXES = (".pdf", ".png", ".svg", ".pgf")
_TEX = ("xelatex", "lualatex", "pdflatex")
# Nothing of the day or the machine: the same data give the same bytes.
_METADATA = {
    ".pdf": {"CreationDate": None, "Creator": None, "Producer": None},
    ".svg": {"Date": None, "Creator": None},
    ".png": {"Software": None},
}

__all__ = [*figures.__all__, "render", "save"]


def save(figure: Figure, path: Path) -> Path:
    """Write a figure as the suffix says, atomically, fonts embedded; the same bytes every time.

    .pdf, .png, .svg, or .pgf for LaTeX (which needs a TeX installation to measure its text).
    path: the file, whose suffix chooses the format; it is returned.

    Example:
        >>> path = static.save(static.margins(runs["margins"]), "margins.pdf")
        >>> path.stat().st_size > 1000
        True
    """
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise LandscapeError(
            f"{path.name} ends in {path.suffix!r}; figures are written as {', '.join(SUFFIXES)}."
        )
    if path.suffix == ".pgf":
        return _typeset(figure, path)
    # Fonts are read while saving: those of the figure's own width were laid out by `render`.
    with rc_context(style.RC):
        return write_atomically(
            path, lambda file: figure.savefig(file, metadata=_METADATA.get(path.suffix))
        )


def _typeset(figure: Figure, path: Path) -> Path:
    """A .pgf file, by the first TeX here that can set it: Greek letters need more than pdflatex."""
    why = f"neither {_either(_TEX)} is installed"
    for tex in filter(shutil.which, _TEX):
        try:
            with rc_context(style.RC), _printed():
                rcParams["pgf.texsystem"] = tex
                return write_atomically(path, figure.savefig)
        except (LatexError, ValueError) as error:
            found = error if isinstance(error, LatexError) else error.__cause__
            if not isinstance(found, LatexError):
                raise
            said = [line for line in found.latex_output.splitlines() if line.startswith("!")]
            why = f"{tex} cannot set it ({said[0] if said else 'it says no more'})"
    raise LandscapeError(
        f"{path.name}: a .pgf figure is laid out by TeX, and {why}; write .pdf or .svg instead."
    )


class _Printed(RendererPgf):
    """Text is printed: to matplotlib it is TeX, and a name in a file of weights would be run."""

    def draw_text(
        self, gc: Any, x: Any, y: Any, s: str, prop: Any, angle: Any, ismath: Any = False,
        mtext: Any = None,
    ) -> None:  # fmt: skip
        super().draw_text(gc, x, y, typeset(s, maths=bool(ismath)), prop, angle, ismath, mtext)

    def get_text_width_height_descent(self, s: str, prop: Any, ismath: Any) -> Any:
        text = typeset(s, maths=bool(ismath))
        return super().get_text_width_height_descent(text, prop, ismath)


@contextmanager
def _printed() -> Generator[None]:
    backend_pgf.RendererPgf = _Printed  # ty: ignore[invalid-assignment] -- a kind of it
    try:
        yield
    finally:
        backend_pgf.RendererPgf = RendererPgf


def _either(names: tuple[str, ...]) -> str:
    return f"{', '.join(names[:-1])} nor {names[-1]}"


__getattr__ = twins(__name__, render)


def __dir__() -> list[str]:
    return sorted(__all__)
