"""One function per figure: Datasets in, a `Drawing` out."""

from landscape.plot.figures.behaviour import (
    calibration,
    features,
    gradient_noise,
    margins,
    memorization,
    norms,
    robustness,
)
from landscape.plot.figures.controls import perturbation_controls
from landscape.plot.figures.curvature import (
    hessian_trace,
    sharpness,
    spectral_density,
    top_eigenvalues,
)
from landscape.plot.figures.enrichment import enrichment, perturbation_cosines
from landscape.plot.figures.masks import (
    batch_overlap,
    mask_filters,
    mask_overlap,
    mask_persistence,
    mask_selection,
    saved_mask_overlap,
)
from landscape.plot.figures.outcome import flatness_vs_accuracy, headline, history
from landscape.plot.figures.perturbations import (
    energy_map,
    energy_over_time,
    norm_ratio_map,
    perturbation,
    perturbation_over_time,
)
from landscape.plot.figures.surfaces import loss_plane, loss_slice
from landscape.plot.figures.zscores import gradient_zscores, zscore_tails

__all__ = [
    "batch_overlap",
    "calibration",
    "energy_map",
    "energy_over_time",
    "enrichment",
    "features",
    "flatness_vs_accuracy",
    "gradient_noise",
    "gradient_zscores",
    "headline",
    "hessian_trace",
    "history",
    "loss_plane",
    "loss_slice",
    "margins",
    "mask_filters",
    "mask_overlap",
    "mask_persistence",
    "mask_selection",
    "memorization",
    "norm_ratio_map",
    "norms",
    "perturbation",
    "perturbation_controls",
    "perturbation_cosines",
    "perturbation_over_time",
    "robustness",
    "saved_mask_overlap",
    "sharpness",
    "spectral_density",
    "top_eigenvalues",
    "zscore_tails",
]
