"""What no variant may break: exact weights, running statistics, random state, saved state."""

import copy
import dataclasses
import gc
import math

import pytest
import torch
from torch import nn

from landscape import sam
from landscape.sam import finite, schedule, selectors
from landscape.sam.sparse import FisherMask
from tests.sam_models import (
    Adapted,
    batch,
    closure_of,
    cnn,
    losses_of,
    model_for,
    ready,
    same,
    step,
    variants,
)
from tests.sam_models import weights as weights_of


class Spy(torch.optim.SGD):
    """Notes the weights that the base step starts from."""

    def step(self, closure=None):
        self.seen = [p.detach().clone() for g in self.param_groups for p in g["params"]]
        return super().step(closure)


def test_gradients_that_somebody_else_holds_are_never_written_over():
    """A closure may hand out the same tensors again; g1 must still be in them."""
    model = nn.Linear(40, 30)
    given = [torch.randn(p.shape, generator=torch.Generator().manual_seed(0)) for p in
             model.parameters()]  # fmt: skip
    flat = torch.randn(1230, generator=torch.Generator().manual_seed(1))
    views = [flat[:1200].view(30, 40), flat[1200:]]
    for held in (given, views):
        base = torch.optim.SGD(model.parameters(), lr=0.1)
        optimizer = sam.SAM(model, base, sam.fsam(0.1), keep_perturbation=False)

        def closure(held=held):
            for p, g in zip(model.parameters(), held, strict=True):
                p.grad = g if held is given else g.view(g.shape)
            return torch.zeros(())

        before = [g.clone() for g in held]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(finite, "SMALL", 0)
            for _ in range(3):
                optimizer.step(closure)
        assert same(before, held)


@pytest.mark.parametrize("look", [torch.Tensor.numpy, torch.Tensor.detach, torch.Tensor.t])
def test_the_memory_of_a_gradient_that_somebody_else_looks_at_is_never_written_over(look):
    model = nn.Linear(40, 30, bias=False)
    base = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer = sam.SAM(model, base, sam.sam(0.1), keep_perturbation=False)
    x = torch.randn(4, 40, generator=torch.Generator().manual_seed(0))
    looks, copies = [], []

    def closure():
        loss = model(x).square().mean()
        loss.backward()
        looks.append(look(model.weight.grad))
        copies.append(torch.as_tensor(looks[-1]).clone())
        return loss

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finite, "SMALL", 0)
        for _ in range(2):
            optimizer.step(closure)
    assert same(copies, list(map(torch.as_tensor, looks)))


@pytest.mark.parametrize(("policy", "counted"), [("first", 1), ("second", 1), ("both", 2)])
def test_batchnorm_policy_says_which_pass_counts(policy, counted):
    model, at_w, at_e = cnn(), cnn(), cnn()
    optimizer = ready(model, sam.sam(0.5), bn=policy)
    step(optimizer, batch())
    assert int(model[1].num_batches_tracked) == counted
    at_w(batch()[0])
    with torch.no_grad():
        for p, e in zip(at_e.parameters(), optimizer.perturbation.e.values(), strict=True):
            p.add_(e)
    at_e(batch()[0])
    if policy != "both":
        if policy == "first":
            assert same(model.buffers(), at_w.buffers())
        for a, b in zip(model.buffers(), (at_w if policy == "first" else at_e).buffers()):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)
    assert not torch.equal(at_w[1].running_mean, at_e[1].running_mean)


def test_steps_without_a_second_pass_update_statistics_under_every_policy():
    for policy in ("first", "second", "both"):
        for variant in (sam.sgd(), sam.msam(0.1)):
            model = cnn()
            step(ready(model, variant, bn=policy), batch())
            assert int(model[1].num_batches_tracked) == 1


