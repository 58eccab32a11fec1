"""Planes of the loss: points per CPU-second beside loss-landscapes and landscaper.

    python -m venv peers
    peers/bin/pip install . loss-landscapes==3.0.6
    peers/bin/pip install --no-deps landscaper==1.3.1
    peers/bin/pip install tqdm nglpy ghalton drawsvg coloraide gudhi topopy
    OMP_NUM_THREADS=1 peers/bin/python -m benchmarks.surface --case cnn

Same network, weights, examples, number of points and threads for all, BatchNorm frozen; runs in
turn, CPU time, paired ratios, one of our runs listed twice as the A/A control. The peers lay their
own grids around the model and return the loss alone; each is run on one batch and on batches of
128, and compared by the better of the two. Ours returns error rates and standard errors as well.
`adaptive` gives the evaluations that tolerance=0.01 takes on a 51 x 51 grid, and the share of all
its cells that keep it (--full evaluates that grid twice, once whole).
"""

import argparse
import contextlib
import copy
import importlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.interleaved import cpu_seconds, hardware, milliseconds, paired_ratio, versions
from landscape import EmpiricalRisk, measure, problems, results

RESULTS = Path(__file__).parent / "results" / "surface-cpu.json"
# Shape of an input, examples, points along an axis.
CASES = {
    "cnn": ((1, 8, 8), 1000, 9),
    "mlp": ((1, 8, 8), 1000, 21),
    "resnet20": ((3, 32, 32), 32, 9),
    "vit": ((3, 32, 32), 4, 9),
}
PACKAGES = ("loss-landscapes", "landscaper")


def problem(case: str) -> tuple[nn.Module, Tensor, Tensor]:
    """A network after 30 steps on seeded images of ten noisy prototypes."""
    shape, examples, _ = CASES[case]
    model = problems.make_model(case, num_classes=10, input_shape=shape, seed=0)
    source = torch.Generator().manual_seed(0)
    y = torch.randint(10, (examples,), generator=source)
    x = torch.randn(10, *shape, generator=source)[y] + torch.randn(
        examples, *shape, generator=source
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for _ in range(30):
        rows = torch.randint(examples, (32,), generator=source)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
        optimizer.step()
    optimizer.zero_grad()
    return model.eval(), x, y


def loss_of(model: Callable[[Tensor], Tensor], x: Tensor, y: Tensor, rows: int) -> float:
    """Mean loss over all examples, in batches of so many rows."""
    parts = [
        nn.functional.cross_entropy(model(a), b, reduction="sum").item()
        for a, b in zip(x.split(rows), y.split(rows), strict=True)
    ]
    return sum(parts) / len(x)


def loss_landscapes(
    model: nn.Module, x: Tensor, y: Tensor, *, rows: int, points: int
) -> Callable[[], None]:
    package = importlib.import_module("loss_landscapes")
    base = importlib.import_module("loss_landscapes.metrics.metric").Metric

    class Loss(base):
        def __call__(self, wrapper: Any) -> float:
            return loss_of(wrapper.forward, x, y, rows)

    own = copy.deepcopy(model)
    metric = Loss()
    return lambda: package.random_plane(
        own, metric, distance=1, steps=points, normalization="filter", deepcopy_model=True
    )


def landscaper(
    model: nn.Module, x: Tensor, y: Tensor, *, rows: int, points: int
) -> Callable[[], None]:
    package = importlib.import_module("landscaper.compute")
    own = copy.deepcopy(model)
    source = torch.Generator().manual_seed(1)
    axes = [[torch.randn(p.shape, generator=source) for p in own.parameters()] for _ in range(2)]

    def run() -> None:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            package.compute_loss_landscape(
                own, (x, y), axes, lambda m, d: loss_of(m, *d, rows), steps=points,
                distance=0.5, dim=2, device="cpu",
            )  # fmt: skip

    return run


PEERS = {"loss-landscapes": loss_landscapes, "landscaper": landscaper}


def ours(risk: EmpiricalRisk, **options: Any) -> Callable[[], Any]:
    call = {"bn": "eval", "seed": 0} | options
    return lambda: measure.loss_plane(risk, risk.theta, **call)


def grids(case: str, rounds: int) -> dict[str, Any]:
    """CPU time of a whole grid, all runs in turn, the order reversed every round."""
    model, x, y = problem(case)
    points = CASES[case][2]
    risk = EmpiricalRisk(model, nn.CrossEntropyLoss(), (x, y))
    runs = {name: ours(risk, points=points) for name in ("landscape", "landscape (A/A)")}
    runs["landscape, recalibrate"] = ours(risk, points=points, bn="recalibrate")
    missing = []
    for name, make in PEERS.items():
        try:
            for rows in sorted({len(x), min(128, len(x))}):
                runs[f"{name}, batches of {rows}"] = make(model, x, y, rows=rows, points=points)
        except ImportError as error:
            missing.append(f"{name}: not run ({error})")
    for run in runs.values():
        run()
    samples: dict[str, list[float]] = {name: [] for name in runs}
    for i in range(rounds):
        for name in list(runs) if i % 2 == 0 else list(runs)[::-1]:
            samples[name].append(cpu_seconds(lambda run=runs[name]: _quiet(run)))
    base = samples["landscape"]
    return {
        "examples": len(x),
        "points": points**2,
        "evaluation": results.provenance(runs["landscape"]())["evaluation"],
        "milliseconds_per_grid": {name: milliseconds(row) for name, row in samples.items()},
        "points_per_cpu_second": {
            name: round(1e3 * points**2 / milliseconds(row), 1) for name, row in samples.items()
        },
        "time_over_ours": {
            name: paired_ratio(row, base) for name, row in samples.items() if row is not base
        },
        "missing": missing,
    }


def _quiet(run: Callable[[], Any]) -> None:
    run()


def adaptive(case: str) -> dict[str, Any]:
    """What tolerance=0.01 costs and keeps on a 51 x 51 grid, against the same grid whole."""
    model, x, y = problem(case)
    risk = EmpiricalRisk(model, nn.CrossEntropyLoss(), (x[:256], y[:256]))
    whole = ours(risk, points=51)()
    part = ours(risk, points=51, tolerance=0.01)()
    off = np.abs(part.loss / whole.loss - 1).values
    found = results.provenance(part)
    return {
        "cells": found["cells"],
        "evaluated": found["evaluated_cells"],
        "saving": round(found["cells"] / found["evaluated_cells"], 2),
        "share_within_tolerance": round(float(np.mean(off <= 0.01)), 5),
        "worst_relative_error": float(f"{off.max():.2e}"),
        "loss_range": [float(f"{v:.3g}") for v in (whole.loss.min(), whole.loss.max())],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", choices=CASES, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--full", action="store_true", help="compare an adaptive 51 x 51 grid too")
    options = parser.parse_args()
    torch.set_num_threads(1)
    entry = {"grid": grids(options.case, options.rounds)}
    if options.full:
        entry["adaptive"] = adaptive(options.case)
    found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    found["hardware"], found["versions"] = hardware(), versions(*PACKAGES)
    found.setdefault("cases", {})[options.case] = entry
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
    print(json.dumps(entry, indent=1))


if __name__ == "__main__":
    main()
