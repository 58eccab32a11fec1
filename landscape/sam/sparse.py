"""Sparse SAM's two masks (arXiv:2210.05177): Fisher information and dynamic sparse training.

Both keep a global top-k over all coordinates and refresh it per epoch, so `SAM.begin_epoch` must
be called; the new mask is used from the next step on.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from landscape.errors import LandscapeError
from landscape.sam.selectors import top_of_all
from landscape.sam.slot import Slot
from landscape.sam.variant import MaskEntry, Point, State

Scores = dict[str, Tensor]


def global_top(point: Point, parts: Scores, count: Callable[[int], int]) -> dict[str, Tensor]:
    """Bool masks of the count(size) largest scores of all tensors together."""
    return _top(point, gathered(point, parts), count)


def _top(point: Point, scores: Scores, count: Callable[[int], int]) -> dict[str, Tensor]:
    """As `global_top`, of whole scores."""
    masks = top_of_all(list(scores.values()), count)
    return {n: point.own(n, m) for n, m in zip(scores, masks, strict=True)}


def gathered(point: Point, parts: Scores) -> Scores:
    """Whole tensors, of which the point's processes have parts."""
    return {n: point.whole(n, x) for n, x in parts.items()}


def _due(state: State, point: Point, every: int) -> bool:
    """Whether this is the first completed step of an epoch in which the mask is refreshed."""
    return point.epoch % every == 0 and state.get("refreshed") != point.epoch


@dataclass(frozen=True)
class FisherMask(Slot):
    """The share 1 - sparsity of coordinates with the largest diagonal empirical Fisher information.

    F = mean over num_samples training examples of (∂ loss_i)², refreshed after the base step of the
    first batch of every `update_freq`-th epoch. mask_init: "zeros" (released: no perturbation
    before the first refresh) or "ones".
    official_quirks: the first Fisher sample is contaminated by the descent gradient still in
    `.grad`, and the model stays in train mode. mode: "eval" | "train", None = by official_quirks.
    within: a selector of whole tensors (`NormLayers()`, `Kinds(...)`): the share is of theirs.
    """

    sparsity: float = 0.5
    update_freq: int = 1
    num_samples: int = 128
    mask_init: str = "zeros"
    official_quirks: bool = False
    mode: str | None = None
    needs_g1 = False  # not after the ascent
    within: Any = None
    global_mask = True

    def __call__(self, point: Point, u: list[Tensor], state: State) -> list[MaskEntry]:
        """Mask per tensor; without state, one from a fresh Fisher when the point offers it."""
        if "mask" not in state and point.scratch.get("counterfactual"):
            state["mask"] = self._fresh(point)
        if "mask" not in state:
            full = self.mask_init == "ones"
            state["mask"] = {
                n: torch.full(x.shape, full, dtype=torch.bool, device=x.device)
                for n, x in zip(point.names, u, strict=True)
            }
        return [
            state["mask"].get(n, torch.zeros((), dtype=torch.bool, device=x.device).expand_as(x))
            for n, x in zip(point.names, u, strict=True)
        ]

    def after_step(self, point: Point, state: State) -> None:
        """Refresh, at the weights the base step has just reached."""
        if _due(state, point, self.update_freq):
            state["mask"] = self._fresh(point)
            state["refreshed"] = point.epoch

    def _fresh(self, point: Point) -> dict[str, Tensor]:
        if point.fisher is None:
            raise LandscapeError(
                "ssam_f needs examples for its Fisher information and has none; call "
                "optimizer.set_fisher_data(losses, data) before the first step."
            )
        mode = self.mode or ("train" if self.official_quirks else "eval")
        fisher = point.fisher(self.num_samples, mode=mode, contaminated=self.official_quirks)
        if self.within is not None:
            known = dict(zip(point.names, point.kinds, strict=True))
            names = [n for n in fisher if n in known]
            chosen = self.within.active(names=names, kinds=[known[n] for n in names])
            fisher = {n: fisher[n] for n, on in zip(names, chosen, strict=True) if on}
        return global_top(point, fisher, lambda size: int(size * (1 - self.sparsity)))


