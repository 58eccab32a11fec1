"""Recipes that differ from SAM in the ascent: its direction, its metric or its radius."""

from landscape.checks import check_choice, check_fraction, check_number
from landscape.sam import corrections, evaluate, schedule, sources
from landscape.sam.directions import Averaged
from landscape.sam.geometry import Geometry
from landscape.sam.metrics import DiagonalFisher
from landscape.sam.recipes.declaration import names, recipe, row
from landscape.sam.variant import Variant

BIAS_METRICS = ("one", "abs")


@recipe(
    "SGD",
    equation="gd = g1",
    passes="1F 1B",
    memory="0",
    evidence="parity",
    look=("#7a7a7a", "circle"),
)
def sgd() -> Variant:
    """The base optimizer alone: gd = g1. One forward and one backward pass.

    The same row serves Adam and others; the name is that of the usual base.
    By definition.
    """
    return row("sgd", 0.0, gate=schedule.never)


@recipe(
    "SAM",
    source="arXiv:2010.01412",
    equation="e = ρ g1/‖g1‖; gd = g2",
    published="ρ 0.05 (CIFAR-10), 0.1-0.2 (CIFAR-100)",
    passes="2F 2B",
    memory="1",
    evidence="parity",
    disagreement=(
        "The paper's JAX code has weight decay inside the loss, so e contains it; default: in "
        "the base optimizer alone, as in every PyTorch code."
    ),
    look=("#0072b2", "square"),
)
def sam(rho: float = 0.05, *, eps: float = 1e-12) -> Variant:
    """Ascent e = rho g1/(‖g1‖ + eps), gd = g2 (arXiv:2010.01412 Eq. 2 with p = 2).

    All tensors, biases and norm layers included; ‖e‖ = rho. The paper's JAX code has the L2 penalty
    inside the loss, so that e contains it; here, as in every PyTorch code, weight decay belongs to
    the base optimizer alone.
    """
    return row("sam", rho, geometry=Geometry(eps=eps))


@recipe(
    "ASAM",
    source="arXiv:2102.11600",
    equation="e = ρ T² g1/‖T g1‖, T = |w| + η; gd = g2",
    published="ρ 0.5 (CIFAR-10), 1.0 (CIFAR-100), η 0.01 (class) or 0 (script)",
    passes="2F 2B",
    memory="1",
    evidence="parity",
    disagreement=(
        "Authors: T = 1 for biases (default). A widely used reimplementation: T = |w| "
        'everywhere (bias_metric="abs", ρ 2.0). Not interchangeable at equal ρ.'
    ),
    look=("#56b4e9", "square"),
)
def asam(
    rho: float = 0.5, *, eta: float = 0.01, bias_metric: str = "one", eps: float = 1e-16
) -> Variant:
    """Ascent e = rho T² g1/(‖T g1‖ + eps), gd = g2 (arXiv:2102.11600, p = 2).

    bias_metric="one" (default, the authors' code): T = |w| + eta for tensors whose name contains
    "weight", BatchNorm's scale included, and T = 1 for the others. "abs": T = |w| for all tensors
    and no eta, the form of a widely used reimplementation; the two directions differ (cosine
    0.5-0.8), so rho must be tuned anew: 2.0 there, 0.5 (CIFAR-10) and 1.0 (CIFAR-100) for "one".
    The authors' class has eta 0.01 and their script 0.0. ‖e‖ is not rho: ‖T⁻¹ e‖ is.
    """
    check_choice("bias_metric", bias_metric, BIAS_METRICS)
    plain = bias_metric == "abs"
    geometry = Geometry(
        metric="elementwise",
        metric_on="all" if plain else "weights",
        eta=0.0 if plain else eta,
        eps=eps,
    )
    return row("asam", rho, geometry=geometry)


