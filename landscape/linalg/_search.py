"""The search for extreme eigenpairs: a first Krylov space, its complement, the proof."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from landscape import devices, vectors
from landscape.errors import Interrupted
from landscape.linalg._krylov import Krylov, Ritz

_SAFETY = 0.9  # what rounding adds to an estimated residual is less than the rest


@dataclass(frozen=True)
class EigenPairs:
    """Eigenvalues in descending order with what is known of their error.

    For each i some exact eigenvalue lies within residual_norms[i] = ‖Hv_i - λ_i v_i‖ of values[i]
    (H symmetric, ‖v_i‖ = 1). `converged[i]` claims two things: that residual is at most
    tolerance · max|λ|, and `complete`, that no eigenvalue which belongs to the answer was passed
    over. `subspace_bound` is ‖HV - VΛ‖₂: k eigenvalues of H, counted with multiplicity, pair off
    with the k values within it (Parlett, The Symmetric Eigenvalue Problem, Theorem 11.5.1).
    `num_matvecs` counts all products: `search_matvecs` of them by `restarts` searches for what was
    passed over, of which the last would have missed it with probability `failure_probability`
    (nan without a finished search), and those of the residuals. `product_error`: the measured error
    of the products, see the certificates of `top`. `interrupted`: what was known when the
    search was broken off; the residuals are then estimates of the recurrence, and nothing is
    claimed.

    Example:
        >>> H = torch.diag(torch.tensor([5.0, 3.0, 1.0, -2.0], dtype=torch.float64))
        >>> pairs = linalg.lanczos.top(
        ...     lambda v: H @ v, 4, k=1, generator=torch.Generator().manual_seed(0)
        ... )
        >>> tuple(pairs.vectors.shape), bool((pairs.residual_norms < 1e-9).all())
        ((1, 4), True)
    """

    values: Float[Tensor, "k"]
    vectors: Float[Tensor, "k P"]
    residual_norms: Float[Tensor, "k"]
    converged: Bool[Tensor, "k"]
    num_matvecs: int
    complete: bool
    subspace_bound: float
    restarts: int
    search_matvecs: int
    failure_probability: float
    product_error: float = math.nan
    interrupted: bool = False


def _wanted(values: Tensor, k: int, which: str) -> Tensor:
    """Indices of the wanted among `values`, in descending order of value."""
    order = torch.argsort(values, descending=True)
    if len(order) <= k:
        return order
    if which == "largest":
        return order[:k]
    if which == "smallest":
        return order[-k:]
    if which == "both":
        upper = -(-k // 2)
        return torch.cat([order[:upper], order[len(order) - (k - upper) :]])
    by_size = torch.argsort(values.abs(), descending=True)[:k]
    return by_size[torch.argsort(values[by_size], descending=True)]


@dataclass
class Search:
    matvec: Callable[[Tensor], Tensor]
    size: int
    k: int
    which: str
    tolerance: float
    limit: int
    delta: float
    generator: torch.Generator
    dtype: torch.dtype
    device: torch.device
    certificate: Callable[[Tensor], Tensor] | None
    sampled: bool
    max_basis: int | None
    like: Tensor

    def run(self, start: Tensor | None) -> EigenPairs:
        self.used, self.scale = 0, 0.0
        self.restarts, self.risk = 0, math.nan
        self.values = torch.empty(0, dtype=torch.float64)
        self.vectors = self.like.new_empty((0, self.size))
        self.estimates, self.images, self.first = self.values, self.vectors, 0
        space = self.krylov(start)
        try:
            ritz = self.extend(space, self.settled)
            self.first = self.used
            complete = self.delta >= 1 or self.sealed(space, ritz)
            while not complete and self.used < self.limit and len(self.values) < self.size:
                self.found_none = False
                self.restarts += 1
                space.release()
                space = self.krylov(None)
                self.extend(space, self.searched)
                complete = self.found_none
            space.release()
            return self.finish(complete or len(self.values) == self.size)
        except KeyboardInterrupt as stop:
            raise Interrupted("The search was interrupted.", self.partial(space)) from stop

    def krylov(self, start: Tensor | None) -> Krylov:
        return Krylov(
            self.matvec,
            self.size,
            locked=self.vectors,
            scale=self.scale,
            generator=self.generator,
            dtype=self.dtype,
            device=self.device,
            start=start,
            max_basis=self.max_basis,
        )

    def extend(self, space: Krylov, enough: Callable[[Ritz, bool], bool]) -> Ritz:
        """Grow a Krylov space until `enough`, then keep the wanted of old and new pairs."""
        due, room = max(1, self.k - len(self.values)), self.size - len(self.values)
        while True:
            while space.num_steps < min(due, room):
                space.step()
                self.used += 1
            ritz = space.settle()
            self.scale = max(self.scale, ritz.scale)
            # Even a spent budget has to yield k pairs, which a breakdown may have shortened.
            spent = self.used >= self.limit and len(self.values) + len(ritz.values) >= self.k
            if enough(ritz, space.exhausted) or spent:
                break
            if self.max_basis is not None and space.num_steps >= self.max_basis:
                self.thicken(space, ritz, self.max_basis)
            steps = space.num_steps
            due = max(steps + 1, min(steps + self.stride(steps), steps + self.limit - self.used))
            due = due if self.max_basis is None else min(due, self.max_basis)
        self.keep(space, ritz)
        return ritz

    def stride(self, steps: int) -> int:
        """Steps to the next look, which a GPU has to wait for."""
        waits = devices.is_accelerator(self.device)
        return max(2, steps // 8) if waits else max(1, steps // 16)

    def thicken(self, space: Krylov, ritz: Ritz, full: int) -> Tensor:
        """Keep half of a full basis; indices of the kept."""
        chosen = _wanted(ritz.values, self.k + (full - self.k) // 2, self.which)
        space.compress(ritz, chosen)
        return chosen

    def sealed(self, space: Krylov, ritz: Ritz) -> bool:
        """Whether nothing outside of a space changes how many eigenvalues pass the smallest found.

        False settles nothing: then the complement of the pairs alone has to be searched.
        """
        if space.exhausted:
            self.risk = 0.0
            return True
        if self.used >= self.limit:
            return False
        self.restarts += 1
        theta, r = ritz.values, ritz.residuals
        if self.max_basis is not None and len(theta) > self.k + (self.max_basis - self.k) // 2:
            kept = self.thicken(space, ritz, self.max_basis)
            theta, r = theta[kept], r[kept]
        bars = [(sign, self.shifted(sign, bar, theta, r)) for sign, bar in self.bars()]
        space.complement()
        most = min(self.limit - self.used, max(16, len(theta)))
        most = most if self.max_basis is None else min(most, self.max_basis - len(theta))
        while space.num_steps < most and not space.exhausted:
            for _ in range(min(self.stride(0), most - space.num_steps)):
                space.step()
                self.used += 1
            rest = space.settle()
            room = self.size - space.num_locked
            chance = sum(self.chance(rest, sign, bar, room) for sign, bar in bars)
            if space.exhausted or chance <= self.delta / 2:
                self.risk = max(chance, self.floor()) if not space.exhausted else 0.0
                beyond = any(bool((s * (rest.values - bar) > 0).any()) for s, bar in bars)
                return not beyond
            if any(bool((s * (rest.values - bar) > 0).any()) for s, bar in bars):
                return False
        return False

    def shifted(self, sign: int, bar: float, theta: Tensor, r: Tensor) -> float:
        """What the complement must not pass, if nothing shall pass bar + tolerance · scale."""
        best = -math.inf
        for share in (1.0, 0.75, 0.5, 0.25):
            x = sign * bar + share * self.tolerance * self.scale
            best = max(best, x - max(0.0, float((r**2 / (x - sign * theta)).nan_to_num().sum())))
        return sign * best

    def floor(self) -> float:
        """Rounding keeps even an impossible start from a probability of 0."""
        return torch.finfo(self.dtype).eps * math.sqrt(2 * self.size / math.pi)

    def settled(self, ritz: Ritz, exhausted: bool) -> bool:
        chosen = _wanted(ritz.values, self.k, self.which)
        enough = len(chosen) == self.k
        return exhausted or (
            enough and bool((ritz.residuals[chosen] <= _SAFETY * self.tolerance * self.scale).all())
        )

    def searched(self, ritz: Ritz, exhausted: bool) -> bool:
        """Whether the complement shows no wanted pair (`found_none`), or shows one converged."""
        tolerance = self.tolerance * self.scale
        merged = torch.cat([self.values, ritz.values])
        chosen = _wanted(merged, self.k, self.which)
        fresh = chosen[chosen >= len(self.values)] - len(self.values)
        bars = self.bars()
        beats = [
            index
            for index in fresh.tolist()
            if any(sign * (float(ritz.values[index]) - bar) > tolerance for sign, bar in bars)
        ]
        if beats:
            self.found_none = False
            return exhausted or all(
                float(ritz.residuals[index]) <= _SAFETY * tolerance for index in beats
            )
        room = self.size - len(self.values)
        risk = sum(self.chance(ritz, sign, bar + sign * tolerance, room) for sign, bar in bars)
        # Half of what is allowed to the first search, a quarter to the second: their sum holds.
        self.found_none = exhausted or risk <= self.delta / 2**self.restarts
        if self.found_none:
            self.risk = 0.0 if exhausted else max(risk, self.floor())
        return self.found_none

    def bars(self) -> list[tuple[int, float]]:
        """(side, value that an overlooked eigenvalue would have to pass) of the current answer."""
        values = self.values
        if self.which == "largest":
            return [(1, float(values.min()))]
        if self.which == "smallest":
            return [(-1, float(values.max()))]
        if self.which == "magnitude":
            smallest = float(values.abs().min())
            return [(1, smallest), (-1, -smallest)]
        upper = -(-self.k // 2)
        ends = [(1, float(values[:upper].min()))]
        return [*ends, (-1, float(values[upper:].max()))] if self.k > upper else ends

    def chance(self, ritz: Ritz, sign: int, bar: float, room: int) -> float:
        """Bound of the probability that `room` dimensions hide an eigenvalue beyond the bar."""
        beyond = sign * (bar - ritz.values)
        if bool((beyond <= 0).any()):
            return 1.0
        logarithm = float(ritz.log_betas - beyond.log().sum())
        return math.exp(min(0.0, logarithm + 0.5 * math.log(2 * room / math.pi)))

    def keep(self, space: Krylov, ritz: Ritz) -> None:
        merged = torch.cat([self.values, ritz.values])
        chosen = _wanted(merged, self.k, self.which)
        chosen = chosen[torch.argsort(merged[chosen], descending=True)]
        old = chosen < len(self.values)
        kept = self.like.new_empty((len(chosen), self.size))
        there, fresh = (_rows(mask, self.device) for mask in (old, ~old))
        taken, new = _rows(chosen[old], self.device), chosen[~old] - len(self.values)
        kept[there] = self.vectors[taken]
        kept[fresh] = space.combine(ritz, new)
        if self.sampled:
            images = torch.empty_like(kept)
            images[there] = self.images[taken]
            images[fresh] = space.image(ritz, new, kept[fresh])
            self.images = images
        self.estimates = torch.cat([self.estimates, ritz.residuals])[chosen]
        self.values, self.vectors = merged[chosen], kept

    def partial(self, space: Krylov) -> EigenPairs | None:
        """What an unfinished first space shows, or the pairs found before, marked."""
        if not self.first:
            done = min(len(space.alpha), len(space.beta))
            space.alpha, space.beta = space.alpha[:done], space.beta[:done]
            if done == 0:
                return None
            self.keep(space, space.settle())
        return EigenPairs(
            values=self.values.to(self.dtype),
            vectors=self.vectors.to(self.dtype),
            residual_norms=self.estimates.to(self.dtype),
            converged=torch.zeros(len(self.values), dtype=torch.bool),
            num_matvecs=self.used,
            complete=False,
            subspace_bound=math.nan,
            restarts=self.restarts,
            search_matvecs=self.used - self.first if self.first else 0,
            failure_probability=math.nan,
            interrupted=True,
        )

    def finish(self, complete: bool) -> EigenPairs:
        """Rayleigh-Ritz on the pairs found, with the products that prove them."""
        self.vectors = V = self.vectors.to(torch.float64)  # one copy
        upright, off = torch.linalg.inv(torch.linalg.cholesky(vectors.gram(V))), math.nan
        vectors.combine_(upright, V)
        if self.certificate is None:
            HV = torch.stack([self.matvec(v) for v in V.to(self.dtype)]).to(V)
        elif self.sampled:
            HV = self.images.to(torch.float64)
            vectors.combine_(upright, HV)
            g = torch.randn(1, len(V), generator=self.generator, dtype=torch.float64).to(V)
            drawn, claimed = vectors.combine(g, V), vectors.combine(g, HV)
            off = float(vectors.norm(self.certificate(drawn).to(V) - claimed))
        else:
            HV = self.certificate(V).to(V)
        small = vectors.gram(V, HV).to("cpu")
        values, turn = torch.linalg.eigh((small + small.T) / 2)
        values, turn = values.flip(0).to(V), turn.flip(1).T.to(V)
        vectors.combine_(turn, V)
        vectors.combine_(turn, HV)
        R = HV
        for row, value, v in zip(R, values, V, strict=True):
            row.sub_(value * v)
        residuals = vectors.row_norms(R)
        bound = self.tolerance * max(self.scale, float(values.abs().max()))
        shown = self.dtype if self.certificate is None else torch.float64
        return EigenPairs(
            values=values.to(shown),
            vectors=V.to(self.dtype),
            residual_norms=residuals.to(shown),
            converged=(residuals <= bound) & complete,
            num_matvecs=self.used + (1 if self.sampled else len(V)),
            complete=complete,
            subspace_bound=float(torch.linalg.matrix_norm(vectors.gram(R), ord=2).sqrt()),
            restarts=self.restarts,
            search_matvecs=self.used - self.first,
            failure_probability=self.risk,
            product_error=off,
        )


def _rows(chosen: Tensor, device: torch.device) -> Tensor:
    """Indices for a tensor of the device, of a mask or of indices on the host, without waiting."""
    index = chosen.nonzero()[:, 0] if chosen.dtype == torch.bool else chosen
    return index.to(device, non_blocking=True)
