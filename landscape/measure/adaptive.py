"""A surface from fewer evaluations: nested grids, splines, and errors that are estimated pointwise.

Between evaluated cells stands a bicubic spline of log L. How far it is off is estimated at every
cell from what the last refinement changed around it; what may be off by more than the tolerance is
evaluated, and a random sample of the rest is evaluated as well, to see whether the estimate holds.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from scipy.interpolate import RectBivariateSpline

from landscape.errors import LandscapeError

# Estimates are doubled: the decay of the error is itself known only from one refinement.
_SAFETY = 2.0
# A level divides the error of a smooth surface by 16, but that at a kink by 4 at best.
_LEAST_DECAY = 0.25
_SAMPLE = 0.02
_LEAST_SAMPLE = 32

Evaluate = Callable[[Sequence[tuple[int, int]]], np.ndarray]


@dataclass(frozen=True)
class Surface:
    """`values` (a, b, names) with the loss first, NaN but for the loss where not `evaluated`.

    error (a, b) estimates |L_spline / L - 1| (or, on a linear scale, the error over the range);
    it is 0 where evaluated. `notes` belong to the provenance.
    """

    values: np.ndarray
    evaluated: np.ndarray
    error: np.ndarray
    notes: dict[str, Any]


def adaptive(
    evaluate: Evaluate, first: np.ndarray, second: np.ndarray, *, tolerance: float, seed: int
) -> Surface:
    """Fill the grid first x second so that the loss is within `tolerance` at (nearly) every cell.

    evaluate: cells [(i, j), ...] -> values (len, names), the loss first. tolerance: pointwise and
    relative to the loss; where a loss is 0 or negative, relative to the range of the losses. Cells
    near a NaN or an infinity are evaluated. A grid that no spline of fewer cells can hold is
    evaluated whole.
    """
    if not 0 < tolerance < math.inf:
        raise LandscapeError(
            f"tolerance={tolerance} was asked; give a relative error such as 0.01, or None for a "
            f"grid whose every cell is evaluated."
        )
    work = _Work(evaluate, first, second)
    work.evaluate_nodes()
    error, change = np.full(work.shape, np.inf), None
    while True:
        before, old, coarse = work.spline(), error, work.nodes
        work.split(~work.evaluated & (error > tolerance))
        if work.complete:
            return work.surface(None, np.zeros(work.shape), tolerance)
        spline = work.spline()
        last, change = change, work.changed(before, spline, coarse)
        decay = 1.0 if last is None else _decay(last, change, work.evaluated)
        # Where a gap was left whole the refinement tells nothing new of it.
        known = np.maximum(_SAFETY * decay * change, np.where(work.halved(coarse), 0.0, old))
        error = np.where(work.evaluated, 0.0, known)
        flagged = error > tolerance
        # In the end a level costs more than the cells that are in doubt.
        if flagged.sum() <= work.cost(flagged) / 2:
            work.fill(flagged)
            if work.holds(spline, error, tolerance, seed):
                return work.surface(spline, error, tolerance)
            # The estimates were too low: believe none of them.
            error, change = np.where(work.evaluated, 0.0, np.inf), None


class _Work:
    """The grid as it fills."""

    def __init__(self, evaluate: Evaluate, first: np.ndarray, second: np.ndarray) -> None:
        self._evaluate, self._axes = evaluate, (first, second)
        self.shape, self.level = (len(first), len(second)), 0
        self.nodes = (coarsest(first), coarsest(second))
        self.evaluated = np.zeros(self.shape, dtype=bool)
        self._values: np.ndarray | None = None
        self._sample = {"sampled_cells": 0, "sampled_beyond_tolerance": 0, "sampled_worst": 0.0}

    @property
    def complete(self) -> bool:
        return bool(self.evaluated.all())

    @property
    def loss(self) -> np.ndarray:
        return self._values[..., 0]

    def evaluate_nodes(self) -> None:
        self.fill(self._grid(self.nodes))

    def split(self, flagged: np.ndarray) -> None:
        """Halve the gaps, on each axis, that hold a flagged cell, and evaluate the new nodes."""
        self.nodes = self._halves(flagged)
        self.level += 1
        self.evaluate_nodes()

    def cost(self, flagged: np.ndarray) -> int:
        """Evaluations that splitting for these cells would take."""
        return int((self._grid(self._halves(flagged)) & ~self.evaluated).sum())

    def _halves(self, flagged: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return halved(self.nodes[0], flagged.any(1)), halved(self.nodes[1], flagged.any(0))

    def _grid(self, nodes: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
        wanted = np.zeros(self.shape, dtype=bool)
        wanted[np.ix_(*nodes)] = True
        return wanted

    def fill(self, wanted: np.ndarray) -> None:
        cells = [(int(i), int(j)) for i, j in np.argwhere(wanted & ~self.evaluated)]
        if not cells:
            return
        found = self._evaluate(cells)
        if self._values is None:
            self._values = np.full((*self.shape, found.shape[1]), np.nan)
        rows, columns = np.array(cells).T
        self._values[rows, columns] = found
        self.evaluated[rows, columns] = True

    @property
    def logarithmic(self) -> bool:
        known = self.loss[self.evaluated]
        return bool((known[np.isfinite(known)] > 0).all())

    @property
    def range(self) -> float:
        known = self.loss[self.evaluated]
        known = known[np.isfinite(known)]
        return float(known.max() - known.min()) or 1.0

    def spline(self) -> np.ndarray:
        """Losses of all cells from those at the nodes."""
        nodes = self.nodes
        z = self.loss[np.ix_(*nodes)]
        finite = np.isfinite(z)
        # What is not finite is evaluated around, so that only the far tail of this fill is used.
        z = np.where(finite, z, z[finite].max() if finite.any() else 1.0)
        z = np.log(z) if self.logarithmic else z
        x, y = (axis[index] for axis, index in zip(self._axes, nodes, strict=True))
        degrees = [min(3, len(x) - 1), min(3, len(y) - 1)]
        found = RectBivariateSpline(x, y, z, kx=degrees[0], ky=degrees[1], s=0)(*self._axes)
        with np.errstate(over="ignore"):
            return np.exp(found) if self.logarithmic else found

    def distance(self, spline: np.ndarray, truth: np.ndarray) -> np.ndarray:
        """Error of the spline: relative to the loss, or to the range on a linear scale."""
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            if self.logarithmic:
                return np.abs(spline / truth - 1)
            return np.abs(spline - truth) / self.range

    def changed(
        self, old: np.ndarray, new: np.ndarray, coarse: tuple[np.ndarray, np.ndarray]
    ) -> np.ndarray:
        """What the refinement moved at most within each coarse block; infinite in one with NaN."""
        broken = self.evaluated & ~np.isfinite(self.loss)
        change = np.where(broken, np.inf, np.nan_to_num(self.distance(old, new), nan=np.inf))
        found = np.zeros(self.shape)
        for a, b in pairwise(coarse[0]):
            for c, d in pairwise(coarse[1]):
                block = slice(a, b + 1), slice(c, d + 1)
                found[block] = np.maximum(found[block], change[block].max())
        return found

    def halved(self, coarse: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
        """Cells in gaps that were halved, or cannot be, on both axes."""
        ways = []
        for old, new, size in zip(coarse, self.nodes, self.shape, strict=True):
            inside = np.zeros(size, dtype=bool)
            for a, b in pairwise(old):
                inside[a : b + 1] |= b - a == 1 or bool(((new > a) & (new < b)).any())
            ways.append(inside)
        return np.logical_and.outer(*ways)

    def holds(self, spline: np.ndarray, error: np.ndarray, tolerance: float, seed: int) -> bool:
        """Evaluate a random sample of the interpolated cells; whether 99 % are within tolerance."""
        rest = np.argwhere(~self.evaluated)
        size = min(len(rest), max(_LEAST_SAMPLE, math.ceil(_SAMPLE * len(rest))))
        picks = np.random.default_rng(seed).permutation(len(rest))[:size]
        wanted = np.zeros(self.shape, dtype=bool)
        wanted[tuple(rest[picks].T)] = True
        self.fill(wanted)
        off = self.distance(spline, self.loss)[wanted]
        off = np.where(np.isfinite(off), off, np.inf)
        beyond = int((off > tolerance).sum())
        self._sample["sampled_cells"] += size
        self._sample["sampled_beyond_tolerance"] += beyond
        self._sample["sampled_worst"] = max(
            self._sample["sampled_worst"], float(off.max(initial=0.0))
        )
        error[wanted] = 0.0
        return beyond <= 0.01 * size

    def surface(self, spline: np.ndarray | None, error: np.ndarray, tolerance: float) -> Surface:
        values = self._values.copy()
        if spline is not None:
            values[..., 0] = np.where(self.evaluated, self.loss, spline)
        notes = {
            "tolerance": tolerance,
            "tolerance_of": "loss" if self.logarithmic else "range of the loss",
            "levels": self.level,
            "cells": int(self.evaluated.size),
            "evaluated_cells": int(self.evaluated.sum()),
            **self._sample,
        }
        return Surface(values, self.evaluated, np.where(self.evaluated, 0.0, error), notes)


def coarsest(axis: np.ndarray) -> np.ndarray:
    """Indices of the first nodes: the ends, the middle, and the point nearest to 0."""
    last = len(axis) - 1
    return np.unique([0, last // 2, int(np.argmin(np.abs(axis))), last])


def halved(nodes: np.ndarray, flagged: np.ndarray) -> np.ndarray:
    """The nodes and the middles of the gaps whose inside holds a flagged index."""
    middles = [(a + b) // 2 for a, b in pairwise(nodes.tolist()) if flagged[a + 1 : b].any()]
    return np.unique([*nodes.tolist(), *middles])


def _decay(before: np.ndarray, after: np.ndarray, evaluated: np.ndarray) -> float:
    """By what factor the last refinement changed less than the one before."""
    both = np.isfinite(before) & np.isfinite(after) & ~evaluated
    if not both.any():
        return 1.0
    old, new = np.quantile(before[both], 0.95), np.quantile(after[both], 0.95)
    return float(np.clip(new / old, _LEAST_DECAY, 1.0)) if old > 0 else 1.0
