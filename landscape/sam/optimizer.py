"""The optimizer: any torch optimizer, stepped with the gradient that a variant makes."""

import contextlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from landscape.errors import LandscapeError
from landscape.sam import saved
from landscape.sam.engine import Trained, ascend, new_slots, squared_gradients, unwrap
from landscape.sam.loss_terms import check_outputs
from landscape.sam.passes import (
    Passes,
    batch_size,
    frozen_statistics,
    rng_state,
    select,
    set_rng_state,
)
from landscape.sam.perturbation import Perturbation, counterfactual, spread
from landscape.sam.schedule import always
from landscape.sam.variant import Point, Variant, check_choice, tensor_norms, total_norm

BN_POLICIES = ("first", "second", "both")
_CLOSURE_FORM = object()


class SAM(Optimizer):
    """A base optimizer that descends with gd(w, e) instead of the gradient at w.

    One step: g1 at w → e → g2 at w + e → w restored by copy, exactly → gd → base.step().

        optimizer = SAM(model, torch.optim.SGD(model.parameters(), lr=0.1), sam.sam(rho=0.05), seed=0)
        loss = optimizer.step(closure)          # closure: forward, backward, return the loss
        loss = optimizer.step(losses, batch)    # losses(batch) -> (B,) per-example losses

    Both return the first pass's loss, detached. `param_groups` are the base optimizer's own, so
    learning-rate schedulers work on either; a group may hold `rho` (its own radius; 0 excludes its
    tensors from perturbation and norm).

    bn: the pass that updates running statistics, "first" (default), "second" or "both".
    same_rng_both_passes: the second pass sees the first one's global random state (same dropout).
    clip_norm: largest ‖gd‖ given to the base optimizer. scaler: a `torch.amp.GradScaler`; both
    gradients are unscaled before any norm or blend, and you call `scaler.update()` after the step.
    sync_perturbation=False: under DistributedDataParallel the first pass keeps its local gradient.
    keep_perturbation: keep e, g1 and g2 of the last step for `perturbation` (2-3 copies of the
    weights until the next step); False saves that memory.

    A step with a non-finite gradient is skipped and counted in `num_skipped`; weights, momentum and
    averages stay as they were. On CUDA nothing waits for the device: a fused base optimizer is told
    (`found_inf`), any other gets a zero gradient for that step.
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
    ) -> None:
        check_choice(bn, BN_POLICIES, "bn")
        self.model, self.base, self.variant = model, base, variant
        self.bn, self.same_rng_both_passes = bn, same_rng_both_passes
        self.clip_norm, self.scaler = clip_norm, scaler
        self.sync_perturbation, self.keep_perturbation = sync_perturbation, keep_perturbation
        parameters = _parameters(base)
        self.trained = Trained.of(model, parameters)
        self._check_belongs(parameters)
        self._ids = tuple(map(id, parameters))
        self.device = self.trained.parameters[0].device
        self.generator = torch.Generator(self.device).manual_seed(seed)
        on_host = self.device.type == "cpu"
        self.host_generator = self.generator if on_host else torch.Generator().manual_seed(seed)
        self.slots = new_slots()
        self.step_count, self.epoch, self.total_epochs = 0, 0, None
        self._epoch_begun = False
        self._skipped: int | Tensor = 0
        self._fisher_data: tuple[Callable[[Any], Tensor], Any, bool] | None = None
        self._last: Perturbation | None = None
        super().__init__(base.param_groups, {})
        self._adopt_base()

    def _adopt_base(self) -> None:
        self.param_groups, self.state = self.base.param_groups, self.base.state

    # ---------------------------------------------------------------- what a training loop calls

    def begin_epoch(self, epoch: int, total_epochs: int | None = None) -> None:
        """Say which epoch begins (from 0), and how many there will be.

        Gates and radii read it; masks refreshed per epoch are refreshed in its first step.
        """
        self.epoch, self._epoch_begun = int(epoch), True
        if total_epochs is not None:
            self.total_epochs = int(total_epochs)

    def set_fisher_data(
        self, losses: Callable[[Any], Tensor], data: Any, *, shuffle: bool = True
    ) -> None:
        """Examples for the Fisher information: losses(batch) -> (B,), data indexable by example.

        data: tensors, a tuple or dict of them, or a map-style dataset of such examples. Examples
        are drawn by the optimizer's generator, or taken from the front with shuffle=False.
        """
        if not isinstance(data, (Tensor, tuple, list, dict)):
            data = torch.utils.data.default_collate([data[i] for i in range(len(data))])
        self._fisher_data = (losses, data, shuffle)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear all gradients; each pass does so itself."""
        self.base.zero_grad(set_to_none=set_to_none)

    def step(self, closure: Callable[..., Any], batch: Any = _CLOSURE_FORM) -> Tensor:  # type: ignore[override]
        """One step: `step(closure)` or `step(losses, batch)`; returns the loss at w, 0-d, detached."""
        if closure is None or not callable(closure):
            raise LandscapeError(
                "SAM.step needs the loss at w and at w + e: call step(closure) with a function that "
                "runs forward and backward and returns the loss, or step(losses, batch)."
            )
        self._check_unchanged()
        self._check_needs(batch is not _CLOSURE_FORM)
        parameters = self.trained.parameters
        if batch is _CLOSURE_FORM:
            passes = Passes(parameters, closure=closure, scaler=self.scaler)
        else:
            passes = Passes(parameters, losses=closure, batch=batch, scaler=self.scaler)
        with torch.no_grad():
            parts = getattr(self.variant.evaluate, "micro_batches", 1)
            loss = self._descend(passes) if parts == 1 else self._descend_parts(passes, parts)
        return loss

    @property
    def perturbation(self) -> Perturbation:
        """E of the last step per tensor, its mask, norm, energy share and losses."""
        if self._last is None:
            why = (
                "no step has been taken yet"
                if self.keep_perturbation
                else "this optimizer was made with keep_perturbation=False"
            )
            raise LandscapeError(f"there is no perturbation to show: {why}.")
        return self._last

    @property
    def num_skipped(self) -> int:
        """Steps skipped because a gradient was not finite (waits for the device on CUDA)."""
        return int(self._skipped)

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
            momentum=self._momentum,
        )

    # ------------------------------------------------------------------------------ state on disk

    def state_dict(self) -> dict[str, Any]:  # type: ignore[override]
        """Base optimizer, slot state (masks, averages), generators and counters."""
        return saved.state_dict(self)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue exactly where `state_dict()` was taken, bit for bit at equal thread count."""
        saved.load_state_dict(self, state_dict)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Called by torch while the optimizer is made; afterwards the parameter set is fixed."""
        if hasattr(self, "state") and getattr(self, "param_groups", None) is self.base.param_groups:
            raise LandscapeError(
                "the parameter set of a SAM optimizer is fixed; add the group to the base optimizer "
                "and make a new SAM."
            )
        self.param_groups.append(param_group)

    # ------------------------------------------------------------------------------------ checks

    def _check_belongs(self, parameters: Sequence[nn.Parameter]) -> None:
        own = {id(p) for p in unwrap(self.model).parameters()}
        foreign = [i for i, p in enumerate(parameters) if id(p) not in own]
        if foreign:
            shapes = [tuple(parameters[i].shape) for i in foreign[:3]]
            raise LandscapeError(
                f"{len(foreign)} of the base optimizer's {len(parameters)} parameters do not belong "
                f"to the model (the first of shapes {shapes}); build the base optimizer from "
                "model.parameters() of this model."
            )
        if not self.trained.names:
            raise LandscapeError(
                "the base optimizer holds no trainable parameter of this model; nothing can be "
                "trained."
            )

    def _check_unchanged(self) -> None:
        if tuple(id(p) for g in self.base.param_groups for p in g["params"]) == self._ids:
            return
        now = sum(len(g["params"]) for g in self.base.param_groups)
        raise LandscapeError(
            f"the parameter set changed between steps (it was {len(self._ids)} tensors, now {now} or "
            "others); make a new SAM for the new parameters."
        )

    def _check_needs(self, has_batch: bool) -> None:
        needs, name = self.variant.needs, self.variant.name
        by_batch = sorted(needs & {"per_example_losses", "logits", "indices", "previous_batch"})
        parts = getattr(self.variant.evaluate, "micro_batches", 1)
        if parts > 1:
            by_batch = sorted({*by_batch, "per_example_losses"})
        if by_batch and not has_batch:
            raise LandscapeError(
                f"variant {name!r} needs {', '.join(by_batch)}, which step(closure) cannot offer; "
                "call step(losses, batch) with losses(batch) -> (B,)"
                + (" and the model's outputs, (losses, logits)." if "logits" in needs else ".")
            )
        if "fisher_data" in needs and self._fisher_data is None:
            raise LandscapeError(
                f"variant {name!r} needs fisher_data; call optimizer.set_fisher_data(losses, data) "
                "before the first step."
            )
        if "epochs" in needs and not self._epoch_begun:
            raise LandscapeError(
                f"variant {name!r} changes per epoch and has not been told of any; call "
                "optimizer.begin_epoch(epoch, total_epochs=...) when each epoch begins."
            )

    # ------------------------------------------------------------------------------------- a step

    def _descend(self, passes: Passes) -> Tensor:
        """Gradient of the whole batch, then the base step."""
        point, finite = self._descent_gradient(passes)
        self._finish(point, finite)
        return point.loss

    def _descend_parts(self, passes: Passes, parts: int) -> Tensor:
        """m-sharpness: the descent gradient averaged over equal parts of the batch."""
        size, batch = batch_size(passes.batch), passes.batch
        if size < parts:
            raise LandscapeError(
                f"micro_batches={parts} were asked of a batch of {size} examples; lower it or "
                "enlarge the batch."
            )
        bounds = [round(i * size / parts) for i in range(parts + 1)]
        total: list[Tensor | None] = [None] * len(self.trained.names)
        loss, finite, point = torch.zeros((), device=self.device), True, None
        for a, b in zip(bounds, bounds[1:], strict=False):
            passes.batch = select(batch, slice(a, b))
            point, ok = self._descent_gradient(passes)
            finite = finite & ok if isinstance(ok, Tensor) else finite and ok
            loss = loss + point.loss * ((b - a) / size)
            for i, p in enumerate(self.trained.parameters):
                if p.grad is not None:
                    part = p.grad * ((b - a) / size)
                    total[i] = part if total[i] is None else total[i].add_(part)
        for p, g in zip(self.trained.parameters, total, strict=True):
            p.grad = g
        self._finish(point, finite)
        return loss

    def _descent_gradient(self, passes: Passes) -> tuple[Point, bool | Tensor]:
        """Leave gd in `.grad`; returns the point and whether all gradients were finite."""
        rng = rng_state(self.device) if self.same_rng_both_passes else None
        point, g1, live = self._first_pass(passes)
        finite = self._finite(point.norm) if point.gradients else True
        if finite is False:
            self._remember(point, live, g1, g1, None, None)
            return point, False
        if isinstance(finite, Tensor) and self.slots["source"]:
            # Without waiting for the device: an infinite gradient must not enter the averages.
            point.gradients = [torch.where(finite, g, 0.0) for g in point.gradients]
        if not self.variant.gate(point, self.slots["gate"]):
            off = getattr(self.variant.correction, "off", None)
            if off is not None:
                gd = off(point, point.gradients, self.slots["correction"])
                for i, g in zip(live, gd, strict=True):
                    self.trained.parameters[i].grad = g
            self._remember(point, live, g1, [None] * len(g1), None, None)
            return point, finite
        return self._climb(passes, point, g1, live, rng, finite)

    def _first_pass(self, passes: Passes) -> tuple[Point, list[Tensor | None], list[int]]:
        variant, parameters = self.variant, self.trained.parameters
        if not getattr(variant.source, "first_pass", True):
            live = list(range(len(parameters)))
            return self._point(live, []), [None] * len(parameters), live
        point = self._point([], [])
        point.scratch["names"] = self.trained.names
        with frozen_statistics(self.model, self.bn == "second"), self._unsynced():
            self._add_loss_term(passes, point)
            loss = variant.evaluate.first(
                passes, point, self.slots["evaluate"], self._restrict_first()
            )
        g1 = [p.grad for p in parameters]
        live = [i for i, g in enumerate(g1) if g is not None]
        full = self._point(live, [g1[i] for i in live])
        full.loss, full.scratch = loss, point.scratch
        return full, g1, live

    def _add_loss_term(self, passes: Passes, point: Point) -> None:
        term, state = self.variant.loss_term, self.slots["loss_term"]
        if term is None:
            return
        before = getattr(term, "before_pass", None)
        if before is not None:
            with frozen_statistics(self.model):
                before(point, passes, state)

        def extra(outputs: Any, batch: Any) -> Tensor:
            check_outputs(outputs)
            return term(point, outputs, batch, state)

        passes.extra_loss = extra

    def _restrict_first(self) -> list[bool] | None:
        """Which first-pass gradients are worth computing, None for all."""
        variant, trained = self.variant, self.trained
        active = getattr(variant.selector, "active", None)
        if active is None:
            return None
        chosen = active(
            names=trained.names, kinds=trained.kinds, modules=trained.modules,
            state=self.slots["selector"], generator=self.host_generator,
        )  # fmt: skip
        reads_g1 = getattr(variant.correction, "needs_g1", True) or variant.gate is not always
        unused = getattr(variant.evaluate, "off", "clean") == "none"
        needs_all = reads_g1 or getattr(variant.geometry, "scope", "global") in ("full", "raw")
        return chosen if unused or not needs_all else None

    def _unsynced(self):
        if self.sync_perturbation or not hasattr(self.model, "no_sync"):
            return contextlib.nullcontext()
        return self.model.no_sync()

    def _climb(self, passes, point, g1, live, rng, finite):
        variant, slots, parameters = self.variant, self.slots, self.trained.parameters
        ascent = ascend(variant, point, slots)
        e = spread(ascent.e, live, len(parameters))
        climbed = [p for p, x in zip(parameters, e, strict=True) if x is not None]
        partial = getattr(variant.evaluate, "partial", False)
        after = rng_state(self.device) if rng is not None else None
        old: list[Tensor] = []
        try:
            if climbed:
                old = [p.detach().clone() for p in climbed]
                torch._foreach_add_(climbed, [x for x in e if x is not None])
            hook = getattr(variant.selector, "after_ascent", None)
            if hook is not None:
                hook(point, slots["selector"])
            if rng is not None:
                set_rng_state(rng, self.device)
            only = [x is not None for x in e] if partial else None
            with frozen_statistics(
                self.model, self.bn == "first" and any(g is not None for g in g1)
            ):
                loss2 = variant.evaluate.second(passes, point, slots["evaluate"], only)
            g2 = [p.grad for p in parameters]
            both, pair = self._pair(point, live, g1, g2)
            hook = getattr(variant.correction, "before_restore", None)
            if hook is not None:
                hook(pair, pair.gradients, [g2[i] for i in both], slots["correction"])
        finally:
            if old:
                torch._foreach_copy_(climbed, old)
            if after is not None:
                set_rng_state(after, self.device)
        if point.loss is None:
            point.loss = loss2
        finite = self._both_finite(finite, g2)
        self._remember(point, live, g1, g2, ascent, loss2)
        if finite is False:
            return point, False
        gd = variant.correction(pair, pair.gradients, [g2[i] for i in both], slots["correction"])
        for i, g in zip(both, gd, strict=True):
            parameters[i].grad = g
        if getattr(variant.evaluate, "off", "clean") == "clean":
            for p, a in zip(parameters, g1, strict=True):
                if p.grad is None and partial:
                    p.grad = a
        return pair if both else point, finite

    @staticmethod
    def _pair(point, live, g1, g2):
        """Tensors with both gradients, and the point seen through them."""
        if not point.gradients:  # no first pass: corrections see g2 alone
            both = [i for i, b in enumerate(g2) if b is not None]
            pair = point.only([live.index(i) for i in both])
            return both, pair
        both = [i for i in live if g2[i] is not None]
        if len(both) == len(live):
            return both, point
        return both, point.only([live.index(i) for i in both])

    def _finish(self, point: Point, finite: bool | Tensor) -> None:
        if finite is False:
            self._skipped = self._skipped + 1
            if self.scaler is not None:
                self._scaled_base_step()  # lets the scaler see the overflow
            return
        if self.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.trained.parameters, self.clip_norm)
        if self.scaler is not None:
            self._scaled_base_step()
        elif isinstance(finite, Tensor):
            self._guarded_base_step(finite)
        else:
            self.base.step()
        for slot in ("correction", "selector", "loss_term"):
            hook = getattr(getattr(self.variant, slot), "after_step", None)
            if hook is not None:
                hook(point, self.slots[slot])
        self.step_count += 1

    def _scaled_base_step(self) -> None:
        factor = self.scaler.scale(torch.ones((), device=self.device))
        for p in self.trained.parameters:
            if p.grad is not None:
                p.grad = p.grad * factor.to(p.grad.device, p.grad.dtype)
        self.scaler.step(self.base)

    def _guarded_base_step(self, finite: Tensor) -> None:
        """On CUDA: skip without asking the device whether to."""
        self._skipped = self._skipped + (~finite).long()
        if all(g.get("fused") for g in self.base.param_groups):
            self.base.found_inf = (~finite).float()
            try:
                self.base.step()
            finally:
                del self.base.found_inf
            return
        for p in self.trained.parameters:
            if p.grad is not None:
                p.grad = torch.where(finite, p.grad, 0.0)
        self.base.step()

    def _finite(self, norm: Tensor) -> bool | Tensor:
        finite = torch.isfinite(norm)
        return finite if norm.is_cuda else bool(finite)

    def _both_finite(self, finite: bool | Tensor, g2: Iterable[Tensor | None]) -> bool | Tensor:
        norms = tensor_norms([g for g in g2 if g is not None])
        second = self._finite(total_norm(norms)) if norms else True
        return finite & second if isinstance(second, Tensor) else bool(finite) and second

    def _remember(self, point, live, g1, g2, ascent, loss2) -> None:
        if not self.keep_perturbation:
            return
        size = len(self.trained.names)
        mask = ([True] * len(live) if ascent.mask is None else ascent.mask) if ascent else None
        self._last = Perturbation(
            names=self.trained.names,
            shapes=tuple(p.shape for p in self.trained.parameters),
            perturbed=spread(ascent.e, live, size) if ascent else [None] * size,
            masks=spread(mask, live, size, False) if ascent else [False] * size,
            g1=g1,
            g2=g2 if ascent else [None] * size,
            loss_clean=point.loss,
            loss_perturbed=point.loss if loss2 is None else loss2,
            rho=ascent.rho if ascent else 0.0,
            climbed=ascent is not None,
        )

    # ------------------------------------------------------------------- what slots may read

    def _point(self, live: Sequence[int], gradients: list[Tensor]) -> Point:
        trained = self.trained
        return Point(
            names=tuple(trained.names[i] for i in live),
            kinds=tuple(trained.kinds[i] for i in live),
            modules=tuple(trained.modules[i] for i in live),
            weights=[trained.parameters[i] for i in live],
            gradients=gradients,
            generator=self.generator,
            host_generator=self.host_generator,
            scales=self._scales(live),
            step=self.step_count,
            epoch=self.epoch,
            total_epochs=self.total_epochs,
            lr=float(self.base.param_groups[0].get("lr", 0.0)),
            momentum=self._momentum,
            group=self._group,
            fisher=None if self._fisher_data is None else self._fisher,
        )

    def _scales(self, live: Sequence[int]) -> list[float] | None:
        """Radius of each tensor over the variant's own, from `rho` in the parameter groups."""
        if not any("rho" in g for g in self.base.param_groups):
            return None
        nominal = getattr(self.variant.radius, "rho", None)
        if not nominal:
            raise LandscapeError(
                f"a parameter group sets rho and variant {self.variant.name!r} has no positive "
                "constant rho to relate it to; drop rho from the group or give the variant one."
            )
        own = {
            id(p): g.get("rho", nominal) / nominal
            for g in self.base.param_groups
            for p in g["params"]
        }
        return [own[id(self.trained.parameters[i])] for i in live]

    def _momentum(self, name: str) -> Tensor | None:
        p = self.trained.parameters[self.trained.names.index(name)]
        state = self.base.state.get(p, {})
        return state.get("momentum_buffer", state.get("exp_avg"))

    def _group(self, name: str) -> dict[str, Any]:
        p = self.trained.parameters[self.trained.names.index(name)]
        return next(g for g in self.base.param_groups if any(q is p for q in g["params"]))

    def _fisher(self, num_samples: int, **options: Any) -> dict[str, Tensor]:
        losses, data, shuffle = self._fisher_data
        return squared_gradients(
            unwrap(self.model), self.trained, losses, data, num_samples,
            generator=self.host_generator, shuffle=shuffle, **options,
        )  # fmt: skip


def _parameters(base: Optimizer) -> list[nn.Parameter]:
    return [p for group in base.param_groups for p in group["params"]]
