"""Evaluate slots: with which data, and for which tensors, the two passes run."""

from dataclasses import dataclass

import torch
from torch import Tensor

from landscape.checks import check_choice, check_count
from landscape.errors import LandscapeError
from landscape.sam.batches import check_one_each, part_of
from landscape.sam.passes import Passes
from landscape.sam.slot import Slot
from landscape.sam.variant import Point, State

OFF = ("clean", "none")


@dataclass(frozen=True)
class SameBatch(Slot):
    """Both passes on the step's batch.

    partial=True computes g2 only for the tensors that are perturbed; the others step with g1
    (off="clean") or not at all (off="none"). micro_batches=m > 1 runs the whole of (g1, e, g2) on
    each of m equal parts and averages the descent gradients: m-sharpness in one process.
    """

    partial: bool = False
    off: str = "clean"
    micro_batches: int = 1

    def __post_init__(self) -> None:
        check_choice("off", self.off, OFF)
        check_count("micro_batches", self.micro_batches)

    @property
    def needs_first_pass(self) -> bool:
        """Whether tensors step with g1, or the loss at w is averaged over parts."""
        return self.partial or self.micro_batches > 1

    @property
    def plain_first(self) -> bool:
        """Whether pass 1 finds the gradient of every tensor."""
        return not self.partial or self.off == "clean"

    @property
    def needs_g1(self) -> bool:
        """Whether g1 is read once the ascent is known."""
        return self.partial and self.off == "clean"

    def first(self, passes: Passes, point: Point, state: State, only: list[bool] | None) -> Tensor:  # noqa: ARG002
        """Pass 1, at w."""
        return passes.backward(only=only)

    def second(self, passes: Passes, point: Point, state: State, only: list[bool] | None) -> Tensor:  # noqa: ARG002
        """Pass 2, at w + e."""
        return passes.backward(only=only)


@dataclass(frozen=True)
class LossRise(Slot):
    """Pass 2 on the examples whose loss rose most from w to w + e (ESAM, arXiv:2110.03141).

    The rise comes from a forward pass of the batch at w + e. int(gamma B) examples are kept, or as
    released (strict=True) those strictly above the int(gamma B)-th largest rise, one fewer. A
    batch shorter than the first one keeps at least one.
    """

    gamma: float = 0.5
    strict: bool = True
    needs_g1 = False
    needs_first_pass = True
    whole_batch = False

    def first(self, passes: Passes, point: Point, state: State, only: list[bool] | None) -> Tensor:  # noqa: ARG002
        """Pass 1 on the whole batch; keeps the losses per example."""
        loss = passes.backward(only=only)
        point.scratch["losses"] = passes.values
        return loss

    def second(self, passes: Passes, point: Point, state: State, only: list[bool] | None) -> Tensor:
        """Pass 2 on the chosen examples; returns their mean loss."""
        if self.gamma >= 0.99:
            return passes.backward(only=only)
        values, _ = passes.per_example(passes.batch)
        check_one_each(values, passes.batches.size(passes.batch))
        rise = values.detach() - point.scratch["losses"]
        usual = self._count(state.setdefault("size", len(rise)))
        if usual < 1:
            raise LandscapeError(
                f"gamma={self.gamma} keeps no example of a batch of {state['size']}; raise gamma "
                "or the batch size."
            )
        count = max(1, self._count(len(rise)))
        chosen = torch.topk(passes.sign * rise, count).indices.sort().values
        return passes.backward(batch=passes.batches.select(passes.batch, chosen), only=only)

    def _count(self, size: int) -> int:
        return int(self.gamma * size) - int(self.strict)


