"""Rows of fixed size with checksums, appended: scalars per step, correctness per epoch."""

import os
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from landscape import storage
from landscape.checks import check_choice
from landscape.errors import LandscapeError
from landscape.snapshots.files import ON_ERROR, Tensors, read_tensors


class RowFile:
    """Rows of one dtype, whose first field `checksum` is the CRC-32 of the rest of the row.

    run: of which training they are; its CRC-32 begins that of each row, so that rows of another one
    are none of these.
    path: the file, which is made at the first append.

    Example:
        >>> file = snapshots.steps_file(folder / "snapshots", snapshots.read_tensors(folder))
        >>> rows, skipped = file.read()
        >>> len(rows), skipped
        (6, ())
    """

    def __init__(self, path: Path, dtype: np.dtype, run: str = "") -> None:
        self.path, self.dtype, self.run = Path(path), dtype, run

    def _checksum(self, row: bytes | memoryview) -> int:
        return zlib.crc32(row, zlib.crc32(self.run.encode()))

    def append(self, rows: np.ndarray) -> None:
        """Append rows and wait until the disk has them; on failure the file is as it was."""
        payload = bytearray(rows.astype(self.dtype).tobytes())
        width = self.dtype.itemsize
        for start in range(0, len(payload), width):
            checksum = self._checksum(memoryview(payload)[start + 4 : start + width])
            payload[start : start + 4] = checksum.to_bytes(4, "little")
        with storage.writing(self.path):
            storage.make_room(self.path)
            with self.path.open("ab") as handle:
                whole = handle.tell() // width * width
                handle.truncate(whole)  # what a crash left half-written
                try:
                    handle.write(payload)
                    handle.flush()
                    os.fsync(handle.fileno())
                except OSError:
                    os.ftruncate(handle.fileno(), whole)
                    raise

    def read(self, on_error: str = "raise") -> tuple[np.ndarray, tuple[str, ...]]:
        """Whole rows, and what was left out. A half-written last row is no error: it may grow."""
        check_choice("on_error", on_error, ON_ERROR)
        if not self.path.exists():
            return np.empty(0, self.dtype), ()
        with storage.reading(self.path):
            payload, width = self.path.read_bytes(), self.dtype.itemsize
        count, rest = divmod(len(payload), width)
        rows = np.frombuffer(payload, self.dtype, count)
        said = [f"{self.path.name}: the last row is half-written"] if rest else []
        good = np.array(
            [self._checksum(payload[i * width + 4 : (i + 1) * width]) for i in range(count)],
            dtype=np.uint32,
        )
        bad = np.flatnonzero(good != rows["checksum"])
        if len(bad):
            text = f"{len(bad)} of {count} rows differ from their checksum, the first is {bad[0]}"
            if len(bad) == count:
                text += " (or it is of another training)"
            if on_error == "raise":
                raise LandscapeError(
                    f"{self.path} is damaged: {text}. Pass on_error='skip' to read the others, or "
                    f"remove the run's folder and train again."
                )
            said.append(f"{self.path.name}: {text}")
        return rows[good == rows["checksum"]], tuple(said)

    def keep(self, rows: np.ndarray) -> None:
        """Replace the file by these rows (resuming at a checkpoint)."""
        if self.path.exists():
            payload = rows.astype(self.dtype).tobytes()
            storage.write_atomically(self.path, lambda temporary: temporary.write_bytes(payload))


@dataclass(frozen=True)
class Steps:
    """Rows of all steps so far: `steps["rho"]` is (n,), `steps["density"]` is (n, tensors).

    Example:
        >>> steps = snapshots.read_steps(folder)
        >>> steps.step.tolist(), steps["density"].shape
        ([0, 1, 2, 3, 4, 5], (6, 6))
    """

    tensors: Tensors
    rows: np.ndarray
    skipped: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, column: str) -> np.ndarray:
        return self.rows[column]

    @property
    def step(self) -> np.ndarray:
        """Number of each step, from 0."""
        return self.rows["step"]

    @property
    def epoch(self) -> np.ndarray:
        """Epoch of each step, from 1."""
        return self.rows["epoch"]

    @property
    def unseen(self) -> Mapping[str, str]:
        """Columns that are NaN, and why."""
        return self.tensors.unseen


def steps_file(folder: Path, tensors: Tensors) -> RowFile:
    """steps.bin of a run's `snapshots` folder.

    Example:
        >>> snapshots.steps_file(Path("mine"), snapshots.read_tensors(folder)).path.name
        'steps.bin'
    """
    return RowFile(Path(folder) / "steps.bin", tensors.row, tensors.run)


def correctness_file(folder: Path, num_examples: int, run: str = "") -> RowFile:
    """correct.bin of a run's `snapshots` folder; `count_again` is ~count.

    num_examples: N.

    Example:
        >>> file = snapshots.correctness_file(Path("mine"), num_examples=3)
        >>> file.path.name
        'correct.bin'
    """
    bits = (num_examples + 7) // 8
    head = [("checksum", "<u4"), ("epoch", "<u4"), ("count", "<u4"), ("count_again", "<u4")]
    return RowFile(Path(folder) / "correct.bin", np.dtype([*head, ("bits", "u1", (bits,))]), run)


