"""Recipes that differ from SAM in the gradient that they descend with."""

from collections.abc import Sequence

from landscape.checks import check_choice, check_count, check_fraction, check_number, check_rho
from landscape.errors import LandscapeError
from landscape.sam import corrections, evaluate, schedule, selectors, sources
from landscape.sam.corrections import Blend
from landscape.sam.descents import Enhanced
from landscape.sam.evaluate import SameBatch
from landscape.sam.geometry import Geometry
from landscape.sam.metrics import Matched
from landscape.sam.recipes.declaration import names, recipe, row
from landscape.sam.variant import Variant

FEW = 3  # layers that LAGNP selects


@recipe(
    "GNP",
    source="arXiv:2202.03599",
    equation="gd = (1 - α) g1 + α g2",
    published="α 0.8, ρ 0.1 (CIFAR)",
    passes="2F 2B",
    memory="2",
    evidence="equation",
    disagreement="Code by default blends g1/‖g1‖ (unit_g1=True); default: the paper's g1.",
    look=("#6699cc", "cross"),
)
def gnp(rho: float = 0.1, *, alpha: float = 0.8, unit_g1: bool = False) -> Variant:
    """Descent gd = (1 - alpha) g1 + alpha g2, e as SAM (arXiv:2202.03599).

    The released code's default blends g1/‖g1‖ (unit_g1=True) against its own paper; ours is the
    paper's. alpha = 1 is SAM.
    """
    return row("gnp", rho, correction=Blend(alpha, unit_g1))


@recipe(
    "LAGNP",
    source="arXiv:2503.14205",
    equation="on the layers of largest ‖g1‖: gd = (1 - α) g1 + α g2",
    published="a few critical layers (abstract); numbers not stated where we could read",
    passes="2F 1B + partial B",
    memory="selected layers",
    evidence="our reading",
    disagreement=(
        "No code was found. Number of layers (default: 3), interval, averaging and α, ρ (GNP's) "
        "are options."
    ),
    look=("#8c6d1f", "diamond"),
)
def lagnp(
    rho: float = 0.1,
    *,
    alpha: float = 0.8,
    num_layers: int | None = None,
    fraction: float | None = None,
    layer: str = "module",
    every: int = 1,
    smoothing: float = 0.0,
    unit: bool = True,
) -> Variant:
    """Descent (1 - alpha) g1 + alpha g2 in the selected layers, g1 elsewhere (arXiv:2503.14205).

    LAGNP, layer-wise gradient norm penalty, in our reading: the layers of largest ‖g1_l‖ are
    selected and e = rho g1_{w'}/‖g1_{w'}‖ on them alone. What we could read of the source says "a
    few critical layers" and leaves open, so each is an option: how many (num_layers, 3 unless
    `fraction` of all layers is given instead), what a layer is (layer="module": a module with the
    parameters it owns, norm modules their own; or "tensor"), how often they are chosen (every
    steps: 1), whether norms are averaged (smoothing: 0), and whether e is normalized (unit=True, as
    in GNP; False: e = rho g1_{w'}). alpha and rho are GNP's. A model of no more layers than asked
    is perturbed whole. The second backward pass computes the selected layers' gradients only.
    """
    check_choice("layer", layer, ("module", "tensor"))
    if num_layers is not None and fraction is not None:
        raise LandscapeError(
            f"num_layers={num_layers} and fraction={fraction} were given; give one of the two."
        )
    if fraction is not None:
        check_fraction("fraction", fraction, zero=False)
    else:
        num_layers = check_count("num_layers", FEW if num_layers is None else num_layers)
    check_count("every", every)
    check_fraction("smoothing", smoothing)
    return row(
        "lagnp",
        rho,
        selector=selectors.TopLayers(num_layers, fraction or 1.0, layer, every, smoothing),
        geometry=Geometry(scope="global" if unit else "none"),
        evaluate=SameBatch(partial=True, off="clean"),
        correction=Blend(alpha),
    )


