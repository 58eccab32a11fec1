"""Measurements: pure functions (risk, theta, *, options, seed) -> `xarray.Dataset`.

Each works at any flat theta of the risk's model, alters nothing, draws from its own seed, and
returns labelled values with units and provenance (`landscape.results`).
"""

from landscape.measure._axes import symmetric_grid
from landscape.measure.alignment import alignment, enrichment
from landscape.measure.blocks import block_curvature, hessian_diagonal
from landscape.measure.calibration import calibration
from landscape.measure.connectivity import (
    CurveTraining,
    barrier,
    barrier_matrix,
    bezier,
    three_points,
)
from landscape.measure.controls import perturbation_controls
from landscape.measure.critical import critical_sharpness
from landscape.measure.crosscheck import PyHessian, crosscheck
from landscape.measure.curvature import hessian_trace, top_eigenvalues
from landscape.measure.curvature_map import curvature_map
from landscape.measure.densities import spectral_density
from landscape.measure.features import features
from landscape.measure.generalization import generalization
from landscape.measure.margins import margins
from landscape.measure.mask_history import mask_filters, mask_persistence, mask_selection
from landscape.measure.masks import batch_overlap, mask_overlap, saved_mask_overlap
from landscape.measure.memorization import correct_examples, memorization
from landscape.measure.noise import gradient_noise, norms
from landscape.measure.paths import interpolation, perturbation_slice, trajectory
from landscape.measure.perturbation import perturbation, perturbation_cosines
from landscape.measure.reparametrized import adaptive_sharpness, m_sharpness
from landscape.measure.robustness import robustness
from landscape.measure.sharpness import sharpness
from landscape.measure.stability import sam_edge, sgd_edge, training_curvature
from landscape.measure.subsets import data_bracket, minibatch_eigenvalues
from landscape.measure.surface import loss_plane, loss_slice
from landscape.measure.zscores import gradient_zscores, streamed_zscores

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
