"""The page on formats says the numbers that the code writes."""

import re
from pathlib import Path

import pytest

from landscape import results, sam, snapshots, storage
from landscape.errors import LandscapeError
from landscape.training import checkpoint

PAGE = Path(__file__).parents[1] / "docs" / "explanation" / "formats.md"
ROWS = {
    "a study's folder": storage.STUDY_FORMAT,
    "results": results.SCHEMA,
    "checkpoints and outcomes": checkpoint.FORMAT,
    "what the recorder wrote": snapshots.files.FORMAT,
    "a saved optimizer": sam.saved.FORMAT,
}


@pytest.mark.parametrize("what", ROWS)
def test_the_page_says_the_format_that_is_written(what):
    row = next(line for line in PAGE.read_text().splitlines() if line.startswith(f"| {what}"))
    assert int(re.split(r"\s*\|\s*", row)[3]) == ROWS[what]


@pytest.mark.parametrize("found", [99, None, "2"])
def test_results_of_an_unknown_schema_are_refused_with_the_command(found, tmp_path):
    variables = {"loss": results.Variable("alpha", [1.0, 2.0], "nats", "Loss")}
    ds = results.make("loss_slice", variables, provenance={})
    ds = ds.assign_attrs(landscape_schema=found) if found is not None else ds.drop_attrs()
    ds.to_netcdf(tmp_path / "a.nc", engine="h5netcdf")
    with pytest.raises(LandscapeError, match="`landscape measure STUDY`"):
        results.load(tmp_path / "a.nc")


def test_a_result_of_before_the_digests_is_read_and_written_with_one(tmp_path):
    variables = {"loss": results.Variable("alpha", [1.0, 2.0], "nats", "Loss")}
    ds = results.make("loss_slice", variables, provenance={"bn": "eval"})
    ds.assign_attrs(landscape_schema=1).to_netcdf(tmp_path / "old.nc", engine="h5netcdf")
    old = results.read(tmp_path / "old.nc")
    assert old.sha256 is None
    results.save(old.ds, tmp_path / "new.nc")
    new = results.read(tmp_path / "new.nc")
    assert new.sha256 == results.digest(old.ds)
    assert new.ds.identical(old.ds)
