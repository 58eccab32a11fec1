"""The results of a study's folder, opened by name: as xarray, and as tidy pandas tables."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import pandas as pd
import xarray as xr

from landscape import results
from landscape.errors import LandscapeError
from landscape.storage import StudyFolder


class Results(Mapping[str, xr.Dataset]):
    """Every result of a study by the name of its measurement; read when it is asked for.

    study.results("studies/demo")["top_eigenvalues"]                   an xarray.Dataset over `run`
    study.results("studies/demo").frame("top_eigenvalues", "eigenvalue")      a pandas.DataFrame
    folder: that of the study.

    Example:
        >>> found = study.results(finished.root)
        >>> found["top_eigenvalues"].variant.values.tolist()
        ['sam', 'zsharp']
        >>> table = found.frame("top_eigenvalues", "eigenvalue")
        >>> table[["variant", "seed", "rank"]].values.tolist()
        [['sam', 0, 0], ['zsharp', 0, 0]]
    """

    def __init__(self, folder: Path | str | StudyFolder) -> None:
        self.folder = folder if isinstance(folder, StudyFolder) else StudyFolder(Path(folder))
        self.folder.check()

    def __getitem__(self, name: str) -> xr.Dataset:
        if name not in list(self):
            raise KeyError(f"{name!r}; this study has {', '.join(self) or 'no results yet'}")
        return results.load(self.folder.results / f"{name}.nc")

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(path.stem for path in self.folder.results.glob("[!.]*.nc")))

    def __len__(self) -> int:
        return len(list(iter(self)))

    def __repr__(self) -> str:
        return f"{len(self)} results of {self.folder.root}: {', '.join(self)}"

    def frames(self, name: str) -> dict[tuple[str, ...], pd.DataFrame]:
        """Tidy tables of one result: one for each set of dimensions that variables share."""
        from landscape.plot import runs  # drawing is not loaded by who trains
        from landscape.plot.files import tables

        return tables(runs.as_runs(self[name]))

    def frame(self, name: str, variable: str) -> pd.DataFrame:
        """The tidy table that holds a variable, with variant, seed and setting in each row."""
        for frame in self.frames(name).values():
            if variable in frame.columns:
                return frame
        raise LandscapeError(
            f"{name} has no variable {variable!r}; it has {', '.join(map(str, self[name]))}."
        )
