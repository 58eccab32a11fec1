"""The same study in other ways: processes, threads, passes of a measurement, and where it stopped.

With one thread a training and its measurements are bit-identical over processes and stops. Another
number of threads takes other kernels of the BLAS, whose sums have another order, and so does a pass
of other rows: those numbers agree to roundings of float32.
"""

import json
import multiprocessing
import sys
from pathlib import Path

import numpy as np
import pytest

from landscape import results
from landscape.study import Options, parse, pool, run
from landscape.training import loop
from tests import study_repeated

ROOT = Path(__file__).parents[2]
TEXT = """
name = "repeated"
[problem]
data = "tests.study_repeated:splits"
model = "tests.study_repeated:make"
[training]
epochs = 2
batch_size = 16
[grid]
variant = ["sam"]
rho = [0.1]
seed = [0, 1]
[measure]
examples = 24
measurements = ["generalization", "history", "top_eigenvalues", "sharpness"]
[measure.top_eigenvalues]
k = 1
[measure.sharpness]
rho = [0.1]
ascent_steps = 2
restarts = 0
num_pairs = 2
"""
# Every pair of values of two of them: workers, threads, rows of a pass (24 examples), stopped at.
QUICK = ((0, 1, 7, "epoch 2"), (1, 2, None, "epoch 2"), (2, 1, 7, "trained"))
SLOW = (
    (0, 1, None, "nowhere"), (0, 2, None, "trained"), (1, 1, 7, "nowhere"),
    (1, 1, None, "trained"), (2, 2, 7, "nowhere"), (2, 1, None, "epoch 2"),
)  # fmt: skip
CELLS = (*QUICK, *(pytest.param(*cell, marks=pytest.mark.slow) for cell in SLOW))
# Of numbers near 1, passes of 7 rows changed 1.2e-7 at most (a loss), two threads from the first
# step on 2.4e-7 (a loss) and 6e-8 (a weight).
ROUNDING = np.finfo(np.float32).eps
TOLERANCE = {1: 4 * ROUNDING, 2: 16 * ROUNDING}  # by threads

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="a server that forks")


@pytest.fixture(scope="module", autouse=True)
def _forked():
    """Workers are forked from a server that has everything imported: cheap, and as much apart."""
    context = multiprocessing.get_context("forkserver")
    needed = ["landscape.study.worker", "landscape.study.measurements", "landscape.training"]
    context.set_forkserver_preload([*needed, "tests.study_repeated"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_WAIT_POLICY", "passive")  # for the server: no spinning beside other tests
        patch.setattr(pool, "get_context", lambda _: context)
        patch.setattr(pool, "_serve", study_repeated.serve)
        yield


def repeated(folder, workers, threads, rows, stopped):
    """The folder of the study, done in this way."""
    if rows is not None:
        (folder / "rows").write_text(str(rows))
    plan, place = parse(TEXT, base=ROOT), folder / "study"
    here = {"device": "cpu", "quiet": True}
    if stopped == "trained":
        assert not run(plan, place, Options(workers=0, measure=False, **here)).failed
    if stopped == "epoch 2":
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(loop._Session, "_step", _stopping(loop._Session._step))
            ended = run(plan, place, Options(workers=0, **here))
        assert all("stopped in epoch 2" in reason for reason in ended.failed.values())
        assert len(ended.failed) == 2
    summary = run(plan, place, Options(workers=workers, threads=threads, **here))
    assert not summary.failed
    assert (folder / "was cut").exists() == (rows is not None)
    return place


def _stopping(step):
    def stopping(self, number, batch):
        if number == 4:  # the second of three steps
            raise RuntimeError("stopped in epoch 2")
        return step(self, number, batch)

    return stopping


def trained(place):
    """Bytes of weights and snapshots, and the lines of the histories without clocks."""
    found = {}
    for path in sorted(place.rglob("runs/*/**/*")):
        name = str(path.relative_to(place))
        if path.suffix in (".safetensors", ".bin", ".npz"):
            found[name] = path.read_bytes()
        elif path.name == "history.jsonl":
            lines = [json.loads(line) for line in path.read_text().splitlines()]
            drop = ("seconds", "crc32")
            found[name] = [{k: v for k, v in line.items() if k not in drop} for line in lines]
    return found


def measured(place):
    """Every array of the combined results, without clocks."""
    found = {}
    for path in sorted((place / "results").glob("*.nc")):
        for name, variable in results.load(path).variables.items():
            if not str(name).endswith("seconds"):
                found[path.stem, str(name)] = variable.values
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    place = repeated(tmp_path_factory.mktemp("whole"), 0, 1, None, "nowhere")
    return trained(place), measured(place)


@pytest.mark.parametrize(("workers", "threads", "rows", "stopped"), CELLS)
def test_the_numbers_of_a_study_are_those_of_any_other_way(
    whole, tmp_path, workers, threads, rows, stopped
):
    place = repeated(tmp_path, workers, threads, rows, stopped)
    if threads == 1 or stopped == "trained":  # trained by one thread
        assert trained(place) == whole[0]
    found = measured(place)
    assert found.keys() == whole[1].keys()
    for key, expected in whole[1].items():
        if key == ("trainings", "arithmetic"):  # says by how many threads
            continue
        if expected.dtype.kind != "f" or (threads, rows) == (1, None):
            np.testing.assert_array_equal(found[key], expected, err_msg=str(key))
        else:
            scale = max(1.0, np.nanmax(np.abs(expected), initial=0.0))
            atol = TOLERANCE[threads] * scale
            np.testing.assert_allclose(found[key], expected, rtol=0, atol=atol, err_msg=str(key))
