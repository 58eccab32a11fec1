"""Second derivatives by convolutions that are closed under differentiation, BatchNorm absorbed."""

import gc

import pytest
import torch
from torch import nn
from torch.func import functional_call

from landscape.risk import EmpiricalRisk, _fitting, _second_derivatives
from tests.risk_problems import dense_hessian, randn, settled

CE = nn.CrossEntropyLoss()


class Shared(nn.Module):
    """The convolution's output is read by BatchNorm and by a branch of its own."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 3, 3, padding=1), nn.BatchNorm2d(3)

    def forward(self, x):
        made = self.conv(x)
        return (torch.tanh(self.norm(made)) + 0.3 * made).mean((2, 3))


class Silent(Shared):
    """A second reader that adds nothing to the loss near here, but does to the Hessian."""

    def __init__(self):
        super().__init__()
        self.gate = nn.Parameter(torch.zeros(3))

    def forward(self, x):
        made = self.conv(x)
        branch = torch.relu(self.gate - 1e3).view(-1, 1, 1) * made
        return (torch.tanh(self.norm(made)) + branch).mean((2, 3))


class Twice(nn.Module):
    """One convolution called two times, between two BatchNorm layers."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 3, padding=1)
        self.norms = nn.ModuleList([nn.BatchNorm2d(2), nn.BatchNorm2d(2)])
        self.head = nn.Linear(2, 3)

    def forward(self, x):
        for norm in self.norms:
            x = torch.tanh(norm(self.conv(x)))
        return self.head(x.mean((2, 3)))


