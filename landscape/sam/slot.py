"""What a slot is: every flag and hook that a step reads, with its default, and what goes together.

A slot is a function, or a frozen dataclass that derives from `Slot` and can be called. A function
says what it asks of the step by attributes of the same names: `gate.needs_g1 = False`.
"""

from collections.abc import Callable, Sequence
from functools import update_wrapper
from types import FunctionType
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from torch import Tensor

from landscape.errors import LandscapeError

Value = TypeVar("Value", covariant=True)


class Flag(Generic[Value]):
    """The default of a flag; a slot overrides it by an attribute, a field or a property."""

    def __init__(self, default: Value) -> None:
        self.default = default

    def __get__(self, slot: "Slot | None", owner: type["Slot"]) -> Value:
        return self.default


class Slot:
    """One of the eight parts of a variant; a subclass overrides what differs from these defaults.

    The call is that of its place in `landscape.sam.variant.Variant`. `state` is the slot's own
    dict, saved by `SAM.state_dict()`; point and passes are described at `variant.Point` and
    `passes.Passes`. Below, each flag and hook names the places that are asked for it.

    Example:
        >>> import dataclasses
        >>> @dataclasses.dataclass(frozen=True)
        ... class HalvedEachEpoch(sam.Slot):
        ...     rho: float = 0.05
        ...     def __call__(self, point, state):
        ...         return self.rho * 0.5**point.epoch
        >>> variant = sam.with_radius(sam.sam(), HalvedEachEpoch())
        >>> seen = sam.perturb(variant, model, losses, data, epoch=1, seed=0)
        >>> round(float(seen.norm), 6)
        0.025
    """

    if TYPE_CHECKING:  # an evaluate slot is not called

        def __call__(self, *arguments: Any, **options: Any) -> Any:
            """What its place in the variant says."""

    # ------------------------------------------------------------------------ flags: what it reads

    first_pass = Flag[bool](True)
    """Source: a first pass is made. False (MSAM): one forward and backward per step, at w + e."""

    needs_first_pass = Flag[bool](False)
    """Selector, geometry, radius, evaluate: reads g1 or what pass 1 leaves, also under a source
    without a first pass, with which it is refused."""

    needs_g1 = Flag[bool](True)
    """Gate: is asked after pass 1 (False: before it, and may close any variant). Correction: reads
    g1 after the ascent. Evaluate: its second pass does. Selector: its `after_step` does. Where
    nobody does, pass 1 may compute less and g1 is freed before pass 2."""

    needs_whole_g1 = Flag[bool](False)
    """Geometry: takes a norm of all of g1, of tensors too that the selector leaves out."""

    needs_whole_batch = Flag[bool](False)
    """Loss term: compares with outputs of the whole batch."""

    needs_e = Flag[bool](False)
    """Correction: reads e and L(w + e), which the step then leaves in the point's scratch, as "e"
    (by name), "rho" and "perturbed_loss"."""

    reads = Flag[tuple[str, ...]](())
    """Geometry, correction: what it takes from the point's scratch, where an evaluate slot that
    `leaves` it has put it."""

    remembers = Flag[bool](False)
    """Source, correction: carries gradients from step to step, which parts of one batch would
    overwrite."""

    # -------------------------------------------------------------------- flags: what it chooses

    only_one_d = Flag[bool](False)
    """Selector: chooses tensors of ndim <= 1 alone."""

    ignores_one_d = Flag[bool](False)
    """Selector, source: leaves tensors of ndim <= 1 as they are."""

    global_mask = Flag[bool](False)
    """Selector: keeps the best coordinates of the whole model."""

    parts = Flag[tuple[Any, ...]](())
    """Selector: the selectors inside it."""

    nominal = Flag[float | None](None)
    """Radius: the variant's own rho, to which a parameter group's rho is related; None: varies."""

    # -------------------------------------------------------------- flags: how evaluate runs passes

    plain_first = Flag[bool](True)
    """Pass 1 finds the gradient at w of the whole batch and of all tensors."""

    whole_batch = Flag[bool](True)
    """Both passes run on the step's whole batch."""

    takes_loss_term = Flag[bool](True)
    """A loss term is added in its passes."""

    leaves = Flag[tuple[str, ...]](())
    """What pass 1 leaves in the point's scratch for a slot that `reads` it."""

    finds_ascent = Flag[bool](False)
    """Pass 1 finds the gradient of something else than the loss at w of the whole batch, along
    which the ascent is meant to be; a counterfactual runs it too."""

    partial = Flag[bool](False)
    """Pass 2 computes gradients of the perturbed tensors only."""

    off = Flag[str]("clean")
    """With partial, the others step with g1 ("clean") or not at all ("none")."""

    micro_batches = Flag[int](1)
    """Equal parts of the batch, on each of which the whole of (g1, e, g2) runs."""

    # --------------------------------------------------------------------- hooks: when it is asked

    def first(self, passes: Any, point: Any, state: Any, only: list[bool] | None) -> Tensor:  # noqa: ARG002
        """Evaluate: pass 1; fills `.grad` and returns the loss. only: the gradients wanted."""
        return passes.backward(only=only)

    def second(self, passes: Any, point: Any, state: Any, only: list[bool] | None) -> Tensor:  # noqa: ARG002
        """Evaluate: pass 2, called at w + e; fills `.grad` and returns the loss."""
        return passes.backward(only=only)

    def active(
        self,
        *,
        names: Sequence[str],  # noqa: ARG002
        kinds: Sequence[str],  # noqa: ARG002
        modules: Sequence[str],  # noqa: ARG002
        state: Any,  # noqa: ARG002
        generator: Any,  # noqa: ARG002
    ) -> list[bool] | None:
        """Selector: the tensors that can be selected at all, before pass 1; None for all."""
        return None

    def before_pass(self, point: Any, passes: Any, state: Any) -> None:
        """Loss term: before the forward pass at w."""

    def reads_after_ascent(self, point: Any, state: Any) -> bool:  # noqa: ARG002
        """Selector: whether `after_ascent` reads g1 in this step, asked before the weights move.

        Where it does not, g1 goes before w is copied, whose memory it then has.
        """
        return self.has("after_ascent")

    def after_ascent(self, point: Any, state: Any) -> None:
        """Selector: at w + e, before pass 2."""

    def before_restore(self, point: Any, g1: list[Tensor], g2: list[Tensor], state: Any) -> None:
        """Correction: at w + e, after pass 2."""

    def closed(self, point: Any, g1: list[Tensor], state: Any) -> list[Tensor]:  # noqa: ARG002
        """Correction: gd of a step whose gate is closed."""
        return g1

    def after_step(self, point: Any, state: Any) -> None:
        """Selector, correction, loss term: after the base optimizer has stepped."""

    # ---------------------------------------------------------------------------------------------

    def has(self, hook: str) -> bool:
        """Whether the slot defines this hook, instead of doing the usual."""
        return hook in self.__dict__ or getattr(type(self), hook) is not getattr(Slot, hook)

    @property
    def title(self) -> str:
        """What messages call it."""
        return type(self).__name__


