"""What lies outside of a Krylov space, seen by a recurrence of its own; both together."""

import torch
from torch import Tensor

from landscape import vectors
from landscape.linalg._basis import Basis
from landscape.linalg._krylov import Krylov, Ritz, read

_KEPT = 2**24  # numbers in vectors that a search keeps at most beside the basis


class Complement:
    """Lanczos recurrence of C + pull · qqᵀ from a random vector, C what H is outside of `space`.

    The space of basis Q meets its complement in the next vector q alone: HQ = QT + qbᵀ. Its basis
    is read, not extended: how large the component of an eigenvector in the start may be follows
    from α and β, whether or not the vectors stay orthogonal, so that only two of them are kept.
    `step` never waits for the device; `settle` does, once.
    """

    def __init__(self, space: Krylov, pull: float) -> None:
        self.space, self.pull = space, pull
        self.num_rows = space.num_locked + space.num_steps
        self.room = space.size - self.num_rows
        # The last two vectors in turn, taken off a product together, and the product.
        first = space.fresh()
        spare = space.basis.spare(self.num_rows + 1, 3)
        self.rows, self.made = spare[:2], spare[2]
        self.rows[0].copy_(first)
        self.alpha: list[Tensor] = []
        self.beta: list[Tensor] = []
        self.along: list[Tensor] = []
        self.kept = Basis(space.basis.like[:0], _KEPT // space.size)

    @property
    def is_kept(self) -> bool:
        """Whether no vector was let go."""
        return len(self.alpha) * self.space.size <= _KEPT

    @property
    def v(self) -> Tensor:
        """The newest vector."""
        return self.rows[len(self.alpha) % 2]

    def step(self) -> None:
        space, v, w, last = self.space, self.v, self.made, len(self.alpha) % 2
        space.into(v, w)
        along, within = vectors.dots([space.next, v], [v, w])
        lifted = self.pull * along
        self.alpha.append(within + lifted * along)
        before = self.beta[-1] if self.beta else 0 * within
        ends = [before, self.alpha[-1]] if last else [self.alpha[-1], before]
        if self.pull:
            w = vectors.without_(w, space.edges, -lifted[None])
        w = vectors.without_(w, self.rows, torch.stack(ends))
        w, _, beta = space.clear_(w, self.num_rows)
        self.along.append(along)
        if self.is_kept:
            self.kept.put(len(self.alpha) - 1, v)
            w, _ = self.kept.without_(w, 0, len(self.alpha))
            (beta,) = vectors.lengths([w])
        else:
            self.kept = Basis(space.basis.like[:0])
        self.beta.append(beta)
        self.v.copy_(w.div_(beta))

    def settle(self) -> Ritz:
        """Eigenvalues of the recurrence, of which a random start is all where it breaks down."""
        eps = torch.finfo(self.space.dtype).eps
        known = read(self.alpha, self.beta, 0, self.room, self.space.scale, 10 * eps)
        alpha, beta = known.alpha, known.beta
        T = torch.diag(alpha) + torch.diag(beta[:-1], 1) + torch.diag(beta[:-1], -1)
        values, Y = torch.linalg.eigh(T)
        scale = max(known.scale, float(values.abs().max()))
        return Ritz(values, (beta[-1] * Y[-1]).abs(), Y, scale, beta.log().sum())


class Union:
    """Rayleigh-Ritz in a Krylov space and what was seen of its complement together.

    Ritz vectors QY of the space have HQY = QYΘ + qtᵀ, and the recurrence has
    HW = WT + β_s v e_sᵀ - pull · qaᵀ + QYtaᵀ, so that the matrix of both together is
    [[Θ, taᵀ], [atᵀ, T - pull · aaᵀ]].
    """

    def __init__(self, rest: Complement, seen: Ritz, ritz: Ritz) -> None:
        self.rest, self.space, self.within = rest, rest.space, ritz
        t = self.space.tails(ritz, torch.arange(len(ritz.values)))[:, 0]
        self.a = torch.stack(rest.along[: len(seen.values)]).to("cpu", torch.float64)
        T = seen.coefficients @ torch.diag(seen.values) @ seen.coefficients.T
        T = T - rest.pull * torch.outer(self.a, self.a)
        across = torch.outer(t, self.a)
        M = torch.cat(
            [torch.cat([torch.diag(ritz.values), across], 1), torch.cat([across.T, T], 1)]
        )
        values, Z = torch.linalg.eigh(M)
        self.inner, self.outer = Z[: len(t)], Z[len(t) :]
        broke_down = torch.isinf(seen.log_betas)
        last = 0.0 if broke_down else float(rest.beta[-1])
        self.ends = torch.stack([t @ self.inner - rest.pull * (self.a @ self.outer), last * Z[-1]])
        residuals = self.ends[0].abs() * (1 - self.a @ self.a).clamp(min=0).sqrt()
        residuals = residuals + self.ends[1].abs()
        self.ritz = Ritz(values, residuals, Z, max(ritz.scale, seen.scale), seen.log_betas)

    def combine(self, _: Ritz, chosen: Tensor) -> Tensor:
        """Ritz vectors (len(chosen), size) of norm 1."""
        rows = (self.within.coefficients @ self.inner[:, chosen]).T
        found = self.space.basis.combine(rows, self.space.num_locked)
        return found.add_(self.rest.kept.combine(self.outer[:, chosen].T, 0))

    def tails(self, _: Ritz, chosen: Tensor) -> Tensor:
        """What H times each Ritz vector has along the edges, beside θ times itself."""
        return self.ends[:, chosen].T

    @property
    def edges(self) -> Tensor:
        """(q - Wa, the newest vector of the recurrence), rows."""
        q = self.space.edges - self.rest.kept.combine(self.a[None], 0)
        return torch.cat([q, self.rest.v[None]])
