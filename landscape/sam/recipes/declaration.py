"""How a recipe declares itself: what it is, what it costs, how it is known, how it looks."""

import inspect
import sys
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ParamSpec, Protocol, cast, runtime_checkable

from landscape.checks import check_choice, check_rho
from landscape.sam import schedule, selectors, sources
from landscape.sam.corrections import Descent
from landscape.sam.evaluate import SameBatch
from landscape.sam.geometry import Geometry
from landscape.sam.variant import Variant

EVIDENCE = {
    "parity": "the published optimizer's trajectory is reproduced step by step",
    "equation": "closed forms and reductions only; the source was not executed",
    "our reading": "the source is silent on a choice; every such choice is an option",
    "control": "not a published method: what others are compared with",
}
Options = ParamSpec("Options")


@dataclass(frozen=True)
class Declaration:
    """What is said of one recipe, once.

    label: its name in figures. passes: forward and backward passes per step (F, B); memory: extra
    copies of the P weights; published: the authors' values; disagreement: paper against released
    code, what stays a reading of ours, and which is the default here; evidence: a key of
    `EVIDENCE`; look: colour and symbol in figures, no other recipe's; options: those that the
    recipe requires, to make an example of it.
    """

    label: str
    equation: str
    passes: str
    memory: str
    evidence: str
    look: tuple[str, str]
    source: str = ""
    published: str = ""
    disagreement: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_choice("evidence", self.evidence, tuple(EVIDENCE))

    def text(self) -> str:
        """The facts, as the end of a docstring."""
        facts = {
            "Source": self.source,
            "Published": self.published,
            "Paper and code": self.disagreement,
            "Cost": f"{self.passes}; extra copies of the weights: {self.memory}",
            "Evidence": f"{self.evidence} ({EVIDENCE[self.evidence]})",
        }
        lines = [f"{key}: {value.rstrip('.')}." for key, value in facts.items() if value]
        return "\n".join(textwrap.fill(line, 100, subsequent_indent="    ") for line in lines)

    def example(self, name: str) -> str:
        """How the recipe `name` is made and used, as a doctest."""
        options = ", ".join(f"{key}={value!r}" for key, value in self.options.items())
        return (
            "Example:\n"
            f"    >>> variant = sam.{name}({options})\n"
            "    >>> base = torch.optim.SGD(model.parameters(), lr=0.1)\n"
            "    >>> optimizer = sam.SAM(model, base, variant, seed=0)\n"
            "    >>> optimizer.variant.name\n"
            f"    {name!r}\n"
        )


@runtime_checkable
class Recipe(Protocol[Options]):
    """A function of a variant's options, with what is said of it."""

    declaration: Declaration
    __name__: str

    def __call__(self, *arguments: Options.args, **options: Options.kwargs) -> Variant:
        """The variant."""
        ...


def recipe(label: str, **facts: Any) -> Callable[[Callable[Options, Variant]], Recipe[Options]]:
    """Declare the function below as a recipe of its file; its docstring gains the facts."""
    declaration = Declaration(label, **facts)

    def declare(function: Callable[Options, Variant]) -> Recipe[Options]:
        declared = cast("Recipe[Options]", function)
        words = (inspect.cleandoc(function.__doc__ or ""), declaration.text())
        function.__doc__ = "\n\n".join((*words, declaration.example(declared.__name__)))
        declared.declaration = declaration
        return declared

    return declare


def names(module: str) -> list[str]:
    """The recipes that a module declares, in its order."""
    found = vars(sys.modules[module])
    return [n for n, f in found.items() if getattr(f, "declaration", None) and f.__name__ == n]


def row(
    name: str,
    rho: float,
    *,
    source=sources.gradient,
    selector=selectors.everything,
    geometry=None,
    radius=None,
    gate=schedule.always,
    evaluate=None,
    correction=None,
    loss_term=None,
    needs: tuple[str, ...] = (),
) -> Variant:
    """A Variant whose unnamed slots are SAM's: g1, everything, ℓ2, constant rho, always, g2."""
    return Variant(
        name=name,
        source=source,
        selector=selector,
        geometry=Geometry() if geometry is None else geometry,
        radius=schedule.Constant(check_rho("rho", rho)) if radius is None else radius,
        gate=gate,
        evaluate=SameBatch() if evaluate is None else evaluate,
        correction=Descent() if correction is None else correction,
        loss_term=loss_term,
        needs=frozenset(needs),
    )
