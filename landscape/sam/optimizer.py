"""The optimizer: any torch optimizer, stepped with the gradient that a variant makes."""

import contextlib
from collections.abc import Callable, Generator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from landscape import seeds
from landscape.checks import check_choice, check_count
from landscape.errors import LandscapeError
from landscape.sam import points, replicas
from landscape.sam.around import AroundBase
from landscape.sam.base_step import BaseStep
from landscape.sam.bases import parameters_of, together
from landscape.sam.batches import BatchCutter, check_lasts
from landscape.sam.buffers import Buffers, frozen_beside
from landscape.sam.checks import (
    check_arguments,
    check_belongs,
    check_micro_batch,
    check_mode,
    check_needs,
    check_options,
    check_own_memory,
    check_signs,
    check_still_there,
    check_trainable,
)
from landscape.sam.engine import new_slots
from landscape.sam.finite import all_finite
from landscape.sam.guard import Guard
from landscape.sam.leftover import (
    all_stepped_with,
    check_no_accumulation,
    check_nothing_left,
    stepped_with,
)
from landscape.sam.passes import Passes
from landscape.sam.perturbation import Perturbation, counterfactual
from landscape.sam.shards import local
from landscape.sam.step import Step
from landscape.sam.trained import Trained
from landscape.sam.variant import Point, Variant, norms_of_wholes, total_norm
from landscape.sam.weights import Weights

BN_POLICIES = ("first", "second", "both")
_CLOSURE_FORM = object()


