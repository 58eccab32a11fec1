"""Hessians that are known by hand, so that no two autograds agree on the same mistake."""

import pytest
import torch
from torch import nn

from landscape.linalg import lanczos
from landscape.risk import EmpiricalRisk
from tests.risk_problems import F64, randn, rng, settled


def half_square(output, target):
    return 0.5 * (output.squeeze(-1) - target) ** 2


def dense(risk, theta=None):
    theta = risk.theta if theta is None else theta
    return risk.hvp(theta, torch.eye(len(theta), dtype=F64))


class Scalar(nn.Module):
    """A network that is a function of its weights alone; the inputs only count rows."""

    def __init__(self, function, *weights):
        super().__init__()
        self.function = function
        self.weights = nn.ParameterList([nn.Parameter(w.clone()) for w in weights])

    def forward(self, x):
        return self.function(*self.weights).reshape(1).expand(len(x))


ROWS = (torch.zeros(3, 1, dtype=F64), torch.zeros(3, dtype=F64))


def identity_loss(output, _target):
    return output


def test_linear_regression_has_hessian_xtx_over_n_everywhere():
    X, y = randn(30, 5), randn(30, seed=3)
    model = settled(nn.Linear(5, 1, bias=False))
    risk = EmpiricalRisk(model, half_square, (X, y), batch_size=7)
    for theta in (risk.theta, randn(5, seed=9)):
        torch.testing.assert_close(dense(risk, theta), X.T @ X / 30, rtol=0, atol=1e-14)
        torch.testing.assert_close(
            risk.gradient(theta), X.T @ (X @ theta - y) / 30, rtol=0, atol=1e-14
        )
        torch.testing.assert_close(risk.loss(theta), 0.5 * ((X @ theta - y) ** 2).mean())


def test_softmax_regression_hessian_and_its_null_space():
    X, y = randn(20, 4), torch.randint(0, 3, (20,), generator=rng(1))
    model = settled(nn.Linear(4, 3, bias=False))
    risk = EmpiricalRisk(model, nn.CrossEntropyLoss(), (X, y))
    p = torch.softmax(X @ risk.layout.unflatten(risk.theta)["weight"].T, 1)
    curvature = torch.diag_embed(p) - p[:, :, None] * p[:, None]
    H = torch.einsum("nab,ni,nj->aibj", curvature, X, X).reshape(12, 12) / 20
    torch.testing.assert_close(dense(risk), H, rtol=0, atol=1e-14)
    values = torch.linalg.eigvalsh(dense(risk))
    assert (values > -1e-14).all()
    assert (values.abs() < 1e-14).sum() >= 4  # logits may be shifted along each input


@pytest.mark.parametrize(("a", "b"), [(2.0, 0.5), (0.3, -1.1)])
def test_product_of_two_scalars(a, b):
    first, second = (torch.tensor([value], dtype=F64) for value in (a, b))
    model = Scalar(lambda u, v: 0.5 * (u * v - 1) ** 2, first, second)
    risk = EmpiricalRisk(model, identity_loss, ROWS)
    expected = torch.tensor([[b * b, 2 * a * b - 1], [2 * a * b - 1, a * a]], dtype=F64)
    torch.testing.assert_close(dense(risk), expected, rtol=0, atol=1e-14)
    if a * b == 1:
        values = torch.linalg.eigvalsh(dense(risk))
        torch.testing.assert_close(values, torch.tensor([0.0, a * a + b * b], dtype=F64))


def test_deep_scalar_network_on_its_minimum_has_one_eigenvalue():
    w = torch.tensor([2.0, -0.5, 4.0, -0.25], dtype=F64)  # product 1
    model = Scalar(lambda *ws: 0.5 * (torch.cat(ws).prod() - 1) ** 2, *w.split(1))
    risk = EmpiricalRisk(model, identity_loss, ROWS)
    pairs = lanczos.top(risk.linearized_hvp(risk.theta), 4, k=3, generator=rng())
    expected = torch.tensor([float((1 / w**2).sum()), 0.0, 0.0], dtype=F64)
    torch.testing.assert_close(pairs.values, expected, rtol=0, atol=1e-12)


