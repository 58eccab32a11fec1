"""Every option of the recipes against its equation, written out over flat vectors."""

import copy
import dataclasses
import itertools
import math

import pytest
import torch
from torch import nn

from landscape import sam
from landscape.sam import schedule
from tests.sam_models import (
    batch,
    closure_of,
    cnn,
    furthest,
    losses_of,
    ready,
    reset,
    same,
    sgd,
    step,
    weights,
)

TOLERANCE = 1e-11


def flat(tensors):
    return torch.cat([t.detach().reshape(-1) for t in tensors])


def still(variant, **options):
    """An optimizer whose weights do not move, so that one can look at several of its steps."""
    model = cnn()
    return model, ready(model, variant, torch.optim.SGD(model.parameters(), lr=0.0), **options)


def taken(optimizer, b):
    """(g1, g2, e, gd) of one step."""
    step(optimizer, b)
    p = optimizer.perturbation
    gd = [q.grad for q in optimizer.trained.parameters]
    return p.g1, p.g2, list(p.e.values()), gd


def gradient(model, b, weight=None):
    values = losses_of(model)(b)
    loss = (values if weight is None else weight * values).mean()
    return list(torch.autograd.grad(loss, list(model.parameters())))


def close(ours, expected):
    assert furthest(ours, expected) < TOLERANCE


# ------------------------------------------------------------------------------------ sources


@pytest.mark.parametrize("order", ["code", "paper"])
@pytest.mark.parametrize("init", ["grad", "zero"])
@pytest.mark.parametrize("sigma", [0.5, 1.0])
def test_fsam_in_both_orders_from_both_beginnings(order, init, sigma):
    _, optimizer = still(sam.fsam(0.1, sigma=sigma, lmbda=0.8, ema_order=order, ema_init=init))
    average = None
    for t in range(3):
        g1, _, e, _ = taken(optimizer, batch(t))
        g = flat(g1)
        begin = torch.zeros_like(g) if init == "zero" else g
        after = 0.8 * average + 0.2 * g if average is not None else 0.8 * begin + 0.2 * g
        if average is None and init == "grad":
            u, after = g, g  # M starts as the first gradient, of which nothing is taken off
        elif order == "paper":
            u = g - sigma * after
        else:
            u = g - sigma * (begin if average is None else average)
        average = after
        torch.testing.assert_close(flat(e), 0.1 * u / u.norm(), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("norm_of", ["raw", "centred"])
@pytest.mark.parametrize("centre_descent", [False, True])
def test_gcsam_as_released_and_as_in_the_paper(norm_of, centre_descent):
    _, optimizer = still(sam.gcsam(0.1, norm_of=norm_of, centre_descent=centre_descent))
    g1, g2, e, gd = taken(optimizer, batch())

    def centred(g):
        return g - g.flatten(1).mean(1).view(-1, *[1] * (g.ndim - 1)) if g.ndim > 1 else g

    u = [centred(g) for g in g1]
    norm = flat(g1 if norm_of == "raw" else u).norm()
    close(e, [0.1 * x / norm for x in u])
    close(gd, [centred(g) if centre_descent else g for g in g2])


def test_async_sam_climbs_along_the_gradient_of_the_leading_share_of_the_batch_before():
    model, optimizer = still(sam.async_sam(0.1, fraction=0.25))
    step(optimizer, batch(0))
    quarter = flat(gradient(model, tuple(t[:4] for t in batch(0))))
    _, _, e, _ = taken(optimizer, batch(1))
    torch.testing.assert_close(flat(e), 0.1 * quarter / quarter.norm(), rtol=0, atol=TOLERANCE)


# ---------------------------------------------------------------------------------- selectors


@pytest.mark.parametrize("percentile", [0.5, 0.9])
def test_zsharp_keeps_what_lies_above_the_quantile_of_its_z_score_and_has_one_norm(percentile):
    _, optimizer = still(sam.zsharp(0.1, percentile=percentile))
    g1, _, e, _ = taken(optimizer, batch())
    kept = []
    for g in g1:
        z = ((g - g.mean()) / g.std()).abs() if g.ndim > 1 else None
        kept.append(g if z is None else g * (z > torch.quantile(z, percentile)))
    close(e, [0.1 * f / flat(kept).norm() for f in kept])


def test_zsharp_climbs_along_g1_where_its_filters_keep_nothing():
    """All entries of each gradient are equal, so that none lies above a quantile."""
    for one_d in ("none", "dense"):
        model = nn.Sequential(nn.Linear(3, 2, bias=False), nn.Linear(2, 1, bias=False)).double()
        nn.init.constant_(model[0].weight, 0.5)
        nn.init.constant_(model[1].weight, 0.25)
        optimizer = sam.SAM(model, sgd(model), sam.zsharp(0.1, one_d=one_d))
        optimizer.step(lambda b, model=model: model(b)[:, 0], torch.ones(4, 3).double())
        p = optimizer.perturbation
        close(list(p.e.values()), [0.1 * g / flat(p.g1).norm() for g in p.g1])


def test_lagnp_perturbs_three_layers_unless_told_otherwise():
    owners = {n.rsplit(".", 1)[0] for n, _ in cnn().named_parameters()}
    for options, count in (({}, 3), ({"fraction": 0.5}, math.ceil(len(owners) / 2))):
        _, optimizer = still(sam.lagnp(0.1, **options))
        taken(optimizer, batch())
        share = optimizer.perturbation.energy_share
        assert len({n.rsplit(".", 1)[0] for n, x in share.items() if x > 0}) == count


class Nested(nn.Module):
    """A convolution inside a module called norm*, and a norm layer whose name does not say so."""

    def __init__(self):
        super().__init__()
        self.norm_block = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU())
        self.down = nn.Sequential(nn.Conv2d(3, 3, 3), nn.GroupNorm(1, 3))
        self.bn = nn.BatchNorm2d(3)
        self.head = nn.Linear(108, 5)
        reset(self)

    def forward(self, x):
        return self.head(self.bn(self.down(self.norm_block(x))).flatten(1))


