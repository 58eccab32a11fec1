"""A surface from fewer evaluations: blocks that are quartered where they must be, and splines.

Through the evaluated cells goes a polyharmonic spline (r³ and cubic polynomials) of log L. When a
block of cells is quartered, its new corners show how far the spline was off within it; what it is
off after that is estimated from this, and blocks that may be off by more than the tolerance are
quartered again. A random sample of the rest is evaluated at the end, to see whether that holds.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import scipy

from landscape.errors import LandscapeError

# Quartering divides the error of a smooth surface by 16, and that at a kink by 4 at best.
_DECAY = 1 / 3
# Before this level the nodes are too far apart for their errors to mean anything.
_FIRST_LEVELS = 2
# The sample, as shares of the interpolated and of the evaluated cells: where much had to be
# evaluated the rest is suspect, and looking at more of it costs little beside.
_SAMPLE, _SAMPLE_OF_EVALUATED = 0.04, 0.1
_LEAST_SAMPLE = 64
# More nodes than this are interpolated from the nearest ones.
_MOST_NODES, _NEAREST = 1200, 60

Evaluate = Callable[[Sequence[tuple[int, int]]], np.ndarray]


@dataclass(frozen=True)
class FilledGrid:
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
) -> FilledGrid:
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
    work = _FillingGrid(evaluate, first, second, tolerance)
    while True:
        while work.refine():
            pass
        if work.complete or work.holds(seed):
            return work.surface()
        # The estimates were too low: believe them less.
        work.doubt()


# Rows a to b and columns c to d of the grid, both ends included.
Block = tuple[int, int, int, int]


class _FillingGrid:
    """The grid as it fills."""

    def __init__(
        self, evaluate: Evaluate, first: np.ndarray, second: np.ndarray, tolerance: float
    ) -> None:
        self._evaluate, self._tolerance = evaluate, tolerance
        self.shape, self.level = (len(first), len(second)), 0
        self._decay = _DECAY
        axes = [(axis - axis[0]) / (axis[-1] - axis[0]) for axis in (first, second)]
        self._places = np.stack(np.meshgrid(*axes, indexing="ij"), -1)
        self.evaluated = np.zeros(self.shape, dtype=bool)
        # Estimated error at every cell, before it is decided whether to believe it.
        self._error = np.full(self.shape, np.inf)
        self._sample = {"sampled_cells": 0, "sampled_beyond_tolerance": 0, "sampled_worst": 0.0}
        nodes = coarsest(first), coarsest(second)
        self._blocks: list[Block] = [
            (a, b, c, d)
            for a, b in pairwise(nodes[0].tolist())
            for c, d in pairwise(nodes[1].tolist())
        ]
        cells = sorted({(i, j) for i in nodes[0].tolist() for j in nodes[1].tolist()})
        found = evaluate(cells)
        self._values = np.full((*self.shape, found.shape[1]), np.nan)
        self._put(cells, found)
        self._spline = self._interpolated()

    @property
    def complete(self) -> bool:
        return bool(self.evaluated.all())

    @property
    def loss(self) -> np.ndarray:
        return self._values[..., 0]

    def fill(self, cells: Sequence[tuple[int, int]]) -> None:
        wanted = [cell for cell in cells if not self.evaluated[cell]]
        if wanted:
            self._put(wanted, self._evaluate(wanted))

    def _put(self, cells: Sequence[tuple[int, int]], found: np.ndarray) -> None:
        rows, columns = np.array(cells).T
        self._values[rows, columns] = found
        self.evaluated[rows, columns] = True

    def refine(self) -> bool:
        """Quarter the blocks in doubt; whether there were any."""
        doubted = [block for block in self._blocks if self._is_doubted(block)]
        if not doubted:
            return False
        parts = {block: quartered(block) for block in doubted}
        corners = {
            (i, j) for four in parts.values() for a, b, c, d in four for i in (a, b) for j in (c, d)
        }
        self.fill(sorted(corners))
        off = self._distance(self._spline)
        self.level += 1
        left = set(doubted)
        self._blocks = [block for block in self._blocks if block not in left]
        # On the border of two blocks the worse holds, and thereby for what is left of both.
        seen = np.zeros(self.shape)
        inside = np.zeros(self.shape, dtype=bool)
        for (a, b, c, d), four in parts.items():
            block = slice(a, b + 1), slice(c, d + 1)
            seen[block] = np.maximum(seen[block], off[block][self.evaluated[block]].max())
            inside[block] = True
            self._blocks += [(e, f, g, h) for e, f, g, h in four if f - e > 1 or h - g > 1]
        self._error[inside] = seen[inside]
        self._spline = self._interpolated()
        return True

    def doubt(self) -> None:
        self._decay *= 2

    def _is_doubted(self, block: Block) -> bool:
        a, b, c, d = block
        if self.evaluated[a : b + 1, c : d + 1].all():
            return False
        worst = self._error[a : b + 1, c : d + 1].max()
        return self.level < _FIRST_LEVELS or self._decay * worst > self._tolerance

    @property
    def logarithmic(self) -> bool:
        known = self.loss[self.evaluated]
        return bool((known[np.isfinite(known)] > 0).all())

    @property
    def range(self) -> float:
        known = self.loss[self.evaluated]
        known = known[np.isfinite(known)]
        return float(known.max() - known.min()) or 1.0

    def _interpolated(self) -> np.ndarray:
        """Losses of all cells from the finite ones among the evaluated."""
        known = self.evaluated & np.isfinite(self.loss)
        if known.sum() < 4:
            return np.full(self.shape, np.nan)
        z = np.log(self.loss[known]) if self.logarithmic else self.loss[known]
        count = int(known.sum())
        spline = scipy.interpolate.RBFInterpolator(
            self._places[known],
            z,
            kernel="cubic",
            # Ten polynomials need cells that tell them apart.
            degree=3 if count > 2 * 10 else 1,
            neighbors=_NEAREST if count > _MOST_NODES else None,
        )
        found = spline(self._places[~self.evaluated]) if not self.complete else z[:0]
        surface = self.loss.copy()
        with np.errstate(over="ignore"):
            surface[~self.evaluated] = np.exp(found) if self.logarithmic else found
        return surface

    def _distance(self, spline: np.ndarray) -> np.ndarray:
        """Error of the spline: relative to the loss, or to the range; infinite beside a NaN."""
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            off = np.abs(spline - self.loss) / (self.loss if self.logarithmic else self.range)
        return np.where(np.isfinite(off), off, np.inf)

    def holds(self, seed: int) -> bool:
        """Evaluate a random sample of the interpolated cells; whether it lets 99 % be kept.

        Of all cells, with 95 % confidence (Poisson), unless none of the sample is beyond.
        """
        rest = np.argwhere(~self.evaluated)
        cells = self.evaluated.size
        share = max(_SAMPLE * len(rest), _SAMPLE_OF_EVALUATED * self.evaluated.sum())
        size = min(len(rest), max(_LEAST_SAMPLE, math.ceil(share)))
        picks = np.random.default_rng(seed).permutation(len(rest))[:size]
        wanted = [(int(i), int(j)) for i, j in rest[np.sort(picks)]]
        self.fill(wanted)
        off = self._distance(self._spline)[tuple(np.array(wanted).T)]
        beyond = int((off > self._tolerance).sum())
        self._sample["sampled_cells"] += size
        self._sample["sampled_beyond_tolerance"] += beyond
        worst = max(self._sample["sampled_worst"], float(off.max(initial=0.0)))
        self._sample["sampled_worst"] = worst
        self._spline = self._interpolated()
        return (
            not beyond
            or scipy.special.gammaincinv(beyond + 1, 0.95) * len(rest) / size <= 0.01 * cells
        )

    def surface(self) -> FilledGrid:
        values = self._values.copy()
        values[..., 0] = self._spline
        notes = {
            "tolerance": self._tolerance,
            "tolerance_of": "loss" if self.logarithmic else "range of the loss",
            "levels": self.level,
            "cells": int(self.evaluated.size),
            "evaluated_cells": int(self.evaluated.sum()),
            **self._sample,
        }
        error = np.where(self.evaluated, 0.0, self._decay * self._error)
        return FilledGrid(values, self.evaluated, error, notes)


def coarsest(axis: np.ndarray) -> np.ndarray:
    """Indices of the first nodes: the ends, the middle, and the point nearest to 0."""
    last = len(axis) - 1
    return np.unique([0, last // 2, int(np.argmin(np.abs(axis))), last])


def quartered(block: Block) -> list[Block]:
    """The parts of a block, halved along the axes on which it holds cells between its ends."""
    a, b, c, d = block
    rows = [(a, b)] if b - a < 2 else [(a, (a + b) // 2), ((a + b) // 2, b)]
    columns = [(c, d)] if d - c < 2 else [(c, (c + d) // 2), ((c + d) // 2, d)]
    return [(*row, *column) for row in rows for column in columns]
