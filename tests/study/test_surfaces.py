"""Planes of every kind, and what lies between the runs of a setting, measured by a study."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from landscape import measure, results
from landscape.cores import usable_cores
from landscape.errors import LandscapeError
from landscape.plot import runs
from landscape.study import Options, parse, run
from landscape.study.estimate import estimate
from landscape.study.finished_run import FinishedRun
from landscape.study.measurements import measure_run
from landscape.study.measurements.connections import _half
from landscape.study.run_folder import Trainings
from landscape.study.running import job_of, worker_count

HERE = Path(__file__).parents[1]
TEXT = """
name = "connected"
[problem]
data = "study_problem:splits"
model = "study_problem:make"
[training]
epochs = 3
batch_size = 16
keep_every = 1
[variants.sam]
rho = 0.1
[variants.zsharp]
percentile = 0.5
[settings.one]
[settings.two]
loss = "study_problem:loss"
[[grid]]
setting = "one"
variant = ["sgd", "sam", "zsharp"]
seed = [0, 1]
[[grid]]
setting = "two"
variant = ["sgd", "sam"]
seed = [0]
[measure]
examples = 24
measurements = ["barrier", "bezier", "trajectory", "interpolation"]
[measure.barrier]
points = 3
[measure.bezier]
between = ["sam/0", "sgd"]
steps = 4
points = 3
batch_size = 8
[measure.interpolation]
points = 3
[measure.trajectory]
grid = 1
margin = 0.0
"""
HERE_ONLY = Options(device="cpu", workers=0, quiet=True)


def plan(text=TEXT):
    return parse(text, base=HERE)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    summary = run(plan(), tmp_path_factory.mktemp("connected") / "study", HERE_ONLY)
    assert not summary.failed
    assert len(summary.done) == 8
    return summary


def bench_of(finished, name, *, setting="one", text=TEXT):
    study = plan(text)
    found = next(r for r in study.runs if (r.setting, f"{r.variant}/{r.seed}") == (setting, name))
    known = Trainings(study, finished.folder)
    return FinishedRun(job_of(known, found, finished.folder, "cpu", HERE_ONLY, across=True))


def test_the_slices_of_a_study_use_every_core_that_it_may(monkeypatch):
    """A run's slices are one job of the pool, which has a worker for each core."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 2, 5}, raising=False)
    assert worker_count(Options(), "cpu") == usable_cores() == 3
    assert worker_count(Options(workers=1), "cpu") == worker_count(Options(), "cuda:0") == 1


@pytest.mark.parametrize("count", [2, 3, 4, 7, 8])
def test_every_pair_of_runs_is_measured_once_and_the_work_is_even(count):
    pairs = [(i, j) for i in range(count) for j in _half(range(count), i)]
    assert len({frozenset(pair) for pair in pairs}) == len(pairs) == count * (count - 1) // 2
    each = [sum(i == row for i, _ in pairs) for row in range(count)]
    assert max(each) - min(each) <= 1


def test_the_barrier_matrix_covers_every_pair_of_each_setting(
    finished,
):
    ds = results.load(finished.folder.results / "barrier.nc")
    assert runs.settings(ds) == ["one", "two"]
    for setting, size in (("one", 6), ("two", 2)):
        part = runs.in_setting(ds, setting).dropna("other", how="all", subset=["barrier"])
        assert set(part.other.values) == set(part.run.values)
        known = np.isfinite(part.sel(other=part.run.values).barrier.values)
        assert known.diagonal().all()
        assert (known | known.T).all()
        assert known.sum() == size + size * (size - 1) // 2
    first = bench_of(finished, "sgd/0")
    row = ds.isel(run=list(ds.run.values).index(first.run.run_id))
    named = row.dropna("other", how="all", subset=["barrier"]).other.values
    other = next(r for r in first.job.peers if r.run_id in named and r != first.run)
    alone = measure.interpolation(first.risk(), first.theta, end=first.theta_of(other), points=3)
    np.testing.assert_array_equal(row.sel(other=other.run_id).loss, alone.loss)
    assert float(row.sel(other=other.run_id).barrier) == pytest.approx(float(alone.barrier))
    assert {entry["bn"] for entry in results.provenance(ds)["runs"]} == {"recalibrate"}


def test_a_curve_is_trained_between_the_two_runs_that_are_named(finished):
    ds = results.load(finished.folder.results / "bezier.nc")
    assert list(ds.variant.values) == ["sam", "sam"]
    assert list(ds.setting.values) == ["one", "two"]
    ends = [bench_of(finished, "sgd/0", setting=name) for name in ("one", "two")]
    assert list(ds.end.values) == ["sgd, seed 0"] * 2
    risk = ends[0].risk().with_bn("recalibrate")
    assert float(ds.loss[0, -1]) == pytest.approx(float(risk.loss(ends[0].theta)))


