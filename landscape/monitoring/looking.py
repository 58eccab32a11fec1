"""Looks at a training: one step in so many is recorded, and its weights are measured."""

import contextlib
import math
import time
import warnings
from collections.abc import Callable, Generator, Sequence
from types import TracebackType
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from landscape import measure
from landscape.checks import check_choice, check_count
from landscape.errors import LandscapeError
from landscape.monitoring.sinks import terminal
from landscape.recording import Recording, rho_of
from landscape.risk import BNMode, EmpiricalRisk
from landscape.sam import SAM, Perturbation
from landscape.sam.trained import unwrap

Record = dict[str, Any]
Sink = Callable[[Record], None]
MEASURES = ("critical_sharpness", "lambda_1")
SHARE = 0.01  # of the time of the training, which looks may take where `every` is not given
_PRODUCTS = 25  # Hessian products that lambda_1 takes about, each of about 8 losses
_LOSSES = 8
_LONGER = 1.5  # times the last look, for the next: looks vary with the training and the machine
_PATIENCE = 20_000  # steps between looks above which lambda_1 is left out unasked


def monitor(
    model: nn.Module,
    optimizer: Optimizer,
    loss: Any = None,
    data: Any = None,
    *,
    every: int | None = None,
    share: float = SHARE,
    measures: Sequence[str] | None = None,
    sinks: Sequence[Sink] = (terminal,),
    bn: BNMode = "eval",
    rho: float | None = None,
    scaler: Any = None,
    seed: int = 0,
) -> "Monitor":
    """Look at one step in so many: what it perturbed, and how curved the weights after it are.

    Used with `with`, around the loop. Of a step, as `landscape.record` sees it with any optimizer
    (nan where it cannot be seen): loss_clean, loss_perturbed and loss_gap, those of the first and
    the last pass; rho; perturbation_norm ‖e‖, the effective radius; radius_ratio ‖e‖/rho; cosine of
    both gradients; by tensor energy_share (of ‖e‖²) and density (share of e ≠ 0). `alarms` are the
    findings of `landscape.diagnosis` that are wrong, over all steps that were looked at.
    Of the weights after it, where loss and data are given (whatever `EmpiricalRisk` takes; a few
    hundred examples): risk, critical_sharpness along the gradient, and lambda_1 with its bound and
    whether it converged. They are `measure.critical_sharpness(risk, theta)` and
    `measure.top_eigenvalues(risk, theta, k=1, seed=seed)`, with the same bits as afterwards.
    every: steps between looks. None: after each look so many that looks take at most `share` of
    the time from the second look on, by the clock and of the processors' time of this process;
    which steps those are depends on the machine, what is seen at a step does not. The first look is
    at step `every`, or at step 16, where it takes the time of some ten steps and lambda_1 waits for
    the second. measures: of MEASURES; None leaves lambda_1 out where it is dear: where it would
    make looks rarer than one in 20 000 steps, or, with `every`, take more than `share` of the time;
    `notes` says so.
    The training itself keeps its bits: weights, gradients, buffers, modes and random states are as
    without a monitor. Cost between looks: one call per step.
    model, optimizer: of the loop, any optimizer of torch or of `landscape.sam`. sinks: called with
    each record. bn: the BatchNorm mode of the measurements. scaler: the loop's
    `torch.amp.GradScaler`. seed: of lambda_1's starting vector.

    Example:
        >>> base = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> optimizer = sam.SAM(model, base, sam.sam(0.05))
        >>> criterion = nn.CrossEntropyLoss()
        >>> with monitoring.monitor(model, optimizer, criterion, data, every=2, sinks=[]) as seen:
        ...     for _ in range(4):
        ...         loss = optimizer.step(losses, data)
        >>> [record["step"] for record in seen.records], seen.records[0]["alarms"]
        ([2, 4], [])
    """
    if not isinstance(optimizer, Optimizer):
        raise LandscapeError(
            f"monitor was given a {type(optimizer).__name__} as optimizer; give the torch "
            f"optimizer that the loop steps (with landscape.sam.SAM, the SAM itself)."
        )
    if (loss is None) != (data is None):
        given, other = ("loss", "data") if data is None else ("data", "loss")
        raise LandscapeError(
            f"monitor was given {given} without {other}; curvature needs both, and without either "
            f"only steps are looked at."
        )
    if every is not None:
        check_count("every", every)
    if not 0 < share <= 1:
        raise LandscapeError(f"share={share} asked; give the share of the time, above 0 up to 1.")
    for name in measures or ():
        check_choice("measures", name, MEASURES)
    if measures and loss is None:
        raise LandscapeError(f"measures={list(measures)} need loss and data, and none were given.")
    return Monitor(
        model, optimizer, loss, data, every=every, share=share, measures=measures, sinks=sinks,
        bn=bn, rho=rho, scaler=scaler, seed=seed,
    )  # fmt: skip


