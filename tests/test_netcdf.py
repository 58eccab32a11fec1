"""Our own writer of netCDF against h5netcdf: the same content, to whoever reads it."""

import io

import h5py
import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from landscape import results
from landscape.results import netcdf

SIZES = {"run": 3, "alpha": 4, "rank": 1}
TEXTS = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=5)
KINDS = st.sampled_from(["<f8", "<f4", "<i8", "<i4", "<u2", "|u1", "|b1", "text"])


@st.composite
def variables(draw, dims):
    shape = tuple(SIZES[dim] for dim in dims)
    kind = draw(KINDS)
    if kind == "text":
        values = np.array(draw(st.lists(TEXTS, min_size=12, max_size=12)), dtype=object)
        values = np.resize(values, shape)
        values = values.astype(str) if draw(st.booleans()) else values
    else:
        values = draw(hnp.arrays(kind, shape))
    attrs = draw(st.dictionaries(st.sampled_from(["units", "long_name"]), TEXTS))
    return xr.Variable(dims, values, attrs)


@st.composite
def datasets(draw):
    names = st.sampled_from(["a", "b", "loss", "λ", "x y"])
    dims = st.sampled_from([(), ("run",), ("run", "alpha"), ("alpha", "rank", "run")])
    data = {name: draw(variables(draw(dims))) for name in draw(st.sets(names, max_size=3))}
    there = sorted({dim for variable in data.values() for dim in variable.dims})
    coords = {dim: draw(variables((dim,))) for dim in there if draw(st.booleans())}
    for name in draw(st.sets(st.sampled_from(["variant", "seed"]), max_size=2)):
        coords[name] = draw(variables(("run",) if "run" in there else ()))
    attrs = draw(st.dictionaries(st.sampled_from("pq"), TEXTS | st.integers(0, 9) | st.floats()))
    return xr.Dataset(data, coords, attrs)


def seen(content):
    """Everything that HDF5 tells of a file, but for what it notes of its own places."""
    found = {}
    with h5py.File(io.BytesIO(content), "r") as file:
        for name, data in file.items():
            attributes = {}
            for key in data.attrs:
                value, kind = data.attrs[key], data.attrs.get_id(key)
                if key == "DIMENSION_LIST":
                    value = [file[each[0]].name for each in value]
                if key != "REFERENCE_LIST":
                    attributes[key] = (repr(value), str(kind.dtype), kind.shape)
            scale = bytes(data.attrs.get("NAME", b"")).startswith(b"This is a netCDF dimension")
            values = None if scale else data[()]
            values = values.tobytes() if data.dtype.kind != "O" and not scale else repr(values)
            fill = repr(data.fillvalue)
            found[name] = (str(data.dtype), data.shape, data.maxshape, fill, attributes, values)
        told = {
            k: (repr(v), file.attrs.get_id(k).shape) for k, v in file.attrs.items() if k[0] != "_"
        }
        return list(found), found, told


@settings(max_examples=40, deadline=None)
@given(datasets())
def test_the_content_is_that_of_h5netcdf_and_read_by_xarray_as_it_was(ds):
    content = netcdf.compose(ds)
    assert seen(content) == seen(bytes(ds.to_netcdf(engine="h5netcdf")))
    assert netcdf.compose(ds) == content
    with xr.open_dataset(io.BytesIO(content), engine="h5netcdf") as opened:
        assert results.digest(opened.load()) == results.digest(ds)


@pytest.mark.parametrize(
    "ds",
    [
        xr.Dataset({"a": ("run", np.zeros(0))}),
        xr.Dataset({"a": ("x", [1.0])}, attrs={"list": [1, 2]}),
        xr.Dataset({"a": ("x", np.array([1], "M8[D]").astype("M8[ns]"))}),
        xr.Dataset({"x": (("x", "y"), np.ones((2, 3)))}),
        xr.Dataset({"a": ("x", [1.0], {"scale_factor": 2.0})}),
    ],
    ids=["no rows", "a list", "dates", "two dimensions of one name", "scaled"],
)
def test_what_is_of_another_layout_is_left_to_h5netcdf(ds):
    assert seen(netcdf.compose(ds)) == seen(bytes(ds.to_netcdf(engine="h5netcdf")))


def test_what_is_written_is_read_without_xarray(tmp_path):
    ds = xr.Dataset(
        {"loss": (("run", "alpha"), np.ones((2, 3)), {"units": "nats"}), "n": ((), 3)},
        {"run": ["a", "bb"], "alpha": [0.0, 0.5, 1.0], "seed": ("run", [0, 1])},
    )
    path = tmp_path / "a.nc"
    path.write_bytes(netcdf.compose(ds))
    with h5py.File(path, "r") as file:
        assert netcdf._read_plain(file).identical(netcdf.read(path))
    assert results.digest(netcdf.read(path)) == results.digest(ds)
