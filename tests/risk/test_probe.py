"""A gradient that is not the slope of the loss, a product that is not symmetric: said, by name."""

import json

import pytest
import torch
from torch import nn
from torch.autograd import Function
from torch.nn import functional as F

from landscape import measure
from landscape.errors import LandscapeError
from landscape.risk import EmpiricalRisk
from landscape.risk._engine import Engine
from landscape.risk._network import Moved
from tests.risk_problems import F64, problem, randn, rng, settled

CE = nn.CrossEntropyLoss()
X, Y = randn(40, 4, seed=3), torch.randint(0, 3, (40,), generator=rng(4))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x):
        return self.b(torch.tanh(self.a(x)))


class Quantized(Net):
    """Straight-through: rounded weights, the gradient of unrounded ones."""

    def __init__(self, levels):
        super().__init__()
        self.levels = levels

    def rounded(self, w):
        size = w.detach().abs().max() / self.levels
        return w + ((w / size).round() * size - w).detach()

    def forward(self, x):
        h = torch.tanh(F.linear(x, self.rounded(self.a.weight), self.a.bias))
        return F.linear(h, self.rounded(self.b.weight), self.b.bias)


class Reversal(Function):
    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, g):
        return -0.5 * g


class Reversed(Net):
    def forward(self, x):
        return self.b(Reversal.apply(torch.tanh(self.a(x))))


class Detached(Net):
    """A tenth of the features that the gradient does not see."""

    def forward(self, x):
        h = torch.tanh(self.a(x))
        return self.b(h + 0.1 * h.detach())


class Fused(Net):
    """torch's fused weight norm called by hand."""

    def __init__(self):
        super().__init__()
        self.a.g = nn.Parameter(torch.ones(6, 1))

    def forward(self, x):
        return self.b(torch.tanh(F.linear(x, torch._weight_norm(self.a.weight, self.a.g, 0))))


