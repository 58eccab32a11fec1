"""Eigenvalues, trace and density of known Hessians, and PyHessian as a second opinion."""

import copy
import sys
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from landscape import EmpiricalRisk, LandscapeError, measure, results
from tests.measure_problems import cnn, cnn_risk, fingerprint, images, quadratic, same

SPECTRUM = [5.0, 3.0, 3.0, 1.0, 0.5, 0.0, -0.2, -4.0]


def dense_hessian(risk):
    eye = torch.eye(len(risk.theta), dtype=torch.float64)
    return risk.hvp(risk.theta, eye)


@pytest.mark.parametrize(
    ("which", "expected"),
    [
        ("largest", [5.0, 3.0, 3.0]),
        ("smallest", [0.0, -0.2, -4.0]),
        ("magnitude", [5.0, 3.0, -4.0]),
    ],
)
def test_eigenvalues_of_a_known_spectrum_with_multiplicities(which, expected):
    risk, _, _ = quadratic(SPECTRUM)
    ds = measure.top_eigenvalues(risk, risk.theta, k=3, which=which, seed=0)
    np.testing.assert_allclose(ds["eigenvalue"], expected, atol=1e-8)
    assert ds["converged"].all()
    assert (ds["residual_norm"] < 1e-5).all()
    assert int(ds["num_hvps"]) > 0


@pytest.mark.parametrize("bn", ["eval", "full_batch"])
def test_top_eigenvalues_agree_with_the_dense_hessian(bn):
    risk, model = cnn_risk(bn)
    before = fingerprint(model)
    ds = measure.top_eigenvalues(risk, risk.theta, k=5, seed=0)
    exact = torch.linalg.eigvalsh(dense_hessian(risk)).flip(0)[:5].numpy()
    np.testing.assert_allclose(ds["eigenvalue"], exact, rtol=1e-6)
    assert (np.abs(ds["eigenvalue"] - exact) <= ds["residual_norm"] + 1e-12).all()
    same(before, fingerprint(model))
    provenance = results.provenance(ds)
    assert provenance["bn"] == bn
    assert provenance["cost_gradients"] > int(ds["num_hvps"])


def mlp():
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = nn.Sequential(
            nn.Flatten(), nn.Linear(64, 5), nn.BatchNorm1d(5), nn.GELU(), nn.Linear(5, 4)
        ).double()
        model(torch.randn(40, 1, 8, 8, dtype=torch.float64))
    return model


class Encoder(nn.Module):
    """Rows of an image as tokens of one attention layer."""

    def __init__(self):
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(8, 2, 6, dropout=0.1, batch_first=True)
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        return self.head(self.layer(x[:, 0]).mean(1))


def encoder():
    with torch.random.fork_rng():
        torch.manual_seed(4)
        return Encoder().double()


def reference_hessian(model, bn, x, y):
    """By torch.func on the caller's model, without any code of ours."""
    model = copy.deepcopy(model).eval()
    if bn == "full_batch":
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.train()
                module.track_running_stats = False
                module.running_mean = module.running_var = None
    named = {name: p.detach() for name, p in model.named_parameters()}
    sizes = [p.numel() for p in named.values()]
    flat = torch.cat([p.reshape(-1) for p in named.values()])

    def loss(theta):
        parts = zip(theta.split(sizes), named.values(), strict=True)
        values = [part.view(p.shape) for part, p in parts]
        output = torch.func.functional_call(model, dict(zip(named, values, strict=True)), (x,))
        return nn.functional.cross_entropy(output, y)

    with sdpa_kernel(SDPBackend.MATH):
        return torch.autograd.functional.hessian(loss, flat)


@pytest.mark.parametrize(
    ("make", "bn"),
    [(mlp, "eval"), (mlp, "full_batch"), (cnn, "eval"), (cnn, "full_batch"), (encoder, "eval")],
)
def test_top_five_lie_within_their_bound_of_the_hessian_by_torch(make, bn):
    model, (x, y) = make(), images()
    risk = EmpiricalRisk(model, nn.CrossEntropyLoss(), (x, y), bn=bn)
    ds = measure.top_eigenvalues(risk, risk.theta, k=5, seed=0)
    exact = torch.linalg.eigvalsh(reference_hessian(model, bn, x, y)).flip(0)[:5].numpy()
    np.testing.assert_allclose(ds["eigenvalue"], exact, rtol=1e-6)
    assert (np.abs(ds["eigenvalue"] - exact) <= ds["residual_norm"] + 1e-10).all()
    assert ds["converged"].all()


