"""Names of the recorded tensors, and snapshots of single steps: written whole or not at all."""

import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from landscape import storage
from landscape.errors import LandscapeError
from landscape.streams import Grid

FORMAT = 4  # 3: rows that do not say their run, snapshots without a digest of their bytes
GRID = Grid(bins=241)
SCALARS = (
    "loss_clean", "loss_perturbed", "perturbation_norm", "rho", "cosine", "climbed",
)  # fmt: skip
PER_TENSOR = ("energy_share", "density", "weight_norm", "first_order")
ON_ERROR = ("raise", "skip")


@dataclass(frozen=True)
class Tensors:
    """The recorded tensors in model order, and why a column is NaN (`unseen`, by column).

    names, kinds, sizes, ndims: of each tensor, in the order of the model.

    Example:
        >>> tensors = snapshots.Tensors(names=("w",), kinds=("linear",), sizes=(4,), ndims=(2,))
        >>> tensors.unseen, tensors.snapshot_bytes > 0
        ({}, True)
    """

    names: tuple[str, ...]
    kinds: tuple[str, ...]
    sizes: tuple[int, ...]
    ndims: tuple[int, ...]
    unseen: Mapping[str, str] = field(default_factory=dict)
    run: str = ""  # of which training, so that a snapshot of another one is told from its own

    def __len__(self) -> int:
        return len(self.names)

    @property
    def row(self) -> np.dtype:
        """A row of steps.bin."""
        wide = [(name, "<f4", (len(self),)) for name in PER_TENSOR]
        head = [("checksum", "<u4"), ("epoch", "<u4"), ("step", "<i8")]
        return np.dtype([*head, *((name, "<f8") for name in SCALARS), *wide])

    @property
    def identity(self) -> str:
        """Names and sizes, as each snapshot repeats them."""
        return json.dumps([list(self.names), list(self.sizes)])

    @property
    def snapshot_bytes(self) -> int:
        """Bytes of a snapshot with masks, exact but for the archive's directory."""
        bits = sum((size + 7) // 8 for size in self.sizes)
        return bits + 4 * len(self) * (GRID.bins + 3) + len(self.identity) + 2048


def write_tensors(folder: Path, tensors: Tensors) -> None:
    """Say what the files of `folder` (a run's `snapshots`) are about; refuse another model's.

    Example:
        >>> tensors = snapshots.Tensors(names=("w",), kinds=("linear",), sizes=(4,), ndims=(2,))
        >>> snapshots.write_tensors(Path("written"), tensors)
        >>> snapshots.read_tensors(Path("written").parent) is None
        True
    """
    path = Path(folder) / "tensors.json"
    if path.exists():
        check_same(tensors_at(path), tensors.identity, str(path))
        return
    known = {"format": FORMAT, **{k: list(getattr(tensors, k)) for k in _FIELDS}}
    storage.write_json(path, known | {"unseen": dict(tensors.unseen), "run": tensors.run})


_FIELDS = ("names", "kinds", "sizes", "ndims")


def read_tensors(folder: Path) -> Tensors | None:
    """The recorded tensors of a run; None where nothing was recorded.

    Returns names, kinds, sizes and ndims (n,) of the tensors.

    Example:
        >>> snapshots.read_tensors(folder).names[:2]
        ('0.weight', '0.bias')
    """
    folder = Path(folder)
    path = folder / "snapshots" / "tensors.json"
    if path.exists():
        return tensors_at(path)
    if not folder.is_dir():
        raise LandscapeError(f"There is no folder {folder}; give that of a training or recording.")
    if (folder / path.name).exists():
        raise LandscapeError(
            f"{folder} holds the files of a recording; give the folder around it, {folder.parent}."
        )
    return None


def tensors_at(path: Path) -> Tensors:
    """Tensors of one tensors.json."""
    known = storage.load_json(path)
    if not isinstance(known, dict) or known.get("format") != FORMAT:
        found = known.get("format", 1) if isinstance(known, dict) else None
        found = found if isinstance(found, int) else "unknown"
        raise LandscapeError(
            f"{path.parent} was recorded in format {found} and this version reads format "
            f"{FORMAT}; remove the run's folder and train again."
        )
    known = storage.unsealed_json(path, known)
    columns = {k: known[k] for k in _FIELDS if isinstance(known.get(k), list)}
    one_length = len(set(map(len, columns.values()))) == 1
    typed = len(columns) == len(_FIELDS) and one_length and all(
        [
            *(isinstance(word, str) for k in ("names", "kinds") for word in columns[k]),
            *(type(n) is int and n >= 0 for k in ("sizes", "ndims") for n in columns[k]),
            isinstance(known.get("unseen"), dict),
            isinstance(known.get("run"), str),
        ]
    )  # fmt: skip
    if not typed:
        raise LandscapeError(
            f"{path} is damaged: it needs {', '.join(_FIELDS)} of one length, unseen and run. "
            f"Remove the run's folder and train again."
        )
    fields = [tuple(columns[k]) for k in _FIELDS]
    return Tensors(*fields, unseen=known["unseen"], run=known["run"])


def check_same(tensors: Tensors, identity: str, what: str) -> None:
    """Refuse an identity that is not the recorded tensors', naming what differs.

    Example:
        >>> tensors = snapshots.read_tensors(folder)
        >>> snapshots.check_same(tensors, tensors.identity, "the recording")  # no word: the same
    """
    known = dict(zip(tensors.names, tensors.sizes, strict=True))
    other = dict(zip(*json.loads(identity), strict=True))
    if known == other:
        return
    parts = [
        *(f"{n} ({other[n]} elements) was added" for n in other if n not in known),
        *(f"{n} ({known[n]} elements) was removed" for n in known if n not in other),
        *(f"{n} has {other[n]} elements instead of {known[n]}" for n in other
          if n in known and known[n] != other[n]),
    ]  # fmt: skip
    more = f" and {len(parts) - 3} more" if len(parts) > 3 else ""
    raise LandscapeError(
        f"{what} is of other tensors than the recording began with: {', '.join(parts[:3])}{more}. "
        f"Record into another folder, one per set of trained tensors."
    )


def snapshot_path(folder: Path, step: int) -> Path:
    """Snapshot of one step in a run's `snapshots` folder.

    Example:
        >>> snapshots.snapshot_path(Path("snapshots"), 7).suffix
        '.npz'
    """
    return Path(folder) / f"{step:08d}.npz"


def write_snapshot(
    folder: Path,
    step: int,
    tensors: Tensors,
    *,
    zscore_counts: np.ndarray,
    mask_bits: np.ndarray | None = None,
) -> None:
    """Write masks (bytes as in PackedMasks) and z-score counts (tensors, bins + 3) of one step.

    folder: a run's `snapshots` folder. zscore_counts (tensors, bins + 3). mask_bits: None where
    nothing is masked.

    Example:
        >>> where = Path("written")
        >>> tensors = snapshots.Tensors(names=("w",), kinds=("linear",), sizes=(4,), ndims=(2,))
        >>> snapshots.write_tensors(where, tensors)
        >>> counts = np.zeros((1, snapshots.GRID.bins + 3), np.int64)
        >>> snapshots.write_snapshot(where, 0, tensors, zscore_counts=counts)
        >>> snapshots.snapshot_path(where, 0).exists()
        True
    """
    content: dict[str, np.ndarray | np.generic] = {
        "tensors": np.frombuffer(tensors.identity.encode(), np.uint8),
        "step": np.int64(step),
        "run": np.frombuffer(tensors.run.encode(), np.uint8),
        "zscore_counts": zscore_counts.astype(np.uint32),
    }
    if mask_bits is not None:
        content["mask_bits"] = mask_bits
    storage.write_arrays(snapshot_path(folder, step), content)


_MEMBERS = ("tensors", "step", "run", "zscore_counts", "mask_bits")


def check_snapshot(archive: zipfile.ZipFile, path: Path, tensors: Tensors) -> None:
    """Refuse a snapshot of other tensors, of another step than its name says, or of another run."""
    storage.check_sealed_zip(path)
    odd = set(archive.namelist()) ^ {f"{name}.npy" for name in _MEMBERS}
    if odd - {"mask_bits.npy"}:  # a variant that selects everything has no mask
        raise ValueError(f"members {', '.join(map(repr, sorted(odd)))} are missing or unknown")
    identity = storage.read_array(archive, "tensors").tobytes().decode()
    check_same(tensors, identity, str(path))
    step = int(storage.read_array(archive, "step"))
    run = storage.read_array(archive, "run").tobytes().decode()
    if (step, run) != (int(path.stem), tensors.run):
        whose = "this" if run == tensors.run else "another"
        raise LandscapeError(
            f"{path} is the snapshot of step {step} of {whose} training; it was renamed or copied "
            f"there. Put back the right one, or remove it."
        )


def each_snapshot(
    folder: Path, tensors: Tensors, on_error: str, read: Any
) -> tuple[list, list[str]]:
    """(step, read(path)) of all snapshots where that is not None, and what was skipped."""
    found, skipped = [], []
    for path in sorted((Path(folder) / "snapshots").glob("[0-9]*.npz")):
        try:
            storage.check_file(path)
            content = read(path, tensors)
        except LandscapeError:
            raise  # whole, and of another model: no damage to be skipped
        except Exception as error:  # a damaged archive fails in many ways
            if on_error == "raise":
                raise LandscapeError(
                    f"{path} is not a whole snapshot ({type(error).__name__}: {error}). Pass "
                    f"on_error='skip' to leave it out, or remove the run's folder and train again."
                ) from None
            skipped.append(f"{path.name}: not a whole snapshot ({type(error).__name__})")
            continue
        if content is not None:
            found.append((int(path.stem), content))
    return found, skipped
