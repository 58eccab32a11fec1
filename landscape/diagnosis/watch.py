"""What the passes of a step show beside weights and gradients: examples, random state, buffers."""

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._pytree import tree_leaves

from landscape import devices, vectors
from landscape.diagnosis.counted import EVERY, Counted
from landscape.sam import SAM
from landscape.sam.trained import Trained

# Rows of the Gram matrix of a step: e, both gradients, the gradient that the optimizer got, the
# weights, what they differ by when it steps, e / |w| (arXiv:2102.11600, Eq. 5), g1 where e is.
ROWS = ("e", "g1", "g2", "d", "w", "r", "adaptive", "selected")
_CHUNK = 1 << 18  # entries whose rows fit a cache


@dataclass
class Pass:
    """Forward passes at the same weights, one after the other."""

    moved: bool
    buffers: list[Tensor]
    after: list[Tensor] = field(default_factory=list)
    examples: list[Tensor] = field(default_factory=list)
    states: list[devices.RandomState] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)
    losses: list[Tensor] = field(default_factory=list)
    random: bool = False
    readable: bool = True

    @property
    def loss(self) -> float:
        """The sum of what was differentiated; NaN where none was seen."""
        return float(sum(map(float, self.losses))) if self.losses else math.nan

    def same_examples(self, other: "Pass") -> float | None:
        """Share of the other pass's examples that are here too; None where inputs are no tensors.

        1 where they are the same, above 1 where the other holds a part of these.
        """
        if not (self.readable and other.readable and self.examples and other.examples):
            return None
        a, b = (torch.cat(p.examples).double().cpu().sort().values for p in (self, other))
        place = torch.searchsorted(a, b).clamp(max=len(a) - 1)
        near = torch.minimum((a[place] - b).abs(), (a[(place - 1).clamp(min=0)] - b).abs())
        share = float((near <= 1e-9 * (1 + b.abs())).double().mean())
        return share if share < 1 else max(1.0, len(a) / len(b))


@dataclass(frozen=True)
class Look:
    """The numbers of one step that was looked at."""

    step: int
    climbed: bool
    repeated: bool  # the same examples again, at the same weights
    returned: bool  # passes at w after the climb: what belongs to g1 is not known
    gram: dict[tuple[str, str], float]
    rho: float
    scale: float
    eps: float
    examples: float | None = None
    random: bool = False
    same_random: bool = True
    same_outputs: bool = False
    updates: int = 0
    losses: tuple[float, float] = (math.nan, math.nan)
    stepped: bool = False
    tensors_of_length: bool = False

    def __getitem__(self, pair: tuple[str, str]) -> float:
        return self.gram[pair]

    def length(self, row: str) -> float:
        """‖row‖."""
        return math.sqrt(max(0.0, self.gram[row, row]))

    def cosine(self, a: str, b: str) -> float:
        """Cosine of two rows, NaN where one is zero."""
        size = self.length(a) * self.length(b)
        return self.gram[a, b] / size if size > 0 else math.nan

    def sine(self, a: str, b: str) -> float:
        """Sine of the angle between two rows."""
        cos = self.cosine(a, b)
        return math.sqrt(max(0.0, 1 - cos * cos)) if cos == cos else math.nan


