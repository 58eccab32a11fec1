"""Gradients that a step left in `.grad`, told from those that somebody has put there since."""

import sys

from torch import Tensor

from landscape.errors import LandscapeError
from landscape.sam.shards import local
from landscape.sam.trained import Trained

# On a gradient that some SAM has stepped with: its version then. Written to since, it is new.
_USED = "_landscape_version_used"


def stepped_with(trained: Trained) -> None:
    """After a step: what lies in `.grad` has been used."""
    for p in trained.parameters:
        g = p.grad
        if g is not None:
            setattr(g, _USED, g._version)


def _is_new(g: Tensor) -> bool:
    return getattr(g, _USED, None) != g._version


def all_stepped_with(trained: Trained) -> bool:
    """Whether there are gradients, and all have been used and not altered since."""
    found = [p.grad for p in trained.parameters if p.grad is not None]
    return bool(found) and not any(map(_is_new, found))


def check_nothing_left(trained: Trained) -> None:
    """Refuse to overwrite a gradient that somebody else has made."""
    named = zip(trained.names, trained.parameters, strict=True)
    new = [
        n for n, p in named
        if p.grad is not None and _is_new(p.grad) and bool(local(p.grad).any())
    ]  # fmt: skip
    if new:
        more = f" and {len(new) - 1} more" if len(new) > 1 else ""
        raise LandscapeError(
            f"step(closure) found a gradient in .grad of {new[0]!r}{more} that no step left there, "
            "and its first pass would overwrite it. To add up micro-batches, call "
            "optimizer.backward(closure) for each and then optimizer.step() (in Lightning: "
            "automatic_optimization = False instead of accumulate_grad_batches), or let one "
            "closure run all of them. If it is not wanted, call optimizer.zero_grad() first."
        )


def check_no_accumulation() -> None:
    """Refuse a step whose micro-batches a framework has left out."""
    accelerate = sys.modules.get("accelerate.state")
    shared = {} if accelerate is None else accelerate.GradientState._shared_state
    steps = (shared.get("plugin_kwargs") or {}).get("num_steps") or 1
    if steps > 1:
        raise LandscapeError(
            f"accelerate accumulates over {steps} micro-batches (gradient_accumulation_steps), and "
            "its step(closure) leaves the closures of all but the last one out. Within "
            "accelerator.accumulate(model), call optimizer.backward(closure) on this SAM for each, "
            "then step() and zero_grad() on the prepared optimizer."
        )
