"""Recipes in two gloo processes take the steps of one: DDP, `fully_shard`, tensor parallel."""

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from landscape import sam
from landscape.errors import LandscapeError
from tests.sam_models import batch, losses_of, reset, variants
from tests.two_processes import in_two_processes, needs_processes

# ESAM's examples are chosen in each process among its own, where every process has others.
BY_PROCESS = ("esam",)
# Differentiate the loss twice, which sharded parameters cannot offer: refused by name.
TWICE = ("eigen_sam", "sassha")
# One of each way to need the whole tensor: a norm, an average, a mask per tensor, a draw, Fisher
# information over all, layers, a mean over dimensions, two gradients.
FEW = ("sam", "fsam", "zsharp", "random_mask", "ssam_f", "lagnp", "gcsam", "focal_sam")


def smooth():
    """Without BatchNorm, so that the mean over processes is the gradient of the whole batch."""
    return reset(
        nn.Sequential(nn.Flatten(), nn.Linear(100, 7), nn.LayerNorm(7), nn.Tanh(), nn.Linear(7, 5))
    )


def sharded(kind, model, rank):
    """The model in this process, and which examples of a batch are its own."""
    from torch.distributed.device_mesh import init_device_mesh

    half = slice(8 * rank, 8 * rank + 8)
    if kind == "ddp":
        return DistributedDataParallel(model), half
    mesh = init_device_mesh("cpu", (2,))
    if kind == "fully_shard":
        from torch.distributed.fsdp import fully_shard

        for layer in (model[1], model[4]):
            fully_shard(layer, mesh=mesh)
        return fully_shard(model, mesh=mesh), half
    from torch.distributed.tensor import Replicate
    from torch.distributed.tensor.parallel import (
        ColwiseParallel,
        RowwiseParallel,
        parallelize_module,
    )

    plan = {
        "1": ColwiseParallel(output_layouts=Replicate()),
        "4": RowwiseParallel(input_layouts=Replicate()),
    }
    return parallelize_module(model, mesh, plan), slice(None)


def whole(model):
    found = [p.detach() for p in model.parameters()]
    return torch.cat(
        [(p.full_tensor() if hasattr(p, "full_tensor") else p).flatten() for p in found]
    )


def made(model, params, name, **options):
    variant = variants()[name]
    base = torch.optim.SGD(params, lr=0.05, momentum=0.9, weight_decay=5e-4)
    return sam.SAM(model, base, variant, seed=3, **options)


