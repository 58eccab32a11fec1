"""The search for extreme eigenpairs: a first Krylov space, its complement, the proof."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from landscape import devices, vectors
from landscape.errors import Interrupted
from landscape.linalg import _proof
from landscape.linalg._complement import Complement, Union
from landscape.linalg._krylov import Into, Krylov, Ritz
from landscape.linalg._proof import Claimed, Proven

_SAFETY = 0.9  # what rounding adds to an estimated residual is less than the rest
_FIRST = 0.95  # of the failure probability, to the first search: others are rarely needed


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
    (nan without a finished search), and `proof_matvecs` of the residuals. `product_error`: the
    measured error of the products, and `products_off` what that bounds, see the certificates of
    `top`. `interrupted`: what was known when the search was broken off; the residuals are then
    estimates of the recurrence, and nothing is claimed.

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
    products_off: float = math.nan
    proof_matvecs: int = 0
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


@dataclass(frozen=True)
class Bar:
    """A value that nothing outside of a space shall pass, on the side `sign`.

    pull: how far the space lifts what it is coupled to, Σ r_i²/(x - θ_i) at x = at.
    """

    sign: int
    at: float
    pull: float

    def end(self, pulled: float) -> float:
        """The bar for the complement, which may have been lifted already."""
        return self.sign * (self.at if pulled else self.at - self.pull)

    def passed(self, values: Tensor, pulled: float) -> bool:
        """Whether a value of the complement is beyond it."""
        return bool((self.sign * (values - self.end(pulled)) > 0).any())


@dataclass
class Search:
    into: Into
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
    sampled_within: float
    max_basis: int | None
    like: Tensor

    def run(self, start: Tensor | None) -> EigenPairs:
        self.used, self.scale, self.first = 0, 0.0, 0
        self.restarts, self.risk = 0, math.nan
        self.values = self.estimates = torch.empty(0, dtype=torch.float64)
        self.vectors = self.like.new_empty((0, self.size))
        self.tails, self.edges = torch.empty((0, 0), dtype=torch.float64), self.vectors
        space = self.krylov(start)
        try:
            ritz = self.extend(space, self.settled)
            if self.max_basis is not None and self.delta < 1 and not space.exhausted:
                ritz = self.compressed(space, ritz)  # room for what the search needs
            self.first = self.used
            self.union: Union | None = None
            complete = self.delta >= 1 or self.sealed(space, ritz)
            if self.union is None:
                self.keep(space, ritz)
            else:
                self.keep(self.union, self.union.ritz)
                self.union = None
            while not complete and self.used < self.limit and len(self.values) < self.size:
                self.found_none = False
                self.restarts += 1
                space.release()
                space = self.krylov(None)
                self.keep(space, self.extend(space, self.searched))
                complete = self.found_none
            space.release()
            return self.finish(complete or len(self.values) == self.size)
        except KeyboardInterrupt as stop:
            raise Interrupted("The search was interrupted.", self.partial(space)) from stop

    def krylov(self, start: Tensor | None) -> Krylov:
        return Krylov(
            self.into,
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
        """Grow a Krylov space until `enough`."""
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
                return ritz
            if self.max_basis is not None and space.num_steps >= self.max_basis:
                self.compressed(space, ritz)
            steps = space.num_steps
            due = max(steps + 1, min(steps + self.stride(steps), steps + self.limit - self.used))
            due = due if self.max_basis is None else min(due, self.max_basis)

    def compressed(self, space: Krylov, ritz: Ritz) -> Ritz:
        """What is kept of a full basis: the wanted pairs, and half of what it has besides."""
        most = self.k + ((self.max_basis or self.k) - self.k) // 2
        kept = space.compress(ritz, _wanted(ritz.values, most, self.which))
        self.trim()
        return kept

    def trim(self) -> None:
        """Give back what products have left, where vectors are to be made."""
        if not devices.is_accelerator(self.device):
            devices.trim(self.size * self.dtype.itemsize)

    def stride(self, steps: int) -> int:
        """Steps to the next look, which a GPU has to wait for."""
        waits = devices.is_accelerator(self.device)
        return max(2, steps // 8) if waits else max(1, steps // 16)

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
        bars = self.barred(ritz.values, ritz)
        # What couples to the space depends on the bar: of two, bounds that hold for both.
        pull = bars[0].sign * bars[0].pull if len(bars) == 1 else 0.0
        rest = Complement(space, pull)
        while self.used < self.limit:
            for _ in range(min(self.stride(0), self.limit - self.used)):
                rest.step()
                self.used += 1
            seen = rest.settle()
            ended = math.isinf(float(seen.log_betas))
            if self.union or any(bar.passed(seen.values, pull) for bar in bars):
                # What passes belongs to the answer, which both spaces together have.
                self.union = Union(rest, seen, ritz) if rest.is_kept else None
                if self.union is None or not self.settled(self.union.ritz, exhausted=False):
                    if self.union is None or ended:
                        break
                    continue
                bars = self.barred(self.union.ritz.values, ritz)
                if any(bar.passed(seen.values, pull) or 0 < abs(pull) < bar.pull for bar in bars):
                    return False
            # A recurrence that ends has shown all that its start is made of.
            chances = (self.chance(seen, b.sign, b.end(pull), rest.room) for b in bars)
            chance = 0.0 if ended else sum(chances)
            if chance <= _FIRST * self.delta:
                self.risk = max(chance, self.floor())
                return True
        self.union = None
        return False

    def barred(self, values: Tensor, ritz: Ritz) -> "list[Bar]":
        """Of the answer among `values`, what nothing outside of the space of `ritz` shall pass."""
        found = values[_wanted(values, self.k, self.which)]
        return [self.asked(sign, bar, ritz) for sign, bar in self.bars(found)]

    def asked(self, sign: int, bar: float, ritz: Ritz) -> "Bar":
        """Where the complement is asked whether anything passes, if nothing shall pass the bar.

        Between the bar and tolerance · scale beyond it, where the coupling is least.
        """
        theta, r = sign * ritz.values, ritz.residuals
        asked = []
        for share in (1.0, 0.75, 0.5, 0.25):
            x = sign * bar + share * self.tolerance * self.scale
            asked.append(Bar(sign, x, max(0.0, float((r**2 / (x - theta)).nan_to_num().sum()))))
        return max(asked, key=lambda bar: bar.at - bar.pull)

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
        bars = self.bars(self.values)
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
        # Half of what the first left to the second, a quarter to the third: their sum holds.
        allowed = (1 - _FIRST) * self.delta / 2 ** (self.restarts - 1)
        self.found_none = exhausted or risk <= allowed
        if self.found_none:
            self.risk = 0.0 if exhausted else max(risk, self.floor())
        return self.found_none

    def bars(self, values: Tensor) -> list[tuple[int, float]]:
        """(side, value that an overlooked eigenvalue would have to pass) of an answer."""
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

    def keep(self, space: "Krylov | Union", ritz: Ritz) -> None:
        """The wanted of old and new pairs, and what H does to them as their recurrences have it.

        Hv_i = θ_i v_i + Σ_j tails[i, j] edges[j], an edge being the next vector of a space.
        """
        self.trim()
        merged = torch.cat([self.values, ritz.values])
        chosen = _wanted(merged, self.k, self.which)
        chosen = chosen[torch.argsort(merged[chosen], descending=True)]
        old = chosen < len(self.values)
        new = chosen[~old] - len(self.values)
        kept = space.combine(ritz, new)
        if old.any():
            fresh = iter(kept)
            at = zip(chosen.tolist(), old.tolist(), strict=True)
            kept = torch.stack([self.vectors[i] if was else next(fresh) for i, was in at])
        if self.sampled:
            edges, before = space.edges, self.tails.shape[1]
            tails = torch.zeros((len(chosen), before + len(edges)), dtype=torch.float64)
            tails[old, :before] = self.tails[chosen[old]]
            tails[~old, before:] = space.tails(ritz, new)
            self.tails, self.edges = tails, torch.cat([self.edges, edges])
        self.estimates = torch.cat([self.estimates, ritz.residuals])[chosen]
        self.values, self.vectors = merged[chosen], kept

    def partial(self, space: Krylov) -> EigenPairs | None:
        """What an unfinished first space shows, or the pairs found before, marked."""
        if not len(self.values):
            done = min(len(space.alpha), len(space.beta))
            space.alpha, space.beta = space.alpha[:done], space.beta[:done]
            if done == 0 and space.compressed is None:
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
        proven = self.proven()
        shown = self.dtype if self.certificate is None else torch.float64
        return EigenPairs(
            values=proven.values.to(shown),
            vectors=vectors.combine_(proven.turn, self.vectors),
            residual_norms=proven.residuals.to(shown),
            converged=(proven.residuals <= self.bound(proven)) & complete,
            num_matvecs=self.used + proven.products,
            proof_matvecs=proven.products,
            complete=complete,
            subspace_bound=float(torch.linalg.matrix_norm(proven.gram, ord=2).sqrt()),
            restarts=self.restarts,
            search_matvecs=self.used - self.first,
            failure_probability=self.risk,
            product_error=proven.error,
            products_off=proven.off,
        )

    def proven(self) -> Proven:
        V = self.vectors
        if self.certificate is None:
            HV = torch.empty_like(V)
            for v, out in zip(V, HV, strict=True):
                self.into(v, out)
            return _proof.whole(V, HV.to(torch.float64))
        if not self.sampled:
            return _proof.whole(V, self.certificate(V).to(torch.float64))
        return _proof.sampled(
            Claimed(self.values, V, self.tails, self.edges),
            self.certificate,
            delta=self.delta,
            generator=self.generator,
            enough=None if math.isinf(self.sampled_within) else self.within,
        )

    def bound(self, proven: Proven) -> float:
        """What converged residuals are at most."""
        return self.tolerance * max(self.scale, float(proven.values.abs().max()))

    def within(self, proven: Proven) -> bool:
        """Whether residuals and what the products are off together are as small as was allowed."""
        worst = float(proven.residuals.max()) + proven.off
        return worst <= self.sampled_within * self.bound(proven)
