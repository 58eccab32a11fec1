"""Masks asked of a variant are those that its optimizer uses at that step, for every variant."""

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from landscape import EmpiricalRisk, LandscapeError, measure, results, sam, seeds
from landscape.measure.perturbations.counterfactual import Counterfactual
from landscape.sam import schedule
from tests.sam_models import batch, cnn, ready, same, step, variants

DRAWS = 11


NEVER = ("sgd", "saf", "mesa")  # no perturbation: the base optimizer, or terms of the loss
# What a risk does not hold: momentum of the base optimizer, logits of the loss term.
BEYOND = ("msam",)
# Their ascent reads labels or outputs of a batch, or adapters of the model.
REFUSED = ("focal_sam", "bisam", "obf_sam", "flat_lora")


def after_steps(name, seed=4):
    """An optimizer some steps into its training, and what `measure` says of its next batch."""
    model = cnn()
    optimizer = ready(model, variants()[name])
    for t in range(10 if name == "looksam" else 3):  # which climbs every tenth step
        step(optimizer, batch(t))
    x, y, _ = batch(3, size=40)
    risk = EmpiricalRisk(model, nn.CrossEntropyLoss(), (x, y))
    here = Counterfactual(risk, risk.theta, batch_size=16, bn="batch", seed=seed)
    rows = here.rows
    return optimizer, here, (x[rows], y[rows], torch.arange(16))


@pytest.mark.parametrize("name", [name for name in sam.recipes() if name not in NEVER + REFUSED])
def test_masks_and_perturbation_are_those_of_the_next_step(name):
    optimizer, here, now = after_steps(name)
    # What was drawn is part of the question: both draw from one seed.
    made = here.perturb(optimizer.variant, state=optimizer.slots, seed=DRAWS)
    optimizer.generator.set_state(seeds.generator(DRAWS, purpose="sam").get_state())
    optimizer.variant = replace(optimizer.variant, gate=schedule.always)  # where, not whether
    step(optimizer, now)
    taken = optimizer.perturbation
    assert taken.climbed
    assert same(made.mask.values(), taken.mask.values())
    if name not in BEYOND:
        pairs = zip(made.e.values(), taken.e.values(), strict=True)
        assert all(torch.allclose(a, b, rtol=1e-9, atol=1e-15) for a, b in pairs)


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_risk_cannot_offer_is_refused_by_name(name):
    x, y, _ = batch(3, size=40)
    risk = EmpiricalRisk(cnn(), nn.CrossEntropyLoss(), (x, y))
    here = Counterfactual(risk, risk.theta, batch_size=16, bn="batch", seed=4)
    with pytest.raises(LandscapeError, match=r"labels|outputs|adapters"):
        here.perturb(variants()[name])


@pytest.mark.parametrize("name", NEVER)
def test_variants_without_a_climb_perturb_nothing(name):
    optimizer, _, now = after_steps(name)
    step(optimizer, now)
    assert not optimizer.perturbation.climbed
    assert not any(bool(mask.any()) for mask in optimizer.perturbation.mask.values())


def radius_ratio(variant, **options):
    model = cnn()
    x, y, _ = batch(3, size=40)
    risk = EmpiricalRisk(model, nn.CrossEntropyLoss(), (x, y))
    ds = measure.perturbation(
        risk, risk.theta, variant=variant, batch_size=40, bn="eval", seed=0, **options
    )
    return risk, ds


@pytest.mark.parametrize("sparsity", [0.3, 0.9])
def test_sparse_sam_keeps_less_than_its_radius(sparsity):
    """e = m rho g/‖g‖ of the whole gradient: ‖e‖/rho is the root of the energy in the mask."""
    for variant in (
        sam.ssam_f(0.1, sparsity=sparsity, num_samples=40),
        sam.ssam_d(0.1, sparsity=sparsity),
    ):
        risk, ds = radius_ratio(variant)
        g = risk.gradient(risk.theta)
        here = Counterfactual(risk, risk.theta, batch_size=40, bn="eval", seed=0)
        mask = here.flat_mask(here.perturb(variant))
        share = float(g[mask].square().sum() / g.square().sum())
        assert float(ds["radius_ratio"]) == pytest.approx(math.sqrt(share), rel=1e-5)
        assert float(ds["radius_ratio"]) < 1
        assert float(ds["total_density"]) == pytest.approx(1 - sparsity, abs=0.01)


