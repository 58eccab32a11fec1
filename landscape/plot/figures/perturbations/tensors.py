"""What a variant perturbs: per tensor, and over time."""

from dataclasses import replace

import numpy as np
import xarray as xr

from landscape import stats
from landscape.plot import runs, style
from landscape.plot.drawing import (
    Axis,
    Drawing,
    Mark,
    Matrix,
    Panel,
    Points,
    even_columns,
)
from landscape.plot.figures._shared import by_layer, height, kind_strip, row_axis, strings
from landscape.plot.figures.outcome.headline import curve
from landscape.plot.runs import VariantRuns
from landscape.plot.ticks import short


def perturbation(ds: xr.Dataset, *, setting: str | None = None) -> Drawing:
    """Per tensor: share of the perturbation's energy, share of the parameters, and density.

    Variants that do not perturb (no energy) are left out.

    Example:
        >>> drawing = figures.perturbation(runs["perturbation"])
        >>> drawing.title
        'What each variant perturbs'
    """
    ds = runs.in_setting(ds, setting)
    runs.require(ds, "density", "energy_share", "parameter_share")
    ds, together = by_layer(ds)
    names = strings(ds.tensor)
    rows = np.arange(len(names), dtype=float)
    low = 10 ** np.floor(np.log10(max(float(ds.parameter_share.min()), 1e-6)))
    panels = []
    for v in runs.variants(ds):
        if not float(v.ds.energy_share.fillna(0).sum()) > 0:
            continue
        panels.append(
            Panel(
                Axis("share", log=True, limits=(low, 2.0)),
                row_axis(names),
                tuple(_perturbed(v, rows, low)),
                f"{v.label}\n‖e‖ = {_radius(v)}",
            )
        )
    return Drawing(
        "perturbation",
        "What each variant perturbs",
        "Squares: share of the perturbation's energy ‖e_l‖²/‖e‖², coloured by kind of tensor, mean "
        f"over {runs.seed_count(ds)} with its 95 % t-interval; none where the tensor gets nothing. "
        "Upright bars: share of the parameters. Hollow dots: density, the share of a tensor's "
        "coordinates that is perturbed. ZSharp's density "
        "is constant by construction (1 − percentile where it filters, 1 elsewhere); what it "
        "changes is the energy. Logarithmic scale; ‖e‖ is the effective radius." + together,
        tuple(panels),
        columns=even_columns(len(panels), 5),
        panel_height=height(len(names)),
        narrowest=1.0,
        share_x="all",
        share_y="all",
    )


def _radius(v: VariantRuns) -> str:
    ci = stats.mean_ci(v.ds.rho_eff.values) if "rho_eff" in v.ds else None
    return "?" if ci is None or not ci.n else f"{ci.estimate:.2g}"


def _perturbed(v: VariantRuns, rows: np.ndarray, low: float) -> list[Mark]:
    energy = v.ds.energy_share.transpose("run", "tensor").values
    cis = [stats.mean_ci(column, bounds=(0.0, 1.0)) for column in energy.T]
    mean = np.array([ci.estimate for ci in cis])
    kinds = np.array(strings(v.ds.kind))
    marks: list[Mark] = []
    for kind in dict.fromkeys(kinds.tolist()):
        here = (kinds == kind) & (mean > low)
        marks.append(Points(mean[here], rows[here], kind, style.kind(kind), "square", size=4.5))
    share = v.ds.parameter_share.isel(run=0).values
    marks.insert(0, Points(share, rows, "share of the parameters", style.MUTED, "bar", size=6))
    wide = (mean > low) & np.array([ci.known for ci in cis])
    if wide.any():
        ends = np.array([[max(ci.low, low), ci.high] for ci in cis])[wide]
        marks.append(
            Points(mean[wide], rows[wide], "95 % interval", style.INK, "none", legend=False,
                   x_low=ends[:, 0], x_high=ends[:, 1])
        )  # fmt: skip
    density = np.nanmean(v.ds.density.transpose("run", "tensor").values, axis=0)
    dense = density > low
    marks.append(
        Points(density[dense], rows[dense], "density", style.INK, size=3.0,
               hollow=np.ones(int(dense.sum()), bool))
    )  # fmt: skip
    return marks


