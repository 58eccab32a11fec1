"""A study from file to results on disk: what is missing is made, what is there is kept."""

import contextlib
import errno
import os
import sys
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import landscape
from landscape import storage
from landscape.cores import usable_cores
from landscape.errors import LandscapeError
from landscape.storage import StudyFolder
from landscape.study import (
    claims,
    combining,
    continued,
    costs,
    engines,
    logs,
    preflight,
    run_folder,
    trainings,
    worker,
)
from landscape.study.ahead import Ahead
from landscape.study.declared import declaration
from landscape.study.engines import Executor, Ray, Slurm
from landscape.study.opened import Results
from landscape.study.pool import Event, run_jobs
from landscape.study.progress import Progress
from landscape.study.queue import Queue
from landscape.study.reading import read_file
from landscape.study.resolved import finite, resolved
from landscape.study.spec import Job, Run, Study


@dataclass(frozen=True)
class Options:
    """How a study is run; nothing here decides what is measured.

    workers: processes, None for one per CPU core (one per study on a GPU), 0 for this process.
    threads: of torch in each worker. train, measure: which halves are wanted.
    on: another engine than processes of this machine, see `landscape.study.engines`.
    device: "auto" (an accelerator where there is one), "cpu", "cuda", ... quiet: no progress is
    shown.

    Example:
        >>> study.Options(device="cpu", workers=0, quiet=True).threads
        1
    """

    device: str = "auto"
    workers: int | None = None
    threads: int = 1
    train: bool = True
    measure: bool = True
    quiet: bool = False
    on: Slurm | Ray | Executor | None = None


@dataclass(frozen=True)
class Summary:
    """What happened: runs by name; `failed` with the reason of each.

    folder: of the study. done: runs of this call; kept: those that were there; stale: runs of an
    earlier study file, left where they are. combined: measurements whose results were written.
    notes: what was found in weights files.

    Example:
        >>> quiet = study.Options(device="cpu", workers=0, quiet=True)
        >>> summary = study.run(study.reopen(finished.root), finished.root, quiet)
        >>> summary.failed, len(summary.kept)
        ({}, 2)
    """

    folder: StudyFolder
    done: tuple[str, ...]
    kept: tuple[str, ...]  # were there already
    failed: dict[str, str]
    stale: tuple[str, ...]  # runs of an earlier study file, left where they are
    combined: tuple[str, ...]
    notes: tuple[str, ...] = ()  # what was found in weights files from elsewhere

    @property
    def results(self) -> Results:
        """What the study has measured, by name."""
        return Results(self.folder)

    def sentence(self) -> str:
        """Counts in words."""
        parts = (
            [f"{len(self.done)} run{'' if len(self.done) == 1 else 's'} done"] if self.done else []
        )
        parts += [f"{len(self.kept)} were there already"] if self.kept else []
        parts += [f"{len(self.failed)} failed"] if self.failed else []
        return ", ".join(parts) + "."

    def as_dict(self) -> dict[str, Any]:
        """For scripts."""
        return {
            "folder": str(self.folder.root),
            "done": list(self.done),
            "kept": list(self.kept),
            "failed": dict(self.failed),
            "stale": list(self.stale),
            "results": sorted(str(path) for path in self.folder.results.glob("*.nc")),
        }

    def has_results(self) -> bool:
        """Whether there is anything to report."""
        return any(p.stem != trainings.NAME for p in self.folder.results.glob("*.nc"))

    def checkpoints(self) -> list[Path]:
        """Weights of the runs that this call trained or found."""
        names = [*self.done, *self.kept]
        paths = [storage.final_path(self.folder.run(n)) for n in names]
        return [path for path in paths if path.exists()]


