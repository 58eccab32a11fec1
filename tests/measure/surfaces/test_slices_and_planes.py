"""Slices and planes are direct evaluation at every point, their centre is the checkpoint."""

import numpy as np
import pytest
import torch
from torch import nn

from landscape import EmpiricalRisk, LandscapeError, measure, plane, results
from tests.measure_problems import cnn, cnn_risk, fingerprint, images, quadratic, same

MODES = ("eval", "recalibrate", "full_batch")


def test_slice_of_a_quadratic_is_a_parabola_in_units_of_the_direction():
    risk, H, c = quadratic([3.0, 1.0, -0.5], linear=[0.3, 0.2, -0.1])
    theta, d = risk.theta, torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    line = plane.Plane(theta, d[None], "own", ("d",))
    ds = measure.loss_slice(risk, theta, directions=line, radius=2.0, points=9, seed=0)
    alpha = torch.linspace(-2, 2, 9, dtype=torch.float64)
    expected = risk.loss(theta) + alpha * ((H @ theta + c) @ d) + 0.5 * alpha**2 * (d @ H @ d)
    np.testing.assert_allclose(ds["loss"][0], expected, rtol=1e-12)
    np.testing.assert_allclose(ds["alpha"], alpha)
    assert ds["direction_norm"].item() == pytest.approx(float(d.norm()))
    assert np.isnan(ds["largest_cosine"])
    two = plane.Plane(theta, torch.stack([d, torch.ones(3).double()]), "own", ("d", "e"))
    ds = measure.loss_slice(risk, theta, directions=two, points=3, seed=0)
    cosine = float(abs(d.sum()) / d.norm() / 3**0.5)
    assert ds["largest_cosine"].item() == pytest.approx(cosine)


