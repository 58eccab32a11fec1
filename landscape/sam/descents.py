"""Corrections that carry more than g1 and g2: adaptive steps, enhanced directions."""

from dataclasses import dataclass

import torch
from torch import Tensor

from landscape.sam.directions import joined, over_root
from landscape.sam.geometry import climb, scale
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


# ---------------------------------------------------------------- what reads e and more passes


def ascended(point: Point) -> list[Tensor]:
    """The step's own e, zeros where a tensor was not perturbed."""
    e = point.scratch["e"]
    return [
        torch.zeros_like(w) if e.get(n) is None else e[n]
        for n, w in zip(point.names, point.weights, strict=True)
    ]


@dataclass(frozen=True)
class Polyak(Slot):
    """Descent gd = min(γ/lr, 1) g2, γ = [L(w + e) - lower - <g2, e>]₊/‖g2‖² (arXiv:2606.01827).

    Over plain SGD the step is w -= min(γ, lr) g2: the learning rate is the largest step size.
    """

    lower: float = 0.0
    needs_g1 = False
    needs_e = True

    def __call__(self, point: Point, g1: Gradients, g2: Gradients, state: State) -> Gradients:  # noqa: ARG002
        """The descent gradient."""
        if not point.lr:
            return g2
        excess = point.scratch["perturbed_loss"] - self.lower - point.inner(g2, ascended(point))
        gamma = torch.clamp(excess, min=0.0) / (point.norm_of(g2).square() + 1e-30)
        return scale(g2, torch.clamp(gamma / point.lr, max=1.0))


@dataclass(frozen=True)
class NormalizedTrace(Slot):
    """Descent gd = g₊ + gamma (g₊ + g₋ - 2 g1) + beta (g₊ - g₋), g± at w ± e (CR-SAM)."""

    gamma: float = 0.1
    beta: float = 0.1
    needs_g1 = needs_e = True

    def __call__(self, point: Point, g1: Gradients, g2: Gradients, state: State) -> Gradients:  # noqa: ARG002
        """The descent gradient; one more pass, at w - e."""
        behind = point.gradient_at([-x for x in ascended(point)])
        plus, minus = 1 + self.gamma + self.beta, self.gamma - self.beta
        return [
            plus * b + minus * c - 2 * self.gamma * a
            for a, b, c in zip(g1, g2, behind, strict=True)
        ]


@dataclass(frozen=True)
class TowardMaximum(Slot):
    """Descent gd = ‖g2‖ s(α), s(α) between ê (α = 0) and ĝ2 (α = 1) on the unit sphere (XSAM).

    arXiv:2603.10048: s(α) = (sin((1 - α) θ) ê + sin(α θ) ĝ2)/sin θ, θ the angle between them. At
    the first step of an epoch α is the one of 0, step, ..., most with the largest loss at
    w + rho_max s(α).
    """

    rho_max: float = 0.3
    most: float = 2.0
    step: float = 0.1
    needs_g1 = False
    needs_e = remembers = True

    def __call__(self, point: Point, g1: Gradients, g2: Gradients, state: State) -> Gradients:  # noqa: ARG002
        """The descent gradient."""
        e = ascended(point)
        norm = point.norm_of(g2)
        start = scale(e, 1 / (point.norm_of(e) + 1e-12))
        end = scale(g2, 1 / (norm + 1e-12))
        angle = torch.arccos(torch.clamp(point.inner(start, end), -1.0, 1.0))

        def between(alpha: float) -> Gradients:
            sine = torch.sin(angle)
            straight = sine < 1e-8
            a = torch.where(straight, 0.5, torch.sin((1 - alpha) * angle) / sine)
            b = torch.where(straight, 0.5, torch.sin(alpha * angle) / sine)
            return [a.to(x.dtype) * x + b.to(y.dtype) * y for x, y in zip(start, end, strict=True)]

        if state.get("epoch") != point.epoch:
            grid = [self.step * i for i in range(int(self.most / self.step + 1e-9) + 1)]
            losses = [point.loss_at(scale(between(a), self.rho_max)) for a in grid]
            state["alpha"] = grid[int(torch.stack(losses).argmax())]
            state["epoch"] = point.epoch
        return scale(between(state["alpha"]), norm)


@dataclass(frozen=True)
class LookBehind(Slot):
    """Descent gd = alpha Σ_i ∇L(w + x_i), i = 1..k, x_i = x_{i-1} + rho ĝ(w + x_{i-1}).

    Lookbehind-SAM (arXiv:2307.16704): over plain SGD, alpha times the sum of k inner steps. x_1 = e
    is the step's own. alpha None: (1 + cos)/2 per tensor, between the first inner step and all.
    """

    k: int = 5
    alpha: float | None = 0.5
    needs_g1 = False
    needs_e = True

    def __call__(self, point: Point, g1: Gradients, g2: Gradients, state: State) -> Gradients:  # noqa: ARG002
        """The descent gradient; k - 1 more passes."""
        x, g, total = ascended(point), g2, g2
        for _ in range(self.k - 1):
            further = climb(point, g, point.scratch["rho"], eps=1e-16)
            x = [a + b for a, b in zip(x, further, strict=True)]
            g = point.gradient_at(x)
            total = [a + b for a, b in zip(total, g, strict=True)]
        if self.alpha is not None:
            return [self.alpha * s for s in total]
        sizes = zip(point.norms_of(g2), point.norms_of(total), strict=True)
        cosines = [
            c / torch.clamp(a * b, min=1e-8)
            for c, (a, b) in zip(point.inners(g2, total), sizes, strict=True)
        ]
        return [(1 + c).to(s.dtype) / 2 * s for c, s in zip(cosines, total, strict=True)]
