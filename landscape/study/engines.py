"""Where the runs of a study are made: one interface over executors that exist.

    study.run(plan, folder, Options(on=Slurm(partition="gpu", hours=8)))
    study.run(plan, folder, Options(on=Ray(address="auto")))
    study.run(plan, folder, Options(on=client.get_executor()))   # dask, mpi4py, a thread pool, ...

Whatever has `submit(function, *arguments)` and returns something with `done()` and `result()` will
do, as the executors of `concurrent.futures` have. The folder of the study is the only state: its
machines must share it, and a worker that is lost takes with it what it did since the last epoch or
measurement. Its job is submitted again and continues there, with the same bits.
"""

import contextlib
import importlib
import os
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from landscape.errors import LandscapeError
from landscape.storage import StudyFolder
from landscape.study.pool import Event, Work, attempt, one_thread

TRIES = 4  # of a job whose worker was lost, before it is reported as failed
EVERY = 0.5  # seconds between looks at the futures
# Ray asks a cluster that does not answer twenty times, 40 seconds each; one try is an answer.
ONE_TRY = ("RAY_gcs_server_port_wait_time_s", "1")


class Future(Protocol):
    """A job that was submitted."""

    def done(self) -> bool:
        """Whether it ended, by whatever end."""
        ...

    def result(self) -> Any:
        """What it returned; raises where its worker was lost."""
        ...


@runtime_checkable
class Executor(Protocol):
    """What runs a function elsewhere."""

    def submit(self, function: Callable[..., Any], /, *arguments: Any) -> Future:
        """Begin, and return at once."""
        ...


class Task:
    """A job as it travels to its worker."""

    def __init__(self, work: Work, index: int, job: Any, threads: int) -> None:
        self.work, self.index, self.job, self.threads = work, index, job, threads

    def __call__(self) -> Event:
        """Do it; what the job itself refuses is an event, and not an error of the worker."""
        import torch

        torch.set_num_threads(self.threads)
        return attempt(self.work, self.index, self.job, lambda *_: None)

    def checkpoint(self) -> Any:
        """What submitit queues before a time limit, or when preempted: the same job, resumed."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def run_on(
    executor: Executor,
    work: Work,
    jobs: Sequence[Any],
    *,
    threads: int,
    listen: Callable[[Event], None],
    far: Callable[[Any], tuple[float, str] | None] = lambda _: None,
    told: Callable[[int, Future], None] = lambda *_: None,
    earlier: Mapping[int, Future] | None = None,
) -> list[Event]:
    """Do every job on an executor; the last event of each, in the order of `jobs`.

    far: how far a job is, and what is being done, as its folder tells. told: is called with each
    job that was submitted. earlier: jobs, by index, that are already under way.
    """
    return _Following(executor, work, jobs, threads, listen, far, told).run(earlier or {})


@dataclass
class _Following:
    executor: Executor
    work: Work
    jobs: Sequence[Any]
    threads: int
    listen: Callable[[Event], None]
    far: Callable[[Any], tuple[float, str] | None]
    told: Callable[[int, Future], None]
    last: dict[int, Event] = field(default_factory=dict)
    running: dict[int, Future] = field(default_factory=dict)
    tries: Counter[int] = field(default_factory=Counter)

    def run(self, earlier: Mapping[int, Future]) -> list[Event]:
        self.running.update(earlier)
        waiting = deque(i for i in range(len(self.jobs)) if i not in earlier)
        try:
            while waiting or self.running:
                self._submit(waiting)
                time.sleep(EVERY)
                for index in [i for i, future in self.running.items() if future.done()]:
                    if self._ended(index, self.running.pop(index)):
                        waiting.append(index)
                for index in self.running:
                    if (now := self.far(self.jobs[index])) is not None:
                        self.listen(Event("progress", index, *now))
        except BaseException:
            for future in self.running.values():
                _cancel(future)
            raise
        return [self.last[index] for index in range(len(self.jobs))]

    def _submit(self, waiting: deque[int]) -> None:
        room = getattr(self.executor, "at_once", None) or len(self.jobs)
        chosen = [waiting.popleft() for _ in range(min(len(waiting), room - len(self.running)))]
        if not chosen:
            return
        together = getattr(self.executor, "batch", contextlib.nullcontext)  # an array of Slurm
        try:
            with one_thread(self.threads), together():
                for index in chosen:
                    task = Task(self.work, index, self.jobs[index], self.threads)
                    self.running[index] = self.executor.submit(task)
        except Exception as error:
            raise LandscapeError(
                f"{_name(self.executor)} took no jobs ({type(error).__name__}: {error}). What is "
                f"done is kept: run the same command again, or without --on."
            ) from error
        for index in chosen:
            self.tries[index] += 1
            self.told(index, self.running[index])

    def _ended(self, index: int, future: Future) -> bool:
        """Take in its result; whether it is to be submitted again."""
        try:
            event = future.result()
        except Exception as error:
            why = f"its worker was lost ({type(error).__name__}: {_first(error)})"
            if self.tries[index] < TRIES:
                self.listen(Event("progress", index, 0.0, f"{why}; it is submitted again"))
                return True
            again = "Run the same command again: it resumes."
            event = Event("failed", index, note=f"{why}, {self.tries[index]} times. {again}")
        self.last[index] = event
        self.listen(event)
        return False


def _first(error: Exception) -> str:
    """What an error says, in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines)[:300]


