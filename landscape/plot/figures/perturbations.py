"""What a variant perturbs: per tensor, over time, and beside the other variants."""

import numpy as np
import xarray as xr

from landscape import stats
from landscape.plot import runs, style
from landscape.plot.drawing import (
    Axis,
    Bars,
    Drawing,
    Line,
    Mark,
    Matrix,
    Panel,
    Points,
    Rule,
)
from landscape.plot.figures.outcome import curve
from landscape.plot.runs import Variant


def gradient_zscores(
    ds: xr.Dataset, *, setting: str | None = None, tensors: tuple[str, ...] | None = None
) -> Drawing:
    """Density of the standardized gradient per tensor, the normal law, and ZSharp's threshold.

    tensors: default, those with at least two dimensions, which are the ones that ZSharp filters.
    """
    ds = runs.in_setting(ds, setting)
    runs.require(ds, "density", "threshold")
    flags = ds.flag.isel(run=0).values if "flag" in ds else np.full(ds.sizes["tensor"], "")
    if tensors is None:
        fit = ds["ndim"].values > 1
        chosen = [str(n) for n, ok in zip(ds.tensor.values, fit, strict=True) if ok]
    else:
        chosen = list(tensors)
    z = np.asarray(ds.z.values, float)
    normal = np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi)
    panels = []
    for name in chosen:
        at = ds.sel(tensor=name)
        marks: list[Mark] = [Line(z, _visible(normal), "normal law", "#000000", "dash", 0.9)]
        for v in runs.variants(at):
            mean = np.nanmean(v.ds.density.transpose("run", "bin").values, axis=0)
            marks.append(Line(z, _visible(mean), v.label, v.color, opacity=0.85, width=0.9))
        threshold = float(at.threshold.median())
        if np.isfinite(threshold):
            marks += [
                Rule(
                    "x", side * threshold, "threshold", "dot", text=f"{threshold:.2f}" * (side > 0)
                )
                for side in (-1, 1)
            ]
        panels.append(
            Panel(
                Axis("z-score of the gradient", limits=(-6, 6)),
                Axis("density", log=True, limits=(1e-4, 1.2)),
                tuple(marks),
                name,
            )
        )
    percentile = runs.provenance(ds, "percentile") or "0.95"
    left_out = [str(n) for n, flag in zip(ds.tensor.values, flags, strict=True) if str(flag)]
    return Drawing(
        "gradient_zscores",
        "How the gradient is distributed in each tensor",
        f"z = (g − μ)/σ within a tensor, mean over {runs.seed_count(ds)}. Dashed: normal law. "
        f"Dotted: the |z| that a share {percentile} stays below (median over runs), ZSharp's "
        "threshold. Tensors of one dimension are not filtered."
        + (f" Too small or constant: {', '.join(left_out)}." if left_out else ""),
        tuple(panels),
        columns=4 if len(panels) > 3 else max(len(panels), 1),
        panel_height=1.35,
        share_x="all",
        share_y="all",
    )


def _visible(density: np.ndarray) -> np.ndarray:
    # An empty bin has no logarithm: a gap in the line, not a fall to the axis.
    return np.where(density > 0, density, np.nan)


def perturbation(ds: xr.Dataset, *, setting: str | None = None) -> Drawing:
    """Per tensor: share of the perturbation's energy, share of the parameters, and density.

    Variants that do not perturb (no energy) are left out.
    """
    ds = runs.in_setting(ds, setting)
    runs.require(ds, "density", "energy_share", "parameter_share")
    names = [str(name) for name in ds.tensor.values]
    rows = np.arange(len(names), dtype=float)[::-1]
    ticks = tuple(zip(rows.tolist(), names, strict=True))
    low = 10 ** np.floor(np.log10(max(float(ds.parameter_share.min()), 1e-6)))
    panels = []
    for v in runs.variants(ds):
        if not float(v.ds.energy_share.fillna(0).sum()) > 0:
            continue
        panels.append(
            Panel(
                Axis("share", log=True, limits=(low, 1.3)),
                Axis(limits=(-0.6, len(names) - 0.4), ticks=ticks),
                tuple(_perturbed(v, rows, low)),
                f"{v.label}\n‖e‖ = {_radius(v)}",
            )
        )
    return Drawing(
        "perturbation",
        "What each variant perturbs",
        "Bars: share of the perturbation's energy ‖e_l‖²/‖e‖², coloured by kind of tensor, mean "
        f"over {runs.seed_count(ds)} with its 95 % t-interval. Outline: share of the parameters. "
        "Dots: density, the share of a tensor's coordinates that is perturbed. ZSharp's density "
        "is constant by construction (1 − percentile where it filters, 1 elsewhere); what it "
        "changes is the energy. Logarithmic scale; ‖e‖ is the effective radius.",
        tuple(panels),
        columns=4,
        panel_height=0.5 + 0.1 * len(names),
        narrowest=1.3,
        share_x="all",
        share_y="all",
    )


