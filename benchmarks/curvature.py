"""Hessian products, top eigenvalues, traces and densities: cost beside three other packages.

    python -m venv peers
    peers/bin/pip install torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu
    peers/bin/pip install -c constraints.txt . pyhessian==0.1 hessian-eigenthings==1.0.0a5 \
        curvlinops-for-pytorch==3.0.1
    OMP_NUM_THREADS=1 peers/bin/python -m benchmarks.curvature --case cnn --part top

Same network, weights, examples and threads for all; runs in turn, CPU time, paired ratios, one of
our runs listed twice as the A/A control. Each (case, part, N) is one entry of the JSON file, so
that a busy machine can be asked in short pieces; `--only` makes them shorter. An eigenpair is right
if its residual is at most 1e-3 of the largest eigenvalue and the value is one of the top k.
"""

import argparse
import copy
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks import networks
from benchmarks.curvature_peers import PACKAGES, PEERS
from benchmarks.interleaved import (
    cpu_seconds,
    hardware,
    in_turn,
    milliseconds,
    paired_ratio,
    versions,
)
from landscape import EmpiricalRisk, measure
from landscape.problems.resnet import resnet18, resnet20
from landscape.risk import _fitting

FOLDER = Path(__file__).parent / "results"
SHAPE = networks.SHAPE
EQUAL = 1e-3  # residual over the largest eigenvalue at which costs are compared
K = 5
GRAPHS = 4 * 2**30  # bytes for kept graphs, since two of the peers keep theirs whatever they take
DEVICE = torch.device("cpu")
BEGAN, SECONDS = time.perf_counter(), 120.0  # no round begins later than that: --seconds


CASES: dict[str, Callable[..., nn.Module]] = {
    "cnn": lambda **_: networks.cnn(),
    "resnet20": resnet20,
    "resnet18": resnet18,
    "vit": lambda **_: networks.cifar_vit(),
}


