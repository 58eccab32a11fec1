"""Newer methods against loops written by hand over one flat vector, over plain SGD."""

import math

import pytest
import torch
from torch import nn

from landscape import sam
from tests.sam.flat_reference import agree, by_hand, flat, trajectory, unit
from tests.sam_models import batch, closure_of, cnn, furthest, ready, step, weights

LR = 0.05


# ------------------------------------------------------------------------------------- ascent


def test_vasso_climbs_along_the_averaged_gradient():
    average = {}

    def hand(f, w, b, t):
        g = f.grad(w, b)
        average["m"] = g if t == 0 else 0.7 * average["m"] + 0.3 * g
        m = average["m"]
        return w - LR * f.grad(w + 0.1 * m / (m.norm() + 1e-7), b)

    ours, _ = trajectory(sam.vasso(0.1, theta=0.3))
    agree(ours, by_hand(hand))
    agree(trajectory(sam.vasso(0.1, theta=1.0))[0], trajectory(sam.sam(0.1, eps=1e-7))[0])


def test_what_friendly_sam_takes_off_is_what_vasso_climbs_along():
    """u of F-SAM (paper's order, sigma 1) and u of VaSSO add up to g1."""
    _, friendly = trajectory(sam.fsam(0.1, lmbda=0.7, ema_order="paper"), steps=1)
    _, vasso = trajectory(sam.vasso(0.1, theta=0.3), steps=1)
    for optimizer in (friendly, vasso):  # a second step at the same weights
        for p, q in zip(optimizer.model.parameters(), cnn().parameters(), strict=True):
            p.data.copy_(q)
        step(optimizer, batch(1))
    g = flat(vasso.perturbation.g1)
    u = [unit(flat(o.perturbation.e.values())) for o in (friendly, vasso)]
    plane = torch.linalg.lstsq(torch.stack(u).T, g[:, None]).solution
    assert torch.stack(u).T @ plane == pytest.approx(g[:, None], abs=1e-12)


def test_fisher_sam_climbs_in_the_ellipsoid_of_the_squared_gradient():
    def hand(f, w, b, t):
        g = f.grad(w, b)
        inverse = 1 / (1 + 50.0 * g.square())
        return w - LR * f.grad(w + 0.1 * inverse * g / (g @ (inverse * g)).sqrt(), b)

    ours, optimizer = trajectory(sam.fisher_sam(0.1, eta=50.0))
    agree(ours, by_hand(hand))
    g, e = flat(optimizer.perturbation.g1), flat(optimizer.perturbation.e.values())
    assert float(e @ ((1 + 50.0 * g.square()) * e)) == pytest.approx(0.01, rel=1e-9)
    agree(trajectory(sam.fisher_sam(0.1, eta=0.0))[0], trajectory(sam.sam(0.1))[0])


def test_randsam_climbs_along_noise_of_the_radius_in_one_pass():
    calls = []
    model = cnn()
    optimizer = ready(model, sam.randsam(0.1), torch.optim.SGD(model.parameters(), lr=LR), seed=5)
    seen = []
    for t in range(40):
        before = flat(weights(model))
        first = len(calls)
        optimizer.step(closure_of(model, batch(t % 3), calls))
        e = flat(optimizer.perturbation.e.values())
        assert float(e.norm()) == pytest.approx(0.1, rel=1e-12)
        agree(flat(calls[first]), before + e)
        seen.append(unit(e))
    assert len(calls) == 40 + 2  # climbs 1 and 9 are looked at from w as well
    seen = torch.stack(seen)
    across = (seen @ seen.T - torch.eye(40)).abs().max()
    assert across < 6 / math.sqrt(seen.shape[1])  # cosines of independent directions
    assert float(seen.sum(0).norm()) == pytest.approx(math.sqrt(40), rel=0.5)


def test_lesam_asks_for_one_loss_increase_until_the_budget_falls():
    def hand(f, w, b, t):
        g = f.grad(w, b)
        share = t / 5
        budget = 0.03 if share <= 0.4 else 0.03 * (1 + math.cos(math.pi * (share - 0.4) / 0.6)) / 2
        rho = min(budget / float(g.norm()), 0.05)
        return w - LR * f.grad(w + rho * unit(g), b)

    ours, _ = trajectory(sam.lesam(0.03, rho_max=0.05, anneal=0.4), steps=5, epochs=5)
    agree(ours, by_hand(hand, steps=5))
    _, optimizer = trajectory(sam.lesam(1e-3, anneal=1))
    p = optimizer.perturbation
    assert float(flat(p.g1) @ flat(p.e.values())) == pytest.approx(1e-3, rel=1e-9)


