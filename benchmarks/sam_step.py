"""What a step of `landscape.sam` costs, against SGD and against the published classes.

    pip install --no-deps --target ../peers pytorch-optimizer==4.1.0     # the peer on PyPI, once
    PYTHONPATH=../peers python -m benchmarks.sam_step                    # minutes
    ... --peer davda54/sam=../sam --peer F-SAM=../F-SAM --peer ZSharp=../ZSharp   # clones

Optimizer-only: the step with closures that hand out stored gradients, their own time taken off.
Full step: forward and backward passes included. CPU time, runs in turn, an A/A control in each
group; ratios are medians of paired ratios with 95 % bootstrap intervals. See benchmarks/README.md.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks import interleaved, sam_memory
from benchmarks.sam_peers import OPTIONS, PEERS, load
from landscape import sam
from landscape.problems import make_model

BATCH = {"resnet20": 16, "vit": 8}
GUARDS = {"davda54/sam": 0.65, "F-SAM": 0.5, "ZSharp": 0.75}
FULL_STEP_GUARD = 2.2
OURS = {
    "sam": sam.sam(0.05),
    "fsam": sam.fsam(0.05),
    "zsharp": sam.zsharp(0.05),
}


def model_of(name: str) -> nn.Module:
    return make_model(name, num_classes=10, input_shape=(3, 32, 32), seed=0)


def data_of(name: str) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(1)
    size = BATCH[name]
    return torch.randn(size, 3, 32, 32, generator=g), torch.randint(0, 10, (size,), generator=g)


def closure_of(model: nn.Module, data: tuple[torch.Tensor, torch.Tensor]) -> Callable[[], Any]:
    def closure() -> torch.Tensor:
        loss = nn.functional.cross_entropy(model(data[0]), data[1])
        loss.backward()
        return loss

    return closure


class Stored:
    """A closure that hands out copies of a real gradient and knows how long that took."""

    def __init__(self, model: nn.Module, data: tuple[torch.Tensor, torch.Tensor]) -> None:
        self.parameters = list(model.parameters())
        closure_of(model, data)()
        self.gradients = [p.grad.clone() for p in self.parameters]
        self.loss, self.seconds = torch.ones(()), 0.0

    def __call__(self) -> torch.Tensor:
        start = time.process_time()
        for p, g in zip(self.parameters, self.gradients, strict=True):
            p.grad = g.clone()
        self.seconds += time.process_time() - start
        return self.loss

    def taken(self) -> float:
        seconds, self.seconds = self.seconds, 0.0
        return seconds


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), **OPTIONS)


def steps(
    model: nn.Module, make: Callable[[nn.Module], Any], closure: Callable[[], Any], kind: str
) -> Callable[[], float]:
    """One step as each class is meant to be used; returns the closure's own seconds."""
    optimizer = make(model)
    taken = getattr(closure, "taken", lambda: 0.0)

    def plain() -> float:
        optimizer.zero_grad()
        closure()
        optimizer.step()
        return taken()

    def published() -> float:
        closure()
        optimizer.first_step(zero_grad=True)
        closure()
        optimizer.second_step(zero_grad=True)
        return taken()

    def ours() -> float:
        optimizer.step(closure)
        return taken()

    return {"sgd": plain, "peer": published, "ours": ours}[kind]


def make_runs(
    name: str, peers: dict[str, Any], full: bool
) -> dict[str, Callable[[], float | None]]:
    """Every class on its own copy of the model, on the same batch."""
    data = data_of(name)

    def run(make: Callable[[nn.Module], Any], kind: str) -> Callable[[], float]:
        model = model_of(name)
        return steps(model, make, (closure_of if full else Stored)(model, data), kind)

    runs: dict[str, Callable[[], float | None]] = {"SGD": run(sgd, "sgd")}
    for recipe, variant in OURS.items():
        runs[recipe] = run(lambda m, v=variant: sam.SAM(m, sgd(m), v), "ours")
    runs["sam again"] = run(lambda m: sam.SAM(m, sgd(m), OURS["sam"]), "ours")
    for label, make in peers.items():
        runs[label] = run(lambda m, make=make: make(list(m.parameters())), "peer")
    return runs


def compare(name: str, peers: dict[str, Any], *, full: bool, rounds: int) -> dict[str, Any]:
    """All classes on one network: ms per step, ratios to SGD and of ours to the published ones."""
    samples = interleaved.in_turn(make_runs(name, peers, full), rounds=rounds)
    ratio = interleaved.paired_ratio
    recipe_of = {p.name: p.recipe for p in PEERS}
    return {
        "cpu_ms": {k: interleaved.milliseconds(v) for k, v in samples.items()},
        "control_a_a": ratio(samples["sam again"], samples["sam"]),
        "relative_to_sgd": {
            k: ratio(v, samples["SGD"]) for k, v in samples.items() if k not in ("SGD", "sam again")
        },
        "relative_to_published": {
            k: ratio(samples[recipe_of[k]], samples[k]) for k in peers if k in samples
        },
    }


