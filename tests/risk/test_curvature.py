import weakref

import pytest
import torch
from torch import nn
from torch.autograd import Function
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from landscape.errors import LandscapeError
from landscape.linalg import lanczos
from landscape.risk import EmpiricalRisk, _fitting
from landscape.risk._engine import _widened
from tests.risk_problems import F64, PROBLEMS, dense_hessian, problem, randn, rng, settled

CASES = [(name, bn) for name in PROBLEMS for bn in ("eval", "full_batch")]


def by_hand(model, data, bn):
    """Mean cross-entropy at theta by functional_call on the caller's model, math kernels."""
    x, y = data
    names = [name for name, _ in model.named_parameters()]
    shapes = [p.shape for p in model.parameters()]
    model.eval()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and bn == "full_batch":
            module.train()
            module.momentum = 0.0

    def function(theta):
        parts = theta.split([s.numel() for s in shapes])
        named = {n: p.view(s) for n, p, s in zip(names, parts, shapes, strict=True)}
        with sdpa_kernel([SDPBackend.MATH]):
            return nn.functional.cross_entropy(functional_call(model, named, (x,)), y)

    return function


@pytest.mark.thorough
@pytest.mark.parametrize(("name", "bn"), CASES)
def test_loss_gradient_and_hessian_agree_with_autograd_by_hand(name, bn):
    model, data = problem(name)
    risk = EmpiricalRisk(model, nn.CrossEntropyLoss(), data, bn=bn)
    function, theta = by_hand(model, data, bn), risk.theta
    torch.testing.assert_close(risk.loss(theta), function(theta).detach(), rtol=1e-12, atol=0)
    H = dense_hessian(function, theta)
    leaf = theta.clone().requires_grad_()
    gradient = torch.autograd.grad(function(leaf), leaf)[0]
    torch.testing.assert_close(risk.gradient(theta), gradient, rtol=0, atol=1e-12)
    eye = torch.eye(len(theta), dtype=F64)
    torch.testing.assert_close(risk.hvp(theta, eye), H, rtol=0, atol=1e-10)
    torch.testing.assert_close(risk.linearized_hvp(theta)(eye), H, rtol=0, atol=1e-10)


@pytest.mark.parametrize(("name", "bn"), CASES)
def test_top_five_eigenvalues_agree_with_the_dense_hessian_within_the_stated_bound(name, bn):
    model, data = problem(name)
    risk = EmpiricalRisk(model, nn.CrossEntropyLoss(), data, bn=bn)
    exact = torch.linalg.eigvalsh(dense_hessian(by_hand(model, data, bn), risk.theta)).flip(0)
    product = risk.linearized_hvp(risk.theta)
    pairs = lanczos.top(product, len(exact), k=5, generator=rng())
    assert pairs.converged.all()
    torch.testing.assert_close(pairs.values, exact[:5], rtol=0, atol=1e-6 * float(exact[0]))
    nearest = (pairs.values[:, None] - exact[None]).abs().min(1).values
    assert (nearest <= pairs.residual_norms + 1e-12).all()


