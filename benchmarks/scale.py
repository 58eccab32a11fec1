"""Time and peak memory of the measurements of perturbations on networks of 11 to 36 million.

    OMP_NUM_THREADS=1 python -m benchmarks.scale                 # everything, about 15 minutes
    OMP_NUM_THREADS=1 python -m benchmarks.scale --network vit_s --only "features;margins"
    OMP_NUM_THREADS=1 python -m benchmarks.scale --masks         # 200 mask snapshots alone
    OMP_NUM_THREADS=1 python -m benchmarks.scale --stream        # one tensor of 10^8 alone
    OMP_NUM_THREADS=1 python -m benchmarks.scale --excess        # in plain gradients, 5 minutes

Every cell is a process of its own: CPU seconds of the call on one thread, and the largest resident
set of the process (ru_maxrss), libraries, network and its gradient included. `setup` does nothing
but build the network and take one gradient. Inputs are 8 seeded 3x32x32 images, batches are of 4;
times are proportional to that, memory hardly. The 200 mask snapshots are those of `recorder.py`,
which compares all their pairs.

`--excess` tells how far gradient, Hessian product, z-scores and overlap of masks of WRN-28-10 are
above what their method must cost: in units of a gradient that is taken by hand in plain torch over
the same batches, in turn with it in one process, and the peaks in processes of their own.
"""

import argparse
import functools
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.interleaved import cpu_seconds, hardware, paired_ratio, versions
from benchmarks.recorder import LAGS, write_masks
from landscape import EmpiricalRisk, measure, problems, sam, snapshots
from landscape.problems.resnet import ResNet
from landscape.problems.vit import ViT
from landscape.streams import ValueHistogram

RESULTS = Path(__file__).parent / "results" / "scale-cpu.json"
SHAPE, EXAMPLES, BATCH = (3, 32, 32), 8, 4


def wide(seed: int = 0) -> nn.Module:
    """A wide residual network, depth 28 and width 10 (arXiv:1605.07146), with our blocks."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ResNet((4, 4, 4), (160, 320, 640), num_classes=10)


def vit_s(seed: int = 0) -> nn.Module:
    """ViT-S (arXiv:2012.12877) with patches of 4."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ViT(image=SHAPE, patch=4, dim=384, depth=12, heads=6, num_classes=10)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "resnet18": lambda: problems.make_model("resnet18", num_classes=10, input_shape=SHAPE, seed=0),
    "wide_resnet_28_10": wide,
    "vit_s": vit_s,
}
VARIANTS = {
    "zsharp": sam.zsharp(rho=0.05),
    "topk_gradient": sam.topk_gradient(rho=0.05),
    "ssam_f": sam.ssam_f(rho=0.05, num_samples=8),
    "random_mask": sam.random_mask(rho=0.05),
}
FEW = {name: VARIANTS[name] for name in ("zsharp", "random_mask")}

Call = Callable[[EmpiricalRisk], Any]
MEASUREMENTS: dict[str, Call] = {
    "setup": lambda r: r.gradient(r.theta),
    "gradient_zscores": lambda r: measure.gradient_zscores(r, r.theta),
    "gradient_zscores, streamed": lambda r: measure.gradient_zscores(r, r.theta, exact_up_to=1024),
    "gradient_zscores, 2 mini-batches": lambda r: measure.gradient_zscores(
        r, r.theta, source="mini-batch", batch_size=BATCH, num_batches=2
    ),
    "perturbation": lambda r: measure.perturbation(
        r, r.theta, variant=VARIANTS["zsharp"], batch_size=BATCH, seed=0
    ),
    "perturbation_controls": lambda r: measure.perturbation_controls(
        r, r.theta, variant=VARIANTS["zsharp"], num_draws=2, batch_size=BATCH, seed=0
    ),
    "perturbation_cosines, 4 variants": lambda r: measure.perturbation_cosines(
        r, r.theta, variants=VARIANTS, batch_size=BATCH, seed=0
    ),
    "mask_overlap, 4 variants": lambda r: measure.mask_overlap(
        r, r.theta, variants=VARIANTS, batch_size=BATCH, seed=0
    ),
    "batch_overlap, 2 variants": lambda r: measure.batch_overlap(
        r, r.theta, variants=FEW, batch_size=BATCH, num_batches=2, seed=0
    ),
    "enrichment, 2 variants, k=1": lambda r: measure.enrichment(
        r, r.theta, variants=FEW, k=1, num_probes=2, fisher_examples=4, batch_size=BATCH, seed=0
    ),
    "gradient_noise": lambda r: measure.gradient_noise(r, r.theta, batch_size=BATCH, seed=0),
    "calibration": lambda r: measure.calibration(r, r.theta),
    "features": lambda r: measure.features(r, r.theta, seed=0),
    "margins": lambda r: measure.margins(r, r.theta),
    "memorization": lambda r: measure.memorization(r, r.theta, clean_targets=r.targets),
    "norms": lambda r: measure.norms(r, r.theta, initial=r.theta),
    "robustness, 2 draws": lambda r: measure.robustness(r, r.theta, num_draws=2, seed=0),
}


