"""SAM around every torch optimizer, parameter groups, schedulers, and changing sets of tensors."""

import inspect

import pytest
import torch
from torch import nn

from landscape import sam
from landscape.errors import LandscapeError
from tests.sam_models import batch, closure_of, cnn, reset

OPTIMIZERS = {
    name: cls
    for name, cls in inspect.getmembers(torch.optim, inspect.isclass)
    if issubclass(cls, torch.optim.Optimizer)
    and name not in ("Optimizer", "LBFGS", "SparseAdam", "Muon")
}


def named(model):
    return {n: p.detach().clone() for n, p in model.named_parameters()}


def smooth():
    """No gradient of it is made of rounding errors, which Adam and Rprop would amplify."""
    layers = (nn.Flatten(), nn.Linear(100, 6), nn.Tanh(), nn.Linear(6, 5))
    return reset(nn.Sequential(*layers))


def sam_gradient(model, b, rho, excluded=()):
    """g at w + rho g/‖g‖, written out; leaves it in `.grad`."""
    parameters = list(model.parameters())
    loss = nn.functional.cross_entropy(model(b[0]), b[1])
    g = torch.autograd.grad(loss, parameters)
    on = [n not in excluded for n, _ in model.named_parameters()]
    norm = torch.sqrt(sum(x.square().sum() for x, o in zip(g, on) if o))
    old = [p.detach().clone() for p in parameters]
    with torch.no_grad():
        for p, x, o in zip(parameters, g, on):
            p.add_(x, alpha=float(o * rho / norm))
    loss = nn.functional.cross_entropy(model(b[0]), b[1])
    g2 = torch.autograd.grad(loss, parameters)
    with torch.no_grad():
        for p, w, x in zip(parameters, old, g2):
            p.copy_(w)
            p.grad = x


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_torch_optimizer_steps_with_the_perturbed_gradient(name):
    make = OPTIMIZERS[name]
    ours, theirs = smooth(), smooth()
    base = make(ours.parameters(), lr=0.01)
    optimizer = sam.SAM(ours, base, sam.sam(0.1))
    plain = make(theirs.parameters(), lr=0.01)
    for i in range(3):
        optimizer.step(closure_of(ours, batch(i)))
        sam_gradient(theirs, batch(i), 0.1)
        plain.step()
    for n, p in theirs.named_parameters():
        assert torch.allclose(ours.get_parameter(n), p, rtol=1e-9, atol=1e-11), n


@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW])
def test_fused_base_optimizers(make):
    ours, theirs = smooth(), smooth()
    optimizer = sam.SAM(ours, make(ours.parameters(), lr=0.01, fused=True), sam.sam(0.1))
    plain = make(theirs.parameters(), lr=0.01)
    for i in range(3):
        optimizer.step(closure_of(ours, batch(i)))
        sam_gradient(theirs, batch(i), 0.1)
        plain.step()
    for n, p in theirs.named_parameters():
        assert torch.allclose(ours.get_parameter(n), p, rtol=1e-9, atol=1e-11), n


@pytest.mark.parametrize("momentum", [{}, {"momentum": 0.9}, {"momentum": 0.9, "dampening": 0.1}])
@pytest.mark.parametrize("more", [{}, {"weight_decay": 0.1}, {"maximize": True}])
def test_small_tensors_step_together_with_the_bits_of_one_after_the_other(momentum, more):
    ends, seen = [], []
    for foreach in (None, False):
        model = cnn().float()
        base = torch.optim.SGD(model.parameters(), lr=0.01, foreach=foreach, **momentum, **more)
        base.register_step_pre_hook(lambda o, *_: seen.append(o.param_groups[0]["foreach"]))
        optimizer = sam.SAM(model, base, sam.sam(0.1))
        for i in range(4):
            optimizer.step(closure_of(model, (batch(i)[0].float(), batch(i)[1])))
        assert base.param_groups[0]["foreach"] is foreach
        ends.append(named(model))
    assert seen == [True] * 4 + [False] * 4
    assert all(torch.equal(ends[0][n], ends[1][n]) for n in ends[0])


