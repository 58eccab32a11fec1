"""The pass that `bn` names updates every buffer of the model, and questions update none."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from landscape import sam
from landscape.errors import LandscapeError
from landscape.sam import beside
from tests.sam_models import batch, closure_of, losses_of, reset, same, weights


class OwnNorm(nn.Module):
    """A norm layer of somebody's own, which writes through `.data` and rebinds a buffer."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(6, dtype=torch.float64))
        self.register_buffer("count", torch.zeros((), dtype=torch.long))

    def forward(self, x):
        if not self.training:
            return x - self.mean
        with torch.no_grad():
            self.mean.data.mul_(0.9).add_(0.1 * x.mean(0))
            self.count = self.count + 1
        return x - x.mean(0)


class Queue(nn.Module):
    """The last outputs, as contrastive learning keeps them."""

    def __init__(self):
        super().__init__()
        self.register_buffer("at", torch.zeros((), dtype=torch.long))
        self.register_buffer("queue", torch.zeros(64, 6, dtype=torch.float64))

    def forward(self, h):
        with torch.no_grad():
            self.queue[(self.at + torch.arange(len(h))) % 64] = h
            self.at += len(h)
        return h


KINDS = ("batch norm", "own norm", "queue", "spectral norm", "old spectral norm")


def made(kind):
    first = nn.Linear(100, 6)
    torch.manual_seed(0)
    if kind == "spectral norm":
        first = nn.utils.parametrizations.spectral_norm(first)
    if kind == "old spectral norm":
        first = nn.utils.spectral_norm(first)
    middle = {"batch norm": lambda: nn.BatchNorm1d(6), "own norm": OwnNorm, "queue": Queue}
    model = nn.Sequential(
        nn.Flatten(), first, middle.get(kind, nn.Identity)(), nn.Tanh(), nn.Linear(6, 5)
    )
    return reset(model)


def buffers(model):
    return [b.clone() for b in model.buffers()]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("policy", ["first", "second", "both"])
def test_buffers_are_those_of_the_passes_that_the_policy_names(kind, policy):
    model, by_hand = made(kind), made(kind)
    by_hand.load_state_dict(model.state_dict())
    optimizer = sam.SAM(model, torch.optim.SGD(model.parameters(), lr=0.1), sam.sam(0.5), bn=policy)
    optimizer.step(closure_of(model, batch()))
    if policy != "second":
        by_hand(batch()[0])
    if policy != "first":
        with torch.no_grad():
            for p, e in zip(by_hand.parameters(), optimizer.perturbation.e.values(), strict=True):
                p.add_(e)
        by_hand(batch()[0])
    pairs = zip(buffers(model), buffers(by_hand), strict=True)
    assert all(torch.allclose(a.double(), b.double(), rtol=0, atol=1e-12) for a, b in pairs)
    assert any((a != b).any() for a, b in zip(buffers(model), buffers(made(kind)), strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_questions_leave_every_buffer_bit_for_bit(kind):
    model = made(kind)
    optimizer = sam.SAM(model, torch.optim.SGD(model.parameters(), lr=0.1), sam.sam(0.5))
    optimizer.step(losses_of(model), batch())
    before, held = buffers(model), list(model.buffers())
    sam.perturb(sam.asam(0.5), model, losses_of(model), batch(1), seed=0)
    optimizer.counterfactual(losses_of(model), batch(1), variant=sam.zsharp(0.1))
    assert same(before, buffers(model))
    assert all(a is b for a, b in zip(held, model.buffers(), strict=True))


def test_a_slot_that_asks_for_gradients_nearby_changes_nothing():
    model = made("queue")
    asked = []

    def source(point, state):
        asked.append(point.gradient_at([0.1 * g for g in point.gradients]))
        asked.append(point.hessian_product(point.gradients))
        asked.append(point.loss_at([0.0 * g for g in point.gradients]))
        return point.gradients

    plain, other = made("queue"), replace(sam.sam(0.3), source=source)
    for m, variant in ((model, other), (plain, sam.sam(0.3))):
        optimizer = sam.SAM(m, torch.optim.SGD(m.parameters(), lr=0.1), variant)
        optimizer.step(losses_of(m), batch())
    assert same(weights(model), weights(plain))
    assert same(buffers(model), buffers(plain))
    g = dict(zip(optimizer.perturbation.names, optimizer.perturbation.g1, strict=True))
    again, names = made("queue"), list(dict(model.named_parameters()))

    def loss_of(*ps):
        out = torch.func.functional_call(again, dict(zip(names, ps, strict=True)), (batch()[0],))
        return nn.functional.cross_entropy(out, batch()[1])

    w = [p.detach().requires_grad_() for p in again.parameters()]
    slopes = torch.autograd.grad(loss_of(*w), w, create_graph=True)
    product = torch.autograd.grad(slopes, w, list(g.values()))
    assert all(torch.allclose(a, b, rtol=1e-10) for a, b in zip(asked[1], product, strict=True))
    moved = [(p + 0.1 * x).detach().requires_grad_() for p, x in zip(w, g.values(), strict=True)]
    found = torch.autograd.grad(loss_of(*moved), moved)
    assert all(torch.allclose(a, b, rtol=1e-10) for a, b in zip(asked[0], found, strict=True))
    assert float(asked[2]) == pytest.approx(float(loss_of(*w).detach()), rel=1e-12)


def test_a_discriminator_beside_the_generator_that_is_trained():
    """Given as one model with the generator, its statistics are those of pass 1 too."""
    bce = nn.functional.binary_cross_entropy_with_logits
    z = torch.randn(16, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def nets():
        g = nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 2))
        d = nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.LeakyReLU(), nn.Linear(8, 1))
        return reset(nn.ModuleDict({"generator": g, "discriminator": d}))

    ours, once = nets(), nets()
    generator, discriminator = ours["generator"], ours["discriminator"]
    base = torch.optim.SGD(generator.parameters(), lr=0.1)
    optimizer = sam.SAM(ours, base, sam.sam(0.5))

    def closure():
        loss = bce(discriminator(generator(z)), torch.ones(16, 1, dtype=torch.float64))
        loss.backward()
        return loss

    kept = weights(discriminator)
    optimizer.step(closure)
    once["discriminator"](once["generator"](z))
    assert all(
        torch.allclose(a.double(), b.double(), rtol=0, atol=1e-12)
        for a, b in zip(ours.buffers(), once.buffers(), strict=True)
    )
    assert same(kept, weights(discriminator))
    assert int(discriminator[1].num_batches_tracked) == 1


