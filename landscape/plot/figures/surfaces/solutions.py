"""The loss on planes laid through several models: three solutions, and a training."""

import numpy as np
import xarray as xr

from landscape.plot import runs, style
from landscape.plot.drawing import Axis, Dash, Drawing, Label, Line, Panel, Points
from landscape.plot.figures.surfaces._planes import centre, contours, holes, mode, shared_levels
from landscape.plot.runs import VariantRuns
from landscape.plot.ticks import short


def three_points(ds: xr.Dataset, *, setting: str | None = None, levels: int = 15) -> Drawing:
    """The loss on the plane through three models, each named where it lies.

    Example:
        >>> models = {"seed 0": theta, "seed 1": other, "mean": (theta + other) / 2 + 0.1}
        >>> found = measure.three_points(risk, models, cells=2)
        >>> labels = {"run": "a", "variant": "sgd", "label": "SGD", "setting": "all", "seed": 0}
        >>> figures.three_points(results.combine([(labels, found)])).title
        'Loss on the plane through three solutions'
    """
    ds = runs.in_setting(ds, setting)
    runs.require(ds, "loss", "model_alpha", "model_beta", "model_loss")
    ticks, log = shared_levels(list(ds.loss.values), levels)
    panels = []
    for index in range(ds.sizes["run"]):
        one = ds.isel(run=index).transpose("alpha", "beta", ...)
        known = np.isfinite(one.model_alpha.values)
        x, y = one.model_alpha.values[known], one.model_beta.values[known]
        names = [str(name) for name in one.point.values[known]]
        values = one.model_loss.values[known]
        hover = [f"{name}: {short(float(v))} nats" for name, v in zip(names, values, strict=True)]
        middle = float(np.sqrt(ticks[0] * ticks[-1]) if log else ticks.mean())
        labels = [
            Label(
                a, b, name, style.INK if v > middle else "#ffffff",
                "right" if a > 0.5 else "left",
            )
            for a, b, name, v in zip(x, y, names, values, strict=True)
        ]  # fmt: skip
        models = Points(x, y, "models", "#ffffff", "circle", legend=False, hover=hover)
        panels.append(
            Panel(
                Axis("α"),
                Axis("β"),
                (*contours(one, "loss", "nats", ticks, log=log), models, *labels),
                f"distances {short(float(one.alpha_norm))} and {short(float(one.beta_norm))}, "
                f"cosine {float(one.axis_cosine):.2f}",
            )
        )
        panels.append(
            Panel(
                Axis("position between two"),
                Axis("loss", "nats", log=log),
                tuple(_edges(one, names)),
                "along the sides of the triangle",
            )
        )
    return Drawing(
        "three_points",
        "Loss on the plane through three solutions",
        "One solution at the origin, the others at α = 1 and at β = 1; the axes are oblique in "
        f"weight space, as their cosine says. {mode(ds)}"
        + (" Hatched: the loss is not finite there." if holes(ds.loss.values) else ""),
        tuple(panels),
        columns=2,
        panel_height=2.4,
        narrowest=2.4,
    )


def _edges(one: xr.Dataset, names: list[str]) -> list[Line]:
    """The loss on the three lines between the models, which are rows of cells of the grid."""
    grid = [float(a) for a in one.alpha.values if -1e-9 <= a <= 1 + 1e-9]
    ends = {"a": (0.0, 0.0), "b": (1.0, 0.0), "c": (0.0, 1.0)}
    lines = []
    sides = (("a", "b", "#0072b2"), ("a", "c", "#d55e00"), ("b", "c", "#009e73"))
    for (first, second, color), (i, j) in zip(sides, ((0, 1), (0, 2), (1, 2)), strict=True):
        (a0, b0), (a1, b1) = ends[first], ends[second]
        y = [
            float(one.loss.sel(alpha=a0 + t * (a1 - a0), beta=b0 + t * (b1 - b0), method="nearest"))
            for t in grid
        ]
        lines.append(Line(np.array(grid), np.array(y), f"{names[i]} to {names[j]}", color))
    return lines


