"""Combining reads what is new or changed, and writes what it would write if it read everything."""

import shutil
import time
from pathlib import Path

import pytest

from landscape import results
from landscape.storage import StudyFolder
from landscape.study import Options, combining, parse, run, run_folder, verify
from landscape.study.ahead import Ahead

HERE = Path(__file__).parents[1]
TEXT = """
name = "combining"
[problem]
data = "study_problem:splits"
model = "study_problem:make"
[training]
epochs = 1
batch_size = 16
[grid]
variant = ["sam"]
rho = [0.1]
seed = [0, 1]
[measure]
examples = 24
measurements = ["generalization", "history"]
"""
HERE_ONLY = Options(device="cpu", workers=0, quiet=True)


def work(folder, seeds="[0, 1]"):
    summary = run(parse(TEXT.replace("[0, 1]", seeds), base=HERE), folder, HERE_ONLY)
    assert not summary.failed
    return summary


@pytest.fixture
def read(monkeypatch):
    """Names of the results that combining has read."""
    found, load = [], results.load

    def counted(path):
        found.append(Path(path))
        return load(path)

    monkeypatch.setattr(combining.results, "load", counted)
    return found


def parts(read):
    return sorted((p.parents[1].name, p.stem) for p in read if p.parents[1].parent.name == "runs")


def test_a_seed_more_is_read_alone_and_the_whole_is_as_if_all_were(tmp_path, read):
    place = StudyFolder(tmp_path / "study")
    work(place.root)
    assert len(parts(read)) == 4
    read.clear()
    assert work(place.root).combined == ()
    assert parts(read) == []
    assert set(work(place.root, "[2, 0, 1]").combined) == {"generalization", "history"}
    assert {name for _, name in parts(read)} == {"generalization", "history"}
    assert len({name for name, _ in parts(read)}) == 1
    again = {p.name: p.read_bytes() for p in place.results.glob("*.nc")}
    shutil.rmtree(place.results)
    work(place.root, "[2, 0, 1]")
    assert {p.name: p.read_bytes() for p in place.results.glob("*.nc")} == again
    assert verify(place.root).problems == []


def test_a_combined_file_that_was_changed_is_not_built_upon(tmp_path, read):
    place = StudyFolder(tmp_path / "study")
    work(place.root)
    path = place.results / "generalization.nc"
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    read.clear()
    assert work(place.root).combined == ("generalization",)
    assert len(parts(read)) == 2
    assert path.read_bytes() == whole


def test_times_of_files_do_not_matter(tmp_path, read):
    """A study that was copied without them is not combined again."""
    work(tmp_path / "study")
    shutil.copytree(tmp_path / "study", tmp_path / "copied", copy_function=shutil.copyfile)
    read.clear()
    assert work(tmp_path / "copied").combined == ()
    assert read == []


def read_ahead(place, count):
    """What was read while nobody waited for it; `count` results are waited for."""
    with Ahead(wanted=True) as ahead:
        for folder in sorted(place.runs.iterdir()):
            ahead.add(folder)
        until = time.monotonic() + 60
        while len(ahead.found) < count and time.monotonic() < until:
            time.sleep(0.01)
    return ahead.found


def test_what_was_read_ahead_is_not_read_again_and_combined_alike(tmp_path, read):
    place = StudyFolder(tmp_path / "study")
    work(place.root)
    whole = {p.name: p.read_bytes() for p in place.results.glob("*.nc")}
    found = read_ahead(place, 4)
    assert len(found) == 4
    shutil.rmtree(place.results)
    read.clear()
    study = parse(TEXT, base=HERE)
    combining.combine_all(run_folder.Trainings(study, place), place, found)
    assert parts(read) == []
    assert {p.name: p.read_bytes() for p in place.results.glob("*.nc")} == whole


def test_what_is_damaged_is_not_there_ahead_and_does_not_end_the_reading(tmp_path):
    place = StudyFolder(tmp_path / "study")
    work(place.root)
    damaged = min(place.runs.glob("*/results/history.nc"))
    damaged.write_bytes(damaged.read_bytes()[:-100])
    found = read_ahead(place, 3)
    assert sorted(ds.attrs["measurement"] for ds in found.values()) == [
        "generalization", "generalization", "history"
    ]  # fmt: skip


def test_results_that_workers_made_are_read_while_others_work(tmp_path, monkeypatch):
    """Bytes of the combined files are those of one process, whoever read the parts."""
    work(tmp_path / "here")
    names, stop = [], Ahead.stop

    def counted(ahead):
        until = time.monotonic() + 60
        while not ahead.found and time.monotonic() < until:
            time.sleep(0.01)
        names.append(len(ahead.found))
        stop(ahead)

    monkeypatch.setattr(Ahead, "stop", counted)
    two = Options(device="cpu", workers=1, quiet=True)
    assert not run(parse(TEXT, base=HERE), tmp_path / "there", two).failed
    assert names[0] > 0
    one, other = StudyFolder(tmp_path / "here").results, StudyFolder(tmp_path / "there").results
    for path in one.glob("*.nc"):
        drop = ["train_seconds", "epoch_seconds"]
        a, b = (results.load(place / path.name) for place in (one, other))
        a, b = (ds.drop_vars(drop, errors="ignore").drop_attrs() for ds in (a, b))
        assert results.digest(a) == results.digest(b), path.name
