"""What is missing of a run, in gradients over its fixed examples: for the estimate and progress."""

from landscape.study import run_folder
from landscape.study.spec import Job, Run

# What any measurement costs beside its gradients: to read weights, to write a file.
EACH = 1.0
# Where the data cannot be looked at, a training is about so many measurements long.
_UNKNOWN = 1.0


def passes(run: Run) -> float:
    """Gradients per step times epochs."""
    return (1.0 if run.recipe == "sgd" else 2.0) * run.training["epochs"]


def sizes(job: Job) -> tuple[int, int, int]:
    """How many examples are fixed, are trained on, and are in all splits together."""
    from landscape.study import problem

    data = problem.read_data(job)
    parts = (data.train, data.val, data.test)
    train, whole = len(data.train), sum(len(part) for part in parts if part is not None)
    return min(job.spec.examples, train), train, whole


def missing(job: Job) -> tuple[float, tuple[float, ...]]:
    """Cost of the training, 0 where there is one, and of each missing measurement.

    It never fails: a problem that cannot be looked at is said by name in its worker.
    """
    from landscape.study.measurements import RECORDS
    from landscape.study.measurements.record import Work

    train, todo = run_folder.missing(job)
    try:
        fixed, trained_on, whole = sizes(job)
        work = Work(job.run, max(1, len(job.peers)), fixed, whole)
        measured = tuple(EACH + RECORDS[m.name].cost(m.options, work) for m, _ in todo)
        return train * passes(job.run) * trained_on / fixed, measured
    except Exception:
        return train * _UNKNOWN * max(1, len(todo)), tuple(_UNKNOWN for _ in todo)