class Watch:
    """Follows the steps of a recording; a `Look` for some, counts for all.

    model: the module that the loop calls. trained: its trained tensors, where they lie. scaler: the
    loop's `torch.amp.GradScaler`, or None. every: of the steps after the first 16 one in so many is
    looked at. `landscape.record` makes one: `recording.watch`.

    Example:
        >>> base = torch.optim.SGD(model.parameters(), lr=0.0)
        >>> with record(model, rho=0.05) as seen:
        ...     _ = sam.SAM(model, base, sam.sam(0.05)).step(losses, data)
        >>> diagnosis.judge(seen.watch).num_steps
        1
    """

    def __init__(self, model: nn.Module, trained: Trained, scaler: Any, every: int = EVERY) -> None:
        self.model, self.scaler = model, scaler
        self.names, self.modules = trained.names, trained.modules
        self.parameters = trained.parameters
        self.eps = max(torch.finfo(p.dtype).eps for p in trained.parameters)
        self.looks: list[Look] = []
        self.counted = Counted(every)
        self.num_not_finite = 0  # steps looked at whose gradients or e were not
        self.own: SAM | None = None
        self.groups: list[tuple[float, set[str]]] = []
        self.maximizes = False  # some group, whose ascent is down the loss
        self.energy = torch.zeros(len(trained.names), dtype=torch.float64)
        self.reached = torch.zeros(len(trained.names), dtype=torch.float64)
        self.begin()

    @property
    def num_steps(self) -> int:
        """All steps, looked at or counted."""
        return self.counted.num_steps

    def begin(self, *, looking: bool = False) -> None:
        """Begin a new step. looking: look at it, whether its turn has come or not."""
        self.passes: list[Pass] = []
        self.num_passes = 0
        self.matrix: Tensor | None = None
        self.seen_passes = -1
        self.looking = self.counted.looks() or looking

    # ------------------------------------------------------------------------------- in a step

    def before_forward(self, moved: bool, new: bool, inputs: Any) -> None:
        """A forward pass begins, at w or at other weights; `new` ones where they differ."""
        if not self.passes or new or moved != self.passes[-1].moved:
            self.passes.append(Pass(moved, self._buffers()))
        found = self.passes[-1]
        rows = _examples(inputs)
        found.readable &= rows is not None
        if rows is not None:
            found.examples.append(rows)
        found.states.append(self._random_state())

    def after_forward(self, outputs: Any) -> None:
        """The forward pass that began last has ended."""
        if not self.looking or not self.passes:
            return
        found = self.passes[-1]
        now = self._random_state()
        found.after = self._buffers()
        found.random |= not devices.same_state(found.states[-1], now)
        for leaf in tree_leaves(_plain(outputs)):
            if isinstance(leaf, Tensor) and leaf.is_floating_point():
                x = leaf.detach().flatten()
                found.outputs += [x.sum(), x[:1].sum(), vectors.squared_norm(x)]
                break

    def differentiated(self, tensors: Any) -> None:
        """`backward` was called on a loss."""
        for t in (tensors,) if isinstance(tensors, Tensor) else tensors or ():
            if isinstance(t, Tensor) and t.numel() == 1:
                loss = t.detach()
                self.counted.differentiated(loss)
                if self.passes:
                    self.passes[-1].losses.append(loss)

    @torch.no_grad()
    def before_step(self, optimizer: Optimizer, seen: Any) -> None:
        """An optimizer is about to step: with which gradient, at which weights."""
        if isinstance(optimizer, SAM):
            self.own = optimizer
        if not self.looking:
            return
        name = {id(p): n for n, p in zip(self.names, self.parameters, strict=True)}
        self.groups = [
            (
                float(g.get("sam_rho", g.get("rho", math.nan))),
                {name[id(p)] for p in g["params"] if id(p) in name},
            )
            for g in optimizer.param_groups
        ]
        self.maximizes = any(g.get("maximize") for g in optimizer.param_groups)
        if seen.begun:
            self.matrix = self._grams(seen, stepping=True)
            self.seen_passes = sum(len(p.states) for p in self.passes)

    # ------------------------------------------------------------------------- at a step's end

    @torch.no_grad()
    def end(self, seen: Any, rho: float) -> None:
        """The step has ended; `begin` comes next."""
        if self.looking and self.passes:
            now = self.seen_passes == sum(len(p.states) for p in self.passes)
            stepped = self.matrix if now else None
            grams = self._grams(seen, stepping=False) if stepped is None else stepped
            self._keep(grams.cpu().double(), seen, rho, stepped is not None)
        self.counted.end(self.num_passes, looked=self.looking)

    def _keep(self, grams: Tensor, seen: Any, rho: float, stepped: bool) -> None:
        total = grams.sum(0)
        if not torch.isfinite(total).all():
            self.num_not_finite += 1
            return
        self.energy = torch.maximum(self.energy, grams[:, 0, 0])
        self.reached = torch.maximum(self.reached, grams[:, 1, 1])
        clean = next((p for p in self.passes if not p.moved), self.passes[0])
        moved = [i for i, p in enumerate(self.passes) if p.moved]
        last = self.passes[moved[-1]] if moved else None
        e = grams[:, 0, 0].sqrt()
        if rho != rho and self.own is not None and self.own.keep_perturbation and moved:
            rho = float(self.own.perturbation.rho)
        facts = {} if last is None else _compared(clean, last)
        self.looks.append(
            Look(
                step=self.num_steps,
                climbed=seen.e is not None,
                repeated=not moved and _again(self.passes[0]),
                returned=bool(moved) and any(not p.moved for p in self.passes[moved[0] :]),
                gram={
                    (a, b): float(total[i, j])
                    for i, a in enumerate(ROWS) for j, b in enumerate(ROWS)
                },
                rho=rho,
                scale=math.nan if self.scaler is None else float(self.scaler.get_scale()),
                eps=self.eps,
                updates=self._updates(),
                losses=(clean.loss, math.nan if last is None else last.loss),
                stepped=stepped,
                tensors_of_length=bool(((e - rho).abs() <= 1e-3 * rho)[e > 0].all()),
                **facts,
            )
        )  # fmt: skip

    def _updates(self) -> int:
        """Passes after which the buffers stayed changed."""
        end = self._buffers()
        if _equal(end, self.passes[0].after):  # what came later was taken back
            return int(not _equal(end, self.passes[0].buffers))
        states = [p.buffers for p in self.passes] + [end]
        return sum(not _equal(a, b) for a, b in pairwise(states))

    def _buffers(self) -> list[Tensor]:
        # A count of batches goes on in a BatchNorm of momentum 0, whose statistics stay.
        return [b.detach().clone() for b in self.model.buffers() if b.is_floating_point()]

    def _random_state(self) -> devices.RandomState:
        return devices.rng_state(self.parameters[0].device)

    def _grams(self, seen: Any, *, stepping: bool) -> Tensor:
        """(tensors, rows, rows) inner products, summed in float64 where the device has it."""
        found = []
        for i, p in enumerate(self.parameters):
            e = None if seen.e is None else seen.e[i]
            d = p.grad if stepping else None
            found.append(_gram(e, seen.g1[i], seen.g2[i], d, seen.anchor[i], p.detach(), stepping))
        return torch.stack([g.to(found[0].device) for g in found])


