"""The axes of a study as tables: each quantity against the axis, and the value to choose."""

import math
from dataclasses import dataclass

import numpy as np
import xarray as xr

from landscape import stats
from landscape.metrics import Metric
from landscape.report import words
from landscape.report.study import StudyResults
from landscape.stats import Interval


@dataclass(frozen=True)
class AxisTable:
    """One variant along one axis in one setting: rows are values of the axis.

    label: of the variant that all rows are about, "" where they are about none.
    """

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str
    label: str = ""


def axis_tables(study: StudyResults) -> list[AxisTable]:
    """One table per axis, setting, variant and value of the other axes."""
    tables = []
    for axis in stats.axes_of(study.data):
        ds = stats.along_axis(study.data, axis)
        if ds is None:
            continue
        keys = list(zip(ds.setting.values, ds["family"].values, ds.line.values, strict=True))
        for key in dict.fromkeys(keys):
            part = ds.isel(variant=[i for i, k in enumerate(keys) if k == key])
            tables.append(_table(study, axis, part, *key))
    return tables


def _table(
    study: StudyResults, axis: str, ds: xr.Dataset, setting: str, family: str, line: str
) -> AxisTable:
    hidden = {"test_loss", "val_loss"} - {study.metric}
    shown = [q for q in stats.QUANTITIES if q.variable in ds and q.key not in hidden]
    rows = []
    for i in range(ds.sizes["variant"]):
        chosen = "chosen" in ds and bool(ds.chosen.values[i] == 1)
        value = ds.value.values[i]
        name = words.trimmed(value) if isinstance(value, float) else str(value)
        cells = [_cell(ds.isel(variant=i), q) for q in shown]
        rows.append((f"{name} (chosen by validation)" if chosen else name, *cells))
    where = study.title(setting) if len(study.settings) > 1 else ""
    label = study.label(setting, family)
    title = ", ".join(part for part in (label, line, where) if part)
    head = (axis, *(f"{q.title} ({unit})" if (unit := _unit(q)) else q.title for q in shown))
    return AxisTable(f"{title}: against {axis}", head, tuple(rows), _note(axis, ds), label)


def _unit(q: Metric) -> str:
    return "%" if q.is_share else q.units


def _cell(ds: xr.Dataset, q: Metric) -> str:
    n = int(ds[f"{q.variable}_n"])
    mean, low, high = (float(ds[q.variable + suffix]) for suffix in ("", "_low", "_high"))
    write = words.percent if q.is_share else words.number
    text = f"{write(mean)} {words.interval(Interval(mean, low, high, n), write)}".strip()
    return text + (f" (n = {n})" if n else "")


def _note(axis: str, ds: xr.Dataset) -> str:
    said = (
        "Mean over seeds [95 % interval, of a share on the logit]; geometric, but for shares, "
        "where all are positive."
    )
    if "chosen" not in ds or not np.isfinite(ds.chosen.values).any():
        return f"{said} Without validation data of every seed no value of {axis} can be chosen."
    trainings = int(np.nanmax(ds.num_trainings.values))
    by_loss = bool(ds.by_loss.values[0])
    rule = "lowest mean validation loss" if by_loss else (
        "highest mean validation accuracy, ties by lower validation loss")  # fmt: skip
    said += f" Chosen: {rule}. The choice took {words.count(trainings, 'training')}"
    what, unit, better, write = (
        ("loss", "", "below", words.number) if by_loss else
        ("accuracy", " points", "above", words.points))  # fmt: skip
    optimism, regret = (float(ds[name].values[0]) for name in ("optimism", "regret"))
    if math.isfinite(optimism):
        said += (
            f"; its validation {what} is {write(optimism)}{unit} {better} what the rule reaches on "
            f"seeds that it did not see"
        )
    if math.isfinite(regret):
        said += f"; the best value on the test set is {write(regret)}{unit} {better} it"
    edge = np.flatnonzero(ds.chosen.values == 1)
    if edge.size and edge[0] in (0, ds.sizes["variant"] - 1) and ds.value.dtype.kind == "f":
        if ds.sizes["variant"] > 2:
            said += f". It lies at the end of the grid: values of {axis} beyond it may be better"
        else:
            said += ". Of two values each is an end: what lies between or beyond was not tried"
    return said + "."
