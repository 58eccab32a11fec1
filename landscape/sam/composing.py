"""Which slots make a variant together, and which do not, with the reason.

A slot says what it asks of the others by an attribute: `needs_first_pass` (it reads g1, or what
pass 1 leaves), `needs_whole_batch`, `plain_first = False` (its pass 1 is not the gradient at w of
the whole batch and all tensors), `needs_g1` (of a gate or a correction; True if not said).
"""

from typing import Any

from landscape.errors import LandscapeError


def check_together(variant: Any) -> None:
    """Refuse a variant whose slots cannot work together, or choose what one of them does alone."""
    refuse_degenerate(variant.selector, variant.source)
    if not getattr(variant.source, "first_pass", True):
        _check_without_first_pass(variant)
    _check_gate(variant)
    _check_evaluate(variant)


def refuse_degenerate(*slots: Any) -> None:
    """Refuse slots that together choose what one of them chooses alone.

    Norm layers own 1-D tensors, which z-score filters and centring leave as they are.
    """
    inner = [s for slot in slots for s in (slot, *getattr(slot, "selectors", ()))]
    narrow = [s for s in inner if getattr(s, "only_one_d", False)]
    blind = [s for s in inner if getattr(s, "ignores_one_d", False)]
    masks = [s for s in inner if getattr(s, "global_mask", False)]
    if narrow and blind:
        raise LandscapeError(
            f"{_name(blind[0])} leaves 1-D tensors as they are and norm layers have no "
            "others, so beside SAM-ON it changes nothing; use sam_on alone."
        )
    if narrow and masks:
        raise LandscapeError(
            f"{_name(masks[0])} keeps the best coordinates of the whole model, of which "
            "norm layers hold nearly none; give it within=NormLayers() instead of intersecting."
        )


def _check_without_first_pass(variant: Any) -> None:
    """A source that makes no first pass (MSAM) leaves no g1 to anybody."""
    selector, correction = variant.selector, variant.correction
    slots = (
        selector, *getattr(selector, "selectors", ()), variant.geometry, variant.radius,
        variant.evaluate,
    )  # fmt: skip
    readers = [s for s in slots if getattr(s, "needs_first_pass", False)]
    if getattr(correction, "needs_g1", True):
        readers.append(correction)
    if variant.loss_term is not None:
        readers.append(variant.loss_term)
    if readers:
        raise LandscapeError(
            f"{_name(readers[0])} needs what a first pass finds, and {_name(variant.source)} makes "
            "none: it climbs against the momentum alone; leave one of the two out."
        )


def _check_gate(variant: Any) -> None:
    """A gate that is asked before pass 1 may close any variant; one that reads g1 may not."""
    gate, evaluate = variant.gate, variant.evaluate
    if not getattr(gate, "needs_g1", True):
        return
    first_pass = getattr(variant.source, "first_pass", True)
    if not first_pass or not getattr(evaluate, "plain_first", True):
        what = evaluate if first_pass else variant.source
        raise LandscapeError(
            f"the gate {_name(gate)} is asked after the first pass, and what {_name(what)} of "
            f"{variant.name!r} does there is not the plain gradient that a step without ascent "
            "takes; use a gate by epoch or step (sam.window, sam.every), or set needs_g1 = False "
            "on a gate that reads no gradient."
        )


def _check_evaluate(variant: Any) -> None:
    evaluate, term = variant.evaluate, variant.loss_term
    if getattr(variant.correction, "needs_clean_part", False) and not getattr(
        evaluate, "leaves_clean_part", False
    ):
        raise LandscapeError(
            f"{_name(variant.correction)} adds the gradient that ClassWeighted leaves at w, and "
            f"evaluate is {_name(evaluate)}; use them together, as in sam.focal_sam."
        )
    if term is not None and not getattr(evaluate, "takes_loss_term", True):
        raise LandscapeError(
            f"{_name(evaluate)} weighs the examples' losses itself, and {_name(term)} would be "
            "left out of them; leave one of the two out."
        )
    if getattr(term, "needs_whole_batch", False) and not getattr(evaluate, "whole_batch", True):
        raise LandscapeError(
            f"{_name(term)} compares with outputs of the whole batch, and {_name(evaluate)} runs a "
            "pass on other examples; leave one of the two out."
        )


def _name(slot: Any) -> str:
    return getattr(slot, "__name__", type(slot).__name__)
