"""What was combined before is taken from there, and the whole is what it would be without."""

import random

import numpy as np
import pytest

from landscape import results
from landscape.results import Variable


def part(seed, *, points=3, note="abcde", bn="eval"):
    values = np.random.default_rng(seed).normal(size=(2, points))
    variables = {
        "loss": Variable(("direction", "alpha"), values, "nats", "Loss"),
        "note": Variable((), f"{note[:-1]}{seed % 10}", "1", "What was seen"),
        "converged": Variable("direction", values[:, 0] > 0, "1", "Converged"),
        "count": Variable((), np.int32(seed), "1", "Count"),
    }
    coords = {"direction": ["random", "hessian"], "alpha": np.arange(float(points))}
    said = {"seed": seed, "bn": bn}
    return results.make("loss_slice", variables, coords=coords, provenance=said)


def labels(seed):
    return {"run": f"sam-s{seed}", "variant": "sam" * (seed + 1), "seed": seed, "rho": 0.1 * seed}


def combined(seeds, **options):
    return results.combine([(labels(seed), part(seed, **options)) for seed in seeds])


@pytest.mark.parametrize("order", range(6))
def test_a_combination_from_an_earlier_one_is_the_one_of_all_results(order, tmp_path):
    """Kept, changed, gone, new, and in another order."""
    before = [0, 1, 2, 3, 4]
    old = results.load(results.save(combined(before), tmp_path / "old.nc"))
    after = random.Random(order).sample([0, 2, 3, 4, 5, 6], 5)
    changed = 3
    mixed = [
        (labels(seed), before.index(seed) if seed in before and seed != changed else part(seed))
        for seed in after
    ]
    again, whole = results.recombine(old, mixed), combined(after)
    assert again is not None
    assert again.run.values.tolist() == [labels(seed)["run"] for seed in after]
    saved = [results.save(ds, tmp_path / f"{i}.nc") for i, ds in enumerate((again, whole))]
    assert saved[0].read_bytes() == saved[1].read_bytes()
    assert list(again.variables) == list(whole.variables)


@pytest.mark.parametrize("options", [{"points": 4}, {"note": "longer words"}, {"bn": "full_batch"}])
def test_results_that_are_not_alike_are_all_read(options, tmp_path):
    old = results.load(results.save(combined([0, 1]), tmp_path / "old.nc"))
    assert results.recombine(old, [(labels(0), 0), (labels(2), part(2, **options))]) is None
    assert results.recombine(old, [(labels(0), 0), (labels(2), part(2))]) is not None


def test_only_results_on_the_same_coordinates_are_alike():
    assert results.are_alike([part(0), part(1)])
    assert not results.are_alike([part(0), part(1, points=4)])
