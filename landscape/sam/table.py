"""What is made from the recipes' declarations: the table, the README's list, the look of figures.

`python -m landscape.sam` prints the table; with --write it renews every file of `derived`.
"""

import dataclasses
import inspect
import itertools
import json
import re
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from landscape.sam.optimizer import SAM
from landscape.sam.recipes import EVIDENCE, Declaration, Recipe
from landscape.sam.slot import Slot
from landscape.sam.variant import Variant


def slots_of(variant: Variant) -> dict[str, str]:
    """Each slot of a variant in words of its code; what is SAM's own choice is left out."""
    usual = {"gradient", "everything", "always", "SameBatch()", "Descent()", "Geometry()", "None"}
    out = {}
    for name in ("source", "selector", "geometry", "radius", "gate", "evaluate", "correction",
                 "loss_term"):  # fmt: skip
        text = _slot_text(getattr(variant, name))
        if text not in usual:
            out[name] = text
    return out


def _slot_text(slot: Any) -> str:
    """Name of a function, or a dataclass with the fields that are not its defaults."""
    if not dataclasses.is_dataclass(slot):
        return "None" if slot is None else slot.title if isinstance(slot, Slot) else slot.__name__
    shown = [
        f"{f.name}={_slot_text(value) if callable(value) else repr(value)}"
        for f in dataclasses.fields(slot)
        if (value := getattr(slot, f.name)) != f.default
    ]
    return f"{type(slot).__name__}({', '.join(shown)})"


def table(recipes: Mapping[str, Recipe]) -> str:
    """Markdown: one section of facts per recipe, made from the rows and from the code's slots."""
    lines = [
        "# The variants",
        "",
        "Written by `python -m landscape.sam --write` from the recipes' declarations. g1, g2: "
        "gradients at w and w + e; gd: the gradient that the base optimizer steps with. Slots that "
        "are SAM's are left out.",
        "",
        *(f"- **{name}**: {text}." for name, text in EVIDENCE.items()),
        "",
        "| recipe | equation | passes | extra copies | evidence | source |",
        "|---|---|---|---|---|---|",
    ]
    for name, recipe in recipes.items():
        facts = recipe.declaration
        cells = (f"[`{name}`](#{name})", facts.equation, facts.passes, facts.memory,
                 facts.evidence, facts.source or "-")  # fmt: skip
        lines.append("| " + " | ".join(c.replace("|", "\\|") for c in cells) + " |")
    for name, recipe in recipes.items():
        lines += _section(name, recipe.declaration, recipe(**recipe.declaration.options))
    return "\n".join([*lines, "", loops(), OWN_SLOTS])


def derived(recipes: Mapping[str, Recipe]) -> dict[Path, str]:
    """Every file that follows from the declarations, with what it must hold."""
    package = Path(__file__).parents[1]
    files = {
        package / "sam" / "VARIANTS.md": table(recipes),
        package / "plot" / "recipes.json": looks(recipes),
    }
    readme = package.parent / "README.md"
    if readme.exists():  # in the repository, not in an installed package
        text = readme.read_text(encoding="utf-8")
        files[readme] = LIST.sub(lambda _: list_of(recipes), text)
    return files


def list_of(recipes: Mapping[str, Recipe]) -> str:
    """The README's sentence on how many recipes there are, and which."""
    labels = [recipe.declaration.label for recipe in recipes.values()]
    return f"{len(labels)} recipes ({', '.join(labels)})"


LIST = re.compile(r"\b\d+ recipes \(SGD, [^)]*\)")


def looks(recipes: Mapping[str, Recipe]) -> str:
    """JSON: label, look, source and equation of each recipe, for what never imports torch."""
    keys = ("label", "colour", "symbol", "source", "equation")
    found = {
        name: dict(zip(keys, (facts.label, *facts.look, facts.source, facts.equation), strict=True))
        for name, recipe in recipes.items()
        if (facts := recipe.declaration)
    }
    lines = [f"  {json.dumps(k)}: {json.dumps(v, ensure_ascii=False)}" for k, v in found.items()]
    return "{\n" + ",\n".join(lines) + "\n}\n"


def loops() -> str:
    """How a step looks in loops of other people, as the docstring of `SAM` has it."""
    text = inspect.cleandoc(SAM.__doc__ or "")
    text = text[text.index("Loops that step") : text.index("Every variant that")]
    lines = ["## In other people's loops", ""]
    for code, parts in itertools.groupby(text.strip().split("\n\n"), _is_code):
        shown = "\n\n".join(parts)
        lines += ["```python", textwrap.dedent(shown), "```", ""] if code else [shown, ""]
    return "\n".join(lines)


def _is_code(paragraph: str) -> bool:
    return paragraph.startswith("    ")


