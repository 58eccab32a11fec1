"""Eigenvalues with proof: bounds hold against float64, the search is reported, vectors stored."""

import numpy as np
import pytest
import torch
from torch import nn

from landscape import EmpiricalRisk, LandscapeError, measure, results
from landscape.linalg import lanczos
from landscape.measure.curvature import certificates
from tests.measure_problems import cnn, cnn_risk, images, quadratic

F64 = torch.float64


def single(n=24):
    x, y = images(n)
    return EmpiricalRisk(cnn().float(), nn.CrossEntropyLoss(), (x.float(), y))


def rng(seed):
    return torch.Generator().manual_seed(seed)


def exact_spectrum(risk):
    twin = risk.with_dtype(F64)
    H = twin.hvp(risk.theta.double(), torch.eye(len(risk.theta), dtype=F64))
    return torch.linalg.eigvalsh((H + H.T) / 2).flip(0).numpy()


def test_the_twin_is_the_same_function_with_less_rounding():
    risk = single()
    twin = risk.with_dtype(F64)
    theta = risk.theta
    assert twin.dtype == F64
    assert twin.loss(theta).dtype == F64
    assert float(twin.loss(theta)) == pytest.approx(float(risk.loss(theta)), rel=1e-6)
    reference = EmpiricalRisk(
        cnn().float().double(), nn.CrossEntropyLoss(), (images()[0].float().double(), images()[1])
    )
    torch.testing.assert_close(twin.loss(theta), reference.loss(theta.double()))
    torch.testing.assert_close(
        twin.gradient(theta), reference.gradient(theta.double()), rtol=1e-10, atol=1e-14
    )
    for bn in ("full_batch", "recalibrate"):
        torch.testing.assert_close(
            risk.with_bn(bn).with_dtype(F64).loss(theta), reference.with_bn(bn).loss(theta.double())
        )
    assert twin.with_dtype(F64) is twin
    assert twin.layout == risk.layout


def test_class_weights_and_soft_targets_follow_the_twin():
    x, y = images()
    loss = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 0.5, 1.5]))
    soft = nn.functional.one_hot(y, 4).float()
    for targets in (y, soft):
        risk = EmpiricalRisk(cnn().float(), loss, (x.float(), targets))
        twin = risk.with_dtype(F64)
        assert float(twin.loss(risk.theta)) == pytest.approx(float(risk.loss(risk.theta)), rel=1e-5)
    with pytest.raises(LandscapeError, match=r"dtype=torch.float16 asked"):
        risk.with_dtype(torch.float16)


def test_bounds_of_a_float32_risk_hold_in_float64():
    risk = single()
    exact = exact_spectrum(risk)
    ds = measure.top_eigenvalues(risk, risk.theta, k=5, seed=0)
    error = np.abs(ds["eigenvalue"].values - exact[:5])
    assert (error <= ds["bound"].values).all()
    assert (error <= float(ds["subspace_bound"]) * (1 + 1e-9)).all()
    assert ds["converged"].all()
    assert ds["eigenvalue"].dtype == np.float64
    # Rayleigh quotients of float64 products err with the square of the residual.
    np.testing.assert_allclose(ds["eigenvalue"], exact[:5], rtol=1e-6)
    assert int(ds["certificate_hvps"]) == 5
    assert 0 < int(ds["search_hvps"]) < int(ds["num_hvps"]) - 5
    assert int(ds["restarts"]) >= 1
    assert 0 < float(ds["search_failure_probability"]) <= 0.01
    assert float(ds["product_error"]) == 0
    assert results.provenance(ds)["certify"] == "float64"


