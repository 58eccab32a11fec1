"""Every refusal of landscape.sam: what was asked, what is possible, what to do."""

import dataclasses
import math

import pytest
import torch
from torch import nn

from landscape import sam
from landscape.errors import LandscapeError
from landscape.sam import schedule, sources
from landscape.sam.corrections import AddClean
from landscape.sam.evaluate import SameBatch
from landscape.sam.selectors import Intersection, Kinds, NormLayers, ZScore
from landscape.sam.sparse import FisherMask
from tests.sam_models import batch, closure_of, cnn, losses_of, ready, same, sgd, step, weights

NORMS = NormLayers()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: sam.sam(-0.1), r"rho=-0.1 was asked; a radius is finite and rho >= 0"),
        (lambda: sam.sam(math.nan), r"rho=nan was asked"),
        (lambda: sam.zsharp(math.inf), r"rho=inf was asked"),
        (lambda: sam.sam("0.1"), r"rho='0.1' is not a number"),
        (lambda: sam.zsharp(percentile=95), r"percentile=95 .* did you mean percentile=0.95\?"),
        (lambda: sam.zsharp(percentile=-0.1), r"percentile=-0.1 is outside \[0, 1\)"),
        (lambda: sam.zsharp(percentile=math.nan), r"percentile=nan is outside"),
        (lambda: sam.zsharp(norm_scope="layer"), r"norm_scope='layer' is unknown.*'tensor'"),
        (lambda: sam.zsharp(one_d="x"), r"one_d='x' is unknown; choose one of 'dense', 'none'"),
        (lambda: sam.ssam_f(sparsity=1.2), r"sparsity=1.2 is outside"),
        (lambda: sam.ssam_d(sparsity=-1), r"sparsity=-1 is outside"),
        (lambda: sam.ssam_d(growth_strategy="best"), r"growth_strategy='best' is unknown"),
        (lambda: sam.ssam_f(num_samples=0), r"num_samples=0 was asked; give a whole number >= 1"),
        (lambda: sam.random_mask(density=0), r"density=0 is outside \(0, 1\]"),
        (lambda: sam.topk_gradient(density=5), r"density=5 .*did you mean density=0.05"),
        (lambda: sam.asam(bias_metric="no"), r"bias_metric='no' is unknown.*'one', 'abs'"),
        (lambda: sam.asam(eta=-1.0), r"eta=-1.0 was asked.*eta >= 0"),
        (lambda: sam.fsam(ema_order="x"), r"ema_order='x' is unknown.*'code', 'paper'"),
        (lambda: sam.sam_on(p=3), r"p=3.0 is unknown; choose one of 2.0, inf"),
        (lambda: sam.sam_on(metric="x"), r"metric='x' is unknown.*'layerwise'"),
        (lambda: sam.gsam(rho_min=0.1), r"give both to tie rho"),
        (lambda: sam.wsam(gamma=1.0), r"gamma=1 makes WSAM's weight .* infinite"),
        (lambda: sam.looksam(k=0), r"k=0 was asked"),
        (lambda: sam.lagnp(num_layers=2, fraction=0.5), r"num_layers=2 and fraction=0.5 .*one of"),
        (lambda: sam.focal_sam(class_counts=()), r"class_counts=\(\) were given"),
        (lambda: schedule.WithLearningRate(0.2, 0.1, 0.0), r"lr_max=0.0 must exceed lr_min=0.0"),
        (lambda: sam.window(sam.sam(), 3, 3), r"start=3 and end=3 leave no epoch"),
        (lambda: sam.window(sam.sam(), unit="day"), r"unit='day' is unknown"),
        (lambda: sam.micro_batched(sam.fsam(), 2), r"'fsam' carries gradients from step to step"),
        (lambda: sam.micro_batched(sam.esam(), 2), r"'esam' chooses its own examples or tensors"),
        (lambda: SameBatch(micro_batches=0), r"micro_batches=0"),
        (lambda: SameBatch(off="x"), r"off='x' is unknown"),
        (lambda: sam.make("zharp"), r"recipe 'zharp' is unknown; choose one of sgd, sam, .*zsharp"),
        (
            lambda: sam.make("zsharp", {"alpha": 0.9}),
            r"recipe 'zsharp' has no option alpha; its options are rho, percentile, norm_scope",
        ),
        (lambda: sam.make("sgd", {"rho": 1}), r"recipe 'sgd' has no option rho; it has no options"),
        (lambda: sam.make("saf"), r"recipe 'saf' needs a value for num_examples"),
        (lambda: sam.every(sam.sam(), 2.5), r"k=2.5 was asked; give a whole number >= 1"),
        (lambda: sam.late(sam.sam(), -1), r"start=-1 was asked; give a whole number >= 0"),
        (lambda: sam.sam_on(start_epoch=5, end_epoch=2), r"start=5 and end=2 leave no epoch"),
        (lambda: sam.micro_batched(sam.sam(), 2.5), r"micro_batches=2.5 was asked"),
        (lambda: sam.zsharp(percentile=1.0), r"percentile=1.0 is outside \[0, 1\)"),
        (lambda: sam.zsharp(percentile="95"), r"percentile='95' is not a number in \[0, 1\)"),
        (lambda: sam.gnp(alpha=1.5), r"alpha=1.5 is outside \[0, 1\]\.$"),
        (lambda: sam.fsam(sigma=math.nan), r"sigma=nan was asked; it must be finite and sigma >="),
        (lambda: sam.looksam(alpha=-1), r"alpha=-1 was asked; it must be finite and alpha >= 0"),
        (lambda: sam.wsam(max_norm=0), r"max_norm=0 was asked; it must be finite and max_norm > 0"),
        (lambda: sam.mesa(tau="1"), r"tau='1' is not a number; give one with tau > 0"),
        (lambda: sam.focal_sam(class_counts=(1, 2), flat_gamma=-1), r"flat_gamma=-1 was asked"),
        (
            lambda: dataclasses.replace(sam.sam(), needs=frozenset({"luck"})),
            r"needs=\['luck'\] of variant 'sam'; one of \['per_example_losses'",
        ),
    ],
)  # fmt: skip
def test_options(make, message):
    with pytest.raises(LandscapeError, match=message):
        make()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"selector": lambda: Intersection((NormLayers(), ZScore()))}, "ZScore leaves 1-D tensors"),
        ({"source": sources.Centred()}, "Centred leaves 1-D tensors .* use sam_on alone"),
        (
            {"selector": lambda: Intersection((FisherMask(), NormLayers()))},
            r"give it within=NormLayers\(\) instead of intersecting",
        ),
    ],
)
def test_degenerate_combinations_are_refused_with_the_reason(change, message):
    with pytest.raises(LandscapeError, match=message):
        dataclasses.replace(
            sam.sam_on(0.1), **{k: v() if k == "selector" else v for k, v in change.items()}
        )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: dataclasses.replace(sam.zsharp(), selector=Intersection((ZScore(), NORMS))),
            "ZScore leaves 1-D tensors as they are",
        ),
        (
            lambda: sam.adaptive(sam.msam()),
            "gate Adaptive is asked after the first pass, .*Momentum",
        ),
        (lambda: sam.adaptive(sam.focal_sam(class_counts=(1, 2))), "ClassWeighted of 'focal_sam'"),
        (lambda: sam.adaptive(sam.sl_sam()), r"SameBatch of 'sl_sam' .*\(sam.window, sam.every\)"),
        (
            lambda: dataclasses.replace(sam.sampa(), gate=lambda point, state: True),
            "needs_g1 = Fal",
        ),
        (
            lambda: dataclasses.replace(sam.gnp(), source=sources.Momentum()),
            "Blend needs what a fir",
        ),
        (
            lambda: dataclasses.replace(sam.lagnp(), source=sources.Momentum()),
            "TopLayers needs what",
        ),
        (
            lambda: dataclasses.replace(
                sam.mesa(), source=sources.Momentum(), gate=schedule.always
            ),
            "AveragedWeights needs what a first pass finds",
        ),
        (
            lambda: sam.with_radius(sam.msam(), schedule.LossBudget(0.1, 0.2)),
            "LossBudget needs what a first pass finds, and Momentum makes none",
        ),
        (
            lambda: dataclasses.replace(sam.sam(), correction=AddClean()),
            "AddClean reads .*SameBatch, which leaves nothing",
        ),
        (
            lambda: dataclasses.replace(
                sam.focal_sam(class_counts=(1, 2)), loss_term=sam.mesa().loss_term
            ),
            "ClassWeighted weighs the examples' losses itself, and AveragedWeights",
        ),
        (
            lambda: dataclasses.replace(sam.esam(), loss_term=sam.mesa().loss_term),
            "AveragedWeights compares with outputs of the whole batch, and LossRise",
        ),
    ],
)
def test_slots_that_cannot_work_together_say_why(make, message):
    with pytest.raises(LandscapeError, match=message):
        make()


