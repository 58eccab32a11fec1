"""One step, read from top to bottom: first pass, ascent, second pass, descent."""

import contextlib
import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from landscape import devices
from landscape.errors import LandscapeError
from landscape.sam import points, replicas, schedule
from landscape.sam.batches import check_one_each
from landscape.sam.checks import check_dense, check_still_frozen, without_gradient
from landscape.sam.corrections import Blend
from landscape.sam.engine import Ascent, ascend
from landscape.sam.evaluate import SameBatch
from landscape.sam.finite import Finite, all_finite, both_finite, chosen, is_finite
from landscape.sam.geometry import scale
from landscape.sam.loss_terms import check_outputs
from landscape.sam.passes import Passes
from landscape.sam.perturbation import Perturbation
from landscape.sam.trained import Gradients, signed
from landscape.sam.variant import Point

if TYPE_CHECKING:
    from landscape.sam.optimizer import SAM


class Step:
    """One step of a variant on one batch: it leaves the descent gradient gd in `.grad`.

    g1 at w (`first_pass`) → e, weights at w + e (`ascent`) → g2 (`second_pass`), weights back at w
    → gd = correction(g1, g2) (`descent`). A gate that is closed ends it with g1 (`closed`).

    loss: at w; point: what the slots read, and read again after the base step; finite: whether all
    gradients were, on CUDA a 0-d tensor that nothing waits for.

    A tensor that the loss reaches in one of the two passes only has the gradient 0 in the other; a
    tensor reached in neither has none, and the base optimizer leaves it alone.
    """

    def __init__(self, optimizer: "SAM", passes: Passes) -> None:
        self.optimizer, self.passes = optimizer, passes
        self.variant, self.slots = optimizer.variant, optimizer.slots
        self.trained = optimizer.trained
        self.point: Point = points.make(optimizer, passes)
        self.finite: Finite = True
        self.g1: Gradients = [None] * len(self.trained.names)
        self.g2: Gradients = self.g1
        self.live: Sequence[int] = range(len(self.g1))  # the tensors of the point
        self.climbed: Sequence[int] = ()  # those of them that are perturbed
        self.ascended: Ascent | None = None
        self.perturbed_loss = self.point.loss
        self._summed: Blend | None = None
        self._overwritten = False  # g1, by pass 2

    @property
    def loss(self) -> Tensor:
        """At w; of a variant without a first pass, at w + e."""
        return self.point.loss

    def run(self) -> "Step":
        """The whole step, or one for each of equal parts of the batch (m-sharpness)."""
        self.optimizer.last = None  # its memory serves this step
        parts = self.variant.evaluate.micro_batches
        if parts > 1:
            self._run_parts(parts)
        else:
            self._run()
        return self

    def _run(self) -> None:
        is_open = self._asked_before_first_pass()
        self.first_pass(is_open)
        self._settle_first()
        if self.finite is False:
            self._remember()
        elif self._is_open(is_open):
            try:
                self.ascent()
                self.second_pass()
            finally:
                self.optimizer.weights.restore()
            self.descent()
        else:
            self.closed()

    # ------------------------------------------------------------------------------------ pass 1

    def first_pass(self, is_open: bool | None) -> None:
        """g1 at w; the plain gradient of everything when the gate is known to be closed."""
        optimizer, variant = self.optimizer, self.variant
        again = optimizer.same_rng_both_passes or optimizer.guard.due
        self.rng = devices.rng_state(optimizer.device) if again else None
        self.point.nearby.rng = self.rng if optimizer.same_rng_both_passes else None
        self.has_first = is_open is False or variant.source.first_pass
        if not self.has_first:
            return
        optimizer.guard.before_first(optimizer.model, self.trained)
        if optimizer.bn == "second":
            optimizer.buffers_before_first.save()
        only = None if is_open is False else self._restricted(is_open)
        local = optimizer.local
        with contextlib.nullcontext() if local is None else local.no_sync():
            self._add_loss_term()
            self.point.loss = self._first(is_open, only)
            if only is not None and not any(g is not None for g in self.trained.gradients()):
                only = None  # none of the tensors wanted is reached here: all take part
                self.point.loss = self._first(is_open, only)
        self._take_g1(only)

    def _first(self, is_open: bool | None, only: list[bool] | None) -> Tensor:
        if is_open is False:
            return self.passes.backward()
        evaluate, state = self.variant.evaluate, self.slots["evaluate"]
        return evaluate.first(self.passes, self.point, state, only)

    def _take_g1(self, only: Sequence[bool] | None) -> None:
        """Let the point see the tensors that have a gradient."""
        optimizer, trained = self.optimizer, self.trained
        self.g1 = replicas.own_gradients(optimizer.model, trained.gradients(self.passes.signs))
        check_dense(trained.names, self.g1)
        check_still_frozen(optimizer.model, optimizer.frozen_in_base)
        live = [i for i, g in enumerate(self.g1) if g is not None]
        if len(live) < len(self.g1):
            optimizer.known_unused = without_gradient(
                optimizer.model, trained, self.g1, only, optimizer.known_unused
            )
            # Other evaluations, and loss terms, move the weights and put them back.
            plain = self.variant.evaluate.plain_first and self.variant.loss_term is None
            if only is None and plain:
                optimizer.guard.after_first(trained, self.g1)
            self.live, self.point = live, self.point.only(live)
        self.point.gradients = [g for g in self.g1 if g is not None]

    def _restricted(self, is_open: bool | None) -> list[bool] | None:
        """Which first-pass gradients are worth computing, None for all."""
        variant, trained = self.variant, self.trained
        chosen = variant.selector.active(
            names=trained.names,
            kinds=trained.kinds,
            modules=trained.modules,
            state=self.slots["selector"],
            generator=self.optimizer.host_generator,
        )
        reads_all = (
            variant.correction.needs_g1 or is_open is None or variant.geometry.needs_whole_g1
        )
        unused = variant.evaluate.off == "none"
        return chosen if unused or not reads_all else None

    def _add_loss_term(self) -> None:
        term, state = self.variant.loss_term, self.slots["loss_term"]
        if term is None:
            return
        with self.optimizer.buffers.kept():
            term.before_pass(self.point, self.passes, state)

        def extra(outputs: Any, batch: Any) -> Tensor:
            check_outputs(outputs)
            return term(self.point, outputs, batch, state)

        self.passes.extra_loss = extra

    def _settle_first(self) -> None:
        """Whether g1 is finite; without waiting, nothing infinite may reach what a slot keeps."""
        optimizer, point = self.optimizer, self.point
        if self.has_first:
            self.finite = self._settled(is_finite(point.norm))
        if optimizer.local is not None:
            self.finite = replicas.all_agree(optimizer.local, self.finite, optimizer.device)
        if isinstance(self.finite, Tensor):
            num, known = len(point.gradients), point._norms or []
            all_of_it = chosen(self.finite, [*point.gradients, *known, point.norm])
            point.gradients = all_of_it[:num]
            *norms, point._norm = all_of_it[num:]
            point._norms = norms or None
            point.finite = self.finite

    def _settled(self, finite: Finite) -> Finite:
        """The answer of all processes that share the tensors, as a bool where it is waited for."""
        if self.trained.shards is not None:
            finite = self.trained.shards.agree(finite)
        return bool(finite) if self.optimizer.wait_for_device else finite

    def _asked_before_first_pass(self) -> bool | None:
        gate = self.variant.gate
        return None if gate.needs_g1 else gate(self.point, self.slots["gate"])

    def _is_open(self, known: bool | None) -> bool:
        optimizer, gate = self.optimizer, self.variant.gate
        is_open = gate(self.point, self.slots["gate"]) if known is None else known
        if optimizer.local is not None and gate is not schedule.always:
            is_open = replicas.all_agree(optimizer.local, bool(is_open), optimizer.device)
        return bool(is_open)

    def closed(self) -> None:
        """A step without ascent: gd is g1, or what the correction makes of it."""
        self._average_first()
        correction = self.variant.correction
        if correction.has("closed"):
            gd = correction.closed(self.point, self.point.gradients, self.slots["correction"])
            self._put(self.live, gd)
        self._remember()

    def _average_first(self) -> None:
        """Replicas climbed along their own g1; what they descend with is the mean over them."""
        if self.optimizer.local is None:
            return
        self.g1 = replicas.mean_over_replicas(self.optimizer.local, self.g1)
        self.point.gradients = [g for g in self.g1 if g is not None]
        self.point._norms = self.point._norm = None
        self._put(range(len(self.g1)), self.g1)

    # ------------------------------------------------------------------------------------ ascent

    def ascent(self) -> None:
        """The perturbation e, and the weights at w + e."""
        optimizer, variant, point = self.optimizer, self.variant, self.point
        self.ascended = ascended = ascend(variant, point, self.slots)
        point.scratch["climbed"] = True
        self.climbed = self.live
        if not ascended.whole:
            self.climbed = [i for i, on in zip(self.live, ascended.perturbs, strict=True) if on]
        if variant.correction.needs_g1:
            self._average_first()
        tensors = self.trained.tensors()
        directions, factor = ascended.steps()
        self.watch = optimizer.guard.begin(self, ascended.scaled)
        if variant.correction.needs_e:
            point.scratch["e"] = dict(zip(point.names, ascended.e, strict=True))
            point.scratch["rho"] = ascended.rho
        late = variant.selector.reads_after_ascent(point, self.slots["selector"])
        if not late:
            self._let_g1_go()
        optimizer.weights.move([tensors[i] for i in self.climbed], directions, factor)
        untrained = point.untrained() if point.also else {}
        optimizer.weights.move([untrained[n] for n in point.also], list(point.also.values()), 1.0)
        variant.selector.after_ascent(point, self.slots["selector"])
        if late:
            self._let_g1_go()
        if not optimizer.keep_perturbation:
            self.ascended = Ascent([], None, ascended.rho)

    def _let_g1_go(self) -> None:
        """Free g1 before pass 2, whose activations need the memory, where nobody reads it."""
        if self.optimizer.keep_perturbation or self._g1_is_read():
            return
        self.g1 = [None] * len(self.g1)
        self.point.forget_gradients()
        for p in self.trained.parameters:
            p.grad = None

    def _g1_is_read(self) -> bool:
        """Whether some slot reads g1 once pass 2 has begun."""
        variant, selector = self.variant, self.variant.selector
        return (
            variant.correction.needs_g1
            or variant.evaluate.needs_g1
            or (selector.has("after_step") and selector.needs_g1)
            or variant.loss_term is not None
        )

    # ------------------------------------------------------------------------------------ pass 2

    def second_pass(self) -> None:
        """g2 at w + e, with the random state and the buffers that the optimizer's options say."""
        optimizer, point = self.optimizer, self.point
        after_first = None
        if optimizer.same_rng_both_passes and self.has_first and self.rng is not None:
            after_first = devices.rng_state(optimizer.device)
            devices.set_rng_state(self.rng, optimizer.device)
        if optimizer.bn == "second" and self.has_first:
            optimizer.buffers_before_first.restore()
        self._begin_sum()
        only = None
        if self.variant.evaluate.partial:
            climbed = set(self.climbed)
            only = [i in climbed for i in range(len(self.g1))]
        # A variant without a first pass has this one alone to update running statistics.
        keep = optimizer.bn == "first" and self.has_first
        # Where a climb is looked at, so are modules that the first forward pass has made.
        beside = optimizer.buffers_at_start if self.watch is None else None
        try:
            with (
                optimizer.buffers.kept(keep, beside),
                optimizer.guard.watching(self, self.watch),
            ):
                self.perturbed_loss = self.variant.evaluate.second(
                    self.passes, point, self.slots["evaluate"], only
                )
        finally:
            if after_first is not None:
                devices.set_rng_state(after_first, optimizer.device)
        self.g2 = self.trained.gradients(self.passes.signs)
        check_dense(self.trained.names, self.g2)
        self._check_memory()
        if self.variant.correction.needs_e:
            point.scratch["perturbed_loss"] = self.passes.of_all(self.perturbed_loss)
        self._pair(only)
        self.variant.correction.before_restore(
            self.pair, self.pair.gradients, self.taken, self.slots["correction"]
        )

    def _check_memory(self) -> None:
        """A closure may write both gradients into one tensor of its own, and g1 is g2 then."""
        both = zip(self.g1, self.g2, strict=True)
        pairs = ((a, b) for a, b in both if a is not None and b is not None and a.numel())
        if self.watch is None:  # all or none: one tells
            pairs = itertools.islice(pairs, 1)
        if not any(a.data_ptr() == b.data_ptr() for a, b in pairs):
            return
        if self._g1_is_read():
            raise LandscapeError(
                "the second pass wrote its gradient into the memory of the first one's, which "
                f"{self.variant.name!r} still reads: the closure lets .grad be tensors that it "
                "keeps. Let each pass make its own: leave .grad None, or set a clone."
            )
        self.ascended = Ascent([], None, self.ascended.rho) if self.ascended else None
        self._overwritten = True

    def _pair(self, only: Sequence[bool] | None) -> None:
        """The tensors with a gradient in a pass, the point over them, and their g2."""
        reached = set(self.live) if self.has_first else set()
        if only is not None:  # the others have no second gradient by design
            reached = {i for i in reached if only[i]}
        self.where = sorted(reached | {i for i, g in enumerate(self.g2) if g is not None})
        self.taken = [self._or_zeros(self.g2, i) for i in self.where]
        self.pair = self.point
        if list(self.where) == list(self.live):
            return
        inside = {i: j for j, i in enumerate(self.live)}
        if all(i in inside for i in self.where):
            self.pair = self.point.only([inside[i] for i in self.where])
            return
        pair = points.make(self.optimizer, self.passes).only(self.where)
        pair.loss, pair.scratch, pair.finite = self.point.loss, self.point.scratch, self.finite
        pair.nearby = self.point.nearby
        if self.point.gradients:
            pair.gradients = [self._or_zeros(self.g1, i) for i in self.where]
        self.pair = pair

    def _or_zeros(self, gradients: Gradients, i: int) -> Tensor:
        g = gradients[i]
        return torch.zeros_like(self.trained.tensors()[i]) if g is None else g

    def _begin_sum(self) -> None:
        """Let autograd add g2 to c g1, so that the two are never both held (`Blend`)."""
        optimizer, variant, passes = self.optimizer, self.variant, self.passes
        blend = variant.correction
        if not (
            self.finite is True
            and not optimizer.keep_perturbation
            and self.watch is None
            and type(blend) is Blend
            and blend.may_be_summed
            and type(variant.evaluate) is SameBatch
            and variant.loss_term is None
            and not variant.source.remembers
            and not variant.selector.has("after_step")
            # A closure may clear the gradients; a scaler, replicas and shards would change c g1.
            and passes.losses is not None
            and passes.scaler is None
            and passes.averaged is None
            and passes.signs is None
            and self.trained.shards is None
        ):
            return
        self._summed = blend
        start: Gradients = [None] * len(self.g1)
        self.point.forget_gradients()
        for p in self.trained.parameters:
            p.grad = None
        for i in self.climbed if variant.evaluate.partial else self.live:
            g, self.g1[i] = self.g1[i], None
            start[i] = None if g is None else g * blend.share
        passes.start = start

    # ------------------------------------------------------------------------------------ descent

    def descent(self) -> None:
        """Descend: gd from g1 and g2, at w again."""
        optimizer, variant = self.optimizer, self.variant
        optimizer.guard.judge(self, self.watch)
        if not self.has_first:
            self.point.loss = self.pair.loss = self.perturbed_loss
        self.finite = both_finite(self.finite, self._settled(all_finite(self.g2)))
        self._remember()
        correction, pair = variant.correction, self.pair
        if self.finite is not False:
            if isinstance(self.finite, Tensor) and correction.needs_g1:
                # Without waiting: nothing infinite may reach what a correction keeps.
                pair.finite = self.finite
                pair.gradients = chosen(self.finite, pair.gradients)
                self.taken = chosen(self.finite, self.taken)
            if self._summed is not None:
                torch._foreach_mul_(self.taken, self._summed.alpha)
                gd = self.taken
            else:
                gd = correction(pair, pair.gradients, self.taken, self.slots["correction"])
            if correction.needs_e:  # and makes passes of its own
                self.finite = both_finite(self.finite, self._settled(all_finite(gd)))
            self._put(self.where, gd)
            self._put_clean()
            self.point = pair

    def _put_clean(self) -> None:
        """Tensors outside of a partial second pass step with g1, or not at all."""
        evaluate = self.variant.evaluate
        if not (evaluate.partial and evaluate.off == "clean"):
            return
        # What a source keeps may not be what a caller's clipping then alters.
        own = torch.clone if self.variant.source.remembers else lambda g: g
        rest = {
            i: own(g) for i, (p, g) in enumerate(zip(self.trained.parameters, self.g1, strict=True))
            if p.grad is None and g is not None
        }  # fmt: skip
        self._put(list(rest), list(rest.values()))

    def _put(self, where: Sequence[int], gradients: Sequence[Tensor | None]) -> None:
        """Into `.grad`, in the sign of the loss."""
        signs = self.passes.signs
        if signs is not None:
            gradients = signed(gradients, [signs[i] for i in where])
        for i, g in zip(where, gradients, strict=True):
            self.trained.put(i, g)

    def _remember(self) -> None:
        """Keep e, g1 and g2 for `SAM.perturbation`."""
        if not self.optimizer.keep_perturbation or self._overwritten:
            return
        climbed, clean = self.ascended, self.point.loss
        self.optimizer.last = Perturbation(
            names=self.trained.names,
            shapes=self.trained.shapes,
            ascent=climbed,
            live=self.live,
            g1=self.g1,
            g2=[None] * len(self.g1) if climbed is None else self.g2,
            loss_clean=clean,
            loss_perturbed=clean if climbed is None else self.perturbed_loss,
            rho=0.0 if climbed is None else climbed.rho,
            shards=self.trained.shards,
        )

    # ------------------------------------------------------------------------- parts of the batch

    def _run_parts(self, parts: int) -> None:
        """m-sharpness: gd averaged over a step on each of `parts` parts of the batch.

        A batch shorter than the first one, as the last of an epoch may be, is cut into as many
        parts as it has examples.
        """
        passes, batch = self.passes, self.passes.batch
        size = passes.batches.size(batch)
        if not size:
            raise LandscapeError("the batch holds no example; leave empty batches out.")
        usual = self.slots["evaluate"].setdefault("size", size)
        if usual < parts:
            raise LandscapeError(
                f"micro_batches={parts} were asked of a batch of {usual} examples; lower it or "
                "enlarge the batch."
            )
        parts = min(parts, size)
        bounds = [round(i * size / parts) for i in range(parts + 1)]
        total: Gradients = [None] * len(self.g1)
        loss = torch.zeros((), device=self.optimizer.device)
        finite: Finite = True
        point = self.point
        for a, b in itertools.pairwise(bounds):
            passes.batch = passes.batches.select(batch, slice(a, b))
            part = Step(self.optimizer, passes)
            part._run()
            check_one_each(passes.values, b - a)
            point = part.point
            finite = both_finite(finite, part.finite)
            loss = loss + part.loss * ((b - a) / size)
            found = scale(self.trained.gradients(passes.signs), (b - a) / size)
            total = [t if g is None else g if t is None else t + g for t, g in zip(total, found)]
        self._put(range(len(total)), total)
        self.point, self.finite = point, finite
        self.point.loss = loss
