"""What is compared between variants: direction, unit, wording and scale of each quantity, once.

Signs, sentences, tables, figures and rank correlations all read this table. A quantity is compared
on its own *scale*, on which larger is better and equal steps mean equally much:

    "log_error"  −log(1 − a) of a share a: from .995 to .9975 the error halves, from .5 to .75 too
    "log"        ∓log x of a positive quantity: differences are ratios
    "linear"     ±x

A difference on a logarithmic scale is written as a factor: "error × 0.50".
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from landscape.errors import LandscapeError

__all__ = ["FLATNESS", "METRICS", "OUTCOMES", "SCALES", "Metric", "metric"]

SCALES = ("log_error", "log", "linear")


@dataclass(frozen=True)
class Metric:
    """One quantity: where it is stored, which direction is better, and how one speaks of it.

    key: its name in `[comparisons] metric` and in `METRICS`. measurement, variable: where it is
    stored; at: the position on further dimensions (rank 0). better: +1 where larger is better, −1
    where smaller is. name: its noun. comparative: what a better value is called ("higher test
    accuracy", "flatter"), and `opposite` a worse one. held_out: whether it is about examples that
    training and tuning did not see, without which nothing is said on generalization. margin: the
    change that counts as none, a share of the error or of the quantity (`scale` log_error, log) or
    its own unit (linear); used where a study file declares no other. kinds: of the tensors that are
    summed over. lowest: of a share, −1 where it is a difference of two.
    """

    key: str
    measurement: str
    variable: str
    better: int
    units: str
    name: str
    comparative: str
    opposite: str
    scale: str
    held_out: bool = False
    margin: float = 0.1
    at: tuple[tuple[str, int], ...] = ()
    kinds: tuple[str, ...] = ()
    lowest: float = 0.0

    def __post_init__(self) -> None:
        if self.better not in (1, -1) or self.scale not in SCALES:
            raise LandscapeError(
                f"Metric {self.key!r} has better={self.better!r} and scale={self.scale!r}; "
                f"possible: 1 or -1, and {', '.join(SCALES)}."
            )

    @property
    def title(self) -> str:
        """The noun with a capital letter; λ stays λ."""
        return self.name[:1].upper() + self.name[1:] if self.name[:1].isascii() else self.name

    @property
    def is_share(self) -> bool:
        """Whether values are shares that are written in per cent."""
        return self.units == "share"

    @property
    def bounds(self) -> tuple[float, float] | None:
        """What a share cannot leave; None for other quantities."""
        return (self.lowest, 1.0) if self.is_share else None

    def scaled(self, values: ArrayLike, *, examples: int | None = None) -> np.ndarray:
        """Values on the scale of comparison, larger is better.

        examples: how many examples a share is of, if known: half an example is added to the errors
        and to the right ones, so that no error at all has a logarithm. Values that have no
        logarithm (a negative one, not finite) are NaN.
        """
        x = np.asarray(values, dtype=np.float64)
        if self.scale == "linear":
            return self.better * x
        if self.scale == "log":
            with np.errstate(divide="ignore", invalid="ignore"):
                return self.better * np.where(x > 0, np.log(x), np.nan)
        count = float(examples or 10_000)
        with np.errstate(invalid="ignore"):
            share = np.where((x >= 0) & (x <= 1), x, np.nan)
        # A share that is better when lower (the fit of wrong labels) is itself the error.
        error = (1 - share) if self.better > 0 else share
        return -np.log((count * error + 0.5) / (count + 1))

    def slope(self, share: ArrayLike, *, examples: int) -> np.ndarray:
        """Derivative of `scaled` by a share: what one more right example changes."""
        x = np.asarray(share, dtype=np.float64)
        if self.scale != "log_error":
            raise LandscapeError(f"{self.key} is no share of examples; its scale is {self.scale}.")
        error = (1 - x) if self.better > 0 else x
        return self.better * examples / (examples * error + 0.5)

    def threshold(self, margin: float | None = None) -> float:
        """The margin on the scale of comparison: −log(1 − 0.1) for a tenth of the error."""
        margin = self.margin if margin is None else margin
        return margin if self.scale == "linear" else -math.log1p(-margin)

    def factor(self, difference: float) -> float:
        """What a difference on a logarithmic scale multiplies error or quantity by."""
        sign = -1 if self.scale == "log_error" else self.better
        return math.exp(sign * difference)

    @property
    def what(self) -> str:
        """What the factor multiplies."""
        if self.scale != "log_error":
            return self.name
        return "error" if self.better > 0 else "share"


def _outcome(
    key: str, better: int, units: str, name: str, scale: str, held_out: bool = False,
    margin: float = 0.1, lowest: float = 0.0,
) -> Metric:  # fmt: skip
    high, low = f"higher {name}", f"lower {name}"
    words = (high, low) if better > 0 else (low, high)
    return Metric(key, "generalization", key, better, units, name, *words, scale, held_out, margin,
                  lowest=lowest)  # fmt: skip


def _flatness(
    key: str, measurement: str, variable: str, name: str, at: tuple[tuple[str, int], ...] = ()
) -> Metric:
    words = ("flatter", "sharper")
    return Metric(key, measurement, variable, -1, "nats", name, *words, "log", at=at)


_ALL = (
    _outcome("test_accuracy", 1, "share", "test accuracy", "log_error", held_out=True),
    _outcome("test_loss", -1, "nats", "test loss", "log", held_out=True),
    _outcome("val_accuracy", 1, "share", "validation accuracy", "log_error", held_out=True),
    _outcome("val_loss", -1, "nats", "validation loss", "log", held_out=True),
    _outcome("train_accuracy", 1, "share", "training accuracy", "log_error"),
    _outcome("train_loss", -1, "nats", "training loss", "log"),
    _outcome("accuracy_gap", -1, "share", "gap in accuracy", "linear", held_out=True, margin=0.01,
             lowest=-1.0),
    _outcome("loss_gap", -1, "nats", "gap in loss", "linear", held_out=True, margin=0.01),
    _outcome("clean_train_accuracy", 1, "share", "accuracy on true training labels", "log_error"),
    _outcome("mislabelled_fit", -1, "share", "fit of wrong labels", "log_error"),
    _outcome("mislabelled_recovered", 1, "share", "recovery of wrong labels", "log_error"),
    _outcome("ece", -1, "share", "calibration error", "log"),
    _flatness("lambda1", "top_eigenvalues", "eigenvalue", "λ₁", at=(("rank", 0),)),
    _flatness("trace", "hessian_trace", "trace", "Hessian trace"),
    _flatness("gaussian", "sharpness", "gaussian", "Gaussian sharpness"),
    _flatness("worst", "sharpness", "worst_case", "worst-case sharpness"),
    Metric("rho_eff", "perturbation", "rho_eff", -1, "", "effective radius",
           "smaller effective radius", "larger effective radius", "log"),
    Metric("norm_energy", "perturbation", "energy_share", 1, "share",
           "share of the perturbation's energy on normalization layers",
           "more energy on normalization layers", "less energy on normalization layers", "linear",
           margin=0.05, kinds=("norm",)),
    Metric("theta_norm", "norms", "theta_norm", -1, "", "norm of the weights",
           "smaller norm of the weights", "larger norm of the weights", "log"),
)  # fmt: skip

METRICS: Mapping[str, Metric] = {metric.key: metric for metric in _ALL}
OUTCOMES: tuple[str, ...] = tuple(m.key for m in _ALL if m.measurement == "generalization")
FLATNESS: tuple[str, ...] = tuple(m.key for m in _ALL if m.comparative == "flatter")


def metric(key: str) -> Metric:
    """The row of the table called `key`."""
    if key not in METRICS:
        raise LandscapeError(f"Unknown metric {key!r}; known: {', '.join(METRICS)}.")
    return METRICS[key]