def test_kinds_of_norm_layers_alone_are_norm_layers():
    make = lambda *kinds: Intersection((ZScore(), Kinds(kinds)))  # noqa: E731
    with pytest.raises(LandscapeError, match="norm layers have no others"):
        make("norm")
    assert make("norm", "conv")


def test_every_recipe_can_be_made_by_name_with_its_defaults_stated():
    assert sam.make("zsharp", {"rho": 0.1, "percentile": 0.9}) == sam.zsharp(0.1, percentile=0.9)
    assert list(sam.recipes())[:4] == ["sgd", "sam", "asam", "fsam"]


def test_sam_on_needs_norm_layers():
    model = nn.Linear(3, 2)
    optimizer = sam.SAM(model, sgd(model), sam.sam_on(0.1))
    with pytest.raises(
        LandscapeError, match=r"has none by module type .*kinds \['bias', 'linear'\]"
    ):
        optimizer.step(lambda: model(torch.ones(1, 3)).sum())
    model = nn.BatchNorm1d(3)
    optimizer = sam.SAM(model, sgd(model), sam.sam_on(0.1, no_norm=True))
    with pytest.raises(LandscapeError, match="no_norm=True leaves nothing to perturb"):
        optimizer.step(lambda: model(torch.ones(2, 3)).sum())


