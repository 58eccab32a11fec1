"""Statistics over recorded masks against the truth: every step recorded.

A recorder keeps bursts of steps. What is averaged over snapshots must come out as it does over all
steps, whatever the phase of an epoch at which a variant renews its mask.
"""

import numpy as np
import pytest

from landscape import measure
from landscape.measure.perturbations.recorded_masks import spread_out
from landscape.streams import PackedMasks
from landscape.training import RecorderOptions

EPOCH, EPOCHS, COORDINATES = 16, 40, 3000
TOTAL = EPOCH * EPOCHS


def masks_of(preference, rng):
    """Masks of every step of a variant that draws a new one at each start of an epoch."""
    drawn = rng.random((EPOCHS, COORDINATES)) < preference
    return [drawn[step // EPOCH] for step in range(TOTAL)]


def packed(mask):
    return PackedMasks.of({"w": mask})


def selection(masks, steps):
    ds = measure.mask_selection([(step, packed(masks[step])) for step in sorted(steps)])
    return {name: float(ds[name][0]) for name in ("over_dispersion", "frequency_std")} | {
        "kept": ds.sizes["bin"] - 1
    }


@pytest.mark.parametrize("seed", range(6))
def test_masks_without_preference_are_no_more_dispersed_than_chance(seed):
    """Independent masks of every epoch: 1, where the bursts as they are would say two and more."""
    rng = np.random.default_rng(seed)
    masks = masks_of(np.full(COORDINATES, 0.3), rng)
    steps = RecorderOptions(snapshots=8).steps(TOTAL, per_epoch=EPOCH, seed=seed)
    found = selection(masks, steps)
    # Of 3 000 coordinates the ratio has a standard error of 2.6 %.
    assert found["over_dispersion"] == pytest.approx(1, abs=0.12)
    times = np.sum([masks[step] for step in steps], axis=0)
    raw = times.var() / len(steps) ** 2 / (0.21 / len(steps))
    assert raw > 1.5
    assert 8 <= found["kept"] < len(steps)


@pytest.mark.parametrize("seed", range(3))
def test_preference_is_seen_as_it_is_in_as_many_steps_of_the_whole_record(seed):
    """Coordinates that differ: the excess over chance is their variance, as with every step."""
    rng = np.random.default_rng(100 + seed)
    preference = np.where(np.arange(COORDINATES) % 2, 0.15, 0.45)
    masks = masks_of(preference, rng)
    whole = np.mean(masks, axis=0)
    truth = whole.var() - np.mean(preference * (1 - preference)) / EPOCHS
    steps = RecorderOptions(snapshots=8).steps(TOTAL, per_epoch=EPOCH, seed=seed)
    found = selection(masks, steps)
    noise = np.mean(preference * (1 - preference)) / found["kept"]
    assert truth == pytest.approx(0.15**2, rel=0.1)
    assert found["frequency_std"] ** 2 - noise == pytest.approx(truth, rel=0.15)


def test_of_equal_distances_all_are_kept_and_of_bursts_one_in_each_part():
    assert spread_out([5]) == [5]
    assert spread_out(range(0, 700, 7)) == list(range(0, 700, 7))
    assert spread_out([3, 1, 2, 2]) == [1, 2, 3]
    steps = sorted(RecorderOptions(snapshots=4).steps(320, per_epoch=16, seed=1))
    kept = spread_out(steps)
    gaps = np.diff(kept)
    assert set(kept) <= set(steps)
    assert len(kept) >= 4
    assert gaps.max() <= 8 * gaps.min()
