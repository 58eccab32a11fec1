"""Peers of `benchmarks.surface`, each on the axes it is given, with the points that it takes.

Goldstein's loss-landscape (a git clone) and landscaper take the very same points. loss-landscapes
walks its rows to and fro and is one column off in every second one.
"""

import contextlib
import copy
import importlib.util
import io
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

# A whole grid: losses (points, points) as the peer returns them.
Run = Callable[[], np.ndarray]
Axes = list[list[Tensor]]


def loss_of(model: Callable[[Tensor], Tensor], x: Tensor, y: Tensor, rows: int) -> float:
    """Mean loss over all examples, in batches of so many rows."""
    with torch.no_grad():
        parts = [
            nn.functional.cross_entropy(model(a), b, reduction="sum").item()
            for a, b in zip(x.split(rows), y.split(rows), strict=True)
        ]
    return sum(parts) / len(x)


def goldstein(clone: Path) -> Callable[..., Run]:
    """Its setting of weights and its evaluation, on batches that lie ready in memory."""
    sys.path.insert(0, str(clone))
    # Its models and data need it; what is timed does not.
    if "torchvision" not in sys.modules and importlib.util.find_spec("torchvision") is None:
        sys.modules["torchvision"] = types.ModuleType("torchvision")
    plotter, evaluation = (importlib.import_module(n) for n in ("net_plotter", "evaluation"))

    def make(model: nn.Module, x: Tensor, y: Tensor, axes: Axes, *, rows: int, points: int) -> Run:
        own = copy.deepcopy(model)
        weights = [w.clone() for w in plotter.get_weights(own)]
        loader = list(zip(x.split(rows), y.split(rows), strict=True))
        grid = np.linspace(-1, 1, points)

        def run() -> np.ndarray:
            losses = np.empty((points, points))
            for i, j in np.ndindex(losses.shape):
                plotter.set_weights(own, weights, axes, (grid[i], grid[j]))
                criterion = nn.CrossEntropyLoss()
                losses[i, j] = evaluation.eval_loss(own, criterion, loader, x.is_cuda)[0]
            return losses

        return run

    return make


def loss_landscapes(
    model: nn.Module, x: Tensor, y: Tensor, axes: Axes, *, rows: int, points: int
) -> Run:
    package = importlib.import_module("loss_landscapes")
    base = importlib.import_module("loss_landscapes.metrics.metric").Metric

    class Loss(base):
        def __call__(self, wrapper: Any) -> float:
            return loss_of(wrapper.forward, x, y, rows)

    steps = [[2 / (points - 1) * d for d in axis] for axis in axes]
    corner = _moved(model, axes, (-1.0, -1.0))
    # It steps before it evaluates.
    start = _moved(corner, steps, (0.0, -1.0))
    ends = [_moved(start, steps, c) for c in ((points, 0.0), (0.0, points))]
    metric = Loss()
    return lambda: package.planar_interpolation(
        start, *ends, metric, steps=points, deepcopy_model=True
    )


def landscaper(
    model: nn.Module, x: Tensor, y: Tensor, axes: Axes, *, rows: int, points: int
) -> Run:
    package = importlib.import_module("landscaper.compute")
    own = copy.deepcopy(model)
    norm = _norm([p.detach() for p in own.parameters()])
    # Its rule: tensors of norm sqrt(n), the whole of norm distance * |w|, (points - 1) / points.
    distance = _norm(axes[0]) / norm * (points / 2) / (points // 2)

    def run() -> np.ndarray:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            return package.compute_loss_landscape(
                own, (x, y), axes, lambda m, d: loss_of(m, *d, rows), steps=points,
                distance=distance, dim=2, device=x.device.type,
            )[0]  # fmt: skip

    return run


PEERS: dict[str, Callable[..., Run]] = {
    "loss-landscapes": loss_landscapes,
    "landscaper": landscaper,
}


def worst_difference(name: str, found: np.ndarray, ours: np.ndarray) -> float:
    """Largest relative difference of a peer's losses from ours, where the points are the same."""
    if name == "loss-landscapes":
        found, ours = found[::2], ours[::2]
    elif name == "landscaper":
        # It adds noise to the largest loss.
        keep = ours < ours.max()
        found, ours = found[keep], ours[keep]
    return float(np.abs(found / ours - 1).max())


def _moved(model: nn.Module, axes: Axes, coordinates: tuple[float, float]) -> nn.Module:
    other = copy.deepcopy(model)
    with torch.no_grad():
        for c, axis in zip(coordinates, axes, strict=True):
            for p, d in zip(other.parameters(), axis, strict=True):
                p.add_(d, alpha=c)
    return other


def _norm(tensors: list[Tensor]) -> float:
    return float(sum(float(t.double().square().sum()) for t in tensors)) ** 0.5
