"""The model and the rows of a risk, as a module and losses that an optimizer could be given."""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from landscape.risk import EmpiricalRisk
from landscape.risk._criterion import logits_of


def model_at(risk: EmpiricalRisk, theta: Tensor) -> nn.Module:
    """An ordinary copy of the risk's model with weights theta, in evaluation mode."""
    model = copy.deepcopy(risk._engine.network.model)
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            # The risk steers BatchNorm by replacing its forward.
            module.__dict__.pop("forward", None)
    named = dict(model.named_parameters())
    with torch.no_grad():
        for name, value in risk.layout.unflatten(theta).items():
            named[name].copy_(value)
            named[name].requires_grad_()
    return model.eval()


class RowLosses:
    """Rows (B,) of the risk's data -> losses (B,) of a model, or their mean if that is all."""

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


def targets_of(risk: EmpiricalRisk) -> Tensor:
    """Targets of all examples, in the order of the data."""
    return torch.cat([chunk.targets for chunk in risk._engine.examples.chunks]).to(risk.device)


def spend(risk: EmpiricalRisk, gradients: float) -> None:
    """Count what was computed beside the risk in its gradient-equivalents."""
    risk._engine.spend(gradients)