def test_sam_on_by_type_and_by_name_differ_where_names_mislead():
    found = {}
    for match in ("type", "name"):
        model = Nested()
        optimizer = ready(model, sam.sam_on(0.1, match=match))
        step(optimizer, batch())
        p = optimizer.perturbation
        found[match] = {n for n, e in zip(p.names, p.perturbed, strict=True) if e is not None}
        assert float(p.norm) == pytest.approx(0.1, rel=1e-9)
    own = {"bn.weight", "bn.bias"}
    assert found["type"] == own | {"down.1.weight", "down.1.bias"}
    assert found["name"] == own | {"norm_block.0.weight", "norm_block.0.bias"}


@pytest.mark.parametrize("p", [2.0, math.inf])
@pytest.mark.parametrize("metric", ["identity", "elementwise", "layerwise"])
@pytest.mark.parametrize("normalize_bias", [False, True])
@pytest.mark.parametrize("no_norm", [False, True])
def test_sam_on_in_every_metric_and_both_norms(p, metric, normalize_bias, no_norm):
    options = {"metric": metric, "eta": 0.02, "p": p, "normalize_bias": normalize_bias}
    model, optimizer = still(sam.sam_on(0.3, no_norm=no_norm, **options))
    norms = [n for n, _ in model.named_parameters() if n.startswith(("1.", "4."))]
    g1, _, e, _ = taken(optimizer, batch())
    chosen, scaled = [], []
    for (name, w), g in zip(model.named_parameters(), g1, strict=True):
        on = (name in norms) != no_norm
        t = torch.ones_like(w)
        if "weight" in name or normalize_bias:
            t = {"identity": t, "elementwise": w.abs() + 0.02,
                 "layerwise": w.norm() * 1.02 * t}[metric].detach()  # fmt: skip
        chosen.append((on, t, g))
        scaled += [t * g] if on else []
    if p == 2:
        factor = 0.3 / flat(scaled).norm()
        expected = [t * t * g * factor if on else torch.zeros(()) for on, t, g in chosen]
    else:
        expected = [0.3 * t * g.sign() if on else torch.zeros(()) for on, t, g in chosen]
    close(e, expected)


