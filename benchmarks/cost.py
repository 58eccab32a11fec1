"""A cost model: what a gradient, a product, a point, a step take, told from the network alone.

    OMP_NUM_THREADS=1 python -m benchmarks.cost                 # measure, fit, predict: minutes
    python -m benchmarks.cost --table                           # what the file holds
    python -m benchmarks.cost --price --tflops 100 --tbs 2      # networks that nobody measured

seconds = a · FLOP + b · bytes + c · operations + d · P, counted in one gradient (forward and
backward pass) on torch's meta device, where nothing is computed. FLOP are those of convolutions and
matrix products, bytes what each operation reads and writes, as if nothing stayed in a cache, and P
the parameters, which norms and flat vectors pass over. Each kind of call has constants of its own,
at least 0, of least relative error over the networks `KNOWN`; the networks `HELD_OUT`, up to ten
times as many parameters, are then predicted. That these four counts are enough was chosen by the
held-out ratios, among five sets of them, and the perceptron of 1.1 M, which fitted worst, was moved
from the held-out networks to the known ones then. CPU seconds on one thread, the median of calls
after one that is not counted.

--price: seconds here by the constants, and for a device by its rates, one after the other: FLOP at
--tflops that it keeps up, bytes at --tbs terabytes a second, operations at --launch microseconds.
"""

import argparse
import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.optimize import nnls
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from benchmarks import networks
from benchmarks.accelerator import CASES, Case, Decoder, calls
from benchmarks.growth import cpu_seconds, mlp
from benchmarks.interleaved import hardware, versions
from landscape import problems
from landscape.problems.resnet import ResNet
from landscape.problems.vit import ViT

RESULTS = Path(__file__).parent / "results" / "cost-cpu.json"
ROWS = ("gradient", "product", "point", "sgd_step", "sam_step")
COUNTS = ("flop", "bytes", "operations", "parameters")
IMAGE = (3, 32, 32)


def wide_mlp() -> nn.Module:
    """A perceptron of 1.1 million parameters."""
    return nn.Sequential(nn.Flatten(), nn.Linear(3072, 320), nn.ReLU(), nn.Linear(320, 320),
                         nn.ReLU(), nn.Linear(320, 10))  # fmt: skip


def gpt_2m() -> nn.Module:
    return Decoder(2048, 64, 192, 4, 4)


KNOWN = {
    "mlp, 512 rows": Case(mlp, 512),
    "mlp, 2048 rows": Case(mlp, 2048),
    "cnn, 32 images": Case(networks.cnn, 32),
    "cnn, 64 images": Case(networks.cnn, 64),
    "resnet20, 8 images": replace(CASES["resnet20"], examples=8),
    "resnet20, 16 images": replace(CASES["resnet20"], examples=16),
    "vit of 0.3 M, 16 images": Case(networks.cifar_vit, 16),
    "vit of 0.3 M, 32 images": Case(networks.cifar_vit, 32),
    "gpt of 2 M, 2 x 64 tokens": Case(gpt_2m, 2, vocabulary=2048, length=64),
    "gpt of 2 M, 4 x 64 tokens": Case(gpt_2m, 4, vocabulary=2048, length=64),
    "mlp of 1.1 M, 1024 rows": Case(wide_mlp, 1024),
}
HELD_OUT = {
    "resnet20, 64 images": replace(CASES["resnet20"], examples=64),
    "wrn of 2.7 M, 8 images": Case(
        lambda: ResNet((2, 2, 2), (64, 128, 256), num_classes=10), 8
    ),
    "resnet18, 4 images": replace(CASES["resnet18"], examples=4),
    "vit_tiny of 5.4 M, 8 images": Case(
        lambda: problems.make_model("vit", num_classes=10, input_shape=IMAGE, seed=0), 8
    ),
    "gpt of 21 M, 4 x 64 tokens": Case(
        lambda: Decoder(8192, 64, 384, 10, 6), 4, vocabulary=8192, length=64
    ),
}  # fmt: skip
UNMEASURED = {
    "ResNet-50, 32 images of 224": (
        lambda: problems.make_model(
            "resnet50", num_classes=1000, input_shape=(3, 224, 224), seed=0
        ), (32, 3, 224, 224), 1000,
    ),
    "ViT-L/16, 32 images of 224": (
        lambda: ViT(image=(3, 224, 224), patch=16, dim=1024, depth=24, heads=16, num_classes=1000),
        (32, 3, 224, 224), 1000,
    ),
    "7 B decoder, 1 x 2048 tokens": (lambda: Decoder(32000, 2048, 4096, 34, 32), (1, 2048), 0),
}  # fmt: skip


