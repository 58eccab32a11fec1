"""Slots of several variants together, controls beside their variant, and memory lent and reused."""

import dataclasses
import math

import pytest
import torch
from torch import nn

from landscape import sam
from landscape.sam import corrections, finite, schedule, sources
from landscape.sam.geometry import Geometry
from landscape.sam.selectors import NormLayers, TopLayers, ZScore, above_quantile
from tests.sam_models import batch, closure_of, cnn, furthest, ready, reset, same, step
from tests.sam_models import weights as weights_of

NORMS = [False, True, True, False, False, True, True, False, False]  # of the tensors of `cnn`


def after(variant, steps=2, **options):
    model = cnn()
    optimizer = ready(model, variant, **options)
    for t in range(steps):
        step(optimizer, batch(t))
    return optimizer


def norm_of(tensors) -> float:
    return math.sqrt(sum(float(t.square().sum()) for t in tensors))


# ------------------------------------------------------------------------- what composes, and how


def test_zsharp_over_friendly_sam_filters_the_noise_and_not_the_gradient():
    friendly = sources.Friendly(1.0, 0.6)
    variant = dataclasses.replace(sam.zsharp(0.1, percentile=0.8), source=friendly)
    optimizer = after(variant, 1)
    average = {k: v.clone() for k, v in optimizer.slots["source"]["ema"].items()}
    step(optimizer, batch(1))
    p = optimizer.perturbation
    differ = 0
    for name, g, mask in zip(p.names, p.g1, p.masks, strict=True):
        if g.ndim > 1:
            u = g - average[name]
            assert torch.equal(mask, above_quantile((u - u.mean()).abs(), 0.8))
            differ += int((mask != above_quantile((g - g.mean()).abs(), 0.8)).sum())
    assert differ > 10
    assert float(p.norm) == pytest.approx(0.1, rel=1e-9)


def test_zsharp_over_asam_filters_before_the_metric_and_each_tensor_has_radius_rho_in_it():
    geometry = Geometry(metric="elementwise", eta=0.01, scope="tensor")
    variant = dataclasses.replace(sam.zsharp(0.07, percentile=0.7), geometry=geometry)
    model = cnn()
    optimizer = ready(model, variant)
    before = weights_of(model)
    step(optimizer, batch())
    p = optimizer.perturbation
    for w, g, e, mask in zip(before, p.g1, p.perturbed, p.masks, strict=True):
        if w.ndim > 1:
            assert torch.equal(mask, above_quantile((g - g.mean()).abs(), 0.7))
            assert norm_of([e / (w.abs() + 0.01)]) == pytest.approx(0.07, rel=1e-9)


@pytest.mark.parametrize("correction", [corrections.SurrogateGap(0.4), corrections.Stable()])
def test_a_global_correction_over_selected_layers_takes_its_products_over_them_alone(correction):
    selector = TopLayers(count=2)
    variant = dataclasses.replace(sam.lagnp(0.1), selector=selector, correction=correction)
    optimizer = after(variant, 1)
    p = optimizer.perturbation
    on = [i for i, e in enumerate(p.perturbed) if e is not None]
    assert 0 < len(on) < len(p.names)
    g1, g2 = ([g[i] for i in on] for g in (p.g1, p.g2))
    n1, n2 = norm_of(g1), norm_of(g2)
    if isinstance(correction, corrections.Stable):
        expected = [b * (n1 / n2) for b in g2]
    else:
        cosine = sum(float((a * b).sum()) for a, b in zip(g1, g2, strict=True)) / (n1 * n2)
        expected = [
            b - 0.4 * (a - cosine * n1 * b / n2) for a, b in zip(g1, g2, strict=True)
        ]  # fmt: skip
    parameters = optimizer.trained.parameters
    assert furthest([parameters[i].grad for i in on], expected) < 1e-10
    off = [i for i in range(len(p.names)) if i not in on]
    assert same([parameters[i].grad for i in off], [p.g1[i] for i in off])


@pytest.mark.parametrize(
    "change",
    [
        {"source": sources.Friendly(1.0, 0.9)},
        {"correction": corrections.SurrogateGap(0.4)},
        {"correction": corrections.Stable()},
        {"correction": corrections.Blend(0.8)},
    ],
    ids=["fsam", "gsam", "stable_sam", "gnp"],
)
def test_sam_on_with_others_perturbs_norm_layers_at_radius_rho(change):
    optimizer = after(dataclasses.replace(sam.sam_on(0.2), **change))
    p = optimizer.perturbation
    assert [e is not None for e in p.perturbed] == NORMS
    assert float(p.norm) == pytest.approx(0.2, rel=1e-9)


def test_late_and_tied_radii_compose_with_a_filter():
    variant = sam.late(sam.with_radius(sam.zsharp(0.1), schedule.Cosine(0.4, 0.0)), 2)
    model = cnn()
    optimizer = ready(model, variant)
    norms = []
    for epoch in range(4):
        optimizer.begin_epoch(epoch, 4)
        step(optimizer, batch(epoch))
        norms.append(float(optimizer.perturbation.norm))
    cosine = [0.4 * (1 + math.cos(math.pi * t / 4)) / 2 for t in range(4)]
    assert norms == pytest.approx([0.0, 0.0, *cosine[2:]], rel=1e-9)


# ------------------------------------------------------------------------------------- controls


