"""Whether pass 2 really ran at w + e, seen at the first climb and at few later ones."""

import contextlib
import logging
import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from landscape import devices, vectors
from landscape.errors import LandscapeError
from landscape.sam import beside, replicas, units
from landscape.sam.buffers import Buffers
from landscape.sam.checks import check_moved_by_nobody
from landscape.sam.evaluate import SameBatch
from landscape.sam.geometry import Scaled
from landscape.sam.plain_state import PlainState, told
from landscape.sam.shards import Cut, is_cut
from landscape.sam.trained import Trained

if TYPE_CHECKING:
    from landscape.sam.optimizer import SAM
    from landscape.sam.step import Step

VISIBLE = 100  # roundings of the loss below which a change is not expected to show
STILL = 10  # by which two passes at the same weights may differ: sums in other orders

log = logging.getLogger("landscape.sam")


@dataclass
class Climb:
    """What is known of one climb that is looked at."""

    tensors: Sequence[Tensor | None] | None  # e / factor, where g2 must tell how much it changes
    factor: float | Tensor
    along_g1: float  # |g1ᵀe|, 0 without g1
    length: float  # ‖e‖, where the units of the gradient may be asked for
    buffers: Buffers
    moved: bool = False
    rng: Any = None
    last: dict[str, Any] = field(default_factory=dict)
    loss: Tensor = field(default_factory=lambda: torch.full((), torch.nan))
    unread: list[str] = field(default_factory=list)
    beside: list[str] = field(default_factory=list)  # buffers of other networks that pass 2 changed


class Guard:
    """Looks at climbs 1, 9, 65, 513, ... of an optimizer in a process; the others cost nothing.

    Pass 2 at w + e must differ from the same pass at w: same examples, random state and buffers.
    Pass 1 is that pass where nothing random and no buffer but running statistics came between;
    else pass 2 is run once more at w. Judged where |gᵀe| exceeds a hundred roundings of the loss.
    Where gᵀe and the rise of the loss are of other orders, three passes find out whether the
    gradient is that of the loss (`landscape.sam.units`).
    """

    def __init__(self) -> None:
        self.climbs = 0
        self.said = "no step has climbed yet"
        self.units = ""  # what is wrong with the gradient of `backward`, where it is stepped with
        self.left = 0.0  # norm of that gradient
        self._plain = PlainState()
        self._versions: list[int] = []  # of the weights, before the first climb's pass 1

    @property
    def due(self) -> bool:
        """Whether the next climb is looked at."""
        n = self.climbs
        return n == 0 or (n >= 8 and n & (n - 1) == 0 and n.bit_length() % 3 == 1)

    def leaves(self, gradients: Sequence[Tensor | None]) -> None:
        """What `backward` leaves in `.grad`, where its units are not those of the loss."""
        if self.units:
            self.left = _norm(gradients)

    def check_left(self, gradients: Sequence[Tensor | None]) -> None:
        """Refuse to step with a gradient of other units that nobody has unscaled or clipped."""
        said, self.units = self.units, ""
        if said and _norm(gradients) > 0.5 * self.left:
            raise LandscapeError(said)

    def before_first(self, model: nn.Module, trained: Trained) -> None:
        """A step begins, that may be the first to climb."""
        if self.climbs == 0:
            self._plain.look(model, begin=True)
            self._versions = [p._version for p in trained.parameters]

    def after_first(self, trained: Trained, gradients: Sequence[Tensor | None]) -> None:
        """Pass 1 has run, and nothing but the caller's own code has moved a weight."""
        if self.climbs == 0:
            check_moved_by_nobody(trained, gradients, self._versions)

    def begin(self, step: "Step", e: Scaled) -> Climb | None:
        """Count a climb; what is to be compared when it is looked at."""
        due, point = self.due, step.point
        if self.climbs == 0:
            self._plain.look(step.optimizer.model)
            _check_whole_ones(step)
        self.climbs += 1
        if not due:
            return None
        evaluate, along, tensors = step.variant.evaluate, 0.0, e.tensors
        if step.has_first:
            along = abs(float(point.inner(point.gradients, tensors) * e.factor))
            if evaluate.plain_first and evaluate.whole_batch:
                tensors = None  # g1 tells enough, and e can go
        length = 0.0
        if units.applies(step):
            length = float(abs(e.factor) * point.inner(e.tensors, e.tensors).sqrt())
        buffers = Buffers(step.optimizer.model, step.optimizer.frozen)
        return Climb(tensors, e.factor, along, length, buffers)

    @contextlib.contextmanager
    def watching(self, step: "Step", watch: Climb | None) -> Generator[None]:
        """Around pass 2: what it starts from, and which weights it reads."""
        if watch is None:
            yield
            return
        watch.moved = step.optimizer.weights.differ()
        watch.rng = devices.rng_state(step.optimizer.device)
        watch.buffers.save()
        with (
            _gathered_weights_read(step, watch),
            beside.changes(step.optimizer.model) as watch.beside,
        ):
            yield
        passes = step.passes
        watch.last, watch.loss = dict(passes.last), passes.last_loss

    def judge(self, step: "Step", watch: Climb | None) -> None:
        """Back at w: refuse a pass 2 that did not see e."""
        if watch is None:
            return
        if self.climbs == 1:
            self._plain.look(step.optimizer.model)
            if names := self._plain.advanced():
                log.warning("%s", told(names))
        optimizer, loss = step.optimizer, float(watch.loss)
        agree = lambda answer: replicas.agree(optimizer.model, step.trained.shards, answer)  # noqa: E731
        if not agree(_all_finite(step, loss)):
            self.climbs -= 1  # the next one is looked at instead
            return
        if not agree(not watch.unread):
            raise LandscapeError(_read_others(watch.unread))
        counts = step.has_first and optimizer.bn != "both"
        if counts and not agree(not watch.beside):
            raise LandscapeError(beside.told(watch.beside))
        rounding = _rounding(step, watch.loss)
        expected = max(watch.along_g1, _along_g2(step, watch))
        if agree(loss == 0.0 or expected <= VISIBLE * rounding * abs(loss)):
            if not agree(not units.is_suspect(step, expected, None)):
                _check_units(step, watch, rounding)
            self.said = (
                f"too small to see: e changes the loss {loss:.6g} by about {expected:.1g}, less "
                f"than {VISIBLE} roundings of it"
            )
            log.info("climb %d: %s.", self.climbs, self.said)
            return
        clean = step.point.loss
        slack = STILL * rounding * abs(loss)
        shown = _pass_1_is_comparable(step, watch) and abs(loss - float(clean)) > slack
        if not agree(shown):
            at_w, same_gradient = _again_at_w(step, watch)
            unchanged = abs(loss - at_w) <= slack and same_gradient
            if not agree(not unchanged):
                raise LandscapeError(_did_not_move(optimizer, watch, loss, expected))
            clean = at_w
        if not agree(not units.is_suspect(step, expected, loss - float(clean))):
            _check_units(step, watch, rounding)
        self.said = (
            f"climb {self.climbs} was seen: loss {float(clean):.6g} at w, {loss:.6g} at w + e"
        )


