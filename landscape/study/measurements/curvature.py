"""Curvature of the loss at the solution."""

from collections.abc import Callable, Mapping

import xarray as xr

from landscape import measure
from landscape.study.bench import Bench


def top_eigenvalues(
    bench: Bench, *, k: int = 5, which: str = "largest", tolerance: float = 0.0, max_hvps: int = 0
) -> xr.Dataset:
    """The k top Hessian eigenvalues on the fixed examples."""
    return measure.top_eigenvalues(
        bench.risk(),
        bench.theta,
        k=k,
        which=which,
        tolerance=tolerance or None,
        max_hvps=max_hvps or None,
        seed=bench.seed,
    )


def hessian_trace(bench: Bench, *, num_probes: int = 32) -> xr.Dataset:
    """Trace of the Hessian by Hutchinson's estimator."""
    return measure.hessian_trace(bench.risk(), bench.theta, num_probes=num_probes, seed=bench.seed)


def spectral_density(bench: Bench, *, num_probes: int = 4, num_nodes: int = 40) -> xr.Dataset:
    """Density of Hessian eigenvalues by stochastic Lanczos quadrature."""
    return measure.spectral_density(
        bench.risk(), bench.theta, num_probes=num_probes, num_nodes=num_nodes, seed=bench.seed
    )


def sharpness(
    bench: Bench,
    *,
    rho: tuple[float, ...] = (0.05, 0.1, 0.2, 0.4),
    ascent_steps: int = 10,
    restarts: int = 0,
    num_pairs: int = 8,
) -> xr.Dataset:
    """Loss increase on spheres of several radii."""
    return measure.sharpness(
        bench.risk(),
        bench.theta,
        rho=list(rho),
        ascent_steps=ascent_steps,
        restarts=restarts,
        num_pairs=num_pairs,
        seed=bench.seed,
    )


def crosscheck(bench: Bench, *, num_probes: int = 30, max_iterations: int = 100) -> xr.Dataset:
    """Eigenvalue and trace by PyHessian beside ours."""
    return measure.crosscheck(
        bench.risk(),
        bench.theta,
        num_probes=num_probes,
        max_iterations=max_iterations,
        seed=bench.seed,
    )


MEASUREMENTS: Mapping[str, Callable[..., xr.Dataset | None]] = {
    "top_eigenvalues": top_eigenvalues,
    "hessian_trace": hessian_trace,
    "spectral_density": spectral_density,
    "sharpness": sharpness,
    "crosscheck": crosscheck,
}
FIRST_SEED_ONLY = ("spectral_density", "crosscheck")
