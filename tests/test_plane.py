"""Directions: norms of filters, shared draws, planes through points, trajectories."""

import pytest
import torch
from torch import nn

from landscape import LandscapeError, ParamLayout, plane
from tests.measure_problems import cnn, cnn_risk, quadratic


def rows_of(layout, flat, name):
    tensor = next(t for t in layout.tensors if t.name == name)
    return flat[tensor.start : tensor.stop].view(tensor.shape)


def transposed_net(groups=1):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.ConvTranspose2d(4, 6, 3, groups=groups), nn.Flatten(), nn.Linear(6, 2)
        ).double()


def test_filter_normalized_directions_have_the_norms_of_the_filters():
    risk, _ = cnn_risk()
    p = plane.random(risk, risk.theta, num_directions=3, seed=5)
    for d in p.directions:
        for name in ("0.weight", "3.weight", "8.weight"):
            w, v = (rows_of(risk.layout, x, name).flatten(1) for x in (risk.theta, d))
            torch.testing.assert_close(v.norm(dim=1), w.norm(dim=1), rtol=1e-12, atol=0)
        for tensor in risk.layout.tensors:
            if tensor.ndim == 1:
                assert not d[tensor.start : tensor.stop].any()


def test_equality_with_the_rule_of_li_et_al_on_the_same_draws():
    """Loop of arXiv:1712.09913, section 4: d_ij <- d_ij / ‖d_ij‖ · ‖w_ij‖, biases and BN zero."""
    model = cnn()
    layout = ParamLayout.of(model)
    theta = layout.flatten(dict(model.named_parameters())).detach()
    draw = torch.randn(len(theta), generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    expected = {}
    for name, d in layout.unflatten(draw.clone()).items():
        w = rows_of(layout, theta, name)
        if d.dim() <= 1:
            expected[name] = torch.zeros_like(d)
        else:
            expected[name] = torch.stack(
                [df * (wf.norm() / (df.norm() + 1e-10)) for df, wf in zip(d, w, strict=True)]
            )
    p = plane.random(model, theta, num_directions=1, seed=7)
    torch.testing.assert_close(p.directions[0], layout.flatten(expected), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("groups", [1, 2])
def test_filters_of_transposed_convolutions_are_output_channels(groups):
    model = transposed_net(groups)
    layout = ParamLayout.of(model)
    theta = layout.flatten(dict(model.named_parameters())).detach()
    d = plane.random(model, theta, num_directions=1, seed=0).directions[0]
    w, v = (rows_of(layout, x, "0.weight") for x in (theta, d))
    for group in range(groups):
        inputs = slice(group * 4 // groups, (group + 1) * 4 // groups)
        for out in range(6 // groups):
            torch.testing.assert_close(v[inputs, out].norm(), w[inputs, out].norm())


def test_filters_of_other_tensors_drop_leading_axes_of_one():
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.position = nn.Parameter(torch.arange(1.0, 13.0).view(1, 3, 4))
            self.token = nn.Parameter(torch.ones(1, 1, 4))
            self.lookup = nn.Embedding(5, 4)

    model = Tokens()
    layout = ParamLayout.of(model)
    theta = layout.flatten(dict(model.named_parameters())).detach()
    d = plane.random(model, theta, num_directions=1, seed=0).directions[0]
    w, v = (rows_of(layout, x, "position")[0] for x in (theta, d))
    torch.testing.assert_close(v.norm(dim=1), w.norm(dim=1))
    assert not rows_of(layout, d, "token").any()
    w, v = (rows_of(layout, x, "lookup.weight") for x in (theta, d))
    torch.testing.assert_close(v.norm(dim=1), w.norm(dim=1))


def test_other_normalizations():
    risk, _ = cnn_risk()
    make = lambda **options: plane.random(  # noqa: E731
        risk, risk.theta, num_directions=1, seed=0, **options
    ).directions[0]
    layer = make(normalize="layer")
    for tensor in risk.layout.tensors:
        w, v = (x[tensor.start : tensor.stop] for x in (risk.theta, layer))
        expected = w.norm() if tensor.ndim > 1 else 0.0
        assert float(v.norm()) == pytest.approx(float(expected))
    assert float(make(normalize="global").norm()) == pytest.approx(float(risk.theta.norm()))
    dense = make(one_d="random")
    bias = next(t for t in risk.layout.tensors if t.name == "8.bias")
    w, v = (x[bias.start : bias.stop] for x in (risk.theta, dense))
    assert float(v.norm()) == pytest.approx(float(w.norm()))
    twice = make(reference=2 * risk.theta)
    torch.testing.assert_close(twice, 2 * make())


def test_draws_are_shared_between_models_dtypes_and_numbers_of_directions():
    risk, _ = cnn_risk()
    other, _ = cnn_risk(seed=9)
    raw = [
        plane.random(r, r.theta, num_directions=n, normalize="none", seed=3).directions
        for r, n in ((risk, 4), (other, 2))
    ]
    assert torch.equal(raw[0][:2], raw[1])
    single = plane.random(
        risk.layout, risk.theta.float(), num_directions=1, normalize="none", seed=3
    )
    assert torch.equal(single.directions[0], raw[0][0].float())
    cosines = plane.random(risk, risk.theta, num_directions=4, seed=3).cosines
    assert torch.allclose(cosines.diag(), torch.ones(4, dtype=torch.float64))
    assert (cosines - torch.eye(4)).abs().max() < 0.3


def test_points_and_coordinates_are_inverse_on_oblique_axes():
    g = torch.Generator().manual_seed(0)
    a, b, c = torch.randn(3, 50, generator=g, dtype=torch.float64)
    p = plane.through(a, b, c)
    for point, expected in ((a, (0, 0)), (b, (1, 0)), (c, (0, 1)), (p.point(0.3, -2.0), (0.3, -2))):
        found, distance = p.coordinates(point)
        assert found.tolist() == pytest.approx(expected, abs=1e-10)
        assert distance < 1e-10
    torch.testing.assert_close(p.point(1.0, 0.0), b, rtol=1e-14, atol=1e-14)
    assert torch.equal(p.point(), a)
    assert torch.equal(p.point(0.0, 0.0), a)
    line = plane.interpolation(a, b)
    torch.testing.assert_close(line.point(0.5), (a + b) / 2)


def test_eigenvector_and_gradient_axes_are_unit_vectors_along_the_gradient():
    g = torch.Generator().manual_seed(0)
    theta, gradient = torch.randn(2, 20, generator=g, dtype=torch.float64)
    vectors = torch.randn(2, 20, generator=g, dtype=torch.float64)
    p = plane.eigenvectors(theta, vectors, gradient=gradient)
    assert p.norms.tolist() == pytest.approx([1, 1])
    assert (p.directions @ gradient >= 0).all()
    assert float(plane.gradient(theta, gradient).directions[0] @ gradient) == pytest.approx(
        float(gradient.norm())
    )


def test_perturbation_axes_can_be_made_orthogonal():
    g = torch.Generator().manual_seed(0)
    theta, first, second = torch.randn(3, 20, generator=g, dtype=torch.float64)
    plain = plane.perturbations(theta, {"sam": first, "zsharp": first + 1e-6 * second})
    assert float(plain.cosines[0, 1]) == pytest.approx(1.0, abs=1e-9)
    square = plane.perturbations(
        theta, {"sam": first, "zsharp": first + 1e-6 * second}, orthogonalize=True
    )
    assert abs(float(square.cosines[0, 1])) < 1e-9
    assert square.labels == ("sam", "zsharp")


def test_trajectory_of_collinear_checkpoints_explains_everything_with_one_axis():
    g = torch.Generator().manual_seed(0)
    start, step, side = torch.randn(3, 30, generator=g, dtype=torch.float64)
    points = [start + t * step for t in (0.0, 1.0, 3.0, 4.0)]
    line = plane.trajectory([*points], num_directions=1)
    assert line.details["explained_share"] == pytest.approx([1.0])
    assert line.details["residual"] == pytest.approx([0.0] * 4, abs=1e-7)
    expected = [4 * float(step.norm()), 3 * float(step.norm()), float(step.norm()), 0.0]
    assert [row[0] for row in line.details["coordinates"]] == pytest.approx(expected, abs=1e-9)
    bent = plane.trajectory([start + side, *points], num_directions=2)
    assert sum(bent.details["explained_share"]) == pytest.approx(1.0)
    assert bent.details["residual"] == pytest.approx([0.0] * 5, abs=1e-6)
    assert torch.equal(bent.origin, points[-1])


def test_fingerprint_tells_planes_apart():
    risk, _ = cnn_risk()
    one = plane.random(risk, risk.theta, num_directions=1, seed=0)
    assert (
        one.fingerprint() == plane.random(risk, risk.theta, num_directions=1, seed=0).fingerprint()
    )
    assert (
        one.fingerprint() != plane.random(risk, risk.theta, num_directions=1, seed=1).fingerprint()
    )
    assert one.provenance()["normalize"] == "filter"


def test_bad_planes_are_refused():
    a = torch.ones(3)
    with pytest.raises(LandscapeError, match="lie on one line"):
        plane.through(a, 2 * a, 3 * a)
    with pytest.raises(LandscapeError, match=r"norm 0\.0"):
        plane.interpolation(a, a)
    with pytest.raises(LandscapeError, match="do not fit an origin"):
        plane.Plane(a, torch.ones(1, 4), "x", ("x",))
    with pytest.raises(LandscapeError, match="3 directions asked of 2 checkpoints"):
        plane.trajectory([a, 2 * a], num_directions=3)
    risk, _ = cnn_risk()
    with pytest.raises(LandscapeError, match="choose one of filter, layer, global, none"):
        plane.random(risk, risk.theta, num_directions=1, normalize="rows", seed=0)
    with pytest.raises(LandscapeError, match="choose one of zero, random"):
        plane.random(risk, risk.theta, num_directions=1, one_d="copy", seed=0)
    with pytest.raises(LandscapeError, match="num_directions=0"):
        plane.random(risk, risk.theta, num_directions=0, seed=0)
    flat, _, _ = quadratic([1.0, 2.0])
    with pytest.raises(LandscapeError, match="leaves nothing of the 1 trainable tensors"):
        plane.random(flat, flat.theta, num_directions=1, seed=0)
    with pytest.raises(LandscapeError, match="same architecture"):
        plane.random(risk, risk.theta, num_directions=1, reference=risk.theta[:3], seed=0)
