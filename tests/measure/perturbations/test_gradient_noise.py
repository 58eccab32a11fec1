"""Gradient noise on data where it is known, and norms."""

import numpy as np
import pytest
import torch
from torch import nn

from landscape import EmpiricalRisk, LandscapeError, measure
from landscape.measure.measuring import generator
from tests.measure_problems import cnn_risk, fingerprint, same


class Shift(nn.Module):
    """Output w for every example: with loss ½‖w - x‖² the gradients are w - x_i."""

    def __init__(self, size):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(size, dtype=torch.float64))

    def forward(self, x):
        return self.w - x


def cloud(n, size, *, sigma=2.0, seed=0):
    """Per-example gradients -x_i with x ~ N(mean 1, sigma² I)."""
    g = torch.Generator().manual_seed(seed)
    x = 1.0 + sigma * torch.randn(n, size, generator=g, dtype=torch.float64)
    return EmpiricalRisk(Shift(size), lambda o, t: 0.5 * o.square().sum(1), (x, torch.zeros(n)))


def test_noise_scale_is_the_trace_of_the_covariance_over_the_squared_gradient():
    """G = -1 (‖G‖² = size), tr Sigma = size sigma²: the ratio is sigma²."""
    found = [
        measure.gradient_noise(risk, risk.theta, batch_size=8, seed=0)
        for risk in (cloud(400, 30, seed=seed) for seed in range(4))
    ]
    energy = np.mean([float(ds["gradient_energy"]) for ds in found])
    noise = np.mean([float(ds["noise_trace"]) for ds in found])
    assert energy == pytest.approx(30, rel=0.05)
    assert noise == pytest.approx(30 * 4, rel=0.1)
    for ds in found:
        ratio = float(ds["noise_trace"] / ds["gradient_energy"])
        assert float(ds["noise_scale"]) == pytest.approx(ratio)
        assert ds["snr"].item() == pytest.approx(8 / ratio)


def test_parts_of_the_batch_gradient_and_their_loss_increases():
    """On ½‖w - x‖² a step rho along v from a unit vector gives rho g·v + ½ rho²."""
    risk = cloud(40, 6)
    ds = measure.gradient_noise(risk, risk.theta, batch_size=10, rho=0.3, seed=1)
    x = risk._engine.examples.chunks[0].args[0]
    rows = torch.randperm(40, generator=generator(1)).split(10)
    g = -x.mean(0)
    for i, batch in enumerate(rows):
        g_batch = -x[batch].mean(0)
        cosine = float(g @ g_batch / g.norm() / g_batch.norm())
        assert float(ds["cosine"][i]) == pytest.approx(cosine)
        assert float(ds["full_share"][i]) == pytest.approx(cosine**2)
        full = (g_batch @ g) * g / (g @ g)
        parts = (g_batch, full, g_batch - full)
        for j, part in enumerate(parts):
            v = part / part.norm()
            for name, gradient in (("batch", g_batch), ("full", g)):
                expected = 0.3 * float(gradient @ v) + 0.5 * 0.3**2
                found = float(ds[f"loss_increase_{name}"][i, j])
                assert found == pytest.approx(expected, abs=1e-9)
    # The noise part leaves the full loss alone to first order.
    np.testing.assert_allclose(ds["loss_increase_full"][:, 2], 0.5 * 0.3**2)


def test_average_and_staleness_of_the_batches_gradients():
    """Gradients w - x: M from the batches before, and g_t at w - lr g_{t-1} is g_t - lr g_{t-1}."""
    risk = cloud(40, 6)
    ds = measure.gradient_noise(risk, risk.theta, batch_size=10, rho=0.3, ema=0.8, lr=0.25, seed=1)
    x = risk._engine.examples.chunks[0].args[0]
    order = torch.randperm(40, generator=generator(1)).split(10)
    batches, g = [-x[rows].mean(0) for rows in order], -x.mean(0)
    cos = torch.nn.functional.cosine_similarity
    average = batches[0]
    assert float(ds["ema_cosine"][0]) == pytest.approx(float(cos(average, g, 0)))
    assert np.isnan(ds["batch_cosine"][0])
    assert np.isnan(ds["loss_increase_full"].sel(direction="EMA residual")[0])
    for i in range(1, 4):
        v = batches[i] - average
        expected = 0.3 * float(g @ v / v.norm()) + 0.5 * 0.3**2
        found = ds["loss_increase_full"].sel(direction="EMA residual")[i]
        assert float(found) == pytest.approx(expected, abs=1e-9)
        average = 0.8 * average + 0.2 * batches[i]
        assert float(ds["ema_cosine"][i]) == pytest.approx(float(cos(average, g, 0)))
        later = batches[i] - 0.25 * batches[i - 1]
        stale = float(cos(batches[i - 1], later, 0))
        assert float(ds["batch_cosine"][i]) == pytest.approx(stale)
    still = measure.gradient_noise(risk, risk.theta, batch_size=10, seed=1)
    plain = float(cos(batches[0], batches[1], 0))
    assert float(still["batch_cosine"][1]) == pytest.approx(plain)


def test_noise_of_a_network_is_per_tensor_and_leaves_the_model_alone():
    risk, model = cnn_risk(n=40)
    before = fingerprint(model)
    ds = measure.gradient_noise(risk, risk.theta, batch_size=8, seed=0)
    assert ds["snr"].dims == ("tensor",)
    assert ds.sizes["batch"] == 5
    assert (np.abs(ds["cosine"]) <= 1).all()
    same(before, fingerprint(model))


def test_norms_and_distances():
    risk, _ = cnn_risk()
    ds = measure.norms(risk, risk.theta, initial=risk.theta + 0.1)
    assert float(ds["theta_norm"]) == pytest.approx(float(risk.theta.norm()))
    np.testing.assert_allclose(ds["distance"], 0.1 * np.sqrt(ds["size"]))
    assert float(ds["total_distance"]) == pytest.approx(0.1 * risk.theta.numel() ** 0.5)
    assert np.isnan(measure.norms(risk, risk.theta)["total_distance"])


def test_bad_input_is_refused():
    risk, _ = cnn_risk()
    for size in (0, 13):
        with pytest.raises(LandscapeError, match=r"two disjoint batches are needed.* 1 to 12"):
            measure.gradient_noise(risk, risk.theta, batch_size=size, seed=0)
    for options in ({"ema": 1.0}, {"ema": -0.1}, {"lr": -1.0}):
        with pytest.raises(LandscapeError, match=r"weight of the past in \[0, 1\) and lr"):
            measure.gradient_noise(risk, risk.theta, batch_size=8, seed=0, **options)
    with pytest.raises(LandscapeError, match="where the model has P"):
        measure.norms(risk, risk.theta, initial=risk.theta[1:])