def test_groups_are_put_back_when_the_base_step_raises():
    model = cnn()
    base = torch.optim.SGD(model.parameters(), lr=0.01)

    def fail(*_):
        raise RuntimeError("the hook failed")

    base.register_step_pre_hook(fail)
    with pytest.raises(RuntimeError, match="the hook failed"):
        sam.SAM(model, base, sam.sam(0.1)).step(closure_of(model, batch()))
    assert base.param_groups[0]["foreach"] is None


def test_nesterov_which_would_write_into_the_gradient_steps_as_it_is():
    model = cnn()
    base = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, nesterov=True)
    optimizer = sam.SAM(model, base, sam.sam(0.1))
    loss = closure_of(model, batch())
    given = []

    def closure():
        result = loss()
        given.append([p.grad.clone() for p in model.parameters()])
        return result

    optimizer.step(closure)
    assert all(map(torch.equal, optimizer.perturbation.g2, given[1]))


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch before 2.9 has no Muon")
def test_muon_over_matrices_alone():
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).double()
    matrices = [p for p in model.parameters() if p.ndim == 2]
    optimizer = sam.SAM(model, torch.optim.Muon(matrices, lr=0.01), sam.sam(0.1))
    x = torch.ones(2, 4, dtype=torch.float64)
    before = named(model)

    def closure():
        loss = model(x).square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert moved == {"0.weight", "2.weight"}
    assert optimizer.perturbation.norm.item() == pytest.approx(0.1)


def test_lbfgs_is_refused():
    model = cnn()
    with pytest.raises(LandscapeError, match="LBFGS evaluates the loss itself"):
        sam.SAM(model, torch.optim.LBFGS(model.parameters()), sam.sam(0.1))


def test_sparse_gradients_are_refused():
    model = nn.Embedding(5, 2, sparse=True)
    optimizer = sam.SAM(model, torch.optim.SGD(model.parameters(), lr=0.1), sam.sam(0.1))

    def closure():
        loss = model(torch.tensor([1, 2])).sum()
        loss.backward()
        return loss

    with pytest.raises(LandscapeError, match="'weight' is sparse"):
        optimizer.step(closure)


def test_a_group_of_radius_zero_is_outside_perturbation_and_norm():
    ours, theirs = cnn(), cnn()
    norms = {n for n, p in ours.named_parameters() if n.startswith(("1.", "4."))}
    base = torch.optim.SGD(
        [
            {"params": [p for n, p in ours.named_parameters() if n not in norms]},
            {"params": [ours.get_parameter(n) for n in sorted(norms)], "rho": 0.0},
        ],
        lr=0.1,
    )
    optimizer = sam.SAM(ours, base, sam.sam(0.1))
    optimizer.step(closure_of(ours, batch()))
    sam_gradient(theirs, batch(), 0.1, excluded=norms)
    torch.optim.SGD(theirs.parameters(), lr=0.1).step()
    for n, p in theirs.named_parameters():
        assert torch.allclose(ours.get_parameter(n), p, rtol=1e-12, atol=1e-14), n
    assert optimizer.perturbation.norm.item() == pytest.approx(0.1)


def test_adadelta_has_a_rho_of_its_own():
    model = smooth()
    groups = [
        {"params": [model[1].weight, model[1].bias], "sam_rho": 0.0},
        {"params": [model[3].weight, model[3].bias]},
    ]
    optimizer = sam.SAM(model, torch.optim.Adadelta(groups, lr=0.01), sam.sam(0.1))
    optimizer.step(closure_of(model, batch()))
    seen = optimizer.perturbation
    assert seen.norm.item() == pytest.approx(0.1)
    assert seen.energy_share["1.weight"] == 0


def test_all_groups_of_radius_zero_step_as_the_base_optimizer():
    ours, theirs = cnn(), cnn()
    base = torch.optim.SGD([{"params": list(ours.parameters()), "rho": 0.0}], lr=0.1)
    sam.SAM(ours, base, sam.sam(0.1)).step(closure_of(ours, batch()))
    plain = torch.optim.SGD(theirs.parameters(), lr=0.1)
    closure_of(theirs, batch())()
    plain.step()
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters()))


