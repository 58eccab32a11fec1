"""What was recorded of a training, step by step: the files, their one writer and their readers.

In a run's `snapshots/`: `tensors.json` names the tensors and what could not be seen. `steps.bin`
and `correct.bin` hold rows of fixed size, each with a checksum, appended: whoever reads while they
grow, or after a crash, gets every whole row. `<step>.npz` (masks, z-score counts) are whole or
absent, uncompressed, so that many can be compared without holding one in memory. Numpy only.

`folder` is that of a run, as `studies/demo/runs/<run>` or the one given to `landscape.record`.
`on_error`: "raise" names a damaged file, "skip" leaves it out; `skipped` then says which and why.
"""

from landscape.snapshots.files import (
    GRID,
    PER_TENSOR,
    SCALARS,
    Tensors,
    check_same,
    read_tensors,
    snapshot_path,
    write_snapshot,
    write_tensors,
)
from landscape.snapshots.masks import MaskSeries, ZScores, read_masks, read_zscores
from landscape.snapshots.rows import (
    Correctness,
    RowFile,
    Steps,
    correctness_file,
    correctness_row,
    forget_after,
    read_correctness,
    read_steps,
    steps_file,
)

__all__ = [
    "GRID", "PER_TENSOR", "SCALARS", "Correctness", "MaskSeries", "RowFile", "Steps", "Tensors",
    "ZScores", "check_same", "correctness_file", "correctness_row", "forget_after",
    "read_correctness", "read_masks", "read_steps", "read_tensors", "read_zscores",
    "snapshot_path", "steps_file", "write_snapshot", "write_tensors",
]  # fmt: skip
