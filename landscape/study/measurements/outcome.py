"""What the model learned and how it was trained."""

import numpy as np
import xarray as xr

from landscape import measure, snapshots
from landscape.study.bench import Bench
from landscape.study.measurements.record import FORWARD, Options, Record, Work, nothing

SPLITS = ("train", "val", "test")


def generalization(bench: Bench, *, num_bins: int) -> xr.Dataset:
    """Loss, accuracy and calibration on every split."""
    return measure.generalization(
        bench.split_risks(), bench.theta, clean_targets=bench.clean_targets(), num_bins=num_bins
    )


def history(bench: Bench) -> xr.Dataset | None:
    """Loss, accuracy and learning rate of every epoch."""
    return bench.history("history")


def calibration(bench: Bench, *, split: str = "test", num_bins: int) -> xr.Dataset | None:
    """Reliability diagram and proper scores; None without such a split, or without classes."""
    risk = bench.split_risks().get(split)
    return (
        None
        if risk is None or not bench.has_classes
        else measure.calibration(risk, bench.theta, num_bins=num_bins)
    )


def margins(bench: Bench, *, split: str = "train") -> xr.Dataset | None:
    """Distance of every example from another class; None without such a split or classes."""
    risk = bench.split_risks().get(split)
    return None if risk is None or not bench.has_classes else measure.margins(risk, bench.theta)


def robustness(bench: Bench, *, split: str = "test", num_draws: int) -> xr.Dataset | None:
    """Loss and accuracy with disturbed weights or inputs; None without such a split."""
    risk = bench.split_risks().get(split)
    if risk is None:
        return None
    return measure.robustness(risk, bench.theta, num_draws=num_draws, seed=bench.seed)


def features(
    bench: Bench, *, modules: tuple[str, ...], share: float, num_examples: int
) -> xr.Dataset:
    """Rank of each module's features on the fixed examples, and dead units."""
    return measure.features(
        bench.risk(),
        bench.theta,
        modules=modules,
        share=share,
        num_examples=num_examples,
        seed=bench.seed,
    )


def norms(bench: Bench) -> xr.Dataset:
    """Norm of every tensor, and its distance from the initial weights where they are known."""
    initial = None if bench.run.weights is not None else bench.initial_theta()
    return measure.norms(bench.risk(), bench.theta, initial=initial)


def memorization(bench: Bench) -> xr.Dataset | None:
    """Fit of right and wrong labels, and forgetting over the epochs that are known.

    None where targets are not classes. The epochs are those that the recorder kept, or else those
    whose weights `keep_every` kept.
    """
    if not bench.has_classes:
        return None
    risk = bench.split_risks()["train"]
    epochs, correct = _correctness(bench)
    return measure.memorization(
        risk,
        bench.theta,
        clean_targets=bench.clean_targets(),
        correct=correct if len(epochs) else None,
        epochs=epochs if len(epochs) else None,
    )


def _correctness(bench: Bench) -> tuple[np.ndarray, np.ndarray]:
    """Epochs, and which training examples were right after each."""
    if bench.run.weights is not None:
        return np.empty(0, np.int64), np.empty((0, 0), bool)
    recorded = snapshots.read_correctness(bench.recorded(bench.run))
    if len(recorded.epochs):
        return recorded.epochs, recorded.correct
    epochs, rows = [], []
    for epoch, kept in bench.kept_risks("train"):
        epochs.append(epoch)
        rows.append(measure.correct_examples(kept, kept.theta))
    return np.array(epochs, np.int64), np.array(rows)


def _along(_options: Options, work: Work) -> float:
    return work.over_data * (1 + max(0, work.checkpoints - 2))


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
    Record(features, cost=lambda *_: FORWARD, least={"num_examples": 2}, most={"share": 1}),
    Record(norms, cost=nothing),
)