OWN_SLOTS = '''## Your own slots

A slot is a function; what it keeps between steps it puts into `state`, which is saved with the
optimizer. A zeroth-order source, from two losses along a random direction:

```python
def zeroth_order(point, state, step=1e-3):
    z = point.noise()
    up, down = (point.loss_at([sign * step * x for x in z]) for sign in (1, -1))
    return [x * ((up - down) / (2 * step)) for x in z]
```

Radii per tensor that follow its shape, as in maximal-update parametrization with perturbation
(‖e_l‖ = ρ √(fan_out/fan_in), for tensors of ndim > 1):

```python
def spectral_radii(point, u, mask, rho):
    scale = [(w.shape[0] / w[0].numel()) ** 0.5 if w.ndim > 1 else 1.0 for w in point.weights]
    return [rho * s * x / (x.norm() + 1e-12) for s, x in zip(scale, u)]


variant = dataclasses.replace(sam.sam(0.1), source=zeroth_order, geometry=spectral_radii)
```

A slot with flags, hooks or options is a frozen dataclass that derives from `sam.Slot`, whose
docstring has all of them. One that weighs the sharpness by what it is now over what it was:

```python
@dataclasses.dataclass(frozen=True)
class RelativeSharpness(sam.Slot):
    """gd = g1 + c (g2 - g1), c = (L(w + e) - L(w)) over its running average."""

    decay: float = 0.9
    needs_e = remembers = True  # reads the loss at w + e; keeps something between steps

    def __call__(self, point, g1, g2, state):
        sharpness = (point.scratch["perturbed_loss"] - point.loss).clamp(min=0.0)
        state["mean"] = torch.lerp(sharpness, state.get("mean", sharpness), self.decay)
        c = sharpness / (state["mean"] + 1e-12)
        return [a + c.to(a.dtype) * (b - a) for a, b in zip(g1, g2)]


weighed = dataclasses.replace(sam.sam(0.1), correction=RelativeSharpness())
```

One that looks further than w + e, here from a point that the ascent is carried on to:

```python
@dataclasses.dataclass(frozen=True)
class Further(sam.Slot):
    """gd = (g2 + ∇L(w + factor e))/2."""

    factor: float = 2.0
    needs_g1, needs_e = False, True

    def __call__(self, point, g1, g2, state):
        e = point.scratch["e"]
        beyond = point.gradient_at([self.factor * e[n] for n in point.names])
        return [(a + b) / 2 for a, b in zip(g2, beyond)]


further = dataclasses.replace(sam.sam(0.1), correction=Further())
```

A point also offers `value_and_gradient_at(offsets)`, `gradient_at(offsets, objective=...)` for
another objective of the outputs, `hessian_product(v, offsets)`, `noise()`, and by `untrained()` and
`also` the weights that are frozen and what is added to them at w + e.

The X-SAM of arXiv:2601.10251 is no recipe: its descent ĝ2 - α sign<g2, v> <g2, v> v, v the leading
eigenvector of the Hessian, changes with the sign of v, and an eigenvector has none. Who fixes one
(here <g1, v> ≥ 0, our reading) writes:

```python
@dataclasses.dataclass(frozen=True)
class AwayFromEigenvector(sam.Slot):
    """gd = g2/‖g2‖ - alpha |<g2, v>| v, v anew every so many steps by power iterations."""

    alpha: float = 0.2
    every: int = 100
    num_iterations: int = 5
    remembers = True

    def __call__(self, point, g1, g2, state):
        age = state["age"] = state.get("age", -1) + 1
        if age % self.every == 0:
            v = point.noise()
            for _ in range(self.num_iterations):
                v = point.hessian_product(v)
                v = [x / point.norm_of(v) for x in v]
            state["v"] = dict(zip(point.names, v))
        v = [state["v"].get(n, torch.zeros_like(g)) for n, g in zip(point.names, g2)]
        along = self.alpha * point.inner(g2, v).abs() * torch.sign(point.inner(g1, v))
        return [g / point.norm_of(g2) - along * x for g, x in zip(g2, v)]


away = dataclasses.replace(
    sam.sam(0.1),
    correction=AwayFromEigenvector(),
    needs=frozenset({"per_example_losses"}),
)
```

CSAM, DAS, SAMAR, DGSAM, δ-SAM, LORENZA and Lookahead-SAM are not among the recipes: their equations
could not be read to the end. Their authors would write them as above.
'''


def _section(name: str, declared: Declaration, variant: Variant) -> list[str]:
    facts = {
        "Source": declared.source,
        "Published": declared.published,
        "Slots": "; ".join(f"{k} = `{v}`" for k, v in slots_of(variant).items()),
        "Needs": ", ".join(sorted(variant.needs)),
        "Paper and code": declared.disagreement,
    }
    shown = [f"- {key}: {value}" for key, value in facts.items() if value]
    return [
        "",
        f"## {name}",
        "",
        f"**{declared.label}** ({declared.evidence}): {declared.equation}",
        "",
        *shown,
    ]
