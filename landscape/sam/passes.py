"""Forward and backward passes: closures, per-example losses, BatchNorm and random state."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from landscape.errors import LandscapeError


def select(batch: Any, index: Any) -> Any:
    """The examples `index` (slice or index tensor) of a tensor, tuple, list or dict of tensors."""
    if isinstance(batch, dict):
        return type(batch)({k: select(v, index) for k, v in batch.items()})
    if isinstance(batch, (tuple, list)):
        parts = [select(v, index) for v in batch]
        return type(batch)(*parts) if hasattr(batch, "_fields") else type(batch)(parts)
    if isinstance(index, Tensor) and isinstance(batch, Tensor):
        index = index.to(batch.device)
    return batch[index]


def batch_size(batch: Any) -> int:
    """The number of examples in a batch."""
    if isinstance(batch, dict):
        return batch_size(next(iter(batch.values())))
    if isinstance(batch, (tuple, list)):
        return batch_size(batch[0])
    return len(batch)


def part_of(batch: Any, where: int | str, option: str, what: str) -> Tensor:
    """The whole numbers at `where` in a batch, which the option `option` of a variant names."""
    try:
        found = None if isinstance(batch, Tensor) else batch[where]
    except (IndexError, KeyError, TypeError):
        found = None
    if isinstance(found, Tensor) and not found.is_floating_point():
        return found
    has = f"keys {list(batch)}" if isinstance(batch, dict) else f"{_parts(batch)}"
    raise LandscapeError(
        f"{option}={where!r} says where {what} are in a batch, as a tensor of whole numbers, and "
        f"this batch is {has}; put them there or change {option}."
    )


def _parts(batch: Any) -> str:
    many = isinstance(batch, (tuple, list))
    return f"a {type(batch).__name__} of {len(batch)}" if many else f"a {type(batch).__name__}"


@dataclass
class Passes:
    """How one step gets losses and gradients: a closure, or per-example losses of a batch."""

    parameters: Sequence[nn.Parameter]
    closure: Callable[[], Tensor] | None = None
    losses: Callable[[Any], Any] | None = None
    batch: Any = None
    scaler: Any = None
    extra_loss: Callable[[Any, Any], Tensor] | None = None
    micro_batch: int | None = None  # examples per forward and backward pass; None: all at once
    selective: bool = True  # False: autograd computes every gradient, unwanted ones are dropped
    unsynced: Callable[[], Any] = contextlib.nullcontext  # replicas keep their own gradient in it
    averaged: Callable[[Sequence[Tensor | None]], list[Tensor | None]] | None = None  # over them
    start: Sequence[Tensor | None] | None = None  # what autograd adds the next gradients to

    def backward(
        self,
        *,
        batch: Any = None,
        weights: Tensor | None = None,
        only: Sequence[bool] | None = None,
    ) -> Tensor:
        """One forward and backward pass; fills `.grad` and returns the detached mean loss.

        batch: other examples than this step's; weights (B,): factors of the per-example losses
        before their mean; only: the tensors whose gradients are wanted.
        """
        for p in self.parameters:
            p.grad = None
        wanted = only if self.selective else None
        with torch.enable_grad(), _requires_grad_only(self.parameters, wanted):
            if self.closure is not None:
                loss = self._run_closure()
            else:
                loss = self._run_losses(self.batch if batch is None else batch, weights)
        if only is not None and not self.selective:
            for p, o in zip(self.parameters, only, strict=True):
                p.grad = p.grad if o else None
        if all(p.grad is None for p in self.parameters):
            raise LandscapeError(
                "no parameter has a gradient after the pass; the closure must run loss.backward() "
                "(and must not set gradients to None after it), and the loss must depend on the "
                "optimizer's parameters."
            )
        if self.scaler is not None:
            inverse = 1.0 / self.scaler.scale(torch.ones((), device=self.parameters[0].device))
            for p in self.parameters:
                if p.grad is not None:
                    p.grad.mul_(inverse.to(p.grad.device, p.grad.dtype))
        return loss

    def split_backward(self, share: Tensor) -> tuple[Tensor, list[Tensor | None]]:
        """Gradients of mean(share l) into `.grad` and of mean((1 - share) l), from one forward.

        Returns the plain mean loss and the second gradient.
        """
        parameters = list(self.parameters)
        main: list[Tensor | None] = [None] * len(parameters)
        rest, kept = list(main), []
        for part, fraction in self._parts(self.batch):
            with self.unsynced():
                values, _ = self._forward(select(self.batch, part) if part else self.batch)
            kept.append(values.detach())
            scaled = values * fraction
            scaled = scaled if self.scaler is None else self.scaler.scale(scaled)
            c = share[part] if part else share
            for total, weights, again in ((rest, 1 - c, True), (main, c, False)):
                loss = (weights * scaled).mean()
                found = torch.autograd.grad(loss, parameters, retain_graph=again, allow_unused=True)
                total[:] = [
                    g if t is None else t if g is None else t + g
                    for t, g in zip(total, found, strict=True)
                ]
        self.values = torch.cat(kept)
        if self.scaler is not None:
            inverse = 1.0 / self.scaler.scale(torch.ones((), device=self.values.device))
            main = [g if g is None else g * inverse.to(g.dtype) for g in main]
            rest = [g if g is None else g * inverse.to(g.dtype) for g in rest]
        if self.averaged is not None:  # a replica's reducer does not see torch.autograd.grad
            main, rest = self.averaged(main), self.averaged(rest)
        for p, g in zip(parameters, main, strict=True):
            p.grad = g
        return self.values.mean(), rest

    def loss_at(self, weights: Sequence[Tensor], offsets: Sequence[Tensor]) -> Tensor:
        """The loss at weights + offsets; weights and gradients are as before, exactly."""
        old = [w.detach().clone() for w in weights]
        grads = [p.grad for p in self.parameters]
        try:
            torch._foreach_add_(list(weights), list(offsets))
            if self.closure is None:
                return self.per_example(self.batch)[0].mean()
            with torch.enable_grad():
                return self._run_closure()
        finally:
            torch._foreach_copy_(list(weights), old)
            for p, g in zip(self.parameters, grads, strict=True):
                p.grad = g

    def _run_closure(self) -> Tensor:
        torch.clear_autocast_cache()
        loss = self.closure()
        if loss is None:
            raise LandscapeError(
                "the closure returned None; it must run the backward pass and return the loss."
            )
        return loss.detach() if isinstance(loss, Tensor) else torch.as_tensor(loss)

    def _run_losses(self, batch: Any, weights: Tensor | None) -> Tensor:
        kept, total = [], 0.0
        parts = self._parts(batch)
        for i, (part, fraction) in enumerate(parts):
            last = i == len(parts) - 1
            with contextlib.nullcontext() if last else self.unsynced():
                examples = select(batch, part) if part else batch
                values, outputs = self._forward(examples)
                kept.append(values.detach())
                factors = weights[part] if part and weights is not None else weights
                loss = values.mean() if factors is None else (factors * values).mean()
                total = total + loss.detach() * fraction if part else loss.detach()
                if self.extra_loss is not None:
                    loss = loss + self.extra_loss(outputs, examples)
                loss = loss * fraction if part else loss
                self._begin()
                (loss if self.scaler is None else self.scaler.scale(loss)).backward()
        self.values = torch.cat(kept) if len(kept) > 1 else kept[0]
        return total

    def _begin(self) -> None:
        """Put `start` into `.grad`, after the caller's own code has run."""
        start, self.start = self.start or (), None
        for p, g in zip(self.parameters, start, strict=False):
            p.grad = g

    def _parts(self, batch: Any) -> list[tuple[slice | None, float]]:
        """Slices of the batch with their share of it; (None, 1) for the whole."""
        size = batch_size(batch) if self.micro_batch else 0
        if not self.micro_batch or size <= self.micro_batch:
            return [(None, 1.0)]
        starts = range(0, size, self.micro_batch)
        ends = [min(a + self.micro_batch, size) for a in starts]
        return [(slice(a, b), (b - a) / size) for a, b in zip(starts, ends, strict=True)]

    def per_example(self, batch: Any) -> tuple[Tensor, Any]:
        """losses(batch) -> (B,), with the outputs when it returns (losses, outputs)."""
        parts = [self._forward(select(batch, p) if p else batch) for p, _ in self._parts(batch)]
        if len(parts) == 1:
            return parts[0]
        outputs = [o for _, o in parts]
        together = torch.cat(outputs) if isinstance(outputs[0], Tensor) else None
        return torch.cat([values for values, _ in parts]), together

    def _forward(self, batch: Any) -> tuple[Tensor, Any]:
        # Within one autocast region, weights cast to half precision are cached: without this the
        # second pass would run at w instead of w + e.
        torch.clear_autocast_cache()
        result = self.losses(batch)
        values, outputs = result if isinstance(result, tuple) else (result, None)
        if not isinstance(values, Tensor) or values.ndim != 1:
            got = (
                f"a tensor of shape {tuple(values.shape)}"
                if isinstance(values, Tensor)
                else type(values).__name__
            )
            raise LandscapeError(
                f"losses(batch) returned {got}; step(losses, batch) needs one loss per example, "
                "shape (B,) (use reduction='none'), or call step(closure)."
            )
        if not len(values):
            raise LandscapeError("the batch holds no example; leave empty batches out.")
        return values, outputs