def _radius(v: Variant) -> str:
    ci = stats.mean_ci(v.ds.rho_eff.values) if "rho_eff" in v.ds else None
    return "?" if ci is None or not ci.n else f"{ci.estimate:.2g}"


def _perturbed(v: Variant, rows: np.ndarray, low: float) -> list[Mark]:
    energy = v.ds.energy_share.transpose("run", "tensor").values
    cis = [stats.mean_ci(column) for column in energy.T]
    mean = np.array([ci.estimate for ci in cis])
    kinds = v.ds.kind.values if v.ds.kind.ndim == 1 else v.ds.kind.isel(run=0).values
    marks: list[Mark] = []
    for kind in dict.fromkeys(str(k) for k in kinds):
        here = (kinds == kind) & (mean > low)
        marks.append(Bars(mean[here], rows[here], kind, style.kind(kind), base=low))
    share = v.ds.parameter_share.isel(run=0).values
    marks.append(Bars(share, rows, "parameters", style.INK, base=low, outline=True))
    wide = (mean > low) & np.array([ci.known for ci in cis])
    if wide.any():
        ends = np.array([[max(ci.low, low), ci.high] for ci in cis])[wide]
        marks.append(
            Points(mean[wide], rows[wide], "95 % interval", style.INK, "none", legend=False,
                   x_low=ends[:, 0], x_high=ends[:, 1])
        )  # fmt: skip
    density = np.nanmean(v.ds.density.transpose("run", "tensor").values, axis=0)
    dense = density > low
    marks.append(Points(density[dense], rows[dense], "density", style.INK, size=2.8))
    return marks


def energy_over_time(ds: xr.Dataset, *, setting: str | None = None) -> Drawing:
    """Share of the perturbation's energy by kind of tensor over epochs, one panel per variant."""
    ds = runs.in_setting(ds, setting)
    runs.require(ds, "energy_share")
    kinds = (ds.kind if ds.kind.ndim == 1 else ds.kind.isel(run=0)).values
    panels = []
    for v in runs.variants(ds):
        if not float(v.ds.energy_share.fillna(0).sum()) > 0:
            continue
        marks: list[Mark] = []
        for kind in dict.fromkeys(str(k) for k in kinds):
            share = v.ds.energy_share.isel(tensor=np.flatnonzero(kinds == kind))
            total = 100 * share.sum("tensor", skipna=False)
            marks += curve(v, total, "epoch", name=kind, color=style.kind(kind))
        panels.append(Panel(Axis("epoch"), Axis("energy", "%", limits=(-3, 103)), tuple(marks),
                            v.label))  # fmt: skip
    return Drawing(
        "energy_over_time",
        "Where the perturbation's energy goes during training",
        "Share of ‖e‖² by kind of tensor (weights and biases of norm layers count as norm), mean "
        f"over the recorded steps of an epoch and over {runs.seed_count(ds)}; band: 95 % "
        "t-interval over seeds.",
        tuple(panels),
        columns=4,
        panel_height=1.1,
        share_x="all",
        share_y="all",
    )