def energy_over_time(ds: xr.Dataset, *, setting: str | None = None) -> Drawing:
    """Share of the perturbation's energy by kind of tensor over epochs, one panel per variant.

    Example:
        >>> drawing = figures.energy_over_time(runs["perturbation_history"])
        >>> drawing.title
        "Where the perturbation's energy goes during training"
    """
    ds = runs.in_setting(ds, setting)
    runs.require(ds, "energy_share")
    kinds = np.array(strings(ds.kind))
    panels = []
    for v in runs.variants(ds):
        if not float(v.ds.energy_share.fillna(0).sum()) > 0:
            continue
        marks: list[Mark] = []
        for kind in dict.fromkeys(kinds.tolist()):
            share = v.ds.energy_share.isel(tensor=np.flatnonzero(kinds == kind))
            total = 100 * share.sum("tensor", skipna=False)
            # Convolutions and linear layers are as dark as each other in grey print.
            marks += curve(
                v, total, "epoch", bounds=(0.0, 1.0), name=kind, color=style.kind(kind),
                dash="dash" if kind == "linear" else "solid",
            )  # fmt: skip
        panels.append(Panel(Axis("epoch"), Axis("energy", "%", limits=(-3, 103)), tuple(marks),
                            v.label))  # fmt: skip
    return Drawing(
        "energy_over_time",
        "Where the perturbation's energy goes during training",
        "Share of ‖e‖² by kind of tensor (weights and biases of norm layers count as norm), mean "
        f"over the recorded steps of an epoch and over {runs.seed_count(ds)}; band: 95 % "
        "t-interval over seeds.",
        tuple(panels),
        columns=even_columns(len(panels), 5),
        panel_height=1.2,
        narrowest=1.0,
        share_x="all",
        share_y="all",
    )


def perturbation_over_time(ds: xr.Dataset, *, setting: str | None = None) -> Drawing:
    """Effective radius, agreement of both gradients, and loss increase over epochs.

    Example:
        >>> drawing = figures.perturbation_over_time(runs["perturbation_history"])
        >>> drawing.title
        'The perturbation during training'
    """
    ds = runs.in_setting(ds, setting)
    panels = []
    for name, label, units, bounds in (
        ("radius_ratio", "‖e‖/ρ", "1", None),
        ("cosine", "cos(g₁, g₂)", "1", (-1.0, 1.0)),
        ("sharpness_gap", "L(θ + e) − L(θ)", "nats", None),
    ):
        if name in ds and bool(np.isfinite(ds[name]).any()):
            marks = tuple(mark for v in runs.variants(ds)
                          if bool(np.isfinite(v.ds[name]).any())
                          for mark in curve(v, v.ds[name], "epoch", bounds=bounds))  # fmt: skip
            panels.append(Panel(Axis("epoch"), _wide(Axis(label, units), ds[name]), marks))
    return Drawing(
        "perturbation_over_time",
        "The perturbation during training",
        "From left to right: effective over nominal radius; cosine between the gradient of the "
        "ascent and that of the descent step; loss increase on the batch. Mean over "
        f"{runs.seed_count(ds)}; band: 95 % t-interval.",
        tuple(panels),
        columns=3,
        panel_height=1.6,
        narrowest=1.6,
    )


def _wide(axis: Axis, values: xr.DataArray) -> Axis:
    """An axis that does not magnify rounding: a tenth of the value at least."""
    low, high = float(values.min()), float(values.max())
    room = 0.05 * max(abs(low), abs(high))
    if high - low >= 2 * room:
        return axis
    middle = (low + high) / 2
    return replace(axis, limits=(middle - room, middle + room))


_FEW = (
    " Norm and bias tensors have few coordinates: a dark row may still be a strong push on each of "
    "them."
)


