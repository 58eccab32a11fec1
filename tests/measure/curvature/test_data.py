"""Mini-batch spectra, the data bracket, critical sharpness and edges of stability: closed forms."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from landscape import EmpiricalRisk, LandscapeError, measure, results, sam
from landscape.measure.curvature.operator import Operator
from landscape.measure.measuring import generator
from tests.measure_problems import cnn_risk, images, quadratic

F64 = torch.float64


def regression(n=40, p=4, *, seed=0, scales=(2.0, 1.0, 0.5, 0.2)):
    """½·mean (Xw - y)²: H of any rows is X_BᵀX_B / B, whatever w."""
    g = torch.Generator().manual_seed(seed)
    X = torch.randn(n, p, generator=g, dtype=F64) * torch.tensor(scales, dtype=F64)[:p]
    y = torch.randn(n, 1, generator=g, dtype=F64)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Linear(p, 1, bias=False).double()

    def loss(output, target):
        return 0.5 * (output - target).square().sum(1)

    return EmpiricalRisk(model, loss, (X, y)), X, y


def test_a_subset_is_the_risk_of_its_rows():
    for bn in ("eval", "full_batch"):
        risk, model = cnn_risk(bn)
        rows = torch.tensor([5, 2, 11, 7, 20])
        x, y = images()
        direct = EmpiricalRisk(model, nn.CrossEntropyLoss(), (x[rows], y[rows]), bn=bn)
        part = risk.subset(rows)
        assert part.num_examples == 5
        torch.testing.assert_close(part.losses(risk.theta), direct.losses(risk.theta))
        torch.testing.assert_close(part.gradient(risk.theta), direct.gradient(risk.theta))
        v = torch.ones_like(risk.theta)
        torch.testing.assert_close(part.hvp(risk.theta, v), direct.hvp(risk.theta, v))
    batches = [(x[:7], y[:7]), (x[7:], y[7:])]
    cut = EmpiricalRisk(model, nn.CrossEntropyLoss(), batches, bn="eval").subset(rows)
    torch.testing.assert_close(cut.losses(risk.theta), direct.with_bn("eval").losses(risk.theta))
    for bad in ([], [24], [-1]):
        with pytest.raises(LandscapeError, match="rows asked of 24 examples"):
            risk.subset(torch.tensor(bad))


def test_minibatch_eigenvalues_of_regression_are_those_of_its_rows():
    risk, X, _ = regression()
    ds = measure.minibatch_eigenvalues(risk, risk.theta, batch_size=8, k=2, seed=3)
    order = torch.randperm(40, generator=generator(3))
    exact = [torch.linalg.eigvalsh(X[rows].T @ X[rows] / 8).flip(0)[:2] for rows in order.split(8)]
    np.testing.assert_allclose(ds["eigenvalue"], torch.stack(exact), rtol=1e-7)
    assert ds["converged"].all()
    assert ds["eigenvalue"].dims == ("batch", "rank")
    # λ₁ is convex, so the mean over batches of a partition is at least that of the whole.
    whole = float(torch.linalg.eigvalsh(X.T @ X / 40)[-1])
    assert float(ds["eigenvalue"].isel(rank=0).mean()) > whole
    assert results.provenance(ds)["weight_decay"] == 0.0
    few = measure.minibatch_eigenvalues(risk, risk.theta, batch_size=9, num_batches=3, seed=3)
    assert few.sizes["batch"] == 3


@pytest.mark.thorough
@pytest.mark.parametrize("bn", ["eval", "full_batch"])
def test_minibatch_eigenvalues_of_a_cnn_match_dense_matrices(bn):
    risk, model = cnn_risk(bn)
    x, y = images()
    before = risk.cost
    ds = measure.minibatch_eigenvalues(risk, risk.theta, batch_size=12, seed=0)
    spent = risk.cost - before
    order = torch.randperm(24, generator=generator(0))
    for number, rows in enumerate(order.split(12)):
        part = EmpiricalRisk(model, nn.CrossEntropyLoss(), (x[rows], y[rows]), bn=bn)
        H = part.hvp(part.theta, torch.eye(len(part.theta), dtype=F64))
        top = float(torch.linalg.eigvalsh(H)[-1])
        assert float(ds["eigenvalue"][number, 0]) == pytest.approx(top, rel=1e-6)
    H = risk.hvp(risk.theta, torch.eye(len(risk.theta), dtype=F64))
    whole = float(torch.linalg.eigvalsh(H)[-1])
    assert float(ds["whole_eigenvalue"][0]) == pytest.approx(whole, rel=1e-6)
    # Products on half of the examples and on all, two gradients each; three graphs; one loss.
    products = int(ds["num_hvps"].sum()) / 2 + int(ds["whole_num_hvps"])
    assert spent == pytest.approx(2 * products + 2 + 1 / 3, rel=0.05)


def test_weight_decay_shifts_minibatch_eigenvalues_by_its_constant():
    plain, _ = cnn_risk()
    decayed = EmpiricalRisk(cnn_risk()[1], nn.CrossEntropyLoss(), images(), weight_decay=2.0)
    first, second = (
        measure.minibatch_eigenvalues(r, r.theta, batch_size=12, seed=0) for r in (plain, decayed)
    )
    np.testing.assert_allclose(second["eigenvalue"], first["eigenvalue"] + 2, rtol=1e-6)


def test_bracket_of_regression_holds_the_populations_eigenvalue_on_average():
    """E H = diag(scales²): λ₁ = 4 lies between the means of both bounds."""
    lower, upper = [], []
    for seed in range(12):
        risk, X, _ = regression(n=30, seed=seed)
        ds = measure.data_bracket(risk, risk.theta, num_folds=3, seed=seed)
        order = torch.randperm(30, generator=generator(seed))
        folds = torch.tensor_split(order, 3)
        rest = X[torch.cat(folds[1:])]
        v = torch.linalg.eigh(rest.T @ rest / 20).eigenvectors[:, -1]
        assert float(ds["fold_lower"][0]) == pytest.approx(
            float((X[folds[0]] @ v).square().mean()), rel=1e-5
        )
        assert float(ds["upper"]) == pytest.approx(
            float(torch.linalg.eigvalsh(X.T @ X / 30)[-1]), rel=1e-7
        )
        assert float(ds["lower_spread"]) == pytest.approx(
            float(ds["fold_lower"].std(ddof=1)) / 3**0.5
        )
        lower.append(float(ds["lower"]))
        upper.append(float(ds["upper"]))
    error = 2 * np.std(lower, ddof=1) / 12**0.5
    assert np.mean(lower) - error < 4 < np.mean(upper) + error
    assert np.mean(lower) < np.mean(upper)


def test_a_bracket_closes_with_the_size_of_its_subsets():
    """The mean λ₁ over a partition cannot rise when its parts are merged: λ₁ is convex."""
    risk, X, _ = regression(n=48)
    ds = measure.data_bracket(risk, risk.theta, num_folds=2, num_subsets=16, seed=0)
    assert list(ds["sample_size"].values) == [3, 6, 12, 24]
    inside, outside = ds["sized_eigenvalue"], ds["sized_held_out"]
    assert list(inside.notnull().sum("batch").values) == [16, 8, 4, 2]
    falling = [*inside.mean("batch").values, float(ds["upper"])]
    assert all(a >= b - 1e-9 for a, b in pairwise(falling))
    rows = torch.randperm(48, generator=generator(0))
    A, B = X[rows[12:24]], X[torch.cat([rows[:12], rows[24:]])]
    values, V = torch.linalg.eigh(A.T @ A / 12)
    at = ds.sel(sample_size=12, batch=1)
    assert float(at["sized_eigenvalue"]) == pytest.approx(float(values[-1]), rel=1e-6)
    exact = float((B @ V[:, -1]).square().mean())
    assert float(at["sized_held_out"]) == pytest.approx(exact, rel=1e-5)
    assert (outside.isel(sample_size=0) < falling[0]).all()
    for bad in ([0], [48], [4, 60]):
        with pytest.raises(LandscapeError, match="choose 1 to 47, so that some are left"):
            measure.data_bracket(risk, risk.theta, sizes=bad, seed=0)


def test_data_bracket_of_a_cnn_and_its_refusals():
    risk, _ = cnn_risk()
    ds = measure.data_bracket(risk, risk.theta, num_folds=2, sizes=[12], num_subsets=1, seed=0)
    assert float(ds["lower"]) < float(ds["upper"])
    assert (ds["subset_size"] == 12).all()
    assert ds["converged"].all()
    coupled, _ = cnn_risk("full_batch")
    with pytest.raises(LandscapeError, match="no mean over them"):
        measure.data_bracket(coupled, coupled.theta, seed=0)
    with pytest.raises(LandscapeError, match="num_folds=30 asked of 24 examples"):
        measure.data_bracket(risk, risk.theta, num_folds=30, seed=0)
    with pytest.raises(LandscapeError, match=r"num_folds=.* give a whole number >= 2"):
        measure.data_bracket(risk, risk.theta, num_folds=1, seed=0)
    with pytest.raises(LandscapeError, match="batch_size=25 was asked of 24 examples"):
        measure.minibatch_eigenvalues(risk, risk.theta, batch_size=25, seed=0)


# --- critical sharpness ------------------------------------------------------------------------


@pytest.mark.parametrize("first_step", [1e-4, 1e-2, 30.0])
def test_critical_sharpness_of_a_quadratic_is_its_rayleigh_quotient(first_step):
    """GᵀHg/‖g‖² <= λ₁ (arXiv:2601.16979)."""
    risk, H, _ = quadratic([5.0, 3.0, 1.0, 0.5])
    ds = measure.critical_sharpness(risk, risk.theta, first_step=first_step, tolerance=1e-8)
    g = risk.gradient(risk.theta)
    exact = float(g @ H @ g / (g @ g))
    assert float(ds["critical_sharpness"]) == pytest.approx(exact, rel=1e-7)
    assert float(ds["critical_sharpness"]) <= 5
    assert 2 / float(ds["rate_upper"]) <= exact <= 2 / float(ds["rate_lower"])
    assert bool(ds["bracketed"])


def test_critical_sharpness_along_an_update_and_where_there_is_none():
    risk, H, _ = quadratic([5.0, 3.0, 1.0, 0.5])
    theta = risk.theta
    g = risk.gradient(theta)
    d = g.sign()
    exact = float((d @ H @ d) / (g @ d))
    ds = measure.critical_sharpness(risk, theta, direction=d, tolerance=1e-8)
    assert float(ds["critical_sharpness"]) == pytest.approx(exact, rel=1e-7)
    uphill = measure.critical_sharpness(risk, theta, direction=-g)
    assert not bool(uphill["bracketed"])
    assert math.isinf(float(uphill["critical_sharpness"]))
    flat, _, _ = quadratic([0.0, 0.0], linear=None)
    with pytest.raises(LandscapeError, match="along a zero direction"):
        measure.critical_sharpness(flat, flat.theta)
    down, _, _ = quadratic([-1.0, -2.0])
    free = measure.critical_sharpness(down, down.theta)
    assert float(free["critical_sharpness"]) == pytest.approx(0, abs=1e-20)
    assert not bool(free["bracketed"])
    with pytest.raises(LandscapeError, match=r"tolerance=2\.0"):
        measure.critical_sharpness(risk, theta, tolerance=2.0)
    with pytest.raises(LandscapeError, match=r"direction has shape \(2,\)"):
        measure.critical_sharpness(risk, theta, direction=torch.ones(2))


def test_critical_sharpness_needs_no_second_derivative():
    risk, _ = cnn_risk("full_batch")
    top = measure.top_eigenvalues(risk, risk.theta, k=1, seed=0)
    ds = measure.critical_sharpness(risk, risk.theta)
    assert bool(ds["bracketed"])
    assert 0 < float(ds["critical_sharpness"]) < 5 * float(top["eigenvalue"][0])
    rate = float(ds["rate_upper"])
    assert risk.loss(risk.theta - rate * risk.gradient(risk.theta)) > float(ds["loss"])


# --- edges of stability ------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(
    gradient=st.floats(1e-6, 1e3),
    lr=st.floats(1e-4, 1.0),
    rho=st.floats(1e-4, 1.0),
    momentum=st.sampled_from([0.0, 0.9]),
)
def test_edge_of_sam_solves_its_equation(gradient, lr, rho, momentum):
    """Where eta λ (1 + rho λ / ‖g‖) = 2 (1 + beta)."""
    edge = measure.sam_edge(gradient, lr=lr, rho=rho, momentum=momentum)
    left = lr * edge * (1 + rho * edge / gradient)
    assert left == pytest.approx(2 * (1 + momentum), rel=1e-9)
    assert edge < measure.sgd_edge(lr, momentum=momentum)


def test_edge_of_sam_in_its_limits():
    assert measure.sam_edge(1.0, lr=0.1, rho=0.0) == 20.0
    assert measure.sam_edge(1.0, lr=0.1, rho=1e-14) == pytest.approx(20.0)
    assert measure.sam_edge(0.0, lr=0.1, rho=0.1) == 0.0
    assert measure.sam_edge(1.0, lr=0.0, rho=0.1) == math.inf
    printed = 0.5 / (2 * 0.1) * (math.sqrt(1 + 8 * 0.1 / (0.05 * 0.5)) - 1)
    assert measure.sam_edge(0.5, lr=0.05, rho=0.1) == pytest.approx(printed)


def test_gradient_descent_diverges_above_its_edge_and_not_below():
    for factor, grows in ((0.99, False), (1.01, True)):
        for momentum in (0.0, 0.9):
            lr = 0.1
            curvature = factor * measure.sgd_edge(lr, momentum=momentum)
            x, velocity = 1.0, 0.0
            for _ in range(4000):
                velocity = momentum * velocity + curvature * x
                x -= lr * velocity
                if abs(x) > 1e6:
                    break
            assert (abs(x) > 1) == grows


def test_curvature_along_training_with_its_lines():
    risk, _ = cnn_risk("full_batch")
    theta, points = risk.theta, []
    for _ in range(3):
        points.append(theta)
        theta = theta - 0.1 * risk.gradient(theta)
    ds = measure.training_curvature(
        risk, points, lr=[0.1, 0.1, 0.05], rho=0.2, momentum=0.5, epochs=[0, 2, 4], k=2, seed=0
    )
    for number, point in enumerate(points):
        H = Operator.of(risk, point)(torch.eye(len(point), dtype=F64))
        exact = torch.linalg.eigvalsh(H).flip(0)[:2]
        np.testing.assert_allclose(ds["eigenvalue"][number], exact, rtol=1e-6)
        norm = float(risk.gradient(point).norm())
        assert float(ds["gradient_norm"][number]) == pytest.approx(norm)
        rate = [0.1, 0.1, 0.05][number]
        assert float(ds["sgd_edge"][number]) == pytest.approx(3 / rate)
        assert float(ds["sam_edge"][number]) == pytest.approx(
            measure.sam_edge(norm, lr=rate, rho=0.2, momentum=0.5)
        )
    np.testing.assert_allclose(ds["plain_edge"], [20, 20, 40])
    assert ds["converged"].all()
    assert list(ds["epoch"].values) == [0, 2, 4]
    plain = measure.training_curvature(risk, points[:1], lr=0.1, seed=0)
    assert np.isnan(plain["sam_edge"]).all()


def test_checkpoints_may_bring_their_own_running_statistics():
    """At another checkpoint's statistics the same weights have another Hessian."""
    first, _ = cnn_risk(seed=0)
    _, model = cnn_risk(seed=3)
    with torch.no_grad():
        model[1].running_var.mul_(9)
    second = EmpiricalRisk(model, nn.CrossEntropyLoss(), images())
    mixed = measure.training_curvature(first, [first.theta, second.theta], lr=0.1, seed=0)
    before = first.cost
    own = measure.training_curvature(first, [first, second], lr=0.1, seed=0)
    assert results.provenance(own)["cost_gradients"] == pytest.approx(first.cost - before, abs=0.01)
    for number, risk in enumerate((first, second)):
        alone = measure.top_eigenvalues(risk, risk.theta, k=1, seed=number)
        assert float(own["eigenvalue"][number, 0]) == pytest.approx(
            float(alone["eigenvalue"][0]), rel=1e-6
        )
    assert float(mixed["eigenvalue"][0, 0]) == pytest.approx(float(own["eigenvalue"][0, 0]))
    assert float(mixed["eigenvalue"][1, 0]) != pytest.approx(
        float(own["eigenvalue"][1, 0]), rel=0.01
    )