class Rectified(Net):
    """Zero biases and inputs that are partly zero: units sit exactly on their kinks."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 200), nn.Linear(200, 3)

    def forward(self, x):
        return self.b(torch.relu(self.a(x * (x > 0.5))))


FALSE = {
    "straight through, coarse": (lambda: Quantized(3), ["a.weight", "b.weight"]),
    "straight through, fine": (lambda: Quantized(255), ["a.weight", "b.weight"]),
    "reversed": (Reversed, ["a.weight", "a.bias"]),
    "detached": (Detached, ["a.weight", "a.bias"]),
}


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("name", FALSE)
def test_a_gradient_that_is_not_the_slope_is_never_converged(name, dtype):
    make, tensors = FALSE[name]
    risk = EmpiricalRisk(settled(make()), CE, (X, Y), dtype=dtype)
    found = measure.top_eigenvalues(risk, risk.theta, k=2, seed=0)
    assert not found.converged.values.any()
    record = json.loads(found.attrs["provenance"])
    (reason,) = record["unsound"]
    assert "not the slope" in reason
    for tensor in risk.layout.names:
        assert (repr(tensor) in reason) == (tensor in tensors)
    assert len(record["probe"]["loss_slopes"]) == len(record["probe"]["steps"]) == 3
    ggn = measure.top_eigenvalues(risk, risk.theta, k=2, matrix="ggn", seed=0)
    assert not ggn.converged.values.any()


def test_a_product_that_is_not_symmetric_is_never_converged():
    risk = EmpiricalRisk(settled(Fused()), CE, (X, Y))
    found = measure.top_eigenvalues(risk, risk.theta, k=2, seed=0)
    assert not found.converged.values.any()
    (reason,) = json.loads(found.attrs["provenance"])["unsound"]
    assert "not symmetric" in reason
    assert "'a'" in reason
    assert "'b'" not in reason
    blocks = measure.block_curvature(risk, risk.theta, num_probes=2, seed=0)
    assert not blocks.converged.values.any()
    # Its Gauss-Newton products use no second derivative of the network.
    ggn = measure.top_eigenvalues(risk, risk.theta, k=2, matrix="ggn", seed=0)
    assert ggn.converged.values.all()
    assert "unsound" not in json.loads(ggn.attrs["provenance"])


@pytest.mark.parametrize("name", ["mlp_bn", "cnn_bn", "transformer"])
@pytest.mark.parametrize("bn", ["eval", "full_batch"])
def test_honest_networks_pass_and_their_numbers_are_kept(name, bn):
    model, data = problem(name)
    risk = EmpiricalRisk(model, CE, data, bn=bn)
    probe = risk.probe()
    assert probe.reasons() == ()
    # Central differences: the error falls with the square of the step.
    gaps = [abs(slope - probe.slope) for slope in probe.loss_slopes]
    assert gaps[1] < 0.1 * gaps[0]
    assert probe.asymmetry < 1e-12
    assert risk.probe() is probe
    assert risk.subset(torch.arange(4)).probe() is probe
    assert risk.with_dtype(torch.float32).probe() is probe


def test_kinks_at_theta_are_no_false_gradient():
    model = Rectified()
    nn.init.zeros_(model.a.bias)
    risk = EmpiricalRisk(model, CE, (X.float(), Y))
    assert risk.probe().reasons() == ()
    assert measure.top_eigenvalues(risk, risk.theta, k=1, seed=0).converged.values.all()


class Rippled(Net):
    """A loss that turns within a ten-thousandth of its weights."""

    def forward(self, x):
        return torch.sin(1e4 * super().forward(x))


def test_a_loss_that_turns_within_the_steps_is_cleared_by_one_shorter_step(monkeypatch):
    evaluated, plain = [], Engine.loss_only
    monkeypatch.setattr(Engine, "loss_only", lambda *given: evaluated.append(1) or plain(*given))
    risk = EmpiricalRisk(settled(Rippled()), CE, (X, Y))
    evaluated.clear()
    probe = risk.probe()
    gaps = [abs(slope - probe.slope) for slope in probe.loss_slopes]
    assert gaps[1] > 0.5 * gaps[0]  # not yet the regime in which they vanish
    assert gaps[2] > 1e-3 * abs(probe.slope)
    assert probe.reasons() == ()
    assert len(evaluated) <= 10  # not two for each of its tensors


def test_results_without_products_say_nothing_of_the_probe():
    risk = EmpiricalRisk(settled(Net()), CE, (X, Y))
    with_products = measure.hessian_trace(risk, risk.theta, num_probes=2, seed=0)
    assert json.loads(with_products.attrs["provenance"])["probe"]["rows"] == 16
    without = measure.loss_slice(risk, risk.theta, num_directions=1, points=3, seed=0)
    assert "probe" not in json.loads(without.attrs["provenance"])


def test_a_probe_of_few_examples_and_of_a_model_without_second_derivative():
    risk = EmpiricalRisk(settled(Net()), CE, (X[:1], Y[:1]))
    assert risk.probe().rows == 1
    assert risk.probe().reasons() == ()

    class Distances(Net):
        def forward(self, x):
            return torch.cdist(super().forward(x), torch.eye(3, dtype=x.dtype))

    model = settled(nn.Sequential(Distances(), nn.Tanh()))
    risk = EmpiricalRisk(model, CE, (X[:20], Y[:20]))  # of more rows torch makes it of products
    assert "not implemented" in risk.probe().failure
    with pytest.raises(LandscapeError, match=r"'0' \(Distances\) cannot be differentiated twice"):
        risk.hvp(risk.theta, risk.theta)


def test_a_module_that_gives_no_derivative_is_not_blamed_for_the_one_that_has_no_second():
    class Distances(nn.Module):
        def forward(self, x):
            return torch.cdist(x, torch.eye(3, dtype=x.dtype))

    class Ranks(nn.Module):
        def forward(self, x):
            return x.argmax(1)

    class Both(Net):
        def __init__(self):
            super().__init__()
            self.distances, self.ranks = Distances(), Ranks()

        def forward(self, x):
            out = self.distances(super().forward(x))
            return out + self.ranks(out)[:, None]

    risk = EmpiricalRisk(settled(Both()), CE, (X[:20], Y[:20]))
    with pytest.raises(LandscapeError, match=r"\(Distances\) cannot be diff") as said:
        risk.hvp(risk.theta, risk.theta)
    assert "Ranks" not in str(said.value)


# Precision within the model ----------------------------------------------------------------------


class Recurrent(nn.Module):
    """The tutorials' LSTM, whose first state is made in float32."""

    def __init__(self):
        super().__init__()
        self.rnn, self.head = nn.LSTM(4, 5, batch_first=True), nn.Linear(5, 3)

    def forward(self, x):
        first = torch.zeros(1, len(x), 5, dtype=torch.float32)
        return self.head(self.rnn(x[:, None], (first, torch.zeros(1, len(x), 5)))[0][:, -1])


