"""Forward and backward passes of a step: closures, per-example losses, random state."""

import contextlib
import copy
import functools
import numbers
from collections.abc import Callable, Generator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from landscape import devices
from landscape.errors import LandscapeError
from landscape.sam.batches import BatchCutter, check_one_each
from landscape.sam.shards import MaybeTensor, is_cut, local
from landscape.sam.trained import Trained, signed
from landscape.sam.weights import Weights


@runtime_checkable
class Averaging(Protocol):
    """Means of tensors over processes."""

    def __call__(self, tensors: Sequence[MaybeTensor]) -> list[MaybeTensor]:
        """Each of them, averaged."""
        ...


@dataclass
class Passes:
    """How one step gets losses and gradients: a closure, or per-example losses of a batch.

    signs: -1 for trained tensors whose group is maximized; None for none. nearby: weights moved for
    a pass of a slot.
    """

    trained: Trained
    nearby: Weights
    closure: Callable[[], Tensor] | None = None
    losses: Callable[[Any], Any] | None = None
    batch: Any = None
    batches: BatchCutter = field(default_factory=BatchCutter)
    signs: Sequence[int] | None = None
    scaler: Any = None
    check_model: Callable[[], None] = lambda: None  # refuses parameters that are not its own now
    extra_loss: Callable[[Any, Any], Tensor] | None = None
    micro_batch: int | None = None  # examples per forward and backward pass; None: all at once
    selective: bool = True  # False: autograd computes every gradient, unwanted ones are dropped
    unsynced: Callable[[], Any] = contextlib.nullcontext  # replicas keep their own gradient in it
    averaged: Averaging | None = None  # over them
    steps: bool = False  # the base optimizer steps with gd as it is
    start: Sequence[Tensor | None] | None = None  # what autograd adds the next gradients to
    last: dict[str, Any] = field(default_factory=dict)  # of the last pass, to run it again
    last_loss: Tensor = field(default_factory=lambda: torch.full((), torch.nan))

    @property
    def parameters(self) -> Sequence[nn.Parameter]:
        """The trained parameters."""
        return self.trained.parameters

    @property
    def sign(self) -> int:
        """-1 where the loss is maximized, for terms that are added to it and for its rise."""
        return -1 if self.signs is not None and -1 in self.signs else 1

    def of_all(self, loss: Tensor) -> Tensor:
        """The loss that is minimized, averaged over processes, by which all decide alike."""
        loss = self.sign * loss
        if self.averaged is not None:
            return self.averaged([loss])[0]
        shards = self.trained.shards
        return loss if shards is None else shards.mean(loss)

    @contextlib.contextmanager
    def at(self, values: Mapping[str, Tensor], *, moved_by: bool = False) -> Generator[None]:
        """Passes at other weights: these values of the tensors named, or w moved by them."""
        tensors = self.trained.tensors()
        weights = [tensors[self.trained.index[n]] for n in values]
        try:
            if moved_by:
                self.nearby.move(weights, list(values.values()), 1.0)
            else:
                self.nearby.put(weights, list(values.values()))
            yield
        finally:
            self.nearby.restore()

    def backward(
        self,
        *,
        batch: Any = None,
        weights: Tensor | None = None,
        only: Sequence[bool] | None = None,
        objective: Callable[[Any, Any], Tensor] | None = None,
    ) -> Tensor:
        """One forward and backward pass; fills `.grad` and returns the detached mean loss.

        batch: other examples than this step's; weights (B,): factors of the per-example losses
        before their mean; only: the tensors whose gradients are wanted; objective(outputs, batch)
        -> (B,) or (): what is differentiated instead of the losses, from the outputs that
        losses(batch) returns beside them.
        """
        self.last = {"batch": batch, "weights": weights, "only": only, "objective": objective}
        for p in self.parameters:
            p.grad = None
        wanted = only if self.selective else None
        with torch.enable_grad(), _requires_grad_only(self.parameters, wanted):
            if self.closure is not None:
                if batch is not None or objective is not None:
                    raise LandscapeError(
                        "other examples or another objective than the closure's were asked of a "
                        "pass; call step(losses, batch)."
                    )
                loss = self._run_closure(self.closure)
            else:
                loss = self._run_losses(self.batch if batch is None else batch, weights, objective)
        if only is not None and not self.selective:
            for p, o in zip(self.parameters, only, strict=True):
                p.grad = p.grad if o else None
        restricted = only is not None and not all(only)
        if all(p.grad is None for p in self.parameters) and not restricted:
            self.check_model()
            raise LandscapeError(
                "no parameter has a gradient after the pass; the closure must run loss.backward() "
                "(and must not set gradients to None after it), and the loss must depend on the "
                "optimizer's parameters."
            )
        if self.scaler is not None:
            inverse = 1.0 / self.scaler.scale(torch.ones((), device=self.parameters[0].device))
            for p in self.parameters:
                if p.grad is not None:
                    g = local(p.grad)
                    g.mul_(inverse.to(g.device, g.dtype))
        self.last_loss = loss
        return loss

    def split_backward(self, share: Tensor) -> tuple[Tensor, list[Tensor | None]]:
        """Gradients of mean(share l) into `.grad` and of mean((1 - share) l), from one forward.

        Returns the plain mean loss and the second gradient.
        """
        parameters = list(self.parameters)
        if any(map(is_cut, parameters)):
            return self._two_backwards(share)
        main: list[Tensor | None] = [None] * len(parameters)
        rest, kept = list(main), []
        for part, fraction in self._parts(self.batch):
            with self.unsynced():
                values, _ = self._forward_part(self.batch, part)
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
        return self.values.mean(), rest if self.signs is None else signed(rest, self.signs)

    def _two_backwards(self, share: Tensor) -> tuple[Tensor, list[Tensor | None]]:
        """As `split_backward`, for sharded parameters, which the first backward pass lets go."""
        device = self.parameters[0].device
        state = devices.rng_state(device)
        self.backward(weights=1 - share)
        rest = self.trained.gradients(self.signs)
        devices.set_rng_state(state, device)
        self.backward(weights=share)
        return self.values.mean(), rest

    def loss(self) -> Tensor:
        """The mean loss of the batch here, detached; a closure also fills `.grad`."""
        if self.closure is None:
            return self.per_example(self.batch)[0].mean()
        with torch.enable_grad():
            return self._run_closure(self.closure)

    def hessian_product(
        self, parameters: Sequence[nn.Parameter], v: Sequence[Tensor | None]
    ) -> list[Tensor | None]:
        """H v of the batch's mean loss over these parameters; v: None for zeros."""
        total: list[Tensor | None] = [None] * len(parameters)
        for part, fraction in self._parts(self.batch):
            with self.unsynced(), torch.enable_grad():
                values, _ = self._forward_part(self.batch, part)
                loss = values.mean() * fraction
                g = torch.autograd.grad(loss, parameters, create_graph=True, allow_unused=True)
                pairs = [
                    (a, b) for a, b in zip(g, v, strict=True) if a is not None and b is not None
                ]
                along = [a for a, _ in pairs if a.requires_grad]
                if not along:
                    continue
                found = torch.autograd.grad(
                    along, parameters, [b for a, b in pairs if a.requires_grad], allow_unused=True
                )
            total = [
                h if t is None else t if h is None else t + h
                for t, h in zip(total, found, strict=True)
            ]
        return total if self.averaged is None else self.averaged(total)

    def _run_closure(self, closure: Callable[[], Tensor]) -> Tensor:
        forget_cached_weights()
        try:
            return _loss_of(closure())
        except RuntimeError as error:
            if not any(sign in str(error) for sign in _OLD_GRAPH):
                raise
            raise LandscapeError(
                "the closure's backward pass went through a graph of another pass, recorded before "
                "the weights moved; compute the forward pass and the loss inside the closure, so "
                "that each call makes its own."
            ) from error

    def _run_losses(self, batch: Any, weights: Tensor | None, objective: Any = None) -> Tensor:
        kept, shares = [], []
        parts = self._parts(batch)
        for i, (part, fraction) in enumerate(parts):
            last = i == len(parts) - 1
            with contextlib.nullcontext() if last else self.unsynced():
                examples = self._examples(batch, part)
                held = _versions([p.grad for p in self.parameters])
                values, outputs = self._forward(examples)
                self._check_one_each(values, part)
                if held != _versions([p.grad for p in self.parameters]):
                    raise LandscapeError(_OWN_BACKWARD)
                kept.append(values.detach())
                if objective is not None:
                    values = _of_outputs(objective, outputs, examples)
                factors = weights[part] if part and weights is not None else weights
                loss = values.mean() if factors is None else (factors * values).mean()
                shares.append(loss.detach() * fraction if part else loss.detach())
                if self.extra_loss is not None:
                    loss = loss + self.sign * self.extra_loss(outputs, examples)
                loss = loss * fraction if part else loss
                self._begin()
                if self._leads_somewhere(loss):
                    (loss if self.scaler is None else self.scaler.scale(loss)).backward()
        self.values = torch.cat(kept) if len(kept) > 1 else kept[0]
        return functools.reduce(torch.add, shares)

    def _leads_somewhere(self, loss: Tensor) -> bool:
        """Whether a gradient can reach a tensor that is wanted; some must, where all are."""
        only = self.last["only"]
        if not loss.requires_grad and (only is None or all(only)):
            raise LandscapeError(
                "the losses do not depend on the optimizer's parameters: they were detached, or "
                "computed under torch.no_grad() or from outputs stored earlier; let losses(batch) "
                "run the model and return its losses with their graph."
            )
        return loss.requires_grad

    def _begin(self) -> None:
        """Put `start` into `.grad`, after the caller's own code has run."""
        start, self.start = self.start or (), None
        for p, g in zip(self.parameters, start, strict=False):
            p.grad = g

    def _parts(self, batch: Any) -> list[tuple[slice | None, float]]:
        """Slices of the batch with their share of it; (None, 1) for the whole."""
        size = self.batches.size(batch) if self.micro_batch else 0
        if not self.micro_batch or size <= self.micro_batch:
            return [(None, 1.0)]
        starts = range(0, size, self.micro_batch)
        ends = [min(a + self.micro_batch, size) for a in starts]
        return [(slice(a, b), (b - a) / size) for a, b in zip(starts, ends, strict=True)]

    def per_example(self, batch: Any) -> tuple[Tensor, Any]:
        """losses(batch) -> (B,), with the outputs when it returns (losses, outputs)."""
        parts = [self._forward_part(batch, p) for p, _ in self._parts(batch)]
        if len(parts) == 1:
            return parts[0]
        outputs = [o for _, o in parts]
        together = torch.cat(outputs) if isinstance(outputs[0], Tensor) else None
        return torch.cat([values for values, _ in parts]), together

    def _examples(self, batch: Any, part: slice | None) -> Any:
        return batch if part is None else self.batches.select(batch, part)

    def _forward_part(self, batch: Any, part: slice | None) -> tuple[Tensor, Any]:
        values, outputs = self._forward(self._examples(batch, part))
        self._check_one_each(values, part)
        return values, outputs

    @staticmethod
    def _check_one_each(values: Tensor, part: slice | None) -> None:
        """Parts of a batch count by their examples."""
        if part is not None:
            check_one_each(values, part.stop - part.start)

    def _forward(self, batch: Any) -> tuple[Tensor, Any]:
        if self.losses is None:
            raise LandscapeError(
                "losses of single examples were asked of a pass, which a closure does not give; "
                "call step(losses, batch)."
            )
        forget_cached_weights()
        inputs = _tensors_of(batch)
        before = _versions(inputs)
        # A loss may take entries out of it, as of what models are called with.
        result = self.losses(copy.copy(batch) if isinstance(batch, MutableMapping) else batch)
        if before != _versions(inputs):
            raise LandscapeError(
                "losses(batch) changed a tensor of the batch in place, and the second pass would "
                "see other examples than the first; let it make a new one (x = x.div(255) instead "
                "of x.div_(255))."
            )
        values, outputs = result if isinstance(result, tuple) else (result, None)
        if not isinstance(values, Tensor) or values.ndim != 1 or not values.is_floating_point():
            got = (
                f"a tensor of shape {tuple(values.shape)} and {values.dtype}"
                if isinstance(values, Tensor)
                else type(values).__name__
            )
            raise LandscapeError(
                f"losses(batch) returned {got}; step(losses, batch) needs one loss per example, "
                "real numbers of shape (B,) (use reduction='none'), or call step(closure)."
            )
        if not len(values):
            raise LandscapeError("the batch holds no example; leave empty batches out.")
        return values, outputs


