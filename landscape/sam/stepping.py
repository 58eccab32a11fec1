"""The descent gradient of one step: g1, the climb, g2, the correction."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from landscape.errors import LandscapeError
from landscape.sam import points, replicas
from landscape.sam.basestep import (
    Finite,
    all_finite,
    both_finite,
    is_finite,
    run_hook,
    scale_factor,
    settle,
)
from landscape.sam.checks import check_dense, check_still_there
from landscape.sam.engine import Ascent, ascend
from landscape.sam.geometry import Geometry, Scaled
from landscape.sam.loss_terms import check_outputs
from landscape.sam.passes import Passes, batch_size, rng_state, select, set_rng_state
from landscape.sam.perturbation import Perturbation
from landscape.sam.schedule import Constant, always
from landscape.sam.selectors import everything
from landscape.sam.sources import Stale
from landscape.sam.sums import Sums
from landscape.sam.variant import Point
from landscape.sam.weights import unshared

Gradients = list[Tensor | None]  # over all trained tensors


@dataclass
class First:
    """After pass 1: the point, g1 over all tensors, and which of them have a gradient."""

    point: Point
    g1: Gradients
    live: Sequence[int]
    rng: Any = None
    passed: bool = True  # False for a variant without a first pass
    u: list[Tensor] | None = None  # of a source that was asked before g1 was known to be finite
    spare: bool = False  # whether the memory of g1 may hold u and then w + e

    def forget(self) -> None:
        """Free g1, which nothing reads any more."""
        self.g1 = [None] * len(self.g1)
        self.point.gradients, self.point.known_norms = [], None


def descend(optimizer: Any, passes: Passes) -> tuple[Tensor, Point, Finite]:
    """Leave gd of the batch in `.grad`; the loss at w, the point, whether all was finite."""
    parts = getattr(optimizer.variant.evaluate, "micro_batches", 1)
    optimizer.last = None  # its memory serves this step
    optimizer.statistics_start.save()
    if parts > 1:
        return _micro_batches(optimizer, passes, parts)
    point, finite = descent_gradient(optimizer, passes)
    return point.loss, point, finite


def accumulate(optimizer: Any, passes: Passes) -> tuple[Tensor, Point]:
    """Add gd to what is in `.grad`, in the scaler's units when there is one."""
    parameters, scaler = optimizer.trained.parameters, optimizer.scaler
    earlier = [p.grad for p in parameters]
    loss, point, finite = descend(optimizer, passes)
    factor = None if scaler is None else scale_factor(optimizer, finite)
    if isinstance(finite, Tensor) and factor is None:
        factor = torch.where(finite, 1.0, torch.inf)
    if finite is False:
        optimizer.statistics_start.restore()
        if scaler is not None and all_finite(earlier):  # step() will not be called
            optimizer.skipped = optimizer.skipped + 1
    for p, before in zip(parameters, earlier, strict=True):
        if p.grad is not None and factor is not None:
            p.grad = p.grad * factor.to(p.grad.device, p.grad.dtype)
        if before is not None:
            p.grad = before if p.grad is None else before + p.grad
    return loss, point


def _micro_batches(optimizer: Any, passes: Passes, parts: int) -> tuple[Tensor, Point, Finite]:
    """m-sharpness: the descent gradient averaged over `parts` equal parts of the batch."""
    size, batch = batch_size(passes.batch), passes.batch
    if size < parts:
        raise LandscapeError(
            f"micro_batches={parts} were asked of a batch of {size} examples; lower it or enlarge "
            "the batch."
        )
    bounds = [round(i * size / parts) for i in range(parts + 1)]
    total: Gradients = [None] * len(optimizer.trained.names)
    loss, finite, point = torch.zeros((), device=optimizer.device), True, None
    for a, b in pairwise(bounds):
        passes.batch = select(batch, slice(a, b))
        point, ok = descent_gradient(optimizer, passes)
        finite = both_finite(finite, ok)
        loss = loss + point.loss * ((b - a) / size)
        for i, p in enumerate(optimizer.trained.parameters):
            if p.grad is not None:
                part = p.grad * ((b - a) / size)
                total[i] = part if total[i] is None else total[i].add_(part)
    for p, g in zip(optimizer.trained.parameters, total, strict=True):
        p.grad = g
    return loss, point, finite


