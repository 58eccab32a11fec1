"""Newer methods in other people's loops: micro-batches, scalers, `backward`, two processes."""

import copy
import gc
import re

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from landscape import sam
from landscape.errors import LandscapeError
from tests.sam_models import Adapted, batch, losses_of, ready, reset, variants
from tests.two_processes import in_two_processes, needs_processes

METHODS = (
    "vasso", "fisher_sam", "sagm", "ire", "xsam", "lookbehind_sam", "lesam", "aesam", "lightsam",
    "sam_polyak", "randsam", "rsam", "tsam", "bsam", "bisam", "obf_sam", "functional_sam",
    "eigen_sam", "sassha", "crsam", "flat_lora",
)  # fmt: skip


def model_of(name):
    """Without batch statistics, so that the gradient is the mean over parts of a batch."""
    if name == "flat_lora":
        return Adapted()
    layers = nn.Linear(100, 6), nn.LayerNorm(6), nn.Tanh(), nn.Linear(6, 5)
    return reset(nn.Sequential(nn.Flatten(), *layers))


def made(name, model=None, **options):
    """(model, optimizer, losses of a batch) for one recipe over plain SGD."""
    model = model_of(name) if model is None else model
    base = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05)
    optimizer = ready(model, variants()[name], base, **options)
    return model, optimizer, losses_of(model, "logits" in variants()[name].needs)