@dataclass(frozen=True)
class DynamicMask(Slot):
    """A mask that drops its weakest coordinates and grows others, as in sparse training.

    At the first batch of every `update_freq`-th epoch, between perturbation and second pass:
    r = drop_rate (1 + cos(π epoch / total_epochs)) / 2; a share r of the live coordinates with
    the smallest drop score is dropped and as many others with the largest growth score are grown.
    drop: "gradient" |g1|, "weight" |w + e|, "random"; growth: "random", "gradient", "weight"; or a
    function (point) -> scores per tensor name. Both counts are capped by the number of masked
    coordinates, so that the live count is constant; official_quirks=True caps growth only, as
    released, which shrinks the live set when (1 - sparsity) r > sparsity.
    """

    sparsity: float = 0.5
    drop_rate: float = 0.5
    drop: str | Callable[[Point], Scores] = "gradient"
    growth: str | Callable[[Point], Scores] = "random"
    update_freq: int = 1
    official_quirks: bool = False
    global_mask = True

    @property
    def needs_first_pass(self) -> bool:
        """Scores by gradient are those of pass 1."""
        return "gradient" in (self.drop, self.growth)

    def __call__(self, point: Point, u: list[Tensor], state: State) -> list[MaskEntry]:  # noqa: ARG002
        """Mask per tensor, at first random with N - ⌈N sparsity⌉ live coordinates.

        A tensor seen first later on has a random mask of its own, of the same share.
        """
        mask = state.setdefault("mask", {})
        late = [i for i, n in enumerate(point.names) if n not in mask]
        if late:
            scores = _random_scores(point.only(late))
            mask |= _top(point, scores, lambda size: size - math.ceil(size * self.sparsity))
        return [mask[n] for n in point.names]

    def reads_after_ascent(self, point: Point, state: State) -> bool:
        """Whether the mask is refreshed in this step."""
        return _due(state, point, self.update_freq)

    def after_ascent(self, point: Point, state: State) -> None:
        """Drop and grow; called at w + e, the mask counts from the next step on."""
        if not _due(state, point, self.update_freq):
            return
        if point.total_epochs is None:
            raise LandscapeError(
                "ssam_d anneals its drop rate over the training and does not know its length; call "
                "optimizer.begin_epoch(epoch, total_epochs=...)."
            )
        mask = gathered(point, {n: state["mask"][n] for n in point.names})
        size = sum(m.numel() for m in mask.values())
        masked = size * self.sparsity
        live = size - masked
        rate = self.drop_rate * (1 + math.cos(math.pi * point.epoch / point.total_epochs)) / 2
        dropped = live * rate
        if not self.official_quirks:
            dropped = min(dropped, masked)
        keep, grow = int(live - dropped), int(min(dropped, masked))
        if not self.official_quirks:  # truncating both would lose a coordinate at every refresh
            alive = int(sum(m.sum() for m in mask.values()))
            grow = int(min(dropped, size - alive))
            keep = alive - grow
        dead = {n: (s + 1e-7) * mask[n] for n, s in self._scores(self.drop, point).items()}
        born = {n: (s + 1e-7) * ~mask[n] for n, s in self._scores(self.growth, point).items()}
        kept = _top(point, dead, lambda _: keep)
        grown = _top(point, born, lambda _: grow)
        state["mask"] |= {n: kept[n] | grown[n] for n in kept}
        state["refreshed"] = point.epoch

    @staticmethod
    def _scores(strategy: str | Callable[[Point], Scores], point: Point) -> Scores:
        if not isinstance(strategy, str):
            return gathered(point, strategy(point))
        if strategy == "random":
            return _random_scores(point)
        tensors = point.gradients if strategy == "gradient" else point.weights
        parts = {n: t.detach().abs() for n, t in zip(point.names, tensors, strict=True)}
        return gathered(point, parts)


def _random_scores(point: Point) -> Scores:
    return {n: point.rand(i) for i, n in enumerate(point.names)}
