"""Newer methods against loops written by hand over one flat vector, over plain SGD."""

import math

import pytest
import torch
from torch import nn

from landscape import sam
from tests.sam.flat_reference import agree, by_hand, flat, trajectory, unit
from tests.sam_models import Adapted, batch, closure_of, cnn, furthest, ready, reset, step, weights

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


# ------------------------------------------------------------------- steps, several and adaptive


@pytest.mark.parametrize("normalized", [True, False])
def test_sam_polyak_takes_the_step_of_the_bound_and_the_learning_rate_at_most(normalized):
    taken = []

    def hand(f, w, b, t):
        g = f.grad(w, b)
        e = 0.1 * (unit(g) if normalized else g)
        g2 = f.grad(w + e, b)
        gamma = max(float(f.loss(w + e, b) - lower - g2 @ e), 0.0) / float(g2 @ g2)
        taken.append(gamma)
        return w - min(gamma, LR) * g2

    for lower in (0.0, 1.5, 100.0):
        variant = sam.sam_polyak(0.1, lower=lower, normalized=normalized)
        agree(trajectory(variant)[0], by_hand(hand))
    assert min(taken) == 0.0 < max(taken)
    assert any(0 < x < LR for x in taken)
    assert any(x > LR for x in taken)


def test_sam_polyak_goes_half_of_the_way_on_a_parabola():
    """rho = 0, L = c w²/2 and l* = 0: γ g = w/2, half of the way."""
    model = nn.Linear(1, 1, bias=False).double()
    model.weight.data.fill_(3.0)
    base = torch.optim.SGD(model.parameters(), lr=10.0)
    optimizer = sam.SAM(model, base, sam.sam_polyak(0.0))
    optimizer.step(lambda _: 7.0 * model.weight.square().sum()[None] / 2, torch.ones(1))
    assert model.weight.item() == pytest.approx(1.5, rel=1e-12)


def test_xsam_takes_the_direction_of_largest_loss_once_per_epoch():
    kept = {}

    def between(alpha, a, b):
        angle = torch.arccos(a @ b)
        return (torch.sin((1 - alpha) * angle) * a + torch.sin(alpha * angle) * b) / angle.sin()

    def hand(f, w, b, t):
        x = torch.zeros_like(w)
        for _ in range(steps):
            x = x + 0.1 / steps * unit(f.grad(w + x, b))
        g2 = f.grad(w + x, b)
        if t % 2 == 0:
            losses = [f.loss(w + 0.4 * between(a / 4, unit(x), unit(g2)), b) for a in range(9)]
            kept["alpha"] = int(torch.stack(losses).argmax()) / 4
            kept.setdefault("seen", set()).add(kept["alpha"])
        return w - LR * g2.norm() * between(kept["alpha"], unit(x), unit(g2))

    for steps in (1, 3):
        variant = sam.xsam(0.1, rho_max=0.4, step=0.25, num_steps=steps)
        model = cnn()
        optimizer = ready(model, variant, torch.optim.SGD(model.parameters(), lr=LR))
        rows = []
        for t in range(6):
            optimizer.begin_epoch(t // 2, 3)
            step(optimizer, batch(t % 3))
            rows.append(flat(weights(model)))
        agree(torch.stack(rows), by_hand(hand), 1e-10)
    assert len(kept["seen"]) > 1


def test_lookbehind_sums_the_gradients_of_its_ascent():
    for alpha in (0.4, None):

        def hand(f, w, b, t, alpha=alpha):
            x, g, steps = torch.zeros_like(w), f.grad(w, b), []
            for _ in range(3):
                x = x + 0.1 * unit(g)
                g = f.grad(w + x, b)
                steps.append(g)
            total = sum(steps)
            if alpha is not None:
                return w - LR * alpha * total
            parts = zip(f.split(steps[0]), f.split(total), strict=True)
            shares = [(1 + (a * c).sum() / a.norm() / c.norm()) / 2 * c for a, c in parts]
            return w - LR * flat(shares)

        agree(trajectory(sam.lookbehind_sam(0.1, k=3, alpha=alpha))[0], by_hand(hand))
    agree(trajectory(sam.lookbehind_sam(0.1, k=1, alpha=1.0))[0], trajectory(sam.sam(0.1))[0])


def test_lookbehind_is_k_inner_steps_of_plain_sgd_and_an_interpolation():
    def hand(f, w, b, t):
        fast, x = w, torch.zeros_like(w)
        for _ in range(4):
            x = x + 0.05 * unit(f.grad(w + x, b))
            fast = fast - LR * f.grad(w + x, b)
        return w + 0.5 * (fast - w)

    agree(trajectory(sam.lookbehind_sam(0.05, k=4))[0], by_hand(hand))


# -------------------------------------------------------------------------------------- curvature


def test_crsam_adds_differences_on_both_sides():
    def hand(f, w, b, t):
        g = f.grad(w, b)
        e = 0.1 * unit(g)
        up, down = f.grad(w + e, b), f.grad(w - e, b)
        return w - LR * (up + 0.3 * (up + down - 2 * g) + 0.2 * (up - down))

    agree(trajectory(sam.crsam(0.1, gamma=0.3, beta=0.2))[0], by_hand(hand))
    reduced = trajectory(sam.crsam(0.1, gamma=0.0, beta=0.0))[0]
    agree(reduced, trajectory(sam.sam(0.1))[0])


def test_eigen_sam_turns_its_ascent_towards_the_leading_eigenvector():
    """Where power iteration has converged, v is that of the dense Hessian, up to its sign."""
    for unit_length in (False, True):

        def hand(f, w, b, t, unit_length=unit_length):
            g = f.grad(w, b)
            values, vectors = torch.linalg.eigh(f.hessian(w, b))
            v = vectors[:, values.abs().argmax()]
            along = unit(g) @ v
            u = unit(g) + 0.4 * torch.sign(along) * (v - along * unit(g))
            return w - LR * f.grad(w + 0.1 * (unit(u) if unit_length else u), b)

        variant = sam.eigen_sam(0.1, alpha=0.4, every=1, num_iterations=400, unit=unit_length)
        agree(trajectory(variant, steps=2, make=small)[0], by_hand(hand, 2, small), 1e-8)
    agree(trajectory(sam.eigen_sam(0.1, alpha=0.0))[0], trajectory(sam.sam(0.1))[0])


def small():
    """A smooth network of 45 weights, whose Hessian is dense and quick."""
    layers = nn.AvgPool1d(25), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 5)
    return reset(nn.Sequential(nn.Flatten(), *layers))


