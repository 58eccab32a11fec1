"""What a network made of wrong labels, and what it learned and forgot on the way."""

from collections.abc import Sequence

import numpy as np
import xarray as xr
from jaxtyping import Bool, Float, Int
from torch import Tensor

from landscape.errors import LandscapeError
from landscape.measure.measuring import Measuring
from landscape.measure.outcome.calibration import predictions
from landscape.results import Variable
from landscape.risk import EmpiricalRisk


def memorization(
    risk: EmpiricalRisk,
    theta: Float[Tensor, "P"],
    *,
    clean_targets: Int[Tensor, "N"] | None = None,
    correct: Bool[np.ndarray, "E N"] | None = None,
    epochs: Sequence[int] | np.ndarray | None = None,
) -> xr.Dataset:
    """Fit of clean-labelled and of mislabelled training examples, and forgetting events.

    risk: over the training data with the labels that were trained on; clean_targets: their true
    classes (None: all labels are right). clean_fit: share of right-labelled examples predicted as
    labelled; mislabelled_fit: of wrong-labelled ones (memorized); mislabelled_recovered: predicted
    as their true class. NaN where there are none.

    correct: whether example i was predicted as labelled at the end of each of `epochs`, in the
    order of the data (see `snapshots.read_correctness`). Then
    forgetting_events(example) counts its transitions from right to wrong (arXiv:1812.05159),
    first_learned(example) is the first epoch at which it was right (NaN: never), and
    clean_fit_epoch(epoch), mislabelled_fit_epoch(epoch) are the two fits over time.
    forgetting_clean, forgetting_mislabelled: mean events; never_forgotten_clean,
    never_forgotten_mislabelled: share that was learned and never forgotten. Epochs that were not
    recorded hide events: compare runs at equal epochs. now_correct(example), mislabelled(example):
    which is which. Cost: one forward pass.

    Example:
        >>> found = measure.memorization(risk, theta, clean_targets=torch.arange(48) % 3)
        >>> int(found.mislabelled.sum()), 0 <= float(found.clean_fit) <= 1
        (6, True)
    """
    measuring = Measuring("memorization", risk, theta)
    probabilities, labels = predictions(risk, measuring.theta)
    clean = labels if clean_targets is None else clean_targets.to(labels)
    if clean.shape != labels.shape:
        raise LandscapeError(
            f"clean_targets has {clean.numel()} classes for {labels.numel()} training examples; "
            f"pass one true class per example, in the order of the data."
        )
    predicted = probabilities.argmax(1)
    wrong = (clean != labels).cpu().numpy()
    right = (predicted == labels).cpu().numpy()
    recovered = (predicted == clean).cpu().numpy()
    scalars = {
        "clean_fit": (_mean(right[~wrong]), "Right-labelled examples predicted as labelled"),
        "mislabelled_fit": (_mean(right[wrong]), "Wrong-labelled examples predicted as labelled"),
        "mislabelled_recovered": (
            _mean(recovered[wrong]), "Wrong-labelled examples predicted as their true class"
        ),
        "num_mislabelled": (int(wrong.sum()), "Wrong-labelled examples"),
    }  # fmt: skip
    columns = {
        "now_correct": (right, "1", "Predicted as labelled"),
        "mislabelled": (wrong, "1", "Label is wrong"),
    }
    curves: dict[str, Variable] = {}
    coords = {"example": np.arange(len(right))}
    if correct is not None:
        table, when = _checked(correct, epochs, len(right))
        events, first = forgetting(table, when)
        columns["forgetting_events"] = (events, "1", "Times forgotten")
        columns["first_learned"] = (first, "epochs", "First epoch predicted as labelled")
        coords["epoch"] = when
        for name, rows in (("clean", ~wrong), ("mislabelled", wrong)):
            title = f"{'Wrong' if name == 'mislabelled' else 'Right'}-labelled examples"
            kept = np.isfinite(first[rows]) & (events[rows] == 0)
            scalars[f"forgetting_{name}"] = (_mean(events[rows]), f"{title}: times forgotten")
            scalars[f"never_forgotten_{name}"] = (
                _mean(kept), f"{title} learned and never forgotten"
            )  # fmt: skip
            fit = [_mean(row[rows]) for row in table]
            curves[f"{name}_fit_epoch"] = Variable(
                "epoch", np.array(fit), "1", f"{title} predicted as labelled"
            )
    variables = {
        name: Variable((), value, "1", title) for name, (value, title) in scalars.items()
    } | curves
    variables |= {
        name: Variable("example", values, units, title)
        for name, (values, units, title) in columns.items()
    }
    options = {"epochs_seen": 0 if correct is None else len(coords["epoch"])}
    return measuring.result(variables, coords=coords, options=options)


def correct_examples(risk: EmpiricalRisk, theta: Float[Tensor, "P"]) -> Bool[np.ndarray, "N"]:
    """Whether each example is predicted as labelled. Cost: one forward pass.

    Returns (N,), in the order of the risk's examples; right is, by definition, an example whose
    largest output is that of its label.

    Example:
        >>> right = measure.correct_examples(risk, theta)
        >>> right.shape, right.dtype
        ((48,), dtype('bool'))
    """
    probabilities, labels = predictions(risk, theta)
    return (probabilities.argmax(1) == labels).cpu().numpy()


def forgetting(
    correct: Bool[np.ndarray, "E N"], epochs: Sequence[int] | np.ndarray
) -> tuple[Int[np.ndarray, "N"], Float[np.ndarray, "N"]]:
    """Transitions from right to wrong, and the first epoch at which each example was right."""
    table = np.asarray(correct, dtype=bool)
    events = (table[:-1] & ~table[1:]).sum(0)
    first = np.where(table.any(0), np.asarray(epochs, float)[table.argmax(0)], np.nan)
    return events, first


def _checked(
    correct: np.ndarray, epochs: Sequence[int] | np.ndarray | None, size: int
) -> tuple[np.ndarray, np.ndarray]:
    table = np.asarray(correct)
    when = np.arange(1, len(table) + 1) if epochs is None else np.asarray(epochs)
    if table.ndim != 2 or table.shape[1] != size or len(when) != len(table) or not len(table):
        raise LandscapeError(
            f"correct has shape {table.shape} and epochs {len(when)} entries, for {size} training "
            f"examples; pass one row per epoch and one column per example."
        )
    if (np.diff(when) <= 0).any():
        raise LandscapeError(
            f"epochs {when[:8].tolist()} do not increase; give the rows of `correct` in order."
        )
    return table.astype(bool), when


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else float("nan")