def problem(case: str, examples: int) -> tuple[nn.Module, Tensor, Tensor]:
    """A network after 30 steps on seeded images of ten noisy prototypes."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = CASES[case](num_classes=10, input_shape=SHAPE)
    source = torch.Generator().manual_seed(0)
    x, y = networks.noisy_prototypes(examples, source)
    networks.train_briefly(model, x, y, 30, source)
    return model.eval().to(DEVICE), x.to(DEVICE), y.to(DEVICE)


def make_risk(model: nn.Module, x: Tensor, y: Tensor, **options: Any) -> EmpiricalRisk:
    return EmpiricalRisk(model, nn.CrossEntropyLoss(), (x, y), **{"memory": GRAPHS} | options)


def products(model: nn.Module, x: Tensor, y: Tensor, rounds: int) -> dict[str, Any]:
    """One Hessian product, graph kept or not, and one gradient."""
    risk = make_risk(model, x, y)
    theta = risk.theta
    v = torch.randn(len(theta), generator=torch.Generator().manual_seed(1)).to(theta)
    kept = risk.linearized_hvp(theta)
    # A memory that two thirds of the graphs fit.
    half = make_risk(model, x, y, memory=int(graph_bytes(risk) * 2 / 3)).linearized_hvp(theta)
    runs: dict[str, Callable[[], Any]] = {
        "landscape, graph kept": lambda: kept(v),
        "landscape, graph kept (A/A)": lambda: kept(v),
        f"landscape, {half.num_kept / len(y):.0%} of the graph kept": lambda: half(v),
        "landscape, rebuilt": lambda: risk.hvp(theta, v),
        "landscape, gradient": lambda: risk.gradient(theta),
    }
    peers = {name: make(copy.deepcopy(model), x, y) for name, make in PEERS.items()}
    # Of few rows: float64 takes five times as long.
    few = slice(0, 16)
    small, truth = make_risk(model, x[few], y[few]), None
    truth = small.with_dtype(torch.float64).hvp(theta.double(), v.double())
    errors = {}
    for name, peer in peers.items():
        runs[name] = lambda peer=peer: peer.product(v)
        other = PEERS[name](copy.deepcopy(model), x[few], y[few])
        errors[name] = float((other.product(v).double() - truth).norm() / truth.norm())
        other.close()
    errors["landscape"] = float((small.hvp(theta, v).double() - truth).norm() / truth.norm())
    timed = {name: (lambda run=run: _quiet(run)) for name, run in runs.items()}
    samples = in_turn(timed, rounds=rounds, seconds=0.0)
    for peer in peers.values():
        peer.close()
    base = samples["landscape, graph kept"]
    return {
        "milliseconds": {name: milliseconds(row) for name, row in samples.items()},
        "kept_over": {
            name: paired_ratio(base, row) for name, row in samples.items() if row is not base
        },
        "graph_mib": round(graph_bytes(risk) / 2**20, 1),
        "relative_error_to_float64": {name: float(f"{e:.2e}") for name, e in errors.items()},
    }


def graph_bytes(risk: EmpiricalRisk) -> float:
    return _fitting.graph_bytes(risk._engine, risk.num_examples, order=2)


def _quiet(run: Callable[[], Any]) -> None:
    run()
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def judged(product: Any, truth: Tensor, values: Tensor, vectors: Tensor) -> dict[str, Any]:
    """Residuals by our product, and distance from the values that we certify, over the largest."""
    V = vectors.double().cpu()
    V = V / V.norm(dim=1, keepdim=True)
    HV = product(V.float().to(DEVICE)).double().cpu()
    residuals = (HV - values[:, None] * V).norm(dim=1) / truth[0]
    error = float((values.sort(descending=True).values - truth).abs().max() / truth[0])
    worst = float(residuals.max())
    return {
        "worst_residual": float(f"{worst:.2e}"),
        "worst_error": float(f"{error:.2e}"),
        "right": worst <= EQUAL and error <= EQUAL,
    }


def ours(model: nn.Module, x: Tensor, y: Tensor, options: dict[str, Any]) -> tuple[Any, ...]:
    risk = make_risk(model, x, y)
    ds = measure.top_eigenvalues(
        risk, risk.theta, k=K, return_vectors=True, seed=0, **{"tolerance": EQUAL, **options}
    )
    parts = {
        "search": int(ds["search_hvps"]),
        "certificate": int(ds["certificate_hvps"]),
    }
    parts["iteration"] = int(ds["num_hvps"]) - sum(parts.values())
    if not bool(ds["converged"].all()):
        raise RuntimeError(f"not converged: {parts}")
    values, vectors = (torch.from_numpy(ds[n].values) for n in ("eigenvalue", "eigenvector"))
    return values, vectors, parts


def eigenvalues(
    model: nn.Module, x: Tensor, y: Tensor, rounds: int, only: list[str]
) -> dict[str, Any]:
    """Top k end to end, by each package at its defaults and at the residual to compare at."""
    product, truth = None, torch.empty(0)

    def peer(name: str, **options: float) -> Callable[[], tuple[Any, ...]]:
        def run() -> tuple[Any, ...]:
            other = PEERS[name](copy.deepcopy(model), x, y)
            try:
                return other.top(K, **options)
            finally:
                other.close()

        return run

    def landscape(**options: Any) -> Callable[[], tuple[Any, ...]]:
        return lambda: ours(model, x, y, options)

    chosen: dict[str, Callable[[], tuple[Any, ...]]] = {
        "landscape": landscape(),
        "landscape (A/A)": landscape(),
        "landscape, certify working": landscape(certify="working"),
        "landscape, certify none": landscape(certify="none"),
        "landscape, certify none, no search": landscape(certify="none", failure_probability=1.0),
        "pyhessian, defaults (tol 1e-3)": peer("pyhessian", tol=1e-3, most=100),
        "curvlinops + ARPACK, tol 1e-3": peer("curvlinops", tol=1e-3),
        "hessian-eigenthings, defaults": peer("hessian-eigenthings", steps=2 * K),
    }
    for tol in (1e-4, 1e-5, 1e-6):
        chosen[f"pyhessian, tol {tol:.0e}"] = peer("pyhessian", tol=tol)
    for steps in (15, 20, 25, 30):
        chosen[f"hessian-eigenthings, {steps} steps"] = peer("hessian-eigenthings", steps=steps)
    if only:
        chosen = {n: run for n, run in chosen.items() if n == "landscape" or any(
            n.startswith(o) for o in only)}  # fmt: skip
    samples: dict[str, list[float]] = {name: [] for name in chosen}
    rows: dict[str, Any] = {}
    for i in range(rounds):
        if i and time.perf_counter() - BEGAN > SECONDS:
            break
        for name in list(chosen)[::-1] if i % 2 else list(chosen):
            kept: list[Any] = []
            run = chosen[name]
            samples[name].append(cpu_seconds(lambda run=run, kept=kept: kept.append(run())))
            if name not in rows:
                values, vectors, count = kept[0]
                if product is None:
                    risk = make_risk(model, x, y)
                    product, truth = risk.linearized_hvp(risk.theta), values
                total = sum(count.values()) if isinstance(count, dict) else count
                rows[name] = judged(product, truth, values, vectors) | {"hvps": total}
                if isinstance(count, dict):
                    rows[name] |= {"of_which": count}
    for name, row in samples.items():
        rows[name] |= {
            "cpu_seconds": [round(value, 3) for value in row],
            "over_landscape": paired_ratio(row, samples["landscape"]),
        }
    return {"eigenvalues": [round(float(value), 6) for value in truth], "runs": rows}


PROBES, NODES = 20, 30


def traces(model: nn.Module, x: Tensor, y: Tensor, rounds: int) -> dict[str, Any]:
    """Hutchinson probes end to end: all draw signs, so that a probe's deviation is the same."""

    def landscape() -> None:
        risk = make_risk(model, x, y)
        measure.hessian_trace(risk, risk.theta, num_probes=PROBES, seed=0)

    def plus() -> None:
        risk = make_risk(model, x, y)
        measure.hessian_trace(risk, risk.theta, num_probes=30, method="hutch++", seed=0)

    found = {
        method: measure.hessian_trace(
            risk := make_risk(model, x, y), risk.theta, num_probes=30, method=method, seed=1
        )
        for method in measure.curvature.TRACES
    }
    samples = _ended(model, x, y, landscape, "trace", rounds, {"landscape, Hutch++ of 30": plus})
    spread = float(found["hutchinson"]["trace_stderr"]) * 30**0.5
    value = float(found["hutchinson"]["trace"])
    # CPU time to a standard error of a twentieth of the trace, were all of it spent on probes.
    number = (spread / (0.05 * value)) ** 2
    seconds = {
        name: round(statistics.median(row) * number / PROBES, 2)
        for name, row in samples.items()
        if "Hutch++" not in name
    }
    return _summary(samples) | {
        "probes": PROBES,
        "sd_of_a_probe": round(spread, 3),
        "trace": round(value, 3),
        "stderr_of_hutch++_of_30": round(float(found["hutch++"]["trace_stderr"]), 3),
        "stderr_of_hutchinson_of_30": round(float(found["hutchinson"]["trace_stderr"]), 3),
        "cpu_seconds_to_stderr_of_5_percent": seconds,
    }


