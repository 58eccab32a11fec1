"""Products with a matrix of second derivatives at one theta, with as many graphs kept as fit."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from landscape import devices
from landscape.errors import LandscapeError
from landscape.risk import _checks, _fitting
from landscape.risk._criterion import logits_of
from landscape.risk._data import Batch
from landscape.risk._engine import FORWARD, GRADIENT, PRODUCT, Engine
from landscape.risk._head import Deferred

# Tensors made under inference_mode cannot be differentiated later.
normal_tensors = torch.inference_mode(False)


class LinearizedHVP:
    """Callable V ↦ ∇²L(theta)·V for V (P,) or (k, P), see EmpiricalRisk.linearized_hvp.

    out: a tensor of V's shape, in the risk's dtype and on its device, to which the product is
    written in place of fresh memory. Made by `EmpiricalRisk.linearized_hvp`, which gives the
    engine; weight_decay adds its multiple of the identity.

    Example:
        >>> product = risk.linearized_hvp(theta)
        >>> u, v = torch.ones_like(theta), theta
        >>> bool(torch.isclose(u @ product(v), v @ product(u)))
        True
    """

    def __init__(self, engine: Engine, theta: Tensor, weight_decay: float) -> None:
        self._engine, self._theta, self._weight_decay = engine, _held(engine, theta), weight_decay
        with _checks.explaining(engine, theta):
            self._batches, self._rebuilt = _fitting.kept_and_rebuilt(engine)
            with engine.differentiating(2, theta):
                self._kept, parts = [], []
                for batch in self._batches:
                    graph = engine.gradient_graph(batch)
                    parts += [g.detach().sum() for g in graph.gradients if g is not None]
                    graph.forget()
                    self._kept.append(graph)
        devices.trim(theta.element_size() * theta.numel())
        sums = [graph.loss for graph in self._kept]
        sums += [engine.loss_only(theta, batch) for batch in self._rebuilt]
        count = engine.examples.num_examples
        self.num_kept = count - sum(batch.count for batch in self._rebuilt)
        share = self.num_kept / count
        engine.spend(share * GRADIENT + (1 - share) * FORWARD)
        self._rebuild_cost = (1 - share) * GRADIENT
        known = engine.over_all(torch.stack(parts or [theta.sum() * 0]).sum())
        if engine.network.space is not None:  # each process knows its own part
            known = engine.network.space.sum(torch.stack(parts or [known * 0]).sum())
        mean = engine.mean(sums, theta, weight_decay)
        _checks.refuse_non_finite(engine, theta, mean, known, "gradient")

    @normal_tensors
    def __call__(
        self, V: Float[Tensor, "*k P"], out: Float[Tensor, "*k P"] | None = None
    ) -> Float[Tensor, "*k P"]:
        """Products of the same shape as V."""
        engine = self._engine
        rows = engine.as_vectors(V, widen=False)
        with _checks.explaining(engine, self._theta), engine.differentiating(2, self._theta):
            total = engine.nothing(V, rows, out)
            for graph in self._kept:
                engine.add_products(total, graph, rows, keep=True)
            for batch in self._rebuilt:
                engine.add_products(total, engine.gradient_graph(batch), rows, keep=False)
        engine.spend(PRODUCT * len(rows) + self._rebuild_cost)
        return engine.like(V, engine.mean_of(total, rows, self._weight_decay), out)

    def release(self) -> None:
        """Let the graphs go: products made after that rebuild theirs, and cost 3."""
        self._rebuilt, self._kept = [*self._batches, *self._rebuilt], []
        self._batches, self._rebuild_cost, self.num_kept = [], GRADIENT, 0


def _held(engine: Engine, theta: Tensor) -> Tensor:
    """Theta, which the caller may write afterwards; the model's own is there already."""
    own = engine.network.given
    if theta.dtype == own.dtype and engine.network.space is None and torch.equal(theta, own):
        return own
    return theta.clone()