def test_a_variant_that_selects_nothing_says_so():
    model = nn.Sequential(nn.BatchNorm1d(3))
    optimizer = sam.SAM(model, sgd(model), sam.zsharp(0.1, one_d="none"))
    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))

    def closure():
        loss = model(x).square().mean() + model(x).sum()
        loss.backward()
        return loss

    with pytest.raises(LandscapeError, match=r"'zsharp' selects no tensor .*kinds \['norm'\]"):
        optimizer.step(closure)


def test_closures():
    model = cnn()
    optimizer = ready(model, sam.sam(0.1))
    with pytest.raises(LandscapeError, match=r"must run loss.backward\(\)"):
        optimizer.step(lambda: losses_of(model)(batch()).mean())

    def silent():
        losses_of(model)(batch()).mean().backward()

    with pytest.raises(LandscapeError, match="the closure returned None"):
        optimizer.step(silent)
    with pytest.raises(LandscapeError, match=r"call step\(closure\)"):
        optimizer.step(None)
    with pytest.raises(LandscapeError, match=r"a tensor of shape \(\).*one loss per example"):
        optimizer.step(lambda b: losses_of(model)(b).mean(), batch())
    with pytest.raises(LandscapeError, match=r"losses\(batch\) returned float"):
        optimizer.step(lambda b: 1.0, batch())


@pytest.mark.parametrize(
    ("variant", "message"),
    [
        (sam.esam(0.1), r"'esam' needs per_example_losses.*step\(losses, batch\)"),
        (sam.sampa(0.1), r"'sampa' needs previous_batch"),
        (sam.saf(num_examples=4), r"'saf' needs indices, logits.*\(losses, logits\)"),
        (
            dataclasses.replace(sam.sam(0.1), evaluate=SameBatch(micro_batches=2)),
            r"'sam' needs per_example_losses",
        ),
    ],
)
def test_needs_that_a_closure_cannot_meet(variant, message):
    model = cnn()
    with pytest.raises(LandscapeError, match=message):
        ready(model, variant).step(closure_of(model, batch()))


