"""What a study will cost before it starts: gradients counted, one of them timed."""

import resource
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from landscape.storage import StudyFolder
from landscape.study import jobs, running
from landscape.study.progress import duration
from landscape.study.spec import Run, Study

# In gradients over the same examples: a forward pass, and a Hessian product on a kept graph.
FORWARD, PRODUCT = 1 / 3, 2.0
MIB = 2**20

Options = Mapping[str, Any]


def _sharpness(o: Options) -> float:
    steps = (1 + o["restarts"]) * o["ascent_steps"]
    return 4 + len(o["rho"]) * (FORWARD + steps + 2 * o["num_pairs"] * FORWARD)


def _slice(o: Options) -> float:
    # The two windows share about half of the fine one's points.
    points = o["points"] + o["fine_points"] // 2
    return (o["num_directions"] * (points - 1) + 1) * FORWARD


_BLOCKS = 10  # modules of a typical network

# Counted from the algorithms; Lanczos stops when it has converged, so its count is typical.
COSTS: Mapping[str, Callable[[Options], float]] = {
    "top_eigenvalues": lambda o: PRODUCT * (o["max_hvps"] or 8 * o["k"]) + 1,
    "hessian_trace": lambda o: PRODUCT * o["num_probes"] + 1,
    "spectral_density": lambda o: PRODUCT * o["num_probes"] * o["num_nodes"] + 1,
    "sharpness": _sharpness,
    "gradient_zscores": lambda _: 1,
    "perturbation": lambda _: 2 + 2 * FORWARD,
    "mask_overlap": lambda o: 2 * len(o["variants"]),
    "loss_slice": _slice,
    "loss_slice_eval": _slice,
    "loss_plane": lambda o: o["points"] * (o["beta_points"] or o["points"]) * FORWARD,
    "curvature_map": lambda o: o["points"] ** 2 * PRODUCT * min(o["max_hvps"], 60),
    "trajectory": lambda o: 4 * (o["grid"] * (1 + o["margin"])) ** 2 * FORWARD,
    "interpolation": lambda o: 2 * o["points"] * FORWARD,
    "perturbation_slice": lambda o: len(o["variants"]) * (2 + o["points"] * FORWARD),
    "crosscheck": lambda o: PRODUCT * o["num_probes"] + 40,
    "gauss_newton_eigenvalues": lambda o: PRODUCT * (o["max_hvps"] or 8 * o["k"]) + 1,
    "block_curvature": lambda o: PRODUCT * (o["num_probes"] + 15 * _BLOCKS) + 2,
    "hessian_diagonal": lambda o: PRODUCT * o["num_probes"] + 1,
    "frobenius": lambda o: PRODUCT * o["num_probes"] + 1,
    "adaptive_sharpness": lambda o: (
        len(o["rho"]) * (o["ascent_steps"] + 2 * o["num_pairs"] * FORWARD)
    ),
    "m_sharpness": lambda o: len(o["batch_sizes"]) * (1 + len(o["rho"]) * FORWARD),
    "critical_sharpness": lambda _: 1 + 20 * FORWARD,
    "minibatch_eigenvalues": lambda o: 2 * PRODUCT * 15 * o["k"],
    "data_bracket": lambda o: PRODUCT * 20 * (o["num_folds"] + 1 + o["num_subsets"]),
    "alignment": lambda o: 20 * o["k"] + 2 * len(o["variants"]),
    "enrichment": lambda o: 20 * o["k"] + PRODUCT * o["num_probes"] + 2 * len(o["variants"]),
    "batch_overlap": lambda o: 2 * len(o["variants"]) * (1 + o["num_batches"]),
    "perturbation_cosines": lambda o: 2 * len(o["variants"]),
    "perturbation_controls": lambda o: 2 + (6 + 4 * o["num_draws"]) * 2 * FORWARD,
    "gradient_noise": lambda _: 20,
    "features": lambda _: FORWARD,
}
# Forward passes over the whole of a split, counted as one over the training data.
OVER_DATA: Mapping[str, Callable[[Options], float]] = {
    "generalization": lambda _: 1,
    "memorization": lambda _: 1,
    "calibration": lambda _: 1,
    "margins": lambda _: 1,
    "robustness": lambda o: 21 + 5 * o["num_draws"],
}

