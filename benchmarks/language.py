"""Five eigenvalues of a language model of 21 million parameters beside ARPACK written by hand.

    OMP_NUM_THREADS=1 python -m benchmarks.language --rounds 3   # every row in turn, ten minutes
    OMP_NUM_THREADS=1 python -m benchmarks.language --row arpack

4 sequences of 64 tokens, k = 5, residual 1e-3 of the largest. `arpack` is what a user writes: the
double backward of one kept graph under `scipy.sparse.linalg.eigsh`; it proves nothing and searches
for nothing. Ours is `measure.top_eigenvalues`, its probe of the derivatives included. A process a
row: CPU seconds on one thread, and the largest resident set in MB, model and libraries included.
ARPACK starts from a random vector of its own and takes 21 products or 32, whichever that asks for.
Rows of a round are in turn, the order reversed every round; `over_arpack` is the median of paired
ratios, and one of our rows is there twice, as the A/A control.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.accelerator import Decoder
from benchmarks.interleaved import hardware, paired_ratio, versions
from landscape import EmpiricalRisk, measure

RESULTS = Path(__file__).parent / "results" / "language-cpu.json"
VOCABULARY, TOKENS, EXAMPLES, K = 8192, 64, 4, 5


def problem() -> tuple[nn.Module, Tensor, Tensor]:
    """A decoder after eight steps of Adam on seeded tokens, the frequent ones more often."""
    torch.manual_seed(0)
    model = Decoder(VOCABULARY, TOKENS, 384, 10, 6)
    nn.init.normal_(model.tokens.weight, std=0.02)
    text = (torch.rand(EXAMPLES, TOKENS + 1) ** 3 * VOCABULARY).long()
    x, y = text[:, :-1].contiguous(), text[:, 1:].contiguous()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(8):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    optimizer.zero_grad()
    return model.eval(), x, y


def arpack() -> dict[str, Any]:
    model, x, y = problem()
    began, weights = time.process_time(), list(model.parameters())
    loss = nn.functional.cross_entropy(model(x), y)
    slopes = torch.autograd.grad(loss, weights, create_graph=True)
    gradient, calls = torch.cat([g.reshape(-1) for g in slopes]), [0]

    def product(v: np.ndarray) -> np.ndarray:
        calls[0] += 1
        given = torch.from_numpy(np.ascontiguousarray(v.ravel())).float()
        parts = torch.autograd.grad(gradient, weights, given, retain_graph=True)
        return torch.cat([part.reshape(-1) for part in parts]).numpy()

    operator = LinearOperator((len(gradient),) * 2, product, dtype="float32")
    values = eigsh(operator, k=K, which="LA", tol=1e-3)[0][::-1]
    return {
        "cpu_seconds": round(time.process_time() - began, 2),
        "products": calls[0],
        "eigenvalues": [round(float(value), 5) for value in values],
    }


def ours(**options: Any) -> Callable[[], dict[str, Any]]:
    def run() -> dict[str, Any]:
        risk = EmpiricalRisk(*_of(problem()))
        began = time.process_time()
        found = measure.top_eigenvalues(risk, risk.theta, k=K, tolerance=1e-3, seed=0, **options)
        return {
            "cpu_seconds": round(time.process_time() - began, 2),
            "products": int(found["num_hvps"]),
            "search": int(found["search_hvps"]),
            "proof": int(found["certificate_hvps"]),
            "converged": bool(found["converged"].all()),
            "complete": bool(found["complete"]),
            "worst_bound": float(f"{float((found['bound'] / found['eigenvalue'][0]).max()):.2e}"),
            "eigenvalues": [round(float(value), 5) for value in found["eigenvalue"]],
        }

    return run


def _of(made: tuple[nn.Module, Tensor, Tensor]) -> tuple[nn.Module, nn.Module, tuple]:
    return made[0], nn.CrossEntropyLoss(), made[1:]


ROWS: dict[str, Callable[[], dict[str, Any]]] = {
    "arpack": arpack,
    "landscape, certify working": ours(certify="working"),
    "landscape, certify working (A/A)": ours(certify="working"),
    "landscape, certify working, no search": ours(certify="working", search=False),
    "landscape, certify float64": ours(certify="float64"),
}


def separately(name: str) -> dict[str, Any]:
    """A row in a process of its own."""
    call = [sys.executable, "-m", "benchmarks.language", "--here", "--row", name]
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def in_rounds(rounds: int) -> dict[str, Any]:
    """All rows, in turn: the first round's numbers, and the times of every round."""
    rows: dict[str, Any] = {}
    times: dict[str, list[float]] = {name: [] for name in ROWS}
    products: dict[str, list[int]] = {name: [] for name in ROWS}
    for i in range(rounds):
        for name in list(ROWS)[::-1] if i % 2 else list(ROWS):
            row = separately(name)
            times[name].append(row.pop("cpu_seconds"))
            products[name].append(row.pop("products"))
            rows.setdefault(name, row)
            print(name, times[name][-1], flush=True)
    for name, row in rows.items():
        row |= {"cpu_seconds": times[name], "products": products[name]}
        row |= {"over_arpack": paired_ratio(times[name], times["arpack"])}
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--row", choices=ROWS, help="one row, printed alone")
    parser.add_argument("--here", action="store_true", help="the row in this process")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS)
    asked = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    if asked.here:
        with sdpa_kernel([SDPBackend.MATH]):
            found = ROWS[asked.row]()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps(found | {"peak_mb": round(peak)}))
        return
    if asked.row:
        print(json.dumps(separately(asked.row), indent=1))
        return
    before = os.getloadavg()[0]
    table = {"rows": in_rounds(asked.rounds), "machine": hardware(), "versions": versions("scipy")}
    table["load_average"] = [round(before, 1), round(os.getloadavg()[0], 1)]
    asked.out.write_text(json.dumps(table, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
