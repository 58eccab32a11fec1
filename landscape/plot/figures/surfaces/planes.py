"""The loss over planes around a model: contours, rotating surfaces, differences, curvature."""

from dataclasses import replace

import numpy as np
import xarray as xr

from landscape import surfaces
from landscape.plot import runs
from landscape.plot.drawing import (
    Axis,
    Drawing,
    Field,
    Line,
    Mark,
    Panel,
    Points,
    Surface,
)
from landscape.plot.figures.surfaces._planes import (
    centre,
    contours,
    dots,
    gaps,
    largest,
    mode,
    normalization,
    random_axes,
    shared_levels,
)
from landscape.plot.ticks import short

_ALPHA, _BETA = Axis("α", "‖d₁‖"), Axis("β", "‖d₂‖")


def loss_plane(
    ds: xr.Dataset,
    slices: xr.Dataset | None = None,
    *,
    setting: str | None = None,
    levels: int = 15,
    variable: str = "loss",
    rise: bool = True,
) -> Drawing:
    """Loss on a plane through each model of the first seed, with its cuts along both axes.

    rise: the contours show how far each cell lies above the lowest of its own plane, even in the
    square root, so that bowls of different depth are told by their colours; False shows the values
    themselves. All panels share the levels. slices: loss_slice of the same study, whose spread over
    directions tells how much the choice of the plane matters. variable: what is drawn, "loss" or
    another one of the result over the plane (error_rate; test_loss, test_error_rate of `also`).

    Example:
        >>> drawing = figures.loss_plane(runs["loss_plane"], runs["loss_slice"])
        >>> drawing.title
        'Loss on a plane of random directions'
    """
    ds = runs.first_seeds(runs.in_setting(ds, setting))
    runs.require_plane(ds, variable)
    values = [one.ds[variable].isel(run=0).values for one in runs.variants(ds)]
    _, log = shared_levels(values, levels)
    lowest = [_lowest(table) if rise else 0.0 for table in values]
    ticks, log_levels = shared_levels(
        [table - low for table, low in zip(values, lowest, strict=True)], levels, root=rise
    )
    units, name = runs.units(ds, variable), _lower(ds, variable)
    panels = []
    for v, low in zip(runs.variants(ds), lowest, strict=True):
        one = v.ds.isel(run=0).transpose("alpha", "beta", ...)
        one = one.assign({variable: one[variable] - low})
        words = f"{name} above the lowest of its plane" if rise else name
        marks: list[Mark] = [
            *contours(one, variable, units, ticks, log=log_levels, name=words, root=rise),
            *_evaluated(one),
        ]
        ends = [(float(one[name][0]), float(one[name][-1])) for name in ("alpha", "beta")]
        x, y = replace(_ALPHA, limits=ends[0], few=True), replace(_BETA, limits=ends[1], few=True)
        title = f"{v.label}\nlowest {short(low)}" if rise else v.label
        panels.append(Panel(x, y, (*marks, centre()), title))
    columns = 4 if len(panels) > 4 else 3 if len(panels) in (1, 3) else len(panels)
    # Rows of planes are named once; one of planes and cuts has two kinds of axes.
    whole = len(panels) % columns == 0
    panels += [_cut(ds, along, variable, log=log) for along in ("alpha", "beta")]
    return Drawing(
        "loss_plane",
        f"{runs.sentence(_named(ds, variable))} on a plane of {_kind(ds)}",
        ("Colours: height above the lowest value of the same plane, which the title names. " * rise)
        + _plane_caption(ds, variable, slices, setting),
        tuple(panels),
        columns=columns,
        panel_height=1.7 if columns == 4 else 1.6,
        share_y="grid" if whole else "",
    )


def _lowest(table: np.ndarray) -> float:
    finite = table[np.isfinite(table)]
    return float(finite.min()) if finite.size else 0.0


def _named(ds: xr.Dataset, variable: str) -> str:
    return str(ds[variable].attrs.get("long_name", variable))


def _lower(ds: xr.Dataset, variable: str) -> str:
    name = _named(ds, variable)
    return name[0].lower() + name[1:]