def descent_gradient(optimizer: Any, passes: Passes) -> tuple[Point, Finite]:
    """Leave gd in `.grad`; returns the point and whether all gradients were finite."""
    variant, slots = optimizer.variant, optimizer.slots
    point, is_open = points.make(optimizer), None
    if not getattr(variant.gate, "needs_g1", True):
        is_open = variant.gate(point, slots["gate"])
    first = _first_pass(optimizer, passes, point, is_open)
    point = first.point
    finite: Finite = True
    if _source_first(optimizer, point):
        first.u = variant.source.direction(point, slots["source"])
        finite = is_finite(point.norm_of(first.u))
    elif first.passed:
        finite = settle(optimizer, is_finite(point.norm))
    if optimizer.local:
        finite = replicas.all_agree(optimizer.model, finite, optimizer.device)
    if finite is False:
        _remember(optimizer, first)
        return point, False
    if isinstance(finite, Tensor):
        _quarantine(point, finite)
    if is_open is None:
        is_open = variant.gate(point, slots["gate"])
    if optimizer.local and variant.gate is not always:
        is_open = replicas.all_agree(optimizer.model, bool(is_open), optimizer.device)
    if is_open:
        if first.u is not None:
            variant.source.remember(point, first.u, slots["source"])
        return _climb(optimizer, passes, first, finite)
    if optimizer.local:
        _average_first(optimizer, first)
    if variant.correction.has("closed"):
        gd = variant.correction.closed(point, point.gradients, slots["correction"])
        for i, g in zip(first.live, gd, strict=True):
            optimizer.trained.parameters[i].grad = g
    _remember(optimizer, first)
    return point, finite


def _source_first(optimizer: Any, point: Point) -> bool:
    """Whether the norm of u, which is needed anyway, can tell that g1 is finite."""
    variant, geometry = optimizer.variant, optimizer.variant.geometry
    return (
        getattr(variant.source, "order", "") == "code"
        and variant.selector is everything
        and variant.gate is always
        and isinstance(variant.radius, Constant)
        and isinstance(geometry, Geometry)
        and geometry.plain
        and point.scales is None
        and optimizer.device.type == "cpu"
    )


def _quarantine(point: Point, finite: Tensor) -> None:
    """Without waiting for the device: nothing infinite may reach what a slot keeps."""
    point.gradients = [torch.where(finite, g, 0.0) for g in point.gradients]
    norms = torch.where(finite, torch.stack(point.norms), 0.0)
    point._norms, point._norm = list(norms.unbind()), torch.where(finite, point.norm, 0.0)
    point.finite = finite


def _average_first(optimizer: Any, first: First) -> None:
    """Replicas climbed along their own g1; what they descend with is the mean over them."""
    first.g1 = replicas.mean_over_replicas(optimizer.model, first.g1)
    first.point.gradients = [first.g1[i] for i in first.live]
    first.point._norms = first.point._norm = None
    for p, g in zip(optimizer.trained.parameters, first.g1, strict=True):
        p.grad = g


def _first_pass(optimizer: Any, passes: Passes, point: Point, is_open: bool | None) -> First:
    """Pass 1; the plain gradient of everything when the gate is known to be closed."""
    variant, parameters = optimizer.variant, optimizer.trained.parameters
    rng = rng_state(optimizer.device) if optimizer.same_rng_both_passes else None
    if is_open is not False and not getattr(variant.source, "first_pass", True):
        point.loss_at = _loss_at(optimizer, passes, point.weights)
        return First(point, [None] * len(parameters), list(range(len(parameters))), rng, False)
    if optimizer.bn == "second":
        optimizer.statistics_first.save()
    with replicas.unsynced(optimizer.model) if optimizer.local else contextlib.nullcontext():
        _add_loss_term(optimizer, passes, point)
        only = _restricted(optimizer, is_open)
        if is_open is False:
            only, loss = None, passes.backward()
        else:
            loss = variant.evaluate.first(passes, point, optimizer.slots["evaluate"], only)
    g1 = replicas.own_gradients(optimizer.model, [p.grad for p in parameters])
    spare = _may_overwrite(optimizer, g1)
    live: Sequence[int] = [i for i, g in enumerate(g1) if g is not None]
    if not optimizer.dense:
        check_dense(optimizer.trained.names, g1)
        optimizer.dense = True
    if len(live) < len(g1):
        check_still_there(optimizer, g1, only)
        point = point.only(live)
        point.gradients = [g1[i] for i in live]
    else:
        live, point.gradients = range(len(g1)), g1
    point.loss = loss
    point.loss_at = _loss_at(optimizer, passes, point.weights)
    if optimizer.keep_perturbation:
        point.room = optimizer.workspace.lend if optimizer.device.type == "cpu" else None
    elif spare and _source_first(optimizer, point):
        point.room = list
    return First(point, g1, live, rng, spare=spare)


