"""Terms added to the loss: trajectory losses, which flatten without climbing.

A loss term is called as loss_term(point, logits, batch, state) with gradients enabled; the hook
`before_pass(point, passes, state)` runs before the forward pass, `after_step(point, state)` after
the base step.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from landscape.errors import LandscapeError
from landscape.sam.batches import part_of
from landscape.sam.passes import Passes
from landscape.sam.slot import Slot
from landscape.sam.variant import Point, State


def _divergence(past: Tensor, now: Tensor, tau: float) -> Tensor:
    """tau² mean_i KL(softmax(past/tau) ‖ softmax(now/tau)), in nats."""
    p, q = F.log_softmax(past / tau, dim=-1), F.log_softmax(now / tau, dim=-1)
    return tau**2 * F.kl_div(q, p, reduction="batchmean", log_target=True)


@dataclass(frozen=True)
class PastOutputs(Slot):
    """Divergence from the outputs `delay` epochs ago (SAF, arXiv:2205.14083).

    A bank holds delay + 1 epochs of logits per training example: N (delay + 1) C numbers.
    num_examples: N. indices: position of the examples' indices in a batch.
    """

    num_examples: int
    weight: float = 0.3
    tau: float = 5.0
    delay: int = 2
    start_epoch: int = 5
    end_epoch: int = 300
    indices: int | str = 2

    def __call__(self, point: Point, logits: Tensor, batch: Any, state: State) -> Tensor:
        """The term; writes this epoch's logits into the bank."""
        rows = self._rows(batch).to(logits.device)
        if "bank" not in state:
            shape = (self.num_examples, self.delay + 1, logits.shape[-1])
            state["bank"] = torch.zeros(shape, dtype=logits.dtype, device=logits.device)
        slots = self.delay + 1
        if not point.scratch.get("banked"):  # a second pass, at w + e, leaves the bank alone
            state["bank"][rows, point.epoch % slots] = logits.detach()
            point.scratch["banked"] = True
        if not self.start_epoch < point.epoch < self.end_epoch:
            return logits.new_zeros(())
        past = state["bank"][rows, (point.epoch - self.delay) % slots]
        return self.weight * _divergence(past, logits, self.tau)

    def _rows(self, batch: Any) -> Tensor:
        """The examples' numbers, refused where the bank has none of them: waits for a device."""
        rows = part_of(batch, self.indices, "indices", "the examples' numbers")
        bad = (rows < 0) | (rows >= self.num_examples)
        if bool(bad.any()):
            raise LandscapeError(
                f"the batch names example {int(rows[bad][0])} and num_examples="
                f"{self.num_examples} were given to saf, numbered from 0 to "
                f"{self.num_examples - 1}."
            )
        return rows


@dataclass(frozen=True)
class AveragedWeights(Slot):
    """Divergence from the outputs of an exponential average of the weights (MESA, same paper)."""

    weight: float = 0.8
    tau: float = 5.0
    decay: float = 0.9998
    start_epoch: int = 5
    end_epoch: int = 300
    needs_whole_batch = True

    def before_pass(self, point: Point, passes: Passes, state: State) -> None:
        """Forward pass at the averaged weights, kept for the term."""
        average = state.setdefault("average", {})
        for n, w in zip(passes.trained.names, passes.trained.tensors(), strict=True):
            if n not in average:  # joined at first sight
                average[n] = w.detach().clone()
        if not self.start_epoch < point.epoch < self.end_epoch:
            return
        with passes.at({n: average[n] for n in passes.trained.names}), torch.no_grad():
            _, outputs = passes.per_example(passes.batch)
        check_outputs(outputs)
        point.scratch["averaged_outputs"] = outputs

    def __call__(self, point: Point, logits: Tensor, batch: Any, state: State) -> Tensor:  # noqa: ARG002
        """The term."""
        past = point.scratch.get("averaged_outputs")
        if past is None:
            return logits.new_zeros(())
        return self.weight * _divergence(past, logits, self.tau)

    def after_step(self, point: Point, state: State) -> None:
        """Move the average towards the new weights."""
        average = [state["average"][n] for n in point.names]
        torch._foreach_lerp_(average, [w.detach() for w in point.weights], 1 - self.decay)


def check_outputs(outputs: Any) -> None:
    """Refuse a loss term whose call brings no outputs."""
    if not isinstance(outputs, Tensor):
        raise LandscapeError(
            "this variant's loss term needs the model's outputs; let losses(batch) return "
            "(losses, logits)."
        )
