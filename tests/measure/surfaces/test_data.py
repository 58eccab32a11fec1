"""Differences of surfaces against hand-made runs; tables and old files read back to the bit."""

import csv

import h5py
import numpy as np
import pytest
import xarray as xr
from scipy import stats

from landscape import LandscapeError, results, surfaces
from landscape.plot import files
from landscape.results import Variable

ALPHA, BETA = np.linspace(-1, 1, 3), np.linspace(-1, 1, 5)


def plane(loss, **options):
    options = {"bn": "eval", "plane_seed": 0, "normalize": "filter"} | options
    variables = {
        "loss": Variable(("alpha", "beta"), loss, "nats", "Loss"),
        "center_loss": Variable((), loss[1, 2], "nats", "Loss of the checkpoint"),
    }
    coords = {
        "alpha": Variable("alpha", ALPHA, "1", "α"),
        "beta": Variable("beta", BETA, "1", "β"),
    }
    return results.make("loss_plane", variables, coords=coords, provenance=options)


def runs(values, **options):
    """values: {variant: {seed: loss (alpha, beta)}}."""
    return results.combine(
        [
            ({"run": f"{variant}-{seed}", "variant": variant, "seed": seed, "setting": "noisy"},
             plane(loss, **options))
            for variant, seeds in values.items()
            for seed, loss in seeds.items()
        ]
    )  # fmt: skip


def drawn(seeds=5, shift=0.5, *, noise=0.1):
    rng = np.random.default_rng(0)
    base = {s: 2 + rng.normal(size=(3, 5)) ** 2 for s in range(seeds)}
    return {
        "sam": {s: base[s] + shift + noise * rng.normal(size=(3, 5)) for s in reversed(base)},
        "sgd": base,
    }


def test_difference_is_the_paired_t_interval_of_every_cell():
    values = drawn()
    ds = surfaces.difference(runs(values), variant="sam", reference="sgd")
    each = np.array([values["sam"][s] - values["sgd"][s] for s in range(5)])
    np.testing.assert_allclose(ds.difference, each.mean(0), rtol=1e-12)
    half = stats.t.ppf(0.975, 4) * each.std(0, ddof=1) / np.sqrt(5)
    np.testing.assert_allclose(ds.high - ds.difference, half, rtol=1e-10)
    np.testing.assert_allclose(ds.difference - ds.low, half, rtol=1e-10)
    np.testing.assert_allclose(ds.loss_variant - ds.loss_reference, ds.difference, rtol=1e-10)
    assert (ds.n == 5).all()
    # The true signs and their mirror image are the only two of 32 that reach this maximum.
    assert float(ds.p_anywhere) == 2 / 32
    says = results.provenance(ds)
    assert (says["bn"], says["plane_seed"], says["seeds"]) == ("eval", 0, [0, 1, 2, 3, 4])


def test_the_interval_covers_a_true_shift_in_95_percent_of_cells():
    rng = np.random.default_rng(1)
    inside = []
    for _ in range(60):
        values = {"a": {}, "b": {}}
        for seed in range(4):
            base = rng.normal(size=(3, 5))
            values["b"][seed] = base
            values["a"][seed] = base + 0.3 + rng.normal(size=(3, 5))
        ds = surfaces.difference(runs(values), variant="a", reference="b")
        inside.append(((ds.low <= 0.3) & (ds.high >= 0.3)).values)
    assert 0.92 < np.mean(inside) < 0.98


def test_without_a_difference_p_is_spread_and_with_equal_surfaces_there_is_none():
    rng = np.random.default_rng(2)
    p = []
    for _ in range(80):
        values = {v: {s: rng.normal(size=(3, 5)) for s in range(5)} for v in "ab"}
        p.append(float(surfaces.difference(runs(values), variant="a", reference="b").p_anywhere))
    assert np.mean(np.array(p) <= 0.125) < 0.25
    same = {s: rng.normal(size=(3, 5)) for s in range(3)}
    ds = surfaces.difference(runs({"a": same, "b": same}), variant="a", reference="b")
    assert (ds.difference == 0).all()
    assert np.isnan(ds.p_anywhere)


