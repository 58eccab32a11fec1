"""Curvature along an update against dense matrices; the update against the optimizer itself."""

import numpy as np
import pytest
import torch
from torch import nn

from landscape import EmpiricalRisk, LandscapeError, measure
from tests.measure.curvature.test_blocks import dense
from tests.measure_problems import cnn_risk, quadratic

F64 = torch.float64


@pytest.mark.parametrize("matrix", ["hessian", "ggn"])
@pytest.mark.parametrize("by", ["tensor", "module", "kind"])
def test_along_an_update_it_is_the_dense_matrix_and_its_blocks(by, matrix):
    risk, _ = cnn_risk()
    d = torch.randn(len(risk.theta), generator=torch.Generator().manual_seed(3), dtype=F64)
    first = risk.layout.tensors[0]
    d[first.start : first.stop] = 0
    ds = measure.directional_sharpness(risk, risk.theta, direction=d, by=by, matrix=matrix)
    H = dense(risk, matrix)
    label = {"tensor": "name", "module": "module", "kind": "kind"}[by]
    labels = np.array([getattr(t, label) for t in risk.layout.tensors])
    owner = np.repeat(labels, [t.numel for t in risk.layout.tensors])
    size = float(d @ d)
    np.testing.assert_allclose(ds["directional_sharpness"], float(d @ H @ d) / size, rtol=1e-10)
    for number, name in enumerate(ds["block"].values):
        part = d * torch.from_numpy(owner == name)
        inside = float(part @ H @ part)
        np.testing.assert_allclose(ds["within"][number], inside / size, rtol=1e-8, atol=1e-14)
        if float(part @ part):
            own = inside / float(part @ part)
            np.testing.assert_allclose(ds["block_sharpness"][number], own, rtol=1e-8, atol=1e-14)
        else:
            assert np.isnan(ds["block_sharpness"][number])
    together = float(ds["within_blocks"] + ds["across_blocks"])
    np.testing.assert_allclose(together, ds["directional_sharpness"], rtol=1e-12)
    np.testing.assert_allclose(ds["first_order"], float(risk.gradient(risk.theta) @ d), rtol=1e-12)


def test_the_second_order_of_a_step_is_what_it_says():
    risk, _, _ = quadratic([5.0, 3.0, 1.0, -0.5])
    theta = risk.theta + 0.3
    ds = measure.directional_sharpness(risk, theta)
    eta, d = 0.1, risk.gradient(theta)
    said = (
        -eta * ds["first_order"]
        + eta**2 / 2 * ds["direction_norm"] ** 2 * ds["directional_sharpness"]
    )
    made = float(risk.loss(theta - eta * d) - risk.loss(theta))
    np.testing.assert_allclose(said, made, rtol=1e-10)


def test_a_zero_update_is_refused():
    risk, _, _ = quadratic([5.0, 3.0])
    with pytest.raises(LandscapeError, match="zero direction"):
        measure.directional_sharpness(risk, risk.theta, direction=torch.zeros(2, dtype=F64))


def net(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()


def data(seed=1):
    source = torch.Generator().manual_seed(seed)
    x = torch.randn(20, 4, generator=source, dtype=F64)
    return x, torch.randint(3, (20,), generator=source)


OPTIMIZERS = {
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=1e-2),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_update_is_that_of_the_next_step_and_nothing_is_changed(name):
    model, (x, y) = net(), data()
    optimizer = OPTIMIZERS[name](model.parameters())
    lr = optimizer.param_groups[0]["lr"]

    def step():
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()

    for _ in range(3):
        step()
    risk = EmpiricalRisk(model, nn.CrossEntropyLoss(), (x, y))
    before = [p.detach().clone() for p in model.parameters()]
    slopes = [p.grad.clone() for p in model.parameters()]
    state = str(optimizer.state_dict())
    d = measure.optimizer_update(optimizer, model=model, risk=risk, theta=risk.theta)
    for p, w, g in zip(model.parameters(), before, slopes, strict=True):
        assert torch.equal(p, w)
        assert torch.equal(p.grad, g)
    assert str(optimizer.state_dict()) == state
    theta = risk.theta.clone()
    step()
    after = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
    torch.testing.assert_close(theta - lr * d, after, rtol=1e-10, atol=1e-13)


def test_what_the_optimizer_does_not_hold_does_not_move():
    model, rows = net(), data()
    optimizer = torch.optim.SGD(model[2].parameters(), lr=0.1)
    risk = EmpiricalRisk(model, nn.CrossEntropyLoss(), rows)
    d = measure.optimizer_update(optimizer, model=model, risk=risk, theta=risk.theta)
    g = risk.gradient(risk.theta)
    assert not d[:30].any()
    torch.testing.assert_close(d[30:], g[30:])


@pytest.mark.parametrize("lr", [1e-1, 1e-6])
def test_a_small_step_of_float32_weights_keeps_its_digits(lr):
    model, (x, y) = net().float(), data()
    risk = EmpiricalRisk(model, nn.CrossEntropyLoss(), (x.float(), y))
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    d = measure.optimizer_update(optimizer, model=model, risk=risk, theta=risk.theta)
    torch.testing.assert_close(d, risk.gradient(risk.theta), rtol=1e-6, atol=1e-8)


def test_an_optimizer_that_cannot_be_asked_is_named():
    model, rows = net(), data()
    risk = EmpiricalRisk(model, nn.CrossEntropyLoss(), rows)
    asked = {"model": model, "risk": risk, "theta": risk.theta}
    with pytest.raises(LandscapeError, match=r"LBFGS.step\(\) needs more than gradients"):
        measure.optimizer_update(torch.optim.LBFGS(model.parameters()), **asked)
    with pytest.raises(LandscapeError, match="holds no parameter of `model`"):
        measure.optimizer_update(torch.optim.SGD(net().parameters(), lr=0.1), **asked)


def test_relative_critical_sharpness_of_two_quadratics():
    """L₂(θ - ηd) = L₂(θ) at η = 2 g₂ᵀd / dᵀH₂d, d the update on the first risk."""
    first, _, _ = quadratic([5.0, 3.0, 1.0])
    second, H, _ = quadratic([1.0, 2.0, 4.0])
    theta = first.theta + torch.tensor([0.3, 0.2, 0.4], dtype=F64)
    d = first.gradient(theta)
    g = second.gradient(theta)
    if float(g @ d) < 0:
        d = -d
    found = measure.critical_sharpness(second, theta, direction=d, tolerance=1e-6)
    exact = float(d @ H @ d) / float(g @ d)
    np.testing.assert_allclose(found["critical_sharpness"], exact, rtol=1e-5)
