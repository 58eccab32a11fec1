"""Theta reaches the loss by whatever road a forward reads its weights, or it is said which not."""

import copy
import functools
import signal
import types
import weakref

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.utils import parametrizations
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import (
    CheckpointFunction,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from landscape.errors import LandscapeError
from landscape.risk import EmpiricalRisk
from landscape.risk._network import Habits
from tests.risk_problems import (
    PROBLEMS,
    dense_hessian,
    hessian_of_model,
    problem,
    randn,
    rng,
    settled,
)

CE = nn.CrossEntropyLoss()
X, Y = randn(24, 4, seed=3), torch.randint(0, 3, (24,), generator=rng(4))


class Base(nn.Module):
    """tanh(x A' + a) B' + b, reached by other roads in the classes below."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x):
        return self.b(torch.tanh(self.a(x)))


class Listed(Base):
    def __init__(self):
        super().__init__()
        self.kept = [self.a.weight, {"bias": self.a.bias}]

    def forward(self, x):
        return self.b(torch.tanh(F.linear(x, self.kept[0], self.kept[1]["bias"])))


class BoundMethod(Base):
    def __init__(self):
        super().__init__()
        self.call = self.inner
        self.part = functools.partial(BoundMethod.outer, self)

    def inner(self, x):
        return torch.tanh(self.a(x))

    def outer(self, h):
        return self.b(h)

    def forward(self, x):
        return self.part(self.call(x))


class Memoized(Base):
    """Keeps what it computed from the weight in an attribute, and in a dictionary."""

    def __init__(self):
        super().__init__()
        self.made, self.table = None, {}

    def forward(self, x):
        if self.made is None:
            self.made = self.a.weight * 1.0
        if "b" not in self.table:
            self.table["b"] = self.b.weight * 1.0
        h = torch.tanh(F.linear(x, self.made, self.a.bias))
        return F.linear(h, self.table["b"], self.b.bias)


class WeightDrop(Base):
    """The recurrent-weight wrapper of language models: a raw parameter, the weight made of it."""

    def __init__(self):
        super().__init__()
        raw = nn.Parameter(self.a.weight.data)
        del self.a._parameters["weight"]
        self.a.register_parameter("weight_raw", raw)
        self.forward(X[:1].to(raw))

    def forward(self, x):
        self.a.weight = F.dropout(self.a.weight_raw, 0.5, self.training)
        return super().forward(x)


class Counting(Base):
    """A hook of the module's own writes a buffer that the loss reads."""

    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros((), dtype=torch.float64))
        self.register_forward_hook(Counting.count)

    def count(self, _args, output):
        self.seen += 1
        return output * self.seen


class Checkpointed(Base):
    def __init__(self, reentrant):
        super().__init__()
        self.reentrant = reentrant

    def forward(self, x):
        x = x.clone().requires_grad_()
        h = checkpoint(lambda z: torch.tanh(self.a(z)), x, use_reentrant=self.reentrant)
        return self.b(h)


class CheckpointedModule(Checkpointed):
    def forward(self, x):
        return self.b(torch.tanh(checkpoint(self.a, x, use_reentrant=self.reentrant)))


class Inner(Base):
    """A derivative inside of the forward, as physics-informed networks take."""

    def forward(self, x):
        x = x.clone().requires_grad_()
        (slope,) = torch.autograd.grad(torch.tanh(self.a(x)).sum(), x, create_graph=True)
        return self.b(torch.tanh(self.a(x))) + slope[:, :3]


class Functional(Base):
    def forward(self, x):
        slope = torch.func.vmap(torch.func.grad(lambda z: torch.tanh(self.a(z)).sum()))(x)
        return self.b(torch.tanh(self.a(x))) + slope[:, :3]


class ComplexView(nn.Module):
    """Real parameters seen as complex ones; the first has an odd length."""

    def __init__(self):
        super().__init__()
        self.shift, self.w = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(4, 3, 2))

    def forward(self, x):
        return (x.to(torch.complex128) @ torch.view_as_complex(self.w)).abs() + self.shift


SAME_AS_BASE = {
    "listed": Listed,
    "bound method and partial": BoundMethod,
    "memoized": Memoized,
    "counting": Counting,
}


def of_base(risk, plain):
    return lambda theta: CE(functional_call(plain, risk.layout.unflatten(theta), (X,)), Y)


