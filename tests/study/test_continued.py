"""A folder belongs to the file that made it: what goes on in it, is said first, or is refused."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from landscape.errors import LandscapeError
from landscape.report import StudyResults
from landscape.storage import StudyFolder, read_json
from landscape.study import Options, load, reopen, run

TEXT = """
name = "demo"
[problem]
data = "study_problem:splits"
model = "study_problem:make"
[training]
epochs = 1
batch_size = 16
[grid]
variant = ["sgd", "sam"]
rho = [0.1]
seed = [0]
[measure]
examples = 24
measurements = ["generalization"]
"""
HERE_ONLY = Options(device="cpu", workers=0)
MORE_SEEDS = ("seed = [0]", "seed = [0, 1]")
OTHER_RHO = ("rho = [0.1]", "rho = [0.2]")
LESS = ('"sgd", "sam"', '"sam"')
OTHER_METRIC = ("[measure]", '[comparisons]\nmetric = "test_loss"\n[measure]')
LABEL = ("[problem]", '[problem]\nloss = "cross_entropy"')


@pytest.fixture
def project(tmp_path):
    """A folder with a study file that has run, and the folder of its study."""
    place = tmp_path / "project"
    place.mkdir()
    code = Path(__file__).parents[1] / "study_problem.py"
    shutil.copy(code, place / "study_problem.py")
    written(place / "one.toml")
    go(place / "one.toml", place / "studies" / "demo")
    return place


def written(path, *changes):
    text = TEXT
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    path.write_text(text)
    return path


def go(file, folder):
    return run(load(file), folder, HERE_ONLY)


def names(summary):
    return len(summary.done), len(summary.kept), len(summary.stale)


def test_a_file_that_only_grows_goes_on_without_a_word(project, capsys):
    folder = project / "studies" / "demo"
    capsys.readouterr()
    assert names(go(written(project / "one.toml", MORE_SEEDS), folder)) == (2, 2, 0)
    assert names(go(written(project / "one.toml", MORE_SEEDS, LABEL), folder)) == (0, 4, 0)
    assert "changed" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "said", "counts"),
    [
        (
            [OTHER_RHO],
            "(grid.rho = [0.1], now [0.2]). 1 run of 2 is no longer asked for",
            (1, 1, 1),
        ),
        ([LESS], '(grid.variant = ["sgd", "sam"], now ["sam"]). 1 run of 2 is', (0, 1, 1)),
        ([OTHER_METRIC], '(comparisons.metric = not set, now "test_loss").\n', (0, 2, 0)),
        (
            [("epochs = 1", "epochs = 2")],
            "(training.epochs = 1, now 2). 2 runs of 2 are",
            (2, 0, 2),
        ),
    ],
)
def test_an_edited_file_says_what_changed_before_it_goes_on(project, changes, said, counts, capsys):
    folder = project / "studies" / "demo"
    capsys.readouterr()
    assert names(go(written(project / "one.toml", *changes), folder)) == counts
    assert f"Since {folder} was made, the study was changed {said}" in capsys.readouterr().err


def test_another_file_of_the_name_is_refused_and_the_advice_helps(project, capsys):
    folder = project / "studies" / "demo"
    before = (folder / "study.toml").read_text()
    two = written(project / "two.toml", OTHER_RHO)
    with pytest.raises(LandscapeError) as refused:
        go(two, folder)
    said = str(refused.value)
    assert f"holds the study 'demo' of {project / 'one.toml'}, and {two} has the same name" in said
    assert "(grid.rho = [0.1], now [0.2])" in said
    assert (folder / "study.toml").read_text() == before
    # Each of the ways out.
    assert names(go(two, project / "elsewhere")) == (2, 0, 0)
    (project / "one.toml").rename(project / "old.toml")
    assert names(go(two, folder)) == (1, 1, 1)
    assert "the study was changed (grid.rho" in capsys.readouterr().err


def test_another_file_that_asks_for_all_and_more_goes_on_and_is_named(project, capsys):
    folder = project / "studies" / "demo"
    same = written(project / "same.toml")
    capsys.readouterr()
    assert names(go(same, folder)) == (0, 2, 0)
    assert capsys.readouterr().err == ""
    more = written(project / "more.toml", MORE_SEEDS)
    assert names(go(more, folder)) == (2, 2, 0)
    assert f"{folder} was made by {same}; {more}, of the same name" in capsys.readouterr().err
    with pytest.raises(LandscapeError, match=r"has the same name and is another one"):
        go(project / "one.toml", folder)


def test_moved_and_copied_with_its_project_it_is_the_same_study(project, tmp_path, capsys):
    shutil.copytree(project, tmp_path / "copy")
    edited = written(tmp_path / "copy" / "one.toml", OTHER_RHO)
    assert names(go(edited, tmp_path / "copy" / "studies" / "demo")) == (1, 1, 1)
    # Moved together, the folder finds the modules that its file names.
    shutil.move(tmp_path / "copy", tmp_path / "there")
    folder = tmp_path / "there" / "studies" / "demo"
    assert reopen(folder).base == tmp_path / "there"
    assert names(run(reopen(folder), folder, HERE_ONLY)) == (0, 2, 1)
    # The study's folder alone: by its own file, and by the one that made it.
    shutil.move(project / "studies" / "demo", tmp_path / "moved")
    assert names(run(reopen(tmp_path / "moved"), tmp_path / "moved", HERE_ONLY)) == (0, 2, 0)
    edited = written(project / "one.toml", OTHER_RHO)
    assert names(go(edited, tmp_path / "moved")) == (1, 1, 1)


def test_a_row_that_was_trained_otherwise_after_numbers_were_seen_is_said_on_the_page(project):
    folder = StudyFolder(project / "studies" / "demo")
    assert "Since" not in StudyResults.read(folder).declared
    go(written(project / "one.toml", OTHER_RHO), folder.root)
    said = StudyResults.read(folder).declared
    assert "Since then sam was changed: which rows are compared" in said
    # A folder that kept the names of its first rows alone says nothing of changes.
    resolved = read_json(folder.resolved)
    first = {setting: sorted(rows) for setting, rows in resolved["rows_first"].items()}
    old = replace(StudyResults.read(folder), resolved=resolved | {"rows_first": first})
    assert "Since" not in old.declared