def test_the_line_from_the_initial_weights_ends_at_the_solution(finished):
    ds = results.load(finished.folder.results / "interpolation.nc")
    assert list(ds.seed.values) == [0] * 5
    bench = bench_of(finished, "sam/0")
    row = ds.isel(run=list(ds.run.values).index(bench.run.run_id))
    risk, start = bench.risk().with_bn("recalibrate"), bench.checkpoints()[0]
    ends = [float(risk.loss(w)) for w in (start, bench.theta)]
    np.testing.assert_allclose(row.loss.values[[0, -1]], ends, rtol=1e-6)
    assert ends[0] != ends[1]
    distance = float(torch.linalg.vector_norm((start - bench.theta).double()))
    assert float(row.distance) == pytest.approx(distance, rel=1e-6)


def test_the_trajectory_runs_from_the_initial_weights_through_the_kept_ones(finished):
    ds = results.load(finished.folder.results / "trajectory.nc")
    assert list(ds.epoch.values) == [0, 1, 2, 3]
    assert list(ds.seed.values) == [0] * 5
    bench = bench_of(finished, "sam/0")
    kept = bench.checkpoints()
    row = ds.isel(run=list(ds.run.values).index(bench.run.run_id))
    risk = bench.risk().with_bn("recalibrate")
    np.testing.assert_allclose(row.loss, [float(risk.loss(w)) for w in kept.values()], rtol=1e-6)
    assert torch.equal(kept[3], bench.theta)
    centre = row.plane_loss.sel(alpha=0.0, beta=0.0)
    assert float(centre) == pytest.approx(float(row.loss[-1]), rel=1e-6)
    distance = float(torch.linalg.vector_norm((kept[0] - kept[3]).double()))
    first = row.isel(epoch=0)
    assert np.hypot(
        np.linalg.norm(first.coordinate), float(first.residual)
    ) == pytest.approx(distance, rel=1e-5)  # fmt: skip


def test_nothing_is_made_twice_and_a_new_run_renews_what_it_takes_part_in(finished):
    before = {p: p.stat().st_mtime_ns for p in finished.folder.root.rglob("*.nc")}
    again = run(plan(), finished.folder.root, HERE_ONLY)
    assert len(again.kept) == 8
    assert not again.done
    assert before == {p: p.stat().st_mtime_ns for p in finished.folder.root.rglob("*.nc")}
    more = plan(TEXT.replace('variant = ["sgd", "sam"]\nseed = [0]', 'variant = "sgd"\nseed = [0]'))
    keys = [
        {m.name: key for m, key in Trainings(study, finished.folder).keyed(run)}
        for study in (plan(), more)
        for run in study.runs
        if (run.setting, run.variant) == ("two", "sgd")
    ]
    assert keys[0]["barrier"] != keys[1]["barrier"]
    assert keys[0]["trajectory"] == keys[1]["trajectory"]


def call(finished, name, who="sgd/0", text=TEXT, **options):
    return measure_run(bench_of(finished, who, text=text), name, options)


def test_the_plane_through_three_runs_holds_them(finished):
    ds = call(finished, "three_points", through=["sgd", "sam/1", "zsharp/0"], cells=2, margin=0.5)
    assert list(ds.point.values) == ["sgd, seed 0", "sam, seed 1", "zsharp, seed 0"]
    for i in range(3):
        here = ds.loss.sel(alpha=float(ds.model_alpha[i]), beta=float(ds.model_beta[i]))
        assert float(here) == pytest.approx(float(ds.model_loss[i]), rel=1e-6)
    other = call(finished, "three_points", "sam/0", through=["sgd", "sam/1", "zsharp/0"])
    assert other is None


@pytest.mark.parametrize("kind", ["eigenvectors", "gradient", "perturbations"])
def test_planes_of_a_meaning_have_orthonormal_axes(finished, kind):
    ds = call(
        finished, "loss_plane", kind=kind, points=3, radius=0.1, variants=["sam", "zsharp"],
        bn="eval",
    )  # fmt: skip
    assert abs(float(ds.axis_cosine)) < 1e-5
    assert [float(ds.alpha_norm), float(ds.beta_norm)] == pytest.approx([1, 1], rel=1e-5)
    assert results.provenance(ds)["plane"] == {"gradient": "perturbations"}.get(kind, kind)
    if kind == "gradient":
        bench = bench_of(finished, "sgd/0")
        slope = float(torch.linalg.vector_norm(bench.risk().gradient(bench.theta)))
        rise = ds.loss.sel(beta=0.0).values
        assert (rise[2] - rise[0]) / 0.2 == pytest.approx(slope, rel=0.1)


def test_planes_take_test_data_other_ranges_a_tolerance_and_tiles(finished, tmp_path):
    ds = call(
        finished, "loss_plane", alpha_range=[-0.5, 1.0], points=4, beta_range=[0.0, 1.0],
        beta_points=3, also=["test"], tiles=True,
    )  # fmt: skip
    assert ds.loss.shape == (4, 3)
    assert list(ds.alpha.values) == [-0.5, 0, 0.5, 1]
    assert np.isfinite(ds.test_loss).all()
    folder = bench_of(finished, "sgd/0").job.folder
    assert len(list(folder.glob("tiles/loss_plane-*/tile-*.npz"))) == 4
    adaptive = call(finished, "loss_plane", points=25, radius=0.2, tolerance=0.5)
    assert 0 < adaptive.evaluated.mean() < 1


