"""Hessian products, top eigenvalues and traces: cost beside PyHessian and its successors.

    python -m venv peers
    peers/bin/pip install . scipy pyhessian==0.1 hessian-eigenthings==1.0.0a5 \
        curvlinops-for-pytorch==3.0.1
    OMP_NUM_THREADS=1 peers/bin/python -m benchmarks.curvature --case cnn --part top

Same network, weights, examples and threads for all; runs in turn, CPU time, paired ratios, one of
our runs listed twice as the A/A control. Each (case, part) is one entry of the JSON file, so that a
busy machine can be asked in short pieces. An eigenpair is right if its residual, in float64, is at
most 1e-3 of the largest eigenvalue and the value is one of the top k.
"""

import argparse
import copy
import json
import os
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.curvature_peers import PACKAGES, PEERS
from benchmarks.interleaved import (
    cpu_seconds,
    hardware,
    in_turn,
    milliseconds,
    paired_ratio,
    versions,
)
from landscape import EmpiricalRisk, measure, problems

RESULTS = Path(__file__).parent / "results" / "curvature-cpu.json"
CASES = {"cnn": (1, 8, 8), "resnet20": (3, 32, 32), "vit": (3, 32, 32)}
EQUAL = 1e-3  # residual over the largest eigenvalue at which costs are compared
K = 5


def problem(case: str, examples: int) -> tuple[nn.Module, Tensor, Tensor]:
    """A network after 30 steps on seeded images of ten noisy prototypes."""
    shape = CASES[case]
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


def make_risk(model: nn.Module, x: Tensor, y: Tensor) -> EmpiricalRisk:
    return EmpiricalRisk(model, nn.CrossEntropyLoss(), (x, y))


def products(model: nn.Module, x: Tensor, y: Tensor, rounds: int) -> dict[str, Any]:
    """One Hessian product, graph kept or not, and one gradient."""
    risk = make_risk(model, x, y)
    theta, exact = risk.theta, risk.with_dtype(torch.float64)
    v = torch.randn(theta.shape, generator=torch.Generator().manual_seed(1))
    kept = risk.linearized_hvp(theta)
    runs: dict[str, Callable[[], Any]] = {
        "landscape, graph kept": lambda: kept(v),
        "landscape, graph kept (A/A)": lambda: kept(v),
        "landscape, rebuilt": lambda: risk.hvp(theta, v),
        "landscape, gradient": lambda: risk.gradient(theta),
    }
    peers = {name: make(copy.deepcopy(model), x, y) for name, make in PEERS.items()}
    truth = exact.hvp(theta.double(), v.double())
    errors = {}
    for name, peer in peers.items():
        runs[name] = lambda peer=peer: peer.product(v)
        errors[name] = float((peer.product(v).double() - truth).norm() / truth.norm())
    errors["landscape"] = float((kept(v).double() - truth).norm() / truth.norm())
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
        "relative_error_to_float64": {name: float(f"{e:.2e}") for name, e in errors.items()},
    }


def _quiet(run: Callable[[], Any]) -> None:
    run()


def reference(model: nn.Module, x: Tensor, y: Tensor) -> tuple[EmpiricalRisk, Tensor]:
    """The risk in float64 and its top eigenvalues to 1e-8."""
    risk = make_risk(model, x, y).with_dtype(torch.float64)
    ds = measure.top_eigenvalues(risk, risk.theta, k=K, tolerance=1e-7, seed=9)
    return risk, torch.from_numpy(ds["eigenvalue"].values)


def judged(risk: EmpiricalRisk, truth: Tensor, values: Tensor, vectors: Tensor) -> dict[str, Any]:
    """Residuals in float64 and errors against the true top k, over the largest eigenvalue."""
    V = vectors.double()
    V = V / V.norm(dim=1, keepdim=True)
    residuals = (risk.hvp(risk.theta, V) - values[:, None] * V).norm(dim=1) / truth[0]
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
    values, vectors = (torch.from_numpy(ds[n].values) for n in ("eigenvalue", "eigenvector"))
    return values, vectors, parts


