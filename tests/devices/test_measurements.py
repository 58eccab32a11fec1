"""Measurements on a device that is not the CPU: the CPU's numbers, and few waits for them."""

import json

import numpy as np
import pytest

from landscape import devices, measure
from landscape.linalg._search import Search
from tests.devices import pretend
from tests.devices.calls import CALLS, WITHOUT_A_DEVICE, risk_on


def test_every_measurement_is_called():
    called = {name.split()[0] for name in CALLS}
    assert called | WITHOUT_A_DEVICE == set(measure.__all__)
    assert not called & WITHOUT_A_DEVICE


def numbers_of(found):
    """Values, and all of the provenance that does not name the device."""
    if isinstance(found, np.ndarray):
        return {"": found}, {}
    provenance = json.loads(found.attrs["provenance"])
    assert provenance.pop("device") in ("cpu", pretend.DEVICE)
    return {name: found[name].values for name in found.variables}, provenance


# The climb is multiplied out on a device and added with its factor on a CPU: a rounding apart.
ROUNDED = {"perturbation": 1e-12}


@pytest.mark.thorough
@pytest.mark.parametrize("name", CALLS)
def test_numbers_are_those_of_the_cpu(name, monkeypatch):
    """To the last bit, once the CPU is taken for a device that is not asked between steps."""
    there, how_there = numbers_of(CALLS[name](risk_on(pretend.DEVICE), 1))
    monkeypatch.setattr(devices, "is_accelerator", lambda device: True)
    here, how_here = numbers_of(CALLS[name](risk_on("cpu"), 1))
    assert how_there == how_here
    assert there.keys() == here.keys()
    for variable, values in here.items():
        if name in ROUNDED and values.dtype.kind == "f":
            np.testing.assert_allclose(there[variable], values, rtol=ROUNDED[name], atol=1e-15)
        else:
            np.testing.assert_array_equal(there[variable], values, err_msg=variable)


# More waits at size 2 where it is not none. A recurrence is read once, to see whether it broke down
# while its basis is there: two more probes. A batch is asked once whether its gradient is finite,
# for each variant. A row of a grid is read once, since it can be stored. The statistics
# of a gradient are read once.
MORE = {
    "spectral_density": 2, "alignment": 2, "batch_overlap": 4, "mask_overlap": 2,
    "perturbation_cosines": 2, "gradient_zscores batches": 2, "loss_plane": 4, "loss_slice": 2,
    "three_points": 2,
}  # fmt: skip
# A search has to know when it is done, and a product that it need not have made costs more than a
# wait: it asks after every second product at most. OF_A_SEARCH is read and written once: its rows,
# its graphs checked, the proof, small matrices.
OF_A_SEARCH, FEW = 28, 40
OF_PYHESSIAN = 90  # waits of its own code, which the cross-check runs


def asked_by_us(seen):
    """Waits but those of the calls themselves, which make points on the host."""
    both = seen.reads + seen.uploads
    return sum(n for (_, line), n in both.items() if not line.startswith("tests/"))


@pytest.mark.thorough
@pytest.mark.parametrize("name", CALLS)
def test_the_host_waits_as_often_for_twice_the_work(name, monkeypatch):
    """Radii, batches, steps, draws, probes, nodes, points, models, bins, tensors: none is asked."""
    waits, allowed, run = [], [], Search.run
    for size in (1, 2):
        found = []
        monkeypatch.setattr(
            Search, "run", lambda search, start: found.append(run(search, start)) or found[-1]
        )
        risk = risk_on(pretend.DEVICE)
        risk.probe()
        with pretend.watch() as seen:
            CALLS[name](risk, size)
        waits.append(asked_by_us(seen))
        allowed.append(OF_A_SEARCH * len(found) + sum(each.num_matvecs for each in found) // 2)
        others = OF_PYHESSIAN if name == "crosscheck" else 0
        assert waits[-1] <= FEW + others + allowed[-1], seen
    assert waits[1] - waits[0] <= MORE.get(name, 0) + max(0, allowed[1] - allowed[0]), seen
