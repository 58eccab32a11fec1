"""Evaluate slots: with which data, and for which tensors, the two passes run."""

from dataclasses import dataclass

from torch import Tensor

from landscape.errors import LandscapeError
from landscape.sam.passes import Passes
from landscape.sam.variant import Point, State, check_choice

OFF = ("clean", "none")


@dataclass(frozen=True)
class SameBatch:
    """Both passes on the step's batch.

    partial=True computes g2 only for the tensors that are perturbed; the others step with g1
    (off="clean") or not at all (off="none"). micro_batches=m > 1 runs the whole of (g1, e, g2) on
    each of m equal parts and averages the descent gradients: m-sharpness in one process.
    """

    partial: bool = False
    off: str = "clean"
    micro_batches: int = 1

    def __post_init__(self) -> None:
        check_choice(self.off, OFF, "off")
        if self.micro_batches < 1:
            raise LandscapeError(f"micro_batches={self.micro_batches}; give a number >= 1.")

    def first(self, passes: Passes, point: Point, state: State, only: list[bool] | None) -> Tensor:  # noqa: ARG002
        """Pass 1, at w."""
        return passes.backward(only=only)

    def second(self, passes: Passes, point: Point, state: State, only: list[bool] | None) -> Tensor:  # noqa: ARG002
        """Pass 2, at w + e."""
        return passes.backward(only=only)