def single_cnn():
    """The network in float32 and its twin in float64, at the same weights and data."""
    _, model = cnn_risk()
    x, y = images()
    single = EmpiricalRisk(model.float(), nn.CrossEntropyLoss(), (x.float(), y))
    return single, single.with_dtype(F64)


def test_residuals_of_float32_searches_hold_an_exact_eigenvalue():
    """Made in float64 (Parlett, ch. 11), they bound the distance to the exact spectrum."""
    single, double = single_cnn()
    theta = double.theta

    def distance(exact, values):
        return np.abs(np.asarray(values)[..., None] - exact).min(-1)

    exact = torch.linalg.eigvalsh(Operator.of(double, theta)(torch.eye(len(theta), dtype=F64)))
    exact, tiny = exact.numpy(), 1e-12 * float(exact[-1])
    variants = {"SAM": sam.sam(rho=0.1)}
    for ds in (
        measure.training_curvature(single, [single.theta], lr=0.1, k=2, seed=0),
        measure.alignment(single, single.theta, variants=variants, k=2, seed=0),
    ):
        found = distance(exact, ds["eigenvalue"])
        assert (found <= ds["residual_norm"].values + tiny).all()
    ds = measure.minibatch_eigenvalues(single, single.theta, batch_size=24, seed=0)
    assert (distance(exact, ds["eigenvalue"]) <= ds["residual_norm"].values + tiny).all()
    ds = measure.data_bracket(single, single.theta, num_folds=2, sizes=[12], seed=0)
    assert distance(exact, ds["upper"]) <= float(ds["upper_residual_norm"]) + tiny
    ds = measure.crosscheck(single, single.theta, num_probes=2, seed=0)
    assert distance(exact, ds["landscape_eigenvalue"]) <= float(ds["residual_norm"]) + tiny
    for call in (
        lambda: measure.crosscheck(single, theta, certify="working", seed=0),
        lambda: measure.data_bracket(single, theta, certify="working", seed=0),
        lambda: measure.minibatch_eigenvalues(single, theta, certify="working", seed=0),
        lambda: measure.training_curvature(single, [theta], lr=0.1, certify="working", seed=0),
        lambda: measure.alignment(single, theta, variants=variants, certify="working", seed=0),
    ):
        with pytest.raises(LandscapeError, match="certify='working' is unknown; choose one of"):
            call()


def test_impossible_trainings_are_refused():
    risk, _ = cnn_risk()
    theta = risk.theta
    with pytest.raises(LandscapeError, match="got no checkpoint"):
        measure.training_curvature(risk, [], lr=0.1, seed=0)
    with pytest.raises(LandscapeError, match=r"lr=\[0.1\] given for 2 checkpoints"):
        measure.training_curvature(risk, [theta, theta], lr=[0.1], seed=0)
    with pytest.raises(LandscapeError, match="1 epochs given for 2 checkpoints"):
        measure.training_curvature(risk, [theta, theta], lr=0.1, epochs=[1], seed=0)
    with pytest.raises(LandscapeError, match=r"rho=-1\.0, momentum=0\.0 given"):
        measure.training_curvature(risk, [theta], lr=0.1, rho=-1.0, seed=0)


def test_a_generator_of_checkpoints_is_named():
    risk, _, _ = quadratic([3.0, 1.0])
    with pytest.raises(LandscapeError, match="got generator, whose length is not known"):
        measure.training_curvature(risk, (risk.theta for _ in range(2)), lr=0.1, rho=0.05, seed=0)