@pytest.mark.parametrize("bn", ["first", "second", "both"])
def test_a_buffer_that_holds_the_weights_is_left_to_the_step(bn):
    """Weights that are views of one flat buffer, as flattened parameters are."""

    class Flat(nn.Module):
        def __init__(self, *, views):
            super().__init__()
            flat = torch.linspace(-1, 1, 28, dtype=torch.float64)
            if views:
                self.register_buffer("flat", flat)
            self.weight = nn.Parameter(flat[:24].view(4, 6) if views else flat[:24].view(4, 6) + 0)
            self.bias = nn.Parameter(flat[24:] if views else flat[24:] + 0)

        def forward(self, x):
            return nn.functional.linear(x, self.weight, self.bias)

    x = torch.randn(16, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ends = []
    for views in (True, False):
        model = Flat(views=views)
        base = torch.optim.SGD(model.parameters(), lr=0.1)
        optimizer = sam.SAM(model, base, sam.sam(0.1), bn=bn)

        def losses(inputs, model=model):
            return nn.functional.cross_entropy(
                model(inputs), torch.arange(16) % 4, reduction="none"
            )

        for _ in range(2):
            optimizer.step(losses, x)
        assert "was seen" in optimizer.guard.said
        ends.append([p.detach().clone() for p in model.parameters()])
        if views:
            assert torch.equal(model.flat[:24].view(4, 6), model.weight)
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


def test_statistics_of_a_network_beside_the_model_are_refused_and_the_advice_works(monkeypatch):
    # Other tests of this process may have compiled something, and then nobody looks.
    monkeypatch.setattr(beside, "_may_be_traced", lambda: False)
    bce = nn.functional.binary_cross_entropy_with_logits
    z = torch.randn(16, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def nets():
        g = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 2)).double()
        d = nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 1)).double()
        reset(nn.ModuleList([g, d]))

        def closure():
            loss = bce(d(g(z)), torch.ones(16, 1, dtype=torch.float64))
            loss.backward()
            return loss

        return g, d, closure

    def base(g):
        return torch.optim.SGD(g.parameters(), lr=0.1)

    g, d, closure = nets()
    with pytest.raises(LandscapeError, match=r"BatchNorm1d.running_mean and 2 more, .* beside the"):
        sam.SAM(g, base(g), sam.sam(0.5)).step(closure)
    ends = []
    g, d, closure = nets()
    sam.SAM(nn.ModuleList([g, d]), base(g), sam.sam(0.5)).step(closure)
    assert int(d[1].num_batches_tracked) == 1
    ends.append(weights(g))
    g, d, closure = nets()
    sam.SAM(g, base(g), sam.sam(0.5), bn="both").step(closure)
    assert int(d[1].num_batches_tracked) == 2
    ends.append(weights(g))
    assert same(*ends)
    g, d, closure = nets()
    d.eval()
    sam.SAM(g, base(g), sam.sam(0.5)).step(closure)
    assert int(d[1].num_batches_tracked) == 0
