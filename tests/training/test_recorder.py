"""What the recorder keeps equals what the optimizer says of each step."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from landscape import problems, sam, snapshots, training
from landscape.errors import LandscapeError
from landscape.params import ParamLayout
from landscape.problems import load_weights
from landscape.snapshots import GRID, read_masks
from landscape.streams import PackedMasks
from landscape.training import checkpoint
from landscape.training.batches import batches
from landscape.training.recorder import zscore_counts
from tests import training_problems as small


def replay(name, epochs=3):
    """Every step's perturbation, from the optimizer in a plain loop."""
    options = training.TrainingOptions(epochs=epochs, batch_size=16, lr=0.1)
    model, split, step = small.model(), small.data().train, 0
    base = options.optimizer(model.parameters())
    optimizer = sam.SAM(model, base, small.variant(name))
    for epoch in range(epochs):
        optimizer.begin_epoch(epoch, total_epochs=epochs)
        for x, y, _ in batches(split, options, seed=0, epoch=epoch):
            base.param_groups[0]["lr"] = options.learning_rate(step, 6 * epochs, 6)
            optimizer.step(lambda b: F.cross_entropy(model(b[0]), b[1], reduction="none"), (x, y))
            yield optimizer.perturbation
            step += 1


@pytest.mark.parametrize("name", ["sgd", "sam", "sam_on", "zsharp"])
def test_scalars_equal_the_optimizers_perturbation_of_every_step(tmp_path, name):
    small.train(tmp_path, name)
    steps = training.read_steps(tmp_path)
    for i, seen in enumerate(replay(name)):
        assert steps["loss_clean"][i] == float(seen.loss_clean)
        assert steps["loss_perturbed"][i] == float(seen.loss_perturbed)
        assert steps["perturbation_norm"][i] == float(seen.norm)
        assert steps["cosine"][i] == pytest.approx(float(seen.cosine), rel=1e-6, nan_ok=True)
        shares = [float(s) for s in seen.energy_share.values()]
        assert steps["energy_share"][i].tolist() == pytest.approx(shares, rel=1e-6)
        densities = [float(d) for d in seen.density.values()]
        assert steps["density"][i].tolist() == pytest.approx(densities, rel=1e-6)
    assert i + 1 == len(steps["rho"]) == 18


def test_masks_and_zscores_of_chosen_steps(tmp_path):
    recorder = training.RecorderOptions(snapshots=2)
    small.train(tmp_path, "zsharp", recorder=recorder)
    masks = dict(read_masks(tmp_path))
    assert set(masks) == recorder.steps(18, per_epoch=6, seed=0)
    for step, seen in enumerate(replay("zsharp")):
        if step not in masks:
            continue
        expected = PackedMasks.of(seen.mask)
        assert masks[step].names == expected.names
        assert np.array_equal(masks[step].bits, expected.bits)
        with np.load(tmp_path / "snapshots" / f"{step:08d}.npz") as content:
            counts = content["zscore_counts"]
        for row, g in zip(counts, seen.g1):
            g = g.double().numpy().ravel()
            z = (g - g.mean()) / g.std(ddof=1)
            expected_counts = np.histogram(z, GRID.edges)[0]
            assert row.sum() == g.size
            assert np.abs(row[: GRID.bins].astype(int) - expected_counts).sum() <= 2


def test_zscores_without_a_spread_are_counted_as_none():
    """Equal elements have a spread of rounding, one has none: neither is a division by 1e-17."""
    given = [
        torch.full((30,), 0.1, dtype=torch.float64),
        torch.tensor([0.3]),
        torch.zeros(4),
        torch.tensor([1.0, 3.0]),
        torch.tensor([1.0, float("nan")]),
        None,
    ]
    assert given[0].numpy().std() > 0
    counts = zscore_counts(given)
    assert counts[:, -1].tolist() == [30, 1, 4, 0, 2, 0]
    assert counts.sum(1).tolist() == [30, 1, 4, 2, 2, 0]
    at = np.flatnonzero(counts[3])  # z = -+1/sqrt(2) with the unbiased deviation
    assert GRID.centres[at] == pytest.approx([-0.707, 0.707], abs=GRID.width)