def test_needs_of_data_epochs_and_outputs():
    model = cnn()
    with pytest.raises(LandscapeError, match=r"'ssam_f' needs fisher_data; call .*set_fisher_data"):
        sam.SAM(model, sgd(model), sam.ssam_f()).step(closure_of(model, batch()))
    with pytest.raises(LandscapeError, match=r"'ssam_d' changes per epoch.*begin_epoch"):
        sam.SAM(model, sgd(model), sam.ssam_d()).step(closure_of(model, batch()))
    optimizer = sam.SAM(model, sgd(model), sam.ssam_d())
    optimizer.begin_epoch(0)
    before = weights(model)
    with pytest.raises(LandscapeError, match="total_epochs"):
        optimizer.step(closure_of(model, batch()))
    assert same(before, weights(model))
    with pytest.raises(
        LandscapeError, match=r"num_samples=128 Fisher examples were asked.*hold 16"
    ):
        step(ready(model, sam.ssam_f(num_samples=128)), batch())
    with pytest.raises(LandscapeError, match=r"let losses\(batch\) return \(losses, logits\)"):
        ready(model, sam.saf(num_examples=16)).step(losses_of(model), batch())
    cosine = dataclasses.replace(sam.sam(0.1), radius=schedule.Cosine(0.1))
    with pytest.raises(LandscapeError, match="cosine radius needs the length"):
        sam.SAM(model, sgd(model), cosine).step(closure_of(model, batch()))
    many = dataclasses.replace(sam.sam(0.1), evaluate=SameBatch(micro_batches=40))
    with pytest.raises(LandscapeError, match="micro_batches=40 were asked of a batch of 16"):
        step(ready(model, many), batch())
    with pytest.raises(LandscapeError, match=r"gamma=0.01 keeps no example of a batch of 16"):
        step(ready(model, sam.esam(0.1, gamma=0.01)), batch())


def test_parameters_of_another_model():
    with pytest.raises(
        LandscapeError, match=r"9 of the base optimizer's 9 parameters do not belong"
    ):
        sam.SAM(cnn(), sgd(cnn()), sam.sam())
    model = cnn().requires_grad_(False)
    with pytest.raises(LandscapeError, match="all 9 tensors of the base optimizer are frozen"):
        sam.SAM(model, sgd(model), sam.sam())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"variant": "zsharp"}, r"a str, not a sam.Variant; make it: sam.make\('zsharp', "),
        ({"variant": sam.zsharp}, r"a function, not a sam.Variant; call it: zsharp\(rho=...\)"),
        ({"variant": 0.05}, r"a float, not a sam.Variant; make one, as sam.sam\(rho=0.05\)"),
        ({"base": torch.optim.SGD}, r"the class SGD; make it first: SGD\(model.parameters\(\)"),
        ({"base": nn.Linear(1, 1)}, "the base optimizer given is a Linear; .* torch.optim.Optimi"),
        ({"model": iter(())}, "the model given is a .*nn.Module itself, not its parameters"),
        ({"clip_norm": -1.0}, "clip_norm=-1.0 was asked"),
        ({"scaler": True}, "scaler=True is a bool; give a torch.amp.GradScaler or None"),
        ({"seed": "a"}, "seed='a' was asked; give a whole number >= 0"),
    ],
)
def test_arguments_of_the_wrong_kind(change, message):
    model = cnn()
    given = {"model": model, "base": sgd(model), "variant": sam.sam()} | change
    with pytest.raises(LandscapeError, match=message):
        sam.SAM(**given)


def test_a_sam_around_a_sam_and_epochs_that_are_none():
    model = cnn()
    optimizer = sam.SAM(model, sgd(model), sam.sam())
    with pytest.raises(LandscapeError, match=r"is a SAM optimizer itself; wrap .*optimizer\.base"):
        sam.SAM(model, optimizer, sam.sam())
    with pytest.raises(LandscapeError, match="epoch=-1 was asked; give a whole number >= 0"):
        optimizer.begin_epoch(-1)
    with pytest.raises(LandscapeError, match="total_epochs=0 was asked; give a whole number >= 1"):
        optimizer.begin_epoch(0, 0)