def stack(*layers, channels):
    return nn.Sequential(*layers, nn.Softplus(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                         nn.Linear(channels, 3))  # fmt: skip


class Line(nn.Module):
    """One-dimensional."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv1d(2, 3, 3, stride=2, bias=False), nn.BatchNorm1d(3)

    def forward(self, x):
        return torch.tanh(self.norm(self.conv(x.flatten(2)))).mean(2)


CASES = {
    "bias": (lambda: stack(nn.Conv2d(2, 3, 3, padding=1), nn.BatchNorm2d(3), channels=3), 1),
    "strided": (
        lambda: stack(nn.Conv2d(2, 4, 3, stride=2, bias=False), nn.BatchNorm2d(4), channels=4), 1,
    ),
    "grouped, dilated": (
        lambda: stack(nn.Conv2d(2, 4, 2, groups=2, dilation=2), nn.BatchNorm2d(4, affine=False),
                      channels=4), 1,
    ),
    "not square": (
        lambda: stack(nn.Conv2d(2, 3, (1, 3), padding=(0, 2), stride=(2, 1)), channels=3), 0,
    ),
    "reflected": (
        lambda: stack(nn.Conv2d(2, 3, 3, padding=1, padding_mode="reflect"), nn.BatchNorm2d(3),
                      channels=3), 0,
    ),
    "same": (lambda: stack(nn.Conv2d(2, 3, 3, padding="same"), nn.BatchNorm2d(3), channels=3), 0),
    "deep": (
        lambda: stack(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Tanh(),
                      nn.Conv2d(3, 2, 2, bias=False), nn.BatchNorm2d(2), channels=2), 2,
    ),
    "shared output": (Shared, 0),
    "silent reader": (Silent, 0),
    "called twice": (Twice, 0),
    "one-dimensional": (Line, 1),
}  # fmt: skip


def problem(name, dtype=torch.float64):
    model = settled(CASES[name][0]())
    x, y = randn(6, 2, 5, 5, seed=1), torch.arange(6) % 3
    return EmpiricalRisk(model.to(dtype), CE, (x.to(dtype), y)), model, (x, y)


@pytest.mark.thorough
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("bn", ["eval", "full_batch"])
def test_products_are_those_of_the_plain_network(name, bn):
    risk, model, (x, y) = problem(name)
    risk = risk.with_bn(bn)
    model.train(bn == "full_batch")
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = 0.0

    def loss(theta):
        return CE(functional_call(model, risk.layout.unflatten(theta), (x,)), y)

    theta = risk.theta
    H = dense_hessian(loss, theta)
    V = torch.eye(len(theta), dtype=theta.dtype)
    torch.testing.assert_close(risk.hvp(theta, V), H, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(risk.linearized_hvp(theta)(V), H, rtol=1e-9, atol=1e-12)
    if bn == "eval":
        assert len(risk._engine.network.twice.pairs) == CASES[name][1]


def test_a_frozen_batchnorm_is_absorbed_and_the_coordinates_stay():
    model = settled(CASES["deep"][0]())
    for p in model[1].parameters():
        p.requires_grad_(False)
    model[3].weight.requires_grad_(False)
    risk = EmpiricalRisk(model, CE, (randn(6, 2, 5, 5, seed=1), torch.arange(6) % 3))
    theta, step = risk.theta, 1e-6
    v = randn(len(theta), seed=2)
    near = (risk.gradient(theta + step * v) - risk.gradient(theta - step * v)) / (2 * step)
    torch.testing.assert_close(risk.hvp(theta, v), near, rtol=1e-7, atol=1e-8)
    assert len(risk._engine.network.twice.pairs) == 2


def test_values_do_not_notice_and_float32_stays_close():
    risk, _, _ = problem("deep", torch.float32)
    theta = risk.theta
    loss = risk.loss(theta)
    risk.hvp(theta, theta)
    assert torch.equal(risk.loss(theta), loss)
    single, double = risk.hvp(theta, theta), risk.with_dtype(torch.float64)
    exact = double.hvp(theta.double(), theta.double())
    assert float((single - exact).norm() / exact.norm()) < 1e-5


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("stride", [1, 2])
def test_a_product_in_pieces_of_a_batch_equals_that_of_the_whole(monkeypatch, groups, stride):
    layers = [nn.Conv2d(2, 4, 3, stride, 1, bias=True), nn.Softplus(),
              nn.Conv2d(4, 4, 3, 1, 2, dilation=2, groups=groups)]  # fmt: skip
    torch.manual_seed(0)
    model = stack(*layers, channels=4).double()
    data = randn(7, 2, 9, 8), torch.arange(7) % 3
    risk = EmpiricalRisk(model, CE, data)
    v = randn(len(risk.theta))
    pieces = []
    for size in (2**40, 1, 2**12):  # all at once, one by one, three and then four a call
        monkeypatch.setattr(_second_derivatives, "_WINDOWS", size)
        pieces.append(risk.hvp(risk.theta, v))
    # The sum over examples is cut elsewhere, which moves it by rounding.
    torch.testing.assert_close(pieces[1], pieces[0], rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(pieces[2], pieces[0], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("channels", [4, 48])
def test_both_layouts_of_a_convolution_give_one_product(channels):
    """float32 with the channels last, or first where the weights are larger than the images."""
    x, y = randn(2, 3, 6, 6), torch.tensor([0, 2])
    model = nn.Sequential(
        nn.Conv2d(3, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.Softplus(),
        nn.Conv2d(channels, channels, 3, stride=2), nn.Flatten(), nn.Linear(channels * 4, 3),
    )  # fmt: skip
    settled(model.double())
    second = model[3]
    last = _second_derivatives._channels_last(randn(2, channels, 6, 6).float(), second.weight)
    assert last == (channels == 4)
    exact = EmpiricalRisk(model, CE, (x, y))
    single = EmpiricalRisk(model, CE, (x, y), dtype=torch.float32)
    v = randn(len(exact.theta))
    expected, found = exact.hvp(exact.theta, v), single.hvp(single.theta, v.float())
    assert float((found - expected).norm() / expected.norm()) < 1e-5


def test_measuring_a_graph_leaves_nothing_behind():
    """Saved tensors that are outputs of their own graph would hold it for good."""
    x, y = randn(8, 3, 8, 8), torch.arange(8) % 3
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 3)).double()
    risk = EmpiricalRisk(model, CE, (x, y))

    def graphs():
        gc.collect()
        tensors = [each for each in gc.get_objects() if type(each) is torch.Tensor]
        return sum(each.grad_fn is not None for each in tensors)

    before = graphs()
    sizes = [_fitting.graph_bytes(risk._engine, 8, order=order) for order in (1, 2)]
    assert 0 < sizes[0] < sizes[1]
    assert graphs() == before


def _sizes(model, data, dtype, first):
    risk = EmpiricalRisk(model, CE, data, dtype=dtype)
    first(risk)
    _ = [_fitting.graph_batches(risk._engine, order) for order in (1, 2)]
    return dict(risk._engine.notes.graph_sizes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_examples_that_are_there_are_no_part_of_a_graph(dtype):
    """They would be what every graph holds, and of many none would seem to fit."""
    x = torch.randn(4000, 3, 8, 8, generator=torch.Generator().manual_seed(0)).to(dtype)
    y = torch.arange(4000) % 3
    for layers in ([nn.Conv2d(3, 8, 3), nn.Tanh(), nn.Flatten(), nn.Linear(288, 3)],
                   [nn.Flatten(), nn.Linear(192, 5), nn.Tanh(), nn.Linear(5, 3)]):  # fmt: skip
        model = nn.Sequential(*layers).to(dtype)
        few, many = (
            _sizes(model, (x[:n].clone(), y[:n].clone()), dtype, EmpiricalRisk.probe)
            for n in (8, 4000)
        )
        assert few == many
        assert max(fixed for fixed, _ in few.values()) < x.nbytes / 100


class Adapted(nn.Module):
    """A large frozen layer and a large constant, of which the graph of two small ones reads."""

    def __init__(self):
        super().__init__()
        self.first, self.base, self.last = nn.Linear(4, 300), nn.Linear(300, 300), nn.Linear(300, 3)
        self.base.requires_grad_(False)
        self.register_buffer("mixing", torch.randn(300, 300) / 300)

    def forward(self, x):
        return self.last(torch.tanh(self.base(torch.tanh(self.first(x))) @ self.mixing))


def test_frozen_weights_and_buffers_are_no_part_of_a_graph():
    model, data = Adapted(), (torch.randn(64, 4), torch.arange(64) % 3)
    sizes = _sizes(model, data, torch.float32, EmpiricalRisk.probe)
    assert max(fixed for fixed, _ in sizes.values()) < 300 * 300 * 4


def test_a_graph_is_measured_as_it_will_be_built_whoever_asks_first():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Tanh(), nn.Flatten(), nn.Linear(288, 3)
    )
    data = torch.randn(64, 3, 8, 8), torch.arange(64) % 3
    by_probe = _sizes(model, data, torch.float32, EmpiricalRisk.probe)
    by_products = _sizes(model, data, torch.float32, lambda risk: None)
    assert by_probe == by_products
    risk = EmpiricalRisk(model, CE, data)
    product = risk.linearized_hvp(risk.theta)
    told = _fitting.graph_bytes(risk._engine, 64, order=2)
    batch = risk._engine.examples.cut(64)[0]
    risk._engine.notes.graph_sizes.clear()
    assert _fitting._saved_bytes(risk._engine, batch, 2) == pytest.approx(told, rel=1e-3)
    assert product.num_kept == 64
