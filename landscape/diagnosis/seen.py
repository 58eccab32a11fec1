"""What the rules read of the steps that were looked at, and the measures that they share."""

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

from landscape.diagnosis.findings import Finding
from landscape.diagnosis.watch import Look, Watch

LENGTH = 1e-3  # relative, beside the rounding of w + e
VISIBLE = 100  # roundings
COARSE = 0.25  # of ‖e‖: a rounding of the weights beyond which w + e does not tell e
NO_CLIMB = "no step with a second pass at other weights and finite gradients was looked at"


class Seen(NamedTuple):
    """What the rules read: looks of steps that climbed, and those whose gradients are clear."""

    watch: Watch
    looks: Sequence[Look]
    climbs: Sequence[Look]
    clear: Sequence[Look]

    @property
    def name_of_own(self) -> str:
        """Recipe of our own optimizer; "" for another."""
        own = self.watch.own
        return "" if own is None else own.variant.name


def median(values: Sequence[float]) -> float:
    """Of the finite values; NaN without one."""
    finite = [v for v in values if math.isfinite(v)]
    return statistics.median(finite) if finite else math.nan


def numbers_of(**values: float) -> dict[str, float]:
    """The finite ones, named in words."""
    return {k.replace("_", " "): float(v) for k, v in values.items() if math.isfinite(v)}


def no_clear(seen: Seen) -> str:
    """Why no step tells g1 from g2."""
    if not seen.climbs:
        return NO_CLIMB
    return "the steps come back to w after the climb, and what belongs to which pass is not known"


def unknown(key: str, why: str) -> Finding:
    """A question that these steps do not answer, and why."""
    return Finding(key, "cannot tell", f"{why}.")


def change_of_gradient(look: Look) -> float:
    """‖g2 − g1‖ / ‖g1‖."""
    n = look.length("g1")
    square = look["g1", "g1"] + look["g2", "g2"] - 2 * look["g1", "g2"]
    return math.sqrt(max(0.0, square)) / n if n and look.length("g2") else math.nan


def rounding(look: Look) -> float:
    """Of w + e, relative to e."""
    return 4 * look.eps * look.length("w") / max(look.length("e"), 1e-300)


def as_asked(look: Look) -> bool:
    """Whether e is as long as asked, in one of the norms that its direction may have."""
    slack = LENGTH + rounding(look)
    near = lambda value: abs(value - look.rho) <= slack * look.rho  # noqa: E731
    part = look.length("selected")
    masked = look["e", "selected"] / part**2 * look.length("g1") if part else math.nan
    partial = part < look.length("g1") * (1 - 1e-6)  # a mask that does not make up for its share
    lengths = [look.length("e"), look.length("adaptive"), masked if partial else math.nan]
    return look.tensors_of_length or any(map(near, lengths))
