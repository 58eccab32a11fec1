"""Standard errors, companions on other data, and grids that survive what kills them."""

import copy
import errno
import json

import numpy as np
import pytest
import torch
from torch import nn

from landscape import EmpiricalRisk, LandscapeError, measure, plane, results
from landscape.measure.surfaces import values as cells
from tests.measure_problems import cnn, cnn_risk, images, quadratic

CALL = {"radius": 0.5, "points": 5, "seed": 0}


def identical(one, two):
    assert set(one.data_vars) == set(two.data_vars)
    for name in one.data_vars:
        assert one[name].values.tobytes() == two[name].values.tobytes(), name


def test_many_runs_and_directions_share_one_copy_of_the_data():
    x, y = images(16)
    first = EmpiricalRisk(cnn(), nn.CrossEntropyLoss(), (x, y), weight_decay=0.1)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        other = cnn()
        other[1].running_mean.normal_()
        other[0].weight.data.normal_()
    shared = first.with_model(other)
    places = [r._engine.examples.chunks[0].args[0].data_ptr() for r in (first, shared)]
    assert places[0] == places[1]
    twin = first.with_bn("recalibrate")._engine.examples
    assert twin.chunks[0].args[0].data_ptr() == places[0]
    alone = EmpiricalRisk(other, nn.CrossEntropyLoss(), (x, y), weight_decay=0.1)
    call = {"num_directions": 3, "points": 5, "seed": 0}
    for bn in ("eval", "recalibrate"):
        identical(
            measure.loss_slice(shared, shared.theta, bn=bn, **call),
            measure.loss_slice(alone, alone.theta, bn=bn, **call),
        )
    assert shared.cost == alone.cost
    before = first.cost
    measure.loss_slice(shared, shared.theta, **call)
    assert first.cost == before


def test_losses_held_for_standard_errors_stay_within_the_memory_allowed(monkeypatch):
    x, y = images(24)
    calls = []
    columns = cells._columns
    monkeypatch.setattr(
        cells, "_columns", lambda found, *rest: calls.append(len(found)) or columns(found, *rest)
    )
    call = {"num_directions": 2, "points": 9, "seed": 0, "bn": "eval"}
    found = []
    for memory in (2**30, 24 * 32 * 3):
        calls.clear()
        risk = EmpiricalRisk(cnn(), nn.CrossEntropyLoss(), (x, y), memory=memory)
        found.append(measure.loss_slice(risk, risk.theta, **call))
        assert max(calls) == (9 if memory == 2**30 else 3)
    identical(*found)


# --- what a cell says ---------------------------------------------------------------------------


@pytest.mark.parametrize("bn", ["eval", "recalibrate"])
def test_standard_errors_are_those_of_the_single_losses_at_every_cell(bn):
    risk, _ = cnn_risk(bn)
    ds = measure.loss_plane(risk, risk.theta, bn=bn, radius=0.4, points=3, seed=1)
    axes = plane.random(risk, risk.theta, num_directions=2, seed=1).directions
    center = risk.losses(risk.theta).numpy()
    for i, a in enumerate(ds.alpha.values):
        for j, b in enumerate(ds.beta.values):
            losses = risk.losses(risk.theta + a * axes[0] + b * axes[1]).numpy()
            for found, values in ((ds.loss_stderr, losses), (ds.rise_stderr, losses - center)):
                expected = values.std(ddof=1) / np.sqrt(len(values))
                assert float(found[i, j]) == pytest.approx(expected, rel=1e-9, abs=1e-15)
    assert float(ds.rise_stderr[1, 1]) == 0
    held = ", BatchNorm statistics held" if bn == "recalibrate" else ""
    words = f"Standard error of the loss{held}"
    assert ds.loss_stderr.attrs == {"units": "nats", "long_name": words}