@pytest.mark.parametrize("failing_call", [1, 2])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_weights_are_restored_whatever_the_closure_raises(failing_call, error):
    model = cnn()
    optimizer = ready(model, sam.sam(0.5))
    step(optimizer, batch(1))
    before, calls, inner = weights_of(model), [], None
    inner = closure_of(model, batch(), calls)

    def closure():
        loss = inner()
        if len(calls) == failing_call:
            raise error("inside")
        return loss

    with pytest.raises(error, match="inside"):
        optimizer.step(closure)
    assert same(before, weights_of(model))
    assert all(p.requires_grad for p in model.parameters())
    optimizer.step(closure_of(model, batch()))


@pytest.mark.parametrize("name", sam.recipes())
def test_every_recipe_leaves_the_global_random_state_alone(name):
    model = model_for(name)
    state = torch.get_rng_state()
    optimizer = ready(model, variants()[name])
    for t in range(3):
        optimizer.begin_epoch(t, 4)
        step(optimizer, batch(t))
    assert torch.equal(state, torch.get_rng_state())


def resumed_equals_uninterrupted(variant, base=None, make=cnn):
    def advance(model, optimizer, steps):
        for t in steps:
            if t % 2 == 0:
                optimizer.begin_epoch(t // 2, 4)
            step(optimizer, batch(t % 3))

    model = make()
    optimizer = ready(model, variant, base and base(model))
    advance(model, optimizer, range(3))
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    advance(model, optimizer, range(3, 7))

    other = make(seed=9)
    again = ready(other, variant, base and base(other), seed=77)
    other.load_state_dict(saved[0])
    again.load_state_dict(saved[1])
    advance(other, again, range(3, 7))
    assert same(weights_of(model), weights_of(other))
    assert same(model.buffers(), other.buffers())
    return saved[1]


@pytest.mark.parametrize("name", sam.recipes())
def test_every_recipe_resumes_bit_for_bit(name, tmp_path):
    make = Adapted if name == "flat_lora" else cnn
    state = resumed_equals_uninterrupted(variants()[name], make=make)
    torch.save(state, tmp_path / "state.pt")
    torch.load(tmp_path / "state.pt", weights_only=True)


def test_resumes_bit_for_bit_over_adam():
    adam = lambda m: torch.optim.Adam(m.parameters(), lr=1e-3)  # noqa: E731
    resumed_equals_uninterrupted(sam.fsam(0.1), adam)


def test_both_forms_of_step_agree():
    for variant in (sam.sam(0.1), sam.zsharp(0.1), sam.sam_on(0.1), sam.lagnp(0.1)):
        a, b = cnn(), cnn()
        by_closure, by_losses = ready(a, variant), ready(b, variant)
        for t in range(3):
            one = by_closure.step(closure_of(a, batch(t)))
            two = by_losses.step(losses_of(b), batch(t))
            torch.testing.assert_close(one, two, rtol=1e-13, atol=0)
        for p, q in zip(a.parameters(), b.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("name", ["sam", "fsam", "zsharp", "ssam_f", "ssam_d", "lagnp", "looksam"])
def test_frozen_tied_and_unused_parameters(name):
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.frozen = nn.Linear(4, 4)
            self.a = nn.Linear(4, 4, bias=False)
            self.b = nn.Linear(4, 4, bias=False)
            self.b.weight = self.a.weight
            self.unused = nn.Linear(4, 4)
            self.head = nn.Linear(4, 3)
            self.frozen.requires_grad_(False)

        def forward(self, x):
            return self.head(torch.relu(self.b(torch.relu(self.a(self.frozen(x))))))

    generator = torch.Generator().manual_seed(0)
    model = Odd().double()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator, dtype=torch.float64))
    x = torch.randn(8, 4, generator=generator, dtype=torch.float64)
    y = torch.randint(0, 3, (8,), generator=generator)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    optimizer = sam.SAM(
        model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), variants()[name]
    )
    losses = losses_of(model)
    optimizer.set_fisher_data(losses, (x, y))
    for epoch in range(3):
        optimizer.begin_epoch(epoch, 3)
        optimizer.step(losses, (x, y))
    assert optimizer.trained.names == ("a.weight", "unused.weight", "unused.bias", "head.weight",
                                       "head.bias")  # fmt: skip
    assert float(optimizer.perturbation.energy_share["unused.weight"]) == 0
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert moved == {"a.weight", "head.weight", "head.bias"}


