"""In what share of the specifications a verdict's association holds.

A specification is one way in which the same question could have been asked: another measure of
flatness, another radius of sharpness, one value of an axis of the study (epochs, rho). Nothing is
tested here: the share is a description.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from landscape import stats
from landscape.metrics import FLATNESS, METRICS
from landscape.report import words
from landscape.report.family import Family
from landscape.report.rules import BOTH

FINITE = ("gaussian", "worst_case", "one_step")


@dataclass(frozen=True)
class Share:
    """How many specifications there are, and in how many dose and response go together.

    given: in how many also given the covariates, None where that could be computed in none.
    """

    total: int
    together: int
    given: int | None
    over: str


def specifications(family: Family, setting: str) -> Share | None:
    """The share for "better because flatter"; None with fewer than two ways to ask."""
    subsets = list(_subsets(family, setting))
    doses = list(_doses(family, setting))
    if len(doses) * len(subsets) < 2:
        return None
    together = given = total = known = 0
    for rows in subsets:
        y = _means(family, setting, family.study.metric, rows)
        covariates = [_means(family, setting, name, rows) for name in BOTH]
        for dose in doses:
            x = np.array([dose.get(row, math.nan) for row in rows])
            plain = stats.partial_correlation(x, y)
            if not math.isfinite(plain):
                continue
            total += 1
            together += plain > 0
            partial = stats.partial_correlation(x, y, covariates)
            known += math.isfinite(partial)
            given += plain > 0 and partial > 0
    if total < 2:
        return None
    measures = sum((setting, key) in family.values for key in FLATNESS)
    over = f"{words.count(measures, 'measure')}, radii of sharpness"
    if len(subsets) > 1:
        over += f", {len(subsets)} parts of the axes"
    return Share(total, together, given if known else None, over)


def _subsets(family: Family, setting: str) -> Iterator[list[str]]:
    """Rows without controls: all of them, and those at one value of each axis."""
    study = family.study
    rows = [v for v in study.variants(setting) if not study.is_control(v.id, setting)]
    yield [v.id for v in rows]
    axes = {key for v in rows for key in getattr(v, "axes", {})}
    for axis in sorted(axes):
        for value in sorted({str(v.axes[axis]) for v in rows if axis in v.axes}):
            yield [v.id for v in rows if str(v.axes.get(axis, value)) == value]


def _doses(family: Family, setting: str) -> Iterator[dict[str, float]]:
    """Flatness by row, larger is flatter, by every measure and radius."""
    for key in FLATNESS:
        if METRICS[key].measurement != "sharpness" and (setting, key) in family.values:
            values = family.values[setting, key]
            yield {row: values.mean(row) for row in values.scaled}
    for name in FINITE:
        table = family.study.values("sharpness", name, setting)
        values = {row: ds[name].transpose("run", "rho").values for row, ds in table.items()}
        for place in range(min((grid.shape[1] for grid in values.values()), default=0)):
            yield {row: _flat(grid[:, place]) for row, grid in values.items()}


def _flat(values: np.ndarray) -> float:
    return -float(np.log(values).mean()) if np.all(values > 0) else math.nan


def _means(family: Family, setting: str, key: str, rows: list[str]) -> np.ndarray:
    values = family.values.get((setting, key))
    return np.array([0.0 if values is None else values.mean(row) for row in rows])
