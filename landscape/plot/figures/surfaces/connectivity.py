"""What lies between solutions: barriers on straight lines, curves around them, perturbed lines."""

import numpy as np
import xarray as xr

from landscape.plot import runs, style
from landscape.plot.drawing import (
    Axis,
    Dash,
    Drawing,
    Line,
    Mark,
    Matrix,
    Panel,
    Points,
    Rule,
)
from landscape.plot.ticks import fixed, short

_MANY = 12  # runs from which on a matrix has no room for numbers


def barrier(ds: xr.Dataset, *, setting: str | None = None) -> Drawing:
    """Loss barriers between all pairs of runs, and the loss along the lines between them.

    Example:
        >>> drawing = figures.barrier(runs["barrier"])
        >>> drawing.title
        'Barriers between solutions'
    """
    ds = runs.in_setting(ds, setting)
    runs.require(ds, "barrier", "loss")
    names = [str(name) for name in ds.run.values]
    # A run measures half of its pairs; the others are their mirror images.
    half = ds.sel(other=names).transpose("run", "other", ...)
    table = _mirrored(half.barrier.values)
    several = ds.sizes["run"] > len(list(runs.variants(ds)))
    rows = tuple(
        f"{label}, {seed}" if several else str(label)
        for label, seed in zip(ds.label.values, ds.seed.values, strict=True)
    )
    top = float(np.nanmax(table, initial=0.0)) or 1.0
    ticks = tuple((float(i), name) for i, name in enumerate(rows))
    size = len(rows)
    matrix = Matrix(
        table, rows, rows, "loss barrier", "nats", (0.0, top), diverging=False,
        digits=None if size > _MANY else 2,
    )  # fmt: skip
    panels = (
        Panel(
            Axis(limits=(-0.5, size - 0.5), ticks=ticks),
            Axis(limits=(size - 0.5, -0.5), ticks=ticks),
            (matrix,),
            "barrier between two runs",
        ),
        Panel(
            Axis("position α"),
            Axis("loss", "nats", log=bool((half.loss > 0).sum() == np.isfinite(half.loss).sum())),
            tuple(_profiles(half)),
            "loss between two runs",
        ),
    )
    return Drawing(
        "barrier",
        "Barriers between solutions",
        "Largest height of the loss on the straight line between two runs above the chord of their "
        "losses, in nats (arXiv:1912.05671); rows and columns are named by variant"
        f"{' and seed' if several else ''}. Solutions whose units are permuted are far apart here "
        "though they agree as functions (arXiv:2209.04836), so a barrier does not tell two basins. "
        "Right: lines between two seeds of one variant in its colour; between two variants violet, "
        "green and dashed where both had the same seed, that is initial weights and order of the "
        "data. "
        f"{_mode(ds)}",
        panels,
        columns=2,
        panel_height=max(2.2, 0.6 + 0.13 * size),
        narrowest=2.4,
        widths=(1.15, 1.0),
    )


def _mirrored(values: np.ndarray) -> np.ndarray:
    return np.where(np.isfinite(values), values, values.T)


def _profiles(half: xr.Dataset) -> list[Mark]:
    """Mean of the lines within a variant, between two, and between two of one seed."""
    x = half.alpha.values.astype(float)
    looks: dict[str, tuple[str, str, Dash]] = {
        "seeds": ("two variants", "#332288", "solid"),
        "seed": ("two variants, one seed", "#44aa99", "dash"),
        **{v.id: (v.label, v.color, "solid") for v in runs.variants(half)},
    }
    symbols = {v.id: v.symbol for v in runs.variants(half)}
    order, seeds = [str(name) for name in half.variant.values], half.seed.values
    groups: dict[str, list[np.ndarray]] = {}
    for i, j in zip(*np.nonzero(np.isfinite(half.barrier.values)), strict=True):
        if i != j:
            between = "seed" if seeds[i] == seeds[j] else "seeds"
            key = order[i] if order[i] == order[j] else between
            groups.setdefault(key, []).append(half.loss.values[i, j])
    marks: list[Mark] = []
    for key, (label, color, dash) in looks.items():
        lines = groups.get(key, [])
        marks += [
            Line(x, y, label, color, dash, width=0.5, opacity=0.35, legend=False) for y in lines
        ]
        if lines:
            mean = np.mean(lines, axis=0)
            marks.append(
                Line(x, mean, f"{label} (mean of {len(lines)})", color, dash, width=1.8,
                     symbol=symbols.get(key, "none"))
            )  # fmt: skip
    return marks


