"""Killed, or out of space, at any of its writes, a study ends with the same bits when run again.

LANDSCAPE_CRASHES=1 tries each change of the disk instead of a few, LANDSCAPE_CRASHES=5 every fifth.
"""

import json
import os
import random
import re
import shutil
import sys
from pathlib import Path

import pytest

from landscape import report, results
from landscape.errors import LandscapeError
from landscape.storage import StudyFolder, sweep
from landscape.study import Options, parse, run, verify
from tests.crashing import KILLED, Disk, States, in_a_child

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
    """What an undisturbed study leaves, its changes of the disk, and what a kill at each leaves."""
    place = tmp_path_factory.mktemp("whole")

    def recorded():
        with States(place / "study", place / "kept") as disk:
            work(place / "study")
        (place / "log").write_text("\n".join(disk.log))

    assert in_a_child(recorded) == (0, "")
    return left(place / "study"), (place / "log").read_text().splitlines(), place / "kept"


def some(every, how, count):
    return every[::STRIDE] if STRIDE else sorted(random.Random(how).sample(every, count))


def check_that_it_ends_the_same(folder, expected, where):
    work(folder)
    assert left(folder) == expected, where
    assert verify(folder).problems == [], where
    assert not list(folder.rglob(".landscape-*")), where


@pytest.mark.thorough
@pytest.mark.parametrize(("how", "count"), [("kill", 4), ("torn", 2)])
def test_what_a_kill_at_any_write_leaves_ends_with_the_same_bits(how, count, whole, tmp_path):
    expected, log, kept = whole
    every = sorted(int(path.name.partition("-")[2]) for path in kept.glob(f"{how}-*"))
    assert len(every) == len(log) if how == "kill" else len(every) > 20
    for at in some(every, how, count):
        folder = shutil.copytree(kept / f"{how}-{at}", tmp_path / str(at))
        where = f"{how} at change {at} of {len(log)}, {log[at - 1]}"
        check_that_it_ends_the_same(folder, expected, where)


@pytest.mark.parametrize("how", ["kill", "torn"])
def test_a_process_that_is_killed_there_leaves_these_files(how, whole, tmp_path):
    _, log, kept = whole
    every = sorted(int(path.name.partition("-")[2]) for path in kept.glob(f"{how}-*"))
    at, folder = random.Random(how).choice(every), tmp_path / "study"

    def killed():
        with Disk(folder, at, how):
            work(folder)

    assert in_a_child(killed)[0] == KILLED

    def names(place):
        found = (str(path.relative_to(place)) for path in place.rglob("*"))
        # The names of temporary files are those of their process, and drawn.
        return sorted(re.sub(r"\.landscape-.*?(\.\w+)?$", r"temporary\1", name) for name in found)

    assert names(folder) == names(kept / f"{how}-{at}"), log[at - 1]


def test_without_space_at_any_write_it_says_so_and_ends_the_same_once_there_is_some(
    whole, tmp_path
):
    expected, log, _ = whole
    for at in some(range(1, len(log) + 1), "full", 2):
        folder, where = tmp_path / str(at), f"full at change {at} of {len(log)}, {log[at - 1]}"
        said = ""
        with Disk(folder, at, "full"):
            try:
                work(folder)
            except (LandscapeError, RuntimeError) as error:
                said = str(error)
        if said:
            assert "The disk is full" in said, where
            assert "Traceback" not in said, where
        else:  # it had written everything
            assert left(folder) == expected, where
        check_that_it_ends_the_same(folder, expected, where)


def test_a_report_that_was_stopped_at_any_write_is_whole_when_written_again(whole, tmp_path):
    work(tmp_path / "study")
    place = StudyFolder(tmp_path / "study")
    page = report.write(place, formats=()).read_bytes()  # the first also makes the folders

    def recorded():
        with States(place.root, tmp_path / "kept"):
            report.write(place, formats=())

    assert in_a_child(recorded) == (0, "")
    for at in some(range(1, len(list((tmp_path / "kept").iterdir())) + 1), "report", 2):
        found = StudyFolder(tmp_path / "kept" / f"kill-{at}")
        assert report.write(found, formats=()).read_bytes() == page
        sweep(found.root)
        assert verify(found.root).problems == []
