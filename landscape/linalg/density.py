"""Spectral density by stochastic Lanczos quadrature, with every probe kept.

`matvec` maps a vector (size,) to a vector (size,), linearly and symmetrically, in `dtype` and on
`device`; `generator` makes every random vector. `like`: a
vector that they are to be like, where that is no ordinary tensor (sharded weights).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from landscape.errors import Interrupted, LandscapeError
from landscape.linalg._krylov import Into, Krylov, Ritz, returning
from landscape.linalg.trace import rademacher

__all__ = ["Quadrature", "slq"]


@dataclass(frozen=True)
class Quadrature:
    """Nodes and weights per probe: (1/P)·tr f(H) ≈ Σ_j weights[i, j]·f(nodes[i, j]) for each i.

    The weights of a probe sum to 1; a probe whose space was invariant before num_steps fills up
    with nodes of weight 0. exact: of each probe, whether its space was invariant, so that nodes and
    weights are its whole measure and no quadrature of it.
    nodes, weights: (probe, node). num_matvecs: products made.

    Example:
        >>> H = torch.diag(torch.tensor([2.0, 1.0, 1.0, 0.0], dtype=torch.float64))
        >>> generator = torch.Generator().manual_seed(0)
        >>> found = linalg.density.slq(
        ...     lambda v: H @ v, 4, num_probes=1, num_steps=4, generator=generator
        ... )
        >>> round(float(4 * (found.nodes * found.weights).sum()), 6), found.exact.tolist()
        (4.0, [True])
    """

    nodes: Float[Tensor, "probe node"]
    weights: Float[Tensor, "probe node"]
    num_matvecs: int
    exact: Bool[Tensor, "*probe"]


def slq(
    matvec: Callable[..., Tensor],
    size: int,
    *,
    num_probes: int,
    num_steps: int,
    generator: torch.Generator,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
    like: Tensor | None = None,
    into: bool = False,
) -> Quadrature:
    """Gauss quadrature of the spectral density from num_steps Lanczos steps per Rademacher probe.

    Exact for polynomials of degree below 2·num_steps in vᵀf(H)v; the error over probes falls as
    1/√num_probes, so spend on probes first. Golub & Meurant 1994; Ubaru, Chen & Saad 2017,
    doi:10.1137/16M1104974, Algorithm 1. Cost: num_probes · num_steps products. Raises
    Interrupted with the probes so far. into: as of `lanczos.top`.

    Example:
        >>> H = torch.diag(torch.tensor([2.0, 1.0, 1.0, 0.0], dtype=torch.float64))
        >>> generator = torch.Generator().manual_seed(0)
        >>> found = linalg.density.slq(
        ...     lambda v: H @ v, 4, num_probes=3, num_steps=4, generator=generator
        ... )
        >>> tuple(found.nodes.shape), found.weights.sum(1).round(decimals=6).tolist()
        ((3, 4), [1.0, 1.0, 1.0])
    """
    if num_probes < 1 or num_steps < 1:
        raise LandscapeError(
            f"num_probes={num_probes} and num_steps={num_steps} asked; both must be at least 1."
        )
    steps = min(num_steps, size)
    nodes = torch.zeros(num_probes, steps, dtype=torch.float64)
    weights = torch.zeros(num_probes, steps, dtype=torch.float64)
    exact = torch.full((num_probes,), steps == size)
    probe = 0
    product: Into = matvec if into else returning(matvec)
    try:
        for probe in range(num_probes):
            start = rademacher((size,), generator=generator, dtype=dtype, device=device, like=like)
            ritz = _space(product, start, steps, generator)
            count = len(ritz.values)
            nodes[probe, :count] = ritz.values
            weights[probe, :count] = ritz.coefficients[0] ** 2
            nodes[probe, count:] = ritz.values[-1]
            exact[probe] |= count < steps
    except KeyboardInterrupt as stop:
        done = (nodes[:probe], weights[:probe], probe * steps, exact[:probe])
        known = Quadrature(*done) if probe else None
        raise Interrupted(f"Interrupted; probes done: {probe}.", known) from stop
    return Quadrature(nodes, weights, num_probes * steps, exact)


def _space(into: Into, start: Tensor, steps: int, generator: torch.Generator) -> Ritz:
    """The Krylov space of one probe."""
    size = len(start)
    space = Krylov(
        into,
        size,
        locked=start.new_empty((0, size)),
        scale=0.0,
        generator=generator,
        dtype=start.dtype,
        device=start.device,
        start=start,
    )
    for _ in range(steps):
        space.step()
    return space.settle()
