"""Blocks, diagonal and traces against matrices that are known."""

import numpy as np
import pytest
import torch
from torch import nn

from landscape import EmpiricalRisk, LandscapeError, measure
from landscape.measure.curvature.operator import Operator
from tests.measure_problems import cnn_risk, images, quadratic

F64 = torch.float64


def dense(risk, matrix="hessian"):
    operator = Operator.of(risk, risk.theta, matrix=matrix)
    return operator(torch.eye(operator.size, dtype=F64))


class Planted(nn.Module):
    """Three tensors under ½ Σ a_i w_i²: a diagonal Hessian with a known block each."""

    def __init__(self):
        super().__init__()
        self.first = nn.Parameter(torch.ones(3, dtype=F64))
        self.second = nn.Parameter(torch.ones(2, 2, dtype=F64))
        self.third = nn.Parameter(torch.full((1,), 2.0, dtype=F64))

    def forward(self, x):
        return x * torch.cat([self.first, self.second.reshape(-1), self.third])


CURVATURES = torch.tensor([1.0, 2.0, 3.0, -1.0, 4.0, 0.5, 0.25, 7.0], dtype=F64)


def planted():
    def loss(output, target):
        return 0.5 * (target * output**2).sum(1)

    return EmpiricalRisk(
        Planted(), loss, (torch.ones(5, 8, dtype=F64), CURVATURES.expand(5, 8).clone())
    )


def test_planted_blocks_give_their_eigenvalue_and_trace():
    risk = planted()
    ds = measure.block_curvature(risk, risk.theta, num_probes=3, seed=0)
    assert list(ds["block"].values) == ["first", "second", "third"]
    np.testing.assert_allclose(ds["eigenvalue"], [3, 4, 7], rtol=1e-10)
    # vᵀDv is the trace for signs v.
    np.testing.assert_allclose(ds["trace"], [6, 3.75, 7], rtol=1e-12)
    np.testing.assert_allclose(ds["trace_stderr"], 0, atol=1e-12)
    np.testing.assert_allclose(ds["scaled_eigenvalue"], [9, 16, 28], rtol=1e-10)
    assert ds["converged"].all()
    assert list(ds["size"].values) == [3, 4, 1]


@pytest.mark.thorough
@pytest.mark.parametrize("by", ["tensor", "module", "kind"])
@pytest.mark.parametrize("matrix", ["hessian", "ggn"])
def test_blocks_of_a_cnn_are_those_of_the_dense_matrix(by, matrix):
    risk, _ = cnn_risk()
    M = dense(risk, matrix)
    ds = measure.block_curvature(risk, risk.theta, by=by, matrix=matrix, num_probes=20, seed=0)
    field = {"tensor": "name", "module": "module", "kind": "kind"}[by]
    total = 0.0
    for name in ds["block"].values:
        mask = risk.layout.mask(lambda tensor, name=name: getattr(tensor, field) == name)
        block = M[mask][:, mask]
        here = ds.sel(block=name)
        top = float(torch.linalg.eigvalsh(block)[-1])
        assert abs(float(here["eigenvalue"]) - top) <= float(here["bound"]) + 1e-10
        error = max(float(here["trace_stderr"]), 1e-12)
        assert abs(float(here["trace"]) - float(block.trace())) < 5 * error
        total += float(here["parameter_share"])
    assert total == pytest.approx(1)
    whole = measure.hessian_trace(risk, risk.theta, num_probes=20, matrix=matrix, seed=0)
    np.testing.assert_allclose(ds["trace_sample"].sum("block"), whole["trace_sample"], rtol=1e-9)


def test_scaled_eigenvalue_and_orthogonal_gradient_of_scale_invariant_layers():
    """H(aw) = H(w)/a² and g·w = 0 before BatchNorm over the batch."""
    risk, model = cnn_risk("full_batch")
    with torch.no_grad():
        for index in (0, 3):
            model[index].weight.mul_(3.0)
            if model[index].bias is not None:
                model[index].bias.mul_(3.0)
        for index in (1, 4):
            model[index].eps = 9e-5
    scaled = EmpiricalRisk(model, nn.CrossEntropyLoss(), images(), bn="full_batch")
    conv = ["0.weight", "3.weight"]
    first, second = (
        measure.block_curvature(r, r.theta, num_probes=2, tolerance=1e-8, seed=0).sel(block=conv)
        for r in (risk, scaled)
    )
    np.testing.assert_allclose(second["eigenvalue"] * 9, first["eigenvalue"], rtol=2e-5)
    np.testing.assert_allclose(second["scaled_eigenvalue"], first["scaled_eigenvalue"], rtol=2e-5)
    # eps breaks the invariance by a little.
    assert (np.abs(first["gradient_cosine"]) < 1e-3).all()


