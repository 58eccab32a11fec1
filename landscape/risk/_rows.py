"""The loss of chosen rows as a function of a model, as optimizers take it."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from landscape.risk._criterion import logits_of
from landscape.risk._data import Batch
from landscape.risk._empirical import EmpiricalRisk


class RowLosses:
    """Rows (B,) of a risk's data -> losses (B,) of any model, or their mean if that is all.

    Their mean is the criterion of these rows as a batch of their own, as an optimizer sees it:
    divided by the weights of the targets in it. Differentiable, and as many calls as an optimizer
    makes. transform: of the logits before the loss. Rows are given in any order, and the losses
    come in that order.
    """

    def __init__(
        self,
        risk: EmpiricalRisk,
        model: nn.Module,
        *,
        transform: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self._transform = transform
        self._engine = risk._engine
        self._device = risk.device
        self._model = model

    def __call__(self, rows: Tensor) -> Tensor:
        sums = self.numerators(rows)
        count = len(rows) if sums.ndim else 1
        return sums * (count / self.denominator(rows))

    def shares(self, rows: Tensor) -> Tensor:
        """Losses (B,) as `EmpiricalRisk.losses` has them."""
        return self._engine.shares(self.numerators(rows))

    def denominator(self, rows: Tensor) -> float:
        """What the sum of the numerators of these rows is divided by."""
        return self._engine.denominator_of(rows)

    def numerators(self, rows: Tensor) -> Tensor:
        """What is summed before the division, (B,), or its sum () if no more is known."""
        examples, parts, order = self._engine.examples, [], []
        if not examples.apart:
            for unit in examples.whole_units(rows):
                parts.append(self._of(unit))
                at = torch.arange(unit.start, unit.start + unit.count)
                order.append((rows.cpu()[:, None] == at).nonzero()[:, 0])
            return self._joined(parts, order)
        for chunk in examples.chunks:
            here = (rows >= chunk.start) & (rows < chunk.start + chunk.count)
            if not bool(here.any()):
                continue
            index = rows[here] - chunk.start
            batch = chunk.mapped(
                lambda leaf, index=index: leaf[index.to(leaf.device)], count=len(index)
            )
            parts.append(self._of(batch))
            order.append(here.nonzero()[:, 0])
        return self._joined(parts, order)

    def _of(self, batch: Batch) -> Tensor:
        batch = batch.mapped(lambda leaf: leaf.to(self._device))
        if self._transform is None:
            return self._engine.criterion.of(self._model, batch)[1]
        output = self._transform(logits_of(self._model(*batch.args, **batch.kwargs)))
        return self._engine.criterion(output, batch.targets, batch.count)

    @staticmethod
    def _joined(parts: list[Tensor], order: list[Tensor]) -> Tensor:
        if parts[0].ndim == 0:
            return torch.stack(parts).sum()
        back = torch.argsort(torch.cat(order)).to(parts[0].device)
        return torch.cat(parts)[back]
