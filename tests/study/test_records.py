"""One record per measurement: what derives from it, on a study that makes all of them."""

import inspect
from pathlib import Path

import pytest

from landscape import measure, results, toml
from landscape.plot import figures
from landscape.report.family import Family
from landscape.report.sections import SECTIONS
from landscape.report.study import StudyResults
from landscape.study import Options, parse, run
from landscape.study.estimate import estimate
from landscape.study.measurements import RECORDS, Work
from landscape.study.measurements.record import nothing

HERE = Path(__file__).parents[1]
HERE_ONLY = Options(device="cpu", workers=0, quiet=True)
# The cheapest options of each measurement. One without an entry fails below: give it one.
CHEAP = {
    "generalization": {},
    "history": {},
    "calibration": {},
    "margins": {},
    "memorization": {},
    "robustness": {"num_draws": 2},
    "features": {},
    "norms": {},
    "perturbation_history": {},
    "mask_persistence": {},
    "mask_selection": {},
    "mask_filters": {},
    "saved_mask_overlap": {},
    "gradient_zscores": {"num_batches": 1},
    "zscore_history": {"most": 2},
    "gradient_noise": {"batch_size": 8},
    "perturbation": {},
    "perturbation_controls": {"num_draws": 2},
    "perturbation_cosines": {"variants": ["sam", "zsharp"]},
    "mask_overlap": {"variants": ["zsharp", "random_mask"]},
    "batch_overlap": {"variants": ["zsharp"], "batch_size": 8, "num_batches": 2},
    "enrichment": {"variants": ["zsharp"], "k": 1, "num_probes": 2, "fisher_examples": 4},
    "top_eigenvalues": {"k": 1},
    "hessian_trace": {"num_probes": 2},
    "spectral_density": {"num_probes": 2, "num_nodes": 4, "shifts": [0.1]},
    "gauss_newton_eigenvalues": {"k": 1},
    "block_curvature": {"num_probes": 2},
    "hessian_diagonal": {"num_probes": 2},
    "frobenius": {"num_probes": 2},
    "sharpness": {"rho": [0.1], "ascent_steps": 1, "num_pairs": 2},
    "flatness_other_bn": {"rho": [0.1], "num_probes": 2, "num_pairs": 2},
    "adaptive_sharpness": {"rho": [0.01], "ascent_steps": 1, "num_pairs": 2},
    "m_sharpness": {"rho": [0.1], "batch_sizes": [4, 8]},
    "critical_sharpness": {"tolerance": 0.1},
    "minibatch_eigenvalues": {"batch_size": 12},
    "data_bracket": {"num_folds": 2, "sizes": [12], "num_subsets": 1},
    "training_curvature": {},
    "alignment": {"variants": ["sam", "zsharp"], "k": 1},
    "crosscheck": {"num_probes": 2},
    "loss_slice": {"num_directions": 1, "points": 3, "fine_points": 3},
    "loss_slice_eval": {"num_directions": 1, "points": 3, "fine_points": 3},
    "loss_plane": {"points": 3},
    "curvature_map": {"points": 3, "tolerance": 0.1},
    "trajectory": {"grid": 2},
    "interpolation": {"points": 3},
    "perturbation_slice": {"variants": ["sam", "zsharp"], "points": 3},
    "barrier": {"points": 3},
    "bezier": {"steps": 4, "points": 3, "batch_size": 8},
    "three_points": {"cells": 2},
}
TEXT = """
name = "all"
[problem]
data = "study_problem:splits"
model = "study_problem:make"
[training]
epochs = 2
batch_size = 16
lr = 0.1
keep_every = 1
[variants.sam]
rho = 0.1
[variants.zsharp]
rho = 0.1
percentile = 0.5
[grid]
variant = ["sam", "zsharp"]
seed = [0, 1]
[measure]
examples = 24
"""


def plan():
    asked = {"measurements": list(RECORDS), **{name: CHEAP[name] for name in RECORDS}}
    return parse(TEXT + toml.dumps({"measure": asked}).removeprefix("[measure]\n"), base=HERE)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    done = run(plan(), tmp_path_factory.mktemp("all") / "study", HERE_ONLY)
    assert not done.failed
    return done


