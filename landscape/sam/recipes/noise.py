"""Recipes that look at noisy weights."""

from landscape.checks import check_count, check_fraction, check_number
from landscape.sam import schedule
from landscape.sam.directions import Noise
from landscape.sam.recipes.declaration import names, recipe, row
from landscape.sam.smoothed import (
    FromNoise,
    MergedNoise,
    Nothing,
    OverPrecision,
    Posterior,
    PosteriorDescent,
    Smoothed,
    Tilted,
)
from landscape.sam.variant import Variant


@recipe(
    "RandSAM",
    source="arXiv:2406.06700",
    equation="e = ρ z/‖z‖, z ~ N(0, I); gd = g2",
    passes="1F 1B",
    memory="1",
    evidence="equation",
    disagreement=(
        "The code makes a first forward pass for running statistics alone; here the one pass, at "
        "w + e, updates them. Read and not executed."
    ),
    look=("#3b528b", "square"),
)
def randsam(rho: float = 0.05) -> Variant:
    """Ascent e = rho z/‖z‖, z ~ N(0, I), gd = g2: stochastic SAM, without a gradient in the ascent.

    The control of arXiv:2406.06700 for what the direction of the ascent is worth. No first pass:
    one forward and one backward per step, and the loss returned is that at w + e.
    """
    return row("randsam", rho, source=Noise())


@recipe(
    "R-SAM",
    source="OpenReview htUvh7xPoa",
    equation="e = z + ρ ĝ(w + z), z ~ N(0, σ² I); gd = g2",
    published="not stated where we could read",
    passes="2F 2B",
    memory="2",
    evidence="our reading",
    disagreement=(
        "Abstract and descriptions alone could be read: noise first, then one ascent step from "
        "there. The law of the noise and its size are ours."
    ),
    look=("#4477aa", "cross"),
)
def rsam(rho: float = 0.05, *, sigma: float = 0.01) -> Variant:
    """Ascent e = z + rho ĝ(w + z), z ~ N(0, sigma² I), gd = g2: random SAM (NeurIPS 2022).

    In our reading: the one ascent step starts from randomly smoothed weights, in whose
    neighbourhood the gradient is steadier. sigma = 0 is SAM. The loss returned is that at w + z.
    """
    check_number("sigma", sigma, least=0)
    return row("rsam", rho, evaluate=Smoothed(sigma), geometry=FromNoise())


@recipe(
    "TSAM",
    source="arXiv:2410.22656",
    equation="gd = Σ_i softmax_i(t L(w + e_i)) ∇L(w + e_i), e_i = z_i + ρ ĝ(w + z_i)",
    published="3 samples, t 1, ρ 0.05, ‖z‖ <= 1",
    passes="2nF 2nB, n samples",
    memory="9",
    evidence="equation",
    disagreement="None is known: the code was read and not executed.",
    look=("#332288", "x"),
)
def tsam(
    rho: float = 0.05,
    *,
    num_samples: int = 3,
    tilt: float = 1.0,
    sigma: float = 1.0,
    radius: float = 1.0,
) -> Variant:
    """Descent gd = Σ_i softmax_i(tilt L(w + e_i)) ∇L(w + e_i), tilted SAM (arXiv:2410.22656).

    e_i = z_i + rho ĝ(w + z_i), z_i ~ N(0, sigma² I) shortened to the norm `radius` where it is
    longer, for num_samples draws. sigma = 0 with one sample is SAM; the loss returned is at
    w + z_1.
    """
    check_count("num_samples", num_samples)
    check_number("tilt", tilt, least=0)
    check_number("radius", radius, least=0, beyond=True)
    return row(
        "tsam",
        rho,
        evaluate=Smoothed(sigma, radius),
        geometry=FromNoise(),
        correction=Tilted(num_samples, tilt, sigma, radius),
    )


@recipe(
    "bSAM",
    source="arXiv:2210.01620",
    equation=(
        "e = ρ g/s, g at w + n/√(N s); m = β₁ m + (1 - β₁)(g2 + δ w), gd = m/s; "
        "s = β₂ s + (1 - β₂)(√s |g| + δ + γ)"
    ),
    published="lr 1, β₁ 0.9, β₂ 0.999, δ 25/N, γ 0.1, 8 sub-batches, over plain SGD",
    passes="2F 2B",
    memory="4",
    evidence="equation",
    disagreement=(
        "The code (JAX) was read and not executed. It perturbs each of 8 sub-batches on its own; "
        "here the batch is perturbed as a whole. A third-party collection takes the noise's "
        "variance for its deviation: not reproduced."
    ),
    look=("#44aa99", "circle"),
    options={"num_examples": 50_000},
)
def bsam(
    rho: float = 0.1,
    *,
    num_examples: int,
    beta_1: float = 0.9,
    beta_2: float = 0.999,
    decay: float | None = None,
    damping: float = 0.1,
    initial: float = 1.0,
) -> Variant:
    """Ascent e = rho g/s from a sample w + n/√(N s), descent gd = m/s: bSAM (arXiv:2210.01620).

    s, the precision per example of a Gaussian posterior with mean w, starts at `initial` and is
    averaged from √s |g| + decay + damping; m averages g2 + decay w. num_examples: N of the training
    set; decay None: 25/N. Over plain SGD, without momentum or weight decay of its own, of learning
    rate 1 and less. The loss returned is that at the sample.
    beta_1, beta_2: decays of the two averages.
    """
    check_count("num_examples", num_examples)
    check_fraction("beta_1", beta_1, one=False)
    check_fraction("beta_2", beta_2, one=False)
    check_number("damping", damping, least=0)
    check_number("initial", initial, least=0, beyond=True)
    decay = 25 / num_examples if decay is None else check_number("decay", decay, least=0)
    return row(
        "bsam",
        rho,
        evaluate=Posterior(num_examples, initial),
        geometry=OverPrecision(),
        correction=PosteriorDescent(beta_1, beta_2, decay, damping),
    )


@recipe(
    "Flat-LoRA",
    source="arXiv:2409.14396",
    equation="W' = W + n, n ~ N(0, (ρ_t ‖row of W + s B A‖)²/inputs); gd = ∇_{A,B} at W'",
    published="ρ 0.05",
    passes="1F 1B",
    memory="merged layers",
    evidence="equation",
    disagreement=(
        "The row of the merged weight, its division by √inputs and the half cosine of ρ_t from 0 "
        "over the training are lines of the released code, which was read and not executed. The "
        "half cosine is a reading of that code alone: the paper's words on it were not at hand"
    ),
    look=("#999933", "cross"),
    options={"scaling": 2.0, "total_steps": 1000},
)
def flat_lora(rho: float = 0.05, *, scaling: float, total_steps: int) -> Variant:
    """Noise on the merged weights under low-rank adapters, gd their gradient there.

    Flat-LoRA (arXiv:2409.14396): each frozen linear weight W under an adapter moves by
    N(0, (rho_t ‖row‖)²/n), row of the merged W + scaling B A, n its inputs; rho_t rises as a half
    cosine from 0 to rho over total_steps. scaling: lora_alpha/r (lora_alpha/√r with rank-stabilized
    adapters). The adapters are found by their names (lora_A., lora_B. as in peft); W is put back
    bit for bit. No trained weight is perturbed: `perturbation.norm` is 0.
    """
    return row(
        "flat_lora",
        rho,
        source=Nothing(),
        geometry=MergedNoise(scaling),
        radius=schedule.Rising(rho, total_steps),
    )


__all__ = names(__name__)
