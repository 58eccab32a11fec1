"""The loss of chosen rows: of a model, as optimizers take it, or of theta, to be minimized."""

import copy
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from landscape import vectors
from landscape.risk._criterion import errors_of, logits_of
from landscape.risk._data import Batch
from landscape.risk._empirical import EmpiricalRisk, Evaluation
from landscape.risk._engine import FORWARD, GRADIENT
from landscape.sharding import write

Transform = Callable[[Tensor], Tensor]
_ROWS = 512  # of one pass


class RowLosses:
    """Rows (B,) of a risk's data -> losses (B,) of any model, or their mean if that is all.

    Their mean is the criterion of these rows as a batch of their own, as an optimizer sees it:
    divided by the weights of the targets in it. Differentiable, and as many calls as an optimizer
    makes. transform: of the logits before the loss; inputs: of the first input before the model.
    weight_decay: add the risk's ½·weight_decay·‖theta‖², of the model's trainable parameters.
    Rows are given in any order, and the losses come in that order.

    Example:
        >>> from landscape.risk import RowLosses
        >>> each = RowLosses(risk, risk.model_at(theta))(torch.arange(4))
        >>> tuple(each.shape)
        (4,)
    """

    def __init__(
        self,
        risk: EmpiricalRisk,
        model: nn.Module,
        *,
        transform: Transform | None = None,
        inputs: Transform | None = None,
        weight_decay: bool = False,
    ) -> None:
        self._transform, self._inputs = transform, inputs
        self._decay = risk.weight_decay if weight_decay else 0.0
        self._engine = risk._engine
        self._device = risk.device
        self._model = model

    def __call__(self, rows: Tensor) -> Tensor:
        sums = self.numerators(rows)
        count = len(rows) if sums.ndim else 1
        losses = sums * (count / self.denominator(rows))
        if not self._decay:
            return losses
        trained = [p for p in self._model.parameters() if p.requires_grad]
        return losses + 0.5 * self._decay * sum(vectors.squared_norm(p) for p in trained)

    def through(self, inputs: Transform) -> "RowLosses":
        """The same of the same model, behind another transform of the inputs."""
        twin = copy.copy(self)
        twin._inputs = inputs
        return twin

    def shares(self, rows: Tensor) -> Tensor:
        """Losses (B,) as `EmpiricalRisk.losses` has them."""
        return self._engine.shares(self.numerators(rows))

    def denominator(self, rows: Tensor) -> float:
        """What the sum of the numerators of these rows is divided by."""
        return self._engine.denominator_of(rows)

    def numerators(self, rows: Tensor) -> Tensor:
        """What is summed before the division, (B,), or its sum () if no more is known."""
        return self.passed(rows)[0]

    def passed(self, rows: Tensor) -> tuple[Tensor, Tensor | None]:
        """Numerators, and how many predictions are wrong (), None where nothing is predicted."""
        parts, wrong, order = [], [], []
        for batch, places in self._batches(rows):
            batch = batch.mapped(lambda leaf: leaf.to(self._device, non_blocking=True))
            output, losses = self._engine.criterion.of(self._called, batch)
            errors = errors_of(output, batch.targets, self._engine.criterion.ignore_index)
            parts.append(losses)
            wrong.append(None if errors is None else errors.sum())
            order.append(places)
        known = all(each is not None for each in wrong)
        count = torch.stack(wrong).sum() if known else None
        if parts[0].ndim == 0:
            return torch.stack(parts).sum(), count
        back = torch.argsort(torch.cat(order)).to(parts[0].device, non_blocking=True)
        return torch.cat(parts)[back], count

    def _batches(self, rows: Tensor) -> Iterator[tuple[Batch, Tensor]]:
        """What goes through the model at once, and the places of its rows among those asked."""
        examples = self._engine.examples
        if not examples.apart:
            for unit in examples.whole_units(rows):
                at = torch.arange(unit.start, unit.start + unit.count)
                yield unit, (rows.cpu()[:, None] == at).nonzero()[:, 0]
            return
        for chunk in examples.chunks:
            here = (rows >= chunk.start) & (rows < chunk.start + chunk.count)
            if bool(here.any()):
                index = rows[here] - chunk.start
                yield chunk.mapped(partial(_taken, index), count=len(index)), here.nonzero()[:, 0]

    @property
    def _called(self) -> Callable[..., Any]:
        """The model, with what is transformed before and behind it."""
        if self._inputs is None and self._transform is None:
            return self._model

        def called(*args: Any, **kwargs: Any) -> Any:
            if self._inputs is not None:
                args = (self._inputs(args[0]), *args[1:])
            output = self._model(*args, **kwargs)
            return output if self._transform is None else self._transform(logits_of(output))

        return called


