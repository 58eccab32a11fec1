"""Recipes: the published variants as rows of slots.

Each docstring gives the equation, the publication's defaults, its source, and where paper and
released code disagree, our default and why. "Evidence: parity" means that the published
optimizer's trajectory is reproduced (`python -m tests.parity`); "equation" that closed forms and
reductions alone are tested; "our reading" that the source is silent on a choice.
"""

from landscape.sam import schedule, selectors, sources
from landscape.sam.corrections import Blend, Descent
from landscape.sam.evaluate import SameBatch
from landscape.sam.geometry import MATCHES, Geometry
from landscape.sam.sparse import DynamicMask, FisherMask
from landscape.sam.variant import (
    Variant,
    check_choice,
    check_count,
    check_fraction,
    check_number,
    check_rho,
)

BIAS_METRICS = ("one", "abs")


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
        radius=schedule.Constant(check_rho(rho)) if radius is None else radius,
        gate=gate,
        evaluate=SameBatch() if evaluate is None else evaluate,
        correction=Descent() if correction is None else correction,
        loss_term=loss_term,
        needs=frozenset(needs),
    )


def sgd() -> Variant:
    """The base optimizer alone: gd = g1. One forward and one backward pass.

    The same row serves Adam and others; the name is that of the usual base. Evidence: parity.
    """
    return row("sgd", 0.0, gate=schedule.never)


def sam(rho: float = 0.05, *, eps: float = 1e-12) -> Variant:
    """Ascent e = rho g1/(‖g1‖ + eps), gd = g2 (arXiv:2010.01412 Eq. 2 with p = 2).

    All tensors, biases and norm layers included; ‖e‖ = rho. Published: rho 0.05 (CIFAR-10), 0.1-0.2
    (CIFAR-100). The paper's JAX code has the L2 penalty inside the loss, so that e contains it;
    here, as in every PyTorch code, weight decay belongs to the base optimizer alone. Cost: 2
    forward, 2 backward; one copy of the weights. Evidence: parity.
    """
    return row("sam", rho, geometry=Geometry(eps=eps))


def asam(
    rho: float = 0.5, *, eta: float = 0.01, bias_metric: str = "one", eps: float = 1e-16
) -> Variant:
    """Ascent e = rho T² g1/(‖T g1‖ + eps), gd = g2 (arXiv:2102.11600, p = 2).

    bias_metric="one" (default, the authors' code): T = |w| + eta for tensors whose name contains
    "weight", BatchNorm's scale included, and T = 1 for the others. "abs": T = |w| for all tensors
    and no eta, the form of a widely used reimplementation; the two directions differ (cosine
    0.5-0.8), so rho must be tuned anew: 2.0 there, 0.5 (CIFAR-10) and 1.0 (CIFAR-100) for "one".
    The authors' class has eta 0.01 and their script 0.0. ‖e‖ is not rho: ‖T⁻¹ e‖ is. Evidence:
    parity.
    """
    check_choice(bias_metric, BIAS_METRICS, "bias_metric")
    plain = bias_metric == "abs"
    geometry = Geometry(
        metric="elementwise",
        metric_on="all" if plain else "weights",
        eta=0.0 if plain else eta,
        eps=eps,
    )
    return row("asam", rho, geometry=geometry)


