"""Gd = alpha (c g1 + g2) added up by autograd itself, so that g1 and g2 are never both held."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from landscape.sam.corrections import Blend
from landscape.sam.evaluate import SameBatch
from landscape.sam.geometry import scale
from landscape.sam.passes import Passes
from landscape.sam.weights import unshared


@dataclass
class Sums:
    """C g1 of each tensor, to which pass 2 adds g2, and the count of writes to it before that."""

    starts: list[Tensor | None]
    versions: list[int]
    share: float

    @staticmethod
    def begin(optimizer: Any, passes: Passes, first: Any, climbed: Sequence[int]) -> "Sums | None":
        """Hand c g1 to the next pass, in g1's own memory if it is free; None where g1 is needed."""
        if not _possible(optimizer, passes):
            return None
        share = optimizer.variant.correction.share
        chosen = list(climbed if optimizer.variant.evaluate.partial else first.live)
        g1: list[Tensor | None] = [None] * len(first.g1)
        for i in chosen:
            g1[i], first.g1[i] = first.g1[i], None
        first.point.gradients, first.point.known_norms = [], None
        if unshared(g1):
            torch._foreach_mul_([g1[i] for i in chosen], share)
        else:
            g1 = scale(g1, share)
        passes.start = g1
        return Sums(g1, [0 if g is None else g._version for g in g1], share)

    def take_out_unused(self, parameters: Sequence[Tensor], first: Any) -> None:
        """Tensors that pass 2 gave no gradient have g1 again, and nothing in `.grad`."""
        for i, (p, start, version) in enumerate(
            zip(parameters, self.starts, self.versions, strict=True)
        ):
            if start is not None and p.grad is start and start._version == version:
                first.g1[i], p.grad = start / self.share, None


def _possible(optimizer: Any, passes: Passes) -> bool:
    """Whether nothing reads g1 or g2 alone, and the loss is one that only this step goes through.

    A closure may clear the gradients, a scaler and replicas would change c g1 as well.
    """
    variant = optimizer.variant
    return (
        not optimizer.keep_perturbation
        and type(variant.correction) is Blend
        and variant.correction.may_be_summed
        and type(variant.evaluate) is SameBatch
        and variant.loss_term is None
        and not getattr(variant.source, "remembers", False)
        and not variant.selector.has("after_step")
        and passes.losses is not None
        and passes.scaler is None
        and passes.averaged is None
    )
