"""The SAM family: variants as rows of slots, recipes, and the optimizer.

from landscape import sam
optimizer = sam.SAM(model, torch.optim.SGD(model.parameters(), lr=0.1), sam.zsharp(rho=0.05))
loss = optimizer.step(closure)                  # or optimizer.step(losses, batch)
optimizer.perturbation.energy_share             # what was perturbed
sam.perturb(sam.sam_on(0.5), model, losses, batch, seed=0)   # what another would perturb here
"""

import inspect
from collections.abc import Mapping
from typing import Any

from landscape.errors import LandscapeError
from landscape.sam.geometry import Geometry
from landscape.sam.modifiers import adaptive, every, late, micro_batched, window, with_radius
from landscape.sam.optimizer import SAM
from landscape.sam.perturbation import Perturbation, perturb
from landscape.sam.recipes import Recipe, declared
from landscape.sam.recipes.adaptive import *  # noqa: F403
from landscape.sam.recipes.ascent import *  # noqa: F403
from landscape.sam.recipes.curvature import *  # noqa: F403
from landscape.sam.recipes.descent import *  # noqa: F403
from landscape.sam.recipes.loss import *  # noqa: F403
from landscape.sam.recipes.masks import *  # noqa: F403
from landscape.sam.recipes.noise import *  # noqa: F403
from landscape.sam.recipes.outputs import *  # noqa: F403
from landscape.sam.recipes.several import *  # noqa: F403
from landscape.sam.slot import Slot
from landscape.sam.variant import Point, Variant


def recipes() -> dict[str, Recipe]:
    """Every recipe by name.

    Example:
        >>> known = sam.recipes()
        >>> known["sam"].declaration.label, len(known) > 40
        ('SAM', True)
    """
    return declared()


def make(name: str, options: Mapping[str, Any] | None = None) -> Variant:
    """The variant of recipe `name` with keyword `options`; unknown names list all that exist.

    Example:
        >>> sam.make("sam", {"rho": 0.1}).name
        'sam'
    """
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
    "Slot",
    "Variant",
    "adaptive",
    "every",
    "late",
    "make",
    "micro_batched",
    "perturb",
    "recipes",
    "window",
    "with_radius",
    *declared(),
]
