from .curvature.adaptive_sharpness import adaptive_sharpness, m_sharpness
from .curvature.along_training import sam_edge, sgd_edge, training_curvature
from .curvature.blocks import block_curvature, hessian_diagonal
from .curvature.critical import critical_sharpness
from .curvature.crosscheck import PyHessian, crosscheck
from .curvature.directional import directional_sharpness, optimizer_update
from .curvature.minibatches import data_bracket, minibatch_eigenvalues
from .curvature.over_plane import curvature_map
from .curvature.sharpness import sharpness
from .curvature.spectral_density import spectral_density
from .curvature.top import hessian_trace, top_eigenvalues
from .outcome.calibration import calibration
from .outcome.features import features
from .outcome.generalization import generalization
from .outcome.margins import margins
from .outcome.memorization import correct_examples, memorization
from .outcome.robustness import robustness
from .perturbations.alignment import alignment, enrichment
from .perturbations.controls import perturbation_controls
from .perturbations.gradient_noise import gradient_noise, norms
from .perturbations.overlap import batch_overlap, mask_overlap, saved_mask_overlap
from .perturbations.perturbation import perturbation, perturbation_cosines
from .perturbations.recorded_masks import (
    mask_filters,
    mask_persistence,
    mask_selection,
)
from .perturbations.zscore_history import zscore_history
from .perturbations.zscores import gradient_zscores, streamed_zscores
from .surfaces.axes import symmetric_grid
from .surfaces.connectivity import (
    CurveTraining,
    barrier,
    barrier_matrix,
    bezier,
    three_points,
)
from .surfaces.grids import loss_plane, loss_slice
from .surfaces.paths import interpolation, perturbation_slice, trajectory

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
    "directional_sharpness",
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
    "optimizer_update",
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
    "zscore_history",
]
