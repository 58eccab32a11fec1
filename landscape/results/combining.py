"""Results of several runs along one axis."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from landscape.errors import LandscapeError
from landscape.results.schema import SCHEMA, provenance, validate


def combine(parts: Sequence[tuple[Mapping[str, Any], xr.Dataset]]) -> xr.Dataset:
    """Stack results of several runs along `run`; each part is (labels of the run, result).

    The labels (those named at the head of `results.schema`) become coordinates along `run`; one
    whose name the result itself uses (the rho grid of a sharpness curve, lr over epochs) is called
    `run_<name>`. Other coordinates are joined by name; what a run does not have is NaN.
    parts: (labels, result) of each run, as ({"variant": "sam", "seed": 0, ...}, ds).

    Example:
        >>> parts = [({"run": f"{n}", "variant": n}, measure.norms(risk, w))
        ...          for n, w in {"sgd": theta, "sam": other}.items()]
        >>> both = results.combine(parts)
        >>> both.theta_norm.dims, both.variant.values.tolist()
        (('run',), ['sgd', 'sam'])
    """
    if not parts:
        raise LandscapeError("No results to combine: no run has this measurement yet.")
    names = {ds.attrs["measurement"] for _, ds in parts}
    if len(names) != 1:
        raise LandscapeError(f"Results of different measurements cannot be combined: {names}.")
    modes = {str(provenance(ds).get("bn")) for _, ds in parts}
    if len(modes) != 1:
        raise LandscapeError(
            f"Results of {names.pop()} in BatchNorm modes {sorted(modes)} cannot share an axis; "
            f"measure all runs in one mode."
        )
    each = [_bare(ds) for _, ds in parts]
    stacked = (
        _stacked(each)
        if _alike(each)
        else xr.concat(
            each,
            dim="run",
            join="outer",
            data_vars="all",
            coords="minimal",
            compat="override",
            combine_attrs="override",
        )
    )
    told = [provenance(ds) for _, ds in parts]
    return _labelled(stacked, [labels for labels, _ in parts], names.pop(), told)


def are_alike(parts: Sequence[xr.Dataset]) -> bool:
    """Whether all have the same variables on the same coordinates, so that nothing is joined.

    parts: results of one measurement.

    Example:
        >>> a, b = measure.norms(risk, theta), measure.norms(risk, other)
        >>> results.are_alike([a, b]), results.are_alike([a, measure.margins(risk, theta)])
        (True, False)
    """
    return _alike([_bare(ds) for ds in parts])


def recombine(
    old: xr.Dataset, parts: Sequence[tuple[Mapping[str, Any], xr.Dataset | int]]
) -> xr.Dataset | None:
    """What `combine` gives, where most of it was combined before.

    A part is a result, or the number of its row in `old`, the combination of results that were
    alike (`are_alike`). None where the new ones are not like those: then all have to be read.
    parts: (labels, result or number of a row), as for `combine`. Returns the same names, dims and
    units.

    Example:
        >>> labels = {"run": "a", "variant": "sgd"}, {"run": "b", "variant": "sam"}
        >>> old = results.combine([(labels[0], measure.norms(risk, theta))])
        >>> both = results.recombine(old, [(labels[0], 0), (labels[1], measure.norms(risk, other))])
        >>> both.variant.values.tolist()
        ['sgd', 'sam']
    """
    kept = {
        name: xr.Variable(v.dims[1:], v.values[0], v.attrs) for name, v in old.data_vars.items()
    }
    coords = {name: old.variables[name] for name in old.coords if "run" not in old[name].dims}
    row = _whole_names(xr.Dataset(kept, coords=coords))
    fresh = [part for _, part in parts if not isinstance(part, int)]
    names = {ds.attrs["measurement"] for ds in (old, *fresh)}
    before = provenance(old)["runs"]
    told = [before[p] if isinstance(p, int) else provenance(p) for _, p in parts]
    each = [row, *map(_bare, fresh)]
    if len(names) > 1 or len({str(one.get("bn")) for one in told}) > 1 or not _alike(each):
        return None
    numbers = iter(range(old.sizes["run"], old.sizes["run"] + len(fresh)))
    order = [part if isinstance(part, int) else next(numbers) for _, part in parts]
    data = {
        name: (
            ("run", *variable.dims),
            np.concatenate([old[name].values, *(ds[name].values[None] for ds in each[1:])])[order],
            variable.attrs,
        )
        for name, variable in row.data_vars.items()
    }
    stacked = xr.Dataset(data, coords={name: row.variables[name] for name in row.coords})
    return _labelled(stacked, [labels for labels, _ in parts], names.pop(), told)


def _labelled(
    stacked: xr.Dataset,
    labels: Sequence[Mapping[str, Any]],
    name: str,
    told: Sequence[Mapping[str, Any]],
) -> xr.Dataset:
    """With the labels of each run as coordinates, and the provenance of all."""
    keys = list(dict.fromkeys(key for each in labels for key in each))
    taken = {str(name) for name in (*stacked.variables, *stacked.dims)} - {"run"}
    columns = {
        f"run_{key}" if key in taken else key: ("run", _column([each.get(key) for each in labels]))
        for key in keys
    }
    stacked = stacked.assign_coords(columns)
    stacked.attrs = {
        "measurement": name,
        "landscape_schema": SCHEMA,
        "provenance": json.dumps({"runs": list(told)}),
    }
    return validate(stacked)


def _bare(ds: xr.Dataset) -> xr.Dataset:
    return _whole_names(ds.drop_attrs(deep=False))


def _alike(each: Sequence[xr.Dataset]) -> bool:
    """Whether all have the same variables on the same coordinates, so that nothing is joined."""
    first = each[0]
    shapes = {name: (v.dims, v.shape, v.dtype) for name, v in first.variables.items()}
    indexes = {name: first.variables[name].values for name, _ in first.indexes.items()}
    return all(
        {name: (v.dims, v.shape, v.dtype) for name, v in ds.variables.items()} == shapes
        and ds.indexes.keys() == indexes.keys()
        and all(np.array_equal(ds.variables[name].values, indexes[name]) for name in indexes)
        for ds in each
    )


def _stacked(each: Sequence[xr.Dataset]) -> xr.Dataset:
    """What xr.concat gives for results that are alike, in a time that grows with their number."""
    first = each[0]
    data = {
        name: (("run", *variable.dims), np.stack([ds.variables[name].values for ds in each]))
        for name, variable in first.data_vars.items()
    }
    attrs = {name: first.variables[name].attrs for name in data}
    coords = {name: first.variables[name] for name in first.coords}
    return xr.Dataset({name: (*pair, attrs[name]) for name, pair in data.items()}, coords=coords)


def _whole_names(ds: xr.Dataset) -> xr.Dataset:
    """Names as objects: an outer join of fixed-width strings cuts the longer ones."""
    found = {name: v for name, v in ds.variables.items() if name in ds.indexes}
    names = {name: v.astype(object) for name, v in found.items() if v.dtype.kind in "UT"}
    return ds.assign_coords(names) if names else ds


def _column(values: list[Any]) -> np.ndarray:
    if any(isinstance(value, str) for value in values):
        return np.array(["" if value is None else value for value in values], dtype=object)
    return np.array([np.nan if value is None else value for value in values])