def test_batches_that_lack_what_a_variant_reads():
    model = cnn()
    x, y, indices = batch()
    saf = sam.saf(num_examples=16, start_epoch=-1)
    both = losses_of(model, with_logits=True)
    with pytest.raises(LandscapeError, match=r"indices=2 says .*this batch is a tuple of 2; put"):
        ready(model, saf).step(both, (x, y))
    with pytest.raises(LandscapeError, match=r"names example 16 and num_examples=16 .* 0 to 15"):
        ready(model, saf).step(both, (x, y, indices + 1))
    focal = sam.focal_sam(class_counts=(3, 2, 1))
    with pytest.raises(
        LandscapeError, match="holds class 4 and class_counts has 3 classes, 0 to 2"
    ):
        ready(model, focal).step(losses_of(model), batch())
    named = {"x": x, "y": y.double()}
    with pytest.raises(LandscapeError, match=r"targets='y' says .* keys \['x', 'y'\]; put"):
        ready(model, sam.focal_sam(class_counts=(1,) * 5, targets="y")).step(
            lambda b: nn.functional.cross_entropy(model(b["x"]), b["y"].long(), reduction="none"),
            named,
        )
    model.eval()
    with pytest.raises(LandscapeError, match="the batch holds no example"):
        ready(model, sam.sam()).step(losses_of(model), (x[:0], y[:0]))


def test_a_layer_replaced_in_the_model_is_a_changed_parameter_set():
    model = cnn()
    optimizer = ready(model, sam.sam(0.1))
    step(optimizer, batch())
    model[7] = nn.Linear(54, 5).double()
    before = weights(model)
    with pytest.raises(LandscapeError, match=r"'7.weight' .* is no longer in the model \(2 such"):
        step(optimizer, batch())
    assert same(before, weights(model))
    model.requires_grad_(False)
    for p in optimizer.trained.parameters:
        p.requires_grad_(False)
    with pytest.raises(LandscapeError, match="all 9 tensors of the base optimizer are frozen"):
        step(optimizer, batch())


def test_a_tensor_that_the_loss_never_reaches_is_no_error():
    model = cnn()
    model.spare = nn.Linear(2, 2).double()
    optimizer = sam.SAM(model, sgd(model), sam.sam(0.1))
    head = nn.Sequential(*list(model)[:8])
    for t in range(3):
        optimizer.step(losses_of(head), batch(t))
    assert optimizer.known_unused == [9, 10]


def test_a_state_of_another_model_is_no_state_for_a_counterfactual():
    model = cnn()
    optimizer = ready(model, sam.ssam_d(0.1))
    step(optimizer, batch())
    other = nn.Sequential(nn.Flatten(), nn.Linear(100, 5)).double()
    with pytest.raises(LandscapeError, match=r"the state holds '1.weight' .* of another model"):
        sam.perturb(
            sam.ssam_d(0.1), other, losses_of(other), batch(), seed=0, state=optimizer.slots
        )


def test_sam_on_by_name_in_a_model_that_names_no_layer_says_to_match_by_type():
    model = cnn()
    with pytest.raises(LandscapeError, match=r"none by a name .*; use match=\"type\"\.$"):
        step(ready(model, sam.sam_on(0.1, match="name")), batch())


def test_a_changed_parameter_set():
    model = cnn()
    optimizer = ready(model, sam.sam(0.1))
    step(optimizer, batch())
    with pytest.raises(LandscapeError, match=r"1 of .* 10 parameters do not belong"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(1))]})
    with pytest.raises(LandscapeError, match=r"1 of .* 10 parameters do not belong"):
        step(optimizer, batch())


def test_a_group_rho_needs_a_rho_to_relate_to():
    model = cnn()
    base = torch.optim.SGD([{"params": list(model.parameters()), "rho": 0.1}], lr=0.1)
    with pytest.raises(LandscapeError, match="parameter group sets rho and variant 'sgd'"):
        step(ready(model, sam.sgd(), base), batch())


