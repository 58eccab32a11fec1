"""How well the model does on seen and unseen data, and what it made of wrong labels."""

import math
from collections.abc import Mapping

import numpy as np
import xarray as xr
from jaxtyping import Float, Int
from torch import Tensor

from landscape.checks import check_count
from landscape.errors import LandscapeError
from landscape.measure.measuring import Measuring
from landscape.measure.outcome.calibration import calibration_error, predictions
from landscape.results import Variable
from landscape.risk import IGNORED, EmpiricalRisk

SPLITS = ("train", "val", "test")


def generalization(
    risks: Mapping[str, EmpiricalRisk],
    theta: Float[Tensor, "P"],
    *,
    clean_targets: Int[Tensor, "N"] | None = None,
    num_bins: int = 15,
) -> xr.Dataset:
    """Loss and accuracy per split, the gaps, the fit of wrong labels, and calibration.

    Where outputs and targets are not those of a classifier (regression, several outputs), losses
    and their gap alone: accuracies are NaN, and what is made of predictions is left out.

    risks: "train" and any of "val", "test", each an un-augmented `EmpiricalRisk` of one model.
    <split>_loss in nats, <split>_accuracy; loss_gap = test - train, accuracy_gap = train - test.
    clean_targets: the true classes of the training examples, where their labels carry noise. Then
    mislabelled_fit is the share of the wrong-labelled ones predicted as labelled (memorized),
    mislabelled_recovered the share predicted as their true class, and clean_train_accuracy the
    accuracy on all training examples against their true classes; NaN where there are none.
    ece: expected calibration error of the last split given, sum_b (n_b/N) |accuracy_b -
    confidence_b| over `num_bins` equal bins of the largest probability (arXiv:1706.04599, Eq. 3);
    confidence_gap is the signed mean, confidence - accuracy. test_correct(example): bool, and
    test_losses(example), whose mean is test_loss (left out where a loss is no mean over examples):
    for differences that carry the choice of test examples. Cost: two forward passes per split,
    three over the test data (the provenance counts those over the training data).

    Example:
        >>> test = EmpiricalRisk(model, nn.CrossEntropyLoss(), make_data(24, 2))
        >>> train = EmpiricalRisk(model, nn.CrossEntropyLoss(), data)
        >>> found = measure.generalization({"train": train, "test": test}, train.theta)
        >>> bool(np.isclose(found.loss_gap, found.test_loss - found.train_loss))
        True
    """
    _check_splits(risks)
    check_count("num_bins", num_bins, 1)
    measuring = Measuring("generalization", risks["train"], theta)
    found = {split: risk.evaluate(theta) for split, risk in risks.items()}
    classes = all(each.error_rate is not None for each in found.values())
    if not classes and clean_targets is not None:
        raise LandscapeError(
            "clean_targets are classes, and outputs and targets are not those of a classifier; "
            "leave them out."
        )
    seen = {split: predictions(risk, theta) for split, risk in risks.items() if classes}
    variables: dict[str, Variable] = {}
    values: dict[str, float] = {}
    for split, each in found.items():
        loss = float(each.loss)
        accuracy = math.nan
        if classes and each.error_rate is not None:
            accuracy = 1 - float(each.error_rate)
        values |= {f"{split}_loss": loss, f"{split}_accuracy": accuracy}
        variables[f"{split}_loss"] = Variable((), loss, "nats", f"{_TITLE[split]} loss")
        variables[f"{split}_accuracy"] = Variable((), accuracy, "1", f"{_TITLE[split]} accuracy")
    if "test" in found:
        gap = values["test_loss"] - values["train_loss"]
        variables["loss_gap"] = Variable((), gap, "nats", "Test loss minus training loss")
        gap = values["train_accuracy"] - values["test_accuracy"]
        variables["accuracy_gap"] = Variable((), gap, "1", "Training minus test accuracy")
    last = "test" if "test" in found else list(found)[-1]
    options = {
        "splits": {split: risk.num_examples for split, risk in risks.items()},
        "num_bins": num_bins,
        "calibration_split": last,
    }
    losses = _losses(risks["test"], theta, values["test_loss"]) if "test" in found else None
    if not classes:
        coords = _example(variables, "test_losses", losses)
        return measuring.result(variables, coords=coords, options=options)
    labels = risks["train"].targets
    if clean_targets is not None and clean_targets.shape == labels.shape:
        clean_targets = clean_targets.to(labels)[labels != IGNORED]
    variables |= _label_noise(seen["train"], clean_targets)
    probabilities, targets = seen[last]
    variables |= _calibration(probabilities, targets, num_bins, _TITLE[last].lower())
    coords = {}
    if "test" in seen:
        correct = (probabilities.argmax(1) == targets).cpu().numpy()
        coords = _example(variables, "test_correct", correct)
        if losses is not None and losses.shape == correct.shape:
            _example(variables, "test_losses", losses)
    return measuring.result(variables, coords=coords, options=options)


