"""What happens to folders of studies: edited, renamed, copied in part, moved; and to clocks."""

import os
import re
import shutil
import time
from pathlib import Path

import pytest

from landscape import report, results
from landscape.errors import LandscapeError
from landscape.storage import StudyFolder
from landscape.study import Options, parse, reopen, run, verify
from landscape.study.running import report_is_fresh

HERE = Path(__file__).parents[1]
TEXT = """
name = "disasters"
[problem]
data = "study_problem:splits"
model = "study_problem:make"
[training]
epochs = 1
batch_size = 16
[variants.mine]
recipe = "sam"
rho = 0.1
[grid]
variant = ["sgd", "mine"]
[measure]
examples = 24
measurements = ["generalization", "history"]
"""
HERE_ONLY = Options(device="cpu", workers=0, quiet=True)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made") / "study"
    assert not run(parse(TEXT, base=HERE), folder, HERE_ONLY).failed
    return folder


@pytest.fixture
def folder(made, tmp_path):
    return Path(shutil.copytree(made, tmp_path / "study"))


def again(folder):
    return run(reopen(folder), folder, HERE_ONLY)


def losses(folder):
    ds = results.load(folder / "results" / "generalization.nc")
    return dict(zip(map(str, ds.variant.values), ds.train_loss.values.tolist(), strict=True))


def test_a_study_file_that_was_edited_between_resumes_is_followed_and_what_it_dropped_is_said(
    made, folder
):
    path = folder / "study.toml"
    path.write_text(TEXT.replace("rho = 0.1", "rho = 0.9"))
    assert any(str(path) in text for text in verify(folder).problems)
    summary = again(folder)
    assert [name[:6] for name in summary.done] == ["mine-s"]
    assert [name[:6] for name in summary.kept] == ["sgd-s0"]
    assert [name[:6] for name in summary.stale] == ["mine-s"]
    assert losses(folder)["sgd"] == losses(made)["sgd"]
    assert losses(folder)["mine"] != losses(made)["mine"]
    assert verify(folder).problems == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'name = "disasters', "not valid TOML"),
        (b'name = "\xff"', "is not a text file in UTF-8"),
        (TEXT.replace("rho", "roh").encode(), r"has no entry 'roh'. Did you mean 'rho'\?"),
        (TEXT.replace("disasters", "other").encode(), "holds the study 'disasters'"),
        (None, "is a folder"),
    ],
)
def test_a_study_file_that_was_spoilt_between_resumes_is_refused_by_its_path(
    folder, content, message
):
    path = folder / "study.toml"
    path.unlink()
    path.mkdir() if content is None else path.write_bytes(content)
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*.nc")}
    with pytest.raises(LandscapeError, match=message) as refused:
        again(folder)
    assert str(folder) in str(refused.value)
    assert "\n" not in str(refused.value)
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*.nc")} == before


def test_a_variant_that_was_renamed_is_another_and_the_results_hold_the_new_name_alone(
    made, folder
):
    text = TEXT.replace("variants.mine", "variants.ours").replace('"mine"', '"ours"')
    (folder / "study.toml").write_text(text)
    summary = again(folder)
    assert [name[:6] for name in summary.stale] == ["mine-s"]
    found = losses(folder)
    assert found.keys() == {"sgd", "ours"}
    assert found["ours"] == losses(made)["mine"]
    resolved = reopen(folder)
    assert [v.name for v in resolved.variants] == ["ours", "sgd"]


def test_a_label_that_was_changed_trains_nothing_and_is_in_every_result(made, folder):
    (folder / "study.toml").write_text(TEXT.replace("rho = 0.1", 'rho = 0.1\nlabel = "Ours"'))
    summary = again(folder)
    assert not summary.stale
    for path in (folder / "results").glob("*.nc"):
        ds = results.load(path)
        if "label" in ds.variables:
            assert set(map(str, ds.label.values)) == {"sgd", "Ours"}, path
    assert losses(folder) == losses(made)


