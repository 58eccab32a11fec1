"""Results on the disk: netCDF 4 that carries a digest of everything a reader would see.

The digest is of names, dimensions, types, shapes, values and attributes, not of the file's bytes,
so that a program that rewrites the file without a change leaves it right.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import xarray as xr

from landscape.errors import LandscapeError
from landscape.results.schema import SCHEMA, validate
from landscape.storage import open_hdf5, write_atomically

SEAL = "landscape_sha256"
_STRUCTURE = frozenset({
    "CLASS", "NAME", "DIMENSION_LIST", "REFERENCE_LIST", "_Netcdf4Dimid", "_Netcdf4Coordinates",
    "_FillValue", "coordinates", "dtype",
})  # fmt: skip
_PLAIN = frozenset({"units", "long_name"})
_READ = _PLAIN | {"NAME", "DIMENSION_LIST", "_FillValue", "coordinates", "dtype"}
_NO_VARIABLE = b"This is a netCDF dimension but not a netCDF variable"


@dataclass(frozen=True)
class Stored:
    """A result and the digest that its file carries, None where it carries none.

    ds: the result. sha256: its digest.

    Example:
        >>> path = results.save(measure.norms(risk, theta), Path("norms.nc"))
        >>> stored = results.read(path)
        >>> stored.ds.attrs["measurement"], stored.sha256 == results.digest(stored.ds)
        ('norms', True)
    """

    ds: xr.Dataset
    sha256: str | None


def save(ds: xr.Dataset, path: Path) -> Path:
    """Write a result atomically as netCDF 4, with its digest.

    Example:
        >>> results.save(measure.norms(risk, theta), Path("norms.nc")).name
        'norms.nc'
    """
    validate(ds)
    ds = ds.assign_attrs(landscape_schema=SCHEMA)
    sealed = ds.assign_attrs({SEAL: digest(ds)})
    # Composed in memory: HDF5 that a disk refuses something keeps the file open, and crashes the
    # interpreter at its end.
    content = sealed.to_netcdf(engine="h5netcdf")
    return write_atomically(path, lambda temporary: temporary.write_bytes(content))


def load(path: Path) -> xr.Dataset:
    """Read a result into memory; a missing, foreign, changed or half-copied file is refused.

    Returns the Dataset with dims, units and provenance as they were saved. Raises LandscapeError
    with the path.

    Example:
        >>> path = results.save(measure.norms(risk, theta), Path("norms.nc"))
        >>> bool(np.isclose(results.load(path).theta_norm, theta.norm()))
        True
    """
    return read(path).ds


def read(path: Path) -> Stored:
    """Read a result and compare its content with the digest that it carries.

    Results of schema 1, of before there were digests, are read and have none.

    Example:
        >>> path = results.save(measure.norms(risk, theta), Path("norms.nc"))
        >>> results.read(path).ds.sizes["tensor"]
        6
    """
    path = Path(path)
    if not path.exists():
        raise LandscapeError(f"{path} does not exist; measure first.")
    try:
        ds = _open(path)
        said = ds.attrs.pop(SEAL, None)
        schema = ds.attrs.get("landscape_schema")
        if schema == 1 and said is None:
            ds.attrs["landscape_schema"] = SCHEMA
        validate(ds)
        found = digest(ds)
    except LandscapeError as error:
        raise LandscapeError(f"{path}: {error}") from None
    except Exception as error:  # a damaged file fails in as many ways as it has bytes
        said = str(error).splitlines()[0] if str(error) else ""
        raise LandscapeError(
            f"{path} is not a whole result file ({type(error).__name__}: {said}). "
            f"Remove it and measure again."
        ) from None
    if schema != 1 and said != found:
        what = "carries no digest" if said is None else "differs from the SHA-256 that it carries"
        raise LandscapeError(
            f"{path} was changed after it was written: its content {what}. Take it from a copy, or "
            f"remove it and measure again."
        )
    return Stored(ds, said)


def digest(ds: xr.Dataset) -> str:
    """SHA-256 of names, dimensions, types, shapes, values and attributes.

    Example:
        >>> a, b = measure.norms(risk, theta), measure.norms(risk, theta)
        >>> results.digest(a) == results.digest(b), len(results.digest(a))
        (True, 64)
    """
    found = hashlib.sha256()
    attributes = {k: v for k, v in ds.attrs.items() if k != SEAL}
    found.update(_words([sorted((str(k), _attribute(v)) for k, v in attributes.items())]))
    for name in sorted(map(str, ds.variables)):
        variable = ds.variables[name]
        kind, content = _content(variable.values)
        found.update(
            _words([
                name, name in ds.coords, list(map(str, variable.dims)), kind, list(variable.shape),
                sorted((str(k), _attribute(v)) for k, v in variable.attrs.items()), len(content),
            ])
        )  # fmt: skip
        found.update(content)
    return found.hexdigest()


def _words(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _attribute(value: Any) -> str:
    """An attribute as text, the same before and after netCDF, which knows no lists of one."""
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if isinstance(value, (np.ndarray, np.generic)):
        value = value.tolist()
    if isinstance(value, (list, tuple)) and len(value) == 1:
        value = value[0]
    return repr(int(value) if isinstance(value, bool) else value)


def _content(values: np.ndarray) -> tuple[str, bytes]:
    """Type and bytes of an array: little-endian, or every text with its length."""
    if values.dtype.kind in "OUST":
        texts = [str(value).encode("utf-8", "surrogatepass") for value in values.ravel().tolist()]
        return "text", b"".join(len(t).to_bytes(8, "little") + t for t in texts)
    dtype = values.dtype.newbyteorder("<")
    return dtype.str, np.ascontiguousarray(values, dtype).tobytes()


def _open(path: Path) -> xr.Dataset:
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
