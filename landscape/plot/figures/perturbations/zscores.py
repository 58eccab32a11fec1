"""How the gradient is distributed within each tensor, and what a threshold on it selects."""

from collections.abc import Sequence

import numpy as np
import xarray as xr

from landscape.plot import runs, style
from landscape.plot.drawing import (
    Axis,
    Band,
    Dash,
    Drawing,
    Label,
    Line,
    Mark,
    Panel,
    Points,
    Rule,
)
from landscape.plot.figures._shared import MANY, chosen, kind_key, shortened, strings
from landscape.plot.runs import VariantRuns

SHOWN = ("sgd", "sam", "zsharp")
MOST = 64  # rows of one panel
COARSE = 3  # bins that are one bin of a ridge,
FEW = 2000  # in a tensor of fewer coordinates: its counts in single bins are noise
_TALLEST = 1.7  # rows
_LAWS: dict[str, tuple[str, str, Dash]] = {  # reference laws: name, colour, dash
    "normal": ("normal law", "#000000", "dash"),
    "laplace": ("Laplace", "#000000", "dot"),
    "t5": ("t, 5 degrees", "#8a8a8a", "dash"),
    "t3": ("t, 3 degrees", "#8a8a8a", "dot"),
}


def gradient_zscores(
    ds: xr.Dataset,
    *,
    setting: str | None = None,
    tensors: tuple[str, ...] | None = None,
    variants: tuple[str, ...] = SHOWN,
) -> Drawing:
    """Ridgelines: density of the standardized gradient per tensor, normal law, threshold.

    tensors: default, those with at least two dimensions, which are the ones that ZSharp filters.
    variants: whose gradient is shown, one panel each; the first two of the study if it has none.

    Example:
        >>> drawing = figures.gradient_zscores(runs["gradient_zscores"])
        >>> drawing.title
        'How the gradient is distributed in each tensor'
    """
    ds = runs.in_setting(ds, setting)
    runs.require(ds, "density", "threshold")
    names = _filtered(ds) if tensors is None else list(tensors)
    at = ds.sel(tensor=names)
    found = chosen(at, variants)
    z = np.asarray(ds.z.values, float)
    sizes = np.broadcast_to(np.asarray(at["size"].values, float), (len(names),))
    density = [_mean(v.ds.density, "tensor", "bin") for v in found]
    tallest = max((float(np.nanmax(d)) for d in density if np.isfinite(d).any()), default=0.4)
    scale = min(0.9 / 0.4, _TALLEST / tallest)
    panels = [
        Panel(
            Axis("z-score of the gradient", limits=(-6, 6)),
            Axis(
                limits=(-0.3, len(names) + 0.9),
                ticks=tuple(
                    (float(len(names) - 1 - i), name) for i, name in enumerate(shortened(names))
                ),
            ),
            tuple(_ridges(v, z, d, sizes, scale)),
            v.label,
        )
        for v, d in zip(found, density, strict=True)
    ]
    percentile = runs.provenance(ds, "percentile") or "0.95"
    return Drawing(
        "gradient_zscores",
        "How the gradient is distributed in each tensor",
        f"z = (g − μ)/σ within a tensor, mean density over {runs.seed_count(ds)}, coloured by kind "
        "of tensor; all rows have one scale. Dashed: normal law. Ticks and number: the |z| that a "
        f"share {percentile} stays below (median over runs), ZSharp's threshold; 1.96 for a normal "
        "law at 0.95. Tensors of one dimension are not filtered."
        + ("" if tensors else _thinned(ds, names))
        + _flags(at)
        + not_shown(ds, found),
        tuple(panels),
        columns=max(len(panels), 1),
        panel_height=0.6 + (0.24 if len(names) <= MANY else 0.14) * len(names),
        narrowest=1.5,
        share_x="all",
        share_y="all",
    )


def not_shown(ds: xr.Dataset, found: Sequence[VariantRuns]) -> str:
    """Variants of the result that the figure leaves out, by name."""
    rest = [v.label for v in runs.variants(ds) if v.id not in [shown.id for shown in found]]
    return f" Not shown: {', '.join(rest)}." if rest else ""


