"""What torch and its frameworks expect of an optimizer; what is told to who comes from afar."""

import collections
import copy
import pickle

import pytest
import torch
from torch import nn

from landscape import sam
from landscape.errors import LandscapeError
from tests.sam_models import batch, closure_of, cnn, losses_of, ready, same, sgd, variants, weights


def trained(variant=None, steps=3, **options):
    model = cnn()
    optimizer = sam.SAM(model, sgd(model), variant or sam.fsam(0.1), **options)
    for t in range(steps):
        optimizer.step(closure_of(model, batch(t)))
    return model, optimizer


# ------------------------------------------------------------------------------------- maximize


@pytest.mark.parametrize("name", [n for n in variants() if n != "flat_lora"])
def test_maximizing_f_is_minimizing_minus_f(name):
    ends = []
    for sign in (1, -1):
        model = cnn()
        base = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3,
                               maximize=sign < 0)  # fmt: skip
        optimizer = ready(model, variants()[name], base)
        inner = losses_of(model, with_logits="logits" in optimizer.variant.needs)

        def losses(b, inner=inner, sign=sign):
            found = inner(b)
            return (sign * found[0], found[1]) if isinstance(found, tuple) else sign * found

        optimizer.set_fisher_data(losses, batch())
        for t in range(4):
            optimizer.begin_epoch(t, 4)
            optimizer.step(losses, batch(t))
        ends.append(weights(model))
        if sign < 0 and name == "sam":
            p = optimizer.perturbation
            assert p.loss_perturbed < p.loss_clean  # worse for who maximizes
    assert all(torch.allclose(a, b, rtol=1e-10, atol=1e-13) for a, b in zip(*ends, strict=True))


def test_groups_that_maximize_and_others_that_minimize():
    """Two players of one loss: each climbs where it is worse for itself."""
    model = nn.Linear(3, 1, bias=False).double()
    other = nn.Linear(3, 1, bias=False).double()
    both = nn.ModuleList([model, other])
    groups = [{"params": model.parameters()}, {"params": other.parameters(), "maximize": True}]
    optimizer = sam.SAM(both, torch.optim.SGD(groups, lr=0.1), sam.sam(0.5))

    def closure():
        loss = model.weight.square().sum() - other.weight.square().sum()
        loss.backward()
        return loss

    w = torch.cat([model.weight, other.weight]).detach().clone()
    optimizer.step(closure)
    expected = w - 0.1 * 2 * (w + 0.5 * w / w.norm())
    assert torch.allclose(torch.cat([model.weight, other.weight]), expected, rtol=1e-12)
    with pytest.raises(LandscapeError, match="let all groups maximize, or none"):
        ready(both, sam.esam(0.1), torch.optim.SGD(groups, lr=0.1)).step(closure, batch())


# ----------------------------------------------------------------------------- leftover gradients


def test_a_gradient_of_somebody_else_is_never_thrown_away():
    model, optimizer = trained(sam.sam(0.1))
    optimizer.step(closure_of(model, batch()))  # what the last step left is its own
    optimizer.zero_grad(set_to_none=False)
    optimizer.step(closure_of(model, batch()))  # zeros are nothing
    closure_of(model, batch(1))()
    with pytest.raises(LandscapeError, match=r"call optimizer.backward\(closure\) for each"):
        optimizer.step(closure_of(model, batch()))
    for p in model.parameters():
        p.grad = None
    ours, theirs = cnn(), cnn()
    a, b = (sam.SAM(m, sgd(m), sam.sam(0.1), bn="both") for m in (ours, theirs))
    for t in range(2):  # the advice, followed
        a.backward(closure_of(ours, batch(t)))
    a.step()
    grads = [p.grad for p in ours.parameters()]
    assert all(g is not None for g in grads)
    b.step(closure_of(theirs, batch()))
    with pytest.raises(RuntimeError, match="inside"):
        b.step(lambda: (closure_of(theirs, batch())(), 1 / 0) if False else failing(theirs))
    b.step(closure_of(theirs, batch()))  # what a failed pass left is nobody's


def failing(model):
    closure_of(model, batch())()
    raise RuntimeError("inside")


# --------------------------------------------------------------------------------- torch's contract