def run(study: Study, folder: Path, options: Options = Options()) -> Summary:
    """Train and measure what is missing in `folder`, then combine the results.

    A failed run is reported and the others go on. Raises KeyboardInterrupt after the workers have
    stopped; calling again resumes.
    options: `Options`, which say how and not what.

    Example:
        >>> plan = study.reopen(finished.root)
        >>> quiet = study.Options(device="cpu", workers=0, quiet=True)
        >>> summary = study.run(plan, finished.root, quiet)  # all is there: nothing is done again
        >>> len(summary.kept), summary.done
        (2, ())
    """
    place = StudyFolder(Path(folder).absolute())
    _check_counts(options)
    device = device_of(options)
    workers = worker_count(options, device)
    choices = finite(resolved(study, device, options.threads))
    if (said := continued.said_before(study, place, choices)) and not options.quiet:
        print(said, file=sys.stderr)
    alone, reading = _alone(place), Ahead(wanted=options.measure and workers > 0)
    with alone, _engine(options, place) as engine, reading as ahead:
        storage.hold(place.lock)
        storage.sweep(place.root)
        _write_resolved(study, place, choices)
        every = [run.run_id for run in study.runs]
        worked: set[str] = set()
        failed: dict[str, str] = {}
        said = [line for name in every for line in run_folder.changed_results(place.run(name))]
        notes = dict.fromkeys([*said, *combining.changed(place)])
        # Measurements across runs need all runs of their setting to be trained.
        for across in (False, True):
            known = run_folder.Trainings(study, place)
            failed |= known.refused
            named = [run for run in study.runs if run.run_id not in failed]
            plan = [job_of(known, run, place, device, options, across=across) for run in named]
            todo = [job for job in plan if _has_work(job)]
            if not across:
                preflight.begin(place, todo)
            names = [job.run.run_id for job in todo]
            if todo and not (across or place.results.exists()):  # nothing is combined yet
                for folder in {job.folder for job in plan} - {job.folder for job in todo}:
                    ahead.add(folder)
            events = _work(
                todo, workers, options, place, engine, ahead, said=_ACROSS if across else ""
            )
            worked |= set(names)
            notes |= {e.value.note: None for e in events if e.kind == "done" and e.value.note}
            failed |= {n: e.note for n, e in zip(names, events, strict=True) if e.kind == "failed"}
        known = run_folder.Trainings(study, place)
        # One that diverged is not tried again, and is said each time.
        diverged = {name: trainings.divergence(ended) for name, ended in known.outcomes.items()}
        failed |= {name: why for name, why in diverged.items() if why} | known.refused
        ahead.stop()
        combined = combining.combine_all(known, place, ahead.found) if options.measure else ()
        if combined:
            _outdate(place.report)
    return Summary(
        folder=place,
        done=tuple(name for name in every if name in worked and name not in failed),
        kept=tuple(name for name in every if name not in worked and name not in failed),
        failed=failed,
        stale=stale_runs(study, place),
        combined=tuple(combined),
        notes=tuple(notes),
    )


_ACROSS = "What each run needs alone is done: now what compares runs with each other."


def _has_work(job: Job) -> bool:
    train, todo = run_folder.missing(job)
    return train or bool(todo)


def _engine(
    options: Options, place: StudyFolder
) -> contextlib.AbstractContextManager[Executor | None]:
    if options.on is None:
        return contextlib.nullcontext()
    return engines.started(options.on, place, options.threads)


def device_of(options: Options) -> str:
    """The device of each run; that of another machine is looked for there."""
    if options.on is None:
        return resolve_device(options.device)
    if options.device != "auto":
        return options.device
    return getattr(options.on, "device", "cpu")


def _work(
    todo: list[Job],
    workers: int,
    options: Options,
    place: StudyFolder,
    engine: Executor | None,
    ahead: Ahead,
    *,
    said: str,
) -> list[Event]:
    """said: before all else, beside what the trainings record. ahead: reads what is done."""
    if not todo:
        return []
    from landscape.study import problem

    names = [job.run.run_id for job in todo]
    costs_of = [costs.missing(job) for job in todo if not options.quiet]
    weights = [training + sum(each) for training, each in costs_of]
    with Progress(names, weights=weights, quiet=options.quiet) as progress:

        def heard(event: Event) -> None:
            progress.hear(event)
            if event.kind == "done":
                ahead.add(todo[event.job].folder)

        if not options.quiet:
            for line in filter(None, (said, worker.announced(todo))):
                progress.say(line)
        if workers or engine is not None:  # others read the data, this process needs them no more
            problem.load_data.cache_clear()
        if engine is not None:
            queue = Queue(place)
            return engines.run_on(
                engine, worker.do, todo, threads=options.threads, listen=heard,
                far=lambda job: logs.far(job.folder),
                told=lambda index, future: queue.submitted(names[index], future),
                earlier=queue.earlier(engine, names),
            )  # fmt: skip
        return run_jobs(worker.do, todo, workers=workers, threads=options.threads, listen=heard)


def job_of(
    known: run_folder.Trainings,
    run: Run,
    place: StudyFolder,
    device: str,
    options: Options,
    *,
    across: bool = False,
) -> Job:
    """What a worker is told about one run; `across`: also to measure it against the others."""
    study, wanted = known.study, known.keyed(run)
    return Job(
        run=run,
        folder=place.run(run.run_id),
        base=study.base,
        measurements=tuple((m, key) for m, key in wanted if across or not m.across_runs),
        variants=(*study.variants, *study.controls),
        spec=study.measure,
        device=device,
        threads=options.threads,
        train=options.train and run.weights is None,
        measure=options.measure,
        peers=known.peers.get(run.setting, ()) if across else (),
    )