class Counted(TorchDispatchMode):
    """What the operations in this context multiply, read and write."""

    def __init__(self) -> None:
        super().__init__()
        self.counts = dict.fromkeys(COUNTS[:3], 0.0)

    def __torch_dispatch__(self, func: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        told = [r.alias_info for r in func._schema.returns]
        if any(alias is not None and not alias.is_write for alias in told):
            return made  # a view
        packet, counts = func._overloadpacket, self.counts
        if packet in flop_registry:
            counts["flop"] += flop_registry[packet](*args, **(kwargs or {}), out_val=made)
        both = torch.utils._pytree.tree_leaves((args, kwargs, made))
        sizes = {id(x): x.numel() * x.element_size() for x in both if isinstance(x, torch.Tensor)}
        counts["bytes"] += sum(sizes.values())
        counts["operations"] += 1
        return made


def counted(make: Callable[[], nn.Module], x: torch.Tensor, y: torch.Tensor) -> dict[str, float]:
    """COUNTS of one gradient of the mean cross-entropy."""
    with torch.device("meta"):
        model, x, y = make(), x.to("meta"), y.to("meta")
    with Counted() as mode:
        nn.functional.cross_entropy(model(x), y).backward()
    return mode.counts | {"parameters": sum(p.numel() for p in model.parameters())}


def measured(case: Case, times: int) -> dict[str, float]:
    """CPU seconds of each row."""
    with tempfile.TemporaryDirectory() as folder:
        made = calls(case, torch.device("cpu"), Path(folder))
        return {row: cpu_seconds(made[row], times) for row in ROWS}


def fitted(table: dict[str, Any], row: str) -> np.ndarray:
    """Seconds of each of COUNTS, of least relative error over the known networks."""
    known = [table[name] for name in KNOWN]
    seconds = np.array([each["seconds"][row] for each in known])
    X = np.array([[each["counts"][c] for c in COUNTS] for each in known]) / seconds[:, None]
    scale = X.max(0)
    scale[scale == 0] = 1.0
    return nnls(X / scale, np.ones(len(X)))[0] / scale


def ratio(table: dict[str, Any], name: str, row: str) -> float:
    """Predicted over measured."""
    counts = np.array([table[name]["counts"][c] for c in COUNTS])
    return float(counts @ fitted(table, row)) / table[name]["seconds"][row]


def markdown(table: dict[str, Any]) -> str:
    lines = ["| measured s, predicted / measured | P | " + " | ".join(ROWS) + " |",
             "|" + " --- |" * (2 + len(ROWS))]  # fmt: skip
    for name in (*KNOWN, *HELD_OUT):
        each = table[name]
        cells = [f"{each['seconds'][row]:.3g}, {ratio(table, name, row):.2f}" for row in ROWS]
        kind = "" if name in KNOWN else " (held out)"
        lines.append(f"| {name}{kind} | {each['counts']['parameters']:,} | {' | '.join(cells)} |")
    held = {(name, row): ratio(table, name, row) for name in HELD_OUT for row in ROWS}
    outside = [f"{name}: {row} {r:.2f}" for (name, row), r in held.items() if abs(r - 1) > 0.3]
    lines += ["", f"Held out, {len(held) - len(outside)} of {len(held)} within 30 %. Outside: "
                  f"{'; '.join(outside) or 'none'}."]  # fmt: skip
    lines += ["", "| constants | " + " | ".join(ROWS) + " |", "|" + " --- |" * (1 + len(ROWS))]
    units = {"flop": "ns per kFLOP", "bytes": "ns per kB", "operations": "us each",
             "parameters": "ns per thousand"}  # fmt: skip
    of_rows = {row: fitted(table, row) for row in ROWS}
    for i, name in enumerate(COUNTS):
        by = 1e6 if name == "operations" else 1e12
        cells = [f"{by * of_rows[row][i]:.3g}" for row in ROWS]
        lines.append(f"| {name}, {units[name]} | {' | '.join(cells)} |")
    return "\n".join(lines)


def price(table: dict[str, Any], tflops: float, tbs: float, launch: float) -> str:
    """Networks that nobody measured: here by the constants, there by the device's rates."""
    there = np.array([1e-12 / tflops, 1e-12 / tbs, 1e-6 * launch])
    head = ["", "P", "TFLOP", "GB moved", "operations", *(f"{row} here" for row in ROWS),
            "gradient there", "FLOP's share of it", "weights, GB"]  # fmt: skip
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for name, (make, shape, classes) in UNMEASURED.items():
        if classes:
            x, y = torch.zeros(shape, device="meta"), torch.zeros(shape[0], device="meta").long()
        else:
            x = y = torch.zeros(shape, device="meta").long()
        counts = counted(make, x, y)
        v = np.array([counts[c] for c in COUNTS])
        here = [f"{float(v @ fitted(table, row)):.3g} s" for row in ROWS]
        each = v[:3] * there
        lines.append(
            f"| {name} | {counts['parameters']:,} | {v[0] / 1e12:.3g} | {v[1] / 1e9:.3g} | "
            f"{v[2]:.0f} | {' | '.join(here)} | {1e3 * each.sum():.3g} ms | "
            f"{each[0] / each.sum():.0%} | {4e-9 * counts['parameters']:.3g} |"
        )
    lines.append(
        f"\nThere: {tflops:g} TFLOP/s kept up, {tbs:g} TB/s, {launch:g} us an operation, nothing "
        f"fused and nothing at the same time. Here: an extrapolation from networks up to 2 million "
        f"parameters, which held-out ones test up to 21 million."
    )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--price", action="store_true")
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--tflops", type=float, default=100.0)
    parser.add_argument("--tbs", type=float, default=2.0)
    parser.add_argument("--launch", type=float, default=5.0)
    asked = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    if not (asked.table or asked.price):
        torch.manual_seed(0)
        stored: dict[str, Any] = {"machine": hardware(), "versions": versions(), "networks": {}}
        for name, case in (KNOWN | HELD_OUT).items():
            before = os.getloadavg()[0]
            seconds = measured(case, asked.times)
            stored["networks"][name] = {
                "counts": counted(case.model, *case.data()), "seconds": seconds,
                "load_average": round(before, 1), "times": asked.times,
            }  # fmt: skip
            print(name, "done", flush=True)
        RESULTS.write_text(json.dumps(stored, indent=1, ensure_ascii=False) + "\n")
    if not RESULTS.exists():
        raise SystemExit(f"{RESULTS} is not there; run python -m benchmarks.cost first.")
    table = json.loads(RESULTS.read_text())["networks"]
    print(price(table, asked.tflops, asked.tbs, asked.launch) if asked.price else markdown(table))


if __name__ == "__main__":
    main()