def test_aesam_climbs_where_the_squared_norm_stands_out():
    kept = {}

    def hand(f, w, b, t):
        g = f.grad(w, b)
        s = float(g.square().sum())
        if t == 0:
            kept.update(mean=s, variance=0.0)
            climbs = True
        else:
            kept["mean"] = 0.8 * kept["mean"] + 0.2 * s
            kept["variance"] = 0.8 * kept["variance"] + 0.2 * (s - kept["mean"]) ** 2
            c = t / 8 * -2.0 + (1 - t / 8) * 1.0
            climbs = s >= kept["mean"] + c * math.sqrt(kept["variance"])
        kept.setdefault("climbs", []).append(climbs)
        return w - LR * (f.grad(w + 0.1 * unit(g), b) if climbs else g)

    variant = sam.aesam(0.1, decay=0.8, lambda_1=-2.0, lambda_2=1.0)
    agree(trajectory(variant, steps=8, epochs=8)[0], by_hand(hand, steps=8))
    assert {True, False} == set(kept["climbs"])


# ------------------------------------------------------------------------------------ descent


def test_sagm_descends_the_mean_of_both_gradients():
    def hand(f, w, b, t):
        g = f.grad(w, b)
        return w - LR * (g + f.grad(w + (0.1 / g.norm() - 0.02) * g, b)) / 2

    agree(trajectory(sam.sagm(0.1, alpha=0.02))[0], by_hand(hand))
    agree(trajectory(sam.sagm(0.1, alpha=0.0))[0], trajectory(sam.gnp(0.1, alpha=0.5))[0])


def test_sagm_on_a_quadratic():
    """L = wᵀHw/2: g2 = H(w + (ρ/‖Hw‖ - α) H w), so gd = (H + c H²) w with c half of that."""
    model = nn.Linear(3, 1, bias=False).double()
    curvature = torch.tensor([3.0, 1.0, 0.5], dtype=torch.float64)
    w = torch.tensor([[1.0, -2.0, 0.5]], dtype=torch.float64)
    model.weight.data.copy_(w)
    optimizer = sam.SAM(
        model, torch.optim.SGD(model.parameters(), lr=0.1), sam.sagm(0.2, alpha=0.1)
    )
    optimizer.step(lambda _: (curvature * model.weight.square()).sum()[None] / 2, w)
    g = curvature * w
    c = (0.2 / g.norm() - 0.1) / 2
    torch.testing.assert_close(model.weight.data, w - 0.1 * (g + c * curvature * g))


@pytest.mark.parametrize("per_coordinate", [False, True])
def test_lightsam_divides_both_steps_by_what_was_seen(per_coordinate):
    sums = {}

    def hand(f, w, b, t):
        def over_root(name, g):
            new = g.square() if per_coordinate else g.square().sum()
            sums[name] = sums.get(name, 0.25) + new
            return g / sums[name].sqrt()

        return w - LR * over_root("v", f.grad(w + 0.1 * over_root("u", f.grad(w, b)), b))

    variant = sam.lightsam(0.1, per_coordinate=per_coordinate, initial=0.25)
    agree(trajectory(variant)[0], by_hand(hand))


def test_lightsam_takes_a_first_step_of_the_learning_rate():
    """From nothing, u = ‖g1‖² and v = ‖g2‖²: both steps are of unit length."""
    ours, optimizer = trajectory(sam.lightsam(0.1), steps=1)
    assert float((ours[0] - flat(cnn().parameters())).norm()) == pytest.approx(LR, rel=1e-12)
    assert float(optimizer.perturbation.norm) == pytest.approx(0.1, rel=1e-9)


def test_ire_goes_on_along_the_base_step_on_flat_coordinates():
    kept = {}

    def hand(f, w, b, t):
        g = f.grad(w, b)
        if t % 3 == 0:
            kept["fisher"] = 0.6 * kept.get("fisher", torch.zeros_like(g)) + 0.4 * g.square()
            sharp = torch.topk(kept["fisher"], int(0.3 * len(g))).indices
            kept["mask"] = torch.ones_like(g).index_fill(0, sharp, 0.0)
        new = w - LR * f.grad(w + 0.1 * unit(g), b)
        return new + 2.0 * kept["mask"] * (new - w)

    variant = sam.ire(0.1, kappa=2.0, sharp=0.3, beta=0.6, every=3)
    agree(trajectory(variant)[0], by_hand(hand))
    agree(trajectory(sam.ire(0.1, kappa=0.0))[0], trajectory(sam.sam(0.1))[0])


def test_ire_over_momentum_enhances_the_whole_base_step_from_its_epoch_on():
    model, twin = cnn(), cnn()
    options = {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.01}
    base, other = (torch.optim.SGD(m.parameters(), **options) for m in (model, twin))
    optimizer = ready(model, sam.ire(0.0, kappa=1.0, sharp=0.0, start_epoch=2), base)
    for t in range(4):
        optimizer.begin_epoch(t, 4)
        step(optimizer, batch(t))
        assert not optimizer.perturbation.climbed
        other.zero_grad()
        before = flat(twin.parameters())
        closure_of(twin, batch(t))()
        other.step()
        if t >= 2:  # every coordinate is flat: the step is taken twice
            moved = (2 * flat(twin.parameters()) - before).split([p.numel() for p in weights(twin)])
            for p, new in zip(twin.parameters(), moved, strict=True):
                p.data.copy_(new.view(p.shape))
    assert furthest(weights(model), weights(twin)) < 1e-12
