"""Barriers on known bowls, trajectories with what their projection leaves out."""

import numpy as np
import pytest
import torch

from landscape import LandscapeError, measure, plane, sam
from landscape.measure.surfaces.paths import random_walk_share
from tests.measure_problems import cnn_risk, fingerprint, quadratic, same


def test_barrier_of_a_concave_direction_is_the_height_of_the_parabola():
    """L = ½ w'Hw with d'Hd = -c along the line: the barrier is c/8 at alpha = ½."""
    risk, H, _ = quadratic([1.0, 2.0, -4.0])
    v = torch.linalg.eigh(H).eigenvectors[:, 0]
    start = risk.theta
    ds = measure.interpolation(risk, start, end=start + 3 * v, points=11)
    assert float(ds["barrier"]) == pytest.approx(4.0 * 9 / 8)
    assert float(ds["distance"]) == pytest.approx(3.0)
    assert float(ds["loss"][-1]) == float(risk.loss(start + 3 * v))
    convex = measure.interpolation(risk, start, end=start + torch.linalg.eigh(H).eigenvectors[:, 2])
    assert float(convex["barrier"]) == 0.0
    assert np.isnan(convex["error_barrier"])


def test_both_ends_are_the_two_models_in_the_mode_that_is_stated():
    risk, model = cnn_risk()
    other, _ = cnn_risk(seed=1)
    before = fingerprint(model)
    ds = measure.interpolation(risk, risk.theta, end=other.theta, points=3)
    own = risk.with_bn("recalibrate")
    assert float(ds["loss"][0]) == float(own.loss(risk.theta))
    # Recalibrated: the buffers of the second model do not matter.
    assert float(ds["loss"][2]) == float(other.with_bn("recalibrate").loss(other.theta))
    middle = own.evaluate((risk.theta + other.theta) / 2)
    assert float(ds["error_rate"][1]) == float(middle.error_rate)
    same(before, fingerprint(model))


def test_trajectory_in_a_plane_loses_nothing_and_one_beside_it_says_how_much():
    risk, _ = cnn_risk()
    g = torch.Generator().manual_seed(0)
    end = risk.theta
    a, b, c = torch.randn(3, len(end), generator=g, dtype=torch.float64)
    inside = [end + s * a + t * b for s, t in ((1, 0.2), (0.5, 0.4), (0.1, 0.1), (0, 0))]
    ds = measure.trajectory(risk, inside)
    np.testing.assert_allclose(ds["residual"], 0.0, atol=1e-5)
    np.testing.assert_allclose(ds["surface_loss"], ds["loss"], rtol=1e-6)
    assert float(ds["explained_share"].sum()) == pytest.approx(1.0)
    beside = measure.trajectory(risk, [*inside[:2], inside[2] + 0.05 * c, inside[3]])
    assert float(beside["residual"][2]) > 0.5
    assert abs(float((beside["surface_loss"] - beside["loss"])[2])) > 1e-4
    assert float(beside["residual"][3]) == pytest.approx(0.0, abs=1e-9)


def test_random_walks_have_the_shares_that_are_stated_as_the_null():
    steps = 12
    walk = np.random.default_rng(0).normal(size=(steps, 20_000)).cumsum(0)
    offsets = walk - walk[-1]
    values = np.linalg.svd(offsets, compute_uv=False) ** 2
    np.testing.assert_allclose(random_walk_share(steps, 2), (values / values.sum())[:2], rtol=0.02)
    assert random_walk_share(50, 1)[0] > 0.6  # high shares are no evidence of structure


def test_the_drawn_plane_of_a_trajectory_is_the_loss_at_its_coordinates():
    risk, H, c = quadratic([3.0, 1.0, 0.2])
    g = torch.Generator().manual_seed(0)
    points = [risk.theta + t * torch.randn(3, generator=g, dtype=torch.float64) for t in (2, 1, 0)]
    ds = measure.trajectory(risk, points, epochs=[0, 5, 10], grid=2, margin=0.5)
    assert list(ds["epoch"].values) == [0, 5, 10]
    assert list(ds["alpha"].values) == [-0.5, 0, 0.5, 1, 1.5]
    assert list(ds["beta"].values) == [-1.5, -1, -0.5, 0, 0.5, 1, 1.5]
    extent = np.abs(ds["coordinate"]).max("epoch")
    assert float(ds["alpha_unit"]) == pytest.approx(float(extent[0]))
    assert float(ds["beta_unit"]) == pytest.approx(float(extent[1]))
    axes = plane.trajectory(points)
    for i, a in enumerate(ds["alpha"].values * float(ds["alpha_unit"])):
        for j, b in enumerate(ds["beta"].values * float(ds["beta_unit"])):
            w = points[-1] + a * axes.directions[0] + b * axes.directions[1]
            expected = float(0.5 * w @ H @ w + c @ w)
            assert float(ds["plane_loss"][i, j]) == pytest.approx(expected, rel=1e-10)


