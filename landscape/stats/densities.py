"""Densities drawn from quadrature nodes."""

import numpy as np
import scipy
from numpy.typing import ArrayLike


def broaden(nodes: ArrayLike, weights: ArrayLike, grid: ArrayLike, *, sigma: float) -> np.ndarray:
    """sum_i w_i N(x; node_i, sigma²): a density on `grid` from quadrature nodes and weights.

    nodes, weights: (..., k), weights summing to 1 along the last axis. Returns (..., len(grid)) in
    units of 1/node. sigma: the width that a point mass is drawn with.
    By definition.

    Example:
        >>> grid = np.linspace(-5, 5, 1001)
        >>> density = stats.broaden([0.0, 1.0], [0.5, 0.5], grid, sigma=0.5)
        >>> density.shape, round(float(density.sum() * 0.01), 4)
        ((1001,), 1.0)
    """
    nodes, weights = np.asarray(nodes, float), np.asarray(weights, float)
    z = (np.asarray(grid, float) - nodes[..., None]) / sigma
    return np.nansum(weights[..., None] * scipy.stats.norm.pdf(z), axis=-2) / sigma