def _check_whole_ones(step: "Step") -> None:
    """Beside tensors that are cut, those that every process has whole need one gradient."""
    trained, shards = step.trained, step.trained.shards
    whole = [] if shards is None else [i for i in step.live if shards[i] is None]
    if shards is None or not whole or not step.has_first:
        return
    sizes = torch.stack([vectors.norm(g) for i in whole if (g := step.g1[i]) is not None])
    means = torch.stack([shards.mean(s) for s in sizes.unbind()])
    off = [
        trained.names[i] for i, a, b in zip(whole, sizes.tolist(), means.tolist(), strict=True)
        if abs(a - b) > math.sqrt(torch.finfo(trained.parameters[i].dtype).eps) * abs(b)
    ]  # fmt: skip
    if not shards.agree(not off):
        name = off[0] if off else trained.names[whole[0]]
        raise LandscapeError(
            f"{name!r} is whole in every process, beside tensors that are cut, and its gradient "
            f"differs between processes ({len(off)} such tensors here): nothing averages it, and "
            "the processes drift apart. Let fully_shard cut its module too (once more around the "
            "whole model takes all that is left), or average its gradient over the processes in "
            "a hook of the tensor."
        )


def _norm(gradients: Sequence[Tensor | None]) -> float:
    return math.sqrt(sum(float(vectors.norm(g)) ** 2 for g in gradients if g is not None))


def _all_finite(step: "Step", loss: float) -> bool:
    there = [g for g in step.g2 if g is not None]
    return math.isfinite(loss) and all(bool(torch.isfinite(g).all()) for g in there)


def _rounding(step: "Step", loss: Tensor) -> float:
    """Of the coarsest type among the loss and the weights."""
    types = {loss.dtype} | {step.trained.parameters[i].dtype for i in step.climbed}
    return max(torch.finfo(t).eps for t in types if t.is_floating_point)


