"""Extreme eigenpairs of a symmetric operator by Lanczos with full reorthogonalization.

`matvec` maps a vector (size,) to a vector (size,), linearly and symmetrically, in `dtype` and on
`device`; `generator` makes every random vector.
"""

import math
from collections.abc import Callable
from numbers import Integral
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from landscape.errors import LandscapeError
from landscape.linalg._krylov import returning
from landscape.linalg._proof import doubt
from landscape.linalg._search import EigenPairs, Search

__all__ = ["TOLERANCE", "WHICH", "Which", "doubt", "top"]

Which = Literal["largest", "smallest", "both", "magnitude"]
WHICH: tuple[Which, ...] = get_args(Which)
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4}


def top(
    matvec: Callable[..., Tensor],
    size: int,
    *,
    k: int,
    generator: torch.Generator,
    which: Which = "largest",
    tolerance: float | None = None,
    max_matvecs: int | None = None,
    failure_probability: float = 0.01,
    max_basis: int | None = None,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
    start: Float[Tensor, "P"] | None = None,
    certificate: Callable[[Tensor], Tensor] | None = None,
    sampled: bool = False,
    sampled_within: float = math.inf,
    like: Tensor | None = None,
    into: bool = False,
) -> EigenPairs:
    """K extreme eigenpairs of the symmetric operator v ↦ matvec(v) on vectors (size,).

    which: "largest" and "smallest" by value, "magnitude" by |λ|, "both" takes ⌈k/2⌉ from the upper
    and ⌊k/2⌋ from the lower end. A first Krylov space runs until the k wanted residual estimates
    are at most tolerance · max|λ| (default 1e-6 in float64, 1e-4 in float32). One starting vector
    shows one copy of a multiple eigenvalue, so the complement is then searched from fresh random
    vectors until the probability that it still hides one that is larger than the smallest found by
    more than tolerance · max|λ| is below `failure_probability`; 1 skips the search.

    The search. First in the complement of the whole space: with HQ = QΘ + q rᵀ, θ and r its Ritz
    values and residual estimates, and C the rest of H in the complement, H has as many eigenvalues
    above x as Θ and C + γ qqᵀ have together, γ = Σ r_i²/(x - θ_i) (inertia of the Schur complement,
    Haynsworth 1968, doi:10.1016/0024-3795(68)90050-5). Few products show that the second has none,
    since all that is large is in Q; they read Q and keep two vectors (all, while these are small).
    For both ends at once C is asked about x - γ. Where it has one, Rayleigh-Ritz in both spaces
    together gives the pairs, x rises to the new smallest, and the same recurrence goes on; where it
    has one above that as well, or kept no vectors, in the complement of the pairs. An eigenvector u
    of λ obeys (u·q_1) Π_j (λ - θ_j) = β_1⋯β_m (u·q_{m+1}), so a hidden λ needs a start q_1 with
    |u·q_1| ≤ Π β_j / Π |λ - θ_j| = t, which a random one has with probability at most t·√(2P/π);
    watching this does not spend it, since all checks ask about one q_1 (for the a-priori rate see
    Kuczyński & Woźniakowski 1992, doi:10.1137/0613066).
    max_basis: vectors held at once beside the k found (default: as many as it takes); beyond it a
    space restarts thick, with more products. A search that long no longer has the bound above.
    `max_matvecs` (default max(300, 30·k)) bounds the products of both; k more give the residuals.

    certificate: H in float64, mapping rows (m, P) to rows; the residuals and values are then those
    of this operator, in float64, whatever the precision of `matvec`. sampled: make one product with
    it instead of k. Residuals R are then those of the recurrence, which claims a matrix W for HV;
    with E = HV - W and g one standard normal vector, product_error = ‖Eg‖, and ‖E‖₂ is at most
    products_off = product_error √(2/π) / δ but for a probability of δ = failure_probability, since
    ‖Eg‖ ≥ ‖E‖₂ |u·g| for a unit u. sampled_within: where a residual and that bound, for δ/2, are
    together above sampled_within · tolerance · max|λ|, a second product is made, product_error then
    being the larger of both and products_off = product_error √(2/π) / √(δ/2); and where that does
    not suffice the others, k in all.

    like: a vector of the space, where it is no ordinary tensor (`landscape.sharding`).
    into: `matvec(v, out)` writes Hv to out, whatever is there, and neither writes nor keeps v. The
    product is then made where it stays: a vector less, and no time for its memory.

    Raises LandscapeError for k outside 1..size, k > max_matvecs, an unknown `which`, sampled
    without a certificate, or a product that is not finite; Interrupted, with the EigenPairs known
    by then, at a KeyboardInterrupt.
    Returns `EigenPairs`, vectors (k, size) of norm 1.

    Example:
        >>> H = torch.diag(torch.tensor([5.0, 3.0, 1.0, -2.0], dtype=torch.float64))
        >>> pairs = linalg.lanczos.top(
        ...     lambda v: H @ v, 4, k=2, generator=torch.Generator().manual_seed(0)
        ... )
        >>> pairs.values.round(decimals=6).tolist(), pairs.converged.tolist()
        ([5.0, 3.0], [True, True])
    """
    limit = max(300, 30 * k) if max_matvecs is None else max_matvecs
    tolerance = TOLERANCE.get(dtype, 1e-4) if tolerance is None else tolerance
    _check_request(k, size, which, limit)
    _check_numbers(tolerance, failure_probability, start, size)
    _check_basis(max_basis, k)
    if sampled and certificate is None:
        raise LandscapeError(
            "sampled=True asks for one product with a certificate, and certificate is None; give "
            "the operator in float64, or leave sampled out."
        )
    search = Search(
        into=matvec if into else returning(matvec),
        size=size,
        k=k,
        which=which,
        tolerance=tolerance,
        limit=limit,
        delta=failure_probability,
        generator=generator,
        dtype=dtype,
        device=torch.device(device),
        certificate=certificate,
        sampled=sampled,
        sampled_within=sampled_within,
        max_basis=max_basis,
        like=torch.empty(0, dtype=dtype, device=device) if like is None else like.to(dtype),
    )
    return search.run(start)


