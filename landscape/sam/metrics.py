"""Perturbations that are not one norm ball's: Fisher ellipsoids, and SAGM's matched gradients."""

from dataclasses import dataclass

from torch import Tensor

from landscape.sam.geometry import Geometry, multiplied
from landscape.sam.slot import Slot
from landscape.sam.variant import MaskEntry, Point, apply_mask


@dataclass(frozen=True)
class DiagonalFisher(Slot):
    """Metric T = F^(-1/2), F = 1 + eta g1² (FisherSAM, arXiv:2206.04920), for `Geometry(metric)`.

    Then e = rho F⁻¹ u/√(uᵀ F⁻¹ u), the longest step in the ellipsoid eᵀ F e <= rho².
    """

    eta: float = 1.0
    needs_first_pass = True

    def __call__(self, point: Point) -> list[Tensor]:
        """T per tensor."""
        return [(1 + self.eta * g.square()).rsqrt() for g in point.gradients]


@dataclass(frozen=True)
class SeveralSteps(Slot):
    """Perturbation e = x_k, x_j = x_{j-1} + (rho/k) f_j/‖f_j‖, f_j = mask * ∇L(w + x_{j-1}).

    f_1 = mask * u; each further step costs a pass.
    """

    k: int = 2
    eps: float = 1e-12

    def __call__(
        self, point: Point, u: list[Tensor], mask: list[MaskEntry] | None, rho: float | Tensor
    ) -> list[Tensor | None]:
        """The perturbation per tensor, None where a tensor is not perturbed."""
        one = Geometry(eps=self.eps)
        x = multiplied(one(point, u, mask, rho / self.k))
        for _ in range(self.k - 1):
            climb = multiplied(one(point, point.gradient_at(x), mask, rho / self.k))
            x = [None if a is None or b is None else a + b for a, b in zip(x, climb, strict=True)]
        return x


@dataclass(frozen=True)
class Matched(Slot):
    """Perturbation e = (rho/(‖f‖ + eps) - alpha) f, f = mask * u (SAGM, arXiv:2303.10353).

    Ascending by rho and descending by alpha at once matches the gradients of both losses.
    """

    alpha: float = 0.001
    eps: float = 1e-12

    def __call__(
        self, point: Point, u: list[Tensor], mask: list[MaskEntry] | None, rho: float | Tensor
    ) -> list[Tensor | None]:
        """The perturbation per tensor, None where a tensor is not perturbed."""
        f = apply_mask(u, mask)
        norm = point.norm_of(f)
        scales = point.scales or [1.0] * len(f)
        return [
            None if x is None else x * (s * (rho / (norm + self.eps)) - self.alpha).to(x.dtype)
            for x, s in zip(f, scales, strict=True)
        ]
