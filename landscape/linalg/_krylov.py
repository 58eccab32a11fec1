"""An orthonormal Krylov basis that survives breakdown, kept orthogonal to given vectors."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from landscape import devices, vectors
from landscape.errors import LandscapeError
from landscape.linalg._basis import Basis


@dataclass(frozen=True)
class Ritz:
    """Eigenpairs of the projected operator: values ascending, residual estimates, coefficients.

    `log_betas` is the logarithm of the product of all β, -inf after an invariant subspace.
    """

    values: Tensor
    residuals: Tensor
    coefficients: Tensor
    scale: float
    log_betas: Tensor


@dataclass(frozen=True)
class Recurrence:
    """Coefficients on the host up to the first breakdown, where β is then 0."""

    alpha: Tensor
    beta: Tensor
    scale: float
    broke_down: bool


def read(
    alpha: list[Tensor], beta: list[Tensor], first: int, room: int, scale: float, tiny: float
) -> Recurrence:
    """The coefficients, of which those before `first` are known; waits for the device once.

    A recurrence breaks down at a β of at most tiny · scale, and where it filled its room.
    """
    both = torch.stack([*alpha, *beta]).to("cpu", torch.float64)
    a, b = both.split([len(alpha), len(beta)])
    for j in range(first, len(a)):
        if not torch.isfinite(a[j]) or not torch.isfinite(b[j]):
            raise LandscapeError(
                f"The operator's product number {j + 1} is not finite; check the loss and its "
                f"derivatives at this theta, or use float64."
            )
        scale = max(scale, abs(float(a[j])), float(b[j]))
        if float(b[j]) <= tiny * scale or j + 1 == room:
            a, b = a[: j + 1], b[: j + 1].clone()
            b[j] = 0.0
            return Recurrence(a, b, scale, True)
    return Recurrence(a, b, scale, False)


# (v, out): writes Hv to out; neither writes nor keeps v, nor keeps out.
Into = Callable[[Tensor, Tensor], object]


def returning(matvec: Callable[[Tensor], Tensor]) -> Into:
    """The same of a matvec that returns, which may write what it is given and keep both."""

    def into(v: Tensor, out: Tensor) -> None:
        found = matvec(v.clone())
        if found.shape != out.shape:
            raise LandscapeError(
                f"The operator returned a tensor of shape {tuple(found.shape)} for a vector of "
                f"shape {tuple(v.shape)}; it has to return one of the same shape."
            )
        out.copy_(found)

    return into


class Krylov:
    """Lanczos recurrence with full reorthogonalization in the complement of `locked` (n, size).

    `step` never waits for the device; `settle` does, once, and there mends a breakdown: where the
    space became invariant it continues from a random vector orthogonal to all that is there.
    `into` reads a row of the basis and writes the next: fresh memory for a long vector costs as
    much as what is done with it.
    `compress` restarts it thick: chosen Ritz vectors, which the next vector couples like an arrow,
    take the place of the basis (Wu & Simon 2000, doi:10.1137/S0895479898334605).
    """

    def __init__(
        self,
        into: Into,
        size: int,
        *,
        locked: Tensor,
        scale: float,
        generator: torch.Generator,
        dtype: torch.dtype,
        device: torch.device,
        start: Tensor | None = None,
        max_basis: int | None = None,
    ) -> None:
        self.into, self.size, self.generator = into, size, generator
        self.dtype, self.device = dtype, device
        self.may_look = not devices.is_accelerator(device)
        room = None if max_basis is None else max_basis + 1
        self.basis = Basis(locked.to(device, dtype), room)
        self.begin(len(locked), scale, start)

    def begin(self, num_locked: int, scale: float, start: Tensor | None = None) -> None:
        """No steps yet, in the complement of the first rows."""
        self.num_locked, self.scale = num_locked, scale
        self.alpha: list[Tensor] = []
        self.beta: list[Tensor] = []
        self.head = torch.empty(0, dtype=torch.float64)
        self.arrow = torch.empty(0, dtype=torch.float64)
        self.exhausted = self.size == self.num_locked
        self.num_settled = 0
        self.compressed: Ritz | None = None
        if not self.exhausted:
            if start is None:
                first = self.fresh()
            else:
                given = start.to(self.device, self.dtype, copy=True)
                first = self.orthogonal_(given.reshape(-1))
            self.basis.put(self.num_locked, first)

    @property
    def num_steps(self) -> int:
        return len(self.head) + len(self.alpha)

    def release(self) -> None:
        """Forget the vectors: room for what comes next."""
        self.basis = Basis(self.basis.like[:0])

    def clear_(self, w: Tensor, num_rows: int) -> tuple[Tensor, Tensor, Tensor]:
        """W, in place, without its part in the first rows; that part's coefficients; what is left.

        Again where more was taken than is left (Daniel, Gragg, Kaufman & Stewart 1976,
        doi:10.1090/S0025-5718-1976-0431641-8): rounding of what was taken then counts. On a device
        always again: that is cheaper than to wait for the norms.
        """
        w, overlaps = self.basis.without_(w, 0, num_rows)
        (left,) = vectors.lengths([w])
        if self.may_look and bool(vectors.norm(overlaps) <= left):
            return w, overlaps, left
        w, more = self.basis.without_(w, 0, num_rows)
        return w, overlaps + more, vectors.lengths([w])[0]

    def orthogonal_(self, w: Tensor) -> Tensor:
        """W, in place, of norm 1 without its part in all that is there."""
        w, _, left = self.clear_(w, self.num_locked + self.num_steps)
        return w.div_(left)

    def fresh(self) -> Tensor:
        draw = partial(
            torch.randn, generator=self.generator, device=self.generator.device, dtype=self.dtype
        )
        drawn = vectors.drawn(draw, self.basis.like)
        return self.orthogonal_(drawn)

    def step(self) -> None:
        row = self.num_locked + self.num_steps
        w = self.basis.at(row + 1)
        self.into(self.basis[row], w)
        # What the recurrence knows comes first: beside it the part in all rows is rounding alone,
        # of this projection too, and one projection usually does.
        w, near = self.basis.without_(w, max(self.num_locked, row - 1), row + 1)
        w, overlaps, beta = self.clear_(w, row + 1)
        self.alpha.append(near[-1] + overlaps[row])
        self.beta.append(beta)
        w.div_(beta)

    def settle(self) -> Ritz:
        if self.compressed is not None and not self.alpha:
            return self.compressed
        eps = torch.finfo(self.dtype).eps
        room = self.size - self.num_locked - len(self.head)
        known = read(self.alpha, self.beta, self.num_settled, room, self.scale, 10 * eps)
        alpha, beta, self.scale = known.alpha, known.beta, known.scale
        if known.broke_down:
            self.restart(len(alpha), room)
        self.num_settled = len(alpha)
        T, first = torch.diag(torch.cat([self.head, alpha])), len(self.head)
        tail = range(first, len(T) - 1)
        T[tail, [i + 1 for i in tail]] = T[[i + 1 for i in tail], tail] = beta[:-1]
        T[first, :first] = T[:first, first] = self.arrow
        values, Y = torch.linalg.eigh(T)
        scale = max(self.scale, float(values.abs().max()))
        # After a thick restart the basis is no longer the powers of one vector.
        log_betas = torch.tensor(float("inf")) if first else beta.log().sum()
        return Ritz(values, (beta[-1] * Y[-1]).abs(), Y, scale, log_betas)

    def compress(self, ritz: Ritz, chosen: Tensor) -> Ritz:
        """Keep chosen Ritz vectors and the next vector; the same pairs of what is left."""
        Y, steps, at = ritz.coefficients[:, chosen], self.num_steps, self.num_locked
        self.basis.turn(Y.T, at)
        self.basis.put(at + len(chosen), self.basis[at + steps].clone())
        last = self.beta[-1].to("cpu", torch.float64)
        self.head, self.arrow = ritz.values[chosen], last * Y[-1]
        self.alpha, self.beta, self.num_settled = [], [], 0
        self.compressed = Ritz(
            ritz.values[chosen],
            ritz.residuals[chosen],
            torch.eye(len(chosen), dtype=Y.dtype),
            ritz.scale,
            ritz.log_betas,
        )
        return self.compressed

    def restart(self, num_steps: int, room: int) -> None:
        """Forget what came after an invariant subspace and continue outside of it."""
        self.alpha, self.beta = self.alpha[:num_steps], self.beta[:num_steps]
        self.beta[-1] = torch.zeros_like(self.beta[-1])
        if num_steps >= room:
            self.exhausted = True
        else:
            self.basis.put(self.num_locked + self.num_steps, self.fresh())

    def combine(self, ritz: Ritz, chosen: Tensor) -> Tensor:
        """Ritz vectors (len(chosen), size) of norm 1."""
        return self.basis.combine(ritz.coefficients[:, chosen].T, self.num_locked)

    def tails(self, ritz: Ritz, chosen: Tensor) -> Tensor:
        """What H times each Ritz vector has along the edges, beside θ times itself."""
        if not self.beta:
            return self.arrow[chosen][:, None]
        return self.beta[-1].to("cpu", torch.float64) * ritz.coefficients[-1, chosen][:, None]

    @property
    def edges(self) -> Tensor:
        """The next vector, a row."""
        return self.next[None]

    @property
    def next(self) -> Tensor:
        return self.basis[self.num_locked + self.num_steps]