# Over all runs of a setting, as the share of each; statistics re-estimated at each point.
ACROSS: Mapping[str, Callable[[Options, int], float]] = {
    "barrier": lambda o, runs: ((runs - 1) / 2 * (o["points"] - 1) + 1) * 2 * FORWARD,
    "bezier": lambda o, runs: (o["steps"] / 2 + 4 * o["points"] * FORWARD) / runs,
    "three_points": lambda o, runs: (
        (o["cells"] * (1 + 2 * o["margin"]) + 1) ** 2 * 2 * FORWARD / runs
    ),
}


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
    """

    rows: tuple[Row, ...]
    gradient_seconds: float
    num_examples: int
    workers: int
    memory: int
    recorded: int

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
            "rows": [row.__dict__ for row in self.rows],
        }

    def table(self) -> str:
        """For people."""
        lines = [f"{'':22}{'runs':>6}{'gradients':>12}{'CPU time':>14}"]
        for row in self.rows:
            name = row.name.replace("_", " ")
            lines.append(f"{name:22}{row.runs:6d}{row.gradients:12,.0f}{duration(row.seconds):>14}")
        workers = "1 worker" if self.workers == 1 else f"{self.workers} workers"
        lines.append(
            f"About {duration(self.seconds)} with {workers} and "
            f"{self.memory / MIB:,.0f} MiB of memory. A gradient over {self.num_examples} examples "
            f"takes {1000 * self.gradient_seconds:.3g} ms here."
        )
        if self.recorded:
            lines.append(f"The trainings record at most {self.recorded / 1e6:,.1f} MB.")
        return "\n".join(lines)


def estimate(study: Study, folder: Path, options: running.Options) -> Estimate:
    """Cost of everything that is still missing in `folder`, without doing any of it."""
    from landscape.study import bench

    device = running.resolve_device(options.device)
    place = StudyFolder(Path(folder).absolute())
    workers = running.worker_count(options, device)
    todo = [running.job_of(study, run, place, device, options, across=True) for run in study.runs]
    gradients: dict[str, list[float]] = {}
    probe, recorded = _Probe(todo[0]), 0
    for job in todo:
        train, missing = jobs.missing(job)
        if train:
            gradients.setdefault("training", []).append(probe.training(job.run))
            recorded += bench.recorded_bytes(job)
        for measurement, _ in missing:
            if measurement.name in ACROSS:
                count = sum(run.setting == job.run.setting for run in study.runs)
                cost = ACROSS[measurement.name](measurement.options, count)
            elif measurement.name in COSTS:
                cost = COSTS[measurement.name](measurement.options)
            elif measurement.name in OVER_DATA:
                passes = OVER_DATA[measurement.name](measurement.options)
                cost = passes * probe.num_data / probe.num_examples * FORWARD
            else:
                continue
            gradients.setdefault(measurement.name, []).append(cost)
    rows = tuple(
        Row(name, len(costs), sum(costs), sum(costs) * probe.seconds)
        for name, costs in gradients.items()
    )
    busy = max(1, min(workers, len(todo)))
    return Estimate(rows, probe.seconds, probe.num_examples, busy, busy * probe.memory, recorded)


class _Probe:
    """One gradient and one Hessian product on the first run's problem, timed and weighed."""

    def __init__(self, job: jobs.Job) -> None:
        import torch

        from landscape.study import bench

        data = bench.load_data(job.run.problem, job.base)
        self.num_train = len(data.train)
        parts = (data.train, data.val, data.test)
        self.num_data = sum(len(part) for part in parts if part is not None)
        risk = bench.Bench(job, trained=False).risk()
        self.num_examples = risk.num_examples
        threads = torch.get_num_threads()
        torch.set_num_threads(job.threads)
        try:
            risk.hvp(risk.theta, risk.theta)
            self.seconds = min(_seconds(risk.gradient, risk.theta) for _ in range(5))
        finally:
            torch.set_num_threads(threads)
        basis = 300 * risk.theta.numel() * risk.theta.element_size()  # vectors Lanczos may keep
        self.memory = _peak_bytes(job.device) + basis

    def training(self, run: Run) -> float:
        """Gradients over the fixed examples that a whole training equals."""
        return jobs.training_cost(run) * self.num_train / self.num_examples


def _seconds(work: Callable[..., Any], *arguments: Any) -> float:
    import torch

    began = time.perf_counter()
    work(*arguments)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - began


def _peak_bytes(device: str) -> int:
    import torch

    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
