"""The memory of a step: weights moved to w + e and back, and room for a direction."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

SMALL = 1 << 14  # elements of a tensor whose arithmetic takes less time than calling it


def are_little(tensors: Sequence[Tensor]) -> bool:
    """Whether calling for the arithmetic of these tensors, one by one, takes longer than it."""
    return sum(map(torch.numel, tensors)) < SMALL * len(tensors)


@dataclass
class _Plan:
    """Where a set of weights moves to, prepared once; valid while each keeps its address."""

    indices: Sequence[int]
    addresses: list[int]
    own: list[Tensor]
    buffers: list[Tensor]
    strides: list[tuple[int, ...]]
    little: bool
    alone: list[bool]

    def fits(self, indices: Sequence[int], weights: Sequence[Tensor]) -> bool:
        """Whether these are the same weights at the same addresses."""
        return self.indices == indices and self.addresses == [w.data_ptr() for w in weights]


class Backup:
    """Weights moved from w to w + e and back to w, in buffers that are kept between steps.

    On the CPU a weight points to its buffer, where w + e is written, until it points back: its own
    memory is never touched. Elsewhere recorded graphs hold addresses, and a view shares memory with
    others: there the buffer keeps w, and e is added in place.
    """

    def __init__(self) -> None:
        self._known: dict[int, Tensor] = {}
        self._plan: _Plan | None = None
        self._moved: _Plan | None = None
        self._weights: list[Tensor] = []
        self._copied: tuple[list[Tensor], list[Tensor]] | None = None

    def climb(
        self,
        indices: Sequence[int],
        weights: list[Tensor],
        directions: list[Tensor],
        factor: float,
        *,
        over: bool = False,
    ) -> None:
        """Move to w + factor * direction; `indices` name the buffers.

        over: the directions' own memory may hold w + e; no buffer is needed then.
        """
        plan = self._planned(indices, weights)
        self._weights, self._moved = weights, plan
        if all(plan.alone):
            targets = self._alone(plan, directions, factor, over)
            for w, target in zip(weights, targets, strict=True):
                w.data = target
            return
        self._buffers(plan)
        shared = []
        for w, own, d, buffer, alone in zip(
            weights, plan.own, directions, plan.buffers, plan.alone, strict=True
        ):
            if alone:
                w.data = torch.add(own, d, alpha=factor, out=buffer)
            else:
                shared.append((w, d, buffer))
        w, d, buffers = map(list, zip(*shared, strict=True))
        torch._foreach_copy_(buffers, w)
        self._copied = (w, buffers)
        torch._foreach_add_(w, d, alpha=factor)

    def _alone(
        self, plan: _Plan, directions: list[Tensor], factor: float, over: bool
    ) -> list[Tensor]:
        """W + factor * direction, where nothing else shares the memory of the weights."""
        if plan.little:
            return list(torch._foreach_add(plan.own, directions, alpha=factor))
        fits = over and [d.stride() for d in directions] == plan.strides
        if fits:
            self._known, plan.buffers, targets = {}, [], directions
        else:
            targets = self._buffers(plan)
        # One pass over memory; backwards: the last tensors of the one before are in the cache yet.
        rows = list(zip(plan.own, directions, targets, strict=True))
        for own, d, target in reversed(rows):
            torch.add(own, d, alpha=factor, out=target)
        return targets

    def restore(self) -> None:
        """Back to w, bit for bit."""
        plan = self._moved
        if plan is not None:
            for w, own, alone in zip(self._weights, plan.own, plan.alone, strict=True):
                if alone:
                    w.data = own
        self._moved, self._weights = None, []
        if self._copied is not None:
            torch._foreach_copy_(*self._copied)
            self._copied = None

    def _planned(self, indices: Sequence[int], weights: list[Tensor]) -> _Plan:
        if self._plan is None or not self._plan.fits(indices, weights):
            self._plan = self._make_plan(indices, weights)
        return self._plan

    def _buffers(self, plan: _Plan) -> list[Tensor]:
        """The plan's buffers, made when first asked for."""
        if not plan.buffers:
            for i, w in zip(plan.indices, plan.own, strict=True):
                known = self._known.get(i)
                if known is None or not _alike(known, w):
                    self._known[i] = torch.empty_like(w)
            self._known = {i: self._known[i] for i in plan.indices}
            plan.buffers = list(self._known.values())
        return plan.buffers

    def _make_plan(self, indices: Sequence[int], weights: list[Tensor]) -> _Plan:
        return _Plan(
            indices=indices,
            addresses=[w.data_ptr() for w in weights],
            own=[w.data for w in weights],
            buffers=[],
            strides=[w.stride() for w in weights],
            little=are_little(weights),
            alone=[_alone(w) for w in weights],  # nothing shares its memory or holds its address
        )


class Workspace:
    """Room for one direction u, lent again in the next step unless somebody still holds it."""

    def __init__(self) -> None:
        self._tensors: list[Tensor] = []
        self._kind: list[Any] = []

    def lend(self, like: Sequence[Tensor]) -> list[Tensor]:
        """Tensors of the shapes, strides and types of `like`, their content undefined."""
        kind = [x.shape for x in like] + [x.stride() for x in like] + [x.dtype for x in like]
        if kind != self._kind or max(_references(self._tensors), default=0) > _UNSHARED:
            self._tensors, self._kind = [torch.empty_like(x) for x in like], kind
        return list(self._tensors)


def _alike(a: Tensor, b: Tensor) -> bool:
    return (a.shape, a.stride(), a.dtype, a.device) == (b.shape, b.stride(), b.dtype, b.device)


def unshared(gradients: Sequence[Tensor | None]) -> bool:
    """Whether nothing but `.grad` and this list refers to these tensors or to their memory.

    Neither Python nor, by way of `.grad.numpy()`, `.grad.detach()` or a view, anything else. False
    on other devices than the CPU.
    """
    if max(_references(gradients), default=0) > _UNSHARED_GRADIENT:
        return False
    there = [t for t in gradients if t is not None]
    return all(map(_alone, there)) and max(map(_holders, there), default=0) <= _ONE_HOLDER


def _alone(t: Tensor) -> bool:
    return t.is_cpu and t.untyped_storage().nbytes() == t.nbytes


def _holders(t: Tensor) -> int:
    """How many tensors share the memory of `t`, and one; very many where torch cannot say."""
    count = getattr(torch._C, "_storage_Use_Count", None)
    return sys.maxsize if count is None else count(t.untyped_storage()._cdata)


def _references(objects: Sequence[object]) -> list[int]:
    return [0 if x is None else sys.getrefcount(x) for x in objects]


def _references_of_a_gradient() -> int:
    p = torch.zeros(1, requires_grad=True)
    p.grad = torch.zeros(1)
    return _references([p.grad])[0]


_UNSHARED = _references([object()])[0]  # of what nothing but its list refers to
_UNSHARED_GRADIENT = _references_of_a_gradient()
_ONE_HOLDER = 2  # the tensor, and the storage object that is asked
