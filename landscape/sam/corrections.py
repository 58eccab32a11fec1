"""Corrections: the gradient gd that the base optimizer steps with, from g1 and g2.

A correction is called as correction(point, g1, g2, state) with lists over the tensors that have
both gradients. Hooks of `slot.Slot`: `closed` for steps whose gate is closed, `before_restore` at
w + e, `after_step` after the base step.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from landscape.checks import check_fraction
from landscape.errors import LandscapeError
from landscape.sam.directions import where_finite
from landscape.sam.geometry import scale
from landscape.sam.slot import Slot
from landscape.sam.sources import centred
from landscape.sam.variant import Point, State

Gradients = list[Tensor]
_LEAST_ALPHA = 0.01  # below it c = (1 - alpha) / alpha could take c g1 out of range


@dataclass(frozen=True)
class Descent(Slot):
    """Descent gd = g2 (arXiv:2010.01412 Eq. 3, second-order term dropped)."""

    needs_g1 = False

    def __call__(self, point: Point, g1: Gradients, g2: Gradients, state: State) -> Gradients:  # noqa: ARG002
        """The descent gradient."""
        return g2


@dataclass(frozen=True)
class Blend(Slot):
    """Descent gd = (1 - alpha) g1 + alpha g2 (GNP, arXiv:2202.03599).

    unit_g1=True blends g1/‖g1‖ instead, the released code's default against its own paper.
    """

    alpha: float
    unit_g1: bool = False
    needs_g1 = True

    def __post_init__(self) -> None:
        check_fraction("alpha", self.alpha)

    def __call__(self, point: Point, g1: Gradients, g2: Gradients, state: State) -> Gradients:  # noqa: ARG002
        """The descent gradient."""
        if self.unit_g1:
            g1 = scale(g1, 1 / (point.norm + 1e-12))
        if self.alpha < _LEAST_ALPHA:
            return list(torch._foreach_lerp(g1, g2, self.alpha))
        total = scale(g1, self.share)
        torch._foreach_add_(total, g2)
        torch._foreach_mul_(total, self.alpha)
        return total

    @property
    def share(self) -> float:
        """C in gd = alpha (c g1 + g2)."""
        return (1 - self.alpha) / self.alpha

    @property
    def may_be_summed(self) -> bool:
        """Whether c g1 may be made before g2 is known."""
        return not self.unit_g1 and _LEAST_ALPHA <= self.alpha < 1


@dataclass(frozen=True)
class SurrogateGap(Slot):
    """Descent gd = g2 - alpha g1⊥, g1⊥ orthogonal to g2 (GSAM, arXiv:2203.08065 Alg. 1)."""

    alpha: float = 0.4
    eps: float = 1e-12
    needs_g1 = True

    def __call__(self, point: Point, g1: Gradients, g2: Gradients, state: State) -> Gradients:  # noqa: ARG002
        """The descent gradient."""
        n1, n2 = point.norm_of(g1), point.norm_of(g2)
        cosine = point.inner(g1, g2) / (n1 * n2 + self.eps)
        # g2 - a (g1 - c n1 g2 / n2) = (1 + a c n1 / n2) g2 - a g1
        kept = scale(g2, 1 + self.alpha * cosine * n1 / (n2 + self.eps))
        torch._foreach_add_(kept, g1, alpha=-self.alpha)
        return kept


@dataclass(frozen=True)
class Stable(Slot):
    """Descent gd = g2 ‖g1‖/‖g2‖ (arXiv:2401.07250).

    weighted=True takes both norms of |w| g, the second at w + e, as the released adaptive form.
    """

    weighted: bool = False
    eps: float = 1e-12
    needs_g1 = True

    def before_restore(self, point: Point, g1: Gradients, g2: Gradients, state: State) -> None:  # noqa: ARG002
        """Take the |w + e|-weighted norm while the weights are there."""
        if self.weighted:
            point.scratch["norm2"] = self._norm(point, g2)

    def __call__(self, point: Point, g1: Gradients, g2: Gradients, state: State) -> Gradients:  # noqa: ARG002
        """The descent gradient."""
        n2 = point.scratch["norm2"] if self.weighted else point.norm_of(g2)
        n1 = self._norm(point, g1) if self.weighted else point.norm_of(g1)
        return scale(g2, n1 / (n2 + self.eps))

    @staticmethod
    def _norm(point: Point, g: Gradients) -> Tensor:
        size = [w.detach().abs() * x for w, x in zip(point.weights, g, strict=True)]
        return point.norm_of(size)


@dataclass(frozen=True)
class CentredDescent(Slot):
    """Descent gd = g2 centred per output unit, as GCSAM's paper has it (its code leaves g2)."""

    needs_g1 = False

    def __call__(self, point: Point, g1: Gradients, g2: Gradients, state: State) -> Gradients:  # noqa: ARG002
        """The descent gradient."""
        return [centred(point, i, g) for i, g in enumerate(g2)]