@pytest.mark.parametrize("make", [sam.random_mask, sam.topk_gradient])
def test_controls_may_take_their_share_of_all_coordinates_together(make):
    model, optimizer = still(make(0.1, density=0.07, scope="global"))
    g1, *_ = taken(optimizer, batch())
    masks = optimizer.perturbation.mask.values()
    wide = [m for m, w in zip(masks, model.parameters(), strict=True) if w.ndim > 1]
    size = sum(m.numel() for m in wide)
    assert sum(int(m.sum()) for m in wide) == round(0.07 * size)
    if make is sam.topk_gradient:
        g = flat([x for x in g1 if x.ndim > 1]).abs()
        kept = flat(wide)
        assert g[kept].min() >= g[~kept].max()


def test_random_masks_are_drawn_per_step_per_epoch_or_once():
    changed = {}
    for resample in ("step", "epoch", "never"):
        _, optimizer = still(sam.random_mask(0.1, density=0.3, resample=resample))
        masks = []
        for t in range(4):
            optimizer.begin_epoch(t // 2, 2)
            step(optimizer, batch(t))
            masks.append(flat(optimizer.perturbation.mask.values()))
        changed[resample] = [not torch.equal(a, b) for a, b in itertools.pairwise(masks)]
    assert changed == {"step": [True] * 3, "epoch": [False, True, False], "never": [False] * 3}


def test_ssam_masks_begin_full_or_empty_and_are_refreshed_every_so_many_epochs():
    _, optimizer = still(sam.ssam_f(0.1, sparsity=0.6, num_samples=4, mask_init="ones"))
    g1, _, e, _ = taken(optimizer, batch())
    close(e, [0.1 * g / (flat(g1).norm() + 1e-7) for g in g1])
    g1, _, e, _ = taken(optimizer, batch(1))  # the norm is that of the whole gradient
    mask = list(optimizer.perturbation.mask.values())
    close(e, [0.1 * g * m / (flat(g1).norm() + 1e-7) for g, m in zip(g1, mask, strict=True)])
    assert 0 < float(flat(mask).double().mean()) < 0.41

    for make in (sam.ssam_f, sam.ssam_d):
        options = {"num_samples": 4} if make is sam.ssam_f else {}
        model = cnn()
        optimizer = ready(model, make(0.1, sparsity=0.6, update_freq=2, **options))
        masks = []
        for epoch in range(4):
            optimizer.begin_epoch(epoch, 4)
            step(optimizer, batch(epoch))
            masks.append(flat(optimizer.slots["selector"]["mask"].values()))
        assert [not torch.equal(a, b) for a, b in itertools.pairwise(masks)] == [False, True, False]


@pytest.mark.parametrize("layer", ["module", "tensor"])
@pytest.mark.parametrize("unit", [True, False])
def test_lagnp_blends_in_the_layers_of_largest_gradient_and_takes_g1_elsewhere(layer, unit):
    variant = sam.lagnp(0.1, alpha=0.7, num_layers=2, layer=layer, unit=unit)
    model, optimizer = still(variant)
    g1, g2, e, gd = taken(optimizer, batch())
    names = [n for n, _ in model.named_parameters()]
    owner = [n.rsplit(".", 1)[0] if layer == "module" else n for n in names]
    score = {o: flat([g for g, p in zip(g1, owner, strict=True) if p == o]).norm() for o in owner}
    best = sorted(score, key=lambda o: -float(score[o]))[:2]
    on = [o in best for o in owner]
    size = flat([g for g, x in zip(g1, on, strict=True) if x]).norm() if unit else 1.0
    close(e, [0.1 * g / size * x for g, x in zip(g1, on, strict=True)])
    blended = [0.3 * a + 0.7 * b if x else a for a, b, x in zip(g1, g2, on, strict=True)]
    close(gd, blended)


def test_lagnp_chooses_every_so_many_steps_and_by_averaged_norms():
    def chosen(**options):
        _, optimizer = still(sam.lagnp(0.1, num_layers=1, **options))
        found, point_norms = [], ([1.0, 2.0], [9.0, 1.0], [0.0, 1.5])
        state = {}
        for norms in point_norms:
            point = sam.Point(("a.w", "b.w"), ("linear",) * 2, ("a", "b"), [], [], None, None)
            point._norms = [torch.tensor(n, dtype=torch.float64) for n in norms]
            found.append("ab"[optimizer.variant.selector(point, [], state).index(True)])
        return "".join(found)

    assert chosen() == "bab"
    assert chosen(every=2) == "bbb"
    assert chosen(smoothing=0.9) == "bbb"  # averages (1, 2), (1.8, 1.9), (1.62, 1.86)


# -------------------------------------------------------------------------------- corrections


@pytest.mark.parametrize("unit_g1", [False, True])
def test_gnp_blends_the_papers_g1_or_the_released_unit_gradient(unit_g1):
    _, optimizer = still(sam.gnp(0.1, alpha=0.7, unit_g1=unit_g1))
    g1, g2, _, gd = taken(optimizer, batch())
    size = flat(g1).norm() if unit_g1 else 1.0
    close(gd, [0.3 * a / size + 0.7 * b for a, b in zip(g1, g2, strict=True)])


@pytest.mark.parametrize("max_norm", [None, 0.05])
@pytest.mark.parametrize("decouple", [False, True])
def test_wsam_coupled_and_decoupled_with_and_without_clipping(decouple, max_norm):
    """The decoupled term passes by the momentum, the coupled one goes through it."""
    model = cnn()
    base = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    variant = sam.wsam(0.1, gamma=0.8, decouple=decouple, max_norm=max_norm)
    optimizer, a = ready(model, variant, base), 0.8 / 0.2
    velocity = [torch.zeros_like(p) for p in model.parameters()]
    for t in range(2):
        before = weights(model)
        g1, g2, _, _ = taken(optimizer, batch(t))
        shrink = 1.0 if max_norm is None else max_norm / (float(flat(g2).norm()) + 1e-6)
        assert (shrink < 0.9) == (max_norm is not None)
        g2 = [shrink * g for g in g2]
        pull = [a * (y - x) for x, y in zip(g1, g2, strict=True)]
        gd = g1 if decouple else [x + d for x, d in zip(g1, pull, strict=True)]
        velocity = [0.9 * v + g for v, g in zip(velocity, gd, strict=True)]
        after = [w - 0.1 * v for w, v in zip(before, velocity, strict=True)]
        if decouple:
            after = [w - 0.1 * d for w, d in zip(after, pull, strict=True)]
        close(weights(model), after)


def test_looksam_per_tensor():
    _, optimizer = still(sam.looksam(0.2, k=2, alpha=0.6, scope="tensor"))
    g1, g2, _, gd = taken(optimizer, batch())
    close(gd, g2)
    gv = [b - (a * b).sum() / a.square().sum() * a for a, b in zip(g1, g2, strict=True)]
    g, _, _, gd = taken(optimizer, batch(1))
    close(gd, [x + 0.6 * x.norm() / v.norm() * v for x, v in zip(g, gv, strict=True)])


@pytest.mark.parametrize("base_terms", [False, True])
def test_sampa_looks_ahead_with_and_without_the_terms_of_the_base_optimizer(base_terms):
    model = cnn()
    options = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}
    optimizer = ready(
        model,
        sam.sampa(0.2, lmbda=0.3, base_terms=base_terms),
        torch.optim.SGD(model.parameters(), **options),
    )
    other = cnn()

    def at(values, b):
        with torch.no_grad():
            for p, w in zip(other.parameters(), values, strict=True):
                p.copy_(w)
        return gradient(other, b)

    h = previous = velocity = None
    for t in range(4):
        x, b = weights(model), batch(t % 3)
        step(optimizer, b)
        y, climbed = x, x
        if h is not None:
            extra = [0.9 * v + 0.01 * w if base_terms else 0.0 for v, w in zip(velocity, x)]
            y = [w - 0.1 * (g + m) for w, g, m in zip(x, h, extra, strict=True)]
            climbed = [w + 0.2 * g / flat(h).norm() for w, g in zip(x, h, strict=True)]
        new = at(y, b)
        p = at(climbed, b if previous is None else previous)
        gd = [0.7 * a + 0.3 * c + 0.01 * w for a, c, w in zip(p, new, x, strict=True)]
        velocity = gd if h is None else [0.9 * v + g for v, g in zip(velocity, gd, strict=True)]
        close(weights(model), [w - 0.1 * v for w, v in zip(x, velocity, strict=True)])
        h, previous = new, b


