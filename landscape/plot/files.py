"""One result file to another format: tables, netCDF, figures; and old surfaces brought along."""

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from landscape import results, surfaces
from landscape.errors import LandscapeError
from landscape.plot import animation, figures, interactive, meshes, runs, static
from landscape.storage import write_atomically

__all__ = ["SOURCES", "TABLES", "convert", "read", "tables"]

TABLES = (".csv", ".parquet", ".nc")
SOURCES = (".nc", ".h5", ".hdf5")
# Measurements whose figure is not called like them.
_FIGURES = {
    "generalization": "headline",
    "perturbation_history": "energy_over_time",
    "loss_slice_eval": "loss_slice",
}


def read(path: Path) -> xr.Dataset:
    """A result (.nc), or a surface of the loss-landscape program (.h5, arXiv:1712.09913)."""
    path = Path(path)
    if path.suffix not in SOURCES:
        raise LandscapeError(
            f"{path.name} ends in {path.suffix!r}; results are read from {', '.join(SOURCES)}."
        )
    return results.load(path) if path.suffix == ".nc" else surfaces.read_goldstein(path)


def convert(
    source: Path,
    target: Path,
    *,
    figure: str | None = None,
    setting: str | None = None,
    variants: Sequence[str] = (),
) -> list[Path]:
    """Write a result as its target's suffix says: tables, netCDF, a figure, or a surface's mesh.

    figure: a name in `plot.figures`; by default that of the measurement. setting: of a study's
    result; a figure or mesh shows one, by default the first, and tables hold all. variants: ids;
    the runs of others are left out. Returns what was written: a table for each set of dimensions
    that variables share (`tables`), a .vts for each variant.
    """
    source, target = Path(source), Path(target)
    drawn = (*static.SUFFIXES, ".html", *animation.SUFFIXES, *meshes.SUFFIXES)
    if target.suffix not in (*TABLES, *drawn):
        raise LandscapeError(
            f"{target.name} ends in {target.suffix!r}; possible: {', '.join((*TABLES, *drawn))}."
        )
    if source.exists() and target.exists() and source.samefile(target):
        raise LandscapeError(f"{source} is both source and target; give the target another name.")
    ds = read(source)
    if setting is not None:
        ds = runs.in_setting(ds, setting)
    if variants:
        ds = _of_variants(ds, variants)
    if target.suffix in meshes.SUFFIXES:
        where = setting or (runs.settings(ds)[0] if "run" in ds.dims else None)
        return meshes.save(meshes.of(ds, setting=where), target)
    if target.suffix == ".nc":
        return [results.save(ds, target)]
    if target.suffix in TABLES:
        return _write_tables(ds, target)
    if target.suffix in animation.SUFFIXES:
        return [animation.save(_drawn(ds, figures, figure, setting), target)]
    page = interactive if target.suffix == ".html" else static
    return [page.save(_drawn(ds, page, figure, setting), target)]


def _of_variants(ds: xr.Dataset, variants: Sequence[str]) -> xr.Dataset:
    known = list(dict.fromkeys(runs.as_runs(ds).variant.values.astype(str)))
    unknown = [name for name in variants if name not in known]
    if unknown:
        raise LandscapeError(
            f"variants: {', '.join(map(repr, unknown))} asked; the result has {', '.join(known)}."
        )
    kept = np.isin(runs.as_runs(ds).variant.values.astype(str), list(variants))
    return runs.as_runs(ds).isel(run=np.flatnonzero(kept))


def _drawn(ds: xr.Dataset, page: Any, figure: str | None, setting: str | None) -> Any:
    measurement = str(ds.attrs["measurement"])
    name = figure or _FIGURES.get(measurement, measurement)
    if figure is None and name not in figures.__all__:
        raise LandscapeError(
            f"{measurement} has no figure of its own; write it as a table "
            f"({', '.join(TABLES)}), or name the figure that draws it with figure=."
        )
    if name not in figures.__all__:
        raise LandscapeError(
            f"No figure is called {name!r}; name one of {', '.join(figures.__all__)} with figure=."
        )
    own = inspect.signature(getattr(figures, name)).parameters.values()
    needed = [p.name for p in own if p.kind is p.POSITIONAL_OR_KEYWORD and p.default is p.empty]
    if len(needed) > 1:
        raise LandscapeError(
            f"The figure {name} is drawn from {len(needed)} results ({', '.join(needed)}); "
            f"`landscape figures STUDY --only {name}` draws it from a study's folder."
        )
    options = {"setting": setting or runs.settings(ds)[0]} if "run" in ds.dims else {}
    return getattr(page, name)(ds, **options)


def tables(ds: xr.Dataset) -> dict[tuple[str, ...], pd.DataFrame]:
    """Tidy tables: one for each set of dimensions that variables of the result share.

    Rows are the points of these dimensions alone, never of the product of all. Columns: the
    dimensions, the coordinates along them (names, seeds, kinds), the variables, and in each row
    the scalars of the result.
    """
    ds = runs.labelled(ds)
    groups: dict[tuple[str, ...], list[str]] = {}
    for name, array in ds.data_vars.items():
        groups.setdefault(tuple(map(str, array.dims)), []).append(str(name))
    scalars = groups.pop((), []) if len(groups) > 1 else []
    for names in groups.values():
        names += scalars
    found = {}
    for dims, names in groups.items():
        along = [str(c) for c in ds.coords if c not in dims and set(ds[c].dims) <= set(dims)]
        part = ds[names].drop_vars([c for c in ds[names].coords if c not in (*along, *dims)])
        if dims:
            frame = part.to_dataframe(dim_order=list(dims)).reset_index()
        else:
            frame = pd.DataFrame({n: [part[n].item()] for n in (*along, *names)})
        order = [c for c in (*dims, *along) if c in frame]
        found[dims] = frame[[*order, *names]]
    return found


def _write_tables(ds: xr.Dataset, target: Path) -> list[Path]:
    found = tables(ds)
    many = len(found) > 1
    return [
        _write_table(
            frame,
            target.with_name(f"{target.stem}.{'-'.join(dims) or 'scalars'}{target.suffix}")
            if many
            else target,
        )
        for dims, frame in found.items()
    ]


def _write_table(frame: pd.DataFrame, path: Path) -> Path:
    if path.suffix == ".csv":
        return write_atomically(path, lambda file: surfaces.write_csv(frame, file))
    try:
        return write_atomically(path, lambda file: frame.to_parquet(file, index=False))
    except ImportError:
        raise LandscapeError(
            f"{path.name}: Parquet is written by pyarrow, which is not installed; "
            f"`pip install pyarrow`, or write .csv."
        ) from None
