"""SAM-aware training that can be killed, and a recorder of what each step perturbed."""

from landscape.training.checkpoint import optimizer_slots
from landscape.training.history import consolidate, read_steps
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
    "AMP", "AUGMENTATIONS", "BASES", "SCHEDULES", "RecorderOptions", "TrainingOptions",
    "TrainingResult", "consolidate", "estimate_bytes", "optimizer_slots",
    "read_steps", "train",
]  # fmt: skip