def fsam(
    rho: float = 0.1,
    *,
    sigma: float = 1.0,
    lmbda: float = 0.9,
    ema_order: str = "code",
    ema_init: str = "grad",
    adaptive: bool = False,
    eps: float = 1e-12,
) -> Variant:
    """Ascent e = rho u/(‖u‖ + eps), u = g1 - sigma M: Friendly SAM (arXiv:2403.12350).

    M = lmbda M + (1 - lmbda) g1: the average M stands for the full gradient, u for the batch's
    noise. ema_order: "code" (default) subtracts M before it takes in g1, "paper" after; with sigma
    = 1 both give the same e after normalization. ema_init: M starts at the first gradient ("grad",
    released: default) or at 0. adaptive: the metric |w| on all tensors. Published: rho 0.1
    (CIFAR-10), 0.2 (CIFAR-100), sigma 1, lmbda 0.6-0.95. Cost: as SAM; two copies of the weights.
    Evidence: parity.
    """
    check_choice(ema_order, ("code", "paper"), "ema_order")
    check_choice(ema_init, ("grad", "zero"), "ema_init")
    check_fraction(lmbda, "lmbda")
    check_number(sigma, "sigma", least=0)
    geometry = Geometry(metric="elementwise" if adaptive else "identity", eps=eps)
    source = sources.Friendly(sigma=sigma, lmbda=lmbda, order=ema_order, init=ema_init)
    return row("fsam", rho, source=source, geometry=geometry)


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
    so too; our default is a clean Fisher in eval mode. Published: CIFAR-10 rho 0.1, sparsity 0.5,
    16 samples. Cost: as SAM, and num_samples gradients per refresh. Evidence: parity (with the
    quirks).
    """
    check_fraction(sparsity, "sparsity")
    check_choice(mask_init, ("zeros", "ones"), "mask_init")
    check_choice(fisher_mode, (None, "eval", "train"), "fisher_mode")
    check_count(update_freq, "update_freq")
    check_count(num_samples, "num_samples")
    mask = FisherMask(sparsity, update_freq, num_samples, mask_init, official_quirks, fisher_mode)
    geometry = Geometry(scope="full", eps=1e-7)
    return row("ssam_f", rho, selector=mask, geometry=geometry, needs=("fisher_data", "epochs"))


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
    official_quirks=True; our default keeps it constant. Cost: as SAM. Evidence: parity.
    """
    strategies = ("gradient", "weight", "random")
    check_fraction(sparsity, "sparsity")
    check_fraction(drop_rate, "drop_rate")
    check_choice(drop_strategy, strategies, "drop_strategy")
    check_choice(growth_strategy, strategies, "growth_strategy")
    check_count(update_freq, "update_freq")
    mask = DynamicMask(
        sparsity, drop_rate, drop_strategy, growth_strategy, update_freq, official_quirks
    )
    geometry = Geometry(scope="full", eps=1e-7)
    return row("ssam_d", rho, selector=mask, geometry=geometry, needs=("epochs",))


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
    eta), for tensors named "weight", or also the biases with normalize_bias. p=math.inf: e = rho T
    sign(g1). no_norm=True perturbs everything else. match="type" (default) finds norm layers by
    module type; "name", as released, by "norm" or "bn" in the tensor's name, which misses layers
    named otherwise and takes what is nested in a module called norm*. start_epoch, end_epoch:
    outside them the base optimizer alone. The first backward pass computes the norm layers'
    gradients only. Published: WRN-28-10, elementwise, rho 10. Evidence: parity.
    """
    check_choice(match, ("type", "name"), "match")
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
    share of ‖g1‖²: a radius 4-8 times SAM's on a ResNet at equal rho. Published: percentile 0.95,
    rho 0.05, Adam. equal="loss_increase": see `topk_gradient`. Cost: as SAM and one order statistic
    per tensor. Evidence: parity (norm_scope="tensor").
    """
    check_fraction(percentile, "percentile", one=False)
    check_choice(norm_scope, ("global", "tensor"), "norm_scope")
    check_choice(one_d, selectors.ONE_D, "one_d")
    return row(
        "zsharp",
        rho,
        selector=selectors.ZScore(percentile, one_d),
        geometry=Geometry(scope=norm_scope, match=equal),
    )


def lagnp(
    rho: float = 0.1,
    *,
    alpha: float = 0.8,
    num_layers: int | None = None,
    fraction: float = 0.5,
    layer: str = "module",
    every: int = 1,
    smoothing: float = 0.0,
    unit: bool = True,
) -> Variant:
    """Descent (1 - alpha) g1 + alpha g2 in the selected layers, g1 elsewhere (arXiv:2503.14205).

    LAGNP, layer-wise gradient norm penalty, **our reading**: the layers of largest ‖g1_l‖ are
    selected and e = rho g1_{w'}/‖g1_{w'}‖ on them alone. The source leaves open, so each is an
    option: how many (num_layers, or `fraction` of all layers: 0.5), what a layer is
    (layer="module": a module with the parameters it owns, norm modules their own; or "tensor"), how
    often they are chosen (every steps: 1), whether norms are averaged (smoothing: 0), and whether e
    is normalized (unit=True, as in GNP; False: e = rho g1_{w'}). alpha and rho are GNP's. The
    second backward pass computes the selected layers' gradients only. Cost: 2 forward, 1 backward
    and part of another.
    """
    check_choice(layer, ("module", "tensor"), "layer")
    check_fraction(fraction, "fraction", zero=False)
    check_count(every, "every")
    if num_layers is not None:
        check_count(num_layers, "num_layers")
    check_fraction(smoothing, "smoothing")
    return row(
        "lagnp",
        rho,
        selector=selectors.TopLayers(num_layers, fraction, layer, every, smoothing),
        geometry=Geometry(scope="global" if unit else "none"),
        evaluate=SameBatch(partial=True, off="clean"),
        correction=Blend(alpha),
    )


def gnp(rho: float = 0.1, *, alpha: float = 0.8, unit_g1: bool = False) -> Variant:
    """Descent gd = (1 - alpha) g1 + alpha g2, e as SAM (arXiv:2202.03599).

    The released code's default blends g1/‖g1‖ (unit_g1=True) against its own paper; ours is the
    paper's. alpha = 1 is SAM. Published: alpha 0.8, rho 0.1 (CIFAR), 0.05 (ImageNet).
    Evidence: equation.
    """
    return row("gnp", rho, correction=Blend(alpha, unit_g1))


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
    check_choice(resample, ("step", "epoch", "never"), "resample")
    return row(
        "random_mask",
        rho,
        selector=selectors.Random(density, one_d, scope, resample),
        geometry=Geometry(match=equal),
        needs=("epochs",) if resample == "epoch" else (),
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
    check_fraction(density, "density", zero=False)
    check_choice(one_d, selectors.ONE_D, "one_d")
    check_choice(scope, ("tensor", "global"), "scope")
    check_choice(equal, MATCHES, "equal")
