"""Numbers and peak memory of a model that two processes hold in halves, beside one process.

    OMP_NUM_THREADS=1 python -m benchmarks.sharded            # about two minutes, 2 GB

A causal transformer of 7.9 million parameters in float32, sharded block by block with fully_shard
over two gloo processes on this machine, and the same one whole in one process. Of every quantity:
the relative difference between both, and the memory that it needs at most in a process beside what
the process held before the model was made (the resident set's peak, which Linux counts anew when it
is asked to), as a multiple of the whole model's weights.
"""

import argparse
import json
import os
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.interleaved import hardware, versions
from landscape import EmpiricalRisk, measure
from landscape.sharding import ShardedVector, wholes

RESULTS = Path(__file__).parent / "results" / "sharded-cpu.json"
VOCABULARY, WIDTH, BLOCKS, HEADS, TOKENS, ROWS = 2000, 384, 4, 6, 8, 2


class Block(nn.Module):
    """Attention and a feed-forward layer, each behind a LayerNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.qkv(self.first(x)).chunk(3, -1)
        q, k, v = (t.unflatten(-1, (HEADS, -1)).transpose(1, 2) for t in parts)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.second(x))))


class Transformer(nn.Module):
    """Embedding, blocks, and the embedding again as the last layer."""

    def __init__(self, shard: Callable[[nn.Module], Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        nn.init.normal_(self.embed.weight, std=0.05)
        blocks = []
        for _ in range(BLOCKS):  # each is cut before the next is made: none is whole for long
            blocks.append(Block())
            shard(blocks[-1])
        self.blocks, self.norm = nn.Sequential(*blocks), nn.LayerNorm(WIDTH)
        shard(self)

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.norm(self.blocks(self.embed(tokens)))
        return F.linear(hidden, self.embed.weight).transpose(1, 2)


def _resident(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith(field)))


def _peak(call: Callable[[], Any], before: int) -> tuple[Any, int, float]:
    Path("/proc/self/clear_refs").write_text("5")
    start = time.perf_counter()
    found = call()
    return found, _resident("VmHWM") - before, time.perf_counter() - start


def _pieces(vector: Tensor) -> list[Tensor]:
    """Of a vector (P,) one tensor after another, gathered: what is compared."""
    return [torch.cat([part.detach().reshape(-1) for part in wholes(vector)]).double()]


def _warm(shard: Callable[[nn.Module], Any]) -> None:
    """What is loaded at the first use of anything is no part of a measurement's memory."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3))
    shard(model)
    risk = EmpiricalRisk(model, nn.CrossEntropyLoss(), (torch.ones(4, 4), torch.arange(4) % 3))
    measure.top_eigenvalues(risk, risk.theta, k=1, seed=0)


def measured(shard: Callable[[nn.Module], Any]) -> dict[str, Any]:
    """{quantity: (values, peak bytes, seconds)} in this process."""
    source = torch.Generator().manual_seed(1)
    data = tuple(torch.randint(VOCABULARY, (ROWS, TOKENS), generator=source) for _ in range(2))
    _warm(shard)
    before, rows = _resident("VmRSS"), {}

    def row(name: str, call: Callable[[], Any]) -> Any:
        found, peak, seconds = _peak(call, before)
        rows[name] = {"peak": peak, "seconds": round(seconds, 2)}
        return found

    model = row("model made", lambda: Transformer(shard))
    risk = row("risk made", lambda: EmpiricalRisk(model, nn.CrossEntropyLoss(), data))
    theta = risk.theta
    loss = row("loss", lambda: risk.loss(theta))
    gradient = row("gradient", lambda: risk.gradient(theta))
    row("probe of the derivatives (once)", risk.probe)
    product = row("Hessian product", lambda: risk.hvp(theta, gradient))
    options = {"tolerance": 1e-2, "certify": "none", "failure_probability": 1.0, "max_basis": 8}
    top = row("λ₁ by 8 vectors", lambda: measure.top_eigenvalues(
        risk, theta, k=1, seed=0, **options))  # fmt: skip
    values = {
        "loss": [loss.double().reshape(1)],
        "gradient": _pieces(gradient),
        "Hessian product": _pieces(product),
        "λ₁ by 8 vectors": [torch.tensor(top["eigenvalue"].values)],
    }
    return {
        "rows": rows,
        "values": values,
        "parameters": risk.layout.num_parameters,
        "here": theta.here.numel() if isinstance(theta, ShardedVector) else theta.numel(),
        "bound": float(top["bound"][0]),
    }


def _process(rank: int, port: int, out: str) -> None:
    torch.set_num_threads(1)
    if port:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        dist.init_process_group("gloo", rank=rank, world_size=2)
        mesh = init_device_mesh("cpu", (2,))
        found = measured(lambda module: fully_shard(module, mesh=mesh))
        dist.barrier()
    else:
        found = measured(lambda module: module)
    torch.save(found, f"{out}/{port != 0}-{rank}.pt")
    if port:
        dist.barrier()
        dist.destroy_process_group()


def _run(processes: int, out: str) -> list[dict[str, Any]]:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1] if processes > 1 else 0
    mp.spawn(_process, args=(port, out), nprocs=processes, join=True)
    files = [f"{out}/{port != 0}-{rank}.pt" for rank in range(processes)]
    return [torch.load(file, weights_only=False) for file in files]


def _apart(a: list[Tensor], b: list[Tensor]) -> float:
    off = sum(float((x - y).square().sum()) for x, y in zip(a, b, strict=True))
    return (off / sum(float(y.square().sum()) for y in b)) ** 0.5


def main() -> None:
    """Run both, print the table, write the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=RESULTS)
    out = parser.parse_args().out
    # What is freed goes back to the system at once, so that a peak is of one quantity alone.
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "65536"
    with tempfile.TemporaryDirectory() as folder:
        (alone,), halves = _run(1, folder), _run(2, folder)
    weights = 4 * alone["parameters"]
    table = []
    for name, row in alone["rows"].items():
        off = None
        if name in alone["values"]:
            off = max(_apart(half["values"][name], alone["values"][name]) for half in halves)
        peaks = [half["rows"][name]["peak"] / weights for half in halves]
        table.append(
            {
                "quantity": name,
                "difference": off,
                "peak_alone": round(row["peak"] / weights, 2),
                "peak_of_two": [round(peak, 2) for peak in peaks],
                "seconds_alone": row["seconds"],
                "seconds_of_two": [half["rows"][name]["seconds"] for half in halves],
            }
        )
        apart = "" if off is None else f"{off:.1e}"
        print(
            f"{name:32s} {apart:8s} {row['peak'] / weights:6.2f} {max(peaks):6.2f}   "
            f"{row['seconds']:6.1f} s {halves[0]['rows'][name]['seconds']:6.1f} s"
        )
    found = {
        "parameters": alone["parameters"],
        "elements_in_each": [half["here"] for half in halves],
        "bounds_of_the_eigenvalue": [alone["bound"], *(half["bound"] for half in halves)],
        "weights_bytes": weights,
        "rows": table,
        "hardware": hardware(),
        "versions": versions(),
        "command": "python -m benchmarks.sharded",
    }
    out.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    sys.exit(main())
