"""Training and a small study on a device that is not the CPU."""

import numpy as np
import pytest
import torch
from torch import nn

from landscape import training
from landscape.study import Options, parse, run
from landscape.training.batches import crop_and_flip
from tests import training_problems as small
from tests.devices import pretend
from tests.study.test_status import HERE, TEXT


def deep():
    """Of as many tensors as a step has that never asks whether its gradient is finite."""
    torch.manual_seed(0)
    layers = [layer for _ in range(15) for layer in (nn.Linear(6, 6), nn.Tanh())]
    return nn.Sequential(*layers, nn.Linear(6, 3))


def trained_on(device, folder, *, name="sam", recorder=None, batch_size=16, model=None):
    model = model or small.model()
    options = training.TrainingOptions(epochs=3, batch_size=batch_size, lr=0.1)
    training.train(
        model, small.data(), small.variant(name), options, seed=0, folder=folder,
        device=torch.device(device), recorder=recorder or training.RecorderOptions(),
    )  # fmt: skip
    return [p.detach().cpu() for p in model.parameters()]


@pytest.mark.parametrize("name", ["sgd", "sam", "zsharp"])
def test_weights_and_records_are_those_of_the_cpu(name, tmp_path):
    there = trained_on(pretend.DEVICE, tmp_path / "there", name=name)
    here = trained_on("cpu", tmp_path / "here", name=name)
    for a, b in zip(there, here, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    one, other = (training.consolidate(tmp_path / each) for each in ("there", "here"))
    assert one.keys() == other.keys()
    for variable in ("train_loss", "val_loss", "val_accuracy"):
        a, b = one["history"][variable], other["history"][variable]
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_a_training_goes_on_to_the_last_bit(tmp_path):
    whole = trained_on(pretend.DEVICE, tmp_path / "whole")

    class Killed(Exception):
        pass

    def kill(record):
        if record["epoch"] == 2:
            raise Killed

    model, options = small.model(), training.TrainingOptions(epochs=3, batch_size=16, lr=0.1)
    for progress in (kill, None):
        try:
            training.train(
                model, small.data(), small.variant("sam"), options, seed=0,
                folder=tmp_path / "parts", device=torch.device(pretend.DEVICE), progress=progress,
            )  # fmt: skip
        except Killed:
            model = small.model(seed=5)
    assert all(torch.equal(a, b.detach().cpu()) for a, b in zip(whole, model.parameters()))


@pytest.mark.parametrize("scalars", [False, True])
def test_steps_between_records_do_not_wait(scalars, tmp_path):
    """Batches half as large are twice as many steps, and the host waits as often."""
    waits = []
    recorder = training.RecorderOptions(scalars=scalars, snapshots=0)
    for size in (16, 8):
        with pretend.watch() as seen:
            trained_on(
                pretend.DEVICE, tmp_path / str(size), recorder=recorder, batch_size=size,
                model=deep(),
            )  # fmt: skip
        waits.append(seen.waits)
    assert waits[0] == waits[1], seen


def test_a_seed_means_the_same_augmentation():
    x = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    here, there = (
        crop_and_flip(part, generator=torch.Generator().manual_seed(1))
        for part in (x, x.to(pretend.DEVICE))
    )
    assert torch.equal(there.cpu(), here)


@pytest.mark.slow
def test_a_study_has_the_numbers_of_the_cpu(tmp_path):
    found = []
    for device in ("cpu", pretend.DEVICE):
        options = Options(device=device, workers=0, quiet=True)
        done = run(parse(TEXT, base=HERE), tmp_path / device, options)
        assert not done.failed
        found.append(done.results["hessian_trace"])
    np.testing.assert_allclose(found[1]["trace"], found[0]["trace"], rtol=1e-3)