@recipe(
    "GSAM",
    source="arXiv:2203.08065",
    equation="gd = g2 - α (g1 orthogonal to g2); ρ tied to lr",
    published="α 0.4",
    passes="2F 2B",
    memory="2",
    evidence="parity",
    disagreement=(
        "Code uses rho_min in its very first step because of its schedulers; default: not. In "
        "parity: the authors' PyTorch port; their JAX code was not executed."
    ),
    look=("#b8860b", "circle"),
)
def gsam(
    rho: float = 0.05,
    *,
    alpha: float = 0.4,
    adaptive: bool = False,
    rho_min: float | None = None,
    lr_max: float | None = None,
    lr_min: float = 0.0,
) -> Variant:
    """Descent gd = g2 - alpha (g1 - <g1, ĝ2> ĝ2), e as SAM (arXiv:2203.08065 Alg. 1).

    The part of g1 orthogonal to g2 is ascended, which closes the surrogate gap L(w + e) - L(w)
    without changing the perturbed loss to first order. alpha = 0 is SAM. rho_min and lr_max (after
    warm-up) tie the radius to the learning rate, from rho at lr_max to rho_min at lr_min. adaptive:
    metric |w| in e alone, as in the authors' PyTorch code; its scheduler uses rho_min in the very
    first step, ours does not.
    """
    check_fraction("alpha", alpha)
    radius = None
    if (rho_min is None) != (lr_max is None):
        raise LandscapeError(
            f"rho_min={rho_min} and lr_max={lr_max}: give both to tie rho to the learning rate, "
            "or neither."
        )
    if rho_min is not None:
        radius = schedule.WithLearningRate(check_rho("rho", rho), rho_min, lr_max, lr_min)
    return row(
        "gsam",
        rho,
        geometry=Geometry(metric="elementwise" if adaptive else "identity"),
        radius=radius,
        correction=corrections.SurrogateGap(alpha),
    )


@recipe(
    "Stable SAM",
    source="arXiv:2401.07250",
    equation="gd = g2 ‖g1‖/‖g2‖",
    published="ρ 0.05",
    passes="2F 2B",
    memory="1",
    evidence="parity",
    disagreement=(
        "The code's example does not normalize e (normalized=False); default: it is. Its "
        "adaptive form (adaptive=True) takes the second norm at w + e; both are in parity."
    ),
    look=("#aa3377", "triangle"),
)
def stable_sam(rho: float = 0.05, *, normalized: bool = True, adaptive: bool = False) -> Variant:
    """Descent gd = g2 ‖g1‖/‖g2‖, e as SAM, or rho g1 with normalized=False (arXiv:2401.07250).

    The descent gradient keeps the size of the gradient at w, which steadies training at large rho.
    adaptive=True weighs e and both norms by |w|, the second at w + e, as released.
    """
    return row(
        "stable_sam",
        rho,
        geometry=Geometry(
            metric="elementwise" if adaptive else "identity",
            scope="global" if normalized else "none",
        ),
        correction=corrections.Stable(weighted=adaptive),
    )


@recipe(
    "LookSAM",
    source="arXiv:2203.02714",
    equation="every k steps SAM; between: gd = g1 + α ‖g1‖/‖gv‖ gv",
    published="k 5-10, α 0.7, ρ 0.1",
    passes="(1 + 1/k)F, (1 + 1/k)B",
    memory="2",
    evidence="equation",
    disagreement=(
        "A third-party implementation projects per tensor and doubles g1 between; not "
        "reproduced. Default: global (scope)."
    ),
    look=("#225555", "diamond"),
)
def looksam(rho: float = 0.1, *, k: int = 10, alpha: float = 0.7, scope: str = "global") -> Variant:
    """SAM every k steps; between them `gd = g1 + alpha ‖g1‖/‖gv‖ gv` (arXiv:2203.02714 Alg. 1).

    gv = g2 - ‖g2‖ cos(g1, g2) g1/‖g1‖ is kept from the last SAM step. Norms and projection run over
    all tensors (scope="global", the paper) or per tensor ("tensor"). A widely used third-party
    implementation works per tensor and doubles g1 on reuse steps: not reproduced. k = 1 is SAM.
    """
    check_choice("scope", scope, ("global", "tensor"))
    check_number("alpha", alpha, least=0)
    return row("looksam", rho, gate=schedule.Every(k), correction=corrections.Reuse(alpha, scope))