def test_few_products_leave_values_unconverged_and_say_so():
    risk, _, _ = quadratic(list(np.linspace(1, 2, 60)))
    ds = measure.top_eigenvalues(risk, risk.theta, k=3, max_hvps=4, seed=0)
    assert not ds["converged"].any()


def test_trace_is_within_its_error_and_paired_by_seed():
    risk, H, _ = quadratic(SPECTRUM)
    ds = measure.hessian_trace(risk, risk.theta, num_probes=400, seed=0)
    assert abs(float(ds["trace"]) - float(H.trace())) < 4 * float(ds["trace_stderr"])
    variance = 2 * float((H**2).sum() - (H.diag() ** 2).sum())
    assert float(ds["trace_sample"].var(ddof=1)) == pytest.approx(variance, rel=0.3)
    double, _, _ = quadratic([2 * value for value in SPECTRUM])
    twin = measure.hessian_trace(double, double.theta, num_probes=400, seed=0)
    np.testing.assert_allclose(twin["trace_sample"], 2 * ds["trace_sample"], rtol=1e-9, atol=1e-9)


def test_trace_of_a_diagonal_hessian_is_exact_with_any_probe():
    """vᵀDv = sum_i D_ii for signs v."""
    x = torch.diag(torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64))
    model = nn.Linear(3, 1, bias=False).double()
    risk = EmpiricalRisk(model, nn.MSELoss(), (x, torch.zeros(3, 1, dtype=torch.float64)))
    ds = measure.hessian_trace(risk, risk.theta, num_probes=3, seed=0)
    np.testing.assert_allclose(ds["trace_sample"], 2 * (1 + 4 + 9) / 3)
    assert float(ds["trace_stderr"]) == pytest.approx(0.0, abs=1e-12)


def test_density_weights_sum_to_one_and_give_the_moments():
    risk, H, _ = quadratic(SPECTRUM)
    ds = measure.spectral_density(risk, risk.theta, num_probes=200, num_nodes=8, seed=0)
    np.testing.assert_allclose(ds["weight"].sum("node"), 1.0, rtol=1e-9)
    mean = float((ds["weight"] * ds["ritz_value"]).sum("node").mean())
    assert mean == pytest.approx(float(H.trace()) / len(SPECTRUM), abs=0.3)
    square = float((ds["weight"] * ds["ritz_value"] ** 2).sum("node").mean())
    assert square == pytest.approx(float((H**2).sum()) / len(SPECTRUM), rel=0.1)


def test_all_eigenvalues_of_one_and_of_two_parameters():
    for spectrum in ([3.0], [1.0, 2.0]):
        risk, _, _ = quadratic(spectrum)
        ds = measure.top_eigenvalues(risk, risk.theta, k=len(spectrum), seed=0)
        np.testing.assert_allclose(ds.eigenvalue, sorted(spectrum, reverse=True), rtol=1e-10)
        assert ds.converged.all()


def test_bad_input_is_refused():
    risk, _, _ = quadratic([1.0, 2.0])
    with pytest.raises(LandscapeError, match=r"k=3 eigenpairs asked .* k must be at most 2"):
        measure.top_eigenvalues(risk, risk.theta, k=3, seed=0)
    with pytest.raises(LandscapeError, match="possible are largest, smallest, both, magnitude"):
        measure.top_eigenvalues(risk, risk.theta, k=1, which="top", seed=0)
    with pytest.raises(LandscapeError, match=r"num_probes=.* give a whole number >= 2"):
        measure.hessian_trace(risk, risk.theta, num_probes=1, seed=0)
    with pytest.raises(LandscapeError, match=r"num_nodes=.* give a whole number >= 2"):
        measure.spectral_density(risk, risk.theta, num_nodes=1, seed=0)
    for function in (measure.top_eigenvalues, measure.hessian_trace, measure.spectral_density):
        with pytest.raises(LandscapeError, match="loss is inf"):
            function(risk, 1e200 * torch.ones(2, dtype=torch.float64), seed=0)
    batchnorm, _ = cnn_risk("recalibrate")
    with pytest.raises(LandscapeError, match="recalibrate"):
        measure.top_eigenvalues(batchnorm, batchnorm.theta, seed=0)