def _cut(ds: xr.Dataset, along: str, variable: str, *, log: bool) -> Panel:
    """The row of cells through, or nearest to, the checkpoint, one line per variant."""
    across = "beta" if along == "alpha" else "alpha"
    marks: list[Mark] = []
    for v in runs.variants(ds):
        row = v.ds.isel(run=0).sel({across: 0.0}, method="nearest")
        values = row[variable].values.astype(float)
        shown = np.where(np.isfinite(values) & ((values > 0) | (not log)), values, np.nan)
        marks.append(
            Line(row[along].values.astype(float), shown, v.label, v.color, symbol=v.symbol)
        )
    axis, other = (_ALPHA, "β") if along == "alpha" else (_BETA, "α")
    # Whole, even where the loss is not finite at its ends.
    axis = replace(axis, limits=(float(ds[along][0]), float(ds[along][-1])), few=True)
    # An imported grid need not hold 0.
    at = float(ds[across].sel({across: 0.0}, method="nearest"))
    title = f"cross-section {other} = {at:.3g}"
    y = Axis(_lower(ds, variable), runs.units(ds, variable), log=log)
    return Panel(axis, y, tuple(marks), title)


def _kind(ds: xr.Dataset) -> str:
    kind = runs.provenance(ds, "plane")
    return {"random": "random directions", "": "given directions"}.get(kind, kind)


def _plane_caption(
    ds: xr.Dataset,
    variable: str,
    slices: xr.Dataset | None,
    setting: str | None,
    *,
    surface: bool = False,
) -> str:
    parts = []
    if random_axes(ds):
        parts.append(
            "Illustration, not evidence: two random directions miss almost all curvature, and the "
            "picture changes with the directions." + _spread(slices, setting)
        )
        how = normalization(ds)
        shared = f"All models share the directions{f' ({how})' if how else ''} and the levels."
    else:
        parts.append(_axes_words(ds))
        shared = "All panels share the levels."
    parts.append(f"First seed only. {shared}")
    if "axis_cosine" in ds:
        parts.append(f"Cosine of the axes at most {_cosine(ds):.2f}.")
    if "evaluated" in ds and not surface:
        share = float(np.nanmean(ds.evaluated.values.astype(float)))
        tolerance = runs.provenance(ds, "tolerance") or "the stated tolerance"
        parts.append(
            f"Dots: the {100 * share:.0f} % of the cells that were evaluated; the others are "
            f"interpolated within {tolerance} of the loss."
        )
    parts.append(mode(ds))
    if bool((~np.isfinite(ds[variable])).any()):
        parts.append(f"{'Holes' if surface else 'Hatched'}: {_absent(ds, variable)}")
    return " ".join(part for part in parts if part)


def _absent(ds: xr.Dataset, variable: str) -> str:
    if variable == "loss" or "evaluated" not in ds:
        return "the loss is not finite there."
    return "not evaluated (only the loss is interpolated) or not finite."


def _axes_words(ds: xr.Dataset) -> str:
    """What the axes of a plane with a meaning are, and in which unit they are drawn."""
    axes = runs.provenance(ds, "directions")
    if not axes:
        return "Directions are not recorded."
    lengths = [ds[name].values for name in ("alpha_norm", "beta_norm") if name in ds]
    if lengths and np.allclose(lengths, 1, rtol=1e-4):
        return f"Axes: {axes}; coordinates are distances."
    return f"Axes: {axes}; coordinates are in units of their lengths."


def _cosine(ds: xr.Dataset) -> float:
    return float(np.abs(ds.axis_cosine).max())


def _spread(slices: xr.Dataset | None, setting: str | None) -> str:
    """How much the rise at the end of a slice differs between directions of one model."""
    if slices is None:
        return ""
    part = runs.first_seeds(runs.in_setting(slices, setting))
    end = part.loss.isel(alpha=-1) - part.loss.sel(alpha=0.0, method="nearest")
    if part.sizes.get("direction", 1) < 2:
        return ""
    relative = end.std("direction", ddof=1) / end.mean("direction")
    reach = short(float(part.alpha[-1]))
    return (
        f" Between {part.sizes['direction']} directions of one model the rise at α = {reach} "
        f"has a standard deviation of {100 * float(relative.median()):.0f} % of its mean."
    )


