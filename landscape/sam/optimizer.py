"""The optimizer: any torch optimizer, stepped with the gradient that a variant makes."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from landscape.errors import LandscapeError
from landscape.sam import saved, stepping
from landscape.sam.checks import check_belongs, check_needs, check_unchanged
from landscape.sam.engine import Trained, new_slots, squared_gradients, unwrap
from landscape.sam.passes import Passes, Statistics
from landscape.sam.perturbation import Perturbation, counterfactual
from landscape.sam.variant import Point, Variant, check_choice

BN_POLICIES = ("first", "second", "both")
_CLOSURE_FORM = object()


class SAM(Optimizer):
    """A base optimizer that descends with gd(w, e) instead of the gradient at w.

    One step: g1 at w → e → g2 at w + e → w restored by copy, exactly → gd → base.step().

        base = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        optimizer = SAM(model, base, sam.sam(rho=0.05), seed=0)
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
        check_belongs(model, self.trained, parameters)
        self._ids = tuple(map(id, parameters))
        self.device = self.trained.parameters[0].device
        self.generator = torch.Generator(self.device).manual_seed(seed)
        on_host = self.device.type == "cpu"
        self.host_generator = self.generator if on_host else torch.Generator().manual_seed(seed)
        self.slots = new_slots()
        self.statistics_start, self.statistics_first, self.statistics_second = (
            Statistics(model) for _ in range(3)
        )
        self.step_count, self.epoch, self.total_epochs = 0, 0, None
        self.epoch_begun = False
        self.skipped: int | Tensor = 0
        self._fisher_data: tuple[Callable[[Any], Tensor], Any, bool] | None = None
        self.last: Perturbation | None = None
        super().__init__(base.param_groups, {})
        self._adopt_base()

    def _adopt_base(self) -> None:
        self.param_groups, self.state = self.base.param_groups, self.base.state

    # ---------------------------------------------------------------- what a training loop calls

    def begin_epoch(self, epoch: int, total_epochs: int | None = None) -> None:
        """Say which epoch begins (from 0), and how many there will be.

        Gates and radii read it; masks refreshed per epoch are refreshed in its first step.
        """
        self.epoch, self.epoch_begun = int(epoch), True
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
        """One step, `step(closure)` or `step(losses, batch)`: the loss at w, 0-d, detached."""
        if closure is None or not callable(closure):
            raise LandscapeError(
                "SAM.step needs the loss at w and at w + e: call step(closure) with a function "
                "that runs forward and backward and returns the loss, or step(losses, batch)."
            )
        check_unchanged(self.base, self._ids)
        check_needs(
            self.variant,
            has_batch=batch is not _CLOSURE_FORM,
            has_fisher=self._fisher_data is not None,
            has_epochs=self.epoch_begun,
        )
        parameters = self.trained.parameters
        if batch is _CLOSURE_FORM:
            passes = Passes(parameters, closure=closure, scaler=self.scaler)
        else:
            passes = Passes(parameters, losses=closure, batch=batch, scaler=self.scaler)
        parts = getattr(self.variant.evaluate, "micro_batches", 1)
        with torch.no_grad():
            if parts > 1:
                return stepping.micro_batches(self, passes, parts)
            return stepping.whole_batch(self, passes)

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
                "the parameter set of a SAM optimizer is fixed; add the group to the base "
                "optimizer and make a new SAM."
            )
        self.param_groups.append(param_group)

    # ------------------------------------------------------------------- what slots may read

    def point(self, live: Sequence[int], gradients: list[Tensor]) -> Point:
        """The point of this step, over the tensors `live`."""
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