def _gram(
    e: Tensor | None, g1: Tensor | None, g2: Tensor | None, d: Tensor | None, w: Tensor,
    now: Tensor, stepping: bool,
) -> Tensor:  # fmt: skip
    wide = torch.float32 if w.device.type == "mps" else torch.float64
    total = torch.zeros(len(ROWS), len(ROWS), dtype=wide, device=w.device)
    parts = [None if x is None else (x.to_dense() if x.is_sparse else x).reshape(-1)
             for x in (e, g1, g2, d, w, now)]  # fmt: skip
    for a in range(0, w.numel(), _CHUNK):
        nothing = torch.zeros(min(_CHUNK, w.numel() - a), dtype=wide, device=w.device)
        e_, g1_, g2_, d_, w_, now_ = (
            nothing if x is None else x[a : a + _CHUNK].to(w.device, wide) for x in parts
        )
        r = now_ - w_ if stepping else torch.zeros_like(w_)
        adaptive = torch.where(w_ != 0, e_ / w_.abs(), 0.0)
        rows = torch.stack([e_, g1_, g2_, d_, w_, r, adaptive, g1_ * (e_ != 0)])
        total += vectors.gram(rows)
    return total


def _examples(inputs: Any) -> Tensor | None:
    """A number for each example of a batch, equal for equal ones; None without a tensor."""
    leaves = [x.detach() for x in tree_leaves(_plain(inputs)) if isinstance(x, Tensor) and x.ndim]
    leaves = [x for x in leaves if len(x) == len(leaves[0])]
    if not leaves:
        return None
    mixed = []
    for k, x in enumerate(leaves):
        rows = x.reshape(len(x), -1)
        rows = torch.nan_to_num(rows.to(torch.float32 if x.device.type == "mps" else torch.float64))
        mix = torch.arange(1, rows.shape[1] + 1, device=x.device, dtype=rows.dtype)
        mixed.append(vectors.project(rows, torch.cos(mix * (k + 1.7))))
    return functools.reduce(torch.add, mixed)


def _plain(value: Any) -> Any:
    """Mappings as lists: a batch of a tokenizer is none that torch knows."""
    if isinstance(value, Mapping):
        value = list(value.values())
    return [_plain(v) for v in value] if isinstance(value, (list, tuple)) else value


def _equal(a: list[Tensor], b: list[Tensor]) -> bool:
    return len(a) == len(b) and all(map(torch.equal, a, b))


def _again(found: Pass) -> bool:
    """Whether the same batch passed more than once."""
    batches = [x.cpu() for x in found.examples]
    return any(
        a.shape == b.shape and torch.allclose(a, b, rtol=1e-9, atol=1e-9)
        for i, a in enumerate(batches) for b in batches[:i]
    )  # fmt: skip


def _compared(clean: Pass, last: Pass) -> dict[str, Any]:
    random = clean.random or last.random
    same = len(clean.states) == len(last.states) and all(
        map(devices.same_state, clean.states, last.states)
    )
    outputs = bool(clean.outputs) and len(clean.outputs) == len(last.outputs) and all(
        map(torch.equal, clean.outputs, last.outputs)
    )  # fmt: skip
    return {
        "examples": clean.same_examples(last), "random": random, "same_random": same,
        "same_outputs": outputs,
    }  # fmt: skip
