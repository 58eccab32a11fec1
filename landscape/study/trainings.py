"""How every training of a study went, also the ones that diverged or are missing: trainings.nc."""

import math
from typing import Any

from landscape import results, storage
from landscape.results import Variable
from landscape.storage import StudyFolder
from landscape.study import axes
from landscape.study.spec import Run, Study
from landscape.training import checkpoint
from landscape.training.arithmetic import in_words

NAME = "trainings"
STATUS = ("trained", "diverged", "missing", "elsewhere")


def outcome(run: Run, place: StudyFolder) -> dict[str, Any]:
    """How a training ended as its folder tells; empty where it has not ended."""
    path = checkpoint.outcome_path(place.run(run.run_id))
    return {} if run.weights is not None or not path.exists() else storage.read_json(path)


def divergence(run: Run, place: StudyFolder) -> str:
    """Why a training diverged; empty where it did not."""
    ended = outcome(run, place)
    return str(ended.get("message", "")) if ended.get("status") == "diverged" else ""


def trainings(study: Study, place: StudyFolder) -> Any:
    """One row per run of the study, whatever became of it.

    status: "trained", "diverged" (a loss that was not finite, or too many steps skipped), "missing"
    (failed or not yet trained), "elsewhere" (weights from a file); message; num_steps, num_skipped
    (steps without a finite gradient); arithmetic: threads, device, precision, torch, instructions.
    """
    return results.combine([_part(study, run, outcome(run, place)) for run in study.runs])


def _part(study: Study, run: Run, ended: dict[str, Any]) -> tuple[dict[str, Any], Any]:
    diverged = ended.get("status") == "diverged"
    status = "elsewhere" if run.weights else "missing" if not ended else "trained"
    table = {
        "status": ("diverged" if diverged else status, "1", "How the training ended"),
        "message": (str(ended.get("message", "")), "1", "Why"),
        "num_steps": (float(ended.get("steps", math.nan)), "1", "Steps"),
        "num_skipped": (float(ended.get("num_skipped", math.nan)), "1", "Steps skipped"),
        "arithmetic": (in_words(ended.get("arithmetic", ())), "1", "Arithmetic"),
    }
    variables = {name: Variable((), *parts) for name, parts in table.items()}
    return axes.labels(study, run), results.make(NAME, variables, provenance={})
