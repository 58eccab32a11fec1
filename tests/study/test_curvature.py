"""Measurements of curvature that a study asks for by name: options, results, refusals."""

import json
from pathlib import Path

import numpy as np
import pytest

from landscape import results
from landscape.errors import LandscapeError
from landscape.storage import StudyFolder, read_lines
from landscape.study import Options, parse, run
from landscape.study.measurements import DEFAULT, RECORDS
from landscape.study.measurements import curvature as topic

HERE = Path(__file__).parents[1]
HERE_ONLY = Options(device="cpu", workers=0, quiet=True)
TEXT = """
name = "curved"
[problem]
data = "study_problem:splits"
model = "study_problem:make"
[training]
epochs = 3
batch_size = 16
keep_every = 2
label_smoothing = 0.1
[variants.sam]
rho = 0.1
[grid]
variant = ["sgd", "sam"]
seed = [0]
[measure]
examples = 24
measurements = ["top_eigenvalues", {names}]
[measure.top_eigenvalues]
k = 2
"""
TABLES = """
[measure.spectral_density]
num_probes = 2
num_nodes = 5
shifts = [0.1]
[measure.gauss_newton_eigenvalues]
k = 2
[measure.block_curvature]
num_probes = 2
[measure.hessian_diagonal]
num_probes = 2
[measure.frobenius]
num_probes = 2
[measure.adaptive_sharpness]
rho = [0.01]
ascent_steps = 2
num_pairs = 2
[measure.m_sharpness]
batch_sizes = [2, 8]
[measure.critical_sharpness]
tolerance = 0.01
[measure.minibatch_eigenvalues]
batch_size = 8
objective = "training"
[measure.data_bracket]
num_folds = 2
sizes = [6]
num_subsets = 2
[measure.training_curvature]
k = 1
[measure.alignment]
variants = ["sam", "sam_on"]
k = 2
"""
NAMES = [
    line.removeprefix("[measure.").removesuffix("]")
    for line in TABLES.splitlines()
    if line.startswith("[measure.")
]


def plan(names, tables, *, replace=()):
    text = TEXT.replace("{names}", json.dumps(names)[1:-1]) + tables
    for old, new in replace:
        assert old in text
        text = text.replace(old, new)
    return parse(text, base=HERE)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return run(plan(NAMES, TABLES), tmp_path_factory.mktemp("curved") / "study", HERE_ONLY)


def load(summary, name):
    return results.load(summary.folder.results / f"{name}.nc")


def test_every_measurement_gives_its_result_for_every_run(finished):
    assert not finished.failed
    for name in NAMES:
        ds = load(finished, name)
        runs = 2 if not RECORDS[name].first_seed_only else ds.sizes["run"]
        assert ds.sizes["run"] == runs
        assert results.provenance(ds)["runs"][0]["options"]
        assert ds.attrs["measurement"] == name
    assert "parameter" not in load(finished, "frobenius").dims
    assert "parameter" in load(finished, "hessian_diagonal").dims


def test_they_are_made_only_where_they_are_asked_for():
    assert {n for n in NAMES if n != "spectral_density"}.isdisjoint(DEFAULT)
    others = {"top_eigenvalues", "hessian_trace", "sharpness", "crosscheck", "flatness_other_bn"}
    assert set(NAMES) | others == {record.name for record in topic.RECORDS}


def test_curvature_along_training_covers_the_kept_checkpoints_with_their_rates(finished):
    ds = load(finished, "training_curvature")
    assert list(ds.epoch.values) == [0, 2, 3]
    name = finished.done[0]
    records, _ = read_lines(finished.folder.run(name) / "history.jsonl")
    rates = [0.1, records[1]["lr"], records[2]["lr"]]
    np.testing.assert_allclose(ds.plain_edge.isel(run=0), 2 / np.array(rates))
    np.testing.assert_allclose(ds.sgd_edge, 1.9 * ds.plain_edge)
    assert np.isnan(ds.sam_edge.isel(run=0)).all()
    assert (ds.sam_edge.isel(run=1) < ds.sgd_edge.isel(run=1)).all()
    # The last checkpoint, with its own statistics, is the one that is measured elsewhere.
    last = ds.eigenvalue.isel(epoch=-1, rank=0)
    top = load(finished, "top_eigenvalues").eigenvalue.isel(rank=0)
    np.testing.assert_allclose(last, top, rtol=1e-3)


def test_the_objective_of_training_has_its_smoothing_and_decay(finished):
    told = results.provenance(load(finished, "minibatch_eigenvalues"))["runs"][0]
    assert told["weight_decay"] == 5e-4
    other = results.provenance(load(finished, "top_eigenvalues"))["runs"][0]
    assert other["weight_decay"] == 0.0
    whole = load(finished, "minibatch_eigenvalues").whole_eigenvalue.isel(rank=0)
    top = load(finished, "top_eigenvalues").eigenvalue.isel(rank=0)
    assert (np.abs(whole - top) > 1e-3 * top).all()


@pytest.mark.parametrize(
    ("name", "table", "replace", "message"),
    [
        (
            "training_curvature",
            "",
            [("keep_every = 2", "keep_every = 0")],
            r"needs checkpoints of the training, and 'sgd' keeps none; set \[training\] keep_every",
        ),
        (
            "minibatch_eigenvalues",
            '[measure.minibatch_eigenvalues]\nobjective = "validation"\n',
            [],
            "objective: unknown 'validation'. Possible: data, training",
        ),
        (
            "alignment",
            '[measure.alignment]\nvariants = ["saam"]\n',
            [],
            "variants: unknown 'saam'. Did you mean 'sam'",
        ),
    ],
)
def test_what_cannot_be_measured_is_said_before_anything_is_trained(name, table, replace, message):
    more = [('"sgd", "sam"', '"sgd"'), ("epochs = 3", "epochs = 1"), *replace]
    with pytest.raises(LandscapeError, match=rf"\[measure.{name}\] .*{message}"):
        plan([name], table, replace=more)


def test_weights_from_elsewhere_have_no_training(finished, tmp_path):
    folder = StudyFolder(finished.folder.root)
    weights = folder.run(finished.done[0]) / "checkpoints" / "final.safetensors"
    table = '[measure.minibatch_eigenvalues]\nobjective = "training"\n'
    grid = '[grid]\nvariant = ["sgd", "sam"]\nseed = [0]'
    own = [(grid, f'[[run]]\nvariant = "sgd"\nseed = 0\nweights = "{weights}"')]
    with pytest.raises(LandscapeError, match="needs weights of several steps of a training"):
        plan(["training_curvature", "minibatch_eigenvalues"], table, replace=own)
    summary = run(plan(["minibatch_eigenvalues"], table, replace=own), tmp_path / "x", HERE_ONLY)
    (reason,) = summary.failed.values()
    assert "use objective = 'data'" in reason
