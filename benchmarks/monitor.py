"""What `landscape.monitor` costs at its default interval: CPU time, in turn, beside an A/A control.

    OMP_NUM_THREADS=1 nice -n 10 python -m benchmarks.monitor --model mlp --seconds 60
    OMP_NUM_THREADS=1 nice -n 10 python -m benchmarks.monitor --model cnn --seconds 200

SAM with batches of 64: a perceptron or a CNN on digits, or ResNet-20 on drawn images of 32 x 32; 64
examples to measure on (--examples). between: steps with a monitor that does not look at them, over
steps without (paired medians, in turn), beside steps without over steps without; not where --rounds
is 0. inside: one long loop with a monitor; CPU time of the looks over all CPU time of the loop, the
first look included, at the end of each look and of the loop. The interval is chosen by the clock.
"""

import argparse
import itertools
import json
import time
from pathlib import Path

import torch
from torch import Tensor, nn

import landscape
from benchmarks import interleaved
from landscape import sam
from landscape.problems import load_data, make_model

MODELS = ("mlp", "cnn", "resnet20")
STEPS = 40  # per sample of the paired runs


def examples_of(model: str) -> tuple[Tensor, Tensor]:
    """Digits, or drawn images."""
    if model != "resnet20":
        data = load_data("digits").train
        return data.x, data.y
    source = torch.Generator().manual_seed(0)
    x = torch.randn(1024, 3, 32, 32, generator=source)
    return x, torch.randint(10, (1024,), generator=source)


def loop(name: str, x: Tensor, y: Tensor, seed: int):
    """A model, its optimizer and a function that takes one step."""
    model = make_model(name, num_classes=10, input_shape=tuple(x.shape[1:]), seed=seed)
    base = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    optimizer = sam.SAM(model, base, sam.sam(rho=0.05), seed=seed)
    starts = itertools.cycle(range(0, len(x) - 64, 64))

    def step() -> None:
        at = next(starts)

        def closure():
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x[at : at + 64]), y[at : at + 64])
            loss.backward()
            return loss

        optimizer.step(closure)

    return model, optimizer, step


def between(name: str, x: Tensor, y: Tensor, held: tuple[Tensor, Tensor], rounds: int):
    """Steps that are not looked at, over steps without a monitor."""
    loops = {each: loop(name, x, y, 0) for each in ("without", "again", "with")}
    model, optimizer, _ = loops["with"]
    never = landscape.monitor(model, optimizer, nn.CrossEntropyLoss(), held, every=10**9, sinks=[])
    with never:
        runs = {
            each: lambda step=made[2]: [step() for _ in range(STEPS)] and None
            for each, made in loops.items()
        }
        samples = interleaved.in_turn(runs, rounds=rounds, seconds=0.1)
    return {
        "between": interleaved.paired_ratio(samples["with"], samples["without"]),
        "control": interleaved.paired_ratio(samples["again"], samples["without"]),
        "step_ms": round(interleaved.milliseconds(samples["without"]) / STEPS, 3),
    }


def inside(name: str, x: Tensor, y: Tensor, held: tuple[Tensor, Tensor], seconds: float):
    """Looks and their share of one long loop."""
    model, optimizer, step = loop(name, x, y, 0)
    monitor = landscape.monitor(model, optimizer, nn.CrossEntropyLoss(), held, sinks=[])
    looks: list[float] = []
    shares: list[dict[str, float]] = []
    own, began, wall = monitor._look, time.process_time(), time.perf_counter()

    def share() -> dict[str, float]:
        spent, passed = time.process_time() - began, time.perf_counter() - wall
        return {
            "cpu_seconds": round(spent, 2), "share_of_cpu_time": round(sum(looks) / spent, 5),
            "seconds": round(passed, 2), "steps": monitor.num_steps,
        }  # fmt: skip

    def timed() -> None:
        start = time.process_time()
        own()
        looks.append(time.process_time() - start)
        shares.append(share())

    monitor._look = timed
    with monitor:
        while time.process_time() - began < seconds:
            step()
    return {
        "at_the_end": share(), "looks": len(looks),
        "look_ms": [round(1e3 * each, 1) for each in looks],
        "after_each_look": shares,
        "share_by_the_clock": round(monitor.look_seconds / (time.perf_counter() - wall), 5),
        "with_lambda_1": ["lambda_1" in record for record in monitor.records],
        "notes": monitor.notes,
    }  # fmt: skip


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=MODELS, default="cnn")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--seconds", type=float, default=60.0, help="CPU seconds of the long run")
    parser.add_argument("--examples", type=int, default=64, help="to measure on")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/monitor-cpu.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    x, y = examples_of(options.model)
    held = (x[: options.examples], y[: options.examples])
    found = {"hardware": interleaved.hardware(), "versions": interleaved.versions()}
    found |= {"examples": options.examples}
    if options.rounds:
        found |= between(options.model, x, y, held, options.rounds)
    found |= {"inside": inside(options.model, x, y, held, options.seconds)}
    print(json.dumps(found, indent=2))
    table = json.loads(options.out.read_text()) if options.out.exists() else {}
    known = {name: row for name, row in table.items() if name in MODELS}
    known[options.model] = known.get(options.model, {}) | found
    options.out.write_text(json.dumps(known, indent=2) + "\n")


if __name__ == "__main__":
    main()
