"""What an accelerator does a second: gradients, products, points of a plane, SAM steps, recording.

    benchmarks/gpu.sh                                   # tests, then this, about ten minutes
    python -m benchmarks.accelerator --minutes 6        # this alone, on CUDA
    python -m benchmarks.accelerator --rehearse         # tiny networks, no device: a minute

The table goes to results/accelerator-<hardware>.json after every network, so that a run that is cut
short leaves what it had; a rehearsal goes through the same lines on the pretend device of
tests/devices, where times mean nothing. Each number is the median of calls of the clock, the device
waited for at both ends; `n` calls within the network's share of the minutes, after one that is not
counted. Peak memory is the allocator's, of the largest row of the network, in MB; on a CPU the
largest resident set of the process. Data are random: nothing here depends on what they are.
"""

import argparse
import json
import re
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.interleaved import hardware, versions
from landscape import EmpiricalRisk, devices, plane, problems, sam
from landscape.problems.resnet import ResNet
from landscape.problems.vit import ViT
from landscape.training import RecorderOptions
from landscape.training.recorder import Recorder

RESULTS = Path(__file__).parent / "results"
IMAGE = (3, 32, 32)
ROWS = ("gradient", "product", "point", "sgd_step", "sam_step", "recorded_sam_step")


class Decoder(nn.Module):
    """A causal transformer as large as GPT-2: tokens (B, T) -> logits (B, vocabulary, T)."""

    def __init__(self, vocabulary: int, length: int, dim: int, depth: int, heads: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, dim)
        self.places = nn.Parameter(0.02 * torch.randn(length, dim))
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                dim, heads, 4 * dim, dropout=0.0, activation="gelu", batch_first=True,
                norm_first=True,
            )
            for _ in range(depth)
        )  # fmt: skip
        self.norm = nn.LayerNorm(dim)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tokens(tokens) + self.places[: tokens.shape[1]]
        mask = torch.full((x.shape[1],) * 2, -torch.inf, device=x.device, dtype=x.dtype).triu(1)
        for block in self.blocks:
            x = block(x, src_mask=mask)
        return (self.norm(x) @ self.tokens.weight.T).movedim(-1, 1)  # the embedding is the head


@dataclass(frozen=True)
class Case:
    """A network and how many examples of it one call takes."""

    model: Callable[[], nn.Module]
    examples: int
    vocabulary: int = 0  # of tokens, where the inputs are no images
    length: int = 0

    def data(self) -> tuple[Tensor, Tensor]:
        source = torch.Generator().manual_seed(0)
        if self.vocabulary:
            text = torch.randint(
                self.vocabulary, (self.examples, self.length + 1), generator=source
            )
            return text[:, :-1], text[:, 1:]
        x = torch.randn(self.examples, *IMAGE, generator=source)
        return x, torch.randint(10, (self.examples,), generator=source)


def _named(name: str) -> Callable[[], nn.Module]:
    return lambda: problems.make_model(name, num_classes=10, input_shape=IMAGE, seed=0)


CASES = {
    "resnet20": Case(_named("resnet20"), 512),
    "resnet18": Case(_named("resnet18"), 256),
    "wide_resnet_28_10": Case(lambda: ResNet((4, 4, 4), (160, 320, 640), num_classes=10), 64),
    "vit_s": Case(
        lambda: ViT(image=IMAGE, patch=4, dim=384, depth=12, heads=6, num_classes=10), 128
    ),
    "gpt2": Case(lambda: Decoder(50257, 1024, 768, 12, 12), 2, vocabulary=50257, length=256),
}
REHEARSED = {
    "resnet": Case(lambda: ResNet((1, 1, 1), (4, 8, 16), num_classes=10), 8),
    "vit": Case(lambda: ViT(image=IMAGE, patch=8, dim=16, depth=1, heads=2, num_classes=10), 8),
    "gpt": Case(lambda: Decoder(50, 16, 16, 2, 2), 2, vocabulary=50, length=12),
}


def timed(call: Callable[[], Any], device: torch.device, seconds: float) -> dict[str, float]:
    """Median seconds of a call, and their number: at least 3, as many as fit."""
    call()
    taken: list[float] = []
    ends = time.perf_counter() + seconds
    while len(taken) < 3 or time.perf_counter() < ends:
        devices.synchronize(device)
        began = time.perf_counter()
        call()
        devices.synchronize(device)
        taken.append(time.perf_counter() - began)
    middle = statistics.median(taken)
    return {"ms": round(1e3 * middle, 3), "a_second": round(1 / middle, 2), "n": len(taken)}


