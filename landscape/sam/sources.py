"""Sources: the ascent direction u from the first-pass gradient and memory."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from landscape.sam.finite import chosen, copies
from landscape.sam.slot import Slot, slot
from landscape.sam.variant import Point, State


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
        """U per tensor; updates `state["ema"]`, keyed by tensor name and joined at first sight."""
        g, memory = point.gradients, state.setdefault("ema", {})
        known = [n in memory for n in point.names]
        if self.order == "code":
            u = self._minus(g, point.names, memory)
            self._take_in(point, memory)
            return u
        self._take_in(point, memory)
        u = self._minus(g, point.names, memory)
        if self.init == "zero":
            return u
        return [d if k else x for x, d, k in zip(g, u, known, strict=True)]

    def _minus(self, g: list[Tensor], names: Sequence[str], memory: State) -> list[Tensor]:
        """G - sigma M, g where there is no M."""
        pairs = [(x, memory[n]) for n, x in zip(names, g, strict=True) if n in memory]
        if not pairs:
            return list(g)
        made = iter(torch._foreach_sub(*map(list, zip(*pairs, strict=True)), alpha=self.sigma))
        return [next(made) if n in memory else x for n, x in zip(names, g, strict=True)]

    def _take_in(self, point: Point, memory: State) -> None:
        """M = lmbda M + (1 - lmbda) g; a first M is g (init="grad") or (1 - lmbda) g."""
        known = [(memory[n], x) for n, x in zip(point.names, point.gradients) if n in memory]
        fresh = [(n, x) for n, x in zip(point.names, point.gradients) if n not in memory]
        if known:
            means, g = map(list, zip(*known, strict=True))
            finite = point.finite
            # On CUDA nothing waits for the answer.
            before = copies(means) if isinstance(finite, Tensor) else []
            torch._foreach_mul_(means, self.lmbda)
            torch._foreach_add_(means, g, alpha=1.0 - self.lmbda)
            if isinstance(finite, Tensor):
                torch._foreach_copy_(means, chosen(finite, means, before))
        for n, x in fresh:
            memory[n] = x.clone() if self.init == "grad" else x * (1.0 - self.lmbda)


@dataclass(frozen=True)
class Centred(Slot):
    """u_i = g_i minus its mean over all dimensions but the first, for tensors of ndim > 1.

    Gradient centralization per output unit (arXiv:2004.01461, used for the ascent in GCSAM,
    arXiv:2501.11584). Of a layer in `landscape.params.LAYERS` the mean is over all dimensions but
    those of its outputs.
    """

    ignores_one_d = True

    def __call__(self, point: Point, state: State) -> list[Tensor]:  # noqa: ARG002
        """U per tensor."""
        return [centred(point, i, g) for i, g in enumerate(point.gradients)]


def centred(point: Point, i: int, g: Tensor) -> Tensor:
    """G of tensor i minus its mean over all but the output units, g itself for 1-D tensors."""
    if g.ndim <= 1:
        return g
    whole, outputs = point.whole(i, g), point.outputs[i] if point.outputs else (0,)
    within = tuple(axis for axis in range(g.ndim) if axis not in outputs)
    return point.own(i, whole - whole.mean(dim=within, keepdim=True))


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
            kept = chosen(point.finite, kept, u)
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
        buffers = [point.momentum(n) for n in point.names]
        return [
            torch.zeros_like(w) if v is None else -v
            for v, w in zip(buffers, point.weights, strict=True)
        ]