def test_zsharps_released_norm_has_a_radius_of_root_k_plus_s1():
    """K tensors of two axes or more are scaled to rho each, the others by the whole gradient."""
    for percentile in (0.5, 0.95):
        variant = sam.zsharp(0.05, percentile=percentile, norm_scope="tensor")
        risk, ds = radius_ratio(variant)
        g = risk.gradient(risk.theta)
        tensors = risk.layout.tensors
        wide = sum(t.ndim > 1 for t in tensors)
        one_d = sum(float(g[t.start : t.stop].square().sum()) for t in tensors if t.ndim == 1)
        expected = math.sqrt(wide + one_d / float(g.square().sum()))
        assert float(ds["radius_ratio"]) == pytest.approx(expected, rel=1e-6)
    dense = np.where(ds["ndim"] > 1, 0.05, 1.0)
    np.testing.assert_allclose(ds["density"], dense, atol=0.02)


class Root(nn.Module):
    """A tensor whose gradient is infinite at 0, and one that is never reached (None)."""

    def __init__(self):
        super().__init__()
        self.fine = nn.Linear(3, 2, dtype=torch.float64)
        self.bad = nn.Parameter(torch.zeros(2, dtype=torch.float64))
        self.unreached = nn.Linear(2, 2, dtype=torch.float64)

    def forward(self, x):
        return self.fine(x) + self.bad.sqrt()


FILTER = sam.zsharp(0.1, percentile=0.5)
TWO = {"a": sam.sam(0.1), "b": FILTER}
ASKED = {
    "perturbation": {"variant": sam.sam(0.1)},
    "perturbation_controls": {"variant": FILTER},
    "perturbation_cosines": {"variants": TWO},
    "mask_overlap": {"variants": TWO},
    "batch_overlap": {"variants": {"b": FILTER}, "batch_size": 4, "num_batches": 2},
}


@pytest.mark.parametrize("name", ASKED)
def test_gradients_that_are_not_finite_are_refused_and_none_is_zero(name):
    x, y = torch.arange(24.0).double().view(8, 3).sin(), torch.arange(8) % 2
    function = getattr(measure, name)
    risk = EmpiricalRisk(Root(), nn.CrossEntropyLoss(), (x, y))
    with pytest.raises(LandscapeError, match="gradient of bad has 2 NaN or infinite values of 2"):
        function(risk, risk.theta, seed=0, **ASKED[name])
    sound = risk.theta
    bad = next(t for t in risk.layout.tensors if t.name == "bad")
    sound[bad.start : bad.stop] = 1.0
    ds = function(risk, sound, seed=0, **ASKED[name])
    if "energy_share" in ds:
        assert (ds["energy_share"].sel(tensor="unreached.weight") == 0).all()


# --- one BatchNorm mode for all variants --------------------------------------------------------


def normed(seed=0):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    model = model.double()
    model[1].running_mean += 1.5
    model[1].running_var *= 3.0
    x, y = torch.randn(12, 6, dtype=torch.float64), torch.randint(0, 3, (12,))
    return model, x, y


def mask_by_hand(model, x, y, mode, density):
    """The largest squared gradients of single examples; of a batch with all of it in each pass."""
    model = copy.deepcopy(model).train(mode == "batch")
    total = [torch.zeros_like(p) for p in model.parameters()]
    for i in range(len(y)):
        out = model(x)[i : i + 1] if mode == "batch" else model(x[i : i + 1])
        loss = nn.functional.cross_entropy(out, y[i : i + 1])
        for t, g in zip(total, torch.autograd.grad(loss, list(model.parameters())), strict=True):
            t += g * g
    flat = torch.cat([t.flatten() for t in total])
    chosen = torch.zeros_like(flat, dtype=torch.bool)
    chosen[flat.topk(int(len(flat) * density)).indices] = True
    return chosen


@pytest.mark.parametrize("mode", ["batch", "eval"])
def test_the_fisher_mask_is_asked_in_the_batchnorm_mode_of_the_comparison(mode):
    """Statistics of the batch and running ones pick other coordinates; each is that of its mode."""
    model, x, y = normed()
    risk = EmpiricalRisk(model, nn.CrossEntropyLoss(), (x, y), dtype=torch.float64)
    here = Counterfactual(risk, risk.theta, batch_size=12, bn=mode, seed=0)
    made = here.perturb(sam.ssam_f(rho=0.1, sparsity=0.7, num_samples=12))
    expected = mask_by_hand(model, x, y, mode, 0.3)
    assert torch.equal(here.flat_mask(made), expected)
    other = mask_by_hand(model, x, y, "eval" if mode == "batch" else "batch", 0.3)
    assert not torch.equal(expected, other)