@recipe(
    "F-SAM",
    source="arXiv:2403.12350",
    equation="u = g1 - σ M, e = ρ u/‖u‖; M = λ M + (1 - λ) g1; gd = g2",
    published="ρ 0.1-0.2, σ 1, λ 0.6-0.95",
    passes="2F 2B",
    memory="2",
    evidence="parity",
    disagreement=(
        "Code: M is used before it takes in g1 and starts at the first gradient (default); "
        "paper: after (ema_order), from 0 (ema_init). The order matters only for σ ≠ 1. A "
        "third-party collection feeds the average with u instead of g1: not reproduced."
    ),
    look=("#009e73", "diamond"),
)
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
    released: default) or at 0. adaptive: the metric |w| on all tensors.
    """
    check_choice("ema_order", ema_order, ("code", "paper"))
    check_choice("ema_init", ema_init, ("grad", "zero"))
    check_fraction("lmbda", lmbda)
    check_number("sigma", sigma, least=0)
    geometry = Geometry(metric="elementwise" if adaptive else "identity", eps=eps)
    source = sources.Friendly(sigma=sigma, lmbda=lmbda, order=ema_order, init=ema_init)
    return row("fsam", rho, source=source, geometry=geometry)


@recipe(
    "GCSAM",
    source="arXiv:2501.11584",
    equation="u = g1 centred per output unit, e = ρ u/‖g1‖; gd = g2",
    published="ρ 0.05, Adam",
    passes="2F 2B",
    memory="1",
    evidence="parity",
    disagreement=(
        "Code divides by the uncentred norm and leaves g2 (default); paper, as read: centred "
        "norm (norm_of) and centred g2 (centre_descent)."
    ),
    look=("#332288", "triangle"),
)
def gcsam(rho: float = 0.05, *, norm_of: str = "raw", centre_descent: bool = False) -> Variant:
    """Ascent e = rho u/‖g1‖, u = g1 centred per output unit (arXiv:2501.11584).

    Tensors of ndim > 1 lose their mean over all dimensions but the first. Released code (default)
    divides by the norm of the uncentred gradient, so ‖e‖ < rho, and descends g2; the paper is read
    as norm_of="centred" and centre_descent=True.
    """
    check_choice("norm_of", norm_of, ("raw", "centred"))
    return row(
        "gcsam",
        rho,
        source=sources.Centred(),
        geometry=Geometry(scope="raw" if norm_of == "raw" else "global"),
        correction=corrections.CentredDescent() if centre_descent else None,
    )


@recipe(
    "MSAM",
    source="arXiv:2401.12033",
    equation="e = -ρ v/‖v‖, v the momentum; gd = g2",
    published="ρ 0.3, momentum 0.9",
    passes="1F 1B",
    memory="1",
    evidence="equation",
    disagreement="Code takes weight decay at w + e; default: at w, in the base optimizer.",
    look=("#44aa99", "cross"),
)
def msam(rho: float = 0.3) -> Variant:
    """Ascent e = -rho v/‖v‖, gd = g2, v the base optimizer's momentum (arXiv:2401.12033).

    No first pass: one forward and one backward per step, and the loss returned is that at w + e. v
    is torch's momentum_buffer (or Adam's exp_avg); a base without momentum is never perturbed.
    Released code also adds the weight decay at w + e; here it belongs to the base optimizer, at w.
    """
    return row("msam", rho, source=sources.Momentum())


@recipe(
    "Async-SAM",
    source="arXiv:2503.11147",
    equation="e = ρ g_{t-1}/‖g_{t-1}‖; gd = g2",
    published="not stated",
    passes="2F 2B, parallel in principle",
    memory="2",
    evidence="equation",
    disagreement=(
        "No code was released; e_0 = 0 assumed. Of the two copies one belongs to each device "
        "where the passes run in parallel."
    ),
    look=("#999933", "diamond"),
)
def async_sam(rho: float = 0.05, *, fraction: float = 1.0) -> Variant:
    """Ascent e = rho g_{t-1}/‖g_{t-1}‖, gd = g2; g_{t-1} the clean gradient of the step before.

    Asynchronous SAM (arXiv:2503.11147) computes the ascent gradient on a slower device, on the
    share `fraction` of the batch, while the descent runs; here both run in one process, so the
    trajectory is the method's and the time is SAM's. The first step has e = 0 (our reading).
    fraction < 1 needs step(losses, batch).
    """
    check_fraction("fraction", fraction, zero=False)
    return row(
        "async_sam",
        rho,
        source=sources.Stale(),
        evaluate=evaluate.AscentFraction(fraction),
        needs=("per_example_losses",) if fraction < 1 else (),
    )


@recipe(
    "VaSSO",
    source="arXiv:2309.15639",
    equation="e = ρ M/‖M‖, M = (1 - θ) M + θ g1; gd = g2",
    published="ρ 0.05-0.2, θ 0.9 (README)",
    passes="2F 2B",
    memory="2",
    evidence="equation",
    disagreement=(
        "None is known: the code was read and not executed; it adds 1e-7 to the norm, as here."
    ),
    look=("#999933", "triangle"),
)
def vasso(rho: float = 0.05, *, theta: float = 0.9) -> Variant:
    """Ascent e = rho M/(‖M‖ + 1e-7), M = (1 - theta) M + theta g1, gd = g2 (arXiv:2309.15639).

    VaSSO suppresses the noise of the ascent direction by an average, of which F-SAM takes what the
    average leaves. M starts at the first gradient; theta = 1 is SAM.
    """
    check_fraction("theta", theta, zero=False)
    return row("vasso", rho, source=Averaged(theta), geometry=Geometry(eps=1e-7))


@recipe(
    "FisherSAM",
    source="arXiv:2206.04920",
    equation="e = γ F⁻¹ g1/√(g1ᵀ F⁻¹ g1), F = 1 + η g1²; gd = g2",
    published="γ 0.1, η 1 (defaults of a third-party implementation)",
    passes="2F 2B",
    memory="1",
    evidence="equation",
    disagreement=(
        "The authors' code was not found. F = 1 + η g1², the squared gradient of the batch, is "
        "that of a third-party implementation, which was read and not executed."
    ),
    look=("#cc6677", "circle"),
)
def fisher_sam(rho: float = 0.1, *, eta: float = 1.0) -> Variant:
    """Ascent e = rho F⁻¹ g1/√(g1ᵀ F⁻¹ g1), F = 1 + eta g1², gd = g2 (arXiv:2206.04920).

    The neighbourhood is the ellipsoid eᵀ F e <= rho² of a diagonal Fisher information (the paper's
    gamma is rho here); eta = 0 is SAM.
    """
    check_number("eta", eta, least=0)
    return row("fisher_sam", rho, geometry=Geometry(metric=DiagonalFisher(eta)))


__all__ = names(__name__)
