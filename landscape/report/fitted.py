"""How far the trainings of a setting went: to equal training loss, and to where it was level."""

import math

import numpy as np

from landscape import stats
from landscape.report import words
from landscape.report.family import Family
from landscape.report.statements import Statement
from landscape.report.trials import MATCHED

# A training is level where the last tenth of its epochs has the loss of the tenth before, but for
# this share of it.
_LEVEL = 0.05
_TENTH = 10
# Below this share of its highest value the learning rate moves the weights no further.
_NO_STEP = 0.05
_SHOWN = 6


def fitted(family: Family, setting: str) -> list[Statement]:
    """What is said of training loss: a description, without a test."""
    return _unequally(family, setting) + _level(family, setting)


def _unequally(family: Family, setting: str) -> list[Statement]:
    """Said where variants end at unequal training loss: trained alike, and not equally far."""
    study = family.study
    losses = family.values.get((setting, "train_loss"))
    references = study.references(setting)
    rows = [row for row in study.rows(setting) if not study.is_control(row, setting)]
    ends = {
        row: stats.metric_ci(losses.metric, losses.plain(row)).estimate
        for row in (rows if losses is not None and study.metric != "train_loss" else ())
        if losses is not None and row in losses.raw
    }
    known = {row: loss for row, loss in ends.items() if math.isfinite(loss) and loss > 0}
    bases = [row for row in study.rows_of(setting, references[0]) if row in known]
    if len(known) < 2 or len(bases) != 1:
        return []
    low, high = (pick(known, key=lambda row: known[row]) for pick in (min, max))
    if known[high] - known[low] <= MATCHED * known[high]:
        return []
    base, level = bases[0], known[bases[0]]
    others = [row for row in known if row != base]
    near = [row for row in others if abs(known[row] - level) <= MATCHED * max(known[row], level)]
    name = lambda row: f"{words.number(known[row])} ({study.label(setting, row)})"  # noqa: E731
    lead = f"Training loss at the end is not equal: from {name(low)} to {name(high)} nats."
    noun = study.noun(setting)
    verb = "ends" if len(others) == 1 else "end"
    text = (
        f"{len(near)} of {words.count(len(others), noun)} {verb} within {100 * MATCHED:.0f} % "
        f"of {study.label(setting, base)}'s. A difference to it is one of equal training, and not "
        f"of equal fit: it may depend on when training stops."
    )
    return [Statement(setting, lead, text)]


def _level(family: Family, setting: str) -> list[Statement]:
    """Whether each variant's training loss was level when its training ended."""
    study = family.study
    rows = study.values("history", "train_loss", setting)
    changes = {row: _change(ds.train_loss.values) for row, ds in rows.items()}
    known = {row: change for row, change in changes.items() if math.isfinite(change)}
    if not known:
        return []
    told = lambda row: f"{study.label(setting, row)} {words.points(known[row])} %"  # noqa: E731
    still = sorted((r for r in known if abs(known[r]) > _LEVEL), key=lambda r: -abs(known[r]))
    more = f" and {len(still) - _SHOWN} more" if len(still) > _SHOWN else ""
    how = (
        f"The mean training loss of the last tenth of the epochs beside that of the tenth before "
        f"(within {100 * _LEVEL:.0f} % is level): "
    )
    if still:
        shown = words.listing([told(row) for row in still[:_SHOWN]])
        lead = f"Not every training was level when it ended: {shown}{more}."
        rest = f"{how}{len(known) - len(still)} of {words.count(len(known), 'row')} are level."
        return [Statement(setting, lead, rest)]
    most = max(known, key=lambda row: abs(known[row]))
    lead = "Training loss was level when each training ended."
    if short := len(changes) - len(known):
        lead = f"Training loss was level when {len(known)} of {len(changes)} rows ended."
        how = f"{words.count(short, 'row')} had too few epochs to say, or no loss. {how}"
    text = f"{how}it changed most for {told(most)}."
    rates = study.values("history", "lr", setting)
    if rates and all(_ended_at_no_step(ds.lr.values) for ds in rates.values()):
        text += (
            " A learning rate that falls to 0 makes any training level: this says that its "
            "schedule was gone through, and not where a longer one would end."
        )
    return [Statement(setting, lead, text)]


def _change(losses: np.ndarray) -> float:
    """Relative change of the mean loss from the last tenth but one to the last, mean over seeds."""
    found = []
    for run in losses:
        seen = run[np.isfinite(run)]
        part = max(1, seen.size // _TENTH)
        if seen.size >= 3 * part and seen[-2 * part : -part].mean() > 0 and seen[-part:].mean() > 0:
            found.append(math.log(seen[-part:].mean() / seen[-2 * part : -part].mean()))
    return math.expm1(float(np.mean(found))) if found else math.nan


def _ended_at_no_step(rates: np.ndarray) -> bool:
    for run in rates:
        seen = run[np.isfinite(run)]
        if not seen.size or seen[-1] > _NO_STEP * seen.max():
            return False
    return True
