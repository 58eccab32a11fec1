"""One ascent of a variant, for the optimizer and for counterfactuals, and Fisher information."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from landscape.errors import LandscapeError
from landscape.params import ParamLayout
from landscape.sam.geometry import Scaled
from landscape.sam.passes import Statistics, batch_size, select
from landscape.sam.variant import SLOTS, MaskEntry, Point, State, Variant
from landscape.sam.weights import are_little


@dataclass(frozen=True)
class Trained:
    """The tensors that are trained: names, kinds, owning modules and parameters, in model order."""

    names: tuple[str, ...]
    kinds: tuple[str, ...]
    modules: tuple[str, ...]
    parameters: tuple[nn.Parameter, ...]

    @cached_property
    def by_name(self) -> dict[str, nn.Parameter]:
        """The parameters by name."""
        return dict(zip(self.names, self.parameters, strict=True))

    @cached_property
    def little(self) -> bool:
        """Whether the tensors are so small that calling for their arithmetic takes longer."""
        return are_little(self.parameters)

    @cached_property
    def shapes(self) -> tuple[torch.Size, ...]:
        """Their shapes."""
        return tuple(p.shape for p in self.parameters)

    @staticmethod
    def of(model: nn.Module, parameters: Sequence[nn.Parameter] | None = None) -> "Trained":
        """All trainable tensors of the model, or those among `parameters`."""
        model = unwrap(model)
        layout = ParamLayout.of(model)
        by_name = dict(model.named_parameters())
        wanted = None if parameters is None else {id(p) for p in parameters}
        infos = [i for i in layout.tensors if wanted is None or id(by_name[i.name]) in wanted]
        return Trained(
            tuple(i.name for i in infos),
            tuple(i.kind for i in infos),
            tuple(i.module for i in infos),
            tuple(by_name[i.name] for i in infos),
        )


def unwrap(model: nn.Module) -> nn.Module:
    """The module inside DistributedDataParallel, DataParallel or `torch.compile`."""
    while True:
        if isinstance(model, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
            model = model.module
        elif hasattr(model, "_orig_mod"):
            model = model._orig_mod
        else:
            return model


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
    def perturbs(self) -> list[bool]:
        """Which tensors of the point are perturbed."""
        scaled = isinstance(self.raised, Scaled)
        return [x is not None for x in (self.raised.tensors if scaled else self.raised)]

    def steps(self) -> tuple[list[Tensor], float]:
        """(directions, factor) of the perturbed tensors, whose products are e."""
        if isinstance(self.raised, Scaled):
            live = self.raised.tensors if self.whole else _there(self.raised.tensors)
            if live and live[0].is_cpu:
                return live, float(self.raised.factor)
        return _there(self.e), 1.0

    @property
    def whole(self) -> bool:
        """Whether every tensor of the point is perturbed, without looking at each."""
        return self.mask is None and isinstance(self.raised, Scaled)

    def add_to(self, weights: Sequence[Tensor]) -> None:
        """Move the perturbed tensors, in the order of the point, from w to w + e in place."""
        directions, factor = self.steps()
        if directions:
            torch._foreach_add_(list(weights), directions, alpha=factor)


def _there(tensors: Sequence[Tensor | None]) -> list[Tensor]:
    return [x for x in tensors if x is not None]


def new_slots() -> dict[str, State]:
    """Empty state for every slot."""
    return {name: {} for name in SLOTS}


def ascend(
    variant: Variant, point: Point, slots: dict[str, State], u: list[Tensor] | None = None
) -> Ascent:
    """Source → radius → selector → geometry at one point; tensors of radius 0 take no part.

    u: what the source has made already.
    """
    if point.scales is not None and 0 in point.scales:
        keep = [i for i, s in enumerate(point.scales) if s != 0]
        part = ascend(variant, point.only(keep), slots)
        e: list[Tensor | None] = [None] * len(point.names)
        mask: list[MaskEntry] = [False] * len(point.names)
        for j, i in enumerate(keep):
            e[i] = part.e[j]
            mask[i] = True if part.mask is None else part.mask[j]
        return Ascent(e, mask, part.rho)
    u = variant.source(point, slots["source"]) if u is None else u
    rho = variant.radius(point, slots["radius"])
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


def squared_gradients(
    model: nn.Module,
    trained: Trained,
    losses: Callable[[Any], Tensor],
    data: Any,
    num_samples: int,
    *,
    generator: torch.Generator,
    mode: str = "eval",
    contaminated: bool = False,
    shuffle: bool = True,
) -> dict[str, Tensor]:
    """Diagonal empirical Fisher information: mean over examples of (∂ loss_i / ∂ w)², per tensor.

    num_samples examples are drawn without replacement by `generator`, or the first ones are taken
    (shuffle=False). contaminated=True adds the gradient that lies in `.grad` to the first
    example's, as released. Mode, running statistics (unless contaminated) and `.grad` are put back.
    """
    size = batch_size(data)
    if num_samples > size:
        raise LandscapeError(
            f"num_samples={num_samples} Fisher examples were asked and the data given to "
            f"set_fisher_data hold {size}; lower num_samples or give more."
        )
    order = torch.randperm(size, generator=generator) if shuffle else torch.arange(size)
    parameters = list(trained.parameters)
    grads = [p.grad for p in parameters]
    modes = {m: m.training for m in model.modules()}
    total = [torch.zeros_like(p) for p in parameters]
    model.train(mode == "train")
    try:
        with Statistics(model).frozen(not contaminated), torch.enable_grad():
            for count, i in enumerate(order[:num_samples].tolist()):
                loss = losses(select(data, slice(i, i + 1)))
                loss = (loss[0] if isinstance(loss, tuple) else loss).sum()
                sample = torch.autograd.grad(loss, parameters, allow_unused=True)
                for t, g, left in zip(total, sample, grads, strict=True):
                    if contaminated and count == 0 and left is not None:
                        g = left if g is None else left + g
                    if g is not None:
                        t.addcmul_(g, g)
    finally:
        for m, training in modes.items():
            m.training = training
    torch._foreach_div_(total, num_samples)
    return dict(zip(trained.names, total, strict=True))
