"""Gauss-Newton products against closed forms and Jacobians; blocks of both matrices."""

import numpy as np
import pytest
import torch
from torch import nn

from landscape import EmpiricalRisk, LandscapeError, measure
from landscape.measure.curvature.operator import Operator
from tests.measure_problems import cnn_risk, images

F64 = torch.float64


def dense(operator):
    return operator(torch.eye(operator.size, dtype=F64))


def mlp_risk(*, loss=None, weight_decay=0.0, memory=None, batch_size=None):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = nn.Sequential(
            nn.Flatten(), nn.Linear(64, 3), nn.Tanh(), nn.LayerNorm(3), nn.Linear(3, 4)
        ).double()
    loss = loss or nn.CrossEntropyLoss()
    return model, EmpiricalRisk(
        model, loss, images(), weight_decay=weight_decay, memory=memory, batch_size=batch_size
    )


def test_of_softmax_regression_it_is_the_hessian():
    """H = mean_i (diag p - ppᵀ) ⊗ xxᵀ."""
    x, y = images(10)
    x = x.flatten(1)[:, :5]
    model = nn.Linear(5, 4, bias=False).double()
    risk = EmpiricalRisk(model, nn.CrossEntropyLoss(), (x, y))
    p = risk.outputs(risk.theta).softmax(1)
    middle = torch.diag_embed(p) - p[:, :, None] * p[:, None]
    exact = sum(torch.kron(m, torch.outer(row, row)) for m, row in zip(middle, x, strict=True)) / 10
    ggn = dense(Operator.of(risk, risk.theta, matrix="ggn"))
    torch.testing.assert_close(ggn, exact, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(ggn, dense(Operator.of(risk, risk.theta)), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("loss", [nn.CrossEntropyLoss(label_smoothing=0.1), nn.CrossEntropyLoss()])
def test_it_is_the_sum_of_jacobians_around_the_output_hessian(loss):
    model, risk = mlp_risk(loss=loss, weight_decay=0.3)
    x, _ = images()
    names = risk.layout.names

    def outputs(theta):
        return torch.func.functional_call(model, dict(risk.layout.unflatten(theta)), (x,))

    J = torch.autograd.functional.jacobian(outputs, risk.theta)
    p = risk.outputs(risk.theta).softmax(1)
    middle = torch.diag_embed(p) - p[:, :, None] * p[:, None]
    exact = torch.einsum("ncp,ncd,ndq->pq", J, middle, J) / len(x)
    exact += 0.3 * torch.eye(len(exact), dtype=F64)
    ggn = dense(Operator.of(risk, risk.theta, matrix="ggn"))
    torch.testing.assert_close(ggn, exact, rtol=1e-10, atol=1e-13)
    assert names[0] == "1.weight"


def test_at_a_perfect_fit_of_squares_it_is_the_hessian():
    model, first = mlp_risk()
    x, _ = images()
    targets = first.outputs(first.theta)
    risk = EmpiricalRisk(model, nn.MSELoss(), (x, targets))
    torch.testing.assert_close(
        dense(Operator.of(risk, risk.theta, matrix="ggn")),
        dense(Operator.of(risk, risk.theta)),
        rtol=1e-9, atol=1e-13,
    )  # fmt: skip


def test_batches_and_rebuilt_graphs_do_not_change_it():
    _, whole = mlp_risk()
    theta = whole.theta
    v = torch.randn(3, len(theta), generator=torch.Generator().manual_seed(0), dtype=F64)
    expected = whole.linearized_ggn(theta)(v)
    for options in ({"batch_size": 7}, {"memory": 1}):
        _, risk = mlp_risk(**options)
        product = risk.linearized_ggn(theta)
        torch.testing.assert_close(product(v), expected, rtol=1e-10, atol=1e-14)
        torch.testing.assert_close(product(v[0]), expected[0], rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("bn", ["eval", "full_batch"])
def test_top_eigenvalues_and_trace_of_the_ggn_of_a_cnn(bn):
    risk, _ = cnn_risk(bn)
    G = dense(Operator.of(risk, risk.theta, matrix="ggn"))
    exact = torch.linalg.eigvalsh(G).flip(0)
    assert exact[-1] > -1e-12
    ds = measure.top_eigenvalues(risk, risk.theta, k=4, matrix="ggn", seed=0)
    np.testing.assert_allclose(ds["eigenvalue"], exact[:4], rtol=1e-6)
    assert ds["converged"].all()
    assert ds["eigenvalue"].attrs["long_name"] == "Gauss-Newton matrix eigenvalue"


@pytest.mark.thorough
@pytest.mark.parametrize("matrix", ["hessian", "ggn"])
@pytest.mark.parametrize("select", ["conv", "8.*", ("norm", "bias")])
def test_eigenvalues_of_a_selection_are_those_of_its_block(matrix, select):
    risk, _ = cnn_risk()
    M = dense(Operator.of(risk, risk.theta, matrix=matrix))
    mask = risk.layout.mask(select)
    exact = torch.linalg.eigvalsh(M[mask][:, mask]).flip(0)
    ds = measure.top_eigenvalues(
        risk, risk.theta, k=3, matrix=matrix, select=select, return_vectors=True, seed=0
    )
    np.testing.assert_allclose(ds["eigenvalue"], exact[:3], rtol=1e-6)
    V = torch.from_numpy(ds["eigenvector"].values)
    assert not V[:, ~mask].any()
    again = measure.top_eigenvalues(
        risk, risk.theta, k=3, matrix=matrix, select=select, start=V, seed=0
    )
    np.testing.assert_allclose(again["eigenvalue"], exact[:3], rtol=1e-6)


def test_float32_products_of_a_ggn_block_are_certified_in_float64():
    x, y = images()
    _, double = mlp_risk()
    model, _ = mlp_risk()
    risk = EmpiricalRisk(model.float(), nn.CrossEntropyLoss(), (x.float(), y))
    ds = measure.top_eigenvalues(risk, risk.theta, k=2, matrix="ggn", select="linear", seed=0)
    M = dense(Operator.of(double, risk.theta.double(), matrix="ggn", select="linear"))
    exact = torch.linalg.eigvalsh(M).flip(0)[:2]
    # The data differ too, by their rounding to float32.
    np.testing.assert_allclose(ds["eigenvalue"], exact, rtol=1e-5)
    assert ds["converged"].all()


def test_impossible_matrices_are_refused():
    risk, _ = cnn_risk()
    with pytest.raises(LandscapeError, match="choose one of 'hessian', 'ggn"):
        measure.top_eigenvalues(risk, risk.theta, matrix="fisher", seed=0)
    with pytest.raises(LandscapeError, match="names no tensor of this model; it has conv"):
        measure.top_eigenvalues(risk, risk.theta, select="embedding", seed=0)
    with pytest.raises(LandscapeError, match="Gauss-Newton products asked with bn='recalibrate'"):
        risk.with_bn("recalibrate").linearized_ggn(risk.theta)

    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(2, 2).double()

        def forward(self, x):
            return self.inner(x), x

    def first_of(output, target):
        return (output[0] - target).square().sum(1)

    x = torch.ones(4, 2, dtype=F64)
    pair = EmpiricalRisk(Pair(), first_of, (x, x))
    with pytest.raises(LandscapeError, match="the model returns tuple"):
        measure.top_eigenvalues(pair, pair.theta, k=1, matrix="ggn", seed=0)
