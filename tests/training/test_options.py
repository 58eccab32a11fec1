"""Schedules in closed form, batches as a function of (seed, epoch), augmentation by pixels."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from landscape import problems, training
from landscape.errors import LandscapeError
from landscape.streams import PackedMasks
from landscape.training.batches import batches, crop_and_flip, derived_seed

PER_EPOCH, STEPS = 10, 100


def lr(step, **options):
    return training.TrainingOptions(epochs=10, lr=0.2, **options).learning_rate(
        step, STEPS, PER_EPOCH
    )


def test_cosine_falls_from_lr_to_zero_per_step():
    for step in (0, 1, 50, 99):
        assert lr(step) == pytest.approx(0.1 * (1 + math.cos(math.pi * step / STEPS)), rel=1e-12)
    assert lr(STEPS) == pytest.approx(0, abs=1e-15)


def test_warmup_rises_linearly_and_the_schedule_takes_the_rest():
    rise = [lr(step, warmup=2.0) for step in range(20)]
    assert rise == pytest.approx([0.2 * (i + 1) / 20 for i in range(20)], rel=1e-12)
    assert lr(20, warmup=2.0) == pytest.approx(0.2)
    assert lr(60, warmup=2.0) == pytest.approx(0.1)  # half of the 80 steps that are left


def test_step_schedule_decays_at_its_milestones():
    values = [
        lr(step, schedule="step", milestones=[0.3, 0.6], decay=0.1) for step in (29, 30, 59, 60)
    ]
    assert values == pytest.approx([0.2, 0.02, 0.02, 0.002], rel=1e-12)


def test_constant_schedule():
    assert lr(0, schedule="constant") == lr(99, schedule="constant") == 0.2


@pytest.mark.parametrize(
    ("num", "size", "steps"),
    [(1000, 64, 16), (64, 64, 1), (65, 64, 1), (66, 64, 2), (5, 64, 1), (3, 1, 3)],
)
def test_steps_per_epoch_leave_out_a_last_single_example(num, size, steps):
    assert training.TrainingOptions(batch_size=size).steps_per_epoch(num) == steps


@pytest.mark.parametrize(
    ("base", "kind"),
    [("sgd", torch.optim.SGD), ("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)],
)
def test_base_optimizers_take_their_options(base, kind):
    options = training.TrainingOptions(
        base=base, lr=0.3, momentum=0.7, nesterov=True, weight_decay=0.1, betas=[0.8, 0.9]
    )
    made = options.optimizer(nn.Linear(2, 2).parameters())
    assert type(made) is kind
    group = made.param_groups[0]
    assert (group["lr"], group["weight_decay"]) == (0.3, 0.1)
    if base == "sgd":
        assert (group["momentum"], group["nesterov"]) == (0.7, True)
    else:
        assert group["betas"] == (0.8, 0.9)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"schedule": "linear"}, "schedule='linear' is unknown; choose one of 'cosine', 'step'"),
        ({"base": "lion"}, "base='lion' is unknown; choose one of 'sgd', 'adam', 'adamw'"),
        ({"augment": "cutout"}, "augment='cutout' is unknown; choose one of 'none', 'crop_flip'"),
        ({"amp": "int8"}, "amp='int8' is unknown; choose one of 'off', 'bf16', 'fp16'"),
        ({"bn": "third"}, "bn='third' is unknown; choose one of 'first', 'second', 'both'"),
        ({"epochs": 0}, "epochs=0 was asked; give a whole number >= 1"),
        ({"epochs": 2.5}, "epochs=2.5 was asked; give a whole number"),
        ({"batch_size": True}, "batch_size=True was asked"),
        ({"lr": -0.1}, r"lr=-0.1 was asked; it must be finite and lr >= 0"),
        ({"lr": float("nan")}, "lr=nan was asked"),
        ({"momentum": 1.5}, r"momentum=1.5 is outside \[0, 1\]"),
        ({"warmup": 30}, "warmup=30 epochs were asked of epochs=20; lower warmup"),
        ({"nesterov": True, "momentum": 0}, "nesterov=True needs momentum > 0"),
        ({"betas": [0.9]}, r"betas=\(0.9,\) was asked; Adam takes two"),
        ({"betas": [0.9, 1]}, r"betas=1 is outside \[0, 1\)"),
        ({"betas": 0.9}, r"betas=0.9 was asked; give a list of numbers in \[0, 1\)"),
        ({"betas": {0.9, 0.99}}, r"betas=\{0.9.* was asked; give a list of numbers"),
        ({"milestones": [1.0]}, r"milestones=1.0 is outside \[0, 1\)"),
        ({"milestones": "30"}, "milestones='30' was asked; give a list"),
        ({"milestones": [30, 60]}, r"milestones=30 is outside .*: did you mean milestones=0.3\?"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(LandscapeError, match=message):
        training.TrainingOptions(**options)


def test_snapshot_steps_are_at_powers_of_two_after_a_step_of_each_stretch():
    steps = lambda n, total, seed=0: training.RecorderOptions(snapshots=n).steps(  # noqa: E731
        total, per_epoch=5, seed=seed
    )
    for seed in range(20):
        found = steps(2, 20, seed)
        starts = [
            (a, b)
            for a in range(10)
            for b in range(10, 20)
            if {c + d for c in (a, b) for d in (0, 1, 2, 4, 8) if c + d < 20} | {19} == found
        ]
        assert starts, found
        assert len(found) <= training.RecorderOptions(snapshots=2).most(20) == 11
    assert steps(0, 20) == frozenset()
    assert max(steps(50, 7)) == 6
    assert steps(4, 320) == steps(4, 320)
    assert steps(4, 320) != steps(4, 320, seed=1)


@pytest.mark.parametrize(("count", "total", "per_epoch"), [(4, 320, 16), (5, 100, 20), (8, 40, 10)])
def test_starts_are_as_often_at_each_phase_of_an_epoch(count, total, per_epoch):
    from landscape.training.options import _starts

    phases = np.zeros(per_epoch)
    for seed in range(500):
        starts = np.array(_starts(count, total, per_epoch, seed))
        edges = np.arange(count + 1) * total // count
        assert ((edges[:-1] <= starts) & (starts < edges[1:])).all()
        np.add.at(phases, starts % per_epoch, 1)
        if total // count >= per_epoch:  # each start takes another count-th of the epoch
            assert sorted((starts % per_epoch) * count // per_epoch) == list(range(count))
    expected = 500 * count / per_epoch
    assert ((phases - expected) ** 2 / expected).sum() < 2.5 * per_epoch  # chi², far in the tail


def test_a_mask_that_is_renewed_each_epoch_is_seen_to_last_as_long_as_it_does():
    """kappa(lag) of masks that are drawn anew every P steps is 1 - lag / P in truth."""
    from landscape.measure import mask_persistence

    size, per_epoch, total = 4000, 16, 320
    rng = np.random.default_rng(0)
    drawn = [rng.random(size) < 0.5 for _ in range(total // per_epoch)]
    packed = [PackedMasks.of({"w": mask}) for mask in drawn]
    found = []
    for seed in range(12):
        steps = training.RecorderOptions().steps(total, per_epoch=per_epoch, seed=seed)
        ds = mask_persistence([(s, packed[s // per_epoch]) for s in sorted(steps)])
        found.append([float(ds.kappa.sel(lag=lag)) for lag in (1, 4)])
        # A single run: at most one of eight pairs off, which starts on boundaries miss by four.
        assert found[-1][0] == pytest.approx(1 - 1 / per_epoch, abs=0.1)
    assert np.mean(found, 0) == pytest.approx([1 - 1 / per_epoch, 1 - 4 / per_epoch], abs=0.05)


def test_bad_numbers_of_snapshots_are_named():
    for bad in (-1, 1.5, True):
        with pytest.raises(LandscapeError, match=f"snapshots={bad} was asked; give a whole"):
            training.RecorderOptions(snapshots=bad)


def _split(n=10):
    x = torch.arange(n, dtype=torch.float64)[:, None]
    return problems.Split(x, torch.arange(n), torch.arange(n))


def _order(seed, epoch, size=4):
    options = training.TrainingOptions(batch_size=size)
    found = list(batches(_split(), options, seed=seed, epoch=epoch))
    for x, y, indices in found:
        assert torch.equal(x[:, 0].long(), indices)
        assert torch.equal(y, indices)
    return [indices.tolist() for _, _, indices in found]


def test_an_epoch_is_a_permutation_decided_by_seed_and_epoch():
    assert sorted(i for batch in _order(0, 0) for i in batch) == list(range(10))
    assert [len(b) for b in _order(0, 0)] == [4, 4, 2]
    assert _order(0, 0) == _order(0, 0)
    assert len({str(_order(s, e)) for s in range(3) for e in range(3)}) == 9


def test_seeds_of_different_purposes_differ():
    made = {derived_seed(s, e, p) for s in range(4) for e in range(4) for p in range(4)}
    assert len(made) == 64
    assert all(0 <= seed < 2**63 for seed in made)


def test_crop_and_flip_shifts_and_mirrors_whole_images():
    x = torch.arange(1.0, 1 + 16 * 3 * 8 * 8, dtype=torch.float64).view(16, 3, 8, 8)
    out = crop_and_flip(x, generator=torch.Generator().manual_seed(0))
    padded = torch.nn.functional.pad(x, (4, 4, 4, 4))
    mirrored = 0
    for image, source in zip(out, padded):
        windows = {
            (dy, dx, flip): window.flip(-1) if flip else window
            for dy in range(9)
            for dx in range(9)
            for window in [source[:, dy : dy + 8, dx : dx + 8]]
            for flip in (False, True)
        }
        fitting = [key for key, window in windows.items() if torch.equal(window, image)]
        assert len(fitting) == 1
        mirrored += fitting[0][2]
    assert 2 <= mirrored <= 14
    again = crop_and_flip(x, generator=torch.Generator().manual_seed(0))
    assert torch.equal(out, again)


def test_crop_and_flip_needs_images():
    with pytest.raises(LandscapeError, match=r"augment='crop_flip' needs images .*\(4, 1, 40\)"):
        crop_and_flip(torch.zeros(4, 1, 40), generator=torch.Generator())
