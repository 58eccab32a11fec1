"""Do masks and perturbations pick what is curved, informative or large? Against chance."""

import numpy as np
import xarray as xr

from landscape.plot import runs, style
from landscape.plot.drawing import Axis, Bars, Drawing, Mark, Panel, Rule
from landscape.plot.figures._shared import (
    chosen,
    dots,
    key,
    labels,
    row_axis,
    spoken,
    square,
    strings,
)
from landscape.plot.runs import VariantRuns

_QUANTITIES = {
    "eigenvector": "leading eigenvector",
    "eigenspace": "leading eigenspace",
    "hessian_diagonal": "diagonal of H",
    "fisher": "Fisher information",
    "weight": "squared weights",
    "magnitude": "size of the weights",
}
_LOWEST = 0.05


def enrichment(
    ds: xr.Dataset, *, setting: str | None = None, references: tuple[str, ...] = ("sgd", "sam")
) -> Drawing:
    """Share of curvature, Fisher information and weight in each mask over chance; 1 is chance.

    Example:
        >>> drawing = figures.enrichment(runs["enrichment"])
        >>> drawing.title
        'Do the masks pick what is curved, informative or large?'
    """
    ds = runs.in_setting(ds, setting)
    runs.require(ds, "enrichment_fisher", "chance_low_fisher", "chance_high_fisher")
    quantities = {key: text for key, text in _QUANTITIES.items() if f"enrichment_{key}" in ds}
    names, known = strings(ds.direction), labels(ds)
    axis = row_axis([spoken(name, known) for name in names])
    shown = chosen(ds, references)
    first = next(iter(quantities))
    panels = [
        Panel(
            Axis("share in the mask", "× chance", log=True),
            axis,
            tuple(_over_chance(v, name, names)),
            f"at θ of {v.label}\n{text}" if name == first else text,
        )
        for name, text in quantities.items()
        for v in shown
    ]
    seeds = runs.seed_count(ds)
    dot = "First seed" if seeds == "1 seed" else f"Geometric mean over {seeds}, 95 % t-interval"
    return Drawing(
        "enrichment",
        "Do the masks pick what is curved, informative or large?",
        "Share of a quantity that lies in the mask a variant would use at one θ and batch, over "
        "the share that a random mask with the same density in every tensor gets: 1 is chance. "
        f"{dot}; grey: 95 % of such random masks, wide and skewed where few coordinates hold most "
        "of a quantity; the random mask is one draw, shared by all panels. Quantities: squares of "
        "the leading eigenvector and of the leading eigenvectors of the Hessian, its diagonal "
        f"(Hutchinson), the empirical Fisher information, {_weights(quantities)}. A mask that "
        "selects all or nothing of every tensor (SAM, SAM-ON) is at 1 by construction. Picking "
        "a quantity is not a mechanism.",
        tuple(panels),
        columns=len(shown),
        panel_height=0.45 + 0.13 * len(names),
        narrowest=2.0,
        share_x="all",
        share_y="all",
    )


def _weights(quantities: dict[str, str]) -> str:
    both = "magnitude" in quantities  # older results lack it
    return "the squares of the weights and their sizes |w|" if both else "the squared weights"


def _over_chance(v: VariantRuns, quantity: str, names: list[str]) -> list[Mark]:
    ratio = v.ds[f"enrichment_{quantity}"].transpose("run", "direction").values
    low, high = (
        v.ds[f"chance_{side}_{quantity}"].transpose("run", "direction").mean("run").values
        for side in ("low", "high")
    )
    rows = np.arange(len(names), dtype=float)
    marks: list[Mark] = [
        key("the variant's mask", "circle", style.MUTED),
        Rule("x", 1.0, "chance", "solid"),
    ]
    for row, left, right in zip(rows, low, high, strict=True):
        if np.isfinite(right):
            marks.append(
                Bars(np.array([right]), np.array([row]), "95 % of random masks", "#bdbdbd", 0.6,
                     base=max(left, _LOWEST))
            )  # fmt: skip
    positive = np.where(ratio > 0, ratio, np.nan)
    for index, name in enumerate(names):
        color, symbol = style.variant(name, index)
        marks += dots(positive[:, [index]], rows[[index]], name, color, symbol, log=True,
                      legend=False)  # fmt: skip
    return marks


def perturbation_cosines(
    ds: xr.Dataset, *, setting: str | None = None, references: tuple[str, ...] = ("sgd", "sam")
) -> Drawing:
    """Cosine between the perturbations of all variants at one theta and batch.

    Example:
        >>> drawing = figures.perturbation_cosines(runs["perturbation_cosines"])
        >>> drawing.title
        'Do variants push the weights the same way?'
    """
    ds = runs.first_seeds(runs.in_setting(ds, setting))
    runs.require(ds, "cosine_all", "first", "second")
    known = labels(ds)
    names = list(dict.fromkeys([*strings(ds["first"]), *strings(ds["second"])]))
    shown = [spoken(name, known) for name in names]
    panels = []
    for v in chosen(ds, references):
        x, y, mark = square(
            names, shown, strings(v.ds["first"]), strings(v.ds["second"]),
            v.ds.cosine_all.isel(run=0).values, "cosine",
        )  # fmt: skip
        panels.append(Panel(x, y, (mark,), f"at θ of {v.label}"))
    return Drawing(
        "perturbation_cosines",
        "Do variants push the weights the same way?",
        "Cosine between the perturbations e that the variants would make at one θ and batch: 1 is "
        "the same direction, 0 what random directions have. First seed of the model in the title. "
        "What subtracts an average of earlier gradients (F-SAM) has none yet and pushes as SAM. "
        "A mask alone lowers it: keeping a share R of ‖g‖² of the gradient gives √R at best.",
        tuple(panels),
        columns=max(len(panels), 1),
        panel_height=0.75 + 0.19 * len(names),
        narrowest=2.4,
        legend=False,
        share_y="all" if len(panels) > 1 else "",
    )
