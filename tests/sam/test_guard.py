"""Pass 2 ran at w + e, or the step is refused with what the forward pass reads instead."""

import copy
import random

import numpy as np
import pytest
import torch
from torch import nn

from landscape import sam
from landscape.errors import LandscapeError
from tests.sam_models import batch, closure_of, cnn, losses_of, reset, same, sgd, variants, weights


class Held(nn.Module):
    """A layer that keeps something made of its weight when it was built."""

    def __init__(self, keep):
        super().__init__()
        self.layer = nn.Linear(100, 4, bias=False)
        self.out = nn.Linear(4, 5)
        reset(self)
        self.kept = [keep(self.layer.weight)]

    def forward(self, x):
        return self.out(torch.tanh(x.flatten(1) @ self.kept[0]))


def train(model, variant, steps=2, **options):
    base = torch.optim.SGD(model.parameters(), lr=0.05)
    optimizer = sam.SAM(model, base, variant, **options)
    for t in range(steps):
        optimizer.step(losses_of(model), batch(t))
    return optimizer


class Plain(Held):
    def forward(self, x):
        return self.out(torch.tanh(x.flatten(1) @ self.layer.weight.t()))


@pytest.mark.parametrize(
    "keep", [torch.t, lambda w: w.view(4, 100).t(), lambda w: w[:, :].transpose(0, 1)]
)
def test_a_view_made_beforehand_moves_with_its_weight(keep):
    ours, plain = Held(keep), Plain(torch.t)
    train(ours, sam.sam(0.3)), train(plain, sam.sam(0.3))
    assert same(weights(ours), weights(plain))


