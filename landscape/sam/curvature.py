"""Slots that use Hessian products: the top eigenvector of Eigen-SAM, SASSHA's diagonal."""

from dataclasses import dataclass

import torch
from torch import Tensor

from landscape.sam.directions import joined
from landscape.sam.slot import Slot
from landscape.sam.variant import Point, State

Gradients = list[Tensor]


@dataclass(frozen=True)
class TowardEigenvector(Slot):
    """Direction u = ĝ + alpha sign<g, v> (v - <ĝ, v> ĝ), v the Hessian's leading eigenvector.

    Eigen-SAM (arXiv:2501.12666). v comes from num_iterations power iterations on the step's batch
    every `every` steps, the first from noise, later ones from the v before.
    """

    alpha: float = 0.2
    every: int = 100
    num_iterations: int = 5
    remembers = True

    def __call__(self, point: Point, state: State) -> list[Tensor]:
        """U per tensor; v is kept in `state["v"]` by name."""
        age = state.get("age", 0)
        if age % self.every == 0:
            old = state.get("v", {})
            state["v"] = joined(point, old, self._iterate(point, old))
        state["age"] = age + 1
        g = point.gradients
        v = [state["v"].get(n, torch.zeros_like(x)) for n, x in zip(point.names, g, strict=True)]
        norm = point.norm + 1e-12
        along = point.inner(g, v) / norm
        turn = self.alpha * torch.sign(along)
        # ĝ + turn (v - along ĝ)
        of_g = (1 - turn * along) / norm
        return [of_g.to(x.dtype) * x + turn.to(x.dtype) * y for x, y in zip(g, v, strict=True)]

    def _iterate(self, point: Point, old: dict[str, Tensor]) -> list[Tensor]:
        noise = point.noise()
        v = [old.get(n, z) for n, z in zip(point.names, noise, strict=True)]
        for _ in range(self.num_iterations):
            product = point.hessian_product(v)
            norm = (point.norm_of(product).square() + 1e-12).sqrt()
            fine = torch.isfinite(norm)  # else v stays
            v = [
                torch.where(fine, x / norm.to(x.dtype), y) for x, y in zip(product, v, strict=True)
            ]
        return v


@dataclass(frozen=True)
class HessianDescent(Slot):
    """Descent gd = m̂/(D̂ + eps), m an average of g2, D of |diag H(w + e)| to a power (SASSHA).

    arXiv:2502.18153: diag H by num_samples Hutchinson probes z ∘ H z, z = ±1, every `every` steps;
    m̂ = m/(1 - beta_1^t), D̂ = D^power/(1 - beta_2^t)^power, t the step of the last estimate.
    """

    beta_1: float = 0.9
    beta_2: float = 0.999
    every: int = 10
    power: float = 0.5
    eps: float = 1e-4
    num_samples: int = 1
    needs_g1 = False
    remembers = True

    def before_restore(self, point: Point, g1: Gradients, g2: Gradients, state: State) -> None:  # noqa: ARG002
        """Estimate the diagonal, at w + e."""
        if state.get("steps", 0) % self.every:
            return
        total: Gradients = []  # made after the first product, which needs the memory
        for _ in range(self.num_samples):
            z = [
                point.own(i, torch.where(point.rand(i) < 0.5, -1.0, 1.0)).to(w.dtype)
                for i, w in enumerate(point.weights)
            ]
            found = [x * y for x, y in zip(z, point.hessian_product(z), strict=True)]
            total = [a + b for a, b in zip(total, found, strict=True)] if total else found
        point.scratch["diagonal"] = [x / self.num_samples for x in total]

    def __call__(self, point: Point, g1: Gradients, g2: Gradients, state: State) -> Gradients:  # noqa: ARG002
        """The descent gradient; both averages are kept by name."""
        t = state["steps"] = state.get("steps", 0) + 1
        old = state.get("momentum", {})
        m = [
            torch.lerp(g, old.get(n, torch.zeros_like(g)), self.beta_1)
            for n, g in zip(point.names, g2, strict=True)
        ]
        state["momentum"] = joined(point, old, m)
        if "diagonal" in point.scratch:
            old = state.get("diagonal", {})
            known = [old.get(n, torch.zeros_like(x)) for n, x in zip(point.names, m, strict=True)]
            estimates = zip(point.scratch["diagonal"], known, strict=True)
            new = [
                torch.where(torch.isfinite(h), torch.lerp(h.abs(), d, self.beta_2), d)
                for h, d in estimates
            ]
            state["diagonal"] = joined(point, old, new)
            state["unbiased"] = (1 - self.beta_2**t) ** self.power
        first = 1 - self.beta_1**t
        return [
            (x / first)
            / (
                state["diagonal"].get(n, torch.zeros_like(x)) ** self.power / state["unbiased"]
                + self.eps
            )
            for n, x in zip(point.names, m, strict=True)
        ]
