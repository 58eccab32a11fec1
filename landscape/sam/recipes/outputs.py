"""Recipes that read the model's outputs: losses(batch) returns (losses, outputs)."""

from landscape.sam.objectives import Ascending, Functional, LowerBound, OutputBias
from landscape.sam.recipes.declaration import names, recipe, row
from landscape.sam.variant import Variant


@recipe(
    "BiSAM",
    source="arXiv:2407.12993",
    equation="e = ρ q/‖q‖, q = ∇mean logsumexp_j μ φ(z_j - z_y); gd = g2",
    published="ρ 0.05, μ 1, α 0.1 (CIFAR)",
    passes="2F 2B",
    memory="1",
    evidence="equation",
    disagreement="None is known: the code was read and not executed.",
    look=("#cc6677", "square"),
)
def bisam(
    rho: float = 0.05,
    *,
    surrogate: str = "log",
    mu: float = 1.0,
    alpha: float = 0.1,
    targets: int | str = 1,
) -> Variant:
    """Ascent along a lower bound of the 0-1 loss, gd = g2: BiSAM (arXiv:2407.12993).

    The bound is mean logsumexp_j mu φ(z_j - z_y) of the outputs z, φ(x) = 1 - log(1 + (e - 1)
    exp(-x)) (surrogate="log") or tanh(alpha x) ("tanh"). targets: where the labels are in a batch.
    """
    objective = LowerBound(surrogate, mu, alpha, targets)
    return row("bisam", rho, evaluate=Ascending(objective), needs=("logits",))


@recipe(
    "OBF",
    source="arXiv:2406.06700",
    equation="e = ρ q/‖q‖, q = ∇mean[(1 - a) CE(p, y) - CE(p, uniform)]; gd = g2",
    published="ρ 0.04 falling to 0.02 with the learning rate, λ 1/C, γ 1, m 64 (ImageNet)",
    passes="2F 2B",
    memory="1",
    evidence="equation",
    disagreement=(
        'The code predicts by sigmoids (prediction="sigmoid"), as its loss is binary; default: '
        "softmax. Read and not executed."
    ),
    look=("#3b528b", "diamond"),
)
def obf_sam(
    rho: float = 0.04,
    *,
    gamma: float = 1.0,
    lmbda: float | None = None,
    prediction: str = "softmax",
    targets: int | str = 1,
) -> Variant:
    """Ascent along output-bias forgetting, gd = g2: perturbed forgetting (arXiv:2406.06700).

    The perturbation ascends (1 - a) CE(p, y) - CE(p, uniform): outputs are pushed towards uniform
    ones, the more a = gamma max(0, (1 - lmbda/p_y)/(1 - lmbda)) the surer the model is of the label
    (a counts as a constant). lmbda None: 1/C. With `sam.micro_batched` as published (m = 64).
    targets: where the labels are in a batch.
    """
    objective = OutputBias(gamma, lmbda, prediction, targets)
    return row("obf_sam", rho, evaluate=Ascending(objective), needs=("logits",))


@recipe(
    "Functional SAM",
    source="arXiv:2502.02407",
    equation="e = ρ g1/‖g1‖; gd = J(w + e)ᵀ ∂L/∂z(w), z the outputs, J = ∂z/∂w",
    published="not stated where we could read",
    passes="2F 2B",
    memory="1, and the outputs' gradient",
    evidence="equation",
    disagreement=(
        "The authors' code was not found. Their preconditioned ascent is not offered: its form "
        "could be read in third-party code only."
    ),
    look=("#6699cc", "circle"),
)
def functional_sam(rho: float = 0.05) -> Variant:
    """Descent gd = J(w + e)ᵀ ∂L/∂z(w), e as SAM (arXiv:2502.02407).

    Of SAM's gradient the part that moves the outputs' Jacobian J is kept and the part that moves
    the loss's derivative with respect to the outputs z is left out: the latter flattens by
    rescaling outputs. Where the loss is linear in z it is SAM.
    """
    return row("functional_sam", rho, evaluate=Functional(), needs=("logits",))


__all__ = names(__name__)