def test_state_and_groups_are_the_base_optimizers_and_can_be_set():
    _, optimizer = trained()
    assert optimizer.base.state
    optimizer.state = collections.defaultdict(dict)
    assert not optimizer.base.state
    _, optimizer = trained()
    optimizer.__setstate__({"state": collections.defaultdict(dict)})
    assert not optimizer.base.state
    optimizer.param_groups = [dict(g, lr=0.5) for g in optimizer.param_groups]
    assert optimizer.base.param_groups[0]["lr"] == 0.5
    assert repr(optimizer).startswith("SAM(fsam, SGD (")


def test_hooks_run_and_a_plain_optimizers_state_goes_both_ways(caplog):
    model, optimizer = trained()
    called = []
    optimizer.register_state_dict_pre_hook(lambda o: called.append("before save"))
    optimizer.register_state_dict_post_hook(lambda o, s: called.append("saved"))
    optimizer.register_load_state_dict_pre_hook(lambda o, s: called.append("before load"))
    optimizer.register_load_state_dict_post_hook(lambda o: called.append("loaded"))
    optimizer.register_step_pre_hook(lambda *a: called.append("before step"))
    optimizer.register_step_post_hook(lambda *a: called.append("stepped"))
    state = optimizer.state_dict()
    optimizer.load_state_dict(state)
    optimizer.step(closure_of(model, batch()))
    assert called == ["before save", "saved", "before load", "loaded", "before step", "stepped"]
    plain = sgd(model)
    plain.load_state_dict(state)
    assert len(plain.state) == 9
    assert not caplog.records
    optimizer.load_state_dict(plain.state_dict())
    assert "holds no averages, masks or counters of SAM" in caplog.messages[0]


def test_distributed_checkpoints_find_the_base_optimizers_state():
    from torch.distributed.checkpoint.state_dict import (
        get_optimizer_state_dict,
        set_optimizer_state_dict,
    )

    model, optimizer = trained(sam.sam(0.1))
    found = copy.deepcopy(get_optimizer_state_dict(model, optimizer))
    assert set(found["state"]) == set(dict(model.named_parameters()))
    other = cnn()
    fresh = sam.SAM(other, sgd(other), sam.sam(0.1))
    other.load_state_dict(model.state_dict())
    set_optimizer_state_dict(other, fresh, found)
    for m, o in ((model, optimizer), (other, fresh)):
        o.zero_grad()
        o.step(closure_of(m, batch(7)))
    assert same(weights(model), weights(other))


def test_a_step_over_zero_gradients_is_the_base_optimizers():
    """As tools take it that want an optimizer to have its state."""
    model = cnn()
    optimizer = sam.SAM(model, sgd(model, weight_decay=0.0), sam.sam(0.1))
    before = weights(model)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step(None)
    assert same(before, weights(model))
    assert len(optimizer.state) == 9


def test_several_base_optimizers_step_as_one():
    ours, theirs = cnn(), cnn()
    split = lambda m: [[p for p in m.parameters() if (p.ndim > 1) == big] for big in (True, False)]  # noqa: E731

    def bases(m):
        big, small = split(m)
        return [torch.optim.SGD(big, lr=0.05, momentum=0.9), torch.optim.AdamW(small, lr=0.01)]

    optimizer = sam.SAM(ours, bases(ours), sam.fsam(0.1))
    plain = bases(theirs)
    reference = sam.SAM(theirs, torch.optim.SGD(theirs.parameters(), lr=0.0), sam.fsam(0.1))
    for t in range(3):
        optimizer.step(closure_of(ours, batch(t)))
        reference.step(closure_of(theirs, batch(t)))
        for b in plain:
            b.step()
    assert same(weights(ours), weights(theirs))
    assert len(optimizer.param_groups) == 2
    state = copy.deepcopy(optimizer.state_dict())
    again = cnn()
    again.load_state_dict(ours.state_dict())
    other = sam.SAM(again, bases(again), sam.fsam(0.1))
    other.load_state_dict(state)
    third, copied = copy.deepcopy((ours, optimizer))
    torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    for m, o in ((ours, optimizer), (again, other), (third, copied)):
        o.step(closure_of(m, batch(5)))
    assert same(weights(ours), weights(again))
    assert same(weights(ours), weights(third))
    with pytest.raises(LandscapeError, match="share a parameter of shape"):
        sam.SAM(ours, [sgd(ours), sgd(ours)], sam.sam(0.1))
    with pytest.raises(LandscapeError, match=r"the base optimizers given are \[int\]"):
        sam.SAM(ours, [3], sam.sam(0.1))