def test_subsets_scatter_about_the_population_as_their_standard_error_says():
    """z = (subset loss - population loss) / loss_stderr over 60 subsets has mean square near 1."""
    x, y = images(1200)
    model = cnn()
    whole = EmpiricalRisk(model, nn.CrossEntropyLoss(), (x, y), dtype=torch.float64)
    line = plane.random(whole, whole.theta, num_directions=1, seed=3)
    call = {"directions": line, "alphas": [0.0, 0.6], "bn": "eval", "seed": 0}
    truth = measure.loss_slice(whole, whole.theta, **call).loss.values
    scores = []
    for part in torch.arange(1200).view(60, 20):
        risk = EmpiricalRisk(model, nn.CrossEntropyLoss(), (x[part], y[part]), dtype=torch.float64)
        ds = measure.loss_slice(risk, risk.theta, **call)
        scores.append((ds.loss.values - truth) / ds.loss_stderr.values)
    assert 0.7 < np.mean(np.square(scores)) < 1.4


def test_a_loss_known_only_as_a_mean_has_no_standard_error():
    loss = nn.functional.cross_entropy
    risk = EmpiricalRisk(
        cnn(), lambda out, y: loss(out, y), images(), reduction="mean", dtype=torch.float64
    )
    ds = measure.loss_slice(risk, risk.theta, num_directions=1, points=3, bn="eval", seed=0)
    assert np.isfinite(ds.loss).all()
    assert np.isnan(ds.loss_stderr).all()


def test_the_objective_is_stated_and_its_weight_decay_kept_apart():
    model, data = cnn(), images()
    plain = EmpiricalRisk(model, nn.CrossEntropyLoss(), data, dtype=torch.float64)
    decayed = EmpiricalRisk(
        model, nn.CrossEntropyLoss(label_smoothing=0.1), data, weight_decay=0.3, dtype=torch.float64
    )
    smoothed = EmpiricalRisk(
        model, nn.CrossEntropyLoss(label_smoothing=0.1), data, dtype=torch.float64
    )
    one, two, three = (
        measure.loss_plane(risk, risk.theta, points=3, seed=0)
        for risk in (plain, decayed, smoothed)
    )
    assert results.provenance(one)["objective"] == "mean CrossEntropyLoss, without weight decay"
    assert (
        results.provenance(two)["objective"]
        == "mean CrossEntropyLoss(label_smoothing=0.1) + ½·0.3·‖θ‖²"
    )
    assert "weight_decay_loss" not in one
    np.testing.assert_allclose(two.loss - two.weight_decay_loss, three.loss, rtol=1e-12)
    norm = float(torch.linalg.vector_norm(decayed.theta))
    assert float(two.weight_decay_loss[1, 1]) == pytest.approx(0.15 * norm**2)


@pytest.mark.parametrize("bn", ["eval", "recalibrate", "full_batch"])
def test_test_loss_is_direct_evaluation_with_the_training_sets_statistics(bn):
    model = cnn()
    train = EmpiricalRisk(model, nn.CrossEntropyLoss(), images(), dtype=torch.float64)
    test = EmpiricalRisk(model, nn.CrossEntropyLoss(), images(30, seed=7), dtype=torch.float64)
    theta = train.theta
    ds = measure.loss_slice(
        train, theta, num_directions=2, points=3, bn=bn, also={"test": test}, seed=0
    )
    alone = measure.loss_slice(train, theta, num_directions=2, points=3, bn=bn, seed=0)
    for name in alone.data_vars:
        assert alone[name].equals(ds[name])
    point = theta + plane.random(train, theta, num_directions=2, seed=0).directions[1]
    twin = test.with_bn("full_batch" if bn == "full_batch" else "eval")
    if bn == "recalibrate":
        twin = EmpiricalRisk(
            updated(model, train, point), nn.CrossEntropyLoss(), images(30, seed=7),
            dtype=torch.float64,
        )  # fmt: skip
    direct = twin.evaluate(point)
    assert float(ds.test_loss[1, 2]) == pytest.approx(float(direct.loss), rel=1e-12)
    assert float(ds.test_error_rate[1, 2]) == float(direct.error_rate)
    expected = float(direct.losses.std()) / np.sqrt(30)
    assert float(ds.test_loss_stderr[1, 2]) == pytest.approx(expected, rel=1e-9)
    assert results.provenance(ds)["test_examples"] == 30


