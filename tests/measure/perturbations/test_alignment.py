"""Alignment and enrichment on Hessians whose eigenvectors are known, against simulated chance."""

import numpy as np
import pytest
import torch
from torch import nn

from landscape import EmpiricalRisk, LandscapeError, measure, sam
from landscape.measure.perturbations.alignment import _matched, _selected, empirical_fisher
from landscape.measure.perturbations.share_null import selected_shares
from tests.measure_problems import cnn, cnn_risk, fingerprint, images, same


class Two(nn.Module):
    """Two tensors of 2 x 3; the loss is a diagonal quadratic in both."""

    def __init__(self):
        super().__init__()
        self.a = nn.Parameter(torch.ones(2, 3, dtype=torch.float64))
        self.b = nn.Parameter(torch.ones(2, 3, dtype=torch.float64))

    def forward(self, x):
        return x @ torch.cat([self.a.reshape(-1), self.b.reshape(-1)])


def diagonal(values):
    """L = ½ sum_i values_i w_i², so that H = diag(values) and g = values * w."""
    values = torch.tensor(values, dtype=torch.float64)
    x = torch.diag((len(values) * values).sqrt())
    return EmpiricalRisk(
        Two(), lambda o, t: 0.5 * (o - t) ** 2, (x, torch.zeros(len(x), dtype=torch.float64))
    )


VALUES = [9.0, 1e-3, 1e-3, 1e-3, 1e-3, 1e-3, 4.0, 1.0, 1e-3, 1e-3, 1e-3, 1e-3]


def test_alignment_with_known_eigenvectors():
    """V = {e_0, e_6}; g = values, so its energy there is (81 + 16)/(81 + 16 + 1 + ...)."""
    risk = diagonal(VALUES)
    ds = measure.alignment(
        risk, risk.theta, variants={"SAM": sam.sam(rho=0.1)}, k=2, batch_size=12, seed=0
    )
    g = np.array(VALUES)
    share = (g[0] ** 2 + g[6] ** 2) / (g**2).sum()
    for name in ("gradient", "SAM"):
        at = ds.sel(direction=name)
        assert float(at["captured"]) == pytest.approx(share)
        np.testing.assert_allclose(
            at["cosine_squared"], [g[0] ** 2 / (g**2).sum(), g[6] ** 2 / (g**2).sum()]
        )
        assert float(at["rayleigh"]) == pytest.approx((g**3).sum() / (g**2).sum())
        assert float(at["expected_isotropic"]) == pytest.approx(2 / 12)
        assert float(at["expected_matched"]) == pytest.approx(1 / 6)
        assert float(at["enrichment"]) == pytest.approx(share * 6)


def test_matched_null_is_the_mean_of_random_directions_with_that_energy_per_tensor():
    risk, _ = cnn_risk()
    g = torch.Generator().manual_seed(0)
    P = risk.theta.numel()
    V = torch.linalg.qr(torch.randn(P, 3, generator=g, dtype=torch.float64)).Q.T
    V = V * torch.linspace(0.1, 2, P)  # uneven over tensors
    e = torch.randn(P, generator=g, dtype=torch.float64)
    for tensor in risk.layout.tensors:
        e[tensor.start : tensor.stop] *= 3.0 if tensor.kind == "norm" else 0.2
    e /= e.norm()
    draws = torch.randn(4000, P, generator=g, dtype=torch.float64)
    for tensor in risk.layout.tensors:
        span = slice(tensor.start, tensor.stop)
        scale = e[span].norm() / draws[:, span].norm(dim=1, keepdim=True)
        draws[:, span] *= scale
    captured = (draws @ V.T).square().sum(1)
    expected = float(_matched(risk.layout, e[None], V)[0])
    error = float(captured.std()) / 4000**0.5
    assert expected == pytest.approx(float(captured.mean()), abs=4 * error)


