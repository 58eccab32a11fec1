"""What independent probes say of a mean, and what nodes prove of a sum over a spectrum."""

from collections.abc import Callable

import numpy as np
import scipy
from numpy.typing import ArrayLike

LEVEL = 0.95


def student(
    low: ArrayLike, high: ArrayLike | None = None, *, level: float = LEVEL
) -> tuple[np.ndarray, np.ndarray]:
    """Student's interval of a mean over n independent probes, along the first axis.

    mean(low) - t s(low)/√n to mean(high) + t s(high)/√n with t = t_{n-1}((1 + level)/2) and the
    sample standard deviation s; high: that of each probe is known to lie between `low` and `high`
    only (the same by default). NaN for one probe. It covers where means of n probes are about
    normal: see `measure.hessian_trace` for how far that is true of vᵀHv.

    Example:
        >>> low, high = streams.student(np.array([1.0, 2.0, 3.0]))
        >>> float(low) < 2 < float(high), round(float(low + high), 6)
        (True, 4.0)
    """
    below = np.asarray(low, dtype=np.float64)
    above = below if high is None else np.asarray(high, dtype=np.float64)
    n = len(below)
    if n < 2:
        unknown = np.full(below.shape[1:], np.nan)
        return unknown, unknown.copy()
    t = scipy.stats.t.ppf((1 + level) / 2, n - 1) / np.sqrt(n)
    return (
        below.mean(0) - t * below.std(0, ddof=1),
        above.mean(0) + t * above.std(0, ddof=1),
    )


def quadrature_bracket(
    nodes: ArrayLike, weights: ArrayLike, rise: Callable[[np.ndarray], np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Bounds of ∫ rise dμ by the Gauss quadrature of μ, for a rise from 0 to 1 that never falls.

    nodes, weights: (..., n) of the n-point Gauss rule of a probability measure μ, such as what n
    Lanczos steps from v make of μ = Σᵢ (qᵢᵀv)²/‖v‖² δ(λᵢ). By the Chebyshev-Markov-Stieltjes
    inequalities (Szegő, Orthogonal Polynomials, § 3.41) the mass w_k of node θ_k lies between
    θ_{k-1} and θ_{k+1}, so that
        Σ_k w_k rise(θ_{k-1}) <= ∫ rise dμ <= Σ_k w_k rise(θ_{k+1})
    with rise(θ₀) = 0 and rise(θ_{n+1}) = 1.
    A share below x is 1 - ∫ 1{λ >= x} dμ. Proved for exact nodes; theirs are exact to the rounding
    of the products. rise may return further trailing axes, which the bounds (..., *) keep.

    Example:
        >>> low, high = streams.quadrature_bracket([0.0, 1.0], [0.5, 0.5], lambda x: x > 0.5)
        >>> float(low), float(high)
        (0.0, 1.0)
    """
    nodes, weights = np.asarray(nodes, np.float64), np.asarray(weights, np.float64)
    order = np.argsort(nodes, axis=-1, kind="stable")
    nodes = np.take_along_axis(nodes, order, -1)
    weights = np.take_along_axis(weights, order, -1)
    values = rise(nodes)  # (..., n, *)
    axis = nodes.ndim - 1
    w = weights.reshape(*weights.shape, *(1,) * (values.ndim - nodes.ndim))
    one = np.ones_like(np.take(values, [0], axis))
    before = np.concatenate([0 * one, np.delete(values, -1, axis)], axis)
    after = np.concatenate([np.delete(values, 0, axis), one], axis)
    return (w * before).sum(axis), (w * after).sum(axis)
