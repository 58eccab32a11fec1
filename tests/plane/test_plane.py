"""Directions: norms of filters, shared draws, planes through points, trajectories."""

import numpy as np
import pytest
import torch
from torch import nn

from landscape import EmpiricalRisk, LandscapeError, ParamLayout, measure, plane, seeds
from tests.measure_problems import cnn, cnn_risk, images, quadratic


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
    source = seeds.generator(7, purpose="directions")
    draw = torch.randn(len(theta), generator=source, dtype=torch.float64)
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


def test_orthogonal_axes_are_a_choice_that_is_stated():
    risk, _ = cnn_risk()
    made = plane.random(risk, risk.theta, num_directions=3, seed=3)
    assert made.largest_cosine == float((made.cosines - torch.eye(3)).abs().max()) > 1e-3
    square = plane.orthogonalized(made)
    assert square.largest_cosine < 1e-14
    torch.testing.assert_close(square.norms, made.norms, rtol=1e-14, atol=0)
    assert torch.equal(square.directions[0], made.directions[0]) or torch.allclose(
        square.directions[0], made.directions[0], rtol=1e-14
    )
    # What Gram-Schmidt takes away lies along the first direction alone.
    first, second = made.directions[:2]
    left = second - (second @ first) / (first @ first) * first
    along = torch.nn.functional.cosine_similarity(left, square.directions[1], dim=0)
    assert float(along) == pytest.approx(1, abs=1e-14)
    assert [p.provenance()["orthogonalized"] for p in (made, square)] == [False, True]
    ds = measure.loss_plane(
        risk, risk.theta, directions=plane.Plane(*_first_two(square)), points=3, seed=0
    )
    assert abs(float(ds.axis_cosine)) < 1e-14
    one = plane.random(risk, risk.theta, num_directions=1, seed=3)
    assert np.isnan(one.largest_cosine)
    row = one.directions[0]
    line = plane.Plane(risk.theta, torch.stack([row, 2 * row]), "own", ("d", "e"))
    with pytest.raises(LandscapeError, match="The direction 'e' lies along the ones before it"):
        plane.orthogonalized(line)


def _first_two(p):
    return p.origin, p.directions[:2], p.kind, p.labels[:2], p.details


def test_collinear_checkpoints_leave_a_second_axis_that_is_named_random():
    g = torch.Generator().manual_seed(0)
    start, step = torch.randn(2, 30, generator=g, dtype=torch.float64)
    for dtype in (torch.float64, torch.float32):
        line = plane.trajectory([(start + t * step).to(dtype) for t in (0.0, 1.0, 3.0, 4.0)])
        assert line.details["explained_share"] == pytest.approx([1.0, 0.0], abs=1e-10)
        assert abs(float(line.cosines[0, 1])) < 1e-6
        assert line.norms.tolist() == pytest.approx([1, 1])
    exact = plane.trajectory([start + t * step for t in (0.0, 1.0, 3.0, 4.0)])
    assert exact.labels == ("principal 1", "random 2 (the checkpoints span 1)")


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


