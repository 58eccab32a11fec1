"""Corrections that carry more than g1 and g2: adaptive steps, enhanced directions."""

from dataclasses import dataclass

import torch
from torch import Tensor

from landscape.sam.directions import joined, over_root
from landscape.sam.geometry import scale
from landscape.sam.slot import Slot
from landscape.sam.sparse import global_top
from landscape.sam.variant import Point, State

Gradients = list[Tensor]


@dataclass(frozen=True)
class AdaGradDescent(Slot):
    """Descent gd = g2/√v, v = initial + Σ‖g2‖², or Σ g2² per coordinate (LightSAM).

    Over plain SGD with learning rate η the step is w -= η g2/√v.
    """

    per_coordinate: bool = False
    initial: float = 0.0
    needs_g1 = False
    remembers = True

    def __call__(self, point: Point, g1: Gradients, g2: Gradients, state: State) -> Gradients:  # noqa: ARG002
        """The descent gradient; the sums are kept in `state["squares"]`."""
        if self.per_coordinate:
            old = state.get("squares", {})
            sums = [
                old.get(n, torch.full_like(g, self.initial)).addcmul(g, g)
                for n, g in zip(point.names, g2, strict=True)
            ]
            state["squares"] = joined(point, old, sums)
            return over_root(g2, sums)
        squared = point.norm_of(g2).square()
        total = state.get("squares", torch.full_like(squared, self.initial)) + squared
        if isinstance(point.finite, Tensor):
            kept = state.get("squares", torch.full_like(squared, self.initial))
            total = torch.where(point.finite, total, kept)
        state["squares"] = total
        return scale(g2, torch.where(total > 0, total.rsqrt(), 0.0))


@dataclass(frozen=True)
class Enhanced(Slot):
    """After the base step Δw = w' - w, also w' += kappa m Δw, m the flat coordinates (IRE).

    m = 1 but on the share `sharp` of coordinates with the largest average of g1² (decay beta per
    refresh, every `every` steps), from epoch `start_epoch` on (arXiv:2405.20763).
    """

    kappa: float = 1.0
    sharp: float = 0.1
    beta: float = 0.0
    every: int = 10
    start_epoch: int = 0
    remembers = True

    def __call__(self, point: Point, g1: Gradients, g2: Gradients, state: State) -> Gradients:
        """Return g2; notes g1² and the weights before the base step."""
        self._note(point, g1, state)
        return g2

    def closed(self, point: Point, g1: Gradients, state: State) -> Gradients:
        """Of a step without ascent: the base optimizer's own step is enhanced."""
        self._note(point, g1, state)
        return g1

    def _note(self, point: Point, g1: Gradients, state: State) -> None:
        if point.epoch < self.start_epoch:
            return
        if "mask" not in state or point.step % self.every == 0:
            old = state.get("fisher", {})
            squares = [
                torch.lerp(g.square(), old[n], self.beta) if n in old else (1 - self.beta) * g * g
                for n, g in zip(point.names, g1, strict=True)
            ]
            state["fisher"] = joined(point, old, squares)
            sharpest = global_top(point, state["fisher"], lambda size: int(self.sharp * size))
            state["mask"] = {n: ~top for n, top in sharpest.items()}
        point.scratch["before"] = {
            n: w.detach().clone() for n, w in zip(point.names, point.weights, strict=True)
        }

    def after_step(self, point: Point, state: State) -> None:
        """Go on along the base step on the flat coordinates."""
        for n, old in point.scratch.get("before", {}).items():
            if n in state["mask"] and n in point.names:
                w = point.weights[point.names.index(n)]
                w.add_((w - old) * state["mask"][n], alpha=self.kappa)