def test_perturbation_history_is_the_mean_over_each_epochs_steps(tmp_path):
    small.train(tmp_path, "zsharp")
    steps = training.read_steps(tmp_path)
    ds = training.consolidate(tmp_path)["perturbation_history"]
    assert ds.energy_share.dims == ("epoch", "tensor")
    assert ds.tensor.values.tolist() == list(dict(small.model().named_parameters()))
    assert ds.kind.values.tolist() == ["linear", "bias", "norm", "norm", "linear", "bias"]
    assert ds["size"].values.tolist() == [72, 12, 12, 12, 36, 3]
    for k, epoch in enumerate(ds.epoch.values):
        rows = steps["epoch"] == epoch
        gap = (steps["loss_perturbed"] - steps["loss_clean"])[rows].mean()
        assert float(ds.sharpness_gap[k]) == pytest.approx(float(gap), rel=1e-5)
        assert ds.density[k].values == pytest.approx(steps["density"][rows].mean(0), rel=1e-5)
    assert ds.radius_ratio.values == pytest.approx(np.ones(3), rel=1e-5)  # ‖e‖ = rho, one norm
    assert ds.energy_share.sum("tensor").values == pytest.approx(np.ones(3), rel=1e-5)


def test_sgd_perturbs_nothing(tmp_path):
    small.train(tmp_path, "sgd")
    found = training.consolidate(tmp_path)
    ds = found["perturbation_history"]
    assert not ds.density.any()
    assert not ds.perturbation_norm.any()
    assert ds.radius_ratio.isnull().all()
    assert "mask_persistence" not in found


def test_persistence_of_a_mask_that_never_changes_and_of_one_drawn_anew(tmp_path):
    small.train(tmp_path / "on", "sam_on")
    fixed = training.consolidate(tmp_path / "on")["mask_persistence"]
    assert (fixed.jaccard == 1).all()
    small.train(tmp_path / "random", "random_mask", epochs=20)
    drawn = training.consolidate(tmp_path / "random")["mask_persistence"]
    assert abs(float(drawn.kappa.mean())) < 0.2
    assert drawn.lag.values.tolist()[:3] == [1, 2, 4]
    assert (drawn.num_pairs >= 1).all()


def test_history_has_units_and_provenance(tmp_path):
    small.train(tmp_path)
    ds = training.consolidate(tmp_path)["history"]
    assert set(ds.data_vars) == {
        "train_loss", "val_loss", "val_accuracy", "lr", "epoch_seconds", "num_skipped"
    }  # fmt: skip
    assert not ds.num_skipped.any()
    assert ds.epoch.values.tolist() == [1, 2, 3]
    from landscape import results

    assert results.provenance(ds)["training"]["seed"] == 0
    assert ds.train_loss.units == "nats"


@pytest.mark.parametrize("name", ["sgd", "sam", "zsharp"])
def test_the_announced_bytes_are_an_upper_bound_and_not_a_wild_one(tmp_path, name):
    options = training.TrainingOptions(epochs=20, batch_size=16)
    recorder = training.RecorderOptions()
    announced = training.estimate_bytes(
        ParamLayout.of(small.model()), options, recorder, num_examples=96
    )
    small.train(tmp_path, name, epochs=20)
    written = sum(p.stat().st_size for p in (tmp_path / "snapshots").glob("*.npz"))
    assert written <= announced < 20 * written


