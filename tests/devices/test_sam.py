"""SAM on a device that is not the CPU: the CPU's weights, and no waits but those that are said."""

import copy

import pytest
import torch
from torch import nn

from landscape import sam
from landscape.sam.finite import FEW
from tests import sam_models
from tests.devices import pretend
from tests.sam_models import losses_of, sgd, variants, weights

NAMES = sorted(variants())
# A step of these is decided by values: gates, examples kept by their loss, tensors drawn by norms,
# labels that have to exist. Waits of a step, at most.
VALUE_DEPENDENT = {"aesam": 1, "lagnp": 1, "sl_sam": 1, "focal_sam": 1, "saf": 1}


def ready_on(device, name, **options):
    model = sam_models.model_for(name)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.1  # with None torch's own forward pass reads its counter
    model.to(device)
    optimizer = sam.SAM(model, sgd(model), variants()[name], seed=3, **options)
    optimizer.set_fisher_data(losses_of(model), batch(device))
    optimizer.begin_epoch(0, total_epochs=4)
    return model, optimizer


def batch(device, i=0):
    return tuple(part.to(device) for part in sam_models.batch(i))


def take(optimizer, b):
    return optimizer.step(losses_of(optimizer.model, "logits" in optimizer.variant.needs), b)


@pytest.mark.thorough
@pytest.mark.parametrize("name", NAMES)
def test_weights_are_those_of_the_cpu(name):
    with pretend.draws_of_the_cpu():
        there, on_device = ready_on(pretend.DEVICE, name)
    here, on_host = ready_on("cpu", name)
    for i in range(4):
        take(on_device, batch(pretend.DEVICE, i))
        take(on_host, batch("cpu", i))
    for a, b in zip(weights(there), weights(here), strict=True):
        torch.testing.assert_close(a.cpu(), b, rtol=1e-9, atol=1e-11)


def seen_in_four_steps(name, wait):
    _, optimizer = ready_on(pretend.DEVICE, name, wait_for_device=wait)
    batches = [batch(pretend.DEVICE, i) for i in range(8)]
    for b in batches[:4]:
        take(optimizer, b)
    with pretend.watch() as seen:
        for b in batches[4:]:
            take(optimizer, b)
    return seen


@pytest.mark.thorough
@pytest.mark.parametrize("name", NAMES)
def test_a_step_waits_for_the_device_only_where_values_decide(name):
    """Of few tensors once more, in place of launches."""
    decided = 4 * VALUE_DEPENDENT.get(name, 0)
    never = seen_in_four_steps(name, False)
    assert never.waits <= decided, never
    few = seen_in_four_steps(name, None)
    assert few.waits <= decided + 4, few
    assert few.launches <= 1.15 * seen_in_four_steps(name, True).launches, few


@pytest.mark.thorough
@pytest.mark.parametrize("name", NAMES)
def test_a_saved_state_goes_on_to_the_last_bit(name, tmp_path):
    """The file is read to the host, as trainings do, and its tensors go where they belong."""
    model, optimizer = ready_on(pretend.DEVICE, name)
    take(optimizer, batch(pretend.DEVICE))
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "s")
    state = torch.load(tmp_path / "s", map_location="cpu", weights_only=False)
    twin, resumed = ready_on(pretend.DEVICE, name)
    twin.load_state_dict(state["model"])
    resumed.load_state_dict(copy.deepcopy(state["optimizer"]))
    for i in (1, 2):
        take(optimizer, batch(pretend.DEVICE, i))
        take(resumed, batch(pretend.DEVICE, i))
    for a, b in zip(weights(model), weights(twin), strict=True):
        assert torch.equal(a, b)


def seen_in_a_step(model, variant, **options):
    """Of one that the guard does not look at."""
    optimizer = sam.SAM(model, sgd(model), variant, seed=3, **options)
    rows = tuple(torch.ones(4, 8, device=pretend.DEVICE) * c for c in (1.0, 0.5))

    def step():
        optimizer.step(lambda part: (model(part[0]) - part[1]).square().mean(1), rows)

    for _ in range(2):
        step()
    with pretend.watch() as seen:
        step()
    return seen


def of_tensors(count):
    """A perceptron of so many tensors with nothing between its layers: of few launches."""
    torch.manual_seed(0)
    layers = [nn.Linear(8, 8) for _ in range(count // 2)]
    layers += [nn.Linear(8, 8, bias=False)] * (count % 2)
    return nn.Sequential(*layers).to(pretend.DEVICE)


@pytest.mark.parametrize(
    ("name", "count"),
    [
        pytest.param(name, count, marks=() if name == "sam" else pytest.mark.thorough)
        for name in ("sgd", "sam", "asam", "zsharp", "fsam", "vasso", "looksam", "async_sam")
        for count in (1, 2, 3, 16, 31, 32, 33)
    ],
)
def test_a_step_costs_few_launches_more_than_one_that_waits_for_every_answer(name, count):
    """At most 15 %: of few tensors for one wait, of more without any."""
    model, variant = of_tensors(count), variants()[name]
    seen = seen_in_a_step(model, variant)
    waiting = seen_in_a_step(model, variant, wait_for_device=True)
    assert seen.launches <= 1.15 * waiting.launches, (seen.launches, waiting.launches)
    assert seen.waits == (count < FEW), seen


def test_little_gradients_that_are_put_back_together_are_put_back_exactly():
    """A step whose gradient is not finite leaves weights, momentum and buffers as they were."""
    model, optimizer = ready_on(pretend.DEVICE, "sam")
    take(optimizer, batch(pretend.DEVICE))
    kept = copy.deepcopy([model.state_dict(), optimizer.base.state_dict()["state"]])
    x, *rest = batch(pretend.DEVICE, 1)
    take(optimizer, (x * torch.inf, *rest))
    assert optimizer.num_skipped == 1
    for name, value in model.state_dict().items():
        assert torch.equal(value, kept[0][name]), name
    for i, state in optimizer.base.state_dict()["state"].items():
        assert torch.equal(state["momentum_buffer"], kept[1][i]["momentum_buffer"])
