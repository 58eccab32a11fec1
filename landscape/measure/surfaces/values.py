"""One cell of a surface: every number that is computed at one point of parameter space."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from landscape import vectors
from landscape.errors import LandscapeError
from landscape.measure.measuring import Measuring
from landscape.plane import Plane
from landscape.results import Variable
from landscape.risk import EmpiricalRisk, Evaluation
from landscape.risk.along import Direct, Folded, evaluator

_OWN = ("loss", "error_rate", "loss_stderr", "rise_stderr")
# Losses of single examples held until their standard errors are taken, for all points at once.
_HELD = 2**22
# A loss, its double, and its rise above the centre.
_BYTES_OF_A_LOSS = 32
_WORDS = {
    "loss": ("nats", "Loss"),
    "error_rate": ("1", "Error rate"),
    "loss_stderr": ("nats", "Standard error of the loss"),
    "rise_stderr": ("nats", "Standard error of the rise above the checkpoint"),
    "weight_decay_loss": ("nats", "Part of the loss that is weight decay"),
}


class Cells:
    """Values at the points of a plane, and the checkpoint's own, which the grid must agree with.

    `names` are the variables of a cell, in the order of the values that `at` returns. `also` maps
    names to risks of the same model on other data: `<name>_loss` and so on are computed at the same
    points, with recalibrated BatchNorm statistics taken from the measured risk's examples.
    """

    def __init__(self, measuring: Measuring, also: Mapping[str, EmpiricalRisk] | None) -> None:
        self.measuring, self.risk = measuring, measuring.risk
        self.also = (
            {name: _companion(self.risk, name, other) for name, other in also.items()}
            if also
            else {}
        )
        evaluation = self.risk.evaluate(measuring.theta)
        self.loss = float(measuring.check_loss(evaluation.loss))
        self._losses = evaluation.losses
        decay = ("weight_decay_loss",) if self.risk.weight_decay else ()
        self.names = (
            *_OWN,
            *decay,
            *(f"{name}_{key}" for name in self.also for key in _OWN[:3]),
        )

    def over(self, plane: Plane, *, probes: Sequence[Sequence[float]], points: int) -> None:
        """Prepare for so many points of the plane; ways to be quick are proved at the probes."""
        self._plane = plane
        self._own = evaluator(self.risk, plane, probes=probes, points=points)
        self.method = self._own.method
        self._others = {}
        if not self._recalibrates:
            self._others = {
                name: evaluator(other, plane, probes=probes, points=points)
                for name, other in self.also.items()
            }

    @property
    def _recalibrates(self) -> bool:
        return self.risk.bn == "recalibrate" and self.risk.has_batchnorm

    def at(self, points: Sequence[Sequence[float]]) -> np.ndarray:
        """Values (len(points), len(names)) at the coordinates; the host waits for the last only.

        The checkpoint itself is always evaluated as the risk does, to agree to the last bit.
        """
        held = min(_HELD, self.risk.memory // _BYTES_OF_A_LOSS)
        size = max(1, held // max(1, self.risk.num_examples))
        parts = []
        for start in range(0, len(points), size):
            some = points[start : start + size]
            columns = self._of(self._own, self.risk, some, self._losses)
            if self.risk.weight_decay:
                norms = [vectors.squared_norm(self._plane.point(*point)) for point in some]
                columns.append(0.5 * self.risk.weight_decay * torch.stack(norms))
            if self.also and self._recalibrates:
                columns += self._given_statistics(some)
            else:
                for name, other in self._others.items():
                    columns += self._of(other, self.also[name], some, None)[:3]
            parts.append(torch.stack(columns, 1).cpu().numpy())
        return np.concatenate(parts)

    def _of(
        self,
        evaluator: Direct | Folded,
        risk: EmpiricalRisk,
        points: Sequence[Sequence[float]],
        center: Tensor | None,
    ) -> list[Tensor]:
        """Loss, error rate, and the standard errors of the loss and of the rise, each (k,)."""
        direct, found = Direct(risk, self._plane), []
        with evaluator.session():
            for point in points:
                found.append((evaluator if any(point) else direct).evaluate(point))
        return _columns(found, center, risk)

    def _given_statistics(self, points: Sequence[Sequence[float]]) -> list[Tensor]:
        """Columns of the companions with BatchNorm statistics of the measured examples."""
        found: dict[str, list[Evaluation]] = {name: [] for name in self.also}
        for point in points:
            theta = self._plane.point(*point)
            statistics = self.risk.batchnorm_statistics(theta)
            for name, other in self.also.items():
                found[name].append(other.evaluate(theta, statistics=statistics))
        return [
            column
            for name, each in found.items()
            for column in _columns(each, None, self.also[name])[:3]
        ]

    def check(self, values: np.ndarray) -> None:
        """The losses of the grid's centre against the checkpoint's."""
        allowed = 100 * torch.finfo(self.risk.dtype).eps * max(abs(self.loss), 1.0)
        worst = np.abs(values - self.loss).max()
        if not worst <= allowed:
            raise LandscapeError(
                f"The centre of {self.measuring.name} differs from the checkpoint's loss "
                f"{self.loss:.9g} by {worst:.3g}; only {allowed:.1g} can be rounding. The risk is "
                f"not a deterministic function of theta: turn off what draws or keeps state."
            )

    def variables(self, dims: tuple[str, ...], values: np.ndarray) -> dict[str, Variable]:
        """`values` (..., len(names)) as variables over dims."""
        return {
            name: Variable(dims, values[..., i], *self._words(name))
            for i, name in enumerate(self.names)
        }

    def _words(self, name: str) -> tuple[str, str]:
        for other in self.also:
            if name.startswith(f"{other}_") and name not in _WORDS:
                units, words = _WORDS[name.removeprefix(f"{other}_")]
                return units, f"{words} ({other})"
        units, words = _WORDS[name]
        held = name.endswith("_stderr") and self._recalibrates
        return units, f"{words}, BatchNorm statistics held" if held else words

    def provenance(self) -> dict[str, Any]:
        """The objective in words, and the data that were evaluated beside it."""
        found: dict[str, Any] = {
            "bn": self.risk.bn,
            "objective": objective(self.risk),
            "evaluation": self.method,
        }
        for name, other in self.also.items():
            of = "statistics of the measured examples" if self.risk.bn == "recalibrate" else "own"
            found[f"{name}_examples"] = other.num_examples
            found[f"{name}_bn"] = of if self.risk.has_batchnorm else "none"
        return found


def objective(risk: EmpiricalRisk) -> str:
    """What is drawn: the data loss alone, or the training objective with weight decay."""
    name = risk.provenance()["loss"]
    decay = risk.weight_decay
    return f"mean {name}" + (f" + ½·{decay:g}·‖θ‖²" if decay else ", without weight decay")


def _columns(
    found: Sequence[Evaluation], center: Tensor | None, risk: EmpiricalRisk
) -> list[Tensor]:
    """Loss, error rate, standard errors of the loss and of its rise; NaN where there is none."""
    loss = torch.stack([each.loss for each in found]).double()
    absent = torch.full_like(loss, math.nan)
    rates = [each.error_rate for each in found if each.error_rate is not None]
    rate = torch.stack(rates).double() if rates else absent
    errors = absent
    rises = absent
    each_losses = [each.losses for each in found if each.losses is not None]
    if each_losses and each_losses[0].numel() > 1:
        losses = torch.stack(each_losses).double()
        errors = risk.standard_error(losses)
        rises = absent if center is None else risk.standard_error(losses.sub_(center))
    return [loss, rate, errors, rises]


def _companion(risk: EmpiricalRisk, name: str, other: EmpiricalRisk) -> EmpiricalRisk:
    if not name.isidentifier() or any(f"{name}_{key}" in _WORDS for key in _OWN):
        raise LandscapeError(
            f"also={{{name!r}: ...}} cannot name variables; use a word such as 'test'."
        )
    if _shape(other) != _shape(risk):
        raise LandscapeError(
            f"The risk {name!r} in `also` has P = {other.layout.num_parameters} parameters in "
            f"{other.dtype} and the measured one {risk.layout.num_parameters} in {risk.dtype}; "
            f"make both from the same model in the same dtype on the same device."
        )
    # A recalibrated companion is given the measured risk's statistics, so its own mode is frozen.
    return other.with_bn("eval" if risk.bn == "recalibrate" else risk.bn)


def _shape(risk: EmpiricalRisk) -> tuple[Any, ...]:
    tensors = risk.layout.tensors
    return risk.dtype, risk.device, [(tensor.name, tensor.shape) for tensor in tensors]