def test_nothing_is_recorded_when_nothing_is_asked(tmp_path):
    recorder = training.RecorderOptions(scalars=False, snapshots=0)
    assert (
        training.estimate_bytes(
            ParamLayout.of(small.model()), training.TrainingOptions(), recorder, num_examples=96
        )
        == 0
    )
    small.train(tmp_path, recorder=recorder)
    assert not (tmp_path / "snapshots").exists()
    assert set(training.consolidate(tmp_path)) == {"history"}


def test_recording_does_not_change_the_training(tmp_path):
    recorder = training.RecorderOptions(scalars=False, snapshots=0)
    first, _ = small.train(tmp_path / "a", "zsharp")
    second, _ = small.train(tmp_path / "b", "zsharp", recorder=recorder)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters()))


def test_live_masks_of_the_last_step_are_kept(tmp_path):
    small.train(tmp_path, "ssam_d")
    slots = training.optimizer_slots(tmp_path)
    assert set(slots["selector"]["mask"]) == set(dict(small.model().named_parameters()))
    assert training.optimizer_slots(tmp_path / "nothing") is None


def test_folders_without_a_whole_training_are_named(tmp_path):
    with pytest.raises(LandscapeError, match="holds no epoch of a training: it was not"):
        training.consolidate(tmp_path)
    small.train(tmp_path)
    path = tmp_path / "snapshots" / "steps.bin"
    content = bytearray(path.read_bytes())
    content[-20] ^= 1
    path.write_bytes(content)
    with pytest.raises(LandscapeError, match=r"steps.bin is damaged: 1 of 18 rows .* first is 17"):
        training.consolidate(tmp_path)


def test_weights_and_first_order_effects_are_those_at_w(tmp_path):
    recorder = training.RecorderOptions(snapshots=0)
    small.train(tmp_path, "zsharp", recorder=recorder)
    steps = training.read_steps(tmp_path)
    norms = [float(p.detach().norm()) for p in small.model().parameters()]
    assert steps["weight_norm"][0].tolist() == pytest.approx(norms, rel=1e-6)
    for i, seen in enumerate(replay("zsharp")):
        e = seen.e.values()
        first = [float((g.double() * d.double()).sum()) for g, d in zip(seen.g1, e, strict=True)]
        assert steps["first_order"][i].tolist() == pytest.approx(first, rel=1e-4, abs=1e-9)
    ds = training.consolidate(tmp_path)["perturbation_history"]
    share, norm = steps["energy_share"][:6], steps["perturbation_norm"][:6]
    weights = np.where(steps["weight_norm"] > 0, steps["weight_norm"], np.nan)[:6]  # one is 0
    ratio = np.nanmean(np.sqrt(share) * norm[:, None] / weights, axis=0)
    assert ds.norm_ratio[0].values == pytest.approx(ratio, rel=1e-5)
    assert ds.first_order[0].values == pytest.approx(steps["first_order"][:6].mean(0), rel=1e-5)


def test_snapshots_every_so_many_steps(tmp_path):
    recorder = training.RecorderOptions(snapshots=0, every=5)
    assert recorder.steps(18, per_epoch=6, seed=0) == {0, 5, 10, 15}
    both = training.RecorderOptions(snapshots=1, every=5)
    alone = training.RecorderOptions(snapshots=1).steps(18, per_epoch=6, seed=0)
    assert both.steps(18, per_epoch=6, seed=0) == alone | {0, 5, 10, 15}
    small.train(tmp_path, "zsharp", recorder=recorder)
    assert training.read_masks(tmp_path).steps.tolist() == [0, 5, 10, 15]
    assert training.consolidate(tmp_path)["mask_persistence"].lag.values.tolist() == [5, 10]
    with pytest.raises(LandscapeError, match="every=-1 was asked; give a whole number"):
        training.RecorderOptions(every=-1)


