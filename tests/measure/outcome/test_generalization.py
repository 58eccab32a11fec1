"""Accuracy, gaps, wrong labels and calibration against counts by hand."""

import numpy as np
import pytest
import torch
from torch import nn

from landscape import EmpiricalRisk, LandscapeError, measure


class Logits(nn.Module):
    """The inputs themselves, times one parameter."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1, dtype=torch.float64))

    def forward(self, x):
        return x * self.scale


def risk_of(predicted, targets, confidence=0.9, classes=3):
    """A risk whose model predicts the classes with one confidence each."""
    confidence = np.broadcast_to(confidence, len(predicted))
    x = torch.empty(len(predicted), classes, dtype=torch.float64)
    for row, c, p in zip(x, predicted, confidence, strict=True):
        row[:] = np.log((1 - p) / (classes - 1))
        row[c] = np.log(p)
    return EmpiricalRisk(Logits(), nn.CrossEntropyLoss(), (x, torch.tensor(targets)))


def test_accuracies_gaps_and_wrong_labels():
    """Six training examples, three mislabelled: one memorized, one recovered, one neither."""
    clean = torch.tensor([0, 1, 2, 0, 1, 2])
    noisy = [0, 1, 2, 1, 2, 0]
    train = risk_of([0, 1, 0, 1, 1, 1], noisy)
    val = risk_of([0, 0], [0, 1])
    test = risk_of([0, 1, 2, 2], [0, 1, 1, 1])
    ds = measure.generalization(
        {"train": train, "val": val, "test": test}, train.theta, clean_targets=clean
    )
    assert ds["train_accuracy"] == pytest.approx(3 / 6)
    assert ds["val_accuracy"] == 0.5
    assert ds["test_accuracy"] == 0.5
    assert ds["accuracy_gap"] == pytest.approx(0.0)
    assert float(ds["loss_gap"]) == pytest.approx(float(ds["test_loss"] - ds["train_loss"]))
    assert ds["mislabelled_fit"] == pytest.approx(1 / 3)
    assert ds["mislabelled_recovered"] == pytest.approx(1 / 3)
    assert ds["clean_train_accuracy"] == pytest.approx(3 / 6)
    assert int(ds["num_mislabelled"]) == 3
    np.testing.assert_array_equal(ds["test_correct"], [True, True, False, False])
    assert ds["test_correct"].dtype == bool
    right, wrong = -np.log(0.9), -np.log(0.05)
    np.testing.assert_allclose(ds["test_losses"], [right, right, wrong, wrong], rtol=1e-5)
    assert float(ds["test_loss"]) == pytest.approx((2 * right + 2 * wrong) / 4)


def test_calibration_error_by_hand():
    """Bins of width 1/10: confidence .95 with accuracy 1/2, confidence .65 with accuracy 1."""
    test = risk_of([0, 0, 1, 1], [0, 1, 1, 1], confidence=[0.95, 0.95, 0.65, 0.65])
    ds = measure.generalization({"train": test, "test": test}, test.theta, num_bins=10)
    assert float(ds["ece"]) == pytest.approx(0.5 * 0.45 + 0.5 * 0.35)
    assert float(ds["confidence_gap"]) == pytest.approx(0.8 - 0.75)


def test_calibration_scores_by_hand():
    """Two bins are used; p = (.95, .025, .025) right and wrong, (.65, .175, .175) right twice."""
    risk = risk_of([0, 0, 1, 1], [0, 1, 1, 1], confidence=[0.95, 0.95, 0.65, 0.65])
    ds = measure.calibration(risk, risk.theta, num_bins=10)
    assert float(ds["ece"]) == pytest.approx(0.5 * 0.45 + 0.5 * 0.35)
    np.testing.assert_allclose(ds["count"].values[[6, 9]], [2, 2])
    np.testing.assert_allclose(ds["accuracy"].values[[6, 9]], [1.0, 0.5])
    np.testing.assert_allclose(ds["confidence"].values[[6, 9]], [0.65, 0.95])
    assert np.isnan(ds["accuracy"].values[0])
    nll = -(np.log(0.95) + np.log(0.025) + 2 * np.log(0.65)) / 4
    assert float(ds["nll"]) == pytest.approx(nll)
    brier = [0.05**2 + 2 * 0.025**2, 0.95**2 + 0.975**2 + 0.025**2]
    brier += 2 * [0.35**2 + 2 * 0.175**2]
    assert float(ds["brier"]) == pytest.approx(np.mean(brier))
    entropy = [-(p * np.log(p) + 2 * (1 - p) / 2 * np.log((1 - p) / 2)) for p in (0.95, 0.65)]
    assert float(ds["entropy"]) == pytest.approx(np.mean(entropy))
    assert float(ds["confidence_gap"]) == pytest.approx(0.8 - 0.75)


def test_without_noise_there_is_nothing_to_memorize():
    train = risk_of([0, 1], [0, 1])
    ds = measure.generalization({"train": train}, train.theta)
    assert np.isnan(ds["mislabelled_fit"])
    assert ds["clean_train_accuracy"] == 1.0
    assert "test_loss" not in ds
    assert "accuracy_gap" not in ds


def test_bad_input_is_refused():
    train = risk_of([0, 1], [0, 1])
    with pytest.raises(LandscapeError, match="needs 'train' and takes 'val' and 'test'"):
        measure.generalization({"test": train}, train.theta)
    with pytest.raises(LandscapeError, match="splits train, validation"):
        measure.generalization({"train": train, "validation": train}, train.theta)
    with pytest.raises(LandscapeError, match="3 classes for 2 training examples"):
        measure.generalization({"train": train}, train.theta, clean_targets=torch.tensor([0, 1, 2]))
    regression = EmpiricalRisk(
        Logits(), nn.MSELoss(), (torch.zeros(2, 3).double(), torch.zeros(2, 3).double())
    )
    with pytest.raises(LandscapeError, match="are no classification"):
        measure.calibration(regression, regression.theta)


def test_regression_has_losses_and_no_accuracy():
    x = torch.randn(12, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    model = torch.nn.Linear(3, 2).double()
    risks = {
        "train": EmpiricalRisk(model, torch.nn.MSELoss(), (x, x[:, :2])),
        "test": EmpiricalRisk(model, torch.nn.MSELoss(), (-x, x[:, :2])),
    }
    theta = risks["train"].theta
    found = measure.generalization(risks, theta)
    gap = float(risks["test"].loss(theta) - risks["train"].loss(theta))
    assert float(found.loss_gap) == pytest.approx(gap)
    assert np.isnan(found.train_accuracy)
    assert "ece" not in found


def test_ignored_targets_are_left_out_of_accuracy_and_calibration():
    x = torch.randn(9, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = torch.tensor([0, 1, -100, 1, 0, -100, 1, 1, 0])
    model, keep = torch.nn.Linear(3, 2).double(), y >= 0
    theta = EmpiricalRisk(model, torch.nn.CrossEntropyLoss(), (x, y)).theta
    found, without = (
        measure.generalization(
            {"train": EmpiricalRisk(model, torch.nn.CrossEntropyLoss(), d)}, theta
        )
        for d in ((x, y), (x[keep], y[keep]))
    )
    for name in ("train_loss", "train_accuracy", "ece", "confidence_gap"):
        assert float(found[name]) == pytest.approx(float(without[name]), rel=1e-9), name