@pytest.mark.parametrize("bad_pass", [1, 2])
@pytest.mark.parametrize("variant", [sam.sgd(), sam.sam(0.1), sam.fsam(0.1), sam.msam(0.1)],
                         ids=lambda v: v.name)  # fmt: skip
def test_a_step_with_a_gradient_that_is_not_finite_is_skipped_and_counted(variant, bad_pass):
    model = cnn()
    optimizer = ready(model, variant)
    step(optimizer, batch(0))
    before = copy.deepcopy((model.state_dict(), optimizer.base.state_dict()["state"]))
    calls = []
    inner = closure_of(model, batch(1), calls)

    def closure():
        loss = inner()
        if len(calls) == bad_pass:
            next(model.parameters()).grad[0] = torch.nan
        return loss

    optimizer.step(closure)
    if len(calls) < bad_pass:
        assert optimizer.num_skipped == 0
        return
    assert optimizer.num_skipped == 1
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[0][name]), name
    momentum = optimizer.base.state_dict()["state"]
    assert all(torch.equal(momentum[i]["momentum_buffer"], s["momentum_buffer"])
               for i, s in before[1].items())  # fmt: skip
    step(optimizer, batch(1))
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_bf16_weights_are_restored_without_rounding():
    model = nn.Linear(16, 4).to(torch.bfloat16)
    base = Spy(model.parameters(), lr=0.01)
    optimizer = sam.SAM(model, base, sam.sam(0.05))
    x = torch.randn(8, 16, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    for _ in range(5):
        before = weights_of(model)

        def closure():
            loss = model(x).float().square().mean()
            loss.backward()
            return loss

        optimizer.step(closure)
        assert same(before, base.seen)
    norm = math.sqrt(
        sum(float(e.float().square().sum()) for e in optimizer.perturbation.e.values())
    )
    assert norm == pytest.approx(0.05, rel=5e-3)


def test_parameters_stay_the_same_storage():
    model = cnn()
    pointers = [p.data_ptr() for p in model.parameters()]
    optimizer = ready(model, sam.sam(0.1))
    step(optimizer, batch())
    assert pointers == [p.data_ptr() for p in model.parameters()]


def test_a_group_may_have_its_own_rho_or_none():
    model = cnn()
    conv, rest = list(model[0].parameters()), [p for m in model[1:] for p in m.parameters()]
    base = torch.optim.SGD([{"params": conv, "rho": 0.0}, {"params": rest}], lr=0.1)
    optimizer = ready(model, sam.sam(0.2), base)
    step(optimizer, batch())
    p = optimizer.perturbation
    assert float(p.energy_share["0.weight"]) == 0
    assert float(p.norm) == pytest.approx(0.2, rel=1e-9)
    base.param_groups[1]["rho"] = 0.1
    step(optimizer, batch())
    assert float(optimizer.perturbation.norm) == pytest.approx(0.1, rel=1e-9)


def test_learning_rate_schedulers_drive_either_optimizer():
    model = cnn()
    optimizer = ready(model, sam.sam(0.1), torch.optim.SGD(model.parameters(), lr=0.4))
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)
    step(optimizer, batch())
    scheduler.step()
    assert optimizer.base.param_groups[0]["lr"] == pytest.approx(0.2)
    assert optimizer.param_groups is optimizer.base.param_groups


def test_clipping_bounds_the_descent_gradient_alone():
    model = cnn()
    base = torch.optim.SGD(model.parameters(), lr=0.0)
    optimizer = ready(model, sam.sam(0.1), base, clip_norm=1e-3)
    step(optimizer, batch())
    norm = math.sqrt(sum(float(p.grad.square().sum()) for p in model.parameters()))
    assert norm == pytest.approx(1e-3, rel=1e-2)
    assert float(optimizer.perturbation.norm) == pytest.approx(0.1, rel=1e-9)


