"""Barriers, trained curves and curvature maps against closed forms."""

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.optimize import minimize
from torch import nn

from landscape import EmpiricalRisk, LandscapeError, measure, plane, results
from landscape.measure.surfaces.connectivity import CurveTraining, curve_point, height
from tests.measure_problems import cnn, cnn_risk, fingerprint, images, quadratic, same


class Ring(nn.Module):
    """‖w‖² for every row: with the loss (‖w‖² - 1)², the minima form a circle."""

    def __init__(self, size):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(size, dtype=torch.float64))

    def forward(self, x):
        return (self.w**2).sum().expand(len(x))


def ring(*, size=2, n=4):
    data = (torch.zeros(n, 1, dtype=torch.float64), torch.ones(n, dtype=torch.float64))
    loss = nn.MSELoss(reduction="none")
    return EmpiricalRisk(Ring(size), loss, data, dtype=torch.float64)


def on_ring(degrees):
    angle = np.deg2rad(degrees)
    return torch.tensor([np.cos(angle), np.sin(angle)], dtype=torch.float64)


def test_barrier_matrix_of_a_ring_is_that_of_its_chords():
    models = {"a": on_ring(0), "b": on_ring(60), "c": on_ring(180)}
    ds = measure.barrier_matrix(ring(), models, points=21)
    assert list(zip(ds["first"].values, ds["second"].values, strict=True)) == [
        ("a", "b"), ("a", "c"), ("b", "c")]  # fmt: skip
    # The middle of a chord over the angle φ has ‖w‖ = cos(φ/2).
    expected = [(np.cos(np.deg2rad(angle / 2)) ** 2 - 1) ** 2 for angle in (60, 180, 120)]
    np.testing.assert_allclose(ds.barrier, expected, rtol=1e-12)
    np.testing.assert_allclose(ds.distance, [1, 2, np.sqrt(3)], rtol=1e-12)
    assert np.isnan(ds.error_barrier).all()
    assert set(results.provenance(ds)["models"]) == {"a", "b", "c"}


def test_barrier_matrix_equals_pairwise_interpolation_with_recalibrated_batchnorm():
    risk, model = cnn_risk()
    before = fingerprint(model)
    g = torch.Generator().manual_seed(0)
    thetas = [risk.theta + 0.3 * torch.randn(risk.theta.shape, generator=g, dtype=torch.float64)
              for _ in range(3)]  # fmt: skip
    ds = measure.barrier_matrix(risk, dict(zip("abc", thetas, strict=True)), points=5)
    one = measure.interpolation(risk, thetas[0], end=thetas[2], points=5)
    np.testing.assert_allclose(ds.loss.values[1], one.loss, rtol=1e-12)
    assert float(ds.barrier[1]) == pytest.approx(float(one.barrier), abs=1e-12)
    assert float(ds.error_barrier[1]) == pytest.approx(float(one.error_barrier))
    same(before, fingerprint(model))


def test_a_row_of_the_barrier_matrix_is_its_part_and_nothing_lies_before_oneself():
    models = {"a": on_ring(0), "b": on_ring(60), "c": on_ring(180)}
    whole = measure.barrier_matrix(ring(), models, points=9)
    row = measure.barrier(ring(), models["a"], others=models, points=9)
    assert list(row.other.values) == ["a", "b", "c"]
    np.testing.assert_array_equal(row.loss.values[1:], whole.loss.values[:2])
    np.testing.assert_array_equal(row.barrier.values, [0, *whole.barrier.values[:2]])
    np.testing.assert_array_equal(row.distance.values, [0, *whole.distance.values[:2]])
    assert set(results.provenance(row)["others"]) == {"a", "b", "c"}


def test_a_plane_through_three_points_of_a_ring_follows_its_closed_form():
    models = {"a": on_ring(0), "b": on_ring(90), "c": on_ring(210)}
    ds = measure.three_points(ring(), models, cells=4, margin=0.5)
    assert list(ds.alpha.values) == [k / 4 for k in range(-2, 7)]
    a, b, c = models.values()
    for i, alpha in enumerate(ds.alpha.values):
        for j, beta in enumerate(ds.beta.values):
            w = a + alpha * (b - a) + beta * (c - a)
            assert float(ds.loss[i, j]) == pytest.approx(float((w @ w - 1) ** 2), abs=1e-12)
    np.testing.assert_allclose(ds.model_loss, 0, atol=1e-12)
    assert list(ds.point.values) == ["a", "b", "c"]
    cosine = float((b - a) @ (c - a) / (b - a).norm() / (c - a).norm())
    assert float(ds.axis_cosine) == pytest.approx(cosine)


def test_a_line_on_a_convex_bowl_has_no_barrier():
    risk, _, _ = quadratic([3.0, 1.0, 0.2])
    ds = measure.barrier_matrix(risk, {"a": risk.theta, "b": -2 * risk.theta}, points=7)
    assert float(ds.barrier[0]) == 0


