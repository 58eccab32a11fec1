"""Recipes that ascend in several steps, or look around before they descend."""

from landscape.checks import check_count, check_fraction, check_number
from landscape.sam.descents import LookBehind, TowardMaximum
from landscape.sam.metrics import SeveralSteps
from landscape.sam.recipes.declaration import names, recipe, row
from landscape.sam.variant import Variant


@recipe(
    "XSAM",
    source="arXiv:2603.10048",
    equation="gd = ‖g2‖ s(α), s between ê and ĝ2 on the sphere, α = argmax L(w + ρ_max s(α))",
    published="ρ 0.15, ρ_max 0.3, α in 0, 0.1, ..., 2, once per epoch (CIFAR-100)",
    passes="2F 2B and 21F per epoch",
    memory="2, 6 at a search",
    evidence="equation",
    disagreement="None is known: the code was read and not executed.",
    look=("#661100", "circle"),
)
def xsam(
    rho: float = 0.15,
    *,
    rho_max: float = 0.3,
    most: float = 2.0,
    step: float = 0.1,
    num_steps: int = 1,
) -> Variant:
    """Descent gd = ‖g2‖ s(α), s(α) from ê (α = 0) through ĝ2 (α = 1) and on (arXiv:2603.10048).

    Explicit SAM: at the first step of each epoch the α of 0, step, ..., most with the largest loss
    at w + rho_max s(α) is kept for the epoch. num_steps: ascent steps of rho/num_steps each, the
    gradient being taken anew after each. Not the X-SAM of arXiv:2601.10251.
    """
    check_number("rho_max", rho_max, least=0, beyond=True)
    check_number("most", most, least=0)
    check_number("step", step, least=0, beyond=True)
    several = SeveralSteps(num_steps) if check_count("num_steps", num_steps) > 1 else None
    correction = TowardMaximum(rho_max, most, step)
    return row("xsam", rho, geometry=several, correction=correction, needs=("epochs",))


@recipe(
    "Lookbehind-SAM",
    source="arXiv:2307.16704",
    equation="x_i = x_{i-1} + ρ ĝ(w + x_{i-1}); gd = α Σ_i ∇L(w + x_i), i = 1..k",
    published="k 5, α 0.5 (class defaults)",
    passes="(k + 1)F (k + 1)B",
    memory="7",
    evidence="equation",
    disagreement=(
        "Code steps the base optimizer k times and interpolates; over plain SGD that is this gd. "
        "With momentum it is not: our reading is one base step. The k inner steps share a batch "
        "here. Read and not executed."
    ),
    look=("#888800", "square"),
)
def lookbehind_sam(rho: float = 0.05, *, k: int = 5, alpha: float | None = 0.5) -> Variant:
    """Descent gd = alpha Σ_i ∇L(w + x_i), i = 1..k, x_i = x_{i-1} + rho ĝ(w + x_{i-1}).

    Lookbehind-SAM (arXiv:2307.16704): k ascent steps back, from each of which the fast weights
    descend, and the slow ones go the share alpha of that way; alpha=None: (1 + cos)/2 per tensor,
    of the first inner step with all. k = alpha = 1 is SAM.
    """
    check_count("k", k)
    if alpha is not None:
        check_fraction("alpha", alpha, zero=False)
    return row("lookbehind_sam", rho, correction=LookBehind(k, alpha))


__all__ = names(__name__)
