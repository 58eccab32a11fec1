"""netCDF 4 as results have it, written and read with h5py alone.

The layout is that of h5netcdf: a dimension is a scale of HDF5, a variable is attached to those of
its dimensions, and NaN, truth values and coordinates are said as xarray says them. h5netcdf itself,
which looks up every dimension by its path for every variable, takes some eight times as long.
What is not of this layout is left to it.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import xarray as xr
from xarray import conventions

from landscape.storage import open_hdf5

_STRUCTURE = frozenset({
    "CLASS", "NAME", "DIMENSION_LIST", "REFERENCE_LIST", "_Netcdf4Dimid", "_Netcdf4Coordinates",
    "_FillValue", "coordinates", "dtype",
})  # fmt: skip
_PLAIN = frozenset({"units", "long_name"})
_READ = _PLAIN | {"NAME", "DIMENSION_LIST", "_FillValue", "coordinates", "dtype"}
_NO_VARIABLE = b"This is a netCDF dimension but not a netCDF variable"
_TEXT = h5py.string_dtype()
_FLOATS = (np.float32, np.float64)
_NAMED = (str, int, float)  # attributes; a truth value is no attribute of netCDF


def compose(ds: xr.Dataset) -> bytes:
    """The bytes of a file that holds `ds`.

    In memory: HDF5 that a disk refuses something keeps the file open, and crashes the interpreter
    at its end.
    """
    coded, attributes = conventions.cf_encoder(*conventions.encode_dataset_coordinates(ds))
    if not _is_usual(ds, coded):
        return bytes(ds.to_netcdf(engine="h5netcdf"))
    # netCDF's own library opens nothing that does not note the order in which it was made.
    with h5py.File("composed", "w", driver="core", backing_store=False, track_order=True) as file:
        _write(file, coded, dict(ds.sizes))
        for key, value in attributes.items():
            file.attrs[key] = value if isinstance(value, str) else np.atleast_1d(value)
        file.flush()
        return file.id.get_file_image()


def _is_usual(ds: xr.Dataset, coded: Mapping[Any, xr.Variable]) -> bool:
    """Whether all is of the layout that `_write` knows."""
    return all(
        [
            *(size > 0 for size in ds.sizes.values()),
            *("/" not in str(name) for name in coded),
            *(v.dtype.kind in "iuOUT" or v.dtype in _FLOATS for v in coded.values()),
            *(v.dims == (name,) for name, v in coded.items() if name in ds.sizes),
            *(set(v.attrs) <= _STRUCTURE | _PLAIN for v in coded.values()),
            *(
                type(v) in _NAMED or isinstance(v, (np.integer, np.floating))
                for v in ds.attrs.values()
            ),
        ]
    )


def _write(file: h5py.File, coded: Mapping[Any, xr.Variable], sizes: Mapping[Any, int]) -> None:
    numbers = {
        dim: n for n, dim in enumerate(dict.fromkeys(d for v in coded.values() for d in v.dims))
    }
    scales = {}
    for dim in [dim for dim in numbers if dim not in coded]:
        scales[dim] = file.create_dataset(dim, (sizes[dim],), dtype=">f4", track_order=True)
        scales[dim].attrs["_Netcdf4Dimid"] = np.int32(numbers[dim])
        scales[dim].make_scale(_NO_VARIABLE + b".%10d" % sizes[dim])
    made = {}
    for name, variable in coded.items():
        values, fill = variable.values, variable.attrs.get("_FillValue")
        text = values.dtype.kind in "OUT"
        made[name] = file.create_dataset(
            name,
            data=values.astype(object) if text else values,
            dtype=_TEXT if text else values.dtype,
            fillvalue=fill,
            track_order=True,
        )
        if variable.dims:
            ids = np.array([numbers[dim] for dim in variable.dims], np.int32)
            made[name].attrs["_Netcdf4Coordinates"] = ids
            made[name].attrs["_Netcdf4Dimid"] = ids[0]
        for key, value in variable.attrs.items():
            made[name].attrs[key] = value if isinstance(value, str) else np.atleast_1d(value)
        if name in numbers:
            scales[name] = made[name]
            made[name].make_scale(name)
    for name, variable in coded.items():
        if name not in numbers:
            for place, dim in enumerate(variable.dims):
                made[name].dims[place].attach_scale(scales[dim])


def read(path: Path) -> xr.Dataset:
    """The dataset in memory: read directly where the file is as `save` writes it."""
    with open_hdf5(path) as file:
        ds = _read_plain(file)
    if ds is not None:
        return ds
    with xr.open_dataset(path, engine="h5netcdf") as opened:
        ds = opened.load()
    return ds.drop_encoding()


def _read_plain(file: h5py.File) -> xr.Dataset | None:
    """Read with h5py alone, a fifth of the time; None where anything is unusual."""
    variables, coords = {}, set()
    for name, found in file.items():
        if not isinstance(found, h5py.Dataset):
            return None
        there = list(found.attrs)
        if not set(there) <= _STRUCTURE | _PLAIN:
            return None
        # One by one: what HDF5 notes of its own takes half of the time. In the order of the
        # file: written again it has the same bytes.
        attrs = {key: found.attrs[key] for key in there if key in _READ}
        if bytes(attrs.get("NAME", b"")).startswith(_NO_VARIABLE):
            continue
        dims = _dims(file, name, found, attrs)
        values = _values(found, attrs)
        if dims is None or values is None:
            return None
        coords |= {*dims, *str(attrs.get("coordinates", "")).split()}
        plain = {key: attrs[key] for key in attrs if key in _PLAIN}
        variables[name] = xr.Variable(dims, values, plain)
    attrs = {key: _scalar(value) for key, value in file.attrs.items() if key[:1] != "_"}
    coords |= set(str(attrs.pop("coordinates", "")).split())
    ds = xr.Dataset(variables, attrs=attrs)
    return ds.set_coords([name for name in variables if name in coords])


def _dims(file: Any, name: str, found: Any, attrs: dict[str, Any]) -> tuple[str, ...] | None:
    if "DIMENSION_LIST" in attrs:
        return tuple(file[refs[0]].name.lstrip("/") for refs in attrs["DIMENSION_LIST"])
    if found.ndim == 0:
        return ()
    return (name,) if found.ndim == 1 and "NAME" in attrs else None


def _values(found: Any, attrs: dict[str, Any]) -> np.ndarray | None:
    """The values as xarray decodes them; None where it would do more."""
    if h5py.check_string_dtype(found.dtype) is not None:
        texts = found.asstr()[()]
        return np.array(texts.tolist() if found.ndim else texts, dtype=str)
    fill = attrs.get("_FillValue")
    if fill is not None and not np.isnan(fill).all():
        return None
    kind = attrs.get("dtype")
    if kind not in (None, "bool") or found.dtype.kind not in "fiu":
        return None
    return found[()].astype(bool) if kind == "bool" else found[()]


def _scalar(value: Any) -> Any:
    if isinstance(value, np.ndarray) and value.shape == (1,):
        return value[0]
    return value