def _check_request(k: int, size: int, which: str, limit: int) -> None:
    if which not in WHICH:
        raise LandscapeError(f"which={which!r} asked; possible are {', '.join(WHICH)}.")
    if not isinstance(k, Integral) or k < 1:
        raise LandscapeError(f"k={k} eigenpairs asked; ask for a whole number, at least 1.")
    if k > size:
        raise LandscapeError(
            f"k={k} eigenpairs asked of an operator of size P={size}, and it has "
            f"{size}; k must be at most {size}."
        )
    if k > limit:
        raise LandscapeError(
            f"k={k} eigenpairs asked of at most {limit} products; allow more than {k} or lower k."
        )


def _check_numbers(tolerance: float, probability: float, start: Tensor | None, size: int) -> None:
    if not 0 < tolerance < 1:
        raise LandscapeError(
            f"tolerance={tolerance} asked; residuals are compared with tolerance · max|λ|, so it "
            f"lies between 0 and 1."
        )
    if not 0 < probability <= 1:
        raise LandscapeError(
            f"failure_probability={probability} asked; it lies above 0 (certainty would take all "
            f"products) and at most at 1 (no search for copies)."
        )
    if start is not None and start.shape != (size,):
        raise LandscapeError(f"start has shape {tuple(start.shape)}; it must be ({size},).")
    if start is not None and not bool(start.any()):
        raise LandscapeError("start is zero; give another vector, or none for a random one.")


def _check_basis(max_basis: int | None, k: int) -> None:
    if max_basis is not None and max_basis < 2 * k + 4:
        raise LandscapeError(
            f"max_basis={max_basis} asked for k={k}; a restart keeps some of the basis and needs "
            f"room to grow, so give at least {2 * k + 4}, or lower k."
        )