def test_norm_only_perturbations_are_judged_against_their_own_energy():
    risk, model = cnn_risk(n=40)
    before = fingerprint(model)
    variants = {"SAM-ON": sam.sam_on(rho=0.1), "SGD": sam.sgd()}
    ds = measure.alignment(risk, risk.theta, variants=variants, k=3, seed=0)
    assert float(ds["expected_matched"].sel(direction="SAM-ON")) > float(
        ds["expected_isotropic"].sel(direction="SAM-ON")
    )
    assert np.isnan(ds["captured"].sel(direction="SGD"))
    assert ds["converged"].all()
    same(before, fingerprint(model))


def test_enrichment_of_known_masks():
    """top-|g| of density 1/3 keeps the two largest of six in both tensors: 9, 2 and 4, 1."""
    values = [9.0, 2.0, 1e-3, 1e-3, 1e-3, 1e-3, 4.0, 1.0, 1e-3, 1e-3, 1e-3, 1e-3]
    risk = diagonal(values)
    variants = {"top": sam.topk_gradient(rho=0.1, density=1 / 3), "all": sam.sam(rho=0.1)}
    ds = measure.enrichment(
        risk, risk.theta, variants=variants, k=2, batch_size=12, num_probes=2, seed=0
    )
    top = ds.sel(direction="top")
    assert float(top["captured_eigenspace"]) == pytest.approx(1.0)
    assert float(top["expected_eigenspace"]) == pytest.approx(1 / 3)
    assert float(top["enrichment_eigenspace"]) == pytest.approx(3.0)
    # v_1 alone lies in the first tensor, whose density is 1/3 too.
    assert float(top["captured_eigenvector"]) == pytest.approx(1.0)
    assert float(top["enrichment_eigenvector"]) == pytest.approx(3.0)
    # The diagonal of a diagonal matrix is exact with any probe.
    assert float(top["captured_hessian_diagonal"]) == pytest.approx(16 / sum(values))
    assert float(top["enrichment_weight"]) == pytest.approx(1.0)
    by_size = risk.theta.clone()
    by_size[:2] = 5.0  # of 5 + 5 + 10 times 1, and of 25 + 25 + 10, the mask has those and two
    at = measure.enrichment(
        risk, by_size, variants=variants, k=2, batch_size=12, num_probes=2, seed=0
    ).sel(direction="top")
    assert float(at["captured_magnitude"]) == pytest.approx(12 / 20)
    assert float(at["captured_weight"]) == pytest.approx(52 / 60)
    assert float(at["enrichment_magnitude"]) == pytest.approx(3 * 12 / 20)
    quantities = ("eigenvector", "eigenspace", "hessian_diagonal", "fisher", "weight", "magnitude")
    for name in quantities:
        assert float(ds[f"enrichment_{name}"].sel(direction="all")) == pytest.approx(1.0)


def test_spread_of_chance_is_that_of_drawing_without_replacement():
    """Mean and variance against 20 000 drawn masks; bounds are 5 standard errors of the draws."""
    risk = diagonal([9.0, 2.0, 1.0, 0.5, 0.2, 0.1, 4.0, 1.0, 0.3, 0.2, 0.1, 0.05])
    g = torch.Generator().manual_seed(0)
    q = torch.rand(12, generator=g, dtype=torch.float64)
    counts = [2, 4]
    drawn = []
    for _ in range(20_000):
        mask = torch.zeros(12, dtype=torch.bool)
        for tensor, count in zip(risk.layout.tensors, counts, strict=True):
            chosen = torch.randperm(tensor.numel, generator=g)[:count]
            mask[tensor.start + chosen] = True
        drawn.append(float(q[mask].sum() / q.sum()))
    _, mean, std = _selected(risk.layout, mask, q).tolist()
    assert mean == pytest.approx(np.mean(drawn), abs=5 * std / 20_000**0.5)
    assert std == pytest.approx(np.std(drawn), rel=5 / (2 * 20_000) ** 0.5)
    variants = {"all": sam.sam(rho=0.1), "top": sam.topk_gradient(rho=0.1, density=1 / 3)}
    ds = measure.enrichment(risk, risk.theta, variants=variants, k=2, batch_size=12, seed=0)
    assert float(ds.chance_std_fisher.sel(direction="all")) == 0
    assert float(ds.chance_std_fisher.sel(direction="top")) > 0