@pytest.mark.parametrize("rho", [-0.1, float("nan"), "0.1"])
def test_the_radius_of_a_group_is_checked(rho):
    model = cnn()
    base = torch.optim.SGD([{"params": list(model.parameters()), "rho": rho}], lr=0.1)
    with pytest.raises(LandscapeError, match="rho"):
        sam.SAM(model, base, sam.sam(0.1)).step(closure_of(model, batch()))


@pytest.mark.parametrize("attached", ["sam", "base"])
def test_one_cycle_with_momentum_drives_either(attached):
    model = cnn()
    base = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    optimizer = sam.SAM(model, base, sam.sam(0.1))
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer if attached == "sam" else base, max_lr=0.5, total_steps=6
    )
    seen = []
    for i in range(5):
        optimizer.step(closure_of(model, batch(i)))
        scheduler.step()
        assert optimizer.param_groups is base.param_groups
        seen.append((base.param_groups[0]["lr"], base.param_groups[0]["momentum"]))
    assert max(lr for lr, _ in seen) > 0.4
    assert min(m for _, m in seen) < 0.87


def test_groups_and_state_stay_the_base_optimizers_after_it_loads_a_state():
    model = cnn()
    base = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    optimizer = sam.SAM(model, base, sam.sam(0.1))
    optimizer.step(closure_of(model, batch()))
    base.load_state_dict(base.state_dict())
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    optimizer.step(closure_of(model, batch(1)))
    scheduler.step()
    assert base.param_groups[0]["lr"] == pytest.approx(0.05)
    assert optimizer.state is base.state


def test_hooks_of_torch_optimizers_run_once_per_step():
    model, calls = cnn(), []
    optimizer = sam.SAM(model, torch.optim.SGD(model.parameters(), lr=0.1), sam.sam(0.1))
    optimizer.register_step_pre_hook(lambda *_: calls.append("before"))
    optimizer.register_step_post_hook(lambda *_: calls.append("after"))
    optimizer.step(closure_of(model, batch()))
    assert calls == ["before", "after"]


@pytest.mark.parametrize("variant", [sam.sam(0.1), sam.fsam(0.1), sam.zsharp(0.1)])
def test_tensors_may_be_frozen_and_unfrozen_between_steps(variant):
    model = cnn()
    first = model.get_parameter("0.weight")
    first.requires_grad_(False)
    optimizer = sam.SAM(model, torch.optim.SGD(model.parameters(), lr=0.1), variant)
    kept = first.detach().clone()
    optimizer.step(closure_of(model, batch()))
    assert torch.equal(first, kept)
    assert "0.weight" not in optimizer.perturbation.e
    first.requires_grad_(True)
    optimizer.step(closure_of(model, batch(1)))
    assert not torch.equal(first, kept)
    kept = first.detach().clone()
    optimizer.step(closure_of(model, batch(2)))
    assert optimizer.perturbation.e["0.weight"].norm() > 0
    first.requires_grad_(False)
    kept = first.detach().clone()
    optimizer.step(closure_of(model, batch(3)))
    assert torch.equal(first, kept)


def test_a_tied_tensor_is_perturbed_once():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.into = nn.Linear(3, 3, bias=False)
            self.out = nn.Linear(3, 3, bias=False)
            self.out.weight = self.into.weight

        def forward(self, x):
            return self.out(torch.tanh(self.into(x)))

    model = Tied().double()
    with torch.no_grad():
        model.into.weight.copy_(torch.arange(9.0).view(3, 3) / 10)
    optimizer = sam.SAM(model, torch.optim.SGD(model.parameters(), lr=0.1), sam.sam(0.1))
    w, x = model.into.weight.detach().clone(), torch.ones(2, 3, dtype=torch.float64)

    def loss_at(v):
        return (torch.tanh(x @ v.T) @ v.T).square().sum()

    def closure():
        loss = model(x).square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    v = w.clone().requires_grad_()
    (g,) = torch.autograd.grad(loss_at(v), v)
    e = 0.1 * g / g.norm()
    u = (w + e).requires_grad_()
    (g2,) = torch.autograd.grad(loss_at(u), u)
    assert torch.allclose(model.into.weight, w - 0.1 * g2, rtol=1e-10)
    assert list(optimizer.perturbation.e) == ["into.weight"]
