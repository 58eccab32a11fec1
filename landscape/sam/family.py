"""More recipes: the rest of the family, each as a row of slots (see `landscape.sam.recipes`)."""

from collections.abc import Sequence

from landscape.errors import LandscapeError
from landscape.sam import corrections, evaluate, schedule, sources
from landscape.sam.bandits import Bandit, RandomTensors
from landscape.sam.geometry import Geometry
from landscape.sam.loss_terms import AveragedWeights, PastOutputs
from landscape.sam.recipes import row
from landscape.sam.variant import (
    Variant,
    check_choice,
    check_count,
    check_fraction,
    check_number,
    check_rho,
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

    The part of g1 orthogonal to g2 is ascended, which closes the surrogate gap
    L(w + e) - L(w) without changing the perturbed loss to first order. alpha = 0 is SAM.
    rho_min and lr_max (after warm-up) tie the radius to the learning rate, from rho at lr_max to
    rho_min at lr_min. adaptive: metric |w| in e alone, as in the authors' PyTorch code; its
    scheduler uses rho_min in the very first step, ours does not. Published: alpha 0.4, rho 0.05-2.
    Cost: as SAM; two copies of the weights. Evidence: parity.
    """
    check_fraction(alpha, "alpha")
    radius = None
    if (rho_min is None) != (lr_max is None):
        raise LandscapeError(
            f"rho_min={rho_min} and lr_max={lr_max}: give both to tie rho to the learning rate, "
            "or neither."
        )
    if rho_min is not None:
        radius = schedule.WithLearningRate(check_rho(rho), rho_min, lr_max, lr_min)
    return row(
        "gsam",
        rho,
        geometry=Geometry(metric="elementwise" if adaptive else "identity"),
        radius=radius,
        correction=corrections.SurrogateGap(alpha),
    )


def gcsam(rho: float = 0.05, *, norm_of: str = "raw", centre_descent: bool = False) -> Variant:
    """Ascent e = rho u/‖g1‖, u = g1 centred per output unit (arXiv:2501.11584).

    Tensors of ndim > 1 lose their mean over all dimensions but the first. Released code (default)
    divides by the norm of the uncentred gradient, so ‖e‖ < rho, and descends g2; the paper is read
    as norm_of="centred" and centre_descent=True. Published: rho 0.05, Adam.
    Cost: as SAM. Evidence: parity.
    """
    check_choice(norm_of, ("raw", "centred"), "norm_of")
    return row(
        "gcsam",
        rho,
        source=sources.Centred(),
        geometry=Geometry(scope="raw" if norm_of == "raw" else "global"),
        correction=corrections.CentredDescent() if centre_descent else None,
    )


def stable_sam(rho: float = 0.05, *, normalized: bool = True, adaptive: bool = False) -> Variant:
    """Descent gd = g2 ‖g1‖/‖g2‖, e as SAM, or rho g1 with normalized=False (arXiv:2401.07250).

    The descent gradient keeps the size of the gradient at w, which steadies training at large rho.
    adaptive=True weighs e and both norms by |w|, the second at w + e, as released.
    Published: rho 0.05. Cost: as SAM. Evidence: parity, unnormalized and adaptive forms included.
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


def esam(
    rho: float = 0.05, *, beta: float = 0.6, gamma: float = 0.5, strict: bool = True
) -> Variant:
    """Stochastic weight perturbation and sharpness-sensitive data selection (arXiv:2110.03141).

    Each tensor is perturbed with probability beta, e = rho g1_S/‖g1_S‖/beta on the drawn tensors S
    (‖e‖ = rho/beta); pass 2 runs on the share gamma of examples whose loss rises most. The paper
    draws weights, the code whole tensors: ours too. Released code keeps one example less than
    gamma B (strict=True). beta = gamma = 1 is SAM. No perturbed tensor drawn: drawn again.
    Published: beta 0.6, gamma 0.5, rho 0.05. Needs per-example losses. Cost: 2 + gamma forward,
    part of 1 and gamma backward. Evidence: parity.
    """
    check_fraction(beta, "beta", zero=False)
    check_fraction(gamma, "gamma", zero=False)
    return row(
        "esam",
        rho,
        selector=RandomTensors(beta),
        geometry=Geometry(eps=1e-7),
        radius=schedule.Constant(check_rho(rho) / beta),
        evaluate=evaluate.LossRise(gamma, strict),
        needs=("per_example_losses",),
    )


def looksam(rho: float = 0.1, *, k: int = 10, alpha: float = 0.7, scope: str = "global") -> Variant:
    """SAM every k steps; between them `gd = g1 + alpha ‖g1‖/‖gv‖ gv` (arXiv:2203.02714 Alg. 1).

    gv = g2 - ‖g2‖ cos(g1, g2) g1/‖g1‖ is kept from the last SAM step. Norms and projection run over
    all tensors (scope="global", the paper) or per tensor ("tensor"). A widely used third-party
    implementation works per tensor and doubles g1 on reuse steps: not reproduced.
    k = 1 is SAM. Cost: 1 + 1/k forward and backward; two copies. Evidence: equation.
    """
    check_choice(scope, ("global", "tensor"), "scope")
    check_number(alpha, "alpha", least=0)
    return row("looksam", rho, gate=schedule.Every(k), correction=corrections.Reuse(alpha, scope))


def sampa(rho: float = 0.1, *, lmbda: float = 0.2, base_terms: bool = True) -> Variant:
    """Descent gd = (1 - lmbda) ∇L_{t-1}(x + e) + lmbda h', e = rho h/‖h‖ (arXiv:2410.10683 Alg. 1).

    h is the gradient that the step before took at its own y; h' = ∇L_t(y), y = x - lr h. Both
    gradients are independent of each other, hence parallel on two devices; here one after the
    other. base_terms: y also takes the base SGD's momentum and weight decay, as released (default);
    the paper's y does not. Released code with lmbda = 0 never perturbs, since it recovers h by
    dividing by lmbda; here h is carried, so lmbda = 0 is the paper's SAMPa-0, and with rho = 0 too
    it is the base optimizer one batch behind. The first step has e = 0 and takes its own batch
    twice. The reported loss is that at y. Needs step(losses, batch): the previous batch is kept,
    also in `state_dict()`. Published: rho 0.1, lmbda 0.2. Evidence: parity.
    """
    check_fraction(lmbda, "lmbda")
    return row(
        "sampa",
        rho,
        source=sources.Stale(),
        evaluate=evaluate.Extrapolated(base_terms),
        correction=corrections.Blend(1 - lmbda),
        needs=("previous_batch",),
    )


def async_sam(rho: float = 0.05, *, fraction: float = 1.0) -> Variant:
    """Ascent e = rho g_{t-1}/‖g_{t-1}‖, gd = g2; g_{t-1} the clean gradient of the step before.

    Asynchronous SAM (arXiv:2503.11147) computes the ascent gradient on a slower device, on the
    share `fraction` of the batch, while the descent runs; here both run in one process, so the
    trajectory is the method's and the time is SAM's. The first step has e = 0 (our reading).
    fraction < 1 needs step(losses, batch). Evidence: equation; no code was released.
    """
    check_fraction(fraction, "fraction", zero=False)
    return row(
        "async_sam",
        rho,
        source=sources.Stale(),
        evaluate=evaluate.AscentFraction(fraction),
        needs=("per_example_losses",) if fraction < 1 else (),
    )


def msam(rho: float = 0.3) -> Variant:
    """Ascent e = -rho v/‖v‖, gd = g2, v the base optimizer's momentum (arXiv:2401.12033).

    No first pass: one forward and one backward per step, and the loss returned is that at w + e.
    v is torch's momentum_buffer (or Adam's exp_avg); a base without momentum is never perturbed.
    Released code also adds the weight decay at w + e; here it belongs to the base optimizer, at w.
    Published: rho 0.3 with momentum 0.9. Evidence: equation.
    """
    return row("msam", rho, source=sources.Momentum())


def sl_sam(rho: float = 0.01, *, share: float = 0.5) -> Variant:
    """SAM on tensors drawn by a bandit, the others not updated: SL-SAM (arXiv:2602.09395).

    Inclusion probabilities follow the tensors' first-pass gradient norms (`bandits.Bandit`), their
    sum being share × number of tensors. e = rho g1/‖g1‖ over the drawn tensors, and both backward
    passes compute their gradients only. share = 1 is SAM. Published: share 0.5, rho 0.01.
    Cost: 2 forward, 2 partial backward. Evidence: parity.
    """
    check_fraction(share, "share", zero=False)
    return row(
        "sl_sam",
        rho,
        selector=Bandit(share),
        evaluate=evaluate.SameBatch(partial=True, off="none"),
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
    is SAM, gamma = 0 the base. Cost: as SAM; two copies. Evidence: parity (third-party code).
    """
    if max_norm is not None:
        check_number(max_norm, "max_norm", least=0, beyond=True)
    return row("wsam", rho, correction=corrections.Weighted(gamma, decouple, max_norm))


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
    per-example losses. Published: sharpness 0.5, flat_gamma 1, rho 0.2 (CIFAR-LT). Cost: 2 forward,
    3 backward. Evidence: equation.
    """
    counts = tuple(int(n) for n in class_counts)
    if not counts or min(counts) < 0 or sum(counts) == 0:
        raise LandscapeError(
            f"class_counts={counts} were given; give the number of training examples per class."
        )
    check_fraction(sharpness, "sharpness")
    check_number(flat_gamma, "flat_gamma", least=0)
    return row(
        "focal_sam",
        rho,
        evaluate=evaluate.ClassWeighted(counts, sharpness, flat_gamma, targets),
        correction=corrections.AddClean(),
        needs=("per_example_losses",),
    )


def saf(
    *,
    num_examples: int,
    weight: float = 0.3,
    tau: float = 5.0,
    delay: int = 2,
    start_epoch: int = 5,
    end_epoch: int = 300,
    indices: int | str = 2,
) -> Variant:
    """Loss L + weight tau² KL(past outputs/tau ‖ outputs/tau): SAF (arXiv:2205.14083).

    The past outputs of each training example are those `delay` epochs ago, for start_epoch < epoch
    < end_epoch. losses(batch) returns (losses, logits); `indices`: where the examples' numbers in
    0..num_examples-1 are in a batch. Published: tau 5, delay 2-3, weight 0.3.
    Cost: 1 forward, 1 backward; num_examples × (delay + 1) × classes numbers. Evidence: equation.
    """
    check_count(num_examples, "num_examples")
    check_count(delay, "delay")
    check_number(weight, "weight", least=0)
    check_number(tau, "tau", least=0, beyond=True)
    term = PastOutputs(num_examples, weight, tau, delay, start_epoch, end_epoch, indices)
    needs = ("logits", "indices", "epochs")
    return row("saf", 0.0, gate=schedule.never, loss_term=term, needs=needs)


def mesa(
    *,
    weight: float = 0.8,
    tau: float = 5.0,
    decay: float = 0.9998,
    start_epoch: int = 5,
    end_epoch: int = 300,
) -> Variant:
    """Loss L + weight tau² KL(average's outputs/tau ‖ outputs/tau): MESA (arXiv:2205.14083).

    The averaged model is an exponential average of the weights (decay), run on the same batch with
    the model's own mode; running statistics are left alone. losses(batch) returns (losses,
    logits). Published: tau 5, decay 0.9998, weight 0.8. Cost: 2 forward, 1 backward; one copy.
    Evidence: equation.
    """
    check_fraction(decay, "decay")
    check_number(weight, "weight", least=0)
    check_number(tau, "tau", least=0, beyond=True)
    term = AveragedWeights(weight, tau, decay, start_epoch, end_epoch)
    return row("mesa", 0.0, gate=schedule.never, loss_term=term, needs=("logits", "epochs"))