def loss_surface(
    ds: xr.Dataset,
    *,
    setting: str | None = None,
    references: tuple[str, ...] = ("sgd", "sam"),
    most: int = 4,
    variable: str = "loss",
) -> Drawing:
    """The same planes as surfaces that rotate, with their contours on the floor.

    At most `most` of them, the references first: a browser rotates few at a time. variable: as for
    `loss_plane`.

    Example:
        >>> drawing = figures.loss_surface(runs["loss_plane"])
        >>> drawing.title
        'Loss over a plane of random directions'
    """
    ds = runs.first_seeds(runs.in_setting(ds, setting))
    runs.require_plane(ds, variable)
    height, units = _lower(ds, variable), runs.units(ds, variable)
    every = list(runs.variants(ds))
    found = sorted(every, key=lambda v: v.family not in references and v.id not in references)[
        :most
    ]
    values = [v.ds.isel(run=0)[variable].transpose("alpha", "beta").values for v in found]
    ticks, _ = shared_levels(values, 15, linear=True)
    panels = tuple(
        Panel(
            _ALPHA,
            _BETA,
            (
                Surface(
                    v.ds.alpha.values.astype(float), v.ds.beta.values.astype(float), table,
                    (float(ticks[0]), float(ticks[-1])), height, units, log=False,
                ),
            ),
            v.label,
            z=Axis(height, units),
        )
        for v, table in zip(found, values, strict=True)
    )  # fmt: skip
    return Drawing(
        "loss_surface",
        f"{runs.sentence(_named(ds, variable))} over a plane of {_kind(ds)}",
        f"{_plane_caption(ds, variable, None, None, surface=True)} All panels share the "
        "linear scale of heights and colours. Drag to rotate; the contours on the floor are those "
        "of the surface."
        + (f" {len(found)} of {len(every)} variants." if len(found) < len(every) else ""),
        panels,
        columns=2 if len(panels) == 4 else min(3, len(panels)),
        panel_height=2.0 if len(panels) == 3 else 2.4,
        narrowest=1.7,
        legend=False,
    )


def plane_difference(
    ds: xr.Dataset, *, setting: str | None = None, reference: str = "sgd"
) -> Drawing:
    """Loss of each variant minus that of the reference on the same plane, paired over seeds.

    Cells whose interval excludes 0 carry a dot. Without a second seed there is nothing to draw.

    Example:
        >>> drawing = figures.plane_difference(runs["loss_plane"])
        >>> drawing.title
        'Loss minus that of the reference on the same plane'
    """
    # Whole, because its provenance lists all runs.
    whole, ds = runs.as_runs(ds), runs.in_setting(ds, setting)
    found = list(runs.variants(ds))
    pairs = [(v, base) for v in found if (base := runs.partner(found, v, reference)) is not None]
    made = [
        (v, _difference(whole, v.id, base.id, setting))
        for v, base in pairs
        if len(np.intersect1d(v.ds.seed.values, base.ds.seed.values)) > 1
    ]
    limit = largest([float(np.nanmax(np.abs(part.difference.values))) for _, part in made])
    name = runs.reference_label(found, reference)
    ratio = f"ln(loss / loss of {name})"
    panels = []
    for v, part in made:
        x, y = part.alpha.values.astype(float), part.beta.values.astype(float)
        table = part.difference.values
        surely = (part.low.values > 0) | (part.high.values < 0)
        words = f"{runs.count(int(part.n.max()), 'seed')}, p = {float(part.p_anywhere):.2g}"
        panels.append(
            Panel(
                replace(_ALPHA, limits=_edges(x)),
                replace(_BETA, limits=_edges(y)),
                (
                    Field(x, y, table, ratio, "1", (-limit, limit), diverging=True),
                    *gaps(x, y, table),
                    *dots(x, y, surely, "interval excludes 0"),
                ),
                f"{v.label}\n{words}",
            )
        )
    random, how = random_axes(ds), normalization(ds)
    axes = "the same random directions" if random else f"each model's {_kind(ds)}"
    axes += f" ({how})" if random and how else ""
    illustration = " Random directions: illustration, not evidence." if random else ""
    return Drawing(
        "plane_difference",
        f"Loss minus that of {name} on the same plane",
        f"Mean over seeds of ln L − ln L({name}) at the same coordinates of {axes}; "
        "below 0 (blue) the loss is lower. At the centre this is the difference of the training "
        "losses themselves. Dots: the 95 % t-interval of that cell, paired over seeds, excludes 0; "
        "1 in 20 cells would by chance. p: exact, of no difference at any cell, from flipping the "
        f"signs of whole seeds, which cannot go below 2/2ⁿ.{illustration} {mode(ds)}",
        tuple(panels),
        columns=min(3, max(1, len(panels))),
        panel_height=1.6,
        narrowest=1.4,
    )


def _difference(ds: xr.Dataset, variant: str, reference: str, setting: str | None) -> xr.Dataset:
    return surfaces.difference(
        ds, variant=variant, reference=reference, setting=setting, scale="log_loss"
    )


