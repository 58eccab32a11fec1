"""Time and memory against size, P from 10⁴ to 1.2·10⁸. `benchmarks/cost.py` predicts times.

    OMP_NUM_THREADS=1 python -m benchmarks.growth                  # every network, half an hour
    OMP_NUM_THREADS=1 python -m benchmarks.growth --network gpt2   # one, into the same file
    python -m benchmarks.growth --table                            # what the file holds

Gradient, Hessian product (graph kept), λ₁ (k = 1, residual 1e-3, certify="working", a basis of
six vectors, its search included), steps of SGD and SAM, and a recorded SAM step. CPU seconds on
one thread, the median of calls after one that is not counted; λ₁ once. Peaks are of the resident
set, in MB, libraries included: the risk's rows are one process in this order, the steps another.
Data are random: nothing here depends on what they are but the products that λ₁ takes.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import networks
from benchmarks.accelerator import CASES, Case, Decoder, steps
from benchmarks.interleaved import hardware, versions
from landscape import EmpiricalRisk, measure

RESULTS = Path(__file__).parent / "results" / "growth-cpu.json"
RISK, STEPS = ("gradient", "product", "lambda_1"), ("sgd_step", "sam_step", "recorded_sam_step")
TIMES = 3


def mlp() -> nn.Module:
    """A perceptron of 10 566 parameters on the mean of the colours."""
    return nn.Sequential(nn.AvgPool2d(4), nn.Flatten(), nn.Linear(192, 52), nn.Tanh(),
                         nn.Linear(52, 10))  # fmt: skip


NETWORKS = {
    "mlp": Case(mlp, 512),
    "cnn": Case(networks.cnn, 64),
    "resnet20": replace(CASES["resnet20"], examples=32),
    "vit": Case(networks.cifar_vit, 32),
    "gpt_2m": Case(lambda: Decoder(2048, 64, 192, 4, 4), 4, vocabulary=2048, length=64),
    "resnet18": replace(CASES["resnet18"], examples=4),
    "gpt_21m": Case(lambda: Decoder(8192, 64, 384, 10, 6), 4, vocabulary=8192, length=64),
    "wide_resnet_28_10": replace(CASES["wide_resnet_28_10"], examples=2),
    "gpt2": replace(CASES["gpt2"], examples=1, length=64),
}


def peak_mb() -> int:
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def cpu_seconds(call: Callable[[], Any], times: int = TIMES) -> float:
    """The median of calls, after one that is not counted."""
    call()
    taken = []
    for _ in range(times):
        began = time.process_time()
        call()
        taken.append(time.process_time() - began)
    return round(statistics.median(taken), 5)


def described(case: Case) -> dict[str, Any]:
    """Size and operations, counted."""
    model, (x, y) = case.model(), case.data()
    with FlopCounterMode(display=False) as counter:
        nn.functional.cross_entropy(model(x), y)
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "examples": case.examples,
        "tokens": case.examples * case.length,
        "modules": sum(1 for _ in model.modules()),
        "forward_flop": counter.get_total_flops(),
    }


def of_risk(case: Case) -> dict[str, Any]:
    """Gradient, product and λ₁ in this process, in this order."""
    rows: dict[str, Any] = {"imported": {"peak_mb": peak_mb()}}
    model, (x, y) = case.model(), case.data()
    began = time.process_time()
    risk = EmpiricalRisk(model, nn.CrossEntropyLoss(), (x, y), memory=2**28)
    theta = risk.theta
    rows["risk"] = {"cpu_seconds": round(time.process_time() - began, 3), "peak_mb": peak_mb()}
    rows["gradient"] = {"cpu_seconds": cpu_seconds(lambda: risk.gradient(theta))}
    rows["gradient"]["peak_mb"] = peak_mb()
    began = time.process_time()
    risk.probe()
    rows["probe"] = {"cpu_seconds": round(time.process_time() - began, 3), "peak_mb": peak_mb()}
    rows["product"] = {"cpu_seconds": _product(risk), "peak_mb": peak_mb()}
    began = time.process_time()
    found = measure.top_eigenvalues(
        risk, theta, k=1, tolerance=1e-3, certify="working", max_basis=6, seed=0
    )
    rows["lambda_1"] = {
        "cpu_seconds": round(time.process_time() - began, 3),
        "peak_mb": peak_mb(),
        "converged": bool(found["converged"].all()),
        "value": float(found["eigenvalue"][0]),
        "bound": float(found["bound"][0]),
        **{name: int(found[name]) for name in ("num_hvps", "search_hvps", "certificate_hvps")},
    }
    return rows


def _product(risk: EmpiricalRisk) -> float:
    kept = risk.linearized_hvp(risk.theta)
    v = torch.randn(len(risk.theta), generator=torch.Generator().manual_seed(1))
    return cpu_seconds(lambda: kept(v))


def of_steps(case: Case) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        made = steps(case.model(), case.data(), torch.device("cpu"), Path(folder))
        return {
            name: {"cpu_seconds": cpu_seconds(made[name]), "peak_mb": peak_mb()} for name in STEPS
        }


PARTS = {"described": described, "risk": of_risk, "steps": of_steps}


def part(network: str, name: str) -> dict[str, Any]:
    """A part in a process of its own."""
    call = [sys.executable, "-m", "benchmarks.growth", "--network", network, "--part", name]
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    if done.returncode:
        return {"failed": done.stderr.strip().splitlines()[-1:]}
    return json.loads(done.stdout.splitlines()[-1])


def markdown(table: dict[str, Any]) -> str:
    head = ["CPU s, peak MB", "P", "examples", *RISK, *STEPS]
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for name, each in table.items():
        tokens = f" x {each['tokens'] // each['examples']} tokens" if each["tokens"] else ""
        cells = [name, f"{each['parameters']:,}", f"{each['examples']}{tokens}"]
        for row in (*RISK, *STEPS):
            found = each["rows"].get(row)
            cells.append(f"{found['cpu_seconds']:.3g}, {found['peak_mb']}" if found else "")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", choices=NETWORKS)
    parser.add_argument("--part", choices=PARTS)
    parser.add_argument("--table", action="store_true")
    asked = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    if asked.part:
        torch.manual_seed(0)
        print(json.dumps(PARTS[asked.part](NETWORKS[asked.network])))
        return
    stored = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"networks": {}}
    table = stored["networks"]
    if not asked.table:
        for name in [asked.network] if asked.network else list(NETWORKS):
            before = os.getloadavg()[0]
            rows = part(name, "risk") | part(name, "steps")
            load = [round(before, 1), round(os.getloadavg()[0], 1)]
            table[name] = part(name, "described") | {"load_average": load, "rows": rows}
            stored |= {"machine": hardware(), "versions": versions()}
            stored["networks"] = {n: table[n] for n in NETWORKS if n in table}
            RESULTS.write_text(json.dumps(stored, indent=1, ensure_ascii=False) + "\n")
            print(name, "done", flush=True)
    print(markdown(stored["networks"]))


if __name__ == "__main__":
    main()
