"""Products with a matrix of second derivatives at one theta, with as many graphs kept as fit."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from landscape.errors import LandscapeError
from landscape.risk import _checks
from landscape.risk._criterion import logits_of
from landscape.risk._data import Batch
from landscape.risk._engine import FORWARD, GRADIENT, PRODUCT, Engine

if TYPE_CHECKING:
    from landscape.risk._empirical import EmpiricalRisk

# Tensors made under inference_mode cannot be differentiated later.
normal_tensors = torch.inference_mode(False)


class LinearizedHVP:
    """Callable V ↦ ∇²L(theta)·V for V (P,) or (k, P), see EmpiricalRisk.linearized_hvp."""

    def __init__(self, risk: "EmpiricalRisk", theta: Tensor) -> None:
        self._risk, self._theta = risk, theta
        engine = risk._engine
        kept, self._rebuilt = engine.kept_and_rebuilt()
        graphs = [engine.gradient_graph(theta, batch) for batch in kept]
        sums = [loss for loss, _, _ in graphs]
        sums += [engine.loss_only(theta, batch) for batch in self._rebuilt]
        self._kept = [(leaf, gradient) for _, leaf, gradient in graphs]
        count = engine.examples.num_examples
        self.num_kept = count - sum(batch.count for batch in self._rebuilt)
        share = self.num_kept / count
        engine.spend(share * GRADIENT + (1 - share) * FORWARD)
        self._rebuild_cost = (1 - share) * GRADIENT
        gradients = torch.stack([g.detach().sum() for _, g in self._kept] or [theta.sum() * 0])
        gradients = engine.over_all(gradients.sum())
        risk._refuse_non_finite(theta, risk._mean(sums, theta), gradients, "gradient")

    @normal_tensors
    def __call__(self, V: Float[Tensor, "*k P"]) -> Float[Tensor, "*k P"]:
        """Products of the same shape as V."""
        risk, engine = self._risk, self._risk._engine
        rows = risk._as_vectors(V)
        total = torch.zeros_like(rows)
        for leaf, gradient in self._kept:
            engine.add_products(total, gradient, leaf, rows, keep=True)
        for batch in self._rebuilt:
            _, leaf, gradient = engine.gradient_graph(self._theta, batch)
            engine.add_products(total, gradient, leaf, rows, keep=False)
        engine.spend(PRODUCT * len(rows) + self._rebuild_cost)
        return engine.mean_of(total, rows, risk._weight_decay).reshape(V.shape)


class LinearizedGGN:
    """Callable V -> G V for V (P,) or (k, P): G = (1/N) sum_i J_iᵀ (∇²_z loss_i) J_i + wd I.

    J_i = d model(x_i)/d theta at theta, z the outputs (logits); the middle matrix is the exact
    second derivative of the loss, for cross-entropy diag(p) - ppᵀ (arXiv:1412.1193).
    J v comes from a reverse pass through a reverse pass, so that every network with a Hessian
    product has this one. Graphs are kept up to the risk's memory, the rest is rebuilt.
    Cost: 1 gradient, then 2 a product.
    """

    def __init__(self, risk: "EmpiricalRisk", theta: Float[Tensor, "P"]) -> None:
        self._risk, self._theta = risk, theta.detach()
        engine = risk._engine
        kept, self._rebuilt = engine.kept_and_rebuilt()
        self._kept = [_Graph.of(engine, self._theta, batch) for batch in kept]
        share = sum(batch.count for batch in self._rebuilt) / engine.examples.num_examples
        engine.spend((1 - share) * GRADIENT + share * FORWARD)
        self._rebuild_cost = share * GRADIENT

    def __call__(self, V: Float[Tensor, "*k P"]) -> Float[Tensor, "*k P"]:
        """Products of the same shape as V."""
        rows, engine = self._risk._as_vectors(V), self._risk._engine
        total = torch.zeros_like(rows)
        for graph in self._kept:
            graph.add_products(total, rows, keep=True)
        for batch in self._rebuilt:
            _Graph.of(engine, self._theta, batch).add_products(total, rows, keep=False)
        engine.spend(PRODUCT * len(rows) + self._rebuild_cost)
        return engine.mean_of(total, rows, self._risk.weight_decay).reshape(V.shape)


@dataclass(frozen=True)
class _Graph:
    """Of one batch: outputs z of the leaf theta, Jᵀu of a dummy u, and ∇_z of the losses' sum."""

    engine: Engine
    leaf: Tensor
    outputs: Tensor
    dummy: Tensor
    pulled: Tensor
    cut: Tensor
    slope: Tensor

    @classmethod
    def of(cls, engine: Engine, theta: Tensor, batch: Batch) -> "_Graph":
        leaf, batch = theta.clone().requires_grad_(), engine.examples.on_device(batch)
        try:
            with engine.differentiating(2):
                with engine._at(leaf):
                    outputs = logits_of(engine.network(batch))
                _refuse_odd(outputs, engine.criterion.name)
                cut = outputs.detach().requires_grad_()
                losses = engine.criterion(cut, batch.targets, batch.count)
                loss = losses.sum() if losses.ndim else losses * batch.count
                (slope,) = torch.autograd.grad(loss, cut, create_graph=True)
                dummy = torch.zeros_like(outputs, requires_grad=True)
                (pulled,) = torch.autograd.grad(outputs, leaf, dummy, create_graph=True)
        except RuntimeError as error:
            raise _checks.second_derivative_error(engine, theta, error) from error
        _checks.refuse_cut_graph(engine, theta, pulled)
        return cls(engine, leaf, outputs, dummy, pulled, cut, slope)

    def add_products(self, total: Tensor, rows: Tensor, *, keep: bool) -> None:
        if not self.slope.requires_grad:
            return  # a loss linear in the outputs
        engine, grad = self.engine, torch.autograd.grad
        options = {"materialize_grads": True}
        try:
            with engine.differentiating(2):
                for i, v in enumerate(rows):
                    last = options | {"retain_graph": keep or i + 1 < len(rows)}
                    (pushed,) = grad(self.pulled, self.dummy, v, **options, retain_graph=True)
                    (curved,) = grad(self.slope, self.cut, pushed, **last)
                    total[i] += grad(self.outputs, self.leaf, curved, **last)[0]
        except RuntimeError as error:
            raise _checks.second_derivative_error(engine, self.leaf.detach(), error) from error


def _refuse_odd(outputs: object, loss: str) -> None:
    if not isinstance(outputs, Tensor) or not outputs.is_floating_point():
        found = outputs.dtype if isinstance(outputs, Tensor) else type(outputs).__name__
        raise LandscapeError(
            f"Gauss-Newton products of {loss} asked, but the model returns {found}; they need one "
            f"real tensor of outputs (or `.logits`). Use matrix='hessian' or wrap the model."
        )
