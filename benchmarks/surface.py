"""Planes of the loss: points per CPU-second beside three other packages, at the same points.

    git clone https://github.com/tomgoldstein/loss-landscape
    pip install --no-deps --target ../peers loss-landscapes==3.0.6 landscaper==1.3.1
    pip install --target ../peers tqdm nglpy drawsvg coloraide gudhi topopy
    OMP_NUM_THREADS=1 PYTHONPATH=../peers python -m benchmarks.surface --case cnn \
        --peer loss-landscape=../loss-landscape

Same network, weights, examples, axes, points and threads for all, BatchNorm frozen; runs in turn,
CPU time, paired ratios, one of our runs listed twice as the A/A control. Each peer is run on the
size of batches that is best for it (--sizes looks for it), and what it returns is compared with
ours. Ours returns error rates and standard errors as well. `gemm` is the quickest product of two
matrices of 1024 x 1024 in the same run. --more adds rounds to those in the file, for machines that
are not quiet for long. `adaptive` gives the evaluations that tolerance=0.01 takes on a 51 x 51
grid, and the share of all its cells that keep it (--full evaluates that grid twice, once whole).
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import networks
from benchmarks.interleaved import (
    commit_of,
    cpu_seconds,
    hardware,
    milliseconds,
    paired_ratio,
    versions,
)
from benchmarks.surface_peers import PEERS, goldstein, worst_difference
from landscape import EmpiricalRisk, measure, plane, problems, results

RESULTS = Path(__file__).parent / "results"
# Examples, points along an axis, and the rows of a peer's batches.
CASES = {
    "cnn": (1000, 51, (500,)),
    "mlp": (1000, 51, (500, 1000)),
    "resnet20": (32, 25, (32,)),
    "vit": (32, 25, (32,)),
    "vit_tiny": (8, 13, (8,)),
}
# Rows of a peer's batches that --sizes compares.
SIZES = (32, 128, 250, 500, 1000)
# Points along an axis where losses are compared.
PROOF = 9
PACKAGES = ("loss-landscapes", "landscaper")


def problem(
    case: str, device: str = "cpu", *, examples: int | None = None, settled: bool = False
) -> tuple[nn.Module, Tensor, Tensor]:
    """A network after 60 steps on digits, or on seeded images of ten noisy prototypes.

    settled: with the running statistics of its weights, which so few steps leave behind.
    """
    source, own = torch.Generator().manual_seed(0), CASES[case][0]
    if case in ("cnn", "mlp"):
        data = problems.load_data("digits").train
        x, y = data.x[:own], data.y[:own]
    else:
        x, y = networks.noisy_prototypes(max(own, 256), source)
    examples = examples or own
    name = {"vit": "benchmarks.networks:cifar_vit", "vit_tiny": "vit"}.get(case, case)
    model = problems.make_model(name, num_classes=10, input_shape=tuple(x.shape[1:]), seed=0)
    networks.train_briefly(model, x, y, 60, source)
    if settled:
        networks.settle_statistics(model, x)
    return model.eval().to(device), x[:examples].to(device), y[:examples].to(device)


def axes_for(risk: EmpiricalRisk) -> plane.Plane:
    """Two random directions that every peer can be given: tensors of norm c sqrt(n), biases 0."""
    draws = plane.random(risk, risk.theta, num_directions=2, normalize="none", seed=0).directions
    rows = []
    for draw in draws:
        parts = risk.layout.unflatten(draw)
        flat = [p * (p.numel() ** 0.5 / max(float(p.norm()), 1e-30)) for p in parts.values()]
        row = torch.cat([p.flatten() for p in flat])
        rows.append(0.3 * row * risk.theta.norm() / row.norm())
    return plane.Plane(risk.theta, torch.stack(rows), "random", ("u", "v"))


def gemm_peak(times: int = 20) -> float:
    """Floating-point operations a CPU-second of the quickest of some 1024 x 1024 products."""
    a, b = torch.randn(2, 1024, 1024)
    return 2 * 1024**3 / min(cpu_seconds(lambda: _quiet(lambda: a @ b)) for _ in range(times))


def grids(
    case: str,
    rounds: int,
    clones: dict[str, str],
    device: str,
    before: dict[str, Any],
    minutes: float,
) -> dict[str, Any]:
    """Time of a whole grid, all runs in turn, the order reversed every round; added to `before`."""
    start, longest = time.monotonic(), 0.0
    model, x, y = problem(case, device)
    _, points, batches = CASES[case]
    risk = EmpiricalRisk(model, nn.CrossEntropyLoss(), (x, y))
    shared = axes_for(risk)
    call = {"directions": shared, "points": points, "seed": 0}

    def ours(bn: str) -> Callable[[], Any]:
        return lambda: measure.loss_plane(risk, risk.theta, bn=bn, **call)

    runs: dict[str, Callable[[], Any]] = {"landscape": ours("eval")}
    few = measure.loss_plane(risk, risk.theta, bn="eval", **(call | {"points": PROOF}))
    differences, missing = {}, []
    for name, make in makers(clones).items():
        try:
            peer = make()
            for rows in batches:
                row = (model, x, y, _tensors(risk, shared))
                proof = peer(*row, rows=rows, points=PROOF)
                off = worst_difference(name, proof(), few.loss.values)
                differences[name] = float(f"{max(off, differences.get(name, 0.0)):.2e}")
                runs[f"{name}, batches of {rows}"] = peer(*row, rows=rows, points=points)
        except ImportError as error:
            missing.append(f"{name}: not run ({error})")
    # First and last, since the order is reversed every round: both are first as often as last.
    runs["landscape (A/A)"] = ours("eval")
    seconds = cpu_seconds if device == "cpu" else _device_seconds
    samples: dict[str, list[float]] = {
        name: list(before.get("seconds_per_grid", {}).get(name, [])) for name in runs
    }
    peaks = list(before.get("gemm_samples", []))
    for i in range(len(peaks), len(peaks) + rounds):
        began = time.monotonic()
        if began - start + longest > 60 * minutes:
            break
        peaks.append(gemm_peak() if device == "cpu" else float("nan"))
        for name in list(runs) if i % 2 == 0 else list(runs)[::-1]:
            samples[name].append(round(seconds(lambda run=runs[name]: _quiet(run)), 5))
        longest = max(longest, time.monotonic() - began)
    return {
        "commit": commit_of(Path(__file__).parent),
        "examples": len(x),
        "points": points**2,
        "evaluation": results.provenance(few)["evaluation"],
        "worst_relative_difference_from_ours": differences,
        "missing": missing,
        "recalibrate_over_eval": before.get("recalibrate_over_eval")
        or _recalibrated(risk, shared, points, seconds),
        "gemm_samples": [float(f"{peak:.4g}") for peak in peaks],
        "seconds_per_grid": samples,
        **_summary(samples, points**2, _flops(model, x), max(peaks)),
    }


def makers(clones: dict[str, str]) -> dict[str, Callable[[], Callable[..., Any]]]:
    """What makes the peers' runs, by name."""
    cloned = {name: (lambda path=path: goldstein(Path(path))) for name, path in clones.items()}
    return cloned | {name: (lambda make=make: make) for name, make in PEERS.items()}


