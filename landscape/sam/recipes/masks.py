"""Recipes that perturb some coordinates or some tensors only."""

from landscape.checks import check_choice, check_count, check_fraction, check_rho
from landscape.sam import evaluate, schedule, selectors
from landscape.sam.bandits import Bandit, RandomTensors
from landscape.sam.geometry import MATCHES, Geometry
from landscape.sam.recipes.declaration import names, recipe, row
from landscape.sam.sparse import DynamicMask, FisherMask
from landscape.sam.variant import Variant


@recipe(
    "SSAM-F",
    source="arXiv:2210.05177",
    equation="e = m ρ g1/‖g1‖, m: largest Fisher entries; gd = g2",
    published="CIFAR-10: ρ 0.1, sparsity 0.5, 16 samples, every epoch",
    passes="2F 2B + Fisher",
    memory="2",
    evidence="parity",
    disagreement=(
        "Code: train mode and a first sample that still holds the last batch's gradient "
        "(official_quirks=True, the form in parity); default: a clean Fisher in eval mode. "
        "The first mask is empty as in the code (mask_init). Its README's ρ 0.7 for ImageNet "
        "looks like a slip of 0.07."
    ),
    look=("#aa4499", "circle"),
)
def ssam_f(
    rho: float = 0.1,
    *,
    sparsity: float = 0.5,
    update_freq: int = 1,
    num_samples: int = 128,
    mask_init: str = "zeros",
    official_quirks: bool = False,
    fisher_mode: str | None = None,
) -> Variant:
    """Ascent e = m rho g1/(‖g1‖ + 1e-7), m by Fisher information (arXiv:2210.05177).

    m keeps the share 1 - sparsity of largest entries. The norm is that of the whole gradient and
    the mask comes after it, so ‖e‖ <= rho. The Fisher information of num_samples examples is
    refreshed per `update_freq` epochs after the first base step; call `set_fisher_data` and
    `begin_epoch`. Released code starts with an empty mask (one step without perturbation), keeps
    train mode and adds the last batch's gradient to the first example's: official_quirks=True does
    so too; our default is a clean Fisher in eval mode.
    fisher_mode: "eval" or "train", the mode of the model while the Fisher information is estimated.
    """
    check_fraction("sparsity", sparsity)
    check_choice("mask_init", mask_init, ("zeros", "ones"))
    check_choice("fisher_mode", fisher_mode, (None, "eval", "train"))
    check_count("update_freq", update_freq)
    check_count("num_samples", num_samples)
    mask = FisherMask(sparsity, update_freq, num_samples, mask_init, official_quirks, fisher_mode)
    geometry = Geometry(scope="full", eps=1e-7)
    return row("ssam_f", rho, selector=mask, geometry=geometry, needs=("fisher_data", "epochs"))


@recipe(
    "SSAM-D",
    source="arXiv:2210.05177",
    equation="e = m ρ g1/‖g1‖, m: drop weakest, grow others; gd = g2",
    published="ρ 0.1, sparsity 0.5, drop rate 0.5",
    passes="2F 2B",
    memory="2",
    evidence="parity",
    disagreement=(
        "Code: the live share shrinks when (1 - s) r > s (official_quirks=True, the form in "
        "parity); default: constant."
    ),
    look=("#cc79a7", "square"),
)
def ssam_d(
    rho: float = 0.1,
    *,
    sparsity: float = 0.5,
    drop_rate: float = 0.5,
    drop_strategy: str = "gradient",
    growth_strategy: str = "random",
    update_freq: int = 1,
    official_quirks: bool = False,
) -> Variant:
    """Ascent e = m rho g1/(‖g1‖ + 1e-7), m a mask that drops and grows (arXiv:2210.05177).

    Per `update_freq` epochs a cosine-annealed share of the live coordinates with the smallest drop
    score is replaced by masked ones with the largest growth score; ‖e‖ <= rho as for `ssam_f`.
    Released code caps growth by the number of masked coordinates but not dropping, so that with its
    own defaults (sparsity 0.2, drop_rate 0.5) the live share falls from 0.8 to 0.6:
    official_quirks=True; our default keeps it constant.
    drop_strategy, growth_strategy: the scores by which coordinates leave and enter the mask; a
    wrong word lists the possible ones.
    """
    strategies = ("gradient", "weight", "random")
    check_fraction("sparsity", sparsity)
    check_fraction("drop_rate", drop_rate)
    check_choice("drop_strategy", drop_strategy, strategies)
    check_choice("growth_strategy", growth_strategy, strategies)
    check_count("update_freq", update_freq)
    mask = DynamicMask(
        sparsity, drop_rate, drop_strategy, growth_strategy, update_freq, official_quirks
    )
    geometry = Geometry(scope="full", eps=1e-7)
    return row("ssam_d", rho, selector=mask, geometry=geometry, needs=("epochs",))


