"""Which coordinates the variants select: beside each other, beside chance, and over time."""

from collections.abc import Sequence

import numpy as np
import xarray as xr

from landscape.plot import runs, style
from landscape.plot.drawing import Axis, Drawing, Line, Mark, Matrix, Panel, Points, Rule
from landscape.plot.figures._shared import chosen, dots, labels, row_axis, spoken, square, strings
from landscape.plot.figures.outcome.headline import curve
from landscape.plot.runs import VariantRuns

_FACTOR = 4  # of chance, to either side, that the colours of filters span


def mask_overlap(
    ds: xr.Dataset, *, setting: str | None = None, references: tuple[str, ...] = ("sgd", "sam")
) -> Drawing:
    """Cohen's kappa between the masks of all variants at one theta and batch; 0 is chance.

    Example:
        >>> drawing = figures.mask_overlap(runs["mask_overlap"])
        >>> drawing.title
        'Do variants choose the same coordinates?'
    """
    ds = runs.first_seeds(runs.in_setting(ds, setting))
    runs.require(ds, "kappa_all", "first", "second")
    panels = [_kappas(v, labels(ds)) for v in chosen(ds, references)]
    chance = float(ds.expected_jaccard_all.median())
    return Drawing(
        "mask_overlap",
        "Do variants choose the same coordinates?",
        "Cohen's κ between the masks that the variants would use at one θ and batch, stratified "
        "over tensors: 1 is the same mask, 0 is chance. First seed of the model in the title. "
        f"Colours begin at 0. Chance alone gives a Jaccard index of {chance:.3f} (median over "
        "pairs). Filters are "
        "correlated within, so that a small κ can be chance after all: the gate is the p-value "
        "against permuted filters, in the results.",
        tuple(panels),
        columns=len(panels),
        panel_height=0.75 + 0.19 * len(_names(ds)),
        narrowest=2.4,
        legend=False,
        share_y="all" if len(panels) > 1 else "",
    )


def saved_mask_overlap(ds: xr.Dataset, *, setting: str | None = None) -> Drawing:
    """Cohen's kappa between the last masks of a variant's seeds, a dot per pair; 0 is chance.

    Example:
        >>> one = streams.PackedMasks.of({"w": np.array([True, True, False, False])})
        >>> two = streams.PackedMasks.of({"w": np.array([True, False, True, False])})
        >>> found = measure.saved_mask_overlap({"seed 0": one, "seed 1": two})
        >>> labels = {"run": "a", "variant": "sam", "label": "SAM", "setting": "all", "seed": 0}
        >>> figures.saved_mask_overlap(results.combine([(labels, found)])).title
        'Do different seeds choose the same coordinates?'
    """
    ds = runs.in_setting(ds, setting)
    runs.require(ds, "kappa_all", "pair")
    found = [v for v in runs.variants(ds) if bool(np.isfinite(v.ds.kappa_all).any())]
    marks: list[Mark] = [Rule("x", 0.0, "chance", "solid", text="chance")]
    for row, v in enumerate(found):
        kappa = v.ds.kappa_all.isel(run=0).values.astype(float)
        pairs = strings(v.ds.pair)
        marks.append(
            Points(kappa, np.full(len(kappa), float(row)), v.label, v.color, v.symbol, size=3.4,
                   opacity=0.6, legend=False, hover=pairs)
        )  # fmt: skip
    return Drawing(
        "saved_mask_overlap",
        "Do different seeds choose the same coordinates?",
        "Cohen's κ between the last recorded masks of a variant's seeds, one dot per pair of "
        "seeds, stratified over tensors: 1 is the same mask, 0 is chance. Seeds start from "
        "different weights, whose coordinates have nothing to do with each other; what is above 0 "
        "lies in the position within the network. Pairs share seeds and are not independent.",
        (Panel(Axis("κ"), row_axis([v.label for v in found]), tuple(marks)),),
        panel_height=0.6 + 0.2 * len(found),
        legend=False,
    )