PARTS = (
    "results", "runs", "runs/mine*/results", "runs/mine*/checkpoints", "runs/mine*/history.jsonl",
    "runs/mine*/measured.jsonl", "runs/mine*/done.json", "runs/mine*/spec.json",
    "runs/mine*/snapshots", "runs/mine*/checkpoints/final.safetensors",
    "runs/mine*/checkpoints/final.json", "runs/mine*/checkpoints/last.pt", "results/index.json",
    "data.json", "runs/mine*",
)  # fmt: skip


@pytest.mark.thorough
@pytest.mark.parametrize("part", PARTS)
def test_a_copy_without_a_part_is_made_whole_with_the_same_numbers_or_refused_by_name(
    made, folder, part
):
    (lost,) = folder.glob(part)
    shutil.rmtree(lost) if lost.is_dir() else lost.unlink()
    summary = again(folder)
    for reason in summary.failed.values():
        assert str(folder) in reason
        assert "\n" not in reason
    known = losses(made)
    found = losses(folder)
    assert found == {name: known[name] for name in found}
    assert len(found) >= 2 - len(summary.failed)
    if summary.failed:
        (reason,) = summary.failed.values()
        assert "final." in part
        assert "is not there; copy it too, or remove" in reason
        (advised,) = re.findall(r"or remove (\S+) and train again", reason)
        shutil.rmtree(advised)
        assert not again(folder).failed
    assert losses(folder) == known
    assert verify(folder).problems == []


def test_a_copy_without_its_choices_is_no_study_of_ours(folder):
    (folder / "resolved.json").unlink()
    with pytest.raises(LandscapeError, match=r"holds no resolved.json, so it is not a study"):
        again(folder)
    with pytest.raises(LandscapeError, match=r"holds other files and no resolved.json"):
        run(parse(TEXT, base=HERE), folder, HERE_ONLY)


def test_a_folder_that_was_moved_or_is_reached_by_a_link_is_the_same_study(made, folder):
    moved = folder.rename(folder.parent / "moved é")
    link = folder.parent / "link"
    link.symlink_to(moved, target_is_directory=True)
    for place in (moved, link):
        summary = again(place)
        assert not summary.done
        assert len(summary.kept) == 2
        assert not summary.combined
        assert verify(place).problems == []
        assert losses(place) == losses(made)
    link.unlink()
    link.symlink_to(folder.parent / "nowhere")
    with pytest.raises(LandscapeError, match=r"link is not a folder"):
        again(link)


COMPOSED, DECOMPOSED = "caf\u00e9", "cafe\u0301"


def test_names_that_look_alike_in_two_forms_of_unicode_are_said_to_do_so():
    text = TEXT.replace("variants.mine", f'variants."{COMPOSED}"')
    with pytest.raises(LandscapeError, match=r"looks like 'caf\\xe9', in another form of Unicode"):
        parse(text.replace('"mine"', f'"{DECOMPOSED}"'), base=HERE)
    both = text.replace("[grid]", f'[variants."{DECOMPOSED}"]\nrecipe = "sam"\nrho = 0.2\n[grid]')
    with pytest.raises(LandscapeError, match=r"written in two ways"):
        parse(both.replace('"mine"', f'"{COMPOSED}"'), base=HERE)


def test_a_clock_that_jumped_back_changes_nothing_that_is_kept(made, folder):
    """Files of a future that has not come yet: what counts are digests."""
    later = time.time() + 1e6
    for path in folder.rglob("*"):
        os.utime(path, (later, later))
    summary = again(folder)
    assert len(summary.kept) == 2
    assert not summary.done
    assert not summary.combined
    assert verify(folder).problems == []


def test_a_report_from_before_a_clock_jumped_back_is_written_anew(folder):
    place = StudyFolder(folder)
    report.write(place, formats=())
    later = time.time() + 1e6
    os.utime(place.report, (later, later))
    assert report_is_fresh(place)
    for text in (
        TEXT.replace("rho = 0.1", "rho = 0.9"),
        TEXT.replace("rho = 0.1", "rho = 0.9").replace("[problem]", 'question = "Why?"\n[problem]'),
    ):
        place.study_toml.write_text(text)
        again(folder)
        assert not report_is_fresh(place)
        report.write(place, formats=())
        os.utime(place.report, (later, later))
        assert report_is_fresh(place)
    assert verify(folder).problems == []
