"""From the descent gradient to the base step: clipped, scaled, skipped or taken, counted."""

import contextlib
import logging
from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from landscape.errors import LandscapeError
from landscape.sam.checks import USE_ANOTHER
from landscape.sam.finite import FEW, Finite, all_finite, are_little, chosen, copies
from landscape.sam.geometry import scale
from landscape.sam.shards import local
from landscape.sam.variant import Point

if TYPE_CHECKING:
    from landscape.sam.optimizer import SAM

# What torch says where .grad is differentiated and has no graph, or one of other weights.
_GRAPH_ASKED = (
    "modified by an inplace operation",
    "does not require grad",
    "does not have a grad_fn",
    "not have been used in the graph",
)

log = logging.getLogger("landscape.sam")


class BaseStep:
    """The end of a step: what lies in `.grad` goes to the base optimizer."""

    def __init__(self, optimizer: "SAM", point: Point, finite: Finite) -> None:
        self.optimizer, self.point, self.finite = optimizer, point, finite
        self.base, self.scaler = optimizer.base, optimizer.scaler

    @staticmethod
    def of_gradient(optimizer: "SAM", point: Point) -> "BaseStep":
        """For the gradient that lies in `.grad`, summed, clipped and unscaled by others."""
        finite = all_finite(optimizer.trained.gradients())
        shards = optimizer.trained.shards
        finite = finite if shards is None else shards.agree(finite)
        return BaseStep(optimizer, point, bool(finite) if optimizer.wait_for_device else finite)

    def take(self, *, scaled: bool) -> None:
        """Clip, step the base optimizer unless a gradient was not finite, and run the hooks.

        scaled: the gradient has yet to pass through the scaler's own step.
        """
        optimizer = self.optimizer
        scaled = scaled and self.scaler is not None
        if not scaled and self._asking_is_cheaper():
            self.finite = bool(self.finite)
        finite = self.finite
        if finite is False:
            optimizer.skipped = optimizer.skipped + 1
            optimizer.buffers_at_start.restore()
            self._report()
            if scaled:
                self._scaled_step()  # lets the scaler see the overflow, lower its scale
            return
        if optimizer.clip_norm is not None:
            self._clip(optimizer.clip_norm)
        if isinstance(finite, Tensor):
            optimizer.skipped = optimizer.skipped + ~finite
            optimizer.buffers_at_start.restore(unless=finite)
        if scaled:
            self._scaled_step()
        elif isinstance(finite, Tensor):
            self._guarded_step(finite)
        else:
            self._plain_step()
        for place in ("correction", "selector", "loss_term"):
            slot = getattr(optimizer.variant, place)
            if slot is not None:
                slot.after_step(self.point, optimizer.slots[place])
        optimizer.step_count += 1

    def _asking_is_cheaper(self) -> bool:
        """Whether one wait takes less time than the launches that spare it."""
        optimizer = self.optimizer
        return optimizer.wait_for_device is None and len(optimizer.trained.parameters) < FEW

    def _plain_step(self) -> None:
        try:
            with self._at_once():
                self.base.step()
        except Exception as error:
            self._name(error)
            raise

    def _name(self, error: Exception) -> None:
        """Say what a base optimizer lacks that wants more than the gradient in `.grad`."""
        kind, said = type(self.base).__name__, str(error).lower()
        if any(sign in said for sign in _GRAPH_ASKED):
            raise LandscapeError(
                f"the base optimizer {kind} differentiates .grad again, whose graph, where it has "
                f"one, was made at w + e, and the weights are back at w; {USE_ANOTHER}, or one "
                "that asks for its products itself."
            ) from error
        if "sharding strategy registered" in said:
            raise LandscapeError(
                f"the base optimizer {kind} has no such step for tensors that are cut over "
                f"processes ({str(error)[:80]}); make it with fused=False."
            ) from error
        if "closure" in said:
            raise LandscapeError(
                f"the base optimizer {kind} asks for a closure in its step ({error}), and cannot "
                f"step with a given descent gradient; {USE_ANOTHER}."
            ) from error

    def scale_factor(self) -> Tensor:
        """The scaler's scale, infinite for a step that it must refuse."""
        factor = self.scaler.scale(torch.ones((), device=self.optimizer.device))
        if isinstance(self.finite, Tensor):
            return torch.where(self.finite, factor, torch.inf)
        return factor if self.finite else torch.full_like(factor, torch.inf)

    def _gradients(self) -> list[tuple[int, Tensor]]:
        found = self.optimizer.trained.gradients()
        return [(i, g) for i, g in enumerate(found) if g is not None]

    def _report(self) -> None:
        """Say which step was skipped and why, at the 1st, 2nd, 4th, 8th ... time."""
        count = self.optimizer.num_skipped
        expected = self.scaler is not None and self.scaler.is_enabled()
        if expected or count & (count - 1):  # a scaler finds its scale by such steps
            return
        names = self.optimizer.trained.names
        bad = [names[i] for i, g in self._gradients() if not torch.isfinite(g).all()]
        what = f"the gradient of {', '.join(bad[:3])}"
        what += f" and {len(bad) - 3} more" if len(bad) > 3 else ""
        log.warning(
            "step %d skipped (%d so far): %s is not finite.",
            self.optimizer.step_count + count - 1,
            count,
            what if bad else "the norm of the gradient or of the ascent direction",
        )

    def _clip(self, max_norm: float) -> None:
        """New tensors: `.grad` may be the g2 that `perturbation` shows."""
        trained = self.optimizer.trained
        where = [i for i, _ in self._gradients()]
        gradients = [g for _, g in self._gradients()]
        norm = self.optimizer.norm_over(where, gradients)
        factor = torch.clamp(max_norm / (norm + 1e-6), max=1.0)
        for i, g in zip(where, scale(gradients, factor), strict=True):
            trained.put(i, g)

    def _scaled_step(self) -> None:
        factor = self.scale_factor()
        for i, g in self._gradients():
            self.optimizer.trained.put(i, g * factor.to(g.device, g.dtype))
        self.scaler.step(self.base)

    @contextlib.contextmanager
    def _at_once(self) -> Generator[None]:
        """Let torch's SGD step its tensors in the way that fits, where the caller chose nothing.

        Many small tensors go together, in a few calls with the same bits; only Nesterov would write
        into `.grad`. Large ones are quicker one after the other, out of the cache. Its fused form
        wants the momentum of every tensor or of none, which a partial gradient does not give.
        """
        groups = self.base.param_groups if type(self.base) is torch.optim.SGD else []
        before = [(g, g["foreach"], g["fused"]) for g in groups]
        free = not any(
            g["foreach"] is not None or g["fused"] or g["nesterov"] or g["differentiable"]
            for g in groups
        )
        trained = self.optimizer.trained
        whole = trained.shards is None  # whole and cut tensors do not go into one call
        together = free and bool(groups) and whole and are_little(trained.parameters)
        for g in groups:
            if together:
                g["foreach"] = True
            elif g["fused"] and self._momenta_differ(g):
                g["fused"] = False
        try:
            yield
        finally:
            for g, foreach, fused in before:
                g["foreach"], g["fused"] = foreach, fused

    def _momenta_differ(self, group: dict[str, Any]) -> bool:
        there = {
            self.base.state.get(p, {}).get("momentum_buffer") is None
            for p in group["params"]
            if p.grad is not None
        }
        return len(there) > 1

    def _guarded_step(self, finite: Tensor) -> None:
        """On CUDA: skip without asking the device whether to.

        A fused base optimizer is told. Any other steps with zeros, which momentum and weight decay
        would still move, and is then put back from a copy of its weights and state.
        """
        base = self.base
        with self._at_once():
            if all(g.get("fused") for g in base.param_groups):
                base.found_inf = (~finite).float()
                try:
                    base.step()
                finally:
                    del base.found_inf
                return
            there = self._gradients()
            for (i, _), g in zip(there, chosen(finite, [g for _, g in there]), strict=True):
                self.optimizer.trained.put(i, g)
            held = dict(self._altered(finite.device))
            before = dict(zip(held, copies(list(held.values())), strict=True))
            base.step()
            now = dict(self._altered(finite.device))
            old = [before[k] if k in before else torch.zeros_like(t) for k, t in now.items()]
            if now:  # state begins at zero
                torch._foreach_copy_(list(now.values()), chosen(finite, list(now.values()), old))

    def _altered(self, device: torch.device) -> Iterator[tuple[Any, Tensor]]:
        """What a base step alters on the device: weights with a gradient, and their state."""
        for i, p in enumerate(self.optimizer.trained.parameters):
            if p.grad is not None:
                yield i, local(p)
                for name, value in self.base.state.get(p, {}).items():
                    if isinstance(value, Tensor) and local(value).device == device:
                        yield (i, name), local(value)