def _along_g2(step: "Step", watch: Climb) -> float:
    """|g2ᵀe|, where it is needed."""
    if watch.tensors is None:
        return 0.0
    g2 = [step.g2[i] for i in step.live]
    return abs(float(step.point.inner(g2, watch.tensors) * watch.factor))


def _pass_1_is_comparable(step: "Step", watch: Climb) -> bool:
    """Whether pass 1 is pass 2 at w: nothing random was drawn and no buffer changed that counts."""
    return (
        step.has_first
        and type(step.variant.evaluate) is SameBatch
        and step.variant.loss_term is None
        and step.rng is not None
        and devices.same_state(step.rng, watch.rng)
        and _only_statistics_changed(step.optimizer, watch.buffers)
    )


def _only_statistics_changed(optimizer: "SAM", now: Buffers) -> bool:
    """Running statistics do not enter the outputs of a BatchNorm in training mode."""
    batch_norm = nn.modules.batchnorm._BatchNorm
    return all(
        isinstance(m, batch_norm) and m.training for m in optimizer.buffers_at_start.changed(now)
    )


def _again_at_w(step: "Step", watch: Climb) -> tuple[float, bool]:
    """The loss of pass 2 at w, and whether its gradient is that of pass 2 as well."""
    with units.repeating(step, watch.last, watch.rng, watch.buffers) as again:
        at_w, found = again()
    loss = float(at_w)
    if step.perturbed_loss is not watch.loss:  # g2 was made of several passes
        return loss, True
    eps = _rounding(step, watch.loss)
    return loss, all(
        a is b if a is None or b is None else _agree(a, b, VISIBLE * eps)
        for a, b in zip(step.g2, found, strict=True)
    )


def _check_units(step: "Step", watch: Climb, rounding: float) -> None:
    with units.repeating(step, watch.last, watch.rng, watch.buffers) as again:
        units.check(step, again, watch.length, VISIBLE * rounding)


def _agree(a: Tensor, b: Tensor, slack: float) -> bool:
    """Whether ‖a - b‖ is at most slack (‖a‖ + ‖b‖)."""
    return bool(vectors.norm(a - b) <= slack * (vectors.norm(a) + vectors.norm(b)))


@contextlib.contextmanager
def _gathered_weights_read(step: "Step", watch: Climb) -> Generator[None]:
    """Compare with w + e the whole weights that modules of `fully_shard` hold in their forward."""
    trained, handles = step.trained, []
    if trained.shards is not None:
        modules = dict(step.optimizer.model.named_modules())
        for i, name in enumerate(trained.names):
            module, cut = modules.get(trained.modules[i]), trained.shards[i]
            if module is not None and cut is not None:
                look = _reader(watch, name, trained.tensors()[i], cut)
                handles.append(module.register_forward_pre_hook(look))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _reader(watch: Climb, name: str, own: Tensor, cut: Cut) -> Any:
    def look(module: nn.Module, _: Any) -> None:
        held = module._parameters.get(name.rsplit(".", 1)[-1])
        if held is None or is_cut(held) or held.shape != cut.shape or held.dtype != own.dtype:
            return
        if not torch.equal(cut.own(held.detach()), own):
            watch.unread.append(name)

    return look


def _read_others(names: list[str]) -> str:
    what = (
        f"{names[0]!r} and {len(names) - 1} more"
        if len(names) > 1
        else repr(names[0] if names else "")
    )
    return (
        f"the second pass read other values of {what} than w + e: the weights were gathered before "
        "they moved. Call reshard() on the modules of fully_shard before the step, and let no "
        "other code keep them gathered."
    )


def _did_not_move(optimizer: "SAM", watch: Climb, loss: float, expected: float) -> str:
    begin = (
        f"the second pass did not see w + e: e changes the loss {loss:.6g} by about {expected:.3g} "
        "to first order, and loss and gradient are the same at w"
    )
    if not watch.moved:
        return (
            f"{begin}. Every entry of e is below the rounding of its weight, so that w + e = w; "
            "raise rho, or keep the weights in float32."
        )
    return (
        f"{begin}. The forward pass of {type(optimizer.model).__name__} reads other memory than "
        "the optimizer's parameters: weights gathered by sharding (FSDP), a copy or view of a "
        "weight made before the step, torch.nn.utils.parametrize.cached() around it, or a cache of "
        "weights cast to half precision. Let forward read the module's own parameters, and clear "
        "the cache in the closure."
    )
