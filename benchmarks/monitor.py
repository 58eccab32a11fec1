"""What `landscape.monitor` costs at its default interval: CPU time, in turn, beside an A/A control.

    python -m benchmarks.monitor                  # minutes

SAM on digits (cnn, batch 64), 64 examples to measure on (--examples). between: steps with a monitor
that does not look at them, over steps without (paired medians, in turn), beside steps without over
steps without. inside: CPU time of the looks over all CPU time of the steps with a monitor, first
look left out, as it comes before there is anything to share. The interval is chosen by the clock,
and the CPU time of a look is at most its time by the clock.
"""

import argparse
import itertools
import json
import time
from pathlib import Path

import torch
from torch import nn

import landscape
from benchmarks import interleaved
from landscape import sam
from landscape.problems import load_data, make_model

STEPS = 40  # per sample of the paired runs


def loop(data, seed: int):
    """A model, its optimizer and a function that takes one step."""
    x, y = data.train.x, data.train.y
    model = make_model("cnn", num_classes=10, input_shape=data.input_shape, seed=seed)
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


def measured(rounds: int, seconds: float, examples: int) -> dict[str, object]:
    """All numbers."""
    data = load_data("digits")
    held = (data.train.x[:examples], data.train.y[:examples])
    loops = {name: loop(data, 0) for name in ("without", "again", "with")}
    model, optimizer, step = loops["with"]
    never = landscape.monitor(model, optimizer, nn.CrossEntropyLoss(), held, every=10**9, sinks=[])
    with never:
        runs = {
            name: lambda step=each[2]: [step() for _ in range(STEPS)] and None
            for name, each in loops.items()
        }
        samples = interleaved.in_turn(runs, rounds=rounds, seconds=0.1)
    monitor = landscape.monitor(model, optimizer, nn.CrossEntropyLoss(), held, sinks=[])
    looks: list[float] = []
    own = monitor._look

    def timed(now: float) -> None:
        began = time.process_time()
        own(now)
        looks.append(time.process_time() - began)

    monitor._look = timed
    with monitor:
        while not looks:
            step()
        began, wall = time.process_time(), time.perf_counter()
        first = monitor.look_seconds
        while time.process_time() - began < seconds:
            step()
        spent, passed = time.process_time() - began, time.perf_counter() - wall
    return {
        "between": interleaved.paired_ratio(samples["with"], samples["without"]),
        "control": interleaved.paired_ratio(samples["again"], samples["without"]),
        "step_ms": round(interleaved.milliseconds(samples["without"]) / STEPS, 3),
        "inside": {
            "share_of_cpu_time": round(sum(looks[1:]) / spent, 5),
            "share_with_the_first": round(sum(looks) / (spent + looks[0]), 5),
            "share_by_the_clock": round((monitor.look_seconds - first) / passed, 5),
            "looks": len(looks) - 1, "steps": monitor.num_steps,
            "look_ms": [round(1e3 * each, 2) for each in looks],
            "steps_looked_at": [record["step"] for record in monitor.records],
            "with_lambda_1": ["lambda_1" in record for record in monitor.records],
        },
    }  # fmt: skip


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--seconds", type=float, default=60.0, help="CPU seconds of the long run")
    parser.add_argument("--examples", type=int, default=64, help="to measure on")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/monitor-cpu.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = {"hardware": interleaved.hardware(), "versions": interleaved.versions()}
    found |= {"examples": options.examples}
    found |= measured(options.rounds, options.seconds, options.examples)
    print(json.dumps(found, indent=2))
    options.out.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