def test_barrier_keeps_nan():
    assert np.isnan(height(np.linspace(0, 1, 3), np.array([0.0, np.nan, 0.0])))


def test_bezier_on_a_ring_finds_the_best_curve():
    """The control point minimizes ∫(‖phi(t)‖² - 1)² dt, found independently by quadrature."""
    a, b = on_ring(0), on_ring(100)

    def integral(c):
        def height(t):
            phi = (1 - t) ** 2 * a.numpy() + 2 * t * (1 - t) * c + t**2 * b.numpy()
            return (phi @ phi - 1) ** 2

        return quad(height, 0, 1)[0]

    best = minimize(integral, (a + b).numpy() / 2, tol=1e-10)
    how = CurveTraining(steps=1500, lr=0.1, momentum=0.9, batch_size=4)
    ds = measure.bezier(ring(), a, end=b, training=how, seed=0)
    np.testing.assert_allclose(ds.control_point, best.x, atol=0.02)
    chord = (np.cos(np.deg2rad(50)) ** 2 - 1) ** 2
    assert float(ds.linear_barrier) == pytest.approx(chord, rel=1e-12)
    assert float(ds.barrier) < 0.01 * chord
    control = torch.tensor(ds.control_point.values)
    direct = [float(ring().loss(curve_point(a, control, b, t))) for t in ds.alpha.values]
    np.testing.assert_allclose(ds.loss, direct, rtol=1e-12)
    # Between the chord of 100 degrees and the arc above it.
    assert 1 < float(ds.detour) < 1.05 * np.deg2rad(100) / (2 * np.sin(np.deg2rad(50)))


def test_bezier_of_a_network_leaves_the_model_alone_and_repeats_bitwise():
    risk, model = cnn_risk()
    other = cnn(seed=3)
    end = EmpiricalRisk(other, nn.CrossEntropyLoss(), images(), dtype=torch.float64).theta
    before = fingerprint(model)
    how = CurveTraining(steps=30, lr=0.1, batch_size=16)
    one, two = (
        measure.bezier(risk, risk.theta, end=end, training=how, points=5, seed=1) for _ in range(2)
    )
    assert one.equals(two)
    same(before, fingerprint(model))
    own = risk.with_bn("recalibrate")
    assert float(one.loss[0]) == float(own.loss(risk.theta))
    assert float(one.loss[-1]) == float(own.loss(end))
    assert float(one.loss[2]) < float(one.linear_loss[2])


def test_bad_paths_are_refused():
    risk, _ = cnn_risk()
    theta = risk.theta
    with pytest.raises(LandscapeError, match="barrier is between two models; 1 were given"):
        measure.barrier_matrix(risk, {"a": theta})
    with pytest.raises(LandscapeError, match="running statistics belong to one of them"):
        measure.barrier_matrix(risk, {"a": theta, "b": theta + 1}, bn="eval")
    with pytest.raises(LandscapeError, match="P = 306 trainable"):
        measure.barrier_matrix(risk, {"a": theta, "b": theta[1:]})
    with pytest.raises(LandscapeError, match=r"Direction 'a to b' .* has norm 0"):
        measure.barrier_matrix(risk, {"a": theta, "b": theta})
    with pytest.raises(LandscapeError, match="between two models; no other one was given"):
        measure.barrier(risk, theta, others={})
    with pytest.raises(LandscapeError, match="P = 306 trainable"):
        measure.barrier(risk, theta, others={"b": theta[1:]})
    with pytest.raises(LandscapeError, match="through three models; 2 were given"):
        measure.three_points(risk, {"a": theta, "b": theta + 1})
    line = {"a": theta, "b": theta + 1, "c": theta + 3}
    with pytest.raises(LandscapeError, match="The points a, b, c lie on one line"):
        measure.three_points(risk, line)
    with pytest.raises(LandscapeError, match="P = 306 trainable"):
        measure.three_points(risk, line | {"c": theta[1:]})
    with pytest.raises(LandscapeError, match=r"margin=-0\.5 was asked"):
        measure.three_points(risk, line, margin=-0.5)
    with pytest.raises(LandscapeError, match="cells=0 was asked"):
        measure.three_points(risk, line, cells=0)
    with pytest.raises(LandscapeError, match="running statistics belong to one of them"):
        measure.three_points(risk, line, bn="eval")
    with pytest.raises(LandscapeError, match="steps=0 was asked"):
        CurveTraining(steps=0)
    with pytest.raises(LandscapeError, match=r"lr=-1.* cannot train a curve"):
        CurveTraining(lr=-1.0)
    with pytest.raises(LandscapeError, match=r"diverged within 50 steps of lr=1000000000"):
        measure.bezier(
            ring(), on_ring(0), end=on_ring(90), training=CurveTraining(steps=50, lr=1e9), seed=0
        )


# --- curvature maps -----------------------------------------------------------------------------


