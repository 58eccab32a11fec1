"""Recipes: each published variant is one function that declares itself, in four files.

`ascent`: where the step climbs; `masks`: which coordinates it perturbs; `descent`: which gradient
it then descends with; `loss`: terms added to the loss instead of a climb. The table of variants,
the names of `landscape.sam`, the README's list and the look of figures are made from them:

    python -m landscape.sam --write

A new recipe is one function under `@recipe(...)` in one of these files, and a test of its evidence.
"""

from collections.abc import Callable

from landscape.sam.recipes import ascent, descent, loss, masks
from landscape.sam.recipes.declaration import EVIDENCE, Declaration, recipe, row
from landscape.sam.variant import Variant


def declared() -> dict[str, Callable[..., Variant]]:
    """Every recipe by name, in the order of the files."""
    return {
        name: getattr(file, name)
        for file in (ascent, masks, descent, loss)
        for name in file.__all__
    }


__all__ = ["EVIDENCE", "Declaration", "declared", "recipe", "row"]