def test_log_difference_is_the_log_of_the_ratio():
    base = {s: np.full((3, 5), 2.0 + s) for s in range(3)}
    doubled = {s: 2 * loss for s, loss in base.items()}
    ds = surfaces.difference(
        runs({"a": doubled, "b": base}), variant="a", reference="b", scale="log_loss"
    )
    np.testing.assert_allclose(np.exp(ds.difference), 2.0, rtol=1e-12)
    assert ds.difference.attrs["units"] == "1"


def test_cells_that_are_not_finite_lose_their_pair_only_there():
    values = drawn(3)
    values["sam"][1][0, 0] = np.inf
    values["sgd"][2][0, 0] = np.nan
    values["sgd"][2][0, 1] = np.nan
    ds = surfaces.difference(runs(values), variant="sam", reference="sgd")
    assert ds.n.values[0, :3].tolist() == [1, 2, 3]
    assert np.isfinite(ds.difference[0, 0])
    assert np.isnan(ds.low[0, 0])
    assert np.isfinite(ds.low[0, 1:]).all()


def test_only_seeds_of_both_are_used_and_slices_are_averaged_over_directions():
    values = drawn(4)
    del values["sgd"][3]
    ds = surfaces.difference(runs(values), variant="sam", reference="sgd", setting="noisy")
    assert results.provenance(ds)["seeds"] == [0, 1, 2]
    combined = runs(drawn(4)).rename(beta="direction").drop_vars("direction")
    line = surfaces.difference(combined, variant="sam", reference="sgd")
    assert line.difference.dims == ("alpha",)
    mean = surfaces.difference(runs(drawn(4)), variant="sam", reference="sgd").difference.mean(
        "beta"
    )
    np.testing.assert_allclose(line.difference, mean, rtol=1e-12)


def test_what_cannot_be_subtracted_is_refused():
    ds = runs(drawn(2))
    with pytest.raises(LandscapeError, match="No run of variant 'asam' is in the result; it has"):
        surfaces.difference(ds, variant="asam", reference="sgd")
    with pytest.raises(LandscapeError, match="scale='square' is unknown; choose one of 'loss"):
        surfaces.difference(ds, variant="sam", reference="sgd", scale="square")
    with pytest.raises(LandscapeError, match=r"seeds \[1, 0\] and 'sgd' \[7\]"):
        surfaces.difference(
            runs(drawn(2) | {"sgd": {7: np.ones((3, 5))}}), variant="sam", reference="sgd"
        )
    with pytest.raises(LandscapeError, match="no 'variant' of its runs"):
        surfaces.difference(plane(np.ones((3, 5))), variant="sam", reference="sgd")
    other = results.combine(
        [({"variant": v, "seed": 0}, plane(np.ones((3, 5)), plane_seed=i))
         for i, v in enumerate("ab")]
    )  # fmt: skip
    with pytest.raises(LandscapeError, match=r"differ in plane_seed \(0, 1\)"):
        surfaces.difference(other, variant="a", reference="b")
    twice = results.combine([({"variant": v, "seed": 0}, plane(np.ones((3, 5)))) for v in "aab"])
    with pytest.raises(LandscapeError, match="'a' has more than one run of a seed"):
        surfaces.difference(twice, variant="a", reference="b")


# --- files --------------------------------------------------------------------------------------


def test_csv_holds_every_number_to_the_last_bit(tmp_path):
    loss = np.random.default_rng(0).normal(size=(3, 5)) * 10.0 ** np.arange(-150, 150, 60)
    loss[0, 0], loss[0, 1] = np.nan, np.inf
    ds = plane(loss)
    results.save(ds, tmp_path / "plane.nc")
    (path,) = files.convert(tmp_path / "plane.nc", tmp_path / "plane.csv")
    rows = list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))
    assert list(rows[0]) == ["alpha", "beta", "loss", "center_loss"]
    found = np.array([float(row["loss"]) for row in rows]).reshape(3, 5)
    np.testing.assert_array_equal(found, loss)
    assert [float(row["beta"]) for row in rows[:5]] == BETA.tolist()
    assert {float(row["center_loss"]) for row in rows} == {loss[1, 2]}
    assert sorted(tmp_path.iterdir()) == [path, tmp_path / "plane.nc"]