def _cancel(future: Future) -> None:
    with contextlib.suppress(Exception):
        getattr(future, "cancel", lambda: None)()


def _name(executor: Any) -> str:
    return type(executor).__name__.lstrip("_")


@dataclass(frozen=True)
class Slurm:
    """Jobs of Slurm, in one array, through submitit.

    partition, hours: of each job; one that reaches its limit, or is preempted, is queued again and
    continues. at_once: how many of the array run at a time. cluster: "slurm", or "local" to try the
    same path on this machine. settings: of submitit, e.g. account, qos, mem_gb, gpus_per_node,
    constraint. The logs of Slurm lie in STUDY/jobs.

    Example:
        >>> study.Slurm(partition="gpu", hours=8.0, settings={"gpus_per_node": 1}).hours
        8.0
    """

    partition: str | None = None
    hours: float = 4.0
    at_once: int | None = None
    cluster: str = "slurm"
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def device(self) -> str:
        """What "auto" means there."""
        gpus = {"gpus_per_node", "gpus_per_task", "gres"} & self.settings.keys()
        return "cuda" if gpus else "cpu"

    @contextlib.contextmanager
    def started(self, place: StudyFolder, threads: int) -> Generator["_Submitit"]:
        """The executor, as long as the block lasts."""
        submitit = _import("submitit", "slurm")
        if self.hours <= 0:
            raise LandscapeError(f"--hours {self.hours:g} is no time limit; give hours above 0.")
        try:
            inner = submitit.AutoExecutor(
                place.jobs, cluster=self.cluster, slurm_max_num_timeout=1000
            )
        except (RuntimeError, ValueError, FileNotFoundError) as error:
            raise LandscapeError(
                f"--on slurm: {error}. On a machine that has no sbatch, --engine cluster=local "
                f"tries the same path here."
            ) from None
        generic = set(submitit.AutoExecutor._typed_parameters())
        wanted = {k if k in generic else f"slurm_{k}": v for k, v in self.settings.items()}
        wanted |= {"timeout_min": max(1, round(60 * self.hours)), "cpus_per_task": threads}
        wanted |= {"name": f"landscape-{place.root.name}", "slurm_partition": self.partition}
        if self.at_once:
            wanted["slurm_array_parallelism"] = self.at_once
        try:
            inner.update_parameters(**wanted)
        except (AssertionError, ValueError, NameError, TypeError) as error:
            raise LandscapeError(f"--on slurm: {_first(error)}.") from None
        yield _Submitit(inner, self.cluster, self.at_once)


class _Submitit:
    """submitit's executor; on this machine, which has no queue, as many at once as it has cores."""

    def __init__(self, inner: Any, cluster: str, at_once: int | None) -> None:
        self.inner, self.cluster = inner, cluster
        self.batch = inner.batch
        self.at_once = None if cluster == "slurm" else at_once or os.cpu_count()

    def submit(self, function: Callable[..., Any], /, *arguments: Any) -> Future:
        return self.inner.submit(function, *arguments)

    def earlier(self, number: str) -> Future | None:
        """A job that an earlier call submitted, while Slurm still has it."""
        if self.cluster != "slurm":
            return None
        import submitit

        job = submitit.SlurmJob(self.inner.folder, number)
        there = ("PENDING", "RUNNING", "REQUEUED", "REQUEUE", "SUSPENDED", "CONFIGURING")
        return job if job.get_info(mode="force").get("State", "").startswith(there) else None