class Copied(nn.Module):
    """Everything that is trained is read from copies, which pass gradients on and stay at w."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(100, 5, dtype=torch.float64))
        self.copy = self.weight.detach().clone()

    def forward(self, x):
        return x.flatten(1) @ (self.copy + self.weight - self.weight.detach())


class Noise(nn.Module):
    """Random factors that torch does not draw."""

    def __init__(self, draw):
        super().__init__()
        self.draw = draw

    def forward(self, x):
        return x * (1.0 + self.draw())


RANDOM = {
    "dropout": nn.Dropout(0.5),
    "python": Noise(random.random),
    "numpy": Noise(np.random.rand),
}


@pytest.mark.parametrize("form", ["closure", "losses", *RANDOM])
def test_a_forward_pass_that_does_not_see_e_is_refused_by_name(form):
    torch.manual_seed(0)
    model = Copied()
    before = weights(model)
    whole = nn.Sequential(model, RANDOM[form]) if form in RANDOM else model
    optimizer = sam.SAM(whole, sgd(whole), sam.sam(0.5))
    batched = form != "closure"
    arguments = (losses_of(whole), batch()) if batched else (closure_of(whole, batch()),)
    message = r"did not see w \+ e: .*FSDP.*view.*parametrize.cached"
    with pytest.raises(LandscapeError, match=message):
        optimizer.step(*arguments)
    assert same(before, weights(model))


@pytest.mark.parametrize("source", RANDOM)
def test_both_passes_may_see_the_same_random_numbers_whoever_draws_them(source):
    """Layers are dropped by `random.random()` too, and inputs mixed by numpy."""
    seen = []
    model = nn.Sequential(nn.Flatten(), RANDOM[source], Plain(torch.t))
    model[2].register_forward_pre_hook(lambda _, x: seen.append(x[0].detach().clone()))
    train(model, sam.sam(0.3), steps=2, same_rng_both_passes=True)
    first, again, second, twice = seen
    assert torch.equal(first, again)
    assert torch.equal(second, twice)
    # What pass 1 drew is not drawn again by the next step.
    factors = [x / batch(t)[0].flatten(1) for t, x in enumerate((first, second))]
    assert not torch.allclose(*factors)


class Steps(nn.Module):
    """A layer that is stepped within backward by a hook, as memory-saving optimizers do."""

    def __init__(self):
        super().__init__()
        self.layers = reset(nn.Sequential(nn.Flatten(), nn.Linear(100, 4), nn.Linear(4, 5)))

        def descend(p):
            with torch.no_grad():
                p.sub_(0.01 * p.grad)
            p.grad = None

        self.hook = self.layers[1].weight.register_post_accumulate_grad_hook(descend)

    def forward(self, x):
        return self.layers(x)


def test_a_tensor_that_is_stepped_within_backward_is_refused_and_the_advice_works():
    model = Steps()
    with pytest.raises(LandscapeError, match=r"moved 'layers.1.weight' .*within backward"):
        train(model, sam.sam(0.3))
    model.hook.remove()
    assert "seen" in train(model, sam.sam(0.3)).guard.said


@pytest.mark.parametrize("name", [n for n in variants() if n not in ("sgd", "saf", "mesa")])
def test_the_guard_is_silent_where_the_step_is_right(name):
    """With dropout, spectral vectors and running statistics, at climbs 1 and 9."""
    torch.manual_seed(0)
    layer = nn.utils.parametrizations.spectral_norm(nn.Linear(100, 6))
    model = reset(nn.Sequential(nn.Flatten(), layer, nn.BatchNorm1d(6), nn.Dropout(0.3),
                                nn.Linear(6, 5)))  # fmt: skip
    if name == "flat_lora":
        pytest.skip("has a model of its own")
    optimizer = sam.SAM(model, sgd(model), variants()[name])
    optimizer.set_fisher_data(losses_of(model), batch())
    losses = losses_of(model, with_logits="logits" in optimizer.variant.needs)
    for t in range(10):
        optimizer.begin_epoch(t // 4, total_epochs=4)
        optimizer.step(losses, batch(t))
    assert (
        optimizer.guard.climbs == 0
        or "seen" in optimizer.guard.said
        or ("too small" in optimizer.guard.said)
    )


def test_a_look_costs_a_pass_only_where_something_random_came_between():
    for model, looked in ((cnn(), 2), (nn.Sequential(nn.Dropout(0.2), cnn()), 3)):
        calls, counts = [], []
        optimizer = sam.SAM(model, sgd(model), sam.sam(0.1))
        for t in range(3):
            before = len(calls)
            optimizer.step(closure_of(model, batch(t), calls))
            counts.append(len(calls) - before)
        assert counts == [looked, 2, 2]
        assert optimizer.guard.said.startswith("climb 1 was seen")


def test_a_look_leaves_random_state_buffers_and_gradients_as_they_were():
    def trained(looks):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Dropout(0.2), cnn())
        optimizer = sam.SAM(model, sgd(model), sam.fsam(0.1))
        for t in range(3):
            optimizer.guard.climbs = 0 if looks else 1
            optimizer.step(closure_of(model, batch(t)))
        return [*model.state_dict().values(), torch.rand(3)]

    assert same(trained(True), trained(False))


def test_a_change_below_a_hundred_roundings_is_not_judged():
    model = Copied()
    optimizer = sam.SAM(model, sgd(model), sam.sam(1e-15))
    optimizer.step(closure_of(model, batch()))
    assert optimizer.guard.said.startswith("too small to see: e changes the loss")


def test_an_e_below_the_rounding_of_the_weights_is_said():
    model = nn.Linear(100, 5, bias=False)
    with torch.no_grad():
        model.weight.fill_(1e6)
    x = 1e3 * batch()[0].flatten(1).float()
    optimizer = sam.SAM(model, sgd(model), sam.sam(1e-3))

    def closure():
        loss = ((model.weight - 1e6) * x.mean(0)).sum() + 1.0
        loss.backward()
        return loss

    with pytest.raises(LandscapeError, match="below the rounding of its weight, so that w"):
        optimizer.step(closure)


def test_cached_weights_are_forgotten_between_the_passes():
    """`parametrize.cached()` around a step, as around a loop over time steps."""

    def made():
        return reset(nn.Sequential(nn.Flatten(), nn.utils.parametrizations.orthogonal(
            nn.Linear(100, 5))))  # fmt: skip

    ours, plain = made(), made()
    plain.load_state_dict(ours.state_dict())
    a, b = (sam.SAM(m, sgd(m), sam.sam(0.3)) for m in (ours, plain))
    with torch.nn.utils.parametrize.cached():
        a.step(losses_of(ours), batch())
    b.step(losses_of(plain), batch())
    assert same(weights(ours), weights(plain))


def test_a_copy_of_an_optimizer_looks_anew():
    model = cnn()
    optimizer = sam.SAM(model, sgd(model), sam.sam(0.1))
    optimizer.step(closure_of(model, batch()))
    assert optimizer.guard.climbs == 1
    assert copy.deepcopy(optimizer).guard.climbs == 0
