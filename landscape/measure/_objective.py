"""The mean loss of a risk as something to be minimized."""

from collections.abc import Callable

import torch
from torch import Tensor

from landscape import vectors
from landscape.risk import EmpiricalRisk, RowLosses

_ROWS = 512  # rows of one pass


class Objective:
    """Mean loss of rows of the risk's data, with gradient, of outputs that may be transformed."""

    def __init__(
        self,
        risk: EmpiricalRisk,
        theta: Tensor,
        *,
        transform: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self._risk = risk
        self._model = risk.model_at(theta)
        self._losses = RowLosses(risk, self._model, transform=transform)
        self._named = {n: p for n, p in self._model.named_parameters() if p.requires_grad}
        self._all = torch.arange(risk.num_examples)

    def loss(self, theta: Tensor, rows: Tensor | None = None) -> float:
        """Mean loss of the rows (default: all), weight decay included."""
        rows = self._put(theta, rows, 1 / 3)
        with torch.no_grad():
            parts = [float(self._losses.numerators(part).sum()) for part in rows.split(_ROWS)]
        return sum(parts) / self._losses.denominator(rows) + self._decay(theta)

    def gradient(self, theta: Tensor, rows: Tensor | None = None) -> tuple[float, Tensor]:
        """Mean loss of the rows and its gradient."""
        rows = self._put(theta, rows, 1.0)
        total, loss = torch.zeros_like(theta), 0.0
        for part in rows.split(_ROWS):
            value = self._losses.numerators(part).sum()
            parts = torch.autograd.grad(value, list(self._named.values()), materialize_grads=True)
            named = dict(zip(self._named, parts, strict=True))
            total += self._risk.layout.flatten(named)
            loss += float(value.detach())
        decay, denominator = self._risk.weight_decay * theta, self._losses.denominator(rows)
        return loss / denominator + self._decay(theta), total / denominator + decay

    def _decay(self, theta: Tensor) -> float:
        decay = self._risk.weight_decay
        return 0.5 * decay * float(vectors.squared_norm(theta)) if decay else 0.0

    def _put(self, theta: Tensor, rows: Tensor | None, cost: float) -> Tensor:
        rows = self._all if rows is None else rows
        self._risk.spend(cost * len(rows) / len(self._all))
        with torch.no_grad():
            for name, value in self._risk.layout.unflatten(theta).items():
                self._named[name].copy_(value)
        return rows
