"""Five eigenvalues of a language model of 21 million parameters beside ARPACK written by hand.

    OMP_NUM_THREADS=1 python -m benchmarks.language            # every row, some five minutes
    OMP_NUM_THREADS=1 python -m benchmarks.language --row arpack

4 sequences of 64 tokens, k = 5, residual 1e-3 of the largest. `arpack` is what a user writes: the
double backward of one kept graph under `scipy.sparse.linalg.eigsh`; it proves nothing and searches
for nothing. Ours is `measure.top_eigenvalues`, its probe of the derivatives included. A process a
row: CPU seconds on one thread, and the largest resident set in MB, model and libraries included.
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
from benchmarks.interleaved import hardware, versions
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
    "landscape, certify working, no search": ours(certify="working", search=False),
    "landscape, certify float64": ours(certify="float64"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--row", choices=ROWS)
    parser.add_argument("--here", action="store_true", help="the row in this process")
    asked = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    if asked.here:
        with sdpa_kernel([SDPBackend.MATH]):
            found = ROWS[asked.row]()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps(found | {"peak_mb": round(peak)}))
        return
    table = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"rows": {}}
    for name in [asked.row] if asked.row else list(ROWS):
        before = os.getloadavg()[0]
        call = [sys.executable, "-m", "benchmarks.language", "--here", "--row", name]
        done = subprocess.run(call, capture_output=True, text=True, check=True)
        load = [round(before, 1), round(os.getloadavg()[0], 1)]
        table["rows"][name] = json.loads(done.stdout.splitlines()[-1]) | {"load_average": load}
        table |= {"machine": hardware(), "versions": versions("scipy")}
        RESULTS.write_text(json.dumps(table, indent=1, ensure_ascii=False) + "\n")
        print(name, table["rows"][name], flush=True)


if __name__ == "__main__":
    main()
