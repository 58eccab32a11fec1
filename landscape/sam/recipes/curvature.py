"""Recipes that measure curvature: a Hessian product, or a gradient on the other side of w."""

from landscape.checks import check_count, check_fraction, check_number
from landscape.sam.curvature import HessianDescent, TowardEigenvector
from landscape.sam.descents import NormalizedTrace
from landscape.sam.geometry import Geometry
from landscape.sam.recipes.declaration import names, recipe, row
from landscape.sam.variant import Variant


@recipe(
    "Eigen-SAM",
    source="arXiv:2501.12666",
    equation="e = ρ (ĝ + α sign<g1, v> (v - <ĝ, v> ĝ)), v the top eigenvector; gd = g2",
    published="ρ 0.05, α 0.2, v every 100 steps by 5 power iterations",
    passes="2F 2B and 5 Hessian products every 100 steps",
    memory="2, 5 at an estimate",
    evidence="equation",
    disagreement=(
        "Code leaves e of norm ρ √(1 + α² sin²) (default; unit=True: ρ), takes v in eval mode "
        "(here: the mode of the step) and climbs by ρ g1 until v is first known, at step 100 (here "
        "v is known from step 0). Read and not executed."
    ),
    look=("#b8860b", "diamond"),
)
def eigen_sam(
    rho: float = 0.05,
    *,
    alpha: float = 0.2,
    every: int = 100,
    num_iterations: int = 5,
    unit: bool = False,
) -> Variant:
    """Ascent e = rho (ĝ + alpha sign<g1, v> (v - <ĝ, v> ĝ)), gd = g2 (arXiv:2501.12666).

    v, the leading eigenvector of the batch's Hessian, turns the ascent towards the sharpest
    direction. It comes from num_iterations power iterations every `every` steps. alpha = 0 is SAM.
    Needs step(losses, batch) and a loss that can be differentiated twice.
    """
    check_number("alpha", alpha, least=0)
    check_count("every", every)
    check_count("num_iterations", num_iterations)
    return row(
        "eigen_sam",
        rho,
        source=TowardEigenvector(alpha, every, num_iterations),
        geometry=Geometry(scope="global" if unit else "none"),
        needs=("per_example_losses",),
    )


@recipe(
    "SASSHA",
    source="arXiv:2502.18153",
    equation="e = ρ g1/‖g1‖; gd = m̂/(√D̂ + eps), m of g2, D of |diag H(w + e)|",
    published="ρ 0.2, lr 0.15-0.3, β 0.9 and 0.999, H every 10 steps, over decoupled weight decay",
    passes="2F 2B and a Hessian product every 10 steps",
    memory="3, 5 at an estimate",
    evidence="equation",
    disagreement=(
        "The code can let the power rise from 0.5 to 1 (default: 0.5, the paper's root). Read and "
        "not executed."
    ),
    look=("#aa3377", "x"),
)
def sassha(
    rho: float = 0.2,
    *,
    beta_1: float = 0.9,
    beta_2: float = 0.999,
    every: int = 10,
    power: float = 0.5,
    eps: float = 1e-4,
    num_samples: int = 1,
) -> Variant:
    """Descent gd = m̂/(D̂^power + eps): second-order steps at w + e, e as SAM (arXiv:2502.18153).

    m averages g2, D the absolute values of Hutchinson's estimate of diag H(w + e), made anew every
    `every` steps by num_samples probes; both without bias. Over plain SGD, whose weight_decay then
    is the method's own, decoupled. Needs step(losses, batch) and a loss that can be differentiated
    twice.
    beta_1, beta_2: decays of the averages of gradient and curvature.
    """
    check_fraction("beta_1", beta_1, one=False)
    check_fraction("beta_2", beta_2, one=False)
    check_count("every", every)
    check_fraction("power", power, zero=False)
    check_number("eps", eps, least=0, beyond=True)
    check_count("num_samples", num_samples)
    correction = HessianDescent(beta_1, beta_2, every, power, eps, num_samples)
    return row("sassha", rho, correction=correction, needs=("per_example_losses",))


@recipe(
    "CR-SAM",
    source="arXiv:2312.13555",
    equation="gd = g₊ + γ (g₊ + g₋ - 2 g1) + β (g₊ - g₋), g± at w ± e",
    published="ρ 0.1, γ 0.1, β 0.01 (script), 0.1 (class)",
    passes="3F 3B",
    memory="5",
    evidence="equation",
    disagreement="None is known: the code was read and not executed.",
    look=("#225555", "cross"),
)
def crsam(rho: float = 0.1, *, gamma: float = 0.1, beta: float = 0.01) -> Variant:
    """Descent gd = g₊ + gamma (g₊ + g₋ - 2 g1) + beta (g₊ - g₋), g± at w ± e (arXiv:2312.13555).

    Curvature-regularized SAM: finite differences along e weigh the normalized trace of the Hessian
    (gamma) and the slope (beta). gamma = beta = 0 is SAM.
    """
    check_number("gamma", gamma, least=0)
    check_number("beta", beta, least=0)
    return row("crsam", rho, correction=NormalizedTrace(gamma, beta))


__all__ = names(__name__)
