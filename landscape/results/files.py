"""Results on the disk: netCDF 4 that carries a digest of everything a reader would see.

The digest is of names, dimensions, types, shapes, values and attributes, not of the file's bytes,
so that a program that rewrites the file without a change leaves it right.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from landscape.errors import LandscapeError
from landscape.results import netcdf
from landscape.results.schema import SCHEMA, validate
from landscape.storage import write_atomically

SEAL = "landscape_sha256"


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
    content = netcdf.compose(sealed)
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
        ds = netcdf.read(path)
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
