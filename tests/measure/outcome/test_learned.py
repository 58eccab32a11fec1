"""Features, margins, memorization and robustness against closed forms and scikit-learn."""

import math

import numpy as np
import pytest
import torch
from sklearn import metrics
from sklearn.decomposition import PCA
from torch import nn

from landscape import EmpiricalRisk, LandscapeError, measure
from landscape.measure.measuring import generator
from landscape.measure.outcome.robustness import STRENGTHS, blurred
from tests.measure.outcome.test_generalization import Logits, risk_of
from tests.measure_problems import cnn_risk, fingerprint, images, same


class Table(nn.Module):
    """Features with a known spectrum: a linear layer of orthonormal rows times given scales."""

    def __init__(self, weight):
        super().__init__()
        self.mix = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        with torch.no_grad():
            self.mix.weight.copy_(weight)
        self.relu = nn.ReLU()

    def forward(self, x):
        return self.relu(self.mix(x))


def sketched(spectrum, n=64, seed=0):
    """A risk whose `mix` outputs have, after centring, exactly these singular values."""
    g = torch.Generator().manual_seed(seed)
    k = len(spectrum)
    basis = torch.randn(n, k, generator=g, dtype=torch.float64)
    basis = torch.linalg.qr(basis - basis.mean(0)).Q
    basis = torch.linalg.qr(basis - basis.mean(0)).Q
    x = basis * torch.tensor(spectrum, dtype=torch.float64)
    turn = torch.linalg.qr(torch.randn(k, k, generator=g, dtype=torch.float64)).Q
    model = Table(turn).double()
    return EmpiricalRisk(model, lambda o, t: o.square().sum(1), (x + 3.0, torch.zeros(n)))


# --- features --------------------------------------------------------------------------------


def test_components_and_stable_rank_of_a_known_spectrum():
    """Variances 16, 4, 1, .04: 16/21.04 = 76 %, 95 %, 99.8 %; stable rank 21.04/16."""
    risk = sketched([4.0, 2.0, 1.0, 0.2])
    for share, count in ((0.7, 1), (0.95, 2), (0.99, 3), (1.0, 4)):
        ds = measure.features(risk, risk.theta, share=share, seed=0)
        assert int(ds["components"].sel(module="mix")) == count
    row = ds.sel(module="mix")
    assert float(row["stable_rank"]) == pytest.approx(21.04 / 16)
    assert float(row["components_share"]) == 1.0
    assert int(row["width"]) == 4


def test_components_are_those_of_scikit_learn_for_wide_and_narrow_features():
    risk, model = cnn_risk(n=24)
    before = fingerprint(model)
    ds = measure.features(risk, risk.theta, seed=0)
    same(before, fingerprint(model))
    copy = model.eval()
    kept = {}
    for name, module in copy.named_modules():
        if name:
            module.register_forward_hook(lambda m, a, o, name=name: kept.update({name: o.detach()}))
    copy(images(24)[0])
    for name, output in kept.items():
        F = output.flatten(1).numpy()
        ratios = PCA().fit(F).explained_variance_ratio_.cumsum()
        assert int(ds["components"].sel(module=name)) == int((ratios < 0.99).sum()) + 1
        singular = np.linalg.svd(F - F.mean(0), compute_uv=False)
        stable = (singular**2).sum() / singular[0] ** 2
        assert float(ds["stable_rank"].sel(module=name)) == pytest.approx(stable)
    assert list(ds["module"].values) == list(kept)
    assert str(ds["kind"].sel(module="3").values) == "Conv2d"