def test_eigen_sam_keeps_its_eigenvector_between_estimates():
    model = small()
    optimizer = ready(model, sam.eigen_sam(0.1, every=3, num_iterations=2))
    seen = []
    for t in range(5):
        step(optimizer, batch(t))
        seen.append(flat(optimizer.slots["source"]["v"].values()))
        assert float(seen[-1].norm()) == pytest.approx(1.0, rel=1e-9)
    assert torch.equal(seen[0], seen[2])
    assert not torch.equal(seen[2], seen[3])
    assert torch.equal(seen[3], seen[4])


def test_sassha_divides_by_the_root_of_the_averaged_diagonal():
    drawn = []

    def hand(f, w, b, t):
        g2 = f.grad(w + 0.1 * unit(f.grad(w, b)), b)
        kept["m"] = 0.8 * kept.get("m", 0.0) + 0.2 * g2
        if t % 2 == 0:
            z = drawn[t // 2]
            diagonal = (z * (f.hessian(w + 0.1 * unit(f.grad(w, b)), b) @ z)).abs()
            kept["d"] = 0.6 * kept.get("d", 0.0) + 0.4 * diagonal
            kept["unbiased"] = (1 - 0.6 ** (t + 1)) ** 0.5
        m = kept["m"] / (1 - 0.8 ** (t + 1))
        gd = m / (kept["d"].sqrt() / kept["unbiased"] + 0.01)
        return w - LR * (gd + 0.1 * w)  # weight decay of the base, decoupled

    variant = sam.sassha(0.1, beta_1=0.8, beta_2=0.6, every=2, eps=0.01)
    model, kept = small(), {}
    base = torch.optim.SGD(model.parameters(), lr=LR, weight_decay=0.1)
    optimizer = ready(model, variant, base)
    product, rows = sam.Point.hessian_product, []
    with pytest.MonkeyPatch.context() as patch:

        def noted(point, v, offsets=None):
            drawn.append(flat(v))
            return product(point, v, offsets)

        patch.setattr(sam.Point, "hessian_product", noted)
        for t in range(5):
            step(optimizer, batch(t % 3))
            rows.append(flat(weights(model)))
    assert [sorted(z.unique().tolist()) for z in drawn] == [[-1.0, 1.0]] * 3
    agree(torch.stack(rows), by_hand(hand, 5, small), 1e-10)


def test_sassha_on_a_diagonal_quadratic_knows_the_hessian_exactly():
    """z ∘ H z = diag H for every z: the first step is the gradient over the root of it."""
    curvature = torch.tensor([4.0, 1.0, 0.25], dtype=torch.float64)
    model = nn.Linear(3, 1, bias=False).double()
    w = torch.tensor([[1.0, -2.0, 3.0]], dtype=torch.float64)
    model.weight.data.copy_(w)
    base = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer = sam.SAM(model, base, sam.sassha(0.3, eps=1e-9))
    optimizer.step(lambda _: (curvature * model.weight.square()).sum()[None] / 2, w)
    g = curvature * w
    g2 = curvature * (w + 0.3 * g / g.norm())
    torch.testing.assert_close(model.weight.data, w - 0.1 * g2 / curvature.sqrt())


# ------------------------------------------------------------------------------------------ noise


def noise_of(point_noise):
    """Draws of `Point.noise`, noted as flat vectors while the block runs."""
    drawn, patch = [], pytest.MonkeyPatch()

    def noted(point):
        z = point_noise(point)
        drawn.append(flat(z))
        return z

    patch.setattr(sam.Point, "noise", noted)
    return drawn, patch


def test_rsam_climbs_on_from_noisy_weights():
    drawn, patch = noise_of(sam.Point.noise)
    with patch.context():
        ours, _ = trajectory(sam.rsam(0.1, sigma=0.02))
        patch.undo()

    def hand(f, w, b, t):
        z = 0.02 * drawn[t]
        return w - LR * f.grad(w + z + 0.1 * unit(f.grad(w + z, b)), b)

    agree(ours, by_hand(hand))
    agree(trajectory(sam.rsam(0.1, sigma=0.0))[0], trajectory(sam.sam(0.1))[0])


@pytest.mark.parametrize("radius", [0.8, 8.0])  # the noise's norm is about 1.2
def test_tsam_weighs_its_samples_by_their_losses(radius):
    drawn, patch = noise_of(sam.Point.noise)
    variant = sam.tsam(0.1, num_samples=3, tilt=5.0, sigma=0.05, radius=radius)
    ours, _ = trajectory(variant, steps=4)
    patch.undo()
    assert len(drawn) == 12

    def hand(f, w, b, t):
        losses, gradients = [], []
        for z in drawn[3 * t : 3 * t + 3]:
            z = 0.05 * z
            z = z * min(1.0, radius / float(z.norm()))
            e = z + 0.1 * unit(f.grad(w + z, b))
            losses.append(f.loss(w + e, b).detach())
            gradients.append(f.grad(w + e, b))
        share = torch.softmax(5.0 * torch.stack(losses), 0)
        return w - LR * sum(s * g for s, g in zip(share, gradients, strict=True))

    agree(ours, by_hand(hand, 4))
    agree(trajectory(sam.tsam(0.1, num_samples=1, sigma=0.0))[0], trajectory(sam.sam(0.1))[0])


def test_bsam_moves_mean_and_precision():
    drawn, patch = noise_of(sam.Point.noise)
    variant = sam.bsam(0.05, num_examples=200, beta_1=0.7, beta_2=0.6, decay=0.01, damping=0.2,
                       initial=0.5)  # fmt: skip
    ours, optimizer = trajectory(variant)
    patch.undo()
    kept = {}

    def hand(f, w, b, t):
        s = kept.setdefault("s", torch.full_like(w, 0.5))
        g = f.grad(w + drawn[t] / (200 * s).sqrt(), b)
        g2 = f.grad(w + 0.05 * g / s, b)
        kept["m"] = 0.7 * kept.get("m", 0.0) + 0.3 * (g2 + 0.01 * w)
        new = w - LR * kept["m"] / s
        kept["s"] = 0.6 * s + 0.4 * (s.sqrt() * g.abs() + 0.01 + 0.2)
        return new

    agree(ours, by_hand(hand))
    agree(flat(optimizer.slots["evaluate"]["precision"].values()), kept["s"])


def test_flat_lora_moves_the_merged_weight_and_descends_the_adapters():
    model, twin = Adapted(), Adapted()
    frozen = model.inner.base_layer.weight
    start = frozen.detach().clone()
    trained = [p for p in model.parameters() if p.requires_grad]
    base = torch.optim.SGD(trained, lr=LR)
    optimizer = sam.SAM(model, base, sam.flat_lora(0.5, scaling=3.0, total_steps=4), seed=2)
    seen = []

    def closure(t):
        seen.append(frozen.detach() - start)
        return closure_of(model, batch(t))()

    twins = [p for p in twin.parameters() if p.requires_grad]
    for t in range(6):
        a, b = (p.detach().clone() for p in trained)
        optimizer.step(lambda t=t: closure(t))
        assert torch.equal(frozen, start)
        noise = seen[-1] if t else seen[0]
        share = (1 - math.cos(math.pi * min(t / 4, 1.0))) / 2
        rows = (start + 3.0 * b @ a).norm(dim=1, keepdim=True)
        if t:
            z = noise / (0.5 * share * rows / 10)
            assert float(z.mean()) == pytest.approx(0.0, abs=5 / 800**0.5)
            assert float(z.std()) == pytest.approx(1.0, abs=5 / 1600**0.5)
        twin.inner.base_layer.weight.data.copy_(start + noise)
        loss = nn.functional.cross_entropy(twin(batch(t)[0]), batch(t)[1])
        for p, g in zip(twins, torch.autograd.grad(loss, twins), strict=True):
            p.data.sub_(LR * g)
        agree(flat(trained), flat(twins))


# ---------------------------------------------------------------------------------------- outputs


def test_bisam_climbs_along_the_lower_bound_and_descends_the_loss():
    def bound(surrogate):
        def of(z, b):
            x = z - z[torch.arange(len(z)), b[1]][:, None]
            if surrogate == "log":
                phi = 1 - torch.log(1 + (math.e - 1) * torch.exp(-x))
            else:
                phi = torch.tanh(0.3 * x)
            return torch.log(torch.exp(2.0 * phi).sum(1)).mean()

        return of

    for surrogate in ("log", "tanh"):

        def hand(f, w, b, t, surrogate=surrogate):
            return w - LR * f.grad(w + 0.1 * unit(f.grad(w, b, bound(surrogate))), b)

        variant = sam.bisam(0.1, surrogate=surrogate, mu=2.0, alpha=0.3)
        agree(trajectory(variant, logits=True)[0], by_hand(hand))


@pytest.mark.parametrize("prediction", ["softmax", "sigmoid"])
@pytest.mark.parametrize("lmbda", [None, 0.05])
def test_output_bias_forgetting_climbs_towards_uniform_outputs(prediction, lmbda):
    least = 0.2 if lmbda is None else lmbda

    def objective(z, b):
        p = z.softmax(1) if prediction == "softmax" else z.sigmoid()
        own = p[torch.arange(len(z)), b[1]].detach()
        a = 0.8 * torch.clamp((1 - least / own) / (1 - least), min=0.0)
        if prediction == "softmax":
            log = z.log_softmax(1)
            certain, uniform = -log[torch.arange(len(z)), b[1]], -log.mean(1)
            return ((1 - a) * certain - uniform).mean()
        pull = 0.2 - a[:, None] * p.detach()
        pull[torch.arange(len(z)), b[1]] -= 1 - a
        return (pull * z).sum(1).mean()

    def hand(f, w, b, t):
        return w - LR * f.grad(w + 0.1 * unit(f.grad(w, b, objective)), b)

    variant = sam.obf_sam(0.1, gamma=0.8, lmbda=lmbda, prediction=prediction)
    agree(trajectory(variant, logits=True)[0], by_hand(hand))


def test_functional_sam_moves_the_jacobian_and_not_the_derivative_of_the_loss():
    def hand(f, w, b, t):
        g = f.grad(w, b)
        z = f.outputs(w, b[0]).detach().requires_grad_()
        derivative = torch.autograd.grad(nn.functional.cross_entropy(z, b[1]), z)[0]
        gd = f.grad(w + 0.1 * unit(g), b, lambda out, _: (out * derivative).sum())
        return w - LR * gd

    agree(trajectory(sam.functional_sam(0.1), logits=True)[0], by_hand(hand))


def test_functional_sam_is_sam_where_the_loss_is_linear_in_the_outputs():
    ends = []
    for variant in (sam.functional_sam(0.1), sam.sam(0.1)):
        model = cnn()
        optimizer = ready(model, variant, torch.optim.SGD(model.parameters(), lr=LR))

        def losses(b, model=model):
            z = model(b[0])
            return z[:, 0] - 2.0 * z[:, 1], z

        for t in range(3):
            optimizer.step(losses, batch(t))
        ends.append(flat(weights(model)))
    agree(*ends)