def test_plane_of_a_quadratic_is_the_bowl_with_the_right_axes():
    risk, H, c = quadratic([3.0, 1.0, 0.2, -0.5])
    theta = risk.theta
    d = torch.randn(2, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    own = plane.Plane(theta, d, "own", ("u", "v"))
    ds = measure.loss_plane(
        risk, theta, directions=own, alphas=[-1.0, 0.0, 0.5], betas=[0.0, 2.0], seed=0
    )
    assert ds["loss"].shape == (3, 2)
    for i, alpha in enumerate((-1.0, 0.0, 0.5)):
        for j, beta in enumerate((0.0, 2.0)):
            w = theta + alpha * d[0] + beta * d[1]
            expected = float(0.5 * w @ H @ w + c @ w)
            assert float(ds["loss"][i, j]) == pytest.approx(expected, rel=1e-12)
    cosine = float(d[0] @ d[1] / d[0].norm() / d[1].norm())
    assert float(ds["axis_cosine"]) == pytest.approx(cosine)
    assert float(ds["alpha_norm"]) == pytest.approx(float(d[0].norm()))
    assert float(ds["beta_norm"]) == pytest.approx(float(d[1].norm()))


def test_eigen_slice_has_the_curvature_of_its_eigenvalue():
    risk, H, c = quadratic([3.0, 1.0, 0.2, -0.5])
    values, Q = torch.linalg.eigh(H)
    axes = plane.eigenvectors(risk.theta, Q.T.flip(0), gradient=H @ risk.theta + c)
    ds = measure.loss_slice(risk, risk.theta, directions=axes, radius=0.5, points=3, seed=0)
    curvature = (ds["loss"][:, 0] - 2 * ds["loss"][:, 1] + ds["loss"][:, 2]) / 0.25
    np.testing.assert_allclose(curvature, values.flip(0), rtol=1e-8, atol=1e-9)


def test_plane_through_three_points_hits_their_losses():
    risk, _ = cnn_risk()
    g = torch.Generator().manual_seed(0)
    a = risk.theta
    b, c = (a + 0.3 * torch.randn(len(a), generator=g, dtype=torch.float64) for _ in range(2))
    ds = measure.loss_plane(
        risk, a, directions=plane.through(a, b, c), alphas=[0, 1], betas=[0, 1], seed=0
    )
    own = risk.with_bn("recalibrate")
    for point, at in ((a, (0, 0)), (b, (1, 0)), (c, (0, 1))):
        assert float(ds["loss"][at]) == pytest.approx(float(own.loss(point)), rel=1e-12)


@pytest.mark.parametrize("bn", MODES)
def test_every_point_equals_direct_evaluation_in_every_mode(bn):
    risk, model = cnn_risk()
    before = fingerprint(model)
    own = risk.with_bn(bn)
    theta = risk.theta
    ds = measure.loss_slice(risk, theta, num_directions=3, radius=0.7, points=5, bn=bn, seed=2)
    directions = plane.random(risk, theta, num_directions=3, seed=2).directions
    for i, d in enumerate(directions):
        for j, alpha in enumerate(ds["alpha"].values):
            direct = own.evaluate(theta + alpha * d)
            assert float(ds["loss"][i, j]) == pytest.approx(float(direct.loss), rel=1e-12)
            assert float(ds["error_rate"][i, j]) == float(direct.error_rate)
    flat = measure.loss_plane(risk, theta, points=3, bn=bn, seed=2)
    for i, alpha in enumerate(flat["alpha"].values):
        for j, beta in enumerate(flat["beta"].values):
            point = theta + alpha * directions[0] + beta * directions[1]
            assert float(flat["loss"][i, j]) == pytest.approx(float(own.loss(point)), rel=1e-12)
    assert results.provenance(ds)["bn"] == bn
    same(before, fingerprint(model))
    assert torch.equal(theta, risk.theta)


@pytest.mark.parametrize("bn", MODES)
def test_the_centre_is_the_checkpoints_loss(bn):
    risk, _ = cnn_risk()
    center = float(risk.with_bn(bn).loss(risk.theta))
    ds = measure.loss_slice(risk, risk.theta, num_directions=2, points=3, bn=bn, seed=0)
    assert ds["center_loss"].item() == center
    assert (ds["loss"].sel(alpha=0) == center).all()
    assert measure.loss_plane(risk, risk.theta, points=3, bn=bn, seed=0)["loss"][1, 1] == center


def test_modes_differ_and_slices_are_told_apart():
    risk, _ = cnn_risk()
    one, two = (
        measure.loss_slice(risk, risk.theta, num_directions=1, points=3, bn=bn, name=name, seed=0)
        for bn, name in (("eval", "loss_slice_eval"), ("recalibrate", "loss_slice"))
    )
    assert not np.allclose(one["loss"], two["loss"])
    assert (one.attrs["measurement"], two.attrs["measurement"]) == ("loss_slice_eval", "loss_slice")


def test_recalibrated_slice_does_not_see_the_scale_of_a_layer_before_batchnorm():
    """A convolution before BatchNorm, rescaled by one factor: the same filter-normalized slice."""
    model = cnn()
    scaled = cnn()
    with torch.no_grad():
        scaled[0].weight *= 7.0
    losses = []
    for each in (model, scaled):
        for layer in (each[1], each[4]):
            layer.eps = 1e-12
        risk = EmpiricalRisk(each, nn.CrossEntropyLoss(), images(), dtype=torch.float64)
        ds = measure.loss_slice(risk, risk.theta, num_directions=2, points=5, seed=0)
        losses.append(ds["loss"].values)
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-8)


def test_nan_and_infinity_far_from_the_checkpoint_are_kept():
    risk, _, _ = quadratic([1.0, 2.0])
    far = plane.Plane(risk.theta, 1e153 * torch.eye(2, dtype=torch.float64), "far", ("u", "v"))
    ds = measure.loss_slice(risk, risk.theta, directions=far, alphas=[-99, 0, 99], seed=0)
    assert np.isinf(ds["loss"].values[:, [0, 2]]).all()
    assert np.isfinite(ds["loss"].values[:, 1]).all()
    assert np.isnan(ds["error_rate"]).all()  # a regression has none