def sizes(case: str, clones: dict[str, str]) -> dict[str, float]:
    """CPU milliseconds of a peer's point by the rows of its batches, the best of three."""
    model, x, y = problem(case)
    risk = EmpiricalRisk(model, nn.CrossEntropyLoss(), (x, y))
    row = (model, x, y, _tensors(risk, axes_for(risk)))
    found = {}
    for name, make in makers(clones).items():
        for rows in (size for size in SIZES if size <= len(x)):
            run = make()(*row, rows=rows, points=PROOF)
            best = min(cpu_seconds(lambda run=run: _quiet(run)) for _ in range(3))
            found[f"{name}, batches of {rows}"] = round(1e3 * best / PROOF**2, 3)
    return found


def _tensors(risk: EmpiricalRisk, axes: plane.Plane) -> list[list[Tensor]]:
    return [list(risk.layout.unflatten(row).values()) for row in axes.directions]


def _recalibrated(
    risk: EmpiricalRisk, axes: plane.Plane, points: int, seconds: Callable[..., float]
) -> float | None:
    """Time of a point with recalibrated BatchNorm over that of one with frozen statistics."""
    if not risk.has_batchnorm:
        return None
    call = {"directions": axes, "seed": 0}
    costs = []
    for bn, size in (("recalibrate", 5), ("eval", min(points, 17))):
        one = lambda bn=bn, size=size: _quiet(  # noqa: E731
            lambda: measure.loss_plane(risk, risk.theta, bn=bn, points=size, **call)
        )
        costs.append(min(seconds(one) for _ in range(3)) / size**2)
    return round(costs[0] / costs[1], 2)


def _summary(
    samples: dict[str, list[float]], points: int, flops: float, peak: float
) -> dict[str, Any]:
    """Points per second, ratios, the best setting of every peer, and the share of the peak."""
    base = samples["landscape"]
    rates = {name: round(points / np.median(row), 1) for name, row in samples.items()}
    best: dict[str, str] = {}
    for name in sorted(samples, key=lambda name: rates[name]):
        if ", batches" in name:
            best[name.split(",")[0]] = name
    return {
        "milliseconds_per_grid": {name: milliseconds(row) for name, row in samples.items()},
        "points_per_second": rates,
        "share_of_gemm_peak": {name: round(r * flops / peak, 3) for name, r in rates.items()},
        "gemm_gflop_per_second": round(peak / 1e9, 1),
        "time_over_ours": {
            name: paired_ratio(row, base) for name, row in samples.items() if row is not base
        },
        "time_of_best_setting_over_ours": {
            peer: paired_ratio(samples[name], base) for peer, name in best.items()
        },
    }


