"""Worker processes for jobs: one that dies takes its own job with it, not the others.

`concurrent.futures` declares a whole pool broken when the system kills one process; here each
worker has its own pipe, whose end is its death, and a fresh worker takes the next job.
"""

import contextlib
import os
import pickle
import signal
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing import connection, get_context, parent_process
from typing import Any

from landscape.errors import LandscapeError

Report = Callable[[float, str], None]  # fraction of the job that is done, what is being done
Work = Callable[[Any, Report], Any]


@dataclass(frozen=True)
class Event:
    """Something that happened to a job: "progress", "done" or "failed"."""

    kind: str
    job: int
    fraction: float = 0.0
    note: str = ""
    value: Any = None


def run_jobs(
    work: Work,
    jobs: Sequence[Any],
    *,
    workers: int,
    threads: int,
    listen: Callable[[Event], None],
) -> list[Event]:
    """Do every job; the last event of each, in the order of `jobs`.

    work: a module-level function (job, report) -> value, imported by each worker.
    workers: 0 works in this process (debuggers, one GPU); otherwise spawned processes.
    threads: of torch in each worker.
    listen: is told each event, in this process.
    """
    if workers == 0:
        return _run_here(work, jobs, threads, listen)
    return _Pool(work, jobs, min(workers, len(jobs)), threads, listen).run()


def _run_here(
    work: Work, jobs: Sequence[Any], threads: int, listen: Callable[[Event], None]
) -> list[Event]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    last = []
    try:
        for index, job in enumerate(jobs):

            def report(fraction: float, note: str, index: int = index) -> None:
                listen(Event("progress", index, fraction, note))

            last.append(attempt(work, index, job, report))
            listen(last[-1])
    finally:
        torch.set_num_threads(before)
    return last


def attempt(work: Work, index: int, job: Any, report: Report) -> Event:
    """Do one job; what it raises is an event that says so."""
    try:
        return Event("done", index, 1.0, value=work(job, report))
    except LandscapeError as error:
        return Event("failed", index, note=str(error))
    except MemoryError:
        return Event("failed", index, note="out of memory; use fewer --workers or smaller batches.")
    except BrokenPipeError:
        raise
    except Exception as error:
        where = traceback.format_exc()
        return Event("failed", index, note=f"{type(error).__name__}: {error}", value=where)


class _Pool:
    def __init__(
        self,
        work: Work,
        jobs: Sequence[Any],
        workers: int,
        threads: int,
        listen: Callable[[Event], None],
    ) -> None:
        self.work, self.jobs, self.threads, self.listen = work, jobs, threads, listen
        self.waiting = deque(range(len(jobs)))
        self.last: dict[int, Event] = {}
        self.size = workers
        self.workers: list[_WorkerProcess] = []

    def run(self) -> list[Event]:
        try:
            while len(self.last) < len(self.jobs):
                self._fill()
                ready = connection.wait([worker.pipe for worker in self.workers], timeout=1.0)
                for worker in [worker for worker in self.workers if worker.pipe in ready]:
                    self._hear(worker)
        finally:
            for worker in self.workers:
                worker.stop()
        return [self.last[index] for index in range(len(self.jobs))]

    def _fill(self) -> None:
        busy = sum(worker.job is not None for worker in self.workers)
        while self.waiting and len(self.workers) < min(self.size, busy + len(self.waiting)):
            self.workers.append(_WorkerProcess(self.work, self.threads))
        for worker in self.workers:
            if worker.job is None and self.waiting:
                worker.start(self.waiting[0], self.jobs[self.waiting[0]])
                self.waiting.popleft()

    def _hear(self, worker: "_WorkerProcess") -> None:
        try:
            event = worker.pipe.recv()
        except (EOFError, ConnectionResetError):
            self.workers.remove(worker)
            event = worker.obituary()
            if event is None:
                return
        self.listen(event)
        if event.kind != "progress":
            self.last[event.job] = event
            worker.job = None


class _WorkerProcess:
    """One spawned process and our end of its pipe."""

    def __init__(self, work: Work, threads: int) -> None:
        context = get_context("spawn")
        self.pipe, theirs = context.Pipe()
        # As bytes: it is read once the worker looks whether we live, and takes seconds to import.
        told = (theirs, pickle.dumps(work), threads)
        self.process = context.Process(target=_serve, args=told, daemon=True)
        with one_thread(threads):
            self.process.start()
        theirs.close()  # otherwise its death would never reach our end as end-of-file
        self.job: int | None = None

    def start(self, index: int, job: Any) -> None:
        self.job = index
        # If it died while idle, the end-of-file on its pipe reports this job as failed.
        with contextlib.suppress(BrokenPipeError):
            self.pipe.send((index, job))

    def obituary(self) -> Event | None:
        self.process.join(5)
        if self.job is None:
            return None
        code = self.process.exitcode
        if code is not None and code < 0:
            name = signal.Signals(-code).name
            note = f"its worker process was killed by {name}"
            if name == "SIGKILL":
                note += ", which is what the system does when memory runs out; use fewer --workers"
        else:
            note = f"its worker process ended with exit code {code}"
        return Event("failed", self.job, note=note + ". Run the same command again: it resumes.")

    def stop(self) -> None:
        if self.job is None:
            try:
                self.pipe.send(None)
            except OSError:
                self.process.terminate()
        else:
            self.process.terminate()
        self.pipe.close()
        self.process.join(5)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()


class one_thread:  # noqa: N801
    """Environment of a child: BLAS and OpenMP read their thread count when they are loaded."""

    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")

    def __init__(self, threads: int) -> None:
        self.threads = threads

    def __enter__(self) -> None:
        self.before = {name: os.environ.get(name) for name in self.names}
        os.environ.update({name: str(self.threads) for name in self.names})

    def __exit__(self, *_: object) -> None:
        for name, value in self.before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _serve(pipe: connection.Connection, told: bytes, threads: int) -> None:
    """Life of a worker: jobs in, events out, until told to stop or left alone."""
    # Ctrl-C goes to the whole foreground group; the parent alone decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_die_with_parent, daemon=True).start()
    import torch

    torch.set_num_threads(threads)
    work: Work = pickle.loads(told)
    try:
        while (message := pipe.recv()) is not None:
            index, job = message

            def report(fraction: float, note: str, index: int = index) -> None:
                pipe.send(Event("progress", index, fraction, note))

            pipe.send(attempt(work, index, job, report))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        sys.exit(1)


def _die_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
    os._exit(1)