def correctness_row(file: RowFile, epoch: int, correct: np.ndarray) -> np.ndarray:
    """A row of correct.bin: which examples (N,) are right after an epoch (from 1).

    file: the one that it is for.

    Example:
        >>> file = snapshots.correctness_file(Path("mine"), num_examples=3)
        >>> row = snapshots.correctness_row(file, 1, np.array([True, False, True]))
        >>> len(row)
        1
    """
    row = np.zeros(1, file.dtype)
    row["epoch"], row["count"], row["bits"] = epoch, len(correct), np.packbits(correct)
    row["count_again"] = ~row["count"]
    return row


def read_steps(folder: Path, *, on_error: str = "raise") -> Steps:
    """Scalars of every step that `folder` (a run's) holds by now; no row where none was recorded.

    A half-written last row is left out and said in `skipped`; a damaged one raises, or is left out
    and said with on_error="skip".

    Example:
        >>> steps = training.read_steps(folder)
        >>> steps["rho"].shape == steps.step.shape, steps["density"].shape[1]
        (True, 6)
    """
    check_choice("on_error", on_error, ON_ERROR)
    tensors = read_tensors(folder)
    if tensors is None:
        nothing = Tensors((), (), (), ())
        return Steps(nothing, np.empty(0, nothing.row))
    file = steps_file(Path(folder) / "snapshots", tensors)
    rows, skipped = file.read(on_error)
    if on_error == "raise":
        _check_order(file.path, rows["step"])
    return Steps(tensors, rows, skipped)


def _check_order(path: Path, counted: np.ndarray) -> None:
    """Refuse rows that were lost or doubled in the middle: each is whole, and one is missing."""
    broken = np.flatnonzero(np.diff(counted.astype(np.int64)) != 1)
    if len(broken):
        at = int(broken[0])
        raise LandscapeError(
            f"{path} is damaged: {counted[at]} is followed by {counted[at + 1]}. Pass "
            f"on_error='skip' to read what there is, or remove the run's folder and train again."
        )


@dataclass(frozen=True)
class Correctness:
    """Which training examples were right after which epoch: epochs (E,), correct (E, N) bool.

    Example:
        >>> seen = snapshots.read_correctness(folder)
        >>> seen.epochs.shape[0] == seen.correct.shape[0]
        True
    """

    epochs: np.ndarray
    correct: np.ndarray
    skipped: tuple[str, ...] = ()


def read_correctness(folder: Path, *, on_error: str = "raise") -> Correctness:
    """Whether the largest output was the label (as trained, noise included), at each epoch's end.

    All N training examples in the order of the data, not augmented, in eval mode with running
    statistics: not the outputs of the training passes, whose batch statistics, augmentation and
    dropout differ. (0, 0) when RecorderOptions.correctness was off. A forgetting event
    (arXiv:1812.05159, §3, on such outputs) is correct[k - 1] and not correct[k].

    Example:
        >>> training.read_correctness(folder).correct.shape
        (0, 0)
    """
    check_choice("on_error", on_error, ON_ERROR)
    tensors = read_tensors(folder)
    path = Path(folder) / "snapshots" / "correct.bin"
    head = b""
    if path.exists():
        with storage.reading(path), path.open("rb") as handle:
            head = handle.read(16)[8:]
    nothing = Correctness(np.empty(0, np.int64), np.empty((0, 0), bool))
    if len(head) < 8:  # not recorded, or the first row is being written
        return nothing
    count, again = (int(n) for n in np.frombuffer(head, "<u4"))
    if count ^ again != 0xFFFFFFFF:
        text = "the number of examples in its first row is not whole"
        if on_error == "raise":
            raise LandscapeError(
                f"{path} is damaged: {text}. Pass on_error='skip' to go on without it, or remove "
                f"the run's folder and train again."
            )
        return replace(nothing, skipped=(f"{path.name}: {text}",))
    run = tensors.run if tensors is not None else ""
    rows, skipped = correctness_file(path.parent, count, run).read(on_error)
    if on_error == "raise":
        _check_order(path, rows["epoch"])
    correct = np.unpackbits(rows["bits"], axis=1, count=count).astype(bool)
    return Correctness(rows["epoch"].astype(np.int64), correct, skipped)


def forget_after(folder: Path, *, epoch: int, step: int) -> None:
    """Remove what was written of steps >= `step`, which belong to epochs > `epoch`.

    folder: a run's `snapshots` folder.

    Example:
        >>> import shutil
        >>> copied = Path(shutil.copytree(folder, "copied", dirs_exist_ok=True))
        >>> snapshots.forget_after(copied / "snapshots", epoch=1, step=3)
        >>> snapshots.read_steps(copied).step.tolist()
        [0, 1, 2]
    """
    folder = Path(folder)
    if not folder.is_dir():
        return
    for path in folder.glob("[0-9]*.npz"):
        if int(path.stem) >= step:
            path.unlink()
    tensors = read_tensors(folder.parent)
    if tensors is not None:
        rows = steps_file(folder, tensors)
        found, _ = rows.read()
        rows.keep(found[found["step"] < step])
    seen = read_correctness(folder.parent)
    if seen.correct.size:
        run = tensors.run if tensors is not None else ""
        file = correctness_file(folder, seen.correct.shape[1], run)
        found, _ = file.read()
        file.keep(found[found["epoch"] <= epoch])