def test_the_line_along_a_perturbation_ends_where_the_variant_goes(finished):
    ds = call(
        finished, "perturbation_slice", variants=["sam", "zsharp"], batch_size=12, points=3,
        radius=1.0,
    )  # fmt: skip
    assert list(ds.direction.values) == ["sam", "zsharp"]
    assert float(ds.direction_norm[0]) == pytest.approx(0.1, rel=1e-5)
    rise = ds.batch_loss.sel(alpha=1.0) - ds.batch_loss.sel(alpha=0.0)
    bench = bench_of(finished, "sgd/0")
    variant = bench.counterfactuals(["sam"])["sam"]
    other = measure.perturbation(
        bench.risk(), bench.theta, variant=variant, batch_size=12, bn="batch", seed=0
    )
    full = ds.loss.sel(alpha=1.0, direction="sam") - float(ds.center_loss)
    assert float(full) == pytest.approx(float(other.loss_increase_full), rel=1e-3)
    assert np.isfinite(rise).all()


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("barrier", {"variants": ["sgd"], "seeds": [0]}, r"leave 1 trained run of setting 'one'"),
        ("bezier", {"between": ["sgd/0", "sgd/0"]}, "needs 2 different runs"),
        ("bezier", {"between": ["sgd/7", "sgd/0"]}, "No trained run 'sgd/7' in setting 'one'; it"),
        ("three_points", {"through": ["sgd", "sam"]}, "needs 3 different runs of setting 'one'"),
        ("loss_plane", {"kind": "perturbations"}, "needs two variants"),
        ("loss_plane", {"also": ["holdout"]}, "no split 'holdout'; they have train, val, test"),
        ("loss_plane", {"alpha_range": [0.5, 1.0]}, r"low <= 0 <= high"),
        ("loss_plane", {"alpha_range": [-1.0, 0.7], "points": 4}, "leave out alpha = 0"),
        ("perturbation_slice", {"variants": []}, "perturbations of no variant were asked"),
        ("perturbation_slice", {"variants": ["sgd"]}, "'sgd' perturbs nothing here"),
    ],
)
def test_bad_requests_are_named(finished, name, options, message):
    with pytest.raises(LandscapeError, match=message):
        call(finished, name, **options)


def test_an_unknown_plane_is_refused_when_the_file_is_read():
    text = TEXT[: TEXT.index("[measure]")] + '[measure.loss_plane]\nkind = "pca"\n'
    with pytest.raises(LandscapeError, match=r"loss_plane\] kind.*'pca'.*random, eigenvectors"):
        parse(text, base=HERE)


def test_a_training_that_kept_nothing_and_runs_of_two_architectures_are_named(finished, tmp_path):
    text = TEXT.replace("keep_every = 1", "keep_every = 0")
    with pytest.raises(LandscapeError, match=r"set \[training\] keep_every = 1"):
        parse(text, base=HERE)
    mixed = """
name = "mixed"
[problem]
data = "study_problem:splits"
[training]
epochs = 1
batch_size = 16
[[run]]
variant = "sgd"
model = "study_problem:make"
[[run]]
variant = "sgd"
seed = 1
model = "study_problem:plain"
[measure]
examples = 24
measurements = ["barrier"]
"""
    summary = run(plan(mixed), tmp_path / "mixed", HERE_ONLY)
    assert len(summary.failed) == 1
    assert "has another architecture (study_problem:plain, P = 67)" in next(
        iter(summary.failed.values())
    )


def test_a_single_run_has_no_barrier(tmp_path):
    text = TEXT.split("[[grid]]")[0].replace("[settings.one]\n[settings.two]\n", "")
    text = text.replace('loss = "study_problem:loss"\n', "")
    text += '[grid]\nvariant = "sgd"\nseed = [0]\n[measure]\nmeasurements = ["barrier"]\n'
    summary = run(plan(text), tmp_path / "one", HERE_ONLY)
    assert "a barrier is between two" in next(iter(summary.failed.values()))


def test_the_estimate_counts_what_is_measured_across_runs(tmp_path):
    found = {row.name: row for row in estimate(plan(), tmp_path / "new", HERE_ONLY).rows}
    # One setting of 6 runs and one of 2: 15 + 1 lines of 2 further points, and each run itself.
    assert found["barrier"].gradients == pytest.approx(2 / 3 * (16 * 2 + 8))
    assert found["bezier"].gradients == pytest.approx(2 * (4 / 2 + 4))
    assert found["trajectory"].runs == 5
    assert found["interpolation"].gradients == pytest.approx(5 * 2 * 3 / 3)