class NeedsClosure(torch.optim.Optimizer):
    def __init__(self, params):
        super().__init__(params, {"lr": 0.1})

    def step(self, closure):
        closure()


@pytest.mark.parametrize("kind", [NeedsClosure, torch.optim.LBFGS])
def test_a_base_that_evaluates_the_loss_itself_is_named(kind):
    model = cnn()
    with pytest.raises(LandscapeError, match=f"{kind.__name__} evaluates the loss itself"):
        sam.SAM(model, kind(model.parameters()), sam.sam(0.1))


def test_modes_reach_a_base_that_has_them():
    class Modes(torch.optim.SGD):
        told = ()

        def train(self):
            self.told += ("train",)

        def eval(self):
            self.told += ("eval",)

    model = cnn()
    optimizer = sam.SAM(model, Modes(model.parameters(), lr=0.1), sam.sam(0.1))
    optimizer.train(), optimizer.eval()
    assert optimizer.base.told == ("train", "eval")
    _, plain = trained(steps=0)
    plain.train(), plain.eval()


def test_a_fused_base_steps_with_partial_gradients():
    ours, theirs = cnn(), cnn()
    for m, fused in ((ours, True), (theirs, None)):
        base = torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9, fused=fused)
        optimizer = sam.SAM(m, base, sam.sl_sam(0.1), seed=1)
        for t in range(5):
            optimizer.step(losses_of(m), batch(t))
        assert base.param_groups[0]["fused"] is fused
    pairs = zip(weights(ours), weights(theirs), strict=True)
    assert all(torch.allclose(a, b, rtol=1e-12, atol=1e-14) for a, b in pairs)


def test_the_books_say_the_rho_that_a_schedule_gives_the_groups():
    model = cnn()
    optimizer = sam.SAM(model, sgd(model), sam.sam(0.1))
    for rho in (0.2, 0.05):
        optimizer.param_groups[0]["rho"] = rho
        optimizer.step(closure_of(model, batch()))
        assert optimizer.perturbation.rho == pytest.approx(rho)
        assert float(optimizer.perturbation.norm) == pytest.approx(rho, rel=1e-9)


# ---------------------------------------------------------------------------- from another class


@pytest.mark.parametrize("name", ["first_step", "second_step", "base_optimizer", "rho"])
def test_who_comes_from_another_class_is_told_the_line(name):
    _, optimizer = trained(steps=0)
    assert not hasattr(optimizer, name)
    with pytest.raises(AttributeError, match="optimizer"):
        getattr(optimizer, name)
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        optimizer.nonsense


def test_the_constructor_of_another_class_is_told_the_line():
    model = cnn()
    line = r"optimizer = SAM\(model, torch.optim.SGD\(model.parameters\(\), lr=0.1, momentum=0.9\)"
    with pytest.raises(LandscapeError, match=line):
        sam.SAM(model.parameters(), torch.optim.SGD, lr=0.1, momentum=0.9)
    with pytest.raises(LandscapeError, match=r"SAM has no argument rho, adaptive: .*" + line):
        sam.SAM(model, sgd(model), rho=0.05, adaptive=True)
    with pytest.raises(LandscapeError, match="the variant given is missing; make one"):
        sam.SAM(model, sgd(model))


@pytest.mark.parametrize(
    ("returned", "works"),
    [
        (lambda loss: (loss, None), True),
        (lambda loss: {"loss": loss}, True),
        (lambda loss: loss.item(), True),
        (lambda loss: None, False),
        (lambda loss: loss * torch.ones(3), False),
        (lambda loss: {"nll": loss}, False),
    ],
)
def test_what_a_closure_may_return(returned, works):
    model = cnn()
    optimizer = sam.SAM(model, sgd(model), sam.sam(0.1))
    closure = lambda: returned(closure_of(model, batch())())  # noqa: E731
    if works:
        assert optimizer.step(closure).shape == ()
    else:
        with pytest.raises(LandscapeError, match=r"the closure returned .* return the loss"):
            optimizer.step(closure)