def test_correctness_of_every_training_example_at_the_end_of_every_epoch(tmp_path):
    recorder = training.RecorderOptions(scalars=False, snapshots=0, correctness=True)
    model, _ = small.train(tmp_path, "sam", recorder=recorder, epochs=5, dropout=0.3, keep_every=1)
    found = training.read_correctness(tmp_path)
    assert found.epochs.tolist() == [1, 2, 3, 4, 5]
    split = small.data().train
    for epoch, correct in zip(found.epochs, found.correct, strict=True):
        model = small.model(dropout=0.3)
        load_weights(model, checkpoint.weights_path(tmp_path, int(epoch)))
        model.eval()
        assert correct.tolist() == (model(split.x).argmax(1) == split.y).tolist()
    assert 0 < found.correct.mean() < 1
    options = training.TrainingOptions(epochs=5, batch_size=16)
    announced = training.estimate_bytes(
        ParamLayout.of(small.model()), options, recorder, num_examples=96
    )
    assert (tmp_path / "snapshots" / "correct.bin").stat().st_size == announced


def test_correctness_needs_classes(tmp_path):
    x = torch.randn(20, 6, generator=torch.Generator().manual_seed(0))
    data = problems.as_splits([(x, x[:, :3])] * 3, name="regression")
    with pytest.raises(LandscapeError, match=r"correctness=True .* targets of regression are not"):
        training.train(
            small.model(), data, small.variant("sam"), training.TrainingOptions(), seed=0,
            folder=tmp_path, recorder=training.RecorderOptions(correctness=True),
        )  # fmt: skip


def test_a_full_disk_ends_the_training_and_the_same_call_continues_it(tmp_path, monkeypatch):
    small.train(tmp_path / "whole", "zsharp")
    append, calls = snapshots.RowFile.append, []

    def full(self, rows):
        calls.append(rows)
        if len(calls) == 2:
            raise LandscapeError("The disk is full: steps.bin was not written")
        append(self, rows)

    monkeypatch.setattr(snapshots.RowFile, "append", full)
    with pytest.raises(LandscapeError, match="disk is full"):
        small.train(tmp_path / "hit", "zsharp")
    assert len(training.read_steps(tmp_path / "hit")) == 6
    small.train(tmp_path / "hit", "zsharp")
    for path in (tmp_path / "whole" / "snapshots").glob("*"):
        assert (tmp_path / "hit" / "snapshots" / path.name).read_bytes() == path.read_bytes()


def test_a_long_epoch_is_written_while_it_goes_on(tmp_path, monkeypatch):
    small.train(tmp_path / "whole", "zsharp")
    monkeypatch.setattr("landscape.training.recorder._FLUSH", 4)
    found = []

    def look(record):
        found.append(len(training.read_steps(tmp_path / "often")))

    monkeypatch.setattr(
        "landscape.training.loop._Session._evaluate", lambda *_: look(None) or (0.0, 0.0)
    )
    small.train(tmp_path / "often", "zsharp")
    assert found == [4, 10, 16]  # of 6, 12, 18, before the rest of each epoch is flushed
    first, second = (tmp_path / name / "snapshots" / "steps.bin" for name in ("whole", "often"))
    assert first.read_bytes() == second.read_bytes()


def test_a_study_says_what_each_training_will_record(tmp_path, monkeypatch):
    from landscape import storage, study
    from landscape.study import run_folder, running, worker
    from landscape.study.demo import demo_text

    (tmp_path / "s.toml").write_text(demo_text(quick=True))
    plan = study.load(tmp_path / "s.toml")
    place, said = storage.StudyFolder(tmp_path), []
    known = run_folder.Trainings(plan, place)
    job = running.job_of(known, plan.runs[0], place, "cpu", study.Options())
    monkeypatch.setattr("landscape.study.worker.train", lambda *_: None)
    worker._train(job, 1.0, lambda fraction, note: said.append((fraction, note)))
    # 40 epochs of 16 steps: 640 rows of 240 bytes and, in 4 stretches of 160 steps, 4 (1 + 8) + 1
    # snapshots of 16 kB: 0.75 MB.
    assert said == [(0.0, "training, recording at most 0.7 MB")]