CONTRACT = tuple(n for n in vars(Slot) if not n.startswith("_") and n not in ("has", "title"))


class Function(Slot):
    """A slot made of a plain function, or of an object that does not derive from `Slot`.

    Flags and hooks that the function has are taken over; another public attribute is refused.
    """

    def __init__(self, function: Callable[..., Any], **flags: Any) -> None:
        own = {n: getattr(function, n) for n in CONTRACT if hasattr(function, n)} | flags
        if isinstance(function, FunctionType):
            _check_known(function.__name__, [*vars(function), *flags])
        self.function = function
        update_wrapper(self, function, assigned=("__module__", "__name__", "__doc__"))
        self.__dict__.update(own)

    def __call__(self, *arguments: Any) -> Any:
        """As the function."""
        return self.function(*arguments)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Function) and self.function == other.function

    def __hash__(self) -> int:
        return hash(self.function)

    def __reduce__(self) -> Any:
        """One that stands in its module under the function's name is pickled by that name."""
        name = self.__dict__.get("__name__", "")
        if getattr(self.function, "__globals__", {}).get(name) is self:
            return name
        own = {n: self.__dict__[n] for n in CONTRACT if n in self.__dict__}
        return Function, (self.function,), own

    def __repr__(self) -> str:
        return self.title

    @property
    def title(self) -> str:
        """Name of the function or class."""
        return self.__dict__.get("__name__", type(self.function).__name__)


def slot(**flags: Any) -> Callable[[Callable[..., Any]], Function]:
    """Make a function a slot with these flags."""
    return lambda function: Function(function, **flags)