@recipe(
    "WSAM",
    source="arXiv:2305.15817",
    equation="gd = a g2 + (1 - a) g1, a = γ/(1 - γ), or decoupled",
    published="γ 0.9, ρ 0.05",
    passes="2F 2B",
    memory="2",
    evidence="parity",
    disagreement=(
        "In parity: a widely used third-party implementation, coupled and decoupled; the "
        "authors' own was not executed. No disagreement is known."
    ),
    look=("#661100", "cross"),
)
def wsam(
    rho: float = 0.05,
    *,
    gamma: float = 0.9,
    decouple: bool = True,
    max_norm: float | None = None,
) -> Variant:
    """Descent gd = a g2 + (1 - a) g1, a = gamma/(1 - gamma), e as SAM (arXiv:2305.15817 Alg. 1).

    decouple=True (default): the base optimizer steps with g1 and the sharpness a (g2 - g1) is
    descended afterwards with the plain learning rate. max_norm clips g2 first. gamma = 0.5 coupled
    is SAM, gamma = 0 the base.
    """
    if max_norm is not None:
        check_number("max_norm", max_norm, least=0, beyond=True)
    return row("wsam", rho, correction=corrections.Weighted(gamma, decouple, max_norm))


@recipe(
    "Focal-SAM",
    source="arXiv:2505.01660",
    equation="gd = ∇mean((1 - c) l)(w) + ∇mean(c l)(w + e), e along ∇mean(c l)(w)",
    published="sharpness 0.5, γ 1, ρ 0.2 (CIFAR-LT), 0.05 (iNaturalist)",
    passes="2F 3B",
    memory="2",
    evidence="equation",
    disagreement="The code was read and not executed; no disagreement is known.",
    look=("#888800", "x"),
    options={"class_counts": (3, 2, 1)},
)
def focal_sam(
    rho: float = 0.05,
    *,
    class_counts: Sequence[int],
    sharpness: float = 0.5,
    flat_gamma: float = 1.0,
    targets: int | str = 1,
) -> Variant:
    """Descent gd = ∇mean((1 - c) l)(w) + ∇mean(c l)(w + e), e along ∇mean(c l)(w).

    Focal-SAM (arXiv:2505.01660), c_k = sharpness (1 - n_k/N)^flat_gamma: rare classes (class_counts
    n_k of the training set) are flattened more. targets: where the labels are in a batch. Needs
    per-example losses.
    """
    counts = tuple(int(n) for n in class_counts)
    if not counts or min(counts) < 0 or sum(counts) == 0:
        raise LandscapeError(
            f"class_counts={counts} were given; give the number of training examples per class."
        )
    check_fraction("sharpness", sharpness)
    check_number("flat_gamma", flat_gamma, least=0)
    return row(
        "focal_sam",
        rho,
        evaluate=evaluate.ClassWeighted(counts, sharpness, flat_gamma, targets),
        correction=corrections.AddClean(),
        needs=("per_example_losses",),
    )


