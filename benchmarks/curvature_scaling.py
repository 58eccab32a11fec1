"""What curvature costs against examples, parameters, pairs and processes, and in memory.

    OMP_NUM_THREADS=1 python -m benchmarks.curvature_scaling --part examples

parts: "examples" (N), "parameters" (P), "pairs" (k), "memory" (peak of ResNet-18, 11 M parameters,
top 5, with a bounded basis), "processes" (two gloo processes with half of the examples each),
"share" (of the peak of matrix products, loss and gradient of N / 8 and N examples).
"""

import argparse
import os
import resource
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import networks
from benchmarks.curvature import FOLDER, make_risk, problem, record
from benchmarks.interleaved import cpu_seconds, hardware, in_turn, versions
from benchmarks.surface import gemm_peak
from landscape import EmpiricalRisk, measure

K = 5
TOLERANCE = 1e-3


def row(risk: EmpiricalRisk, **options: Any) -> dict[str, Any]:
    """One search end to end: CPU seconds and products."""
    kept: list[Any] = []
    asked = {"k": K, "tolerance": TOLERANCE, "seed": 0} | options
    seconds = cpu_seconds(lambda: kept.append(measure.top_eigenvalues(risk, risk.theta, **asked)))
    ds = kept[0]
    counts = {n: int(ds[n]) for n in ("num_hvps", "certificate_hvps", "search_hvps")}
    return {
        "cpu_seconds": round(seconds, 3),
        **counts,
        "converged": bool(ds["converged"].all()),
    }


def against_examples(examples: int) -> dict[str, Any]:
    """CPU seconds against N, at the same weights: products do not grow, seconds do with N."""
    model, x, y = problem("cnn", examples)
    sizes = [examples // 8, examples // 4, examples // 2, examples]
    return {f"N={n}": row(make_risk(model, x[:n], y[:n])) for n in sizes}


def against_parameters(examples: int) -> dict[str, Any]:
    """Untrained MLPs on 3072 inputs, of width 32, 128, 512 (99 k to 1.8 M parameters)."""
    _, x, y = problem("cnn", examples)
    rows = {}
    for width in (32, 128, 512):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            layers = [nn.Flatten(), nn.Linear(3072, width), nn.Tanh(), nn.Linear(width, width),
                      nn.Tanh(), nn.Linear(width, 10)]  # fmt: skip
        risk = make_risk(nn.Sequential(*layers), x, y)
        rows[f"P={risk.layout.num_parameters}"] = row(risk)
    return rows


def against_pairs(examples: int) -> dict[str, Any]:
    """Products and seconds against k."""
    risk = make_risk(*problem("cnn", examples))
    return {f"k={k}": row(risk, k=k, max_hvps=600) for k in (1, 2, 5, 10, 20)}


def in_memory(examples: int) -> dict[str, Any]:
    """Peak resident memory of this process, which does nothing else."""
    model, x, y = problem("resnet18", max(64, examples))  # not yet learned by heart
    networks.settle_statistics(model, x, 20)
    risk = make_risk(model, x[:examples], y[:examples], memory=2**28)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = row(risk, max_basis=2 * K + 4, certify="float64", max_hvps=400)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "parameters": risk.layout.num_parameters,
        "examples": examples,
        "max_basis": 2 * K + 4,
        "peak_gib": round(peak / 2**20, 2),
        "peak_before_gib": round(before / 2**20, 2),
        **found,
    }


def over_processes(examples: int) -> dict[str, Any]:
    """CPU and wall seconds of a product: all examples here, or half of them in each of two."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    results = mp.get_context("spawn").SimpleQueue()
    mp.spawn(_share, args=(port, examples, results), nprocs=2, join=True)
    both = [results.get() for _ in range(2)]
    risk = make_risk(*problem("cnn", examples))
    alone = _timed(risk)
    return {
        "one process": alone,
        "each of two": both,
        "cpu_over_one": [round(r["cpu_seconds"] / alone["cpu_seconds"], 3) for r in both],
        "wall_over_one": [round(r["wall_seconds"] / alone["wall_seconds"], 3) for r in both],
    }


def _share(rank: int, port: int, examples: int, results: Any) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    model, x, y = problem("cnn", examples)
    half = slice(0, examples // 2) if rank == 0 else slice(examples // 2, examples)
    results.put(_timed(make_risk(model, x[half], y[half], distributed=True)))
    dist.destroy_process_group()


def _timed(risk: EmpiricalRisk, times: int = 5) -> dict[str, float]:
    product, v = risk.linearized_hvp(risk.theta), risk.theta
    product(v)
    wall = time.perf_counter()
    cpu = cpu_seconds(lambda: None if product(v) is None else 0.0, times)
    wall = (time.perf_counter() - wall) / times
    norm = float(product(v).double().norm())
    return {"cpu_seconds": round(cpu, 4), "wall_seconds": round(wall, 4), "product_norm": norm}


def share_of_gemm(examples: int) -> dict[str, Any]:
    """Operations a CPU-second over those of a 1024 x 1024 product, all timed in turn.

    Operations are those of plain torch; the quickest of seven rounds on both sides.
    """
    model, x, y = problem("cnn", examples)
    runs: dict[str, Callable[[], float | None]] = {}
    operations: dict[str, int] = {}
    for count in (examples // 8, examples):
        risk, part = make_risk(model, x[:count], y[:count]), (x[:count], y[:count])
        theta = risk.theta
        calls = {"loss": risk.loss, "gradient": risk.gradient}
        for name, call in calls.items():
            runs[f"{name}, N={count}"] = lambda call=call, theta=theta: call(theta) is None or 0.0
            operations[f"{name}, N={count}"] = _operations(model, *part, name == "gradient")
    samples = in_turn(runs, rounds=7, seconds=0.3)
    peak = max(gemm_peak() for _ in range(5))
    return {
        name: {
            "cpu_ms": round(1e3 * min(row), 2),
            "share": round(operations[name] / min(row) / peak, 3),
        }
        for name, row in samples.items()
    } | {"gemm_gflops": round(peak / 1e9, 1)}


def _operations(model: nn.Module, x: torch.Tensor, y: torch.Tensor, backward: bool) -> int:
    with FlopCounterMode(display=False) as counter:
        loss = nn.functional.cross_entropy(model(x), y)
        if backward:
            torch.autograd.grad(loss, list(model.parameters()))
    return counter.get_total_flops()


PARTS: dict[str, Callable[[int], dict[str, Any]]] = {
    "examples": against_examples,
    "parameters": against_parameters,
    "pairs": against_pairs,
    "memory": in_memory,
    "processes": over_processes,
    "share": share_of_gemm,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", choices=PARTS, required=True)
    parser.add_argument("--examples", type=int, default=512)
    parser.add_argument("--out", type=Path, default=FOLDER / "curvature-cpu.json")
    asked = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    before = os.getloadavg()[0]
    entry: dict[str, Any] = {"rows": PARTS[asked.part](asked.examples)}
    entry |= {
        "hardware": hardware(),
        "load_average": [round(before, 1), round(os.getloadavg()[0], 1)],
        "versions": versions(),
    }
    record(asked.out, f"scaling, {asked.part}", entry)


if __name__ == "__main__":
    main()
