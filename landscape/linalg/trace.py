"""Stochastic trace of an operator, with the samples kept so that an error can be stated."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from landscape.errors import LandscapeError

Matvec = Callable[[Tensor], Tensor]


def hutchinson(
    matvec: Matvec,
    size: int,
    *,
    num_probes: int,
    generator: torch.Generator,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
) -> Float[Tensor, "num_probes"]:
    """Samples vᵀHv with Rademacher v; their mean estimates tr H without bias.

    Var(vᵀHv) = 2·Σ_{i≠j} H_ij² for symmetric H, so the mean's standard error is
    std(samples) / √num_probes. Cost: num_probes products. Hutchinson 1989,
    doi:10.1080/03610918908812806.
    """
    if num_probes < 1:
        raise LandscapeError(
            f"num_probes={num_probes} asked; at least 1 is needed, 2 for an error."
        )
    samples = torch.empty(num_probes, dtype=dtype, device=device)
    for index in range(num_probes):
        v = rademacher((size,), generator=generator, dtype=dtype, device=device)
        samples[index] = v @ matvec(v)
    return samples


def rademacher(
    shape: tuple[int, ...],
    *,
    generator: torch.Generator,
    dtype: torch.dtype,
    device: torch.device | str,
) -> Tensor:
    """Independent ±1, drawn on the generator's device so that a seed means the same everywhere."""
    bits = torch.randint(0, 2, shape, generator=generator, device=generator.device)
    return (bits * 2 - 1).to(device=device, dtype=dtype)
