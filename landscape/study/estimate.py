"""What a study will cost before it starts: gradients counted, one of them timed."""

import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from landscape.errors import LandscapeError
from landscape.storage import StudyFolder
from landscape.study import costs, run_folder, running, worker
from landscape.study.measurements import RECORDS, Work
from landscape.study.progress import duration
from landscape.study.spec import Job, Run, Study

MIB = 2**20


@dataclass(frozen=True)
class Row:
    """One kind of work over all runs: gradients over the fixed examples, seconds on one core."""

    name: str
    runs: int
    gradients: float
    seconds: float


@dataclass(frozen=True)
class Estimate:
    """Rows of what is missing, seconds with all workers, bytes of all workers together.

    recorded: bytes on the disk that the recorders of the missing trainings write at most.
    flops: floating-point operations of one gradient over the fixed examples, matrix products and
    convolutions alone, a multiplication and an addition counted as two. tflops: 10¹² of them a
    second that each worker keeps up, where the seconds are those of another machine.
    """

    rows: tuple[Row, ...]
    gradient_seconds: float
    num_examples: int
    workers: int
    memory: int
    recorded: int
    flops: float = 0.0
    tflops: float | None = None

    @property
    def seconds(self) -> float:
        """Wall clock, the starting of workers left out."""
        return sum(row.seconds for row in self.rows) / max(1, self.workers)

    def as_dict(self) -> dict[str, Any]:
        """For scripts."""
        return {
            "seconds": self.seconds,
            "gradients": sum(row.gradients for row in self.rows),
            "memory_bytes": self.memory,
            "recorded_bytes": self.recorded,
            "workers": self.workers,
            "gradient_seconds": self.gradient_seconds,
            "num_examples": self.num_examples,
            "gradient_flops": self.flops,
            "tflops": self.tflops,
            "rows": [row.__dict__ for row in self.rows],
        }

    def table(self) -> str:
        """For people."""
        time_of = "CPU time" if self.tflops is None else "time"
        lines = [f"{'':22}{'runs':>6}{'gradients':>12}{time_of:>14}"]
        for row in self.rows:
            name = row.name.replace("_", " ")
            lines.append(f"{name:22}{row.runs:6d}{row.gradients:12,.0f}{duration(row.seconds):>14}")
        workers = "1 worker" if self.workers == 1 else f"{self.workers} workers"
        each = "" if self.tflops is None else f" of {self.tflops:g} TFLOP/s each"
        where = "here" if self.tflops is None else "there"
        lines.append(
            f"About {duration(self.seconds)} with {workers}{each} and "
            f"{self.memory / MIB:,.0f} MiB of memory. A gradient over {self.num_examples} examples "
            f"({self.flops / 1e9:,.3g} GFLOP) takes {1000 * self.gradient_seconds:.3g} ms {where}."
        )
        if self.recorded:
            lines.append(f"The trainings record at most {self.recorded / 1e6:,.1f} MB.")
        return "\n".join(lines)


def estimate(
    study: Study, folder: Path, options: running.Options, *, tflops: float | None = None
) -> Estimate:
    """Cost of everything that is still missing in `folder`, without doing any of it.

    tflops: of another machine, whose time is then told: its operations a second are those that its
    users see in training such networks, a part of what its maker names.
    """
    if tflops is not None and not tflops > 0:
        raise LandscapeError(f"--tflops {tflops:g}: give 10¹² operations a second, above 0.")
    device = running.device_of(options)
    place = StudyFolder(Path(folder).absolute())
    workers = running.worker_count(options, device)
    known = run_folder.Trainings(study, place)
    todo = [running.job_of(known, run, place, device, options, across=True) for run in study.runs]
    gradients: dict[str, list[float]] = {}
    probe, recorded = _SampleWork(todo[0]), 0
    for job in todo:
        train, missing = run_folder.missing(job)
        if train:
            gradients.setdefault("training", []).append(probe.training(job.run))
            recorded += worker.recorded_bytes(job)
        work = Work(
            job.run,
            sum(run.setting == job.run.setting for run in study.runs),
            probe.num_examples,
            probe.num_data,
        )
        for measurement, _ in missing:
            cost = RECORDS[measurement.name].cost(measurement.options, work)
            gradients.setdefault(measurement.name, []).append(cost)
    seconds = probe.seconds if tflops is None else probe.flops / (1e12 * tflops)
    rows = tuple(
        Row(name, len(costs), sum(costs), sum(costs) * seconds) for name, costs in gradients.items()
    )
    busy = max(1, min(workers, len(todo)))
    return Estimate(
        rows, seconds, probe.num_examples, busy, busy * probe.memory, recorded, probe.flops, tflops
    )


class _SampleWork:
    """One gradient and one Hessian product on the first run's problem, timed and weighed."""

    def __init__(self, job: Job) -> None:
        import torch

        from landscape.study import problem
        from landscape.study.finished_run import FinishedRun

        data = problem.load_data(job.run.problem, job.base)
        self.num_train = len(data.train)
        parts = (data.train, data.val, data.test)
        self.num_data = sum(len(part) for part in parts if part is not None)
        risk = FinishedRun(job, trained=False).risk()
        self.num_examples = risk.num_examples
        threads = torch.get_num_threads()
        torch.set_num_threads(job.threads)
        try:
            risk.hvp(risk.theta, risk.theta)
            self.seconds = min(_seconds(risk.gradient, risk.theta) for _ in range(5))
        finally:
            torch.set_num_threads(threads)
        self.flops = _flops(risk)
        basis = 300 * risk.theta.numel() * risk.theta.element_size()  # vectors Lanczos may keep
        self.memory = _peak_bytes(job.device) + basis

    def training(self, run: Run) -> float:
        """Gradients over the fixed examples that a whole training equals."""
        return costs.passes(run) * self.num_train / self.num_examples


def _flops(risk: Any) -> float:
    """Operations of a gradient over all examples: three times those of a loss."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        risk.loss(risk.theta)
    return 3.0 * counter.get_total_flops()


def _seconds(work: Callable[..., Any], *arguments: Any) -> float:
    from landscape import devices

    began = time.perf_counter()
    work(*arguments)
    for device in devices.in_use():
        devices.synchronize(device)
    return time.perf_counter() - began


def _peak_bytes(device: str) -> int:
    import torch

    from landscape import devices

    on = torch.device(device)
    if devices.is_accelerator(on) and hasattr(
        module := torch.get_device_module(on.type), "max_memory_allocated"
    ):
        return module.max_memory_allocated(on)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
