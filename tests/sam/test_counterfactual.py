"""What a variant would perturb here, asked of a model that must not notice."""

import pytest
import torch

from landscape import LandscapeError, sam, seeds
from tests.sam_models import (
    batch,
    cnn,
    furthest,
    losses_of,
    model_for,
    ready,
    same,
    step,
    variants,
    weights,
)


@pytest.mark.parametrize("name", sam.recipes())
def test_the_model_does_not_notice(name):
    model = model_for(name)
    losses = losses_of(model, with_logits="logits" in variants()[name].needs)
    losses_of(model)(batch()).mean().backward()
    before = weights(model)
    grads = [p.grad for p in model.parameters()]
    copies = [g.clone() for g in grads if g is not None]
    buffers = [b.clone() for b in model.buffers()]
    rng = torch.get_rng_state()
    made = sam.perturb(variants()[name], model, losses, batch(1), seed=0)
    assert same(before, weights(model))
    assert same(buffers, model.buffers())
    assert all(p.grad is g for p, g in zip(model.parameters(), grads, strict=True))
    assert same(copies, [g for g in grads if g is not None])
    assert torch.equal(rng, torch.get_rng_state())
    assert model.training
    assert set(made.e) == {n for n, p in model.named_parameters() if p.requires_grad}
    again = sam.perturb(variants()[name], model, losses, batch(1), seed=0)
    assert same(made.e.values(), again.e.values())


FIRST = (
    "sam", "asam", "zsharp", "sam_on", "topk_gradient", "lagnp", "focal_sam", "bisam",
    "obf_sam", "functional_sam", "fisher_sam", "vasso", "lesam", "sagm", "xsam", "eigen_sam",
    "rsam", "bsam",
)  # fmt: skip


@pytest.mark.parametrize("name", FIRST)
def test_it_is_what_the_next_step_perturbs(name):
    model = cnn()
    optimizer = ready(model, variants()[name])
    losses = losses_of(model, with_logits="logits" in variants()[name].needs)
    optimizer.generator.set_state(seeds.generator(0, purpose="sam").get_state())
    made = optimizer.counterfactual(losses, batch())
    step(optimizer, batch())
    taken = optimizer.perturbation
    assert same(made.e.values(), taken.e.values())
    assert same(made.mask.values(), taken.mask.values())
    torch.testing.assert_close(made.loss_clean, taken.loss_clean, rtol=0, atol=0)
    if name != "focal_sam":  # whose step reports the weighted loss there
        torch.testing.assert_close(made.loss_perturbed, taken.loss_perturbed, rtol=0, atol=0)
    torch.testing.assert_close(made.norm, taken.norm, rtol=1e-14, atol=0)
    if name not in (
        "sam_on",
        "lagnp",
        "functional_sam",
        "focal_sam",
    ):  # one of whose passes computes less in training
        torch.testing.assert_close(made.cosine, taken.cosine, rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", ["fsam", "ssam_f", "ssam_d", "async_sam"])
def test_live_state_is_used_and_left_alone(name):
    model = cnn()
    optimizer = ready(model, variants()[name])
    for t in range(3):
        step(optimizer, batch(t))
    made = optimizer.counterfactual(losses_of(model), batch(3))
    made = optimizer.counterfactual(losses_of(model), batch(3))
    step(optimizer, batch(3))
    assert same(made.e.values(), optimizer.perturbation.e.values())
    assert made.note == "live state"


def test_ssam_f_without_state_takes_a_fresh_fisher_of_the_batch():
    model = cnn()
    made = sam.perturb(sam.ssam_f(0.1, sparsity=0.5), model, losses_of(model), batch(), seed=0)
    live = sum(int(m.sum()) for m in made.mask.values())
    total = sum(m.numel() for m in made.mask.values())
    assert live == int(total * 0.5)
    assert 0 < float(made.norm) < 0.1


def test_another_variant_at_the_same_place():
    model = cnn()
    optimizer = ready(model, sam.fsam(0.1))
    step(optimizer, batch())
    made = optimizer.counterfactual(losses_of(model), batch(), variant=sam.sam(0.2))
    plain = sam.perturb(sam.sam(0.2), model, losses_of(model), batch(), seed=5)
    assert same(made.e.values(), plain.e.values())


def test_weights_come_back_when_the_losses_raise_at_the_perturbed_point():
    model = cnn()
    before, calls = weights(model), []

    def losses(b):
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("at w + e")
        return losses_of(model)(b)

    with pytest.raises(RuntimeError, match="at w \\+ e"):
        sam.perturb(sam.sam(1.0), model, losses, batch(), seed=0)
    assert same(before, weights(model))
    assert all(p.grad is None for p in model.parameters())


def test_shares_and_densities_describe_e():
    model = cnn()
    made = sam.perturb(sam.zsharp(0.3, percentile=0.9), model, losses_of(model), batch(), seed=0)
    total = sum(e.square().sum() for e in made.e.values())
    for name, e in made.e.items():
        torch.testing.assert_close(made.energy_share[name], e.square().sum() / total)
        assert float(made.density[name]) == pytest.approx(float(made.mask[name].double().mean()))
        assert bool((e[~made.mask[name]] == 0).all())
    g1 = torch.cat([g.reshape(-1) for g in made.g1])
    g2 = torch.cat([g.reshape(-1) for g in made.g2])
    expected = torch.nn.functional.cosine_similarity(g1, g2, dim=0)
    torch.testing.assert_close(made.cosine, expected)
    assert made.rho == 0.3


def test_a_step_without_a_climb_has_nothing_perturbed():
    model = cnn()
    optimizer = ready(model, sam.sgd())
    step(optimizer, batch())
    p = optimizer.perturbation
    assert float(p.norm) == 0
    assert not any(m.any() for m in p.mask.values())
    assert torch.equal(p.loss_clean, p.loss_perturbed)
    assert bool(p.cosine.isnan())
    assert furthest(p.e.values(), [torch.zeros(())] * 9) == 0
    assert not p.climbed


def test_losses_that_cannot_be_called_are_named():
    model = torch.nn.Linear(3, 2)
    with pytest.raises(LandscapeError, match=r"losses='causal_lm' cannot be called"):
        sam.perturb(sam.sam(0.05), model, "causal_lm", torch.zeros(4, 3), seed=0)