class _SingleStep(Recording):
    """A recording of single steps, which keeps what the last one showed."""

    def step(self, *, rho: float | None = None) -> None:
        self.shown = None
        if self.seen.begun:
            self.shown = self.seen.perturbation(self.trained, self._rho(rho))
            self.losses_seen = [(p.moved, p.loss) for p in self.watch.passes]
        super().step(rho=rho)

    shown: Perturbation | None = None
    losses_seen: Sequence[tuple[bool, float]] = ()


class Monitor:
    """A monitor at work; made by `monitor`.

    Its arguments are those of `monitor`: data, every, share, measures, sinks, bn, rho, scaler,
    seed. `records`: what was seen, a dict for each look.

    Example:
        >>> optimizer = sam.SAM(model, torch.optim.SGD(model.parameters(), lr=0.1), sam.sam(0.05))
        >>> with monitoring.monitor(model, optimizer, every=1, sinks=[]) as seen:
        ...     loss = optimizer.step(losses, data)
        >>> round(float(seen.records[0]["perturbation_norm"]), 4)
        0.05
    """

    def __init__(
        self, model: nn.Module, optimizer: Optimizer, loss: Any, data: Any, *, every: int | None,
        share: float, measures: Sequence[str] | None, sinks: Sequence[Sink], bn: BNMode,
        rho: float | None, scaler: Any, seed: int,
    ) -> None:  # fmt: skip
        self.model, self.optimizer, self.loss, self.data = model, optimizer, loss, data
        self.every, self.share, self.measures, self.sinks = every, share, measures, sinks
        self.bn, self.seed = bn, seed
        self.records: list[Record] = []
        self.notes: list[str] = []
        self.num_steps = 0
        self.looks = _Ledger()
        self._recording = _SingleStep(
            model, None, steps_per_epoch=1, every=1, snapshot_every=0, rho=rho, step_ends="call",
            gradients=True, first_step=0, max_mb=0.0, scaler=scaler,
        )  # fmt: skip
        self._next = every or 16  # the step that is looked at
        self._looking = False
        self._handle: Any = None
        self._affordable = measures is None or "lambda_1" in measures
        self._one = math.inf  # seconds of a loss
        self._postponed: float | None = None  # seconds that lambda_1 takes, once it may be taken

    @property
    def active(self) -> bool:
        """Whether the training under way is looked at."""
        return self._handle is not None

    def __enter__(self) -> "Monitor":
        self._handle = self.optimizer.register_step_post_hook(self._stepped)
        self.looks.begin()
        self._arm()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._handle.remove()
        self._handle = None
        if self.num_steps == 0 and kind is None:
            warnings.warn(
                f"No step of the {type(self.optimizer).__name__} was seen; give monitor the "
                f"optimizer whose step() the loop calls (base_optimizer of a wrapper that steps "
                f"it itself).",
                stacklevel=2,
            )
        if self._looking:
            self._disarm()
        for sink in self.sinks:
            if callable(close := getattr(sink, "close", None)):
                close()

    def _arm(self) -> None:
        """Begin to look, where the step that begins now is to be looked at."""
        if self.num_steps + 1 != self._next or self._looking:
            return
        if self.every is None and self.records:
            # Steps may have become faster.
            self._next = max(self._next, self._affordable_from())
        if self.num_steps + 1 == self._next:
            self._looking = True
            self._recording.__enter__()

    def _disarm(self) -> None:
        self._looking = False
        self._recording.num_steps += 1  # a step without a pass is none to warn of
        self._recording.__exit__(None, None, None)

    def _stepped(self, *_: Any) -> None:
        self.num_steps += 1
        if self.num_steps >= self._next:
            with self.looks.one():
                self._look()
            apart = self.every or 16
            later = 0 if self.every else self._affordable_from()
            self._next = max(self.num_steps + apart, later)
        self._arm()

    def _look(self) -> None:
        began = time.perf_counter()
        self._recording.step(rho=_radius(self.optimizer))
        record: Record = {"step": self.num_steps, "seconds": self.looks.passed()[0]}
        record |= self._of_step()
        self._disarm()
        if self.loss is not None:
            record |= self._of_weights()
        found = self._recording.diagnosis()
        record["alarms"] = [f"{f.key}: {f.sentence}" for f in found.wrong]
        record["look_seconds"] = time.perf_counter() - began
        self.records.append(record)
        for sink in self.sinks:
            sink(record)

    def _of_step(self) -> Record:
        shown, losses = self._recording.shown, self._recording.losses_seen
        if shown is None:
            return {}
        clean = next((loss for moved, loss in losses if not moved), math.nan)
        climbed = next((loss for moved, loss in reversed(losses) if moved), math.nan)
        length = float(shown.norm) if shown.climbed else 0.0
        rho = float(shown.rho)
        return {
            "loss_clean": clean, "loss_perturbed": climbed, "loss_gap": climbed - clean,
            "rho": rho, "perturbation_norm": length,
            "radius_ratio": length / rho if rho > 0 else math.nan,
            "cosine": float(shown.cosine) if shown.climbed else math.nan,
            "energy_share": _floats(shown.energy_share) if shown.climbed else {},
            "density": _floats(shown.density) if shown.climbed else {},
        }  # fmt: skip

    def _of_weights(self) -> Record:
        model = unwrap(self.model)
        risk = EmpiricalRisk(model, self.loss, self.data, bn=self.bn)
        theta = risk.theta
        began = time.perf_counter()
        found: Record = {"risk": float(risk.loss(theta))}
        one = time.perf_counter() - began
        if self.measures is None or "critical_sharpness" in self.measures:
            try:
                ds = measure.critical_sharpness(risk, theta)
                found["critical_sharpness"] = float(ds.critical_sharpness)
            except LandscapeError as error:  # a stationary point, a loss that is not finite
                found["critical_sharpness"] = math.nan
                self._say(f"step {self.num_steps}, critical_sharpness: {error}")
        if self._affordable and (self.measures is not None or self._is_affordable(one)):
            try:
                ds = measure.top_eigenvalues(risk, theta, k=1, seed=self.seed)
                found["lambda_1"] = float(ds.eigenvalue[0])
                found["lambda_1_bound"] = float(ds.bound[0])
                found["lambda_1_converged"] = bool(ds.converged[0])
            except LandscapeError as error:
                found["lambda_1"] = math.nan
                self._say(f"step {self.num_steps}, lambda_1: {error}")
        return found

    def _is_affordable(self, one: float) -> bool:
        """Whether lambda_1 may be taken, by the time of one loss."""
        self._one = min(self._one, one)  # once, the machine was busy
        seconds = _PRODUCTS * _LOSSES * self._one
        step = self.looks.trained()[0] / max(1, self.num_steps)
        apart = self.every or _PATIENCE
        self._affordable = seconds <= self.share * apart * step
        if self._affordable and self.every is None and self._postponed is None:
            self._postponed = seconds  # the time for it has not passed yet
            return False
        self._postponed = 0.0
        if not self._affordable:
            self._say(
                f"lambda_1 is left out: it takes about {seconds:.2g} s, {self.share:.0%} of the "
                f"time of {math.ceil(seconds / self.share / max(step, 1e-9)):,} steps; "
                f"measures=('critical_sharpness', 'lambda_1') asks for it."
            )
        return self._affordable

    def _affordable_from(self) -> int:
        """The step where looks, with one more half as long again, are that share of all time."""
        more, share = self._postponed or 0.0, self.share
        both = zip(self.looks.spent, self.looks.last, self.looks.trained(), strict=True)
        steps = [
            (spent + _LONGER * last + more) * (1 - share) * self.num_steps / (share * trained)
            for spent, last, trained in both
            if trained > 0
        ]
        return math.ceil(max(steps, default=0.0))

    @property
    def look_seconds(self) -> float:
        """What all looks took."""
        return self.looks.spent[0]

    def _say(self, note: str) -> None:
        if note not in self.notes:
            self.notes.append(note)