_OWN_BACKWARD = (
    "losses(batch) itself changed .grad: a backward pass in it counts twice, and zero_grad() in it "
    "drops the gradients of earlier parts of the batch. Let it return the losses with their graph, "
    "or call step(closure) with a closure that runs backward."
)


def _tensors_of(batch: Any) -> list[Tensor | None]:
    """Those that lie in a batch or in its first container."""
    parts = batch.values() if isinstance(batch, Mapping) else batch
    parts = parts if isinstance(parts, (tuple, list)) or isinstance(batch, Mapping) else [batch]
    return [x for x in parts if isinstance(x, Tensor) and not x.is_inference()]


def _versions(tensors: Sequence[Tensor | None]) -> list[tuple[int, int] | None]:
    """Which tensors they are, and how often they were written to."""
    return [None if x is None else (id(x), x._version) for x in tensors]


_OLD_GRAPH = ("modified by an inplace operation", "backward through the graph a second time")


def forget_cached_weights() -> None:
    """Forget what was computed from the weights before they moved.

    Within one autocast region casts to half precision are cached, within `parametrize.cached()`
    the parametrized weights: the second pass would run at w instead of w + e.
    """
    torch.clear_autocast_cache()
    parametrize = torch.nn.utils.parametrize
    if parametrize._cache_enabled:
        parametrize._cache.clear()


