"""Measurements: pure functions (risk, theta, *, options, seed) -> `xarray.Dataset`.

Each works at any flat theta of the risk's model, alters nothing, draws from its own seed, and
returns labelled values with units and provenance (`landscape.results`).
"""

from landscape.measure.curvature.adaptive_sharpness import adaptive_sharpness, m_sharpness
from landscape.measure.curvature.along_training import sam_edge, sgd_edge, training_curvature
from landscape.measure.curvature.blocks import block_curvature, hessian_diagonal
from landscape.measure.curvature.critical import critical_sharpness
from landscape.measure.curvature.crosscheck import PyHessian, crosscheck
from landscape.measure.curvature.minibatches import data_bracket, minibatch_eigenvalues
from landscape.measure.curvature.over_plane import curvature_map
from landscape.measure.curvature.sharpness import sharpness
from landscape.measure.curvature.spectral_density import spectral_density
from landscape.measure.curvature.top import hessian_trace, top_eigenvalues
from landscape.measure.outcome.calibration import calibration
from landscape.measure.outcome.features import features
from landscape.measure.outcome.generalization import generalization
from landscape.measure.outcome.margins import margins
from landscape.measure.outcome.memorization import correct_examples, memorization
from landscape.measure.outcome.robustness import robustness
from landscape.measure.perturbations.alignment import alignment, enrichment
from landscape.measure.perturbations.controls import perturbation_controls
from landscape.measure.perturbations.gradient_noise import gradient_noise, norms
from landscape.measure.perturbations.overlap import batch_overlap, mask_overlap, saved_mask_overlap
from landscape.measure.perturbations.perturbation import perturbation, perturbation_cosines
from landscape.measure.perturbations.recorded_masks import (
    mask_filters,
    mask_persistence,
    mask_selection,
)
from landscape.measure.perturbations.zscores import gradient_zscores, streamed_zscores
from landscape.measure.surfaces.axes import symmetric_grid
from landscape.measure.surfaces.connectivity import (
    CurveTraining,
    barrier,
    barrier_matrix,
    bezier,
    three_points,
)
from landscape.measure.surfaces.grids import loss_plane, loss_slice
from landscape.measure.surfaces.paths import interpolation, perturbation_slice, trajectory

__all__ = [
    "CurveTraining",
    "PyHessian",
    "adaptive_sharpness",
    "alignment",
    "barrier",
    "barrier_matrix",
    "batch_overlap",
    "bezier",
    "block_curvature",
    "calibration",
    "correct_examples",
    "critical_sharpness",
    "crosscheck",
    "curvature_map",
    "data_bracket",
    "enrichment",
    "features",
    "generalization",
    "gradient_noise",
    "gradient_zscores",
    "hessian_diagonal",
    "hessian_trace",
    "interpolation",
    "loss_plane",
    "loss_slice",
    "m_sharpness",
    "margins",
    "mask_filters",
    "mask_overlap",
    "mask_persistence",
    "mask_selection",
    "memorization",
    "minibatch_eigenvalues",
    "norms",
    "perturbation",
    "perturbation_controls",
    "perturbation_cosines",
    "perturbation_slice",
    "robustness",
    "sam_edge",
    "saved_mask_overlap",
    "sgd_edge",
    "sharpness",
    "spectral_density",
    "streamed_zscores",
    "symmetric_grid",
    "three_points",
    "top_eigenvalues",
    "training_curvature",
    "trajectory",
]
