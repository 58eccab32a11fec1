"""Compare costs on a machine that is not idle: paired runs in turn, CPU time, an A/A control."""

import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import numpy as np
import torch


def cpu_seconds(run: Callable[[], float | None], times: int = 1) -> float:
    """CPU seconds per call of `run`, less the seconds that it returns as not its own."""
    start, foreign = time.process_time(), 0.0
    for _ in range(times):
        foreign += run() or 0.0
    return (time.process_time() - start - foreign) / times


def calls_for(run: Callable[[], float | None], seconds: float) -> int:
    """How many calls take about `seconds`, warmed up."""
    for _ in range(3):
        run()
    return max(1, round(seconds / max(cpu_seconds(run, 2), 1e-6)))


def in_turn(
    runs: dict[str, Callable[[], float | None]], *, rounds: int, seconds: float = 0.05
) -> dict[str, list[float]]:
    """CPU seconds per call, one sample of each run per round, the order reversed every round."""
    times = {name: calls_for(run, seconds) for name, run in runs.items()}
    samples: dict[str, list[float]] = {name: [] for name in runs}
    for i in range(rounds):
        for name in list(runs) if i % 2 == 0 else list(runs)[::-1]:
            samples[name].append(cpu_seconds(runs[name], times[name]))
    return samples


def paired_ratio(a: list[float], b: list[float], *, resamples: int = 2000) -> dict[str, float]:
    """Median of a_i / b_i with its 95 % bootstrap interval over rounds."""
    ratios = np.array(a) / np.array(b)
    rng = np.random.default_rng(0)
    draws = rng.choice(ratios, size=(resamples, len(ratios)))
    low, high = np.quantile(np.median(draws, axis=1), [0.025, 0.975])
    return {
        "ratio": round(float(np.median(ratios)), 4),
        "low": round(float(low), 4),
        "high": round(float(high), 4),
        "n": len(ratios),
    }


def milliseconds(samples: list[float]) -> float:
    """Median in ms."""
    return round(1e3 * statistics.median(samples), 3)


def hardware() -> dict[str, object]:
    """What the numbers were measured on."""
    model = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = [x.split(":", 1) for x in info.read_text().splitlines() if ":" in x]
        fields = {k.strip(): v.strip() for k, v in lines}
        model = fields.get("model name", model)
        family, number = fields.get("cpu family"), fields.get("model")
        model = f"{model} (family {family}, model {number})" if family else model
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "system": f"{platform.system()} {platform.machine()}",
    }


def versions(*packages: str) -> dict[str, str]:
    """Versions of Python and of installed packages."""
    found = {"python": platform.python_version()}
    for package in ("torch", "numpy", *packages):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def commit_of(folder: str | Path, *options: str) -> str:
    """The commit of a clone; "unknown" without git or a repository: no result is lost by that."""
    call = ["git", "-C", str(folder), "rev-parse", *options, "HEAD"]
    try:
        done = subprocess.run(call, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()
