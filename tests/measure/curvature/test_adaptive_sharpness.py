"""Adaptive sharpness and m-sharpness: closed forms, and invariance under rescaled layers."""

import numpy as np
import pytest
import torch
from torch import nn

from landscape import EmpiricalRisk, LandscapeError, measure
from landscape.measure.measuring import generator
from tests.measure.perturbations.test_alignment import diagonal
from tests.measure_problems import cnn, cnn_risk, fingerprint, images, quadratic, same


def relu_net():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Flatten(), nn.Linear(64, 7, bias=False), nn.ReLU(), nn.Linear(7, 4, bias=False)
        ).double()


def test_linf_worst_case_of_a_separable_bowl_is_at_the_corner():
    """½ sum l_i w_i² with |e_i| <= rho |w_i|: the best is e = rho w, ((1 + rho)² - 1) L."""
    risk = diagonal([1.0, 2.0, 3.0, 4.0] * 3)
    loss = float(risk.loss(risk.theta))
    ds = measure.adaptive_sharpness(risk, risk.theta, rho=[0.1, 0.5], seed=0)
    np.testing.assert_allclose(ds["worst_case"], [(1.1**2 - 1) * loss, (1.5**2 - 1) * loss])


def test_gaussian_adaptive_sharpness_is_half_rho_squared_sum_of_w2_h():
    risk = diagonal([1.0, 2.0, 3.0, 4.0] * 3)
    exact = 0.5 * 0.2**2 * sum([1.0, 2.0, 3.0, 4.0] * 3)
    ds = measure.adaptive_sharpness(
        risk, risk.theta, rho=0.2, ascent_steps=1, num_pairs=1500, seed=0
    )
    error = ds["gaussian_stderr"].item()
    assert error < 0.02 * exact
    assert ds["gaussian"].item() == pytest.approx(exact, abs=4 * error)


def test_l2_worst_case_is_the_plain_one_in_scaled_coordinates():
    """In d, with theta = 1, adaptive l2 sharpness is the plain worst case."""
    risk = diagonal([5.0, 1.0, 0.5, 0.2] * 3)
    plain = measure.sharpness(risk, risk.theta, rho=0.3, ascent_steps=100, seed=0)
    adaptive = measure.adaptive_sharpness(
        risk, risk.theta, rho=0.3, norm="l2", ascent_steps=100, seed=0
    )
    assert adaptive["worst_case"].item() == pytest.approx(plain["worst_case"].item(), rel=1e-6)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_adaptive_sharpness_does_not_see_rescaled_relu_layers(norm):
    """(a W1, W2/a) is the same function: plain sharpness moves, the adaptive one does not."""
    model, scaled = relu_net(), relu_net()
    with torch.no_grad():
        scaled[1].weight *= 8.0
        scaled[3].weight /= 8.0
    values = []
    for each in (model, scaled):
        risk = EmpiricalRisk(each, nn.CrossEntropyLoss(), images())
        options = {"rho": 0.05, "ascent_steps": 5, "seed": 0}
        values.append(
            (
                measure.adaptive_sharpness(risk, risk.theta, norm=norm, **options),
                measure.sharpness(risk, risk.theta, **options)["worst_case"].item(),
            )
        )
    for name in ("worst_case", "gaussian"):
        np.testing.assert_allclose(values[0][0][name], values[1][0][name], rtol=1e-8)
    assert not np.isclose(values[0][1], values[1][1], rtol=0.1)


def test_normalized_logits_do_not_see_the_scale_of_the_output():
    found = []
    for factor in (1.0, 5.0):
        model = relu_net()
        with torch.no_grad():
            model[3].weight *= factor
        risk = EmpiricalRisk(model, nn.CrossEntropyLoss(), images())
        found.append(
            [
                measure.adaptive_sharpness(
                    risk, risk.theta, rho=0.05, normalize_logits=flag, ascent_steps=4, seed=0
                )["worst_case"].item()
                for flag in (True, False)
            ]
        )
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-8)
    assert found[0][1] != pytest.approx(found[1][1], rel=0.1)