def updated(model, risk, theta):
    """The model with statistics re-estimated one BatchNorm layer after the other."""
    other = copy.deepcopy(model).eval()
    for name, value in risk.layout.unflatten(theta).items():
        other.get_parameter(name).data.copy_(value)
    x = images()[0]
    with torch.no_grad():
        for layer in other:
            if isinstance(layer, nn.BatchNorm2d):
                layer.running_mean.copy_(x.mean((0, 2, 3)))
                layer.running_var.copy_(x.var((0, 2, 3)))
            x = layer(x)
    return other


def test_companions_of_another_model_are_refused():
    risk, _ = cnn_risk()
    other = EmpiricalRisk(
        cnn(classes=3), nn.CrossEntropyLoss(), images(classes=3), dtype=torch.float64
    )
    with pytest.raises(LandscapeError, match="'test' in `also` has P ="):
        measure.loss_slice(risk, risk.theta, also={"test": other}, points=3, seed=0)
    with pytest.raises(LandscapeError, match="cannot name variables; use a word such as 'test'"):
        measure.loss_slice(risk, risk.theta, also={"my test": risk}, points=3, seed=0)


# --- tiles --------------------------------------------------------------------------------------


class Killed(EmpiricalRisk):
    """Stops after so many evaluations, as Ctrl-C or a full disk would."""

    left, error = 10**9, KeyboardInterrupt

    def evaluate(self, theta):
        if Killed.left == 0:
            raise Killed.error
        Killed.left -= 1
        return super().evaluate(theta)


@pytest.fixture
def killed():
    Killed.left = 10**9
    return Killed(cnn(), nn.CrossEntropyLoss(), images(), dtype=torch.float64)


def test_a_killed_grid_resumes_to_the_same_arrays_bitwise(tmp_path, killed):
    whole = measure.loss_plane(killed, killed.theta, **CALL)
    Killed.left = 1 + 12  # the checkpoint, two rows of five, and two cells
    with pytest.raises(KeyboardInterrupt):
        measure.loss_plane(killed, killed.theta, tiles=tmp_path, **CALL)
    assert sorted(p.name for p in tmp_path.glob("*.npz")) == ["tile-0000.npz", "tile-0001.npz"]
    Killed.left = 1 + 15
    resumed = measure.loss_plane(killed, killed.theta, tiles=tmp_path, **CALL)
    assert Killed.left == 0
    identical(whole, resumed)
    says = results.provenance(resumed)
    assert (says["tiles"], says["tiles_resumed"]) == (5, 2)
    assert says["cost_gradients"] == results.provenance(whole)["cost_gradients"]
    Killed.left = 1
    identical(whole, measure.loss_plane(killed, killed.theta, tiles=tmp_path, **CALL))


def test_a_killed_slice_resumes_to_the_same_arrays_bitwise(tmp_path, killed):
    call = {"num_directions": 3, "points": 5, "seed": 0}
    whole = measure.loss_slice(killed, killed.theta, **call)
    Killed.left = 1 + 5 + 4 + 2  # the checkpoint, two directions, and two points of the third
    with pytest.raises(KeyboardInterrupt):
        measure.loss_slice(killed, killed.theta, tiles=tmp_path, **call)
    Killed.left = 1 + 4
    resumed = measure.loss_slice(killed, killed.theta, tiles=tmp_path, **call)
    assert Killed.left == 0
    identical(whole, resumed)
    assert results.provenance(resumed)["tiles_resumed"] == 2
    Killed.left = 1
    with pytest.raises(LandscapeError, match="it differs in alphas"):
        measure.loss_slice(killed, killed.theta, tiles=tmp_path, **(call | {"points": 7}))


def test_every_tile_says_by_itself_what_it_is(tmp_path):
    risk, _ = cnn_risk()
    ds = measure.loss_plane(risk, risk.theta, tiles=tmp_path, **CALL)
    for i, path in enumerate(sorted(tmp_path.glob("tile-*.npz"))):
        with np.load(path, allow_pickle=False) as tile:
            cells = [(float(ds.alpha[i]), float(b)) for b in ds.beta.values]
            assert [tuple(point) for point in tile["points"].tolist()] == cells
            np.testing.assert_array_equal(tile["values"][:, 0], ds.loss[i])
            says, grid = json.loads(str(tile["provenance"])), results.provenance(ds)
            for key in ("bn", "loss", "plane_sha256", "torch", "dtype", "num_examples"):
                assert says[key] == grid[key]
            assert len(says["data_sha256"]) == len(says["buffers_sha256"]) == 64
            assert str(tile["made"]).endswith("+00:00")
            assert float(tile["cost"]) > 0