def test_float32_blocks_are_certified_in_float64():
    x, y = images()
    exact_risk, model = cnn_risk()
    risk = EmpiricalRisk(model.float(), nn.CrossEntropyLoss(), (x.float(), y))
    twin = risk.with_dtype(F64)
    M = twin.hvp(risk.theta.double(), torch.eye(len(risk.theta), dtype=F64))
    for certify in ("float64", "working"):
        ds = measure.block_curvature(
            risk, risk.theta, by="kind", num_probes=2, certify=certify, seed=0
        )
        for name in ds["block"].values:
            mask = risk.layout.mask(str(name))
            top = float(torch.linalg.eigvalsh(M[mask][:, mask])[-1])
            here = ds.sel(block=name)
            assert abs(float(here["eigenvalue"]) - top) <= float(here["bound"])
    assert exact_risk.dtype == F64


def test_diagonal_frobenius_and_weighted_trace():
    risk, _ = cnn_risk()
    H = dense(risk)
    ds = measure.hessian_diagonal(risk, risk.theta, num_probes=400, seed=0)
    z = (ds["diagonal"].values - H.diag().numpy()) / np.maximum(ds["diagonal_stderr"], 1e-9)
    assert np.abs(z).max() < 6
    assert np.mean(np.square(z)) == pytest.approx(1, abs=0.3)
    exact = float((H**2).sum())
    error = float(ds["frobenius_squared_stderr"])
    assert abs(float(ds["frobenius_squared"]) - exact) < 4 * error
    assert float(ds["frobenius_norm"]) == pytest.approx(exact**0.5, rel=0.2)
    weighted = float((risk.theta**2 * H.diag()).sum())
    assert abs(float(ds["weighted_trace"]) - weighted) < 4 * float(ds["weighted_trace_stderr"])


def test_rescaled_relu_layers_change_the_trace_and_not_the_weighted_one():
    """Layers aW_1, W_2/a compute the same function (arXiv:1703.04933)."""
    with torch.random.fork_rng():
        torch.manual_seed(2)
        model = nn.Sequential(
            nn.Flatten(), nn.Linear(64, 4, bias=False), nn.ReLU(), nn.Linear(4, 4, bias=False)
        ).double()
    risks = [EmpiricalRisk(model, nn.CrossEntropyLoss(), images())]
    with torch.no_grad():
        model[1].weight.mul_(10)
        model[3].weight.div_(10)
    risks.append(EmpiricalRisk(model, nn.CrossEntropyLoss(), images()))
    exact = [(risk.theta**2 * dense(risk).diag()).sum() for risk in risks]
    torch.testing.assert_close(exact[0], exact[1], rtol=1e-10, atol=0)
    for risk in risks:
        ds = measure.hessian_diagonal(risk, risk.theta, num_probes=200, seed=0)
        error = float(ds["weighted_trace_stderr"])
        assert abs(float(ds["weighted_trace"]) - float(exact[0])) < 4 * error


def test_a_pilot_fixes_the_number_of_probes_for_a_target():
    risk, H, _ = quadratic(list(np.linspace(-1, 3, 40)))
    ds = measure.hessian_trace(risk, risk.theta, target_stderr=1.0, seed=0)
    spread = (2 * float((H**2).sum() - (H.diag() ** 2).sum())) ** 0.5
    assert ds.sizes["probe"] == pytest.approx(spread**2, rel=0.9)
    assert float(ds["trace_stderr"]) == pytest.approx(1.0, rel=0.5)
    plain = measure.hessian_trace(risk, risk.theta, num_probes=ds.sizes["probe"], seed=0)
    np.testing.assert_array_equal(plain["trace_sample"], ds["trace_sample"])
    with pytest.raises(LandscapeError, match=r"takes \d+ probes where max_probes=50 are allowed"):
        measure.hessian_trace(risk, risk.theta, target_stderr=0.1, max_probes=50, seed=0)
    with pytest.raises(LandscapeError, match="it must be above 0"):
        measure.hessian_trace(risk, risk.theta, target_stderr=-1.0, seed=0)


def test_hutchpp_is_exact_on_low_rank_and_honest_elsewhere():
    low, H, _ = quadratic([9.0, 4.0, 1.0] + [0.0] * 40)
    ds = measure.hessian_trace(low, low.theta, num_probes=12, method="hutch++", seed=0)
    assert float(ds["trace"]) == pytest.approx(float(H.trace()), rel=1e-9)
    risk, _ = cnn_risk()
    for select in (None, "conv"):
        mask = slice(None) if select is None else risk.layout.mask(select)
        exact = float(dense(risk).diag()[mask].sum())
        ds = measure.hessian_trace(
            risk, risk.theta, num_probes=60, method="hutch++", select=select, seed=0
        )
        assert abs(float(ds["trace"]) - exact) < 5 * float(ds["trace_stderr"])
        assert ds.sizes["probe"] == 20
    with pytest.raises(LandscapeError, match="choose one of 'hutchinson', 'hutch"):
        measure.hessian_trace(risk, risk.theta, method="exact", seed=0)


def test_impossible_blocks_are_refused():
    risk = planted()
    with pytest.raises(LandscapeError, match="choose one of 'tensor', 'module', 'kind"):
        measure.block_curvature(risk, risk.theta, by="layer", seed=0)
    with pytest.raises(LandscapeError, match=r"num_probes=.* give a whole number >= 2"):
        measure.hessian_diagonal(risk, risk.theta, num_probes=1, seed=0)
