"""Gradient norms layer by layer, and which layers a variant that selects layers perturbs."""

import numpy as np
import xarray as xr

from landscape import stats
from landscape.plot import runs
from landscape.plot.drawing import Axis, Drawing, Mark, Panel, Points
from landscape.plot.figures._shared import chosen, height, row_axis, shortened, strings
from landscape.plot.runs import VariantRuns

SHOWN = ("sgd", "sam", "lagnp")
MOST = 72


def layer_gradients(
    ds: xr.Dataset,
    history: xr.Dataset | None = None,
    *,
    setting: str | None = None,
    variants: tuple[str, ...] = SHOWN,
    layerwise: tuple[str, ...] = ("lagnp",),
) -> Drawing:
    """Norm of the gradient of each layer, and how often a layerwise variant perturbed it.

    ds: gradient_zscores, whose means and standard deviations within a tensor of n coordinates give
    ‖g_l‖² = n (μ² + σ²), added up over the tensors of a layer. history: perturbation_history of the
    same study; the layers that `layerwise` variants perturbed, as a share of the recorded steps
    (mean density of the layer). LAGNP (arXiv:2503.14205) penalizes the layers of largest norm.

    Example:
        >>> drawing = figures.layer_gradients(
        ...     runs["gradient_zscores"], runs["perturbation_history"]
        ... )
        >>> drawing.title
        'Which layers have the gradient?'
    """
    ds = runs.in_setting(ds, setting)
    runs.require(ds, "mean", "std", "size")
    single = _layers(strings(ds.tensor))
    layers = _together(single, ds)
    names, count = list(dict.fromkeys(layers)), len(set(single))
    of = dict(zip(single, layers, strict=True))
    rows = np.arange(len(names), dtype=float)
    marks: list[Mark] = []
    for place, v in enumerate(shown := chosen(ds, variants)):
        norms = _norms(v, layers, names)
        cis = [stats.geometric_mean_ci(column) for column in norms.T]
        middle, low, high = (
            np.array([getattr(ci, key) for ci in cis]) for key in ("estimate", "low", "high")
        )
        known = np.isfinite(low) & np.isfinite(high) & (norms.shape[0] > 3)
        shift = 0.22 * (place - (len(shown) - 1) / 2)
        marks.append(
            Points(middle, rows + shift, v.label, v.color, v.symbol,
                   x_low=np.where(known, low, middle), x_high=np.where(known, high, middle))
        )  # fmt: skip
    panels = [
        Panel(
            Axis("‖g‖ of the layer", log=True),
            row_axis(shortened(names)),
            tuple(marks),
            "gradient norm",
        )
    ]
    perturbed = _perturbed(history, setting, layerwise, names, of)
    if perturbed:
        panels.append(
            Panel(Axis("perturbed", "% of steps", limits=(-3, 103)), row_axis(shortened(names)),
                  tuple(perturbed), "selected by")
        )  # fmt: skip
    return Drawing(
        "layer_gradients",
        "Which layers have the gradient?",
        "Norm of the gradient of each layer, of its tensors together, at the final weights: "
        f"geometric mean over {runs.seed_count(ds)}, with a 95 % t-interval where there are four "
        f"or more.{_source(ds)}"
        + (f" The {count} layers are put together by the beginning of their names, "
           f"{len(names)} rows; squared norms add up." if len(names) < count else "")
        + (" Right: the share of the recorded steps in which a variant that selects layers "
           "perturbed this one." if perturbed else ""),
        tuple(panels),
        columns=len(panels),
        panel_height=height(len(names)),
        narrowest=1.4,
        share_y="grid",
    )  # fmt: skip


def _source(ds: xr.Dataset) -> str:
    """Whose gradient it is, where the result says."""
    said = {"full": "all examples measured on", "batch": "mini-batches"}
    source = runs.provenance(ds, "source")
    return f" Gradient of {said.get(source, source)}." if source else ""


def _layers(tensors: list[str]) -> list[str]:
    """The module of each tensor: its name without `weight`, `bias`."""
    return [name.rsplit(".", 1)[0] if "." in name else name for name in tensors]


def _together(layers: list[str], ds: xr.Dataset) -> list[str]:
    """The row of each tensor: its layer; of more than `MOST`, the module that holds it.

    As deep a module as there is room for. Where even the outermost are too many, those of largest
    gradient, and one row for the others.
    """
    parts = [layer.split(".") for layer in layers]
    rows = layers
    for depth in range(max(map(len, parts)) - 1, 0, -1):
        if len(set(rows)) <= MOST:
            break
        rows = [".".join(part[:depth]) for part in parts]
    names = list(dict.fromkeys(rows))
    if len(names) <= MOST:
        return rows
    size = np.broadcast_to(np.asarray(ds["size"].values, float), (len(layers),))
    square = np.nan_to_num(size * (ds["mean"] ** 2 + ds["std"] ** 2).mean("run").values)
    total = {name: square[[row == name for row in rows]].sum() for name in names}
    kept = set(sorted(names, key=total.__getitem__, reverse=True)[: MOST - 1])
    rest = f"the other {len(names) - len(kept)}"
    return [row if row in kept else rest for row in rows]


def _norms(v: VariantRuns, layers: list[str], names: list[str]) -> np.ndarray:
    """‖g_l‖ (run, layer)."""
    size = np.broadcast_to(np.asarray(v.ds["size"].values, float), (len(layers),))
    square = size * (v.ds["mean"] ** 2 + v.ds["std"] ** 2).transpose("run", "tensor").values
    member = np.array([[layer == name for layer in layers] for name in names], float)
    return np.sqrt(square @ member.T)


def _perturbed(
    history: xr.Dataset | None,
    setting: str | None,
    wanted: tuple[str, ...],
    names: list[str],
    of: dict[str, str],
) -> list[Mark]:
    """Shares of the recorded steps; of: layer -> its row among `names`."""
    if history is None or not {"density", "size"} <= set(history.variables):
        return []
    ds = runs.in_setting(history, setting)
    tensors = [of.get(layer, layer) for layer in _layers(strings(ds.tensor))]
    size = np.broadcast_to(np.asarray(ds["size"].values, float), (len(tensors),))
    marks: list[Mark] = []
    for v in runs.variants(ds):
        if v.id not in wanted and v.family not in wanted:
            continue
        dense = np.nan_to_num(v.ds.density.mean(["run", "epoch"]).values) * size
        here = [[t == name for t in tensors] for name in names]
        share = [100 * dense[m].sum() / size[m].sum() if any(m) else np.nan for m in here]
        marks.append(
            Points(np.array(share), np.arange(len(names), dtype=float), v.label, v.color,
                   v.symbol, size=5)
        )  # fmt: skip
    return marks
