"""What recording costs: share of a training step, and comparing many masks.

    python -m benchmarks.recorder                 # minutes
    python -m benchmarks.recorder --only masks    # 1 GB of files in a temporary folder
    python -m benchmarks.recorder --only small    # shorter steps, put into the file

step: ResNet-20, batch 128, 32 x 32 images. `inside` is the CPU time between entering and leaving
the recorder over the CPU time of the step, per step; `inside_wall` the same by the clock, with the
waits for the disk; `whole` compares steps with and without, in turn, beside an A/A control.
masks: 200 snapshots of 36 M coordinates, compared in a process of its own, beside reading the same
files: from the disk (the system forgets them before each reading) and from memory.
"""

import argparse
import contextlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import landscape
from benchmarks import interleaved
from landscape import sam, snapshots
from landscape.params import ParamLayout
from landscape.problems import make_model
from landscape.snapshots import GRID, Tensors
from landscape.training import RecorderOptions, TrainingOptions, estimate_bytes
from landscape.training.recorder import Recorder

BATCH, EVERY = 128, 50
GUARDS = {"scalars": 0.03, "masks": 0.15}
SIZES = (64 * 3 * 9, *(512,) * 40, *(2_359_296,) * 15, 512_000)  # 35.9 M, 57 tensors
SNAPSHOTS = 200
LAGS = (1, 2, 5, 10, 20, 50, 100)


class Clock:
    """CPU and wall-clock seconds spent inside wrapped calls."""

    def __init__(self) -> None:
        self.cpu = self.wall = 0.0

    def around(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any, **options: Any) -> Any:
            cpu, wall = time.thread_time(), time.perf_counter()  # of hundreds of calls: cheap
            try:
                return call(*arguments, **options)
            finally:
                self.cpu += time.thread_time() - cpu
                self.wall += time.perf_counter() - wall

        return timed


def batch(size: int = BATCH) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(1)
    return torch.randn(size, 3, 32, 32, generator=g), torch.randint(0, 10, (size,), generator=g)


def resnet() -> nn.Module:
    return make_model("resnet20", num_classes=10, input_shape=(3, 32, 32), seed=0)


class Own:
    """Our optimizer and its recorder, as `training.train` uses them."""

    def __init__(self, folder: Path, options: RecorderOptions, steps: int) -> None:
        model, data = resnet(), batch()
        base = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, fused=True)
        self.optimizer = sam.SAM(model, base, sam.zsharp(0.05))
        chosen = options.steps(steps, per_epoch=steps, seed=0)
        self.recorder = Recorder(folder, options, self.optimizer, chosen)
        self.clock, self.count = Clock(), 0
        self.before = self.clock.around(self.recorder.before)
        self.after = self.clock.around(self._after)

        def closure() -> torch.Tensor:
            loss = nn.functional.cross_entropy(model(data[0]), data[1])
            loss.backward()
            return loss

        self.closure = closure

    def _after(self) -> None:
        self.recorder.record(1, self.count)
        if (self.count + 1) % EVERY == 0:
            self.recorder.flush()

    def step(self) -> None:
        self.before()
        self.optimizer.step(self.closure)
        self.after()
        self.count += 1


