"""Record what any optimizer perturbs, seen from the weights at the model's forward passes."""

import contextlib
import hashlib
import math
import sys
import warnings
from collections.abc import Generator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Adadelta, Optimizer
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from landscape import diagnosis, snapshots, vectors
from landscape.checks import check_choice, check_count
from landscape.diagnosis import Diagnosis, Watch
from landscape.diagnosis.counted import EVERY
from landscape.errors import LandscapeError
from landscape.params import ParamLayout
from landscape.sam import Perturbation
from landscape.sam.engine import Ascent
from landscape.sam.trained import Trained, unwrap
from landscape.snapshots import SCALARS
from landscape.training.recorder import Log, row_of, tensors_of, weight_norms

__all__ = ["STEP_ENDS", "UNSEEN", "Recording", "record"]

STEP_ENDS = ("optimizer", "call")
_FLUSH = 100  # steps kept in memory at most
_PASSES = 64  # different weights within one step before it is called endless
_BLIND = 3  # optimizer steps in a row without a forward pass
_LOSSES = "the loss is computed outside the model, and only its weights and gradients are seen"
_NOT_LOOKED = "of steps that were not looked at (every=1 looks at all)"
_NO_PASS = (
    f"{_NOT_LOOKED}, or without a second forward pass at other weights (an e that is not "
    "evaluated, or is reused without one, leaves no trace), or with NaN in e"
)
UNSEEN = {
    "loss_clean": _LOSSES,
    "loss_perturbed": _LOSSES,
    "rho": f"{_NOT_LOOKED}, or unless a parameter group of the optimizer names it or "
    "record(rho=...) does",
    **dict.fromkeys(("climbed", "weight_norm"), _NOT_LOOKED),
    **dict.fromkeys(
        ("perturbation_norm", "energy_share", "density", "first_order", "cosine"), _NO_PASS
    ),
}


def record(
    model: nn.Module,
    *,
    folder: Path | str | None = None,
    steps_per_epoch: int | None = None,
    every: int = EVERY,
    snapshot_every: int = 100,
    rho: float | None = None,
    step_ends: str = "optimizer",
    gradients: bool = True,
    first_step: int = 0,
    max_mb: float = 1000.0,
    scaler: Any = None,
) -> "Recording":
    """Record e = w' - w of steps inside `with`, whatever optimizer takes them.

    w are the weights at the step's first forward pass, w' those at its last forward pass at other
    weights: the optimizer need not help. A forward pass counts in training mode with gradients
    enabled, and further ones at the same weights (accumulated batches) belong to the first. A step
    ends with the step of any torch optimizer over these parameters, also one inside another class
    (`base_optimizer.step()`), or with step_ends="call" when you call `recording.step()`.

    Which steps are looked at: the first 16, then one of `every`, and those of `snapshot_every`. Of
    the others the forward passes are counted, and whether the losses are finite that `backward`
    starts from. Where a step has a number of forward passes that no step looked at had (a gate that
    opens now and then, a step that a scaler left out), the next ones are looked at until one such
    is met, 256 in all at most. every=1 looks at all steps.

    Kept in folder/snapshots and read by `landscape.snapshots` and `training.consolidate`: per step
    looked at ‖e‖, cos(g1, g2), and per tensor energy share, density (share with e ≠ 0; an e below
    the rounding of its weight did not move it), ‖w_l‖ and g1_l·e_l; each `snapshot_every` steps the
    mask e ≠ 0 and the z-scores of g1. Let `snapshot_every` share no factor with a period of the
    variant or with steps_per_epoch: a mask that is renewed at the first step of an epoch, met each
    time just there, seems to live shorter or longer than it does (κ at a lag of one step was 0.68
    so for a true 0.97), and so does every statistic of masks over the recording. NaN, with the
    reason in `snapshots.read_steps(...).unseen`: losses; a rho that no parameter group names; all
    of e in a step without a second forward pass. Gradients are those of this process, in the units
    of a GradScaler; gradients=False leaves out what needs them and saves two copies of the weights
    (of four). Epochs count from 1. Give the module that the loop calls (the compiled or wrapped
    one).

    `recording.diagnosis()` says whether the steps were those of sharpness-aware minimization, how
    many were looked at and what was only counted; a folder keeps it for `landscape doctor`. Without
    a folder nothing else is kept. scaler: the loop's `torch.amp.GradScaler`, for that answer alone.

    first_step continues a recording at that step. max_mb bounds the folder: no snapshot that would
    exceed it is kept, and `notes` says so. A full disk warns, keeps what was seen in memory and
    tries again until 16 snapshots wait, then raises; what was recorded survives an exception in the
    body and a killed process up to the last 100 steps. Cost: a step that is looked at takes a pass
    over the weights per forward pass, a wait for the device, and calls for each tensor; one that is
    only counted takes five calls of Python, whatever the model.
    model: the module that the loop calls, wrapped or not.

    Example:
        >>> base = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> optimizer = sam.SAM(model, base, sam.sam(0.05))
        >>> with record(model, rho=0.05) as seen:
        ...     for _ in range(3):
        ...         loss = optimizer.step(losses, data)
        >>> answer = seen.diagnosis()
        >>> answer["second pass"].verdict, answer["length"].verdict, answer.wrong
        ('ok', 'ok', ())
    """
    if not isinstance(model, nn.Module):
        raise LandscapeError(
            f"record was given a {type(model).__name__}; give the module that the loop calls. The "
            f"optimizer is found when it steps."
        )
    return Recording(
        model,
        None if folder is None else Path(folder),
        steps_per_epoch=_epoch_of(folder, steps_per_epoch),
        every=every,
        snapshot_every=snapshot_every,
        rho=rho,
        step_ends=step_ends,
        gradients=gradients,
        first_step=first_step,
        max_mb=max_mb,
        scaler=scaler,
    )