@pytest.mark.parametrize(("strict", "count"), [(True, 7), (False, 8)])
def test_esam_descends_on_the_examples_whose_loss_rose_most(strict, count):
    model, optimizer = still(sam.esam(0.3, beta=0.5, gamma=0.5, strict=strict))
    for t in range(2):  # the first step has all tensors
        b = batch(t)
        clean = losses_of(model)(b).detach()
        g1, _, e, gd = taken(optimizer, b)
        drawn = [bool(m.all()) for m in optimizer.perturbation.mask.values()]
        assert all(drawn) == (t == 0)
        chosen = [g for g, on in zip(g1, drawn, strict=True) if on]
        size = flat(chosen).norm() + 1e-7
        whole = [torch.zeros_like(x) if g is None else g for g, x in zip(g1, e, strict=True)]
        close(e, [0.3 / 0.5 * g * on / size for g, on in zip(whole, drawn, strict=True)])
        start = weights(model)
        with torch.no_grad():
            for p, x in zip(model.parameters(), e, strict=True):
                p.add_(x)
        rise = losses_of(model)(b).detach() - clean
        kept = torch.topk(rise, count).indices.sort().values
        expected = gradient(model, tuple(part[kept] for part in b))
        with torch.no_grad():
            for p, w in zip(model.parameters(), start, strict=True):
                p.copy_(w)
        close(gd, expected)