def test_every_measurement_has_its_cheap_options_and_no_other_has():
    assert set(CHEAP) == set(RECORDS)


@pytest.mark.thorough
def test_every_measurement_makes_a_result_of_its_name_that_the_schema_accepts(finished):
    for name, record in RECORDS.items():
        ds = results.load(finished.folder.results / f"{name}.nc")  # load validates
        assert ds.attrs["measurement"] == name
        first = record.first_seed_only or name in ("saved_mask_overlap", "bezier", "three_points")
        seeds = set(ds.seed.values.tolist())
        assert seeds == ({0} if first else {0, 1}), name
        for part in results.provenance(ds)["runs"]:
            assert part["options"] == plan_options(name)


def plan_options(name):
    return RECORDS[name].options | CHEAP[name]


def test_every_measurement_is_drawn_under_a_heading_of_the_report(finished):
    study = StudyResults.read(finished.folder)
    family = Family.of(study)
    for name, record in RECORDS.items():
        assert bool(record.sections) == record.drawn, name
        for title, entries in SECTIONS:
            for entry in entries:
                if title in record.sections and entry.measurements[0] == name:
                    assert entry.draw(study, study.settings[0], family) is not None, (
                        name,
                        entry.figure,
                    )
                    assert entry.figure in figures.__all__


def test_every_measurement_costs_something_or_says_that_it_reads_files(finished, tmp_path):
    study = plan()
    work = Work(study.runs[0], num_runs=4, num_examples=24, num_data=96)
    for name, record in RECORDS.items():
        cost = record.cost(record.options, work)
        assert cost > 0 or record.cost is nothing, name
    rows = {row.name: row for row in estimate(study, tmp_path / "new", HERE_ONLY).rows}
    assert set(rows) == {"training", *RECORDS}


def test_curvature_along_training_costs_as_much_as_there_are_checkpoints(tmp_path):
    text = TEXT.replace("epochs = 2", "epochs = 10") + "measurements = ['training_curvature']\n"
    rows = {
        every: {
            row.name: row.gradients
            for row in estimate(
                parse(text.replace("keep_every = 1", f"keep_every = {every}"), base=HERE),
                tmp_path / "new",
                HERE_ONLY,
            ).rows
        }["training_curvature"]
        for every in (1, 5)
    }
    assert rows[1] / rows[5] == pytest.approx(11 / 3)  # 0..10 and 0, 5, 10


def test_every_option_has_a_type_that_is_checked_and_a_default_that_passes():
    for name, record in RECORDS.items():
        parameters = inspect.signature(record.measure).parameters
        assert record.check(name, record.options) == record.options
        for option in (*record.choices, *record.least, *record.most, *record.variants):
            known = option in parameters or (option == "seeds" and name == "barrier")
            assert known, f"{name} checks {option}, which it has not"


def test_a_study_and_a_call_have_one_set_of_defaults():
    """Each option that the function has, too, has its default, or another for a stated reason."""
    for name, record in RECORDS.items():
        functions = record.of or ((getattr(measure, name),) if hasattr(measure, name) else ())
        known = {
            p.name: p.default
            for function in functions
            for p in inspect.signature(function).parameters.values()
            if p.default is not p.empty
        }
        other = set()
        for option, default in record.options.items():
            if option in known:
                # A study file has no None: 0, false and [] say "none" or "as many as there are".
                there = known[option] if known[option] is not None else type(default)()
                there = list(there) if isinstance(there, tuple) else there
                assert type(there) is type(default), (name, option)
                other |= {option} if there != default else set()
        assert other == set(record.differs), f"{name}: {other} differ from {functions}"
        assert all(len(reason.split()) > 3 for reason in record.differs.values())


def test_what_a_study_calls_is_the_function_of_its_name_unless_it_says_another():
    of_files = {"history", "perturbation_history"}
    assert {name for name, r in RECORDS.items() if not r.of and not hasattr(measure, name)} == (
        of_files
    )
