"""An axis of a study from file to report: rows are never averaged, pairs have equal axes."""

import json
from pathlib import Path

import numpy as np
import pytest

from landscape import report, results
from landscape.plot import runs
from landscape.report.family import Family
from landscape.report.study import StudyResults
from landscape.study import Options, parse, run

HERE = Path(__file__).parents[1]
TEXT = """
name = "axes"
[problem]
data = "study_problem:splits"
model = "study_problem:make"
[training]
epochs = 2
batch_size = 16
[variants.sgd]
[variants.sam]
label = "SAM"
[grid]
variant = ["sgd", "sam"]
rho = [0.05, 0.5]
lr = [0.01, 0.1]
seed = [0, 1]
[comparisons]
references = ["sgd"]
[[comparisons.questions]]
asked = "Does SAM help?"
pairs = [["sam", "sgd"]]
[measure]
examples = 24
measurements = ["generalization", "top_eigenvalues", "history"]
[measure.top_eigenvalues]
k = 1
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("axes") / "study"
    done = run(parse(TEXT, base=HERE), folder, Options(device="cpu", workers=0, quiet=True))
    assert not done.failed
    return done.folder


def test_results_carry_every_axis_and_rows_differ_in_the_seed_alone(place):
    ds = results.load(place.results / "generalization.nc")
    assert ds.sizes["run"] == 2 * 2 + 2 * 4
    assert set(ds["family"].values) == {"sgd", "sam"}
    axes = [json.loads(text) for text in ds["axes"].values]
    assert {tuple(a) for a in axes} == {("lr",), ("rho", "lr")}
    np.testing.assert_array_equal(ds.lr.values, [a["lr"] for a in axes])
    for v in runs.variants(ds):
        assert sorted(v.ds.seed.values) == [0, 1]
        assert len(np.unique(v.ds.lr)) == len(np.unique(v.ds.rho)) == 1


def test_a_row_is_compared_with_the_row_of_the_reference_that_has_its_learning_rate(place):
    study = StudyResults.read(place)
    made = [one for one in Family.of(study).made.values() if one.metric.key == study.metric]
    assert {(one.a, one.b) for one in made} == {
        (f"sam rho={rho}, lr={lr}", f"sgd lr={lr}") for rho in (0.05, 0.5) for lr in (0.01, 0.1)
    }
    assert all(one.decision.interval.n == 2 for one in made)
    accuracy = study.data["generalization"].set_index(run=("variant", "seed"))["test_accuracy"]
    one = made[0]
    by_hand = [
        float(accuracy.sel(variant=one.a, seed=s) - accuracy.sel(variant=one.b, seed=s))
        for s in (0, 1)
    ]
    assert one.plain == pytest.approx(np.mean(by_hand), abs=1e-12)


def test_where_several_rows_would_do_no_pair_is_made(place):
    study = StudyResults.read(place)
    setting = study.settings[0]
    assert study.partner(setting, "sgd lr=0.1", "sam") is None
    assert study.partner(setting, "sam rho=0.5, lr=0.1", "sgd") == "sgd lr=0.1"
    assert study.partner(setting, "sam rho=0.5, lr=0.1", "sam") is None
    assert study.partner(setting, "sgd lr=0.1", "sam rho=0.5, lr=0.1") == "sam rho=0.5, lr=0.1"
    assert study.row_pairs(setting, "sgd", "sam") == [
        (f"sgd lr={lr}", f"sam rho={rho}, lr={lr}") for lr in (0.01, 0.1) for rho in (0.05, 0.5)
    ]


def test_the_report_is_written_with_a_line_for_each_row(place):
    text = report.write(place, formats=()).with_suffix(".md").read_text(encoding="utf-8")
    for rho in ("0.05", "0.5"):
        for lr in ("0.01", "0.1"):
            assert f"| SAM, ρ = {rho}, lr = {lr} 2 seeds |" in text
    assert "4 seeds" not in text


def test_the_axis_has_its_table_in_the_results_and_in_the_report(place):
    ds = results.load(place.results / "along_rho.nc")
    assert sorted(zip(ds.line.values, ds.value.values)) == [
        ("lr = 0.01", 0.05), ("lr = 0.01", 0.5), ("lr = 0.1", 0.05), ("lr = 0.1", 0.5)
    ]  # fmt: skip
    accuracy = results.load(place.results / "generalization.nc")
    for i, row in enumerate(ds.variant.values):
        own = accuracy.val_accuracy.values[accuracy.variant.values == row]
        assert ds.val_accuracy.values[i] == pytest.approx(own.mean(), abs=1e-12)
        assert ds.eigenvalue_n.values[i] == 2
    assert (ds.num_trainings == 4).all()
    for line in np.unique(ds.line.values):
        part = ds.isel(variant=np.flatnonzero(ds.line.values == line))
        assert part.chosen.sum() == 1
        best = part.val_accuracy.values[part.chosen.values == 1]
        assert best == part.val_accuracy.values.max()
    assert (place.results / "along_lr.nc").exists()
    text = report.write(place, formats=()).with_suffix(".md").read_text(encoding="utf-8")
    assert "### SAM, lr = 0.1: against rho" in text
    assert "### sgd: against lr" in text
    assert "The choice took 4 trainings" in text


DIVERGES = """
name = "diverges"
[problem]
data = "digits"
model = "mlp"
[training]
epochs = 2
batch_size = 100
lr = 0.05
[variants.sgd]
[variants.sam]
rho = 1e20
[grid]
variant = ["sgd", "sam"]
seed = [0, 1]
[measure]
examples = 24
measurements = ["generalization", "history", "top_eigenvalues"]
[measure.top_eigenvalues]
k = 1
"""


def test_a_variant_that_skips_its_steps_is_counted_as_diverged_and_is_no_datum(tmp_path):
    options = Options(device="cpu", workers=0, quiet=True)
    done = run(parse(DIVERGES, base=HERE), tmp_path / "s", options)
    assert [name[:6] for name in done.failed] == ["sam-s0", "sam-s1"]
    assert all("steps were skipped" in why for why in done.failed.values())
    again = run(parse(DIVERGES, base=HERE), tmp_path / "s", options)
    assert again.failed == done.failed
    assert (len(again.kept), again.done) == (2, ())
    place = done.folder
    for path in place.results.glob("*.nc"):
        ds = results.load(path)
        expected = {"sgd", "sam"} if path.stem == "trainings" else {"sgd"}
        assert set(ds.variant.values) == expected, path.stem
    ds = results.load(place.results / "trainings.nc")
    assert ds.status.values.tolist() == ["trained"] * 2 + ["diverged"] * 2
    assert (ds.num_skipped.values[2:] >= 0.9 * ds.num_steps.values[2:]).all()
    assert (ds.num_skipped.values[:2] == 0).all()
    assert all(text.startswith("threads 1, cpu, float32, torch") for text in ds.arithmetic.values)
    text = report.write(place, formats=()).with_suffix(".md").read_text(encoding="utf-8")
    assert "Not every training went well: sam 0 of 2 seeds, 2 diverged." in text
    assert "more than 5 %" in text
    assert "flatter" not in text.partition("## Evidence")[0]
