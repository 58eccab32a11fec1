"""Loss, gradient and products of language models whose logits are larger than the models.

    OMP_NUM_THREADS=1 python -m benchmarks.vocabulary            # every row, some ten minutes
    OMP_NUM_THREADS=1 python -m benchmarks.vocabulary --row "32k, 2 x 1024, landscape"

A decoder of width 128 and two layers whose embedding is also the map to the logits. `dense` and
`chunks` are written by hand: torch's cross-entropy of all logits of the batch, and the same in
chunks of 128 tokens that `torch.utils.checkpoint` computes anew; their products are double backward
passes. `landscape` is `EmpiricalRisk` as it comes, checks included. One process a row: CPU seconds
of each value, on one thread, and what the peak of the resident set is above what it was when model
and data were there, in MB.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

from benchmarks.accelerator import Decoder
from benchmarks.interleaved import hardware, versions
from landscape import EmpiricalRisk

RESULTS = Path(__file__).parent / "results" / "vocabulary-cpu.json"
SIZES = {
    "32k, 2 x 1024": (32768, 2, 1024),
    "32k, 1 x 2048": (32768, 1, 2048),
    "128k, 4 x 256": (131072, 4, 256),
}
CHUNK = 128
Loss = Callable[[Decoder, Tensor, Tensor], Tensor]


def dense(model: Decoder, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(model(x), y)


def chunks(model: Decoder, x: Tensor, y: Tensor) -> Tensor:
    hidden = body(model, x).flatten(0, 1)

    def of_chunk(h: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(h @ model.tokens.weight.T, labels, reduction="sum")

    parts = zip(hidden.split(CHUNK), y.reshape(-1).split(CHUNK), strict=True)
    return sum(checkpoint(of_chunk, *part, use_reentrant=False) for part in parts) / y.numel()


def body(model: Decoder, tokens: Tensor) -> Tensor:
    """The decoder up to its hidden states."""
    x = model.tokens(tokens) + model.places[: tokens.shape[1]]
    mask = torch.full((x.shape[1],) * 2, -torch.inf).triu(1)
    for block in model.blocks:
        x = block(x, src_mask=mask)
    return model.norm(x)


def by_hand(loss: Loss, model: Decoder, x: Tensor, y: Tensor) -> Iterator[tuple[str, Tensor]]:
    weights = list(model.parameters())

    def flat(parts: Any) -> Tensor:
        return torch.cat([part.reshape(-1) for part in parts])

    with torch.no_grad():
        yield "loss", loss(model, x, y)
    yield "gradient", flat(torch.autograd.grad(loss(model, x, y), weights))
    gradient = torch.autograd.grad(loss(model, x, y), weights, create_graph=True)
    along = [w.detach() for w in weights]
    yield "hvp", flat(torch.autograd.grad(gradient, weights, along))


def ours(model: Decoder, x: Tensor, y: Tensor) -> Iterator[tuple[str, Tensor]]:
    risk = EmpiricalRisk(model, nn.CrossEntropyLoss(), (x, y))
    theta = risk.theta
    yield "made", theta
    yield "loss", risk.loss(theta)
    yield "gradient", risk.gradient(theta)
    risk.probe()
    yield "probe", theta
    yield "hvp", risk.hvp(theta, theta)
    yield "ggn", risk.linearized_ggn(theta)(theta)


WAYS = {
    "dense": lambda *of: by_hand(dense, *of),
    "chunks": lambda *of: by_hand(chunks, *of),
    "landscape": ours,
}
ROWS = {f"{size}, {way}": (size, way) for size in SIZES for way in WAYS}


def measured(name: str) -> dict[str, Any]:
    size, way = ROWS[name]
    vocabulary, rows, length = SIZES[size]
    torch.manual_seed(0)
    model = Decoder(vocabulary, length, 128, 2, 4)
    nn.init.normal_(model.tokens.weight, std=0.02)
    text = torch.randint(vocabulary, (rows, length + 1))
    model.eval()
    before, found = _peak(), {"logits_mb": round(rows * length * vocabulary * 4 / 2**20)}
    began = time.process_time()
    for what, value in WAYS[way](model, text[:, :-1].contiguous(), text[:, 1:].contiguous()):
        found |= {
            f"{what}_seconds": round(time.process_time() - began, 2),
            f"{what}_norm": f"{float(value.double().norm()):.8g}",
            f"{what}_peak_mb": round(_peak() - before),
        }
        print(json.dumps(found), flush=True)
        began = time.process_time()
    return found


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--row", choices=ROWS)
    parser.add_argument("--here", action="store_true", help="the row in this process")
    asked = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    if asked.here:
        with sdpa_kernel([SDPBackend.MATH]):
            measured(asked.row)
        return
    table = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"rows": {}}
    for name in [asked.row] if asked.row else list(ROWS):
        call = [sys.executable, "-m", "benchmarks.vocabulary", "--here", "--row", name]
        done = subprocess.run(call, capture_output=True, text=True, check=False)
        lines = done.stdout.splitlines() or ["{}"]
        table["rows"][name] = json.loads(lines[-1]) | {"ended_with": done.returncode}
        table |= {"machine": hardware(), "versions": versions()}
        RESULTS.write_text(json.dumps(table, indent=1, ensure_ascii=False) + "\n")
        print(name, table["rows"][name], flush=True)


if __name__ == "__main__":
    main()
