"""Any symmetric matrix of second derivatives of the risk, or a block of it, as an operator."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from landscape.checks import check_choice
from landscape.errors import LandscapeError
from landscape.params import Select
from landscape.risk import EmpiricalRisk, LinearizedGGN, LinearizedHVP
from landscape.sharding import ShardedVector

MATRICES = ("hessian", "ggn")
TITLES = {"hessian": "Hessian", "ggn": "Gauss-Newton matrix"}


@dataclass(frozen=True)
class Spans:
    """Coordinates of whole tensors, first..last - 1 of each: what of sharded vectors stays so."""

    bounds: tuple[tuple[int, int], ...]
    theta: Float[Tensor, "P"]

    def __len__(self) -> int:
        """Coordinates together."""
        return sum(last - first for first, last in self.bounds)


@dataclass(frozen=True)
class Operator:
    """V -> M V, or the diagonal block of M on the coordinates `index` (n,) of theta."""

    full: Callable[..., Tensor]
    num_parameters: int
    index: Int[Tensor, "n"] | Spans | None

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
        index = None if select is None else selected(risk, select, theta)
        full = risk.linearized_hvp(theta) if matrix == "hessian" else risk.linearized_ggn(theta)
        return cls(full, theta.numel(), index)

    @property
    def size(self) -> int:
        """Coordinates it acts on."""
        return self.num_parameters if self.index is None else len(self.index)

    def block(self, index: Int[Tensor, "n"] | Spans) -> "Operator":
        """The diagonal block on these coordinates, by the same graph."""
        return Operator(self.full, self.num_parameters, index)

    def release(self) -> None:
        """Let kept graphs go, where no more products are expected."""
        if isinstance(self.full, LinearizedHVP | LinearizedGGN):
            self.full.release()

    def __call__(
        self, V: Float[Tensor, "*k n"], out: Float[Tensor, "*k n"] | None = None
    ) -> Float[Tensor, "*k n"]:
        """Products of the same shape as V, written to out where it is given."""
        if self.index is None:
            return self.full(V) if out is None else self.full(V, out)
        found = self.chosen(self.full(self.embed(V)))
        return found if out is None else out.copy_(found)

    def like(self, theta: Float[Tensor, "P"]) -> Float[Tensor, "n"]:
        """A vector that it acts on, to make others like it."""
        return self.chosen(theta)

    def chosen(self, V: Float[Tensor, "*k P"]) -> Float[Tensor, "*k n"]:
        """Of vectors in the space of theta what it acts on."""
        if self.index is None:
            return V
        if isinstance(self.index, Spans):
            return torch.cat([V[..., first:last] for first, last in self.index.bounds], -1)
        return V[..., self.index]

    def embed(self, V: Float[Tensor, "*k n"]) -> Float[Tensor, "*k P"]:
        """The same vectors in the space of theta, zero elsewhere."""
        if self.index is None:
            return V
        shape = (*V.shape[:-1], self.num_parameters)
        if not isinstance(self.index, Spans):
            whole = V.new_zeros(shape)
            whole[..., self.index] = V
            return whole
        whole, at = self.index.theta.new_zeros(shape, dtype=V.dtype), 0
        for first, last in self.index.bounds:
            whole[..., first:last] = V[..., at : at + last - first]
            at += last - first
        return whole


def selected(
    risk: EmpiricalRisk, select: Select, theta: Float[Tensor, "P"]
) -> Int[Tensor, "n"] | Spans:
    """Coordinates of the tensors that `select` names, refused if there are none."""
    if isinstance(theta, ShardedVector) and (chosen := risk.layout.select(select)):
        return Spans(tuple((tensor.start, tensor.stop) for tensor in chosen), theta)
    index = risk.layout.mask(select).nonzero()[:, 0].to(risk.device)
    if len(index) == 0:
        kinds = ", ".join(dict.fromkeys(tensor.kind for tensor in risk.layout.tensors))
        raise LandscapeError(f"select={select!r} names no tensor of this model; it has {kinds}.")
    return index