def test_accumulation_inside_the_closure_equals_one_large_batch():
    whole, parts = cnn(), cnn()
    for m in (whole, parts):
        m.eval()
    b = batch()
    a = ready(whole, sam.sam(0.1))
    c = ready(parts, sam.sam(0.1))
    a.step(closure_of(whole, b))

    def closure():
        total = 0.0
        for i in (0, 8):
            loss = losses_of(parts)(tuple(t[i : i + 8] for t in b)).sum() / 16
            loss.backward()
            total += loss.detach()
        return total

    c.step(closure)
    for p, q in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-14)


def test_sam_on_computes_the_norm_layers_gradients_alone_in_the_first_pass():
    model = cnn()
    optimizer = ready(model, sam.sam_on(0.1))
    step(optimizer, batch())
    found = [g is not None for g in optimizer.perturbation.g1]
    assert found == [kind == "norm" for kind in optimizer.trained.kinds]
    assert all(g is not None for g in optimizer.perturbation.g2)
    windowed = ready(cnn(), sam.sam_on(0.1, start_epoch=1))
    step(windowed, batch())
    assert all(g is not None for g in windowed.perturbation.g1)


def test_sl_sam_neither_perturbs_nor_updates_what_it_did_not_draw():
    model = cnn()
    optimizer = ready(model, sam.sl_sam(0.1, share=0.4))
    before = weights_of(model)
    step(optimizer, batch())
    drawn = [bool(m.all()) for m in optimizer.perturbation.mask.values()]
    moved = [not torch.equal(p, w) for p, w in zip(model.parameters(), before, strict=True)]
    assert moved == drawn
    assert any(drawn)
    assert not all(drawn)
    total = float(optimizer.slots["selector"]["probabilities"].sum())
    assert total == pytest.approx(0.4 * len(drawn), rel=1e-9)


def test_lagnp_computes_the_second_gradient_of_the_selected_layers_alone():
    model = cnn()
    optimizer = ready(model, sam.lagnp(0.1, num_layers=2))
    step(optimizer, batch())
    p = optimizer.perturbation
    selected = [bool(m.all()) for m in p.mask.values()]
    assert [g is not None for g in p.g2] == selected
    owners = {m for m, s in zip(optimizer.trained.modules, selected, strict=True) if s}
    assert len(owners) == 2


def test_ssam_d_keeps_its_live_share_and_the_released_code_does_not():
    def live(quirks):
        model = cnn()
        optimizer = ready(model, sam.ssam_d(0.1, sparsity=0.2, official_quirks=quirks))
        shares = []
        for epoch in range(4):
            optimizer.begin_epoch(epoch, 4)
            step(optimizer, batch(epoch))
            masks = optimizer.slots["selector"]["mask"].values()
            shares.append(sum(int(m.sum()) for m in masks) / sum(m.numel() for m in masks))
        return shares

    assert live(False) == pytest.approx([0.8] * 4, abs=2e-3)
    assert live(True)[0] == pytest.approx(0.6, abs=5e-3)


def test_ssam_f_keeps_the_largest_fisher_entries_after_the_first_step_of_an_epoch():
    model = cnn()
    optimizer = ready(model, sam.ssam_f(0.1, sparsity=0.7, num_samples=4))
    optimizer.set_fisher_data(losses_of(model), batch(), shuffle=False)
    step(optimizer, batch(1))
    assert float(optimizer.perturbation.norm) == 0
    model.eval()
    fisher = 0
    for i in range(4):
        loss = losses_of(model)(tuple(t[i : i + 1] for t in batch())).sum()
        grads = torch.autograd.grad(loss, list(model.parameters()))
        fisher = fisher + torch.cat([g.reshape(-1) for g in grads]).square()
    model.train()
    mask = torch.cat([m.reshape(-1) for m in optimizer.slots["selector"]["mask"].values()])
    count = int(len(fisher) * (1 - 0.7))
    assert int(mask.sum()) == count
    assert set(torch.topk(fisher, count).indices.tolist()) == set(mask.nonzero().flatten().tolist())
    statistics = [b.clone() for b in model.buffers()]
    step(optimizer, batch(2))
    p = optimizer.perturbation
    assert 0 < float(p.norm) < 0.1
    assert not same(statistics, model.buffers())


