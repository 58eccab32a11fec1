"""The loss of chosen rows as a function of a model, as optimizers take it."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from landscape.risk._criterion import logits_of
from landscape.risk._empirical import EmpiricalRisk


class RowLosses:
    """Rows (B,) of a risk's data -> losses (B,) of any model, or their mean if that is all.

    Differentiable, and as many calls as an optimizer makes. transform: of the logits before the
    loss. Rows are given in any order, and the losses come in that order.
    """

    def __init__(
        self,
        risk: EmpiricalRisk,
        model: nn.Module,
        *,
        transform: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self._transform = transform
        self._criterion = risk._engine.criterion
        self._chunks = risk._engine.examples.chunks
        self._device = risk.device
        self._model = model

    def __call__(self, rows: Tensor) -> Tensor:
        parts, order = [], []
        for chunk in self._chunks:
            here = (rows >= chunk.start) & (rows < chunk.start + chunk.count)
            if not bool(here.any()):
                continue
            index = rows[here] - chunk.start
            batch = chunk.mapped(
                lambda leaf, index=index: leaf[index.to(leaf.device)].to(self._device)
            )
            output = self._model(*batch.args, **batch.kwargs)
            if self._transform is not None:
                output = self._transform(logits_of(output))
            parts.append(self._criterion(output, batch.targets, len(index)))
            order.append(here.nonzero()[:, 0])
        if parts[0].ndim == 0:
            counts = [len(index) / len(rows) for index in order]
            return sum(part * share for part, share in zip(parts, counts, strict=True))
        losses = torch.cat(parts)
        back = torch.argsort(torch.cat(order)).to(losses.device)
        return losses[back]
