"""Recipes that adapt when, how far or in what steps SAM goes."""

import math

from landscape.checks import check_number
from landscape.sam import schedule
from landscape.sam.descents import AdaGradDescent, Polyak
from landscape.sam.directions import PerCoordinate
from landscape.sam.geometry import Geometry
from landscape.sam.recipes.declaration import names, recipe, row
from landscape.sam.variant import Variant


@recipe(
    "LE-SAM",
    source="arXiv:2605.10183",
    equation="e = ρ_t g1/‖g1‖, ρ_t = min(σ_t/(‖g1‖ + c), ρ_max); gd = g2",
    published="not stated where we could read",
    passes="2F 2B",
    memory="1",
    evidence="our reading",
    disagreement=(
        "No code could be read. That σ falls as a cosine to 0 over the last epochs is stated, from "
        "which epoch on is not: the last fifth here (anneal). The values of σ and ρ_max are ours."
    ),
    look=("#6699cc", "x"),
)
def lesam(
    budget: float = 0.05, *, rho_max: float = 0.5, anneal: float = 0.8, c: float = 1e-12
) -> Variant:
    """Ascent e = rho_t g1/‖g1‖, rho_t = min(budget/(‖g1‖ + c), rho_max), gd = g2.

    Loss-equated SAM (arXiv:2605.10183), in our reading: the budget σ of first-order loss increase
    g1·e is fixed instead of the radius. After the share `anneal` of the epochs it falls as a half
    cosine to 0 (anneal=1: never, and `begin_epoch` is not needed).
    """
    radius = schedule.LossBudget(budget, rho_max, c, anneal)
    return row("lesam", 0.0, radius=radius, needs=() if anneal == 1 else ("epochs",))


@recipe(
    "AE-SAM",
    source="arXiv:2304.14647",
    equation="SAM where ‖g1‖² >= μ + c_t σ, the base optimizer elsewhere",
    published="not stated where we could read",
    passes="(1 + p)F, (1 + p)B, p the share of SAM steps",
    memory="1",
    evidence="our reading",
    disagreement=(
        "No code could be read. c_t = (t/T) λ₁ + (1 - t/T) λ₂ by epochs (the paper: by steps); the "
        "values of δ, λ₁, λ₂ and the first step, which climbs, are ours."
    ),
    look=("#b8860b", "square"),
)
def aesam(
    rho: float = 0.05, *, decay: float = 0.9, lambda_1: float = -1.0, lambda_2: float = 1.0
) -> Variant:
    """SAM where ‖g1‖² >= mu + c σ, mu and σ² running moments of ‖g1‖² (arXiv:2304.14647).

    AE-SAM, in our reading: c goes linearly from lambda_2 to lambda_1 over the epochs when their
    number is known, so that with the defaults SAM acts ever more often; else c = lambda_2. As a
    gate for other variants: `sam.adaptive`.
    decay: of the running moments.
    """
    check_number("lambda_1", lambda_1, least=-math.inf)
    check_number("lambda_2", lambda_2, least=-math.inf)
    return row("aesam", rho, gate=schedule.Adaptive(decay, low=lambda_2, high=lambda_1))


@recipe(
    "LightSAM",
    source="arXiv:2505.24399",
    equation="u += ‖g1‖², e = ρ g1/√u; v += ‖g2‖², gd = g2/√v",
    published="not stated where we could read",
    passes="2F 2B",
    memory="1 (3 per coordinate)",
    evidence="equation",
    disagreement=(
        "No code was found. The forms by AdaGrad-norm and by AdaGrad are here, that by Adam is "
        "not: where its moments are corrected could not be read."
    ),
    look=("#225555", "triangle"),
)
def lightsam(rho: float = 0.05, *, per_coordinate: bool = False, initial: float = 0.0) -> Variant:
    """Ascent e = rho g1/√u, u += ‖g1‖²; descent gd = g2/√v, v += ‖g2‖² (arXiv:2505.24399).

    Both halves adapt, so that neither radius nor learning rate needs tuning; over plain SGD with
    learning rate η the step is w -= η g2/√v. per_coordinate=True: the sums are over g1² and g2² of
    each coordinate (AdaGrad). initial: u and v before the first step (the paper's ε²).
    A step whose gate is closed is the base optimizer's with g1, undivided.
    """
    check_number("initial", initial, least=0)
    correction = AdaGradDescent(per_coordinate, initial)
    if per_coordinate:
        source, geometry = PerCoordinate(initial), Geometry(scope="none")
        return row("lightsam", rho, source=source, geometry=geometry, correction=correction)
    return row("lightsam", rho, radius=schedule.AdaGradNorm(rho, initial), correction=correction)


@recipe(
    "SAM-Polyak",
    source="arXiv:2606.01827",
    equation="w' = w - γ g2, γ = min([L(w + e) - l* - <g2, e>]₊/‖g2‖², γ_b)",
    published="l* 0",
    passes="2F 2B",
    memory="2",
    evidence="equation",
    disagreement=(
        "The code was not read. The cap γ_b is the base optimizer's learning rate here, and the "
        "base is plain SGD."
    ),
    look=("#888800", "circle"),
)
def sam_polyak(rho: float = 0.05, *, lower: float = 0.0, normalized: bool = True) -> Variant:
    """SAM with a Polyak step, w' = w - γ g2 over plain SGD (arXiv:2606.01827).

    γ = min([L(w + e) - lower - <g2, e>]₊/‖g2‖², lr): the learning rate is the largest step, `lower`
    a bound of the loss from below. normalized=False: e = rho g1 (the paper's USAM form). With
    momentum or Adam as the base it is g2 that is shortened, which the paper does not treat.
    """
    check_number("lower", lower, least=-math.inf)
    geometry = Geometry(scope="global" if normalized else "none")
    return row("sam_polyak", rho, geometry=geometry, correction=Polyak(lower))


__all__ = names(__name__)