def energy_map(ds: xr.Dataset, *, setting: str | None = None) -> Drawing:
    """Time x tensor heat map of the share of the perturbation's energy, one panel per variant.

    Example:
        >>> drawing = figures.energy_map(runs["perturbation_history"])
        >>> drawing.title
        "Where the perturbation's energy goes, tensor by tensor"
    """
    return _map(
        ds,
        setting,
        "energy_share",
        "energy share",
        "energy_map",
        "Where the perturbation's energy goes, tensor by tensor",
        "Share ‖e_l‖²/‖e‖² of the perturbation's energy",
        (1e-4, 1.0),
        _FEW,
    )


def norm_ratio_map(ds: xr.Dataset, *, setting: str | None = None) -> Drawing:
    """Time x tensor heat map of the perturbation's norm over the weights', ‖e_l‖/‖w_l‖.

    Example:
        >>> drawing = figures.norm_ratio_map(runs["perturbation_history"])
        >>> drawing.title
        'How large the perturbation is beside the weights'
    """
    return _map(
        ds,
        setting,
        "norm_ratio",
        "‖e‖/‖w‖",
        "norm_ratio_map",
        "How large the perturbation is beside the weights",
        "‖e_l‖/‖w_l‖, the perturbation of a tensor relative to its weights",
        None,
        _FEW,
    )


def density_map(ds: xr.Dataset, *, setting: str | None = None) -> Drawing:
    """Time x tensor heat map of the density of the mask, the share of coordinates perturbed.

    Example:
        >>> drawing = figures.density_map(runs["perturbation_history"])
        >>> drawing.title
        'How much of each tensor is perturbed'
    """
    return _map(
        ds,
        setting,
        "density",
        "density",
        "density_map",
        "How much of each tensor is perturbed",
        "Share of a tensor's coordinates that is perturbed",
        (1e-3, 1.0),
        " What changes the mask within an epoch is seen as a share in between.",
    )


def _map(
    ds: xr.Dataset,
    setting: str | None,
    name: str,
    label: str,
    figure: str,
    title: str,
    words: str,
    limits: tuple[float, float] | None,
    more: str = "",
) -> Drawing:
    ds = runs.in_setting(ds, setting)
    runs.require(ds, name)
    ds, together = by_layer(ds)
    names, kinds = strings(ds.tensor), strings(ds.kind)
    epochs = [str(epoch) for epoch in ds.epoch.values]
    found = [v for v in runs.variants(ds) if float(v.ds.energy_share.fillna(0).sum()) > 0]
    tables = [v.ds[name].transpose("run", "tensor", "epoch").mean("run").values for v in found]
    low, high = limits or _decades(tables)
    strip = max(0.12, 0.06 * len(epochs))
    stride = max(1, -(-len(epochs) // 5))
    ticks = tuple((float(i), epochs[i]) for i in range(0, len(epochs), stride))
    across = Axis("epoch", ticks=ticks, limits=(-0.6 - strip, len(epochs) - 0.5))
    panels = [
        Panel(
            across,
            row_axis(names),
            (
                Matrix(table, tuple(names), tuple(epochs), label, "1", (low, high),
                       diverging=False, digits=None, log=True),
                *kind_strip(kinds, -0.6 - strip, -0.6),
            ),
            v.label,
        )
        for v, table in zip(found, tables, strict=True)
    ]  # fmt: skip
    return Drawing(
        figure,
        title,
        f"{words}, mean over the steps of an epoch and over {runs.seed_count(ds)}, from the first "
        "tensor of the network to the last; the strip at the left is the kind of tensor. "
        f"Logarithmic colours, below {short(low)} as {short(low)}. White: not perturbed.{more}"
        + together,
        tuple(panels),
        columns=even_columns(len(panels), 5),
        panel_height=height(len(names)),
        narrowest=0.9,
        share_x="all",
        share_y="all",
    )


def _decades(tables: list[np.ndarray]) -> tuple[float, float]:
    """Limits that hold all positive values, four decades below the largest at most."""
    values = np.concatenate([table.ravel() for table in tables]) if tables else np.array([])
    values = values[np.isfinite(values) & (values > 0)]
    if not values.size:
        return 1e-3, 1.0
    high = float(values.max())
    low = max(float(values.min()), 1e-4 * high)
    return (low, high) if high > 1.001 * low else (0.5 * high, 2 * high)
