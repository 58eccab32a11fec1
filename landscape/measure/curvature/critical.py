"""Critical sharpness: curvature from losses alone, for models without second derivatives."""

import math
from collections.abc import Callable

import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from landscape import vectors
from landscape.errors import LandscapeError
from landscape.measure.measuring import Measuring
from landscape.results import Variable
from landscape.risk import EmpiricalRisk


def critical_sharpness(
    risk: EmpiricalRisk,
    theta: Float[Tensor, "P"],
    *,
    direction: Float[Tensor, "P"] | None = None,
    first_step: float = 1e-2,
    tolerance: float = 1e-3,
    max_losses: int = 100,
) -> xr.Dataset:
    """lambda_c = 2 / eta_c, eta_c the smallest eta > 0 with L(theta - eta d) > L(theta).

    d is the update direction of the optimizer at rate 1, by default the gradient; then a quadratic
    gives gᵀHg/‖g‖² <= lambda_1, and training at rate eta is at its edge where lambda_c = 2/eta
    (arXiv:2601.16979). By forward passes alone: from first_step the rate is doubled (or halved)
    until the loss exceeds L(theta) (or no longer does), then bisected to the relative tolerance, so
    that critical_rate lies in [rate_lower, rate_upper], critical_sharpness in [2 / rate_upper, 2 /
    rate_lower]. The line search sees crossings only where it looks: on a wavy line a smaller one
    may be passed over. Where no rate raises the loss within max_losses or where d is no direction
    of descent, critical_sharpness is 0 or inf and `bracketed` false.
    direction: d, by default the gradient. With `optimizer_update` of a risk 1 and this risk 2 it is
    the relative critical sharpness 1 -> 2 of the same paper: how far one may go for data 1 before
    the loss of data 2 rises.
    Cost: one gradient without a direction, num_losses forward passes of 1/3.

    Example:
        >>> found = measure.critical_sharpness(risk, theta)
        >>> bool(found.bracketed)
        True
        >>> bool(found.rate_lower <= found.critical_rate <= found.rate_upper)
        True
    """
    measuring = Measuring("critical_sharpness", risk, theta)
    theta = measuring.theta
    center = float(measuring.finite_loss())
    if not (first_step > 0 and 0 < tolerance < 1 and max_losses >= 3):
        raise LandscapeError(
            f"first_step={first_step}, tolerance={tolerance}, max_losses={max_losses} asked; they "
            f"must be above 0, between 0 and 1, and at least 3."
        )
    d = risk.gradient(theta) if direction is None else direction_of(direction, theta)
    norm = float(vectors.norm(d))
    if norm == 0:
        raise LandscapeError(
            "critical_sharpness was asked along a zero direction (theta is stationary, or the "
            "update is zero); give another direction."
        )
    search = _RateSearch(
        lambda rate: float(risk.loss(theta - rate * d)),
        center,
        max_losses,
        torch.finfo(risk.dtype).eps,
    )
    lower, upper = search.bracket(first_step)
    lower, upper = search.bisect(lower, upper, tolerance)
    bracketed = lower > 0 and math.isfinite(upper)
    rate = 0.5 * (lower + upper) if lower > 0 else 0.0
    units = "1 / learning rate"
    variables = {
        "critical_sharpness": Variable(
            (), 2 / rate if rate > 0 else math.inf, units, "Critical sharpness 2/η_c"
        ),
        "critical_rate": Variable((), rate, "learning rate", "Smallest rate that raises the loss"),
        "rate_lower": Variable((), lower, "learning rate", "A rate that does not raise the loss"),
        "rate_upper": Variable((), upper, "learning rate", "A rate that raises the loss"),
        "bracketed": Variable((), bracketed, "1", "Both rates were found"),
        "direction_norm": Variable((), norm, "parameter", "‖d‖"),
        "num_losses": Variable((), search.used, "1", "Losses evaluated"),
        "loss": Variable((), center, "nats", "Loss at theta"),
    }
    options = {
        "direction": "gradient" if direction is None else "given",
        "first_step": first_step,
        "tolerance": tolerance,
        "max_losses": max_losses,
    }
    return measuring.result(variables, options=options)


def direction_of(direction: Tensor, theta: Tensor) -> Tensor:
    """A caller's direction (P,), refused where it is none."""
    d = torch.as_tensor(direction).to(theta)
    if d.shape != theta.shape or not bool(torch.isfinite(d).all()):
        raise LandscapeError(
            f"direction has shape {tuple(d.shape)} where theta has {tuple(theta.shape)}, or is not "
            f"finite; give the update (P,) of the optimizer at rate 1."
        )
    return d


class _RateSearch:
    """Rates that raise the loss and rates that do not; a loss that is NaN or infinite raises it."""

    def __init__(
        self, loss_at: Callable[[float], float], center: float, limit: int, eps: float
    ) -> None:
        self.loss_at, self.center, self.limit, self.used = loss_at, center, limit, 0
        self.noise, self.level = 4 * eps * abs(center), False

    def raises(self, rate: float) -> bool:
        self.used += 1
        change = self.loss_at(rate) - self.center
        self.level = abs(change) <= self.noise
        return not change <= 0

    def bracket(self, rate: float) -> tuple[float, float]:
        """(a rate that does not, a rate that does); 0 or inf where there is none in the limit."""
        grows = not self.raises(rate)
        while self.used < self.limit and 1e-30 < rate < 1e30:
            other = rate * 2 if grows else rate / 2
            raises = self.raises(other)
            if self.level and not grows:
                break  # no descent was seen before rounding hides it
            if raises == grows:
                return (rate, other) if grows else (other, rate)
            rate = other
        return (rate, math.inf) if grows else (0.0, rate)

    def bisect(self, lower: float, upper: float, tolerance: float) -> tuple[float, float]:
        while (
            lower > 0
            and math.isfinite(upper)
            and upper - lower > tolerance * lower
            and self.used < self.limit
        ):
            middle = 0.5 * (lower + upper)
            if self.raises(middle):
                upper = middle
            else:
                lower = middle
        return lower, upper