@contextlib.contextmanager
def _requires_grad_only(
    parameters: Sequence[nn.Parameter], only: Sequence[bool] | None
) -> Iterator[None]:
    """Let autograd compute the gradients of some parameters only."""
    off = [] if only is None else [p for p, o in zip(parameters, only, strict=True) if not o]
    off = [p for p in off if p.requires_grad]
    for p in off:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in off:
            p.requires_grad_(True)


class Statistics:
    """Running statistics of a model's normalization layers, saved and put back.

    `momentum` is left alone: setting it to 0 still counts batches, changes cumulative averages
    (momentum=None), and freezes a layer for good when it is done twice.
    eager: no recorded or compiled graph runs the model, so that BatchNorm may be told for a block
    to keep no statistics; in training mode its outputs do not depend on them.
    """

    def __init__(self, model: nn.Module, *, eager: bool = False) -> None:
        tracking = [m for m in model.modules() if getattr(m, "running_mean", None) is not None]
        told = eager and all(map(_keeps_statistics_when_told, tracking))
        self._told = tracking if told else []
        self._where = [
            (m, name)
            for m in model.modules()
            if getattr(m, "running_mean", None) is not None
            for name, b in m.named_buffers(recurse=False)
            if b is not None
        ]
        self._saved: list[Tensor] = []

    def _buffers(self) -> list[Tensor]:
        return [m._buffers[name] for m, name in self._where]

    @torch.no_grad()
    def save(self) -> None:
        """Remember all buffers, `num_batches_tracked` included."""
        buffers = self._buffers()
        if len(self._saved) != len(buffers):
            self._saved = [torch.empty_like(b) for b in buffers]
        if buffers:
            torch._foreach_copy_(self._saved, buffers)

    @torch.no_grad()
    def restore(self, unless: Tensor | None = None) -> None:
        """Put them back; where the 0-d bool `unless` is true, leave them as they are."""
        buffers = self._buffers()
        if unless is not None:
            for b, s in zip(buffers, self._saved, strict=True):
                b.copy_(torch.where(unless.to(b.device), b, s))
        elif buffers:
            torch._foreach_copy_(buffers, self._saved)

    @contextlib.contextmanager
    def frozen(self, active: bool = True) -> Iterator[None]:
        """Undo what the block does to them."""
        told = [m.__dict__ for m in self._told if m.track_running_stats] if active else []
        if active and not self._told:
            self.save()
        for module in told:
            module["track_running_stats"] = False
        try:
            yield
        finally:
            for module in told:
                module["track_running_stats"] = True
            if active and not self._told:
                self.restore()


def _keeps_statistics_when_told(module: nn.Module) -> bool:
    """Whether a layer is torch's own BatchNorm on the CPU, which obeys `track_running_stats`."""
    batch_norm = torch.nn.modules.batchnorm._BatchNorm
    return (
        isinstance(module, batch_norm)
        and type(module).forward is batch_norm.forward
        and "forward" not in module.__dict__
        and "track_running_stats" in module.__dict__
        and module.running_mean.is_cpu
    )


def rng_state(device: torch.device) -> tuple[Tensor, Tensor | None]:
    """The global random state of the CPU and of `device`."""
    cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    return torch.get_rng_state(), cuda


def set_rng_state(state: tuple[Tensor, Tensor | None], device: torch.device) -> None:
    """Put back what `rng_state` returned."""
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1], device)
