"""What an undecided explanation proposes: study files that can be read, and run."""

import shutil
import tomllib
from pathlib import Path

import pytest

from landscape import report, results
from landscape.report.experiments import deciding
from landscape.report.family import Family
from landscape.report.study import StudyResults
from landscape.study import Options, parse, run
from landscape.toml import dumps

HERE = Path(__file__).parents[1]
TEXT = """
name = "small"
[problem]
data = "study_problem:splits"
model = "study_problem:make"
[training]
epochs = 2
batch_size = 16
[settings.noisy]
title = "first"
[settings.clean]
training.lr = 0.05
[variants.sam]
rho = 0.1
[[grid]]
setting = ["noisy", "clean"]
variant = ["sgd", "sam", "asam", "zsharp"]
seed = [0, 1]
[comparisons]
metric = "test_accuracy"
setting = "noisy"
references = ["sgd", "sam"]
[measure]
measurements = ["generalization", "top_eigenvalues"]
examples = 24
[measure.top_eigenvalues]
k = 1
"""
NEEDS = (
    "variants:3", "controls", "seeds", "measure:trace", "measure:rho_eff", "match:train_loss",
    "match:rho_eff",
)  # fmt: skip


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(HERE))
        place = tmp_path_factory.mktemp("experiments")
        done = run(parse(TEXT, base=HERE), place / "small", Options(workers=0))
        yield Family.of(StudyResults.read(done.folder))


@pytest.mark.thorough
def test_every_need_makes_a_file_that_is_read(family, monkeypatch):
    """Each change alone and all together; runs are those of the setting that is asked about."""
    monkeypatch.syspath_prepend(str(HERE))
    for needs in [*((need,) for need in NEEDS), NEEDS]:
        made = deciding(family, "noisy", "flatter_lambda1", "compatible", needs)
        # From wherever the file is: it says where the modules lie that it names.
        plan = parse(made.text, base=HERE / "nowhere")
        assert plan.base == HERE
        assert {one.setting for one in plan.runs} == {"noisy"}
        assert plan.name == "small-noisy-flatter-lambda1"
        given = tomllib.loads(made.text)
        if "seeds" in needs:
            assert len({one.seed for one in plan.runs}) >= 8
        if "variants:3" in needs:
            assert {"fsam", "gsam", "sam_on"} <= {one.family for one in plan.runs}
        if "controls" in needs:
            assert {"control_mask", "control_early"} <= {one.family for one in plan.runs}
        if "match:rho_eff" in needs:
            radii = {one.axes["rho"] for one in plan.runs if one.family == "sam"}
            assert radii == {0.05, 0.1, 0.2}
            # Its rho is the recipe's own, which the file does not name.
            assert len({one.axes["rho"] for one in plan.runs if one.family == "asam"}) == 3
        if "measure:rho_eff" in needs:
            assert "perturbation" in given["measure"]["measurements"]


@pytest.mark.slow
@pytest.mark.parametrize("needs", [("controls", "measure:rho_eff"), ("match:rho_eff",)])
def test_proposed_studies_run_and_are_reported(family, tmp_path, monkeypatch, needs):
    """With one seed, to be quick: trained, measured, and read by the same page."""
    monkeypatch.syspath_prepend(str(HERE))
    made = deciding(family, "noisy", "flatter_lambda1", "compatible", needs)
    given = tomllib.loads(made.text)
    given["grid"] = [grid | {"seed": [0]} for grid in given["grid"]]
    done = run(parse(dumps(given), base=HERE), tmp_path / "next", Options(workers=0))
    page = report.write(done.folder)
    assert "control" in page.read_text() if "controls" in needs else page.exists()
    found = results.load(done.folder.results / "generalization.nc")
    assert found.sizes["run"] == (6 if "controls" in needs else 10)


def test_weights_from_elsewhere_are_not_proposed_for_training(family, tmp_path):
    """What would decide it is said; a file of checkpoints that are not there is not written."""
    text = family.study.folder.study_toml.read_text()
    folder = type(family.study.folder)(tmp_path)
    shutil.copytree(family.study.folder.root, tmp_path, dirs_exist_ok=True)
    path = folder.study_toml
    path.write_text(
        text.replace("seed = [0, 1]", 'seed = [0, 1]\nweights = "c/{variant}_{seed}.pt"')
    )
    other = Family.of(StudyResults.read(folder))
    made = deciding(other, "noisy", "flatter_lambda1", "compatible", ("seeds",))
    assert made.text == ""
    assert "seeds" in made.what
