"""A study's results by name: the numbers of its files, as xarray and as pandas."""

import numpy as np
import pytest

from landscape import LandscapeError, results, study
from tests.fixtures_results import write_study


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    place = tmp_path_factory.mktemp("study")
    return study.results(write_study(place, noisy=("sgd", "sam"), clean=("sgd",), seeds=2).root)


def test_a_result_is_the_dataset_of_its_file(opened):
    stored = results.load(opened.folder.results / "top_eigenvalues.nc")
    assert opened["top_eigenvalues"].identical(stored)
    assert set(opened) == {p.stem for p in opened.folder.results.glob("*.nc")}
    assert repr(opened).startswith(f"{len(opened)} results of ")


def test_a_table_has_a_row_for_every_run_and_rank_and_no_more(opened):
    ds = opened["top_eigenvalues"]
    frame = opened.frame("top_eigenvalues", "eigenvalue")
    assert len(frame) == ds.sizes["run"] * ds.sizes["rank"]
    assert {"variant", "seed", "setting", "rank"} <= set(frame.columns)
    found = frame[(frame.variant == "sam") & (frame.seed == 1) & (frame["rank"] == 0)]
    here = (ds.variant.values == "sam") & (ds.seed.values == 1) & (ds.setting.values == "noisy")
    np.testing.assert_array_equal(found.eigenvalue, ds.eigenvalue.values[here, 0])


def test_what_is_not_there_is_named(opened):
    with pytest.raises(KeyError, match="this study has crosscheck, "):
        opened["barrier"]
    with pytest.raises(LandscapeError, match="top_eigenvalues has no variable 'trace'; it has"):
        opened.frame("top_eigenvalues", "trace")
