"""The same question asked in other ways: parts of the axes, radii, BatchNorm modes, scans."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks import planted_rough as rough
from landscape import report
from landscape.errors import LandscapeError
from landscape.metrics import FLATNESS
from landscape.report import multiverse
from landscape.report.rules import WORDS
from landscape.report.study import StudyResults
from landscape.study import Options, parse, run
from landscape.study.demo import write_scans
from tests.fixtures_results import write_study


def planted(index=0, world="flatness"):
    rng = np.random.default_rng([5, index])
    truth = rough.plant(replace(rough.WORLDS[world], variants=8), rng)
    return rough.make_study(truth, rng)


def first(study):
    return study.settings[0]


def test_every_way_to_ask_is_weighed_once():
    """Measures with a radius at each of them, the others once; the page's own way is among them."""
    study = planted()
    found = multiverse.specifications(study, first(study))
    finite = [one for one in found if np.isfinite(one.radius)]
    assert {one.radius for one in finite} == set(rough.RADII)
    assert {one.measure for one in found} == set(FLATNESS)
    assert {one.word for one in found} <= set(WORDS)
    plain = [one for one in found if one.part == multiverse.WHOLE and one.measure == "lambda1"]
    assert len(plain) == 1
    assert len(found) == len({(s.part, s.measure, s.radius) for s in finite}) + len(
        {(s.part, s.measure) for s in found if not np.isfinite(s.radius)}
    )


def test_a_part_is_one_value_of_an_axis_and_what_has_none():
    """Radii of a variant's own are met by place; rows without the axis are in every part."""
    for index in range(30):
        study = planted(index)
        rows = study.variants(first(study))
        swept = [v for v in rows if v.axes]
        found = dict(multiverse.parts(study, first(study)))
        assert found[multiverse.WHOLE] == [v.id for v in rows]
        if not swept:
            assert list(found) == [multiverse.WHOLE]
            continue
        assert len(found) == 1 + len(swept)
        for name, kept in found.items():
            if name != multiverse.WHOLE:
                assert len(set(kept) & {v.id for v in swept}) == 1
                assert {v.id for v in rows if not v.axes} <= set(kept)
        return
    raise AssertionError("no study with an axis was drawn")


def test_the_share_counts_words_and_signs():
    study = planted()
    found = multiverse.specifications(study, first(study))
    word = found[0].word
    said = multiverse.holds(found, word)
    same = sum(one.word == word for one in found)
    assert said.startswith(f"The word is “{word}” in {same} of {len(found)} specifications")
    assert "without a test" in said
    assert multiverse.holds(found[:1], word) == ""


TEXT = """
name = "modes"
[problem]
data = "study_problem:splits"
model = "study_problem:make"
[training]
batch_size = 16
lr = 0.1
[grid]
variant = ["sgd", "sam"]
epochs = [1, 2]
seed = [0, 1]
[comparisons]
metric = "test_accuracy"
references = ["sgd"]
[measure]
examples = 24
measurements = ["generalization", "top_eigenvalues", "flatness_other_bn"]
[measure.top_eigenvalues]
k = 1
[measure.flatness_other_bn]
rho = [0.1]
num_probes = 2
num_pairs = 2
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    plan = parse(TEXT, base=Path(__file__).parents[1])
    folder = tmp_path_factory.mktemp("modes") / "study"
    done = run(plan, folder, Options(device="cpu", workers=0, quiet=True))
    assert not done.failed
    return done.folder


def test_axes_and_batchnorm_modes_are_asked_apart(finished):
    study = StudyResults.read(finished)
    found = multiverse.specifications(study, "default")
    assert {one.part for one in found} == {multiverse.WHOLE, "epochs = 1", "epochs = 2"}
    assert {one.bn for one in found} == {"eval", "full_batch"}
    assert all(one.counted == (2 if one.part == multiverse.WHOLE else 1) for one in found)


@pytest.mark.thorough
def test_the_page_shows_the_verdict_along_axes_modes_and_scans(finished, tmp_path):
    """Specifications are left as a table; another study's page shows it where it lies in scans/."""
    report.write(finished)
    table = finished.figures / "data" / "specifications.csv"
    page = (finished.root / "report.md").read_text(encoding="utf-8")
    assert "Does the verdict depend on how it is asked?" in page
    assert "| modes | epochs = 1 | full_batch |" in page
    other = write_study(tmp_path / "other")
    other.scans.mkdir()
    (other.scans / "modes.csv").write_bytes(table.read_bytes())
    found = multiverse.scans(other.scans)
    assert {one.part for one in found} == {multiverse.WHOLE, "epochs = 1", "epochs = 2"}
    shown = multiverse.specification_table(found, {})
    assert shown is not None
    assert {row[0] for row in shown.rows} == {"modes"}


def test_a_scan_that_is_none_is_refused_by_name(tmp_path):
    (tmp_path / "bad.csv").write_text("study,word\na,b\n", encoding="utf-8")
    with pytest.raises(LandscapeError, match=r"bad\.csv is no table of specifications"):
        multiverse.scans(tmp_path)


def test_the_demo_comes_with_scans_over_epochs_and_radii(tmp_path):
    """Committed results of analysis_scripts/scan_*.toml, which the page of the demo shows."""
    write_scans(tmp_path)
    found = multiverse.scans(tmp_path / "scans")
    parts = {one.part for one in found}
    assert {f"epochs = {n}" for n in (20, 40, 80)} <= parts
    assert {f"rho: value {n} of 3" for n in (1, 2, 3)} <= parts
    assert {one.study for one in found} == {"scan-epochs", "scan-rho"}
    assert {one.measure for one in found} == set(FLATNESS)
    assert all(one.word in WORDS for one in found)
    shown = multiverse.specification_table(found, {})
    assert shown is not None
    assert len(shown.rows) == len({(one.study, one.part, one.bn) for one in found})
