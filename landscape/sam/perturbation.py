"""What a variant perturbed, or would perturb: computed from references, only when asked."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn

from landscape import devices, seeds, vectors
from landscape.errors import LandscapeError
from landscape.sam.batches import BatchCutter
from landscape.sam.buffers import Buffers, frozen_beside
from landscape.sam.engine import Ascent, ascend, new_slots
from landscape.sam.fisher import squared_gradients
from landscape.sam.nearby import Nearby
from landscape.sam.passes import Passes
from landscape.sam.points import untrained
from landscape.sam.saved import check_shapes
from landscape.sam.shards import Shards
from landscape.sam.trained import Gradients, Trained, unwrap
from landscape.sam.variant import MaskEntry, Point, State, Variant, norms_of_wholes, total_norm
from landscape.sam.weights import Weights


@dataclass
class Perturbation:
    """The perturbation e of one step; every property is computed on first use.

    names, shapes: all trained tensors. ascent: e of the tensors `live`; None without a climb.
    g1, g2: gradients at w and w + e where they were computed, of what is minimized. loss_clean,
    loss_perturbed: 0-d, in the units of the loss (equal when the step did not climb). rho: the
    radius asked of the step. note: how state was found for a counterfactual. shards: of tensors
    that are cut over processes, whose parts stand here; norm, shares, density and cosine are those
    of the whole, and asked in every process.

    Example:
        >>> seen = sam.perturb(sam.sam(0.05), model, losses, data, seed=0)
        >>> seen.climbed, round(float(sum(seen.energy_share.values())), 6)
        (True, 1.0)
    """

    names: tuple[str, ...]
    shapes: tuple[torch.Size, ...]
    ascent: Ascent | None
    live: Sequence[int]
    g1: list[Tensor | None]
    g2: list[Tensor | None]
    loss_clean: Tensor
    loss_perturbed: Tensor
    rho: float | Tensor
    note: str = ""
    shards: Shards | None = None

    @property
    def climbed(self) -> bool:
        """Whether the step had an ascent."""
        return self.ascent is not None

    @cached_property
    def masks(self) -> list[MaskEntry]:
        """Per tensor True, False or a bool tensor; all False without a climb."""
        if self.ascent is None:
            return [False] * len(self.names)
        mask = self.ascent.mask or [True] * len(self.live)
        return spread(mask, self.live, len(self.names), False)

    @cached_property
    def perturbed(self) -> list[Tensor | None]:
        """E per tensor, None where a tensor was not perturbed."""
        if self.ascent is None:
            return [None] * len(self.names)
        return spread(self.ascent.e, self.live, len(self.names))

    @cached_property
    def e(self) -> dict[str, Tensor]:
        """Perturbation per tensor, zeros where it was not perturbed."""
        filled = [
            self._zero.expand(shape) if e is None else e
            for e, shape in zip(self.perturbed, self.shapes, strict=True)
        ]
        return dict(zip(self.names, filled, strict=True))

    @cached_property
    def mask(self) -> dict[str, Tensor]:
        """Selected coordinates per tensor, bool."""
        full = [
            torch.full((), m, device=self._zero.device).expand(shape) if isinstance(m, bool) else m
            for m, shape in zip(self.masks, self.shapes, strict=True)
        ]
        return dict(zip(self.names, full, strict=True))

    @cached_property
    def norm(self) -> Tensor:
        """‖e‖, the effective radius, 0-d."""
        return total_norm(self._norms).to(self._zero.device)

    @cached_property
    def energy_share(self) -> dict[str, Tensor]:
        """‖e_l‖²/‖e‖² per tensor, summing to 1; all 0 when e = 0."""
        squares = torch.stack(self._norms).square()
        total = squares.sum()
        shares = torch.where(total > 0, squares / total, squares)
        return dict(zip(self.names, shares.unbind(), strict=True))

    @cached_property
    def density(self) -> dict[str, Tensor]:
        """Share of selected coordinates per tensor."""
        masks = list(self.mask.values())
        if self.shards is None:
            return {n: m.to(torch.float32).mean() for n, m in self.mask.items()}
        chosen = self.shards.sum([m.sum(dtype=torch.float64) for m in masks])
        sizes = self.shards.sum([torch.full_like(c, m.numel()) for c, m in zip(chosen, masks)])
        return {n: (c / s).float() for n, c, s in zip(self.names, chosen, sizes, strict=True)}

    @cached_property
    def cosine(self) -> Tensor:
        """cos(g1, g2) over the tensors that have both; NaN when there was no second pass."""
        pairs = list(zip(self.g1, self.g2, strict=True))
        both = [(None, None) if x is None or y is None else (x, y) for x, y in pairs]
        live = [(x, y) for x, y in both if x is not None and y is not None]
        found = iter(vectors.dots([x for x, _ in live], [y for _, y in live]))
        dots = self._summed([None if x is None else next(found) for x, _ in both])
        there = [x for x in dots if x is not None]
        if not there:
            return torch.full((), torch.nan)
        lengths = [self._lengths([pair[k] for pair in both]) for k in (0, 1)]
        n1, n2 = (total_norm([n for n in norms if n is not None]) for norms in lengths)
        return torch.stack(there).sum() / (n1 * n2)

    @cached_property
    def _norms(self) -> list[Tensor]:
        return [self._zero if n is None else n for n in self._lengths(self.perturbed)]

    def _lengths(self, tensors: Sequence[Tensor | None]) -> list[Tensor | None]:
        """Their norms, None where there is none."""
        return norms_of_wholes(tensors, self.shards)

    def _summed(self, values: list[Tensor | None]) -> list[Tensor | None]:
        return values if self.shards is None else self.shards.sum(values)

    @cached_property
    def _zero(self) -> Tensor:
        like = next((t for t in (*self.perturbed, *self.g1) if t is not None), self.loss_clean)
        return torch.zeros((), dtype=like.dtype, device=like.device)


def spread(values: Sequence[Any], where: Sequence[int], size: int, fill: Any = None) -> list[Any]:
    """A list of length `size` with values[j] at where[j]."""
    out = [fill] * size
    for i, value in zip(where, values, strict=True):
        out[i] = value
    return out


def perturb(
    variant: Variant,
    model: nn.Module,
    losses: Callable[[Any], Tensor],
    batch: Any,
    *,
    seed: int,
    state: dict[str, State] | None = None,
    epoch: int = 0,
    total_epochs: int | None = None,
    fisher: Callable[[int], dict[str, Tensor]] | None = None,
) -> Perturbation:
    """The perturbation e that `variant` would make here: at the model's weights, on this batch.

    losses(batch) -> (B,) per-example losses, or a scalar. The variant's own slots run, its gate
    does not: the question is where it would climb. state: slot state of a live optimizer (masks,
    averages; `SAM.counterfactual` passes its own), used as a copy. Without state, an average starts
    with this gradient, SSAM-F's mask comes from a fresh Fisher information over this batch's
    examples (all of them when there are fewer than num_samples) and SSAM-D's is its random initial
    one; `note` says so. fisher: (number of examples) -> squared gradients per tensor, in place of
    that Fisher information, whose examples pass alone and by default in eval mode. The model, its
    buffers, `.grad`, mode and random state are bit-identical afterwards, whatever is raised. Cost:
    2 gradients, plus the Fisher examples.
    By definition of the variant's slots. epoch, total_epochs: what schedules are told.

    Example:
        >>> seen = sam.perturb(sam.sam(0.05), model, losses, data, seed=0)
        >>> round(float(seen.norm), 6), tuple(seen.e["0.weight"].shape)
        (0.05, (8, 4))
    """
    if not callable(losses):
        raise LandscapeError(
            f"losses={losses!r} cannot be called; give losses(batch) -> (B,), of the model that it "
            "closes over: `lambda batch: criterion(model(batch[0]), batch[1])`."
        )
    trained = Trained.of(model)
    return counterfactual(
        variant,
        model,
        trained,
        losses,
        batch,
        state=state,
        seed=seed,
        epoch=epoch,
        total_epochs=total_epochs,
        fisher=fisher,
    )


def counterfactual(
    variant: Variant,
    model: nn.Module,
    trained: Trained,
    losses: Callable[[Any], Tensor],
    batch: Any,
    *,
    seed: int,
    state: dict[str, State] | None = None,
    epoch: int = 0,
    total_epochs: int | None = None,
    momentum: Callable[[str], Tensor | None] = lambda _: None,
    signs: Sequence[int] | None = None,
    batches: BatchCutter | None = None,
    fisher: Callable[[int], dict[str, Tensor]] | None = None,
    first: tuple[Tensor, Gradients] | None = None,
    second: bool = True,
) -> Perturbation:
    """`perturb` over the given tensors, with a base optimizer's momentum.

    first: loss and g1 of this batch here, in the place of a first pass, for a variant that makes a
    plain one. second: whether a pass at w + e follows; without it g2 is None and its loss NaN.
    """
    parameters, tensors = list(trained.parameters), trained.tensors()
    device = parameters[0].device
    if state is not None:
        shapes = {n: t.shape for n, t in zip(trained.names, tensors, strict=True)}
        check_shapes(state, shapes)
    grads = [p.grad for p in parameters]
    rng = devices.rng_state(device)
    slots = copy.deepcopy(state) if state is not None else new_slots()
    moved, frozen = Weights(model), frozen_beside(model, trained)
    passes = Passes(
        trained,
        Weights(model),
        losses=_per_example(losses),
        batch=batch,
        batches=batches or BatchCutter(),
        signs=signs,
    )
    try:
        with Buffers(model, frozen).kept(), torch.no_grad():
            point = _point(trained, device, seed, epoch, total_epochs, momentum)
            point.untrained = partial(untrained, model)
            if variant.evaluate.finds_ascent:
                loss1 = variant.evaluate.first(passes, point, slots["evaluate"], None)
                g1 = trained.gradients(signs)
            elif first is None:
                loss1, g1 = passes.backward(), trained.gradients(signs)
            else:
                loss1, g1 = first
            live = [i for i, g in enumerate(g1) if g is not None]
            point = point.only(live)
            point.gradients, point.loss = [g1[i] for i in live], loss1
            point.nearby = Nearby(passes, Buffers(model, frozen))
            own = _batch_fisher(model, trained, losses, batch, passes.batches, point)
            point.fisher = own if fisher is None else lambda count, **_: fisher(count)
            variant.selector.active(
                names=trained.names, kinds=trained.kinds, modules=trained.modules,
                state=slots["selector"], generator=point.host_generator,
            )  # fmt: skip
            ascent = ascend(variant, point, slots)
            loss2, g2 = torch.full_like(loss1, torch.nan), [None] * len(g1)
            if second:
                climbed = [p for p, on in zip(point.weights, ascent.perturbs, strict=True) if on]
                moved.move(climbed, *ascent.steps())
                frozen = point.untrained() if point.also else {}
                moved.move([frozen[n] for n in point.also], list(point.also.values()), 1.0)
                loss2, g2 = passes.backward(), trained.gradients(signs)
    finally:
        with torch.no_grad():
            moved.restore()
        for p, g in zip(parameters, grads, strict=True):
            p.grad = g
        devices.set_rng_state(rng, device)
    return Perturbation(
        names=trained.names,
        shapes=tuple(t.shape for t in tensors),
        ascent=ascent,
        live=live,
        g1=g1,
        g2=g2,
        loss_clean=loss1,
        loss_perturbed=loss2,
        rho=ascent.rho,
        note="live state" if state is not None else "no state: averages and masks start here",
        shards=trained.shards,
    )


def _per_example(losses: Callable[[Any], Tensor]) -> Callable[[Any], Any]:
    """A scalar loss passes for one example."""

    def call(batch: Any) -> Any:
        result = losses(batch)
        if isinstance(result, Tensor) and result.ndim == 0:
            return result[None]
        return result

    return call


def _point(
    trained: Trained,
    device: torch.device,
    seed: int,
    epoch: int,
    total_epochs: int | None,
    momentum: Callable[[str], Tensor | None],
):
    generator = seeds.generator(seed, purpose="sam", device=device)
    host = generator if device.type == "cpu" else seeds.generator(seed, purpose="sam")
    return Point(
        names=trained.names,
        kinds=trained.kinds,
        modules=trained.modules,
        outputs=trained.outputs,
        weights=trained.tensors(),
        gradients=[],
        shards=trained.shards,
        generator=generator,
        host_generator=host,
        epoch=epoch,
        total_epochs=total_epochs,
        momentum=momentum,
        scratch={"counterfactual": True, "names": trained.names},
    )


def _batch_fisher(
    model: nn.Module,
    trained: Trained,
    losses: Callable[[Any], Tensor],
    batch: Any,
    batches: BatchCutter,
    point: Point,
):
    def fisher(num_samples: int, **options: Any) -> dict[str, Tensor]:
        if options.get("contaminated"):
            options["contaminated"] = False  # no step has left a gradient here
        count = min(num_samples, batches.size(batch))
        return squared_gradients(
            unwrap(model), trained, losses, batch, count,
            generator=point.host_generator, batches=batches, **options,
        )  # fmt: skip

    return fisher
