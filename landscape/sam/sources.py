"""Sources: the ascent direction u from the first-pass gradient and memory."""

from dataclasses import dataclass

import torch
from torch import Tensor

from landscape.sam.variant import Point, State


def gradient(point: Point, state: State) -> list[Tensor]:  # noqa: ARG001
    """Direction u = g1 (arXiv:2010.01412 Eq. 2)."""
    return point.gradients


@dataclass(frozen=True)
class Friendly:
    """Direction u = g1 - sigma * M, M an exponential average of past gradients (arXiv:2403.12350).

    order="code": M is used before it takes in g1, as released; "paper": after. With sigma = 1 the
    two differ by the factor lmbda only, which normalization removes. init: M before the first
    gradient, "grad" (released: u = g1 at the first step, M = g1) or "zero".
    """

    sigma: float = 1.0
    lmbda: float = 0.9
    order: str = "code"
    init: str = "grad"
    remembers = True

    def __call__(self, point: Point, state: State) -> list[Tensor]:
        """U per tensor; updates `state["ema"]`, keyed by tensor name."""
        memory = state.setdefault("ema", {})
        g = point.gradients
        fresh = [name not in memory for name in point.names]
        for name, new, gradient_ in zip(point.names, fresh, g, strict=True):
            if new:
                memory[name] = (
                    gradient_.clone() if self.init == "grad" else torch.zeros_like(gradient_)
                )
        ema = [memory[name] for name in point.names]
        before = None
        if self.order == "code":
            before = torch._foreach_add(g, ema, alpha=-self.sigma)
        torch._foreach_lerp_(ema, g, 1 - self.lmbda)
        if before is None:
            before = torch._foreach_add(g, ema, alpha=-self.sigma)
        if self.init == "grad" and any(fresh):
            before = [a if new else u for a, u, new in zip(g, before, fresh, strict=True)]
        return list(before)


@dataclass(frozen=True)
class Centred:
    """u_i = g_i minus its mean over all dimensions but the first, for tensors of ndim > 1.

    Gradient centralization per output unit (arXiv:2004.01461, used for the ascent in GCSAM,
    arXiv:2501.11584).
    """

    ignores_one_d = True

    def __call__(self, point: Point, state: State) -> list[Tensor]:  # noqa: ARG002
        """U per tensor."""
        return [centred(g) for g in point.gradients]


def centred(g: Tensor) -> Tensor:
    """G minus its mean over dimensions 1.., g itself for 1-D tensors."""
    return g - g.mean(dim=tuple(range(1, g.ndim)), keepdim=True) if g.ndim > 1 else g


@dataclass(frozen=True)
class Stale:
    """Direction u = g of the previous step, zero at the first (Async-SAM, arXiv:2503.11147)."""

    remembers = True

    def __call__(self, point: Point, state: State) -> list[Tensor]:
        """U per tensor; keeps g1 in `state["previous"]` for the next step."""
        if "previous" not in state and point.scratch.get("counterfactual"):
            return point.gradients  # where the next step would climb, were this the one before
        previous = state.get("previous", {})
        u = [
            previous[n] if n in previous else torch.zeros_like(g)
            for n, g in zip(point.names, point.gradients, strict=True)
        ]
        kept = [g.clone() for g in point.gradients]
        state["previous"] = dict(zip(point.names, kept, strict=True))
        return u


@dataclass(frozen=True)
class Momentum:
    """Direction u = -v, v the base optimizer's momentum or zero (MSAM, arXiv:2401.12033).

    No first pass is made: `first_pass` tells the engine so.
    """

    first_pass = False

    def __call__(self, point: Point, state: State) -> list[Tensor]:  # noqa: ARG002
        """U per tensor."""
        buffers = [point.momentum(n) if point.momentum else None for n in point.names]
        return [
            torch.zeros_like(w) if v is None else -v
            for v, w in zip(buffers, point.weights, strict=True)
        ]