@recipe(
    "SAM-ON",
    source="arXiv:2306.04226",
    equation="e = ρ T² g1/‖T g1‖ on norm layers alone; gd = g2",
    published="WRN-28-10: elementwise with normalized biases (normalize_bias=True), ρ 10",
    passes="2F 2B, the first partial",
    memory="norm layers",
    evidence="parity",
    disagreement=(
        'Code selects by "norm" or "bn" in the name (match="name"); default: by module type. '
        "Layer-wise T: ‖w‖(1 + η) in the code (default), ‖w‖ + η in the paper. The code's "
        "script without flags takes T = w with its sign, which for p = 2 is |w| and for p = ∞ "
        "is not offered here."
    ),
    look=("#e69f00", "triangle"),
)
def sam_on(
    rho: float = 0.5,
    *,
    metric: str = "identity",
    eta: float = 0.0,
    p: float = 2.0,
    normalize_bias: bool = False,
    no_norm: bool = False,
    match: str = "type",
    start_epoch: int = 0,
    end_epoch: int | None = None,
) -> Variant:
    """SAM or ASAM on the weights and biases of normalization layers alone (arXiv:2306.04226).

    The norm is that of the perturbed tensors, so ‖e‖ = rho (metric="identity"). metric: "identity",
    "elementwise" |w| + eta, "layerwise" ‖w_i‖(1 + eta) (the code's form; the paper's is ‖w_i‖ +
    eta), for tensors named "weight" (T = 1 for the biases), or for the biases too with
    normalize_bias=True, as in the published command. p=math.inf: e = rho T sign(g1). no_norm=True
    perturbs everything else. match="type" (default) finds norm layers by module type; "name", as
    released, by "norm" or "bn" in the tensor's name, which misses layers named otherwise and takes
    what is nested in a module called norm*. start_epoch, end_epoch: outside them the base optimizer
    alone. The first backward pass computes the norm layers' gradients only.
    """
    check_choice("match", match, ("type", "name"))
    geometry = Geometry(
        metric=metric,
        metric_on="all" if normalize_bias else "weights",
        eta=eta,
        p=float(p),
        eps=1e-16,
    )
    whole = start_epoch == 0 and end_epoch is None
    gate = schedule.always if whole else schedule.Window(start_epoch, end_epoch)
    return row(
        "sam_on",
        rho,
        selector=selectors.NormLayers(complement=no_norm, match=match),
        geometry=geometry,
        gate=gate,
        needs=() if whole else ("epochs",),
    )


@recipe(
    "ZSharp",
    source="arXiv:2505.02369",
    equation="e = ρ f/‖f‖, f = g1·1[|z| > Q(|z|)] per tensor; gd = g2",
    published="ρ 0.05, percentile 0.95, Adam",
    passes="2F 2B",
    memory="1",
    evidence="parity",
    disagreement=(
        "Paper, as read: one norm, ‖e‖ = ρ (default). Code: a norm per tensor, ‖e‖ = ρ√(K + "
        's1) (norm_scope="tensor", the form in parity). Standard deviation and eps cannot '
        "matter. Where f = 0, f = g1."
    ),
    look=("#d55e00", "triangle"),
)
def zsharp(
    rho: float = 0.05,
    *,
    percentile: float = 0.95,
    norm_scope: str = "global",
    one_d: str = "dense",
    equal: str = "radius",
) -> Variant:
    """Ascent e = rho f/‖f‖, f = g1 · 1[|z| > Q(|z|)] per tensor (arXiv:2505.02369).

    z = (g1 - mean)/std over each tensor of ndim > 1, Q its `percentile`-quantile; the raw gradient
    is kept, not z. Tensors of ndim <= 1 are unfiltered (one_d="dense", released) or unperturbed
    ("none"). norm_scope="global" (default, as we read the paper): one norm, ‖e‖ = rho. "tensor"
    (released code): every tensor of ndim > 1 is scaled to rho on its own and the others by the
    whole gradient's norm, so that ‖e‖ = rho √(K + s1), K tensors of ndim > 1 and s1 the others'
    share of ‖g1‖²: a radius 4-8 times SAM's on a ResNet at equal rho. Where a filter keeps nothing
    (all entries equal), its tensor is perturbed unfiltered with "tensor", as released; with
    "global" g1 is taken unfiltered where nothing at all is kept. equal="loss_increase": see
    `topk_gradient`.
    """
    check_fraction("percentile", percentile, one=False)
    check_choice("norm_scope", norm_scope, ("global", "tensor"))
    check_choice("one_d", one_d, selectors.ONE_D)
    return row(
        "zsharp",
        rho,
        selector=selectors.ZScore(percentile, one_d, fallback=norm_scope == "global"),
        geometry=Geometry(scope=norm_scope, match=equal),
    )


