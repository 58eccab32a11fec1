"""Picking runs out of results: by setting, by row (a variant and its axes), by seed."""

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import xarray as xr

from landscape import results
from landscape.errors import LandscapeError
from landscape.plot import style
from landscape.storage import visible

__all__ = [
    "VariantRuns",
    "as_runs",
    "comparable",
    "count",
    "drawable",
    "first_seeds",
    "in_setting",
    "labelled",
    "order_by",
    "partner",
    "provenance",
    "reference_label",
    "require",
    "seed_count",
    "sentence",
    "settings",
    "span",
    "units",
    "variants",
]


@dataclass(frozen=True)
class VariantRuns:
    """One row of a study with its runs: `ds` has dimension `run`, one entry per seed.

    family: the variant of the study file; axes: the values that it has on the axes of the study.
    """

    id: str
    label: str
    color: str
    symbol: str
    ds: xr.Dataset
    family: str = ""
    axes: Mapping[str, Any] = field(default_factory=dict)


_LONGEST = 60  # characters of a label that is drawn whole


def as_runs(ds: xr.Dataset) -> xr.Dataset:
    """Return `ds` with a `run` dimension; a single result becomes one run without a name."""
    if "run" in ds.dims:
        words = [] if "label" not in ds.coords else [str(word) for word in ds.label.values]
        if "".join(words).isprintable() and max(map(len, words), default=0) <= _LONGEST:
            return ds
        return ds.assign_coords(label=("run", drawable(words)))
    single = ds.expand_dims("run", create_index_for_new_dim=False)
    labels = {"run": "", "variant": "this model", "label": "This model", "setting": "", "seed": 0}
    return single.assign_coords({key: ("run", [value]) for key, value in labels.items()})


def drawable(words: Sequence[str], most: int = _LONGEST) -> list[str]:
    """Labels that leave room for the data and hold nothing unseen; those that differ still do.

    most: letters, beyond which the middle of a word is left out.
    """
    found: dict[str, str] = {}
    end = most // 4
    for word in dict.fromkeys(words):
        short = visible(word)
        if len(short) > most:
            short = f"{short[: most - end - 1]}…{short[-end:]}"
        again = sum(short == other.partition(" (#")[0] for other in found.values())
        found[word] = f"{short} (#{again + 1})" if again else short
    return [found[word] for word in words]


def labelled(ds: xr.Dataset) -> xr.Dataset:
    """Return `ds` with a number for each place of a dimension that has no coordinate."""
    bare = [dim for dim in ds.dims if dim not in ds.coords]
    return ds.assign_coords({dim: np.arange(ds.sizes[dim]) for dim in bare})


def settings(ds: xr.Dataset) -> list[str]:
    """Settings in the order of the study."""
    return list(dict.fromkeys(str(name) for name in as_runs(ds).setting.values))


def in_setting(ds: xr.Dataset, setting: str | None) -> xr.Dataset:
    """Runs of one setting; with several present one must be named."""
    ds = as_runs(ds)
    known = settings(ds)
    if setting is None:
        if len(known) > 1:
            raise LandscapeError(
                f"The result holds the settings {', '.join(known)}; say which one with setting=..."
            )
        return ds
    if setting not in known:
        raise LandscapeError(f"Unknown setting {setting!r}; the result has {', '.join(known)}.")
    return ds.isel(run=np.flatnonzero(ds.setting.values == setting))


def variants(ds: xr.Dataset) -> Iterator[VariantRuns]:
    """Variants in the order of the study, with the colour and symbol that each keeps everywhere."""
    names = list(dict.fromkeys(str(name) for name in ds.variant.values))
    for position, name in enumerate(names):
        runs = ds.isel(run=np.flatnonzero(ds.variant.values == name))
        # A result of some of the study's variants only says which they are; older ones do not.
        known = runs.place.values[0] if "place" in runs.coords else np.nan
        color, symbol = style.variant(name, position if np.isnan(known) else int(known))
        family = str(runs["family"].values[0]) if "family" in runs.coords else name
        axes = json.loads(str(runs["axes"].values[0])) if "axes" in runs.coords else {}
        yield VariantRuns(name, str(runs.label.values[0]), color, symbol, runs, family, axes)