def test_two_layer_linear_network_has_the_spectrum_of_sums_of_squares():
    W1, W2 = randn(3, 4, seed=5), randn(5, 3, seed=6)  # 4 -> 3 -> 5
    target = W2 @ W1

    model = Scalar(lambda a, b: 0.5 * ((b @ a - target) ** 2).sum(), W1, W2)
    risk = EmpiricalRisk(model, identity_loss, ROWS)
    s1, s2 = torch.zeros(4, dtype=F64), torch.zeros(5, dtype=F64)
    s1[:3], s2[:3] = torch.linalg.svdvals(W1) ** 2, torch.linalg.svdvals(W2) ** 2
    sums = (s1[:, None] + s2[None, :]).flatten().sort(descending=True).values
    pairs = lanczos.top(risk.linearized_hvp(risk.theta), 27, k=8, generator=rng())
    assert pairs.converged.all()
    torch.testing.assert_close(pairs.values, sums[:8], rtol=1e-9, atol=1e-9)
    spectrum = torch.linalg.eigvalsh(dense(risk)).flip(0)
    padded = torch.cat([sums, torch.zeros(27 - 20, dtype=F64)]).sort(descending=True).values
    torch.testing.assert_close(spectrum, padded, rtol=0, atol=1e-12)


def test_scale_invariant_risk():
    target = randn(4, seed=3)
    model = Scalar(lambda w: ((w / w.norm() - target) ** 2).sum(), randn(4, seed=4))
    risk = EmpiricalRisk(model, identity_loss, ROWS)
    w, H = risk.theta, dense(risk)
    torch.testing.assert_close(H @ w, -risk.gradient(w), rtol=0, atol=1e-13)
    for scale in (0.2, 7.0):
        torch.testing.assert_close(dense(risk, scale * w), H / scale**2, rtol=1e-11, atol=1e-13)


def test_relu_rescaling_leaves_loss_and_weighted_diagonal_but_not_curvature():
    model = nn.Sequential(nn.Linear(3, 8, bias=False), nn.ReLU(), nn.Linear(8, 2, bias=False))
    model.double()
    data = (randn(25, 3), torch.randint(0, 2, (25,), generator=rng(1)))
    risk = EmpiricalRisk(model, nn.CrossEntropyLoss(), data)
    theta = risk.layout.flatten({"0.weight": randn(8, 3, seed=2), "2.weight": randn(2, 8, seed=3)})
    scale = torch.where(risk.layout.mask("0.*"), 3.0, 1 / torch.tensor(3.0, dtype=F64)).to(F64)
    moved = theta * scale
    torch.testing.assert_close(risk.loss(moved), risk.loss(theta), rtol=1e-14, atol=0)
    H, moved_H = dense(risk, theta), dense(risk, moved)
    weighted = (theta**2 * H.diagonal()).sum()
    torch.testing.assert_close((moved**2 * moved_H.diagonal()).sum(), weighted, rtol=1e-12, atol=0)
    assert (moved_H.trace() / H.trace() - 1).abs() > 0.1
    top, moved_top = (torch.linalg.eigvalsh(M)[-1] for M in (H, moved_H))
    assert (moved_top / top - 1).abs() > 0.1


def test_weight_decay_adds_half_a_square_its_gradient_and_the_identity():
    X, y = randn(10, 3), randn(10, seed=3)
    model = settled(nn.Linear(3, 1, bias=False))
    plain = EmpiricalRisk(model, half_square, (X, y))
    decayed = EmpiricalRisk(model, half_square, (X, y), weight_decay=0.3)
    theta, v = randn(3, seed=5), randn(3, seed=6)
    extra = 0.15 * theta.square().sum()
    torch.testing.assert_close(decayed.loss(theta), plain.loss(theta) + extra)
    torch.testing.assert_close(decayed.gradient(theta), plain.gradient(theta) + 0.3 * theta)
    torch.testing.assert_close(decayed.hvp(theta, v), plain.hvp(theta, v) + 0.3 * v)
    torch.testing.assert_close(decayed.linearized_hvp(theta)(v), decayed.hvp(theta, v))
    torch.testing.assert_close(decayed.losses(theta), plain.losses(theta))
    assert decayed.provenance()["weight_decay"] == 0.3
