"""Every result of a study becomes tables and a figure, and no table is larger than its numbers."""

import csv

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from landscape import results
from landscape.errors import LandscapeError
from landscape.plot import files, runs
from landscape.results import Variable
from tests.fixtures_results import write_study


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return write_study(
        tmp_path_factory.mktemp("study"), noisy=("sgd", "zsharp"), clean=("sgd",), seeds=2,
        clean_seeds=1,
    )  # fmt: skip


def test_every_result_of_a_study_becomes_tables_that_hold_all_its_numbers(study, tmp_path):
    paths = sorted(study.results.glob("*.nc"))
    assert len(paths) > 8
    for path in paths:
        ds = results.load(path)
        found = files.tables(ds)
        for dims, frame in found.items():
            assert len(frame) == np.prod([ds.sizes[dim] for dim in dims]), (path.stem, dims)
        for name, array in ds.data_vars.items():
            dims = tuple(map(str, array.dims))
            for column in [f[name] for d, f in found.items() if not dims or d == dims]:
                assert set(map(str, column)) == set(map(str, array.values.ravel().tolist()))
        written = files.convert(path, tmp_path / path.stem / "table.csv")
        assert len(written) == len(found)
        assert sum(len(pd.read_csv(p)) for p in written) == sum(map(len, found.values()))


def test_every_result_with_a_figure_is_drawn_of_its_first_setting(study, tmp_path):
    drawn = 0
    for path in sorted(study.results.glob("*.nc")):
        try:
            (made,) = files.convert(path, tmp_path / f"{path.stem}.html")
        except LandscapeError as error:
            assert "has no figure of its own; write it as a table" in str(error)  # noqa: PT017
        else:
            drawn += made.stat().st_size > 1000
    assert drawn >= 10
    with pytest.raises(LandscapeError, match="Unknown setting 'dirty'; the result has noisy"):
        files.convert(study.results / "generalization.nc", tmp_path / "x.png", setting="dirty")


def test_no_table_is_the_product_of_unrelated_dimensions(tmp_path):
    shapes = {"tensor": 3000, "bin": 4000, "example": 5000, "parameter": 6000}
    ds = results.make(
        "norms",
        {
            f"of_{k}": Variable((k,), np.arange(float(n)), "1", f"along {k}")
            for k, n in shapes.items()
        },
        provenance={"bn": "eval"},
    )
    results.save(ds, tmp_path / "large.nc")
    written = files.convert(tmp_path / "large.nc", tmp_path / "large.csv")
    assert [p.name for p in written] == [f"large.{k}.csv" for k in shapes]
    assert sum(p.stat().st_size for p in written) < 1e6


def test_a_figure_of_several_results_names_the_command_that_draws_it(study, tmp_path):
    with pytest.raises(LandscapeError, match=r"drawn from 2 results .*landscape figures STUDY"):
        files.convert(
            study.results / "top_eigenvalues.nc", tmp_path / "x.png",
            figure="gauss_newton_eigenvalues",
        )  # fmt: skip


def test_numbers_keep_their_bits_and_formulas_are_no_formulas(tmp_path):
    values = np.random.default_rng(0).standard_normal(4) * 10.0 ** np.array([-300, -5, 5, 300])
    names = np.array(["=1+1", "@x", "a,b", 'say "x"'], object)
    ds = xr.Dataset({"v": ("tensor", values)}, coords={"tensor": names})
    files.surfaces.write_csv(files.tables(runs.labelled(ds))["tensor",], tmp_path / "t.csv")
    back = list(csv.DictReader((tmp_path / "t.csv").read_text().splitlines()))
    assert [float(row["v"]) for row in back] == values.tolist()
    assert [row["tensor"] for row in back] == ["'=1+1", "'@x", "a,b", 'say "x"']