# --- PyHessian -------------------------------------------------------------------------------


def test_pyhessian_agrees_on_the_largest_eigenvalue_and_the_trace():
    risk, model = cnn_risk()
    before = fingerprint(model)
    ds = measure.crosscheck(risk, risk.theta, num_probes=60, max_iterations=300, seed=0)
    exact = torch.linalg.eigvalsh(dense_hessian(risk))
    largest = float(exact[exact.abs().argmax()])
    assert float(ds["landscape_eigenvalue"]) == pytest.approx(largest, rel=1e-6)
    # It stops when two Rayleigh quotients agree to 1e-3.
    assert float(ds["pyhessian_eigenvalue"]) == pytest.approx(largest, rel=2e-2)
    probes = int(ds["pyhessian_trace_probes"])
    assert 2 <= probes <= 60
    for name in ("pyhessian", "landscape"):
        error = max(float(ds[f"{name}_trace_stderr"]), 0.02 * abs(float(exact.sum())))
        assert abs(float(ds[f"{name}_trace"]) - float(exact.sum())) < 5 * error
    same(before, fingerprint(model))


def test_pyhessian_includes_the_weight_decay_of_the_risk():
    risk, _ = cnn_risk()
    decayed = EmpiricalRisk(
        cnn(), nn.CrossEntropyLoss(), images(), weight_decay=2.0, dtype=torch.float64
    )
    plain, with_decay = (
        measure.crosscheck(r, r.theta, num_probes=3, max_iterations=400, seed=0)
        for r in (risk, decayed)
    )
    for name in ("pyhessian_eigenvalue", "landscape_eigenvalue"):
        shift = float(with_decay[name]) - float(plain[name])
        assert shift == pytest.approx(2.0, rel=0.05)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_pyhessian_leaves_no_trace_on_the_callers_model(dtype):
    model = cnn().to(dtype).train()
    unused = nn.Linear(2, 2).to(dtype)
    model.add_module("unused", nn.Sequential())
    model.unused.register_parameter("w", unused.weight)
    x, y = images()
    kept = torch.ones_like(model[0].weight)
    model[0].weight.grad = kept
    before = fingerprint(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with measure.PyHessian(model, nn.CrossEntropyLoss(), x.to(dtype), y, seed=0) as peer:
            first = peer.eigenvalue(max_iterations=20)
            nodes, weights = peer.density(num_nodes=12, num_probes=2)
        with measure.PyHessian(model, nn.CrossEntropyLoss(), x.to(dtype), y, seed=0) as peer:
            assert peer.eigenvalue(max_iterations=20) == first
    assert model[0].weight.grad is kept
    same(before, fingerprint(model))
    assert nodes.shape == weights.shape == (2, 12)
    np.testing.assert_allclose(weights.sum(1), 1.0, rtol=1e-4)


def test_pyhessians_trace_stops_by_itself_where_the_trace_is_negative():
    risk, _, _ = quadratic([1.0, -2.0, -3.0, 0.5])
    ds = measure.crosscheck(risk, risk.theta, num_probes=50, seed=0)
    assert int(ds["pyhessian_trace_probes"]) < 5
    assert ds["landscape_trace_stderr"].item() > 0


def test_pyhessian_is_restored_after_an_error():
    model = cnn()
    x, y = images()
    before = fingerprint(model)
    with (
        pytest.raises(RuntimeError),
        measure.PyHessian(model, nn.CrossEntropyLoss(), x[:, :, :, :0], y, seed=0),
    ):
        pass
    same(before, fingerprint(model))
    assert sys.modules["pyhessian.hessian"].torch is torch


def test_pyhessian_outside_of_its_context_is_refused():
    x, y = images()
    peer = measure.PyHessian(cnn(), nn.CrossEntropyLoss(), x, y, seed=0)
    with pytest.raises(LandscapeError, match=r"outside of `with PyHessian\(...\) as peer:`"):
        peer.eigenvalue(max_iterations=2)
    with peer:
        pass
    with pytest.raises(LandscapeError, match="ask inside"):
        peer.trace_samples(num_probes=2)


def test_crosscheck_refuses_a_single_probe():
    risk, _, _ = quadratic([1.0, 2.0])
    with pytest.raises(LandscapeError, match=r"num_probes=.* give a whole number >= 2"):
        measure.crosscheck(risk, risk.theta, num_probes=1, seed=0)
