"""Sums over many rows in pieces that are computed anew in every derivative, and then forgotten."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Tensors = Sequence[Tensor]
# (pieces of what has rows, what all rows share) -> (rows of the piece, what is summed over pieces)
OfPiece = Callable[[Tensors, Tensors], tuple[Tensors, Tensors]]


def in_pieces(function: OfPiece, rows: Tensors, shared: Tensors, size: int) -> list[Tensor]:
    """The function of `size` rows at a time: rows joined, then what is summed over the pieces.

    Differentiable as often as the function is. No graph holds more than the arguments: derivatives
    are of the same kind, pieces of pulled-back pieces.
    """
    return list(_InPieces.apply(_Plan(function, len(rows), size), *rows, *shared))


@dataclass(frozen=True)
class _Plan:
    function: OfPiece
    num_rows: int  # how many of the tensors have rows
    size: int

    def split(self, tensors: Tensors) -> tuple[Tensors, Tensors]:
        return tensors[: self.num_rows], tensors[self.num_rows :]

    def run(self, tensors: Tensors) -> tuple[list[Tensor], list[Tensor]]:
        # A view of a leaf that is made without a graph says that it needs a gradient, and has none.
        rows, shared = self.split([t.detach() for t in tensors])
        joined: list[Tensors] = []
        summed: list[Tensor] = []
        for start in range(0, max(1, len(rows[0])), self.size):
            found, parts = self.function([t[start : start + self.size] for t in rows], shared)
            joined.append([t.detach() for t in found])
            if summed:
                torch._foreach_add_(summed, list(parts))
            else:
                summed = [part.detach() for part in parts]
        return [torch.cat(each) for each in zip(*joined, strict=True)], summed

    def pulled_back(
        self, wanted: Sequence[bool], given: Sequence[bool], num_joined: int
    ) -> "_Plan":
        """Tensors and cotangents of the results that have some -> gradients of tensors wanted.

        The cotangents of joined rows are rows, those of sums are shared.
        """
        num_more = sum(given[:num_joined])

        def function(rows: Tensors, shared: Tensors) -> tuple[Tensors, Tensors]:
            differentiated = torch.is_grad_enabled()
            own, over_rows = rows[: self.num_rows], rows[self.num_rows :]
            both = [*own, *shared[: len(wanted) - self.num_rows]]
            over_sums = shared[len(wanted) - self.num_rows :]
            with torch.enable_grad():
                # Those of an outer derivative are leaves of its own.
                both = [
                    t if t.requires_grad or not want else t.detach().requires_grad_()
                    for t, want in zip(both, wanted, strict=True)
                ]
                found = [t for part in self.function(*self.split(both)) for t in part]
                gradients = torch.autograd.grad(
                    [t for t, there in zip(found, given, strict=True) if there],
                    [t for t, want in zip(both, wanted, strict=True) if want],
                    [*over_rows, *over_sums],
                    create_graph=differentiated,
                    materialize_grads=True,
                )
            of_rows = sum(wanted[: self.num_rows])
            return gradients[:of_rows], gradients[of_rows:]

        return _Plan(function, self.num_rows + num_more, self.size)


class _InPieces(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, plan: _Plan, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.plan = plan
        ctx.save_for_backward(*tensors)
        ctx.set_materialize_grads(False)
        joined, summed = plan.run(tensors)
        ctx.num_joined = len(joined)
        return (*joined, *summed)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        plan, tensors, wanted = ctx.plan, ctx.saved_tensors, ctx.needs_input_grad[1:]
        given = [c is not None for c in cotangents]
        if not any(given) or not any(wanted):
            return (None,) * (1 + len(wanted))
        rows, shared = plan.split(tensors)
        there = [c for c in cotangents if c is not None]
        num_more = sum(given[: ctx.num_joined])
        back = plan.pulled_back(wanted, given, ctx.num_joined)
        found = iter(_InPieces.apply(back, *rows, *there[:num_more], *shared, *there[num_more:]))
        return (None, *(next(found) if want else None for want in wanted))
