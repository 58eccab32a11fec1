"""Tiles of a grid on disk: whole or absent, bound to one grid, recomputed where damaged."""

import hashlib
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from landscape import storage
from landscape.errors import LandscapeError
from landscape.risk import EmpiricalRisk

_KEY = "grid.json"


class Tiles:
    """A folder of `<name>.npz` files; `grid.json` says of which grid, and another is refused.

    A tile that is no whole file is named in a warning and computed again; the values of a resumed
    grid equal those of an uninterrupted one to the last bit.
    """

    def __init__(self, folder: Path, key: Mapping[str, Any]) -> None:
        self.folder = Path(folder)
        if self.folder.exists() and not self.folder.is_dir():
            raise LandscapeError(f"tiles={str(folder)!r} is a file; give a folder for the tiles.")
        # Through JSON, so that what is read back compares equal.
        key = json.loads(json.dumps(dict(key)))
        self._key = json.dumps(key, sort_keys=True)
        self._digest = hashlib.sha256(self._key.encode()).hexdigest()
        path = self.folder / _KEY
        if path.exists():
            self._refuse_other(storage.read_json(path), key)
        else:
            storage.write_json(path, key)

    def get(
        self,
        name: str,
        points: Sequence[Sequence[float]],
        width: int,
        compute: Callable[[], tuple[np.ndarray, float]],
    ) -> tuple[np.ndarray, float, bool]:
        """Values (points, width) and cost of a tile, and whether they came from disk.

        Each file says what it is by itself: the coordinates of its cells, their cost, when it was
        made, and the provenance of the grid.
        """
        shape = (len(points), width)
        path = self.folder / f"{name}.npz"
        if path.exists():
            found = self._read(path, shape, np.array(points))
            if found is not None:
                return *found, True
        values, cost = compute()
        said = {
            "grid": self._digest,
            "provenance": self._key,
            "made": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        words = {name: np.array(word) for name, word in said.items()}
        arrays = {"values": values, "points": np.array(points), "cost": np.float64(cost), **words}
        storage.write_arrays(path, arrays)
        return values, cost, False

    def _read(
        self, path: Path, shape: tuple[int, ...], points: np.ndarray
    ) -> tuple[np.ndarray, float] | None:
        try:
            file = storage.read_arrays(path, ("values", "points", "cost", "grid"))
            values = file["values"]
            ours = values.shape == shape and str(file["grid"]) == self._digest
            if ours and np.array_equal(file["points"], points):
                return values, float(file["cost"])
            reason = "it belongs to another grid, or to another place in it"
        except LandscapeError as error:
            reason = f"it is no whole file ({error})"
        warnings.warn(f"Tile {path} is computed again: {reason}.", stacklevel=4)
        return None

    def _refuse_other(self, found: Any, key: Mapping[str, Any]) -> None:
        found = found if isinstance(found, dict) else {}
        odd = [name for name in key if found.get(name) != key[name]]
        if odd:
            raise LandscapeError(
                f"{self.folder} holds tiles of another grid (it differs in {', '.join(odd)}); "
                f"give an empty folder, or the options that began it."
            )


def risk_key(risk: EmpiricalRisk) -> dict[str, Any]:
    """What a value of the risk depends on beside theta: data, buffers, options and versions."""
    return {**risk.provenance(), "batch_size": risk.batch_size, **risk.fingerprints()}