def _names(ds: xr.Dataset) -> list[str]:
    return list(dict.fromkeys([*strings(ds["first"]), *strings(ds["second"])]))


def _kappas(v: VariantRuns, known: dict[str, str]) -> Panel:
    names = _names(v.ds)
    shown = [spoken(name, known) for name in names]
    x, y, mark = square(
        names, shown, strings(v.ds["first"]), strings(v.ds["second"]),
        v.ds.kappa_all.isel(run=0).values, "κ", limits=(0.0, 1.0),
    )  # fmt: skip
    return Panel(x, y, (mark,), f"at θ of {v.label}")


def batch_overlap(
    ds: xr.Dataset, *, setting: str | None = None, references: tuple[str, ...] = ("sgd", "sam")
) -> Drawing:
    """Kappa between one variant's masks on two mini-batches, and on a batch and on all data.

    Example:
        >>> drawing = figures.batch_overlap(runs["batch_overlap"])
        >>> drawing.title
        'Does the next mini-batch choose the same coordinates?'
    """
    ds = runs.in_setting(ds, setting)
    runs.require(ds, "kappa_all", "direction", "comparison")
    known, names = labels(ds), strings(ds.direction)
    axis = row_axis([spoken(name, known) for name in names])
    rows = np.arange(len(names), dtype=float)
    looks = zip(strings(ds.comparison), (False, True), ("#0072b2", "#d55e00"), strict=False)
    kinds = list(looks)
    seeds = runs.seed_count(ds)
    dot = "First seed" if seeds == "1 seed" else f"Mean over {seeds} with its 95 % t-interval"
    panels = []
    for v in chosen(ds, references):
        marks: list[Mark] = [Rule("x", 0.0, "chance", "solid", text="chance")]
        for index, (comparison, hollow, color) in enumerate(kinds):
            kappa = v.ds.kappa_all.sel(comparison=comparison).transpose("run", "direction").values
            marks += dots(kappa, rows + 0.24 * (index - 0.5), comparison, color, hollow=hollow)
        panels.append(Panel(Axis("κ"), axis, tuple(marks),
                            f"at θ of {v.label}"))  # fmt: skip
    return Drawing(
        "batch_overlap",
        "Does the next mini-batch choose the same coordinates?",
        "Cohen's κ between the masks that one variant draws at one θ from two mini-batches, and "
        f"from a mini-batch and all data; 0 is chance. {dot}. A mask that does not depend on the "
        "batch (a kept SSAM mask) is at 1 by construction; one that selects all or nothing of "
        "every tensor has no κ.",
        tuple(panels),
        columns=len(panels),
        panel_height=0.55 + 0.2 * len(names),
        narrowest=2.0,
        share_x="all",
        share_y="all",
    )


def mask_persistence(ds: xr.Dataset, *, setting: str | None = None) -> Drawing:
    """Cohen's kappa between masks `lag` steps apart: 1 keeps its mask, 0 draws a new one.

    Example:
        >>> drawing = figures.mask_persistence(runs["mask_persistence"])
        >>> drawing.title
        'How long does a mask last?'
    """
    ds = runs.in_setting(ds, setting)
    runs.require(ds, "kappa")
    marks: list[Mark] = [Rule("y", 0.0, "chance", "solid", text="chance")]
    masked = [v for v in runs.variants(ds) if bool(np.isfinite(v.ds.kappa).any())]
    for v in masked:
        marks += curve(v, v.ds.kappa, "lag", bounds=(-1.0, 1.0))
        line = marks[-1]
        if isinstance(line, Line):
            marks.append(Points(line.x, line.y, v.label, v.color, v.symbol, size=3,
                                legend=False))  # fmt: skip
    panels = [Panel(Axis("lag", "steps", log=True), Axis("κ"), tuple(marks))]
    caption = (
        "Cohen's κ between the recorded masks of one run, by the number of steps between them; "
        f"mean over {runs.seed_count(ds)}, band: 95 % t-interval over seeds. A variant without a "
        "mask, or whose mask never changes by construction, has no line."
    )
    if "half_life" in ds:
        marks.append(Rule("y", 0.5, "half", "dot", text="half"))
        panels = [_half_lives(masked, ds), Panel(panels[0].x, panels[0].y, tuple(marks))]
        caption += (
            " Left: half-life, the steps after which κ has fallen to one half (1 at lag 0, linear "
            "between recorded lags); hollow: longer than was recorded. Below 1 step the mask is "
            "new at every step."
        )
    return Drawing(
        "mask_persistence",
        "How long does a mask last?",
        caption,
        tuple(panels),
        columns=len(panels),
        panel_height=2.0,
        narrowest=1.6,
        widths=(1.0, 1.6)[: len(panels)],
    )