def test_saved_states():
    model = cnn()
    optimizer = ready(model, sam.ssam_d(0.1))
    step(optimizer, batch())
    state = optimizer.state_dict()
    with pytest.raises(
        LandscapeError, match=r"belongs to variant 'ssam_d' and this optimizer runs 'sam'"
    ):
        ready(cnn(), sam.sam(0.1)).load_state_dict(state)
    with pytest.raises(LandscapeError, match="not the state of a SAM optimizer"):
        optimizer.load_state_dict({"state": {}})
    with pytest.raises(LandscapeError, match="has format 9 and this version reads 2"):
        optimizer.load_state_dict(state | {"sam": state["sam"] | {"format": 9}})
    other = nn.Sequential(nn.Conv2d(2, 4, 3, bias=False))
    with pytest.raises(LandscapeError, match=r"'0.weight' of shape \(4, 1, 3, 3\).*another model"):
        sam.SAM(other, sgd(other), sam.ssam_d(0.1)).load_state_dict(state)
    missing = nn.Sequential(nn.Conv2d(1, 4, 3, bias=False))
    with pytest.raises(LandscapeError, match="no such tensor"):
        sam.SAM(missing, sgd(missing), sam.ssam_d(0.1)).load_state_dict(state)


def test_a_mask_of_another_model_or_of_the_wrong_length():
    model = cnn()
    wrong = dataclasses.replace(
        sam.sam(0.1),
        selector=lambda point, u, state: [torch.ones(3, dtype=torch.bool) for _ in u],
    )
    with pytest.raises(LandscapeError, match=r"mask of '0.weight' has shape \(3,\)"):
        step(ready(model, wrong), batch())
    short = dataclasses.replace(sam.sam(0.1), selector=lambda point, u, state: [True])
    with pytest.raises(LandscapeError, match="returned 1 masks for 9 tensors"):
        step(ready(model, short), batch())


def test_there_is_no_perturbation_before_the_first_step_or_when_it_is_not_kept():
    model = cnn()
    optimizer = ready(model, sam.sam(0.1), keep_perturbation=False)
    with pytest.raises(LandscapeError, match="keep_perturbation=False"):
        _ = optimizer.perturbation
    optimizer = ready(model, sam.sam(0.1))
    with pytest.raises(LandscapeError, match="no step has been taken yet"):
        _ = optimizer.perturbation
    with pytest.raises(LandscapeError, match="bn='third' is unknown; choose one of 'first'"):
        sam.SAM(model, sgd(model), sam.sam(), bn="third")


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        (lambda z: z.clone(), "not made of the outputs"),
        (lambda z: z[:, 0], "outputs, and of shape"),
        (lambda z: None, "outputs"),
    ],
)
def test_outputs_that_functional_sam_cannot_use(outputs, message):
    model = cnn()
    optimizer = ready(model, sam.functional_sam())

    def losses(b):
        z = model(b[0])
        return nn.functional.cross_entropy(z, b[1], reduction="none"), outputs(z)

    with pytest.raises(LandscapeError, match=message):
        optimizer.step(losses, batch())


def test_ascents_along_another_objective_need_outputs_and_labels():
    model = cnn()
    optimizer = ready(model, sam.bisam())
    with pytest.raises(LandscapeError, match="outputs"):
        optimizer.step(losses_of(model), batch())
    with pytest.raises(LandscapeError, match=r"which step\(closure\) cannot offer"):
        optimizer.step(closure_of(model, batch()))
    with pytest.raises(LandscapeError, match="targets='y' says where the labels are"):
        ready(model, sam.bisam(targets="y")).step(losses_of(model, with_logits=True), batch())
    flat = lambda b: (model(b[0]).square().mean(1), model(b[0])[:, 0])  # noqa: E731
    optimizer = ready(model, sam.obf_sam())
    with pytest.raises(LandscapeError, match=r"outputs \(B, C\) and labels \(B,\)"):
        optimizer.step(flat, batch())


def test_hessian_products_need_losses_and_flat_lora_adapters():
    model = cnn()
    for variant in (sam.eigen_sam(), sam.sassha()):
        with pytest.raises(LandscapeError, match=r"which step\(closure\) cannot offer"):
            ready(model, variant).step(closure_of(model, batch()))
    with pytest.raises(LandscapeError, match="none of the 9 trained tensors is one"):
        step(ready(model, sam.flat_lora(scaling=1.0, total_steps=5)), batch())
    with pytest.raises(LandscapeError, match="needs a value for scaling, total_steps"):
        sam.make("flat_lora")
