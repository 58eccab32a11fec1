"""Values of one quantity by row and seed, as measured and on its scale, and their differences."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import xarray as xr

from landscape.metrics import Metric
from landscape.stats import Contrast

__all__ = ["OUTLYING", "PER_EXAMPLE", "Values", "compared"]

# What each test example adds to a metric: the variable of `generalization` that holds it.
PER_EXAMPLE = {"test_accuracy": "test_correct", "test_loss": "test_losses"}
# Further from its row and its seed than this many (scaled) median deviations is an outlying run.
OUTLYING = 6.0


@dataclass(frozen=True)
class Values:
    """One quantity in one setting: row -> seed -> value.

    metric: the quantity; on a linear scale where some value has no logarithm (a negative trace).
    raw: as measured, NaN where a run diverged. scaled: larger is better. influence: what each test
    example adds to `scaled`, where the quantity is a share of test examples.
    """

    metric: Metric
    raw: dict[str, dict[int, float]]
    scaled: dict[str, dict[int, float]]
    influence: dict[str, dict[int, np.ndarray]] = field(default_factory=dict)

    def mean(self, row: str) -> float:
        """Mean over seeds on the scale of comparison; NaN if any seed of the row failed."""
        values = list(self.scaled.get(row, {}).values())
        return float(np.mean(values)) if values else math.nan

    def plain(self, row: str) -> np.ndarray:
        """The measured values of a row."""
        return np.array(list(self.raw.get(row, {}).values()))

    def failed(self, row: str) -> list[int]:
        """Seeds of a row whose value is not finite."""
        return [seed for seed, value in self.raw.get(row, {}).items() if not math.isfinite(value)]

    def contrast(self, a: str, b: str, quantity: object, margin: float | None = None) -> Contrast:
        """A − b over the seeds that both have."""
        ours, theirs = self.scaled.get(a, {}), self.scaled.get(b, {})
        seeds = sorted(set(ours) & set(theirs))
        differences = np.array([ours[s] - theirs[s] for s in seeds])
        examples = None
        if a in self.influence and b in self.influence:
            left, right = self.influence[a], self.influence[b]
            rows = [left[s] - right[s] for s in seeds if s in left and s in right]
            examples = np.array(rows) if rows else None
        failed = len({*self.failed(a), *self.failed(b)})
        least = self._one_more_example(a, b, examples)
        return Contrast(seeds, differences, str(quantity), self.metric.threshold(margin), examples,
                        failed, least)  # fmt: skip

    def _one_more_example(self, a: str, b: str, examples: np.ndarray | None) -> float:
        """Variance of the difference of two shares if one more example told them apart.

        Two models that are right about the same examples of a test set need not be so about others:
        without it, no error in either would be the same error. Where nobody knows of how many
        examples a share is, any one might.
        """
        if self.metric.scale != "log_error":
            return 0.0
        if examples is None:
            ours, theirs = self.scaled.get(a, {}), self.scaled.get(b, {})
            apart = any(ours[s] != theirs[s] for s in set(ours) & set(theirs))
            return 0.0 if apart else math.inf
        shares = np.array([np.nanmean(self.plain(row)) for row in (a, b)])
        errors = examples.shape[1] * (1 - shares if self.metric.better > 0 else shares)
        return 1 / (float(errors.min()) + 0.5) ** 2

    def plain_difference(self, a: str, b: str) -> float:
        """Mean of the measured a − b over the seeds that both have."""
        ours, theirs = self.raw.get(a, {}), self.raw.get(b, {})
        found = [ours[s] - theirs[s] for s in ours if s in theirs]
        finite = [value for value in found if math.isfinite(value)]
        return float(np.mean(finite)) if finite else math.nan

    @cached_property
    def outlying(self) -> tuple[tuple[str, int, float], ...]:
        """(row, seed, value) of runs far from what their row and their seed have in common.

        Medians of rows and seeds fit as many runs exactly: the scale is of those that were free to
        differ, the largest, or ordinary runs of a small table would lie far off. What is less than
        the margin away is not far, also where all others agree (a radius that is set).
        """
        known = {
            row: {seed: value for seed, value in values.items() if math.isfinite(value)}
            for row, values in self.scaled.items()
            if len(values) > 2
        }
        left = {
            (row, seed): value - float(np.median(list(values.values())))
            for row, values in known.items()
            for seed, value in values.items()
        }
        common = {
            seed: float(np.median([v for (_, s), v in left.items() if s == seed]))
            for seed in {s for _, s in left}
        }
        own = {key: value - common[key[1]] for key, value in left.items()}
        free = len(own) - len(known) - len(common) + 1
        sizes = np.sort(np.abs(list(own.values())))[::-1][: max(free, 0)]
        scale = 1.4826 * float(np.median(sizes)) if len(own) > 8 else 0.0
        limit = max(OUTLYING * scale, self.metric.threshold())
        return tuple(
            (row, seed, self.raw[row][seed])
            for (row, seed), value in own.items()
            if scale > 0 and abs(value) > limit
        )


def compared(
    quantity: Metric,
    rows: Mapping[str, xr.Dataset],
    examples: Mapping[str, xr.Dataset] | None = None,
    *,
    diverged: Mapping[str, Sequence[int]] | None = None,
) -> Values:
    """The quantity of rows, each with its runs along `run`.

    examples: rows with the variable of `PER_EXAMPLE`, for accuracy and loss of test examples.
    diverged: seeds of rows whose training failed, without a value.
    """
    raw = {row: _by_seed(ds, quantity) for row, ds in rows.items()}
    for row, seeds in (diverged or {}).items():
        if row in raw:
            raw[row].update((seed, math.nan) for seed in seeds)
    finite = [v for values in raw.values() for v in values.values() if math.isfinite(v)]
    if quantity.scale == "log" and any(value <= 0 for value in finite):
        # The margin was a share of it: without a logarithm there is none.
        quantity = replace(quantity, scale="linear", margin=0.0)
    influence = _influence(quantity, examples or {})
    sizes = {next(iter(by_seed.values())).size for by_seed in influence.values() if by_seed}
    count = next(iter(sizes)) if len(sizes) == 1 else None
    scaled = {
        row: dict(zip(values, quantity.scaled(list(values.values()), examples=count), strict=True))
        for row, values in raw.items()
    }
    return Values(quantity, raw, scaled, influence if count else {})


def _by_seed(ds: xr.Dataset, quantity: Metric) -> dict[int, float]:
    table = ds[quantity.variable]
    if quantity.kinds:
        among = np.isin(ds.kind.values.astype(str), quantity.kinds)
        table = table.isel(tensor=np.flatnonzero(among)).sum("tensor", skipna=False)
    values = np.asarray(table.values, float)
    return {int(seed): float(value) for seed, value in zip(ds.seed.values, values, strict=True)}


def _influence(
    quantity: Metric, rows: Mapping[str, xr.Dataset]
) -> dict[str, dict[int, np.ndarray]]:
    """What each test example adds to the scale of accuracy or loss, per run."""
    variable = PER_EXAMPLE.get(quantity.key, "")
    if not variable or any(variable not in ds for ds in rows.values()):
        return {}
    found = {}
    for row, ds in rows.items():
        values = np.asarray(ds[variable].values, float)
        mean = values.mean(1, keepdims=True)
        if quantity.scale == "log_error":
            slope = quantity.slope(mean, examples=values.shape[1])
        else:
            slope = quantity.better / mean if quantity.scale == "log" else quantity.better
        found[row] = dict(zip(map(int, ds.seed.values), slope * (values - mean), strict=True))
    return found
