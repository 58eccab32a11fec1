"""Geometry: from a direction, a mask and a radius to the perturbation e."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from landscape.checks import check_choice
from landscape.errors import LandscapeError
from landscape.sam.slot import Slot
from landscape.sam.variant import MaskEntry, Point, apply_mask, widened

SCOPES = ("global", "full", "tensor", "raw", "none")
METRICS = ("identity", "elementwise", "layerwise")
MATCHES = ("radius", "loss_increase")
HALVES = (torch.float16, torch.bfloat16)
LARGE = 1e30  # a factor that float32 may not hold where the product fits


@dataclass(frozen=True)
class Scaled:
    """factor × tensors, multiplied out only when asked: a step on the CPU need not."""

    tensors: Sequence[Tensor | None]
    factor: float | Tensor

    def multiplied(self) -> list[Tensor | None]:
        """The tensors times the factor."""
        return scale(self.tensors, self.factor)


@dataclass(frozen=True)
class Geometry(Slot):
    """Ascent e = rho T² f / (‖T f‖ + eps), f = mask * u; for p = inf e = rho T sign(f).

    metric: T = 1 ("identity"), |w| + eta ("elementwise", arXiv:2102.11600), ‖w_i‖ (1 + eta)
    ("layerwise", released SAM-ON code), or a function of the Point returning T per tensor (None
    for T = 1). metric_on: "weights" applies T to tensors whose name contains "weight" (T = 1
    elsewhere, Samsung's ASAM), "all" to every tensor.
    scope: the norm is taken over what is perturbed ("global": the T-norm of e is rho), over the
    unmasked u ("full": SSAM), per tensor ("tensor": ZSharp's released code), over g1 ("raw":
    GCSAM's released code), or not at all ("none").
    one_d: under scope "tensor", tensors of ndim <= 1 take u rho / ‖g1‖ ("raw", released ZSharp) or
    their own norm ("same"). An empty mask of a tensor falls back to the raw form, as released.
    match: "radius", or "loss_increase": rescaled so that g1·e = rho ‖g1‖, SAM's own first-order
    increase.

    Example:
        >>> from dataclasses import replace
        >>> elementwise = sam.Geometry(metric="elementwise", eta=0.01)
        >>> variant = replace(sam.sam(0.5), geometry=elementwise)
        >>> variant.geometry.metric
        'elementwise'
    """

    metric: str | Callable[[Point], Sequence[Tensor | None]] = "identity"
    metric_on: str = "all"
    eta: float = 0.0
    p: float = 2.0
    scope: str = "global"
    eps: float = 1e-12
    one_d: str = "raw"
    match: str = "radius"

    def __post_init__(self) -> None:
        if isinstance(self.metric, str) or not callable(self.metric):
            check_choice("metric", self.metric, METRICS)
        check_choice("metric_on", self.metric_on, ("weights", "all"))
        check_choice("p", self.p, (2.0, math.inf))
        check_choice("norm scope", self.scope, SCOPES)
        check_choice("equal", self.match, MATCHES)
        if self.eta < 0 or math.isnan(self.eta):
            raise LandscapeError(f"eta={self.eta} was asked; the metric |w| + eta needs eta >= 0.")

    def __call__(
        self, point: Point, u: list[Tensor], mask: list[MaskEntry] | None, rho: float | Tensor
    ) -> list[Tensor | None] | Scaled:
        """The perturbation per tensor, None where a tensor is not perturbed."""
        metric = self.metric_of(point)
        f = u if mask is None else apply_mask(u, mask)
        if self.p == math.inf:
            signs = [None if x is None else x.sign() for x in f]
            e = scale(weigh(signs, metric), rho)
        elif self.scope == "tensor":
            e = self._per_tensor(point, u, f, metric, rho)
        else:
            weighed = f if metric is None else weigh(f, metric)
            factor = self._factor(point, u, weighed, metric, rho)
            if metric is not None:
                for x, t in zip(weighed, metric, strict=True):
                    if x is not None and t is not None:
                        x.mul_(t)  # T² f, in the memory of T f
            scaled = Scaled(weighed, factor)
            if self.match == "radius" and point.scales is None:
                return scaled
            e = scaled.multiplied()
        if self.match == "loss_increase":
            e = match_loss_increase(point, e, rho)
        if point.scales is not None:
            e = [x if s == 1 or x is None else x * s for x, s in zip(e, point.scales, strict=True)]
        return e

    @property
    def needs_first_pass(self) -> bool:
        """Whether it takes a norm of g1."""
        metric = isinstance(self.metric, Slot) and self.metric.needs_first_pass
        return metric or self.scope in ("raw", "tensor") or self.match == "loss_increase"

    @property
    def needs_whole_g1(self) -> bool:
        """Whether the norm is of more than is perturbed."""
        return self.scope in ("full", "raw")

    def metric_of(self, point: Point) -> Sequence[Tensor | None] | None:
        """T at w per tensor, None where it is 1."""
        if not isinstance(self.metric, str):
            return self.metric(point)
        if self.metric == "identity":
            return None
        on = [self.metric_on == "all" or "weight" in name for name in point.names]
        if self.metric == "elementwise":
            return [
                (w.detach().abs() + self.eta if self.eta else w.detach().abs()) if use else None
                for w, use in zip(point.weights, on, strict=True)
            ]
        sizes = point.norms_of([w.detach() for w in point.weights])
        return [n * (1 + self.eta) if use else None for n, use in zip(sizes, on, strict=True)]

    def _factor(self, point, u, weighed, metric, rho):
        if self.scope == "none":
            return rho
        if self.scope == "raw":
            norm = point.norm
        elif metric is None and (weighed is u or self.scope == "full"):
            norm = point.norm_of(u)
        else:
            taken = weigh(u, metric) if self.scope == "full" else weighed
            norm = point.norm_of(taken)
        return rho / self._beyond_zero(norm)

    def _beyond_zero(self, norm):
        """The norm plus eps, or plus a thousandth of it where eps would be more than that.

        eps is there for a gradient of zero. Against one of 1e-13, as a loss in small units gives,
        the published 1e-12 would make e a tenth of rho.
        """
        return norm + torch.clamp(norm / 1000, max=self.eps) + (norm == 0)

    def _per_tensor(self, point, u, f, metric, rho):
        raw = rho / self._beyond_zero(point.norm)
        direct = f if metric is None else weigh(f, metric)
        norms = point.norms_of(direct)
        e: list[Tensor | None] = []
        for i, x in enumerate(f):
            t = None if metric is None else metric[i]
            if x is None:
                e.append(None)
            elif x.ndim <= 1 and self.one_d == "raw":
                e.append(_times(x, raw))
            else:
                direction = direct[i] if t is None else t * direct[i]
                # Released code: a tensor whose filter keeps nothing is perturbed unfiltered.
                filtered = _times(direction, rho / self._beyond_zero(norms[i]))
                e.append(torch.where(norms[i] > 0, filtered, _times(u[i], raw)))
        return e


def multiplied(e: list[Tensor | None] | Scaled) -> list[Tensor | None]:
    """The perturbation that a geometry made, as tensors."""
    return e.multiplied() if isinstance(e, Scaled) else e


def climb(
    point: Point, u: Sequence[Tensor], rho: float | Tensor, *, eps: float = 1e-12
) -> list[Tensor]:
    """Rho u / (‖u‖ + eps), SAM's e along u, of every tensor."""
    e = multiplied(Geometry(eps=eps)(point, list(u), None, rho))
    return [x for x in e if x is not None]


def weigh(tensors, metric):
    """Each tensor times its metric entry; None stays None and a None metric is 1."""
    if metric is None:
        return list(tensors)
    return [x if x is None or t is None else x * t for x, t in zip(tensors, metric, strict=True)]


def scale(tensors, factor):
    """All tensors times one scalar (number or 0-d tensor), in one multi-tensor operation."""
    live = [x for x in tensors if x is not None]
    if not live:
        return list(tensors)
    dtypes = {x.dtype for x in live}
    on_host = not isinstance(factor, Tensor) or factor.is_cpu
    if on_host and abs(float(factor)) >= LARGE:
        scaled = iter([(x.double() * float(factor)).to(x.dtype) for x in live])
    elif dtypes & set(HALVES):  # whose range the factor may exceed where the product does not
        scaled = iter([(x.to(widened(x)) * factor).to(x.dtype) for x in live])
    else:
        if isinstance(factor, Tensor) and len(dtypes) == 1:
            factor = factor.to(live[0].dtype)  # one dtype lets CUDA fuse
        scaled = iter(torch._foreach_mul(live, factor))
    return [None if x is None else next(scaled) for x in tensors]


def _times(x: Tensor, factor: Tensor) -> Tensor:
    """Their product in the type of x, whose range the factor may exceed."""
    return (x.to(widened(x)) * factor).to(x.dtype)


def match_loss_increase(point: Point, e: list[Tensor | None], rho: float | Tensor):
    """E rescaled so that g1·e = rho ‖g1‖; left alone where g1·e is not positive."""
    gain = point.inner(point.gradients, e)
    factor = torch.where(gain > 0, rho * point.norm / gain, torch.ones_like(gain))
    return scale(e, factor)
