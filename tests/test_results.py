"""Results are whole or refused, and carry what a figure and a reader need."""

import json
import os

import numpy as np
import pytest

from landscape import results, storage
from landscape.errors import LandscapeError
from landscape.results import Variable


def eigenvalues(values=(3.0, 2.0), bn="eval"):
    return results.make(
        "top_eigenvalues",
        {
            "eigenvalue": Variable("rank", np.asarray(values), "nats", "Hessian eigenvalue"),
            "converged": Variable("rank", np.ones(len(values), bool), "1", "converged"),
        },
        coords={"rank": np.arange(len(values))},
        provenance={"bn": bn, "seed": np.int64(3)},
    )


def test_round_trip_keeps_values_units_and_provenance(tmp_path):
    path = results.save(eigenvalues(), tmp_path / "a" / "top.nc")
    back = results.load(path)
    np.testing.assert_array_equal(back.eigenvalue, [3.0, 2.0])
    assert back.converged.dtype == bool
    assert back.eigenvalue.attrs == {"units": "nats", "long_name": "Hessian eigenvalue"}
    assert results.provenance(back) == {"bn": "eval", "seed": 3}


def test_combined_runs_carry_their_labels(tmp_path):
    parts = [({"run": f"sam-s{s}", "variant": "sam", "seed": s}, eigenvalues()) for s in (0, 1)]
    ds = results.load(results.save(results.combine(parts), tmp_path / "c.nc"))
    assert ds.eigenvalue.dims == ("run", "rank")
    assert ds.seed.to_numpy().tolist() == [0, 1]
    assert ds.eigenvalue.attrs["units"] == "nats"
    assert len(results.provenance(ds)["runs"]) == 2


def test_runs_with_different_tensors_are_joined_by_name():
    def norms(names):
        return results.make(
            "norms",
            {"norm": Variable("tensor", np.arange(len(names)) + 1.0, "1", "norm")},
            coords={"tensor": names},
            provenance={},
        )

    ds = results.combine([({"run": "a"}, norms(["u", "v"])), ({"run": "b"}, norms(["v", "w"]))])
    assert ds.norm.sel(run="b", tensor="v") == 1.0
    assert np.isnan(ds.norm.sel(run="b", tensor="u"))


def test_bn_modes_never_share_an_axis():
    with pytest.raises(LandscapeError, match=r"BatchNorm modes .*measure all runs in one mode"):
        results.combine([({"run": "a"}, eigenvalues()), ({"run": "b"}, eigenvalues(bn="none"))])


def test_no_results_is_said():
    with pytest.raises(LandscapeError, match="no run has this measurement"):
        results.combine([])


def test_unknown_dimension_lists_the_known_ones():
    with pytest.raises(LandscapeError, match="Unknown dimension layer; known: run, variant"):
        results.make("x", {"v": Variable("layer", [1.0], "1", "v")}, provenance={})


def test_variables_without_units_are_refused():
    ds = eigenvalues()
    del ds.eigenvalue.attrs["units"]
    with pytest.raises(LandscapeError, match="'eigenvalue' has no units"):
        results.validate(ds)


def test_half_copied_file_is_named_and_refused(tmp_path):
    path = results.save(eigenvalues(), tmp_path / "top.nc")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(LandscapeError, match=r"top\.nc is not a whole result file"):
        results.load(path)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(LandscapeError, match=r"none\.nc does not exist; measure first"):
        results.load(tmp_path / "none.nc")


def test_other_schema_is_refused(tmp_path):
    ds = eigenvalues()
    ds.attrs["landscape_schema"] = 99
    ds.to_netcdf(tmp_path / "new.nc", engine="h5netcdf")
    with pytest.raises(LandscapeError, match=r"new\.nc: Result schema 99 found where 2 is read"):
        results.load(tmp_path / "new.nc")


def test_a_failing_write_leaves_the_old_file_and_no_rubbish(tmp_path):
    path = storage.write_text(tmp_path / "a.txt", "old")

    def fail(temporary):
        temporary.write_text("half")
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        storage.write_atomically(path, fail)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_full_disk_is_one_sentence(tmp_path):
    def full(_):
        raise OSError(28, "No space left on device")

    with pytest.raises(LandscapeError, match=r"The disk is full: .*b\.nc was not written"):
        storage.write_atomically(tmp_path / "b.nc", full)
    assert os.listdir(tmp_path) == []


def test_a_torn_last_line_is_ignored_and_counted(tmp_path):
    path = tmp_path / "history.jsonl"
    storage.append_line(path, {"epoch": 1})
    with path.open("a") as handle:
        handle.write('{"epoch": 2, "lo')
    assert storage.read_lines(path) == ([{"epoch": 1}], 1)
    storage.append_line(path, {"epoch": 2})
    assert storage.read_lines(path) == ([{"epoch": 1}, {"epoch": 2}], 0)
    storage.truncate_lines(path, lambda record: record["epoch"] < 2)
    assert storage.read_lines(path) == ([{"epoch": 1}], 0)


def test_json_that_is_not_json_is_named(tmp_path):
    (tmp_path / "resolved.json").write_text("{")
    with pytest.raises(LandscapeError, match=r"resolved\.json is not valid JSON"):
        storage.StudyFolder(tmp_path).check()


def test_foreign_folders_and_other_versions_are_refused(tmp_path):
    with pytest.raises(LandscapeError, match="is not a folder"):
        storage.StudyFolder(tmp_path / "none").check()
    with pytest.raises(LandscapeError, match=r"holds no resolved\.json"):
        storage.StudyFolder(tmp_path).check()
    (tmp_path / "resolved.json").write_text(json.dumps({"format": 99}))
    with pytest.raises(LandscapeError, match="made with study format 99; this version reads"):
        storage.StudyFolder(tmp_path).check()


def test_labels_of_runs_never_replace_what_was_measured():
    ds = results.make(
        "sharpness",
        {"one_step": Variable("rho", [1.0, 2.0], "nats", "loss increase")},
        coords={"rho": [0.1, 0.2]},
        provenance={"bn": "eval"},
    )
    labels = [{"run": name, "rho": 0.4, "seed": 0} for name in ("a", "b")]
    both = results.combine([(label, ds) for label in labels])
    assert both.rho.values.tolist() == [0.1, 0.2]
    assert both.run_rho.values.tolist() == [0.4, 0.4]
    assert both.seed.dims == ("run",)


def test_names_of_different_lengths_survive_an_outer_join():
    parts = [
        results.make(
            "m",
            {"x": Variable("other", [1.0], "1", "x")},
            coords={"other": np.array([name])},
            provenance={},
        )
        for name in ("a", "abc")
    ]
    ds = results.combine([({"run": str(i)}, part) for i, part in enumerate(parts)])
    assert list(ds.other.values) == ["a", "abc"]
