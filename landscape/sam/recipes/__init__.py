"""Recipes: each published variant is one function that declares itself, in the file of its idea.

`ascent`: where the step climbs; `masks`: which coordinates it perturbs; `descent`: which gradient
it then descends with; `several`: after how many steps; `adaptive`: when and how far; `noise`,
`outputs`, `curvature`: by what else than g1 and g2; `loss`: terms added to the loss instead of a
climb. The table of variants, the names of `landscape.sam`, the README's list and the look of
figures are made from them:

    python -m landscape.sam --write

A new recipe is one function under `@recipe(...)` in one of these files, and a test of its evidence.
"""

from landscape.sam.recipes import (
    adaptive,
    ascent,
    curvature,
    descent,
    loss,
    masks,
    noise,
    outputs,
    several,
)
from landscape.sam.recipes.declaration import EVIDENCE, Declaration, Recipe, recipe, row

FILES = (ascent, masks, descent, several, adaptive, noise, outputs, curvature, loss)


def declared() -> dict[str, Recipe]:
    """Every recipe by name, in the order of the files."""
    return {name: getattr(file, name) for file in FILES for name in file.__all__}


__all__ = ["EVIDENCE", "Declaration", "Recipe", "declared", "recipe", "row"]