def trajectory(ds: xr.Dataset, *, setting: str | None = None, levels: int = 15) -> Drawing:
    """Each training on its own principal plane, and what that projection leaves out.

    Example:
        >>> drawing = figures.trajectory(runs["trajectory"])
        >>> drawing.title
        'Trainings on their principal planes'
    """
    ds = runs.first_seeds(runs.in_setting(ds, setting))
    runs.require(ds, "coordinate", "explained_share", "random_walk_share", "residual")
    found = list(runs.variants(ds))
    panels = []
    if "plane_loss" in ds:
        ticks, log = shared_levels(
            [*ds.plane_loss.values, ds.loss.values, ds.surface_loss.values], levels
        )
        window = _window(found)
        panels = [_trajectory_panel(v, ticks, log, window) for v in found]
    panels += [
        Panel(
            Axis("epoch"),
            Axis("distance from the plane"),
            tuple(_over_epochs(v, v.ds.residual.isel(run=0)) for v in found),
            "projection residual",
        ),
        Panel(
            Axis("epoch"),
            Axis("loss", "nats", log=True),
            tuple(mark for v in found for mark in _both_losses(v)),
            "checkpoint (solid), its projection (dotted)",
        ),
    ]
    walk = ds.random_walk_share.values
    null = " + ".join(f"{100 * share:.0f} %" for share in np.nanmean(walk, axis=0))
    return Drawing(
        "trajectory",
        "Trainings on their principal planes",
        "Uncentred principal directions of w − w_final over the kept checkpoints (dots; cross: the "
        "last one); distances in weight space. Titles: the shares of ‖w − w_final‖² that the two "
        f"axes explain. A random walk of as many steps in high dimension would have {null}, so a "
        "high share alone is no structure (arXiv:1806.08805). Where the loss of a checkpoint "
        "differs from that of its projection, the drawn surface is not what the training saw. "
        f"First seed only. {mode(ds)}"
        + (" Hatched: not finite." if "plane_loss" in ds and holes(ds.plane_loss.values) else ""),
        tuple(panels),
        columns=4 if len(panels) > 6 else 3,
        panel_height=1.6,
    )


def _window(found: list[VariantRuns]) -> tuple[Axis, Axis]:
    """Axes that hold every plane: a distance is as long in all panels, and they are as high."""
    axes = []
    for name, words in (("alpha", "direction 1"), ("beta", "direction 2")):
        ends = np.array([float(v.ds[f"{name}_unit"][0]) * v.ds[name].values for v in found])
        axes.append(Axis(words, limits=(float(np.nanmin(ends)), float(np.nanmax(ends))), few=True))
    return axes[0], axes[1]


def _trajectory_panel(
    v: VariantRuns, ticks: np.ndarray, log: bool, window: tuple[Axis, Axis]
) -> Panel:
    one = v.ds.isel(run=0).transpose("epoch", "direction", "alpha", "beta", ...)
    known = np.isfinite(one.residual.values)
    x, y = one.coordinate.values[known].T
    epochs = one.epoch.values[known]
    scaled = one.assign_coords(
        alpha=one.alpha * float(one.alpha_unit), beta=one.beta * float(one.beta_unit)
    )
    shares = " + ".join(f"{100 * share:.0f} %" for share in one.explained_share.values)
    return Panel(
        *window,
        (
            *contours(scaled, "plane_loss", "nats", ticks, log=log),
            Line(x, y, "training", "#ffffff", legend=False, when=epochs.astype(float)),
            Points(
                x, y, "checkpoints", "#ffffff", size=3.0, legend=False,
                hover=[f"epoch {epoch}" for epoch in epochs], when=epochs.astype(float),
            ),
            centre(),
        ),
        f"{v.label}\n{shares}",
    )  # fmt: skip


def _over_epochs(v: VariantRuns, values: xr.DataArray, dash: Dash = "solid") -> Line:
    known = np.isfinite(values.values)
    legend = dash == "solid"
    x, y = values.epoch.values[known].astype(float), values.values[known]
    return Line(x, y, v.label, v.color, dash=dash, legend=legend, symbol=v.symbol, when=x)


def _both_losses(v: VariantRuns) -> tuple[Line, Line]:
    one = v.ds.isel(run=0)
    return _over_epochs(v, one.loss), _over_epochs(v, one.surface_loss, "dot")