@pytest.mark.parametrize(("name", "bn"), CASES)
def test_hessian_agrees_with_differences_of_the_gradient(name, bn):
    model, data = problem(name)
    risk = EmpiricalRisk(model, nn.CrossEntropyLoss(), data, bn=bn)
    theta, v, h = risk.theta, randn(risk.layout.num_parameters, seed=8), 1e-5
    difference = (risk.gradient(theta + h * v) - risk.gradient(theta - h * v)) / (2 * h)
    torch.testing.assert_close(risk.hvp(theta, v), difference, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", PROBLEMS)
def test_products_are_symmetric_and_linear(name):
    model, data = problem(name)
    risk = EmpiricalRisk(model, nn.CrossEntropyLoss(), data, batch_size=5)
    theta = risk.theta
    u, v = (randn(len(theta), seed=s) for s in (1, 2))
    Hu, Hv, both = risk.hvp(theta, torch.stack([u, v, 2 * u - v]))
    torch.testing.assert_close(u @ Hv, v @ Hu, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(both, 2 * Hu - Hv, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(risk.hvp(theta, v), Hv, rtol=0, atol=1e-13)


@pytest.mark.parametrize("memory", [1, 60_000, None])
def test_kept_and_rebuilt_graphs_give_the_same_product(memory):
    model, data = problem("cnn_bn", n=24)
    risk = EmpiricalRisk(model, nn.CrossEntropyLoss(), data, batch_size=4, memory=memory)
    theta, V = risk.theta, randn(2, risk.layout.num_parameters, seed=3)
    product = risk.linearized_hvp(theta)
    kept = {1: 0, None: 24}
    if memory in kept:
        assert product.num_kept == kept[memory]
    else:
        assert 0 < product.num_kept < 24
    torch.testing.assert_close(product(V), risk.hvp(theta, V), rtol=0, atol=1e-12)
    torch.testing.assert_close(product(V[0]), risk.hvp(theta, V)[0], rtol=0, atol=1e-12)


def test_estimated_memory_of_a_kept_graph_is_that_of_its_saved_tensors():
    model, data = problem("cnn_bn", n=24)
    risk = EmpiricalRisk(model, nn.CrossEntropyLoss(), data)
    from landscape.risk import _fitting

    stated = _fitting.graph_bytes(risk._engine, 24, order=2)
    counted = _fitting._saved_bytes(risk._engine, risk._engine.examples.cut(24)[0], 2)
    assert stated == pytest.approx(counted, rel=0.05)


def test_cost_is_counted_in_gradients():
    model, data = problem("mlp_bn")
    risk = EmpiricalRisk(model, nn.CrossEntropyLoss(), data)
    theta, v = risk.theta, randn(risk.layout.num_parameters)

    def spent(call):
        before = risk.cost
        result = call()
        return result, pytest.approx(risk.cost - before)

    assert spent(lambda: risk.loss(theta))[1] == 1 / 3
    assert spent(lambda: risk.gradient(theta))[1] == 1
    assert spent(lambda: risk.hvp(theta, v))[1] == 3
    assert spent(lambda: risk.hvp(theta, torch.stack([v, v])))[1] == 5
    product, cost = spent(lambda: risk.linearized_hvp(theta))
    assert cost == 1
    assert spent(lambda: product(v))[1] == 2
    assert spent(lambda: risk.with_bn("recalibrate").loss(theta))[1] == 1 / 3


def test_affine_layer_norm_has_the_right_second_derivative():
    # A composition of forward over jacrev gets this wrong on torch 2.13; reverse over reverse not.
    model = settled(nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Tanh(), nn.Linear(4, 2)))
    data = (randn(9, 3), torch.randint(0, 2, (9,), generator=rng(1)))
    risk = EmpiricalRisk(model, nn.CrossEntropyLoss(), data)
    theta, v, h = risk.theta, randn(risk.layout.num_parameters, seed=2), 1e-5
    difference = (risk.gradient(theta + h * v) - risk.gradient(theta - h * v)) / (2 * h)
    torch.testing.assert_close(risk.hvp(theta, v), difference, rtol=1e-6, atol=1e-8)


def test_a_linear_risk_has_zero_hessian():
    model = settled(nn.Linear(3, 1))
    risk = EmpiricalRisk(model, lambda o, _: o.squeeze(1), (randn(4, 3), torch.zeros(4)))
    v = randn(4, seed=1)
    assert torch.equal(risk.hvp(risk.theta, v), torch.zeros(4, dtype=F64))
    assert torch.equal(risk.linearized_hvp(risk.theta)(v), torch.zeros(4, dtype=F64))


def test_recurrent_networks_have_second_derivatives():
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.head = nn.LSTM(2, 3, batch_first=True), nn.Linear(3, 2)

        def forward(self, x):
            return self.head(self.rnn(x)[0][:, -1])

    data = (randn(6, 4, 2), torch.randint(0, 2, (6,), generator=rng(1)))
    risk = EmpiricalRisk(settled(Recurrent()), nn.CrossEntropyLoss(), data)
    theta, v, h = risk.theta, randn(risk.layout.num_parameters, seed=2), 1e-5
    difference = (risk.gradient(theta + h * v) - risk.gradient(theta - h * v)) / (2 * h)
    torch.testing.assert_close(risk.hvp(theta, v), difference, rtol=1e-6, atol=1e-8)


def test_kept_graphs_and_the_one_that_is_rebuilt_fit_the_memory_together():
    model, data = problem("cnn_bn", n=400)
    whole = EmpiricalRisk(model, nn.CrossEntropyLoss(), data)
    need = _fitting.graph_bytes(whole._engine, 400, order=2)
    risk = EmpiricalRisk(model, nn.CrossEntropyLoss(), data, memory=int(0.6 * need))
    kept, rebuilt = _fitting.kept_and_rebuilt(risk._engine)
    sizes = [
        [_fitting.graph_bytes(risk._engine, b.count, order=2) for b in batches]
        for batches in (kept, rebuilt)
    ]
    assert kept
    assert rebuilt
    assert sum(sizes[0]) + max(sizes[1]) <= risk.memory
    assert sum(sizes[0]) > 0.6 * risk.memory
    assert sum(batch.count for batch in kept + rebuilt) == 400
    theta, v = risk.theta, randn(risk.layout.num_parameters, seed=3)
    product = risk.linearized_hvp(theta)
    before = risk.cost
    torch.testing.assert_close(product(v), whole.hvp(theta, v), rtol=1e-10, atol=1e-12)
    # Two gradients, and the third for the share that is rebuilt.
    assert risk.cost - before == pytest.approx(2 + sum(b.count for b in rebuilt) / 400)


class Squared(Function):
    """w², whose derivative's derivative writes into what it is given."""

    @staticmethod
    def forward(ctx, w):
        ctx.save_for_backward(w)
        return w**2

    @staticmethod
    def backward(ctx, g):
        (w,) = ctx.saved_tensors
        return Doubled.apply(w, g)


class Doubled(Function):
    @staticmethod
    def forward(ctx, w, g):
        ctx.save_for_backward(w, g)
        return 2 * w * g

    @staticmethod
    def backward(ctx, v):
        w, g = ctx.saved_tensors
        v.mul_(2)
        return v * g, v * w


class Energy(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.linspace(0.5, 1.5, 4, dtype=F64))

    def forward(self, x):
        return x @ Squared.apply(self.w)


@pytest.mark.parametrize("product", ["hvp", "linearized_hvp", "linearized_ggn"])
def test_a_backward_that_writes_into_the_vector_of_a_product_is_refused(product):
    data = randn(8, 4, seed=1), torch.zeros(8, dtype=F64)
    risk = EmpiricalRisk(Energy(), lambda out, y: (out - y) ** 2, data)
    theta, v = risk.theta, torch.ones(4, dtype=F64)
    with pytest.raises(LandscapeError, match="wrote into the gradient that it was given"):
        _ = risk.hvp(theta, v) if product == "hvp" else getattr(risk, product)(theta)(v)


def of_mlp():
    model, data = problem("mlp_bn")
    return EmpiricalRisk(model, nn.CrossEntropyLoss(), data)


def test_a_kept_graph_holds_no_gradient_and_no_copy_of_the_models_own_theta():
    risk = of_mlp()
    engine, theta = risk._engine, risk.theta
    with engine.differentiating(2, theta):
        graph = engine.gradient_graph(engine.examples.cut(12)[0])
        total = torch.zeros_like(theta)[None]
        gradient = weakref.ref(graph.gradients[0])
        engine.add_products(total, graph, theta[None], keep=True)
    assert gradient() is None
    assert risk.linearized_hvp(theta)._theta is engine.network.given


@pytest.mark.parametrize("move", [0.0, 0.1])
def test_a_theta_that_is_written_later_is_that_of_the_call(move):
    risk = of_mlp()
    theta, v = risk.theta + move, torch.ones_like(risk.theta)
    product = risk.linearized_hvp(theta)
    before = product(v)
    theta.zero_()
    assert torch.equal(product(v), before)


def test_a_copy_in_another_dtype_has_the_same_theta_and_products():
    risk = of_mlp().with_dtype(torch.float32)
    theta, v = risk.theta, torch.randn(len(risk.theta), generator=rng(1))
    double = risk.with_dtype(F64)
    assert torch.equal(double.theta, theta.double())
    # float32 as it is, or widened before: the same numbers.
    assert torch.equal(double.hvp(theta, v), double.hvp(theta.double(), v.double()))
    kept = double.linearized_ggn(theta)
    assert torch.equal(kept(v), kept(v.double()))
    assert double.hvp(theta, v).dtype == F64


class Twins(nn.Module):
    """Two weights whose gradients have one root, as only their sum counts, and another one."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = (nn.Parameter(torch.randn(3, generator=rng(i))) for i in range(3))

    def forward(self, x):
        return (x * (self.a + self.b)).exp() * self.c


def test_cotangents_that_are_widened_on_the_way_are_those_widened_before():
    x, y = (torch.randn(7, 3, generator=rng(i)) for i in (3, 4))
    risk = EmpiricalRisk(Twins(), lambda o, y: (o - y) ** 2, (x, y))
    double, v = risk.with_dtype(F64), torch.randn(2, 9, generator=rng(1))

    def loss(theta):
        a, b, c = theta.split(3)
        return (((x.double() * (a + b)).exp() * c - y.double()) ** 2).mean()

    H = dense_hessian(loss, risk.theta.double())
    torch.testing.assert_close(double.hvp(risk.theta, v), v.double() @ H, rtol=1e-12, atol=1e-12)
    assert torch.equal(double.hvp(risk.theta, v), double.hvp(risk.theta.double(), v.double()))
    product = double.linearized_hvp(risk.theta)
    for _ in range(2):  # nothing is left at the graph's nodes
        assert torch.equal(product(v), double.hvp(risk.theta, v))
        assert torch.equal(product(v.double()), product(v))


def test_what_autograd_holds_of_widened_cotangents_takes_no_memory():
    risk = EmpiricalRisk(Twins(), lambda o, y: (o - y) ** 2, (torch.ones(2, 3), torch.ones(2, 3)))
    engine = risk.with_dtype(F64)._engine
    with engine.differentiating(2, risk.theta):
        graph = engine.gradient_graph(engine.examples.cut(2)[0])
        roots = [root for root in graph.roots if root is not None]
        assert roots[0].node is roots[1].node  # of a and b, whose sum alone counts
        pieces = list(torch.ones(9).split(3))
        with _widened(roots, pieces, F64) as due:
            assert [each.shape for each in due] == [piece.shape for piece in pieces]
            assert all(each.untyped_storage().nbytes() == 8 for each in due)


@pytest.mark.parametrize("name", ["linearized_hvp", "linearized_ggn"])
@pytest.mark.parametrize("memory", [2**30, 1], ids=["kept", "rebuilt"])
def test_a_product_is_written_where_it_is_asked(name, memory):
    model, data = problem("mlp_bn")
    risk = EmpiricalRisk(model, nn.CrossEntropyLoss(), data, memory=memory, weight_decay=0.1)
    product, V = getattr(risk, name)(risk.theta), randn(3, len(risk.theta), seed=2)
    rows = torch.full((4, V.shape[1]), torch.nan, dtype=F64)
    assert product(V, rows[1:]).data_ptr() == rows[1].data_ptr()
    assert torch.equal(rows[1:], product(V))
    assert rows[0].isnan().all()
    # One row of a block is the vector, the next its product, as a Krylov basis has them.
    rows[0] = V[0]
    product(rows[0], rows[1])
    assert torch.equal(rows[:2], torch.stack([V[0], product(V[0])]))


@pytest.mark.parametrize("name", ["linearized_hvp", "linearized_ggn"])
def test_a_product_written_over_its_vector_or_between_others_is_the_same(name):
    risk = of_mlp()
    product, v = getattr(risk, name)(risk.theta), randn(len(risk.theta), seed=2)
    over, between = v.clone(), torch.zeros(len(v), 2, dtype=F64)
    product(over, over)
    product(v, between[:, 1])
    assert torch.equal(over, product(v))
    assert torch.equal(between, torch.stack([torch.zeros_like(v), product(v)], 1))


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda V: V.float(), "torch.float32"),
        (lambda V: V[:, 1:], "out of shape"),
        (lambda V: V.T.contiguous(), "out of shape"),  # as many numbers
    ],
    ids=["dtype", "shape", "transposed"],
)
def test_a_place_that_does_not_hold_the_product_is_refused(make, named):
    risk = of_mlp()
    V = torch.ones(3, len(risk.theta), dtype=F64)
    with pytest.raises(LandscapeError, match=named):
        risk.linearized_hvp(risk.theta)(V, make(V))
