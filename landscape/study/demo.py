"""The study files that come with the package."""

from importlib.resources import files
from pathlib import Path

from landscape.storage import StudyFolder, write_text


def demo_text(*, quick: bool = False) -> str:
    """Text of the study that `landscape demo` runs.

    quick: the one of less than a minute.

    Example:
        >>> study.demo_text(quick=True).splitlines()[0][:27]
        '# `landscape demo --quick`:'
    """
    name = "demo_quick.toml" if quick else "demo.toml"
    return files("landscape.study").joinpath(name).read_text(encoding="utf-8")


def write_scans(folder: Path) -> None:
    """Put the committed scans of the demo over epochs and radii beside its results.

    Made by `landscape run analysis_scripts/scan_epochs.toml` and `scan_rho.toml`: each is the
    figures/data/specifications.csv of that study.
    """
    place = StudyFolder(folder.absolute()).scans
    place.mkdir(parents=True, exist_ok=True)
    for one in files("landscape.study").joinpath("demo_scans").iterdir():
        if one.name.endswith(".csv"):
            write_text(place / one.name, one.read_text(encoding="utf-8"))
