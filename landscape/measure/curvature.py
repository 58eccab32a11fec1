"""Eigenvalues, trace and spectral density of the Hessian of the risk."""

import numpy as np
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from landscape.linalg import density, lanczos, trace
from landscape.measure._common import Measuring, check_count, generator, numbers
from landscape.results import Variable
from landscape.risk import EmpiricalRisk


def top_eigenvalues(
    risk: EmpiricalRisk,
    theta: Float[Tensor, "P"],
    *,
    k: int = 5,
    which: str = "largest",
    tolerance: float | None = None,
    max_hvps: int | None = None,
    failure_probability: float = 0.01,
    seed: int,
) -> xr.Dataset:
    """Eigenvalues lambda_i of the Hessian H of the risk at theta, with ‖H v_i - lambda_i v_i‖.

    Lanczos with full reorthogonalization; eigenvalue(rank) is in descending order, in loss units
    per squared parameter. residual_norm(rank) comes from one explicit product per vector, so that
    [lambda_i - residual, lambda_i + residual] holds an eigenvalue of H (Parlett, The Symmetric
    Eigenvalue Problem, Theorem 4.5.1). converged(rank): residual <= tolerance * max |lambda|
    (1e-6 in float64, 1e-4 below) and nothing larger overlooked (`complete`), which is searched for
    from fresh random vectors unless failure_probability=1.
    which: "largest", "smallest", "both" (half of k at each end) or "magnitude".
    Cost: num_hvps Hessian products of about 2.5 gradients each; max_hvps bounds them.
    """
    measuring = Measuring("top_eigenvalues", risk, theta)
    loss = measuring.finite_loss()
    pairs = eigenpairs(
        measuring,
        k=k,
        which=which,
        tolerance=tolerance,
        max_hvps=max_hvps,
        failure_probability=failure_probability,
        seed=seed,
    )
    values = numbers(pairs.values)
    units = "nats / parameter²"
    variables = {
        "eigenvalue": Variable("rank", values, units, "Hessian eigenvalue"),
        "residual_norm": Variable(
            "rank", numbers(pairs.residual_norms), units, "Residual ‖Hv − λv‖"
        ),
        "converged": Variable("rank", numbers(pairs.converged).astype(bool), "1", "Converged"),
        "complete": Variable((), bool(pairs.complete), "1", "Searched for overlooked eigenvalues"),
        "num_hvps": Variable((), int(pairs.num_matvecs), "1", "Hessian-vector products"),
        "loss": Variable((), float(loss), "nats", "Loss at theta"),
    }
    options = {
        "k": k,
        "which": which,
        "tolerance": tolerance or lanczos.TOLERANCE.get(risk.dtype, 1e-4),
        "failure_probability": failure_probability,
        "seed": seed,
    }
    return measuring.result(variables, coords={"rank": np.arange(len(values))}, options=options)


def eigenpairs(
    measuring: Measuring,
    *,
    k: int,
    which: str = "largest",
    tolerance: float | None = None,
    max_hvps: int | None = None,
    failure_probability: float = 0.01,
    seed: int,
) -> lanczos.EigenPairs:
    """Eigenvalues and eigenvectors at the theta of a measurement, as `lanczos.top` returns them."""
    risk, theta = measuring.risk, measuring.theta
    return lanczos.top(
        risk.linearized_hvp(theta),
        theta.numel(),
        k=k,
        which=which,
        tolerance=tolerance,
        max_matvecs=max_hvps,
        failure_probability=failure_probability,
        generator=generator(seed),
        dtype=theta.dtype,
        device=theta.device,
    )


def hessian_trace(
    risk: EmpiricalRisk, theta: Float[Tensor, "P"], *, num_probes: int = 30, seed: int
) -> xr.Dataset:
    """Trace of H by Hutchinson's estimate, the mean of vᵀHv over Rademacher probes v.

    trace_sample(probe), trace, trace_stderr = sd / sqrt(num_probes), in loss units per squared
    parameter; Var vᵀHv = 2 (‖H‖_F² - sum_i H_ii²). Probes depend on the seed alone: differences
    between models of one architecture are paired. The number of probes is fixed beforehand, since
    stopping when the mean looks settled biases it. Cost: num_probes Hessian products.
    """
    measuring = Measuring("hessian_trace", risk, theta)
    check_count("num_probes", num_probes, 2)
    loss = measuring.finite_loss()
    samples = numbers(
        trace.hutchinson(
            risk.linearized_hvp(measuring.theta),
            measuring.theta.numel(),
            num_probes=num_probes,
            generator=generator(seed),
            dtype=measuring.theta.dtype,
            device=measuring.theta.device,
        )
    )
    units = "nats / parameter²"
    error = samples.std(ddof=1) / np.sqrt(num_probes)
    variables = {
        "trace_sample": Variable("probe", samples, units, "vᵀHv of one probe"),
        "trace": Variable((), samples.mean(), units, "Trace of the Hessian"),
        "trace_stderr": Variable((), error, units, "Standard error of the trace over probes"),
        "loss": Variable((), float(loss), "nats", "Loss at theta"),
    }
    return measuring.result(
        variables,
        coords={"probe": np.arange(num_probes)},
        options={"num_probes": num_probes, "seed": seed},
    )


def spectral_density(
    risk: EmpiricalRisk,
    theta: Float[Tensor, "P"],
    *,
    num_probes: int = 6,
    num_nodes: int = 60,
    seed: int,
) -> xr.Dataset:
    """Stochastic Lanczos quadrature of (1/P) sum_i delta(lambda - lambda_i).

    ritz_value(probe, node) and weight(probe, node), the weights of a probe summing to 1; the probes
    are kept so that a band can be drawn over them (arXiv:1901.10159).
    Cost: num_probes * num_nodes Hessian products.
    """
    measuring = Measuring("spectral_density", risk, theta)
    check_count("num_probes", num_probes, 1)
    check_count("num_nodes", num_nodes, 2)
    loss = measuring.finite_loss()
    theta = measuring.theta
    quadrature = density.slq(
        risk.linearized_hvp(theta),
        theta.numel(),
        num_probes=num_probes,
        num_steps=num_nodes,
        generator=generator(seed),
        dtype=theta.dtype,
        device=theta.device,
    )
    dims = ("probe", "node")
    variables = {
        "ritz_value": Variable(dims, numbers(quadrature.nodes), "nats / parameter²", "Ritz value"),
        "weight": Variable(dims, numbers(quadrature.weights), "1", "Quadrature weight"),
        "loss": Variable((), float(loss), "nats", "Loss at theta"),
    }
    options = {"num_probes": num_probes, "num_nodes": num_nodes, "seed": seed}
    return measuring.result(
        variables,
        coords={
            "probe": np.arange(num_probes),
            "node": np.arange(quadrature.nodes.shape[1]),
        },
        options=options,
    )
