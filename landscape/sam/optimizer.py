"""The optimizer: any torch optimizer, stepped with the gradient that a variant makes."""

import contextlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from landscape import seeds
from landscape.errors import LandscapeError
from landscape.sam import basestep, points, replicas, saved, stepping
from landscape.sam.checks import (
    check_arguments,
    check_belongs,
    check_micro_batch,
    check_needs,
    check_options,
    check_trainable,
    check_unchanged,
)
from landscape.sam.engine import Trained, new_slots
from landscape.sam.passes import Passes, Statistics
from landscape.sam.perturbation import Perturbation, counterfactual
from landscape.sam.variant import Point, Variant, check_choice, check_count
from landscape.sam.weights import Backup, Workspace

BN_POLICIES = ("first", "second", "both")
_CLOSURE_FORM = object()


class SAM(Optimizer):
    """A base optimizer that descends with gd(w, e) instead of the gradient at w.

    One step: g1 at w → e → g2 at w + e → w restored, bit for bit → gd → base.step().

        base = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        optimizer = SAM(model, base, sam.sam(rho=0.05), seed=0)
        loss = optimizer.step(closure)          # closure: forward, backward, return the loss
        loss = optimizer.step(losses, batch)    # losses(batch) -> (B,) per-example losses

    Both return the first pass's loss, detached. `param_groups` are the base optimizer's own, so
    learning-rate schedulers work on either; a group may hold `rho` (its own radius; 0 excludes its
    tensors from perturbation and norm; `sam_rho` over Adadelta, whose own option is named rho).

    bn: the pass that updates running statistics, "first" (default), "second" or "both".
    same_rng_both_passes: the second pass sees the first one's global random state (same dropout).
    clip_norm: largest ‖gd‖ given to the base optimizer. scaler: a `torch.amp.GradScaler`; a closure
    runs scaler.scale(loss).backward(), losses(batch) are scaled here. Both gradients are unscaled
    before any norm or blend; call `scaler.update()` after the step.
    sync_perturbation=False: under DistributedDataParallel every process climbs along the gradient
    of its own examples (m-sharpness, m = examples per process) and descends with the mean;
    averages and masks then differ between processes.
    keep_perturbation: keep e, g1 and g2 of the last step for `perturbation` (2-3 copies of the
    weights until the next step); False saves that memory, and lets u and w + e be written where g1
    was on the CPU, unless something else refers to it.

    A step with a non-finite gradient is skipped and counted in `num_skipped`; weights, momentum and
    averages stay as they were. On CUDA nothing waits for the device: a fused base optimizer is told
    (`found_inf`), any other is put back from a copy of weights and state held while it steps. What
    the host counts goes on: `step_count`, Adam's `step` (unless capturable), the refresh of masks.
    wait_for_device=True asks once per pass instead, and nothing at all happens in such a step.
    Gradients add up in a closure that runs several backward passes, or call
    step(losses, batch, micro_batch=32): one e for the whole batch, 32 examples in memory.

    Loops that step by themselves put `backward` where loss.backward() was. In Lightning:

        def training_step(self, batch, batch_idx):  # automatic_optimization = False
            def closure():
                self.manual_backward(loss := self.compute_loss(batch))
                return loss

            self.log("loss", self.optimizers(use_pl_optimizer=False).step(closure))

    In a Hugging Face Trainer (which then clips, calls optimizer.step() and model.zero_grad()):

        class SAMTrainer(Trainer):
            def training_step(self, model, inputs, num_items_in_batch=None):
                plain = super().training_step
                return sam_optimizer.backward(lambda: plain(model, inputs, num_items_in_batch))

    Every variant that refreshes something per epoch needs `begin_epoch`. No global random state is
    used: masks come from generators seeded with `seed`, which `state_dict()` carries.
    """

    def __init__(
        self,
        model: nn.Module,
        base: Optimizer,
        variant: Variant,
        *,
        seed: int = 0,
        bn: str = "first",
        same_rng_both_passes: bool = False,
        clip_norm: float | None = None,
        scaler: Any = None,
        sync_perturbation: bool = True,
        keep_perturbation: bool = True,
        wait_for_device: bool = False,
    ) -> None:
        check_choice(bn, BN_POLICIES, "bn")
        check_arguments(model, base, variant)
        check_options(clip_norm, scaler)
        check_count(seed, "seed", 0)
        self.model, self.base, self.variant = model, base, variant
        self.bn, self.same_rng_both_passes = bn, same_rng_both_passes
        self.clip_norm, self.scaler = clip_norm, scaler
        self.sync_perturbation, self.keep_perturbation = sync_perturbation, keep_perturbation
        self.wait_for_device = wait_for_device
        self.local = not sync_perturbation and replicas.replicated(model) is not None
        if self.local:
            replicas.check_local(model, variant)
        parameters = _parameters(base)
        check_trainable([p.requires_grad for p in parameters])
        self.trained = Trained.of(model, parameters)
        check_belongs(model, self.trained, parameters)
        self._ids = list(map(id, parameters))
        self._trainable = [p.requires_grad for p in parameters]
        self.device = self.trained.parameters[0].device
        self.generator = seeds.generator(seed, purpose="sam", device=self.device)
        on_host = self.device.type == "cpu"
        self.host_generator = self.generator if on_host else seeds.generator(seed, purpose="sam")
        self._all_at_once = replicas.all_gradients_at_once(model)
        self.slots = new_slots()
        self.dense = False  # whether the gradients are, once seen
        self.known_unused: list[int] = []  # tensors of the model that the loss does not reach
        self.own_slots = all(_is_own(getattr(variant, name)) for name in self.slots)
        self.statistics_start, self.statistics_first = Statistics(model), Statistics(model)
        self.statistics_second = Statistics(model, eager=not self._all_at_once)
        self.backup, self.workspace = Backup(), Workspace()
        self.step_count, self.epoch, self.total_epochs = 0, 0, None
        self.epoch_begun = False
        self.skipped: int | Tensor = 0
        self.fisher_data: tuple[Callable[[Any], Tensor], Any, bool] | None = None
        self.last: Perturbation | None = None
        self._pending: Point | None = None  # of a gradient that `backward` left in .grad
        self._used: _Held | None = None
        self._made = False
        super().__init__(base.param_groups, base.defaults)
        self._made = True

    # The base optimizer's own, also after its load_state_dict has replaced them.
    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The base optimizer's parameter groups."""
        return self.base.param_groups

    @param_groups.setter
    def param_groups(self, value: Any) -> None: ...

    @property
    def state(self) -> Any:
        """The base optimizer's state per parameter."""
        return self.base.state

    @state.setter
    def state(self, value: Any) -> None: ...

    # ---------------------------------------------------------------- what a training loop calls

    def begin_epoch(self, epoch: int, total_epochs: int | None = None) -> None:
        """Say which epoch begins (from 0), and how many there will be.

        Gates and radii read it; masks refreshed per epoch are refreshed in its first step.
        """
        self.epoch, self.epoch_begun = check_count(epoch, "epoch", 0), True
        if total_epochs is not None:
            self.total_epochs = check_count(total_epochs, "total_epochs")

    def set_fisher_data(
        self, losses: Callable[[Any], Tensor], data: Any, *, shuffle: bool = True
    ) -> None:
        """Examples for the Fisher information: losses(batch) -> (B,), data indexable by example.

        data: tensors, a tuple or dict of them, or a map-style dataset of such examples. Examples
        are drawn by the optimizer's generator, or taken from the front with shuffle=False.
        """
        if not isinstance(data, (Tensor, tuple, list, dict)):
            data = torch.utils.data.default_collate([data[i] for i in range(len(data))])
        self.fisher_data = (losses, data, shuffle)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear all gradients; each pass does so itself."""
        self._pending = None
        self.base.zero_grad(set_to_none=set_to_none)

    def step(  # type: ignore[override]
        self,
        closure: Callable[..., Any] | None = None,
        batch: Any = _CLOSURE_FORM,
        *,
        micro_batch: int | None = None,
    ) -> Tensor | None:
        """One step, `step(closure)` or `step(losses, batch)`: the loss at w, 0-d, detached.

        micro_batch: examples per forward and backward pass; e and gd are those of the whole batch.
        `step()` after `backward(...)` steps with the gradient in `.grad` and returns None.
        """
        if closure is None and self._pending is not None:
            return self._step_with_gradient()
        passes = self._passes(closure, batch, micro_batch)
        with torch.no_grad():
            loss, point, finite = stepping.descend(self, passes)
            basestep.finish(self, point, finite, scaled=True)
        return loss

    def backward(
        self,
        closure: Callable[..., Any],
        batch: Any = _CLOSURE_FORM,
        *,
        micro_batch: int | None = None,
    ) -> Tensor:
        """Add gd to `.grad` where loss.backward() would add g1; returns the loss at w.

        For loops that accumulate, clip and step by themselves. Calls add up until the step or
        zero_grad, each with its own e. Then `step()` without arguments; with a scaler, in whose
        units `.grad` is, `scaler.unscale_(optimizer)`, clipping and `scaler.step(optimizer)` as for
        any optimizer.
        """
        passes = self._passes(closure, batch, micro_batch)
        parameters = self.trained.parameters
        if self._used is not None and self._used == _first_gradient(parameters):
            for p in parameters:  # stepped with before; never a part of the next gradient
                p.grad = None
        with torch.no_grad():
            loss, self._pending = stepping.accumulate(self, passes)
        self._used = None
        return loss

    def _step_with_gradient(self) -> None:
        if replicas.still_scaled(self.scaler, self):
            raise LandscapeError(
                "the gradient in .grad is still in the scaler's units; call scaler.step(optimizer) "
                "instead of optimizer.step()."
            )
        point, self._pending = self._pending, None
        with torch.no_grad():
            basestep.finish(self, point, basestep.gradients_finite(self), scaled=False)
        self._used = _first_gradient(self.trained.parameters)

    def _passes(self, closure: Callable[..., Any] | None, batch: Any, micro_batch: Any) -> Passes:
        """The two passes of a call, after all checks."""
        has_batch = batch is not _CLOSURE_FORM
        if not callable(closure):
            raise LandscapeError(
                "SAM.step needs the loss at w and at w + e: call step(closure) with a function "
                "that runs forward and backward and returns the loss, or step(losses, batch)."
            )
        self._check_parameters()
        check_needs(
            self.variant,
            has_batch=has_batch,
            has_fisher=self.fisher_data is not None,
            has_epochs=self.epoch_begun,
        )
        if micro_batch is not None:
            check_micro_batch(micro_batch, self.variant, has_batch=has_batch)
        model = self.model
        many = replicas.replicated(model) is not None
        return Passes(
            self.trained.parameters,
            closure=None if has_batch else closure,
            losses=closure if has_batch else None,
            batch=batch if has_batch else None,
            scaler=self.scaler,
            micro_batch=micro_batch,
            selective=not self._all_at_once,
            unsynced=partial(replicas.unsynced, model) if many else contextlib.nullcontext,
            averaged=partial(replicas.mean_over_replicas, model) if many else None,
        )

    def _check_parameters(self) -> None:
        """The set is fixed; freezing and unfreezing its members between steps is not."""
        parameters = _parameters(self.base)
        if list(map(id, parameters)) != self._ids:
            check_unchanged(self.base, tuple(self._ids))
        trainable = [p.requires_grad for p in parameters]
        if trainable != self._trainable:
            check_trainable(trainable)
            self.dense, self.known_unused = False, []
            self.trained, self.backup = Trained.of(self.model, parameters), Backup()
            check_belongs(self.model, self.trained, parameters)
            self._trainable = trainable
            for p in parameters:
                p.grad = p.grad if p.requires_grad else None

    @property
    def perturbation(self) -> Perturbation:
        """E of the last step per tensor, its mask, norm, energy share and losses."""
        if self.last is None:
            why = (
                "no step has been taken yet"
                if self.keep_perturbation
                else "this optimizer was made with keep_perturbation=False"
            )
            raise LandscapeError(f"there is no perturbation to show: {why}.")
        return self.last

    @property
    def num_skipped(self) -> int:
        """Steps skipped because a gradient was not finite (waits for the device on CUDA)."""
        return int(self.skipped)

    def counterfactual(
        self,
        losses: Callable[[Any], Tensor],
        batch: Any,
        *,
        variant: Variant | None = None,
        seed: int = 0,
    ) -> Perturbation:
        """What this optimizer (or another variant, without state) would perturb here, now.

        As `sam.perturb`, with the live masks and averages, used as a copy: nothing changes.
        """
        own = variant is None or variant is self.variant
        return counterfactual(
            self.variant if variant is None else variant,
            self.model,
            self.trained,
            losses,
            batch,
            state=self.slots if own else None,
            seed=seed,
            epoch=self.epoch,
            total_epochs=self.total_epochs,
            momentum=partial(points.momentum, self),
        )

    # ------------------------------------------------------------------------------ state on disk

    def state_dict(self) -> dict[str, Any]:  # type: ignore[override]
        """Base optimizer, slot state (masks, averages), generators and counters."""
        return saved.state_dict(self)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue exactly where `state_dict()` was taken, bit for bit at equal thread count."""
        saved.load_state_dict(self, state_dict)

    def add_param_group(self, param_group: dict[str, Any]) -> None:  # noqa: ARG002
        """Called by torch while the optimizer is made; afterwards the parameter set is fixed."""
        if self._made:
            raise LandscapeError(
                "the parameter set of a SAM optimizer is fixed; add the group to the base "
                "optimizer and make a new SAM."
            )


def _is_own(slot: Any) -> bool:
    """Whether a slot is one of this package's."""
    return slot is None or str(slot.__module__).startswith("landscape.sam.")


class _Held:
    """A gradient tensor as it was: equal while nothing has replaced or altered it."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor, self.version = tensor, tensor._version

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, _Held)
            and self.tensor is other.tensor
            and self.version == other.version
        )

    __hash__ = None


def _first_gradient(parameters: Sequence[nn.Parameter]) -> _Held | None:
    return next((_Held(p.grad) for p in parameters if p.grad is not None), None)


def _parameters(base: Optimizer) -> list[nn.Parameter]:
    return [p for group in base.param_groups for p in group["params"]]
