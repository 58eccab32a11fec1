"""Norms, dots, Gram products and projections of long vectors, accumulated in float64.

A float32 accumulator loses what is small beside it, always in the same direction: torch's norm of
10⁷ elements is too small by 4e-4, of 10⁸ by 1e-2, and products Q @ w likewise. Here a vector is
read in slabs, each widened to float64 while it is in the cache, so that neither digits nor memory
for a wide copy are lost. Results are 0-d or small float64 tensors on the vectors' device, and
nothing waits for it. Complex numbers count as pairs of real ones: ‖x‖² = Σ|x_i|², ⟨a, b⟩ = Re aᴴb.
Of vectors that are cut over processes each one reads its own part, and only the results travel.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from landscape.sharding import ShardedVector, Space, operands, own, whole

__all__ = [
    "ascending",
    "combine",
    "combine_",
    "cosine",
    "dot",
    "dots",
    "drawn",
    "gram",
    "is_finite",
    "length",
    "lengths",
    "norm",
    "norms",
    "project",
    "row_norms",
    "squared_norm",
    "subtract_",
    "total_norm",
    "unit",
    "unit_rows",
    "without",
    "without_",
]

# Elements widened at once: what stays in a core's cache; on a device, what keeps launches few.
_SLAB_ON_CPU, _SLAB = 2**17, 2**24
_BLOCK_ON_CPU, _BLOCK = 2**19, 2**26
_NARROWEST = 2**10
_CANCELLING = 2**15
_NARROW = 2**14  # float32 elements whose squares are added up in float32 to 2e-7 of the sum
_WITHOUT_FLOAT64 = ("mps",)


def _over_processes(join: Callable[[Space, Tensor, float], Tensor]) -> Callable[..., Any]:
    """Of sharded vectors: the function of what lies in this process, joined over all."""

    def of(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        @functools.wraps(function)
        def wrapped(*args: Any, **options: Any) -> Tensor:
            # A tensor in its own shape has its rows in several processes.
            shaped = any(isinstance(x, ShardedVector) and not x.flat for x in args)
            space, here = operands(*map(whole, args) if shaped else args)
            if space is None:
                return function(*args, **options)
            here = [space.counted(x) if isinstance(x, Tensor) else x for x in here]
            p = next((x for x in here if isinstance(x, float)), options.get("p", 2.0))
            return join(space, function(*here, **options), p)

        return wrapped

    return of


def _added(space: Space, found: Tensor, _p: float) -> Tensor:
    return space.sum(found)


def _length_of(space: Space, found: Tensor, p: float) -> Tensor:
    return torch.linalg.vector_norm(space.every(found), p, dim=0)


@_over_processes(_length_of)
def norm(x: Tensor, p: float = 2.0) -> Float[Tensor, ""]:
    """‖x‖_p over all elements, in float64; p > 0."""
    if not x.numel():
        return x.new_zeros((), dtype=torch.float64)
    if not _may_be_cut(x):
        wide = torch.complex128 if x.is_complex() else torch.float64
        return torch.linalg.vector_norm(x, p, dtype=wide)
    slabs = x.reshape(-1).split(_length(x))
    parts = [torch.linalg.vector_norm(_wide(slab), p) for slab in slabs]
    return parts[0] if len(parts) == 1 else torch.linalg.vector_norm(torch.stack(parts), p)


def norms(tensors: Sequence[Tensor], p: float = 2.0) -> list[Float[Tensor, ""]]:
    """‖x‖_p of each of these tensors, in float64; short ones in one call."""
    out: list[Tensor | None] = [None] * len(tensors)
    together = [i for i, x in enumerate(tensors) if _is_one_of_many(x)]
    if together:
        wide = torch._foreach_norm([tensors[i] for i in together], p, dtype=torch.float64)
        for i, value in zip(together, wide, strict=True):
            out[i] = value
    return [norm(x, p) if n is None else n for x, n in zip(tensors, out, strict=True)]


def lengths(tensors: Sequence[Tensor]) -> list[Float[Tensor, ""]]:
    """‖x‖ of each of these tensors, to 1e-6 of it, float64: for what an optimizer divides by.

    On the CPU `norms` reads float32 eight times slower than float32 arithmetic does. Here runs of
    2^14 elements are squared and added up in float32, and what they give likewise; a tensor whose
    squares may leave float32's range is taken by `norm`. Anything else than dense float32 on the
    CPU is too.
    """
    found = _narrow_lengths(tensors)
    return norms(tensors) if found is None else list(found.unbind())


def length(tensors: Sequence[Tensor]) -> Float[Tensor, ""]:
    """‖(x₁, x₂, …)‖ of these tensors together, as `lengths` finds theirs; 0 for none."""
    found = _narrow_lengths(tensors)
    return total_norm(norms(tensors)) if found is None else torch.linalg.vector_norm(found)


def _narrow_lengths(tensors: Sequence[Tensor]) -> Float[Tensor, "n"] | None:
    """‖x‖ of dense float32 tensors of the CPU, None of others."""
    if not tensors or not all(map(_is_narrow, tensors)):
        return None
    short = [x if x.numel() <= _NARROW else _run_norms(x) for x in tensors]
    found = torch.stack(torch._foreach_norm(short)).double()
    for i, size in enumerate(found.tolist()):
        if not 1e-10 < size < 1e18:
            found[i] = norm(tensors[i])
    return found


def _run_norms(x: Tensor) -> Tensor:
    """Norms of runs of at most 2^14 elements of a long vector, in its own precision."""
    flat = x.reshape(-1)
    runs = -(-len(flat) // _NARROW)
    if len(flat) % runs == 0:
        return torch.linalg.vector_norm(flat.view(runs, -1), dim=1)
    whole = len(flat) - len(flat) % _NARROW
    rest = torch.linalg.vector_norm(flat[whole:])[None]
    return torch.cat([torch.linalg.vector_norm(flat[:whole].view(-1, _NARROW), dim=1), rest])


def total_norm(norms: Sequence[Tensor], p: float = 2.0) -> Float[Tensor, ""]:
    """‖(n₁, n₂, …)‖_p, the norm of vectors together, on the first one's device; 0 for none."""
    if not norms:
        return torch.zeros((), dtype=torch.float64)
    home, wide = norms[0].device, torch.float64
    if any(n.dtype is not wide or n.device != home for n in norms):
        norms = [_wide(n.to(home)) for n in norms]
    return torch.linalg.vector_norm(torch.stack(list(norms)), p)


