"""From the descent gradient to the base step: finite or not, clipped, scaled, skipped, counted."""

import contextlib
import logging
import math
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from landscape.sam.geometry import scale
from landscape.sam.variant import Point, tensor_norms, total_norm
from landscape.sam.weights import are_little

Finite = bool | Tensor  # a 0-d tensor on CUDA, where asking would wait for the device

log = logging.getLogger("landscape.sam")


def run_hook(slot: Any, name: str, *arguments: Any) -> None:
    """Call a slot's hook if it has one."""
    hook = getattr(slot, name, None)
    if hook is not None:
        hook(*arguments)


def finish(optimizer: Any, point: Point, finite: Finite, *, scaled: bool) -> None:
    """Clip, step the base optimizer unless a gradient was not finite, and run the hooks.

    scaled: the gradient has yet to pass through the scaler's own step.
    """
    scaled = scaled and optimizer.scaler is not None
    if finite is False:
        optimizer.skipped = optimizer.skipped + 1
        optimizer.statistics_start.restore()
        _report(optimizer)
        if scaled:
            _scaled_step(optimizer, finite)  # lets the scaler see the overflow, lower its scale
        return
    if optimizer.clip_norm is not None:
        _clip(optimizer.trained.parameters, optimizer.clip_norm)
    if isinstance(finite, Tensor):
        optimizer.skipped = optimizer.skipped + (~finite).long()
        optimizer.statistics_start.restore(unless=finite)
    if scaled:
        _scaled_step(optimizer, finite)
    elif isinstance(finite, Tensor):
        _guarded_step(optimizer, finite)
    else:
        with _together(optimizer):
            optimizer.base.step()
    for slot in ("correction", "selector", "loss_term"):
        run_hook(getattr(optimizer.variant, slot), "after_step", point, optimizer.slots[slot])
    optimizer.step_count += 1


def gradients_finite(optimizer: Any) -> Finite:
    """Whether all of `.grad` is finite."""
    return settle(optimizer, all_finite([p.grad for p in optimizer.trained.parameters]))


def _report(optimizer: Any) -> None:
    """Say which step was skipped and why, at the 1st, 2nd, 4th, 8th ... time."""
    count = optimizer.num_skipped
    expected = optimizer.scaler is not None and optimizer.scaler.is_enabled()
    if expected or count & (count - 1):  # a scaler finds its scale by such steps
        return
    named = zip(optimizer.trained.names, optimizer.trained.parameters, strict=True)
    bad = [n for n, p in named if p.grad is not None and not torch.isfinite(p.grad).all()]
    what = f"the gradient of {', '.join(bad[:3])}"
    what += f" and {len(bad) - 3} more" if len(bad) > 3 else ""
    log.warning(
        "step %d skipped (%d so far): %s is not finite.",
        optimizer.step_count + count - 1,
        count,
        what if bad else "the norm of the gradient or of the ascent direction",
    )


def _clip(parameters: Iterable[Tensor], max_norm: float) -> None:
    """New tensors: `.grad` may be the g2 that `perturbation` shows."""
    live = [p for p in parameters if p.grad is not None]
    norm = total_norm(tensor_norms([p.grad for p in live]))
    factor = torch.clamp(max_norm / (norm + 1e-6), max=1.0)
    for p, g in zip(live, scale([p.grad for p in live], factor), strict=True):
        p.grad = g


def scale_factor(optimizer: Any, finite: Finite) -> Tensor:
    """The scaler's scale, infinite for a step that it must refuse."""
    factor = optimizer.scaler.scale(torch.ones((), device=optimizer.device))
    if isinstance(finite, Tensor):
        return torch.where(finite, factor, torch.inf)
    return factor if finite else torch.full_like(factor, torch.inf)


def _scaled_step(optimizer: Any, finite: Finite) -> None:
    factor = scale_factor(optimizer, finite)
    for p in optimizer.trained.parameters:
        if p.grad is not None:
            p.grad = p.grad * factor.to(p.grad.device, p.grad.dtype)
    optimizer.scaler.step(optimizer.base)


@contextlib.contextmanager
def _together(optimizer: Any) -> Iterator[None]:
    """Let torch's SGD step many small tensors in a few calls, where the caller chose nothing.

    On the CPU torch then calls each tensor's arithmetic in turn, with the same bits; only Nesterov
    would write into `.grad`. Large tensors are quicker one after the other, out of the cache.
    """
    base, groups = optimizer.base, []
    if type(base) is torch.optim.SGD and optimizer.device.type == "cpu":
        groups = base.param_groups if optimizer.trained.little else []
    if any(g["foreach"] is not None or g["fused"] or g["nesterov"] or g["differentiable"]
           for g in groups):  # fmt: skip
        groups = []
    for g in groups:
        g["foreach"] = True
    try:
        yield
    finally:
        for g in groups:
            g["foreach"] = None


def settle(optimizer: Any, finite: Finite) -> Finite:
    """The answer as a bool where the optimizer is to wait for the device."""
    return bool(finite) if optimizer.wait_for_device else finite


def _guarded_step(optimizer: Any, finite: Tensor) -> None:
    """On CUDA: skip without asking the device whether to.

    A fused base optimizer is told. Any other steps with zeros, which momentum and weight decay
    would still move, and is then put back from a copy of its weights and state.
    """
    base = optimizer.base
    if all(g.get("fused") for g in base.param_groups):
        base.found_inf = (~finite).float()
        try:
            base.step()
        finally:
            del base.found_inf
        return
    for p in optimizer.trained.parameters:
        if p.grad is not None:
            p.grad = torch.where(finite, p.grad, 0.0)
    before = {key: t.clone() for key, t in _altered(optimizer, finite.device)}
    base.step()
    for key, t in _altered(optimizer, finite.device):
        old = before.get(key)  # state begins at zero
        t.copy_(torch.where(finite, t, torch.zeros_like(t) if old is None else old))


def _altered(optimizer: Any, device: torch.device) -> Iterator[tuple[Any, Tensor]]:
    """What a base step alters on the device: weights with a gradient, and their state."""
    for i, p in enumerate(optimizer.trained.parameters):
        if p.grad is not None:
            yield i, p
            for name, value in optimizer.base.state.get(p, {}).items():
                if isinstance(value, Tensor) and value.device == device:
                    yield (i, name), value


def is_finite(norm: Tensor) -> Finite:
    """Whether a norm is finite, asked of the device without waiting on CUDA."""
    return torch.isfinite(norm) if norm.is_cuda else math.isfinite(norm.item())


def all_finite(gradients: Iterable[Tensor | None]) -> Finite:
    """Whether all gradients that exist are finite."""
    there = [g for g in gradients if g is not None]
    if not there:
        return True
    if there[0].is_cpu and are_little(there):
        # One pass of little tensors, multiplied by 1; a norm each costs three times as much.
        bad = torch.zeros(())
        with contextlib.suppress(RuntimeError):  # a gradient that overlaps itself
            torch._amp_foreach_non_finite_check_and_unscale_(there, bad, torch.ones(()))
            return not bad.item()
    return is_finite(total_norm(tensor_norms(there)))


def both_finite(a: Finite, b: Finite) -> Finite:
    """Whether two answers are both yes."""
    return a & b if isinstance(a, Tensor) or isinstance(b, Tensor) else a and b
