"""One result file to another format: tables, netCDF, figures; and old surfaces brought along."""

from pathlib import Path

import xarray as xr

from landscape import results, surfaces
from landscape.errors import LandscapeError
from landscape.plot import figures, interactive, static

TABLES = (".csv", ".nc")
SOURCES = (".nc", ".h5")


def read(path: Path) -> xr.Dataset:
    """A result (.nc), or a surface of the loss-landscape program (.h5, arXiv:1712.09913)."""
    path = Path(path)
    if path.suffix not in SOURCES:
        raise LandscapeError(
            f"{path.name} ends in {path.suffix!r}; results are read from {' and '.join(SOURCES)}."
        )
    return results.load(path) if path.suffix == ".nc" else surfaces.read_goldstein(path)


def convert(source: Path, target: Path, *, figure: str | None = None) -> Path:
    """Write a result as its target's suffix says: a table, netCDF, or a figure on paper or page.

    figure: a name in `plot.figures`; by default the one that is called like the measurement.
    """
    source, target = Path(source), Path(target)
    drawn = (*static.SUFFIXES, ".html")
    if target.suffix not in (*TABLES, *drawn):
        raise LandscapeError(
            f"{target.name} ends in {target.suffix!r}; possible: {', '.join((*TABLES, *drawn))}."
        )
    if source.resolve() == target.resolve():
        raise LandscapeError(f"{source} is both source and target; give the target another name.")
    ds = read(source)
    if target.suffix == ".csv":
        return surfaces.to_csv(ds, target)
    if target.suffix == ".nc":
        return results.save(ds, target)
    name = figure or str(ds.attrs["measurement"])
    if name not in figures.__all__:
        raise LandscapeError(
            f"No figure is called {name!r}; name one of {', '.join(figures.__all__)}."
        )
    if target.suffix == ".html":
        return interactive.save(getattr(interactive, name)(ds), target)
    return static.save(getattr(static, name)(ds), target)
