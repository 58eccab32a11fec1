"""One axis of a study: what changes along it, and what a choice on validation data costs."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from landscape import results
from landscape.metrics import FLATNESS, METRICS, Metric
from landscape.results import Variable
from landscape.stats.intervals import metric_ci

# Of the table of metrics, what is followed along an axis; at the middle one of several radii.
QUANTITIES: tuple[Metric, ...] = tuple(
    METRICS[key]
    for key in (
        "test_accuracy", "test_loss", "val_accuracy", "val_loss", "train_loss", *FLATNESS, "rho_eff"
    )
)  # fmt: skip


def _picked(ds: xr.Dataset, q: Metric) -> xr.DataArray | None:
    """One value per run, or None where the quantity was not measured."""
    if q.variable not in ds:
        return None
    at = {name: place for name, place in q.at if name in ds.dims}
    values = ds[q.variable].isel(at)
    if "rho" in values.dims:
        values = values.isel(rho=int(np.argsort(ds.rho.values)[(ds.sizes["rho"] - 1) // 2]))
    return values


@dataclass(frozen=True)
class Choice:
    """The value of an axis that is best on validation data, and what it costs to choose it.

    index: of the chosen value. regret: test accuracy of the value that is best on the test set,
    minus that of the chosen one: what a look at the test set would have seemed to gain. optimism:
    validation accuracy of the chosen value, minus what the rule reaches on seeds that it did not
    see (each seed's value is chosen on the others): how much too good the best of a grid looks.
    by_loss: whether nothing has an accuracy; both prices are then how much lower the loss is.

    Example:
        >>> val = np.array([[0.90, 0.92], [0.95, 0.93]])
        >>> test = np.array([[0.91, 0.93], [0.94, 0.94]])
        >>> chosen = stats.choose(val, 1 - val, test_accuracy=test)
        >>> chosen.index, chosen.regret, chosen.by_loss
        (1, 0.0, False)
    """

    index: int
    regret: float
    optimism: float
    by_loss: bool


def choose(
    val_accuracy: np.ndarray,
    val_loss: np.ndarray,
    test_accuracy: np.ndarray | None = None,
    test_loss: np.ndarray | None = None,
) -> Choice | None:
    """Highest mean validation accuracy over the seeds, ties by lower mean validation loss.

    val_accuracy, val_loss, test_accuracy, test_loss: (values, seeds), NaN where a run failed. A
    value of which a seed failed is not chosen. Where no run has an accuracy (a regression, a
    language model), the lowest mean validation loss is. None where no value has all of its seeds.
    The rule is the definition of validation: test data have no say in it.

    Example:
        >>> val = np.array([[0.90, 0.92], [0.95, 0.93]])
        >>> stats.choose(val, 1 - val).index
        1
    """
    by_loss = not np.isfinite(val_accuracy).any()
    score, test = val_accuracy, test_accuracy
    if by_loss:
        score, test = -val_loss, None if test_loss is None else -test_loss
    index = best(score, val_loss)
    if index is None:
        return None
    regret = np.nan
    if test is not None and np.isfinite(test).all(1).any():
        means = np.where(np.isfinite(test).all(1), test.mean(1), -np.inf)
        regret = float(means.max() - means[index])
    return Choice(index, regret, _optimism(score, val_loss, index), by_loss)


def best(score: np.ndarray, val_loss: np.ndarray) -> int | None:
    """Row of the highest mean score, ties by lower mean validation loss."""
    whole = np.isfinite(score).all(1)
    if not whole.any():
        return None
    # Sums of equal accuracies in another order differ in their last bit.
    mean = np.round(score.mean(1), 9)
    loss = np.where(np.isfinite(val_loss).all(1), val_loss.mean(1), np.inf)
    return max(np.flatnonzero(whole), key=lambda row: (mean[row], -loss[row])).item()


def _optimism(score: np.ndarray, loss: np.ndarray, index: int) -> float:
    seeds = score.shape[1]
    if seeds < 2:
        return np.nan
    held_out = []
    for seed in range(seeds):
        others = np.arange(seeds) != seed
        row = best(score[:, others], loss[:, others])
        held_out.append(np.nan if row is None else score[row, seed])
    return float(score[index].mean() - np.mean(held_out))


def axes_of(data: Mapping[str, xr.Dataset]) -> dict[str, list[Any]]:
    """Axes along which some variant has several values within a setting, with these values.

    data: combined results by measurement. By definition.

    Example:
        >>> stats.axes_of({"generalization": runs["generalization"]})
        {}
    """
    found: dict[str, list[Any]] = {}
    for ds in data.values():
        for curve in _curves(ds):
            for key in curve.axis_values:
                known = found.setdefault(key, [])
                known += [v for v in curve.axis_values[key] if v not in known]
    return {key: sorted(values, key=_sortable) for key, values in found.items()}


def _sortable(value: Any) -> tuple[bool, float, str]:
    number = isinstance(value, (int, float))
    return not number, float(value) if number else 0.0, str(value)


@dataclass(frozen=True)
class _VariantRows:
    """Rows of one variant in one setting: their axes, by the name of the row."""

    setting: str
    name: str
    rows: Mapping[str, Mapping[str, Any]]

    @property
    def axis_values(self) -> dict[str, list[Any]]:
        """Axes with two values or more."""
        found: dict[str, list[Any]] = {}
        for axes in self.rows.values():
            for key, value in axes.items():
                known = found.setdefault(key, [])
                known += [value] if value not in known else []
        return {key: values for key, values in found.items() if len(values) > 1}

    def lines(self, axis: str) -> dict[str, list[str]]:
        """Rows that differ along the axis alone, by their values on the other ones."""
        found: dict[str, list[str]] = {}
        for row, axes in self.rows.items():
            rest = {k: v for k, v in axes.items() if k != axis and k in self.axis_values}
            said = ", ".join(f"{key} = {value}" for key, value in rest.items())
            found.setdefault(said, []).append(row)
        order = lambda row: _sortable(self.rows[row].get(axis))  # noqa: E731
        return {k: sorted(rows, key=order) for k, rows in found.items() if len(rows) > 1}


def _curves(ds: xr.Dataset) -> list[_VariantRows]:
    if "axes" not in ds.coords or "family" not in ds.coords:
        return []
    found: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
    columns = (ds[name].values.tolist() for name in ("setting", "family", "variant", "axes"))
    for setting, family, row, axes in zip(*columns, strict=True):
        found.setdefault((setting, family), {})[row] = json.loads(axes)
    return [_VariantRows(setting, family, rows) for (setting, family), rows in found.items()]


def along_axis(data: Mapping[str, xr.Dataset], axis: str) -> xr.Dataset | None:
    """Each quantity of the study against one axis: mean over seeds, 95 % t-interval, n.

    data: combined results by measurement. Returns dimension `variant`, a row of the study each,
    with its setting, family, `line` (the values of the other axes, "" without any) and `value` on
    the axis; name, name_low, name_high, name_n for every quantity that was measured (geometric
    means where it spans scales); chosen: whether validation chooses this row of its line (`choose`,
    NaN where there are no validation data); regret and optimism of that choice, by_loss (nothing
    has an accuracy), num_trainings that it took. None where no variant varies along the axis.
    Means and intervals have the units of the quantities; by definition.

    Example:
        >>> stats.along_axis({"generalization": runs["generalization"]}, "rho") is None
        True
    """
    # From the result that knows most runs: one of the first seeds alone would lose rows.
    whole = max(data.values(), key=lambda ds: ds.sizes.get("run", 0))
    rows = [
        (family, said, row)
        for family in _curves(whole)
        for said, names in family.lines(axis).items()
        for row in names
    ]
    if not rows:
        return None
    tables = {q.variable: _by_row(data, q) for q in QUANTITIES}
    asked = _seeds_by_row(whole)
    unit = next((u for ds in data.values() if (u := results.units.of_result(ds))), None)
    variables: dict[str, Variable] = {}
    for q in QUANTITIES:
        found = [
            metric_ci(q, list(tables[q.variable].get((f.setting, row), {}).values()))
            for f, _, row in rows
        ]
        if not any(ci.n for ci in found):
            continue
        columns = (("", "estimate", ""), ("_low", "low", ", lower end of its 95 % interval"),
                   ("_high", "high", ", upper end of its 95 % interval"))  # fmt: skip
        for suffix, attribute, more in columns:
            values = np.array([getattr(ci, attribute) for ci in found])
            units = "1" if q.is_share else results.units.said_in(q.units, unit) or "1"
            variables[q.variable + suffix] = Variable("variant", values, units, q.title + more)
        counts = np.array([ci.n for ci in found])
        said = f"{q.title}, number of seeds"
        variables[f"{q.variable}_n"] = Variable("variant", counts, "1", said)
    variables |= _choices(rows, tables, asked)
    coords = {
        "variant": ("variant", _strings(row for _, _, row in rows)),
        "setting": ("variant", _strings(f.setting for f, _, _ in rows)),
        "family": ("variant", _strings(f.name for f, _, _ in rows)),
        "line": ("variant", _strings(said for _, said, _ in rows)),
        "value": ("variant", _values([f.rows[row].get(axis) for f, _, row in rows])),
    }
    rule = (
        "highest mean validation accuracy, ties by lower mean validation loss; where nothing has "
        "an accuracy, lowest mean validation loss; test never read"
    )
    said = {"axis": axis, "rule": rule}
    return results.make("along_axis", variables, coords=coords, provenance=said)


def _strings(values: Any) -> np.ndarray:
    return np.array(list(values), dtype=object)


def _values(values: Sequence[Any]) -> np.ndarray:
    if all(isinstance(v, (int, float)) for v in values):
        return np.array(values, float)
    return _strings(str(v) for v in values)


def _by_row(data: Mapping[str, xr.Dataset], q: Metric) -> dict[tuple[str, str], dict[int, float]]:
    """Values of a quantity by (setting, row), then by seed."""
    ds = data.get(q.measurement)
    values = None if ds is None or "run" not in ds.dims else _picked(ds, q)
    found: dict[tuple[str, str], dict[int, float]] = {}
    if ds is None or values is None or values.dims != ("run",):
        return found
    keys = zip(ds.setting.values, ds.variant.values, ds.seed.values, values.values, strict=True)
    for setting, row, seed, value in keys:
        found.setdefault((str(setting), str(row)), {})[int(seed)] = float(value)
    return found


def _seeds_by_row(ds: xr.Dataset) -> dict[tuple[str, str], list[int]]:
    found: dict[tuple[str, str], list[int]] = {}
    for setting, row, seed in zip(
        ds.setting.values, ds.variant.values, ds.seed.values, strict=True
    ):
        found.setdefault((str(setting), str(row)), []).append(int(seed))
    return found


def _choices(
    rows: Sequence[tuple[_VariantRows, str, str]],
    tables: Mapping[str, Mapping[tuple[str, str], Mapping[int, float]]],
    asked: Mapping[tuple[str, str], Sequence[int]],
) -> dict[str, Variable]:
    lines: dict[tuple[str, str, str], list[int]] = {}
    for place, (family, said, _) in enumerate(rows):
        lines.setdefault((family.setting, family.name, said), []).append(place)
    # chosen, regret, optimism, by_loss, num_trainings
    found = np.full((5, len(rows)), np.nan)
    for places in lines.values():
        keys = [(rows[i][0].setting, rows[i][2]) for i in places]
        seeds = sorted({seed for key in keys for seed in asked.get(key, ())})
        chosen = choose(
            *(
                np.array(
                    [[tables[name].get(key, {}).get(s, np.nan) for s in seeds] for key in keys]
                )
                for name in ("val_accuracy", "val_loss", "test_accuracy", "test_loss")
            )
        )
        if chosen is None:
            continue
        found[0, places] = np.arange(len(places)) == chosen.index
        found[1, places], found[2, places] = chosen.regret, chosen.optimism
        found[3, places] = chosen.by_loss
        found[4, places] = sum(len(asked.get(key, ())) for key in keys)
    titles = {
        "chosen": "Whether validation chooses this value",
        "regret": "How much better than the chosen value the best one on the test set is there",
        "optimism": "How much better the chosen value is on validation than on seeds held out",
        "by_loss": "Whether the choice and its prices are of losses, for want of an accuracy",
        "num_trainings": "Trainings that the choice took",
    }
    if not np.isfinite(found[0]).any():
        return {}
    return {
        name: Variable("variant", row, "1", title)
        for (name, title), row in zip(titles.items(), found, strict=True)
    }