def _half_lives(masked: Sequence[VariantRuns], ds: xr.Dataset) -> Panel:
    longest = float(ds.lag.max())
    marks: list[Mark] = []
    for row, v in enumerate(masked):
        steps = v.ds.half_life.values.astype(float)
        steps = steps[~np.isnan(steps)]
        open_ended = ~np.isfinite(steps)
        marks.append(
            Points(np.where(open_ended, longest, steps), np.full(len(steps), float(row)), v.label,
                   v.color, v.symbol, hollow=open_ended, legend=False)
        )  # fmt: skip
    axis = row_axis([v.label for v in masked])
    # No shorter than what a mask that is new at every step has, one half.
    ends = (0.4, 1.5 * max(longest, 2.0))
    return Panel(Axis("half-life", "steps", log=True, limits=ends), axis, tuple(marks))


def mask_selection(ds: xr.Dataset, *, setting: str | None = None) -> Drawing:
    """How often coordinates are selected over the snapshots, against independent draws.

    Example:
        >>> drawing = figures.mask_selection(runs["mask_selection"])
        >>> drawing.title
        'Are the same coordinates selected again and again?'
    """
    ds = runs.in_setting(ds, setting)
    runs.require(ds, "share", "expected_share", "over_dispersion", "effective_support")
    panels = []
    for v in runs.variants(ds):
        partly = np.isfinite(v.ds.over_dispersion)
        if not bool(partly.any()):
            continue
        weights = v.ds["size"].where(partly)
        found, chance = (
            (v.ds[name] * weights).where(partly, 0.0).sum("tensor", skipna=False)
            / weights.sum("tensor")
            for name in ("share", "expected_share")
        )
        marks: list[Mark] = []
        times = found["bin"].values.astype(float)
        mean = found.transpose("run", "bin").mean("run").values
        law = chance.transpose("run", "bin").mean("run").values
        mean, law = (np.where(share > 0, share, np.nan) for share in (mean, law))
        marks.append(Line(times, law, "independent draws", style.MUTED, "dash", width=1.6))
        marks.append(Line(times, mean, v.label, v.color, width=0.9, symbol=v.symbol))
        spread = float(v.ds.over_dispersion.median())
        support = float(v.ds.effective_support.where(partly).median())
        title = f"{v.label}\ndispersion {spread:.2g}, support {100 * support:.0f} %"
        panels.append(
            Panel(
                Axis("times selected"),
                Axis("share of coordinates", log=True, limits=(1e-5, 1.5)),
                tuple(marks),
                title,
            )
        )
    return Drawing(
        "mask_selection",
        "Are the same coordinates selected again and again?",
        "Share of the coordinates by how often the recorded masks of a run selected them, pooled "
        f"over the tensors that are selected in part, mean over {runs.seed_count(ds)}. Dashed: the "
        "binomial law of independent masks of the same density. Dispersion: variance of the "
        "selection frequency over that of independent masks, 1 at chance; support: effective share "
        "of coordinates that are ever selected (medians over tensors). "
        f"{_of_which(ds, 'dispersion')}",
        tuple(panels),
        columns=3,
        panel_height=1.5,
        narrowest=1.6,
        share_x="all",
        share_y="all",
    )


