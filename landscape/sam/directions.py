"""Sources with a memory or with chance: averaged gradients, per-coordinate steps, noise."""

from dataclasses import dataclass

import torch
from torch import Tensor

from landscape.sam.finite import chosen
from landscape.sam.slot import Slot
from landscape.sam.variant import Point, State


def joined(point: Point, old: dict[str, Tensor], new: list[Tensor]) -> dict[str, Tensor]:
    """`old` with the point's tensors replaced by `new`, where the step is finite.

    Tensors that the point lacks keep their value; those seen for the first time start here.
    """
    return old | dict(zip(point.names, where_finite(point, old, new), strict=True))


def where_finite(point: Point, old: dict[str, Tensor], new: list[Tensor]) -> list[Tensor]:
    """`new` of the point's tensors, or on CUDA, where nothing waits for the answer, `old` or 0."""
    if not isinstance(point.finite, Tensor):
        return new
    both = zip(point.names, new, strict=True)
    return chosen(point.finite, new, [old[n] if n in old else torch.zeros_like(x) for n, x in both])


@dataclass(frozen=True)
class Averaged(Slot):
    """Direction u = M, M = (1 - theta) M + theta g1, M = g1 at first (VaSSO, arXiv:2309.15639)."""

    theta: float = 0.9
    remembers = True

    def __call__(self, point: Point, state: State) -> list[Tensor]:
        """U per tensor; the average is kept in `state["average"]` by name."""
        old = state.get("average", {})
        average = [
            torch.lerp(old[n], g, self.theta) if n in old else g.clone()
            for n, g in zip(point.names, point.gradients, strict=True)
        ]
        state["average"] = joined(point, old, average)
        return [state["average"][n].clone() for n in point.names]


@dataclass(frozen=True)
class PerCoordinate(Slot):
    """Direction u = g1/√s, s = initial + Σ g1² per coordinate (LightSAM's AdaGrad form)."""

    initial: float = 0.0
    remembers = True

    def __call__(self, point: Point, state: State) -> list[Tensor]:
        """U per tensor, 0 where all gradients were; the sums are kept in `state["squares"]`."""
        old = state.get("squares", {})
        sums = [
            old.get(n, torch.full_like(g, self.initial)).addcmul(g, g)
            for n, g in zip(point.names, point.gradients, strict=True)
        ]
        state["squares"] = joined(point, old, sums)
        return over_root(point.gradients, sums)


def over_root(gradients: list[Tensor], squares: list[Tensor]) -> list[Tensor]:
    """g/√s, 0 where s is."""
    return [torch.where(s > 0, g * s.rsqrt(), 0.0) for g, s in zip(gradients, squares, strict=True)]


@dataclass(frozen=True)
class Noise(Slot):
    """Direction u ~ N(0, I), drawn by the optimizer's generator; no first pass is made."""

    first_pass = False

    def __call__(self, point: Point, state: State) -> list[Tensor]:  # noqa: ARG002
        """U per tensor."""
        return point.noise()