def partial_gradients(name: str, rounds: int) -> dict[str, Any]:
    """Full steps that leave gradients out, against the same variant that computes them all."""
    data, pairs = data_of(name), {}
    norms = "identity"
    for label, part, whole in (
        ("sam_on, first pass: norm layers only", sam.sam_on(0.5, metric=norms), sam.sam(0.05)),
        ("lagnp, second pass: half of the layers", sam.lagnp(0.1), sam.gnp(0.1)),
        ("lagnp, second pass: a tenth of the layers", sam.lagnp(0.1, fraction=0.1), sam.gnp(0.1)),
        ("sl_sam, both passes: sampled tensors", sam.sl_sam(), sam.sam(0.05)),
    ):
        for kind, variant in (("part", part), ("whole", whole)):
            model = model_of(name)
            pairs[label, kind] = steps(
                model, lambda m, v=variant: sam.SAM(m, sgd(m), v), closure_of(model, data), "ours"
            )
    samples = interleaved.in_turn(pairs, rounds=rounds)
    return {
        label: interleaved.paired_ratio(samples[label, "part"], samples[label, "whole"])
        for label, kind in pairs
        if kind == "part"
    }


def mask_refresh(name: str, rounds: int, num_samples: int = 16) -> dict[str, Any]:
    """CPU ms of a step that refreshes SSAM's mask, over one that does not."""
    data, out = data_of(name), {}
    for label, variant in (
        (f"ssam_f, {num_samples} samples", sam.ssam_f(0.1, num_samples=num_samples)),
        ("ssam_d", sam.ssam_d(0.1)),
    ):
        model = model_of(name)
        optimizer = sam.SAM(model, sgd(model), variant)

        def losses(b: Any, model: nn.Module = model) -> torch.Tensor:
            return nn.functional.cross_entropy(model(b[0]), b[1], reduction="none")

        repeated = tuple(torch.cat([x, x])[:num_samples] for x in data)
        optimizer.set_fisher_data(losses, repeated)
        closure, refresh, ordinary = closure_of(model, data), [], []
        for epoch in range(rounds + 1):
            optimizer.begin_epoch(epoch, rounds + 1)
            refresh.append(interleaved.cpu_seconds(lambda o=optimizer, c=closure: o.step(c) and 0))
            ordinary.append(interleaved.cpu_seconds(lambda o=optimizer, c=closure: o.step(c) and 0))
        extra = [a - b for a, b in zip(refresh[1:], ordinary[1:], strict=True)]
        out[label] = {
            "refresh_ms": interleaved.milliseconds(extra),
            "ordinary_step_ms": interleaved.milliseconds(ordinary[1:]),
        }
    return out


def guards(networks: dict[str, Any]) -> list[dict[str, Any]]:
    """Every bar with what was measured."""
    rows = []
    for name, found in networks.items():
        for peer, bar in GUARDS.items():
            got = found["optimizer_only"]["relative_to_published"].get(peer)
            row = {"what": f"{name}: optimizer-only, ours / {peer}", "at_most": bar}
            measured = got["ratio"] if got else "not run"
            rows.append(row | {"measured": measured, "met": got["ratio"] <= bar if got else None})
        got = found["full_step"]["relative_to_sgd"]["sam"]["ratio"]
        row = {"what": f"{name}: full SAM step / SGD step", "at_most": FULL_STEP_GUARD}
        rows.append(row | {"measured": got, "met": got <= FULL_STEP_GUARD})
        for part in ("optimizer_only", "full_step"):
            got = found[part]["control_a_a"]["ratio"]
            row = {"what": f"{name}: A/A control, {part}, distance from 1", "at_most": 0.05}
            rows.append(row | {"measured": round(abs(got - 1), 4), "met": abs(got - 1) <= 0.05})
    return rows


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    clonable = ", ".join(p.name for p in PEERS if p.source == "git")
    parser.add_argument(
        "--peer", action="append", default=[], metavar="NAME=PATH", help=f"a clone of {clonable}"
    )
    parser.add_argument("--rounds", type=int, default=21, help="paired samples of each class")
    parser.add_argument("--networks", nargs="+", default=list(BATCH), choices=list(BATCH))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/sam_step-cpu.json"))
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    clones = {k: Path(v) for k, v in (x.split("=", 1) for x in options.peer)}
    loaded = {p.name: load(p, clones) for p in PEERS}
    peers = {name: make for name, (make, _) in loaded.items() if make is not None}
    networks = {}
    for name in options.networks:
        print(f"{name}: optimizer only", file=sys.stderr)
        found: dict[str, Any] = {
            "parameters": sum(p.numel() for p in model_of(name).parameters()),
            "batch": BATCH[name],
            "optimizer_only": compare(name, peers, full=False, rounds=options.rounds),
        }
        print(f"{name}: full steps", file=sys.stderr)
        found["full_step"] = compare(name, peers, full=True, rounds=options.rounds)
        print(f"{name}: partial gradients, mask refresh, memory", file=sys.stderr)
        found["partial_gradients"] = partial_gradients(name, max(5, options.rounds // 2))
        found["mask_refresh"] = mask_refresh(name, 5)
        networks[name] = found
    result = {
        "benchmark": "sam_step",
        "hardware": interleaved.hardware(),
        "versions": interleaved.versions(),
        "rounds": options.rounds,
        "base": f"torch.optim.SGD, {OPTIONS}",
        "peers": {n: w if make else f"not run: {w}" for n, (make, w) in loaded.items()},
        "guards": guards(networks),
        "networks": networks,
        "memory_in_copies_of_the_weights": sam_memory.table(),
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    for row in result["guards"]:
        state = {True: "met", False: "MISSED", None: "not run"}[row["met"]]
        print(f"{state:8} {row['what']}: {row['measured']} (at most {row['at_most']})")
    return 0 if all(row["met"] is not False for row in result["guards"]) else 1


if __name__ == "__main__":
    raise SystemExit(main())