class LinearizedGGN:
    """Callable V -> G V for V (P,) or (k, P): G = (1/N) sum_i J_iᵀ (∇²_z loss_i) J_i + wd I.

    J_i = d model(x_i)/d theta at theta, z the outputs (logits); the middle matrix is the exact
    second derivative of the loss, for cross-entropy diag(p) - ppᵀ (arXiv:1412.1193).
    J v comes from a reverse pass through a reverse pass, so that every network with a Hessian
    product has this one. Graphs are kept up to the risk's memory, the rest is rebuilt.
    Cost: 1 gradient, then 2 a product. out: as of LinearizedHVP.
    Made by `EmpiricalRisk.linearized_ggn`, which gives the engine; weight_decay: wd.

    Example:
        >>> product = risk.linearized_ggn(theta)
        >>> v = torch.ones_like(theta)
        >>> tuple(product(v).shape), bool(v @ product(v) >= 0)
        ((83,), True)
    """

    def __init__(self, engine: Engine, theta: Float[Tensor, "P"], weight_decay: float) -> None:
        self._engine, self._theta, self._weight_decay = engine, _held(engine, theta), weight_decay
        with _checks.explaining(engine, theta):
            self._batches, self._rebuilt = _fitting.kept_and_rebuilt(engine)
            with engine.differentiating(2, theta):
                self._kept = [_Graph(engine, batch) for batch in self._batches]
        share = sum(batch.count for batch in self._rebuilt) / engine.examples.num_examples
        engine.spend((1 - share) * GRADIENT + share * FORWARD)
        self._rebuild_cost = share * GRADIENT

    @normal_tensors
    def __call__(
        self, V: Float[Tensor, "*k P"], out: Float[Tensor, "*k P"] | None = None
    ) -> Float[Tensor, "*k P"]:
        """Products of the same shape as V."""
        engine = self._engine
        rows = engine.as_vectors(V)
        with _checks.explaining(engine, self._theta), engine.differentiating(2, self._theta):
            total = engine.nothing(V, rows, out)
            for graph in self._kept:
                graph.add_products(total, rows, keep=True)
            for batch in self._rebuilt:
                _Graph(engine, batch).add_products(total, rows, keep=False)
        engine.spend(PRODUCT * len(rows) + self._rebuild_cost)
        return engine.like(V, engine.mean_of(total, rows, self._weight_decay), out)

    def release(self) -> None:
        """Let the graphs go: products made after that rebuild theirs, and cost 3."""
        self._rebuilt, self._kept = [*self._batches, *self._rebuilt], []
        self._batches, self._rebuild_cost = [], GRADIENT


class _Graph:
    """Of one batch: outputs z of the weights, Jᵀu of a dummy u, and ∇²_z of the losses' sum.

    Of a language model whose logits are left to the loss z are the hidden states, and what weights
    of the last layer do to the logits is added beside.
    """

    def __init__(self, engine: Engine, batch: Batch) -> None:
        self._network, batch = engine.network, engine.examples.on_device(batch)
        outputs = _outputs(engine, batch)
        self._middle = (
            _OfHead(engine, outputs, batch) if isinstance(outputs, Deferred)
            else _OfOutputs(engine, outputs, batch)
        )  # fmt: skip
        self._outputs = self._middle.outputs
        self._dummy = torch.zeros_like(self._outputs, requires_grad=True)
        pulled = self._pull(self._dummy, create_graph=True)
        self._linear = [part is not None and part.requires_grad for part in pulled]
        self._pulled = self._chosen(pulled)
        engine.refuse_cut(self._pulled)

    def _pull(self, cotangent: Tensor, **options: bool) -> Sequence[Tensor | None]:
        weights = self._network.weights
        if isinstance(self._middle, _OfHead) and not self._outputs.requires_grad:
            return [None] * len(weights)  # the last layer alone is trained
        return torch.autograd.grad(self._outputs, weights, cotangent, allow_unused=True, **options)

    def _chosen(self, parts: Sequence[Tensor | None]) -> list[Tensor]:
        chosen = zip(parts, self._linear, strict=True)
        return [part for part, used in chosen if used and part is not None]

    def _pushed(self, pieces: Sequence[Tensor]) -> Tensor:
        chosen = self._chosen(pieces)
        if not chosen:
            return torch.zeros_like(self._outputs)
        (pushed,) = torch.autograd.grad(
            self._pulled, self._dummy, chosen, retain_graph=True, materialize_grads=True
        )
        return pushed

    def add_products(self, total: Tensor, rows: Tensor, *, keep: bool) -> None:
        if not self._middle.is_curved:
            return
        network = self._network
        for i, v in enumerate(rows):
            last = {"retain_graph": keep or i + 1 < len(rows)}
            with network.cotangents(v) as pieces:
                curved, beside = self._middle(self._pushed(pieces), pieces, **last)
            if self._outputs.requires_grad:
                network.pull_back(total[i], [self._outputs], [curved], keep=last["retain_graph"])
            network.add(total[i], beside)


