"""What a step of `landscape.sam` costs, against SGD and against the published classes.

    pip install --no-deps --target ../peers pytorch-optimizer==4.1.0     # the peer on PyPI, once
    PYTHONPATH=../peers python -m benchmarks.sam_step                    # minutes
    ... --peer davda54/sam=../sam --peer F-SAM=../F-SAM --peer ZSharp=../ZSharp   # clones
    ... --networks vit_ti --parts optimizer_only   # a piece, put into the file beside the others

Optimizer-only: the step with closures that hand out stored gradients, their own time taken off.
Full step: forward and backward passes included. CPU time, runs in turn, an A/A control in each
group; ratios are medians of paired ratios with 95 % bootstrap intervals. See benchmarks/README.md.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks import interleaved, networks, sam_memory
from benchmarks.sam_peers import OPTIONS, PEERS, load
from landscape import sam
from landscape.problems import make_model

BATCH = {"resnet20": 16, "cifar_vit": 16, "vit_ti": 8, "vit_ti_fused": 8}
GUARDED = ("resnet20", "cifar_vit", "vit_ti")
BASE = {"vit_ti_fused": {"fused": True}}
# No slower than the published class, where no slower is what the A/A control can tell.
GUARDS = {"davda54/sam": 1.0, "F-SAM": 1.0, "ZSharp": 1.0}
FULL_STEP_GUARD = 2.2
BUILDS = 4  # every class is made anew so often: where its memory lies is a matter of luck
SECONDS = 0.02  # of a sample: short, so that both of a pair meet the same neighbours
LEAN = " without perturbation kept"
PARTS = ("optimizer_only", "full_step", "partial_gradients", "mask_refresh", "memory")
OURS = {
    "sam": sam.sam(0.05),
    "fsam": sam.fsam(0.05),
    "zsharp": sam.zsharp(0.05),
}


def model_of(name: str) -> nn.Module:
    if name == "cifar_vit":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return networks.cifar_vit()
    known = "vit" if name.startswith("vit_ti") else name
    return make_model(known, num_classes=10, input_shape=(3, 32, 32), seed=0)


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
        for p in self.parameters:
            p.grad = None
        self.loss, self.seconds = torch.zeros(()), 0.0  # 0: no pass to be seen at w + e

    def __call__(self) -> torch.Tensor:
        start = time.process_time()
        for p, g in zip(self.parameters, self.gradients, strict=True):
            p.grad = g.clone()
        self.seconds += time.process_time() - start
        return self.loss

    def taken(self) -> float:
        seconds, self.seconds = self.seconds, 0.0
        return seconds


def sgd(model: nn.Module, **base: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), **OPTIONS, **base)


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


def arithmetic(model: nn.Module, base: Any, closure: Callable[[], Any]) -> Callable[[], float]:
    """SAM's arithmetic alone: norm of g1, w + e into kept memory, norm of g2, the base step.

    What is left between this and the class is what the class does beside it.
    """
    parameters = list(model.parameters())
    own = [p.data for p in parameters]
    buffers = [torch.empty_like(w) for w in own]

    @torch.no_grad()
    def step() -> float:
        for p in parameters:
            p.grad = None
        closure()
        g1 = [p.grad for p in parameters]
        factor = 0.05 / float(torch.stack(torch._foreach_norm(g1)).norm())
        for p, w, g, buffer in zip(parameters, own, g1, buffers, strict=True):
            p.data = torch.add(w, g, alpha=factor, out=buffer)
            p.grad = None
        closure()
        for p, w in zip(parameters, own, strict=True):
            p.data = w
        if torch.isfinite(torch.stack(torch._foreach_norm([p.grad for p in parameters])).sum()):
            base.step()
        return closure.taken()

    return step


def make_runs(
    name: str, peers: dict[str, Any], full: bool
) -> dict[str, Callable[[], float | None]]:
    """Every class on its own copy of the model, on the same batch."""
    data = data_of(name)

    def run(make: Callable[[nn.Module], Any], kind: str) -> Callable[[], float]:
        model = model_of(name)
        return steps(model, make, (closure_of if full else Stored)(model, data), kind)

    base = BASE.get(name, {})

    def ours(variant: sam.Variant, *, keep: bool = True) -> Callable[[], float]:
        return run(lambda m: sam.SAM(m, sgd(m, **base), variant, keep_perturbation=keep), "ours")

    runs: dict[str, Callable[[], float | None]] = {"SGD": run(lambda m: sgd(m, **base), "sgd")}
    for recipe, variant in OURS.items():
        runs[recipe] = ours(variant)
        if not full:
            runs[recipe + LEAN] = ours(variant, keep=False)
    if not full:
        model = model_of(name)
        runs["arithmetic of sam alone"] = arithmetic(model, sgd(model, **base), Stored(model, data))
    runs["sam again"] = ours(OURS["sam"])
    for label, make in peers.items():
        runs[label] = run(lambda m, make=make: make(list(m.parameters()), **base), "peer")
    return runs


def compare(name: str, peers: dict[str, Any], *, full: bool, rounds: int) -> dict[str, Any]:
    """All classes on one network: ms per step, ratios to SGD and of ours to the published ones."""
    samples: dict[str, list[float]] = {}
    places = {"sam": "sam again", "sam again": "sam"}
    for build in range(BUILDS):
        runs = make_runs(name, peers, full)
        if build % 2:  # what runs before a class takes its cache: the two change places
            runs = {places.get(label, label): run for label, run in runs.items()}
        of_these = interleaved.in_turn(runs, rounds=math.ceil(rounds / BUILDS), seconds=SECONDS)
        for label, found in of_these.items():
            samples.setdefault(label, []).extend(found)
    ratio = interleaved.paired_ratio
    recipe_of = {p.name: p.recipe for p in PEERS}
    lean = {} if full else {k: ratio(samples[recipe_of[k] + LEAN], samples[k]) for k in peers}
    floor = {} if full else {
        k: ratio(samples["arithmetic of sam alone"], samples[k])
        for k in peers
        if recipe_of[k] == "sam"
    }  # fmt: skip
    return {
        "cpu_ms": {k: interleaved.milliseconds(v) for k, v in samples.items()},
        "control_a_a": ratio(samples["sam again"], samples["sam"]),
        "relative_to_sgd": {
            k: ratio(v, samples["SGD"]) for k, v in samples.items() if k not in ("SGD", "sam again")
        },
        "relative_to_published": {
            k: ratio(samples[recipe_of[k]], samples[k]) for k in peers if k in samples
        },
        "relative_to_published" + LEAN.replace(" ", "_"): lean,
        "arithmetic_of_sam_alone_relative_to_published": floor,
    }


def partial_gradients(name: str, rounds: int) -> dict[str, Any]:
    """Full steps that leave gradients out, against the same variant that computes them all."""
    data, pairs = data_of(name), {}
    norms = "identity"
    for label, part, whole in (
        ("sam_on, first pass: norm layers only", sam.sam_on(0.5, metric=norms), sam.sam(0.05)),
        ("lagnp, second pass: half of the layers", sam.lagnp(0.1, fraction=0.5), sam.gnp(0.1)),
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


def guards(found: dict[str, Any]) -> list[dict[str, Any]]:
    """Every bar with what was measured; at_most None: no bar concerns this network, see README."""
    rows = []

    def add(what: str, bar: float | None, measured: float | None, beyond: float = 0.0) -> None:
        shown = {"measured": "not run" if measured is None else round(measured, 4)}
        met = None if measured is None or bar is None else measured <= bar + beyond
        rows.append({"what": what, "at_most": bar} | shown | {"met": met})

    for name, parts in found.items():
        alone, whole = parts.get("optimizer_only"), parts.get("full_step")
        for key, label in (("", ""), (LEAN.replace(" ", "_"), "," + LEAN)):
            for peer, bar in GUARDS.items() if alone else ():
                got = alone["relative_to_published" + key].get(peer)
                what = f"{name}: optimizer-only, ours / {peer}{label}"
                bar = bar if name in GUARDED else None
                unresolved = abs(alone["control_a_a"]["ratio"] - 1)
                add(what, bar, got["ratio"] if got else None, unresolved)
        if whole:
            sam_step = whole["relative_to_sgd"]["sam"]["ratio"]
            add(f"{name}: full SAM step / SGD step", FULL_STEP_GUARD, sam_step)
        for part, measured in (("optimizer_only", alone), ("full_step", whole)):
            if measured:
                off = abs(measured["control_a_a"]["ratio"] - 1)
                add(f"{name}: A/A control, {part}, distance from 1", 0.05, off)
    return rows


def commit() -> str:
    """The commit that is measured, asked before anything is."""
    return interleaved.commit_of(Path(__file__).parent, "--short")


def measure(
    name: str, peers: dict[str, Any], parts: list[str], rounds: int, revision: str
) -> dict[str, Any]:
    """The asked parts of one network."""
    found: dict[str, Any] = {
        "parameters": sum(p.numel() for p in model_of(name).parameters()),
        "batch": BATCH[name],
    }
    for part in parts:
        print(f"{name}: {part}", file=sys.stderr)
        if part in ("optimizer_only", "full_step"):
            times = rounds if part == "full_step" else 5 * rounds
            found[part] = compare(name, peers, full=part == "full_step", rounds=times)
        elif part == "partial_gradients":
            found[part] = partial_gradients(name, rounds)
        elif part == "mask_refresh":
            found[part] = mask_refresh(name, max(5, rounds // 2))
        if part in found:
            found[part]["commit"] = revision
    return found


def earlier(path: Path, same: dict[str, Any]) -> dict[str, Any]:
    """The networks and memory in the file, where they are of the same machine and versions."""
    if not path.exists():
        return {}
    result = json.loads(path.read_text(encoding="utf-8"))
    return result if all(result.get(k) == v for k, v in same.items()) else {}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    clonable = ", ".join(p.name for p in PEERS if p.source == "git")
    parser.add_argument(
        "--peer", action="append", default=[], metavar="NAME=PATH", help=f"a clone of {clonable}"
    )
    parser.add_argument(
        "--rounds", type=int, default=20, help="paired samples; optimizer_only 5 times as many"
    )
    parser.add_argument("--networks", nargs="+", default=list(BATCH), choices=list(BATCH))
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/sam_step-cpu.json"))
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    clones = {k: Path(v) for k, v in (x.split("=", 1) for x in options.peer)}
    loaded = {p.name: load(p, clones) for p in PEERS}
    peers = {name: make for name, (make, _) in loaded.items() if make is not None}
    result = {
        "benchmark": "sam_step",
        "hardware": interleaved.hardware(),
        "versions": interleaved.versions(),
        "base": f"torch.optim.SGD, {OPTIONS}",
        "peers": {n: w if make else f"not run: {w}" for n, (make, w) in loaded.items()},
    }
    before, revision = earlier(options.out, result), commit()
    found = before.get("networks", {})
    for name in options.networks:
        parts = measure(name, peers, options.parts, options.rounds, revision)
        found[name] = found.get(name, {}) | parts
    memory = sam_memory.table() if "memory" in options.parts else None
    result |= {
        "guards": guards(found),
        "networks": found,
        "memory_in_copies_of_the_weights": memory or before.get("memory_in_copies_of_the_weights"),
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    for row in result["guards"]:
        state = {True: "met", False: "MISSED", None: "-"}[row["met"]]
        bar = "no guard" if row["at_most"] is None else f"at most {row['at_most']}"
        print(f"{state:8} {row['what']}: {row['measured']} ({bar})")
    return 0 if all(row["met"] is not False for row in result["guards"]) else 1


if __name__ == "__main__":
    raise SystemExit(main())
