"""Losses and wrong predictions of rows, from one pass over the logits where that is possible."""

from typing import Any

import torch
from torch import Tensor, nn

from landscape.risk._criterion import errors_of, logits_of
from landscape.risk._data import Batch
from landscape.risk._empirical import EmpiricalRisk

# torch's kernel walks single rows; with few classes it is quicker to walk along the rows.
_FEW_CLASSES = 48


class Outcomes:
    """(output, batch) -> losses (n,) and wrong predictions (n,), or None if not a classifier."""

    def __init__(self, risk: EmpiricalRisk) -> None:
        self._criterion = risk._engine.criterion
        self._plain = _plain_cross_entropy(risk)

    def __call__(self, output: Any, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """Of the rows of a batch."""
        logits = logits_of(output)
        if not (self._plain and isinstance(logits, Tensor) and logits.ndim == 2):
            losses = self._criterion(output, batch.targets, batch.count)
            return losses, errors_of(output, batch.targets, self._criterion.ignore_index)
        if not 2 <= logits.shape[1] <= _FEW_CLASSES:
            losses = self._criterion(output, batch.targets, batch.count)
            of_target = logits.gather(1, batch.targets[:, None])[:, 0]
        else:
            columns = logits.t().contiguous()
            of_target = columns.gather(0, batch.targets[None])[0]
            most = columns.amax(0)
            tail = (columns - most).exp_().sum(0).log_()
            # The target's distance first: where it is the largest logit nothing is rounded away.
            losses = tail.add_(most.sub_(of_target))
        # argmax finds a NaN before all else, so that only one of the target would pass for right.
        return losses, (logits.argmax(1) != batch.targets).logical_or_(of_target.isnan())


def _plain_cross_entropy(risk: EmpiricalRisk) -> bool:
    """Whether every loss is log sum exp(z) - z_target with a class index as target."""
    criterion = risk._engine.criterion
    loss = criterion.loss
    if (
        criterion.form != "outputs"
        or type(loss) is not nn.CrossEntropyLoss
        or not criterion.per_example
    ):
        return False
    if loss.weight is not None or loss.label_smoothing:
        return False
    targets = [chunk.targets for chunk in risk._engine.examples.chunks]
    return all(
        isinstance(t, Tensor)
        and t.dtype == torch.long
        and t.ndim == 1
        and not bool((t == loss.ignore_index).any())
        for t in targets
    )