def _may_overwrite(optimizer: Any, g1: Gradients) -> bool:
    """Whether u and then w + e may be written where g1 is.

    Not where somebody else refers to it, and not with slots of others, who may keep it.
    """
    return (
        optimizer.device.type == "cpu"
        and not optimizer.trained.little
        and optimizer.own_slots
        and not isinstance(optimizer.variant.source, Stale)
        and _only_g2_matters(optimizer)
        and unshared(g1)
    )


def _loss_at(optimizer: Any, passes: Passes, weights: list[Tensor]) -> Any:
    # It must not hold the point, which holds it: a cycle would keep gradients alive.
    def loss_at(offsets: list[Tensor]) -> Tensor:
        with optimizer.statistics_second.frozen():
            return passes.loss_at(weights, offsets)

    return loss_at


def _add_loss_term(optimizer: Any, passes: Passes, point: Point) -> None:
    term, state = optimizer.variant.loss_term, optimizer.slots["loss_term"]
    if term is None:
        return
    before = getattr(term, "before_pass", None)
    if before is not None:
        with optimizer.statistics_second.frozen():
            before(point, passes, state)

    def extra(outputs: Any, batch: Any) -> Tensor:
        check_outputs(outputs)
        return term(point, outputs, batch, state)

    passes.extra_loss = extra


def _restricted(optimizer: Any, is_open: bool | None) -> list[bool] | None:
    """Which first-pass gradients are worth computing, None for all."""
    variant, trained = optimizer.variant, optimizer.trained
    active = getattr(variant.selector, "active", None)
    if active is None:
        return None
    chosen = active(
        names=trained.names,
        kinds=trained.kinds,
        modules=trained.modules,
        state=optimizer.slots["selector"],
        generator=optimizer.host_generator,
    )
    reads_all = (
        getattr(variant.correction, "needs_g1", True)
        or is_open is None
        or getattr(variant.geometry, "scope", "global") in ("full", "raw")
    )
    unused = getattr(variant.evaluate, "off", "clean") == "none"
    return chosen if unused or not reads_all else None