class _OfOutputs:
    """u -> ∇²_z (Σ of losses) u of outputs z that are there."""

    def __init__(self, engine: Engine, outputs: Tensor, batch: Batch) -> None:
        self.outputs = outputs
        self._cut = outputs.detach().requires_grad_()
        losses = engine.criterion(self._cut, batch.targets, batch.count)
        (self._slope,) = torch.autograd.grad(losses.sum(), self._cut, create_graph=True)
        self.is_curved = self._slope.requires_grad  # else the loss is linear in the outputs
        self._nothing = [None] * len(engine.network.weights)

    def __call__(
        self, pushed: Tensor, _pieces: Sequence[Tensor], **options: bool
    ) -> tuple[Tensor, Sequence[Tensor | None]]:
        (curved,) = torch.autograd.grad(
            self._slope, self._cut, pushed, materialize_grads=True, **options
        )
        return curved, self._nothing


class _OfHead:
    """The same of hidden states and the weights of the layer that makes logits of them."""

    is_curved = True

    def __init__(self, engine: Engine, logits: Deferred, batch: Batch) -> None:
        self._logits, self._loss, self._labels = logits, engine.criterion.loss, batch.targets
        self.outputs = logits.hidden
        weights = engine.network.weights
        self._places = [next((i for i, w in enumerate(weights) if w is p), None)
                        for p in logits.weights]  # fmt: skip

    def __call__(
        self, pushed: Tensor, pieces: Sequence[Tensor], **_options: bool
    ) -> tuple[Tensor, Sequence[Tensor | None]]:
        own = zip(self._places, self._logits.weights, strict=True)
        along = [torch.zeros_like(w) if at is None else pieces[at] for at, w in own]
        curved, found = self._logits.curved(self._loss, self._labels, pushed, along)
        beside: list[Tensor | None] = [None] * len(pieces)
        for at, part in zip(self._places, found, strict=True):
            if at is not None:
                beside[at] = part
        return curved, beside


def _outputs(engine: Engine, batch: Batch) -> Tensor:
    """What the loss is a function of, where that is one real tensor."""
    criterion = engine.criterion
    if criterion.form == "batch":
        raise LandscapeError(
            f"Gauss-Newton products of {criterion.name} asked, which is a function of (model, "
            f"batch), so that it is not said what the model's outputs are; use matrix='hessian', "
            f"or a loss(output, target)."
        )
    model, batch = engine.network.ready(batch)
    outputs = criterion.output(model, batch)
    if criterion.torch is not None:
        outputs = logits_of(outputs)
    if isinstance(outputs, Deferred) and outputs.hidden.shape[:2] != batch.targets.shape:
        outputs = outputs.dense()
    if not isinstance(outputs, Tensor) or not outputs.is_floating_point():
        found = outputs.dtype if isinstance(outputs, Tensor) else type(outputs).__name__
        raise LandscapeError(
            f"Gauss-Newton products of {criterion.name} asked, but the model returns {found}; they "
            f"need one real tensor of outputs (or `.logits`). Use matrix='hessian' or wrap the "
            f"model."
        )
    return outputs
