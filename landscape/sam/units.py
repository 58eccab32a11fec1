"""Whether the gradient that a closure leaves is that of the loss that it returns.

‖e‖ = rho whatever the scale of the gradient, while the descent gradient has it: a loss that a
scaler or a factor multiplied before backward() moves the weights so many times too far, silently.
"""

import contextlib
import math
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from landscape import devices, vectors
from landscape.errors import LandscapeError
from landscape.sam import replicas
from landscape.sam.buffers import Buffers
from landscape.sam.evaluate import SameBatch
from landscape.sam.trained import Gradients

if TYPE_CHECKING:
    from landscape.sam.step import Step

LEAST = 64  # means over fewer batches, processes or tasks than this are told in other units

Again = Callable[[], tuple[Tensor, Gradients]]


@dataclass(frozen=True)
class Factor:
    """Bounds on c, where c ∇L is taken for the gradient of L.

    Where L is convex or concave from w to w + v, c (L(w + v) - L(w)) lies between the slopes
    c ∇L(w)ᵀv and c ∇L(w + v)ᵀv, however much it curves.
    """

    low: float
    high: float

    @staticmethod
    def of(rise: float, slopes: Sequence[float], visible: float) -> "Factor | None":
        """From a rise above `visible` and the two slopes, both upwards; else None."""
        low, high = min(slopes), max(slopes)
        if not (rise > visible and low > 0 and math.isfinite(high)):
            return None
        return Factor(low / rise, high / rise)

    @property
    def value(self) -> float:
        """By the trapezoidal rule."""
        return (self.low + self.high) / 2


def applies(step: "Step") -> bool:
    """Whether a factor can be told: a closure differentiates, and one loss stands for all."""
    optimizer, passes = step.optimizer, step.passes
    one_sign = passes.signs is None or len(set(passes.signs)) == 1
    return (
        passes.closure is not None
        and type(step.variant.evaluate) is SameBatch
        and one_sign
        and optimizer.local is None
        and step.trained.shards is None
    )


def is_suspect(step: "Step", expected: float, rise: float | None) -> bool:
    """Whether the rise of the loss from w to w + e is far from its slopes, by `expected`.

    rise: None where it was not measured.
    """
    if not applies(step):
        return False
    if rise is not None and expected >= LEAST * abs(rise):
        return True
    too_small = rise is None or abs(rise) >= LEAST * expected
    return too_small and _scale(step) >= LEAST


def check(step: "Step", again: Again, length: float, visible: float) -> None:
    """Refuse a gradient of other units, seen along two directions that share no entry.

    Both are the gradient at w, of every second entry, and as long as e. length: ‖e‖; visible: of
    the loss, the share that a rise must exceed.
    """
    passes, trained = step.passes, step.trained
    loss, g = again()
    size = math.sqrt(_inner(g, g))
    if not (math.isfinite(size) and size > 0):
        return
    clean, found = float(passes.of_all(loss)), []
    for parity in (0, 1):
        v = [None if x is None else _every_second(x, parity).mul_(length / size) for x in g]
        named = {n: x for n, x in zip(trained.names, v, strict=True) if x is not None}
        with passes.at(named, moved_by=True):
            there, h = again()
        rise = float(passes.of_all(there)) - clean
        found.append(Factor.of(rise, (_inner(g, v), _inner(h, v)), visible * abs(clean)))
    a, b = found
    if a is None or b is None or max(a.low, b.low) > 2 * min(a.high, b.high):
        return
    both, scale = Factor(min(a.low, b.low), max(a.high, b.high)), _scale(step)
    if both.low >= LEAST:
        if passes.steps:
            raise LandscapeError(_too_large(both))
        step.optimizer.guard.units = _too_large(both)  # others may unscale it before they step
    elif scale >= LEAST and 0.5 < scale * math.sqrt(a.value * b.value) < 2:
        raise LandscapeError(_not_scaled(scale))


@contextlib.contextmanager
def repeating(
    step: "Step", arguments: dict[str, Any], rng: Any, buffers: Buffers
) -> Generator[Again]:
    """A pass that can be run again and again from one random state and buffers; nothing stays."""
    optimizer, passes, device = step.optimizer, step.passes, step.optimizer.device
    grads = [p.grad for p in step.trained.parameters]
    now, keep_last = devices.rng_state(device), (dict(passes.last), passes.last_loss)

    def again() -> tuple[Tensor, Gradients]:
        devices.set_rng_state(rng, device)
        buffers.restore()
        loss = passes.backward(**arguments)
        found = step.trained.gradients(passes.signs)
        return loss, replicas.own_gradients(optimizer.model, found)

    try:
        with Buffers(optimizer.model, optimizer.frozen).kept():
            yield again
    finally:
        devices.set_rng_state(now, device)
        passes.last, passes.last_loss = keep_last
        for p, g in zip(step.trained.parameters, grads, strict=True):
            p.grad = g


def _scale(step: "Step") -> float:
    """Of the scaler that the optimizer was told of, 1 without one."""
    scaler = step.passes.scaler
    return 1.0 if scaler is None or not scaler.is_enabled() else float(scaler.get_scale())


def _every_second(x: Tensor, parity: int) -> Tensor:
    """A copy of x with zeros at the entries of the other parity."""
    out = torch.zeros_like(x, memory_format=torch.contiguous_format)
    out.view(-1)[parity::2] = x.reshape(-1)[parity::2]
    return out


def _inner(a: Sequence[Tensor | None], b: Sequence[Tensor | None]) -> float:
    pairs = zip(a, b, strict=True)
    return sum(float(vectors.dot(x, y)) for x, y in pairs if x is not None and y is not None)


def _too_large(factor: Factor) -> str:
    power = 2.0 ** round(math.log2(factor.value))
    is_power = factor.low * 0.99 <= power <= factor.high * 1.01  # as a scaler's is
    told = f"{power:.0f}" if is_power else f"{float(f'{factor.value:.3g}'):.0f}"
    return (
        f"the closure's gradient is about {told} times that of the loss which it returns, and the "
        "weights would move so many times too far. Where a torch.amp.GradScaler scales the loss, "
        "tell it: SAM(..., scaler=scaler), and call scaler.update() after the step. Else return "
        "the loss that was differentiated (or differentiate the one returned)."
    )


def _not_scaled(scale: float) -> str:
    return (
        f"SAM was made with a scaler of scale {scale:.0f}, by which gradients are divided, and the "
        "closure's gradient is that of the loss which it returns, unscaled: the weights would "
        "hardly move. Let the closure run scaler.scale(loss).backward() and return loss, or leave "
        "scaler=... out."
    )
