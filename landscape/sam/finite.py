"""Whether gradients are finite, asked without waiting for a device."""

import contextlib
import functools
import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

Finite = bool | Tensor  # a 0-d tensor on an accelerator, where asking would wait for the device

SMALL = 1 << 14  # elements of a tensor whose arithmetic takes less time than calling it
# Of fewer trained tensors a step has so few launches that the dozen which spare a wait are over
# 15 % of them; at 4 µs a launch (a model, not measured) they take longer than the wait.
FEW = 32


def are_little(tensors: Sequence[Tensor]) -> bool:
    """Whether calling for the arithmetic of these tensors, one by one, takes longer than it."""
    return sum(map(torch.numel, tensors)) < SMALL * len(tensors)


def chosen(
    finite: Tensor, tensors: Sequence[Tensor], others: Sequence[Tensor] | None = None
) -> list[Tensor]:
    """New tensors: each as it is where `finite` () holds, else the other one, or zeros.

    Nothing waits for the device. Many little ones are views of one tensor, made in few calls.
    """
    found = list(tensors)
    for where in _together(tensors):
        some = [tensors[i] for i in where]
        yes = finite.to(some[0].device)
        other = [others[i] for i in where] if others else [_zero(some[0].dtype, some[0].device)]
        if len(where) == 1:
            found[where[0]] = torch.where(yes, some[0], other[0])
            continue
        flat = torch.where(yes, _in_one(some), _in_one(other))
        for i, part in zip(where, flat.split([t.numel() for t in some]), strict=True):
            found[i] = part.view(tensors[i].shape)
    return found


def _in_one(tensors: Sequence[Tensor]) -> Tensor:
    """Behind one another; a single one as it is."""
    return tensors[0] if len(tensors) == 1 else torch.cat([t.reshape(-1) for t in tensors])


@functools.lru_cache(maxsize=16)
def _zero(dtype: torch.dtype, device: torch.device) -> Tensor:
    """Kept, since to make one is a launch."""
    with torch.inference_mode(False):
        return torch.zeros((), dtype=dtype, device=device)


def copies(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Clones, in few calls for many little tensors."""
    found = list(tensors)
    for where in _together(tensors):
        if len(where) == 1:
            found[where[0]] = tensors[where[0]].clone()
            continue
        flat = _in_one([tensors[i] for i in where])
        parts = flat.split([tensors[i].numel() for i in where])
        for i, part in zip(where, parts, strict=True):
            found[i] = part.view(tensors[i].shape)
    return found


def _together(tensors: Sequence[Tensor]) -> list[list[int]]:
    """Indices of those that may go into one tensor; alone are cut, strided and large ones."""
    groups: dict[object, list[int]] = {}
    for i, t in enumerate(tensors):
        alike = type(t) in (Tensor, torch.nn.Parameter) and t.layout is torch.strided
        alike = alike and t.is_contiguous() and t.numel() < SMALL
        groups.setdefault((t.dtype, t.device) if alike else i, []).append(i)
    return list(groups.values())


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
