"""The training loop: one epoch after the other, each a function of the checkpoint before it."""

import json
import math
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from landscape import devices, storage
from landscape.errors import LandscapeError
from landscape.problems import Batches, DataSplits, Split
from landscape.risk import errors_of, takes_batch, targets_of
from landscape.sam import SAM, Variant
from landscape.training import checkpoint
from landscape.training.arithmetic import Arithmetic, arithmetic, changed
from landscape.training.batches import NOISE, batches, derived_seed
from landscape.training.foreign import Foreign, OptimizerFactory
from landscape.training.history import read_history
from landscape.training.identity import identify
from landscape.training.inputs import (
    cast,
    check_data,
    check_losses,
    check_output,
    logits,
    per_example,
    whole_losses,
)
from landscape.training.options import RecorderOptions, TrainingOptions
from landscape.training.recorder import Recorder

Record = dict[str, Any]
_CHUNK = 1024  # examples of one forward pass of an evaluation
# Above this share of steps without a finite gradient a training has diverged: its weights hardly
# moved, which is neither flat nor trained. fp16 skips a few first steps while it finds its scale.
MAX_SKIPPED_SHARE = 0.05


@dataclass(frozen=True)
class TrainingResult:
    """How a training ended.

    status: "finished", or "diverged" when the loss of a step was not finite or more than
    MAX_SKIPPED_SHARE of the steps were skipped for want of a finite gradient (`message` says
    which); weights: checkpoints/final.safetensors, None when diverged; history: one record per
    epoch; seconds (CPU seconds on a CPU) of training steps alone, over all sessions of a resumed
    training; num_skipped: steps without a finite gradient; arithmetic: threads, device, dtype,
    torch and vector instructions, one entry for each stretch (`first_epoch`) that differs.
    epochs, steps: done in all. folder: that of the run.

    Example:
        >>> splits = problems.as_splits(make_splits(), name="mine")
        >>> options = training.TrainingOptions(epochs=1, batch_size=16)
        >>> done = training.train(
        ...     make_model(), splits, sam.sam(0.05), options, seed=0, folder=Path("one")
        ... )
        >>> done.status, done.steps
        ('finished', 3)
    """

    status: str
    message: str
    epochs: int
    steps: int
    seconds: float
    history: list[Record]
    weights: Path | None
    folder: Path
    num_skipped: int = 0
    arithmetic: tuple[Arithmetic, ...] = ()

    @property
    def finished(self) -> bool:
        """Whether all epochs were trained."""
        return self.status == "finished"


def train(
    model: nn.Module,
    data: DataSplits,
    variant: Variant | OptimizerFactory,
    options: TrainingOptions,
    *,
    seed: int,
    folder: Path,
    recorder: RecorderOptions = RecorderOptions(),  # noqa: B008 - frozen
    loss: Callable[..., Any] | str | None = None,
    device: torch.device | str = "cpu",
    progress: Callable[[Record], None] | None = None,
    run: str = "",
) -> TrainingResult:
    """Train `model` in place with `variant`, or continue what a killed call left in `folder`.

    variant: or an `OptimizerFactory`, for an optimizer that is not of this package.
    Batches, augmentation and dropout are functions of (seed, epoch): variants of one seed meet the
    same data in the same order, and a resumed training ends with the same numbers, bit for bit on
    the CPU at equal thread count. loss(output, target): cross-entropy by default; another has a
    `reduction` attribute or returns one loss per example; or "model", "causal_lm", or a function of
    (model, batch) with a mean or losses of rows, as `EmpiricalRisk` takes them. progress is called
    with each epoch's record: epoch (from 1), train_loss (mean of the first passes), val_loss,
    val_accuracy, lr (of the epoch's last step), seconds, num_skipped (steps so far without a finite
    gradient). A
    training that goes on with other threads, device, precision or torch warns and keeps both. run:
    a name for what the arguments do not show (a loss, a dataset); each file says of which training
    it is, and those of another one, by variant, options, seed, data, model or `run`, are refused.
    Written: history.jsonl, snapshots/, checkpoints/ (see `Recorder`, `checkpoint`).

    Example:
        >>> splits = problems.as_splits(make_splits(), name="mine")
        >>> options = training.TrainingOptions(epochs=1, batch_size=16)
        >>> done = training.train(
        ...     make_model(), splits, sam.zsharp(0.05), options, seed=0, folder=Path("two")
        ... )
        >>> done.status, [record["epoch"] for record in done.history]
        ('finished', [1])
    """
    folder, device = Path(folder), torch.device(device)
    check_data(data, options, device, correctness=recorder.correctness)
    identity = identify(model, data, variant, options, seed=seed, run=run)
    done = _ended(folder, model, device, identity)
    if done is not None:
        return done
    session = _Session(
        model, data, variant, options, seed, folder, recorder, loss, device, identity
    )
    return session.run(progress)


