"""Combining reads what is new or changed, and writes what it would write if it read everything."""

import shutil
from pathlib import Path

import pytest

from landscape import results
from landscape.storage import StudyFolder
from landscape.study import Options, combining, parse, run, verify

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