def risk_of(network: str) -> EmpiricalRisk:
    """The network's risk on seeded images."""
    return EmpiricalRisk(NETWORKS[network](), nn.CrossEntropyLoss(), images(), batch_size=BATCH)


def images() -> tuple[torch.Tensor, torch.Tensor]:
    """Seeded images and labels."""
    source = torch.Generator().manual_seed(0)
    x = torch.randn(EXAMPLES, *SHAPE, generator=source)
    return x, torch.randint(10, (EXAMPLES,), generator=source)


def peak() -> float:
    """Largest resident set of this process, MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def cell(network: str, name: str) -> dict[str, float]:
    """One measurement, in this process."""
    risk = risk_of(network)
    start, wall = time.process_time(), time.perf_counter()
    MEASUREMENTS[name](risk)
    return {
        "cpu_seconds": round(time.process_time() - start, 2),
        "wall_seconds": round(time.perf_counter() - wall, 2),
        "peak_mb": round(peak()),
    }


# --- excess over plain torch ------------------------------------------------------------------

THREE = {name: VARIANTS[name] for name in ("zsharp", "topk_gradient", "random_mask")}
EXCESS: dict[str, Call] = {
    "gradient": lambda r: r.gradient(r.theta),
    "product": lambda r: r.hvp(r.theta, r.theta),
    "gradient_zscores": MEASUREMENTS["gradient_zscores"],
    "mask_overlap, 3 variants": lambda r: measure.mask_overlap(
        r, r.theta, variants=THREE, batch_size=EXAMPLES, seed=0
    ),
}


class Plain:
    """Gradient and Hessian product by hand, over the batches of `risk_of` in evaluation mode."""

    def __init__(self, network: str) -> None:
        self.model = NETWORKS[network]().eval()
        self.weights = list(self.model.parameters())
        x, y = images()
        self.batches = list(zip(x.split(BATCH), y.split(BATCH), strict=True))

    def _losses(self) -> Iterator[torch.Tensor]:
        for x, y in self.batches:
            yield nn.functional.cross_entropy(self.model(x), y, reduction="sum") / EXAMPLES

    def gradient(self) -> None:
        """∇L into `.grad`."""
        self.model.zero_grad()
        for loss in self._losses():
            loss.backward()

    def product(self) -> None:
        """∇²L·θ by a reverse pass over the graph of the gradient."""
        total: list[torch.Tensor] | None = None
        v = [w.detach() for w in self.weights]
        for loss in self._losses():
            slopes = torch.autograd.grad(loss, self.weights, create_graph=True)
            found = torch.autograd.grad(slopes, self.weights, v, materialize_grads=True)
            total = list(found) if total is None else torch._foreach_add(total, found)


# What is timed in one process: of second order apart, whose first call takes a probe.
ORDERS = {"first": tuple(name for name in EXCESS if name != "product"), "second": ("product",)}


def excess_times(network: str, order: str, rounds: int) -> dict[str, Any]:
    """CPU time of each call over that of a plain gradient in the same round."""
    plain, risk = Plain(network), risk_of(network)
    runs: dict[str, Callable[[], Any]] = {
        "plain gradient": plain.gradient,
        f"control_a_a, {order} order": plain.gradient,
        **({"plain product": plain.product} if order == "second" else {}),
        **{name: functools.partial(EXCESS[name], risk) for name in ORDERS[order]},
    }
    samples: dict[str, list[float]] = {name: [] for name in runs}
    for i in range(-1, rounds):  # the first warms up
        for name in list(runs) if i % 2 == 0 else list(runs)[::-1]:
            seconds = cpu_seconds(lambda run=runs[name]: discarded(run()))
            samples[name] += [seconds] if i >= 0 else []
    unit = samples.pop("plain gradient")
    ratios = {name: paired_ratio(each, unit) for name, each in samples.items()}
    return {
        f"plain_gradient_cpu_seconds, {order} order": round(statistics.median(unit), 3),
        **ratios,
    }


def discarded(_: Any) -> None:
    """Nothing: what a call returns is no time to be taken off."""


def excess_peak(network: str, name: str) -> dict[str, float]:
    """Largest resident set of one call, in this process; libraries and network included."""
    if name in EXCESS:
        EXCESS[name](risk_of(network))
    else:
        getattr(Plain(network), name.removeprefix("plain "))()
    return {"peak_mb": round(peak())}


def excess(network: str, rounds: int) -> dict[str, Any]:
    """The times, and the peak of each call."""
    table: dict[str, Any] = {}
    for order in ORDERS:
        table |= separately("--network", network, "--excess-cell", order, "--rounds", str(rounds))
    for name in ("plain gradient", "plain product", *EXCESS):
        row = separately("--network", network, "--excess-cell", name)
        table[name] = {**table.get(name, {}), **row}
    return table


# --- 200 masks --------------------------------------------------------------------------------

MASKS: dict[str, Callable[[snapshots.MaskSeries], Any]] = {
    "read_masks": len,
    "mask_persistence, 7 lags": lambda series: measure.mask_persistence(series, lags=LAGS),
    "mask_selection": measure.mask_selection,
}


def masks_cell(name: str, folder: Path) -> dict[str, float]:
    """One use of the 200 snapshots, in this process."""
    start, wall = time.process_time(), time.perf_counter()
    MASKS[name](snapshots.read_masks(folder))
    return {
        "cpu_seconds": round(time.process_time() - start, 2),
        "wall_seconds": round(time.perf_counter() - wall, 2),
        "peak_mb": round(peak()),
    }


def stream_cell() -> dict[str, float]:
    """A tensor of 10^8 elements through one `ValueHistogram`, in this process."""
    x = torch.randn(10**8, generator=torch.Generator().manual_seed(0))
    before, start = peak(), time.process_time()
    found = ValueHistogram.of(x)
    return {
        "cpu_seconds": round(time.process_time() - start, 2),
        "mb_beyond_the_tensor": round(peak() - before),
        "bins": len(found.codes),
    }


# --- tables -----------------------------------------------------------------------------------


def separately(*arguments: str) -> dict[str, Any]:
    """What another process of this module prints."""
    command = [sys.executable, "-m", "benchmarks.scale", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def masks_table() -> dict[str, Any]:
    """Every use of the 200 snapshots."""
    with tempfile.TemporaryDirectory() as folder:
        write_masks(Path(folder))
        return {name: separately("--masks-cell", name, "--folder", folder) for name in MASKS}


def keep(name: str, table: dict[str, Any]) -> None:
    """Put one table into the results file, beside those that are there."""
    known = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    known |= {"machine": hardware(), "versions": versions(), "examples": EXAMPLES, "batch": BATCH}
    known[name] = {**known.get(name, {}), **table}
    RESULTS.write_text(json.dumps(known, indent=1, ensure_ascii=False) + "\n")


def markdown() -> str:
    """The results file as a table: CPU seconds and peak MB."""
    known = json.loads(RESULTS.read_text())
    networks = [name for name in NETWORKS if name in known]
    lines = ["| CPU seconds, peak MB | " + " | ".join(networks) + " |",
             "| --- |" + " --- |" * len(networks)]  # fmt: skip
    for name in MEASUREMENTS:
        cells = [known[network].get(name) for network in networks]
        told = [f"{c['cpu_seconds']:.1f}, {c['peak_mb']}" if c else "not run" for c in cells]
        lines.append(f"| {name} | {' | '.join(told)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--network", choices=NETWORKS)
    parser.add_argument("--only", default="", help="measurements, separated by semicolons")
    parser.add_argument("--masks", action="store_true")
    parser.add_argument("--stream", action="store_true")
    parser.add_argument("--stream-cell", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--table", action="store_true", help="print what was measured before")
    parser.add_argument("--excess", action="store_true", help="over plain torch, of --network")
    parser.add_argument("--rounds", type=int, default=5, help="of --excess")
    parser.add_argument("--excess-cell", help=argparse.SUPPRESS)
    parser.add_argument("--cell", help=argparse.SUPPRESS)
    parser.add_argument("--masks-cell", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.table:
        print(markdown())
    elif given.cell:
        print(json.dumps(cell(given.network, given.cell)))
    elif given.excess_cell in ORDERS:
        print(json.dumps(excess_times(given.network, given.excess_cell, given.rounds)))
    elif given.excess_cell:
        print(json.dumps(excess_peak(given.network, given.excess_cell)))
    elif given.excess:
        network = given.network or "wide_resnet_28_10"
        table = excess(network, given.rounds)
        print(json.dumps(table, indent=1))
        keep("over plain torch", {network: table})
    elif given.masks_cell:
        print(json.dumps(masks_cell(given.masks_cell, given.folder)))
    elif given.stream_cell:
        print(json.dumps(stream_cell()))
    else:
        chosen = given.only.split(";") if given.only else list(MEASUREMENTS)
        alone = given.masks or given.stream
        for network in [] if alone else [given.network] if given.network else NETWORKS:
            parameters = sum(p.numel() for p in NETWORKS[network]().parameters())
            keep(network, {"parameters": parameters})
            for name in chosen:
                row = separately("--network", network, "--cell", name)
                print(network, name, row, flush=True)
                keep(network, {name: row})
        if given.stream or not (alone or given.network):
            row = separately("--stream-cell")
            print(row)
            keep("a tensor of 10^8", row)
        if given.masks or not (alone or given.network):
            table = masks_table()
            print(json.dumps(table, indent=1))
            keep("200 masks of 36 M", table)


if __name__ == "__main__":
    main()