class SAM(AroundBase):
    """A base optimizer that descends with gd(w, e) instead of the gradient at w.

    One step: g1 at w → e → g2 at w + e → w restored, bit for bit → gd → base.step().

        base = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        optimizer = SAM(model, base, sam.sam(rho=0.05), seed=0)
        loss = optimizer.step(closure)          # closure: forward, backward, return the loss
        loss = optimizer.step(losses, batch)    # losses(batch) -> (B,) per-example losses

    Both return the first pass's loss, detached. `param_groups` are the base optimizer's own, so
    learning-rate schedulers work on either; a group may hold `rho` (its own radius; 0 excludes its
    tensors from perturbation and norm; `sam_rho` over Adadelta, whose own option is named rho).

    base: a torch optimizer, or several over different tensors ([Muon(...), AdamW(...)]); one with
    maximize=True climbs where its objective is worse. It steps with gd in `.grad`, and one that
    wants more is refused by name: LBFGS evaluates the loss itself, AdaHessian differentiates
    `.grad` again, whose graph is that of w + e (`sam.sassha` estimates its Hessian there itself).
    bn: the pass that updates the model's buffers, "first" (default), "second" or "both": running
    statistics, spectral vectors, queues, codebooks, and frozen parameters where there are no more
    of them than are trained (the averaged weights of a teacher). What a forward pass keeps
    elsewhere, in a plain attribute or a counter of Python, both passes change: register it as a
    buffer (the first climb warns of queues that it sees). Networks beside the trained one whose
    buffers count too (a GAN's discriminator while its generator is trained) go into one model,
    SAM(nn.ModuleList([generator, discriminator]), SGD(generator.parameters()), ...).
    same_rng_both_passes: the second pass sees the global random state of the first (same dropout):
    torch's, Python's and numpy's. A generator that a module holds for itself goes on.
    clip_norm: largest ‖gd‖ given to the base optimizer. scaler: a `torch.amp.GradScaler`; a closure
    runs scaler.scale(loss).backward(), losses(batch) are scaled here. Both gradients are unscaled
    before any norm or blend; call `scaler.update()` after the step. (torch refuses
    scaler.step(optimizer, closure=...) before it asks this class.)
    sync_perturbation=False: under DistributedDataParallel every process climbs along the gradient
    of its own examples (m-sharpness, m = examples per process) and descends with the mean;
    averages and masks then differ between processes.
    keep_perturbation: keep e, g1 and g2 of the last step for `perturbation` (2-3 copies of the
    weights until the next step); False saves that memory.
    select: select(batch, index) -> the examples of a slice or a tensor of whole numbers, and
    select(batch, None) -> their number, for batches that containers of tensors do not describe.

    e is added to the weights in place and w is restored from a copy, bit for bit. At climbs 1, 9,
    65, 513, ... pass 2 is compared with the same pass at w: loss and gradient must differ, where
    |gᵀe| exceeds a hundred roundings of the loss (`guard.said` tells what was seen; it may run a
    closure once more where dropout or buffers came between the passes). A closure whose gradient is
    64 or more times that of the loss it returns is refused there: by a scaler that SAM was not told
    of, or (1000 * loss).backward(), gd would be as many times too long, though ‖e‖ = rho.

    Under DistributedDataParallel, `fully_shard` and tensor parallelism the steps are those of one
    process with all examples, where the loss is their mean and no layer takes statistics of a
    batch. Sums over sharded tensors cost 8 bytes a tensor; variants with masks or draws gather the
    tensors that they rank, one after the other (those over the whole model: all of them), and
    Fisher examples must be the same in all processes. ESAM and m-sharpness (`micro_batched`)
    choose and cut among each process's own examples. FullyShardedDataParallel is refused.

    A step with a non-finite gradient is skipped and counted in `num_skipped`; weights, momentum and
    averages stay as they were. On CUDA nothing waits for the device: a fused base optimizer is told
    (`found_inf`), any other is put back from a copy of weights and state held while it steps. What
    the host counts goes on: `step_count`, Adam's `step` (unless capturable), the refresh of masks.
    Of fewer than 32 trained tensors the device is asked once a step, before the base optimizer:
    the dozen launches that spare it would be more than 15 % of so few. wait_for_device=False never
    asks; True asks once per pass, and nothing at all happens in a step that is skipped.
    Gradients add up in a closure that runs several backward passes, or call
    step(losses, batch, micro_batch=32): one e for the whole batch, 32 examples in memory. A batch
    is cut in whatever containers it comes. A gradient that others have left in `.grad` is refused,
    never overwritten; `backward` adds up. What the loss reaches in one of the passes only has the
    gradient 0 in the other; what it reaches in neither is left alone.

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

    Example:
        >>> base = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> optimizer = sam.SAM(model, base, sam.sam(rho=0.05), seed=0)
        >>> loss = optimizer.step(losses, data)
        >>> round(float(optimizer.perturbation.norm), 6)
        0.05
    """

    def __init__(
        self,
        model: nn.Module,
        base: Optimizer | Sequence[Optimizer] | None = None,
        variant: Variant | None = None,
        *,
        seed: int = 0,
        bn: str = "first",
        same_rng_both_passes: bool = False,
        clip_norm: float | None = None,
        scaler: Any = None,
        sync_perturbation: bool = True,
        keep_perturbation: bool = True,
        wait_for_device: bool | None = None,
        select: Callable[[Any, Any], Any] | None = None,
        **other: Any,
    ) -> None:
        base = together(base)
        variant = check_arguments(model, base, variant, other)
        check_choice("bn", bn, BN_POLICIES)
        check_options(clip_norm, scaler)
        check_count("seed", seed, 0)
        replicas.check_sharded(model)
        self.model, self.base, self.variant = model, base, variant
        self.bn, self.same_rng_both_passes = bn, same_rng_both_passes
        self.clip_norm, self.scaler = clip_norm, scaler
        self.sync_perturbation, self.keep_perturbation = sync_perturbation, keep_perturbation
        self.wait_for_device = wait_for_device
        self.batches = BatchCutter(select)
        self._made = False
        self.slots = new_slots()
        self._join_parameters()
        self.generator = seeds.generator(seed, purpose="sam", device=self.device)
        on_host = self.device.type == "cpu"
        self.host_generator = self.generator if on_host else seeds.generator(seed, purpose="sam")
        self.step_count, self.epoch, self.total_epochs = 0, 0, None
        self.epoch_begun = False
        self.skipped: int | Tensor = 0
        self.fisher_data: tuple[Callable[[Any], Tensor], Any, bool] | None = None
        self._prepare()
        super().__init__(base.param_groups, base.defaults)
        self._made = True

    def _prepare(self) -> None:
        """What a process makes for itself: nothing of it is saved, copied or pickled."""
        model = self.model
        replica = replicas.replicated(model)
        # The replica whose processes climb along gradients of their own.
        self.local = None if self.sync_perturbation else replica
        if self.local is not None:
            replicas.check_local(self.variant)
        self.averaged = None if replica is None else partial(replicas.mean_over_replicas, replica)
        self._all_at_once = replicas.all_gradients_at_once(model)
        make = partial(Buffers, model, self.frozen)
        self.buffers_at_start, self.buffers_before_first = make(), make()
        self.buffers, self.buffers_nearby = make(), make()
        self.weights, self.weights_nearby = Weights(model), Weights(model)
        self.guard = Guard()
        if self.scaler is not None:  # a scaler makes its scale when it is first asked
            self.scaler.scale(torch.ones((), device=self.device))
        self.stepping = False  # passes are under way
        self.last: Perturbation | None = None
        self._pending: Point | None = None  # of a gradient that `backward` left in .grad

    def _join_parameters(self) -> None:
        """See which tensors are trained now; state is keyed by names and waits for them."""
        parameters = parameters_of(self.base)
        trainable = [p.requires_grad for p in parameters]
        check_trainable(trainable)
        self.trained = Trained.of(self.model, parameters)
        check_belongs(self.model, self.trained, parameters)
        check_own_memory(self.trained)
        ids = list(map(id, parameters))
        known = set(self.__dict__.get("_ids", ids))
        for p in parameters:
            if id(p) not in known:
                p.grad = None  # of passes before it was trained
        self._ids, self._trainable = ids, trainable
        self.frozen_in_base = [p for p in parameters if not p.requires_grad]
        self.device = self.trained.tensors()[0].device
        self.__dict__.setdefault("frozen", [])[:] = frozen_beside(self.model, self.trained)
        self.known_unused: list[int] = []  # tensors of the model that the loss does not reach
        for p in parameters:
            p.grad = p.grad if p.requires_grad else None

    # ---------------------------------------------------------------- what a training loop calls

    def begin_epoch(self, epoch: int, total_epochs: int | None = None) -> None:
        """Say which epoch begins (from 0), and how many there will be.

        Gates and radii read it; masks refreshed per epoch are refreshed in its first step.
        """
        self.epoch, self.epoch_begun = check_count("epoch", epoch, 0), True
        if total_epochs is not None:
            self.total_epochs = check_count("total_epochs", total_epochs)

    def set_fisher_data(
        self, losses: Callable[[Any], Tensor], data: Any, *, shuffle: bool = True
    ) -> None:
        """Examples for the Fisher information: losses(batch) -> (B,), data indexable by example.

        data: a batch (tensors in any containers), or a map-style dataset, of which only the
        examples drawn are read, anew at every refresh. Examples are drawn by the optimizer's
        generator, or taken from the front with shuffle=False.
        """
        self.fisher_data = (losses, data, shuffle)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear all gradients."""
        self._pending = None
        self.base.zero_grad(set_to_none=set_to_none)

    def step(  # ty: ignore[incompatible-method-override]  # also takes losses and a batch
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
            self._step_with_gradient(self._pending)
            return None
        if closure is None and self._every_gradient_is_zero():
            self.base.step()  # as tools do that want an optimizer to have its state
            return None
        passes = self._passes(closure, batch, micro_batch)
        passes.steps = True
        check_nothing_left(self.trained)
        check_no_accumulation()
        with torch.no_grad(), self._clearing_on_failure():
            with self._passes_under_way():
                self.buffers_at_start.save()
                taken = Step(self, passes).run()
            BaseStep(self, taken.point, taken.finite).take(scaled=True)
        stepped_with(self.trained)
        return taken.loss

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
        if all_stepped_with(self.trained):
            for p in parameters:  # stepped with before; never a part of the next gradient
                p.grad = None
        earlier = [p.grad for p in parameters]
        with torch.no_grad():
            with self._passes_under_way():
                self.buffers_at_start.save()
                taken = Step(self, passes).run()
            self._add_to(earlier, taken)
        self._pending = taken.point
        self.guard.leaves(self.trained.gradients())
        return taken.loss

    def _add_to(self, earlier: Sequence[Tensor | None], taken: Step) -> None:
        """Gradients of earlier calls and gd, in the scaler's units when there is one."""
        finite, factor = taken.finite, None
        if self.scaler is not None:
            factor = BaseStep(self, taken.point, finite).scale_factor()
        elif isinstance(finite, Tensor):
            factor = torch.where(finite, 1.0, torch.inf)
        if finite is False:
            self.buffers_at_start.restore()
            if self.scaler is not None and all_finite(map(_local_or_none, earlier)):
                self.skipped = self.skipped + 1  # step() will not be called
        for i, g in enumerate(self.trained.gradients()):
            if g is not None and factor is not None:
                self.trained.put(i, g * factor.to(g.device, g.dtype))
        for p, before in zip(self.trained.parameters, earlier, strict=True):
            if before is not None:
                p.grad = before if p.grad is None else before + p.grad

    def _step_with_gradient(self, point: Point) -> None:
        if replicas.still_scaled(self.scaler, self):
            raise LandscapeError(
                "the gradient in .grad is still in the scaler's units; call scaler.step(optimizer) "
                "instead of optimizer.step()."
            )
        self._pending = None
        self.guard.check_left(self.trained.gradients())
        with torch.no_grad():
            BaseStep.of_gradient(self, point).take(scaled=False)
        stepped_with(self.trained)

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """`GradScaler.step` asks, before it fails for want of gradients (it runs no closure)."""
        if all(p.grad is None for p in self.trained.parameters):
            raise LandscapeError(
                "scaler.step(optimizer) found no gradient in .grad, and a GradScaler runs no "
                "closure. Make SAM(..., scaler=scaler) and call optimizer.step(closure), where the "
                "closure runs scaler.scale(loss).backward() and returns loss, then "
                "scaler.update(). In a loop that steps by itself: optimizer.backward(closure), "
                "then scaler.step(optimizer)."
            )
        return False

    def _every_gradient_is_zero(self) -> bool:
        """Whether there are gradients and nothing is in them: a step then needs no ascent."""
        found = [g for g in self.trained.gradients() if g is not None]
        return bool(found) and not any(bool(g.any()) for g in found)

    @contextlib.contextmanager
    def _passes_under_way(self) -> Generator[None]:
        self.stepping = True
        try:
            yield
        finally:
            self.stepping = False

    @contextlib.contextmanager
    def _clearing_on_failure(self) -> Generator[None]:
        """What a pass that failed left in `.grad` is nobody's gradient."""
        try:
            yield
        except BaseException:
            for p in self.trained.parameters:
                p.grad = None
            raise

    def _passes(self, closure: Callable[..., Any] | None, batch: Any, micro_batch: Any) -> Passes:
        """The two passes of a call, after all checks."""
        has_batch = batch is not _CLOSURE_FORM
        if not callable(closure):
            raise LandscapeError(
                "SAM.step needs the loss at w and at w + e: call step(closure) with a function "
                "that runs forward and backward and returns the loss, or step(losses, batch). "
                "Where a loop of others steps by itself (Trainer, Lightning, an engine), put "
                "optimizer.backward(closure) in the place of loss.backward(), as help(SAM) shows."
            )
        if self.stepping:
            raise LandscapeError(
                "the closure of a step called this optimizer's step or backward again; let it run "
                "forward and backward alone, and step once around it."
            )
        if torch.is_inference_mode_enabled():
            raise LandscapeError(
                "a step needs gradients, which torch.inference_mode() around it forbids; leave it."
            )
        check_lasts(batch)
        self._check_parameters()
        check_mode(self.base)
        check_needs(
            self.variant,
            has_batch=has_batch,
            has_fisher=self.fisher_data is not None,
            has_epochs=self.epoch_begun,
        )
        if micro_batch is not None:
            check_micro_batch(micro_batch, self.variant, has_batch=has_batch)
        model = self.model
        return Passes(
            self.trained,
            self.weights_nearby,
            closure=None if has_batch else closure,
            losses=closure if has_batch else None,
            batch=batch if has_batch else None,
            batches=self.batches,
            signs=self._signs(),
            scaler=self.scaler,
            micro_batch=micro_batch,
            check_model=partial(check_still_there, model, self.trained),
            selective=not self._all_at_once,
            unsynced=partial(replicas.unsynced, model) if self.averaged else contextlib.nullcontext,
            averaged=self.averaged,
        )

    def _signs(self) -> list[int] | None:
        """-1 for the tensors of a group with maximize=True, whose ascent is the other way."""
        groups = self.base.param_groups
        if not any(g.get("maximize") for g in groups):
            return None
        flipped = {id(p) for g in groups if g.get("maximize") for p in g["params"]}
        signs = [-1 if id(p) in flipped else 1 for p in self.trained.parameters]
        check_signs(self.variant, signs)
        return signs

    def _check_parameters(self) -> None:
        """Tensors may be frozen, unfrozen, added to the base optimizer or taken out of it."""
        parameters = parameters_of(self.base)
        if list(map(id, parameters)) != self._ids or self._trainable != [
            p.requires_grad for p in parameters
        ]:
            self._join_parameters()

    def norm_over(self, where: Sequence[int], tensors: Sequence[Tensor]) -> Tensor:
        """ℓ2 norm of parts of the trained tensors `where`, that of the wholes together."""
        shards = self.trained.shards
        norms = norms_of_wholes(tensors, None if shards is None else shards.only(where))
        return total_norm([n for n in norms if n is not None])

    @property
    def perturbation(self) -> Perturbation:
        """E of the last step per tensor, its mask, norm, energy share and losses."""
        if self.last is None:
            why = (
                "no step has been taken yet, or the closure wrote the gradient of its second pass "
                "into the memory of the first"
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
            momentum=partial(points.momentum, self.base, self.trained),
            signs=self._signs(),
            batches=self.batches,
        )


def _local_or_none(g: Tensor | None) -> Tensor | None:
    return None if g is None else local(g)