def compare(risk, function, theta, atol=1e-10):
    H = dense_hessian(function, theta)
    leaf = theta.clone().requires_grad_()
    (g,) = torch.autograd.grad(function(leaf), leaf)
    torch.testing.assert_close(risk.loss(theta), function(theta).detach(), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(risk.gradient(theta), g, rtol=1e-9, atol=atol)
    V = torch.eye(len(theta), dtype=theta.dtype)
    torch.testing.assert_close(risk.hvp(theta, V), H, rtol=1e-9, atol=atol)
    torch.testing.assert_close(risk.linearized_hvp(theta)(V), H, rtol=1e-9, atol=atol)


@pytest.mark.parametrize("borrow", [False, True])
@pytest.mark.parametrize("name", SAME_AS_BASE)
def test_whatever_keeps_the_parameters_reads_theta(name, borrow):
    model, plain = settled(SAME_AS_BASE[name]()), settled(Base())
    if name == "counting":
        model.seen.zero_()
    risk = EmpiricalRisk(model, CE, (X, Y), borrow=borrow)
    for theta in (risk.theta, risk.theta + 0.3 * randn(len(risk.theta), seed=5)):
        compare(
            risk, lambda t: CE(functional_call(plain, risk.layout.unflatten(t), (X,)), Y), theta
        )
    double = risk.with_dtype(torch.float32).with_dtype(torch.float64)
    assert abs(double.loss(double.theta) - risk.loss(risk.theta)) < 1e-6


@pytest.mark.thorough
@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("kind", [Checkpointed, CheckpointedModule])
def test_checkpoints_of_both_kinds_give_the_products_of_the_plain_network(kind, reentrant):
    model, plain = settled(CheckpointedModule(reentrant)), settled(Base())
    risk = EmpiricalRisk(model, CE, (X, Y), memory=1)
    theta = risk.theta + 0.3 * randn(len(risk.theta), seed=5)
    compare(risk, of_base(risk, plain), theta)
    closing = settled(Checkpointed(reentrant))  # a lambda made within the forward is no closure
    risk = EmpiricalRisk(closing, CE, (X, Y), borrow=kind is Checkpointed)
    compare(risk, of_base(risk, plain), theta)


class Blocks(nn.Module):
    """As many blocks, each of which is kept whole, or computed anew in the backward pass."""

    def __init__(self, reentrant):
        super().__init__()
        torch.manual_seed(0)
        block = lambda: nn.Sequential(nn.Linear(4, 64), nn.Tanh(), nn.Linear(64, 4), nn.Tanh())  # noqa: E731
        self.blocks, self.end = nn.ModuleList(block() for _ in range(8)), nn.Linear(4, 3)
        self.reentrant = reentrant

    def forward(self, x):
        for block in self.blocks:
            if self.reentrant is None:
                x = block(x)
            else:
                x = checkpoint(block, x.requires_grad_(), use_reentrant=self.reentrant)
        return self.end(x)


class Alive(TorchDispatchMode):
    """The most bytes of tensors that were made within and are alive at once."""

    def __init__(self):
        super().__init__()
        self.now = self.most = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = {t.untyped_storage().data_ptr() for t in tree_leaves((args, kwargs))
                 if isinstance(t, torch.Tensor)}  # fmt: skip
        found = func(*args, **(kwargs or {}))
        for t in tree_leaves(found):
            if isinstance(t, torch.Tensor) and t.untyped_storage().data_ptr() not in given:
                size = t.untyped_storage().nbytes()
                self.now, self.most = self.now + size, max(self.most, self.now + size)
                weakref.finalize(t.untyped_storage(), self.gone, size)
        return found

    def gone(self, size):
        self.now -= size


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoints_of_both_kinds_keep_less_of_a_gradient(reentrant):
    """A product needs the graph of the gradient, which holds everything, and is the same."""
    x, y = randn(64, 4, seed=1), torch.arange(64) % 3
    found, most = [], []
    for kind in (None, reentrant):
        risk = EmpiricalRisk(Blocks(kind).double(), CE, (x, y))
        with Alive() as seen:
            gradient = risk.gradient(risk.theta)
        most.append(seen.most)
        found.append([gradient, risk.hvp(risk.theta, gradient)])
    for plain, checkpointed in zip(*found, strict=True):
        torch.testing.assert_close(checkpointed, plain, rtol=1e-12, atol=1e-14)
    assert most[1] < 0.5 * most[0]


@pytest.mark.parametrize("name", PROBLEMS)
def test_a_model_that_writes_nothing_has_nothing_put_back(name):
    model, data = problem(name)
    for borrow in (False, True):
        habits = EmpiricalRisk(model, CE, data, borrow=borrow)._engine.network.habits
        assert habits == Habits()


def test_a_kept_graph_stays_at_its_theta_whatever_is_asked_in_between():
    risk = EmpiricalRisk(settled(Base()), CE, (X, Y))
    other = risk.theta + 0.3 * randn(len(risk.theta), seed=5)
    v = randn(len(risk.theta), seed=6)
    expected = risk.hvp(risk.theta, v), risk.hvp(other, v)
    here, there = risk.linearized_hvp(risk.theta), risk.linearized_hvp(other)
    for _ in range(2):
        torch.testing.assert_close(here(v), expected[0], rtol=1e-12, atol=1e-14)
        risk.loss(0.5 * other)
        torch.testing.assert_close(there(v), expected[1], rtol=1e-12, atol=1e-14)


def test_a_weight_made_of_a_raw_parameter_is_differentiated_in_that():
    model, plain = settled(WeightDrop()), settled(Base())
    risk = EmpiricalRisk(model, CE, (X, Y))
    names = {"a.weight_raw": "a.weight"}

    def loss(theta):
        named = {names.get(k, k): v for k, v in risk.layout.unflatten(theta).items()}
        return CE(functional_call(plain, named, (X,)), Y)

    compare(risk, loss, risk.theta + 0.3 * randn(len(risk.theta), seed=5))


@pytest.mark.parametrize("kind", [Inner, Functional])
def test_derivatives_inside_of_a_forward_need_nothing_from_the_user(kind):
    model = settled(kind())
    risk = EmpiricalRisk(model, CE, (X, Y))

    def loss(theta):
        return CE(functional_call(model, risk.layout.unflatten(theta), (X,)), Y)

    compare(risk, loss, risk.theta)
    assert not risk.losses(risk.theta).requires_grad
    assert not risk.outputs(risk.theta).requires_grad


def test_complex_views_of_real_parameters_work_at_every_offset():
    model = settled(ComplexView())
    risk = EmpiricalRisk(model, CE, (X, Y))

    def loss(theta):
        named = risk.layout.unflatten(theta)
        real, imaginary = named["w"].unbind(-1)
        return CE(torch.hypot(X @ real, X @ imaginary) + named["shift"], Y)

    compare(risk, loss, risk.theta)


def normed(kind):
    model = settled(Base())
    model.a = kind(model.a)
    return model.eval()


@pytest.mark.parametrize("kind", [nn.utils.weight_norm, parametrizations.weight_norm])
@pytest.mark.parametrize("used", [False, True])
@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_weight_norm_has_the_second_derivative_of_its_formula(kind, used):
    model, plain = normed(kind), settled(Base())
    if used:
        CE(model.train()(X), Y).backward()
    names = [n for n, _ in model.named_parameters()]
    scale = next(n for n in names if n.endswith(("_g", "original0")))
    direction = next(n for n in names if n.endswith(("_v", "original1")))
    risk = EmpiricalRisk(model, CE, (X, Y))

    def loss(theta):
        named = risk.layout.unflatten(theta)
        g, v = named.pop(scale), named.pop(direction)
        named["a.weight"] = g * v / v.norm(dim=1, keepdim=True)
        return CE(functional_call(plain, named, (X,)), Y)

    compare(risk, loss, risk.theta)


@pytest.mark.parametrize("used", [False, True])
@pytest.mark.filterwarnings("ignore:.*spectral_norm.*:FutureWarning")
def test_old_spectral_norm_is_copied_and_differentiated(used):
    model, plain = normed(nn.utils.spectral_norm), settled(Base())
    if used:
        CE(model.train()(X), Y).backward()
    risk = EmpiricalRisk(model, CE, (X, Y))
    u, v = model.a.weight_u.clone(), model.a.weight_v.clone()

    def loss(theta):
        named = risk.layout.unflatten(theta)
        w = named.pop("a.weight_orig")
        return CE(functional_call(plain, named | {"a.weight": w / (u @ w @ v)}, (X,)), Y)

    compare(risk, loss, risk.theta)


IDS = torch.randint(0, 9, (24, 5), generator=rng(7))
OFFSETS = torch.tensor([0, 2, 2, 9])


class Bag(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.e, self.c = nn.EmbeddingBag(9, 4, **options), nn.Linear(4, 3)

    def forward(self, x):
        return self.c(torch.tanh(self.e(x)))


class Lookup(Bag):
    def __init__(self, **options):
        super().__init__()
        self.e = nn.Embedding(9, 4, **options)

    def forward(self, x):
        return self.c(torch.tanh(self.e(x)).mean(1))


@pytest.mark.parametrize(
    ("model", "reduce"),
    [
        (lambda: Lookup(sparse=True), None),
        (lambda: Lookup(padding_idx=0), None),
        (lambda: Lookup(scale_grad_by_freq=True), None),
        (lambda: Bag(mode="mean"), lambda e: e.mean(1)),
        (lambda: Bag(mode="sum", sparse=True), lambda e: e.sum(1)),
        (lambda: Bag(mode="max"), lambda e: e.max(1).values),
    ],
)
def test_embeddings_are_differentiated_as_what_they_compute(model, reduce):
    risk = EmpiricalRisk(settled(model()), CE, (IDS, Y))

    def loss(theta):
        named = risk.layout.unflatten(theta)
        rows = named["e.weight"][IDS]
        h = torch.tanh(rows).mean(1) if reduce is None else torch.tanh(reduce(rows))
        return CE(F.linear(h, named["c.weight"], named["c.bias"]), Y)

    compare(risk, loss, risk.theta)


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("padding", [None, 2])
def test_bags_with_offsets_have_torchs_values(mode, last, padding):
    from landscape.risk._exact import _bag

    layer = nn.EmbeddingBag(9, 4, mode=mode, include_last_offset=last, padding_idx=padding)
    ids = IDS.reshape(-1)[:12]
    offsets = torch.cat([OFFSETS, torch.tensor([len(ids)])]) if last else OFFSETS
    torch.testing.assert_close(_bag(layer, ids, offsets), layer(ids, offsets))


# What cannot be copied --------------------------------------------------------------------------


class Hooked(Base):
    """An adapter added by a hook that closes over the module, BatchNorm within."""

    def __init__(self):
        super().__init__()
        self.adapter, self.bn = nn.Linear(5, 5), nn.BatchNorm1d(5)
        self.a.register_forward_hook(lambda m, i, out: out + self.bn(self.adapter(out)))


class Lambda(Base):
    def __init__(self):
        super().__init__()
        self.beta = nn.Parameter(torch.ones(()))
        self.act = lambda h: h * torch.sigmoid(self.beta * h)

    def forward(self, x):
        return self.b(self.act(self.a(x)))


class FrozenLambda(Lambda):
    def __init__(self):
        super().__init__()
        self.beta.requires_grad_(False)


def patched():
    model = Base()
    model.lora, old = nn.Linear(4, 5, bias=False), model.a.forward
    model.a.forward = lambda x: old(x) + model.lora(x)
    return model


class BehindCheckpoint(Lambda):
    plain = False

    def forward(self, x):
        if self.plain:
            return super().forward(x)
        return self.b(checkpoint(lambda z: self.act(self.a(z)), x, use_reentrant=True))


CLOSURES = {
    "hook": (Hooked, "adapter.weight", "'a'"),
    "lambda": (Lambda, "beta", "Lambda"),
    "frozen": (FrozenLambda, "beta", "FrozenLambda"),
    "patched": (patched, "a.weight", "'a'"),
    "checkpoint": (BehindCheckpoint, "beta", "BehindCheckpoint"),
}


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", CLOSURES)
def test_a_closure_over_the_callers_model_is_refused_by_name_and_measured_on_loan(name, training):
    make, tensor, module = CLOSURES[name]
    model = settled(make()).train(training)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(LandscapeError, match=r"borrow=True") as refusal:
        EmpiricalRisk(model, CE, (X, Y))
    assert repr(tensor) in str(refusal.value)
    assert module in str(refusal.value)
    risk = EmpiricalRisk(model, CE, (X, Y), borrow=True)
    theta = risk.theta + 0.1 * randn(len(risk.theta), seed=5)
    state = [p.data_ptr() for p in model.parameters()]

    def loss(point):
        # The closures read the module's parameters, so these are changed and put back.
        named, kept = dict(model.named_parameters()), copy.deepcopy(model.state_dict())
        with torch.no_grad():
            for key, value in risk.layout.unflatten(point).items():
                named[key].copy_(value)
        modes = [m.training for m in model.modules()]
        model.plain = True
        value = CE(model.eval()(X), Y)
        model.plain = False
        weights = [named[key] for key in risk.layout.names]
        grads = torch.autograd.grad(value, weights)
        model.load_state_dict(kept)
        for m, mode in zip(model.modules(), modes, strict=True):
            m.training = mode
        return value.detach(), torch.cat([g.reshape(-1) for g in grads])

    value, gradient = loss(theta)
    torch.testing.assert_close(risk.loss(theta), value, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(risk.gradient(theta), gradient, rtol=1e-10, atol=1e-12)
    v, h = randn(len(theta), seed=6), 1e-5
    near = (loss(theta + h * v)[1] - loss(theta - h * v)[1]) / (2 * h)
    torch.testing.assert_close(risk.hvp(theta, v), near, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(risk.linearized_hvp(theta)(v), near, rtol=1e-6, atol=1e-7)
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[key])
    assert state == [p.data_ptr() for p in model.parameters()]
    assert all(m.training == training for m in model.modules())
    assert risk.provenance()["borrowed"] is True


@pytest.fixture
def ctrl_c():
    """Python's own handler of SIGINT, which a shell's background jobs are started without."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize("kind", ["error", "interrupt", "signal"])
def test_a_borrowed_model_is_put_back_whatever_is_raised(kind):
    model = settled(Hooked()).train()
    model.register_buffer("table", torch.arange(3.0))
    modes = [m.training for m in model.modules()]
    handle = model.a.weight.register_hook(lambda g: 0 * g)
    model.a.weight.grad = torch.ones_like(model.a.weight)
    model.b.bias.requires_grad_(False)
    risk = EmpiricalRisk(model, CE, (X, Y), borrow=True)
    before = {k: (t, t.clone(), t.data_ptr()) for k, t in model.state_dict(keep_vars=True).items()}
    expected = risk.gradient(risk.theta)
    assert float(expected.abs().max()) > 0

    def fail():
        if kind == "error":
            raise ArithmeticError("here")
        if kind == "interrupt":
            raise KeyboardInterrupt
        signal.raise_signal(signal.SIGINT)

    calls = []
    model.b.forward = lambda x: calls.append(fail()) or x
    risk = None
    with pytest.raises((LandscapeError, KeyboardInterrupt)):
        risk = EmpiricalRisk(model, CE, (X, Y), borrow=True)
    assert risk is None
    for key, (tensor, values, address) in before.items():
        now = model.state_dict(keep_vars=True)[key]
        assert now is tensor
        assert torch.equal(now, values)
        assert now.data_ptr() == address
    assert [m.training for m in model.modules()] == modes
    assert torch.equal(model.a.weight.grad, torch.ones_like(model.a.weight))
    assert not model.b.bias.requires_grad
    assert len(model.a.weight._backward_hooks) == 1
    handle.remove()


class Cached(Base):
    @functools.cached_property
    def never(self):
        return None

    def forward(self, x):
        return self.b(torch.tanh(F.linear(x, made(self.a), self.a.bias)))


@functools.cache
def made(layer):
    return layer.weight * 1.0


class Stale(Base):
    def __init__(self):
        super().__init__()
        self.twice = 2 * self.a.weight

    def forward(self, x):
        return self.b(torch.tanh(F.linear(x, self.twice)))


class View(Base):
    """Reads a weight through a view that it keeps."""

    def __init__(self):
        super().__init__()
        self.turned = self.a.weight.data.T

    def forward(self, x):
        return self.b(torch.tanh(x @ self.turned + self.a.bias))


class Unlisted(Base):
    def __init__(self):
        super().__init__()
        self.extra = [nn.Parameter(torch.ones(3))]

    def forward(self, x):
        return super().forward(x) * self.extra[0]


class Clipping(Base):
    def forward(self, x):
        self.a.weight.data.clamp_(-0.1, 0.1)
        return super().forward(x)


def normed_layer_of_loss(model):
    return lambda o, y: F.cross_entropy(o, y, reduction="none") + model.b.weight.square().sum()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (Cached, "functools.cache"),
        (Stale, "'twice'"),
        (View, "'turned'|'a.weight'"),
        (Unlisted, "ParameterList"),
        (Clipping, "a.weight"),
    ],
)
def test_roads_that_theta_cannot_take_are_refused_by_name(make, words):
    model = settled(make())
    if make is View:  # the dtype has moved the weight
        model.turned = model.a.weight.data.T
    for borrow in (False, True):
        with pytest.raises(LandscapeError, match=words):
            EmpiricalRisk(model, CE, (X, Y), borrow=borrow)


class Empty(Base):
    """A tensor without elements is part of theta, and has no memory that it could be known by."""

    def __init__(self):
        super().__init__()
        self.none = nn.Parameter(torch.empty(0))

    def forward(self, x):
        return super().forward(x) + self.none.sum()


def test_a_registered_parameter_without_elements_is_no_unlisted_one():
    model = settled(Empty())
    risk = EmpiricalRisk(model, CE, (X, Y))
    assert risk.layout.num_parameters == sum(p.numel() for p in model.parameters())
    # Its sum over rows is divided once, torch's mean is its own: a few roundings.
    assert torch.isclose(risk.loss(risk.theta), CE(model(X), Y), rtol=1e-14, atol=0)


class Deep(Base):
    """Views of weights that are kept where no attribute shows them."""

    kept = None

    def forward(self, x):
        return self.b(torch.tanh(x @ self.kept["views"].first[0] + self.a.bias))


class Buffered(Base):
    def forward(self, x):
        return self.b(torch.tanh(x @ self.turned + self.a.bias))


class Array(Base):
    def forward(self, x):
        return self.b(torch.tanh(x @ torch.from_numpy(self.array) + self.a.bias))


def with_view(kind):
    model = settled(kind())
    view = model.a.weight.data.T
    if kind is Deep:
        model.kept = {"views": types.SimpleNamespace(first=[view, model.b.weight.data.T])}
    elif kind is Buffered:
        model.register_buffer("turned", view)
    else:
        model.array = view.numpy()
    return model


@pytest.mark.parametrize("borrow", [False, True])
@pytest.mark.parametrize("kind", [Deep, Buffered, Array])
def test_views_that_a_model_keeps_anywhere_are_refused_and_harmless_where_nothing_reads_them(
    kind, borrow
):
    model = with_view(kind)
    with pytest.raises(LandscapeError, match=r"'turned'|a\.weight"):
        EmpiricalRisk(model, CE, (X, Y), borrow=borrow)
    if kind is Array:  # NumPy's reading shows nowhere
        model.array = None
    model.forward = functools.partial(Base.forward, model)
    if not borrow:
        model.__dict__.pop("forward")
        model.__class__ = type("Unread", (kind,), {"forward": Base.forward})
    risk, plain = EmpiricalRisk(model, CE, (X, Y), borrow=borrow), settled(Base())
    compare(risk, of_base(risk, plain), risk.theta)


class Householder(Base):
    def __init__(self):
        super().__init__()
        parametrizations.orthogonal(self.a)  # of a wide or tall matrix torch's choice


def test_an_orthogonal_map_does_not_jump_where_its_weights_lie():
    torch.manual_seed(0)
    model = Householder().double()
    expected = hessian_of_model(model, lambda m: CE(m(X), Y))
    risk = EmpiricalRisk(model, CE, (X, Y))
    theta, v = risk.theta, randn(len(risk.theta), seed=6)
    torch.testing.assert_close(risk.loss(theta), CE(model(X), Y).detach(), rtol=1e-13, atol=0)
    eye = torch.eye(len(theta), dtype=theta.dtype)
    torch.testing.assert_close(risk.hvp(theta, eye), expected, rtol=1e-9, atol=1e-11)
    h = 1e-5
    slope = (risk.loss(theta + h * v) - risk.loss(theta - h * v)) / (2 * h)
    torch.testing.assert_close(slope, risk.gradient(theta) @ v, rtol=1e-6, atol=1e-8)
    assert risk.probe().reasons() == ()


class OwnCheckpoint(Base):
    """torch's function of re-entrant checkpoints, called by a name of one's own."""

    def forward(self, x):
        h = self.a(x)
        return self.b(CheckpointFunction.apply(torch.tanh, True, h))


class Selective(Base):
    def forward(self, x):
        saved = functools.partial(
            create_selective_checkpoint_contexts, [torch.ops.aten.addmm.default]
        )
        inner = lambda z: torch.tanh(self.a(z))  # noqa: E731
        return self.b(checkpoint(inner, x, use_reentrant=False, context_fn=saved))


def test_checkpoints_by_other_names_work_or_are_refused():
    before = dict(vars(CheckpointFunction))
    risk = EmpiricalRisk(settled(OwnCheckpoint()), CE, (X, Y))
    compare(risk, of_base(risk, settled(Base())), risk.theta)
    assert dict(vars(CheckpointFunction)) == before
    risk = EmpiricalRisk(settled(Selective()), CE, (X, Y))
    torch.testing.assert_close(
        risk.gradient(risk.theta),
        EmpiricalRisk(settled(Base()), CE, (X, Y)).gradient(risk.theta),
    )
    with pytest.raises(LandscapeError, match=r"differentiated twice \(Trying to backward an extra"):
        risk.hvp(risk.theta, risk.theta)


class Fails(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, g):
        raise ZeroDivisionError("by the user")


def test_a_backward_that_fails_is_no_raw_error():
    class Failing(Base):
        def forward(self, x):
            return Fails.apply(super().forward(x))

    risk = EmpiricalRisk(settled(Failing()), CE, (X, Y))
    for call in (risk.gradient, risk.linearized_hvp):
        with pytest.raises(LandscapeError, match=r"cannot be differentiated.*by the user"):
            call(risk.theta)


def test_max_norm_is_refused_with_advice_that_works():
    model = settled(Lookup(max_norm=0.5))
    with pytest.raises(LandscapeError, match=r"'e'.*max_norm = None"):
        EmpiricalRisk(model, CE, (IDS, Y))
    expected = CE(copy.deepcopy(model)(IDS), Y).detach()
    model.e.weight.data.renorm_(2.0, 0, 0.5)
    model.e.max_norm = None
    risk = EmpiricalRisk(model, CE, (IDS, Y))
    torch.testing.assert_close(risk.loss(risk.theta), expected)


def test_a_loss_that_reads_the_callers_weights_is_refused():
    model = settled(Base())
    with pytest.raises(LandscapeError, match=r"The loss.*'b.weight'"):
        EmpiricalRisk(model, normed_layer_of_loss(model), (X, Y))


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")
def test_scripted_quantized_and_empty_models_are_refused_by_name():
    with pytest.raises(LandscapeError, match="TorchScript"):
        EmpiricalRisk(torch.jit.trace(settled(Base()), X), CE, (X, Y))
    model = settled(Base())
    model.a = torch.jit.trace(model.a, X)
    with pytest.raises(LandscapeError, match="'a' of the model is a TorchScript"):
        EmpiricalRisk(model, CE, (X, Y))
    with torch.device("meta"):
        empty = Base()
    with pytest.raises(LandscapeError, match=r"'a.weight' is on the meta device"):
        EmpiricalRisk(empty, CE, (X, Y))
    model = settled(Base())
    model.register_buffer("q", torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8))
    with pytest.raises(LandscapeError, match="'q' is quantized"):
        EmpiricalRisk(model, CE, (X, Y))


def test_tensors_without_influence_are_in_the_provenance():
    model = settled(Base())
    model.unused = nn.Linear(2, 2).double()
    risk = EmpiricalRisk(model, CE, (X, Y))
    record = risk.provenance()
    assert record["without_influence"] == ["unused.weight", "unused.bias"]
    assert record["num_without_influence"] == 2
    assert "without_influence" not in EmpiricalRisk(settled(Base()), CE, (X, Y)).provenance()


class Experts(nn.Module):
    """Every row goes to one expert of four; one is never chosen."""

    def __init__(self):
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(4, 3) for _ in range(5))

    def forward(self, x):
        which = x[:, 0].long()
        out = x.new_zeros(len(x), 3)
        for number, expert in enumerate(self.experts):
            rows = which == number
            if rows.any():
                out = out.index_put((rows.nonzero()[:, 0],), expert(x[rows]))
        return out


def test_experts_that_few_rows_do_not_reach_have_influence():
    rows = X.clone()
    rows[:, 0] = torch.arange(24) // 6 + 0.5  # six in a row to each, far from where one changes
    risk = EmpiricalRisk(settled(Experts()), CE, (rows, Y))
    assert "influence_unknown" not in risk.provenance()
    assert risk.provenance()["without_influence"] == ["experts.4.weight", "experts.4.bias"]


def test_weights_that_lie_over_one_another_are_refused_and_expanded_ones_are_made_whole():
    model = settled(Base())
    model.c = nn.Linear(4, 5).double()
    model.c.weight.data = model.a.weight.data
    with pytest.raises(LandscapeError, match=r"'a.weight' and 'c.weight' share memory"):
        EmpiricalRisk(model, CE, (X, Y))
    model.c.weight.data = model.c.weight.data.clone()
    model.a.bias.data = torch.zeros(1, dtype=torch.float64).expand(5)
    risk = EmpiricalRisk(model, CE, (X, Y))
    torch.testing.assert_close(risk.loss(risk.theta), CE(model(X), Y).detach())
    assert risk.gradient(risk.theta).isfinite().all()


class OneSize(Base):
    """As an exported program, whose number of rows is a part of it."""

    def forward(self, x):
        assert len(x) == 24
        return super().forward(x)


def test_a_model_of_one_number_of_rows_takes_batches_of_these_alone():
    model = settled(OneSize())
    risk = EmpiricalRisk(model, CE, (X, Y))
    torch.testing.assert_close(risk.loss(risk.theta), CE(model(X), Y).detach())
    halves = [(X[:12], Y[:12]), (X[12:], Y[12:])]
    with pytest.raises(LandscapeError, match=r"OneSize .* exported or traced"):
        EmpiricalRisk(model, CE, halves)
    doubled = [(X, Y), (X + 1, Y)]
    with pytest.raises(LandscapeError, match=r"fail by themselves.*declare reduction='mean'"):
        EmpiricalRisk(model, CE, doubled)
    mean = EmpiricalRisk(model, lambda o, y: CE(o, y), doubled, reduction="mean")
    expected = (CE(model(X), Y) + CE(model(X + 1), Y)) / 2
    torch.testing.assert_close(mean.loss(mean.theta), expected.detach())


class OnlyWithoutGraph(Base):
    def forward(self, x):
        return super().forward(x) * (1 if torch.is_grad_enabled() else 2)


def test_a_model_that_computes_something_else_without_a_graph_is_evaluated_with_one():
    risk = EmpiricalRisk(settled(OnlyWithoutGraph()), CE, (X, Y))
    plain = EmpiricalRisk(settled(Base()), CE, (X, Y))
    assert torch.equal(risk.loss(risk.theta), plain.loss(plain.theta))


def test_what_has_no_first_derivative_is_refused_where_one_is_asked():
    class Rounded(Base):
        def forward(self, x):
            return super().forward(x) * torch.special.zeta(2 + self.a(x).square()[:, :1], x[:, :1])

    risk = EmpiricalRisk(settled(Rounded()), lambda o, y: o.square().mean(1), (X.abs() + 1, Y))
    risk.loss(risk.theta)
    with pytest.raises(LandscapeError, match=r"cannot be differentiated \("):
        risk.gradient(risk.theta)


class PowerIteration(Base):
    """As in many GAN repositories: two frozen Parameters, written in every forward."""

    def __init__(self, in_place):
        super().__init__()
        self.in_place = in_place
        self.u = nn.Parameter(F.normalize(randn(5), dim=0), requires_grad=False)

    def forward(self, x):
        w = self.a.weight
        v = F.normalize(w.detach().T @ self.u.detach(), dim=0)
        u = F.normalize(w.detach() @ v, dim=0)
        if self.in_place:
            self.u.data.copy_(u)
        else:
            self.u.data = u
        return self.b(torch.tanh(F.linear(x, w / (u @ w @ v), self.a.bias)))


@pytest.mark.parametrize("borrow", [False, True])
@pytest.mark.parametrize("in_place", [False, True])
def test_frozen_parameters_that_a_pass_writes_are_put_back_before_each(in_place, borrow):
    model = settled(PowerIteration(in_place))
    before = model.u.clone()
    risk = EmpiricalRisk(model, CE, (X, Y), borrow=borrow)
    first = risk.loss(risk.theta)
    assert torch.equal(first, risk.loss(risk.theta))
    assert torch.equal(model.u, before)
    torch.testing.assert_close(first, CE(model(X), Y).detach(), rtol=1e-12, atol=1e-14)


class Itself(Base):
    def __deepcopy__(self, memo):
        return self


def test_a_copy_that_is_the_model_itself_is_refused_and_measured_on_loan():
    model = settled(Itself())
    with pytest.raises(LandscapeError, match=r"__deepcopy__ of your own.*borrow=True"):
        EmpiricalRisk(model, CE, (X, Y))
    risk = EmpiricalRisk(model, CE, (X, Y), borrow=True)
    torch.testing.assert_close(risk.loss(risk.theta), CE(model(X), Y).detach())


def test_a_lazy_model_is_refused_before_anything_reads_it():
    model = nn.Sequential(nn.Linear(4, 5), nn.LazyLinear(3)).double()
    with pytest.raises(LandscapeError, match=r"'1.weight' is not initialized yet"):
        EmpiricalRisk(model, CE, (X, Y))
    model(X[:2])
    assert EmpiricalRisk(model, CE, (X, Y)).layout.num_parameters == 43


class Drops(Base):
    def forward(self, x):
        return super().forward(F.dropout(x, 0.5, training=True))


@pytest.mark.parametrize("borrow", [False, True])
def test_randomness_is_blamed_on_its_module_in_a_borrowed_model_too(borrow):
    with pytest.raises(LandscapeError, match=r"Drops.forward is not deterministic"):
        EmpiricalRisk(settled(Drops()), CE, (X, Y), borrow=borrow)


class WithHooks(Base):
    """Hooks with keywords and hooks of the backward pass that only look."""

    def __init__(self):
        super().__init__()
        self.a.register_forward_pre_hook(
            lambda module, args, kwargs: ((args[0] * module.bias.sum(),), kwargs), with_kwargs=True
        )
        self.a.register_forward_hook(
            lambda module, args, kwargs, output: output * module.bias.cos(), with_kwargs=True
        )
        self.b.register_full_backward_hook(lambda module, before, after: None)
        self.b.register_full_backward_pre_hook(lambda module, gradient: None)
        # Of the optimizer's gradient, not of the loss: autograd.grad of the test would see it too.
        self.a.weight.register_post_accumulate_grad_hook(lambda weight: None)


@pytest.mark.parametrize("borrow", [False, True])
def test_hooks_of_every_kind_that_read_their_own_module(borrow):
    model = settled(WithHooks())
    risk = EmpiricalRisk(model, CE, (X, Y), borrow=borrow)
    H = hessian_of_model(model, lambda m: CE(m(X), Y))
    eye = torch.eye(len(risk.theta), dtype=torch.float64)
    torch.testing.assert_close(risk.hvp(risk.theta, eye), H, rtol=1e-9, atol=1e-11)


class Freezing(Base):
    def forward(self, x):
        self.a.weight.requires_grad_(False)
        return super().forward(x)


@pytest.mark.parametrize("borrow", [False, True])
def test_a_forward_that_freezes_weights_is_refused(borrow):
    model = settled(Freezing())
    with pytest.raises(LandscapeError, match=r"forward pass freezes a.weight"):
        EmpiricalRisk(model, CE, (X, Y), borrow=borrow)
    assert model.a.weight.requires_grad


class Labelled(torch.Tensor):
    pass


def test_parameters_of_a_subclass_of_tensor_give_a_plain_theta():
    model = settled(Base())
    model.a.bias = nn.Parameter(model.a.bias.detach().as_subclass(Labelled))
    with pytest.raises(LandscapeError, match=r"cannot be copied.*borrow=True"):
        EmpiricalRisk(model, CE, (X, Y))
    risk = EmpiricalRisk(model, CE, (X, Y), borrow=True)
    assert type(risk.theta) is torch.Tensor
    expected = CE(model(X), Y).detach().as_subclass(torch.Tensor)
    torch.testing.assert_close(risk.loss(risk.theta), expected)
    assert type(risk.gradient(risk.theta + 0.1)) is torch.Tensor


class ClampedInside(Base):
    """Hooks the gradient of what it passes on, whether there is one or not."""

    def forward(self, x):
        hidden = self.a(x)
        hidden.register_hook(lambda g: g)
        return self.b(torch.tanh(hidden))


def test_a_forward_that_hooks_its_gradients_has_them():
    model = settled(ClampedInside())
    risk = EmpiricalRisk(model, CE, (X, Y))
    expected = hessian_of_model(model, lambda m: CE(m(X), Y))
    eye = torch.eye(len(risk.theta), dtype=torch.float64)
    torch.testing.assert_close(risk.hvp(risk.theta, eye), expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("borrow", [False, True])
def test_hooks_on_gradients_of_parameters_are_left_out_and_said(borrow):
    model = settled(Base())
    model.a.weight.register_hook(lambda g: 0.5 * g)
    model.b.bias.register_post_accumulate_grad_hook(lambda p: None)
    risk = EmpiricalRisk(model, CE, (X, Y), borrow=borrow)
    plain = EmpiricalRisk(settled(Base()), CE, (X, Y))
    torch.testing.assert_close(risk.gradient(risk.theta), plain.gradient(risk.theta))
    assert risk.provenance()["gradient_hooks_left_out"] == ["a.weight", "b.bias"]
    assert "gradient_hooks_left_out" not in plain.provenance()
