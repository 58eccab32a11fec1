"""Radius schedules and gates: how far, and whether, a step climbs."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from landscape.checks import check_choice, check_count, check_fraction, check_number, check_rho
from landscape.errors import LandscapeError
from landscape.sam.slot import Slot, slot
from landscape.sam.variant import Point, State


@dataclass(frozen=True)
class Constant(Slot):
    """rho at every step."""

    rho: float

    def __post_init__(self) -> None:
        check_rho("rho", self.rho)

    @property
    def nominal(self) -> float:
        """Rho."""
        return self.rho

    def __call__(self, point: Point, state: State) -> float:  # noqa: ARG002
        """The radius."""
        return self.rho


@dataclass(frozen=True)
class Cosine(Slot):
    """rho_end + (rho - rho_end)(1 + cos(π epoch / total_epochs)) / 2; needs `begin_epoch`."""

    rho: float
    rho_end: float = 0.0

    def __post_init__(self) -> None:
        check_rho("rho", self.rho)
        check_rho("rho_end", self.rho_end)

    @property
    def nominal(self) -> float:
        """Rho."""
        return self.rho

    def __call__(self, point: Point, state: State) -> float:  # noqa: ARG002
        """The radius of the epoch."""
        if point.total_epochs is None:
            raise LandscapeError(
                "a cosine radius needs the length of the training; call "
                "optimizer.begin_epoch(epoch, total_epochs=...)."
            )
        share = (1 + math.cos(math.pi * point.epoch / point.total_epochs)) / 2
        return self.rho_end + (self.rho - self.rho_end) * share


@dataclass(frozen=True)
class WithLearningRate(Slot):
    """rho_min + (rho_max - rho_min)(lr - lr_min)/(lr_max - lr_min) (GSAM, arXiv:2203.08065).

    lr_max and lr_min are those after warm-up; lr outside of them is clamped.
    """

    rho_max: float
    rho_min: float
    lr_max: float
    lr_min: float = 0.0

    def __post_init__(self) -> None:
        check_rho("rho_max", self.rho_max)
        check_rho("rho_min", self.rho_min)
        if not self.lr_max > self.lr_min:
            raise LandscapeError(
                f"lr_max={self.lr_max} must exceed lr_min={self.lr_min} to tie rho to the "
                "learning rate."
            )

    def __call__(self, point: Point, state: State) -> float:  # noqa: ARG002
        """The radius at the current learning rate."""
        share = (point.lr - self.lr_min) / (self.lr_max - self.lr_min)
        return self.rho_min + (self.rho_max - self.rho_min) * min(max(share, 0.0), 1.0)


@dataclass(frozen=True)
class LossBudget(Slot):
    """rho = min(budget / (‖g1‖ + c), rho_max): equal first-order loss increase (LE-SAM).

    anneal: share of the training after which the budget falls as a half cosine to 0; 1 for never.
    """

    budget: float
    rho_max: float
    c: float = 1e-12
    anneal: float = 1.0
    needs_first_pass = True

    def __post_init__(self) -> None:
        check_rho("budget", self.budget)
        check_rho("rho_max", self.rho_max)
        check_fraction("anneal", self.anneal)

    def __call__(self, point: Point, state: State) -> Tensor:  # noqa: ARG002
        """The radius, on the device of the gradients."""
        return torch.clamp(self._now(point) / (point.norm + self.c), max=self.rho_max)

    def _now(self, point: Point) -> float:
        """The budget of the epoch."""
        if self.anneal == 1 or point.epoch == 0:
            return self.budget
        if point.total_epochs is None:
            raise LandscapeError(
                "a loss budget that is annealed needs the length of the training; call "
                "optimizer.begin_epoch(epoch, total_epochs=...), or give anneal=1."
            )
        past = (point.epoch / point.total_epochs - self.anneal) / (1 - self.anneal)
        return self.budget * (1 + math.cos(math.pi * max(past, 0.0))) / 2


@dataclass(frozen=True)
class AdaGradNorm(Slot):
    """u_t = u_{t-1} + ‖g1‖²; e = rho g1/√u_t, so the radius is rho ‖g1‖/√u_t (LightSAM)."""

    rho: float
    initial: float = 0.0
    needs_first_pass = True

    def __post_init__(self) -> None:
        check_rho("rho", self.rho)
        check_number("initial", self.initial, least=0)

    @property
    def nominal(self) -> float:
        """Rho."""
        return self.rho

    def __call__(self, point: Point, state: State) -> Tensor:
        """The radius; the sum lives in `state["sum"]`."""
        squared = point.norm.square()
        state["sum"] = state.get("sum", torch.full_like(squared, self.initial)) + squared
        return self.rho * point.norm / (state["sum"].sqrt() + 1e-12)


@dataclass(frozen=True)
class Rising(Slot):
    """rho (1 - cos(π step/total_steps))/2, from 0 to rho (Flat-LoRA, arXiv:2409.14396)."""

    rho: float
    total_steps: int

    def __post_init__(self) -> None:
        check_rho("rho", self.rho)
        check_count("total_steps", self.total_steps)

    @property
    def nominal(self) -> float:
        """Rho."""
        return self.rho

    def __call__(self, point: Point, state: State) -> float:  # noqa: ARG002
        """The radius of the step."""
        share = min(point.step / self.total_steps, 1.0)
        return self.rho * (1 - math.cos(math.pi * share)) / 2


@slot(needs_g1=False)
def always(point: Point, state: State) -> bool:  # noqa: ARG001
    """Every step climbs."""
    return True


@slot(needs_g1=False)
def never(point: Point, state: State) -> bool:  # noqa: ARG001
    """No step climbs: the base optimizer alone."""
    return False


@dataclass(frozen=True)
class Window(Slot):
    """Epochs start <= epoch < end; outside, the base optimizer alone. end=None is the last.

    Late-phase SAM (arXiv:2410.10373) is Window(start); SAM-ON's code has start and end. Steps are
    counted instead of epochs with unit="step".
    """

    start: int = 0
    end: int | None = None
    unit: str = "epoch"
    needs_g1 = False

    def __post_init__(self) -> None:
        check_choice("unit", self.unit, ("epoch", "step"))
        check_count("start", self.start, 0)
        if self.end is not None and check_count("end", self.end) <= self.start:
            raise LandscapeError(
                f"start={self.start} and end={self.end} leave no {self.unit} to climb in; give "
                "0 <= start < end."
            )

    def __call__(self, point: Point, state: State) -> bool:  # noqa: ARG002
        """Whether this step climbs."""
        now = point.epoch if self.unit == "epoch" else point.step
        return now >= self.start and (self.end is None or now < self.end)


@dataclass(frozen=True)
class Every(Slot):
    """Steps 0, k, 2k, … (LookSAM's schedule, arXiv:2203.02714)."""

    k: int
    needs_g1 = False

    def __post_init__(self) -> None:
        check_count("k", self.k)

    def __call__(self, point: Point, state: State) -> bool:  # noqa: ARG002
        """Whether this step climbs."""
        return point.step % self.k == 0


@dataclass(frozen=True)
class Adaptive(Slot):
    """Climb when ‖g1‖² >= mu + c σ, mu and σ² running moments of ‖g1‖² (AE-SAM, ICLR 2023).

    c goes linearly from `low` to `high` over the epochs when their number is known; else c = low.
    The first step climbs. Reads one number from the device per step.
    """

    decay: float = 0.9
    low: float = -1.0
    high: float = 1.0
    needs_g1 = True

    def __post_init__(self) -> None:
        check_fraction("decay", self.decay)

    def __call__(self, point: Point, state: State) -> bool:
        """Whether this step climbs; the moments live in `state`."""
        squared = float(point.norm) ** 2
        if "mean" not in state:
            state["mean"], state["variance"] = squared, 0.0
            return True
        state["mean"] = self.decay * state["mean"] + (1 - self.decay) * squared
        deviation = (squared - state["mean"]) ** 2
        state["variance"] = self.decay * state["variance"] + (1 - self.decay) * deviation
        share = point.epoch / point.total_epochs if point.total_epochs else 0.0
        c = self.low + (self.high - self.low) * share
        return squared >= state["mean"] + c * math.sqrt(state["variance"])