def test_working_precision_adds_what_its_products_are_off():
    risk = single()
    exact = exact_spectrum(risk)
    ds = measure.top_eigenvalues(risk, risk.theta, k=5, certify="working", seed=0)
    off = float(ds["product_error"])
    assert 0 < off < 1e-5 * exact[0]
    assert (np.abs(ds["eigenvalue"].values - exact[:5]) <= ds["bound"].values).all()
    inflated = ds["residual_norm"] + off * np.sqrt(2 / np.pi) / 0.01
    np.testing.assert_allclose(ds["bound"], inflated, rtol=1e-6)
    assert int(ds["certificate_hvps"]) == 1
    bare = measure.top_eigenvalues(risk, risk.theta, k=5, certify="none", seed=0)
    assert np.isnan(bare["product_error"])
    assert int(ds["num_hvps"]) == int(bare["num_hvps"]) - 4
    # The recurrence knows the residuals that products in the working precision have.
    np.testing.assert_allclose(ds["residual_norm"], bare["residual_norm"], atol=2e-6 * exact[0])


def test_a_large_model_is_certified_by_one_product_and_says_so(monkeypatch):
    monkeypatch.setattr(certificates, "LARGE", 100)
    risk = single()
    ds = measure.top_eigenvalues(risk, risk.theta, k=5, seed=0)
    record = results.provenance(ds)
    assert (record["certify"], int(ds["certificate_hvps"])) == ("working", 1)
    assert record["certify_reason"].startswith("auto: P=")
    asked = measure.top_eigenvalues(risk, risk.theta, k=5, certify="float64", seed=0)
    assert "certify_reason" not in results.provenance(asked)
    assert (abs(ds["eigenvalue"] - asked["eigenvalue"]) <= ds["bound"]).all()


def test_a_costly_product_is_made_once_where_what_it_shows_keeps_the_tolerance(monkeypatch):
    monkeypatch.setattr(certificates, "COSTLY", 100)
    risk = single()
    exact = exact_spectrum(risk)
    wide = measure.top_eigenvalues(risk, risk.theta, k=5, tolerance=1e-2, seed=0)
    record = results.provenance(wide)
    assert (record["certify"], int(wide["certificate_hvps"])) == ("working", 1)
    assert record["certify_reason"].endswith("keeps the tolerance")
    assert (wide["bound"] <= 1e-2 * exact[0]).all()
    # Narrower than what float32 products are off: all are made, the first ones among them.
    tight = measure.top_eigenvalues(risk, risk.theta, k=5, tolerance=2e-6, seed=0)
    record = results.provenance(tight)
    assert (record["certify"], int(tight["certificate_hvps"])) == ("float64", 5)
    assert float(tight["product_error"]) == 0
    for ds in (wide, tight):
        assert ds["converged"].all()
        assert (np.abs(ds["eigenvalue"].values - exact[:5]) <= ds["bound"].values).all()
        of_which = int(ds["search_hvps"]) + int(ds["certificate_hvps"])
        assert of_which < int(ds["num_hvps"])
    one = measure.top_eigenvalues(risk, risk.theta, k=1, tolerance=1e-2, seed=0)
    assert results.provenance(one)["certify"] == "float64"


def test_without_a_search_completeness_is_not_claimed_and_bounds_stay():
    risk = single()
    full = measure.top_eigenvalues(risk, risk.theta, k=5, certify="working", seed=0)
    bare = measure.top_eigenvalues(risk, risk.theta, k=5, certify="working", search=False, seed=0)
    assert full["complete"]
    assert not bare["complete"]
    assert bare["converged"].all()
    assert int(bare["search_hvps"]) == float(bare["search_share"]) == 0
    assert 0 < float(full["search_share"]) < 1
    # The bound of the products holds but for the same small probability, never for 1.
    widths = [ds["bound"] - ds["residual_norm"] for ds in (full, bare)]
    for width, ds in zip(widths, (full, bare), strict=True):
        off = float(ds["product_error"]) * np.sqrt(2 / np.pi) / 0.01
        np.testing.assert_allclose(width, off, rtol=1e-6)


def test_graphs_of_the_search_are_gone_when_the_proof_is_made():
    risk = single()
    product = risk.linearized_hvp(risk.theta)
    v = torch.ones_like(risk.theta)
    before = product(v)
    assert product.num_kept == risk.num_examples
    product.release()
    assert product.num_kept == 0
    torch.testing.assert_close(product(v), before, rtol=1e-5, atol=1e-6)