def test_own_selector_and_own_correction_are_plain_functions():
    """Every second tensor is perturbed, and gd = 2 g2 - g1; what they keep is saved."""

    def every_second(point, u, state):
        state["asked"] = state.get("asked", 0) + 1
        return [i % 2 == 0 for i in range(len(u))]

    def extrapolated(point, g1, g2, state):
        state["step"] = point.step
        return [2 * b - a for a, b in zip(g1, g2, strict=True)]

    variant = dataclasses.replace(sam.sam(0.1), selector=every_second, correction=extrapolated)
    _, optimizer = still(variant)
    for t in range(2):
        g1, g2, e, gd = taken(optimizer, batch(t))
        chosen = [g if i % 2 == 0 else torch.zeros_like(g) for i, g in enumerate(g1)]
        close(e, [0.1 * g / flat(chosen).norm() for g in chosen])
        close(gd, [2 * b - a for a, b in zip(g1, g2, strict=True)])
    slots = optimizer.state_dict()["sam"]["slots"]
    assert slots["selector"] == {"asked": 2}
    assert slots["correction"] == {"step": 1}


# --------------------------------------------------------------------------------------- radii


def test_gsam_ties_its_radius_to_the_learning_rate_after_warm_up():
    model = cnn()
    base = torch.optim.SGD(model.parameters(), lr=0.5)
    optimizer = ready(model, sam.gsam(0.3, rho_min=0.1, lr_max=0.4, lr_min=0.2), base)
    seen = []
    for lr in (0.5, 0.4, 0.25, 0.1):
        base.param_groups[0]["lr"] = lr
        step(optimizer, batch())
        seen.append(float(optimizer.perturbation.norm))
    assert seen == pytest.approx([0.3, 0.3, 0.15, 0.1], rel=1e-9)