def test_fisher_within_the_norm_layers_keeps_a_share_of_theirs():
    model = cnn()
    mask = FisherMask(sparsity=0.5, num_samples=4, within=selectors.NormLayers())
    variant = dataclasses.replace(sam.ssam_f(0.1, num_samples=4), selector=mask)
    optimizer = ready(model, variant)
    step(optimizer, batch())
    step(optimizer, batch())
    live = {n: int(m.sum()) for n, m in optimizer.perturbation.mask.items()}
    assert sum(live.values()) == 10
    assert {n for n, count in live.items() if count} <= {"1.weight", "1.bias", "4.weight", "4.bias"}


def test_random_masks_follow_the_seed():
    def mask(seed):
        model = cnn()
        optimizer = ready(model, sam.random_mask(0.1, density=0.3), seed=seed)
        step(optimizer, batch())
        return list(optimizer.perturbation.mask.values())

    assert same(mask(1), mask(1))
    assert not same(mask(1), mask(2))


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("variant", "copies"), [(sam.sam(0.1), 1), (sam.zsharp(0.1), 1), (sam.fsam(0.1), 2)]
)
def test_during_the_second_pass_no_more_copies_of_the_weights_live_than_stated(variant, copies):
    model = nn.Linear(300, 200, bias=False)
    base = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer = sam.SAM(model, base, variant, keep_perturbation=False)
    x = torch.randn(4, 300, generator=torch.Generator().manual_seed(0))
    seen = []

    def closure():
        model.zero_grad()
        tensors = [t for t in gc.get_objects() if issubclass(type(t), torch.Tensor)]
        seen.append(len({t.data_ptr() for t in tensors if t.numel() == 60_000}) - 1)
        loss = model(x).square().mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    optimizer.step(closure)
    assert seen[1::2] == [copies, copies]
    assert max(seen[::2]) <= copies


def test_users_slots_are_plain_functions():
    """A zeroth-order source (two losses along a random direction) and per-tensor spectral radii."""

    def zeroth_order(point, state):
        state["calls"] = state.get("calls", 0) + 1
        return [
            torch.randn(w.shape, generator=point.generator, dtype=w.dtype) for w in point.weights
        ]

    def spectral_radii(point, u, mask, rho):
        scale = [math.sqrt(w.shape[0] / w[0].numel()) if w.ndim > 1 else 1.0 for w in point.weights]
        return [rho * s * x / x.norm() for s, x in zip(scale, u, strict=True)]

    variant = dataclasses.replace(
        sam.sam(0.1), name="mine", source=zeroth_order, geometry=spectral_radii
    )
    model = cnn()
    optimizer = ready(model, variant)
    step(optimizer, batch())
    for n, e in optimizer.perturbation.e.items():
        w = dict(model.named_parameters())[n]
        s = math.sqrt(w.shape[0] / w[0].numel()) if w.ndim > 1 else 1.0
        assert float(e.norm()) == pytest.approx(0.1 * s, rel=1e-12)
    assert optimizer.state_dict()["sam"]["slots"]["source"] == {"calls": 1}