@pytest.mark.parametrize("make", [sam.random_mask, sam.topk_gradient])
@pytest.mark.parametrize("equal", ["radius", "loss_increase"])
@pytest.mark.parametrize("one_d", ["none", "dense"])
def test_controls_with_and_without_tensors_of_one_dimension(make, equal, one_d):
    optimizer = after(make(0.06, density=0.1, one_d=one_d, equal=equal), 1)
    p = optimizer.perturbation
    for shape, density in zip(p.shapes, p.density.values(), strict=True):
        size = math.prod(shape)
        full = float(one_d == "dense")
        expected = max(1, round(0.1 * size)) / size if len(shape) > 1 else full
        assert float(density) == pytest.approx(expected, rel=1e-6)
    if equal == "radius":
        assert float(p.norm) == pytest.approx(0.06, rel=1e-9)
    else:
        gain = sum(float((g * e).sum()) for g, e in zip(p.g1, p.e.values(), strict=True))
        assert gain == pytest.approx(0.06 * norm_of(p.g1), rel=1e-9)


def test_of_all_masks_of_one_density_the_largest_gradients_need_the_smallest_radius():
    """At equal first-order loss increase; a random mask of the same density needs a larger one."""
    radii = {
        make.__name__: float(
            after(make(0.06, density=0.1, equal="loss_increase"), 1).perturbation.norm
        )
        for make in (sam.topk_gradient, sam.random_mask)
    }
    assert 0.06 < radii["topk_gradient"] < radii["random_mask"]


# --------------------------------------------------------------------- memory, lent and given back


@pytest.fixture
def large(monkeypatch):
    """Treat the small tensors of these tests as large ones."""
    monkeypatch.setattr(finite, "SMALL", 0)


@pytest.mark.parametrize("variant", [sam.sam(0.1), sam.fsam(0.1), sam.zsharp(0.1)],
                         ids=["sam", "fsam", "zsharp"])  # fmt: skip
@pytest.mark.parametrize("failing_call", [1, 2])
def test_weights_written_over_a_gradient_come_back_whatever_is_raised(variant, failing_call, large):
    model = cnn()
    optimizer = ready(model, variant, keep_perturbation=False)
    step(optimizer, batch())
    before, addresses = weights_of(model), [p.data_ptr() for p in model.parameters()]
    calls = []

    def closure():
        calls.append(weights_of(model))
        if len(calls) == failing_call:
            raise KeyboardInterrupt
        return closure_of(model, batch(1))()

    with pytest.raises(KeyboardInterrupt):
        optimizer.step(closure)
    assert same(before, weights_of(model))
    assert addresses == [p.data_ptr() for p in model.parameters()]
    if failing_call == 2:
        assert furthest(calls[1], before) > 1e-3
    step(optimizer, batch(1))


def test_a_perturbation_that_somebody_holds_stays_as_it_was(large):
    """Its room is not lent to the next step; e is multiplied out only now."""
    model = cnn()
    optimizer = ready(model, sam.fsam(0.1))
    for t in range(2):
        step(optimizer, batch(t))
    other = cnn()
    twin = ready(other, sam.fsam(0.1))
    for t in range(2):
        step(twin, batch(t))
    expected = list(twin.perturbation.e.values())
    held = optimizer.perturbation
    for t in range(2, 5):
        step(optimizer, batch(t))
    assert same(expected, held.e.values())
    assert not same(expected, optimizer.perturbation.e.values())


class Reweighted(nn.BatchNorm2d):
    """A layer of somebody's own, which may do with its statistics what it likes."""

    def forward(self, x):
        return super().forward(x) * 1.0


@pytest.mark.parametrize(
    "norm",
    [
        lambda: nn.BatchNorm2d(4),
        lambda: nn.BatchNorm2d(4, momentum=None),
        lambda: nn.InstanceNorm2d(4, affine=True, track_running_stats=True),
        lambda: Reweighted(4),
    ],
    ids=["BatchNorm", "cumulative", "InstanceNorm", "own"],
)
def test_the_second_pass_leaves_no_trace_in_running_statistics(norm):
    """BatchNorm is told to keep none, others are put back; after an exception too."""

    def make():
        return reset(nn.Sequential(nn.Conv2d(1, 4, 3), norm(), nn.Flatten(), nn.Linear(256, 5)))

    plain, climbed = make(), make()
    closure_of(plain, batch())()
    optimizer = ready(climbed, sam.sam(0.5))
    step(optimizer, batch())
    assert same(plain.buffers(), climbed.buffers())
    kept, calls = [b.clone() for b in climbed.buffers()], []

    def fails():
        calls.append(1)
        loss = closure_of(climbed, batch())()
        if len(calls) == 2:
            raise RuntimeError("stopped")
        return loss

    with pytest.raises(RuntimeError, match="stopped"):
        optimizer.step(fails)
    assert climbed[1].track_running_stats
    assert not same(kept, climbed.buffers())  # the first pass counted
    climbed.eval()
    kept = [b.clone() for b in climbed.buffers()]
    step(optimizer, batch())
    assert same(kept, climbed.buffers())


def test_norm_layers_alone_are_what_the_complement_leaves_out():
    whole = dataclasses.replace(sam.sam(0.1), selector=NormLayers(complement=True))
    p = after(whole, 1).perturbation
    assert [e is None for e in p.perturbed] == NORMS
    filtered = dataclasses.replace(sam.sam_on(0.1, no_norm=True), selector=ZScore(0.9, "none"))
    assert [e is None for e in after(filtered, 1).perturbation.perturbed] == [
        w.ndim == 1 for w in cnn().parameters()
    ]
