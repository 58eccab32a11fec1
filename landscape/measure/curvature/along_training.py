"""Curvature along training, beside the lines at which steps stop being stable."""

import math
from collections.abc import Sequence

import numpy as np
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from landscape import vectors
from landscape.checks import check_choice
from landscape.errors import LandscapeError
from landscape.measure.curvature.top import eigenpairs
from landscape.measure.measuring import RESIDUALS, Measuring, numbers
from landscape.results import Variable
from landscape.risk import EmpiricalRisk

_UNITS = "nats / parameter²"


def sgd_edge(lr: float, *, momentum: float = 0.0) -> float:
    """2 (1 + beta) / eta: above it gradient descent with heavy-ball momentum beta diverges.

    On a quadratic, of full batches (arXiv:2103.00065, section 2 and appendix B).
    lr: eta. Returns the edge, in nats / parameter².

    Example:
        >>> measure.sgd_edge(lr=0.1)
        20.0
        >>> round(measure.sgd_edge(lr=0.1, momentum=0.9), 6)
        38.0
    """
    return 2 * (1 + momentum) / lr if lr > 0 else math.inf


def sam_edge(gradient_norm: float, *, lr: float, rho: float, momentum: float = 0.0) -> float:
    """lambda* = (‖g‖/2rho) (sqrt(1 + 8 (1 + beta) rho / (eta ‖g‖)) - 1), the edge of SAM.

    It solves eta lambda (1 + rho lambda / ‖g‖) = 2 (1 + beta) and tends to the edge of gradient
    descent for rho -> 0 and to 0 at a minimum (arXiv:2309.12488, Eq. 3 for beta = 0). Momentum by
    the same replacement of 2 by 2 (1 + beta) as there.
    gradient_norm: ‖g‖; lr: eta; rho: the radius; momentum: beta. Returns lambda*, in nats /
    parameter².

    Example:
        >>> plain = measure.sgd_edge(lr=0.1)
        >>> measure.sam_edge(1.0, lr=0.1, rho=0.05) < plain
        True
        >>> round(measure.sam_edge(1.0, lr=0.1, rho=1e-9) / plain, 6)
        1.0
    """
    edge = sgd_edge(lr, momentum=momentum)
    if rho == 0 or not math.isfinite(edge):
        return edge
    if gradient_norm == 0:
        return 0.0
    # (a/2) (sqrt(1 + 4 edge/a) - 1) with a = ‖g‖/rho, without its cancellation for large a.
    return 2 * edge / (math.sqrt(1 + 4 * edge * rho / gradient_norm) + 1)