def _flops(model: nn.Module, x: Tensor) -> float:
    """Operations of the products and convolutions of one point, as the network states them."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(x)
    return float(counter.get_total_flops())


def _device_seconds(run: Callable[[], None]) -> float:
    torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def _quiet(run: Callable[[], Any]) -> None:
    run()


def adaptive(case: str, examples: int, bn: str, points: int = 51) -> dict[str, Any]:
    """What tolerance=0.01 costs and keeps on a grid, against the same grid whole."""
    model, x, y = problem(case, examples=examples, settled=True)
    risk = EmpiricalRisk(model, nn.CrossEntropyLoss(), (x, y))
    call = {"bn": bn, "points": points, "seed": 0}
    whole = measure.loss_plane(risk, risk.theta, **call)
    part = measure.loss_plane(risk, risk.theta, tolerance=0.01, **call)
    off = np.abs(part.loss / whole.loss - 1).values
    found = results.provenance(part)
    return {
        "examples": len(x),
        "cells": found["cells"],
        "evaluated": found["evaluated_cells"],
        "saving": round(found["cells"] / found["evaluated_cells"], 2),
        "share_within_tolerance": round(float(np.mean(off <= 0.01)), 5),
        "worst_relative_error": float(f"{off.max():.2e}"),
        "center_loss": float(f"{float(whole.center_loss):.3g}"),
        "loss_range": [float(f"{v:.3g}") for v in (whole.loss.min(), whole.loss.max())],
    }


def table(cases: dict[str, Any]) -> list[str]:
    """The table of the README, a line each."""
    lines = [
        "| | examples, points | ours is faster | n | A/A | share of peak, peer | adaptive | kept "
        "| recalibrated |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for case in (case for case in CASES if case in cases):
        grid, part = cases[case]["grid"], cases[case].get("adaptive")
        peer, best = best_peer(grid)
        same = grid["time_over_ours"]["landscape (A/A)"]
        shares = grid["share_of_gemm_peak"]
        theirs = max(share for name, share in shares.items() if name.startswith(f"{peer},"))
        saved = ("", "")
        if part:
            saved = (
                f"{part['evaluated']} of {part['cells']}, {part['saving']:.1f} ×",
                f"{100 * part['share_within_tolerance']:.1f} %",
            )
        cells = (
            case,
            f"{grid['examples']}, {grid['points']}",
            f"{_interval(best)} × ({peer})",
            str(best["n"]),
            _interval(same),
            f"{100 * shares['landscape']:.0f} %, {100 * theirs:.0f} %",
            *saved,
            f"{cost:.1f} ×" if (cost := grid["recalibrate_over_eval"]) else "",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def best_peer(grid: dict[str, Any]) -> tuple[str, dict[str, float]]:
    """The quickest of the other packages at its best setting, and its time over ours."""
    found = grid["time_of_best_setting_over_ours"]
    return min(found.items(), key=lambda pair: pair[1]["ratio"])


def _interval(found: dict[str, float]) -> str:
    return f"{found['ratio']:.2f} [{found['low']:.2f}, {found['high']:.2f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", choices=CASES)
    parser.add_argument("--table", action="store_true", help="print that of the README, that alone")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--more", action="store_true", help="add rounds to those in the file")
    parser.add_argument(
        "--minutes", type=float, default=99, help="no round begins that lasts longer"
    )
    parser.add_argument("--peer", action="append", default=[], help="loss-landscape=CLONE")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--full", type=int, metavar="N", help="an adaptive grid too, N examples")
    parser.add_argument("--bn", choices=("eval", "recalibrate"), default="eval", help="of --full")
    parser.add_argument("--only-full", action="store_true", help="that alone")
    parser.add_argument("--sizes", action="store_true", help="peers by rows of a batch, that alone")
    options = parser.parse_args()
    path = RESULTS / f"surface-{options.device}.json"
    if options.table:
        print("\n".join(table(json.loads(path.read_text())["cases"])))
        return
    if options.case is None:
        parser.error("--case is needed")
    torch.set_num_threads(1)
    clones = dict(pair.split("=", 1) for pair in options.peer)
    if options.sizes:
        print(json.dumps(sizes(options.case, clones), indent=1))
        return
    made: dict[str, Any] = {}
    if not options.only_full:
        before = _read(path, options.case).get("grid", {}) if options.more else {}
        call = options.rounds, clones, options.device, before, options.minutes
        made["grid"] = grids(options.case, *call)
    if options.full:
        name = {"eval": "adaptive"}.get(options.bn, f"adaptive_{options.bn}")
        made[name] = adaptive(options.case, options.full, options.bn)
    # Read again: another case may have been written meanwhile.
    found = json.loads(path.read_text()) if path.exists() else {}
    found.setdefault("cases", {}).setdefault(options.case, {}).update(made)
    found["hardware"] = hardware()
    found.setdefault("versions", {}).update(versions(*PACKAGES))
    found["versions"] |= {name: commit_of(path) for name, path in clones.items()}
    if options.device == "cuda":
        found["hardware"]["gpu"] = torch.cuda.get_device_name()
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
    print(json.dumps(made, indent=1))


def _read(path: Path, case: str) -> dict[str, Any]:
    found = json.loads(path.read_text()) if path.exists() else {}
    return found.get("cases", {}).get(case, {})


if __name__ == "__main__":
    main()
