"""What every figure script shares: where its data come from and where its figure goes."""

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import xarray as xr
from matplotlib.figure import Figure

from landscape import LandscapeError, results
from landscape.plot import static
from landscape.storage import StudyFolder

FIGURES = Path(__file__).parents[1] / "figures"


def main(
    script: str,
    measurements: Sequence[str],
    compute: Callable[..., Sequence[xr.Dataset]],
    draw: Callable[..., Figure],
) -> None:
    """Draw one figure from a study (`--study`) or from the small data committed beside it."""
    name = Path(script).stem.removeprefix("fig_")
    parser = argparse.ArgumentParser(prog=Path(script).name)
    parser.add_argument("--study", type=Path, help="study folder to take the results from")
    parser.add_argument("--out", type=Path, default=FIGURES, help="folder of the figure")
    parser.add_argument("--smoke", action="store_true", help="draw into a temporary folder")
    options = parser.parse_args()
    try:
        if options.smoke:
            with tempfile.TemporaryDirectory() as folder:
                print(_draw(name, measurements, compute, draw, options.study, Path(folder)))
        else:
            print(_draw(name, measurements, compute, draw, options.study, options.out))
    except LandscapeError as error:
        parser.exit(error.exit_code, f"{error}\n")


def _draw(name, measurements, compute, draw, study, out) -> str:
    start = time.perf_counter()
    if study is None:
        data = [results.load(_file(FIGURES, name, m)) for m in measurements]
    else:
        folder = StudyFolder(study)
        folder.check()
        data = compute(*[results.load(folder.results / f"{m}.nc") for m in measurements])
        for measurement, ds in zip(measurements, data, strict=True):
            results.save(_within(folder.root, ds), _file(out, name, measurement))
    figure = draw(*data)
    for suffix in (".png", ".pdf"):
        static.save(figure, out / f"{name}{suffix}")
    return f"{out / name}.png and .pdf ({time.perf_counter() - start:.1f} s)"


def _within(study: Path, ds: xr.Dataset) -> xr.Dataset:
    """The data with their files named within the study, wherever it lay."""
    return ds.assign_attrs(provenance=ds.provenance.replace(f"{study.absolute()}/", ""))


def _file(folder: Path, name: str, measurement: str) -> Path:
    return folder / "data" / f"{name}.{measurement}.nc"
