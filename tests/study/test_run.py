"""A study on disk: whole, resumable with the same numbers, and refused when it is not ours."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr

from landscape import results
from landscape.errors import LandscapeError
from landscape.problems.splits import stratified
from landscape.storage import STUDY_FORMAT, StudyFolder, read_json
from landscape.study import Options, parse, reopen, run, verify

HERE = Path(__file__).parents[1]
TEXT = """
name = "tiny"
[problem]
data = "study_problem:splits"
model = "study_problem:make"
[training]
epochs = 2
batch_size = 16
[variants.sam]
rho = 0.1
[variants.zsharp]
percentile = 0.5
[grid]
variant = ["sgd", "sam", "zsharp"]
seed = [0, 1]
[measure]
examples = 24
[measure.top_eigenvalues]
k = 2
[measure.hessian_trace]
num_probes = 4
[measure.spectral_density]
num_probes = 2
num_nodes = 5
[measure.sharpness]
rho = [0.1]
ascent_steps = 2
num_pairs = 2
[measure.loss_slice]
num_directions = 2
points = 3
fine_points = 3
[measure.loss_slice_eval]
num_directions = 2
points = 3
fine_points = 3
[measure.loss_plane]
points = 3
[measure.mask_overlap]
variants = ["zsharp", "random_mask"]
[measure.crosscheck]
num_probes = 4
"""
HERE_ONLY = Options(device="cpu", workers=0, quiet=True)


def plan(text=TEXT):
    return parse(text, base=HERE)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny") / "study"
    return run(plan(), folder, HERE_ONLY)


@pytest.mark.thorough
def test_a_study_leaves_every_file_that_the_layout_names(finished):
    place = finished.folder
    assert not finished.failed
    assert len(finished.done) == 6
    assert place.study_toml.read_text() == TEXT
    for name in finished.done:
        folder = place.run(name)
        assert (folder / "checkpoints" / "final.safetensors").exists()
        for part in ("spec.json", "history.jsonl", "done.json", "results/top_eigenvalues.nc"):
            assert (folder / part).exists(), part
    assert not list(place.root.rglob(".*-*.nc"))


def test_resolved_json_says_every_choice(finished):
    found = read_json(finished.folder.resolved)
    assert found["format"] == STUDY_FORMAT
    assert found["threads"] == 1
    assert found["variants"]["zsharp"]["options"]["norm_scope"] == "global"
    assert [r["run"] for r in found["runs"]] == list(finished.done)
    assert found["runs"][0]["training"]["momentum"] == 0.9
    assert found["measure"]["measurements"]["top_eigenvalues"]["k"] == 2
    assert found["versions"]["torch"] == torch.__version__


def test_results_are_combined_along_runs_with_labels(finished):
    ds = results.load(finished.folder.results / "top_eigenvalues.nc")
    assert ds.eigenvalue.dims == ("run", "rank")
    assert list(ds.variant.values) == ["sgd", "sgd", "sam", "sam", "zsharp", "zsharp"]
    assert list(ds.seed.values) == [0, 1] * 3
    assert list(ds.place.values) == [2, 2, 0, 0, 1, 1]  # in the order of the tables
    assert ds.rho.values[0] == 0.0
    assert (ds.train_seconds.values > 0).all()
    assert np.isfinite(ds.eigenvalue).all()
    plane = results.load(finished.folder.results / "loss_plane.nc")
    assert list(plane.seed.values) == [0, 0, 0]
    perturbed = results.load(finished.folder.results / "perturbation.nc")
    assert set(perturbed.variant.values) == {"sam", "zsharp"}
    keys = {json.dumps(entry["options"]) for entry in results.provenance(ds)["runs"]}
    assert len(keys) == 1


def test_all_runs_are_measured_on_the_same_stratified_examples(finished):
    known = {r["theta_sha256"]: r for r in results.provenance(_load(finished, "sharpness"))["runs"]}
    assert len(known) == 6
    assert {entry["num_examples"] for entry in known.values()} == {24}


def test_a_second_call_does_nothing_and_changes_no_file(finished):
    before = _times(finished.folder)
    again = run(plan(), finished.folder.root, HERE_ONLY)
    assert len(again.kept) == 6
    assert not again.done
    assert not again.combined
    after = _times(finished.folder)
    assert {p for p in before if before[p] != after[p]} <= {finished.folder.study_toml}


def test_a_changed_option_measures_that_alone_and_a_changed_rho_trains_those_runs_alone(
    finished, tmp_path
):
    folder = _copy(finished, tmp_path)
    text = TEXT.replace("k = 2", "k = 1")
    before = _times(StudyFolder(folder))
    summary = run(plan(text), folder, HERE_ONLY)
    changed = {p.relative_to(folder) for p, t in _times(StudyFolder(folder)).items()
               if before.get(p) != t and p.suffix == ".nc"}  # fmt: skip
    assert {p.name for p in changed} == {"top_eigenvalues.nc"}
    assert len(summary.done) == 6
    summary = run(plan(text.replace("rho = 0.1\n", "rho = 0.2\n")), folder, HERE_ONLY)
    assert {name.split("-")[0] for name in summary.done} == {"sam"}
    assert len(summary.kept) == 4
    assert {name.split("-")[0] for name in summary.stale} == {"sam"}
    ds = results.load(folder / "results" / "top_eigenvalues.nc")
    assert not set(summary.stale) & set(ds.run.values)
    assert all((folder / "runs" / name / "done.json").exists() for name in summary.stale)


def test_a_measurement_that_is_no_longer_asked_for_leaves_the_results(finished, tmp_path):
    folder = _copy(finished, tmp_path)
    few = plan(TEXT.partition("[measure]")[0] + '[measure]\nmeasurements = ["generalization"]\n')
    run(few, folder, HERE_ONLY)
    left = sorted(p.name for p in (folder / "results").glob("*.nc"))
    assert left == ["generalization.nc", "trainings.nc"]


@pytest.mark.slow
def test_killed_at_any_moment_and_run_again_it_ends_with_the_same_numbers(finished, tmp_path):
    (tmp_path / "study.toml").write_text(TEXT)
    (tmp_path / "study_problem.py").write_text((HERE / "study_problem.py").read_text())
    folder = tmp_path / "killed"
    marks = ("runs/*/checkpoints/last.pt", "runs/sam-s1-*/results/loss_slice.nc")
    for mark in marks:
        process = _driver(tmp_path, folder)
        _wait_for(lambda mark=mark: list(folder.glob(mark)) or process.poll() is not None)
        assert process.poll() is None
        process.kill()
        process.communicate()
    process = _driver(tmp_path, folder)
    _, said = process.communicate()
    assert process.returncode == 0, said
    for path in sorted(finished.folder.results.glob("*.nc")):
        whole, resumed = results.load(path), results.load(folder / "results" / path.name)
        timed = [n for n in ("train_seconds", "epoch_seconds") if n in whole.variables]
        xr.testing.assert_identical(
            whole.drop_vars(timed).drop_attrs(), resumed.drop_vars(timed).drop_attrs()
        )
    for name in finished.done:
        mine = finished.folder.run(name) / "checkpoints" / "final.safetensors"
        theirs = folder / "runs" / name / "checkpoints" / "final.safetensors"
        assert mine.read_bytes() == theirs.read_bytes()


def test_ctrl_c_leaves_one_line_exit_130_and_no_worker(tmp_path):
    (tmp_path / "study.toml").write_text(TEXT.replace("epochs = 2", "epochs = 5000"))
    (tmp_path / "study_problem.py").write_text((HERE / "study_problem.py").read_text())
    process = _command(tmp_path, tmp_path / "out", "--workers", "1")
    _wait_for(lambda: list((tmp_path / "out").glob("runs/*/history.jsonl")))
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 130
    assert said.strip().splitlines()[-1].startswith("Stopped. Nothing is lost")
    assert "Traceback" not in said
    history = next((tmp_path / "out").glob("runs/*/history.jsonl"))
    size = history.stat().st_size
    time.sleep(0.5)
    assert history.stat().st_size == size


@pytest.mark.slow
def test_a_killed_worker_is_named_the_others_go_on_and_the_exit_code_is_1(tmp_path):
    killer = (HERE / "study_problem.py").read_text() + (
        "\ndef killer(seed):\n"
        "    import os, signal\n"
        "    if seed == 1:\n        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return make()\n"
    )
    (tmp_path / "study_problem.py").write_text(killer)
    text = TEXT.replace("study_problem:make", "study_problem:killer")
    text = text.partition("[measure]")[0] + '[measure]\nmeasurements = ["generalization"]\n'
    (tmp_path / "study.toml").write_text(text.replace('"sgd", "sam", "zsharp"', '"sgd"'))
    process = _command(tmp_path, tmp_path / "out", "--json")
    out, said = process.communicate()
    assert process.returncode == 1
    summary = json.loads(out)
    assert [name[:6] for name in summary["done"]] == ["sgd-s0"]
    assert [name[:6] for name in summary["failed"]] == ["sgd-s1"]
    assert "killed by SIGKILL" in said
    assert "sgd-s1" in said


def test_finished_runs_of_somebody_else_are_measured_without_training(finished, tmp_path):
    weights = next(finished.folder.runs.glob("sam-s0-*/checkpoints/final.safetensors"))
    text = TEXT[TEXT.index("[measure]") :] + (
        '[problem]\ndata = "study_problem:data"\n[[run]]\nvariant = "sam"\nrho = 0.1\n'
        f'weights = "{weights}"\nmodel = "study_problem:make"\nloss = "study_problem:loss"\n'
    )
    summary = run(plan(text), tmp_path / "own", HERE_ONLY)
    assert not summary.failed
    names = {path.stem for path in summary.folder.results.glob("*.nc")}
    assert {"top_eigenvalues", "loss_slice", "gradient_zscores", "perturbation"} <= names
    assert "history" not in names
    ours = _load(finished, "top_eigenvalues").isel(run=2)
    theirs = results.load(summary.folder.results / "top_eigenvalues.nc").isel(run=0)
    np.testing.assert_array_equal(ours.eigenvalue, theirs.eigenvalue)
    assert not list(summary.folder.runs.glob("*/checkpoints"))


def test_a_study_folder_can_be_reopened_from_its_own_file(finished):
    again = reopen(finished.folder.root)
    assert [r.run_id for r in again.runs] == [r.run_id for r in plan().runs]
    assert again.base == HERE


def test_measuring_needs_trained_runs(tmp_path):
    options = Options(device="cpu", workers=0, quiet=True, train=False)
    summary = run(plan(), tmp_path / "x", options)
    assert len(summary.failed) == 6
    assert "has not been trained; `landscape run` trains" in next(iter(summary.failed.values()))


def test_a_plain_log_says_before_the_first_training_what_will_be_recorded(tmp_path, capsys):
    text = TEXT.replace('"sgd", "sam", "zsharp"', '"sam"')
    options = Options(device="cpu", workers=0, measure=False)
    folder = run(plan(text), tmp_path / "x", options).folder
    said = capsys.readouterr().err.splitlines()
    assert said[0].startswith("2 trainings record at most 0.")
    assert " MB, one of them at most 0." in said[0]
    written = sum(p.stat().st_size for p in folder.root.glob("runs/*/snapshots/*"))
    assert 0 < written <= 1e6 * (float(said[0].split()[5]) + 0.05)
    run(plan(text), tmp_path / "x", options)
    assert "record" not in capsys.readouterr().err  # nothing is left to be recorded
    broken = text.replace("study_problem:make", "study_problem:explode")
    assert len(run(plan(broken), tmp_path / "y", options).failed) == 2
    said = capsys.readouterr().err
    assert "record at most" not in said
    assert "this model cannot be made" in said


def test_a_plain_log_says_why_the_count_of_runs_begins_again(tmp_path, capsys):
    text = TEXT.replace('"sgd", "sam", "zsharp"', '"sam"')
    text = text[: text.index("[measure.top_eigenvalues]")]
    text += "measurements = ['generalization', 'barrier']\n[measure.barrier]\npoints = 3\n"
    options = Options(device="cpu", workers=0)
    assert not run(plan(text), tmp_path / "x", options).failed
    said = capsys.readouterr().err.splitlines()
    again = [i for i, line in enumerate(said) if "now what compares runs with each other" in line]
    assert len(again) == 1
    assert said[0].startswith("2 trainings record at most")  # the runs by themselves come first
    assert again[0] > 0
    run(plan(text), tmp_path / "x", options)
    assert "compares runs" not in capsys.readouterr().err  # nothing is left to be compared


def test_training_alone_measures_nothing_and_measuring_follows(tmp_path):
    text = TEXT.replace('"sgd", "sam", "zsharp"', '"sam"').replace("[0, 1]", "[0]")
    options = Options(device="cpu", workers=0, quiet=True, measure=False)
    first = run(plan(text), tmp_path / "x", options)
    assert not list(first.folder.root.rglob("*.nc"))
    assert len(first.checkpoints()) == 1
    later = run(plan(text), tmp_path / "x", Options(workers=0, quiet=True, train=False))
    assert not later.failed
    assert (later.folder.results / "sharpness.nc").exists()


def test_a_model_without_norm_layers_under_sam_on_fails_that_run_alone(tmp_path):
    text = TEXT.replace("study_problem:make", "study_problem:plain")
    text = text.replace('"sgd", "sam", "zsharp"', '"sam_on", "sgd"').replace("[0, 1]", "[0]")
    summary = run(plan(text), tmp_path / "x", HERE_ONLY)
    assert [name.split("-")[0] for name in summary.done] == ["sgd"]
    (reason,) = summary.failed.values()
    assert "norm" in reason


def test_a_model_that_cannot_be_made_fails_with_its_reason(tmp_path):
    text = TEXT.replace("study_problem:make", "study_problem:explode").replace("[0, 1]", "[0]")
    summary = run(plan(text), tmp_path / "x", HERE_ONLY)
    assert len(summary.failed) == 3
    assert all("this model cannot be made" in reason for reason in summary.failed.values())


def test_a_measurement_that_cannot_be_made_fails_its_run_and_leaves_the_others(tmp_path):
    text = TEXT.replace("k = 2", "k = 5000").replace('"sgd", "sam", "zsharp"', '"sgd"')
    summary = run(plan(text.replace("[0, 1]", "[0]")), tmp_path / "x", HERE_ONLY)
    (reason,) = summary.failed.values()
    assert reason.startswith("top_eigenvalues: k=5000")
    assert "\n" not in reason
    assert not (summary.folder.results / "top_eigenvalues.nc").exists()
    assert (summary.folder.results / "sharpness.nc").exists()
    again = run(plan(text.replace("[0, 1]", "[0]")), tmp_path / "x", HERE_ONLY)
    assert list(again.failed.values()) == [reason]


def test_folders_that_are_not_this_study_are_refused_by_name(finished, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_text("meow")
    with pytest.raises(LandscapeError, match=r"photos holds other files and no resolved.json"):
        run(plan(), tmp_path / "photos", HERE_ONLY)
    with pytest.raises(LandscapeError, match="holds the study 'tiny', and the study file is 'big'"):
        run(plan(TEXT.replace("tiny", "big")), finished.folder.root, HERE_ONLY)
    folder = _copy(finished, tmp_path)
    old = read_json(folder / "resolved.json") | {"format": 0}
    (folder / "resolved.json").write_text(json.dumps(old))
    with pytest.raises(LandscapeError, match=r"made with study format 0; this version reads"):
        run(plan(), folder, HERE_ONLY)
    (tmp_path / "file").write_text("")
    with pytest.raises(LandscapeError, match=r"file is a file; give a folder"):
        run(plan(), tmp_path / "file", HERE_ONLY)


def _flip(path, share=0.5):
    content = bytearray(path.read_bytes())
    content[int(share * (len(content) - 1))] ^= 4
    path.write_bytes(content)


def test_changed_results_are_made_again_and_said(finished, tmp_path):
    folder = _copy(finished, tmp_path)
    assert verify(folder).problems == []
    cut = next(folder.glob("runs/sam-*/results/sharpness.nc"))
    cut.write_bytes(cut.read_bytes()[:100])
    flipped = next(folder.glob("runs/zsharp-s0-*/results/top_eigenvalues.nc"))
    _flip(flipped, 0.8)
    lost = folder / "results" / "loss_slice.nc"
    _flip(lost, 0.9)
    assert len(verify(folder).problems) >= 4
    again = run(plan(), folder, HERE_ONLY)
    assert not again.failed
    assert len(again.done) == 2
    for path in (cut, flipped):
        assert f"{path} was changed after it was written; it is measured again." in again.notes
    assert f"{lost} was changed after it was written; it is combined again" in str(again.notes)
    assert verify(folder).problems == []
    for path in (finished.folder.root / "results").glob("*.nc"):
        assert results.load(path).equals(results.load(folder / "results" / path.name))


def test_changed_weights_are_refused_and_never_measured(finished, tmp_path):
    folder = _copy(finished, tmp_path)
    weights = next(folder.glob("runs/sam-s0-*/checkpoints/final.safetensors"))
    _flip(weights, 0.7)
    (weights.parents[1] / "measured.jsonl").unlink()
    again = run(plan(), folder, HERE_ONLY)
    (reason,) = again.failed.values()
    assert f"{weights} was changed after it was written" in reason
    found = verify(folder)
    assert any(str(weights) in text for text in found.problems)
    assert str(found).splitlines()[-1] == "1 problem."


KINDS = (
    "resolved.json", "study.toml", "results/index.json", "results/*.nc", "runs/*/spec.json",
    "runs/*/done.json", "runs/*/history.jsonl", "runs/*/measured.jsonl", "runs/*/results/*.nc",
    "runs/*/checkpoints/final.json", "runs/*/checkpoints/last.pt",
    "runs/*/checkpoints/final.safetensors", "runs/*/snapshots/tensors.json",
    "runs/*/snapshots/steps.bin", "runs/zsharp*/snapshots/*.npz",
)  # fmt: skip
QUICK_KINDS = ("results/*.nc", "runs/*/history.jsonl", "runs/*/checkpoints/final.safetensors")


@pytest.mark.parametrize(
    "kind",
    [k if k in QUICK_KINDS else pytest.param(k, marks=pytest.mark.slow) for k in KINDS],
)
def test_verify_finds_a_changed_bit_in_every_kind_of_file(finished, tmp_path, kind):
    folder = _copy(finished, tmp_path)
    path = sorted(folder.glob(kind))[0]
    # What netCDF leaves unused between its tables belongs to no value: there is nothing to find.
    _flip(path, 0.8 if kind.endswith(".nc") else 0.47)
    try:
        found = verify(folder).problems
    except LandscapeError as error:
        found = [str(error)]
    assert any(str(path) in text for text in found), found


def test_verify_says_which_files_are_missing_a_digest(finished, tmp_path):
    folder = _copy(finished, tmp_path)
    path = sorted(folder.glob("results/*.nc"))[0]
    old = results.load(path).assign_attrs(landscape_schema=1)
    old.to_netcdf(path, engine="h5netcdf")
    assert str(path) in verify(folder).unsealed


def test_two_processes_do_not_work_in_one_folder(tmp_path):
    fcntl = pytest.importorskip("fcntl")
    (tmp_path / "x").mkdir()
    with (tmp_path / "x" / ".lock").open("a+") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        with pytest.raises(LandscapeError, match=r"worked on by another landscape process"):
            run(plan(), tmp_path / "x", HERE_ONLY)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (Options(device="tpu"), "--device 'tpu' is unknown; use auto, cpu, cuda"),
        (Options(device="cuda:99"), "torch .* sees .* CUDA devices. Use --device cpu"),
        (Options(device="cpu", workers=-1), "--workers -1 is below 0"),
        (Options(device="cpu", threads=0), "--threads 0 is below 1"),
    ],
)
def test_options_of_running(options, message, tmp_path):
    with pytest.raises(LandscapeError, match=message):
        run(plan(), tmp_path / "x", options)


def test_the_fixed_examples_keep_the_proportions_of_the_classes():
    y = torch.tensor([0] * 50 + [1] * 30 + [2] * 20)
    rows = stratified(y, 25, seed=0)
    counts = torch.bincount(y[rows]).tolist()
    assert len(rows) == 25
    assert sum(counts) == 25
    assert max(abs(c - e) for c, e in zip(counts, [12.5, 7.5, 5.0], strict=True)) <= 0.5
    assert torch.equal(rows, rows.unique())
    assert torch.equal(rows, stratified(y, 25, seed=0))
    assert not torch.equal(rows, stratified(y, 25, seed=1))
    assert len(stratified(y, 1000, seed=0)) == 100
    assert len(stratified(torch.randn(40), 10, seed=0)) == 10


def _load(summary, name):
    return results.load(summary.folder.results / f"{name}.nc")


def _times(place):
    return {p: p.stat().st_mtime_ns for p in place.root.rglob("*") if p.is_file()}


def _copy(summary, tmp_path):
    import shutil

    return Path(shutil.copytree(summary.folder.root, tmp_path / "copy"))


def _driver(folder, out):
    """The study in a process of its own, without the report."""
    program = (
        "from pathlib import Path; from landscape.study import Options, load, run; "
        f"run(load(Path('study.toml')), Path({str(out)!r}), Options(workers=0, quiet=True))"
    )
    return _process(folder, [sys.executable, "-c", program])


def _command(folder, out, *more):
    command = [sys.executable, "-m", "landscape", "run", "study.toml", "--out", str(out), *more]
    return _process(folder, command)


def _process(folder, command):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    # A test run in the background of a script inherits an ignored SIGINT; a terminal does not.
    return subprocess.Popen(
        command, cwd=folder, text=True, env=environment,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip


def _wait_for(ask, seconds=60):
    end = time.monotonic() + seconds
    while not (answer := ask()):
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.05)
    return answer


def test_a_study_is_gone_through_in_steps_that_grow_with_its_runs(tmp_path, monkeypatch):
    from landscape.study import run_folder, running

    looked = []
    own = run_folder.outcome
    monkeypatch.setattr(run_folder, "outcome", lambda *a: looked.append(a) or own(*a))
    counts = []
    for seeds in (10, 20):
        text = TEXT.replace("seed = [0, 1]", f"seed = {list(range(seeds))}")
        study, place = plan(text), StudyFolder(tmp_path)
        looked.clear()
        known = run_folder.Trainings(study, place)
        asked = [
            running.job_of(known, run, place, "cpu", HERE_ONLY, across=True) for run in study.runs
        ]
        assert all(run_folder.missing(job)[0] for job in asked)
        counts.append(len(looked))
    assert counts[1] == 2 * counts[0]
