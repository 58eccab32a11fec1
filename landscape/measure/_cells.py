"""One cell of a surface: every number that is computed at one point of parameter space."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from landscape.errors import LandscapeError
from landscape.measure._common import Measuring
from landscape.measure._folding import evaluator
from landscape.measure._inside import spend
from landscape.plane import Plane
from landscape.results import Variable
from landscape.risk import EmpiricalRisk
from landscape.risk._criterion import errors_of
from landscape.risk._memory import default_rows

_OWN = ("loss", "error_rate", "loss_stderr", "rise_stderr")
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

    def __init__(
        self, measuring: Measuring, also: Mapping[str, EmpiricalRisk] | None, *, points: int
    ) -> None:
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
        self.center = np.array(self._numbers(measuring.theta, evaluation))
        self._evaluate, self.method = evaluator(self.risk, measuring.theta, points=points)

    def at(self, plane: Plane, coordinates: Sequence[float]) -> np.ndarray:
        """Values (len(names),) at the coordinates, evaluated anew even where they are all 0."""
        point = plane.point(*coordinates)
        # The checkpoint itself is always evaluated as the risk does, to agree to the last bit.
        evaluate = self._evaluate if any(coordinates) else self.risk.evaluate
        return np.array(self._numbers(point, evaluate(point)))

    def _numbers(self, point: Tensor, evaluation: Any) -> list[float]:
        found = [
            float(evaluation.loss),
            math.nan if evaluation.error_rate is None else float(evaluation.error_rate),
            stderr(evaluation.losses),
            math.nan if self._losses is None else stderr(evaluation.losses - self._losses),
        ]
        if self.risk.weight_decay:
            found.append(0.5 * self.risk.weight_decay * float(point.double().square().sum()))
        if self.also:
            statistics = _statistics(self.risk, point)
            for other in self.also.values():
                found += _evaluated(other, point, statistics)
        return found

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
        return _WORDS[name]

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


def stderr(losses: Tensor | None) -> float:
    """S / sqrt(N) of the losses of single examples; NaN for one example or none kept apart."""
    if losses is None or losses.numel() < 2:
        return math.nan
    return float(losses.double().std(correction=1)) / math.sqrt(losses.numel())


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


def _statistics(risk: EmpiricalRisk, theta: Tensor) -> list[tuple[Tensor, Tensor]] | None:
    """BatchNorm statistics of the risk's examples at theta, one pair per layer in call order."""
    if risk.bn != "recalibrate" or not risk.has_batchnorm:
        return None
    engine = risk._engine
    with engine.evaluating(theta):
        engine._gather_statistics(engine.batch_size or default_rows(engine.examples))
        return list(engine.network.batchnorm.statistics)


def _evaluated(
    risk: EmpiricalRisk, theta: Tensor, statistics: list[tuple[Tensor, Tensor]] | None
) -> list[float]:
    """Loss, error rate and standard error of the loss on other data with statistics given."""
    if statistics is None:
        found = risk.evaluate(theta)
        rate = math.nan if found.error_rate is None else float(found.error_rate)
        return [float(found.loss), rate, stderr(found.losses)]
    engine, control = risk._engine, risk._engine.network.batchnorm
    sums, parts, wrong = [], [], []
    with engine.evaluating(theta):
        control.mode, control.purpose, control.statistics = "fixed", "recalibrate", statistics
        for batch in engine.examples.cut(engine.batch_size or default_rows(engine.examples)):
            batch = engine.examples.on_device(batch)
            output = engine.network(batch)
            losses = engine.criterion(output, batch.targets, batch.count)
            errors = errors_of(output, batch.targets)
            sums.append(float(engine.sum(losses, batch)))
            parts.append(losses)
            wrong.append(math.nan if errors is None else float(errors.sum()))
    spend(risk, 1 / 3)
    count = risk.num_examples
    decay = 0.5 * risk.weight_decay * float(theta.double().square().sum())
    losses = torch.cat(parts) if parts[0].ndim else None
    return [sum(sums) / count + decay, sum(wrong) / count, stderr(losses)]
