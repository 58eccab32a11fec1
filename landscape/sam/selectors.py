"""Selectors: which coordinates are perturbed.

A selector is called as selector(point, u, state) after the first pass. It may define
`active(names, kinds, modules, state, generator) -> list[bool]`, called before the first pass: the
tensors that can be selected at all, so that the engine computes no other first-pass gradient.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from landscape.errors import LandscapeError
from landscape.sam.slot import Slot, as_slot, refuse_degenerate, slot
from landscape.sam.variant import MaskEntry, Point, State, intersect, total_norm

ONE_D = ("dense", "none")


@slot(needs_g1=False)
def everything(point: Point, u: list[Tensor], state: State) -> None:  # noqa: ARG001
    """All coordinates of all tensors."""
    return


def kept_count(size: int, percentile: float) -> int:
    """(n - 1) - ⌊α (n - 1)⌋: entries strictly above the linear α-quantile, without ties."""
    return size - 1 - math.floor(percentile * (size - 1))


def above_quantile(values: Tensor, percentile: float) -> Tensor:
    """Values > their linearly interpolated `percentile`-quantile, as a bool mask.

    An entry exceeds the interpolated quantile exactly when it exceeds the order statistic
    ⌊α (n - 1)⌋ below it, so one k-th value suffices and sizes beyond 2**24, where
    `torch.quantile` raises, are no exception.
    """
    flat = values.reshape(-1)
    n = flat.numel()
    rank = math.floor(percentile * (n - 1))
    if not flat.is_cpu:  # kthvalue sorts a 1-D tensor in one block there
        threshold = torch.topk(flat, n - rank, sorted=False).values.min()
    else:
        threshold = torch.kthvalue(flat, rank + 1).values
    return values > threshold


def largest(values: Tensor, count: int) -> Tensor:
    """Bool mask of the `count` largest entries; ties are broken by position, never exceeded."""
    flat = values.reshape(-1)
    mask = torch.zeros_like(flat, dtype=torch.bool)
    if count > 0:
        mask[torch.topk(flat, count, sorted=False).indices] = True
    return mask.view(values.shape)


@dataclass(frozen=True)
class ZScore(Slot):
    """Per tensor of ndim > 1, entries with |z| above its `percentile`-quantile (arXiv:2505.02369).

    z = (g - mean g) / std g. The quantile of |z| scales with 1/std, so the mask is the top
    1 - percentile of |u - mean u|: neither the biased std nor its eps can change it, and
    they are not computed. Kept per tensor, without ties: (n - 1) - ⌊α (n - 1)⌋.
    one_d: tensors of ndim <= 1 are unfiltered ("dense", released) or not perturbed ("none").
    fallback: where nothing at all is kept, every filtered tensor is (the paper's rule for f = 0).
    """

    percentile: float = 0.95
    one_d: str = "dense"
    fallback: bool = False
    ignores_one_d = True

    def __call__(self, point: Point, u: list[Tensor], state: State) -> list[MaskEntry]:  # noqa: ARG002
        """Mask per tensor."""
        masks: list[MaskEntry] = [
            self._above(point, i, x) if x.ndim > 1 else self.one_d == "dense"
            for i, x in enumerate(u)
        ]
        filtered = {i: m for i, m in enumerate(masks) if isinstance(m, Tensor)}
        if not (self.fallback and filtered):
            return masks
        kept = point.sums(
            [
                None if m is False else (x if m is True else m).count_nonzero().double()
                for x, m in zip(u, masks, strict=True)
            ]
        )
        there = [k for k in kept if k is not None]
        nothing = torch.stack([k.to(there[0].device) for k in there]).sum() == 0
        for i, m in filtered.items():
            masks[i] = m | nothing.to(m.device)
        return masks

    def _above(self, point: Point, i: int, x: Tensor) -> Tensor:
        whole = point.whole(i, x)
        return point.own(i, above_quantile((whole - whole.mean()).abs(), self.percentile))


@dataclass(frozen=True)
class TopGradient(Slot):
    """The share `density` of largest |u|, per tensor or over all tensors (scope="global")."""

    density: float = 0.05
    one_d: str = "none"
    scope: str = "tensor"

    def __call__(self, point: Point, u: list[Tensor], state: State) -> list[MaskEntry]:  # noqa: ARG002
        """Mask per tensor."""
        score = lambda i: point.whole(i, u[i].abs())  # noqa: E731
        return _by_score(point, score, self.density, self.one_d, self.scope)


@dataclass(frozen=True)
class Random(Slot):
    """A uniformly random share `density` of the coordinates, drawn anew every step.

    resample: "step" | "epoch" | "never".
    """

    density: float = 0.05
    one_d: str = "none"
    scope: str = "tensor"
    resample: str = "step"

    def __call__(self, point: Point, u: list[Tensor], state: State) -> list[MaskEntry]:  # noqa: ARG002
        """Mask per tensor; kept in `state["mask"]` unless drawn every step.

        A tensor seen first after the draw has one of its own, of the same share.
        """
        if self.resample == "step":
            return self._draw(point)
        drawn = state.get("epoch")
        if drawn is None or (self.resample == "epoch" and drawn != point.epoch):
            state["mask"], state["epoch"] = {}, point.epoch
        mask = state["mask"]
        late = [i for i, n in enumerate(point.names) if n not in mask]
        if late:
            fresh = self._draw(point.only(late))
            mask |= {point.names[i]: m for i, m in zip(late, fresh, strict=True)}
        return [mask[name] for name in point.names]

    def _draw(self, point: Point) -> list[MaskEntry]:
        whole = [point.rand(i) for i in range(len(point.names))]
        return _by_score(point, whole.__getitem__, self.density, self.one_d, self.scope)


def _by_score(
    point: Point,
    score: Callable[[int], Tensor],
    density: float,
    one_d: str,
    scope: str,
) -> list[MaskEntry]:
    """Masks of the share `density` of largest scores, which are those of whole tensors."""
    count = lambda n: max(1, round(density * n))  # noqa: E731
    chosen = [i for i, w in enumerate(point.weights) if w.ndim > 1 or one_d == "same"]
    masks: list[MaskEntry] = [one_d == "dense"] * len(point.names)
    if scope == "tensor":
        for i in chosen:
            s = score(i)
            masks[i] = point.own(i, largest(s, count(s.numel())))
    elif chosen:
        parts = top_of_all([score(i) for i in chosen], count)
        for i, part in zip(chosen, parts, strict=True):
            masks[i] = point.own(i, part)
    return masks


def top_of_all(scores: Sequence[Tensor], count: Callable[[int], int]) -> list[Tensor]:
    """Bool masks of the count(size) largest scores over all tensors together."""
    flat = torch.cat([s.reshape(-1) for s in scores])
    parts = largest(flat, count(flat.numel())).split([s.numel() for s in scores])
    return [part.view(s.shape) for s, part in zip(scores, parts, strict=True)]


@dataclass(frozen=True)
class NormLayers(Slot):
    """Weight and bias of normalization layers (arXiv:2306.04226), or with complement=True all else.

    match="type": the tensor belongs to a normalization module; "name": its qualified name contains
    "norm" or "bn", as in the released code, which also catches what is nested in a module called
    norm* and misses layers named otherwise.
    """

    complement: bool = False
    match: str = "type"

    @property
    def only_one_d(self) -> bool:
        """Norm layers own 1-D tensors alone; their complement does not."""
        return not self.complement

    def active(self, names: Sequence[str], kinds: Sequence[str], **_: object) -> list[bool]:
        """Which tensors are perturbed; known before the first pass."""
        chosen = self._chosen(names, kinds)
        if any(chosen):
            return chosen
        if self.complement:
            raise LandscapeError(
                f"no_norm=True leaves nothing to perturb: all {len(names)} tensors belong to "
                "normalization layers."
            )
        where = "module type" if self.match == "type" else "a name containing 'norm' or 'bn'"
        mend = (
            'use match="type"'
            if "norm" in kinds
            else "use a model with BatchNorm, LayerNorm, GroupNorm, InstanceNorm or RMSNorm, or "
            "another variant"
        )
        raise LandscapeError(
            f"SAM-ON perturbs normalization layers and this model has none by {where} "
            f"(its {len(names)} tensors are of kinds {sorted(set(kinds))}); {mend}."
        )

    def _chosen(self, names: Sequence[str], kinds: Sequence[str]) -> list[bool]:
        if self.match == "type":
            return [(kind == "norm") != self.complement for kind in kinds]
        return [("norm" in n or "bn" in n) != self.complement for n in names]

    def __call__(self, point: Point, u: list[Tensor], state: State) -> list[bool]:  # noqa: ARG002
        """Whole tensors."""
        return self._chosen(point.names, point.kinds)


@dataclass(frozen=True)
class TopLayers(Slot):
    """The layers with the largest gradient norms (LAGNP, arXiv:2503.14205, our reading).

    layer: "module" (a module and all parameters it owns) or "tensor". count layers are kept, or
    the share `fraction` of all layers, rounded up. every: steps between two selections.
    smoothing: weight of the past in an exponential average of the norms, 0 for none.
    """

    count: int | None = None
    fraction: float = 0.5
    layer: str = "module"
    every: int = 1
    smoothing: float = 0.0
    needs_first_pass = True

    def __call__(self, point: Point, u: list[Tensor], state: State) -> list[MaskEntry]:  # noqa: ARG002
        """Whole tensors; the choice and the averages live in `state`."""
        owners = list(point.modules) if self.layer == "module" else list(point.names)
        groups: dict[str, list[Tensor]] = {}
        for owner, norm in zip(owners, point.norms, strict=True):
            groups.setdefault(owner, []).append(norm)
        scores = self._averaged(point, {o: total_norm(norms) for o, norms in groups.items()}, state)
        chosen = state.get("chosen")
        if not set(chosen or ()) & set(groups) or state["age"] % self.every == 0:
            k = self.count if self.count is not None else math.ceil(self.fraction * len(groups))
            ranked = torch.stack([scores[o] for o in groups])
            top = set(torch.topk(ranked, min(max(k, 1), len(groups))).indices.tolist())
            state["chosen"] = [name for i, name in enumerate(groups) if i in top]
            state["age"] = 0
        state["age"] += 1
        return [owner in state["chosen"] for owner in owners]

    def _averaged(self, point: Point, now: State, state: State) -> State:
        """Norms per layer, averaged over the steps in which the layer had a gradient."""
        if not self.smoothing:
            return now
        past, finite = state.setdefault("scores", {}), point.finite
        for owner, norm in now.items():
            if owner in past:
                mean = self.smoothing * past[owner] + (1 - self.smoothing) * norm
                if isinstance(finite, Tensor):
                    mean = torch.where(finite, mean, past[owner])
                now[owner] = mean
        past |= now
        return now


@dataclass(frozen=True)
class Kinds(Slot):
    """Whole tensors of the given kinds (`landscape.params.KINDS`)."""

    kinds: tuple[str, ...]

    @property
    def only_one_d(self) -> bool:
        """As `NormLayers`, when norm layers are all that is chosen."""
        return set(self.kinds) == {"norm"}

    def active(self, names: Sequence[str], kinds: Sequence[str], **_: object) -> list[bool]:  # noqa: ARG002
        """Which tensors are perturbed."""
        chosen = [kind in self.kinds for kind in kinds]
        if not any(chosen):
            raise LandscapeError(
                f"kinds={self.kinds} select no tensor; this model has {sorted(set(kinds))}."
            )
        return chosen

    def __call__(self, point: Point, u: list[Tensor], state: State) -> list[MaskEntry]:  # noqa: ARG002
        """Whole tensors."""
        return [kind in self.kinds for kind in point.kinds]


@dataclass(frozen=True)
class Intersection(Slot):
    """Coordinates that all selectors choose, each looking at the same u."""

    selectors: tuple[Slot | Callable[..., list[MaskEntry] | None], ...]

    def __post_init__(self) -> None:
        own = tuple(as_slot(s, "selectors") for s in self.selectors)
        object.__setattr__(self, "selectors", own)
        refuse_degenerate(self)

    @property
    def parts(self) -> tuple[Slot | Callable[..., list[MaskEntry] | None], ...]:
        """The selectors inside."""
        return self.selectors

    def __call__(self, point: Point, u: list[Tensor], state: State) -> list[MaskEntry] | None:
        """The intersected mask."""
        mask = None
        for i, selector in enumerate(self.selectors):
            mask = intersect(mask, selector(point, u, state.setdefault(str(i), {})))
        return mask
