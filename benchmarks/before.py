"""What measurements cost beside an earlier commit of this repository.

    git worktree add ../before 9353b74
    OMP_NUM_THREADS=1 python -m benchmarks.before --before ../before

Each commit works in a process of its own on the same network, weights, images and vectors; a
second process of the present commit is the A/A control. One sample of a job is about a fifth of a
second of CPU time in each of the three processes in turn, the order rotated every round. A ratio
is the median of those of the rounds, with its 95 % bootstrap interval. `--parts` measures pieces
and puts them beside what is in the result file. "eigenvalues": from the risk that is made anew, its
checks and the probe included; "eigenvalues, again": of a risk whose probe is made.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.interleaved import commit_of, hardware, milliseconds, paired_ratio, versions

RESULT = Path(__file__).parent / "results" / "before-cpu.json"
ROOT = Path(__file__).parents[1]
PARTS = ("risk", "loss", "gradient", "hvp", "hvp, graph kept", "plane", "eigenvalues",
         "eigenvalues, again")  # fmt: skip
CASES = ("cnn", "resnet20", "vit")


def jobs(case: str) -> dict[str, Callable[[], object]]:
    """What is timed; only what both commits have is used."""
    from benchmarks import networks
    from landscape import EmpiricalRisk, measure
    from landscape.problems.resnet import resnet20

    torch.manual_seed(0)
    make: dict[str, Callable[[], nn.Module]] = {
        "cnn": networks.cnn,
        "resnet20": lambda: resnet20(num_classes=10, input_shape=networks.SHAPE),
        "vit": networks.cifar_vit,
    }
    model, source = make[case](), torch.Generator().manual_seed(0)
    x, y = networks.noisy_prototypes({"cnn": 128, "resnet20": 64, "vit": 64}[case], source)
    networks.train_briefly(model, x, y, 30, source)
    model.eval()

    def risk() -> Any:
        return EmpiricalRisk(model, nn.CrossEntropyLoss(), (x, y))

    kept_risk = risk()
    theta = kept_risk.theta
    v = torch.randn(len(theta), generator=source)
    product = kept_risk.linearized_hvp(theta)
    few = EmpiricalRisk(model, nn.CrossEntropyLoss(), (x[:16], y[:16]))

    def eigenvalues(of: Any) -> object:
        return measure.top_eigenvalues(of, theta, k=1, seed=0)

    return {
        "risk": risk,
        "loss": lambda: kept_risk.loss(theta),
        "gradient": lambda: kept_risk.gradient(theta),
        "hvp": lambda: kept_risk.hvp(theta, v),
        "hvp, graph kept": lambda: product(v),
        "plane": lambda: measure.loss_plane(few, theta, points=9, seed=0),
        "eigenvalues": lambda: eigenvalues(risk()),
        "eigenvalues, again": lambda: eigenvalues(kept_risk),
    }


def work(case: str) -> None:
    """Answer lines "part times" with CPU seconds per call."""
    torch.set_num_threads(1)
    found = jobs(case)
    print("ready", flush=True)
    for line in sys.stdin:
        part, _, times = line.strip().rpartition(" ")
        start = time.process_time()
        for _ in range(int(times)):
            found[part]()
        print((time.process_time() - start) / int(times), flush=True)


class Side:
    """A process of one commit."""

    def __init__(self, folder: Path, case: str) -> None:
        # The benchmark is this one in all of them, the package that of the folder.
        code = (
            f"import sys; sys.path.insert(0, {str(folder)!r}); import landscape; "
            f"sys.path[0] = {str(ROOT)!r}; from benchmarks.before import work; work({case!r})"
        )
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", code], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, text=True, env=environment, cwd=folder.parent,
        )  # fmt: skip
        self._answer()

    def _answer(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def seconds(self, part: str, times: int) -> float:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{part} {times}\n")
        self.process.stdin.flush()
        return float(self._answer())

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def compare(
    case: str, parts: list[str], before: Path, rounds: int
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each part with its paired ratios."""
    sides = {"now": Side(ROOT, case), "before": Side(before, case), "again": Side(ROOT, case)}
    for part in parts:
        first = statistics.fmean(side.seconds(part, 1) for side in sides.values())
        times = max(1, round(0.2 / first))
        samples: dict[str, list[float]] = {name: [] for name in sides}
        for i in range(rounds):
            names = list(sides)
            for name in names[i % 3 :] + names[: i % 3]:
                samples[name].append(sides[name].seconds(part, times))
        found = {
            "now_over_before": paired_ratio(samples["now"], samples["before"]),
            "control_a_a": paired_ratio(samples["now"], samples["again"]),
            "milliseconds": {name: milliseconds(each) for name, each in samples.items()},
        }
        print(case, part, json.dumps(found), flush=True)
        yield part, found
    for side in sides.values():
        side.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--before", type=Path, required=True, help="folder of the earlier commit")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=CASES)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    torch.set_num_threads(1)
    stored = json.loads(RESULT.read_text("utf-8")) if RESULT.exists() else {"cases": {}}
    stored |= {"hardware": hardware(), "versions": versions(),
               "before": commit_of(options.before)}  # fmt: skip
    for case in options.cases:
        rows = compare(case, list(options.parts), options.before.resolve(), options.rounds)
        for part, row in rows:
            stored["cases"].setdefault(case, {})[part] = row | {"commit": commit_of(ROOT)}
            RESULT.write_text(json.dumps(stored, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
