"""What people bring to a step: odd weights, losses, batches, bases and states of other classes."""

import collections
import copy
import dataclasses
import logging
import sys
import types

import numpy as np
import pytest
import torch
from torch import nn

from landscape import sam
from landscape.errors import LandscapeError
from tests.sam_models import batch as batch_of
from tests.sam_models import furthest, losses_of, model_for, variants, weights

X = torch.randn(12, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
Y = torch.arange(12) % 3


def network():
    generator = torch.Generator().manual_seed(1)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(0.3 * torch.randn(p.shape, dtype=torch.float64, generator=generator))
    return model


def sgd(model, **options):
    return torch.optim.SGD(model.parameters(), **({"lr": 0.1} | options))


def mean_loss(model):
    return nn.functional.cross_entropy(model(X), Y)


def closure_of(loss):
    def closure():
        value = loss()
        value.backward()
        return value

    return closure


def by_hand(model, rho=0.3):
    """One SAM step with SGD's rate of 0.1, written out."""
    parameters = list(model.parameters())
    g1 = torch.autograd.grad(mean_loss(model), parameters)
    norm = torch.sqrt(sum(g.square().sum() for g in g1))
    before = weights(model)
    with torch.no_grad():
        for p, g in zip(parameters, g1, strict=True):
            p += rho * g / norm
    g2 = torch.autograd.grad(mean_loss(model), parameters)
    with torch.no_grad():
        for p, w, g in zip(parameters, before, g2, strict=True):
            p.copy_(w - 0.1 * g)


def refused(match, loss_of=mean_loss, model=None, **options):
    model = network() if model is None else model
    before = weights(model)
    with pytest.raises(LandscapeError, match=match):
        sam.SAM(model, sgd(model), sam.sam(0.3), **options).step(closure_of(lambda: loss_of(model)))
    assert furthest(before, weights(model)) == 0.0


# ------------------------------------------------------------------------------------------ weights


class WithEmpty(nn.Module):
    """A model beside a parameter without entries and one of no dimension."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner
        self.empty = nn.Parameter(torch.zeros(0, 3, dtype=torch.float64))
        self.scale = nn.Parameter(torch.tensor(1.0, dtype=torch.float64))

    def forward(self, x):
        return self.inner(x) * self.scale + self.empty.sum()


@pytest.mark.parametrize("name", [n for n in sam.recipes() if n != "flat_lora"])
def test_every_recipe_trains_beside_a_tensor_without_entries(name):
    model, variant = WithEmpty(model_for(name)), variants()[name]
    optimizer = sam.SAM(model, sgd(model, lr=0.01, momentum=0.9), variant)
    optimizer.begin_epoch(0, total_epochs=2)
    optimizer.set_fisher_data(losses_of(model), batch_of())
    losses = losses_of(model, "logits" in variant.needs)
    before = weights(model)
    for _ in range(2):
        optimizer.step(losses, batch_of())
    assert optimizer.num_skipped == 0
    assert all(bool(p.isfinite().all()) for p in model.parameters())
    assert any(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_a_sparse_gradient_that_comes_late_is_refused_by_name():
    class Late(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.head = nn.Embedding(12, 6, sparse=True), nn.Linear(6, 3)
            self.reads_table = False

        def forward(self, i):
            return self.head(self.table(i) if self.reads_table else self.table.weight.detach()[i])

    model = Late()
    optimizer = sam.SAM(model, sgd(model), sam.sam(0.3))
    closure = closure_of(lambda: nn.functional.cross_entropy(model(torch.arange(12)), Y))
    optimizer.step(closure)
    model.reads_table = True
    with pytest.raises(LandscapeError, match=r"'table.weight' is sparse.*sparse=False"):
        optimizer.step(closure)


@pytest.mark.parametrize("expanded", [True, False])
def test_weights_in_shared_memory_are_refused_and_tied_ones_train(expanded):
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Parameter(0.1 * X[:3].clone())
            self.b = nn.Parameter(self.a.data)
            if expanded:
                self.b = nn.Parameter(torch.ones(3, 1, dtype=torch.float64).expand(3, 6))

        def forward(self, x):
            return x @ self.a.t() + torch.tanh(x) @ self.b.t()

    refused("'b' shares memory with " + ("itself" if expanded else "'a'"), model=Shared())
    model = Shared()
    model.b = nn.Parameter(model.b.detach().clone()) if expanded else model.a
    ours = copy.deepcopy(model)
    sam.SAM(ours, sgd(ours), sam.sam(0.3)).step(closure_of(lambda: mean_loss(ours)))
    by_hand(model)
    assert furthest(weights(ours), weights(model)) < 1e-12


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("name", ["sam", "zsharp", "fsam", "msam", "randsam", "looksam"])
def test_a_radius_beyond_the_weights_type_is_refused(dtype, name):
    model = network().to(dtype)
    optimizer = sam.SAM(model, sgd(model, momentum=0.9), sam.make(name, {"rho": 1e300}))
    closure = closure_of(lambda: nn.functional.cross_entropy(model(X.to(dtype)).float(), Y))
    with pytest.raises(LandscapeError, match=rf"a radius of 1e\+300 .*{dtype}.*lower rho"):
        optimizer.step(closure)


def test_a_factor_beyond_float32_multiplies_where_the_product_fits():
    """Gradients of 1e-40 and rho 0.1: the factor is 1e39, e has the norm 0.1."""
    model = nn.Linear(2, 1, bias=False)
    optimizer = sam.SAM(model, sgd(model), sam.sam(0.1))
    optimizer.step(closure_of(lambda: 1e-40 * model(torch.ones(1, 2)).sum()))
    assert float(optimizer.perturbation.norm) == pytest.approx(0.1, rel=1e-3)


@pytest.mark.parametrize("value", [10**400, -(10**400)])
def test_a_whole_number_beyond_all_floats_is_no_radius(value):
    with pytest.raises(LandscapeError, match="a radius is finite and rho >= 0"):
        sam.sam(value)


# ------------------------------------------------------------------------------ loops and closures


def test_a_teacher_that_the_forward_pass_moves_is_moved_once_a_step():
    """A frozen average of the weights, updated in forward through `.data`, as in MoCo and BYOL."""

    class WithTeacher(nn.Module):
        def __init__(self):
            super().__init__()
            self.student, self.teacher = network(), network().requires_grad_(False)
            with torch.no_grad():
                for p in self.teacher.parameters():
                    p.mul_(0.5)

        def forward(self, x):
            for p, q in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
                p.data = 0.9 * p.data + 0.1 * q.data
            return self.student(x) - 0.1 * self.teacher(x)

    model = WithTeacher()
    expected = [
        0.9 * p + 0.1 * q.detach()
        for p, q in zip(model.teacher.parameters(), model.student.parameters(), strict=True)
    ]
    optimizer = sam.SAM(model, sgd(model.student), sam.sam(0.3))
    optimizer.step(closure_of(lambda: mean_loss(model)))
    assert furthest(expected, weights(model.teacher)) < 1e-15
    before = weights(model)
    optimizer.counterfactual(lambda _: mean_loss(model)[None], None)
    assert furthest(before, weights(model)) == 0.0


@pytest.mark.parametrize("retain", [True, False])
def test_a_closure_without_its_own_forward_pass_is_told_so(retain):
    model = network()
    loss = mean_loss(model)

    def closure():
        loss.backward(retain_graph=retain)
        return loss

    with pytest.raises(LandscapeError, match="compute the forward pass and the loss inside"):
        sam.SAM(model, sgd(model), sam.sam(0.3)).step(closure)


@pytest.mark.parametrize(
    "number", [float, lambda loss: np.float32(loss.item()), lambda loss: loss.detach().numpy()]
)
def test_a_closure_may_return_a_number(number):
    ours, theirs = network(), network()

    def closure():
        loss = mean_loss(ours)
        loss.backward()
        return number(loss.detach())

    sam.SAM(ours, sgd(ours), sam.sam(0.3)).step(closure)
    by_hand(theirs)
    assert furthest(weights(ours), weights(theirs)) < 1e-12


def test_inference_mode_around_a_step_is_refused():
    with torch.inference_mode():
        refused("torch.inference_mode\\(\\) around it forbids; leave it")


def test_a_step_without_a_closure_names_the_call_of_loops_that_step_themselves():
    model = network()
    optimizer = sam.SAM(model, sgd(model), sam.sam(0.3))
    mean_loss(model).backward()
    with pytest.raises(LandscapeError, match=r"optimizer.backward\(closure\) in the place of"):
        optimizer.step()
    ours, theirs = network(), network()
    optimizer = sam.SAM(ours, sgd(ours), sam.sam(0.3))
    optimizer.backward(closure_of(lambda: mean_loss(ours)))
    optimizer.step()
    by_hand(theirs)
    assert furthest(weights(ours), weights(theirs)) < 1e-12


def test_closures_that_accelerate_leaves_out_are_refused(monkeypatch):
    """Its optimizer's step(closure) returns at once while gradients accumulate."""
    state = types.SimpleNamespace(
        GradientState=types.SimpleNamespace(_shared_state={"plugin_kwargs": {"num_steps": 2}})
    )
    monkeypatch.setitem(sys.modules, "accelerate.state", state)
    refused(r"accumulates over 2 micro-batches.*optimizer.backward\(closure\)")
    model = network()
    optimizer = sam.SAM(model, sgd(model), sam.sam(0.3))
    for _ in range(2):
        optimizer.backward(closure_of(lambda: mean_loss(model) / 2))
    optimizer.step()
    theirs = network()
    by_hand(theirs)
    assert furthest(weights(model), weights(theirs)) < 1e-12


# ---------------------------------------------------------------------------------- base optimizers


class Twice(torch.optim.SGD):
    """Differentiates .grad again, as AdaHessian and Sophia do."""

    def step(self, closure=None):
        parameters = [p for group in self.param_groups for p in group["params"]]
        with torch.enable_grad():
            total = sum(p.grad.sum() for p in parameters)
            torch.autograd.grad(total, parameters)
        super().step(closure)


class Asks(torch.optim.SGD):
    """Wants the loss, and says so when it steps."""

    def step(self, closure=None):
        if closure is None:
            raise TypeError("this optimizer requires closure")
        return super().step(closure)


@pytest.mark.parametrize(
    ("kind", "match"),
    [(Twice, "Twice differentiates .grad again.*SGD or AdamW"), (Asks, "Asks asks for a closure")],
)
def test_a_base_that_wants_more_than_a_gradient_is_named(kind, match):
    model = network()
    optimizer = sam.SAM(model, kind(model.parameters(), lr=0.1), sam.sam(0.3))
    with pytest.raises(LandscapeError, match=match):
        optimizer.step(closure_of(lambda: mean_loss(model)))


def test_a_differentiable_base_and_one_in_evaluation_mode_are_refused():
    model = network()
    with pytest.raises(LandscapeError, match="leave differentiable out"):
        sam.SAM(model, sgd(model, differentiable=True), sam.sam(0.3))
    base = sgd(model)
    base.param_groups[0]["train_mode"] = False  # as schedule-free optimizers mark it
    with pytest.raises(LandscapeError, match=r"evaluation mode.*call optimizer.train\(\)"):
        sam.SAM(model, base, sam.sam(0.3)).step(closure_of(lambda: mean_loss(model)))


def test_a_framework_that_makes_the_optimizer_from_its_class_is_told_how():
    with pytest.raises(LandscapeError, match=r"a list alone.*optimizer = SAM\(model, "):
        sam.SAM(list(network().parameters()), lr=0.1)


# ------------------------------------------------------------------------- states of other classes


def test_the_state_of_another_class_without_momentum_is_refused_and_its_base_continues():
    model = network()
    base = sgd(model, momentum=0.9)
    mean_loss(model).backward()
    base.step()
    theirs = copy.deepcopy(base.state_dict())
    lacking = {
        "state": {i: {"old_p": torch.zeros(1)} for i in range(4)},
        "param_groups": theirs["param_groups"],
    }
    ours = copy.deepcopy(model)
    optimizer = sam.SAM(ours, sgd(ours, momentum=0.9), sam.sam(0.3))
    with pytest.raises(LandscapeError, match=r"load its base_optimizer.state_dict\(\)"):
        optimizer.load_state_dict(lacking)
    optimizer.load_state_dict(theirs)
    for p, q in zip(model.parameters(), ours.parameters(), strict=True):
        assert torch.equal(base.state[p]["momentum_buffer"], optimizer.state[q]["momentum_buffer"])


def test_radius_and_form_in_loaded_groups_are_said_or_refused(caplog):
    model = network()
    optimizer = sam.SAM(model, sgd(model), sam.sam(0.3))
    state = sgd(model).state_dict()
    state["param_groups"][0] |= {"rho": 2.0, "adaptive": False}
    with caplog.at_level(logging.WARNING, logger="landscape.sam"):
        optimizer.load_state_dict(state)
    assert any("the loaded groups set rho to [2.0]" in r.getMessage() for r in caplog.records)
    state["param_groups"][0]["adaptive"] = True
    with pytest.raises(LandscapeError, match=r"sam.asam\(rho=2.0, bias_metric='abs'"):
        optimizer.load_state_dict(state)
    adaptive = sam.asam(rho=2.0, bias_metric="abs", eta=0.0)
    sam.SAM(model, sgd(model), adaptive).load_state_dict(state)


# ------------------------------------------------------------------------------------------ batches


@dataclasses.dataclass(frozen=True)
class Derived:
    """A field that its constructor does not take."""

    x: torch.Tensor
    y: torch.Tensor
    double: torch.Tensor = dataclasses.field(init=False)

    def __post_init__(self):
        object.__setattr__(self, "double", 2 * self.x)


def of_mapping(model, b):
    return nn.functional.cross_entropy(model(b["x"]), b["y"], reduction="none")


def of_derived(model, b):
    return nn.functional.cross_entropy(model(b.double / 2), b.y, reduction="none")


@pytest.mark.parametrize(
    ("batch", "losses"),
    [
        (Derived(X, Y), of_derived),
        ({"x": X, "y": Y, "ids": collections.deque(range(12))}, of_mapping),
    ],
)
def test_more_containers_are_cut(batch, losses):
    ours, theirs = network(), network()
    sam.SAM(ours, sgd(ours), sam.sam(0.3)).step(lambda b: losses(ours, b), batch, micro_batch=5)
    by_hand(theirs)
    assert furthest(weights(ours), weights(theirs)) < 1e-12


def test_a_part_that_cannot_be_cut_is_named_and_select_cuts_it():
    batch = {"x": X, "y": Y, "graph": torch.eye(12, dtype=torch.float64).to_sparse()}

    def select(b, index):
        return 12 if index is None else {k: b[k][index] for k in ("x", "y")}

    model, theirs = network(), network()
    with pytest.raises(LandscapeError, match=r"the part \['graph'\] of the batch.*select=f"):
        sam.SAM(model, sgd(model), sam.sam(0.3)).step(
            lambda b: of_mapping(model, b), batch, micro_batch=5
        )
    sam.SAM(model, sgd(model), sam.sam(0.3), select=select).step(
        lambda b: of_mapping(model, b), batch, micro_batch=5
    )
    by_hand(theirs)
    assert furthest(weights(model), weights(theirs)) < 1e-12


@pytest.mark.parametrize(
    ("variant", "micro_batch"),
    [(sam.sam(0.3), 5), (sam.esam(0.3), None), (sam.micro_batched(sam.sam(0.3), 2), None)],
)
def test_losses_of_tokens_are_refused_where_examples_are_cut_or_ranked(variant, micro_batch):
    """Parts of a batch would be weighed by examples and their mean taken over tokens."""
    counts = torch.arange(12) % 3 + 1

    def losses(b):
        return nn.functional.cross_entropy(model(b[0]), b[1], reduction="none").repeat_interleave(
            b[2]
        )

    model = network()
    with pytest.raises(LandscapeError, match=r"losses for .* examples.*mean over the tokens"):
        sam.SAM(model, sgd(model), variant).step(losses, (X, Y, counts), micro_batch=micro_batch)


def test_losses_without_a_graph_are_refused():
    model = network()
    with pytest.raises(LandscapeError, match="the losses do not depend on the optimizer's"):
        sam.SAM(model, sgd(model), sam.sam(0.3)).step(
            lambda b: of_mapping(model, b).detach(), {"x": X, "y": Y}
        )


def test_a_closure_that_unfreezes_what_was_frozen_is_refused_and_the_advice_works():
    """Its tensors had no part in e, and would step with the sum of both gradients."""
    model = network()
    model[0].requires_grad_(False)

    def closure():
        model[0].requires_grad_(True)
        loss = mean_loss(model)
        loss.backward()
        model[0].requires_grad_(False)
        return loss

    optimizer = sam.SAM(model, sgd(model), sam.sam(0.3))
    before = weights(model)
    with pytest.raises(LandscapeError, match=r"'0.weight' was frozen when the step began"):
        optimizer.step(closure)
    assert furthest(before, weights(model)) == 0
    model[0].requires_grad_(True)
    optimizer.zero_grad()
    optimizer.step(closure)
    assert optimizer.perturbation.e["0.weight"].any()


def scaled_in_place(model):
    return lambda b: (b[0].mul_(0.5), of_pair(model, b))[1]


def with_backward(model):
    def losses(b):
        found = of_pair(model, b)
        found.mean().backward(retain_graph=True)
        return found

    return losses


def with_zero_grad(model):
    return lambda b: (model.zero_grad(), of_pair(model, b))[1]


def whole_numbers(model):
    return lambda b: (model(b[0]).argmax(1) != b[1]).long()


def of_pair(model, b):
    return nn.functional.cross_entropy(model(b[0]), b[1], reduction="none")


@pytest.mark.parametrize(
    ("losses", "micro_batch", "message"),
    [
        (scaled_in_place, None, r"changed a tensor of the batch in place.*x\.div\(255\)"),
        (with_backward, None, r"itself changed \.grad: a backward pass"),
        (with_zero_grad, 4, r"zero_grad\(\) in it drops the gradients of earlier parts"),
        (whole_numbers, None, r"torch.int64; .*real numbers of shape \(B,\)"),
    ],
)
def test_losses_that_do_more_than_return_are_refused(losses, micro_batch, message):
    """Steps would be twice as long, over a part of the batch, or over other examples."""
    model = network()
    optimizer = sam.SAM(model, sgd(model), sam.sam(0.3))
    with pytest.raises(LandscapeError, match=message):
        optimizer.step(losses(model), (X.clone(), Y), micro_batch=micro_batch)


def test_losses_may_take_entries_out_of_a_mapping():
    ends = []
    for batch in ({"x": X, "y": Y}, collections.UserDict(x=X, y=Y), (X, Y)):
        model = network()

        def losses(b, model=model):
            return of_pair(model, b if isinstance(b, tuple) else (b.pop("x"), b.pop("y")))

        sam.SAM(model, sgd(model), sam.sam(0.3)).step(losses, batch)
        ends.append(weights(model))
    assert furthest(ends[0], ends[2]) == 0
    assert furthest(ends[1], ends[2]) == 0
