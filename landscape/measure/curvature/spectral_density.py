"""Spectral density of the Hessian of the risk."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from landscape.checks import check_count
from landscape.errors import Interrupted, LandscapeError
from landscape.linalg import density
from landscape.measure.curvature.operator import Operator
from landscape.measure.measuring import Measuring, generator, numbers
from landscape.params import Select
from landscape.results import Variable
from landscape.risk import EmpiricalRisk
from landscape.streams import quadrature_bracket, student

# Ritz values nearer to 0 than this share of the largest do not tell on which side of it they are.
RESOLVED = 1e-3


def spectral_density(
    risk: EmpiricalRisk,
    theta: Float[Tensor, "P"],
    *,
    num_probes: int = 6,
    num_nodes: int = 60,
    shifts: Sequence[float] = (0.001, 0.01, 0.1, 1.0, 10.0),
    matrix: str = "hessian",
    select: Select | None = None,
    seed: int,
) -> xr.Dataset:
    """Stochastic Lanczos quadrature of (1/P) sum_i delta(lambda - lambda_i).

    ritz_value(probe, node) and weight(probe, node), the weights of a probe summing to 1; the probes
    are kept so that a band can be drawn over them (arXiv:1901.10159). negative_mass, the share of
    eigenvalues below -zero, zero = 1e-3 max |ritz_value| (nearer to 0 a node stands for a cluster
    whose sign it does not resolve), and for every z of `shifts` effective_dimension(shift) =
    sum_i lambda_i⁺ / (lambda_i⁺ + z) (arXiv:2003.02139).

    Of each: <name> is what the quadrature sums to, the mean over probes. <name>_lower(probe) and
    <name>_upper(probe) bracket what that probe has in the whole spectrum, whatever lies between its
    nodes (`streams.quadrature_bracket`, Chebyshev-Markov-Stieltjes); more nodes draw them together.
    <name>_low to <name>_high is a 95 % interval for the spectrum itself: Student's over the probes
    of those brackets, so that it covers both what the nodes leave open and the draw of the probes
    (NaN for one probe). Clusters of a share far from their neighbours need nodes of their own
    before the bracket of a count of eigenvalues is narrow.
    matrix: "hessian" or "ggn"; select: the block of these tensors. Cost: num_probes * num_nodes
    Hessian products. Ctrl-C raises errors.Interrupted, whose `partial` is the result of the probes
    so far, interrupted=True among its attributes, or None.

    Example:
        >>> found = measure.spectral_density(risk, theta, num_probes=2, num_nodes=8, seed=0)
        >>> found.ritz_value.dims, bool(np.allclose(found.weight.sum("node"), 1))
        (('probe', 'node'), True)
    """
    measuring = Measuring("spectral_density", risk, theta)
    check_count("num_probes", num_probes, 1)
    check_count("num_nodes", num_nodes, 2)
    if any(not z > 0 for z in shifts):
        raise LandscapeError(f"shifts={list(shifts)} asked; each z must be above 0.")
    loss, theta = measuring.finite_loss(), measuring.theta
    operator = Operator.of(risk, theta, matrix=matrix, select=select)
    options = {
        "num_probes": num_probes,
        "num_nodes": num_nodes,
        "matrix": matrix,
        "select": select and [tensor.name for tensor in risk.layout.select(select)],
        "seed": seed,
    }

    def result(quadrature: density.Quadrature, options: dict[str, Any]) -> xr.Dataset:
        nodes, weights = numbers(quadrature.nodes), numbers(quadrature.weights)
        exact = quadrature.exact.numpy()
        zero = RESOLVED * float(np.abs(nodes).max(initial=0.0))
        coords = {"probe": np.arange(len(nodes)), "node": np.arange(nodes.shape[1])}
        if len(shifts):
            coords["shift"] = np.array(shifts, dtype=float)
        return measuring.result(
            _density_variables(nodes, weights, exact, zero, shifts, operator.size)
            | {
                "loss": Variable((), float(loss), "nats", "Loss at theta"),
                "zero": Variable((), zero, "nats / parameter²", "Smaller eigenvalues count as 0"),
            },
            coords=coords,
            options=options,
        )

    try:
        quadrature = density.slq(
            operator,
            operator.size,
            num_probes=num_probes,
            num_steps=num_nodes,
            generator=generator(seed),
            dtype=theta.dtype,
            device=theta.device,
            like=operator.like(theta),
            into=True,
        )
    except Interrupted as stop:
        known = stop.partial
        cut = {"num_probes": len(known.nodes), "interrupted": True} if known else {}
        stop.partial = known and result(known, options | cut)
        raise
    return result(quadrature, options)


def _density_variables(
    nodes: np.ndarray,
    weights: np.ndarray,
    exact: np.ndarray,
    zero: float,
    shifts: Sequence[float],
    size: int,
) -> dict[str, Variable]:
    dims = ("probe", "node")
    variables = {
        "ritz_value": Variable(dims, nodes, "nats / parameter²", "Ritz value"),
        "weight": Variable(dims, weights, "1", "Quadrature weight"),
    }
    lower, upper = quadrature_bracket(nodes, weights, lambda x: (x >= -zero).astype(float))
    below = (weights * (nodes < -zero)).sum(1)
    proven = [np.where(exact, below, (1 - bound).clip(0, 1)) for bound in (upper, lower)]
    title = "Share of negative eigenvalues"
    variables |= _bracketed("negative_mass", (), below, *proven, title, 1)
    if len(shifts):
        z = np.array(shifts, dtype=float)

        def rise(x: np.ndarray) -> np.ndarray:
            positive = x.clip(min=0)[..., None]
            return positive / (positive + z)

        sums = (weights[..., None] * rise(nodes)).sum(1)
        found = (sums, *quadrature_bracket(nodes, weights, rise))
        values = [size * np.where(exact[:, None], sums, part) for part in found]
        title = "Effective dimension"
        variables |= _bracketed("effective_dimension", ("shift",), *values, title, size)
    return variables


def _bracketed(
    name: str,
    dims: tuple[str, ...],
    sums: np.ndarray,
    lower: np.ndarray,
    upper: np.ndarray,
    title: str,
    most: float,
) -> dict[str, Variable]:
    """What the nodes sum to, what each probe proves, and the interval of both, in [0, most]."""
    low, high = (end.clip(0, most) for end in student(lower, upper))
    return {
        name: Variable(dims, sums.mean(axis=0), "1", title),
        f"{name}_lower": Variable(("probe", *dims), lower, "1", "At least, of this probe"),
        f"{name}_upper": Variable(("probe", *dims), upper, "1", "At most, of this probe"),
        f"{name}_low": Variable(dims, low, "1", "95 % interval, from"),
        f"{name}_high": Variable(dims, high, "1", "95 % interval, to"),
    }