def calls(case: Case, device: torch.device, folder: Path) -> dict[str, Callable[[], Any]]:
    """One call of each row."""
    x, y = case.data()
    model = case.model()
    risk = EmpiricalRisk(model, nn.CrossEntropyLoss(), (x, y), device=device, dtype=torch.float32)
    theta = risk.theta
    v = torch.randn(len(theta), generator=torch.Generator().manual_seed(1)).to(theta)
    product = risk.linearized_hvp(theta)
    directions = plane.random(risk, theta, num_directions=2, seed=0)
    return {
        "gradient": lambda: risk.gradient(theta),
        "product": lambda: product(v),
        "point": lambda: risk.loss(directions.point(0.1, 0.1)),
        **steps(model, (x, y), device, folder),
    }


def steps(
    model: nn.Module, batch: tuple[Tensor, Tensor], device: torch.device, folder: Path
) -> dict[str, Callable[[], Any]]:
    """One step of SGD, of SAM, and of SAM with a recorder that writes to `folder`."""
    trained, batch = model.to(device), (batch[0].to(device), batch[1].to(device))
    optimizers = {
        name: sam.SAM(trained, torch.optim.SGD(trained.parameters(), lr=1e-4, momentum=0.9), each)
        for name, each in {"sgd": sam.sgd(), "sam": sam.sam(0.05), "seen": sam.sam(0.05)}.items()
    }
    recorder = Recorder(
        folder, RecorderOptions(scalars=True, snapshots=0), optimizers["seen"], [], run="benchmark"
    )

    def losses(part: Any) -> Tensor:
        each = nn.functional.cross_entropy(trained(part[0]), part[1], reduction="none")
        return each.reshape(len(each), -1).mean(1)

    def recorded() -> None:
        recorder.before()
        optimizers["seen"].step(losses, batch)
        recorder.record(1, 0)

    return {
        "sgd_step": lambda: optimizers["sgd"].step(losses, batch),
        "sam_step": lambda: optimizers["sam"].step(losses, batch),
        "recorded_sam_step": recorded,
    }


def measured(case: Case, device: torch.device, seconds: float) -> dict[str, Any]:
    """Every row of a network, within about this many seconds."""
    memory = torch.get_device_module(device.type)
    on_device = devices.is_accelerator(device)
    if on_device:
        memory.reset_peak_memory_stats()
    with tempfile.TemporaryDirectory() as folder:
        rows = calls(case, device, Path(folder))
        found = {name: timed(rows[name], device, seconds / len(ROWS)) for name in ROWS}
    peak = (
        memory.max_memory_allocated() / 2**20
        if on_device
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    )
    parameters = sum(p.numel() for p in case.model().parameters())
    gradient, plain = found["gradient"]["ms"], found["sgd_step"]["ms"]
    return {
        "parameters": parameters,
        "examples": case.examples,
        "peak_mb": round(peak),
        "product_in_gradients": round(found["product"]["ms"] / gradient, 2),
        "sam_step_in_sgd_steps": round(found["sam_step"]["ms"] / plain, 2),
        "rows": found,
    }


def markdown(table: dict[str, Any]) -> str:
    """The networks of a results file: calls a second, ratios and memory."""
    head = ["network", "parameters", "examples", *(f"{row} /s" for row in ROWS),
            "product / gradient", "SAM / SGD", "peak MB"]  # fmt: skip
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for name, each in table["networks"].items():
        if "failed" in each:
            lines.append(f"| {name} | failed: {each['failed']} |" + " |" * (len(head) - 2))
            continue
        cells = [name, each["parameters"], each["examples"],
                 *(each["rows"][row]["a_second"] for row in ROWS),
                 each["product_in_gradients"], each["sam_step_in_sgd_steps"],
                 each["peak_mb"]]  # fmt: skip
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", help="by default cuda; of a rehearsal the pretend device")
    parser.add_argument("--minutes", type=float, default=6.0)
    parser.add_argument("--rehearse", action="store_true", help="tiny networks")
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    if given.rehearse and given.device is None:
        from tests.devices import pretend

        given.device = pretend.DEVICE
    device = torch.device(given.device or "cuda")
    if not devices.count(device.type):
        raise SystemExit(f"torch finds no {device.type} device here; --rehearse needs none.")
    cases = REHEARSED if given.rehearse else CASES
    minutes = min(given.minutes, 0.05) if given.rehearse else given.minutes
    name = devices.name(device)
    kind = "rehearsal" if given.rehearse else re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    path = given.out / f"accelerator-{kind}.json"
    table: dict[str, Any] = {
        "device": name, "machine": hardware(), "versions": versions(), "networks": {},
    }  # fmt: skip
    for network, case in cases.items():
        try:
            found = measured(case, device, 60 * minutes / len(cases))
        except torch.OutOfMemoryError as error:
            found = {"failed": str(error).splitlines()[0]}
        table["networks"][network] = found
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(table, indent=1, ensure_ascii=False) + "\n")
        print(f"{network} done", flush=True)
    print(markdown(table))
    print(path)


if __name__ == "__main__":
    main()
