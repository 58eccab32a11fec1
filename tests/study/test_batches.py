"""A study carries whatever batches a risk takes: several inputs, dicts, tokens, pairs, graphs."""

import copy
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from landscape import problems, sam, training
from landscape.errors import LandscapeError
from landscape.storage import StudyFolder, read_json
from landscape.study import Options, parse, run
from landscape.study.problem import load_data
from tests import study_batches as own

HERE = Path(__file__).parents[1]
HERE_ONLY = Options(device="cpu", workers=0, quiet=True)
TEXT = """
name = "forms"
dtype = "float64"
[problem]
data = "study_batches:{data}"
model = "study_batches:{model}"
loss = "{loss}"
[training]
epochs = 2
lr = 0.2
batch_size = {size}
[variants.sam]
rho = 0.1
[grid]
variant = ["sgd", "sam"]
seed = [0]
[measure]
examples = {examples}
measurements = ["generalization", "top_eigenvalues", "mask_overlap"]
[measure.top_eigenvalues]
k = 1
"""


def _shifted(model, batch):
    """Token t against token t + 1 where both are attended to."""
    logits = model(**{k: v for k, v in batch.items() if k != "labels"})
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())


def _mean(loss):
    """Over batches: pairs weigh by their rows, and of graphs each is one example."""

    def total(model, batches):
        sizes = [1 if hasattr(batch, "edges") else len(batch["first"]) for batch in batches]
        values = [loss(model, batch) for batch in batches]
        return sum(n * v for n, v in zip(sizes, values, strict=True)) / sum(sizes)

    return total


FORMS = {
    "two_inputs": ("Two", "cross_entropy", lambda m, b: F.cross_entropy(m(*b[0][0]), b[0][1])),
    "dicts": (
        "Two",
        "cross_entropy",
        lambda m, b: F.cross_entropy(
            m(*(torch.cat([each[k] for each in b]) for k in ("first", "second"))),
            torch.cat([each["labels"] for each in b]),
        ),
    ),
    "tokens": ("Language", "causal_lm", lambda m, b: _shifted(m, b[0])),
    "labelled": ("OwnLoss", "model", lambda m, b: m(**b[0])["loss"]),
    "views": ("encoder", "study_batches:contrast", _mean(own.contrast)),
    "graphs": ("GraphNetwork", "study_batches:nodes", _mean(own.nodes)),
}


def text(form, **changes):
    model, loss, _ = FORMS[form]
    size = 1 if form == "graphs" else 8
    return TEXT.format(
        data=form, model=model, loss=loss, **{"size": size, "examples": 24} | changes
    )


def plan(form, **changes):
    return parse(text(form, **changes), base=HERE)


def dense(model, loss):
    """Largest eigenvalue of the Hessian of loss(model), by two reverse passes a row."""
    parameters = list(model.parameters())
    gradients = torch.autograd.grad(loss(model), parameters, create_graph=True)
    flat = torch.cat([g.reshape(-1) for g in gradients])
    rows = [
        torch.cat([h.reshape(-1) for h in torch.autograd.grad(
            each, parameters, retain_graph=True, materialize_grads=True)])
        for each in flat
    ]  # fmt: skip
    return float(torch.linalg.eigvalsh(torch.stack(rows))[-1])


def weights(folder, run_id):
    return next((folder.root / "runs" / run_id / "checkpoints").glob("final.safetensors"))


@pytest.fixture(autouse=True)
def _importable(monkeypatch):
    monkeypatch.syspath_prepend(str(HERE))


@pytest.mark.thorough
@pytest.mark.parametrize("form", FORMS)
def test_what_is_trained_and_measured_is_the_loss_of_those_batches(form, tmp_path):
    study = plan(form)
    finished = run(study, tmp_path / "study", HERE_ONLY)
    assert not finished.failed
    ds = finished.results["top_eigenvalues"]
    losses = finished.results["generalization"]
    make, loss = getattr(sys.modules["study_batches"], FORMS[form][0]), FORMS[form][2]
    data = problems.as_splits(getattr(own, form)(), name=form)
    part = data.train.some(24, seed=study.measure.seed)
    batches = part.data if isinstance(part, problems.Batches) else [part.data]
    batches = [_double(batch) for batch in batches]
    for number, run_id in enumerate(ds.run.values):
        model = make().double().eval()
        problems.load_weights(model, weights(finished.folder, str(run_id)))
        found = float(ds.eigenvalue.values[number, 0])
        assert bool(ds.converged.values[number, 0])
        assert found == pytest.approx(dense(model, lambda m: loss(m, batches)), rel=1e-6)
    assert np.isfinite([losses[f"{split}_loss"].values for split in ("train", "val", "test")]).all()
    masks = finished.results["mask_overlap"]
    assert ("ssam_f" in masks.direction.values) == (form not in ("views", "graphs"))
    history = finished.folder.root / "runs" / str(ds.run.values[0]) / "history.jsonl"
    start, end = (json.loads(line)["train_loss"] for line in history.read_text().splitlines())
    assert end < start