class TwoSteps(torch.optim.Optimizer):
    """SAM in the published calling shape: first_step, second_step, a base optimizer inside."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model.parameters(), {"rho": 0.05, "lr": 0.01, "momentum": 0.9})
        self.base = torch.optim.SGD(self.param_groups, lr=0.01, momentum=0.9)
        self.param_groups = self.base.param_groups

    @torch.no_grad()
    def first_step(self) -> None:
        params = self.param_groups[0]["params"]
        scale = 0.05 / torch.stack(torch._foreach_norm([p.grad for p in params])).norm()
        self.old = [p.detach().clone() for p in params]
        for p in params:
            p.add_(scale * p.grad)
        self.zero_grad()

    @torch.no_grad()
    def second_step(self) -> None:
        for p, old in zip(self.param_groups[0]["params"], self.old, strict=True):
            p.data = old
        self.base.step()
        self.zero_grad()


class Foreign:
    """Another optimizer; `watch` puts `landscape.record` around it."""

    def __init__(self, model: nn.Module, data: tuple[torch.Tensor, torch.Tensor]) -> None:
        self.model, self.data = model, data
        self.optimizer, self.clock = TwoSteps(self.model), Clock()

    def watch(self, folder: Path | None = None) -> "Foreign":
        """With a folder, or without one for `recording.diagnosis()` alone; as by default."""
        kept = {} if folder is None else {"steps_per_epoch": 10**6}
        recording = landscape.record(self.model, folder=folder, **kept)
        around, listener = self.clock.around, recording.seen.listener
        for name in ("_before_forward", "_after_forward", "step"):
            setattr(recording, name, around(getattr(recording, name)))
        for name in ("before_step", "differentiated"):
            setattr(recording.watch, name, around(getattr(recording.watch, name)))
        recording.seen.listener = lambda i: around(listener(i))
        recording.__enter__()
        return self

    def step(self) -> None:
        for end in (self.optimizer.first_step, self.optimizer.second_step):
            nn.functional.cross_entropy(self.model(self.data[0]), self.data[1]).backward()
            end()


@contextmanager
def folders(*names: str) -> Iterator[list[Path]]:
    with tempfile.TemporaryDirectory() as place:
        yield [Path(place) / name for name in names]


def inside(made: Any, steps: int, before: int = 3) -> dict[str, Any]:
    """Median share of a step spent in the recorder, without snapshots; one snapshot's share."""
    cpu, wall, taken, spent = [], [], [], []
    for _ in range(before):
        made.step()
    for _ in range(steps):
        clock = made.clock
        clock.cpu = clock.wall = 0.0
        began, clocked = time.process_time(), time.perf_counter()
        made.step()
        own = time.process_time() - began - clock.cpu
        cpu.append(clock.cpu / own)
        spent.append(clock.cpu)
        wall.append(clock.wall / (time.perf_counter() - clocked - clock.wall))
        taken.append(own)
    return {
        "inside": spread(cpu),
        "inside_mean": round(float(np.mean(cpu)), 4),
        "inside_wall_mean": round(float(np.mean(wall)), 4),
        "inside_ms": spread([1e3 * seconds for seconds in spent]),
        "inside_ms_mean": round(1e3 * float(np.mean(spent)), 3),
        "step_ms": round(1e3 * float(np.median(taken)), 1),
        "steps": steps,
    }


def spread(values: list[float]) -> dict[str, float]:
    """Median with its 95 % bootstrap interval."""
    rng = np.random.default_rng(0)
    draws = np.median(rng.choice(values, size=(2000, len(values))), axis=1)
    low, high = np.quantile(draws, [0.025, 0.975])
    return {"median": round(float(np.median(values)), 5), "low": round(float(low), 5),
            "high": round(float(high), 5)}  # fmt: skip


