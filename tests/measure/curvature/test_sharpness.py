"""Sharpness on quadratics, where every term is known; and what it must not touch."""

import numpy as np
import pytest
import torch

from landscape import LandscapeError, measure
from tests.measure_problems import cnn_risk, fingerprint, quadratic, same


def trust_region_maximum(H, g, rho):
    """Max of gᵀe + ½eᵀHe on the ball for indefinite or positive H: (mu I - H) e = g, ‖e‖ = rho."""
    values, Q = torch.linalg.eigh(H)
    coefficients = Q.T @ g
    low, high = max(float(values.max()), 0.0), float(values.max()) + float(g.norm()) / rho + 1
    for _ in range(200):
        mu = (low + high) / 2
        if float((coefficients / (mu - values)).norm()) > rho:
            low = mu
        else:
            high = mu
    e = Q @ (coefficients / (high - values))
    return float(g @ e + 0.5 * e @ H @ e)


@pytest.fixture(params=[[3.0, 2.0, 1.0, 0.5, 0.1], [3.0, 1.0, 0.3, -0.5, -2.0]])
def bowl(request):
    return quadratic(request.param, linear=[0.4, -0.3, 0.2, 0.1, 0.5])


def test_one_step_on_a_quadratic_is_its_two_terms(bowl):
    risk, H, c = bowl
    g = H @ risk.theta + c
    ds = measure.sharpness(risk, risk.theta, rho=[0.05, 0.7], ascent_steps=0, seed=0)
    for rho in (0.05, 0.7):
        at = ds.sel(rho=rho)
        first = rho * float(g.norm())
        second = 0.5 * rho**2 * float(g @ H @ g / (g @ g))
        assert float(at["one_step_first_order"]) == pytest.approx(first, rel=1e-10)
        assert float(at["one_step_second_order"]) == pytest.approx(second, rel=1e-10)
        assert float(at["one_step"]) == pytest.approx(first + second, rel=1e-9)
        assert float(at["worst_case"]) == pytest.approx(float(at["one_step"]))


def test_worst_case_on_a_quadratic_reaches_the_trust_region_optimum(bowl):
    risk, H, c = bowl
    g = H @ risk.theta + c
    ds = measure.sharpness(risk, risk.theta, rho=[0.1, 1.0, 3.0], ascent_steps=200, seed=0)
    for rho in (0.1, 1.0, 3.0):
        optimum = trust_region_maximum(H, g, rho)
        assert float(ds["worst_case"].sel(rho=rho)) == pytest.approx(optimum, rel=1e-5)
    assert (ds["worst_case"] >= ds["one_step"]).all()


def test_gaussian_on_a_quadratic_is_half_the_trace_times_the_variance():
    """½ (rho²/P) tr H, the linear term cancelled exactly: each pair gives ½ σ² xiᵀH xi."""
    risk, H, _ = quadratic(list(np.linspace(0.1, 4.0, 40)), linear=[5.0] * 40)
    ds = measure.sharpness(risk, risk.theta, rho=[0.3], ascent_steps=0, num_pairs=2000, seed=1)
    expected = 0.5 * 0.3**2 / 40 * float(H.trace())
    error = float(ds["gaussian_stderr"].item())
    assert error < 0.01 * expected
    assert float(ds["gaussian"].item()) == pytest.approx(expected, abs=4 * error)


def test_gaussian_draws_are_common_to_radii_and_models():
    risk, _, _ = quadratic([2.0, 1.0, 0.5])
    other, _, _ = quadratic([4.0, 2.0, 1.0])
    scale = [
        measure.sharpness(r, r.theta, rho=[0.1, 0.2], ascent_steps=0, num_pairs=3, seed=4)
        for r in (risk, other)
    ]
    np.testing.assert_allclose(scale[0]["gaussian"][1] / scale[0]["gaussian"][0], 4.0, rtol=1e-7)
    np.testing.assert_allclose(scale[1]["gaussian"] / scale[0]["gaussian"], 2.0, rtol=1e-7)


def test_at_a_stationary_point_there_is_no_first_step_but_a_worst_case():
    risk, _, _ = quadratic([3.0, 1.0, -1.0])
    zero = torch.zeros_like(risk.theta)
    ds = measure.sharpness(risk, zero, rho=[0.5], ascent_steps=100, seed=0)
    assert np.isnan(ds["one_step"].item())
    assert ds["worst_case"].item() == pytest.approx(0.5 * 3.0 * 0.25, rel=1e-6)


def test_sharpness_is_reproducible_and_touches_nothing():
    risk, model = cnn_risk()
    before = fingerprint(model)
    first = measure.sharpness(risk, risk.theta, rho=0.1, seed=3)
    second = measure.sharpness(risk, risk.theta, rho=[0.1], seed=3)
    same(before, fingerprint(model))
    for name in first.data_vars:
        np.testing.assert_array_equal(first[name], second[name])


def test_bad_input_is_refused():
    risk, _, _ = quadratic([2.0, 1.0])
    for rho in (-0.1, 0.0, float("nan"), float("inf")):
        with pytest.raises(LandscapeError, match="finite radii above 0"):
            measure.sharpness(risk, risk.theta, rho=rho, seed=0)
    with pytest.raises(LandscapeError, match="at least one radius"):
        measure.sharpness(risk, risk.theta, rho=[], seed=0)
    with pytest.raises(LandscapeError, match=r"num_pairs=.* give a whole number >= 2"):
        measure.sharpness(risk, risk.theta, num_pairs=1, seed=0)
    with pytest.raises(LandscapeError, match=r"shape \(3,\) where the model has P = 2"):
        measure.sharpness(risk, torch.zeros(3), seed=0)
    with pytest.raises(LandscapeError, match="1 of 2 parameters are NaN"):
        measure.sharpness(risk, torch.tensor([0.0, torch.nan]), seed=0)
    with pytest.raises(LandscapeError, match="loss is inf"):
        measure.sharpness(risk, torch.tensor([1e200, 1e200], dtype=torch.float64), seed=0)
