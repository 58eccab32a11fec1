"""Any symmetric matrix of second derivatives of the risk, or a block of it, as an operator."""

from collections.abc import Callable
from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor

from landscape.checks import check_choice
from landscape.errors import LandscapeError
from landscape.params import Select
from landscape.risk import EmpiricalRisk

MATRICES = ("hessian", "ggn")
TITLES = {"hessian": "Hessian", "ggn": "Gauss-Newton matrix"}


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
        full = risk.linearized_hvp(theta) if matrix == "hessian" else risk.linearized_ggn(theta)
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