def _ended(
    folder: Path, model: nn.Module, device: torch.device, identity: str
) -> TrainingResult | None:
    """The result of a training that had ended, its weights put into the model."""
    if not checkpoint.outcome_path(folder).exists():
        return None
    ended = checkpoint.read_outcome(folder)
    checkpoint.check_identity(folder, checkpoint.identity_of(ended), identity)
    weights = None
    model.to(device)
    if ended["status"] == "finished":
        weights = checkpoint.final_path(folder)
        checkpoint.restore(model, weights, ended.get("weights_sha256"))
    history, _ = read_history(folder)
    parts = {k: ended[k] for k in ("status", "message", "epochs", "steps", "seconds")}
    parts["num_skipped"] = ended.get("num_skipped", 0)
    parts["arithmetic"] = tuple(ended.get("arithmetic", ()))
    return TrainingResult(**parts, history=history, weights=weights, folder=folder)


class _DivergenceError(Exception):
    """The loss of a step was not finite."""


class _Session:
    """One call of `train`."""

    def __init__(
        self, model, data, variant, options, seed, folder, recorder, loss, device, identity
    ):
        self.model, self.options, self.seed, self.folder = model, options, seed, folder
        self.device = device
        self.data = data.to(device)
        model.to(device)
        # Whether batches go whole to the loss with the model, in whatever form they are.
        self.whole = isinstance(data.train, Batches) or takes_batch(loss)
        self.criterion: Any = (
            whole_losses(loss, options) if self.whole else per_example(loss, options, self.data)
        )
        dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), None)
        if dtype is not None:
            self.data = cast(self.data, dtype)
        self.scaler = torch.amp.GradScaler(device.type) if options.amp == "fp16" else None
        self.optimizer = self._optimizer(variant)
        if isinstance(variant, OptimizerFactory):  # its passes are seen by `landscape.record` alone
            recorder = replace(recorder, scalars=False, snapshots=0, every=0)
        self.wants_logits = "logits" in variant.needs
        rows = {"per_example_losses", "logits", "fisher_data"} & set(variant.needs)
        self.reads_rows = variant.name if rows else ""
        train = self.data.train
        if self.whole:
            first = next(batches(train, options, seed=seed, epoch=0))
            check_losses(model, self.data, self.losses, first)
        else:
            check_output(model, self.data)
        if "fisher_data" in variant.needs:
            self.optimizer.set_fisher_data(self.losses, self._all_rows(variant.name))
        self.per_epoch = options.steps_per_epoch(len(train))
        self.steps = options.epochs * self.per_epoch
        self.identity, self.mark = identity, checkpoint.mark_of(identity)
        self.recorder = Recorder(
            folder / "snapshots",
            recorder,
            self.optimizer,
            recorder.steps(self.steps, per_epoch=self.per_epoch, seed=seed),
            run=self.mark,
        )
        self.seconds = 0.0
        self.arithmetic = [{"first_epoch": 1, **arithmetic(device, dtype)}]

    def _optimizer(self, variant: Variant | OptimizerFactory) -> Any:
        if isinstance(variant, OptimizerFactory):
            return Foreign(self.model, variant, self.options)
        return SAM(
            self.model,
            self.options.optimizer(p for p in self.model.parameters() if p.requires_grad),
            variant,
            seed=derived_seed(self.seed, 0, NOISE),
            bn=self.options.bn,
            clip_norm=self.options.clip_norm or None,
            scaler=self.scaler,
        )

    def _all_rows(self, name: str) -> tuple[Any, Tensor]:
        train = self.data.train
        if not isinstance(train, Batches):
            return train.x, train.y
        if not train.made_of_rows:
            raise LandscapeError(
                f"{name} takes single examples of the training data, and those of "
                f"{self.data.name} are whole batches ({train!r}); use a variant that does not."
            )
        everything = torch.arange(len(train))
        return train.batch(everything), everything

    def losses(self, batch: Any) -> Any:
        """Per-example losses (B,) of a batch, with the outputs where the variant reads them.

        Their mean B times where the loss tells no more, or where a batch is not made of rows.
        """
        with self._autocast():
            if self.whole:
                output, values = self.criterion(self.model, self._given(batch))
                values = self._of_rows(values, len(batch[1]), output)
            else:
                output = logits(self.model(batch[0]))
                values = self.criterion(output, batch[1])
        return (values, logits(output)) if self.wants_logits else values

    def _of_rows(self, values: Tensor, count: int, output: Any) -> Tensor:
        if values.ndim and len(values) == count and (output is not None or not self.wants_logits):
            return values
        if self.reads_rows:
            raise LandscapeError(
                f"{self.reads_rows} reads the losses or outputs of single examples, and the loss "
                f"tells the mean of a batch alone; return one loss per example from a loss(output, "
                f"target), or use a variant that does not."
            )
        return values.mean().expand(count)

    def _given(self, batch: Any) -> Any:
        """The batch as it was given, of what a step takes."""
        train = self.data.train
        return batch[0] if isinstance(train, Batches) else train.given(batch[0], batch[1])

    def _autocast(self):
        if self.options.amp == "off":
            return nullcontext()
        dtype = torch.bfloat16 if self.options.amp == "bf16" else torch.float16
        return torch.autocast(self.device.type, dtype=dtype)

    def run(self, progress: Callable[[Record], None] | None) -> TrainingResult:
        """All epochs that are left."""
        first = self._resume()
        try:
            for epoch in range(first, self.options.epochs):
                record = self._epoch(epoch)
                line = record | {"training": self.mark}
                storage.append_line(self.folder / "history.jsonl", line)
                self.recorder.flush()
                self._save(epoch + 1)
                if progress is not None:
                    progress(record)
        except _DivergenceError as error:
            return self._end("diverged", str(error))
        skipped = self.optimizer.num_skipped
        if skipped > MAX_SKIPPED_SHARE * self.steps:
            share = f"{skipped} of {self.steps} steps were skipped for want of a finite gradient"
            limit = f"more than {100 * MAX_SKIPPED_SHARE:g} %"
            return self._end("diverged", f"diverged: {share}, {limit},")
        return self._end("finished", "")

    def _resume(self) -> int:
        """Epochs done before; whatever was written after the last checkpoint is removed."""
        storage.sweep(self.folder)
        state = checkpoint.load(self.folder, self.model, self.identity)
        epoch = 0
        if state is not None:
            self.optimizer.load_state_dict(state["optimizer"])
            if self.scaler is not None:
                self.scaler.load_state_dict(state["scaler"])
            epoch, self.seconds = state["epoch"], state["seconds"]
            self._continue_arithmetic(state.get("arithmetic"), epoch)
        self.recorder.forget_after(epoch, epoch * self.per_epoch)
        if (self.folder / "history.jsonl").exists():
            records, _ = read_history(self.folder, training=self.mark)
            if len(records) < epoch:
                raise LandscapeError(
                    f"{self.folder / 'history.jsonl'} has {len(records)} epochs and the checkpoint "
                    f"{epoch}: lines were lost. Take it from a copy, or remove {self.folder} and "
                    f"train again."
                )
            storage.truncate_lines(
                self.folder / "history.jsonl", lambda record: record["epoch"] <= epoch
            )
        return epoch

    def _continue_arithmetic(self, known: list[Arithmetic] | None, epoch: int) -> None:
        """Keep the arithmetic of the epochs before, and say where it is another one now."""
        if not known:
            return
        now = self.arithmetic[0] | {"first_epoch": epoch + 1}
        other = changed(known[-1], {k: v for k, v in now.items() if k != "first_epoch"})
        self.arithmetic = [*known, now] if other and epoch < self.options.epochs else list(known)
        if other and epoch < self.options.epochs:
            warnings.warn(
                f"{self.folder} goes on after epoch {epoch} with another arithmetic ({other}): its "
                f"numbers are those of neither alone. Both are kept with the training; remove the "
                f"folder to train it in one.",
                stacklevel=2,
            )

    def _save(self, epoch: int) -> None:
        state = {
            "identity": self.identity,
            "optimizer": self.optimizer.state_dict(),
            "seconds": self.seconds,
            "arithmetic": self.arithmetic,
        }
        if self.scaler is not None:
            state["scaler"] = self.scaler.state_dict()
        checkpoint.save(
            self.folder, self.model, state, epoch=epoch, keep_every=self.options.keep_every
        )

    def _epoch(self, epoch: int) -> Record:
        self.model.train()
        self.optimizer.begin_epoch(epoch, total_epochs=self.options.epochs)
        total = torch.zeros((), device=self.device, dtype=torch.float64)
        # On a CPU its own seconds: those of the wall grow with whatever else the machine does.
        clock = time.process_time if self.device.type == "cpu" else time.perf_counter
        seen, began = 0, clock()
        with _own_randomness(derived_seed(self.seed, epoch, NOISE), self.device):
            source = batches(self.data.train, self.options, seed=self.seed, epoch=epoch)
            for index, batch in enumerate(source):
                step = epoch * self.per_epoch + index
                total += self._step(step, batch) * len(batch[1])
                seen += len(batch[1])
        mean = float(total) / seen  # waits for the device, before the clock is read
        seconds = clock() - began
        self.seconds += seconds
        if not math.isfinite(mean):  # on CUDA, where single steps are not waited for
            raise _DivergenceError(f"diverged in epoch {epoch + 1}: the training loss was {mean}")
        val_loss, val_accuracy = self._evaluate(self.data.val)
        if self.recorder.options.correctness:
            self.recorder.correctness(epoch + 1, self._correct(self.data.train))
        return {
            "epoch": epoch + 1,
            "train_loss": mean,
            "val_loss": _json(val_loss),
            "val_accuracy": _json(val_accuracy),
            "lr": self.optimizer.param_groups[0]["lr"],
            "seconds": seconds,
            "num_skipped": self.optimizer.num_skipped,
        }

    def _step(self, step: int, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        lr = self.options.learning_rate(step, self.steps, self.per_epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.recorder.before()
        value = self.optimizer.step(self.losses, batch)
        if self.scaler is not None:
            self.scaler.update()
        if self.device.type == "cpu" and not math.isfinite(value):
            raise _DivergenceError(f"diverged at step {step}: the training loss was {float(value)}")
        self.recorder.record(step // self.per_epoch + 1, step)
        return value

    @torch.no_grad()
    def _evaluate(self, split: Split | Batches | None) -> tuple[float, float]:
        """Mean loss and accuracy in eval mode; NaN without data, or without classes."""
        if split is None:
            return math.nan, math.nan
        self.model.eval()
        loss, right = 0.0, 0.0
        for batch in self._chunks(split):
            if self.whole:
                given = self._given(batch)
                output, values = self.criterion(self.model, given)
                wrong = None if output is None else errors_of(output, targets_of(given)[1])
                right += math.nan if wrong is None else len(batch[1]) - float(wrong.sum())
                loss += float(values.double().mean()) * len(batch[1])
                continue
            output, y = logits(self.model(batch[0])), batch[1]
            loss += float(self.criterion(output, y).double().sum())
            right += math.nan if y.is_floating_point() else int((output.argmax(1) == y).sum())
        self.model.train()
        return loss / len(split), right / len(split)

    def _chunks(self, split: Split | Batches) -> Iterator[tuple[Any, Tensor]]:
        """All of a split in parts that fit."""
        if not isinstance(split, Batches):
            yield from zip(split.x.split(_CHUNK), split.y.split(_CHUNK), strict=True)
            return
        for rows in torch.arange(len(split)).split(_CHUNK if split.made_of_rows else 1):
            yield split.batch(rows), rows

    @torch.no_grad()
    def _correct(self, split: Any) -> Tensor:
        """Whether the largest output is the label, (N,), in eval mode."""
        self.model.eval()
        parts = [logits(self.model(x)).argmax(1) for x in split.x.split(_CHUNK)]
        self.model.train()
        return torch.cat(parts) == split.y

    def _end(self, status: str, message: str) -> TrainingResult:
        if message:
            message += (
                f" under {json.loads(self.identity)['variant']!r} with lr={self.options.lr:g}; "
                f"lower lr or rho, or add warmup."
            )
        history, _ = read_history(self.folder)
        outcome = {
            "status": status,
            "message": message,
            "epochs": len(history),
            "steps": len(history) * self.per_epoch,
            "seconds": self.seconds,
            "num_skipped": self.optimizer.num_skipped,
            "arithmetic": self.arithmetic,
        }
        checkpoint.finish(
            self.folder,
            self.model,
            outcome,
            identity=self.identity,
            epoch=len(history),
            keep_every=self.options.keep_every,
        )
        weights = checkpoint.final_path(self.folder) if status == "finished" else None
        outcome["arithmetic"] = tuple(self.arithmetic)
        return TrainingResult(**outcome, history=history, weights=weights, folder=self.folder)


@contextmanager
def _own_randomness(seed: int, device: torch.device):
    """Dropout draws from the global generators: lend them, seeded, and put them back."""
    before = devices.rng_state(device)
    try:
        devices.seed(seed, device)
        yield
    finally:
        devices.set_rng_state(before, device)


def _json(value: float) -> float | None:
    return value if math.isfinite(value) else None