def _double(tree):
    if isinstance(tree, torch.Tensor):
        return tree.double() if tree.is_floating_point() else tree
    if isinstance(tree, dict):
        return {k: _double(v) for k, v in tree.items()}
    if isinstance(tree, tuple | list):
        return type(tree)(_double(v) for v in tree)
    made = copy.copy(tree)
    for key, value in vars(tree).items():
        setattr(made, key, _double(value))
    return made


def test_batches_that_are_no_rows_are_trained_on_one_at_a_time_or_refused_beforehand(tmp_path):
    with pytest.raises(LandscapeError, match=r"batch_size=4.*whole.*batches.*batch_size = 1\."):
        run(plan("graphs", size=4), tmp_path / "study", HERE_ONLY)
    assert not list((tmp_path / "study" / "runs").glob("*/checkpoints"))


def test_other_data_than_at_the_beginning_are_refused(tmp_path, monkeypatch):
    module = __import__("study_batches")
    run(plan("tokens"), tmp_path / "study", HERE_ONLY)
    known = read_json(StudyFolder(tmp_path / "study").data)
    (entry,) = known.values()
    assert set(entry["sha256"]) == {"train", "val", "test"}
    real = module._tokens

    def other(count, seed):
        batch = real(count, seed)
        return batch | {"attention_mask": torch.ones_like(batch["input_ids"])}

    monkeypatch.setattr(module, "_tokens", other)
    load_data.cache_clear()
    with pytest.raises(LandscapeError, match=r"not those that this study was begun with"):
        run(plan("tokens", examples=20), tmp_path / "study", HERE_ONLY)
    load_data.cache_clear()


@pytest.mark.slow
def test_a_worker_process_has_the_same_numbers(tmp_path):
    here = run(plan("dicts"), tmp_path / "here", HERE_ONLY)
    there = run(plan("dicts"), tmp_path / "there", Options(device="cpu", workers=2, quiet=True))
    assert not there.failed
    for name in ("top_eigenvalues", "generalization"):
        found, known = there.results[name], here.results[name].sel(run=there.results[name].run)
        for variable in ("eigenvalue", "train_loss", "test_loss"):
            if variable in found:
                np.testing.assert_array_equal(found[variable], known[variable])


@pytest.mark.parametrize("form", ["two_inputs", "views", "graphs"])
def test_a_training_that_was_stopped_goes_on_with_the_same_batches(form, tmp_path):
    model, loss, _ = FORMS[form]
    data = problems.as_splits(getattr(own, form)(), name=form)
    loss = getattr(own, loss.partition(":")[2], nn.CrossEntropyLoss())
    options = training.TrainingOptions(epochs=3, lr=0.1, batch_size=1 if form == "graphs" else 8)

    def train(folder, progress=None):
        torch.manual_seed(0)
        made = getattr(own, model)()
        call = {"seed": 0, "folder": tmp_path / folder, "loss": loss, "progress": progress}
        return training.train(made, data, sam.sam(rho=0.05), options, **call)

    def stop(record):
        if record["epoch"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train("stopped", stop)
    resumed, whole = train("stopped"), train("whole")
    losses = [[r["train_loss"] for r in done.history] for done in (resumed, whole)]
    assert losses[0] == losses[1]
    assert resumed.weights.read_bytes() == whole.weights.read_bytes()


FISHER = sam.ssam_f(rho=0.05, num_samples=8)


@pytest.mark.parametrize("form", ["tokens", "views"])
def test_a_variant_of_single_examples_is_refused_where_the_loss_tells_a_mean(form, tmp_path):
    loss = FORMS[form][1]
    data = problems.as_splits(getattr(own, form)(), name=form)
    loss = getattr(own, loss.partition(":")[2], loss)
    call = {"seed": 0, "folder": tmp_path, "loss": loss}
    options = training.TrainingOptions(epochs=1, batch_size=8)
    if form == "tokens":  # each row has a loss of its own
        assert training.train(own.Language(), data, FISHER, options, **call).finished
        return
    with pytest.raises(LandscapeError, match=r"reads the losses or outputs of single examples"):
        training.train(own.encoder(), data, FISHER, options, **call)


def test_any_change_of_batches_changes_their_digest():
    parts = problems.as_splits({"train": own._tokens(12, 0)}, name="t").train
    same = problems.as_splits({"train": own._tokens(12, 0)}, name="t").train
    assert parts.sha256 == same.sha256
    other = {"ids": own._tokens(12, 0)["input_ids"], **own._tokens(12, 0)}
    renamed = {f"{k}_": v for k, v in own._tokens(12, 0).items()}
    for batch in (own._tokens(12, 1), own._tokens(9, 0), other, renamed):
        assert problems.as_splits({"train": batch}, name="t").train.sha256 != parts.sha256
    cut = [{k: v[a:b] for k, v in own._tokens(12, 0).items()} for a, b in ((0, 5), (5, 12))]
    assert problems.as_splits({"train": cut}, name="t").train.sha256 != parts.sha256
