"""What products with another operator, usually H in float64, prove of pairs that were found."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from landscape import vectors

# Rows (m, P) to rows, in float64.
Product = Callable[[Tensor], Tensor]


def doubt(product_error: float, failure_probability: float, samples: int = 1) -> float:
    """What ‖E‖₂ is at most but for that probability, from max ‖Eg_i‖ of standard normal g_i.

    ‖Eg‖ ≥ ‖E‖₂·|z| with z standard normal along E's first right singular vector, and of r of them
    P(all |z_i| < t) ≤ (√(2/π)·t)^r. product_error: max ‖Eg_i‖. failure_probability: of the bound;
    0.01 in place of 1, which asks for no search. samples: r. arXiv:0909.4061, Lemma 4.1.

    Example:
        >>> from landscape.linalg import lanczos
        >>> round(lanczos.doubt(1.0, 0.01), 2), round(lanczos.doubt(1.0, 0.01, samples=2), 2)
        (79.79, 7.98)
    """
    allowed = failure_probability if failure_probability < 1 else 0.01
    return product_error * math.sqrt(2 / math.pi) / allowed ** (1 / samples)


@dataclass(frozen=True)
class Claimed:
    """Pairs as recurrences have them: Hv_i = θ_i v_i + Σ_j tails[i, j] edges[j]."""

    values: Float[Tensor, "k"]
    vectors: Float[Tensor, "k P"]
    tails: Float[Tensor, "k e"]
    edges: Float[Tensor, "e P"]

    def through(self, product: Product, C: Tensor) -> Tensor:
        """The product's rows of C V, in float64; of one vector without a wide copy of it."""
        if len(self.vectors) == 1:
            return product(self.vectors).to(torch.float64).mul_(float(C))
        nothing = torch.zeros_like(self.vectors[:1], dtype=torch.float64).repeat(len(C), 1)
        return product(vectors.subtract_(nothing, -C, self.vectors)).to(torch.float64)

    def without_(self, rows: Tensor, C: Tensor) -> Tensor:
        """Float64 rows less C H V as claimed, in their place."""
        rows = vectors.subtract_(rows, C * self.values, self.vectors)
        return vectors.subtract_(rows, C @ self.tails, self.edges)

    def ritz(self) -> tuple[Tensor, Tensor, Tensor]:
        """(values, turn, gram of the residuals): no vectors are needed."""
        V, E, along, tails = self.vectors, self.edges, torch.diag(self.values), self.tails
        count, more = len(V), len(E)
        grams = [vectors.gram(V).flatten(), vectors.gram(V, E).flatten(), vectors.gram(E).flatten()]
        G, L, N = torch.cat(grams).to("cpu").split([count * count, count * more, more * more])
        G, L, N = G.view(count, count), L.view(count, more), N.view(more, more)
        values, turn = _rayleigh_ritz(G, G @ along + L @ tails.T)
        # R = A V + B E, small as they are.
        A, B = turn @ along - values[:, None] * turn, turn @ tails
        cross = A @ L @ B.T
        return values, turn, A @ G @ A.T + cross + cross.T + B @ N @ B.T


@dataclass(frozen=True)
class Proven:
    """Eigenvalues in descending order; turn (k, k): what makes their vectors of those found.

    gram: RRᵀ of the residuals R. products: how many were made. error: largest measured ‖Eg‖ of what
    a claim is off, and off: what ‖E‖₂ is at most; nan where all products were made.
    """

    values: Tensor
    turn: Tensor
    gram: Tensor
    products: int
    error: float = math.nan
    off: float = math.nan

    @property
    def residuals(self) -> Tensor:
        """Norms (k,)."""
        return self.gram.diagonal().clamp(min=0).sqrt()


def whole(V: Float[Tensor, "k P"], HV: Float[Tensor, "k P"]) -> Proven:
    """Residuals by a product with each vector; HV is overwritten."""
    G, M = torch.stack([vectors.gram(V), vectors.gram(V, HV)]).to("cpu")
    values, turn = _rayleigh_ritz(G, M)
    R = vectors.subtract_(vectors.combine_(turn, HV), values[:, None] * turn, V)
    return Proven(values, turn, vectors.gram(R).to("cpu"), len(V))


def sampled(
    claim: Claimed,
    product: Product,
    *,
    delta: float,
    generator: torch.Generator,
    enough: Callable[[Proven], bool] | None = None,
) -> Proven:
    """Residuals of the recurrences, with how far one product is from theirs, or two, or all k.

    enough: whether what one shows suffices; if not a second is made, whose bound is ten times as
    close at a delta of 0.01, and if not then the others. Each of the two tests has half of delta.
    None: one product. Along orthonormal directions of V that span the normal ones, so that
    the first products belong to all of them.
    """
    count = len(claim.values)
    most = 1 if enough is None else min(2, max(1, count - 1))
    values, turn, gram = claim.ritz()
    normal = torch.randn(most, count, generator=generator, dtype=torch.float64)
    # normal = Rᵀ Qᵀ, and the other columns of Q go on to a basis.
    Q, R = torch.linalg.qr(normal.T, mode="complete")
    directions = Q.T @ turn
    share = (delta if delta < 1 else 0.01) / most
    made, off = [], []
    for samples in range(1, most + 1):
        row = directions[samples - 1 : samples]
        found = claim.through(product, row)
        if enough is not None:
            made.append(found.clone())
        off.append(claim.without_(found, row))
        L = R[:samples, :samples].T
        squares = (L @ vectors.gram(torch.cat(off)).to("cpu") @ L.T).diagonal()
        error = float(squares.clamp(min=0).max().sqrt())
        bound = doubt(error, share, samples)
        proven = Proven(values, turn, gram, samples, error, bound)
        if enough is None or enough(proven):
            return proven
    off.clear()
    if most < count:
        made.append(claim.through(product, directions[most:]))
    HV = vectors.combine_(torch.linalg.inv(directions), torch.cat(made))
    return whole(claim.vectors, HV)


def _rayleigh_ritz(gram: Tensor, projected: Tensor) -> tuple[Tensor, Tensor]:
    """(values, turn) of VHVᵀ, V of any Gram matrix that is nearly the identity."""
    upright = torch.linalg.inv(torch.linalg.cholesky(gram))
    small = upright @ projected @ upright.T
    values, turn = torch.linalg.eigh((small + small.T) / 2)
    return values.flip(0), turn.flip(1).T @ upright
