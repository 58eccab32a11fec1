"""Error bounds of eigenvalues: residuals in float64, whatever precision the search ran in."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from landscape.errors import LandscapeError
from landscape.linalg.lanczos import EigenPairs
from landscape.measure._inside import spend
from landscape.measure.gauss_newton import Operator
from landscape.risk import EmpiricalRisk

CERTIFY = ("float64", "working", "none")


@dataclass(frozen=True)
class Certificate:
    """`bounds` (k,): what each eigenvalue is off at most; `product_error`: ‖H₃₂v - H₆₄v‖ measured.

    product_error is 0 where residuals were made in float64 and nan where nothing was measured.
    """

    bounds: Float[Tensor, "k"]
    product_error: float
    num_matvecs: int


def float64_products(
    risk: EmpiricalRisk,
    theta: Float[Tensor, "P"],
    *,
    matrix: str = "hessian",
    index: Int[Tensor, "n"] | None = None,
) -> Callable[[Float[Tensor, "k n"]], Float[Tensor, "k n"]]:
    """Rows V -> MV at theta in float64, by a twin of the risk; its cost counts as the risk's."""
    twin = risk.with_dtype(torch.float64)
    kept: list[Operator] = []

    def product(V: Float[Tensor, "k n"]) -> Float[Tensor, "k n"]:
        before = twin.cost
        try:
            # Made at the first use, after the search has freed what it held.
            kept[:] = kept or [Operator.of(twin, theta.double(), matrix=matrix)]
            HV = (kept[0] if index is None else kept[0].block(index))(V.double())
        except RuntimeError as error:
            raise LandscapeError(
                f"certify='float64' asked, but the model or loss fails in float64 "
                f"({str(error).splitlines()[0]}); let it follow the dtype of its inputs, or use "
                f"certify='none' for residuals in {str(risk.dtype)[6:]}."
            ) from error
        spend(risk, twin.cost - before)
        return HV

    return product


def certify(
    pairs: EigenPairs,
    risk: EmpiricalRisk,
    theta: Float[Tensor, "P"],
    operator: Operator,
    *,
    how: str,
    matrix: str = "hessian",
) -> Certificate:
    """Bounds ‖r_i‖ + rounding, and with "working" the product's error at the first vector added.

    Rounding of float64: 10 eps √P max |lambda|.
    """
    scale = float(pairs.values.abs().max()) if len(pairs.values) else 0.0
    rounding = 10 * torch.finfo(torch.float64).eps * math.sqrt(theta.numel()) * scale
    bounds = pairs.residual_norms.double() + rounding
    if risk.dtype == torch.float64 or how == "float64":
        return Certificate(bounds, 0.0, 0)
    if how == "none":
        return Certificate(bounds, math.nan, 0)
    v = pairs.vectors[:1]
    exact = float64_products(risk, theta, matrix=matrix, index=operator.index)(v)
    error = float(torch.linalg.vector_norm(exact - operator(v).double()))
    return Certificate(bounds + error, error, 2)
