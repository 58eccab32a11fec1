"""Surfaces as data: differences between variants with intervals, old files in, tables out.

Functions of results alone: nothing here evaluates a model.
"""

import csv
from itertools import product
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import scipy
import xarray as xr

from landscape import results
from landscape.checks import check_choice
from landscape.errors import LandscapeError
from landscape.results import Variable
from landscape.stats import LEVEL
from landscape.storage import open_hdf5

__all__ = ["difference", "read_goldstein", "write_csv"]

_SCALES = ("loss", "log_loss")
_SHARED = (
    "bn", "kind", "plane", "normalize", "one_d", "plane_seed", "reference", "orthogonalized",
    "objective",
)  # fmt: skip
_FLIPS = 2**12


def difference(
    ds: xr.Dataset,
    *,
    variant: str,
    reference: str,
    setting: str | None = None,
    scale: str = "loss",
    level: float = LEVEL,
) -> xr.Dataset:
    """L_variant - L_reference on the same plane, paired over seeds, with a t-interval per cell.

    ds: loss_plane or loss_slice of several runs (`results.combine`), each on the same directions
    normalized to its own model; a slice is first averaged over its directions, because the seed is
    the unit of replication. difference, low and high over the grid, as the loss (scale="log_loss":
    of the natural logarithm, so that exp(difference) is a ratio), n = pairs of seeds with finite
    losses, loss_variant and loss_reference, their means over these seeds. low and high are NaN
    for one pair. Intervals are for one cell each; p_anywhere is the exact two-sided p of "no
    difference at any cell" from flipping the signs of whole seeds (max |t| over the grid), at best
    2^(1 - n): five seeds cannot give less than 0.0625.
    """
    check_choice("scale", scale, _SCALES)
    ones, others, seeds = _paired(ds, variant, reference, setting)
    if scale == "log_loss":
        with np.errstate(invalid="ignore", divide="ignore"):
            found = np.log(ones) - np.log(others)
    else:
        found = ones - others
    found = np.where(np.isfinite(found), found, np.nan)
    n = np.isfinite(found).sum(axis=0)
    mean, half, t = _interval(found, n, level)
    dims = tuple(str(dim) for dim in ds.loss.dims if dim in ("alpha", "beta"))
    used = np.isfinite(found)
    loss_units = str(ds.loss.attrs.get("units", "1"))
    units, words = (loss_units, "Loss") if scale == "loss" else ("1", "Log loss")
    variables = {
        "difference": Variable(dims, mean, units, f"{words}, {variant} − {reference}"),
        "low": Variable(dims, mean - half, units, f"Lower end of the {level:.0%} interval"),
        "high": Variable(dims, mean + half, units, f"Upper end of the {level:.0%} interval"),
        "n": Variable(dims, n, "1", "Pairs of seeds"),
        "loss_variant": Variable(dims, _mean(ones, used), loss_units, f"Loss of {variant}"),
        "loss_reference": Variable(dims, _mean(others, used), loss_units, f"Loss of {reference}"),
        "p_anywhere": Variable((), _p_anywhere(found, t), "1", "p of no difference anywhere"),
    }
    provenance = {
        "variant": variant,
        "reference": reference,
        "setting": setting,
        "scale": scale,
        "level": level,
        "seeds": [int(seed) for seed in seeds],
        **_common_plane(ds, variant, reference, setting),
    }
    coords = {name: ds[name].variable for name in dims}
    return results.make("surface_difference", variables, coords=coords, provenance=provenance)