@recipe(
    "SAMPa",
    source="arXiv:2410.10683",
    equation="e = ρ h/‖h‖; gd = (1 - λ) ∇L_{t-1}(x + e) + λ h', h' = ∇L_t(x - lr h)",
    published="ρ 0.1, λ 0.2",
    passes="2F 2B, parallel in principle",
    memory="3",
    evidence="parity",
    disagreement=(
        "Code adds momentum and weight decay to the look-ahead (default) and never perturbs "
        "at λ = 0; here h is carried, as in the paper."
    ),
    look=("#4477aa", "triangle"),
)
def sampa(rho: float = 0.1, *, lmbda: float = 0.2, base_terms: bool = True) -> Variant:
    """Descent gd = (1 - lmbda) ∇L_{t-1}(x + e) + lmbda h', e = rho h/‖h‖ (arXiv:2410.10683 Alg. 1).

    h is the gradient that the step before took at its own y; h' = ∇L_t(y), y = x - lr h. Both
    gradients are independent of each other, hence parallel on two devices; here one after the
    other. base_terms: y also takes the base SGD's momentum and weight decay, as released (default);
    the paper's y does not. Released code with lmbda = 0 never perturbs, since it recovers h by
    dividing by lmbda; here h is carried, so lmbda = 0 is the paper's SAMPa-0, and with rho = 0 too
    it is the base optimizer one batch behind. The first step has e = 0 and takes its own batch
    twice. The reported loss is that at y. Needs step(losses, batch): the previous batch is kept,
    also in `state_dict()`.
    """
    check_fraction("lmbda", lmbda)
    return row(
        "sampa",
        rho,
        source=sources.Stale(),
        evaluate=evaluate.Extrapolated(base_terms),
        correction=corrections.Blend(1 - lmbda),
        needs=("previous_batch",),
    )


@recipe(
    "SAGM",
    source="arXiv:2303.10353",
    equation="e = (ρ/‖g1‖ - α) g1; gd = (g1 + g2)/2",
    published="ρ 0.05, α 0.001 or 0.0005, Adam",
    passes="2F 2B",
    memory="2",
    evidence="equation",
    disagreement=(
        "The paper, as we read it, descends the sum of both losses, the code half of it (default): "
        "a factor 2 of the learning rate. Read and not executed."
    ),
    look=("#aa3377", "cross"),
)
def sagm(rho: float = 0.05, *, alpha: float = 0.001) -> Variant:
    """Descent gd = (g1 + g2)/2, g2 at w + (rho/‖g1‖ - alpha) g1 (arXiv:2303.10353).

    Sharpness-aware gradient matching: the loss, the perturbed loss and, to first order, the gap
    between their gradients are made small together. alpha = 0 is GNP with alpha 0.5.
    """
    check_number("alpha", alpha, least=0)
    return row("sagm", rho, geometry=Matched(alpha), correction=Blend(0.5))


@recipe(
    "IRE",
    source="arXiv:2405.20763",
    equation="SAM, then w' += κ m (w' - w), m = 1 off the largest g1²",
    published="sharp share 0.1-0.4, κ 2-4, mask every 10 steps",
    passes="2F 2B",
    memory="4",
    evidence="equation",
    disagreement=(
        "The CIFAR code takes the mask from a gradient with labels drawn from the model, that for "
        "ImageNet from the batch's own gradient, as here. Read and not executed."
    ),
    look=("#661100", "x"),
)
def ire(
    rho: float = 0.05,
    *,
    kappa: float = 2.0,
    sharp: float = 0.1,
    beta: float = 0.0,
    every: int = 10,
    start_epoch: int = 0,
) -> Variant:
    """SAM whose base step w' - w is repeated kappa times on the flat coordinates: IRE.

    Implicit regularization enhancement (arXiv:2405.20763): flat are all coordinates but the
    share `sharp` with the largest average (decay beta) of g1², found anew every `every` steps, from
    epoch start_epoch on. Any base optimizer; rho = 0 enhances it alone, without a second pass, and
    so do steps whose gate is closed. kappa = 0 is SAM.
    """
    check_number("kappa", kappa, least=0)
    check_fraction("sharp", sharp)
    check_fraction("beta", beta, one=False)
    check_count("every", every)
    check_count("start_epoch", start_epoch, 0)
    return row(
        "ire",
        rho,
        gate=schedule.always if check_rho("rho", rho) > 0 else schedule.never,
        correction=Enhanced(kappa, sharp, beta, every, start_epoch),
        needs=("epochs",) if start_epoch else (),
    )


__all__ = names(__name__)
