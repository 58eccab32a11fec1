"""Do the probabilities mean what they say?"""

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float, Int
from torch import Tensor

from landscape.checks import check_count
from landscape.errors import LandscapeError
from landscape.measure.measuring import Measuring, numbers
from landscape.results import Variable
from landscape.risk import IGNORED, EmpiricalRisk


def calibration(
    risk: EmpiricalRisk, theta: Float[Tensor, "P"], *, num_bins: int = 15
) -> xr.Dataset:
    """Expected calibration error, its reliability diagram, and proper scores of the probabilities.

    With p the softmax of the outputs, confidence max p and N_b examples in bin b of `num_bins`
    equal bins of confidence: ece = sum_b (N_b/N) |accuracy(b) - confidence(b)| (arXiv:1706.04599,
    Eq. 3), confidence(bin), accuracy(bin) (NaN where a bin is empty) and count(bin). confidence_gap
    is the mean of confidence - accuracy: negative where the model is under-confident, which ece
    hides. nll: mean -log p_y; brier: mean ‖p - onehot(y)‖²; entropy: mean predictive entropy, nats.
    ece is biased upwards for few examples. Cost: one forward pass.

    Example:
        >>> found = measure.calibration(risk, theta, num_bins=5)
        >>> int(found["count"].sum()), 0 <= float(found.ece) <= 1
        (48, True)
    """
    check_count("num_bins", num_bins, 1)
    measuring = Measuring("calibration", risk, theta)
    probabilities, targets = predictions(risk, measuring.theta)
    confidence, predicted = probabilities.max(1)
    correct = (predicted == targets).double()
    count, mean_confidence, accuracy = reliability(confidence, correct, num_bins)
    logs = torch.log(probabilities.clamp_min(1e-300))
    chosen = probabilities.gather(1, targets[:, None])[:, 0]
    error, gap = calibration_error(confidence, correct, num_bins)
    # ‖p - onehot(y)‖² = ‖p‖² - 2 p_y + 1
    brier = probabilities.square().sum(1) - 2 * chosen + 1
    scalars = {
        "ece": (error, "1", "Expected calibration error"),
        "confidence_gap": (gap, "1", "Confidence − accuracy"),
        "nll": (-logs.gather(1, targets[:, None]).mean(), "nats", "Negative log-likelihood"),
        "brier": (brier.mean(), "1", "Brier score"),
        "entropy": (-(probabilities * logs).sum(1).mean(), "nats", "Predictive entropy"),
    }
    variables = {
        name: Variable((), float(value), units, title)
        for name, (value, units, title) in scalars.items()
    }
    variables |= {
        "confidence": Variable("bin", numbers(mean_confidence), "1", "Mean confidence of the bin"),
        "accuracy": Variable("bin", numbers(accuracy), "1", "Accuracy of the bin"),
        "count": Variable("bin", numbers(count), "1", "Examples in the bin"),
    }
    coords = {"bin": np.arange(num_bins)}
    return measuring.result(variables, coords=coords, options={"num_bins": num_bins})


def predictions(
    risk: EmpiricalRisk, theta: Tensor
) -> tuple[Float[Tensor, "N C"], Int[Tensor, "N"]]:
    """Class probabilities in float64 and targets of all examples whose target is not ignored."""
    outputs, targets = risk.outputs(theta), risk.targets
    if outputs.ndim != 2 or targets.is_floating_point() or targets.shape != outputs.shape[:1]:
        raise LandscapeError(
            f"Outputs of shape {tuple(outputs.shape)} and targets of shape "
            f"{tuple(targets.shape)} ({targets.dtype}) are no classification; logits (N, C) and "
            f"class numbers (N,) are needed."
        )
    counted = targets != IGNORED
    return torch.softmax(outputs[counted].double(), dim=1), targets[counted]


def reliability(
    confidence: Float[Tensor, "N"], correct: Float[Tensor, "N"], num_bins: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Count, mean confidence and accuracy of bins ((b-1)/B, b/B]."""
    index = (confidence * num_bins).ceil().long().clamp(1, num_bins) - 1
    zeros = torch.zeros(num_bins, dtype=torch.float64, device=confidence.device)
    count = zeros.index_add(0, index, torch.ones_like(confidence))
    sums = (zeros.index_add(0, index, values) for values in (confidence, correct))
    mean_confidence, accuracy = (
        torch.where(count > 0, total / count.clamp_min(1), torch.nan) for total in sums
    )
    return count, mean_confidence, accuracy


def calibration_error(
    confidence: Float[Tensor, "N"], correct: Float[Tensor, "N"], num_bins: int
) -> tuple[float, float]:
    """Expected calibration error, and the mean of confidence - accuracy."""
    count, mean_confidence, accuracy = reliability(confidence, correct, num_bins)
    gaps = (count * (accuracy - mean_confidence).abs()).nan_to_num()
    return float(gaps.sum() / len(confidence)), float((confidence - correct).mean())
