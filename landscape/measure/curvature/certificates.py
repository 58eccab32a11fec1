"""Error bounds of eigenvalues: residuals in float64, whatever precision the search ran in."""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from landscape import devices
from landscape.checks import check_choice
from landscape.errors import LandscapeError
from landscape.linalg.lanczos import EigenPairs
from landscape.measure.curvature.operator import Operator, Spans
from landscape.risk import EmpiricalRisk

CERTIFY = ("float64", "working", "none")
# A product in float64 takes two to four of float32. "auto" makes one instead of k from so many
# parameters on; and from so many weights times examples on where what it shows keeps the tolerance.
LARGE, COSTLY = 10_000_000, 10_000_000


@dataclass(frozen=True)
class Certificate:
    """`bounds` (k,): what each eigenvalue is off at most; `product_error`: ‖(H₃₂ - H₆₄)V g‖, the
    larger where there are two.

    product_error is 0 where residuals were made in float64 and nan where nothing was measured.
    """

    bounds: Float[Tensor, "k"]
    product_error: float


def chosen(certify: str, risk: EmpiricalRisk, k: int) -> tuple[str, dict[str, str]]:
    """The certificate that `certify` means for this risk, and why where it was left open.

    "auto" where one float64 product is made first and what it shows decides (`made`).
    """
    check_choice("certify", certify, ("auto", *CERTIFY))
    size = risk.layout.num_parameters
    if certify != "auto":
        return certify, {}
    if risk.dtype == torch.float64 or (size < LARGE and size * risk.num_examples < COSTLY):
        return "float64", {}
    if size < LARGE:
        return ("auto" if k > 1 else "float64"), {}
    return "working", {"certify_reason": f"auto: P={size}, one float64 product for k={k}"}


def made(certify: str, pairs: EigenPairs) -> dict[str, str]:
    """What was made where `chosen` left it to the first float64 product, for the provenance."""
    if certify != "auto":
        return {}
    if pairs.interrupted:
        return {"certify": "none", "certify_reason": "auto: interrupted before any product of it"}
    if math.isfinite(pairs.product_error):
        products = "one float64 product keeps" if pairs.proof_matvecs == 1 else "two keep"
        why = f"auto: of k={len(pairs.values)} float64 products {products} the tolerance"
        return {"certify": "working", "certify_reason": why}
    return {"certify": "float64", "certify_reason": "auto: fewer float64 products did not suffice"}


def float64_products(
    risk: EmpiricalRisk,
    theta: Float[Tensor, "P"],
    *,
    matrix: str = "hessian",
    index: Int[Tensor, "n"] | Spans | None = None,
    keep: bool = False,
    instead: Operator | None = None,
) -> Callable[[Float[Tensor, "k n"]], Float[Tensor, "k n"]] | None:
    """Rows V -> MV at theta in float64, by a twin of the risk; its cost counts as the risk's.

    None where the model works in float32 alone: residuals are then those of the working precision.

    keep: hold the graph for further calls. Else each batch's is freed after the products of a call.
    instead: products that are over by then, whose graphs are let go.
    """
    if not risk.probe().has_float64:
        return None

    # Both at the first use, after the search has freed what it held.
    @functools.cache
    def twin() -> EmpiricalRisk:
        return risk.with_dtype(torch.float64)

    @functools.cache
    def kept() -> Operator:
        return Operator.of(twin(), theta, matrix=matrix)

    def product(V: Float[Tensor, "k n"]) -> Float[Tensor, "k n"]:
        if instead is not None:
            instead.release()
            devices.trim(8 * len(theta))
        before = twin().cost
        once = Operator(lambda rows: twin().hvp(theta, rows), len(theta), None)
        operator = kept() if keep or matrix != "hessian" else once
        try:
            HV = (operator if index is None else operator.block(index))(V)
        except RuntimeError as error:
            raise LandscapeError(
                f"certify='float64' asked, but the model or loss fails in float64 "
                f"({str(error).splitlines()[0]}); let it follow the dtype of its inputs, or use "
                f"certify='none' for residuals in {str(risk.dtype)[6:]}."
            ) from error
        risk.spend(twin().cost - before)
        return HV

    return product


def sound(pairs: EigenPairs, risk: EmpiricalRisk, matrix: str = "hessian") -> EigenPairs:
    """The pairs, none converged where the probe says that the matrix is not that of the loss."""
    if not risk.probe().reasons(matrix):
        return pairs
    return replace(pairs, converged=torch.zeros_like(pairs.converged))


def certify(pairs: EigenPairs, risk: EmpiricalRisk, *, how: str) -> Certificate:
    """Bounds ‖r_i‖ + rounding, and with "working" what the products may be off at most.

    Rounding of float64: 10 eps √P max |lambda|. "working" adds a bound of ‖H₆₄V - H₃₂V‖₂ that one
    or two products give (`linalg.lanczos.top`).
    """
    scale = float(pairs.values.abs().max()) if len(pairs.values) else 0.0
    size = risk.layout.num_parameters
    rounding = 10 * torch.finfo(torch.float64).eps * math.sqrt(size) * scale
    bounds = pairs.residual_norms.double() + rounding
    if pairs.interrupted:
        return Certificate(torch.full_like(bounds, math.nan), math.nan)
    if risk.dtype == torch.float64:
        return Certificate(bounds, 0.0)
    if how == "none" or not risk.probe().has_float64:
        return Certificate(bounds, math.nan)
    if how == "float64":
        return Certificate(bounds, 0.0)
    if math.isnan(pairs.product_error):  # one pair: its own product was made
        return Certificate(bounds, 0.0)
    return Certificate(bounds + pairs.products_off, pairs.product_error)