def perturbation_over_time(ds: xr.Dataset, *, setting: str | None = None) -> Drawing:
    """Effective radius, agreement of both gradients, and loss increase over epochs."""
    ds = runs.in_setting(ds, setting)
    panels = []
    for name, label, units in (
        ("radius_ratio", "‖e‖/ρ", "1"),
        ("cosine", "cos(g₁, g₂)", "1"),
        ("sharpness_gap", "L(θ + e) − L(θ)", "nats"),
    ):
        if name in ds and bool(np.isfinite(ds[name]).any()):
            marks = tuple(mark for v in runs.variants(ds)
                          if bool(np.isfinite(v.ds[name]).any())
                          for mark in curve(v, v.ds[name], "epoch"))  # fmt: skip
            panels.append(Panel(Axis("epoch"), Axis(label, units), marks))
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


def mask_overlap(
    ds: xr.Dataset, *, setting: str | None = None, references: tuple[str, ...] = ("sgd", "sam")
) -> Drawing:
    """Cohen's kappa between the masks of all variants at one theta and batch; 0 is chance."""
    ds = runs.first_seeds(runs.in_setting(ds, setting))
    runs.require(ds, "kappa_all", "first", "second")
    found = list(runs.variants(ds))
    shown = [v for v in found if v.id in references] or found[:2]
    names = {v.id: v.label for v in found}
    panels = [_kappas(v, names) for v in shown]
    chance = float(ds.expected_jaccard_all.median())
    return Drawing(
        "mask_overlap",
        "Do variants choose the same coordinates?",
        "Cohen's κ between the masks that the variants would use at one θ and batch, stratified "
        "over tensors: 1 is the same mask, 0 is chance. First seed of the model in the title. "
        f"Chance alone gives a Jaccard index of {chance:.3f} (median over pairs).",
        tuple(panels),
        columns=len(panels),
        panel_height=0.75 + 0.19 * len(_names(ds)),
        narrowest=2.4,
        legend=False,
        share_y="all" if len(panels) > 1 else "",
    )


def _names(ds: xr.Dataset) -> list[str]:
    first, second = (_flat(ds[key]) for key in ("first", "second"))
    return list(dict.fromkeys([*first, *second]))


def _flat(array: xr.DataArray) -> list[str]:
    values = array.isel(run=0).values if "run" in array.dims else array.values
    return [str(value) for value in values]


def _kappas(v: Variant, labels: dict[str, str]) -> Panel:
    names = _names(v.ds)
    values = np.full((len(names), len(names)), np.nan)
    kappa = v.ds.kappa_all.isel(run=0).values
    for a, b, value in zip(_flat(v.ds["first"]), _flat(v.ds["second"]), kappa, strict=True):
        i, j = names.index(a), names.index(b)
        values[i, j] = values[j, i] = value
    shown = tuple(labels.get(name, style.LABELS.get(name, name)) for name in names)
    ticks = tuple((float(i), name) for i, name in enumerate(shown))
    size = len(names)
    mark = Matrix(values, shown, shown, "κ", "1", (-1.0, 1.0))
    return Panel(
        Axis(ticks=ticks, limits=(-0.5, size - 0.5)),
        Axis(ticks=ticks, limits=(size - 0.5, -0.5)),
        (mark,),
        f"at θ of {v.label}",
    )


def mask_persistence(ds: xr.Dataset, *, setting: str | None = None) -> Drawing:
    """Cohen's kappa between masks `lag` steps apart: 1 keeps its mask, 0 draws a new one."""
    ds = runs.in_setting(ds, setting)
    runs.require(ds, "kappa")
    marks: list[Mark] = [Rule("y", 0.0, "chance", "solid", text="chance")]
    for v in runs.variants(ds):
        if bool(np.isfinite(v.ds.kappa).any()):
            marks += curve(v, v.ds.kappa, "lag")
            line = marks[-1]
            if isinstance(line, Line):
                marks.append(Points(line.x, line.y, v.label, v.color, v.symbol, size=3,
                                    legend=False))  # fmt: skip
    return Drawing(
        "mask_persistence",
        "How long does a mask last?",
        "Cohen's κ between the recorded masks of one run, by the number of steps between them; "
        f"mean over {runs.seed_count(ds)}, band: 95 % t-interval over seeds. A variant without a "
        "mask, or whose mask never changes by construction, has no line.",
        (Panel(Axis("lag", "steps", log=True), Axis("κ"), tuple(marks)),),
        panel_height=2.0,
    )