def _climb(optimizer: Any, passes: Passes, first: First, finite: Finite) -> tuple[Point, Finite]:
    """Perturb, run pass 2, restore by copy whatever is raised, and correct."""
    variant, slots, parameters = optimizer.variant, optimizer.slots, optimizer.trained.parameters
    ascent = ascend(variant, first.point, slots, first.u)
    first.u, first.point.scratch["climbed"] = None, True
    climbed = first.live
    if not ascent.whole:
        climbed = [i for i, on in zip(first.live, ascent.perturbs, strict=True) if on]
    if optimizer.local and getattr(variant.correction, "needs_g1", True):
        _average_first(optimizer, first)
    again = first.rng is not None and first.passed  # pass 2 is to see what pass 1 saw
    after = rng_state(optimizer.device) if again else None
    if optimizer.bn == "second" and first.passed:
        optimizer.statistics_first.restore()
    weights = [parameters[i] for i in climbed]
    try:
        over = first.spare and isinstance(ascent.raised, Scaled)
        optimizer.backup.climb(climbed, weights, *ascent.steps(), over=over)
        run_hook(variant.selector, "after_ascent", first.point, slots["selector"])
        if not optimizer.keep_perturbation:
            ascent = Ascent([], None, ascent.rho)
        if _only_g2_matters(optimizer):
            first.forget()
        if again:
            set_rng_state(first.rng, optimizer.device)
        sums = Sums.begin(optimizer, passes, first, climbed) if finite is True else None
        loss2 = _second_pass(optimizer, passes, first, climbed)
        if sums is not None:
            sums.take_out_unused(parameters, first)
        g2 = [p.grad for p in parameters]
        both, pair, taken = _both(first, g2)
        run_hook(
            variant.correction, "before_restore", pair, pair.gradients, taken, slots["correction"]
        )
    finally:
        optimizer.backup.restore()
        if after is not None:
            set_rng_state(after, optimizer.device)
    if first.point.loss is None:
        first.point.loss = pair.loss = loss2
    finite = both_finite(finite, settle(optimizer, all_finite(g2)))
    _remember(optimizer, first, ascent, g2, loss2)
    if finite is False:
        return first.point, False
    if isinstance(finite, Tensor) and getattr(variant.correction, "needs_g1", True):
        # Without waiting for the device: nothing infinite may reach what a correction keeps.
        pair.finite = finite
        pair.gradients = [torch.where(finite, g, 0.0) for g in pair.gradients]
        taken = [torch.where(finite, g, 0.0) for g in taken]
    if sums is not None:
        torch._foreach_mul_(taken, variant.correction.alpha)
        gd = taken
    else:
        gd = variant.correction(pair, pair.gradients, taken, slots["correction"])
    if gd is not taken:
        for i, g in zip(both, gd, strict=True):
            parameters[i].grad = g
    if getattr(variant.evaluate, "partial", False) and variant.evaluate.off == "clean":
        # What a source keeps may not be what a caller's clipping then alters.
        own = torch.clone if getattr(variant.source, "remembers", False) else lambda g: g
        for p, g in zip(parameters, first.g1, strict=True):
            if p.grad is None and g is not None:
                p.grad = own(g)
    return pair, finite


def _both(first: First, g2: Gradients) -> tuple[list[int], Point, list[Tensor]]:
    """The tensors with both gradients: where they are, the point over them, their g2."""
    both = [i for i in first.live if g2[i] is not None]
    if len(both) == len(g2):
        return both, first.point, g2
    if len(both) == len(first.live):
        return both, first.point, [g2[i] for i in both]
    where = {i: j for j, i in enumerate(first.live)}
    return both, first.point.only([where[i] for i in both]), [g2[i] for i in both]


def _only_g2_matters(optimizer: Any) -> bool:
    """Whether g1 can go before pass 2, whose activations need the memory."""
    variant = optimizer.variant
    selector = variant.selector
    return not (
        optimizer.keep_perturbation
        or getattr(variant.correction, "needs_g1", True)
        or getattr(variant.evaluate, "needs_g1", True)
        or (selector.has("after_step") and selector.needs_g1)
        or variant.loss_term is not None
    )


def _second_pass(optimizer: Any, passes: Passes, first: First, climbed: Sequence[int]) -> Tensor:
    evaluate, only = optimizer.variant.evaluate, None
    if getattr(evaluate, "partial", False):
        only = [i in set(climbed) for i in range(len(optimizer.trained.names))]
    # A variant without a first pass has this one alone to update running statistics.
    keep = optimizer.bn == "first" and first.passed
    with optimizer.statistics_second.frozen(keep):
        return evaluate.second(passes, first.point, optimizer.slots["evaluate"], only)


def _remember(
    optimizer: Any,
    first: First,
    ascent: Ascent | None = None,
    g2: Gradients | None = None,
    loss2: Tensor | None = None,
) -> None:
    if not optimizer.keep_perturbation:
        return
    optimizer.last = Perturbation(
        names=optimizer.trained.names,
        shapes=optimizer.trained.shapes,
        ascent=ascent,
        live=first.live,
        g1=first.g1,
        g2=g2 or [None] * len(first.g1),
        loss_clean=first.point.loss,
        loss_perturbed=first.point.loss if loss2 is None else loss2,
        rho=ascent.rho if ascent else 0.0,
    )