def test_one_pair_is_proved_by_its_own_product():
    risk = single()
    ds = measure.top_eigenvalues(risk, risk.theta, k=1, certify="working", seed=0)
    full = measure.top_eigenvalues(risk, risk.theta, k=1, seed=0)
    np.testing.assert_allclose(ds["bound"], full["bound"], rtol=1e-12)
    assert float(ds["product_error"]) == 0


def test_one_product_bounds_what_many_are_off_as_often_as_said():
    """‖Eg‖ ≥ ‖E‖₂ |u·g|: the claim for matrices whose error has one direction, the worst case."""
    A = torch.diag(torch.tensor([9.0, 7.0, 5.0, *np.linspace(0, 1, 40)], dtype=F64))
    u = torch.nn.functional.normalize(torch.randn(43, generator=rng(7), dtype=F64), dim=0)
    E, delta, missed = 1e-3 * torch.outer(u, u), 0.2, 0
    for seed in range(200):
        pairs = lanczos.top(
            A.mv, 43, k=3, generator=rng(seed), failure_probability=delta,
            certificate=lambda V: V @ (A + E), sampled=True,
        )  # fmt: skip
        truth = torch.linalg.matrix_norm(pairs.vectors @ E, ord=2)
        assert pairs.products_off == pytest.approx(pairs.product_error * (2 / np.pi) ** 0.5 / delta)
        missed += bool(truth > pairs.products_off)
    # Binomial: a mean of at most 40 of 200, sd 5.7.
    assert 10 < missed < 60


def test_a_second_product_bounds_more_closely_and_as_often_as_said():
    """P(|z₁|, |z₂| < t) ≤ (2/π)·t², and a quarter of the second test's misses are of the first."""
    A = torch.diag(torch.tensor([9.0, 7.0, 5.0, *np.linspace(0, 1, 40)], dtype=F64))
    u = torch.nn.functional.normalize(torch.randn(43, generator=rng(7), dtype=F64), dim=0)
    E, delta, missed, closer = 1e-3 * torch.outer(u, u), 0.2, 0, 0
    for seed in range(200):
        # Between what one product and what two can show.
        asked = {"tolerance": 1e-3, "sampled_within": 0.3}
        pairs = lanczos.top(
            A.mv, 43, k=3, generator=rng(seed), failure_probability=delta,
            certificate=lambda V: V @ (A + E), sampled=True, **asked,
        )  # fmt: skip
        truth = torch.linalg.matrix_norm(pairs.vectors @ E, ord=2)
        if pairs.proof_matvecs == 2:
            factor = (2 / np.pi) ** 0.5 / (delta / 2) ** 0.5
            assert pairs.products_off == pytest.approx(pairs.product_error * factor)
            closer += 1
        missed += bool(truth > pairs.products_off)
    assert 0 < closer < 200
    assert missed < 60  # of two tests with half of delta each


@pytest.mark.parametrize("k", [1, 2, 5])
def test_where_samples_do_not_suffice_the_products_are_those_of_all(k):
    A = torch.diag(torch.tensor([9.0, 8.0, 7.0, 6.0, 5.0, *np.linspace(0, 1, 40)], dtype=F64))
    noise = torch.randn(45, 45, generator=rng(3), dtype=F64)
    E = 1e-3 * (noise + noise.T)
    found = {
        sampled: lanczos.top(
            A.mv, 45, k=k, generator=rng(0), certificate=lambda V: V @ (A + E),
            sampled=sampled, sampled_within=1e-9,
        )
        for sampled in (False, True)
    }  # fmt: skip
    whole, drawn = found[False], found[True]
    assert drawn.proof_matvecs == whole.proof_matvecs == k
    assert np.isnan(drawn.product_error)
    torch.testing.assert_close(drawn.values, whole.values, rtol=1e-14, atol=0)
    torch.testing.assert_close(drawn.residual_norms, whole.residual_norms, rtol=1e-10, atol=1e-14)


