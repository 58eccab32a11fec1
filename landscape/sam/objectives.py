"""Ascents along another objective than the loss, and descents through outputs kept from w."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from landscape.checks import check_choice, check_fraction, check_number
from landscape.errors import LandscapeError
from landscape.sam.batches import part_of
from landscape.sam.passes import Passes
from landscape.sam.slot import Slot
from landscape.sam.variant import Point, State

SURROGATES = ("log", "tanh")
PREDICTIONS = ("softmax", "sigmoid")


@dataclass(frozen=True)
class Ascending(Slot):
    """Pass 1 differentiates objective(outputs, batch) -> (B,), pass 2 the loss.

    losses(batch) must return (losses, outputs). The loss that a step reports is still the loss.
    """

    objective: Callable[[Any, Any], Tensor]
    micro_batches: int = 1
    needs_g1 = False
    needs_first_pass = finds_ascent = True
    plain_first = takes_loss_term = False

    def first(self, passes: Passes, point: Point, state: State, only: list[bool] | None) -> Tensor:  # noqa: ARG002
        """The gradient of the objective at w; returns the mean loss there."""

        def objective(outputs: Any, batch: Any) -> Tensor:
            return passes.sign * self.objective(outputs, batch)

        passes.backward(objective=objective, only=only)
        return passes.values.mean()


def labelled(outputs: Tensor, batch: Any, targets: int | str) -> Tensor:
    """Labels (B,) of outputs (B, C), refused where they do not fit."""
    y = part_of(batch, targets, "targets", "the labels").to(outputs.device)
    if outputs.ndim != 2 or y.shape != outputs.shape[:1]:
        raise LandscapeError(
            f"outputs of shape {tuple(outputs.shape)} and labels of shape {tuple(y.shape)}: this "
            "variant's ascent is that of a classifier, with outputs (B, C) and labels (B,)."
        )
    return y


@dataclass(frozen=True)
class LowerBound:
    """logsumexp_j mu φ(z_j - z_y), which bounds the 0-1 loss from below (arXiv:2407.12993).

    surrogate "log": φ(x) = 1 - log(1 + (e - 1) exp(-x)); "tanh": φ(x) = tanh(alpha x).
    """

    surrogate: str = "log"
    mu: float = 1.0
    alpha: float = 0.1
    targets: int | str = 1

    def __post_init__(self) -> None:
        check_choice("surrogate", self.surrogate, SURROGATES)
        check_number("mu", self.mu, least=0, beyond=True)
        check_number("alpha", self.alpha, least=0, beyond=True)

    def __call__(self, outputs: Tensor, batch: Any) -> Tensor:
        """One value per example."""
        y = labelled(outputs, batch, self.targets)
        x = outputs - outputs.gather(1, y[:, None])
        if self.surrogate == "tanh":
            return torch.logsumexp(self.mu * torch.tanh(self.alpha * x), 1)
        shift = math.log(math.e - 1)
        return torch.logsumexp(self.mu * (1 - F.softplus(shift - x)), 1)


@dataclass(frozen=True)
class OutputBias:
    """(1 - a) CE(p, y) - CE(p, uniform), a = gamma max(0, (1 - lmbda/p_y)/(1 - lmbda)) held fixed.

    Output-bias forgetting (arXiv:2406.06700); lmbda None: 1/C for C classes. prediction: p by
    "softmax", or by "sigmoid" per class, as for binary cross-entropy.
    """

    gamma: float = 1.0
    lmbda: float | None = None
    prediction: str = "softmax"
    targets: int | str = 1

    def __post_init__(self) -> None:
        check_fraction("gamma", self.gamma)
        check_choice("prediction", self.prediction, PREDICTIONS)
        if self.lmbda is not None:
            check_fraction("lmbda", self.lmbda, one=False)

    def __call__(self, outputs: Tensor, batch: Any) -> Tensor:
        """One value per example, whose gradient is the objective's: (u - a p - (1 - a) 1_y)."""
        y = labelled(outputs, batch, self.targets)
        classes = outputs.shape[1]
        fixed = outputs.detach()
        p = fixed.softmax(1) if self.prediction == "softmax" else fixed.sigmoid()
        lmbda = 1 / classes if self.lmbda is None else self.lmbda
        own = p.gather(1, y[:, None])
        a = self.gamma * torch.clamp((1 - lmbda / own) / (1 - lmbda), min=0.0)
        return ((1 / classes - a * p - (1 - a) * F.one_hot(y, classes)) * outputs).sum(1)


@dataclass(frozen=True)
class Functional(Slot):
    """Pass 2 finds J(w + e)ᵀ ∂L/∂z(w): outputs z move with w + e, the loss's derivative does not.

    Functional SAM (arXiv:2502.02407). losses(batch) must return (losses, outputs), the outputs
    with one row per example.
    """

    micro_batches: int = 1
    needs_g1 = False
    needs_first_pass = True
    takes_loss_term = False

    def first(self, passes: Passes, point: Point, state: State, only: list[bool] | None) -> Tensor:  # noqa: ARG002
        """Pass 1, of which ∂L/∂z is kept, (B, ...) in parts as the batch is cut."""
        kept: list[Tensor] = []
        point.scratch["of_outputs"] = kept

        def watch(outputs: Any, batch: Any) -> Tensor:  # noqa: ARG001
            _check_rows(outputs)
            outputs.register_hook(lambda g: kept.append(g.detach()))
            return outputs.new_zeros(())

        passes.extra_loss = watch
        try:
            loss = passes.backward(only=only)
        finally:
            passes.extra_loss = None
        if not kept:
            raise LandscapeError(
                "the losses are not made of the outputs that losses(batch) returned beside them: "
                "no derivative reaches these; return the very tensor that the loss is of."
            )
        if passes.scaler is not None:
            inverse = 1.0 / passes.scaler.scale(torch.ones((), device=loss.device))
            kept[:] = [g * inverse.to(g.dtype) for g in kept]
        return loss

    def second(self, passes: Passes, point: Point, state: State, only: list[bool] | None) -> Tensor:  # noqa: ARG002
        """Pass 2, of Σ_i <z_i, ∂L/∂z_i>; returns the mean loss at w + e."""
        kept, asked = point.scratch["of_outputs"], [0]
        size = sum(len(g) for g in kept)

        def along(outputs: Tensor, batch: Any) -> Tensor:  # noqa: ARG001
            g = kept[asked[0] % len(kept)]
            asked[0] += 1
            return size * (outputs * g).flatten(1).sum(1)

        passes.backward(objective=along, only=only)
        return passes.values.mean()


def _check_rows(outputs: Any) -> None:
    if not isinstance(outputs, Tensor) or outputs.ndim < 2:
        what = f"of shape {tuple(outputs.shape)}" if isinstance(outputs, Tensor) else repr(outputs)
        raise LandscapeError(
            f"functional_sam differentiates through the model's outputs, and {what} came; let "
            "losses(batch) return (losses, outputs), outputs of shape (B, C) or (B, T, C)."
        )