class Cast(Net):
    def forward(self, x):
        return self.b(torch.tanh(self.a(x.float())).float())


class Positions(Net):
    """A table kept as a plain attribute, and a norm computed in float32."""

    def __init__(self):
        super().__init__()
        self.table = torch.arange(24.0, dtype=torch.float32).reshape(6, 4).sin()

    def forward(self, x):
        h = self.a(x @ self.table.T @ self.table / 10).to(torch.float32)
        return self.b((h * torch.rsqrt(h.square().mean(1, keepdim=True) + 1e-6)).to(x.dtype))


class OnlySingle(Net):
    def forward(self, x):
        if x.dtype != torch.float32:
            raise TypeError("a kernel for float32")
        return super().forward(x)


class Halved(Net):
    def forward(self, x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return self.b(torch.tanh(self.a(x))).to(x.dtype)


@pytest.mark.parametrize("make", [Recurrent, Cast, Positions])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_what_a_model_makes_in_float32_follows_float64_weights(make, dtype):
    model = settled(make()).float()
    risk = EmpiricalRisk(model, CE, (X.float(), Y), dtype=dtype)
    found = measure.top_eigenvalues(risk, risk.theta, k=2, seed=0)
    record = json.loads(found.attrs["provenance"])
    assert record["certify"] == "float64"
    assert record["probe"]["promoted"] is True
    assert found.converged.values.all()
    double = risk.with_dtype(F64)
    theta, v = double.theta, randn(len(risk.theta), seed=6)
    h = 1e-6 / float(v.norm())
    # In float32 inside, a slope over so short a step would be noise.
    slope = (double.loss(theta + h * v) - double.loss(theta - h * v)) / (2 * h)
    torch.testing.assert_close(slope, double.gradient(theta) @ v, rtol=1e-5, atol=1e-7)
    V = torch.eye(len(theta), dtype=F64)
    values = torch.linalg.eigvalsh(double.hvp(theta, V)).flip(0)[:2].numpy()
    assert (abs(found.eigenvalue.values - values) <= found.bound.values + 1e-12).all()


def test_a_model_without_float64_is_certified_in_working_precision_and_says_so():
    risk = EmpiricalRisk(settled(OnlySingle()).float(), CE, (X.float(), Y))
    for certify in ("float64", "working"):
        found = measure.top_eigenvalues(risk, risk.theta, k=2, certify=certify, seed=0)
        record = json.loads(found.attrs["provenance"])
        assert record["certify"] == "working"
        assert "a kernel for float32" in record["certify_reason"]
        assert found.product_error.isnull()
        assert record["probe"]["dtype"] == "float32"
    plain = EmpiricalRisk(settled(Net()).float(), CE, (X.float(), Y))
    expected = measure.top_eigenvalues(plain, plain.theta, k=2, seed=0)
    torch.testing.assert_close(
        torch.tensor(found.eigenvalue.values), torch.tensor(expected.eigenvalue.values), rtol=1e-4,
        atol=1e-6,
    )  # fmt: skip
    blocks = measure.block_curvature(risk, risk.theta, num_probes=2, seed=0)
    assert json.loads(blocks.attrs["provenance"])["certify"] == "working"
    with pytest.raises(LandscapeError, match="a kernel for float32"):
        EmpiricalRisk(settled(OnlySingle()).float(), CE, (X, Y), dtype=F64)


def test_half_precision_within_a_model_is_named():
    risk = EmpiricalRisk(settled(Halved()).float(), CE, (X.float(), Y))
    named = risk.provenance()["half_precision"]
    assert "Module 'a' (Linear): bfloat16" in named
    assert "Module 'b' (Linear): bfloat16" in named
    assert "half_precision" not in EmpiricalRisk(settled(Net()), CE, (X, Y)).provenance()


class Squared(Function):
    """Its backward is right and cannot be differentiated: it computes on detached tensors."""

    @staticmethod
    def forward(ctx, x):
        ctx.x = x.detach()
        return x**2

    @staticmethod
    def backward(ctx, g):
        return 2 * ctx.x * g


class Incomplete(Net):
    def forward(self, x):
        return self.b(Squared.apply(self.a(x)))


def test_a_product_that_leaves_a_part_out_is_never_converged():
    risk = EmpiricalRisk(settled(Incomplete()), CE, (X, Y))
    found = measure.top_eigenvalues(risk, risk.theta, k=2, seed=0)
    assert not found.converged.values.any()
    record = json.loads(found.attrs["provenance"])
    assert any("not the curvature" in reason for reason in record["unsound"])
    assert not any("not the slope" in reason for reason in record["unsound"])


@pytest.mark.parametrize("seed", range(6))
def test_rectified_networks_of_any_width_pass(seed):
    torch.manual_seed(seed)
    width = 4 ** (seed + 1) if seed < 5 else 2000
    model = nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, width // 2), nn.ReLU(),
                          nn.Linear(width // 2, 3))  # fmt: skip
    assert EmpiricalRisk(model, CE, (X.float(), Y)).probe().reasons() == ()


def test_a_large_model_whose_first_row_counts_for_nothing_is_probed_on_more(monkeypatch):
    monkeypatch.setattr("landscape.risk._probe._LARGE", 1)
    ignored = Y.clone()
    ignored[0] = -100
    seen = EmpiricalRisk(Reversed(), CE, (X, ignored)).probe()
    assert seen.rows == 16
    assert seen.false_gradient
    assert EmpiricalRisk(Reversed(), CE, (X, Y)).probe().rows == 1


def test_a_large_model_of_coupled_examples_is_asked_first_what_its_graph_takes(monkeypatch):
    def too_large(*_):
        raise LandscapeError("their graph needs more than 1 GiB in one piece")

    monkeypatch.setattr("landscape.risk._probe._LARGE", 1)
    monkeypatch.setattr("landscape.risk._fitting.most_rows", too_large)
    assert EmpiricalRisk(Reversed(), CE, (X, Y)).probe().rows == 1  # one row has to fit
    coupled = EmpiricalRisk(Reversed(), CE, (X, Y), reduction="whole").probe()
    assert "one piece" in coupled.failure


def test_a_moved_point_is_added_up_in_the_networks_precision():
    twin = EmpiricalRisk(Net(), CE, (X.float(), Y)).with_dtype(F64)
    network = twin._engine.network
    start, u, v = (torch.randn(len(twin.theta)) for _ in range(3))
    with network.at(Moved(start, ((u.bfloat16(), 1e-3), (v, -1e-5)))):
        found = torch.cat([w.detach().reshape(-1) for w in network.weights])
    by_hand = start.double() + 1e-3 * u.bfloat16().double() - 1e-5 * v.double()
    # Two roundings of float64 in another order; in float32 it would be off by 1e-8.
    torch.testing.assert_close(found, by_hand, rtol=1e-15, atol=1e-16)