def densities(model: nn.Module, x: Tensor, y: Tensor, rounds: int) -> dict[str, Any]:
    """One probe of stochastic Lanczos quadrature: at equal cost a probe, equal errors."""

    def landscape() -> None:
        risk = make_risk(model, x, y)
        measure.spectral_density(risk, risk.theta, num_probes=1, num_nodes=NODES, seed=0)

    samples = _ended(model, x, y, landscape, "density", rounds, {})
    return _summary(samples) | {"probes": 1, "nodes": NODES}


def _ended(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    landscape: Callable[[], None],
    method: str,
    rounds: int,
    more: dict[str, Callable[[], None]],
) -> dict[str, list[float]]:
    """CPU seconds of a method of each package, object making included."""

    def peer(name: str) -> Callable[[], None]:
        def run() -> None:
            other = PEERS[name](copy.deepcopy(model), x, y)
            try:
                getattr(other, method)(PROBES if method == "trace" else NODES)
            finally:
                other.close()

        return run

    runs = {"landscape": landscape, "landscape (A/A)": landscape} | more
    runs |= {name: peer(name) for name in PEERS if hasattr(PEERS[name], method)}
    samples: dict[str, list[float]] = {name: [] for name in runs}
    for i in range(rounds):
        if i and time.perf_counter() - BEGAN > SECONDS:
            break
        for name in list(runs) if i % 2 else list(runs)[::-1]:
            samples[name].append(cpu_seconds(runs[name]))
    return samples


def _summary(samples: dict[str, list[float]]) -> dict[str, Any]:
    return {
        "cpu_seconds": {name: round(statistics.median(row), 3) for name, row in samples.items()},
        "over_landscape": {
            name: paired_ratio(row, samples["landscape"])
            for name, row in samples.items()
            if name != "landscape"
        },
    }


PARTS = {"hvp": products, "top": eigenvalues, "trace": traces, "density": densities}


def main() -> None:
    global DEVICE, SECONDS
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", choices=CASES, required=True)
    parser.add_argument("--part", choices=PARTS, required=True)
    parser.add_argument("--examples", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=SECONDS, help="no round begins later")
    parser.add_argument("--only", default="", help="part top: names that runs start with, by ;")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    DEVICE, SECONDS = torch.device(asked.device), asked.seconds
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    before = os.getloadavg()[0]
    with sdpa_kernel([SDPBackend.MATH]):
        model, x, y = problem(asked.case, asked.examples)
        options = {"only": [o for o in asked.only.split(";") if o]} if asked.part == "top" else {}
        entry = PARTS[asked.part](model, x, y, asked.rounds, **options)
    entry |= {
        "parameters": sum(p.numel() for p in model.parameters()),
        "examples": asked.examples,
        "rounds": asked.rounds,
        "hardware": hardware() | ({"gpu": torch.cuda.get_device_name()} if x.is_cuda else {}),
        "load_average": [round(before, 1), round(os.getloadavg()[0], 1)],
        "versions": versions(*PACKAGES),
    }
    out = asked.out or FOLDER / f"curvature-{DEVICE.type}.json"
    record(out, f"{asked.case}, {asked.part}, N={asked.examples}", entry)


def record(path: Path, key: str, entry: dict[str, Any]) -> None:
    """One entry of the JSON file; runs of an entry that was asked in pieces stay."""
    table = json.loads(path.read_text()) if path.exists() else {}
    old = table.get(key, {}).get("runs", {})
    if "runs" in entry:
        entry["runs"] = {n: r for n, r in old.items() if n not in entry["runs"]} | entry["runs"]
    table[key] = entry
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(table, indent=1, ensure_ascii=False) + "\n")
    print(json.dumps(entry, indent=1, ensure_ascii=False))


if __name__ == "__main__":
    main()
