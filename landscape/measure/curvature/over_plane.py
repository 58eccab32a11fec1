"""Where a plane through the loss is convex: extreme Hessian eigenvalues, cell by cell."""

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from landscape import plane as planes
from landscape.checks import check_choice
from landscape.linalg import lanczos
from landscape.measure.curvature import certificates
from landscape.measure.measuring import Measuring, generator, numbers
from landscape.measure.surfaces.axes import at_theta, axis_variables, symmetric_grid
from landscape.measure.surfaces.values import objective
from landscape.plane import Plane
from landscape.results import Variable
from landscape.risk import BNMode, EmpiricalRisk

_NAMES = ("eigenvalue_max", "eigenvalue_min", "residual_max", "residual_min", "loss")


def curvature_map(
    risk: EmpiricalRisk,
    theta: Float[Tensor, "P"],
    *,
    directions: Plane | None = None,
    normalize: str = "filter",
    one_d: str = "zero",
    radius: float = 1.0,
    points: int = 5,
    bn: BNMode = "eval",
    tolerance: float = 1e-2,
    max_hvps: int = 200,
    failure_probability: float = 0.05,
    seed: int,
) -> xr.Dataset:
    """λ_max and λ_min of the whole Hessian at every cell of a coarse plane, with their bounds.

    eigenvalue_max(alpha, beta) and eigenvalue_min, in nats per squared parameter, of all P
    parameters (not of the plane); residual_max, residual_min = ‖Hv - λv‖: an eigenvalue lies within
    it of the value (Parlett, Theorem 4.5.1), and converged(alpha, beta) says that both residuals
    are at most tolerance * max|λ| and that nothing further out was overlooked (missed with
    probability failure_probability). λ_max is never above the largest eigenvalue and λ_min never
    below the smallest. non_convexity = |λ_min| / |λ_max| where λ_min < 0, else 0 (arXiv:1712.09913,
    section 6, draws this ratio). Cells without a finite loss or gradient hold NaN. axis_cosine,
    alpha_norm and beta_norm: as for `loss_plane`.
    bn: "eval" or "full_batch" (statistics re-estimated outside of the graph have no Hessian).
    Cost: points² times up to max_hvps Hessian products.
    directions: a `Plane` of two directions at theta; else random ones of `seed`, `normalize`d as in
    `plane.random`. radius, points: the grid of both axes.

    Example:
        >>> found = measure.curvature_map(risk, theta, points=3, seed=0)
        >>> found.eigenvalue_max.dims, bool(found.converged.all())
        (('alpha', 'beta'), True)
        >>> bool((found.eigenvalue_max >= found.eigenvalue_min).all())
        True
    """
    check_choice("bn", bn, ("eval", "full_batch"))
    own = risk.with_bn(bn)
    measuring = Measuring("curvature_map", own, theta)
    measuring.finite_loss()
    axis = symmetric_grid("alpha", radius, points)
    if directions is None:
        directions = planes.random(
            own, measuring.theta, num_directions=2, normalize=normalize, one_d=one_d, seed=seed
        )
    surface = at_theta(directions, measuring.theta, axes=2)
    values = np.full((points, points, len(_NAMES)), np.nan)
    converged = np.zeros((points, points), dtype=bool)
    matvecs = np.zeros((points, points), dtype=int)
    cells = list(np.ndindex(points, points))
    # All losses before the first search: a device is asked for them once.
    losses = [own.loss(surface.point(float(axis[i]), float(axis[j]))) for i, j in cells]
    values[..., 4] = numbers(torch.stack(losses)).reshape(points, points)
    for i, j in cells:
        if not np.isfinite(values[i, j, 4]):
            continue
        point = surface.point(float(axis[i]), float(axis[j]))
        pairs = lanczos.top(
            own.linearized_hvp(point),
            point.numel(),
            k=2,
            which="both",
            tolerance=tolerance,
            max_matvecs=max_hvps,
            failure_probability=failure_probability,
            generator=generator(seed),
            dtype=own.dtype,
            device=own.device,
            like=point,
            into=True,
        )
        pairs = certificates.sound(pairs, own)
        values[i, j, :4] = [*numbers(pairs.values), *numbers(pairs.residual_norms)]
        converged[i, j], matvecs[i, j] = bool(torch.all(pairs.converged)), pairs.num_matvecs
    return measuring.result(
        {**_variables(values, converged, matvecs), **axis_variables(surface)},
        coords={
            "alpha": Variable("alpha", axis, "‖d₁‖", f"α along {surface.labels[0]}"),
            "beta": Variable("beta", axis, "‖d₂‖", f"β along {surface.labels[1]}"),
        },
        options={
            **surface.provenance(),
            "bn": own.bn,
            "objective": objective(own),
            "tolerance": tolerance,
            "max_hvps": max_hvps,
            "failure_probability": failure_probability,
            "seed": seed,
        },
    )


def _variables(
    values: np.ndarray, converged: np.ndarray, matvecs: np.ndarray
) -> dict[str, Variable]:
    dims, units = ("alpha", "beta"), "nats / parameter²"
    found = dict(zip(_NAMES, np.moveaxis(values, -1, 0), strict=True))
    top, low = found["eigenvalue_max"], found["eigenvalue_min"]
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(np.isnan(top), np.nan, np.where(low < 0, np.abs(low) / np.abs(top), 0.0))
    return {
        "eigenvalue_max": Variable(dims, top, units, "Largest Hessian eigenvalue"),
        "eigenvalue_min": Variable(dims, low, units, "Smallest Hessian eigenvalue"),
        "residual_max": Variable(dims, found["residual_max"], units, "Residual of the largest"),
        "residual_min": Variable(dims, found["residual_min"], units, "Residual of the smallest"),
        "converged": Variable(dims, converged, "1", "Converged"),
        "non_convexity": Variable(dims, ratio, "1", "|λ_min| / |λ_max|"),
        "loss": Variable(dims, found["loss"], "nats", "Loss"),
        "num_hvps": Variable(dims, matvecs, "1", "Hessian-vector products"),
    }