class Recording:
    """A recording under way; made by `record`."""

    def __init__(
        self,
        model: nn.Module,
        folder: Path | None,
        *,
        steps_per_epoch: int,
        every: int,
        snapshot_every: int,
        rho: float | None,
        step_ends: str,
        gradients: bool,
        first_step: int,
        max_mb: float,
        scaler: Any,
    ) -> None:
        _check(steps_per_epoch, every, snapshot_every, step_ends, first_step)
        self.model, self.folder, self.inner = model, folder, unwrap(model)
        self.steps_per_epoch, self.snapshot_every = steps_per_epoch, snapshot_every
        self.rho, self.step_ends, self.gradients = rho, step_ends, gradients
        self.max_bytes = 1e6 * max_mb
        self.num_steps = self.first_step = first_step
        self.notes: list[str] = []
        self.trained = Trained.of(model)
        if self.trained.shards is not None:
            raise LandscapeError(
                "The weights of this model are cut over processes (fully_shard, tensor parallel), "
                "of which each sees a part of e. Record the same loop with whole weights; "
                "landscape.sam.SAM works on shards: its `perturbation.norm` is that of the whole "
                "e, and its guard compares pass 2 with w + e."
            )
        unseen = UNSEEN if gradients else UNSEEN | dict.fromkeys(
            ("cosine", "first_order"), "record(gradients=False)"
        )  # fmt: skip
        self.log: Log | None = None
        self.written = 0
        if folder is not None:
            begun = folder.exists() and snapshots.read_tensors(folder)
            start = weight_norms(self.trained.parameters).cpu().numpy().tobytes()
            run = begun.run if begun else hashlib.sha256(start).hexdigest()[:16]
            self.log = Log(
                folder / "snapshots", tensors_of(ParamLayout.of(self.inner), unseen, run=run)
            )
            self.written = _continue(folder, self.log, first_step)
        self.flushed = first_step  # the step before which all rows are on the disk
        self.watch = Watch(model, self.trained, scaler, every)
        self.seen = _UnderWay(self.trained.parameters)
        self.blind = 0
        self.handles: list[Any] = []
        self.listeners: list[Any] = []  # of outputs and gradients of a step that is looked at
        self.losses = contextlib.ExitStack()

    def diagnosis(self) -> Diagnosis:
        """Whether the steps so far were those of SAM: findings with numbers and remedies."""
        return diagnosis.judge(self.watch)

    def estimate_bytes(self, epochs: int) -> int:
        """Bytes on the disk after so many epochs, at most; `max_mb` bounds them too."""
        if self.log is None:
            return 0
        steps = epochs * self.steps_per_epoch
        tensors = self.log.tensors
        count = -(-steps // self.snapshot_every) if self.snapshot_every else 0
        rows = steps * tensors.row.itemsize
        return int(rows + min(count * tensors.snapshot_bytes, max(0, self.max_bytes - rows)))

    # ------------------------------------------------------------------------------ begin and end

    def __enter__(self) -> "Recording":
        own = {id(p) for p in self.trained.parameters}

        def is_ours(optimizer: Optimizer) -> bool:
            return any(id(p) in own for group in optimizer.param_groups for p in group["params"])

        def steps(optimizer: Optimizer, *_: Any) -> None:
            if is_ours(optimizer):
                self.watch.before_step(optimizer, self.seen)

        def stepped(optimizer: Optimizer, *_: Any) -> None:
            if is_ours(optimizer):
                self._stepped(optimizer)

        look = _uncompiled(self._before_forward)
        self.handles = [
            self.model.register_forward_pre_hook(look, with_kwargs=True),
            register_optimizer_step_pre_hook(steps),
        ]
        self.losses.enter_context(_losses_of_backward(self.watch))
        if self.step_ends == "optimizer":
            self.handles.append(register_optimizer_step_post_hook(stepped))
        self._listen()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for handle in self.handles:
            handle.remove()
        self.handles = []
        self._listen_no_more()
        self.losses.close()
        try:
            if self.log is not None:
                self.log.flush()
                if self.num_steps > self.first_step:
                    diagnosis.write(self.log.folder.parent, self.diagnosis())
        except LandscapeError as full:
            if kind is None:
                raise
            warnings.warn(str(full), stacklevel=2)
        if kind is None and self.num_steps == self.first_step:
            warnings.warn(self._unseen(), stacklevel=2)

    def _unseen(self) -> str:
        """Why no step was recorded."""
        if not self.seen.begun:
            return (
                f"No step was recorded: no forward pass of the {type(self.model).__name__} in "
                f"training mode was seen; record the module that the loop calls."
            )
        return (
            f"No step was recorded: the model ran at {1 + self.seen.passes} different weights and "
            f"no step of a torch optimizer over them was seen; call recording.step() after each "
            f"update of the weights."
        )

    # ------------------------------------------------------------------------------ what is seen

    def _counts(self) -> bool:
        return self.inner.training and torch.is_grad_enabled()

    def _after_forward(self, _: nn.Module, __: Any, outputs: Any) -> None:
        if self._counts():
            self.watch.after_forward(outputs)

    def _before_forward(self, _: nn.Module, inputs: Any, options: dict[str, Any]) -> None:
        if not self._counts():
            return
        self.blind = 0
        self.watch.num_passes += 1
        if not self.watch.looking:
            self.seen.begun = True
            return
        before = self.seen.passes if self.seen.begun else -1
        passes = self.seen.look()
        self.watch.before_forward(self.seen.moved, passes != before, (inputs, options))
        if passes > _PASSES:
            raise LandscapeError(
                f"The model ran at {_PASSES} different weights and no step of a torch optimizer "
                f"over them was seen; call recording.step() after each update of the weights."
            )

    def _listen(self) -> None:
        """Hear outputs and gradients of the step that comes, where it is to be looked at."""
        if not self.watch.looking:
            return
        self.listeners = [self.model.register_forward_hook(_uncompiled(self._after_forward))]
        if self.gradients:
            for i, p in enumerate(self.trained.parameters):
                if p.requires_grad:  # else it has none
                    self.listeners.append(p.register_hook(self.seen.listener(i)))

    def _listen_no_more(self) -> None:
        for handle in self.listeners:
            handle.remove()
        self.listeners = []

    def _stepped(self, optimizer: Optimizer) -> None:
        if not self.seen.begun:  # an optimizer around the one that has just ended the step
            self.blind += 1
            if self.blind > _BLIND:
                raise LandscapeError(
                    f"{type(optimizer).__name__} stepped {self.blind} times and no forward pass of "
                    f"the recorded {type(self.model).__name__} in training mode was seen; record "
                    f"the module that the loop calls."
                )
            return
        self.step(rho=rho_of(optimizer) if self.watch.looking else None)

    def step(self, *, rho: float | None = None) -> None:
        """End the step: what was seen since the last one is recorded."""
        if not self.seen.begun:
            return
        self.watch.end(self.seen, self._rho(rho))
        looked, log = self.watch.looking, self.log
        if log is not None:
            seen = self.seen.perturbation(self.trained, self._rho(rho)) if looked else None
            self._write(log, self.num_steps, seen)
        self.num_steps += 1
        if looked:
            self._listen_no_more()
            self.seen.forget()
        self.seen.begun = False
        self.watch.begin(looking=log is not None and self._is_chosen(self.num_steps))
        self._listen()

    def _is_chosen(self, step: int) -> bool:
        """Whether a snapshot is to be made of the step."""
        return bool(self.snapshot_every) and step % self.snapshot_every == 0

    @torch.no_grad()
    def _write(self, log: Log, step: int, seen: Perturbation | None) -> None:
        """Keep the row of a step and its snapshot; write at the end of an epoch, and in between."""
        due = step + 1 - self.flushed >= _FLUSH or (step + 1) % self.steps_per_epoch == 0
        log.rows.append((step // self.steps_per_epoch + 1, step, self._values(log, seen)))
        self.written += log.tensors.row.itemsize
        try:
            if seen is not None and self._has_room(log, step):
                self._check_tensors(log, step)
                self.written += log.tensors.snapshot_bytes
                due = True
                log.snapshot(step, seen)
            if due:
                log.flush()
                self.flushed = step + 1
        except LandscapeError as error:
            if not isinstance(error.__cause__, OSError) or len(log.waiting) > 16:
                raise
            warnings.warn(f"{error} The recording goes on in memory.", stacklevel=2)

    def _values(self, log: Log, seen: Perturbation | None) -> Tensor:
        """The row of a step; NaN where it was not looked at."""
        if seen is None:
            return torch.full(
                (len(SCALARS) + len(snapshots.PER_TENSOR) * len(log.tensors),),
                torch.nan,
                dtype=torch.float64,
                device=self.trained.parameters[0].device,
            )
        if not seen.climbed:
            return _nothing(seen, self.seen.norms)
        return row_of(seen, self.seen.norms, gradients=self.gradients)

    def _has_room(self, log: Log, step: int) -> bool:
        """Whether a snapshot is made of this step: one to have it, within `max_mb`."""
        if not self._is_chosen(step):
            return False
        if self.written + log.tensors.snapshot_bytes <= self.max_bytes:
            return True
        if not self.notes:
            limit = f"{self.max_bytes / 1e6:g} MB"
            self.notes.append(f"no snapshot from step {step} on: max_mb={limit} is reached")
        return False

    def _rho(self, found: float | None) -> float:
        if self.rho is not None:
            return self.rho
        return math.nan if found is None else found

    def _check_tensors(self, log: Log, step: int) -> None:
        snapshots.check_same(
            log.tensors,
            tensors_of(ParamLayout.of(self.inner)).identity,
            f"Step {step}",
        )


class _UnderWay:
    """The passes of the step under way: weights at the first, e of the last, gradients of both."""

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self.parameters = parameters
        self.anchor: list[Tensor] = []
        self.forget()

    def forget(self) -> None:
        """Begin a new step."""
        self.begun, self.moved, self.passes = False, False, 0
        self.e: tuple[Tensor, ...] | None = None
        self.norms: Tensor = torch.empty(0)
        none: list[Tensor | None] = [None] * len(self.parameters)
        self.g1, self.g2 = list(none), list(none)

    @torch.no_grad()
    def look(self) -> int:
        """Compare the weights with those of the step's first pass; how often they differed."""
        now = [p.detach() for p in self.parameters]
        if not self.begun:
            if [a.shape for a in self.anchor] != [p.shape for p in now]:
                self.anchor = [torch.empty_like(p) for p in now]
            torch._foreach_copy_(self.anchor, now)
            self.begun, self.norms = True, weight_norms(now)
            return 0
        e = torch._foreach_sub(now, self.anchor)
        self.moved = self._differ(e)
        if self.moved and (self.e is None or self._differ(torch._foreach_sub(e, self.e))):
            self.passes += 1
            self.e, self.g2 = e, [None] * len(now)
        return self.passes

    def _differ(self, differences: Sequence[Tensor]) -> bool:
        """Whether weights differ by more than what a climb taken back by subtraction leaves."""
        dtype = differences[0].dtype
        rounding = 2 * torch.finfo(dtype).eps if dtype in (torch.float32, torch.float64) else 0.0
        lengths = vectors.total_norm(vectors.lengths(differences))
        return bool(lengths > rounding * vectors.norm(self.norms))

    def listener(self, index: int) -> Any:
        """A hook that adds up a parameter's gradients of the current pass."""

        def hear(gradient: Tensor) -> None:
            if self.begun:
                found = self.g2 if self.moved else self.g1
                gradient = gradient.detach()
                gradient = gradient.to_dense() if gradient.is_sparse else gradient
                old = found[index]
                # A copy: this memory becomes .grad, which optimizers change in place.
                found[index] = gradient.clone() if old is None else old.add_(gradient)

        return hear

    def perturbation(self, trained: Trained, rho: float) -> Perturbation:
        """What was seen, as the optimizer of this package tells it."""
        size = len(trained.names)
        nan = torch.full((), math.nan, device=self.parameters[0].device)
        return Perturbation(
            names=trained.names,
            shapes=trained.shapes,
            ascent=None if self.e is None else Ascent(list(self.e), [e != 0 for e in self.e], rho),
            live=list(range(size)),
            g1=self.g1,
            g2=self.g2,
            loss_clean=nan,
            loss_perturbed=nan,
            rho=rho,
        )


@contextlib.contextmanager
def _losses_of_backward(watch: Watch) -> Generator[None]:
    """Show the watch every loss that `backward` starts from: no hook of torch does."""
    own = torch.autograd.backward

    def backward(tensors: Any, *arguments: Any, **options: Any) -> None:
        watch.differentiated(tensors)
        own(tensors, *arguments, **options)

    torch.autograd.backward = backward  # ty: ignore[invalid-assignment]  # of any arguments
    try:
        yield
    finally:
        if torch.autograd.backward is backward:
            torch.autograd.backward = own


def _uncompiled(hook: Any) -> Any:
    """Nothing to be compiled into the model's graph."""
    return torch.compiler.disable(hook) if "torch._dynamo" in sys.modules else hook


def _epoch_of(folder: Path | str | None, steps_per_epoch: int | None) -> int:
    if steps_per_epoch is not None:
        return steps_per_epoch
    if folder is None:
        return 1
    raise LandscapeError(
        f"folder={str(folder)!r} was given without steps_per_epoch; give the number of optimizer "
        f"steps in an epoch (len(loader)), which the rows of the recording name."
    )


def _nothing(seen: Perturbation, norms: Tensor) -> Tensor:
    """The row of a step whose e could not be seen."""
    known = {"rho": float(seen.rho), "climbed": 0.0}
    head = [known.get(name, math.nan) for name in SCALARS]
    nan = torch.full((len(norms),), math.nan, dtype=torch.float64, device=norms.device)
    parts = [norms.double() if name == "weight_norm" else nan for name in snapshots.PER_TENSOR]
    return torch.cat([torch.tensor(head, dtype=torch.float64, device=norms.device), *parts])


def rho_of(optimizer: Optimizer) -> float | None:
    """The radius that the parameter groups name, if they agree (Adadelta's rho is a decay)."""
    found = {float(group.get("rho", math.nan)) for group in optimizer.param_groups}
    return found.pop() if len(found) == 1 and not isinstance(optimizer, Adadelta) else None


def _check(
    steps_per_epoch: int, every: int, snapshot_every: int, step_ends: str, first_step: int
) -> None:
    check_count("steps_per_epoch", steps_per_epoch)
    check_count("every", every)
    check_count("snapshot_every", snapshot_every, 0)
    check_count("first_step", first_step, 0)
    check_choice("step_ends", step_ends, STEP_ENDS)


def _continue(folder: Path, log: Log, first_step: int) -> int:
    """Bytes that a recording to be continued holds; refuse to write over one."""
    if not folder.exists():
        return 0
    known = snapshots.read_steps(folder)
    if len(known) and first_step == 0:
        raise LandscapeError(
            f"{folder} holds a recording of {len(known)} steps; give another folder, or "
            f"first_step={int(known.step[-1]) + 1} to continue it."
        )
    if known.tensors.names:
        snapshots.write_tensors(log.folder, log.tensors)  # refuses another model
        snapshots.forget_after(log.folder, epoch=2**31, step=first_step)
    return sum(path.stat().st_size for path in log.folder.glob("[!.]*"))