def eigenvalues(model: nn.Module, x: Tensor, y: Tensor, rounds: int) -> dict[str, Any]:
    """Top k end to end, by each package at its defaults and at the residual to compare at."""
    risk, truth = reference(model, x, y)

    def peer(name: str, **options: float) -> Callable[[], tuple[Any, ...]]:
        def run() -> tuple[Any, ...]:
            other = PEERS[name](copy.deepcopy(model), x, y)
            try:
                return other.top(K, **options)
            finally:
                other.close()

        return run

    bare = {"certify": "none", "failure_probability": 1.0}
    chosen: dict[str, Callable[[], tuple[Any, ...]]] = {
        "landscape": lambda: ours(model, x, y, {}),
        "landscape (A/A)": lambda: ours(model, x, y, {}),
        "landscape, residuals in float32": lambda: ours(model, x, y, {"certify": "none"}),
        "landscape, no search, float32": lambda: ours(model, x, y, bare),
        "pyhessian, defaults (tol 1e-3)": peer("pyhessian", tol=1e-3, most=100),
        "curvlinops + ARPACK, tol 1e-3": peer("curvlinops", tol=1e-3),
        "hessian-eigenthings, defaults": peer("hessian-eigenthings", steps=2 * K),
    }
    rows: dict[str, Any] = {}
    for name, first, factor in (("pyhessian", 1e-4, 0.1), ("hessian-eigenthings", 15, 5)):
        for i in range(4):
            value = first * factor**i if name == "pyhessian" else first + factor * i
            options = {"tol": value} if name == "pyhessian" else {"steps": value}
            run = peer(name, **options)
            found = judged(risk, truth, *run()[:2])
            if found["right"]:
                (option,) = options.items()
                chosen[f"{name}, {option[0]} {option[1]:.3g}"] = run
                break
        else:
            rows[f"{name}, right"] = f"not reached within 4 settings; the last: {found}"
    samples: dict[str, list[float]] = {name: [] for name in chosen}
    for i in range(rounds + 1):
        for name in list(chosen) if i % 2 else list(chosen)[::-1]:
            kept: list[Any] = []
            run = chosen[name]
            seconds = cpu_seconds(lambda run=run, kept=kept: kept.append(run()))
            if i:  # the first round warms up
                samples[name].append(seconds)
            elif name not in rows:
                values, vectors, count = kept[0]
                total = sum(count.values()) if isinstance(count, dict) else count
                rows[name] = judged(risk, truth, values, vectors) | {"hvps": total}
                if isinstance(count, dict):
                    rows[name] |= {"of_which": count}
    for name, row in samples.items():
        rows[name] |= {
            "cpu_seconds": round(statistics.median(row), 3),
            "over_landscape": paired_ratio(row, samples["landscape"]),
        }
    return {"eigenvalues": [round(float(value), 6) for value in truth], "runs": rows}


def traces(model: nn.Module, x: Tensor, y: Tensor, rounds: int) -> dict[str, Any]:
    """Twenty Hutchinson probes end to end; all use signs or normals, so errors are alike."""
    number = 20

    def landscape() -> None:
        risk = make_risk(model, x, y)
        measure.hessian_trace(risk, risk.theta, num_probes=number, seed=0)

    def peer(name: str) -> Callable[[], None]:
        def run() -> None:
            other = PEERS[name](copy.deepcopy(model), x, y)
            other.trace(number)
            other.close()

        return run

    runs = {"landscape": landscape, "landscape (A/A)": landscape}
    runs |= {name: peer(name) for name in PEERS}
    samples = {name: [] for name in runs}
    for i in range(rounds + 1):
        for name in list(runs) if i % 2 else list(runs)[::-1]:
            seconds = cpu_seconds(runs[name])
            if i:
                samples[name].append(seconds)
    return {
        "probes": number,
        "cpu_seconds": {name: round(statistics.median(row), 3) for name, row in samples.items()},
        "over_landscape": {
            name: paired_ratio(row, samples["landscape"])
            for name, row in samples.items()
            if name != "landscape"
        },
    }


PARTS = {"hvp": products, "top": eigenvalues, "trace": traces}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", choices=CASES, required=True)
    parser.add_argument("--part", choices=PARTS, required=True)
    parser.add_argument("--examples", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, default=RESULTS)
    asked = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    before = os.getloadavg()[0]
    with sdpa_kernel([SDPBackend.MATH]):
        model, x, y = problem(asked.case, asked.examples)
        entry = PARTS[asked.part](model, x, y, asked.rounds)
        entry |= {
            "parameters": sum(p.numel() for p in model.parameters()),
            "examples": asked.examples,
            "rounds": asked.rounds,
            "hardware": hardware(),
            "load_average": [round(before, 1), round(os.getloadavg()[0], 1)],
            "versions": versions(*PACKAGES),
        }
        table = json.loads(asked.out.read_text()) if asked.out.exists() else {}
        table[f"{asked.case}, {asked.part}"] = entry
        asked.out.parent.mkdir(parents=True, exist_ok=True)
        asked.out.write_text(json.dumps(table, indent=1, ensure_ascii=False) + "\n")
        print(json.dumps(entry, indent=1, ensure_ascii=False))


if __name__ == "__main__":
    main()