def test_the_radius_of_adagrad_norm_is_the_gradient_over_the_root_of_all_squares():
    _, optimizer = still(sam.with_radius(sam.sam(0.1), schedule.AdaGradNorm(0.2, initial=0.5)))
    total = 0.5
    for t in range(3):
        g1, _, e, _ = taken(optimizer, batch(t))
        total += float(flat(g1).square().sum())
        close(e, [0.2 * g / math.sqrt(total) for g in g1])


# ---------------------------------------------------------------- what is left at radius zero


def plain(batches):
    model = cnn()
    optimizer = sgd(model)
    for b in batches:
        optimizer.zero_grad()
        losses_of(model)(b).mean().backward()
        optimizer.step()
    return weights(model)


@pytest.mark.parametrize(
    "variant",
    [
        sam.looksam(0.0, k=3),
        sam.focal_sam(0.0, class_counts=(5, 4, 3, 2, 1)),
        sam.saf(num_examples=16, weight=0.0, start_epoch=-1),
        sam.mesa(weight=0.0, start_epoch=-1),
        sam.esam(0.0, beta=0.5, gamma=1.0),
        sam.async_sam(0.0, fraction=0.5),
    ],
    ids=lambda v: v.name,
)
def test_without_radius_or_weight_these_too_are_the_base_optimizer(variant):
    model = cnn()
    optimizer = ready(model, variant)
    for t in range(5):
        step(optimizer, batch(t % 3))
    assert furthest(weights(model), plain([batch(t % 3) for t in range(5)])) < 1e-12


def test_sampa_with_rho_and_lmbda_zero_is_the_base_optimizer_one_batch_behind():
    model = cnn()
    optimizer = ready(model, sam.sampa(0.0, lmbda=0.0))
    for t in (0, 1, 2, 1):
        step(optimizer, batch(t))
    behind = plain([batch(t) for t in (0, 0, 1, 2)])
    assert furthest(weights(model), behind) < 1e-12
    assert furthest(weights(model), plain([batch(t) for t in (0, 1, 2, 1)])) > 1e-4


# ------------------------------------------------------------------ steps whose gate is closed

# IRE goes on to enhance the base step (its own test).
GATED = {
    name: {} for name in sam.recipes() if name not in ("sgd", "saf", "mesa", "ire", "flat_lora")
} | {
    "async_sam": {"fraction": 0.5},
    "focal_sam": {"class_counts": (5, 4, 3, 2, 1)},
    "ssam_f": {"num_samples": 4, "mask_init": "ones"},
    "bsam": {"num_examples": 200},
}


@pytest.mark.parametrize("name", GATED)
def test_a_closed_gate_is_the_base_optimizer_whatever_the_variant_does_else(name):
    """Bit for bit: one pass over the whole batch and all tensors, at w."""
    variant = sam.window(sam.make(name, GATED[name]), 2, unit="step")
    model, calls = cnn(), []
    optimizer = ready(model, variant, torch.optim.Adam(model.parameters(), lr=1e-2))
    theirs = cnn()
    base = torch.optim.Adam(theirs.parameters(), lr=1e-2)
    for t in range(4):
        calls.append(optimizer.perturbation.climbed if t else False)
        step(optimizer, batch(t))
        base.zero_grad()
        closure_of(theirs, batch(t))()
        base.step()
        if t < 2:
            assert same(weights(model), weights(theirs)), t
            assert same(model.buffers(), theirs.buffers())
    assert not same(weights(model), weights(theirs))
    assert optimizer.perturbation.climbed


def test_a_gate_closed_again_ends_the_look_ahead_of_sampa():
    model, theirs = cnn(), cnn()
    optimizer = ready(model, sam.window(sam.sampa(0.1), 0, 2, unit="step"))
    for t in range(2):
        step(optimizer, batch(t))
    theirs.load_state_dict(model.state_dict())
    base = sgd(theirs)
    base.load_state_dict(copy.deepcopy(optimizer.base.state_dict()))
    step(optimizer, batch(2))
    base.zero_grad()
    closure_of(theirs, batch(2))()
    base.step()
    assert same(weights(model), weights(theirs))