def test_the_interval_of_chance_holds_its_share_of_masks_where_the_law_is_skewed():
    """Two parts, one with a few huge values; 4000 masks drawn coordinate by coordinate."""
    g = torch.Generator().manual_seed(0)
    parts = [torch.rand(300, generator=g, dtype=torch.float64).pow(-1.2),
             torch.rand(20, generator=g, dtype=torch.float64)]  # fmt: skip
    counts = [15, 5]
    drawn = np.zeros(4000)
    for i in range(len(drawn)):
        for part, count in zip(parts, counts, strict=True):
            chosen = torch.randperm(len(part), generator=g)[:count]
            drawn[i] += float(part[chosen].sum())
    shares = selected_shares(parts, counts, seed=0, draws=4000)
    for level in (0.025, 0.5, 0.975):
        # Standard error of a share over 4000 draws, for either sample; 4 of them.
        error = 4 * (2 * level * (1 - level) / 4000) ** 0.5
        assert np.mean(drawn < np.quantile(shares, level)) == pytest.approx(level, abs=error)
    mean, std = drawn.mean(), drawn.std()
    assert np.mean(drawn > mean + 1.96 * std) > 0.04  # a normal interval would promise 0.025
    assert selected_shares(parts, [300, 0], seed=0) == pytest.approx(float(parts[0].sum()))


def test_random_masks_are_not_enriched():
    risk, _ = cnn_risk(n=40)
    variants = {f"random {i}": sam.random_mask(rho=0.1, density=0.3) for i in range(2)}
    found = [
        float(
            measure.enrichment(risk, risk.theta, variants=variants, k=1, num_probes=4, seed=seed)[
                "enrichment_fisher"
            ][0]
        )
        for seed in range(8)
    ]
    assert np.mean(found) == pytest.approx(1.0, abs=4 * np.std(found) / 8**0.5 + 0.02)


def test_fisher_is_the_mean_squared_gradient_of_single_examples():
    risk, _ = cnn_risk(n=6)
    x, y = images(6)
    each = [
        EmpiricalRisk(cnn(), nn.CrossEntropyLoss(), (x[i : i + 1], y[i : i + 1])) for i in range(6)
    ]
    expected = torch.stack([r.gradient(risk.theta).square() for r in each]).mean(0)
    found = empirical_fisher(risk, risk.theta, num_examples=10, seed=0)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-14)


def test_where_the_gradient_is_zero_there_is_no_fisher_to_be_enriched():
    class Still(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.ones(3, 4, dtype=torch.float64))

        def forward(self, x):
            return 0 * (x @ self.w)

    x, y = torch.arange(24.0).double().view(8, 3), torch.arange(8) % 4
    risk = EmpiricalRisk(Still(), nn.CrossEntropyLoss(), (x, y))
    ds = measure.enrichment(
        risk, risk.theta, variants={"random": sam.random_mask(rho=0.1)}, k=1, num_probes=2, seed=0
    )
    assert np.isnan(ds["enrichment_fisher"]).all()
    assert np.isnan(ds["chance_low_fisher"]).all()


def test_no_variant_is_refused():
    risk, _ = cnn_risk()
    with pytest.raises(LandscapeError, match="alignment got no variant"):
        measure.alignment(risk, risk.theta, variants={}, seed=0)
    with pytest.raises(LandscapeError, match="enrichment got no variant"):
        measure.enrichment(risk, risk.theta, variants={}, seed=0)
