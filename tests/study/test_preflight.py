"""What a study brings is tried before anything starts, and its data stay the same."""

import sys
from pathlib import Path

import pytest

from landscape import study
from landscape.errors import LandscapeError
from landscape.storage import StudyFolder, read_json
from landscape.study import Options, parse, run
from landscape.study.problem import load_data

TEXT = """
name = "pairs"
[problem]
data = "own_data:{name}"
model = "study_problem:plain"
[training]
epochs = 1
batch_size = 16
[grid]
variant = ["sgd"]
seed = {seeds}
[measure]
measurements = ["norms"]
examples = 24
"""
CODE = """
from pathlib import Path

import torch


def parts(seed):
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(48) % 3
    return torch.randn(48, 4, generator=generator) + y[:, None], y


def steady():
    return {"train": parts(0), "test": parts(1)}


def drawn():
    return {"train": parts(int(torch.randint(2**31, ()))), "test": parts(1)}


def of_a_file():
    return {"train": parts(int(Path("seed.txt").read_text())), "test": parts(1)}


def failing():
    return [][1]
"""
HERE = Path(__file__).parents[1]
HERE_ONLY = Options(device="cpu", workers=0, quiet=True)


@pytest.fixture(autouse=True)
def beside(tmp_path, monkeypatch):
    """A folder with the user's code, which is where the study lies."""
    (tmp_path / "own_data.py").write_text(CODE)
    (tmp_path / "study_problem.py").write_text((HERE / "study_problem.py").read_text())
    (tmp_path / "seed.txt").write_text("0")
    monkeypatch.chdir(tmp_path)
    for name in ("own_data", "study_problem"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    load_data.cache_clear()
    yield tmp_path
    load_data.cache_clear()


def plan(name, base, seeds=(0, 1)):
    return parse(TEXT.format(name=name, seeds=list(seeds)), base=base)


def test_a_study_keeps_the_digests_of_its_data(beside):
    place = run(plan("steady", beside), beside / "s", HERE_ONLY).folder
    (entry,) = read_json(place.data).values()
    assert entry["problem"]["data"] == "own_data:steady"
    assert entry["sha256"].keys() == {"train", "test"}
    assert not study.verify(place.root).problems


def test_data_that_have_changed_are_refused_on_resume_and_a_new_folder_takes_them(beside):
    text = plan("of_a_file", beside)
    assert len(run(text, beside / "s", HERE_ONLY).done) == 2
    (beside / "seed.txt").write_text("1")
    load_data.cache_clear()
    # What is finished is not read again.
    assert len(run(text, beside / "s", HERE_ONLY).kept) == 2
    more = plan("of_a_file", beside, seeds=(0, 1, 2))
    with pytest.raises(LandscapeError, match=r"not those that this study was begun with.*train"):
        run(more, beside / "s", HERE_ONLY)
    assert not run(more, beside / "new", HERE_ONLY).failed


@pytest.mark.thorough
def test_data_that_every_process_draws_anew_fail_by_name_in_each_worker(beside):
    found = run(plan("drawn", beside), beside / "s", Options(device="cpu", workers=1, quiet=True))
    assert len(found.failed) == 2
    assert all("seed them within it" in reason for reason in found.failed.values())


def test_data_that_cannot_be_read_are_bad_input_before_anything_starts(beside):
    with pytest.raises(LandscapeError, match=r"own_data:failing failed: IndexError.*line \d+"):
        run(plan("failing", beside), beside / "s", HERE_ONLY)
    assert not StudyFolder(beside / "s").runs.exists()
