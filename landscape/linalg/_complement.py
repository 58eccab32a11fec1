"""What lies outside of a Krylov space, seen by a recurrence of its own that keeps two vectors."""

import torch
from torch import Tensor

from landscape import vectors
from landscape.linalg._krylov import Krylov, Ritz, read


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
        # The edge, and the last two vectors in turn: taken off a product together.
        self.rows = space.basis.like.new_zeros((3, space.size))
        self.rows[0].copy_(space.next)
        self.rows[1].copy_(space.fresh())
        self.alpha: list[Tensor] = []
        self.beta: list[Tensor] = []

    @property
    def v(self) -> Tensor:
        """The newest vector."""
        return self.rows[1 + len(self.alpha) % 2]

    def step(self) -> None:
        space, v, last = self.space, self.v, len(self.alpha) % 2
        w = space.matvec(v.clone()).to(space.device, space.dtype)
        along, within = vectors.dots([self.rows[0], v], [v, w])
        lifted = self.pull * along
        self.alpha.append(within + lifted * along)
        before = self.beta[-1] if self.beta else 0 * within
        ends = [before, self.alpha[-1]] if last else [self.alpha[-1], before]
        w = vectors.without(w, self.rows, torch.stack([-lifted, *ends]))
        w, _, beta = space.clear(w, self.num_rows)
        self.beta.append(beta)
        self.v.copy_(w / beta)

    def settle(self) -> Ritz:
        """Eigenvalues of the recurrence, of which a random start is all where it breaks down."""
        eps = torch.finfo(self.space.dtype).eps
        known = read(self.alpha, self.beta, 0, self.room, self.space.scale, 10 * eps)
        alpha, beta = known.alpha, known.beta
        T = torch.diag(alpha) + torch.diag(beta[:-1], 1) + torch.diag(beta[:-1], -1)
        values, Y = torch.linalg.eigh(T)
        scale = max(known.scale, float(values.abs().max()))
        return Ritz(values, (beta[-1] * Y[-1]).abs(), Y, scale, beta.log().sum())