_EXAMPLE = {
    "test_correct": ("1", "Test example predicted right"),
    "test_losses": ("nats", "Loss of each test example"),
}


def _example(
    variables: dict[str, Variable], name: str, values: np.ndarray | None
) -> dict[str, np.ndarray]:
    """Add what is known of each test example; the coordinate that it needs."""
    if values is None:
        return {}
    variables[name] = Variable("example", values, *_EXAMPLE[name])
    return {"example": np.arange(len(values))}


def _losses(risk: EmpiricalRisk, theta: Float[Tensor, "P"], mean: float) -> np.ndarray | None:
    """The loss of each example; None where they are not what the loss is the mean of."""
    try:
        losses = risk.losses(theta).detach().double().cpu().numpy()
    except LandscapeError:  # a criterion that reduces by itself
        return None
    close = np.isclose(losses.mean(), mean, rtol=1e-4, atol=1e-7)
    return losses.astype(np.float32) if close else None


_TITLE = {"train": "Training", "val": "Validation", "test": "Test"}


def _check_splits(risks: Mapping[str, EmpiricalRisk]) -> None:
    unknown = [split for split in risks if split not in SPLITS]
    if "train" not in risks or unknown:
        raise LandscapeError(
            f"generalization got the splits {', '.join(risks) or 'none'}; it needs 'train' and "
            f"takes 'val' and 'test'."
        )


def _label_noise(train: tuple[Tensor, Tensor], clean_targets: Tensor | None) -> dict[str, Variable]:
    probabilities, labels = train
    predicted = probabilities.argmax(1)
    clean = labels if clean_targets is None else clean_targets.to(labels)
    if clean.shape != labels.shape:
        raise LandscapeError(
            f"clean_targets has {clean.numel()} classes for {labels.numel()} training examples; "
            f"pass one true class per example, in the order of the data."
        )
    wrong = clean != labels
    fit = (predicted == labels)[wrong].double().mean()
    recovered = (predicted == clean)[wrong].double().mean()
    return {
        "mislabelled_fit": Variable(
            (), float(fit), "1", "Wrong-labelled training examples predicted as labelled"
        ),
        "mislabelled_recovered": Variable(
            (), float(recovered), "1", "Wrong-labelled training examples predicted as true class"
        ),
        "clean_train_accuracy": Variable(
            (),
            float((predicted == clean).double().mean()),
            "1",
            "Training accuracy against the true classes",
        ),
        "num_mislabelled": Variable((), int(wrong.sum()), "1", "Wrong-labelled training examples"),
    }


def _calibration(
    probabilities: Tensor, targets: Tensor, num_bins: int, title: str
) -> dict[str, Variable]:
    confidence, predicted = probabilities.max(1)
    error, gap = calibration_error(confidence, (predicted == targets).double(), num_bins)
    return {
        "ece": Variable((), error, "1", f"Calibration error, {title}"),
        "confidence_gap": Variable((), gap, "1", f"Confidence − accuracy, {title}"),
    }