def squared_norm(x: Tensor) -> Float[Tensor, ""]:
    """‖x‖², in float64."""
    return dot(x, x)


@_over_processes(_length_of)
def row_norms(rows: Tensor) -> Float[Tensor, "k"]:
    """‖row‖ of each row of (k, …), in float64."""
    if not len(rows):
        return torch.zeros(0, dtype=torch.float64, device=rows.device)
    flat = rows.reshape(len(rows), -1)
    at_once = max(1, _block(flat) // max(1, flat.shape[1]))
    if at_once == 1 or len(rows) == 1:
        return torch.stack([norm(row) for row in flat])
    return torch.cat([torch.linalg.vector_norm(_wide(x), dim=1) for x in flat.split(at_once)])


@_over_processes(_added)
def dot(a: Tensor, b: Tensor) -> Float[Tensor, ""]:
    """⟨a, b⟩ over all elements, in float64."""
    a, b = _flat(a), _flat(b)
    if a.dtype == b.dtype == torch.float64:
        return torch.dot(a, b)
    slabs = zip(a.split(_length(a)), b.split(_length(a)), strict=True)
    parts = [torch.dot(_wide(x), _wide(y)) for x, y in slabs]
    return parts[0] if len(parts) == 1 else torch.stack(parts).sum()


def dots(xs: Sequence[Tensor], ys: Sequence[Tensor]) -> list[Float[Tensor, ""]]:
    """⟨x_i, y_i⟩ of each pair, to 1e-6 of ‖x_i‖ ‖y_i‖, float64: the companion of `lengths`."""
    pairs = list(zip(xs, ys, strict=True))
    if not pairs or not all(_is_narrow(t) for pair in pairs for t in pair):
        return [dot(x, y) for x, y in pairs]
    found = torch.stack([_narrow_dot(x.reshape(-1), y.reshape(-1)) for x, y in pairs])
    each = list(found.unbind())
    for i, size in enumerate(found.tolist()):
        if not 1e-20 < abs(size) < 1e30:  # squares beyond float32
            each[i] = dot(*pairs[i])
    return each


def _narrow_dot(x: Tensor, y: Tensor) -> Tensor:
    """⟨x, y⟩ with sums of at most 2^14 terms in their own precision."""
    if len(x) <= _NARROW:
        return torch.dot(x, y).double()
    slabs = zip(x.split(_NARROW), y.split(_NARROW), strict=True)
    return torch.stack([torch.dot(a, b) for a, b in slabs]).sum(dtype=torch.float64)


def cosine(a: Tensor, b: Tensor) -> Float[Tensor, ""]:
    """⟨a, b⟩ / (‖a‖ ‖b‖), in float64; nan where one of them is zero."""
    return dot(a, b) / (norm(a) * norm(b))


@_over_processes(_added)
def gram(A: Float[Tensor, "m P"], B: Float[Tensor, "n P"] | None = None) -> Float[Tensor, "m n"]:
    """A Bᵀ, or A Aᵀ without B, in float64."""
    if A.dtype == torch.float64 and (B is None or B.dtype == torch.float64):
        return A @ (A if B is None else B).T
    total = _nothing(len(A), len(A if B is None else B), like=A)
    for x, y in _blocks(A, A if B is None else B):
        left = _wide(x)
        total += left @ (left if B is None else _wide(y)).T
    return total


@_over_processes(_added)
def project(
    Q: Float[Tensor, "k P"], w: Float[Tensor, "P"], *, small: bool = False
) -> Float[Tensor, "k"]:
    """Q w, the coefficients ⟨q_i, w⟩, in float64.

    small: they are known to be, as overlaps of what is nearly orthogonal; slabs are then multiplied
    in their own precision and only their sums are float64, at half the cost: digits are lost where
    terms pile up, and these cancel.
    """
    if Q.dtype == w.dtype == torch.float64:
        return Q @ w
    if small and Q.device.type not in _WITHOUT_FLOAT64:
        slabs = zip(Q.split(_CANCELLING, 1), w.split(_CANCELLING), strict=True)
        return torch.stack([x @ y for x, y in slabs]).sum(0, dtype=torch.float64)
    total = _nothing(len(Q), like=Q)
    for x, y in _blocks(Q, w[None]):
        total += _wide(x) @ _wide(y[0])
    return total


def without(w: Float[Tensor, "P"], Q: Float[Tensor, "k P"], c: Tensor) -> Float[Tensor, "P"]:
    """W - Qᵀ c, in w's own precision: sums over k terms only, whatever the length."""
    if isinstance(w, ShardedVector):
        return ShardedVector(without(w.here, own(Q), c), w.space)
    return torch.addmv(w, Q.T, c.to(w), alpha=-1)


def without_(w: Float[Tensor, "P"], Q: Float[Tensor, "k P"], c: Tensor) -> Float[Tensor, "P"]:
    """W - Qᵀ c in place of w: fresh memory for a long vector costs more than its arithmetic."""
    if isinstance(w, ShardedVector):
        return ShardedVector(without_(w.here, own(Q), c), w.space)
    return w.addmv_(Q.T, c.to(w), alpha=-1)


def combine(C: Float[Tensor, "m k"], Q: Float[Tensor, "k P"]) -> Float[Tensor, "m P"]:
    """C Q, in Q's precision: sums over k terms only, whatever the length."""
    return C.to(Q) @ Q


def combine_(C: Float[Tensor, "m k"], Q: Float[Tensor, "k P"]) -> Float[Tensor, "m P"]:
    """C Q in the first m <= k rows of Q, in slabs, so that nothing is doubled."""
    if isinstance(Q, ShardedVector):
        return ShardedVector(combine_(C, Q.here), Q.space)
    C = C.to(Q)
    for start in range(0, Q.shape[1], 2**20):
        slab = slice(start, start + 2**20)
        Q[: len(C), slab] = C @ Q[:, slab]
    return Q[: len(C)]


def subtract_(rows: Float[Tensor, "m P"], C: Tensor, Q: Float[Tensor, "k P"]) -> Tensor:
    """Rows - C Q in place of float64 rows, with Q widened slab by slab."""
    if isinstance(rows, ShardedVector):
        return ShardedVector(subtract_(rows.here, C, own(Q)), rows.space)
    for start in range(0, rows.shape[1], 2**20):
        slab = slice(start, start + 2**20)
        rows[:, slab] -= C.to(rows) @ Q[:, slab].to(rows)
    return rows


def is_finite(x: Tensor) -> Bool[Tensor, ""]:
    """Whether no element is NaN or infinite, by one pass that keeps nothing; True for none.

    The extremes tell it: NaN is both. `torch.isfinite` makes four tensors of x's length and takes
    a CPU thirty times as long.
    """
    return _unbounded(x) == 0


@_over_processes(_added)
def _unbounded(x: Tensor) -> Float[Tensor, ""]:
    """How many of the two extremes of x are not finite."""
    if not x.numel():
        return x.new_zeros(())
    ends = torch.stack(torch.aminmax(_flat(x)))
    return (~torch.isfinite(ends)).sum().to(ends)


def ascending(x: Float[Tensor, "P"]) -> Float[Tensor, "P"]:
    """The elements of a vector of float32 or float64 in ascending order.

    Sorted are their bits as integers, for which torch has a radix sort: ten times as fast as that
    of floating-point numbers on a CPU. Negative numbers, whose bits ascend with their size, have
    these turned round before and after. NaN comes first or last, by its sign.
    """
    kind, last = (torch.int64, 63) if x.dtype == torch.float64 else (torch.int32, 31)
    bits = x.contiguous().view(kind)
    keys = (bits ^ ((bits >> last) & ~(-1 << last))).sort().values
    return keys.bitwise_xor_((keys >> last) & ~(-1 << last)).view(x.dtype)


def drawn(draw: Callable[[int], Tensor], like: Tensor) -> Tensor:
    """draw(P) of a stream of numbers, as a vector like `like`; (P,) are its last axis.

    A sharded one takes the numbers that the whole has, each process its own of them.
    """
    if isinstance(like, ShardedVector):
        return ShardedVector(like.space.drawn(draw, like.here), like.space)
    return draw(like.shape[-1]).to(like, non_blocking=True)


def unit(x: Tensor) -> Tensor:
    """X / ‖x‖ in its own precision; nan for zero."""
    return x / norm(x).to(x.dtype)


def unit_rows(rows: Tensor) -> Tensor:
    """Rows (k, …) divided by their norms, in their own precision; nan for a zero row."""
    lengths = row_norms(rows).to(rows.dtype)
    return rows / lengths.reshape(-1, *[1] * (rows.ndim - 1))


def _is_narrow(x: Tensor) -> bool:
    """Whether x is an ordinary float32 tensor of the CPU."""
    plain = x.is_cpu and x.dtype is torch.float32 and x.layout is torch.strided
    return plain and not isinstance(x, ShardedVector)


def _may_be_cut(x: Tensor) -> bool:
    """Whether slabs are the way: a plain tensor that is not float64 already.

    A tensor that is spread over processes, or sparse, knows itself how its norm is taken.
    """
    plain = type(x) in (Tensor, torch.nn.Parameter) and x.layout == torch.strided
    return plain and x.dtype != torch.float64


def _is_one_of_many(x: Tensor) -> bool:
    """Whether one call for many tensors widens x without a wide copy of something long.

    On a device the fused norm reads in one precision and accumulates in the other.
    """
    if x.is_complex() or x.device.type in _WITHOUT_FLOAT64 or isinstance(x, ShardedVector):
        return False
    return x.device.type != "cpu" or x.numel() <= _SLAB_ON_CPU


def _wide(x: Tensor) -> Tensor:
    wide = torch.complex128 if x.is_complex() else torch.float64
    return x.to("cpu", wide) if x.device.type in _WITHOUT_FLOAT64 else x.to(wide)


def _nothing(*shape: int, like: Tensor) -> Tensor:
    """A sum of no terms, of the type and on the device of `_wide`."""
    return _wide(like.new_zeros(shape))


def _flat(x: Tensor) -> Tensor:
    return (torch.view_as_real(x.resolve_conj()) if x.is_complex() else x).reshape(-1)


def _length(x: Tensor) -> int:
    return _SLAB_ON_CPU if x.device.type == "cpu" else _SLAB


def _block(rows: Tensor) -> int:
    return _BLOCK_ON_CPU if rows.device.type == "cpu" else _BLOCK


def _blocks(A: Tensor, B: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """The same columns of both, few enough to be widened at once."""
    width = max(_NARROWEST, _block(A) // max(1, len(A), len(B)))
    return zip(A.split(width, 1), B.split(width, 1), strict=True)
