"""Sources: the ascent direction u from the first-pass gradient and memory."""

from dataclasses import dataclass

import torch
from torch import Tensor

from landscape.sam.slot import Slot, slot
from landscape.sam.variant import Point, State
from landscape.sam.weights import are_little


@slot()
def gradient(point: Point, state: State) -> list[Tensor]:  # noqa: ARG001
    """Direction u = g1 (arXiv:2010.01412 Eq. 2)."""
    return point.gradients


@dataclass(frozen=True)
class Friendly(Slot):
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
        if self.order == "code":
            u = self.direction(point, state)
            self.remember(point, u, state)
            return u
        g = point.gradients
        fresh = {n for n in point.names if n not in state.setdefault("ema", {})}
        self._take_in(point, state, g, 1.0 - self.lmbda, self.lmbda)
        u = torch._foreach_add(g, [state["ema"][n] for n in point.names], alpha=-self.sigma)
        if self.init == "zero":
            return list(u)
        return [x if n in fresh else d for n, x, d in zip(point.names, g, u, strict=True)]

    def direction(self, point: Point, state: State) -> list[Tensor]:
        """U per tensor with order="code", finite where g1 is; the average stays as it is."""
        g, memory = point.gradients, state.get("ema", {})
        means = [memory.get(n) for n in point.names]
        known = all(m is not None for m in means)
        if known and are_little(g):
            return list(torch._foreach_add(g, means, alpha=-self.sigma))
        room = None if point.room is None else point.room(g)
        if room is None or not known:
            return [
                x if m is None else torch.sub(x, m, alpha=self.sigma)
                for x, m in zip(g, means, strict=True)
            ]
        norms = []
        wide = torch.float32 if g[0].dtype in (torch.float16, torch.bfloat16) else None
        for x, m, out in reversed(list(zip(g, means, room, strict=True))):
            torch.sub(x, m, alpha=self.sigma, out=out)
            norms.append(torch.linalg.vector_norm(out, dtype=wide))  # while it is in the cache
        point.known_norms = (room, norms[::-1])
        return room

    def remember(self, point: Point, u: list[Tensor], state: State) -> None:
        """Move the average towards g1 = u + sigma M: M = (lmbda + (1 - lmbda) sigma) M + ... u."""
        keep = self.lmbda + (1 - self.lmbda) * self.sigma
        self._take_in(point, state, u, 1 - self.lmbda, 1.0 if self.sigma == 1 else keep)

    def _take_in(
        self, point: Point, state: State, x: list[Tensor], weight: float, keep: float
    ) -> None:
        """M = keep M + weight x; where there is no M yet, x (init="grad") or weight x."""
        memory = state.setdefault("ema", {})
        means = [memory[n] for n in point.names if n in memory]
        if means:
            taken = x
            if len(means) < len(x):
                taken = [v for n, v in zip(point.names, x, strict=True) if n in memory]
            before = None
            if isinstance(point.finite, Tensor):  # on CUDA, where nothing waits for the answer
                before = [m.clone() for m in means]
            if keep != 1:
                torch._foreach_mul_(means, keep)
            torch._foreach_add_(means, taken, alpha=weight)
            if before is not None:
                for m, old in zip(means, before, strict=True):
                    m.copy_(torch.where(point.finite, m, old))
        for n, v in zip(point.names, x, strict=True) if len(means) < len(x) else ():
            if n not in memory:
                memory[n] = v.clone() if self.init == "grad" else v * weight


@dataclass(frozen=True)
class Centred(Slot):
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
class Stale(Slot):
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
        kept = point.gradients
        if isinstance(point.finite, Tensor):
            kept = [torch.where(point.finite, g, old) for g, old in zip(kept, u, strict=True)]
        state["previous"] = dict(zip(point.names, kept, strict=True))
        return u


@dataclass(frozen=True)
class Momentum(Slot):
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