@dataclass(frozen=True)
class Weighted(Slot):
    """Descent gd = a g2 + (1 - a) g1, a = gamma/(1 - gamma) (WSAM, arXiv:2305.15817 Alg. 1).

    decouple=True: the base optimizer steps with g1, then w -= lr a (g2 - g1), lr of the first
    group. max_norm clips g2 before the blend.
    """

    gamma: float = 0.9
    decouple: bool = True
    max_norm: float | None = None
    needs_g1 = True

    @property
    def remembers(self) -> bool:
        """The decoupled form hands a gradient to the end of the step."""
        return self.decouple

    def __post_init__(self) -> None:
        check_fraction("gamma", self.gamma)
        if self.gamma == 1:
            raise LandscapeError("gamma=1 makes WSAM's weight gamma/(1-gamma) infinite; gamma < 1.")

    def __call__(self, point: Point, g1: Gradients, g2: Gradients, state: State) -> Gradients:  # noqa: ARG002
        """The descent gradient."""
        a = self.gamma / (1 - self.gamma)
        if self.max_norm is not None:
            norm = point.norm_of(g2)
            g2 = scale(g2, torch.clamp(self.max_norm / (norm + 1e-6), max=1.0))
        if self.decouple:
            point.scratch["pull"] = list(torch._foreach_sub(g2, g1))
            return g1
        blended = torch._foreach_mul(g2, a)
        torch._foreach_add_(blended, g1, alpha=1 - a)
        return list(blended)

    def after_step(self, point: Point, state: State) -> None:  # noqa: ARG002
        """The decoupled sharpness step."""
        pull = point.scratch.get("pull")
        if pull is not None:
            a = self.gamma / (1 - self.gamma)
            torch._foreach_add_(list(point.weights), pull, alpha=-point.lr * a)


@dataclass(frozen=True)
class Reuse(Slot):
    """LookSAM (arXiv:2203.02714): keep gv = g2 - <g2, ĝ1> ĝ1, reuse it while the gate is closed.

    Between two ascents gd = g1 + alpha ‖g1‖/‖gv‖ gv. scope: norms and the projection over all
    tensors ("global", the paper) or per tensor.
    """

    alpha: float = 0.7
    scope: str = "global"
    eps: float = 1e-12
    needs_g1 = True
    remembers = True

    def __call__(self, point: Point, g1: Gradients, g2: Gradients, state: State) -> Gradients:
        """Return g2; gv is kept in `state`."""
        if self.scope == "global":
            square = point.norm_of(g1).square()
            along = [point.inner(g1, g2) / (square + self.eps**2)] * len(g1)
        else:
            squares = point.inners(g1, g1)
            along = [
                x / (n + self.eps**2) for x, n in zip(point.inners(g1, g2), squares, strict=True)
            ]
        gv = [b - c.to(b.dtype) * a for a, b, c in zip(g1, g2, along, strict=True)]
        gv = self._without_rounding(point, gv, g2)
        gv = where_finite(point, state.get("gv", {}), gv)
        state["gv"] = dict(zip(point.names, gv, strict=True))
        return g2

    def _sizes(self, point: Point, tensors: Gradients) -> list[Tensor]:
        """For each tensor its norm, or that of all."""
        if self.scope == "global":
            return [point.norm_of(tensors)] * len(tensors)
        return point.norms_of(tensors)

    def _without_rounding(self, point: Point, gv: Gradients, g2: Gradients) -> Gradients:
        """Gv, or 0 where it is rounding error alone (rho = 0), which its norm would blow up."""
        nv, n2 = self._sizes(point, gv), self._sizes(point, g2)
        return [
            v * (a > 4 * torch.finfo(v.dtype).eps * b).to(v.dtype)
            for v, a, b in zip(gv, nv, n2, strict=True)
        ]

    def closed(self, point: Point, g1: Gradients, state: State) -> Gradients:
        """Gd of a step without ascent."""
        if "gv" not in state:
            return g1
        gv = [state["gv"].get(n, torch.zeros_like(g)) for n, g in zip(point.names, g1, strict=True)]
        n1, nv = self._sizes(point, g1), self._sizes(point, gv)
        return [
            g + v * (self.alpha * a / (b + self.eps)).to(g.dtype)
            for g, v, a, b in zip(g1, gv, n1, nv, strict=True)
        ]


@dataclass(frozen=True)
class AddClean(Slot):
    """Descent gd = gA + g2, gA left by the evaluate slot in the scratch (Focal-SAM)."""

    needs_g1 = False
    reads = ("clean",)

    def __call__(self, point: Point, g1: Gradients, g2: Gradients, state: State) -> Gradients:  # noqa: ARG002
        """The descent gradient."""
        clean = point.scratch["clean"]
        return [g if clean[n] is None else clean[n] + g for n, g in zip(point.names, g2)]