def curvature_map(ds: xr.Dataset, *, setting: str | None = None) -> Drawing:
    """Largest and smallest Hessian eigenvalue over a plane, and how far from convex that is.

    Example:
        >>> drawing = figures.curvature_map(runs["curvature_map"])
        >>> drawing.title
        'Extreme Hessian eigenvalues over a plane of random directions'
    """
    ds = runs.first_seeds(runs.in_setting(ds, setting))
    runs.require(ds, "eigenvalue_max", "eigenvalue_min", "residual_min", "non_convexity")
    found = list(runs.variants(ds))
    top = _positive(ds.eigenvalue_max.values)
    low = _positive(_below_zero(ds).values)
    ratio = max(float(np.nanmax(ds.non_convexity.values, initial=0.0)), 1e-12)
    rows = (
        ("eigenvalue_max", "λₘₐₓ", top, True),
        ("eigenvalue_min", "−λₘᵢₙ", low, True),
        ("non_convexity", "|λₘᵢₙ| / |λₘₐₓ|", (0.0, ratio), False),
    )
    panels = []
    for variable, name, limits, log in rows:
        units = "1" if variable == "non_convexity" else "nats"
        for v in found:
            one = v.ds.isel(run=0).transpose("alpha", "beta", ...)
            x, y = one.alpha.values.astype(float), one.beta.values.astype(float)
            values = one[variable].values
            if variable == "eigenvalue_min":
                values = _below_zero(one).values
            values = np.where((values > 0) | (not log), values, np.nan)
            loose = ~one.converged.values.astype(bool) & np.isfinite(one[variable].values)
            marks: list[Mark] = [
                Field(x, y, values, name, units, limits, log=log),
                *gaps(x, y, one[variable].values),
                *dots(x, y, loose, "not converged", hollow=True),
            ]
            if variable == "eigenvalue_min":
                convex = one.eigenvalue_min.values - one.residual_min.values > 0
                marks += dots(x, y, convex, "surely convex: λₘᵢₙ − residual > 0")
            axes = replace(_ALPHA, limits=_edges(x)), replace(_BETA, limits=_edges(y))
            panels.append(Panel(*axes, tuple(marks), f"{v.label}, {name}"))
    worst = float(np.nanmax(np.maximum(ds.residual_max, ds.residual_min).values, initial=0.0))
    return Drawing(
        "curvature_map",
        f"Extreme Hessian eigenvalues over a plane of {_kind(ds)}",
        "Eigenvalues of the whole Hessian at each cell, not of the plane, in nats per squared "
        f"parameter; each is within its residual, at most {short(worst)}, of an exact one (hollow: "
        "not converged). Where λₘᵢₙ is not below 0 by more than that its cell is blank "
        "(arXiv:1712.09913, section 6). First seed only. "
        + ("The directions are random: illustration, not evidence. " if random_axes(ds) else "")
        + (f"Cosine of the axes at most {_cosine(ds):.2f}. " if "axis_cosine" in ds else "")
        + mode(ds)
        + (" Hatched: the loss is not finite there." if bool(ds.loss.isnull().any()) else ""),
        tuple(panels),
        columns=len(found) if len(found) <= 4 else 3,
        panel_height=1.35,
    )


def _edges(centres: np.ndarray) -> tuple[float, float]:
    """Where the first cell begins and the last one ends."""
    half = float(centres[1] - centres[0]) / 2 if len(centres) > 1 else 0.5
    return float(centres[0]) - half, float(centres[-1]) + half


def _below_zero(ds: xr.Dataset) -> xr.DataArray:
    """-lambda_min where that is above its residual and above rounding, else 0."""
    depth = -ds.eigenvalue_min
    rounding = 1e-12 * np.abs(ds.eigenvalue_max)
    return depth.where((depth > ds.residual_min) & (depth > rounding) | depth.isnull(), 0.0)


def _evaluated(one: xr.Dataset) -> list[Mark]:
    """Evaluated cells of an adaptive plane, if some were interpolated."""
    if "evaluated" not in one:
        return []
    where = np.nan_to_num(one.evaluated.values.astype(float)).astype(bool)
    if where.all() or not where.any():
        return []
    x, y = one.alpha.values.astype(float), one.beta.values.astype(float)
    i, j = np.nonzero(where)
    return [Points(x[i], y[j], "evaluated cells", "#ffffff", size=0.9, opacity=0.8, legend=False)]


def _positive(values: np.ndarray) -> tuple[float, float]:
    finite = values[np.isfinite(values) & (values > 0)]
    if not finite.size:
        return (0.5, 2.0)
    low, high = float(finite.min()), float(finite.max())
    return (low, high) if high > 1.01 * low else (0.9 * low, 1.1 * low)
