"""Studies that ask for every measurement of perturbations and of what was learned."""

from pathlib import Path

import numpy as np
import pytest

from landscape import results
from landscape.errors import LandscapeError
from landscape.storage import StudyFolder
from landscape.study import Options, parse, run

HERE = Path(__file__).parents[1]
TEXT = """
name = "perturbations"
[problem]
data = "study_problem:splits"
model = "study_problem:make"
label_noise = 0.0
[training]
epochs = 4
batch_size = 16
keep_every = 1
[variants.zsharp]
percentile = 0.5
[variants.equal]
recipe = "random_mask"
density = 0.5
equal = "loss_increase"
one_d = "dense"
[grid]
variant = ["zsharp"]
[measure]
examples = 24
measurements = [
  "gradient_zscores", "gradient_noise", "perturbation", "perturbation_controls",
  "perturbation_cosines", "mask_overlap", "batch_overlap", "enrichment", "mask_persistence",
  "mask_selection", "mask_filters", "calibration", "margins", "memorization",
  "robustness", "features", "norms",
]
[measure.gradient_zscores]
source = "mini-batch"
grouping = "channel"
batch_size = 8
num_batches = 3
[measure.gradient_noise]
batch_size = 8
lr = 0.05
[measure.perturbation_controls]
num_draws = 2
[measure.perturbation_cosines]
variants = ["sam", "zsharp", "equal"]
[measure.mask_overlap]
variants = ["zsharp", "random_mask", "equal"]
[measure.batch_overlap]
variants = ["zsharp", "equal"]
batch_size = 8
num_batches = 2
[measure.enrichment]
variants = ["zsharp", "equal"]
k = 1
num_probes = 2
fisher_examples = 4
[measure.robustness]
num_draws = 2
"""
HERE_ONLY = Options(device="cpu", workers=0, quiet=True)


SEEDS = (
    TEXT.split("[grid]")[0].replace("epochs = 4", "epochs = 1")
    + """
[grid]
variant = ["sgd", "zsharp"]
seed = [0, 1]
[measure]
examples = 24
measurements = ["saved_mask_overlap", "perturbation_controls"]
"""
)


def study(text, folder):
    summary = run(parse(text, base=HERE), folder, HERE_ONLY)
    assert not summary.failed
    return StudyFolder(folder)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return study(TEXT, tmp_path_factory.mktemp("study") / "perturbations")


def combined(place, name):
    return results.load(place.results / f"{name}.nc")


def test_every_measurement_is_combined_over_the_runs(finished):
    names = [path.stem for path in finished.results.glob("*.nc")]
    asked = parse(TEXT, base=HERE).measure.measurements
    assert sorted(names) == sorted(["trainings", *(each.name for each in asked)])
    names.remove("trainings")
    for name in names:
        ds = combined(finished, name)
        assert "run" in ds.dims, name
        for variable in ds.data_vars.values():
            assert variable.attrs["units"], name


def test_controls_can_be_named_and_have_their_strength(finished):
    ds = combined(finished, "perturbation_controls")
    matched = ds.sel(control="random, equal first order")["first_order_effect"]
    own = ds.sel(control="variant")["first_order_effect"]
    np.testing.assert_allclose(matched, own, rtol=1e-4)
    pairs = combined(finished, "mask_overlap")["pair"].values
    assert "zsharp | equal" in pairs
    enriched = combined(finished, "enrichment")
    assert list(enriched["direction"].values) == ["zsharp", "equal"]


def test_a_control_with_other_options_is_measured_again():
    study = parse(TEXT, base=HERE)
    other = parse(TEXT.replace("density = 0.5", "density = 0.25"), base=HERE)
    changed = {
        one.name: study.measure.key(one, (), study.controls)
        != other.measure.key(two, (), other.controls)
        for one, two in zip(study.measure.measurements, other.measure.measurements, strict=True)
    }
    named = {"perturbation_cosines", "mask_overlap", "batch_overlap", "enrichment"}
    assert {name for name, differs in changed.items() if differs} == named
    assert [v.name for v in study.controls] == ["equal"]


def test_masks_of_the_training_are_read_from_its_snapshots(finished):
    persistence = combined(finished, "mask_persistence")
    assert set(persistence["variant"].values) == {"zsharp"}
    assert persistence["half_life"].dims == ("run",)
    filters = combined(finished, "mask_filters")
    assert filters["frequency"].shape[1:] == (8, 4)  # the first linear layer
    selection = combined(finished, "mask_selection")
    np.testing.assert_allclose(selection["share"].sum("bin"), 1.0)


def test_what_was_learned_is_followed_over_the_kept_checkpoints(finished):
    ds = combined(finished, "memorization")
    np.testing.assert_array_equal(ds["epoch"], [1, 2, 3, 4])
    assert ds.sizes["example"] == 48
    last = ds["clean_fit_epoch"].sel(epoch=4)
    np.testing.assert_allclose(last, ds["clean_fit"])  # the last checkpoint is the model itself
    assert (ds["forgetting_events"] <= 3).all()
    norms = combined(finished, "norms")
    assert (norms["total_distance"] > 0).all()
    scores = combined(finished, "gradient_zscores")
    assert "0.weight[0]" in scores["tensor"].values


def test_seeds_are_compared_once_all_are_trained_and_sgd_has_no_controls(tmp_path):
    place = study(SEEDS, tmp_path / "seeds")
    ds = combined(place, "saved_mask_overlap")
    assert list(ds["pair"].values) == ["seed 0 | seed 1"]
    assert list(ds["variant"].values) == ["zsharp"]
    assert set(combined(place, "perturbation_controls")["variant"].values) == {"zsharp"}


@pytest.mark.parametrize(
    ("table", "words"),
    [
        (
            '[measure.calibration]\nsplit = "all"',
            "split: unknown 'all'. Did you mean 'val'? Possible: train, val, test",
        ),
        ('[measure.mask_filters]\ntensor = "9"', "tensor = '9' is no tensor of two axes"),
        ('[measure.block_curvature]\npatterns = ["no"]', "'no' matches no tensor"),
        ("[measure.curvature_map]\nmax_hvps = 1", "max_hvps = 1 is not possible; give a number"),
        ('[measure.batch_overlap]\nvariants = ["no"]', "variants: unknown 'no'. Possible: zsharp"),
    ],
)
def test_wrong_options_name_what_is_possible(tmp_path, table, words):
    head = TEXT.split("measurements = [")[0].replace("epochs = 4", "epochs = 1")
    name = table.split("]")[0].removeprefix("[measure.")
    text = f'{head}measurements = ["{name}"]\n{table}\n'
    try:  # what the file alone can tell is refused before anything is trained
        summary = run(parse(text, base=HERE), tmp_path / "study", HERE_ONLY)
        reasons = list(summary.failed.values())
    except LandscapeError as error:
        reasons = [str(error)]
    assert any(words in reason for reason in reasons), reasons


def test_unknown_options_are_refused_when_the_study_is_read():
    with pytest.raises(LandscapeError, match=r"\[measure.features\].*'modul'.*'modules'"):
        parse(TEXT + '[measure.features]\nmodul = ["conv"]\n', base=HERE)
