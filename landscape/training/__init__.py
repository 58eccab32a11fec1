"""SAM-aware training that can be killed, and a recorder of what each step perturbed.

`folder` is that of a run. `on_error`: "raise" names a damaged file, "skip" leaves it out.
"""

from landscape.snapshots import read_correctness, read_masks, read_steps, read_zscores
from landscape.training.checkpoint import optimizer_slots
from landscape.training.foreign import OptimizerFactory
from landscape.training.history import check_snapshots, consolidate, read_history
from landscape.training.inputs import check_form
from landscape.training.loop import TrainingResult, train
from landscape.training.options import (
    AMP,
    AUGMENTATIONS,
    BASES,
    SCHEDULES,
    RecorderOptions,
    TrainingOptions,
)
from landscape.training.recorder import estimate_bytes

__all__ = [
    "AMP", "AUGMENTATIONS", "BASES", "SCHEDULES", "OptimizerFactory", "RecorderOptions",
    "TrainingOptions", "TrainingResult", "check_form", "check_snapshots", "consolidate",
    "estimate_bytes", "optimizer_slots", "read_correctness", "read_history", "read_masks",
    "read_steps", "read_zscores", "train",
]  # fmt: skip