def test_curvature_map_of_a_quadratic_is_flat_at_its_extreme_eigenvalues():
    risk, _, _ = quadratic([3.0, 1.0, 0.2, -0.5])
    ds = measure.curvature_map(risk, risk.theta, points=3, one_d="random", seed=0)
    np.testing.assert_allclose(ds.eigenvalue_max, 3.0, rtol=1e-6)
    np.testing.assert_allclose(ds.eigenvalue_min, -0.5, rtol=1e-6)
    np.testing.assert_allclose(ds.non_convexity, 0.5 / 3, rtol=1e-6)
    assert ds.converged.all()
    assert (ds.residual_max < 1e-6).all()


def test_paths_and_maps_state_objective_mode_and_axes():
    model = cnn()
    risk = EmpiricalRisk(
        model, nn.CrossEntropyLoss(), images(), weight_decay=0.3, dtype=torch.float64
    )
    a, b, c = risk.theta, risk.theta + 1, risk.theta**2
    how = CurveTraining(steps=1, batch_size=8)
    made = [
        measure.barrier_matrix(risk, {"a": a, "b": b}, points=3),
        measure.barrier(risk, a, others={"b": b}, points=3),
        measure.bezier(risk, a, end=b, training=how, points=3, seed=0),
        measure.interpolation(risk, a, end=b, points=3),
        measure.three_points(risk, {"a": a, "b": b, "c": c}, cells=1, margin=0),
        measure.trajectory(risk, [b, c, a]),
        measure.curvature_map(risk, a, points=3, radius=0.1, max_hvps=4, seed=0),
    ]
    for ds in made:
        says = results.provenance(ds)
        assert says["objective"] == "mean CrossEntropyLoss + ½·0.3·‖θ‖²"
        assert says["bn"] == ("eval" if ds is made[-1] else "recalibrate")
    drawn = plane.random(risk, a, num_directions=2, seed=0)
    assert float(made[-1].axis_cosine) == pytest.approx(float(drawn.cosines[0, 1]))
    assert float(made[-1].beta_norm) == pytest.approx(float(drawn.norms[1]))
    assert float(made[-2].largest_cosine) < 1e-12


def test_curvature_map_of_a_ring_follows_its_closed_form():
    """Hessian of (‖w‖² - 1)² is 4(‖w‖² - 1) I + 8 w wᵀ: 12 r² - 4 along w, 4(r² - 1) across."""
    eye = torch.eye(3, dtype=torch.float64)
    theta, axes = eye[0], plane.Plane(eye[0], eye[:2], "own", ("u", "v"))
    ds = measure.curvature_map(ring(size=3), theta, directions=axes, radius=0.4, points=3, seed=0)
    for i, alpha in enumerate(ds.alpha.values):
        for j, beta in enumerate(ds.beta.values):
            square = (1 + alpha) ** 2 + beta**2
            assert float(ds.eigenvalue_max[i, j]) == pytest.approx(12 * square - 4, rel=1e-6)
            assert float(ds.eigenvalue_min[i, j]) == pytest.approx(4 * (square - 1), abs=1e-6)
            low = 4 * (square - 1)
            ratio = abs(low) / (12 * square - 4) if low < 0 else 0
            assert float(ds.non_convexity[i, j]) == pytest.approx(ratio, abs=1e-6)


def test_curvature_map_brackets_torchs_own_hessian_on_a_network():
    risk, _ = cnn_risk()
    ds = measure.curvature_map(risk, risk.theta, points=3, radius=0.3, max_hvps=400, seed=0)
    axes = plane.random(risk, risk.theta, num_directions=2, seed=0)
    point = axes.point(0.3, -0.3)
    identity = torch.eye(len(point), dtype=torch.float64)
    values = torch.linalg.eigvalsh(risk.hvp(point, identity))
    for found, exact, bound in (
        (ds.eigenvalue_max, values[-1], ds.residual_max),
        (ds.eigenvalue_min, values[0], ds.residual_min),
    ):
        assert abs(float(found[2, 0]) - float(exact)) <= float(bound[2, 0]) + 1e-10
    assert ds.converged.all()


def test_curvature_maps_keep_what_has_no_curvature_as_nan_and_refuse_recalibration():
    risk, _, _ = quadratic([1.0, 2.0, 3.0])
    axes = 1e153 * torch.eye(3, dtype=torch.float64)[:2]
    far = plane.Plane(risk.theta, axes, "far", ("u", "v"))
    ds = measure.curvature_map(risk, risk.theta, directions=far, radius=99, points=3, seed=0)
    assert np.isfinite(ds.eigenvalue_max[1, 1])
    assert int(np.isnan(ds.eigenvalue_max).sum()) == 8
    assert int(np.isinf(ds.loss).sum()) == 8
    assert not ds.converged[0, 0]
    with pytest.raises(LandscapeError, match="choose one of 'eval', 'full_batch"):
        measure.curvature_map(risk, risk.theta, bn="recalibrate", seed=0)