def test_gates_and_radii():
    model = cnn()
    late = dataclasses.replace(sam.sam(0.1), gate=schedule.Window(2))
    optimizer = ready(model, late)
    climbed = []
    for epoch in range(4):
        optimizer.begin_epoch(epoch, 4)
        step(optimizer, batch(epoch))
        climbed.append(optimizer.perturbation.climbed)
    assert climbed == [False, False, True, True]

    def norm(radius, epochs=1):
        optimizer = ready(cnn(), dataclasses.replace(sam.sam(0.1), radius=radius))
        for epoch in range(epochs):
            optimizer.begin_epoch(epoch, 4)
            step(optimizer, batch(epoch))
        return float(optimizer.perturbation.norm), optimizer.perturbation.g1

    assert norm(schedule.Cosine(0.2, 0.1), 3)[0] == pytest.approx(0.15)
    assert norm(schedule.WithLearningRate(0.3, 0.1, 0.1))[0] == pytest.approx(0.2)
    budget, g1 = norm(schedule.LossBudget(0.01, 10.0))
    g_norm = math.sqrt(sum(float(g.square().sum()) for g in g1))
    assert budget == pytest.approx(0.01 / g_norm)
    assert norm(schedule.LossBudget(10.0, 0.3))[0] == pytest.approx(0.3)
    assert norm(schedule.AdaGradNorm(0.1))[0] == pytest.approx(0.1)
    assert norm(schedule.AdaGradNorm(0.1), 3)[0] < 0.09


def test_adaptive_gate_climbs_when_the_squared_norm_is_large_among_recent_ones():
    gate, state, climbed = schedule.Adaptive(0.5, low=0.0, high=0.0), {}, []
    for norm in (1.0, 1.0, 3.0, 1.0, 0.5, 2.0):
        point = sam.Point((), (), (), [], [], None, None)
        point._norms = [torch.tensor(norm, dtype=torch.float64)]
        climbed.append(gate(point, state))
    # mu after each step: 1, 1, 5, 3, 1.625, 2.8125 against the squares 1, 1, 9, 1, .25, 4
    assert climbed == [True, True, True, False, False, True]
    assert state["mean"] == pytest.approx(2.8125)


def test_modifiers_say_when_how_far_and_on_how_much():
    def climbs(variant, steps=4, epochs=False):
        optimizer, seen = ready(cnn(), variant), []
        for t in range(steps):
            if epochs:
                optimizer.begin_epoch(t, steps)
            step(optimizer, batch(t))
            seen.append(optimizer.perturbation.climbed)
        return seen

    plain = sam.zsharp(0.1)
    assert climbs(sam.late(plain, 2), epochs=True) == [False, False, True, True]
    assert climbs(sam.window(plain, 1, 3), epochs=True) == [False, True, True, False]
    assert climbs(sam.window(plain, 1, 2, unit="step")) == [False, True, False, False]
    assert climbs(sam.every(plain, 2)) == [True, False, True, False]
    assert climbs(sam.adaptive(plain))[0] is True
    radius = sam.with_radius(plain, lambda point, state: 0.1 * (point.step + 1))
    optimizer = ready(cnn(), radius)
    step(optimizer, batch())
    step(optimizer, batch())
    assert float(optimizer.perturbation.norm) == pytest.approx(0.2, rel=1e-9)
    assert sam.micro_batched(plain, 4).evaluate.micro_batches == 4


def test_a_gate_that_is_always_open_changes_nothing():
    a, b = cnn(), cnn()
    for model, variant in ((a, sam.sam_on(0.1)), (b, sam.every(sam.sam_on(0.1), 1))):
        optimizer = ready(model, variant)
        for t in range(3):
            step(optimizer, batch(t))
    assert same(weights_of(a), weights_of(b))


def test_batches_may_be_dicts():
    model, plain = cnn(), cnn()
    x, y, _ = batch()
    by_dict, by_tuple = ready(model, sam.esam(0.1)), ready(plain, sam.esam(0.1))

    def losses(inputs):
        return nn.functional.cross_entropy(model(inputs["x"]), inputs["labels"], reduction="none")

    for _ in range(3):
        by_dict.step(losses, {"x": x, "labels": y})
        step(by_tuple, batch())
    assert same(weights_of(model), weights_of(plain))
