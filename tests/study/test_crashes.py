"""Killed, or out of space, at any of its writes, a study ends with the same bits when run again.

LANDSCAPE_CRASHES=1 tries each change of the disk instead of a few, LANDSCAPE_CRASHES=5 every fifth.
"""

import json
import os
import random
import sys
from pathlib import Path

import pytest

from landscape import report, results
from landscape.storage import StudyFolder, sweep
from landscape.study import Options, parse, run, verify
from tests.crashing import KILLED, Disk, in_a_child

HERE = Path(__file__).parents[1]
TEXT = """
name = "crashes"
[problem]
data = "study_problem:splits"
model = "study_problem:make"
[training]
epochs = 2
batch_size = 16
keep_every = 1
[variants.zsharp]
percentile = 0.5
[grid]
variant = ["zsharp"]
rho = [0.1]
seed = [0, 1]
[measure]
examples = 24
measurements = ["generalization", "history", "mask_persistence", "saved_mask_overlap"]
"""
HERE_ONLY = Options(device="cpu", workers=0, quiet=True)
STRIDE = int(os.environ.get("LANDSCAPE_CRASHES", "0"))

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="forks and /proc")


def work(folder):
    summary = run(parse(TEXT, base=HERE), folder, HERE_ONLY)
    if summary.failed:
        raise RuntimeError(" ".join(summary.failed.values()))


def left(folder):
    """Everything that decides or is a number, without clock times."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.suffix == ".nc":
            ds = results.load(path)
            timed = [n for n in ("train_seconds", "epoch_seconds") if n in ds.variables]
            found[name] = results.digest(ds.drop_vars(timed).drop_attrs())
        elif path.suffix in (".safetensors", ".bin", ".npz"):
            found[name] = path.read_bytes()
        elif path.name == "history.jsonl":
            lines = [json.loads(line) for line in path.read_text().splitlines()]
            drop = ("seconds", "crc32")
            found[name] = [{k: v for k, v in line.items() if k not in drop} for line in lines]
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What an undisturbed study leaves, and how often it changes the disk."""
    folder = tmp_path_factory.mktemp("whole") / "study"
    log = folder.parent / "log"

    def counted():
        with Disk(folder, 1 << 30, "kill") as disk:
            work(folder)
        log.write_text("\n".join(disk.log))

    assert in_a_child(counted) == (0, "")
    return left(folder), log.read_text().splitlines()


def places(how, whole):
    every = range(1, len(whole[1]) + 1)
    return every[::STRIDE] if STRIDE else sorted(random.Random(how).sample(every, 3))


@pytest.mark.parametrize("how", ["kill", "torn", "full"])
def test_at_any_write(how, whole, tmp_path):
    for at in places(how, whole):
        folder = tmp_path / str(at)

        def stopped(folder=folder, at=at):
            with Disk(folder, at, how):
                work(folder)

        code, said = in_a_child(stopped)
        where = f"{how} at change {at} of {len(whole[1])}, {whole[1][at - 1]}: {said}"
        if how == "full":
            assert code == 1, where
            assert "The disk is full" in said, where
            assert "Traceback" not in said, where
        else:
            assert code == KILLED, where
        code, said = in_a_child(lambda folder=folder: work(folder))
        assert code == 0, f"{where}; again: {said}"
        assert left(folder) == whole[0], where
        assert verify(folder).problems == [], where
        assert not list(folder.rglob(".landscape-*")), where


def test_a_report_that_was_stopped_at_any_write_is_whole_when_written_again(whole, tmp_path):
    work(tmp_path / "study")
    place = StudyFolder(tmp_path / "study")
    log = tmp_path / "log"

    def counted(at=1 << 30):
        with Disk(place.root, at, "kill") as disk:
            report.write(place, formats=())
        log.write_text("\n".join(disk.log))

    for _ in range(2):  # the first also makes the folders
        assert in_a_child(counted) == (0, "")
    page, total = place.report.read_bytes(), len(log.read_text().splitlines())
    for at in range(1, total + 1) if STRIDE == 1 else (1, total // 2, total):
        assert in_a_child(lambda at=at: counted(at))[0] == KILLED
        assert in_a_child(lambda: report.write(place, formats=())) == (0, "")
        sweep(place.root)
        assert place.report.read_bytes() == page
        assert verify(place.root).problems == []