def test_m_sharpness_of_the_whole_set_is_one_step_sharpness_and_grows_for_small_m():
    risk, model = cnn_risk(n=24)
    before = fingerprint(model)
    ds = measure.m_sharpness(risk, risk.theta, rho=[0.05, 0.1], batch_sizes=[1, 8, 24], seed=0)
    plain = measure.sharpness(risk, risk.theta, rho=[0.05, 0.1], ascent_steps=0, seed=0)
    np.testing.assert_allclose(ds["m_sharpness"].sel(batch=24), plain["one_step"], rtol=1e-9)
    assert (ds["m_sharpness"].diff("batch") < 0).all()
    assert np.isnan(ds["m_sharpness_stderr"].sel(batch=24)).all()
    x, y = images(24)
    rows = torch.randperm(24, generator=generator(0)).split(8)
    each = []
    for batch in rows:
        small = EmpiricalRisk(cnn(), nn.CrossEntropyLoss(), (x[batch], y[batch]))
        each.append(
            measure.sharpness(small, risk.theta, rho=0.1, ascent_steps=0, seed=0)["one_step"].item()
        )
    assert float(ds["m_sharpness"].sel(rho=0.1, batch=8)) == pytest.approx(np.mean(each), rel=1e-9)
    same(before, fingerprint(model))


def test_weight_decay_of_the_risk_counts():
    risk = EmpiricalRisk(cnn(), nn.CrossEntropyLoss(), images(), weight_decay=0.3)
    ds = measure.m_sharpness(risk, risk.theta, rho=0.1, batch_sizes=[24], seed=0)
    plain = measure.sharpness(risk, risk.theta, rho=0.1, ascent_steps=0, seed=0)
    assert ds["m_sharpness"].item() == pytest.approx(plain["one_step"].item(), rel=1e-9)


def test_bad_input_is_refused():
    risk, _, _ = quadratic([1.0, 2.0])
    with pytest.raises(LandscapeError, match="choose one of 'linf', 'l2"):
        measure.adaptive_sharpness(risk, risk.theta, norm="l1", seed=0)
    with pytest.raises(LandscapeError, match="finite radii above 0"):
        measure.adaptive_sharpness(risk, risk.theta, rho=0.0, seed=0)
    with pytest.raises(LandscapeError, match="m=3 was asked of 2 examples"):
        measure.m_sharpness(risk, risk.theta, batch_sizes=[3], seed=0)


# --- of batches ---------------------------------------------------------------------------------


def classifier():
    x, y = images(14)
    return EmpiricalRisk(relu_net(), nn.CrossEntropyLoss(), (x, y), dtype=torch.float64)


def test_of_batches_it_is_the_mean_of_what_each_batch_has_alone():
    risk = classifier()
    call = {"rho": [0.05, 0.2], "ascent_steps": 3, "num_pairs": 2, "seed": 5}
    ds = measure.adaptive_sharpness(risk, risk.theta, batch_size=4, **call)
    order = torch.randperm(risk.num_examples, generator=generator(5))
    parts = [rows for rows in order.split(4) if len(rows) == 4]
    alone = np.array([
        measure.adaptive_sharpness(risk.subset(rows), risk.theta, **call).worst_case.values
        for rows in parts
    ])  # fmt: skip
    np.testing.assert_allclose(ds.worst_case, alone.mean(0), rtol=1e-9)
    error = alone.std(0, ddof=1) / len(parts) ** 0.5
    np.testing.assert_allclose(ds.worst_case_stderr, error, rtol=1e-9)
    whole = measure.adaptive_sharpness(risk, risk.theta, **call)
    assert np.isnan(whole.worst_case_stderr).all()
    few = measure.adaptive_sharpness(risk, risk.theta, batch_size=4, num_batches=2, **call)
    np.testing.assert_allclose(few.worst_case, alone[:2].mean(0), rtol=1e-9)
    with pytest.raises(LandscapeError, match="batch_size=999"):
        measure.adaptive_sharpness(risk, risk.theta, batch_size=999, seed=0)


def test_restarts_can_only_raise_the_worst_case():
    risk = classifier()
    call = {"rho": [0.05, 0.5], "ascent_steps": 2, "num_pairs": 2, "seed": 0}
    found = [
        measure.adaptive_sharpness(risk, risk.theta, restarts=n, norm=norm, **call).worst_case
        for norm in ("linf", "l2") for n in (0, 3)
    ]  # fmt: skip
    assert (found[1] >= found[0]).all()
    assert (found[3] >= found[2]).all()