def training_curvature(
    risk: EmpiricalRisk,
    checkpoints: Sequence[Float[Tensor, "P"] | EmpiricalRisk],
    *,
    lr: float | Sequence[float],
    epochs: Sequence[int] | None = None,
    rho: float = 0.0,
    momentum: float = 0.0,
    k: int = 1,
    tolerance: float | None = None,
    failure_probability: float = 0.01,
    certify: str = "float64",
    seed: int,
) -> xr.Dataset:
    """eigenvalue(epoch, rank) at checkpoints of one training, with the edges of stability.

    sgd_edge(epoch) = 2 (1 + beta) / eta, plain_edge(epoch) = 2 / eta and, for rho > 0,
    sam_edge(epoch) with the gradient norm there. All are derived for full-batch steps; mini-batches
    keep lambda_1 below. lr: one rate or one per checkpoint; at a rate of 0 (or where no edge is
    known: say 0) the edges are infinite. A checkpoint is a theta, with the buffers (running
    statistics) of `risk`, or a risk of its own, at its own theta and with its own buffers; the
    sequence is read one by one, so that it may load them as it goes, and has a length (a generator
    has none). Each search starts from the eigenvectors of the checkpoint before, and is complete by
    fresh random vectors all the same. loss(epoch), gradient_norm(epoch), residual_norm (in float64
    unless certify="none"), converged beside. Cost: per checkpoint some 30 products and a gradient.
    The edges: arXiv:2103.00065 and arXiv:2309.12488. momentum: beta; epochs: those of the
    checkpoints, 0, 1, ... by default; k, tolerance, failure_probability: of each search, as in
    `top_eigenvalues`.

    Example:
        >>> found = measure.training_curvature(risk, [other, theta], lr=0.1, rho=0.05, seed=0)
        >>> found.eigenvalue.dims, found.sgd_edge.values.tolist()
        (('epoch', 'rank'), [20.0, 20.0])
    """
    if not hasattr(checkpoints, "__len__"):
        raise LandscapeError(
            f"training_curvature got {type(checkpoints).__name__}, whose length is not known; give "
            "a list, or a sequence whose items load a theta each when they are asked for."
        )
    count = len(checkpoints)
    if not count:
        raise LandscapeError("training_curvature got no checkpoint; give at least one theta (P,).")
    rates = _rates(lr, count)
    labels = list(range(count)) if epochs is None else list(epochs)
    if len(labels) != count:
        raise LandscapeError(f"{len(labels)} epochs given for {count} checkpoints.")
    if rho < 0 or momentum < 0:
        raise LandscapeError(f"rho={rho}, momentum={momentum} given; both must be at least 0.")
    check_choice("certify", certify, RESIDUALS)
    measuring = Measuring("training_curvature", risk, risk.theta)
    rows, start = [], None
    for number in range(count):
        own, theta = _checkpoint(risk, checkpoints[number])
        here = Measuring("training_curvature", own, theta)
        before = own.cost
        loss, gradient = own.loss_and_gradient(here.theta)
        here.check_loss(loss)
        pairs = eigenpairs(
            here,
            k=k,
            tolerance=tolerance,
            failure_probability=failure_probability,
            certify=certify,
            start=start,
            seed=seed + number,
        )
        if own is not risk:
            risk.spend(own.cost - before)
        start = pairs.vectors.sum(0)
        rows.append((pairs, float(loss), float(vectors.norm(gradient))))
    options = {"k": k, "rho": rho, "momentum": momentum, "lr": rates, "seed": seed}
    return measuring.result(
        _variables(rows, rates, rho, momentum),
        coords={"epoch": np.array(labels), "rank": np.arange(k)},
        options=options | {"failure_probability": failure_probability, "certify": certify},
    )


def _checkpoint(
    risk: EmpiricalRisk, checkpoint: Tensor | EmpiricalRisk
) -> tuple[EmpiricalRisk, Tensor]:
    if isinstance(checkpoint, EmpiricalRisk):
        return checkpoint, checkpoint.theta
    return risk, checkpoint


def _rates(lr: float | Sequence[float], count: int) -> list[float]:
    rates = [float(lr)] * count if isinstance(lr, (int, float)) else [float(rate) for rate in lr]
    if len(rates) != count or any(not rate >= 0 for rate in rates):
        raise LandscapeError(
            f"lr={lr} given for {count} checkpoints; give one rate, or {count} of them, none "
            f"negative."
        )
    return rates


def _variables(
    rows: list[tuple], rates: list[float], rho: float, momentum: float
) -> dict[str, Variable]:
    found, losses, norms = zip(*rows, strict=True)
    dims = ("epoch", "rank")
    plain = [sgd_edge(rate) for rate in rates]
    edges = [sgd_edge(rate, momentum=momentum) for rate in rates]
    sam_edges = [
        sam_edge(norm, lr=rate, rho=rho, momentum=momentum) if rho else math.nan
        for norm, rate in zip(norms, rates, strict=True)
    ]

    def stacked(name: str) -> np.ndarray:
        return np.stack([numbers(getattr(pairs, name)) for pairs in found])

    return {
        "eigenvalue": Variable(dims, stacked("values"), _UNITS, "Hessian eigenvalue"),
        "residual_norm": Variable(dims, stacked("residual_norms"), _UNITS, "Residual ‖Hv − λv‖"),
        "converged": Variable(dims, stacked("converged").astype(bool), "1", "Converged"),
        "plain_edge": Variable("epoch", np.array(plain), _UNITS, "Edge of stability 2/η"),
        "sgd_edge": Variable("epoch", np.array(edges), _UNITS, "Edge of stability 2(1+β)/η"),
        "sam_edge": Variable("epoch", np.array(sam_edges), _UNITS, "Edge of stability of SAM"),
        "gradient_norm": Variable("epoch", np.array(norms), "nats / parameter", "‖g‖"),
        "loss": Variable("epoch", np.array(losses), "nats", "Loss at the checkpoint"),
        "num_hvps": Variable(
            "epoch", np.array([pairs.num_matvecs for pairs in found]), "1", "Products"
        ),
    }
