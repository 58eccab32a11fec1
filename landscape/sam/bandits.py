"""Selectors that draw whole tensors: ESAM's Bernoulli draw and SL-SAM's bandit."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from landscape.sam.slot import Slot
from landscape.sam.variant import Point, State

Draw = Callable[[Tensor, torch.Generator], list[bool]]


def bernoulli(probabilities: Tensor, generator: torch.Generator) -> list[bool]:
    """Independent draws per tensor, repeated until one is chosen."""
    while True:
        drawn = torch.rand(len(probabilities), generator=generator, dtype=torch.float64)
        chosen = (drawn < probabilities).tolist()
        if any(chosen):
            return chosen


def _joined(names: Sequence[str], state: State) -> list[str]:
    """Names that the state has not seen, appended to its own."""
    known = state.setdefault("names", [])
    fresh = [n for n in names if n not in set(known)]
    known += fresh
    state.setdefault("live", [])
    return fresh


def _live(names: Sequence[str], state: State) -> list[bool]:
    live = dict(zip(state["names"], state["live"], strict=True))
    return [live[name] for name in names]


def _some(point: Point, state: State, draw: Draw, probabilities: list[float]) -> list[bool]:
    """The drawn tensors among those of the point; drawn again where none of them has a gradient."""
    chosen = _live(point.names, state)
    if any(chosen):
        return chosen
    return list(draw(torch.tensor(probabilities, dtype=torch.float64), point.host_generator))


@dataclass(frozen=True)
class RandomTensors(Slot):
    """Each tensor with probability beta, drawn after every step; the first step has all (ESAM)."""

    beta: float = 0.6
    draw: Draw = bernoulli
    needs_g1 = False
    needs_first_pass = True

    def active(self, *, names: Sequence[str], state: State, **_: object) -> list[bool]:
        """The tensors drawn for this step."""
        fresh = _joined(names, state)
        state["live"] += [True] * len(fresh)
        return _live(names, state)

    def __call__(self, point: Point, u: list[Tensor], state: State) -> list[bool]:  # noqa: ARG002
        """Whole tensors."""
        return _some(point, state, self.draw, [self.beta] * len(point.names))

    def after_step(self, point: Point, state: State) -> None:
        """Draw the next step's tensors, after a step that has climbed."""
        if not point.scratch.get("climbed"):
            return
        probabilities = torch.full((len(state["names"]),), self.beta, dtype=torch.float64)
        state["live"] = self.draw(probabilities, point.host_generator)


@dataclass(frozen=True)
class Bandit(Slot):
    """Tensors with probabilities p_k learned from their gradient norms (SL-SAM).

    p_k starts at `share`. After a step with first-pass norms n_k of the drawn tensors and
    L = max n_k: loss_k = (L/c)² - (n_k/p_k)², minus its minimum; p_k ← p_k exp(-c loss_k/p_k), then
    projected onto sum p = share K, p <= 1 by scaling the smaller ones; c = 1e-3. Only drawn
    tensors are perturbed and updated.
    """

    share: float = 0.5
    rate: float = 1e-3
    draw: Draw = bernoulli
    needs_g1 = False  # its norms alone
    needs_first_pass = True

    def active(
        self, names: Sequence[str], state: State, generator: torch.Generator, **_: object
    ) -> list[bool]:
        """The tensors drawn for this step."""
        fresh = torch.full((len(_joined(names, state)),), self.share, dtype=torch.float64)
        if len(fresh):
            known = _on_host(state) if "probabilities" in state else fresh[:0]
            state["probabilities"] = torch.cat([known, fresh])
            state["live"] += self.draw(fresh, generator)
        return _live(names, state)

    def __call__(self, point: Point, u: list[Tensor], state: State) -> list[bool]:  # noqa: ARG002
        """Whole tensors."""
        # For `after_step`, when g1 is gone and the point may have tensors that were not drawn.
        point.scratch["drawn"] = dict(zip(point.names, point.norms, strict=True))
        known = dict(zip(state["names"], _on_host(state).tolist(), strict=True))
        return _some(point, state, self.draw, [known[n] for n in point.names])

    def after_step(self, point: Point, state: State) -> None:
        """Update the probabilities from the first-pass norms and draw the next step's tensors."""
        if not point.scratch.get("climbed"):
            return
        p = _on_host(state)
        drawn = point.scratch["drawn"]
        where = [state["names"].index(name) for name in drawn]
        norms = torch.stack(list(drawn.values())).double().cpu()
        largest = norms.max()
        loss = (largest / self.rate) ** 2 - (norms / p[where]) ** 2
        loss = loss - loss.min()
        weights = p.clone()
        weights[where] = p[where] * torch.exp(-self.rate * loss / p[where])
        state["probabilities"] = project(weights, self.share * len(p)).clamp(1e-8, 1.0)
        state["live"] = self.draw(state["probabilities"], point.host_generator)


def _on_host(state: State) -> Tensor:
    """The probabilities, with which the host draws; a loaded state comes on the model's device."""
    state["probabilities"] = state["probabilities"].cpu()
    return state["probabilities"]


def project(weights: Tensor, total: float) -> Tensor:
    """Weights scaled to sum to `total`, the largest set to 1 until none is above it."""
    order = torch.argsort(weights, descending=True)
    ranked = weights[order]
    rest = ranked.flip(0).cumsum(0).flip(0)  # sum of the entries from rank i on
    full = 0
    while full < len(ranked) - 1 and (total - full) / rest[full] * ranked[full] > 1:
        full += 1
    out = ranked * ((total - full) / rest[full])
    out[:full] = 1.0
    return torch.empty_like(weights).index_copy_(0, order, out)