@dataclass(frozen=True)
class Ray:
    """Tasks of Ray, each in a process of its own.

    address: of a cluster ("auto": the one that this machine belongs to); None starts one here.
    settings: of a task, e.g. num_gpus, memory, resources.

    Example:
        >>> study.Ray(settings={"num_gpus": 1}).settings["num_gpus"]
        1
    """

    address: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def device(self) -> str:
        """What "auto" means there."""
        return "cuda" if self.settings.get("num_gpus") else "cpu"

    @contextlib.contextmanager
    def started(self, _: StudyFolder, threads: int) -> Generator["_Tasks"]:
        """The executor, as long as the block lasts; a cluster that was there stays."""
        ray = _import("ray", "ray")
        ours = not ray.is_initialized()
        if ours:
            # None would join what this machine was last part of, and wait for it if it is gone.
            where = {"address": self.address or "local", "log_to_driver": False}
            if self.address is None:
                where["include_dashboard"] = False
            else:
                os.environ.setdefault(*ONE_TRY)
            try:
                ray.init(**where)
            except (ConnectionError, ValueError, RuntimeError) as error:
                raise LandscapeError(
                    f"--on ray: no cluster at {self.address!r} ({_first(error)}). `ray start "
                    f"--head` begins one; without --engine address=... one is started here."
                ) from None
        # Modules are looked up where this process looks them up: the folder is shared anyway.
        path = os.pathsep.join(dict.fromkeys(map(os.path.abspath, sys.path)))
        variables = {name: str(threads) for name in one_thread.names} | {"PYTHONPATH": path}
        options = {"num_cpus": threads, "max_retries": 0, "max_calls": 1} | dict(self.settings)
        try:
            remote = ray.remote(**options, runtime_env={"env_vars": variables})(_call)
            yield _Tasks(ray, remote)
        finally:
            if ours:
                ray.shutdown()


def _call(function: Callable[..., Any], *arguments: Any) -> Any:
    return function(*arguments)


class _Tasks:
    def __init__(self, ray: Any, remote: Any) -> None:
        self.ray, self.remote = ray, remote

    def submit(self, function: Callable[..., Any], /, *arguments: Any) -> Future:
        return _Reference(self.ray, self.remote.remote(function, *arguments))


class _Reference:
    """A task of Ray as a future."""

    def __init__(self, ray: Any, reference: Any) -> None:
        self.ray, self.reference = ray, reference

    def done(self) -> bool:
        return bool(self.ray.wait([self.reference], timeout=0)[0])

    def result(self) -> Any:
        return self.ray.get(self.reference)

    def cancel(self) -> None:
        self.ray.cancel(self.reference, force=True)


def _import(module: str, extra: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        raise LandscapeError(
            f"--on {extra} needs {module}, which is not installed: "
            f'pip install "sam-landscape[{extra}]".'
        ) from None


def started(
    on: "Slurm | Ray | Executor", place: StudyFolder, threads: int
) -> contextlib.AbstractContextManager[Any]:
    """The executor that is meant; one that was given is not shut down."""
    if isinstance(on, Slurm | Ray):
        return on.started(place, threads)
    if not isinstance(on, Executor):
        raise LandscapeError(
            f"on={on!r} has no submit(function, *arguments); give an executor of "
            f"concurrent.futures, or Slurm(...) or Ray(...) of landscape.study."
        )
    return contextlib.nullcontext(on)


ENGINES = ("here", "slurm", "ray")


def named(
    on: str, *, partition: str | None, hours: float | None, workers: int | None,
    settings: Sequence[str],
) -> Slurm | Ray | None:  # fmt: skip
    """The engine that flags mean; None: processes of this machine."""
    if on not in ENGINES:
        raise LandscapeError(f"--on {on!r} is unknown; use one of {', '.join(ENGINES)}.")
    if on != "slurm" and (partition is not None or hours is not None):
        flag = "--partition" if partition is not None else "--hours"
        raise LandscapeError(f"{flag} is of --on slurm, and --on is {on!r}.")
    given = dict(map(_setting, settings))
    if on == "here":
        if given:
            raise LandscapeError(f"--engine {settings[0]} is of --on slurm or --on ray.")
        return None
    if on == "ray":
        if workers is not None:
            raise LandscapeError(
                f"--workers {workers}: Ray itself decides how many tasks run; give each its share "
                f"with --threads and --engine num_gpus=..."
            )
        address = given.pop("address", None)
        return Ray(None if address is None else str(address), given)
    if workers is not None and workers < 1:
        raise LandscapeError(f"--workers {workers}: at least one job of Slurm must run at a time.")
    cluster = str(given.pop("cluster", "slurm"))
    if cluster not in ("slurm", "local"):
        raise LandscapeError(f"--engine cluster={cluster}: it is slurm or local.")
    return Slurm(partition, 4.0 if hours is None else hours, workers, cluster, given)


def _setting(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise LandscapeError(f"--engine {text!r} is not NAME=VALUE, e.g. --engine account=mine.")
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return name, kind(value)
    return name, value