def _filtered(ds: xr.Dataset) -> list[str]:
    """Rows of two or more dimensions (all, if there are none), thinned evenly to what fits."""
    names = strings(ds.tensor)
    wide = [name for name, ndim in zip(names, ds["ndim"].values, strict=True) if ndim > 1] or names
    return wide[:: max(1, -(-len(wide) // MOST))]


def _thinned(ds: xr.Dataset, names: Sequence[str]) -> str:
    left = int((ds["ndim"] > 1).sum())
    return f" {len(names)} of {left} rows, evenly." if left > len(names) > 1 else ""


def _mean(values: xr.DataArray, *dims: str) -> np.ndarray:
    return values.transpose("run", *dims).mean("run").values


def ridge(z: np.ndarray, density: np.ndarray, size: float) -> tuple[np.ndarray, np.ndarray]:
    """Positions and heights of one tensor's ridge, in bins that its coordinates fill."""
    if size >= FEW:
        return z, density
    return coarse(z[None])[0], coarse(density[None])[0]


def coarse(values: np.ndarray) -> np.ndarray:
    """Means of neighbouring columns, in groups that are symmetric about the middle one."""
    start = (values.shape[1] // 2 - COARSE // 2) % COARSE
    whole = (values.shape[1] - start) // COARSE * COARSE
    return values[:, start : start + whole].reshape(len(values), -1, COARSE).mean(-1)


def _ridges(
    v: VariantRuns, z: np.ndarray, density: np.ndarray, sizes: np.ndarray, scale: float
) -> list[Mark]:
    names, kinds = strings(v.ds.tensor), strings(v.ds.kind)
    floors = np.arange(len(names), dtype=float)[::-1]
    marks: list[Mark] = []
    for floor, name, kind, row, size in zip(floors, names, kinds, density, sizes, strict=True):
        (x, height), color = ridge(z, row, size), style.kind(kind)
        y = floor + scale * height
        marks.append(Band(x, np.full(len(x), floor), y, name, color, opacity=0.35, group=kind))
        marks.append(Line(x, y, name, color, width=0.9, legend=False, group=kind))
    normal = np.append(np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi), np.nan)
    marks.append(
        Line(
            np.tile(np.append(z, np.nan), len(names)),
            np.concatenate([floor + scale * normal for floor in floors]),
            "normal law", "#000000", "dash", 0.7,
        )
    )  # fmt: skip
    threshold = v.ds.threshold.transpose("run", "tensor").median("run").values
    marks.append(
        Points(
            np.concatenate([-threshold, threshold]), np.tile(floors + 0.16, 2),
            "threshold", style.INK, "bar", size=5,
        )
    )  # fmt: skip
    marks += [
        Label(5.9, float(floor) + 0.3, f"{value:.2f}", style.MUTED, "right")
        for floor, value in zip(floors, threshold, strict=True)
        if np.isfinite(value)
    ]
    return marks + kind_key(kinds)


def _flags(ds: xr.Dataset) -> str:
    """Which of the tensors shown are unusual, in words."""
    if "flag" not in ds:
        return ""
    said = zip(strings(ds.tensor), strings(ds.flag), strict=True)
    found = [f"{name} ({flag})" for name, flag in said if flag and flag != "nan"]
    more = f" and {len(found) - 6} more" if len(found) > 6 else ""
    return f" Unusual: {', '.join(found[:6])}{more}." if found else ""


def zscore_tails(
    ds: xr.Dataset,
    *,
    setting: str | None = None,
    tensors: tuple[str, ...] | None = None,
    variants: tuple[str, ...] = SHOWN,
) -> Drawing:
    """Exceedance P(|z| > t), normal quantiles, and Lorenz curve of the gradient's energy.

    One line per tensor with two dimensions (`tensors` for others), one row per variant.

    Example:
        >>> drawing = figures.zscore_tails(runs["gradient_zscores"])
        >>> drawing.title
        'How heavy are the tails that a z-score filter keeps?'
    """
    ds = runs.first_seeds(runs.in_setting(ds, setting))
    runs.require(ds, "exceedance", "z_quantile", "lorenz", "reference_exceedance")
    names = _filtered(ds) if tensors is None else list(tensors)
    at = ds.sel(tensor=names)
    panels = [
        panel for v in chosen(at, variants) for panel in (_exceedance(v), _quantiles(v), _lorenz(v))
    ]
    percentile = runs.provenance(ds, "percentile") or "0.95"
    return Drawing(
        "zscore_tails",
        "How heavy are the tails that a z-score filter keeps?",
        "One line per tensor of two or more dimensions, coloured by kind; first seed. Left: share "
        "of coordinates beyond t. Middle: quantiles of z "
        "against those of the normal law; with so many coordinates any law is rejected, so read "
        "the distance, not a test. Right: share of ‖g‖² in the coordinates of largest |z|. Dots: "
        f"threshold and what it keeps at percentile {percentile}. Black and grey: standardized "
        "reference laws. The threshold alone does not order tails: it is lower for a t law of 3 "
        "degrees than for the normal law." + ("" if tensors else _thinned(ds, names)) + _flags(at),
        tuple(panels),
        columns=3,
        panel_height=1.55,
        narrowest=1.5,
        share_x="grid",
        widths=(1.0, 1.0, 1.0),
    )


def _references(
    ds: xr.Dataset, name: str, x: np.ndarray, dim: str, *, log: bool = False
) -> list[Mark]:
    marks: list[Mark] = []
    for law in strings(ds.law):
        words, color, dash = _LAWS.get(law, (law, "#8a8a8a", "solid"))
        row = ds[name].sel(law=law)
        y = (row.isel(run=0) if "run" in row.dims else row).transpose(dim).values
        shown = np.where(y > 0, y, np.nan) if log else y
        marks.append(Line(x, shown, words, color, dash, 0.9))
    return marks


def _tensors(
    v: VariantRuns, name: str, x: np.ndarray, dim: str, *, log: bool = False
) -> list[Mark]:
    """One line per tensor, and the legend's entries for their colours."""
    kinds = strings(v.ds.kind)
    table = _mean(v.ds[name], "tensor", dim)
    table = np.where(table > 0, table, np.nan) if log else table
    lines: list[Mark] = [
        Line(x, row, tensor, style.kind(kind), width=0.9, opacity=0.8, legend=False, group=kind)
        for tensor, kind, row in zip(strings(v.ds.tensor), kinds, table, strict=True)
        if np.isfinite(row).any()
    ]
    return lines + kind_key(kinds)


def _kept(v: VariantRuns, across: str, up: str) -> list[Mark]:
    """A dot per tensor at what the study's threshold keeps."""
    x, y = (_mean(v.ds[name], "tensor") for name in (across, up))
    colors = np.array([style.kind(kind) for kind in strings(v.ds.kind)])
    return [
        Points(x[colors == color], y[colors == color], "kept", str(color), size=3, legend=False)
        for color in dict.fromkeys(colors.tolist())
    ]


def _exceedance(v: VariantRuns) -> Panel:
    t = np.asarray(v.ds["level"].values, float)
    marks = _references(v.ds, "reference_exceedance", t, "level", log=True)
    marks += _tensors(v, "exceedance", t, "level", log=True)
    marks += _kept(v, "threshold", "kept_share")
    return Panel(
        Axis("t", limits=(0, 8)), Axis("P(|z| > t)", log=True, limits=(1e-5, 1.5)),
        tuple(marks), v.label,
    )  # fmt: skip


def _quantiles(v: VariantRuns) -> Panel:
    x = np.asarray(v.ds.normal_quantile.values, float)
    marks = _references(v.ds, "reference_quantile", x, "probability")
    marks += _tensors(v, "z_quantile", x, "probability")
    return Panel(
        Axis("normal quantile", limits=(-3.7, 3.7)), Axis("quantile of z", limits=(-8, 8)),
        tuple(marks),
    )  # fmt: skip


def _lorenz(v: VariantRuns) -> Panel:
    share = np.asarray(v.ds["share"].values, float)
    inside = share > 0
    at = v.ds.isel(share=np.flatnonzero(inside))
    equal: Sequence[Mark] = (Line(share[inside], share[inside], "all equal", "#bbbbbb", width=0.9),)
    marks = [*equal, *_references(at, "reference_lorenz", share[inside], "share")]
    marks += _tensors(VariantRuns(v.id, v.label, v.color, v.symbol, at), "lorenz", share[inside],
                      "share")  # fmt: skip
    marks += _kept(v, "kept_share", "captured_energy")
    marks.append(Rule("y", 1.0, "all energy", "solid", style.GRID))
    return Panel(
        Axis("share of coordinates", log=True, limits=(1e-3, 1.0)),
        Axis("share of ‖g‖²", limits=(0, 1.04)),
        tuple(marks),
    )