def _of_which(ds: xr.Dataset, said: str) -> str:
    """Which snapshots are counted: those of a burst too in results without `num_recorded`."""
    if runs.provenance(ds, "num_recorded"):
        return (
            "Of the snapshots, those that stand for equally long parts of the training: a mask "
            f"that is kept for longer than they are apart still counts as {said}."
        )
    return (
        "Snapshots may stand in groups a few steps apart, where masks that are kept for some "
        "steps look persistent."
    )


def mask_filters(ds: xr.Dataset, *, setting: str | None = None) -> Drawing:
    """How often each (output channel, input channel) of one layer is selected, over chance.

    Example:
        >>> drawing = figures.mask_filters(runs["mask_filters"])
        >>> drawing.title
        'Which filters of 0.weight are selected?'
    """
    ds = runs.first_seeds(runs.in_setting(ds, setting))
    runs.require(ds, "frequency", "expected")
    panels = []
    for v in runs.variants(ds):
        table, chance = v.ds.frequency.isel(run=0), float(v.ds.expected.isel(run=0))
        if not 0 < chance < 1:
            continue
        rows, columns = (tuple(map(str, table[d].values.tolist())) for d in ("channel", "input"))
        ratio = table.transpose("channel", "input").values / chance
        limits = (1 / _FACTOR, _FACTOR)
        mark = Matrix(ratio, rows, columns, "selected", "× chance", limits, digits=None, log=True,
                      signs=True)  # fmt: skip
        panels.append(
            Panel(
                _counted("input channel", columns),
                _counted("output channel", rows, down=True),
                (mark,),
                f"{v.label}\n{100 * chance:.3g} % selected{_spread(v)}",
            )
        )
    tensor = runs.provenance(ds, "tensor")
    return Drawing(
        "mask_filters",
        f"Which filters of {tensor} are selected?" if tensor else "Which filters are selected?",
        "Share of the snapshots and kernel positions in which a coordinate of the filter is in the "
        "mask, over the layer's mean, which the title names and equal use of all filters would "
        f"give; what lies beyond {_FACTOR} times either way has the colour of {_FACTOR} times and "
        f"a triangle that points up or down{_clipped(ds)}. First seed. "
        "A red row is an "
        "output channel that is favoured, a red column an input channel. Spread: variance between "
        "output channels over that of independent coordinates, 1 at chance; the sparser the mask, "
        "the more of the pattern is chance. A mask that selects all or nothing of the layer is "
        "left out; the larger the mean, the less room there is above it. "
        f"{_of_which(ds, 'spread')}",
        tuple(panels),
        columns=min(3, max(len(panels), 1)),
        panel_height=1.9,
        narrowest=1.6,
        legend=False,
    )


def _clipped(ds: xr.Dataset) -> str:
    """How many filters lie beyond the colours."""
    ratio = (ds.frequency / ds.expected).values
    ratio = ratio[np.isfinite(ratio)]
    share = float(np.mean((ratio > _FACTOR) | (ratio < 1 / _FACTOR))) if ratio.size else 0.0
    return f" ({100 * share:.0f} % of them)" if share else ""


def _spread(v: VariantRuns) -> str:
    if "over_dispersion" not in v.ds:
        return ""
    spread = float(v.ds.over_dispersion.isel(run=0))
    return f"\nspread {spread:.0f} × chance" if spread >= 10 else f"\nspread {spread:.2g} × chance"


def _counted(label: str, names: Sequence[str], *, down: bool = False) -> Axis:
    """Cells 0, 1, … with at most five of them named."""
    stride = max(1, -(-len(names) // 4))
    ticks = tuple((float(i), names[i]) for i in range(0, len(names), stride))
    ends = (-0.5, len(names) - 0.5)
    return Axis(label, ticks=ticks, limits=ends[::-1] if down else ends)