def theta(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def trained(name, advance, **options):
    """Weights after five steps of two epochs, taken by advance(optimizer, losses, batch)."""
    model, optimizer, losses = made(name, **options)
    for t in range(5):
        optimizer.begin_epoch(t // 3, 2)
        advance(optimizer, losses, batch(t % 3))
    return theta(model)


def whole(optimizer, losses, b):
    optimizer.step(losses, b)


@pytest.mark.parametrize("name", METHODS)
def test_micro_batches_change_memory_and_not_the_step(name):
    parts = trained(name, lambda optimizer, losses, b: optimizer.step(losses, b, micro_batch=5))
    assert torch.allclose(parts, trained(name, whole), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", METHODS)
def test_a_scaler_changes_no_step(name):
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=1000)

    def scaled(optimizer, losses, b):
        optimizer.step(losses, b)
        scaler.update()

    ours = trained(name, scaled, scaler=scaler)
    assert torch.allclose(ours, trained(name, whole), rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("name", METHODS)
def test_backward_and_step_are_step(name):
    def apart(optimizer, losses, b):
        optimizer.zero_grad()
        optimizer.backward(losses, b)
        optimizer.step()

    assert torch.equal(trained(name, apart), trained(name, whole))


@pytest.mark.parametrize("name", METHODS)
def test_a_bad_second_gradient_leaves_what_a_method_keeps(name):
    """The step after a skipped one is the step that would have come first, draws aside."""
    drawing = ("randsam", "rsam", "tsam", "bsam", "flat_lora", "sassha", "eigen_sam")
    kept_before_g2 = ("vasso", "aesam", "lightsam", "xsam")  # averages of g1, once it is finite
    model, optimizer, losses = made(name)
    optimizer.step(losses, batch())
    before = theta(model)
    calls = []

    def bad(b):
        calls.append(1)
        return losses((b[0] * (float("nan") if len(calls) == 2 else 1.0), *b[1:]))

    state = copy.deepcopy(dict(optimizer.slots))
    optimizer.step(bad, batch(1))
    if len(calls) < 2:  # one pass per step, or a closed gate
        return
    assert optimizer.num_skipped == 1
    assert torch.equal(theta(model), before)
    if name not in drawing + kept_before_g2:
        for place, old in state.items():
            assert str(old) == str(optimizer.slots[place]), place


@pytest.mark.parametrize(("name", "call"), [("crsam", 3), ("lookbehind_sam", 4), ("tsam", 5)])
def test_a_bad_gradient_of_a_further_pass_skips_the_step(name, call):
    model, optimizer, losses = made(name)
    optimizer.step(losses, batch())
    before, calls = theta(model), []

    def bad(b):
        calls.append(1)
        return losses((b[0] * (float("nan") if len(calls) == call else 1.0), *b[1:]))

    optimizer.step(bad, batch(1))
    assert len(calls) >= call
    assert optimizer.num_skipped == 1
    assert torch.equal(theta(model), before)


@pytest.mark.parametrize("name", METHODS)
def test_parts_of_a_batch_are_steps_of_their_own_or_are_refused(name):
    """m-sharpness: gd is the mean over parts, for what keeps nothing and draws nothing."""
    refused = {
        "vasso": "carries gradients", "ire": "carries", "xsam": "carries", "lightsam": "carries",
        "sassha": "carries", "eigen_sam": "carries", "randsam": "first pass", "bsam": "chooses",
        "flat_lora": "first pass",
    }  # fmt: skip
    variant = variants()[name]
    if name in refused:
        with pytest.raises(LandscapeError, match=refused[name]):
            sam.micro_batched(variant, 2)
        return
    variant = sam.rsam(0.05, sigma=0.0) if name == "rsam" else variant
    variant = sam.tsam(0.05, num_samples=2, sigma=0.0) if name == "tsam" else variant
    model, _, losses = made(name)
    base = torch.optim.SGD(model.parameters(), lr=0.05)
    ready(model, sam.micro_batched(variant, 2), base).step(losses, batch())
    together = theta(model)
    ends = []
    for part in (slice(0, 8), slice(8, 16)):
        model, _, losses = made(name)
        base = torch.optim.SGD(model.parameters(), lr=0.05)
        ready(model, variant, base).step(losses, tuple(x[part] for x in batch()))
        ends.append(theta(model))
    torch.testing.assert_close(together, sum(ends) / 2, rtol=1e-9, atol=1e-12)


HELD = ("sam", "vasso", "fisher_sam", "sagm", "ire", "xsam", "lookbehind_sam", "lesam",
        "sam_polyak", "randsam", "rsam", "tsam", "bsam", "eigen_sam", "sassha",
        "crsam")  # fmt: skip


# A quick suite needs one recipe of each number of passes; -m slow runs all.
@pytest.mark.thorough
@pytest.mark.parametrize(
    "name",
    [n if n in ("sam", "bsam") else pytest.param(n, marks=pytest.mark.slow) for n in HELD],
)
def test_no_more_copies_of_the_weights_live_than_declared(name):
    """Beside the weights, when a forward pass begins."""
    gc.collect()  # what other tests left behind in cycles
    model = nn.Linear(300, 200, bias=False)
    base = torch.optim.SGD(model.parameters(), lr=0.01)
    optimizer = sam.SAM(model, base, variants()[name], keep_perturbation=False)
    x = torch.randn(4, 300, generator=torch.Generator().manual_seed(0))
    seen = []

    def losses(b):
        found = [t for t in gc.get_objects() if issubclass(type(t), torch.Tensor)]
        found += [p.grad for p in model.parameters() if p.grad is not None]
        seen.append(len({t.data_ptr() for t in found if t.numel() == 60_000}) - 1)
        return model(b).square().mean(1) + 1.0

    for t in range(4):
        optimizer.begin_epoch(t // 2, 2)
        seen = seen if t > 1 else []  # the guard, which looks at the first climb, keeps e
        optimizer.step(losses, x)
    stated = sam.recipes()[name].declaration.memory
    assert max(seen) == max(int(n) for n in re.findall(r"\d+", stated))


def replicas(rank):
    for name in METHODS:
        ours = model_of(name)
        model = DistributedDataParallel(ours)
        _, optimizer, losses = made(name, model)
        alone, other, its = made(name)
        for t in range(4):
            optimizer.begin_epoch(t // 2, 2)
            other.begin_epoch(t // 2, 2)
            b = batch(t)
            optimizer.step(losses, tuple(x[8 * rank : 8 * rank + 8] for x in b))
            other.step(its, b)
        own = theta(ours)
        both = [torch.empty_like(own) for _ in range(2)]
        dist.all_gather(both, own)
        assert torch.equal(*both), name
        assert torch.allclose(own, theta(alone), rtol=1e-9, atol=1e-12), name
    for name in ("xsam", "sam_polyak"):
        model = DistributedDataParallel(model_of(name))
        base = torch.optim.SGD(model.parameters(), lr=0.05)
        with pytest.raises(LandscapeError, match="sync_perturbation=True"):
            sam.SAM(model, base, variants()[name], sync_perturbation=False)


@pytest.mark.thorough
@needs_processes
def test_two_processes_take_the_steps_of_one():
    in_two_processes(replicas)