def bezier(ds: xr.Dataset, *, setting: str | None = None) -> Drawing:
    """Loss and errors on a trained curve between two runs, beside the straight line.

    Example:
        >>> drawing = figures.bezier(runs["bezier"])
        >>> drawing.title
        'A curve around the barrier'
    """
    ds = runs.in_setting(ds, setting)
    runs.require(ds, "loss", "linear_loss", "barrier", "linear_barrier", "detour")
    panels = []
    for index in range(ds.sizes["run"]):
        one = ds.isel(run=index)
        x = one.alpha.values.astype(float)
        title = f"{one.label.item()}, seed {int(one.seed)} to {_end(one)}"
        panels.append(
            Panel(
                Axis("position α"),
                Axis("loss", "nats", log=bool((one.loss > 0).all())),
                (
                    Line(x, one.linear_loss.values, "straight line", style.MUTED, "dash"),
                    Line(x, one.loss.values, "trained curve", "#0072b2", width=1.6),
                ),
                f"{title}\nbarrier {_nats(one.linear_barrier)} → {_nats(one.barrier)} nats, "
                f"length × {fixed(float(one.detour), 2)}",
            )
        )
        if "error_rate" in one and bool(np.isfinite(one.error_rate).any()):
            panels.append(
                Panel(
                    Axis("position α"),
                    Axis("error rate"),
                    (
                        Line(x, one.linear_error_rate.values, "straight line", style.MUTED, "dash"),
                        Line(x, one.error_rate.values, "trained curve", "#0072b2", width=1.6),
                    ),
                    "errors",
                )
            )
    return Drawing(
        "bezier",
        "A curve around the barrier",
        "Quadratic Bézier curve between two solutions whose bend is trained for a low mean loss "
        "(arXiv:1802.10026), beside the straight line; BatchNorm statistics re-estimated at each "
        f"point. One training of the bend: an upper bound of the barrier. {_mode(ds)}",
        tuple(panels),
        columns=2,
        panel_height=1.9,
    )


def _nats(value: xr.DataArray) -> str:
    return short(float(value)) or "–"


def _end(one: xr.Dataset) -> str:
    return str(one.end.item()) if "end" in one else "another model"


def interpolation(ds: xr.Dataset, *, setting: str | None = None) -> Drawing:
    """Loss and errors on the straight line between two models, with the chord of their losses.

    Example:
        >>> drawing = figures.interpolation(runs["interpolation"])
        >>> drawing.title
        'Loss on the line between two models'
    """
    ds = runs.in_setting(ds, setting)
    runs.require(ds, "loss", "barrier", "distance")
    losses: list[Mark] = []
    errors: list[Mark] = []
    for v in runs.variants(ds):
        for index in range(v.ds.sizes["run"]):
            one = v.ds.isel(run=index)
            x, y = one.alpha.values.astype(float), one.loss.values.astype(float)
            losses += [
                Line(x, y, v.label, v.color),
                Line(
                    x[[0, -1]],
                    y[[0, -1]],
                    "chord of the ends",
                    style.MUTED,
                    "dot",
                    width=0.8,
                ),
            ]
            if bool(np.isfinite(one.error_rate).any()):
                errors.append(Line(x, one.error_rate.values.astype(float), v.label, v.color))
    axis = Axis("position α")
    panels = [Panel(axis, Axis("loss", "nats"), tuple(losses), "loss")]
    panels += [Panel(axis, Axis("error rate"), tuple(errors), "errors")] if errors else []
    height = short(float(np.nanmax(ds.barrier.values)))
    return Drawing(
        "interpolation",
        "Loss on the line between two models",
        f"Straight line in weight space; in a study from the initial weights (α = 0) to the "
        f"solution (α = 1). Highest barrier above the chord {height} nats. {_mode(ds)}",
        tuple(panels),
        columns=2,
        panel_height=1.8,
    )  # fmt: skip


def perturbation_slice(ds: xr.Dataset, *, setting: str | None = None) -> Drawing:
    """Loss along each variant's own perturbation: on the batch it was made for, and on all data.

    Example:
        >>> drawing = figures.perturbation_slice(runs["perturbation_slice"])
        >>> drawing.title
        'Loss along what the variants perturb'
    """
    ds = runs.first_seeds(runs.in_setting(ds, setting))
    runs.require(ds, "loss", "batch_loss", "direction_norm")
    known = dict(zip(map(str, ds.variant.values), map(str, ds.label.values), strict=True))
    panels = []
    for v in runs.variants(ds):
        one = v.ds.isel(run=0)
        marks: list[Mark] = [Rule("x", 1.0, "the step", "dash", text="θ + e")]
        x = one.alpha.values.astype(float)
        for position, name in enumerate(map(str, one.direction.values)):
            row = one.sel(direction=name)
            label = known.get(name, style.LABELS.get(name, name))
            color, symbol = style.variant(name, position)
            marks += [
                Line(x, row.loss.values.astype(float), f"{label}, all examples", color),
                Line(x, row.batch_loss.values.astype(float), f"{label}, its batch", color, "dot"),
                Points(
                    np.array([1.0]), np.array([float(row.loss.sel(alpha=1.0, method="nearest"))]),
                    label, color, symbol, legend=False,
                    hover=[f"‖e‖ = {short(float(row.direction_norm))}"],
                ),
            ]  # fmt: skip
        panels.append(Panel(Axis("α", "‖e‖"), Axis("loss", "nats"), tuple(marks), f"at {v.label}"))
    return Drawing(
        "perturbation_slice",
        "Loss along what the variants perturb",
        "At each solution, along the perturbation e that each variant would make there on one "
        "batch; α = 1 is the ascent step. Solid: all examples; dotted: the batch that e was made "
        "for, whose loss it is meant to raise. First seed and one batch: one illustration of both. "
        f"{_mode(ds)}",
        tuple(panels),
        columns=min(3, len(panels)),
        panel_height=1.7,
    )


def _mode(ds: xr.Dataset) -> str:
    words = runs.provenance(ds, "objective")
    objective = f" Objective: {words}." if words else ""
    return f"BatchNorm mode {runs.provenance(ds, 'bn')}.{objective}"
