"""One function per figure: Datasets in, a `Drawing` out.

What figures share: `ds` is the result of the measurement that a figure is named after, of one
model or combined over runs (`generalization` where that is its name), and further results
(`eigenvalues`: top_eigenvalues, `trace`: hessian_trace, `sharpness`, ...) are of the same runs or
None. `setting`: which of the study's
settings, to be named where there are several. `reference`, `references`: ids of the variants that
others are compared with. `variants`, `tensors`: which are shown. `variable`: which variable of the
result. `levels`: number of contour levels. `rho`: which of the measured radii.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import xarray as xr

from landscape.plot.drawing import Drawing
from landscape.plot.figures.curvature.data import (
    critical_sharpness,
    data_bracket,
    minibatch_eigenvalues,
    training_curvature,
)
from landscape.plot.figures.curvature.densities import spectral_density, spectral_views
from landscape.plot.figures.curvature.eigenvalues import (
    alignment,
    block_curvature,
    frobenius,
    gauss_newton_eigenvalues,
    hessian_trace,
    top_eigenvalues,
)
from landscape.plot.figures.curvature.sharpness import (
    adaptive_sharpness,
    m_sharpness,
    sharpness,
    sharpness_terms,
)
from landscape.plot.figures.outcome.behaviour import (
    calibration,
    features,
    gradient_noise,
    margins,
    memorization,
    norms,
    robustness,
)
from landscape.plot.figures.outcome.headline import flatness_vs_accuracy, headline, history
from landscape.plot.figures.outcome.many_runs import along_axis, sharpness_vs_gap
from landscape.plot.figures.perturbations.controls import perturbation_controls
from landscape.plot.figures.perturbations.enrichment import enrichment, perturbation_cosines
from landscape.plot.figures.perturbations.layers import layer_gradients
from landscape.plot.figures.perturbations.masks import (
    batch_overlap,
    mask_filters,
    mask_overlap,
    mask_persistence,
    mask_selection,
    saved_mask_overlap,
)
from landscape.plot.figures.perturbations.tensors import (
    density_map,
    energy_map,
    energy_over_time,
    norm_ratio_map,
    perturbation,
    perturbation_over_time,
)
from landscape.plot.figures.perturbations.zscore_history import zscore_history
from landscape.plot.figures.perturbations.zscores import gradient_zscores, zscore_tails
from landscape.plot.figures.surfaces.connectivity import (
    barrier,
    bezier,
    interpolation,
    perturbation_slice,
)
from landscape.plot.figures.surfaces.heights import surface_pair, surface_persistence
from landscape.plot.figures.surfaces.planes import (
    curvature_map,
    loss_plane,
    loss_surface,
    plane_difference,
)
from landscape.plot.figures.surfaces.slices import loss_slice
from landscape.plot.figures.surfaces.solutions import three_points, trajectory
from landscape.results import units

__all__ = [
    "adaptive_sharpness",
    "alignment",
    "along_axis",
    "barrier",
    "batch_overlap",
    "bezier",
    "block_curvature",
    "calibration",
    "critical_sharpness",
    "curvature_map",
    "data_bracket",
    "density_map",
    "energy_map",
    "energy_over_time",
    "enrichment",
    "features",
    "flatness_vs_accuracy",
    "frobenius",
    "gauss_newton_eigenvalues",
    "gradient_noise",
    "gradient_zscores",
    "headline",
    "hessian_trace",
    "history",
    "interpolation",
    "layer_gradients",
    "loss_plane",
    "loss_slice",
    "loss_surface",
    "m_sharpness",
    "margins",
    "mask_filters",
    "mask_overlap",
    "mask_persistence",
    "mask_selection",
    "memorization",
    "minibatch_eigenvalues",
    "norm_ratio_map",
    "norms",
    "perturbation",
    "perturbation_controls",
    "perturbation_cosines",
    "perturbation_over_time",
    "perturbation_slice",
    "plane_difference",
    "robustness",
    "saved_mask_overlap",
    "sharpness",
    "sharpness_terms",
    "sharpness_vs_gap",
    "spectral_density",
    "spectral_views",
    "surface_pair",
    "surface_persistence",
    "three_points",
    "top_eigenvalues",
    "training_curvature",
    "trajectory",
    "zscore_history",
    "zscore_tails",
]


def _in_unit_of_loss(figure: Callable[..., Drawing]) -> Callable[..., Drawing]:
    """The figure, which says nats only of results whose loss has them."""

    @functools.wraps(figure)
    def draw(*data: Any, **options: Any) -> Drawing:
        given = [*data, *options.values()]
        given += [ds for each in given if isinstance(each, Mapping) for ds in each.values()]
        found = (units.of_result(ds) for ds in given if isinstance(ds, xr.Dataset))
        return units.said_in(figure(*data, **options), next(filter(None, found), None))

    return draw


globals().update({name: _in_unit_of_loss(globals()[name]) for name in __all__})