def test_vectors_are_stored_and_start_the_next_checkpoint():
    risk, H, _ = quadratic([5.0, 3.0, 3.0, 1.0, 0.5, *np.linspace(-0.2, 0.4, 40)])
    ds = measure.top_eigenvalues(risk, risk.theta, k=3, return_vectors=True, seed=0)
    V = torch.from_numpy(ds["eigenvector"].values)
    torch.testing.assert_close(V @ V.T, torch.eye(3, dtype=F64), rtol=0, atol=1e-10)
    for value, v in zip(ds["eigenvalue"].values, V, strict=True):
        assert float((H @ v - value * v).norm()) < 1e-5
    assert "eigenvector" not in measure.top_eigenvalues(risk, risk.theta, k=3, seed=0)


def test_a_warm_start_saves_products_and_changes_no_answer():
    risk, _ = cnn_risk()
    near = risk.theta + 1e-4 * torch.ones_like(risk.theta)
    before = measure.top_eigenvalues(risk, risk.theta, k=5, return_vectors=True, seed=0)
    V = torch.from_numpy(before["eigenvector"].values)
    cold = measure.top_eigenvalues(risk, near, k=5, seed=1)
    warm = measure.top_eigenvalues(risk, near, k=5, start=V, seed=1)
    np.testing.assert_allclose(warm["eigenvalue"], cold["eigenvalue"], rtol=1e-6)
    assert warm["converged"].all()
    first = [int(ds["num_hvps"] - ds["search_hvps"]) for ds in (warm, cold)]
    assert first[0] < first[1]


class Narrow(nn.Module):
    """Insists on float32 inside."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3, 3)

    def forward(self, x):
        return self.first(x.float())


def test_a_model_that_casts_to_float32_is_proved_in_float64_all_the_same():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Narrow()
    x, y = torch.randn(6, 3, generator=torch.Generator().manual_seed(0)), torch.arange(6) % 3
    risk = EmpiricalRisk(model, nn.CrossEntropyLoss(), (x, y))
    found = measure.top_eigenvalues(risk, risk.theta, k=2, seed=0)
    plain = EmpiricalRisk(model.first, nn.CrossEntropyLoss(), (x, y))
    expected = measure.top_eigenvalues(plain, plain.theta, k=2, seed=0)
    np.testing.assert_allclose(found["eigenvalue"], expected["eigenvalue"], rtol=1e-6)
    np.testing.assert_array_less(found["bound"], 1e-4)
    assert measure.top_eigenvalues(risk, risk.theta, k=2, certify="none", seed=0)["complete"]
    with pytest.raises(LandscapeError, match="choose one of 'auto', 'float64', 'working', 'none"):
        measure.top_eigenvalues(risk, risk.theta, k=2, certify="float16", seed=0)


def test_the_proof_is_counted_in_the_cost():
    risk, _ = cnn_risk()
    half = single()
    counts = []
    for r in (risk, half):
        before = r.cost
        ds = measure.top_eigenvalues(r, r.theta, k=2, seed=0)
        counts.append((r.cost - before) / int(ds["num_hvps"]))
    assert counts[0] == pytest.approx(counts[1], rel=0.1)


def test_a_bounded_basis_gives_the_same_proof():
    risk, _ = cnn_risk()
    free = measure.top_eigenvalues(risk, risk.theta, k=2, seed=0)
    held = measure.top_eigenvalues(risk, risk.theta, k=2, max_basis=12, max_hvps=900, seed=0)
    np.testing.assert_allclose(held["eigenvalue"], free["eigenvalue"], rtol=1e-6)
    assert (held["residual_norm"] <= 1e-6 * held["eigenvalue"][0]).all()
    with pytest.raises(LandscapeError, match="max_basis=5 asked for k=3"):
        measure.top_eigenvalues(risk, risk.theta, k=3, max_basis=5, seed=0)