def as_slot(value: Any, place: str) -> Slot:
    """The slot that a user gave for `place`, a function wrapped into one."""
    if isinstance(value, Slot) and (callable(value) or place == "evaluate"):
        return value
    runs = place == "evaluate" and all(hasattr(value, hook) for hook in ("first", "second"))
    if isinstance(value, type) or not (callable(value) or runs):
        what = f"the class {value.__name__}" if isinstance(value, type) else repr(value)
        raise LandscapeError(
            f"{place}={what} was given; a slot is a function, or an instance of a class that "
            "derives from landscape.sam.slot.Slot and can be called."
        )
    return Function(value)


def _check_known(name: str, attributes: Sequence[str]) -> None:
    unknown = [a for a in attributes if not a.startswith("_") and a not in CONTRACT]
    if unknown:
        raise LandscapeError(
            f"the slot {name} has the attribute {unknown[0]!r}, which no step reads; known are "
            f"{', '.join(CONTRACT)}."
        )


# ----------------------------------------------------------------------------- what goes together


def check_together(variant: Any) -> None:
    """Refuse a variant whose slots cannot work together, or choose what one of them does alone."""
    refuse_degenerate(variant.selector, variant.source)
    if not variant.source.first_pass:
        _check_without_first_pass(variant)
    _check_gate(variant)
    _check_evaluate(variant)


def refuse_degenerate(*slots: Any) -> None:
    """Refuse slots that together choose what one of them chooses alone.

    Norm layers own 1-D tensors, which z-score filters and centring leave as they are.
    """
    inner = [s for slot in slots for s in (slot, *slot.parts)]
    narrow = [s for s in inner if s.only_one_d]
    blind = [s for s in inner if s.ignores_one_d]
    masks = [s for s in inner if s.global_mask]
    if narrow and blind:
        raise LandscapeError(
            f"{blind[0].title} leaves 1-D tensors as they are and norm layers have no "
            "others, so beside SAM-ON it changes nothing; use sam_on alone."
        )
    if narrow and masks:
        raise LandscapeError(
            f"{masks[0].title} keeps the best coordinates of the whole model, of which "
            "norm layers hold nearly none; give it within=NormLayers() instead of intersecting."
        )


def _check_without_first_pass(variant: Any) -> None:
    """A source that makes no first pass (MSAM, noise) leaves no g1 to anybody."""
    selector, correction = variant.selector, variant.correction
    slots = (selector, *selector.parts, variant.geometry, variant.radius, variant.evaluate)
    readers = [s for s in slots if s.needs_first_pass]
    if correction.needs_g1:
        readers.append(correction)
    if variant.loss_term is not None:
        readers.append(variant.loss_term)
    if readers:
        raise LandscapeError(
            f"{readers[0].title} needs what a first pass finds, and {variant.source.title} makes "
            "none: it climbs at once; leave one of the two out."
        )


def _check_gate(variant: Any) -> None:
    """A gate that is asked before pass 1 may close any variant; one that reads g1 may not."""
    gate, evaluate = variant.gate, variant.evaluate
    if not gate.needs_g1:
        return
    first_pass = variant.source.first_pass
    if not first_pass or not evaluate.plain_first:
        what = evaluate if first_pass else variant.source
        raise LandscapeError(
            f"the gate {gate.title} is asked after the first pass, and what {what.title} of "
            f"{variant.name!r} does there is not the plain gradient that a step without ascent "
            "takes; use a gate by epoch or step (sam.window, sam.every), or set needs_g1 = False "
            "on a gate that reads no gradient."
        )


def _check_evaluate(variant: Any) -> None:
    evaluate, term, correction = variant.evaluate, variant.loss_term, variant.correction
    for reader in (variant.geometry, correction):
        for what in reader.reads:
            if what not in evaluate.leaves:
                raise LandscapeError(
                    f"{reader.title} reads what an evaluate slot leaves as {what!r}, and evaluate "
                    f"is {evaluate.title}, which leaves {', '.join(evaluate.leaves) or 'nothing'}; "
                    "take the slots of one recipe together."
                )
    if term is not None and not evaluate.takes_loss_term:
        raise LandscapeError(
            f"{evaluate.title} weighs the examples' losses itself, and {term.title} would be "
            "left out of them; leave one of the two out."
        )
    if term is not None and term.needs_whole_batch and not evaluate.whole_batch:
        raise LandscapeError(
            f"{term.title} compares with outputs of the whole batch, and {evaluate.title} runs a "
            "pass on other examples; leave one of the two out."
        )