@recipe(
    "ESAM",
    source="arXiv:2110.03141",
    equation=(
        "e = ρ g1/(β ‖g1‖) on random tensors; gd = gradient of the examples whose loss rose most"
    ),
    published="β 0.6, γ 0.5, ρ 0.05",
    passes="(2 + γ)F, partial B + γB",
    memory="1",
    evidence="parity",
    disagreement=(
        "Paper: random weights, γB examples; code (default): random tensors, one example "
        "fewer (strict)."
    ),
    look=("#cc6677", "x"),
)
def esam(
    rho: float = 0.05, *, beta: float = 0.6, gamma: float = 0.5, strict: bool = True
) -> Variant:
    """Stochastic weight perturbation and sharpness-sensitive data selection (arXiv:2110.03141).

    Each tensor is perturbed with probability beta, e = rho g1_S/‖g1_S‖/beta on the drawn tensors S
    (‖e‖ = rho/beta); pass 2 runs on the share gamma of examples whose loss rises most. The paper
    draws weights, the code whole tensors: ours too. Released code keeps one example less than gamma
    B (strict=True). beta = gamma = 1 is SAM. No perturbed tensor drawn: drawn again. Needs
    per-example losses.
    """
    check_fraction("beta", beta, zero=False)
    check_fraction("gamma", gamma, zero=False)
    return row(
        "esam",
        rho,
        selector=RandomTensors(beta),
        geometry=Geometry(eps=1e-7),
        radius=schedule.Constant(check_rho("rho", rho) / beta),
        evaluate=evaluate.LossRise(gamma, strict),
        needs=("per_example_losses",),
    )


@recipe(
    "SL-SAM",
    source="arXiv:2602.09395",
    equation="e = ρ g1/‖g1‖ on tensors drawn by a bandit; the others are not updated",
    published="share 0.5, ρ 0.01",
    passes="2F, 2 partial B",
    memory="1",
    evidence="parity",
    disagreement="Its README's command takes share 0.2, its code 0.5 (default).",
    look=("#3b528b", "circle"),
)
def sl_sam(rho: float = 0.01, *, share: float = 0.5) -> Variant:
    """SAM on tensors drawn by a bandit, the others not updated: SL-SAM (arXiv:2602.09395).

    Inclusion probabilities follow the tensors' first-pass gradient norms (`bandits.Bandit`), their
    sum being share × number of tensors. e = rho g1/‖g1‖ over the drawn tensors, and both backward
    passes compute their gradients only. share = 1 is SAM.
    """
    check_fraction("share", share, zero=False)
    return row(
        "sl_sam",
        rho,
        selector=Bandit(share),
        evaluate=evaluate.SameBatch(partial=True, off="none"),
    )


@recipe(
    "Random mask",
    equation="e = ρ f/‖f‖, f = g1 on random coordinates; gd = g2",
    passes="2F 2B",
    memory="1",
    evidence="control",
    look=("#222222", "x"),
)
def random_mask(
    rho: float = 0.05,
    *,
    density: float = 0.05,
    one_d: str = "none",
    scope: str = "tensor",
    resample: str = "step",
    equal: str = "radius",
) -> Variant:
    """Ascent e = rho f/‖f‖, f = g1 on a random share `density` of the coordinates: the control.

    What a variant's mask is worth is its difference to this one at equal radius (‖e‖ = rho) or,
    with equal="loss_increase", at equal first-order loss increase g1·e = rho ‖g1‖. one_d: tensors
    of ndim <= 1 are unperturbed ("none") or unfiltered ("dense"); scope: the share is taken per
    tensor or over all ("global"); resample: "step", "epoch" or "never".
    """
    _check_mask_options(density, one_d, scope, equal)
    check_choice("resample", resample, ("step", "epoch", "never"))
    return row(
        "random_mask",
        rho,
        selector=selectors.Random(density, one_d, scope, resample),
        geometry=Geometry(match=equal),
        needs=("epochs",) if resample == "epoch" else (),
    )


@recipe(
    "Largest |g|",
    equation="e = ρ f/‖f‖, f = g1 where |g1| is largest; gd = g2",
    passes="2F 2B",
    memory="1",
    evidence="control",
    look=("#117733", "cross"),
)
def topk_gradient(
    rho: float = 0.05,
    *,
    density: float = 0.05,
    one_d: str = "none",
    scope: str = "tensor",
    equal: str = "radius",
) -> Variant:
    """Ascent e = rho f/‖f‖, f = g1 on the share `density` of largest |g1|: the control for ZSharp.

    equal="loss_increase" rescales e so that g1·e = rho ‖g1‖, SAM's own first-order loss increase,
    and ‖e‖ > rho. one_d, scope: as for `random_mask`.
    """
    _check_mask_options(density, one_d, scope, equal)
    return row(
        "topk_gradient",
        rho,
        selector=selectors.TopGradient(density, one_d, scope),
        geometry=Geometry(match=equal),
    )


def _check_mask_options(density: float, one_d: str, scope: str, equal: str) -> None:
    check_fraction("density", density, zero=False)
    check_choice("one_d", one_d, selectors.ONE_D)
    check_choice("scope", scope, ("tensor", "global"))
    check_choice("equal", equal, MATCHES)


__all__ = names(__name__)
