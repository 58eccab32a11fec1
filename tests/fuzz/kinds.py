"""Every kind of file that is read: how one is made, and what a reader sees of it."""

import json
import random
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
import xarray as xr
from safetensors.torch import save_file
from torch import nn

from landscape import problems, results, snapshots, storage, surfaces
from landscape.errors import LandscapeError
from landscape.problems.weights import save_tensors
from landscape.results import Variable
from landscape.snapshots import Tensors
from landscape.storage import StudyFolder
from landscape.study import load
from landscape.training import checkpoint
from landscape.training.history import read_history
from tests.fuzz import editors


@dataclass(frozen=True)
class Kind:
    """make(folder) writes the file; read(path) is what a reader sees, for comparison.

    edit(path, rng) changes it as somebody does who can read its format.

    checked: a changed file must be refused or read as it was; others carry no checksum.
    fewer: what was changed may be left out, and is made again.
    """

    name: str
    edit: Callable[[Path, random.Random], None]
    make: Callable[[Path], Path]
    read: Callable[[Path], Any]
    checked: bool = True
    fewer: bool = False


def model(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))


def _bytes(state):
    return {k: (str(v.dtype), tuple(v.shape), v.numpy().tobytes()) for k, v in state.items()}


def _loaded(path):
    target = model(2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        problems.load_weights(target, path)
    return _bytes(target.state_dict())


def _torch(zipped):
    def make(folder):
        content = {"state_dict": model(1).state_dict(), "epoch": 3, "best": np.float64(0.5)}
        path = folder / "w.pt"
        torch.save(content, path, _use_new_zipfile_serialization=zipped)
        return path

    return make


def _sealed(folder):
    return save_tensors(model(1).state_dict(), folder / "w.safetensors", {"epoch": "3"})


def _foreign(folder):
    save_file(model(1).state_dict(), folder / "w.safetensors")
    return folder / "w.safetensors"


def _index(folder):
    save_file(model(1).state_dict(), folder / "a.safetensors")
    table = dict.fromkeys(model().state_dict(), "a.safetensors")
    path = folder / "model.safetensors.index.json"
    path.write_text(json.dumps({"weight_map": table}))
    return path


IDENTITY = '{"run": "sam-s0-01234567", "seed": 0}'


def _trained(folder):
    net = model(1)
    state = {
        "identity": IDENTITY, "optimizer": {"slots": {}, "m": torch.ones(5)}, "seconds": 1.5,
    }  # fmt: skip
    checkpoint.save(folder, net, state, epoch=2, keep_every=0)
    checkpoint.finish(
        folder, net, {"status": "finished", "message": "", "epochs": 2, "steps": 4, "seconds": 1.0},
        identity=IDENTITY, epoch=2, keep_every=0,
    )  # fmt: skip
    for epoch in (1, 2):
        record = {
            "epoch": epoch, "train_loss": 0.5 / epoch, "val_loss": None, "val_accuracy": 0.5,
            "lr": 0.1, "seconds": 0.2, "training": checkpoint.mark_of(IDENTITY),
        }  # fmt: skip
        storage.append_line(folder / "history.jsonl", record)


def _within(name):
    def make(folder):
        _trained(folder)
        return folder / name

    return make


def _outcome(path):
    return checkpoint.read_outcome(path.parents[1])


def _state(path):
    state = checkpoint.read_state(path.parents[1])
    if state is None:
        raise LandscapeError("There is none: the training begins anew.")
    return {k: v for k, v in state.items() if k != "optimizer"}, _bytes(
        {"m": state["optimizer"]["m"]}
    )


def _restored(path):
    target = model(2)
    checkpoint.restore(target, path)
    return _bytes(target.state_dict())


def _result(folder):
    x = np.linspace(-1, 1, 5)
    variables = {
        "loss": Variable(("run", "alpha"), np.outer([1.0, 2.0], x), "nats", "Loss"),
        "converged": Variable("run", np.array([True, False]), "1", "Converged"),
    }
    ds = results.make(
        "loss_slice", variables, coords={"run": ["a", "bb"], "alpha": x}, provenance={"bn": "eval"}
    )
    return results.save(ds, folder / "loss_slice.nc")


def _seen(ds: xr.Dataset):
    return results.digest(ds)


TENSORS = Tensors(("w", "b"), ("linear", "bias"), (20, 3), (2, 1), run="0123456789abcdef")


def _recorded(folder):
    place = folder / "snapshots"
    snapshots.write_tensors(place, TENSORS)
    rows = np.zeros(6, TENSORS.row)
    rows["step"], rows["epoch"], rows["rho"] = np.arange(6), 1, 0.1
    snapshots.steps_file(place, TENSORS).append(rows)
    file = snapshots.correctness_file(place, 11, TENSORS.run)
    for epoch in (1, 2):
        file.append(snapshots.correctness_row(file, epoch, np.arange(11) % 2 == epoch % 2))
    for step in (0, 4):
        counts = np.full((2, snapshots.GRID.bins + 3), step + 1, np.uint32)
        bits = np.arange(4, dtype=np.uint8) + step
        snapshots.write_snapshot(place, step, TENSORS, zscore_counts=counts, mask_bits=bits)


def _record(name):
    def make(folder):
        _recorded(folder)
        return folder / "snapshots" / name

    return make


def _all_recorded(path):
    run = path.parents[1]
    masks, scores = snapshots.read_masks(run), snapshots.read_zscores(run)
    steps, right = snapshots.read_steps(run), snapshots.read_correctness(run)
    return (
        steps.tensors, steps.rows.tobytes(), right.correct.tobytes(), scores.counts.tobytes(),
        [(step, mask.bits.tobytes()) for step, mask in masks],
    )  # fmt: skip


def _document(folder):
    return storage.write_json(
        folder / "resolved.json", {"format": storage.STUDY_FORMAT, "name": "x", "runs": [1, 2.5]}
    )


def _lines(folder):
    for i in range(5):
        storage.append_line(folder / "measured.jsonl", {"name": f"m{i}", "key": "k", "value": i})
    return folder / "measured.jsonl"


def _last(path):
    records, _ = storage.read_lines(path, on_error="skip")
    return {record["name"]: tuple(record.values()) for record in records}


def _arrays(folder):
    arrays = {"values": np.arange(12.0).reshape(3, 4), "cost": np.float64(2.5)}
    return storage.write_arrays(folder / "tile.npz", arrays)


def _read_arrays(path):
    found = storage.read_arrays(path, ("values", "cost"))
    return {k: (v.shape, str(v.dtype), v.tobytes()) for k, v in found.items()}


def _surface(folder):
    path = folder / "surface.h5"
    with h5py.File(path, "w") as file:
        file["xcoordinates"], file["ycoordinates"] = np.linspace(-1, 1, 4), np.linspace(0, 1, 3)
        file["train_loss"], file["train_acc"] = np.ones((4, 3)), np.full((4, 3), 50.0)
        file["dir_file"] = "directions.h5"
    return path


def _goldstein(path):
    return _seen(surfaces.read_goldstein(path))


STUDY = """
name = "fuzz"
question = "What?"
[problem]
data = "digits"
model = "mlp"
[training]
epochs = 2
lr = 0.05
[settings.noisy]
title = "noise"
label_noise = 0.2
[variants.mine]
recipe = "zsharp"
percentile = 0.5
[grid]
variant = ["sgd", "sam", "mine"]
rho = [0.1, 0.2]
seed = [0, 1]
[[run]]
variant = "sam"
rho = 0.3
[measure]
examples = 32
measurements = ["generalization", "top_eigenvalues"]
[measure.top_eigenvalues]
k = 2
[comparisons]
metric = "test_accuracy"
setting = "noisy"
"""


def _study(folder):
    (folder / "study.toml").write_text(STUDY)
    return folder / "study.toml"


def _parsed(path):
    return [run.run_id for run in load(path).runs]


KINDS = (
    Kind("torch zip", editors.pt, _torch(True), _loaded),
    Kind("torch before zip", editors.pt, _torch(False), _loaded, checked=False),
    Kind("safetensors of ours", editors.safetensors, _sealed, _restored),
    Kind("safetensors of others", editors.safetensors, _foreign, _loaded, checked=False),
    Kind("index of shards", editors.plain_json, _index, _loaded, checked=False),
    Kind("state to resume", editors.pt, _within("checkpoints/last.pt"), _state),
    Kind("final weights", editors.safetensors, _within("checkpoints/final.safetensors"), _restored),
    Kind("outcome", editors.document, _within("checkpoints/final.json"), _outcome),
    Kind("history", editors.lines, _within("history.jsonl"), lambda p: read_history(p.parent)[0]),
    Kind("result", editors.netcdf, _result, lambda p: _seen(results.load(p))),
    Kind("names of tensors", editors.document, _record("tensors.json"), _all_recorded),
    Kind("steps", editors.rows, _record("steps.bin"), _all_recorded, fewer=True),
    Kind("correctness", editors.rows, _record("correct.bin"), _all_recorded, fewer=True),
    Kind("snapshot", editors.npz, _record("00000004.npz"), _all_recorded),
    Kind("resolved", editors.document, _document, lambda p: StudyFolder(p.parent).check()),
    Kind("measured lines", editors.lines, _lines, _last, fewer=True),
    Kind("tile", editors.npz, _arrays, _read_arrays),
    Kind("surface of others", editors.hdf5, _surface, _goldstein, checked=False),
    Kind("study file", editors.study, _study, _parsed, checked=False),
)  # fmt: skip