@pytest.mark.parametrize("damage", ["half", "empty", "bit"])
def test_a_damaged_tile_is_named_and_computed_again(tmp_path, damage):
    risk, _ = cnn_risk()
    whole = measure.loss_plane(risk, risk.theta, tiles=tmp_path, **CALL)
    path = tmp_path / "tile-0003.npz"
    content = bytearray(path.read_bytes())
    if damage == "bit":
        at = content.index(np.ascontiguousarray(whole.loss[3, :1].values).tobytes())
        content[at] ^= 1
    path.write_bytes(content[: {"half": len(content) // 2, "empty": 0}.get(damage)])
    with pytest.warns(UserWarning, match=r"tile-0003.npz is computed again: it is no whole file"):
        identical(whole, measure.loss_plane(risk, risk.theta, tiles=tmp_path, **CALL))
    identical(whole, measure.loss_plane(risk, risk.theta, tiles=tmp_path, **CALL))


def test_tiles_of_another_grid_are_refused_and_a_foreign_tile_is_replaced(tmp_path):
    risk, _ = cnn_risk()
    theta = risk.theta
    one, two = tmp_path / "one", tmp_path / "two"
    whole = measure.loss_plane(risk, theta, tiles=one, **CALL)
    measure.loss_plane(risk, theta, tiles=two, **(CALL | {"seed": 4}))
    with pytest.raises(LandscapeError, match=r"another grid \(it differs in plane_sha256\)"):
        measure.loss_plane(risk, theta, tiles=two, **CALL)
    with pytest.raises(LandscapeError, match="it differs in bn"):
        measure.loss_plane(risk, theta, tiles=one, bn="eval", **CALL)
    other = EmpiricalRisk(cnn(), nn.CrossEntropyLoss(), images(seed=9), dtype=torch.float64)
    with pytest.raises(LandscapeError, match="it differs in data_sha256"):
        measure.loss_plane(other, theta, tiles=one, **CALL)
    (one / "tile-0001.npz").write_bytes((two / "tile-0001.npz").read_bytes())
    with pytest.warns(UserWarning, match="it belongs to another grid"):
        identical(whole, measure.loss_plane(risk, theta, tiles=one, **CALL))
    (one / "grid.json").write_text(json.dumps([])[:-1])
    with pytest.raises(LandscapeError, match=r"grid.json is not valid JSON"):
        measure.loss_plane(risk, theta, tiles=one, **CALL)
    with pytest.raises(LandscapeError, match=r"grid.json' is a file; give a folder"):
        measure.loss_plane(risk, theta, tiles=one / "grid.json", **CALL)


def test_a_disk_that_fills_mid_grid_loses_nothing(tmp_path, monkeypatch):
    risk, _ = cnn_risk()
    whole = measure.loss_plane(risk, risk.theta, **CALL)
    savez, calls = np.savez, []

    def full(*args, **arrays):
        calls.append(1)
        if len(calls) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        savez(*args, **arrays)

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(LandscapeError, match=r"disk is full: .*tile-0002.npz was not written"):
        measure.loss_plane(risk, risk.theta, tiles=tmp_path, **CALL)
    assert len(list(tmp_path.iterdir())) == 3
    identical(whole, measure.loss_plane(risk, risk.theta, tiles=tmp_path, **CALL))


def test_nan_and_infinity_survive_tiles(tmp_path):
    risk, _, _ = quadratic([1.0, 2.0])
    far = plane.Plane(risk.theta, 1e153 * torch.eye(2, dtype=torch.float64), "far", ("u", "v"))
    call = {"directions": far, "alphas": [0, 99], "betas": [-99, 0, 99], "seed": 0}
    one = measure.loss_plane(risk, risk.theta, tiles=tmp_path, **call)
    two = measure.loss_plane(risk, risk.theta, tiles=tmp_path, **call)
    identical(one, two)
    assert np.isinf(two.loss.values[1]).all()
    assert np.isnan(two.error_rate).all()
