"""Names beside the points of a scatter, where they cover no other point and no other name."""

from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np

from landscape.plot.drawing import Label, Panel, Points, extent

# A name in shares of a panel 1.5 inches wide and 1.3 high, at 7 points.
_LETTER, _LINE, _GAP = 0.036, 0.085, 0.05
_Anchor = Literal["left", "right", "center"]
_PLACES: tuple[tuple[_Anchor, float], ...] = (
    ("left", 0.0), ("right", 0.0), ("center", 1.1), ("center", -1.1),
    ("left", 1.0), ("right", 1.0), ("left", -1.0), ("right", -1.0),
)  # fmt: skip
_SHORT = 12  # letters of a name that has room beside its point
_LARGE = 4.0  # size of the mark of a mean: single runs are smaller
_EDGE = 0.045
_Box = tuple[float, float, float, float]


def beside(panel: Panel, wanted: Sequence[str] | None = None) -> list[Label]:
    """Labels for the means of a scatter: those that are `wanted`, wherever they cover least.

    Without `wanted`, for all with short names that have room. Means are single large points; a
    panel whose rows or columns have names needs no labels, and has none.
    """
    points = (mark for mark in panel.marks if isinstance(mark, Points))
    means = [mark for mark in points if len(mark.x) == 1 and mark.size >= _LARGE]
    if panel.x.ticks or panel.y.ticks or len(means) < 2:
        return []
    if not any(np.isfinite([mark.x[0], mark.y[0]]).all() for mark in means):
        return []
    across, up = _Scale(panel, "x"), _Scale(panel, "y")
    places = [(across(mark.x[0]), up(mark.y[0])) for mark in means]
    taken = [_around(x, y) for x, y in places]
    if wanted is None:
        taken += [box for mark in means for box in _intervals(mark, across, up)]
    labels = []
    for mark, (x, y) in zip(means, places, strict=True):
        asked = len(mark.name) <= _SHORT if wanted is None else mark.name in wanted
        if not asked or not np.isfinite([x, y]).all():
            continue
        own = _around(x, y)
        tried = [(anchor, lift, _box(mark.name, x, y, anchor, lift)) for anchor, lift in _PLACES]
        cost = [sum(_common(box, other) for other in taken if other != own) + 2 * _outside(box)
                for *_, box in tried]  # fmt: skip
        best = int(np.argmin(np.round(cost, 6)))
        if wanted is None and cost[best] > 0:
            continue
        anchor, lift, box = tried[best]
        taken.append(box)
        labels.append(Label(float(mark.x[0]), float(mark.y[0]), mark.name, mark.color, anchor,
                            lift=lift))  # fmt: skip
    return labels


class _Scale:
    """From values on an axis of a panel to shares of it."""

    def __init__(self, panel: Panel, which: str) -> None:
        axis = getattr(panel, which)
        held = [np.ravel(v) for mark in panel.marks for v in extent(mark, which)]
        values = np.concatenate([*held, np.asarray(axis.limits or (), float)])
        known = values[np.isfinite(values) & ((values > 0) | (not axis.log))]
        self.log = axis.log
        self.low, self.high = (self._on(end) for end in (known.min(), known.max()))

    def _on(self, value: float) -> float:
        if not self.log:
            return float(value)
        return float(np.log(value)) if value > 0 else float("nan")

    def __call__(self, value: float) -> float:
        wide = self.high - self.low
        return (self._on(value) - self.low) / wide if wide > 0 else 0.5


def _intervals(mark: Points, across: _Scale, up: _Scale) -> Iterator[_Box]:
    """The thin boxes of the intervals of a mean."""
    x, y = across(mark.x[0]), up(mark.y[0])
    if mark.x_low is not None and mark.x_high is not None:
        yield (across(mark.x_low[0]), across(mark.x_high[0]), y - 0.01, y + 0.01)
    if mark.y_low is not None and mark.y_high is not None:
        yield (x - 0.01, x + 0.01, up(mark.y_low[0]), up(mark.y_high[0]))


def _around(x: float, y: float) -> _Box:
    return (x - 0.03, x + 0.03, y - 0.04, y + 0.04)


def _box(name: str, x: float, y: float, anchor: str, lift: float) -> _Box:
    width = _LETTER * len(name)
    left = {"left": x + _GAP, "right": x - _GAP - width, "center": x - width / 2}[anchor]
    up = y + lift * _LINE
    return (left, left + width, up - _LINE / 2, up + _LINE / 2)


def _common(one: _Box, other: _Box) -> float:
    """Area that two boxes share."""
    wide = min(one[1], other[1]) - max(one[0], other[0])
    high = min(one[3], other[3]) - max(one[2], other[2])
    return max(wide, 0.0) * max(high, 0.0) if np.isfinite([wide, high]).all() else 0.0


def _outside(box: _Box) -> float:
    """How far a box reaches beyond the panel, which is a little larger than what it shows."""
    return sum(max(end - _EDGE, 0.0) for end in (-box[0], box[1] - 1, -box[2], box[3] - 1))
