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
    sum_i lambda_i⁺ / (lambda_i⁺ + z) (arXiv:2003.02139), each with its standard error over probes.
    matrix: "hessian" or "ggn"; select: the block of these tensors. Cost: num_probes * num_nodes
    Hessian products. Ctrl-C raises errors.Interrupted, whose `partial` is the result of the probes
    so far, interrupted=True among its attributes, or None.
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
        zero = RESOLVED * float(np.abs(nodes).max(initial=0.0))
        coords = {"probe": np.arange(len(nodes)), "node": np.arange(nodes.shape[1])}
        if len(shifts):
            coords["shift"] = np.array(shifts, dtype=float)
        return measuring.result(
            _density_variables(nodes, weights, zero, shifts, operator.size)
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
        )
    except Interrupted as stop:
        known = stop.partial
        cut = {"num_probes": len(known.nodes), "interrupted": True} if known else {}
        stop.partial = known and result(known, options | cut)
        raise
    return result(quadrature, options)


def _density_variables(
    nodes: np.ndarray, weights: np.ndarray, zero: float, shifts: Sequence[float], size: int
) -> dict[str, Variable]:
    dims = ("probe", "node")
    variables = {
        "ritz_value": Variable(dims, nodes, "nats / parameter²", "Ritz value"),
        "weight": Variable(dims, weights, "1", "Quadrature weight"),
    }
    variables |= _over_probes(
        "negative_mass", (), (weights * (nodes < -zero)).sum(1), "Share of negative eigenvalues"
    )
    if len(shifts):
        z, positive = np.array(shifts, dtype=float), nodes.clip(min=0)[..., None]
        sums = size * (weights[..., None] * positive / (positive + z)).sum(1)
        variables |= _over_probes("effective_dimension", "shift", sums, "Effective dimension")
    return variables


def _over_probes(
    name: str, dims: str | tuple[()], samples: np.ndarray, title: str
) -> dict[str, Variable]:
    """Mean and standard error over the first axis; of one probe the error is unknown."""
    count = len(samples)
    spread = samples.std(axis=0, ddof=1) if count > 1 else np.full(samples.shape[1:], np.nan)
    return {
        name: Variable(dims, samples.mean(axis=0), "1", title),
        f"{name}_stderr": Variable(
            dims, spread / np.sqrt(count), "1", "Standard error over probes"
        ),
    }
