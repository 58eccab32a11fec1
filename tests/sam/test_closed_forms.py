"""SAM steps against closed forms, and what each recipe reduces to."""

import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from landscape import sam
from landscape.sam.selectors import above_quantile, kept_count
from tests.sam_models import (
    batch,
    closure_of,
    cnn,
    furthest,
    losses_of,
    ready,
    same,
    sgd,
    step,
    variants,
    weights,
)


class Point(nn.Module):
    """One parameter vector w; its loss is a function of w alone."""

    def __init__(self, w):
        super().__init__()
        self.w = nn.Parameter(torch.as_tensor(w, dtype=torch.float64))


def quadratic(model, hessian):
    def closure():
        loss = 0.5 * model.w @ hessian @ model.w
        loss.backward()
        return loss

    return closure


def test_sam_step_on_a_quadratic_is_w_minus_lr_H_of_w_plus_rho_unit_gradient():
    hessian = torch.tensor([[3.0, 1.0], [1.0, 2.0]], dtype=torch.float64)
    w = torch.tensor([0.4, -1.3], dtype=torch.float64)
    model = Point(w.clone())
    optimizer = sam.SAM(model, torch.optim.SGD(model.parameters(), lr=0.1), sam.sam(0.3))
    loss = optimizer.step(quadratic(model, hessian))
    g = hessian @ w
    expected = w - 0.1 * hessian @ (w + 0.3 * g / g.norm())
    torch.testing.assert_close(model.w.detach(), expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(loss, 0.5 * w @ g, rtol=1e-14, atol=0)
    p = optimizer.perturbation
    torch.testing.assert_close(p.norm, torch.tensor(0.3, dtype=torch.float64), rtol=1e-12, atol=0)
    up = w + 0.3 * g / g.norm()
    torch.testing.assert_close(p.loss_perturbed, 0.5 * up @ hessian @ up, rtol=1e-12, atol=0)


@pytest.mark.parametrize(("lr", "curvature", "rho"), [(0.1, 2.0, 0.5), (0.5, 1.0, 0.05)])
def test_sam_limit_cycle_on_a_parabola(lr, curvature, rho):
    model = Point([1.7])
    optimizer = sam.SAM(model, torch.optim.SGD(model.parameters(), lr=lr), sam.sam(rho))
    for _ in range(400):
        optimizer.step(quadratic(model, torch.tensor([[curvature]], dtype=torch.float64)))
    limit = lr * curvature * rho / (2 - lr * curvature)
    before = model.w.item()
    assert abs(before) == pytest.approx(limit, rel=1e-9)
    optimizer.step(quadratic(model, torch.tensor([[curvature]], dtype=torch.float64)))
    assert model.w.item() == pytest.approx(-before, rel=1e-9)


def run(variant, steps=6, base=None, model=None, **options):
    model = cnn() if model is None else model
    optimizer = ready(model, variant, base and base(model), **options)
    for t in range(steps):
        if t % 2 == 0:
            optimizer.begin_epoch(t // 2, 3)
        step(optimizer, batch(t % 3))
    return model, optimizer


def base_alone(steps=6, base=sgd):
    model = cnn()
    optimizer = base(model)
    for t in range(steps):
        optimizer.zero_grad()
        losses_of(model)(batch(t % 3)).mean().backward()
        optimizer.step()
    return model


def adam(model):
    return torch.optim.Adam(model.parameters(), lr=1e-2)


G2_AT_RHO_ZERO = (
    "sam", "asam", "fsam", "ssam_f", "ssam_d", "sam_on", "zsharp", "random_mask", "topk_gradient",
    "gcsam", "async_sam", "msam", "vasso", "fisher_sam", "randsam",
)  # fmt: skip


@pytest.mark.parametrize("base", [sgd, adam])
@pytest.mark.parametrize("name", G2_AT_RHO_ZERO)
def test_rho_zero_is_the_base_optimizer_bitwise_where_the_descent_gradient_is_g2(name, base):
    variant = sam.make(name, {"rho": 0.0} | ({"num_samples": 4} if name == "ssam_f" else {}))
    model, _ = run(variant, base=base)
    plain = base_alone(base=base)
    assert same(weights(model), weights(plain))
    assert same(model.buffers(), plain.buffers())


@pytest.mark.parametrize(
    "variant",
    [
        sam.gnp(0.0),
        sam.gsam(0.0),
        sam.wsam(0.0),
        sam.wsam(0.0, decouple=False),
        sam.stable_sam(0.0),
        sam.lagnp(0.0),
        sam.looksam(0.0, k=1),
        sam.esam(0.0, beta=1.0, gamma=1.0),
        sam.sl_sam(0.0, share=1.0),
    ],
    ids=lambda v: v.name,
)
def test_rho_zero_is_the_base_optimizer_to_rounding_for_the_blends(variant):
    model, _ = run(variant)
    assert furthest(weights(model), weights(base_alone())) < 1e-12


def test_dropout_makes_the_passes_differ_unless_both_see_the_same_randomness():
    def trained(variant, **options):
        model = nn.Sequential(cnn()[:-1], nn.Dropout(0.5), cnn()[-1])
        optimizer = sam.SAM(model, sgd(model), variant, **options)
        with torch.random.fork_rng():
            torch.manual_seed(5)
            for t in range(4):
                optimizer.step(closure_of(model, batch(t)))
            state = torch.get_rng_state()
        return weights(model), state

    plain, after_plain = trained(sam.sgd())
    twin, after_twin = trained(sam.sam(0.0), same_rng_both_passes=True)
    other, _ = trained(sam.sam(0.0))
    assert same(plain, twin)
    assert torch.equal(after_plain, after_twin)
    assert furthest(plain, other) > 1e-3


REDUCES_TO_SAM = {
    "fsam, sigma 0": sam.fsam(0.1, sigma=0.0),
    "fsam, sigma 0, paper order": sam.fsam(0.1, sigma=0.0, ema_order="paper"),
    "gsam, alpha 0": sam.gsam(0.1, alpha=0.0),
    "gnp, alpha 1": sam.gnp(0.1, alpha=1.0),
    "lagnp, all layers, alpha 1": sam.lagnp(0.1, alpha=1.0, fraction=1.0),
    "wsam, gamma 1/2, coupled": sam.wsam(0.1, gamma=0.5, decouple=False),
    "looksam, k 1": sam.looksam(0.1, k=1),
    "vasso, theta 1 (esam's eps)": sam.vasso(0.1, theta=1.0),
    "fisher_sam, eta 0": sam.fisher_sam(0.1, eta=0.0),
    "ire, kappa 0": sam.ire(0.1, kappa=0.0),
    "aesam, always": sam.aesam(0.1, lambda_1=-1e9, lambda_2=-1e9),
    "esam, beta = gamma = 1": sam.esam(0.1, beta=1.0, gamma=1.0),
    "sl_sam, share 1": sam.sl_sam(0.1, share=1.0),
    "topk_gradient, all": sam.topk_gradient(0.1, density=1.0, one_d="dense"),
    "random_mask, all": sam.random_mask(0.1, density=1.0, one_d="dense"),
    "ssam_f, sparsity 0": sam.ssam_f(0.1, sparsity=0.0, num_samples=4, mask_init="ones"),
    "ssam_d, sparsity 0": sam.ssam_d(0.1, sparsity=0.0),
    "ssam_d, sparsity 0, quirks": sam.ssam_d(
        0.1, sparsity=0.0, drop_rate=0.0, official_quirks=True
    ),
}


@pytest.mark.parametrize("name", REDUCES_TO_SAM)
def test_reductions_to_sam(name):
    variant = REDUCES_TO_SAM[name]
    model, _ = run(variant)
    reference, _ = run(sam.sam(0.1))
    loose = "ssam" in name or "esam" in name  # their eps is 1e-7
    assert furthest(weights(model), weights(reference)) < (1e-6 if loose else 1e-11)
    assert furthest(weights(model), weights(base_alone())) > 1e-3


def test_sam_on_everything_is_sam():
    everywhere = sam.sam_on(0.1).selector
    both = dataclasses.replace(
        sam.sam_on(0.1), selector=lambda point, u, state: [True] * len(point.names)
    )
    assert everywhere.complement is False
    assert furthest(weights(run(both)[0]), weights(run(sam.sam(0.1))[0])) < 1e-12


def test_sam_on_and_its_complement_share_the_tensors_between_them():
    _, on = run(sam.sam_on(0.1), steps=1)
    _, off = run(sam.sam_on(0.1, no_norm=True), steps=1)
    densities = [(float(on.perturbation.density[n]), float(off.perturbation.density[n])) for n in
                 on.trained.names]  # fmt: skip
    assert densities == [(0, 1), (1, 0), (1, 0), (0, 1), (0, 1), (1, 0), (1, 0), (0, 1), (0, 1)]


def test_friendly_sam_with_sigma_1_does_not_care_when_the_average_takes_the_gradient():
    code, _ = run(sam.fsam(0.2, lmbda=0.6))
    paper, _ = run(sam.fsam(0.2, lmbda=0.6, ema_order="paper"))
    zero, _ = run(sam.fsam(0.2, lmbda=0.6, ema_init="zero"))
    assert furthest(weights(code), weights(paper)) < 1e-11
    assert furthest(weights(code), weights(zero)) > 1e-4


def test_sampa_first_step_is_plain_and_later_steps_climb_along_the_carried_gradient():
    model, optimizer = run(sam.sampa(0.1, lmbda=0.0), steps=1)
    assert furthest(weights(model), weights(base_alone(steps=1))) < 1e-12
    step(optimizer, batch(1))
    torch.testing.assert_close(float(optimizer.perturbation.norm), 0.1, rtol=1e-9, atol=0)
    # lmbda = 0 descends with the perturbed gradient of the batch before, and is not plain SGD
    assert furthest(weights(model), weights(base_alone(steps=2))) > 1e-4


def test_async_sam_climbs_along_the_previous_clean_gradient():
    model = cnn()
    optimizer = ready(model, sam.async_sam(0.1))
    step(optimizer, batch(0))
    assert float(optimizer.perturbation.norm) == 0
    previous = [g.clone() for g in optimizer.perturbation.g1]
    step(optimizer, batch(1))
    norm = math.sqrt(sum(float(g.square().sum()) for g in previous))
    expected = [0.1 * g / norm for g in previous]
    assert furthest(optimizer.perturbation.e.values(), expected) < 1e-12


def test_msam_makes_one_pass_against_the_momentum():
    model = cnn()
    optimizer = ready(model, sam.msam(0.2))
    calls = []
    optimizer.step(closure_of(model, batch(0), calls))
    assert len(calls) == 1
    assert float(optimizer.perturbation.norm) == 0
    buffers = [optimizer.base.state[p]["momentum_buffer"].clone() for p in model.parameters()]
    optimizer.step(closure_of(model, batch(1), calls))
    norm = math.sqrt(sum(float(v.square().sum()) for v in buffers))
    expected = [-0.2 * v / norm for v in buffers]
    assert furthest(optimizer.perturbation.e.values(), expected) < 1e-12


GLOBAL_SCOPE = ("sam", "fsam", "sam_on", "zsharp", "lagnp", "gnp", "gsam", "stable_sam", "looksam",
                "wsam", "randsam", "ire", "aesam", "random_mask", "topk_gradient", "sl_sam",
                "focal_sam")  # fmt: skip


@pytest.mark.parametrize("name", GLOBAL_SCOPE)
def test_norm_of_e_is_rho_under_the_global_scope(name):
    variant = variants()[name]
    _, optimizer = run(variant, steps=1)
    assert float(optimizer.perturbation.norm) == pytest.approx(variant.radius.rho, rel=1e-9)
    shares = sum(float(s) for s in optimizer.perturbation.energy_share.values())
    assert shares == pytest.approx(1.0, rel=1e-12)


def test_asam_has_radius_rho_in_the_metric():
    _, optimizer = run(sam.asam(0.3, eta=0.01), steps=0)
    model = optimizer.model
    scale = [p.detach().abs() + 0.01 if "weight" in n else torch.ones_like(p) for n, p in
             model.named_parameters()]  # fmt: skip
    step(optimizer, batch())
    e = optimizer.perturbation.e.values()
    inner = sum(float((x / t).square().sum()) for x, t in zip(e, scale, strict=True))
    assert math.sqrt(inner) == pytest.approx(0.3, rel=1e-9)


def test_asam_without_eta_is_invariant_to_rescaling_each_weight():
    """e_i/w_i is unchanged by w -> c w, g -> g/c (arXiv:2102.11600)."""
    w = torch.tensor([0.3, -2.0, 1.1], dtype=torch.float64)
    g = torch.tensor([1.0, 0.2, -0.7], dtype=torch.float64)
    c = torch.tensor([10.0, 0.1, 3.0], dtype=torch.float64)

    def relative(w, g):
        model = Point(w.clone())
        optimizer = sam.SAM(
            model, torch.optim.SGD(model.parameters(), lr=0.0), sam.asam(0.5, bias_metric="abs")
        )

        def closure():
            loss = (g * model.w).sum()
            loss.backward()
            return loss

        optimizer.step(closure)
        return optimizer.perturbation.e["w"] / w

    torch.testing.assert_close(relative(w, g), relative(c * w, g / c), rtol=1e-12, atol=0)


def test_zsharp_with_a_norm_per_tensor_has_radius_rho_root_K_plus_s1():
    _, optimizer = run(sam.zsharp(0.05, percentile=0.9, norm_scope="tensor"), steps=1)
    g = optimizer.perturbation.g1
    squares = [float(x.square().sum()) for x in g]
    share = sum(s for s, x in zip(squares, g, strict=True) if x.ndim <= 1) / sum(squares)
    count = sum(x.ndim > 1 for x in g)
    assert count == 3
    expected = 0.05 * math.sqrt(count + share)
    assert float(optimizer.perturbation.norm) == pytest.approx(expected, rel=1e-9)


def test_loss_increase_matches_sams_to_first_order():
    for variant in (sam.topk_gradient(0.07, equal="loss_increase"),
                    sam.random_mask(0.07, equal="loss_increase"),
                    sam.zsharp(0.07, equal="loss_increase")):  # fmt: skip
        _, optimizer = run(variant, steps=1)
        p = optimizer.perturbation
        gain = sum(float((a * b).sum()) for a, b in zip(p.g1, p.e.values(), strict=True))
        norm = math.sqrt(sum(float(g.square().sum()) for g in p.g1))
        assert gain == pytest.approx(0.07 * norm, rel=1e-9)
        assert float(p.norm) > 0.07


@given(
    size=st.integers(2, 400),
    percentile=st.sampled_from([0.0, 0.05, 0.5, 0.8, 0.9, 0.95, 0.99, 1.0]),
    seed=st.integers(0, 10**6),
)
@settings(max_examples=60, deadline=None)
def test_kept_count_is_n_minus_1_minus_floor_alpha_n_minus_1(size, percentile, seed):
    values = torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    mask = above_quantile(values.abs(), percentile)
    assert int(mask.sum()) == kept_count(size, percentile)
    assert torch.equal(mask, values.abs() > torch.quantile(values.abs(), percentile))


def test_zsharp_at_percentile_0_drops_exactly_the_smallest_z_of_each_matrix():
    _, optimizer = run(sam.zsharp(0.05, percentile=0.0), steps=1)
    dropped = [int((~m).sum()) for m in optimizer.perturbation.mask.values()]
    assert dropped == [1, 0, 0, 1, 0, 0, 0, 1, 0]


@pytest.mark.slow
def test_zsharp_takes_tensors_beyond_the_limit_of_torch_quantile():
    values = torch.rand(2**24 + 5, generator=torch.Generator().manual_seed(0))
    with pytest.raises(RuntimeError, match="too large"):
        torch.quantile(values, 0.95)
    assert int(above_quantile(values, 0.95).sum()) == pytest.approx(
        kept_count(2**24 + 5, 0.95), abs=5
    )


def test_on_a_softmax_head_the_z_mask_is_the_top_gradient_mask():
    """The columns of a softmax head's gradient sum to 0 over classes, so its mean is 0."""
    _, optimizer = run(sam.zsharp(0.05, percentile=0.9), steps=1)
    p = optimizer.perturbation
    g, mask = p.g1[7], p.masks[7]
    assert float(g.mean().abs()) < 1e-15
    kept = torch.topk(g.abs().reshape(-1), int(mask.sum())).indices
    assert set(kept.tolist()) == set(mask.reshape(-1).nonzero().flatten().tolist())


def test_z_mask_does_not_change_under_a_g_plus_b():
    from landscape.sam.selectors import ZScore

    g = torch.randn(30, 20, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    select = ZScore(0.9)
    point = sam.Point(("w",), ("linear",), ("",), [g], [g], None, None)
    a = select(point, [g], {})[0]
    assert torch.equal(a, select(point, [3.0 * g + 0.4], {})[0])


def test_stable_sam_keeps_the_norm_of_the_clean_gradient():
    model = cnn()
    optimizer = ready(model, sam.stable_sam(0.5), torch.optim.SGD(model.parameters(), lr=0.0))
    step(optimizer, batch())
    g1 = math.sqrt(sum(float(g.square().sum()) for g in optimizer.perturbation.g1))
    gd = math.sqrt(sum(float(p.grad.square().sum()) for p in model.parameters()))
    assert gd == pytest.approx(g1, rel=1e-9)


def test_gsam_descends_along_g2_minus_alpha_times_the_part_of_g1_orthogonal_to_it():
    model = cnn()
    optimizer = ready(model, sam.gsam(0.5, alpha=0.4), torch.optim.SGD(model.parameters(), lr=0.0))
    step(optimizer, batch())
    flat = lambda gs: torch.cat([g.reshape(-1) for g in gs])  # noqa: E731
    g1, g2 = flat(optimizer.perturbation.g1), flat(optimizer.perturbation.g2)
    orthogonal = g1 - (g1 @ g2) / (g2 @ g2) * g2
    gd = flat([p.grad for p in model.parameters()])
    torch.testing.assert_close(gd, g2 - 0.4 * orthogonal, rtol=1e-9, atol=1e-12)


def test_looksam_reuses_the_orthogonal_part_between_two_climbs():
    model = cnn()
    optimizer = ready(
        model, sam.looksam(0.2, k=3, alpha=0.7), torch.optim.SGD(model.parameters(), lr=0.0)
    )
    flat = lambda gs: torch.cat([g.reshape(-1) for g in gs])  # noqa: E731
    calls = []
    optimizer.step(closure_of(model, batch(0), calls))
    g1, g2 = flat(optimizer.perturbation.g1), flat(optimizer.perturbation.g2)
    gv = g2 - (g1 @ g2) / (g1 @ g1) * g1
    optimizer.step(closure_of(model, batch(1), calls))
    assert len(calls) == 3
    g = flat(optimizer.perturbation.g1)
    gd = flat([p.grad for p in model.parameters()])
    torch.testing.assert_close(gd, g + 0.7 * g.norm() / gv.norm() * gv, rtol=1e-9, atol=1e-12)


def test_focal_sam_with_equal_shares_of_one_is_sam_on_the_scaled_loss():
    """sharpness 1 and flat_gamma 0 give c = 1: no clean part, all of the loss climbs."""
    variant = sam.focal_sam(0.1, class_counts=(1, 1, 1, 1, 1), sharpness=1.0, flat_gamma=0.0)
    assert furthest(weights(run(variant)[0]), weights(run(sam.sam(0.1))[0])) < 1e-11


def test_focal_sam_descends_both_parts():
    model = cnn()
    optimizer = ready(
        model, sam.focal_sam(0.1, class_counts=(9, 4, 3, 2, 1)),
        torch.optim.SGD(model.parameters(), lr=0.0),
    )  # fmt: skip
    c = 0.5 * (1 - torch.tensor([9, 4, 3, 2, 1], dtype=torch.float64) / 19)
    b = batch()
    share = c[b[1]]

    def gradient(weight):
        values = losses_of(model)(b)
        return torch.autograd.grad((weight * values).mean(), list(model.parameters()))

    clean, ascent = gradient(1 - share), gradient(share)
    norm = math.sqrt(sum(float(g.square().sum()) for g in ascent))
    start = weights(model)
    with torch.no_grad():
        for p, g in zip(model.parameters(), ascent, strict=True):
            p.add_(g, alpha=0.1 / norm)
    climbed = gradient(share)
    with torch.no_grad():
        for p, w in zip(model.parameters(), start, strict=True):
            p.copy_(w)
    step(optimizer, b)
    gd = [p.grad for p in model.parameters()]
    assert furthest(gd, [a + g for a, g in zip(clean, climbed, strict=True)]) < 1e-12


def test_saf_adds_the_divergence_from_the_outputs_delay_epochs_ago():
    model = cnn()
    frozen = torch.optim.SGD(model.parameters(), lr=0.0)
    variant = sam.saf(num_examples=16, weight=2.0, tau=3.0, delay=1, start_epoch=0)
    optimizer = ready(model, variant, frozen)
    b = batch()
    step(optimizer, b)
    past = model(b[0]).detach()
    optimizer.begin_epoch(1)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.1)
    step(optimizer, b)
    logits = model(b[0])
    p, q = (past / 3).softmax(1), (logits / 3).log_softmax(1)
    term = 2 * 9 * (p * (p.log() - q)).sum(1).mean()
    loss = nn.functional.cross_entropy(logits, b[1]) + term
    expected = torch.autograd.grad(loss, list(model.parameters()))
    assert furthest([p.grad for p in model.parameters()], expected) < 1e-12
    assert term.item() > 1e-3


def test_mesa_adds_the_divergence_from_the_averaged_weights_outputs():
    model = cnn()
    variant = sam.mesa(weight=0.8, tau=2.0, decay=0.7, start_epoch=-1)
    optimizer = ready(model, variant, torch.optim.SGD(model.parameters(), lr=0.1))
    start = weights(model)
    step(optimizer, batch(0))
    after = weights(model)
    average = [0.7 * a + 0.3 * b for a, b in zip(start, after, strict=True)]
    assert furthest(optimizer.slots["loss_term"]["average"].values(), average) < 1e-14
    b = batch(1)

    def outputs(values):
        with torch.no_grad():
            for p, w in zip(model.parameters(), values, strict=True):
                p.copy_(w)
        return model(b[0])

    past = outputs(average).detach()
    logits = outputs(after)
    p, q = (past / 2).softmax(1), (logits / 2).log_softmax(1)
    term = 0.8 * 4 * (p * (p.log() - q)).sum(1).mean()
    loss = nn.functional.cross_entropy(logits, b[1]) + term
    expected = torch.autograd.grad(loss, list(model.parameters()))
    step(optimizer, b)
    assert furthest([p.grad for p in model.parameters()], expected) < 1e-12


def test_m_sharpness_averages_the_descent_gradients_of_the_micro_batches():
    from landscape.sam.evaluate import SameBatch

    def gradient(b):
        model = cnn()
        optimizer = ready(model, sam.sam(0.2), torch.optim.SGD(model.parameters(), lr=0.0))
        step(optimizer, b)
        return [p.grad for p in model.parameters()]

    b = batch()
    parts = [gradient(tuple(t[i : i + 8] for t in b)) for i in (0, 8)]
    model = cnn()
    variant = dataclasses.replace(sam.sam(0.2), evaluate=SameBatch(micro_batches=2))
    optimizer = ready(model, variant, torch.optim.SGD(model.parameters(), lr=0.0))
    step(optimizer, b)
    mean = [(a + c) / 2 for a, c in zip(*parts, strict=True)]
    assert furthest([p.grad for p in model.parameters()], mean) < 1e-13
