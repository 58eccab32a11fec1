"""Measurements on a device that is not the CPU: the CPU's numbers, and few waits for them."""

import json

import numpy as np
import pytest

from landscape import devices, measure
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


# Looped over without a question to the device: radii, batches, steps, draws, probes, nodes,
# points of lines, models and bins.
ASKED_ONCE = [
    "adaptive_sharpness", "adaptive_sharpness steps", "m_sharpness", "m_sharpness batches",
    "sharpness", "sharpness steps", "gradient_noise", "hessian_diagonal", "hessian_trace",
    "barrier", "barrier_matrix", "bezier", "calibration", "memorization", "features", "trajectory",
    "perturbation_controls", "enrichment", "block_curvature",
]  # fmt: skip
# More at size 2. A recurrence is read once, to see whether it broke down while its basis is there:
# two more probes. A batch is asked once whether its gradient is finite, for each variant.
MORE = {"spectral_density": 2, "batch_overlap": 4, "mask_overlap": 2}


def asked_by_us(seen):
    """Waits but those of the calls themselves, which make points on the host."""
    both = seen.reads + seen.uploads
    return sum(n for (_, line), n in both.items() if not line.startswith("tests/"))


@pytest.mark.thorough
@pytest.mark.parametrize("name", [*ASKED_ONCE, *MORE])
def test_the_host_waits_as_often_for_twice_the_work(name):
    waits = []
    for size in (1, 2):
        risk = risk_on(pretend.DEVICE)
        risk.probe()
        with pretend.watch() as seen:
            CALLS[name](risk, size)
        waits.append(asked_by_us(seen))
    assert waits[1] == waits[0] + MORE.get(name, 0), seen


# Searches, one for each checkpoint, batch or cell: how many more at size 2. A search has to know
# when it is done, and a product that it need not have made costs more than a wait.
SEARCHES = {"training_curvature": 2, "minibatch_eigenvalues": 3, "curvature_map": 40}
OF_A_SEARCH = 16  # what is read and written once: graphs checked, the proof, its small matrices


@pytest.mark.thorough
@pytest.mark.parametrize("name", SEARCHES)
def test_searches_wait_less_than_once_a_product(name):
    waits, products = [], []
    for size in (1, 2):
        risk = risk_on(pretend.DEVICE)
        risk.probe()
        with pretend.watch() as seen:
            found = CALLS[name](risk, size)
        waits.append(asked_by_us(seen))
        counts = [found[name] for name in found.data_vars if name.endswith("num_hvps")]
        products.append(sum(int(count.sum()) for count in counts))
    more = products[1] - products[0] + OF_A_SEARCH * SEARCHES[name]
    assert waits[1] - waits[0] <= more, seen