def step_costs(steps: int, rounds: int) -> dict[str, Any]:
    off, scalars = RecorderOptions(scalars=False, snapshots=0), RecorderOptions(snapshots=0)
    masks = RecorderOptions(snapshots=0, every=EVERY)
    with folders(*"abcdefg") as (a, b, c, d, e, f, g):
        found: dict[str, Any] = {
            "scalars": inside(Own(c, scalars, 10**6), steps),
            # From step 3 on: one snapshot in each 50 steps.
            "masks": inside(Own(d, masks, 10**6), -(-steps // EVERY) * EVERY),
            "record": inside(Foreign(resnet(), batch()).watch(e), -(-steps // EVERY) * EVERY),
        }
        runs = {
            "off": Own(a, off, 10**6).step,
            "off_again": Own(b, off, 10**6).step,
            "scalars": Own(f, scalars, 10**6).step,
            "foreign": Foreign(resnet(), batch()).step,
            "record": Foreign(resnet(), batch()).watch(g).step,
        }
        samples = interleaved.in_turn(runs, rounds=rounds, seconds=0.0)
    pairs = (("off_again", "off"), ("scalars", "off"), ("record", "foreign"))
    found["whole"] = {
        f"{x}/{y}": interleaved.paired_ratio(samples[x], samples[y]) for x, y in pairs
    }
    return found


NETS: dict[str, Callable[[], tuple[nn.Module, tuple[torch.Tensor, torch.Tensor]]]] = {
    "ResNet-20, batch 16": lambda: (resnet(), batch(16)),
    "CNN of digits, batch 64": lambda: (digits("cnn"), images()),
    "MLP of digits, batch 64": lambda: (digits("mlp"), images()),
}


def digits(kind: str) -> nn.Module:
    return make_model(kind, num_classes=10, input_shape=(1, 8, 8), seed=0)


def images() -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(1)
    return torch.randn(64, 1, 8, 8, generator=g), torch.randint(0, 10, (64,), generator=g)


def small_costs(net: str, steps: int) -> dict[str, Any]:
    """What a recorded step costs from step 16 on, in ms of CPU; all of the first 16 are looked at.

    With a folder one of 127 steps and one of 100 is looked at, without one one of 127.
    """
    with folders("a") as (a,):
        found = {
            "with a folder": inside(Foreign(*NETS[net]()).watch(a), steps, before=16),
            "without": inside(Foreign(*NETS[net]()).watch(), steps, before=16),
        }
    return found | {"whole_counted": counted(net)}


def counted(net: str, rounds: int = 20) -> dict[str, Any]:
    """ms of CPU by which steps that are only counted are longer, and an A/A control, in turn.

    By the whole step, with what the hooks cost that `inside` does not see. The hooks of optimizers
    and of backward act on all models, and are there for the recorded one's turn only.
    """
    plain, again, seen = (Foreign(*NETS[net]()) for _ in range(3))
    recording = landscape.record(seen.model, every=10**9)
    with recording:
        for _ in range(16):
            seen.step()
    for made in (plain, again):
        for _ in range(16):
            made.step()
    turns = {"plain": plain.step, "again": again.step, "watched": seen.step}
    times = interleaved.calls_for(plain.step, 0.1)
    took: dict[str, list[float]] = {name: [] for name in turns}
    for i in range(rounds):
        for name in list(turns) if i % 2 == 0 else list(turns)[::-1]:
            with recording if name == "watched" else contextlib.nullcontext():
                began = time.process_time()
                for _ in range(times):
                    turns[name]()
                took[name].append(1e3 * (time.process_time() - began) / times)
    longer = {
        name: spread([a - b for a, b in zip(took[name], took["plain"], strict=True)])
        for name in ("watched", "again")
    }
    return longer | {"step_ms": round(float(np.median(took["plain"])), 3), "rounds": rounds}


def announced() -> dict[str, float]:
    """MB that a study's training says it will write: ResNet-18, 200 epochs, default recorder."""
    model = make_model("resnet18", num_classes=10, input_shape=(3, 32, 32), seed=0)
    options = TrainingOptions(epochs=200, batch_size=128)
    layout = ParamLayout.of(model)
    sizes = {
        "default": RecorderOptions(),
        "scalars": RecorderOptions(snapshots=0),
        "masks_every_50": RecorderOptions(every=50),
    }
    return {
        name: round(estimate_bytes(layout, options, o, num_examples=50_000) / 1e6, 1)
        for name, o in sizes.items()
    }


# --- many masks -----------------------------------------------------------------------------------


def write_masks(folder: Path) -> None:
    """Random masks of density 1/4; the bits of one snapshot are those of another, rolled."""
    names = tuple(f"t{i}" for i in range(len(SIZES)))
    tensors = Tensors(names, ("conv",) * len(SIZES), SIZES, (4,) * len(SIZES))
    snapshots.write_tensors(folder / "snapshots", tensors)
    random = np.random.default_rng(0)
    count = sum((size + 7) // 8 for size in SIZES)
    bits = random.integers(0, 256, count, np.uint8) & random.integers(0, 256, count, np.uint8)
    zscores = np.zeros((len(SIZES), GRID.bins + 3))
    for step in range(SNAPSHOTS):
        snapshots.write_snapshot(
            folder / "snapshots", step, tensors, zscore_counts=zscores,
            mask_bits=np.roll(bits, 977 * step),
        )  # fmt: skip


def forget(paths: Sequence[Path]) -> None:
    """Let the system drop these files from its page cache."""
    for path in paths:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def compare_masks(folder: Path) -> dict[str, Any]:
    """Seconds (wall, CPU) and the peak memory of this process."""
    found: dict[str, Any] = {"snapshots": SNAPSHOTS, "coordinates": sum(SIZES)}

    def timed(name: str, work: Callable[[], Any]) -> Any:
        wall, cpu = time.perf_counter(), time.process_time()
        result = work()
        found[name] = {"wall_s": round(time.perf_counter() - wall, 2),
                       "cpu_s": round(time.process_time() - cpu, 2)}  # fmt: skip
        return result

    paths = sorted((folder / "snapshots").glob("*.npz"))
    series = timed("read_masks (every byte checked)", lambda: snapshots.read_masks(folder))
    timed("counts", series.counts)
    found["lagged_pairs"] = sum(len(overlap.common) for overlap in series.lagged(LAGS)[1])
    found["cores"] = len(os.sched_getaffinity(0))
    for place in ("disk", "memory"):
        found[f"from {place}"] = beside_reading(paths, series, cold=place == "disk")
    pairs = [(i, j) for i in range(SNAPSHOTS) for j in range(i)]
    timed("all_pairs", lambda: series.overlap(pairs))
    found["pairs"] = len(pairs)
    found["peak_mb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    return found


def beside_reading(
    paths: Sequence[Path], series: snapshots.MaskSeries, *, cold: bool, rounds: int = 7
) -> dict[str, Any]:
    """Overlaps at seven lags beside reading the same files and beside reading them again, in turn.

    cold: the system is told to forget the files before each, so that they come from the disk.
    """
    jobs = {
        "read": lambda: [len(path.read_bytes()) for path in paths],
        "lagged": lambda: series.lagged(LAGS),
        "read_again": lambda: [len(path.read_bytes()) for path in paths],
    }
    wall: dict[str, list[float]] = {name: [] for name in jobs}
    cpu: dict[str, list[float]] = {name: [] for name in jobs}
    for _ in range(rounds):
        for name, work in jobs.items():
            if cold:
                forget(paths)
            began, used = time.perf_counter(), time.process_time()
            work()
            wall[name].append(time.perf_counter() - began)
            cpu[name].append(time.process_time() - used)
    return {
        "read_s": spread(wall["read"]),
        "lagged_s": spread(wall["lagged"]),
        "lagged_cpu_s": spread(cpu["lagged"]),
        "lagged/read": spread([a / b for a, b in zip(wall["lagged"], wall["read"], strict=True)]),
        "read_again/read": spread(
            [a / b for a, b in zip(wall["read_again"], wall["read"], strict=True)]
        ),
        "rounds": rounds,
    }


def mask_costs() -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as place:
        write_masks(Path(place))
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.recorder", "--compare", place],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        return json.loads(done.stdout)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=("step", "small", "masks"))
    parser.add_argument("--nets", nargs="+", choices=tuple(NETS), default=list(NETS))
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--compare", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/recorder-cpu.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.compare:
        print(json.dumps(compare_masks(options.compare)))
        return 0
    found = json.loads(options.out.read_text()) if options.out.exists() else {}
    found |= {"hardware": interleaved.hardware(), "versions": interleaved.versions()}
    if options.only in (None, "small"):
        small = found.setdefault("small", {})
        for net in options.nets:  # one period of looks, or ten where steps are short
            small[net] = small_costs(net, 1270 if net.startswith("MLP") else 127)
    if options.only in (None, "step"):
        found["step"] = step_costs(options.steps, options.rounds)
        found["announced_mb_resnet18_200_epochs"] = announced()
    if options.only in (None, "masks"):
        found["masks"] = mask_costs()
    options.out.write_text(json.dumps(found, indent=2) + "\n")
    print(json.dumps(found, indent=2))
    shares = {name: found["step"][name]["inside_mean"] for name in GUARDS if "step" in found}
    missed = [name for name, share in shares.items() if share > GUARDS[name]]
    if missed:
        print(f"beyond the guard: {', '.join(missed)}", file=sys.stderr)
    return bool(missed)


if __name__ == "__main__":
    sys.exit(main())