def test_a_training_on_one_line_is_drawn_as_wide_as_it_is_long():
    risk, _, _ = quadratic([3.0, 1.0, 0.2])
    step = torch.tensor([1.0, 2.0, 2.0], dtype=torch.float64)
    ds = measure.trajectory(risk, [risk.theta + t * step for t in (3, 1, 0)], grid=1, margin=0)
    np.testing.assert_allclose(ds["explained_share"], [1, 0], atol=1e-12)
    assert float(ds["alpha_unit"]) == float(ds["beta_unit"]) == pytest.approx(9)
    assert str(ds["direction"].values[1]).startswith("random 2")


def test_the_line_along_a_perturbation_is_the_parabola_of_its_e():
    """SAM on a quadratic: e = rho g/‖g‖ of the batch, L(w + αe) = L + α gᵀe + ½α² eᵀHe."""
    risk, H, c = quadratic([3.0, 1.0, 0.2])
    w = risk.theta
    variant = sam.make("sam", {"rho": 0.3})
    ds = measure.perturbation_slice(
        risk, w, variants={"sam": variant}, batch_size=3, radius=2.0, points=5, seed=0
    )
    g = H @ w + c
    e = 0.3 * g / g.norm()
    alpha = ds["alpha"].values
    expected = float(risk.loss(w)) + alpha * float(g @ e) + 0.5 * alpha**2 * float(e @ H @ e)
    np.testing.assert_allclose(ds["loss"][0], expected, rtol=1e-10)
    # The batch is all examples here.
    np.testing.assert_allclose(ds["batch_loss"], ds["loss"], rtol=1e-12)
    assert float(ds["direction_norm"][0]) == pytest.approx(0.3)
    half = measure.perturbation_slice(
        risk, w, variants={"sam": variant}, batch_size=1, radius=1.0, points=3, seed=0
    )
    assert not np.allclose(half["batch_loss"], half["loss"])


def test_bad_input_is_refused():
    risk, _ = cnn_risk()
    with pytest.raises(LandscapeError, match=r"norm 0\.0"):
        measure.interpolation(risk, risk.theta, end=risk.theta)
    with pytest.raises(LandscapeError, match="where the model has P"):
        measure.interpolation(risk, risk.theta, end=risk.theta[1:])
    with pytest.raises(LandscapeError, match=r"points=.* give a whole number >= 3"):
        measure.interpolation(risk, risk.theta, end=risk.theta + 1, points=2)
    with pytest.raises(LandscapeError, match="give at least 3 checkpoints"):
        measure.trajectory(risk, [risk.theta, risk.theta + 1])
    with pytest.raises(LandscapeError, match="2 directions asked of 0 checkpoints"):
        measure.trajectory(risk, [])
    moved = [risk.theta + 1, risk.theta**2, risk.theta]
    with pytest.raises(LandscapeError, match="where the model has P"):
        measure.trajectory(risk, [*moved, risk.theta[1:]])
    with pytest.raises(LandscapeError, match="2 epochs were given for 3 checkpoints"):
        measure.trajectory(risk, moved, epochs=[0, 1])
    with pytest.raises(LandscapeError, match="num_directions=1 was asked; use 2, or grid=0"):
        measure.trajectory(risk, moved, num_directions=1, grid=2)
    with pytest.raises(LandscapeError, match="perturbations of no variant were asked"):
        measure.perturbation_slice(risk, risk.theta, variants={}, seed=0)
    variants = {"sgd": sam.make("sgd", {})}
    with pytest.raises(LandscapeError, match="'sgd' perturbs nothing here"):
        measure.perturbation_slice(risk, risk.theta, variants=variants, seed=0)
