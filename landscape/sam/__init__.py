"""The SAM family: variants as rows of slots, recipes, and the optimizer.

from landscape import sam
optimizer = sam.SAM(model, torch.optim.SGD(model.parameters(), lr=0.1), sam.zsharp(rho=0.05))
loss = optimizer.step(closure)                  # or optimizer.step(losses, batch)
optimizer.perturbation.energy_share             # what was perturbed
sam.perturb(sam.sam_on(0.5), model, losses, batch, seed=0)   # what another would perturb here
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from landscape.errors import LandscapeError
from landscape.sam.family import (
    async_sam,
    esam,
    focal_sam,
    gcsam,
    gsam,
    looksam,
    mesa,
    msam,
    saf,
    sampa,
    sl_sam,
    stable_sam,
    wsam,
)
from landscape.sam.geometry import Geometry
from landscape.sam.modifiers import adaptive, every, late, micro_batched, window, with_radius
from landscape.sam.optimizer import SAM
from landscape.sam.perturbation import Perturbation, perturb
from landscape.sam.recipes import (
    asam,
    fsam,
    gnp,
    lagnp,
    random_mask,
    sam,
    sam_on,
    sgd,
    ssam_d,
    ssam_f,
    topk_gradient,
    zsharp,
)
from landscape.sam.variant import Point, Variant

_RECIPES = (
    sgd, sam, asam, fsam, ssam_f, ssam_d, sam_on, zsharp, lagnp, gnp, gsam, gcsam, stable_sam, esam,
    looksam, sampa, async_sam, msam, sl_sam, wsam, focal_sam, saf, mesa, random_mask, topk_gradient,
)  # fmt: skip


def recipes() -> dict[str, Callable[..., Variant]]:
    """Every recipe by name."""
    return {f.__name__: f for f in _RECIPES}


def make(name: str, options: Mapping[str, Any] | None = None) -> Variant:
    """The variant of recipe `name` with keyword `options`; unknown names list all that exist."""
    known = recipes()
    if name not in known:
        raise LandscapeError(f"recipe {name!r} is unknown; choose one of {', '.join(known)}.")
    options = dict(options or {})
    signature = inspect.signature(known[name]).parameters
    possible = list(signature)
    unknown = [o for o in options if o not in possible]
    if unknown:
        have = f"its options are {', '.join(possible)}" if possible else "it has no options"
        raise LandscapeError(f"recipe {name!r} has no option {', '.join(unknown)}; {have}.")
    empty = inspect.Parameter.empty
    missing = [o for o, p in signature.items() if p.default is empty and o not in options]
    if missing:
        raise LandscapeError(f"recipe {name!r} needs a value for {', '.join(missing)}.")
    return known[name](**options)


__all__ = [
    "SAM",
    "Geometry",
    "Perturbation",
    "Point",
    "Variant",
    "adaptive",
    "asam",
    "async_sam",
    "esam",
    "every",
    "focal_sam",
    "fsam",
    "gcsam",
    "gnp",
    "gsam",
    "lagnp",
    "late",
    "looksam",
    "make",
    "mesa",
    "micro_batched",
    "msam",
    "perturb",
    "random_mask",
    "recipes",
    "saf",
    "sam",
    "sam_on",
    "sampa",
    "sgd",
    "sl_sam",
    "ssam_d",
    "ssam_f",
    "stable_sam",
    "topk_gradient",
    "window",
    "with_radius",
    "wsam",
    "zsharp",
]  # fmt: skip
