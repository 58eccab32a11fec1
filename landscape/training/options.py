"""Choices of a training, checked once; learning rate and base optimizer that follow from them."""

import math
import zlib
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import nn

from landscape.checks import (
    MOST,
    check_choice,
    check_count,
    check_flag,
    check_fraction,
    check_number,
)
from landscape.errors import LandscapeError

SCHEDULES = ("cosine", "step", "constant")
BASES = ("sgd", "adam", "adamw")
AUGMENTATIONS = ("none", "crop_flip")
AMP = ("off", "bf16", "fp16")
BN = ("first", "second", "both")
_SNAPSHOTS = zlib.crc32(b"steps of snapshots")


@dataclass(frozen=True)
class TrainingOptions:
    """How a model is trained; every field is a number, a word or a list of numbers.

    epochs; batch_size; lr; momentum, nesterov (SGD); betas, eps (Adam); weight_decay, in the base
    optimizer. schedule, per step t of T after `warmup` epochs of linear rise: "cosine"
    lr (1 + cos(π t / T)) / 2, "step" lr times `decay` at each share of T in `milestones`,
    "constant".
    label_smoothing: of the cross-entropy. base: "sgd", "adam", "adamw". augment: "crop_flip" shifts
    images by up to 4 pixels (padded with the mean colour) and mirrors half of them. bn: the pass
    whose batch updates BatchNorm's running statistics. amp: autocast on CUDA, "bf16" or "fp16"
    (with loss scaling). clip_norm: largest ‖g‖ given to the base optimizer, 0 for none.
    keep_every: keep the weights of every so many epochs (0: the last ones alone).

    Example:
        >>> options = training.TrainingOptions(epochs=2, batch_size=16, lr=0.05)
        >>> options.schedule, options.momentum
        ('cosine', 0.9)
    """

    epochs: int = 20
    batch_size: int = 64
    lr: float = 0.1
    momentum: float = 0.9
    nesterov: bool = False
    betas: Sequence[float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 5e-4
    schedule: str = "cosine"
    milestones: Sequence[float] = (0.3, 0.6, 0.8)
    decay: float = 0.2
    warmup: float = 0.0
    label_smoothing: float = 0.0
    base: str = "sgd"
    augment: str = "none"
    bn: str = "first"
    amp: str = "off"
    clip_norm: float = 0.0
    keep_every: int = 0

    def __post_init__(self) -> None:
        for name, choices in (
            ("schedule", SCHEDULES), ("base", BASES), ("augment", AUGMENTATIONS), ("amp", AMP),
            ("bn", BN),
        ):  # fmt: skip
            check_choice(name, getattr(self, name), choices)
        for name, least in (("epochs", 1), ("batch_size", 1), ("keep_every", 0)):
            check_count(name, getattr(self, name), least, most=MOST)
        for name in ("lr", "weight_decay", "warmup", "clip_norm", "eps"):
            check_number(name, getattr(self, name), least=0)
        for name in ("momentum", "label_smoothing", "decay"):
            check_fraction(name, getattr(self, name))
        check_flag("nesterov", self.nesterov)
        if self.warmup > self.epochs:
            raise LandscapeError(
                f"warmup={self.warmup} epochs were asked of epochs={self.epochs}; lower warmup."
            )
        if self.base == "sgd" and self.nesterov and self.momentum == 0:
            raise LandscapeError("nesterov=True needs momentum > 0 and momentum=0 was given.")
        self._check_shares("milestones")
        self._check_shares("betas")
        if len(self.betas) != 2:
            raise LandscapeError(
                f"betas={self.betas} was asked; Adam takes two, such as (0.9, 0.999)."
            )

    def _check_shares(self, name: str) -> None:
        given = getattr(self, name)
        if isinstance(given, (str, Mapping, Set)) or not isinstance(given, Iterable):
            raise LandscapeError(f"{name}={given!r} was asked; give a list of numbers in [0, 1).")
        shares = tuple(check_fraction(name, share, one=False) for share in given)
        object.__setattr__(self, name, shares)  # lists come from TOML

    def steps_per_epoch(self, num_examples: int) -> int:
        """Batches of an epoch; a last batch of one example is left out (BatchNorm needs two)."""
        whole, rest = divmod(num_examples, self.batch_size)
        return max(1, whole + (rest > 1 or (rest == 1 and self.batch_size == 1)))

    def learning_rate(self, step: int, steps: int, per_epoch: int) -> float:
        """Learning rate of `step` (from 0) of `steps`."""
        rise = round(self.warmup * per_epoch)
        if step < rise:
            return self.lr * (step + 1) / rise
        share = (step - rise) / max(1, steps - rise)
        if self.schedule == "cosine":
            return self.lr * 0.5 * (1 + math.cos(math.pi * share))
        if self.schedule == "step":
            return self.lr * self.decay ** sum(step >= round(m * steps) for m in self.milestones)
        return self.lr

    def optimizer(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """The base optimizer."""
        parameters = list(parameters)
        common: dict[str, Any] = {"lr": self.lr, "weight_decay": self.weight_decay}
        if self.base == "sgd":
            return torch.optim.SGD(
                parameters, momentum=self.momentum, nesterov=self.nesterov, fused=True, **common
            )
        make = torch.optim.Adam if self.base == "adam" else torch.optim.AdamW
        beta1, beta2 = self.betas
        return make(parameters, betas=(beta1, beta2), eps=self.eps, fused=True, **common)


@dataclass(frozen=True)
class RecorderOptions:
    """What is kept of every step, and of some steps.

    scalars: per step both losses, ‖e‖, rho, cos(g1, g2), and per tensor energy share, density,
    ‖w_l‖ and the first-order effect g1_l·e_l. snapshots: number of stretches of the training, in
    each of which the masks (one bit a coordinate) and histograms of the gradient's z-scores are
    kept at one step drawn by the seed of the run, and 1, 2, 4, ... steps after it. The steps drawn
    are stratified over the phase within an epoch: what a variant does once an epoch (SSAM renews
    its mask) is met as often as it happens, not at each start. every: besides, keep them each so
    many steps (0: no more), a number that should share no factor with a period of the variant.
    correctness: at each epoch's end, whether the network gets each training example right (one
    forward pass over the training data; see `snapshots.read_correctness`).

    Example:
        >>> training.RecorderOptions(every=7, correctness=True).every
        7
    """

    scalars: bool = True
    snapshots: int = 4
    every: int = 0
    correctness: bool = False

    def __post_init__(self) -> None:
        for name in ("snapshots", "every"):
            check_count(name, getattr(self, name), 0, hint=" (0 keeps none)")

    def steps(self, total: int, *, per_epoch: int, seed: int) -> frozenset[int]:
        """Steps of which a snapshot is kept: a start in each stretch + {0, 1, 2, 4, ...}, the last.

        Each step's phase (step modulo per_epoch) is uniform for every start, and over the starts
        each n-th of an epoch is met once.
        """
        often = frozenset(range(0, total, self.every)) if self.every else frozenset()
        if self.snapshots == 0:
            return often
        starts = _starts(min(self.snapshots, total), total, per_epoch, seed)
        chosen = {a + b for a in starts for b in self._offsets(total) if a + b < total}
        return often | chosen | {total - 1}

    def most(self, total: int) -> int:
        """Snapshots that are kept at most, whatever the seed."""
        often = -(-total // self.every) if self.every else 0
        own = self.snapshots * len(self._offsets(total)) + 1 if self.snapshots else 0
        return min(total, often + own)

    def _offsets(self, total: int) -> list[int]:
        reach = max(1, total // self.snapshots)
        return [0, *(2**i for i in range(reach.bit_length()) if 2**i < reach)]


def _starts(count: int, total: int, per_epoch: int, seed: int) -> list[int]:
    """One step in each of `count` equal stretches, phases stratified over the epoch."""
    random = np.random.default_rng(np.random.SeedSequence([seed, _SNAPSHOTS]))
    phases = (random.permutation(count) + random.random(count)) / count * per_epoch
    starts = []
    for k, phase in enumerate(phases.astype(int)):
        low, high = k * total // count, (k + 1) * total // count
        first = low + (int(phase) - low) % per_epoch
        possible = range(first, high, per_epoch)
        # A stretch shorter than an epoch need not hold the phase; all of them together do.
        possible = possible or range(low, high)
        starts.append(int(possible[int(random.integers(len(possible)))]))
    return starts


def plain(options: TrainingOptions) -> dict[str, Any]:
    """Fields as JSON has them."""
    values = {f.name: getattr(options, f.name) for f in fields(options)}
    return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}