@pytest.mark.parametrize("bn", ["eval", "full_batch"])
def test_what_is_compared_with_curvature_is_asked_in_the_mode_of_the_curvature(bn):
    model, x, y = normed()
    risk = EmpiricalRisk(model, nn.CrossEntropyLoss(), (x, y), bn=bn, dtype=torch.float64)
    ds = measure.alignment(risk, risk.theta, variants={"sam": sam.sam(0.1)}, k=1, seed=0,
                           batch_size=12)  # fmt: skip
    # Of all examples at once, SAM's perturbation is the gradient of the risk itself.
    captured = ds.captured.sel(direction=["gradient", "sam"]).values
    assert captured[0] == pytest.approx(captured[1], rel=1e-9)
    said = results.provenance(ds)
    assert said["batch_bn"] == ("eval" if bn == "eval" else "batch")
    found = measure.enrichment(
        risk, risk.theta, variants={"zsharp": sam.zsharp(0.1)}, k=1, num_probes=2, seed=0
    )
    assert bool(np.isnan(found.enrichment_fisher).all()) == (bn == "full_batch")


def test_the_mode_of_a_mask_comparison_is_its_provenance():
    model, x, y = normed()
    risk = EmpiricalRisk(model, nn.CrossEntropyLoss(), (x, y), dtype=torch.float64)
    variants = {"zsharp": sam.zsharp(0.1), "ssam_f": sam.ssam_f(0.1)}
    for mode in ("batch", "eval"):
        ds = measure.mask_overlap(risk, risk.theta, variants=variants, bn=mode, seed=0)
        assert results.provenance(ds)["bn"] == mode


def test_one_example_has_no_statistics_of_a_batch():
    model, x, y = normed()
    risk = EmpiricalRisk(model, nn.CrossEntropyLoss(), (x, y), dtype=torch.float64)
    with pytest.raises(LandscapeError, match="batch_size=1 was asked with bn='batch'"):
        Counterfactual(risk, risk.theta, batch_size=1, bn="batch", seed=0)


def test_variants_share_one_gradient_of_their_rows():
    """Asked after one another they perturb as when asked alone, and one gradient is paid for."""
    x, y, _ = batch(3, size=40)
    risk = EmpiricalRisk(cnn(), nn.CrossEntropyLoss(), (x, y))
    chosen = {name: variants()[name] for name in ("zsharp", "asam", "ssam_d", "esam", "sam_on")}

    def here():
        return Counterfactual(risk, risk.theta, batch_size=16, bn="batch", seed=4)

    before, together = risk.cost, here()
    found = {name: together.perturb(variant) for name, variant in chosen.items()}
    assert risk.cost - before == pytest.approx(16 / 40)
    for name, variant in chosen.items():
        alone = here().perturb(variant)
        assert same(found[name].e.values(), alone.e.values())
        assert same(found[name].mask.values(), alone.mask.values())
    other = together.batches(2)[1]
    assert same(together.perturb(FILTER, rows=other).g1, here().perturb(FILTER, rows=other).g1)
    assert not same(together.perturb(FILTER).g1, together.perturb(FILTER, rows=other).g1)


def test_what_was_asked_alone_is_what_sam_perturbs():
    """Without a pass at w + e: its loss and gradient are unknown, all else is the same."""
    x, y, _ = batch(3, size=40)
    risk = EmpiricalRisk(cnn(), nn.CrossEntropyLoss(), (x, y))
    here = Counterfactual(risk, risk.theta, batch_size=16, bn="batch", seed=4)
    made = here.perturb(FILTER)
    whole = sam.perturb(FILTER, here.model, here.losses, here.rows, seed=4)
    assert same(made.e.values(), whole.e.values())
    assert math.isnan(float(made.loss_perturbed))
    assert all(g is None for g in made.g2)
    moved = risk.theta + here.flat(made.e)
    assert float(here.loss_at(moved)) == pytest.approx(float(whole.loss_perturbed), rel=1e-6)
