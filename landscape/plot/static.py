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
from landscape.plot._twins import drawn_by
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
