"""One function per figure: Datasets in, a `Drawing` out."""

from landscape.plot.figures.curvature import (
    hessian_trace,
    sharpness,
    spectral_density,
    top_eigenvalues,
)
from landscape.plot.figures.outcome import flatness_vs_accuracy, headline, history
from landscape.plot.figures.perturbations import (
    energy_over_time,
    gradient_zscores,
    mask_overlap,
    mask_persistence,
    perturbation,
    perturbation_over_time,
)
from landscape.plot.figures.surfaces import loss_plane, loss_slice

__all__ = [
    "energy_over_time",
    "flatness_vs_accuracy",
    "gradient_zscores",
    "headline",
    "hessian_trace",
    "history",
    "loss_plane",
    "loss_slice",
    "mask_overlap",
    "mask_persistence",
    "perturbation",
    "perturbation_over_time",
    "sharpness",
    "spectral_density",
    "top_eigenvalues",
]
