"""One ascent of a variant, for the optimizer and for counterfactuals."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from landscape.errors import LandscapeError
from landscape.sam.checks import check_range
from landscape.sam.geometry import HALVES, LARGE, Scaled
from landscape.sam.variant import SLOTS, MaskEntry, Point, State, Variant


@dataclass
class Ascent:
    """Where a variant climbs: e and mask per tensor of the point (None: not perturbed; all)."""

    raised: list[Tensor | None] | Scaled
    mask: list[MaskEntry] | None
    rho: float | Tensor

    @cached_property
    def e(self) -> list[Tensor | None]:
        """The perturbation, multiplied out."""
        return self.raised.multiplied() if isinstance(self.raised, Scaled) else self.raised

    @property
    def scaled(self) -> Scaled:
        """E as a factor times tensors."""
        return self.raised if isinstance(self.raised, Scaled) else Scaled(self.raised, 1.0)

    @property
    def perturbs(self) -> list[bool]:
        """Which tensors of the point are perturbed."""
        return [x is not None for x in self.scaled.tensors]

    def steps(self) -> tuple[list[Tensor], float]:
        """(directions, factor) of the perturbed tensors, whose products are e."""
        if isinstance(self.raised, Scaled):
            live = _there(self.raised.tensors)
            if live and live[0].is_cpu and not any(x.dtype in HALVES for x in live):
                factor = float(self.raised.factor)
                if abs(factor) < LARGE:
                    return live, factor
        return _there(self.e), 1.0

    @property
    def whole(self) -> bool:
        """Whether every tensor of the point is perturbed, without looking at each."""
        return self.mask is None and isinstance(self.raised, Scaled)


def _there(tensors: Sequence[Tensor | None]) -> list[Tensor]:
    return [x for x in tensors if x is not None]


def new_slots() -> dict[str, State]:
    """Empty state for every slot."""
    return {name: {} for name in SLOTS}


def ascend(variant: Variant, point: Point, slots: dict[str, State]) -> Ascent:
    """Source → radius → selector → geometry at one point; tensors of radius 0 take no part."""
    if point.scales is not None and 0 in point.scales:
        keep = [i for i, s in enumerate(point.scales) if s != 0]
        part = ascend(variant, point.only(keep), slots)
        e: list[Tensor | None] = [None] * len(point.names)
        mask: list[MaskEntry] = [False] * len(point.names)
        for j, i in enumerate(keep):
            e[i] = part.e[j]
            mask[i] = True if part.mask is None else part.mask[j]
        return Ascent(e, mask, part.rho)
    u = variant.source(point, slots["source"])
    rho = variant.radius(point, slots["radius"])
    check_range(rho, point.weights)
    if point.scales is not None and len(set(point.scales)) == 1:
        # One radius for all that are perturbed is the step's own.
        rho, point.scales = rho * point.scales[0], None
    mask = variant.selector(point, u, slots["selector"])
    _check_mask(variant, point, mask)
    return Ascent(variant.geometry(point, u, mask, rho), mask, rho)


def _check_mask(variant: Variant, point: Point, mask: list[MaskEntry] | None) -> None:
    if mask is None:
        return
    if len(mask) != len(point.names):
        raise LandscapeError(
            f"the selector of {variant.name!r} returned {len(mask)} masks for {len(point.names)} "
            "tensors; return one per tensor of the point, or None for all."
        )
    if all(m is False for m in mask):
        raise LandscapeError(
            f"variant {variant.name!r} selects no tensor of this model "
            f"(kinds {sorted(set(point.kinds))}); nothing would be perturbed: choose another "
            "selector or variant."
        )
    for name, m, w in zip(point.names, mask, point.weights, strict=True):
        if isinstance(m, Tensor) and m.shape != w.shape:
            raise LandscapeError(
                f"the mask of {name!r} has shape {tuple(m.shape)} and the tensor "
                f"{tuple(w.shape)}: it belongs to another model."
            )
