"""Curvature along an update, whole and within each block of parameters; the update itself."""

import copy
from collections.abc import Mapping, Sequence

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor, nn

from landscape import vectors
from landscape.errors import LandscapeError
from landscape.measure.curvature.blocks import blocks_of
from landscape.measure.curvature.critical import direction_of
from landscape.measure.curvature.operator import TITLES, Operator
from landscape.measure.measuring import Measuring, numbers
from landscape.results import Variable
from landscape.risk import EmpiricalRisk

_UNITS = "nats / parameter²"


def optimizer_update(
    optimizer: torch.optim.Optimizer,
    *,
    model: nn.Module,
    risk: EmpiricalRisk,
    theta: Float[Tensor, "P"],
) -> Float[Tensor, "P"]:
    """The d of the optimizer's next step theta - eta d, at theta and for the gradient of the risk.

    The update of arXiv:2601.16979. A copy of the optimizer, with its state (momentum, second
    moments), takes the step in float64; neither the optimizer nor `model`, whose parameters it
    holds, is changed. eta is the rate of its first group; weight decay is part of d. What the
    optimizer does not hold does not move: d is 0 there.
    Returns d (P,), for `critical_sharpness` and `directional_sharpness`. Cost: one gradient.

    Example:
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> d = measure.optimizer_update(optimizer, model=model, risk=risk, theta=theta)
        >>> bool(torch.allclose(d, risk.gradient(theta)))
        True
    """
    theta = Measuring("optimizer_update", risk, theta).theta
    memo: dict[int, object] = {}
    twin = copy.deepcopy(optimizer, memo)
    held = {name: memo.get(id(p)) for name, p in model.named_parameters()}
    moved = {tensor.name: held.get(tensor.name) for tensor in risk.layout.tensors}
    if not any(isinstance(p, Tensor) for p in moved.values()):
        raise LandscapeError(
            "optimizer_update: the optimizer holds no parameter of `model` under a name that the "
            "risk has; give the model that the risk was made of, and an optimizer of its "
            "parameters."
        )
    weights = risk.layout.unflatten(theta)
    slopes = risk.layout.unflatten(risk.gradient(theta))
    rate = float(twin.param_groups[0]["lr"])
    if not rate > 0:
        raise LandscapeError(
            f"optimizer_update: the first group's rate is {rate}; give one above 0."
        )
    with torch.no_grad():
        for name, p in moved.items():
            if isinstance(p, Tensor):
                # In float32 a small step would be lost in the rounding of the weights.
                p.data = weights[name].to(p.device, torch.float64, copy=True)
                p.grad = slopes[name].to(p, copy=True)
                _widen(twin.state.get(p, {}), p)
        try:
            twin.step()
        except TypeError as error:
            raise LandscapeError(
                f"optimizer_update: {type(optimizer).__name__}.step() needs more than gradients "
                f"({error}); give its base optimizer."
            ) from error
        parts = {
            name: ((weights[name].to(p) - p) / rate).to(theta)
            if isinstance(p, Tensor)
            else torch.zeros_like(weights[name])
            for name, p in moved.items()
        }
    return risk.layout.flatten(parts)


def _widen(state: dict[str, object], like: Tensor) -> None:
    """Moments of a tensor's shape become float64, as the tensor itself did."""
    for key, value in state.items():
        if isinstance(value, Tensor) and value.shape == like.shape and value.is_floating_point():
            state[key] = value.double()


def directional_sharpness(
    risk: EmpiricalRisk,
    theta: Float[Tensor, "P"],
    *,
    direction: Float[Tensor, "P"] | None = None,
    by: str | int | Mapping[str, str | Sequence[str]] = "module",
    matrix: str = "hessian",
) -> xr.Dataset:
    """dᵀHd / ‖d‖² along an update d, and what of it lies within blocks and across them.

    directional_sharpness is the normalized directional sharpness of arXiv:2606.04662: a step of
    size eta along -d changes the loss by -eta first_order + eta²/2 ‖d‖² directional_sharpness to
    second order, first_order = gᵀd. It splits into within(block) = d_lᵀ H_ll d_l / ‖d‖², whose sum
    is within_blocks, and across_blocks, the rest. block_sharpness(block) = d_lᵀ H_ll d_l / ‖d_l‖²
    is that of the block's own part of the update, whatever its size: what compares layers whose
    updates are scaled one by one, as Muon's are; NaN where the block does not move.
    direction: d, by default the gradient; `optimizer_update` has that of an optimizer. by, matrix:
    as in `block_curvature`. Cost: one gradient, and a product for d and for each block.

    Example:
        >>> found = measure.directional_sharpness(risk, theta)
        >>> parts = found.within_blocks + found.across_blocks
        >>> bool(np.isclose(parts, found.directional_sharpness, rtol=1e-4))
        True
    """
    measuring = Measuring("directional_sharpness", risk, theta)
    loss, theta = measuring.finite_loss(), measuring.theta
    gradient = risk.gradient(theta)
    d = gradient if direction is None else direction_of(direction, theta)
    names, owner = blocks_of(risk.layout, by)
    owner = owner.to(theta.device)
    operator = Operator.of(risk, theta, matrix=matrix)
    parts = [torch.where(owner == number, d, 0) for number in range(len(names))]
    sums = [vectors.dot(d, operator(d)), vectors.squared_norm(d), vectors.dot(gradient, d)]
    whole, size, slope = numbers(torch.stack(sums))
    if size == 0:
        raise LandscapeError(
            "directional_sharpness was asked along a zero direction (theta is stationary, or the "
            "update is zero); give another direction."
        )
    inside = numbers(torch.stack([vectors.dot(part, operator(part)) for part in parts]))
    sizes = numbers(torch.stack([vectors.squared_norm(part) for part in parts]))
    with np.errstate(divide="ignore", invalid="ignore"):
        own = np.where(sizes > 0, inside / sizes, np.nan)
    title = TITLES[matrix]
    variables = {
        "directional_sharpness": Variable((), whole / size, _UNITS, f"dᵀHd / ‖d‖² of the {title}"),
        "within": Variable("block", inside / size, _UNITS, "d_lᵀ H_ll d_l / ‖d‖²"),
        "within_blocks": Variable((), inside.sum() / size, _UNITS, "Within all blocks"),
        "across_blocks": Variable((), (whole - inside.sum()) / size, _UNITS, "Across blocks"),
        "block_sharpness": Variable("block", own, _UNITS, "d_lᵀ H_ll d_l / ‖d_l‖²"),
        "energy_share": Variable("block", sizes / size, "1", "‖d_l‖² / ‖d‖²"),
        "direction_norm": Variable((), size**0.5, "parameter", "‖d‖"),
        "first_order": Variable((), slope, "nats", "gᵀd"),
        "loss": Variable((), float(loss), "nats", "Loss at theta"),
    }
    options = {
        "direction": "gradient" if direction is None else "given",
        "by": by
        if isinstance(by, str | int)
        else {k: list(np.atleast_1d(v)) for k, v in by.items()},
        "matrix": matrix,
    }
    return measuring.result(
        variables, coords={"block": np.array(names, dtype=object)}, options=options
    )