def test_csv_of_runs_names_them(tmp_path):
    results.save(runs(drawn(2)), tmp_path / "x.nc")
    files.convert(tmp_path / "x.nc", tmp_path / "x.csv")
    path = tmp_path / "x.run-alpha-beta.csv"
    rows = list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))
    assert len(rows) == 4 * 15
    assert {(row["variant"], row["seed"]) for row in rows} == {
        ("sam", "0"), ("sam", "1"), ("sgd", "0"), ("sgd", "1")}  # fmt: skip


def goldstein(path, x, y=None, *, function=lambda a, b: a + 10 * b + 100):
    """A file as that program writes it: x runs fastest, under the shape (x, y)."""
    with h5py.File(path, "w") as file:
        file["xcoordinates"] = x
        losses = np.array([function(a, 0) for a in x])
        if y is not None:
            file["ycoordinates"] = y
            mesh = np.meshgrid(x, y)
            losses = function(mesh[0].ravel(), mesh[1].ravel()).reshape(len(x), len(y))
        file["train_loss"] = losses
        file["train_acc"] = np.full(losses.shape, 75.0)
    return path


@pytest.mark.parametrize("y", [np.linspace(-1, 1, 3), np.linspace(0, 2, 4)])
def test_goldsteins_surfaces_come_in_with_their_axes_right(tmp_path, y):
    ds = surfaces.read_goldstein(goldstein(tmp_path / "s.h5", ALPHA, y))
    expected = ALPHA[:, None] + 10 * y[None] + 100
    np.testing.assert_array_equal(ds.loss, expected)
    assert ds.loss.dims == ("alpha", "beta")
    np.testing.assert_array_equal(ds.error_rate, 0.25)
    assert results.provenance(ds)["bn"] == "eval"
    results.save(ds, tmp_path / "s.nc")
    assert results.load(tmp_path / "s.nc").equals(ds)


def test_goldsteins_lines_and_unfinished_files(tmp_path):
    path = goldstein(tmp_path / "line.h5", ALPHA)
    with h5py.File(path, "a") as file:
        file["train_loss"][2] = file["train_acc"][2] = -1
        file["test_loss"] = np.array([1.0, 2.0, 3.0])
    ds = surfaces.read_goldstein(path)
    assert ds.attrs["measurement"] == "loss_slice"
    np.testing.assert_array_equal(ds.loss[0], [99.0, 100.0, np.nan])
    np.testing.assert_array_equal(ds.test_loss[0], [1, 2, 3])


def test_files_that_are_no_surfaces_are_named(tmp_path):
    with pytest.raises(LandscapeError, match=r"none\.h5 does not exist"):
        surfaces.read_goldstein(tmp_path / "none.h5")
    half = goldstein(tmp_path / "half.h5", ALPHA, BETA)
    half.write_bytes(half.read_bytes()[:500])
    with pytest.raises(LandscapeError, match=r"half\.h5 is not a whole HDF5 file"):
        surfaces.read_goldstein(half)
    with h5py.File(tmp_path / "dir.h5", "w") as file:
        file["xdirection"] = np.ones(3)
    with pytest.raises(LandscapeError, match=r"dir\.h5 holds xdirection; a surface needs"):
        surfaces.read_goldstein(tmp_path / "dir.h5")
    path = goldstein(tmp_path / "odd.h5", ALPHA, BETA)
    with h5py.File(path, "a") as file:
        del file["train_loss"]
        file["train_loss"] = np.ones((2, 2))
    with pytest.raises(LandscapeError, match=r"train_loss has shape \(2, 2\) where"):
        surfaces.read_goldstein(path)


def test_imported_and_exported_surfaces_are_ordinary_results(tmp_path):
    ds = surfaces.read_goldstein(goldstein(tmp_path / "s.h5", ALPHA, BETA))
    assert isinstance(results.validate(ds), xr.Dataset)