def _paired(
    ds: xr.Dataset, variant: str, reference: str, setting: str | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Losses (seeds, grid) of both variants for the seeds that both have."""
    for name in ("variant", "seed"):
        if name not in ds.coords or "run" not in ds[name].dims:
            raise LandscapeError(
                f"The result has no {name!r} of its runs; give several runs joined by "
                f"results.combine."
            )
    tables = []
    for name in (variant, reference):
        part = ds.isel(run=_runs(ds, name, setting))
        loss = part.loss.mean("direction") if "direction" in part.loss.dims else part.loss
        tables.append((part.seed.values, loss.transpose("run", ...).values.astype(np.float64)))
    (left, ones), (right, others) = tables
    seeds = np.intersect1d(left, right)
    if len(seeds) == 0:
        raise LandscapeError(
            f"{variant!r} has the seeds {left.tolist()} and {reference!r} {right.tolist()}; a "
            f"paired difference needs one that both have."
        )
    order = [[list(each).index(seed) for seed in seeds] for each in (left, right)]
    return ones[order[0]], others[order[1]], seeds


def _runs(ds: xr.Dataset, variant: str, setting: str | None) -> np.ndarray:
    keep = ds.variant.values == variant
    if setting is not None and "setting" in ds.coords:
        keep &= ds.setting.values == setting
    found = np.flatnonzero(keep)
    if len(found) == 0:
        known = ", ".join(map(str, dict.fromkeys(ds.variant.values.tolist())))
        raise LandscapeError(
            f"No run of variant {variant!r}{f' in setting {setting!r}' if setting else ''} is in "
            f"the result; it has {known}."
        )
    seeds = ds.seed.values[found]
    if len(set(seeds.tolist())) < len(seeds):
        raise LandscapeError(
            f"Variant {variant!r} has more than one run of a seed (several settings or radii?); "
            f"name the setting, or select runs first."
        )
    return found


def _common_plane(
    ds: xr.Dataset, variant: str, reference: str, setting: str | None
) -> dict[str, Any]:
    """BatchNorm mode, objective and directions of the runs; refused where they differ."""
    each = results.provenance(ds).get("runs", [])
    picked = [*_runs(ds, variant, setting), *_runs(ds, reference, setting)]
    shared: dict[str, Any] = {}
    for key in _SHARED:
        found = {repr(each[i].get(key)): each[i].get(key) for i in picked if i < len(each)}
        if len(found) > 1:
            raise LandscapeError(
                f"The runs of {variant!r} and {reference!r} differ in {key} ({', '.join(found)}), "
                f"so their surfaces cannot be subtracted; measure both with the same options."
            )
        if found and None not in found.values():
            shared[key] = next(iter(found.values()))
    return shared


def _interval(
    values: np.ndarray, n: np.ndarray, level: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean over seeds (axis 0), half width of its t-interval, and t; NaN where undefined."""
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.where(n > 0, np.nansum(values, axis=0) / n, np.nan)
        squares = np.nansum((values - mean) ** 2, axis=0)
        error = np.where(n > 1, np.sqrt(squares / (n - 1) / n), np.nan)
        quantile = scipy.stats.t.ppf((1 + level) / 2, np.maximum(n - 1, 1))
        return mean, quantile * error, mean / error


def _p_anywhere(values: np.ndarray, t: np.ndarray) -> float:
    """Exact p of max |t| under sign flips of whole seeds; NaN for one seed or no spread."""
    size = len(values)
    if size < 2 or not np.isfinite(t).any():
        return np.nan
    if size <= 12:
        signs = np.array(list(product((1.0, -1.0), repeat=size)))
    else:
        draws = np.random.default_rng(0).choice((1.0, -1.0), size=(_FLIPS - 1, size))
        signs = np.vstack([np.ones(size), draws])
    n = np.isfinite(values).sum(axis=0)
    shape = (size,) + (1,) * (values.ndim - 1)
    largest = [_largest(_interval(values * sign.reshape(shape), n, LEVEL)[2]) for sign in signs]
    return float(np.mean(np.array(largest) >= _largest(t) * (1 - 1e-12)))


def _largest(t: np.ndarray) -> float:
    finite = np.abs(t[np.isfinite(t)])
    return float(finite.max()) if finite.size else 0.0


def _mean(values: np.ndarray, used: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(used, values, 0).sum(axis=0) / used.sum(axis=0)


# --- files --------------------------------------------------------------------------------------


def write_csv(frame: pd.DataFrame, path: Path) -> None:
    """Write a table so that reading it gives the same doubles; NaN and infinity as nan and inf.

    A text that a spreadsheet would run as a formula is quoted with an apostrophe.
    """
    with Path(path).open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(frame.columns)
        writer.writerows([_text(value) for value in row] for row in frame.itertuples(index=False))


def _text(value: Any) -> str:
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return repr(value)
    text = str(value)
    return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t", "\r") else text


def read_goldstein(path: Path, *, name: str = "loss_plane") -> xr.Dataset:
    """A surface file of the loss-landscape program (arXiv:1712.09913) as a result.

    Reads xcoordinates, ycoordinates, train_loss, train_acc and, if there, test_loss, test_acc:
    loss(alpha, beta) and error_rate = 1 - accuracy / 100, test_loss and test_error_rate. A line
    (no ycoordinates) gives loss(direction, alpha). A file of test_loss alone gives that as loss,
    with split "test" in the provenance. Cells with -1 in loss and accuracy were not computed there
    and are NaN here. That program fills its table with x running fastest, whatever shape it states,
    so that its rows are y; here they are alpha = x. bn is "eval", which is what that program does;
    model, data and directions are not in the file and so not in the provenance, which names the
    file of directions.
    """
    path = Path(path)
    if not path.exists():
        raise LandscapeError(f"{path} does not exist; give a surface file (.h5).")
    try:
        with open_hdf5(path) as file:
            found = {
                key: np.asarray(file[key]) for key in file if isinstance(file[key], h5py.Dataset)
            }
    except Exception as error:  # a damaged file fails in as many ways as it has bytes
        raise LandscapeError(
            f"{path} is not a whole HDF5 file ({error}); copy it again from where it was made."
        ) from None
    split = next((s for s in ("train", "test") if f"{s}_loss" in found), None)
    if "xcoordinates" not in found or split is None:
        raise LandscapeError(
            f"{path} holds {', '.join(found) or 'nothing'}; a surface needs xcoordinates and "
            f"train_loss or test_loss. Give the surface file, not that of directions or of a "
            f"trajectory."
        )
    x = _numbers(path, "xcoordinates", found)
    y = _numbers(path, "ycoordinates", found) if "ycoordinates" in found else None
    axes = (x,) if y is None else (x, y)
    if any(axis.ndim != 1 for axis in axes):
        raise LandscapeError(f"{path}: its coordinates are no lists of numbers; make it again.")
    variables = {}
    skipped = _skipped(path, found)
    for key, (label, units, long_name) in _GOLDSTEIN.items():
        if key in found:
            label = label.removeprefix(f"{split}_")
            values = _laid_out(path, key, _numbers(path, key, found), skipped, axes)
            if key.endswith("_acc"):
                values = 1 - values / 100
            dims = ("alpha", "beta") if y is not None else ("direction", "alpha")
            variables[label] = Variable(
                dims, values if y is not None else values[None], units, long_name
            )
    coords: dict[str, Any] = {"alpha": Variable("alpha", x, "‖d₁‖", "α")}
    if y is None:
        coords["direction"] = np.array(["imported"], dtype=object)
        name = "loss_slice" if name == "loss_plane" else name
    else:
        coords["beta"] = Variable("beta", y, "‖d₂‖", "β")
    provenance = {"imported_from": path.name, "program": "loss-landscape", "bn": "eval"}
    if split == "test":
        provenance["split"] = split
    if "dir_file" in found:
        provenance["directions_file"] = Path(_word(found["dir_file"])).name
    return results.make(name, variables, coords=coords, provenance=provenance)


def _word(value: np.ndarray) -> str:
    """The first text of an array, as far as it can be read; it is said and decides nothing."""
    item = value.ravel()[:1].tolist()
    text = item[0].decode("utf-8", "replace") if item and isinstance(item[0], bytes) else str(*item)
    return text[:200]


# Cross-entropy or a squared error, which the file does not say.
_GOLDSTEIN = {
    "train_loss": ("loss", results.units.OTHER, "Loss"),
    "train_acc": ("error_rate", "1", "Error rate"),
    "test_loss": ("test_loss", results.units.OTHER, "Loss (test)"),
    "test_acc": ("test_error_rate", "1", "Error rate (test)"),
}


def _numbers(path: Path, key: str, found: dict[str, np.ndarray]) -> np.ndarray:
    if found[key].dtype.kind not in "fiu":
        raise LandscapeError(
            f"{path} holds {key} of type {found[key].dtype}, and no numbers; make the file again."
        )
    return found[key].astype(float)


def _skipped(path: Path, found: dict[str, np.ndarray]) -> dict[str, np.ndarray | None]:
    """Of each split the cells that were not computed: a loss may be -1, an accuracy cannot."""
    skipped: dict[str, np.ndarray | None] = {}
    for split in ("train", "test"):
        held = [_numbers(path, k, found) for k in (f"{split}_loss", f"{split}_acc") if k in found]
        alike = held and all(values.shape == held[0].shape for values in held)
        skipped[split] = np.all([values == -1 for values in held], axis=0) if alike else None
    return skipped


def _laid_out(
    path: Path,
    key: str,
    values: np.ndarray,
    skipped: dict[str, np.ndarray | None],
    axes: tuple[np.ndarray, ...],
) -> np.ndarray:
    sizes = tuple(len(axis) for axis in axes)
    if values.size == np.prod(sizes):
        missing = skipped[key.split("_")[0]]
        values = np.where(values == -1 if missing is None else missing, np.nan, values)
        return values.reshape(sizes[::-1]).T
    raise LandscapeError(
        f"{path}: {key} has shape {values.shape} where the coordinates have {sizes}; the file was "
        f"written for another grid."
    )
