"""One run, start to end, in a worker: train, measure, and leave whole files behind.

Each step is skipped when its file is there and was made with the same options, so that a killed job
continues where it stopped.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from landscape import storage
from landscape.errors import LandscapeError
from landscape.storage import StudyFolder
from landscape.study import costs, logs, run_folder, sessions
from landscape.study.claims import Worker
from landscape.study.spec import Job, Measurement

Report = Callable[[float, str], None]


@dataclass(frozen=True)
class Outcome:
    """What a job did."""

    trained: bool
    measured: tuple[str, ...]
    seconds: float
    note: str = ""  # what was found in a weights file from elsewhere


def recorded_bytes(job: Job) -> int:
    """Bytes that the recorder of a run's training writes at most."""
    from landscape import training
    from landscape.params import ParamLayout
    from landscape.study import problem

    data = problem.read_data(job)
    return training.estimate_bytes(
        ParamLayout.of(problem.make_model(job.run, data, job.base)),
        training.TrainingOptions(**job.run.training),
        training.RecorderOptions(),
        num_examples=len(data.train),
    )


def train(job: Job, progress: Callable[[float], None]) -> None:
    """Train a run in its folder, or continue it where it stopped."""
    from landscape import training
    from landscape.study import problem

    run = job.run
    data = problem.read_data(job)
    options = training.TrainingOptions(**run.training)
    result = training.train(
        problem.make_model(run, data, job.base),
        data,
        problem.make_recipe(run.recipe, run.options, job.base),
        options,
        seed=run.seed,
        folder=job.folder,
        loss=problem.make_loss(run, job.base),
        device=job.device,
        progress=lambda record: progress(record["epoch"] / options.epochs),
        run=run.run_id,
    )
    if not result.finished:
        raise LandscapeError(result.message)


def announced(todo: Sequence[Job]) -> str:
    """What the missing trainings record at most; empty without any, or where it cannot be told."""
    sizes: dict[str, int] = {}
    found = []
    for job in todo:
        if not run_folder.missing(job)[0]:
            continue
        key = repr((job.run.problem, job.run.training, job.run.dtype))
        if key not in sizes:
            try:
                sizes[key] = recorded_bytes(job)
            except Exception:  # the run fails in its worker, where it is said by name
                return ""
        found.append(sizes[key])
    if not found:
        return ""
    if len(found) == 1:
        return f"The training records at most {found[0] / 1e6:,.1f} MB."
    return (
        f"{len(found)} trainings record at most {sum(found) / 1e6:,.1f} MB, one of them at most "
        f"{max(found) / 1e6:,.1f} MB."
    )


def do(job: Job, report: Report) -> Outcome:
    """Train and measure one run."""
    from landscape.study.running import resolve_device

    resolve_device(job.device)  # of this machine, which may not be the one that was asked
    storage.hold(StudyFolder(job.folder.parents[1]).lock)

    def wait(other: Worker) -> None:
        report(0.0, f"waiting for {other.owner}, who works on it")

    with sessions.session(job.folder, wait=wait) as held, logs.logged(job.folder, report) as say:

        def heard(fraction: float, note: str) -> None:
            held.check()
            say(fraction, note)

        return _do(job, heard)


def _do(job: Job, report: Report) -> Outcome:
    began = time.monotonic()
    must_train, todo = run_folder.missing(job)
    run_folder.write_spec(job)
    training, each = costs.missing(job)
    whole = training + sum(each)
    spent = [(training + sum(each[:i])) / whole for i in range(len(each))]
    if must_train:
        _train(job, training / whole, report)
    elif job.measure and not run_folder.is_trained(job.run, job.folder):
        raise LandscapeError(
            f"{job.run.run_id} has not been trained; `landscape run` trains and measures it."
        )
    measured, note = _measure(job, todo, spent, report) if todo else ([], "")
    if not run_folder.missing(job)[1] and job.measure:
        storage.write_json(
            job.folder / "done.json",
            {"run": job.run.run_id, "measurements": {m.name: key for m, key in job.measurements}},
        )
    return Outcome(must_train, tuple(measured), time.monotonic() - began, note)


def _train(job: Job, share: float, report: Report) -> None:
    def progress(fraction: float) -> None:
        report(share * fraction, "training")

    report(0.0, f"training, recording at most {recorded_bytes(job) / 1e6:.1f} MB")
    train(job, progress)


def _measure(
    job: Job, todo: list[tuple[Measurement, str]], spent: Sequence[float], report: Report
) -> tuple[list[str], str]:
    """spent: the share of all work that is behind each measurement as it begins."""
    from landscape.study import measurements
    from landscape.study.finished_run import FinishedRun

    run = FinishedRun(job)
    _ = run.theta  # weights that do not fit are one error, not one per measurement
    done: list[str] = []
    refused: dict[str, list[str]] = {}
    for share, (measurement, key) in zip(spent, todo, strict=True):
        report(share, measurement.name.replace("_", " "))
        try:
            ds = measurements.measure_run(run, measurement.name, measurement.options)
        except LandscapeError as error:
            refused.setdefault(str(error), []).append(measurement.name)
            continue
        run_folder.keep(job, measurement, key, ds, run.weights)
        done.append(measurement.name)
    if refused:
        reasons = [f"{', '.join(names)}: {reason}" for reason, names in refused.items()]
        raise LandscapeError(" ".join(reasons))
    return done, str(run.weights) if job.run.weights else ""
