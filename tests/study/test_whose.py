"""A file of another run in the right place under the right name is refused, and never published."""

import shutil
from pathlib import Path

import pytest

from landscape import results, snapshots
from landscape.study import Options, parse, run, verify

HERE = Path(__file__).parents[1]
# The two runs differ in their radius alone: name, data, sizes and seed tell nothing.
TEXT = """
name = "twins"
[problem]
data = "study_problem:splits"
model = "study_problem:make"
[training]
epochs = 2
batch_size = 16
keep_every = 1
[grid]
variant = ["zsharp"]
rho = [0.1, 0.2]
[variants.zsharp]
percentile = 0.5
[measure]
examples = 24
measurements = ["generalization", "history", "mask_persistence", "perturbation_history"]
"""
HERE_ONLY = Options(device="cpu", workers=0, quiet=True)
FILES = (
    "spec.json", "done.json", "history.jsonl", "measured.jsonl", "checkpoints/final.json",
    "checkpoints/final.safetensors", "checkpoints/epoch-000001.safetensors",
    "checkpoints/last.pt", "snapshots/tensors.json", "snapshots/steps.bin",
    "snapshots/00000000.npz", "results/history.nc",
    "results/generalization.nc", "sessions.jsonl", "checkpoints", "snapshots", "results", ".",
)  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("twins") / "study"
    summary = run(parse(TEXT, base=HERE), folder, HERE_ONLY)
    assert not summary.failed
    assert verify(folder).problems == []
    return folder


def _exchange(one, other):
    kept = one.with_name("kept")
    one.rename(kept)
    other.rename(one)
    kept.rename(other)


@pytest.mark.thorough
@pytest.mark.parametrize("name", FILES)
def test_exchanged_files_of_two_runs_are_found_and_never_published(finished, tmp_path, name):
    folder = tmp_path / "study"
    shutil.copytree(finished, folder)
    one, other = sorted(path for path in (folder / "runs").iterdir())
    _exchange(one / name, other / name)
    said = " ".join(verify(folder).problems)
    assert one.name in said
    assert other.name in said
    if name not in ("spec.json", "done.json"):  # written, and read by nobody but people
        for path in (*folder.glob("runs/*/results/*.nc"), *folder.glob("results/*.nc")):
            if not (name == "measured.jsonl" or "results" in name):
                path.unlink()
    again = run(parse(TEXT, base=HERE), folder, HERE_ONLY)
    for path in sorted((finished / "results").glob("*.nc")):
        found = folder / "results" / path.name
        if not found.exists() or path.stem.startswith(("trainings", "along_")):
            continue
        ours, theirs = (results.load(p).drop_attrs() for p in (path, found))
        known = [r for r in ours.run.values if r in theirs.run.values]
        timed = [n for n in ("train_seconds", "epoch_seconds") if n in ours.variables]
        parts = [ds.drop_vars(timed).set_index(run="run").sel(run=known) for ds in (ours, theirs)]
        assert parts[0].equals(parts[1]), path
        assert again.failed or len(known) == 2


def test_a_folder_of_another_run_is_named_with_what_to_do_and_the_others_go_on(finished, tmp_path):
    folder = tmp_path / "study"
    shutil.copytree(finished, folder)
    one, other = sorted((folder / "runs").iterdir())
    shutil.rmtree(one)
    shutil.copytree(other, one)
    again = run(parse(TEXT, base=HERE), folder, HERE_ONLY)
    assert again.kept == (other.name,)
    assert f"is of the run '{other.name}' and not of '{one.name}'" in again.failed[one.name]
    shutil.rmtree(one)  # the advice
    assert not run(parse(TEXT, base=HERE), folder, HERE_ONLY).failed
    assert verify(folder).problems == []


LEFT = ("snapshots/00000000.npz", "snapshots/steps.bin", "checkpoints/epoch-000001.safetensors")


def _row_shorter(path):
    """A whole row less: each of the others carries its own checksum."""
    rows = len(snapshots.read_steps(path.parents[1]))
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // rows * (rows - 1)])


def _later(path):
    """The last file of its kind: of the same training, with a right digest of its own."""
    return max(path.parent.glob("[0-9]*.npz" if path.suffix == ".npz" else "epoch-*"))


LOSSES = {
    "gone": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
    "a mark in front": lambda path: path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes()),
    "a row shorter": _row_shorter,
    "of another time": lambda path: shutil.copy(_later(path), path),
}


@pytest.mark.thorough
@pytest.mark.parametrize("how", LOSSES)
@pytest.mark.parametrize("name", LEFT)
def test_what_a_training_left_and_has_lost_is_named_and_never_measured_without(
    finished, tmp_path, name, how
):
    if how == ("of another time" if name.endswith("steps.bin") else "a row shorter"):
        pytest.skip("rows are of steps, which are one file")
    folder = tmp_path / "study"
    shutil.copytree(finished, folder)
    path = min((folder / "runs").iterdir()) / name
    LOSSES[how](path)
    assert path.name in " ".join(verify(folder).problems)
    for old in (*folder.glob("runs/*/results"), *folder.glob("runs/*/measured.jsonl")):
        shutil.rmtree(old) if old.is_dir() else old.unlink()
    shutil.rmtree(folder / "results")
    again = run(parse(TEXT, base=HERE), folder, HERE_ONLY)
    if "snapshots" in name:  # they are measured; weights of single epochs are not, here
        assert path.name in again.failed[path.parents[1].name]
    for other in folder.glob("results/*.nc"):
        if other.stem.startswith(("trainings", "along_")):
            continue
        ours, theirs = (results.load(p) for p in (finished / "results" / other.name, other))
        kept = [r for r in ours.run.values if r in theirs.run.values]
        timed = [n for n in ("train_seconds", "epoch_seconds") if n in ours.variables]
        parts = [d.drop_vars(timed).set_index(run="run").sel(run=kept) for d in (ours, theirs)]
        assert parts[0].drop_attrs().equals(parts[1].drop_attrs()), other
