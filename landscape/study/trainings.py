"""How every training of a study went, also the ones that diverged or are missing: trainings.nc."""

import math
from collections.abc import Mapping
from typing import Any

from landscape import results
from landscape.results import Variable
from landscape.study import axes
from landscape.study.run_folder import Trainings
from landscape.study.spec import Run
from landscape.training.arithmetic import in_words

NAME = "trainings"
STATUS = ("trained", "diverged", "missing", "elsewhere")


def divergence(ended: Mapping[str, Any]) -> str:
    """Why a training that ended so diverged; empty where it did not."""
    return str(ended.get("message", "")) if ended.get("status") == "diverged" else ""


def trainings(known: Trainings) -> Any:
    """One row per run of the study, whatever became of it.

    status: "trained", "diverged" (a loss that was not finite, or too many steps skipped), "missing"
    (failed or not yet trained), "elsewhere" (weights from a file); message; num_steps, num_skipped
    (steps without a finite gradient); arithmetic: threads, device, precision, torch, instructions.
    """
    runs = known.study.runs
    return results.combine([_part(known, run, known.outcomes[run.run_id]) for run in runs])


def _part(known: Trainings, run: Run, ended: dict[str, Any]) -> tuple[dict[str, Any], Any]:
    diverged = ended.get("status") == "diverged"
    status = "elsewhere" if run.weights else "missing" if not ended else "trained"
    refused = known.refused.get(run.run_id, "")
    table = {
        "status": ("diverged" if diverged else status, "1", "How the training ended"),
        "message": (str(ended.get("message", refused)), "1", "Why"),
        "num_steps": (float(ended.get("steps", math.nan)), "1", "Steps"),
        "num_skipped": (float(ended.get("num_skipped", math.nan)), "1", "Steps skipped"),
        "arithmetic": (in_words(ended.get("arithmetic", ())), "1", "Arithmetic"),
    }
    variables = {name: Variable((), *parts) for name, parts in table.items()}
    return axes.labels(known.study, run), results.make(NAME, variables, provenance={})
