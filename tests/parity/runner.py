"""Run one case and compare it with its stored trajectory."""

import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from landscape import sam
from tests.parity.cases import variant_of
from tests.parity.problem import Problem

STORED_STEPS = (1, 2, 5, 20)
TOLERANCE, TOLERANCE_ADAM = 1e-10, 1e-8


def run_file(path: Path) -> tuple[str, str]:
    """("passed" | "failed" | "skipped", one line of detail)."""
    kind = path.stem.rsplit("__", 1)[1]
    with np.load(path) as stored:
        arrays = {k: stored[k] for k in stored.files}
    meta = json.loads(str(arrays.pop("meta")))
    problem = Problem.load(path.parent, kind)
    variant = variant_of(meta, arrays, problem)
    if variant is None:
        return "skipped", "no row reproduces it"
    ours = trajectory(meta, arrays, problem, variant)
    tolerance = TOLERANCE_ADAM if meta["base"].startswith("Adam") else TOLERANCE
    errors = {key: distance(ours[key], value) for key, value in expected(arrays).items()}
    detail = " ".join(
        f"{k} {v:.1e}" if isinstance(v, float) else f"{k} {v}" for k, v in errors.items()
    )
    bad = [k for k, v in errors.items() if not v <= (0 if k.startswith("MASK") else tolerance)]
    return (
        ("failed", f"{', '.join(bad)} beyond {tolerance:g}: {detail}")
        if bad
        else ("passed", detail)
    )


def expected(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What a trajectory is compared in; the other arrays are its inputs."""
    keys = ("W_1_2_5_20", "PROJ", "LOSS1", "LOSS2", "ENORM", "E_0", "PROB")
    out = {k: arrays[k] for k in keys if k in arrays}
    out |= {k: arrays[k] for k in ("MASK_USED_BITS", "MASK_AFTER_BITS") if k in arrays}
    return out


def distance(ours: np.ndarray, stored: np.ndarray) -> float | int:
    """Largest absolute difference; for packed masks the number of differing coordinates."""
    if stored.dtype == np.uint8:
        return int(np.unpackbits(ours ^ stored).sum())
    return float(np.max(np.abs(ours - stored))) if ours.shape == stored.shape else np.inf


def trajectory(meta, arrays, problem: Problem, variant) -> dict[str, np.ndarray]:
    """Twenty steps of the variant on the stored problem, in the stored keys."""
    model, hp = problem.model, meta["hp"]
    base = make_base(meta["base"], hp, model)
    bn = "first" if "pass1" in meta.get("bn", "pass1") else "both"
    optimizer = sam.SAM(model, base, variant, seed=0, bn=bn)
    smoothing = hp.get("smoothing", 0.0)

    def losses(batch):
        return smoothed_loss(model(batch[0]), batch[1], smoothing)

    optimizer.set_fisher_data(losses, (problem.x, problem.y), shuffle=False)
    if "MASK0" in arrays:
        mask = problem.unflatten(arrays["MASK0"])
        optimizer.slots["selector"]["mask"] = {k: m.bool() for k, m in mask.items()}
    record = Record(problem)
    for step, (epoch, batch) in enumerate(problem.batches()):
        optimizer.begin_epoch(epoch, 4)
        if "LR" in arrays:
            for group in base.param_groups:
                group["lr"] = float(arrays["LR"][step])
        record.before(optimizer)
        loss = optimizer.step(losses, batch)
        record.add(optimizer, loss)
    return record.arrays()


def smoothed_loss(logits: torch.Tensor, y: torch.Tensor, smoothing: float) -> torch.Tensor:
    """KL divergence from 1 - s on the class and s/(C - 1) on each other one, per example."""
    if smoothing == 0:
        return F.cross_entropy(logits, y, reduction="none")
    target = torch.full_like(logits, smoothing / (logits.shape[1] - 1))
    target.scatter_(1, y[:, None], 1 - smoothing)
    return F.kl_div(F.log_softmax(logits, dim=1), target, reduction="none").sum(dim=1)


def make_base(name: str, hp: dict, model: nn.Module) -> torch.optim.Optimizer:
    """The base optimizer of a case."""
    kind = {"SGD": torch.optim.SGD, "Adam": torch.optim.Adam, "AdamW": torch.optim.AdamW}[name]
    keys = ("lr", "momentum", "weight_decay") if name == "SGD" else ("lr", "betas", "weight_decay")
    options = {k: hp[k] for k in keys if k in hp}
    return kind(model.parameters(), **options)


class Record:
    """What the stored trajectories hold, step by step."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        size = len(problem.flat())
        random = np.random.RandomState(7)
        self.basis = random.randn(size, 32) / np.sqrt(size)
        self.weights = [problem.flat()]
        self.rows: dict[str, list] = {
            k: [] for k in ("LOSS1", "LOSS2", "ENORM", "E", "USED", "AFTER", "PROB")
        }

    def add(self, optimizer, loss) -> None:
        p = optimizer.perturbation
        self.weights.append(self.problem.flat())
        self.rows["LOSS1"].append(float(loss))
        self.rows["LOSS2"].append(float(p.loss_perturbed))
        self.rows["ENORM"].append(float(p.norm))
        self.rows["E"].append(flatten(p.e))
        self.rows["USED"].append(np.packbits(flatten(p.mask)))
        state = optimizer.slots["selector"]
        after = state.get("mask", p.mask)
        if "live" in state:  # whole tensors, drawn for the next step
            live = zip(p.mask.items(), state["live"], strict=True)
            after = {name: torch.full_like(m, on) for (name, m), on in live}
        self.rows["AFTER"].append(np.packbits(flatten(after)))

    def before(self, optimizer) -> None:
        """Probabilities are stored as they are before each step."""
        share = getattr(optimizer.variant.selector, "share", None)
        if share is not None:
            start = torch.full((len(optimizer.trained.names),), share, dtype=torch.float64)
            now = optimizer.slots["selector"].get("probabilities", start)
            self.rows["PROB"].append(now.numpy().copy())

    def arrays(self) -> dict[str, np.ndarray]:
        rows = self.rows
        return {
            "W_1_2_5_20": np.stack([self.weights[t] for t in STORED_STEPS]),
            "PROJ": np.stack(self.weights) @ self.basis,
            "LOSS1": np.array(rows["LOSS1"]),
            "LOSS2": np.array(rows["LOSS2"]),
            "ENORM": np.array(rows["ENORM"]),
            "E_0": rows["E"][0],
            "MASK_USED_BITS": np.stack(rows["USED"]),
            "MASK_AFTER_BITS": np.stack(rows["AFTER"]),
            "PROB": np.array(rows["PROB"]),
        }


def flatten(named) -> np.ndarray:
    """Tensors by name as one vector, in the model's order."""
    return torch.cat([t.detach().reshape(-1) for t in named.values()]).numpy()