def _loss_of(returned: Any) -> Tensor:
    """The detached loss among the things that a closure may return."""
    loss = returned
    if isinstance(loss, Mapping):
        loss = loss.get("loss")
    elif isinstance(loss, (tuple, list)) and loss:
        loss = loss[0]
    elif not isinstance(loss, Tensor) and hasattr(loss, "loss"):
        loss = loss.loss
    if isinstance(loss, Tensor):
        loss = loss.detach()
        loss = loss.full_tensor() if is_cut(loss) else loss
        if loss.numel() == 1:
            return loss.reshape(())
    elif isinstance(loss, numbers.Real) or getattr(loss, "ndim", None) == 0:
        return torch.as_tensor(float(loss))
    what = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else repr(returned)
    raise LandscapeError(
        f"the closure returned {what[:80]}; it must run the backward pass and return the loss, one "
        "number (or a tuple that begins with it, or a mapping that holds it under 'loss')."
    )


def _of_outputs(objective: Callable[[Any, Any], Tensor], outputs: Any, batch: Any) -> Tensor:
    if outputs is None:
        raise LandscapeError(
            "this variant climbs on another objective of the model's outputs; let losses(batch) "
            "return (losses, outputs)."
        )
    values = objective(outputs, batch)
    return values if values.ndim else values[None]


@contextlib.contextmanager
def _requires_grad_only(
    parameters: Sequence[nn.Parameter], only: Sequence[bool] | None
) -> Generator[None]:
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