class Objective:
    """L(theta) of rows of a risk's data with its gradient, weight decay included.

    Outputs or inputs may be transformed before the loss (`RowLosses`). batch_statistics: BatchNorm
    takes the statistics of the rows of a call, which are then one pass, as in training; otherwise
    its running statistics, and the rows go through in passes. It works on a model of its own; the
    cost is the risk's.
    transform: of the outputs (logits); inputs: of the inputs.

    Example:
        >>> from landscape.risk import Objective
        >>> objective = Objective(risk, theta)
        >>> bool(torch.isclose(objective.loss(theta), risk.loss(theta)))
        True
    """

    def __init__(
        self,
        risk: EmpiricalRisk,
        theta: Tensor,
        *,
        transform: Transform | None = None,
        inputs: Transform | None = None,
        batch_statistics: bool = False,
    ) -> None:
        self._risk, self._whole = risk, batch_statistics
        model = risk.model_at(theta)
        for module in model.modules():
            if batch_statistics and isinstance(module, _BatchNorm):
                module.train()
        self._losses = RowLosses(risk, model, transform=transform, inputs=inputs)
        self._named = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self._all = torch.arange(risk.num_examples)

    def through(self, inputs: Transform) -> "Objective":
        """The same behind another transform of the inputs; shares the model."""
        twin = copy.copy(self)
        twin._losses = self._losses.through(inputs)
        return twin

    def loss(self, theta: Tensor, rows: Tensor | None = None) -> Float[Tensor, ""]:
        """L(theta) of the rows (default: all), in float64 on the risk's device."""
        rows = self._put(theta, rows, FORWARD)
        with torch.no_grad():
            sums = [self._losses.numerators(part).sum().double() for part in self._parts(rows)]
        return sum(sums[1:], sums[0]) / self._losses.denominator(rows) + self._decay(theta)

    def evaluate(self, theta: Tensor) -> Evaluation:
        """Loss, error rate and losses over all rows, as `EmpiricalRisk.evaluate` has them."""
        rows = self._put(theta, None, FORWARD)
        with torch.no_grad():
            passed = [self._losses.passed(part) for part in self._parts(rows)]
        sums, wrong = zip(*passed, strict=True)
        total = torch.stack([each.double().sum() for each in sums]).sum()
        loss = total / self._losses.denominator(rows) + self._decay(theta)
        known = all(each is not None for each in wrong)
        engine = self._risk._engine
        rate = torch.stack(wrong).sum().to(engine.dtype) / engine.num_labels if known else None
        losses = engine.shares(torch.cat(sums)) if sums[0].ndim else None
        return Evaluation(loss.to(self._risk.dtype), rate, losses)

    def gradient(
        self, theta: Tensor, rows: Tensor | None = None
    ) -> tuple[Float[Tensor, ""], Float[Tensor, "P"]]:
        """L(theta) of the rows, in float64, and its gradient."""
        rows = self._put(theta, rows, GRADIENT)
        total, loss = torch.zeros_like(theta), theta.new_zeros((), dtype=torch.float64)
        for part in self._parts(rows):
            with torch.enable_grad():
                value = self._losses.numerators(part).sum()
            parts = torch.autograd.grad(value, list(self._named.values()), materialize_grads=True)
            named = dict(zip(self._named, parts, strict=True))
            total += self._risk.layout.flatten(named)
            loss += value.detach()
        denominator = self._losses.denominator(rows)
        decay = self._risk.weight_decay * theta
        return loss / denominator + self._decay(theta), total / denominator + decay

    def _parts(self, rows: Tensor) -> tuple[Tensor, ...]:
        examples = self._risk._engine.examples
        if self._whole or not examples.apart:
            return (rows,)
        return rows.split(examples.most_to_try(_ROWS))

    def _decay(self, theta: Tensor) -> Tensor | float:
        decay = self._risk.weight_decay
        return 0.5 * decay * vectors.squared_norm(theta) if decay else 0.0

    def _put(self, theta: Tensor, rows: Tensor | None, cost: float) -> Tensor:
        rows = self._all if rows is None else rows
        self._risk.spend(cost * len(rows) / len(self._all))
        with torch.no_grad():
            for name, value in self._risk.layout.unflatten(theta).items():
                write(self._named[name], value)
        return rows


def _taken(index: Tensor, leaf: Tensor) -> Tensor:
    """Rows of a leaf, which may lie on another device than their indices."""
    return leaf[index.to(leaf.device, non_blocking=True)]