def worker_count(options: Options, device: str) -> int:
    """Workers asked for, or one per core; one for a GPU, which does not gain from sharing."""
    if options.workers is not None:
        return options.workers
    return usable_cores() if device == "cpu" else 1


def resolve_device(device: str) -> str:
    """The device meant by "auto", "cpu", "cuda" or "cuda:1", if it is there."""
    import torch

    from landscape import devices

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, index = device.partition(":")
    if (kind not in ("cpu", "cuda") and not devices.count(kind)) or (index and not index.isdigit()):
        raise LandscapeError(f"--device {device!r} is unknown; use auto, cpu, cuda or cuda:0.")
    if int(index or 0) >= (count := devices.count(kind)):
        raise LandscapeError(
            f"--device {device!r}: torch {torch.__version__} sees {count} {kind.upper()} devices. "
            f"Use --device cpu."
        )
    return device


def _check_counts(options: Options) -> None:
    if options.workers is not None and options.workers < 0:
        raise LandscapeError(
            f"--workers {options.workers} is below 0; 0 works in this process, 2 in two others."
        )
    if options.threads < 1:
        raise LandscapeError(f"--threads {options.threads} is below 1.")


@contextlib.contextmanager
def _alone(place: StudyFolder) -> Generator[None]:
    """Hold the study folder: two processes training one run would undo each other."""
    with storage.writing(place.root):
        place.root.mkdir(parents=True, exist_ok=True)
        handle = place.lock.open("a+")
    with handle:
        _lock(handle.fileno(), place)
        # Another machine may not see the lock: file systems differ in that. All see the claim.
        with claims.claim(place.claim):
            yield


def _lock(handle: int, place: StudyFolder) -> None:
    try:
        import fcntl
    except ImportError:  # not on this system
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise LandscapeError(
            f"{place.root} is being worked on by another landscape process; wait for it or stop it."
        ) from None
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK, errno.EINVAL):
            raise


def stale_runs(study: Study, place: StudyFolder) -> tuple[str, ...]:
    """Runs in the folder that the study file no longer asks for; kept aside, not in the results."""
    if not place.runs.is_dir():
        return ()
    wanted = {run.run_id for run in study.runs}
    return tuple(
        sorted(p.name for p in place.runs.iterdir() if p.is_dir() and p.name not in wanted)
    )


def _write_resolved(study: Study, place: StudyFolder, value: dict[str, Any]) -> None:
    """The study file and every choice of it. value: `resolved` of the study."""
    old = place.check() if place.resolved.exists() else None
    storage.write_text(place.study_toml, study.text)
    value = value | {"file": continued.file_of(study, place, old)}
    value |= finite(declaration(study, place, old))
    # Written only when something changed: the report is made anew when this file is newer.
    if old != value:
        _outdate(place.report)
        storage.write_json(place.resolved, value)


def _outdate(report: Path) -> None:
    """Let a report count as older than all it is of, whatever the clock says by now."""
    if report.exists():
        with storage.writing(report):
            os.utime(report, (0, 0))


def reopen(folder: Path, *, overrides: tuple[str, ...] = (), dtype: str | None = None) -> Study:
    """The study of an existing folder, read from its own study.toml.

    Raises LandscapeError where the folder is no study.

    Example:
        >>> study.reopen(finished.root).name
        'everything'
    """
    place = StudyFolder(Path(folder).absolute())
    found = place.check()
    if not place.study_toml.exists():
        raise LandscapeError(f"{place.root} has no study.toml; run it from the study file.")
    base = continued.base_of(place, found)
    return read_file(place.study_toml, base=base, overrides=overrides, dtype=dtype)


def report_is_fresh(place: StudyFolder) -> bool:
    """Whether the report is newer than the results and than the code that writes it."""
    if not place.report.exists():
        return False
    package = Path(landscape.__file__).parent
    sources = [place.resolved, *place.results.glob("*.nc"), package / "metrics.py"]
    for folder in ("report", "plot", "stats"):
        sources += [path for path in (package / folder).rglob("*") if path.suffix != ".pyc"]
    made = place.report.stat().st_mtime_ns
    return all(path.stat().st_mtime_ns <= made for path in sources if path.is_file())