def test_dead_units_are_channels_or_features_that_are_zero_on_every_example():
    class Rectified(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(1, 4, 3, padding=1)
            self.relu = nn.ReLU()
            self.head = nn.Linear(4, 2)

        def forward(self, x):
            x = self.relu(self.conv(x))
            return self.head(self.relu(x.mean((2, 3)) - 0.0))

    model = Rectified().double()
    with torch.no_grad():
        model.conv.bias.copy_(torch.tensor([-1e3, -1e3, 1e3, 1e3]))
    risk = EmpiricalRisk(model, nn.CrossEntropyLoss(), (images(16)[0], torch.zeros(16).long()))
    ds = measure.features(risk, risk.theta, seed=0)
    assert list(ds["module"].values) == ["conv", "relu", "relu#2", "head"]
    np.testing.assert_allclose(ds["dead_share"], [0, 0.5, 0.5, 0])
    np.testing.assert_allclose(ds["zero_share"], [0, 0.5, 0.5, 0])
    some = measure.features(risk, risk.theta, modules=["head", "conv"], seed=0)
    assert list(some["module"].values) == ["conv", "head"]


def test_features_that_do_not_vary_have_no_rank():
    model = Table(torch.zeros(3, 3)).double()
    x = torch.arange(24.0).double().view(8, 3)
    risk = EmpiricalRisk(model, nn.MSELoss(), (x, torch.zeros(8, 3).double()))
    ds = measure.features(risk, risk.theta, seed=0)
    assert np.isnan(ds["components"]).all()
    assert (ds["dead_share"] == 1).all()


def test_bad_input_of_features_is_refused():
    risk, _ = cnn_risk()
    with pytest.raises(LandscapeError, match=r"share of variance in \(0, 1\]"):
        measure.features(risk, risk.theta, share=1.5, seed=0)
    with pytest.raises(LandscapeError, match=r"num_examples=.* give a whole number >= 2"):
        measure.features(risk, risk.theta, num_examples=1, seed=0)
    with pytest.raises(LandscapeError, match="no module 'layer9'; it has 0, 1"):
        measure.features(risk, risk.theta, modules=["layer9"], seed=0)


# --- margins ---------------------------------------------------------------------------------


def test_margins_by_hand():
    x = torch.tensor([[3.0, 1.0, -1.0], [0.0, 2.0, 2.5], [0.0, 0.0, 0.0]]).double()
    risk = EmpiricalRisk(Logits(), nn.CrossEntropyLoss(), (x, torch.tensor([0, 1, 2])))
    ds = measure.margins(risk, risk.theta)
    np.testing.assert_allclose(ds["margin"], [2.0, -0.5, 0.0])
    size = [math.sqrt(8), math.sqrt(1.5**2 + 0.5**2 + 1)]
    np.testing.assert_allclose(ds["normalized_margin"], [2 / size[0], -0.5 / size[1], np.nan])
    assert float(ds["margin_quantile"].sel(percentile=0.5)) == 0.0
    assert float(ds["mean_margin"]) == pytest.approx(0.5)
    twice = measure.margins(risk, 2 * risk.theta)
    np.testing.assert_allclose(twice["normalized_margin"], ds["normalized_margin"])
    np.testing.assert_allclose(twice["margin"], 2 * ds["margin"])


def test_the_product_of_spectral_norms_is_that_of_the_matrices():
    risk, model = cnn_risk()
    expected = sum(
        math.log10(float(torch.linalg.matrix_norm(p.detach().flatten(1), 2)))
        for p in model.parameters() if p.ndim > 1
    )  # fmt: skip
    ds = measure.margins(risk, risk.theta)
    assert float(ds["log10_spectral_norm"]) == pytest.approx(expected)
    regression = EmpiricalRisk(
        Logits(), nn.MSELoss(), (torch.zeros(2, 3).double(), torch.zeros(2, 3).double())
    )
    with pytest.raises(LandscapeError, match="have no margin"):
        measure.margins(regression, regression.theta)


# --- memorization ----------------------------------------------------------------------------


def test_fits_and_forgetting_by_hand():
    """Six examples, two mislabelled; the fourth is learned late, the second forgotten twice."""
    noisy, clean = [0, 1, 2, 1, 2, 0], torch.tensor([0, 1, 2, 0, 2, 1])
    risk = risk_of([0, 1, 0, 1, 2, 1], noisy)
    history = np.array([
        [1, 1, 0, 0, 0, 0],
        [1, 0, 0, 0, 1, 0],
        [1, 1, 0, 1, 1, 0],
        [1, 0, 1, 1, 0, 0],
        [1, 1, 0, 1, 1, 0],
    ], bool)  # fmt: skip
    ds = measure.memorization(
        risk, risk.theta, clean_targets=clean, correct=history, epochs=[1, 2, 4, 8, 9]
    )
    np.testing.assert_array_equal(ds["mislabelled"], [0, 0, 0, 1, 0, 1])
    np.testing.assert_array_equal(ds["forgetting_events"], [0, 2, 1, 0, 1, 0])
    np.testing.assert_array_equal(ds["first_learned"], [1, 1, 8, 4, 2, np.nan])
    assert float(ds["clean_fit"]) == 3 / 4
    assert float(ds["mislabelled_fit"]) == 1 / 2
    assert float(ds["mislabelled_recovered"]) == 1 / 2
    assert float(ds["forgetting_clean"]) == 1.0
    assert float(ds["forgetting_mislabelled"]) == 0.0
    assert float(ds["never_forgotten_clean"]) == 1 / 4
    assert float(ds["never_forgotten_mislabelled"]) == 1 / 2
    np.testing.assert_allclose(ds["mislabelled_fit_epoch"], [0, 0, 0.5, 0.5, 0.5])
    np.testing.assert_allclose(ds["clean_fit_epoch"], [0.5, 0.5, 0.75, 0.5, 0.75])
    np.testing.assert_array_equal(ds["epoch"], [1, 2, 4, 8, 9])


def test_without_a_history_or_noise_only_what_is_known_is_told():
    risk = risk_of([0, 1], [0, 1])
    ds = measure.memorization(risk, risk.theta)
    assert float(ds["clean_fit"]) == 1.0
    assert np.isnan(ds["mislabelled_fit"])
    assert "forgetting_events" not in ds
    for correct, epochs, words in (
        (np.ones((2, 3), bool), None, r"correct has shape \(2, 3\)"),
        (np.ones((2, 2), bool), [1], "epochs 1 entries"),
        (np.ones((2, 2), bool), [3, 3], r"epochs \[3, 3\] do not increase"),
    ):
        with pytest.raises(LandscapeError, match=words):
            measure.memorization(risk, risk.theta, correct=correct, epochs=epochs)
    with pytest.raises(LandscapeError, match="3 classes for 2 training examples"):
        measure.memorization(risk, risk.theta, clean_targets=torch.tensor([0, 1, 2]))


# --- robustness ------------------------------------------------------------------------------


def test_weight_noise_on_a_quadratic_adds_half_its_variance_times_the_trace():
    """L(w + d) - L(w) = g·d + ½ dᵀHd with d = s r n: mean ½ s² r² tr H = ½ s² ‖w‖² for H = I."""

    class Weights(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.ones(4000, dtype=torch.float64))

        def forward(self, x):
            return self.w * x

    risk = EmpiricalRisk(
        Weights(), lambda o, t: 0.5 * o.square().sum(1), (torch.ones(2, 1).double(), torch.zeros(2))
    )
    ds = measure.robustness(risk, risk.theta, num_draws=8, seed=0)
    assert float(ds["clean_loss"]) == 2000
    noise = ds["loss"].sel(corruption="weight noise") - 2000
    for strength, found in zip(STRENGTHS["weight noise"], noise.values, strict=True):
        # One draw has SD s r sqrt(P) = 63 s; the mean of eight a third of it.
        expected, error = 0.5 * strength**2 * 4000, 4 * strength * 63 / math.sqrt(8)
        assert found == pytest.approx(expected, abs=error)
    assert np.isnan(ds["accuracy"]).all()
    assert np.isnan(ds["loss"].sel(corruption="blur")).all()


def test_rounding_is_to_the_integers_of_each_filter():
    risk, model = cnn_risk()
    before = fingerprint(model)
    ds = measure.robustness(risk, risk.theta, num_draws=2, seed=0)
    same(before, fingerprint(model))
    for severity, bits in enumerate(STRENGTHS["weight rounding"], start=1):
        rounded = {}
        for name, p in model.named_parameters():
            w = p.detach().numpy().copy()
            for i in range(len(w) if w.ndim > 1 else 0):
                c = abs(w[i]).max() / (2 ** (bits - 1) - 1)
                w[i] = c * np.round(w[i] / c)
            rounded[name] = torch.from_numpy(w)
        seen = risk.evaluate(risk.layout.flatten(rounded))
        at = ds.sel(corruption="weight rounding", severity=severity)
        assert float(at["loss"]) == pytest.approx(float(seen.loss))
        assert float(at["accuracy"]) == pytest.approx(1 - float(seen.error_rate))
    eight = ds["loss"].sel(corruption="weight rounding", severity=1)
    assert abs(float(eight - ds["clean_loss"])) < 0.01
    again = measure.robustness(risk, risk.theta, num_draws=2, seed=0)
    assert ds.identical(again)


def test_disturbed_inputs_are_evaluated_as_data_of_their_own():
    risk, model = cnn_risk()
    ds = measure.robustness(risk, risk.theta, num_draws=2, seed=3)
    x, y = images(24)
    mean = x.mean((2, 3), keepdim=True)
    n = torch.randn(x.shape, generator=generator(3), dtype=torch.float64)
    changed = {
        "input noise": lambda s: x + s * x.std() * n,
        "blur": lambda s: blurred(x, s),
        "contrast": lambda s: mean + s * (x - mean),
    }
    for name, change in changed.items():
        for severity, strength in enumerate(STRENGTHS[name], start=1):
            there = EmpiricalRisk(model, nn.CrossEntropyLoss(), (change(strength), y))
            at = ds.sel(corruption=name, severity=severity)
            assert float(at["loss"]) == pytest.approx(float(there.loss(risk.theta)))
            assert float(at["strength"]) == strength


def test_blur_has_the_moments_of_a_gaussian_and_keeps_constants():
    x = torch.zeros(1, 1, 65, 65, dtype=torch.float64)
    x[0, 0, 32, 32] = 1.0
    spread = blurred(x, 3.0)[0, 0]
    position = torch.arange(65, dtype=torch.float64) - 32
    assert float(spread.sum()) == pytest.approx(1.0)
    # Sampling and the cut at 4 sigma change the variance by less than a percent.
    assert float((spread.sum(0) * position**2).sum()) == pytest.approx(9.0, rel=0.01)
    assert float((spread.sum(1) * position**2).sum()) == pytest.approx(9.0, rel=0.01)
    assert torch.allclose(
        blurred(torch.ones(2, 3, 7, dtype=torch.float64), 2.0), torch.tensor(1.0).double()
    )


def test_robustness_is_refused_with_one_draw():
    risk, _ = cnn_risk()
    with pytest.raises(LandscapeError, match=r"num_draws=.* give a whole number >= 2"):
        measure.robustness(risk, risk.theta, num_draws=1, seed=0)


# --- calibration -----------------------------------------------------------------------------


def test_proper_scores_are_those_of_scikit_learn():
    g = torch.Generator().manual_seed(0)
    x = 2 * torch.randn(300, 3, generator=g, dtype=torch.float64)
    y = torch.randint(3, (300,), generator=g)
    risk = EmpiricalRisk(Logits(), nn.CrossEntropyLoss(), (x, y))
    ds = measure.calibration(risk, risk.theta)
    p = torch.softmax(x, 1).numpy()
    assert float(ds["nll"]) == pytest.approx(metrics.log_loss(y, p))
    each = [metrics.brier_score_loss(y == c, p[:, c]) for c in range(3)]
    assert float(ds["brier"]) == pytest.approx(sum(each))
    accuracy = metrics.accuracy_score(y, p.argmax(1))
    assert float((ds["accuracy"] * ds["count"]).sum() / 300) == pytest.approx(accuracy)
    confidence = p.max(1)
    bins = np.clip(np.ceil(confidence * 15).astype(int), 1, 15)
    gaps = [abs((p.argmax(1) == y.numpy())[bins == b].mean() - confidence[bins == b].mean())
            * (bins == b).mean() for b in np.unique(bins)]  # fmt: skip
    assert float(ds["ece"]) == pytest.approx(sum(gaps))