@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1.0, 1e12, 1e25])
def test_the_radius_is_rho_in_whatever_units_the_loss_is(scale):
    model = cnn().float()
    b = (batch()[0].float(), batch()[1])
    optimizer = sam.SAM(model, torch.optim.SGD(model.parameters(), lr=0.0), sam.sam(0.05))

    def closure():
        loss = scale * nn.functional.cross_entropy(model(b[0]), b[1])
        loss.backward()
        return loss

    optimizer.step(closure)
    assert optimizer.num_skipped == 0
    assert float(optimizer.perturbation.norm) == pytest.approx(0.05, rel=2e-3)


# ------------------------------------------------------------------- what a step must not meet


@pytest.mark.parametrize(
    "meets",
    [
        lambda o, again: copy.deepcopy(o),
        lambda o, again: pickle.dumps(o),
        lambda o, again: o.state_dict(),
        lambda o, again: o.load_state_dict({"state": {}, "param_groups": []}),
        lambda o, again: o.step(again),
        lambda o, again: o.backward(again),
    ],
)
def test_within_its_own_passes_an_optimizer_is_neither_copied_nor_stepped(meets):
    """In either pass; afterwards it goes on as if nothing had been tried."""
    model, optimizer = trained(sam.sam(0.1))
    twin, other = copy.deepcopy((model, optimizer))
    for which in (1, 2):
        calls = []

        def closure(calls=calls, which=which):
            calls.append(1)
            if len(calls) == which:
                meets(optimizer, closure_of(model, batch()))
            return closure_of(model, batch())()

        with pytest.raises(LandscapeError, match=r"within a step of its own|step once around it"):
            optimizer.step(closure)
    optimizer.step(closure_of(model, batch(1)))
    other.step(closure_of(twin, batch(1)))
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), twin.parameters()))


def writes_into_its_own(model, b):
    """As loops that keep the memory of their gradients, and set .grad to it in each pass."""
    kept = [torch.zeros_like(p) for p in model.parameters()]

    def closure():
        for p, g in zip(model.parameters(), kept, strict=True):
            p.grad = g.zero_()
        return closure_of(model, b)()

    return closure


def test_gradients_of_both_passes_in_one_memory():
    model, optimizer = trained(sam.sam(0.1))
    twin, other = copy.deepcopy((model, optimizer))
    optimizer.step(writes_into_its_own(model, batch()))
    other.step(closure_of(twin, batch()))
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), twin.parameters()))
    with pytest.raises(LandscapeError, match="into the memory of the first"):
        _ = optimizer.perturbation
    for variant in (sam.gsam(0.1), sam.gnp(0.1)):
        model = cnn()
        optimizer = sam.SAM(model, sgd(model), variant)
        with pytest.raises(LandscapeError, match=r"which 'g\w+' still reads"):
            optimizer.step(writes_into_its_own(model, batch()))


def test_a_state_of_other_shapes_or_groups_is_refused_before_anything_is_loaded():
    def made(width, groups=1):
        model = nn.Sequential(nn.Linear(3, width), nn.Linear(width, 2)).double()
        parts = [{"params": [p]} for p in model.parameters()]
        base = torch.optim.SGD(parts if groups > 1 else model.parameters(), lr=0.1, momentum=0.9)
        return model, sam.SAM(model, base, sam.sam(0.1))

    model, optimizer = made(4)
    x = torch.ones(2, 3, dtype=torch.float64)
    optimizer.step(lambda b: model(b).square().sum(1), x)
    state = optimizer.state_dict()
    _, wider = made(5)
    with pytest.raises(LandscapeError, match=r"'0.weight' of shape \(4, 3\) .* \(5, 3\)"):
        wider.load_state_dict(state)
    assert not wider.base.state
    assert wider.take_over(state) == ["1.bias"]
    _, grouped = made(4, groups=4)
    with pytest.raises(LandscapeError, match=r"groups of \[4\] tensors .* \[1, 1, 1, 1\]"):
        grouped.load_state_dict(state)
    assert len(grouped.take_over(state)) == 4


def test_weights_loaded_in_other_tensors_are_told():
    model, optimizer = trained(sam.sam(0.1))
    model.load_state_dict(copy.deepcopy(model.state_dict()), assign=True)
    with pytest.raises(LandscapeError, match="loaded with assign=True"):
        optimizer.step(closure_of(model, batch()))