def zoo():
    """One of each kind of tensor."""

    class Zoo(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1 = nn.Conv1d(2, 4, 3)
            self.conv2 = nn.Conv2d(3, 6, 3)
            self.grouped = nn.Conv2d(4, 6, 3, groups=2)
            self.depthwise = nn.Conv2d(5, 5, 3, groups=5)
            self.conv3 = nn.Conv3d(2, 3, 2)
            self.up = nn.ConvTranspose2d(4, 3, 2)
            self.linear = nn.Linear(7, 5)
            self.attention = nn.MultiheadAttention(6, 2)
            self.embedding = nn.Embedding(8, 4)
            self.batch_norm = nn.BatchNorm2d(4)
            self.layer_norm = nn.LayerNorm(5)

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Zoo().double()
        for p in model.parameters():
            p.data.add_(0.1 * torch.randn_like(p))
    return model


# name -> axis of the filters; one_d tensors are one filter.
FILTER_AXIS = {
    "conv1.weight": 0, "conv2.weight": 0, "grouped.weight": 0, "depthwise.weight": 0,
    "conv3.weight": 0, "up.weight": 1, "linear.weight": 0, "attention.in_proj_weight": 0,
    "attention.out_proj.weight": 0, "embedding.weight": 0,
}  # fmt: skip


@pytest.mark.parametrize("one_d", ["zero", "random"])
def test_every_filter_of_every_kind_of_tensor_has_the_norm_of_its_weights(one_d):
    model = zoo()
    layout = ParamLayout.of(model)
    theta = layout.flatten(dict(model.named_parameters())).detach()
    p = plane.random(model, theta, num_directions=2, one_d=one_d, seed=3)
    for d in p.directions:
        for tensor in layout.tensors:
            w, v = (rows_of(layout, x, tensor.name) for x in (theta, d))
            if tensor.ndim == 1:
                assert tensor.name not in FILTER_AXIS
                expected = w.norm() if one_d == "random" else torch.zeros_like(w.norm())
                torch.testing.assert_close(v.norm(), expected)
                continue
            axis = FILTER_AXIS[tensor.name]
            w, v = (x.movedim(axis, 0).flatten(1).norm(dim=1) for x in (w, v))
            torch.testing.assert_close(v, w, rtol=1e-12, atol=0)
    kinds = {tensor.kind for tensor in layout.tensors}
    assert {"conv", "linear", "norm", "bias", "embedding"} <= kinds


def test_one_saved_set_of_directions_serves_every_model(tmp_path):
    risk, _ = cnn_risk()
    other, _ = cnn_risk(seed=9)
    made = plane.random(risk, risk.theta, num_directions=2, seed=3)
    path = plane.save(made, tmp_path / "directions.safetensors")
    again = plane.load(path)
    assert again.fingerprint() == made.fingerprint()
    assert (again.kind, again.labels, again.details) == (made.kind, made.labels, made.details)
    there = plane.shared(again, other, other.theta)
    expected = plane.random(other, other.theta, num_directions=2, seed=3)
    torch.testing.assert_close(there.directions, expected.directions, rtol=1e-12, atol=1e-14)
    assert torch.equal(there.origin, other.theta)
    # One radius for all models.
    common = plane.shared(again, other, other.theta, reference=risk.theta)
    torch.testing.assert_close(common.directions, made.directions, rtol=1e-12, atol=1e-14)


def test_saved_planes_that_are_damaged_or_of_another_model_are_named(tmp_path):
    risk, _ = cnn_risk()
    made = plane.random(risk, risk.theta, num_directions=1, seed=3)
    path = plane.save(made, tmp_path / "plane.safetensors")
    whole = path.read_bytes()
    with pytest.raises(LandscapeError, match=r"none\.safetensors does not exist"):
        plane.load(tmp_path / "none.safetensors")
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(LandscapeError, match="is no whole plane"):
        plane.load(path)
    path.write_bytes(whole[:-8] + b"12345678")
    with pytest.raises(LandscapeError, match="does not hold the plane that was saved"):
        plane.load(path)
    flat, _, _ = quadratic([1.0, 2.0])
    with pytest.raises(LandscapeError, match="The directions have 306 parameters and the model 2"):
        plane.shared(made, flat, flat.theta)


def mlp(*, scale=1.0):
    """A ReLU network whose first layer is multiplied and the second divided by one factor."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Flatten(), nn.Linear(64, 9), nn.ReLU(), nn.Linear(9, 7), nn.ReLU(), nn.Linear(7, 4)
        ).double()
    with torch.no_grad():
        model[1].weight *= scale
        model[1].bias *= scale
        model[3].weight /= scale
    return model


def test_a_relu_layer_rescaled_by_one_factor_has_the_same_filter_normalized_plane():
    """The function is the same and so is its slice; with raw directions it is not."""
    losses = {}
    for normalize in ("filter", "none"):
        for scale in (1.0, 7.0):
            data = images()
            risk = EmpiricalRisk(mlp(scale=scale), nn.CrossEntropyLoss(), data, dtype=torch.float64)
            ds = measure.loss_plane(
                risk, risk.theta, normalize=normalize, points=5, bn="eval", seed=0
            )
            losses[normalize, scale] = ds.loss.values
    np.testing.assert_allclose(losses["filter", 1.0], losses["filter", 7.0], rtol=1e-12)
    assert abs(losses["none", 1.0] - losses["none", 7.0]).max() > 0.1


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
@pytest.mark.parametrize("make", [mlp, cnn])
def test_planes_through_three_points_hit_their_losses(make, dtype, rtol):
    x, y = images()
    loss = nn.CrossEntropyLoss()
    risk = EmpiricalRisk(make().to(dtype), loss, (x.to(dtype), y), dtype=dtype)
    g = torch.Generator().manual_seed(0)
    models = {
        name: risk.theta + 0.2 * torch.randn(risk.theta.shape, generator=g, dtype=dtype)
        for name in ("a", "b", "c")
    }
    ds = measure.three_points(risk, models, cells=2, margin=0.5)
    own = risk.with_bn("recalibrate")
    for name, theta in models.items():
        one = ds.sel(point=name)
        here = ds.loss.sel(alpha=float(one.model_alpha), beta=float(one.model_beta))
        assert float(here) == pytest.approx(float(own.loss(theta)), rel=rtol)
        assert float(one.model_loss) == float(own.loss(theta))


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
    many = torch.randn(10_001, generator=torch.Generator().manual_seed(0))
    with pytest.raises(LandscapeError, match="lie on one line"):
        plane.through(many, 2 * many, 3.1 * many)
    with pytest.raises(LandscapeError, match=r"norm 0\.0"):
        plane.interpolation(a, a)
    with pytest.raises(LandscapeError, match="do not fit an origin"):
        plane.Plane(a, torch.ones(1, 4), "x", ("x",))
    with pytest.raises(LandscapeError, match="3 directions asked of 2 checkpoints"):
        plane.trajectory([a, 2 * a], num_directions=3)
    with pytest.raises(LandscapeError, match="2 directions asked of 0 checkpoints; give at least"):
        plane.trajectory([])
    with pytest.raises(LandscapeError, match="checkpoints have 3, 4 parameters; give those of one"):
        plane.trajectory([a, torch.ones(4), a])
    with pytest.raises(LandscapeError, match="All 3 checkpoints are equal"):
        plane.trajectory([a, a, a])
    with pytest.raises(LandscapeError, match="leave unit=True with it"):
        plane.perturbations(a, {"sam": a}, unit=False, orthogonalize=True)
    with pytest.raises(LandscapeError, match="No perturbations were given"):
        plane.perturbations(a, {})
    with pytest.raises(LandscapeError, match="direction 'asam' lies along the ones before it"):
        plane.perturbations(a, {"sam": a, "asam": -3 * a}, orthogonalize=True)
    for make in (
        lambda: plane.perturbations(a, {"sam": 0 * a}),
        lambda: plane.gradient(a, 0 * a),
        lambda: plane.eigenvectors(a, torch.zeros(1, 3)),
    ):
        with pytest.raises(LandscapeError, match=r"has norm 0\.0; a direction needs a finite"):
            make()
    with pytest.raises(LandscapeError, match=r"eigenvectors have shape \(3,\); give a row"):
        plane.eigenvectors(a, a)
    four = torch.ones(4)
    for make in (
        lambda: plane.through(a, 2 * a, four, labels=("sgd", "sam", "vit")),
        lambda: plane.interpolation(a, four, labels=("sgd", "vit")),
        lambda: plane.perturbations(a, {"sam": a, "vit": four}),
    ):
        with pytest.raises(LandscapeError, match=r"different sizes \(.*vit has 4 parameters\)"):
            make()
    risk, _ = cnn_risk()
    with pytest.raises(LandscapeError, match=r"theta has shape \(3,\) where the model has P = 306"):
        plane.random(risk, a, num_directions=1, seed=0)
    with pytest.raises(LandscapeError, match="choose one of 'filter', 'layer', 'global', 'none'"):
        plane.random(risk, risk.theta, num_directions=1, normalize="rows", seed=0)
    with pytest.raises(LandscapeError, match="choose one of 'zero', 'random'"):
        plane.random(risk, risk.theta, num_directions=1, one_d="copy", seed=0)
    with pytest.raises(LandscapeError, match="num_directions=0"):
        plane.random(risk, risk.theta, num_directions=0, seed=0)
    flat, _, _ = quadratic([1.0, 2.0])
    with pytest.raises(LandscapeError, match="leaves nothing of the 1 trainable tensors"):
        plane.random(flat, flat.theta, num_directions=1, seed=0)
    with pytest.raises(LandscapeError, match="same architecture"):
        plane.random(risk, risk.theta, num_directions=1, reference=risk.theta[:3], seed=0)