@dataclass(frozen=True)
class Extrapolated(Slot):
    """SAMPa's two passes (arXiv:2410.10683 Alg. 1), here one after the other.

    Pass 1 on this batch at y = x - lr h, h the first-pass gradient of the step before; pass 2 on
    the previous batch at x + e. base_terms=True adds, as released, the base SGD's momentum and
    weight decay to y once it has a momentum buffer; the paper's y has none.
    The previous batch is part of the state.
    """

    base_terms: bool = True
    needs_first_pass = True
    plain_first = whole_batch = False

    def first(self, passes: Passes, point: Point, state: State, only: list[bool] | None) -> Tensor:
        """The gradient at y, on this batch."""
        h = state.get("h")
        if h is None:
            return passes.backward(only=only)
        tensors = dict(zip(passes.trained.names, passes.trained.tensors(), strict=True))
        ahead = {
            n: self._look_ahead(point, n, tensors[n], g) * -point.lr
            for n, g in h.items()
            if n in tensors
        }
        with passes.at(ahead, moved_by=True):
            return passes.backward(only=only)

    def _look_ahead(self, point: Point, name: str, p: Tensor, h: Tensor) -> Tensor:
        buffer = point.momentum(name)
        if not self.base_terms or buffer is None:
            return h
        group = point.group(name)
        return h + group.get("momentum", 0.0) * buffer + group.get("weight_decay", 0.0) * p

    def second(self, passes: Passes, point: Point, state: State, only: list[bool] | None) -> Tensor:
        """The perturbed gradient, on the previous batch."""
        state["h"] = dict(zip(point.names, point.gradients, strict=True))
        previous = state.get("batch", passes.batch)
        state["batch"] = passes.batch
        return passes.backward(batch=previous, only=only)


@dataclass(frozen=True)
class AscentFraction(Slot):
    """Pass 1 on the first share `fraction` of the batch only (Async-SAM's b'/b)."""

    fraction: float = 1.0
    needs_g1 = False
    finds_ascent = True
    needs_first_pass = True

    @property
    def plain_first(self) -> bool:
        """Whether pass 1 runs on the whole batch."""
        return self.fraction >= 1

    @property
    def whole_batch(self) -> bool:
        """As `plain_first`."""
        return self.fraction >= 1

    def first(self, passes: Passes, point: Point, state: State, only: list[bool] | None) -> Tensor:  # noqa: ARG002
        """Pass 1 on the leading examples."""
        if self.fraction >= 1:
            return passes.backward(only=only)
        count = max(1, int(self.fraction * passes.batches.size(passes.batch)))
        leading = passes.batches.select(passes.batch, slice(0, count))
        return passes.backward(batch=leading, only=only)

    def second(self, passes: Passes, point: Point, state: State, only: list[bool] | None) -> Tensor:  # noqa: ARG002
        """Pass 2 on the whole batch."""
        return passes.backward(only=only)


@dataclass(frozen=True)
class ClassWeighted(Slot):
    """Climb on mean(c_y l), descend mean((1 - c_y) l) at w and mean(c_y l) at w + e (Focal-SAM).

    c_k = sharpness (1 - n_k/N)^flat_gamma, n_k training examples of class k (arXiv:2505.01660).
    targets: position of the labels in a batch (index of a tuple or key of a dict).
    """

    class_counts: tuple[int, ...]
    sharpness: float = 0.5
    flat_gamma: float = 1.0
    targets: int | str = 1
    needs_g1 = False
    needs_first_pass = finds_ascent = True
    plain_first = takes_loss_term = False
    leaves = ("clean",)

    def shares(self, passes: Passes) -> Tensor:
        """c_y per example of the batch, (B,)."""
        y = part_of(passes.batch, self.targets, "targets", "the labels")
        classes = len(self.class_counts)
        if (largest := int(y.max())) >= classes:  # waits for a device: it would stop for good
            raise LandscapeError(
                f"the batch holds class {largest} and class_counts has {classes} classes, 0 "
                f"to {classes - 1}; give one count per class."
            )
        counts = torch.tensor(self.class_counts, dtype=torch.float64)
        c = self.sharpness * (1 - counts / counts.sum()) ** self.flat_gamma
        like = next(iter(passes.parameters))
        return c.to(like.dtype).to(like.device, non_blocking=True)[y.to(like.device)]

    def first(self, passes: Passes, point: Point, state: State, only: list[bool] | None) -> Tensor:  # noqa: ARG002
        """Two gradients from one forward pass; the ascent one is g1."""
        with torch.enable_grad():
            point.scratch["shares"] = shares = self.shares(passes)
            loss, clean = passes.split_backward(shares)
        point.scratch["clean"] = dict(zip(point.scratch["names"], clean, strict=True))
        return loss

    def second(self, passes: Passes, point: Point, state: State, only: list[bool] | None) -> Tensor:  # noqa: ARG002
        """The weighted gradient at w + e; returns the weighted loss."""
        return passes.backward(weights=point.scratch["shares"], only=only)
