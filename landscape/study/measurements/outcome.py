"""What the model learned and how it was trained."""

import numpy as np
import xarray as xr

from landscape import measure, snapshots
from landscape.errors import LandscapeError
from landscape.study.finished_run import FinishedRun
from landscape.study.measurements.record import FORWARD, Options, Record, Work, nothing

SPLITS = ("train", "val", "test")


def generalization(done: FinishedRun, *, num_bins: int) -> xr.Dataset:
    """Loss, accuracy and calibration on every split."""
    return measure.generalization(
        done.split_risks(), done.theta, clean_targets=done.clean_targets(), num_bins=num_bins
    )


def history(done: FinishedRun) -> xr.Dataset | None:
    """Loss, accuracy and learning rate of every epoch."""
    return done.history("history")


def calibration(done: FinishedRun, *, split: str = "test", num_bins: int) -> xr.Dataset | None:
    """Reliability diagram and proper scores; None without such a split, or without classes."""
    risk = done.split_risks().get(split)
    return (
        None
        if risk is None or not done.has_classes
        else measure.calibration(risk, done.theta, num_bins=num_bins)
    )


def margins(done: FinishedRun, *, split: str = "train") -> xr.Dataset | None:
    """Distance of every example from another class; None without such a split or classes."""
    risk = done.split_risks().get(split)
    return None if risk is None or not done.has_classes else measure.margins(risk, done.theta)


def robustness(done: FinishedRun, *, split: str = "test", num_draws: int) -> xr.Dataset | None:
    """Loss and accuracy with disturbed weights or inputs; None without such a split."""
    risk = done.split_risks().get(split)
    if risk is None:
        return None
    return measure.robustness(risk, done.theta, num_draws=num_draws, seed=done.seed)


def features(
    done: FinishedRun, *, modules: tuple[str, ...], share: float, num_examples: int
) -> xr.Dataset:
    """Rank of each module's features on the fixed examples, and dead units."""
    return measure.features(
        done.risk(),
        done.theta,
        modules=modules,
        share=share,
        num_examples=num_examples,
        seed=done.seed,
    )


def norms(done: FinishedRun) -> xr.Dataset:
    """Norm of every tensor, and its distance from the initial weights where they are known."""
    initial = None if done.run.weights is not None else done.initial_theta()
    return measure.norms(done.risk(), done.theta, initial=initial)


def memorization(done: FinishedRun) -> xr.Dataset | None:
    """Fit of right and wrong labels, and forgetting over the epochs that are known.

    None where targets are not classes. The epochs are those that the recorder kept, or else those
    whose weights `keep_every` kept.
    """
    if not done.has_classes:
        return None
    risk = done.split_risks()["train"]
    epochs, correct = _correctness(done)
    return measure.memorization(
        risk,
        done.theta,
        clean_targets=done.clean_targets(),
        correct=correct if len(epochs) else None,
        epochs=epochs if len(epochs) else None,
    )


def _correctness(done: FinishedRun) -> tuple[np.ndarray, np.ndarray]:
    """Epochs, and which training examples were right after each."""
    if done.run.weights is not None:
        return np.empty(0, np.int64), np.empty((0, 0), bool)
    recorded = snapshots.read_correctness(done.recorded(done.run))
    if len(recorded.epochs):
        return recorded.epochs, recorded.correct
    epochs, rows = [], []
    for epoch, kept in done.kept_risks("train"):
        epochs.append(epoch)
        rows.append(measure.correct_examples(kept, kept.theta))
    return np.array(epochs, np.int64), np.array(rows)


def _along(_options: Options, work: Work) -> float:
    return work.over_data * (1 + max(0, work.checkpoints - 2))


def _has_modules(o: Options, done: FinishedRun) -> None:
    known = [name for name, _ in done.model.named_modules() if name]
    unknown = [name for name in o["modules"] if name not in known]
    if unknown:
        raise LandscapeError(
            f"modules: the model has no module {unknown[0]!r}; it has {', '.join(known)}."
        )


RECORDS = (
    Record(generalization, cost=lambda _, work: work.over_data, default=True),
    Record(history, cost=nothing, default=True),
    Record(calibration, cost=lambda _, work: work.over_data, choices={"split": SPLITS}),
    Record(margins, cost=lambda _, work: work.over_data, choices={"split": SPLITS}),
    Record(memorization, cost=_along),
    Record(
        robustness,
        cost=lambda o, work: (21 + 5 * o["num_draws"]) * work.over_data,
        choices={"split": SPLITS},
    ),
    Record(
        features,
        cost=lambda *_: FORWARD,
        least={"num_examples": 2},
        most={"share": 1},
        above=("share",),
        fits=_has_modules,
    ),
    Record(norms, cost=nothing),
)
