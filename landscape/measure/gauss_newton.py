"""Generalized Gauss-Newton products, and any symmetric matrix of the risk or a block of it."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from landscape.errors import LandscapeError
from landscape.measure._common import check_choice
from landscape.params import Select
from landscape.risk import EmpiricalRisk, _checks, _memory
from landscape.risk._criterion import logits_of
from landscape.risk._data import Batch
from landscape.risk._engine import FORWARD, GRADIENT, PRODUCT

MATRICES = ("hessian", "ggn")
TITLES = {"hessian": "Hessian", "ggn": "Gauss-Newton matrix"}


class LinearizedGGN:
    """Callable V -> G V for V (P,) or (k, P): G = (1/N) sum_i J_iᵀ (∇²_z loss_i) J_i + wd I.

    J_i = d model(x_i)/d theta at theta, z the outputs (logits); the middle matrix is the exact
    second derivative of the loss, for cross-entropy diag(p) - ppᵀ (arXiv:1412.1193).
    J v comes from a reverse pass through a reverse pass, so that every network with a Hessian
    product has this one. Graphs are kept up to the risk's memory, the rest is rebuilt.
    Cost: 1 gradient, then 2 a product.
    """

    def __init__(self, risk: EmpiricalRisk, theta: Float[Tensor, "P"]) -> None:
        if risk.bn == "recalibrate":
            raise LandscapeError(
                "Gauss-Newton products asked with bn='recalibrate', which gives losses only; use "
                "risk.with_bn('eval') or risk.with_bn('full_batch')."
            )
        self._risk, self._theta = risk, theta.detach()
        self._kept: list[_Graph] = []
        self._rebuilt: list[Batch] = []
        engine, room = risk._engine, float(risk._engine.memory)
        for batch in engine.graph_batches(order=2):
            need = _memory.graph_bytes(engine, batch.count, order=2)
            if need <= room:
                self._kept.append(_Graph.of(risk, self._theta, batch))
                room -= need
            else:
                self._rebuilt.append(batch)
                room = 0.0
        share = sum(batch.count for batch in self._rebuilt) / risk.num_examples
        engine.spend((1 - share) * GRADIENT + share * FORWARD)
        self._rebuild_cost = share * GRADIENT

    def __call__(self, V: Float[Tensor, "*k P"]) -> Float[Tensor, "*k P"]:
        """Products of the same shape as V."""
        rows = V.detach().to(self._theta).reshape(-1, len(self._theta))
        total = torch.zeros_like(rows)
        for graph in self._kept:
            total += graph.products(rows, keep=True)
        for batch in self._rebuilt:
            total += _Graph.of(self._risk, self._theta, batch).products(rows, keep=False)
        self._risk._engine.spend(PRODUCT * len(rows) + self._rebuild_cost)
        product = total / self._risk.num_examples + self._risk.weight_decay * rows
        return product.reshape(V.shape)


@dataclass(frozen=True)
class _Graph:
    """Of one batch: outputs z of the leaf theta, Jᵀu of a dummy u, and ∇_z of the losses' sum."""

    risk: EmpiricalRisk
    leaf: Tensor
    outputs: Tensor
    dummy: Tensor
    pulled: Tensor
    cut: Tensor
    slope: Tensor

    @classmethod
    def of(cls, risk: EmpiricalRisk, theta: Tensor, batch: Batch) -> "_Graph":
        engine = risk._engine
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
        return cls(risk, leaf, outputs, dummy, pulled, cut, slope)

    def products(self, rows: Tensor, *, keep: bool) -> Tensor:
        if not self.slope.requires_grad:
            return torch.zeros_like(rows)  # a loss linear in the outputs
        found, engine, grad = [], self.risk._engine, torch.autograd.grad
        options = {"materialize_grads": True}
        try:
            with engine.differentiating(2):
                for i, v in enumerate(rows):
                    last = options | {"retain_graph": keep or i + 1 < len(rows)}
                    (pushed,) = grad(self.pulled, self.dummy, v, **options, retain_graph=True)
                    (curved,) = grad(self.slope, self.cut, pushed, **last)
                    found += grad(self.outputs, self.leaf, curved, **last)
        except RuntimeError as error:
            raise _checks.second_derivative_error(engine, self.leaf.detach(), error) from error
        return torch.stack(found)


def _refuse_odd(outputs: object, loss: str) -> None:
    if not isinstance(outputs, Tensor) or not outputs.is_floating_point():
        found = outputs.dtype if isinstance(outputs, Tensor) else type(outputs).__name__
        raise LandscapeError(
            f"Gauss-Newton products of {loss} asked, but the model returns {found}; they need one "
            f"real tensor of outputs (or `.logits`). Use matrix='hessian' or wrap the model."
        )


@dataclass(frozen=True)
class Operator:
    """V -> M V, or the diagonal block of M on the coordinates `index` (n,) of theta."""

    full: Callable[[Tensor], Tensor]
    num_parameters: int
    index: Int[Tensor, "n"] | None

    @classmethod
    def of(
        cls,
        risk: EmpiricalRisk,
        theta: Float[Tensor, "P"],
        *,
        matrix: str = "hessian",
        select: Select | None = None,
    ) -> "Operator":
        """The "hessian" or the "ggn" of the risk at theta, of all or of selected tensors."""
        check_choice("matrix", matrix, MATRICES)
        index = None if select is None else selected(risk, select)
        full = risk.linearized_hvp(theta) if matrix == "hessian" else LinearizedGGN(risk, theta)
        return cls(full, theta.numel(), index)

    @property
    def size(self) -> int:
        """Coordinates it acts on."""
        return self.num_parameters if self.index is None else len(self.index)

    def block(self, index: Int[Tensor, "n"]) -> "Operator":
        """The diagonal block on these coordinates, by the same graph."""
        return Operator(self.full, self.num_parameters, index)

    def __call__(self, V: Float[Tensor, "*k n"]) -> Float[Tensor, "*k n"]:
        """Products of the same shape as V."""
        if self.index is None:
            return self.full(V)
        return self.full(self.embed(V))[..., self.index]

    def embed(self, V: Float[Tensor, "*k n"]) -> Float[Tensor, "*k P"]:
        """The same vectors in the space of theta, zero elsewhere."""
        if self.index is None:
            return V
        whole = V.new_zeros((*V.shape[:-1], self.num_parameters))
        whole[..., self.index] = V
        return whole


def selected(risk: EmpiricalRisk, select: Select) -> Int[Tensor, "n"]:
    """Coordinates of the tensors that `select` names, refused if there are none."""
    index = risk.layout.mask(select).nonzero()[:, 0].to(risk.device)
    if len(index) == 0:
        kinds = ", ".join(dict.fromkeys(tensor.kind for tensor in risk.layout.tensors))
        raise LandscapeError(f"select={select!r} names no tensor of this model; it has {kinds}.")
    return index
