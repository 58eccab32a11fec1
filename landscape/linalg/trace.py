"""Stochastic trace of an operator, with the samples kept so that an error can be stated.

`matvec` maps a vector (size,) to a vector (size,), linearly, in `dtype` and on `device`;
`generator` makes every random vector. `like`: a
vector that they are to be like, where that is no ordinary tensor (sharded weights).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from landscape import vectors
from landscape.errors import Interrupted, LandscapeError
from landscape.sharding import ShardedVector

__all__ = ["Matvec", "Trace", "hutchinson", "hutchpp", "rademacher"]

Matvec = Callable[[Tensor], Tensor]


def hutchinson(
    matvec: Matvec,
    size: int,
    *,
    num_probes: int,
    generator: torch.Generator,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
    like: Tensor | None = None,
) -> Float[Tensor, "num_probes"]:
    """Samples vᵀHv with Rademacher v; their mean estimates tr H without bias.

    Var(vᵀHv) = 2·Σ_{i≠j} H_ij² for symmetric H, so the mean's standard error is
    std(samples) / √num_probes. Cost: num_probes products. Hutchinson 1989,
    doi:10.1080/03610918908812806. Raises Interrupted with the samples so far.
    Returns the samples (num_probes,), in units of the operator.

    Example:
        >>> H = torch.diag(torch.tensor([2.0, 1.0, 1.0], dtype=torch.float64))
        >>> samples = linalg.trace.hutchinson(
        ...     lambda v: H @ v, 3, num_probes=2, generator=torch.Generator().manual_seed(0)
        ... )
        >>> samples.tolist()
        [4.0, 4.0]
    """
    if num_probes < 1:
        raise LandscapeError(
            f"num_probes={num_probes} asked; at least 1 is needed, 2 for an error."
        )
    samples: list[Tensor] = []
    try:
        for _ in range(num_probes):
            v = rademacher((size,), generator=generator, dtype=dtype, device=device, like=like)
            samples.append(vectors.dot(v, matvec(v)))
    except KeyboardInterrupt as stop:
        known = torch.stack(samples) if samples else None
        raise Interrupted(f"Interrupted; probes done: {len(samples)}.", known) from stop
    return torch.stack(samples)


def rademacher(
    shape: tuple[int, ...],
    *,
    generator: torch.Generator,
    dtype: torch.dtype,
    device: torch.device | str,
    like: Tensor | None = None,
) -> Tensor:
    """Independent ±1, drawn on the generator's device so that a seed means the same everywhere.

    shape: of the draw, by definition of the law (Hutchinson's probes).
    like: a vector that they are to be like, where that is no ordinary tensor.

    Example:
        >>> v = linalg.trace.rademacher(
        ...     (5,), generator=torch.Generator().manual_seed(0), dtype=torch.float64, device="cpu"
        ... )
        >>> v.abs().tolist()
        [1.0, 1.0, 1.0, 1.0, 1.0]
    """

    def draw(*shape: int) -> Tensor:
        bits = torch.randint(0, 2, shape, generator=generator, device=generator.device)
        return (bits * 2 - 1).to(dtype)

    return draw(*shape).to(device, non_blocking=True) if like is None else vectors.drawn(draw, like)


@dataclass(frozen=True)
class Trace:
    """Estimate of a trace, its standard error over the probes of the remainder, and the cost.

    `value` is the mean of `samples`, each of them an estimate from one probe of the remainder.
    stderr: () of the mean. num_matvecs: products made.

    Example:
        >>> H = torch.diag(torch.tensor([4.0, 2.0, 1.0] + [0.0] * 6, dtype=torch.float64))
        >>> found = linalg.trace.hutchpp(
        ...     lambda v: H @ v, 9, num_matvecs=9, generator=torch.Generator().manual_seed(0)
        ... )
        >>> round(float(found.value), 6), found.num_matvecs
        (7.0, 9)
    """

    value: Float[Tensor, ""]
    stderr: Float[Tensor, ""]
    num_matvecs: int
    samples: Float[Tensor, "num_samples"]


def hutchpp(
    matvec: Matvec,
    size: int,
    *,
    num_matvecs: int,
    generator: torch.Generator,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
    like: Tensor | None = None,
) -> Trace:
    """Hutch++: tr H = tr QᵀHQ + tr (I-QQᵀ)H(I-QQᵀ), the first exact, the second by Hutchinson.

    Q spans H applied to a third of the probes, so the error falls as 1/num_matvecs for positive
    semidefinite H; Hutchinson's falls as its square root. Below some 30 products plain Hutchinson
    is better. `stderr` is that of the remainder's samples, given Q. Meyer, Musco, Musco & Woodruff
    2021, arXiv:2010.09649, Algorithm 1.
    num_matvecs: products in all. Returns a `Trace`.

    Example:
        >>> H = torch.diag(torch.tensor([4.0, 2.0, 1.0] + [0.0] * 6, dtype=torch.float64))
        >>> found = linalg.trace.hutchpp(
        ...     lambda v: H @ v, 9, num_matvecs=9, generator=torch.Generator().manual_seed(0)
        ... )
        >>> round(float(found.value), 6), bool(found.stderr < 1e-9)
        (7.0, True)
    """
    if num_matvecs < 6:
        raise LandscapeError(
            f"num_matvecs={num_matvecs} asked; Hutch++ needs at least 6 (2 for the sketch, 2 for "
            f"its exact part, 2 for an error)."
        )
    draw = partial(rademacher, (size,), generator=generator, dtype=dtype, device=device, like=like)
    rank = min(num_matvecs // 3, size)
    sketch = torch.stack([matvec(draw()) for _ in range(rank)])
    Q = _orthonormal(sketch.to(dtype))
    known = torch.stack([vectors.dot(q, matvec(q)) for q in Q]).sum()
    samples = []
    for _ in range(num_matvecs - 2 * rank):
        v = draw()
        v = vectors.without(v, Q, vectors.project(Q, v))
        samples.append(vectors.dot(v, matvec(v)))
    rest = torch.stack(samples)
    stderr = rest.std() / len(rest) ** 0.5
    return Trace(known + rest.mean(), stderr, num_matvecs, known + rest)


def _orthonormal(rows: Tensor) -> Tensor:
    """An orthonormal basis of their span: reflections, then a Cholesky step for long rows.

    Reflections of long float32 rows are orthonormal only to what float32 accumulates. Of sharded
    rows two Cholesky steps.
    """
    if isinstance(rows, ShardedVector):
        turn = torch.linalg.inv(torch.linalg.cholesky(vectors.gram(rows)))
        Q = vectors.combine(turn, rows)
    else:
        Q = torch.linalg.qr(rows.T).Q.T
    turn = torch.linalg.inv(torch.linalg.cholesky(vectors.gram(Q)))
    return vectors.combine_(turn, Q.contiguous())