def test_bad_grids_planes_and_centres_are_refused():
    risk, _ = cnn_risk()
    theta = risk.theta
    with pytest.raises(LandscapeError, match=r"points=20 along alpha leaves out alpha = 0.*21"):
        measure.loss_slice(risk, theta, points=20, seed=0)
    with pytest.raises(LandscapeError, match=r"points=.* give a whole number >= 3"):
        measure.loss_plane(risk, theta, points=1, seed=0)
    with pytest.raises(LandscapeError, match="range of no width"):
        measure.loss_slice(risk, theta, radius=0.0, seed=0)
    with pytest.raises(LandscapeError, match=r"from 0\.5 to 1 leaves out beta = 0"):
        measure.loss_plane(risk, theta, betas=[0.5, 1.0], seed=0)
    with pytest.raises(LandscapeError, match="two or more different finite values"):
        measure.loss_slice(risk, theta, alphas=[0.0, 0.0], seed=0)
    one = plane.random(risk, theta, num_directions=1, seed=0)
    with pytest.raises(LandscapeError, match="1 directions was given; loss_plane draws 2"):
        measure.loss_plane(risk, theta, directions=one, seed=0)
    row = one.directions[0]
    twice = plane.Plane(theta, torch.stack([row, -2 * row]), "own", ("d", "e"))
    with pytest.raises(LandscapeError, match=r"d and e are dependent \(cosine -1\.0.*no plane"):
        measure.loss_plane(risk, theta, directions=twice, seed=0)
    single = EmpiricalRisk(cnn(), nn.CrossEntropyLoss(), images(), dtype=torch.float32)
    row = row.float()
    twice = plane.Plane(single.theta, torch.stack([row, 3.3 * row]), "own", ("d", "e"))
    with pytest.raises(LandscapeError, match=r"d and e are dependent"):
        measure.loss_plane(single, single.theta, directions=twice, seed=0)
    with pytest.raises(LandscapeError, match="theta is a list; pass a flat tensor"):
        measure.loss_plane(risk, theta.tolist(), seed=0)
    with pytest.raises(LandscapeError, match=r"Direction 'd' \(plane: own\) has norm 0"):
        plane.Plane(theta, torch.zeros(1, len(theta)).double(), "own", ("d",))
    broken = theta.clone()
    broken[3] = float("nan")
    with pytest.raises(LandscapeError, match=r"1 of 306 parameters are NaN or infinite"):
        measure.loss_plane(risk, broken, seed=0)
    with pytest.raises(LandscapeError, match="origin is not theta"):
        measure.loss_slice(risk, theta + 1, directions=one, seed=0)
    other = plane.Plane(torch.zeros(3), torch.ones(1, 3), "own", ("d",))
    with pytest.raises(LandscapeError, match="have 3 coordinates"):
        measure.loss_slice(risk, theta, directions=other, seed=0)
    with pytest.raises(LandscapeError, match="possible are eval, full_batch, recalibrate"):
        measure.loss_slice(risk, theta, bn="train", seed=0)
    bowl, _, _ = quadratic([1.0, 2.0])
    with pytest.raises(LandscapeError, match="loss is inf"):
        measure.loss_slice(bowl, 1e200 * torch.ones(2, dtype=torch.float64), seed=0)


def test_a_risk_that_is_not_a_function_of_theta_is_caught_at_the_centre():
    class Drifting(EmpiricalRisk):
        calls = 0

        def evaluate(self, theta):
            Drifting.calls += 1
            found = super().evaluate(theta)
            return type(found)(found.loss + 1e-3 * Drifting.calls, found.error_rate, found.losses)

    risk = Drifting(cnn(), nn.CrossEntropyLoss(), images(), dtype=torch.float64)
    with pytest.raises(LandscapeError, match=r"centre of loss_slice differs .* deterministic"):
        measure.loss_slice(risk, risk.theta, num_directions=1, points=3, seed=0)