def partner(rows: Sequence[VariantRuns], of: VariantRuns, reference: str) -> VariantRuns | None:
    """The row of `reference` that `of` is compared with: equal on all axes that both have.

    reference: a variant of the study file, or one row by its name, with which all are compared.
    None for the reference itself, where no row is equal, and where several are (SGD, which has no
    rho, beside SAM at three of them).
    """
    exact = [row for row in rows if row.id == reference]
    if of.id == reference or (not exact and of.family == reference):
        return None
    found = exact or [row for row in rows if row.family == reference and comparable(row, of)]
    return found[0] if len(found) == 1 else None


def reference_label(rows: Sequence[VariantRuns], reference: str) -> str:
    """The words for a reference: of its one row, or of the variant whose rows are meant."""
    found = [row.label for row in rows if reference in (row.id, row.family)]
    return (
        found[0] if len(found) == 1 else f"{reference} at equal axes" if found else "the reference"
    )


def comparable(a: VariantRuns, b: VariantRuns) -> bool:
    """Whether two rows are equal on all axes that both have."""
    return all(a.axes[key] == b.axes[key] for key in a.axes if key in b.axes)


def first_seeds(ds: xr.Dataset) -> xr.Dataset:
    """The run of the lowest seed of each variant."""
    keep = []
    for name in dict.fromkeys(ds.variant.values):
        index = np.flatnonzero(ds.variant.values == name)
        keep.append(index[np.argmin(ds.seed.values[index])])
    return ds.isel(run=keep)


def count(n: int, noun: str, plural: str = "") -> str:
    """1 run, 2 runs."""
    return f"{n} {noun if n == 1 else plural or noun + 's'}"


def sentence(text: str) -> str:
    """First letter upper-case, the others as they are; λ stays λ."""
    return text[:1].upper() + text[1:] if text[:1].isascii() else text


def seed_count(ds: xr.Dataset) -> str:
    """How many seeds: "5 seeds", "3 to 5 seeds"."""
    return span([v.ds.sizes["run"] for v in variants(ds)], "seed")


def span(counts: Collection[int], noun: str) -> str:
    """One count or the range of several: "5 seeds", "3 to 5 seeds"."""
    low, high = min(counts), max(counts)
    return count(high, noun) if low == high else f"{low} to {count(high, noun)}"


def provenance(ds: xr.Dataset, key: str) -> str:
    """What all runs say about `key`; several answers are joined, none is ""."""
    entry = results.provenance(ds)
    found = [part.get(key) for part in entry.get("runs", [entry])]
    return ", ".join(dict.fromkeys(str(value) for value in found if value is not None))


def units(ds: xr.Dataset, name: str) -> str:
    """Units of a variable."""
    return str(ds[name].attrs.get("units", "1"))


def require(ds: xr.Dataset, *names: str) -> None:
    """Say which variables a figure needs that the result does not have."""
    missing = [name for name in names if name not in ds.variables]
    if missing:
        raise LandscapeError(
            f"This figure needs {', '.join(missing)}; the result is "
            f"{ds.attrs.get('measurement', 'unknown')} with {', '.join(map(str, ds.data_vars))}."
        )


def require_plane(ds: xr.Dataset, variable: str) -> None:
    """Say what a figure of a plane is asked of: another result, or a grid with one row."""
    require(ds, variable)
    sizes = {axis: ds[variable].sizes.get(axis, 0) for axis in ("alpha", "beta")}
    if min(sizes.values()) < 2:
        axes = ", ".join(f"{name} {size}" for name, size in ds[variable].sizes.items())
        raise LandscapeError(
            f"This figure needs {variable} over a plane, at least 2 × 2 points of alpha and beta; "
            f"the result is {ds.attrs.get('measurement', 'unknown')} with {axes}. A line is drawn "
            f"by loss_slice."
        )


def order_by(items: Sequence[VariantRuns], values: Sequence[float]) -> list[VariantRuns]:
    """Variants from the smallest value to the largest, NaN first."""
    keyed = [(-np.inf if np.isnan(value) else value) for value in values]
    return [items[index] for index in np.argsort(keyed, kind="stable")]
