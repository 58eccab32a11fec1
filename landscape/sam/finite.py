"""Whether gradients are finite, asked without waiting for a device."""

import contextlib
import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

Finite = bool | Tensor  # a 0-d tensor on an accelerator, where asking would wait for the device

SMALL = 1 << 14  # elements of a tensor whose arithmetic takes less time than calling it


def are_little(tensors: Sequence[Tensor]) -> bool:
    """Whether calling for the arithmetic of these tensors, one by one, takes longer than it."""
    return sum(map(torch.numel, tensors)) < SMALL * len(tensors)


def is_finite(norm: Tensor) -> Finite:
    """Whether a norm is finite, asked of the device without waiting for it."""
    return math.isfinite(norm.item()) if norm.is_cpu else torch.isfinite(norm)


def all_finite(gradients: Iterable[Tensor | None]) -> Finite:
    """Whether all gradients that exist are finite."""
    there = [g for g in gradients if g is not None]
    if not there:
        return True
    if there[0].is_cpu:
        # One pass of little tensors, multiplied by 1; a norm each costs three times as much.
        bad = torch.zeros(())
        with contextlib.suppress(RuntimeError):  # a gradient that overlaps itself
            torch._amp_foreach_non_finite_check_and_unscale_(there, bad, torch.ones(()))
            return not bad.item()
    if not there[0].is_cpu:  # the largest entry, whose square cannot overflow
        sizes = torch._foreach_norm(there, math.inf)
        return torch.isfinite(torch.stack([n.float().to(sizes[0].device) for n in sizes])).all()
    sizes = torch.stack([n.double() for n in torch._foreach_norm(there, 2.0)])
    return bool(sizes.isfinite().all()) or all(bool(g.isfinite().all()) for g in there)


def both_finite(a: Finite, b: Finite) -> Finite:
    """Whether two answers are both yes."""
    return a & b if isinstance(a, Tensor) or isinstance(b, Tensor) else a and b