class _Ledger:
    """Time of the training and of the looks: of the clock, and of this process's processors.

    On a machine that others use the clock alone would take their time for the training's.
    """

    def __init__(self) -> None:
        self.spent, self.last, self._began = [0.0, 0.0], [0.0, 0.0], [0.0, 0.0]
        self._look: list[float] | None = None  # when the one under way began

    def begin(self) -> None:
        self._began = self._now()

    def passed(self) -> list[float]:
        """Since it began."""
        return [now - began for now, began in zip(self._now(), self._began, strict=True)]

    def trained(self) -> list[float]:
        """Outside of looks, the one under way included."""
        until = zip(self._look or self._now(), self._began, self.spent, strict=True)
        return [now - began - spent for now, began, spent in until]

    @contextlib.contextmanager
    def one(self) -> Generator[None]:
        """A look."""
        self._look = before = self._now()
        yield
        self._look = None
        self.last = [now - then for now, then in zip(self._now(), before, strict=True)]
        self.spent = [a + b for a, b in zip(self.spent, self.last, strict=True)]

    @staticmethod
    def _now() -> list[float]:
        return [time.perf_counter(), time.process_time()]


def _radius(optimizer: Optimizer) -> float | None:
    """The radius of the step, of our own optimizer or named by parameter groups."""
    if isinstance(optimizer, SAM) and optimizer.keep_perturbation and optimizer.perturbation:
        return float(optimizer.perturbation.rho)
    return rho_of(optimizer)


def _floats(values: dict[str, Tensor]) -> dict[str, float]:
    return {name: float(value) for name, value in values.items()}