def trajectory(optimizer, model, own, name):
    """Three steps; what the books say of them."""
    losses = losses_of(model, with_logits="logits" in optimizer.variant.needs)
    optimizer.set_fisher_data(losses_of(model), batch(), shuffle=False)
    books = []
    for t in range(3):
        optimizer.begin_epoch(t // 2, 4)
        optimizer.step(losses, tuple(x[own] for x in batch(t)))
        p = optimizer.perturbation
        books += [p.norm, p.cosine, *p.density.values(), *p.energy_share.values()]
    return torch.stack([b.double() for b in books])


def check(kind, rank, names):
    """Weights and books of three steps are those of one process."""
    for name in names:
        alone, ours = smooth(), smooth()
        reference = made(alone, alone.parameters(), name)
        told = trajectory(reference, alone, slice(None), name)
        model, own = sharded(kind, ours, rank)
        optimizer = made(model, model.parameters(), name)
        if kind != "ddp" and name in TWICE:
            with pytest.raises(LandscapeError, match="a Hessian product differentiates the loss"):
                trajectory(optimizer, model, own, name)
            continue
        seen = trajectory(optimizer, model, own, name)
        assert torch.allclose(whole(ours), whole(alone), rtol=0, atol=1e-12), (kind, name)
        assert torch.allclose(seen, told, rtol=0, atol=1e-9, equal_nan=True), (kind, name)
        if name not in ("sgd", "saf", "mesa"):
            assert reference.perturbation.climbed or name in ("looksam", "aesam"), name


def few(rank):
    for kind in ("ddp", "fully_shard", "tensor_parallel"):
        check(kind, rank, FEW)


def all_of(kind, rank):
    others = BY_PROCESS if kind != "tensor_parallel" else ()
    check(kind, rank, [n for n in variants() if n not in (*FEW, *others, "flat_lora")])


def all_ddp(rank):
    all_of("ddp", rank)


def all_fully_shard(rank):
    all_of("fully_shard", rank)


def all_tensor_parallel(rank):
    all_of("tensor_parallel", rank)


@pytest.mark.thorough
@needs_processes
def test_two_processes_with_whole_cut_and_replicated_weights_take_the_steps_of_one():
    in_two_processes(few)


@needs_processes
@pytest.mark.slow
@pytest.mark.parametrize("work", [all_ddp, all_fully_shard, all_tensor_parallel])
def test_every_other_recipe_takes_the_steps_of_one_process(work):
    in_two_processes(work)


def stale(rank):
    """A forward pass without a backward one leaves `fully_shard` with the weights gathered."""
    alone, ours = smooth(), smooth()
    model, own = sharded("fully_shard", ours, rank)
    a, b = made(model, model.parameters(), "sam"), made(alone, alone.parameters(), "sam")
    for t in range(3):
        with torch.no_grad():
            model(batch(t)[0][own])
        a.step(losses_of(model), tuple(x[own] for x in batch(t)))
        b.step(losses_of(alone), batch(t))
    assert torch.allclose(whole(ours), whole(alone), rtol=0, atol=1e-12)
    state = a.state_dict()
    model2, _ = sharded("fully_shard", smooth(), rank)
    again = made(model2, model2.parameters(), "sam")
    again.load_state_dict(state)
    assert again.step_count == 3
    for t in (3, 4):
        a.step(losses_of(model), tuple(x[own] for x in batch(t)), micro_batch=3)
        b.step(losses_of(alone), batch(t))
    assert torch.allclose(whole(ours), whole(alone), rtol=0, atol=1e-12)
    flat = torch.distributed.fsdp.FullyShardedDataParallel(
        smooth(), use_orig_params=True, device_id=torch.device("cpu")
    )
    with pytest.raises(
        LandscapeError, match=r"shard it with torch\.distributed\.fsdp\.fully_shard"
    ):
        made(flat, flat.parameters(), "sam")


def partly(rank):
    """Tensors that no wrapper averages, beside cut ones; a fused base over cut ones."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh, half = init_device_mesh("cpu", (2,)), slice(8 * rank, 8 * rank + 8)
    alone = smooth()
    made(alone, alone.parameters(), "sam").step(losses_of(alone), batch(0))

    def one_layer():
        model = smooth()
        fully_shard(model[1], mesh=mesh)
        return model

    def steps(model, **base):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4,
                                    **base)  # fmt: skip
        optimizer = sam.SAM(model, optimizer, variants()["sam"], seed=3)
        optimizer.step(losses_of(model), tuple(x[half] for x in batch(0)))
        return torch.allclose(whole(model), whole(alone), rtol=0, atol=1e-12)

    with pytest.raises(LandscapeError, match=r"'2.weight' is whole in every process.*a hook"):
        steps(one_layer())
    assert steps(fully_shard(one_layer(), mesh=mesh))
    hooked = one_layer()

    def mean(g):
        torch.distributed.all_reduce(total := g.clone())
        return total / 2

    for layer in (hooked[2], hooked[4]):
        for p in layer.parameters():
            p.register_hook(mean)
    assert steps(hooked)
    with pytest.raises(LandscapeError, match="make it with fused=False"):
        steps(fully_shard(one_layer(), mesh=mesh), fused=True)
    assert steps(fully_shard(one_layer(), mesh=mesh), fused=False)


@pytest.mark.thorough
@needs_processes
def test_tensors_that_nobody_averages_are_refused_and_the_advice_works():
    in_two_processes(partly)


@pytest.mark.slow
@needs_processes
def test_evaluations_between_steps_saved_state_and_the_class_that_is_refused():
    in_two_processes(stale)
