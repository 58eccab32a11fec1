"""Controls of a perturbation: equal density, equal radius or equal first-order effect."""

import numpy as np
import pytest
import torch

from landscape import LandscapeError, measure, sam
from landscape.measure.perturbations.controls import CONTROLS
from tests.measure_problems import cnn_risk, fingerprint, quadratic, same


@pytest.fixture(scope="module")
def found():
    risk, _ = cnn_risk(n=40)
    variant = sam.zsharp(rho=0.1, percentile=0.8)
    return risk, measure.perturbation_controls(
        risk, risk.theta, variant=variant, num_draws=6, batch_size=40, bn="eval", seed=0
    )


def test_controls_have_the_density_and_the_strength_they_are_matched_to(found):
    _, ds = found
    variant = ds.sel(control="variant")
    for control in CONTROLS[1:]:
        row = ds.sel(control=control)
        np.testing.assert_allclose(row["density"], variant["density"])
        matched = "radius" if "radius" in control else "first_order_effect"
        np.testing.assert_allclose(row[matched], variant[matched], rtol=1e-9)
    np.testing.assert_allclose(variant["loss_increase_std"], 0)
    np.testing.assert_allclose(ds["energy_share"].sum("tensor"), 1.0)
    assert (ds["one_d_energy"].sel(support="without 1-D tensors") == 0).all()
    assert (ds["one_d_energy"].sel(support="all tensors") > 0).all()


def test_the_largest_gradients_catch_most_energy_and_random_ones_their_share(found):
    """g·e = rho sqrt(R) ‖g‖ at equal radius, R the energy in the mask."""
    risk, ds = found
    g = risk.gradient(risk.theta)
    here = ds.sel(support="without 1-D tensors")
    energy = here["captured_energy"]
    top, random = (energy.sel(control=f"{n}, equal radius") for n in ("top gradient", "random"))
    assert float(top) >= float(energy.sel(control="variant")) > float(random)
    row = here.sel(control="top gradient, equal radius")
    expected = float(row["radius"] * row["captured_energy"] ** 0.5) * float(g.norm())
    assert float(row["first_order_effect"]) == pytest.approx(expected)
    strong = here.sel(control="random, equal first order")
    assert float(strong["radius"]) > float(here["radius"].sel(control="variant"))
    dense = sum(t.numel for t in risk.layout.tensors if t.ndim > 1)
    share = float(here["density"].sel(control="variant")) * risk.theta.numel() / dense
    assert share == pytest.approx(0.2, abs=0.02)


def test_loss_increases_are_those_of_a_quadratic():
    """On a quadratic L(w + e) - L(w) = g·e + ½ eᵀHe for any e: here e is all of SAM's."""
    risk, H, _ = quadratic([4.0, 2.0, 1.0, 0.5], linear=[0.1, 0.2, 0.3, 0.4])
    ds = measure.perturbation_controls(
        risk, risk.theta, variant=sam.sam(rho=0.3), batch_size=4, bn="eval", seed=0
    )
    g = risk.gradient(risk.theta)
    e = 0.3 * g / g.norm()
    expected = float(g @ e + 0.5 * e @ H @ e)
    full = ds.sel(support="all tensors")
    # SAM selects everything, so that every control is the same perturbation.
    np.testing.assert_allclose(full["loss_increase"], expected)
    np.testing.assert_allclose(full["loss_increase_full"], expected)
    np.testing.assert_allclose(full["radius"], 0.3)
    np.testing.assert_allclose(full["loss_increase_std"], 0.0, atol=1e-12)


def test_the_variants_own_row_is_its_perturbation_and_draws_are_seeded(found):
    risk, ds = found
    variant = sam.zsharp(rho=0.1, percentile=0.8)
    own = measure.perturbation(risk, risk.theta, variant=variant, batch_size=40, bn="eval", seed=0)
    row = ds.sel(control="variant", support="all tensors")
    assert float(row["loss_increase"]) == pytest.approx(float(own["loss_increase"]), rel=1e-9)
    assert float(row["loss_increase_full"]) == pytest.approx(float(own["loss_increase_full"]))
    assert float(row["radius"]) == pytest.approx(float(own["rho_eff"]))
    np.testing.assert_allclose(row["energy_share"], own["energy_share"])
    options = {"variant": variant, "num_draws": 3, "batch_size": 16}
    one, again, other = (
        measure.perturbation_controls(risk, risk.theta, seed=seed, **options) for seed in (0, 0, 1)
    )
    assert one.identical(again)
    assert not one["loss_increase"].equals(other["loss_increase"])


def test_the_model_is_left_alone_and_bad_input_is_refused():
    risk, model = cnn_risk(n=40)
    before = fingerprint(model)
    ds = measure.perturbation_controls(risk, risk.theta, variant=sam.sam_on(rho=0.2), seed=0)
    same(before, fingerprint(model))
    # SAM-ON has nothing but 1-D tensors: without them nothing is left.
    assert (ds["radius"].sel(support="without 1-D tensors") == 0).all()
    with pytest.raises(LandscapeError, match="'sgd' perturbs nothing here"):
        measure.perturbation_controls(risk, risk.theta, variant=sam.sgd(), seed=0)
    with pytest.raises(LandscapeError, match=r"num_draws=.* give a whole number >= 2"):
        measure.perturbation_controls(
            risk, risk.theta, variant=sam.sam(rho=0.1), num_draws=1, seed=0
        )


# --- angles ----------------------------------------------------------------------------------


def test_cosines_of_masks_of_one_gradient_are_ratios_of_energies():
    """cos² of m g and g is the energy ‖m g‖²/‖g‖² that the mask keeps, tensor by tensor."""
    risk, _ = cnn_risk(n=40)
    variants = {
        "sam": sam.sam(rho=0.1),
        "top": sam.topk_gradient(rho=0.3, density=0.2),
        "norms": sam.sam_on(rho=0.1),
    }
    ds = measure.perturbation_cosines(
        risk, risk.theta, variants=variants, batch_size=40, bn="eval", seed=0
    )
    g = risk.gradient(risk.theta)
    kept = torch.zeros_like(g)
    for tensor in risk.layout.tensors:
        part = g[tensor.start : tensor.stop]
        count = round(0.2 * tensor.numel) if tensor.ndim > 1 else 0
        chosen = part.abs().topk(count).indices
        kept[tensor.start + chosen] = part[chosen]
        share = float(part[chosen].square().sum() / part.square().sum())
        at = float(ds["cosine_squared"].sel(pair="sam | top", tensor=tensor.name))
        assert np.isnan(at) if count == 0 else at == pytest.approx(share)
    whole = float(kept.square().sum() / g.square().sum())
    assert float(ds["cosine_squared_all"].sel(pair="sam | top")) == pytest.approx(whole)
    assert float(ds["cosine_all"].sel(pair="sam | top")) == pytest.approx(whole**0.5)
    assert float(ds["cosine_all"].sel(pair="top | norms")) == 0.0
    assert np.isnan(ds["cosine"].sel(pair="top | norms")).all()
    np.testing.assert_allclose(ds["expected"], 1 / ds["size"])
    with pytest.raises(LandscapeError, match="perturbation_cosines got 1 variant"):
        measure.perturbation_cosines(risk, risk.theta, variants={"sam": sam.sam(rho=0.1)}, seed=0)
