"""Do perturbations point where the loss curves, and do masks select it? Against chance."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from jaxtyping import Bool, Float
from torch import Tensor

from landscape import sam, vectors
from landscape.checks import check_choice, check_count
from landscape.errors import LandscapeError
from landscape.linalg.trace import rademacher
from landscape.measure.curvature.top import eigenpairs
from landscape.measure.measuring import RESIDUALS, Measuring, generator, numbers, split
from landscape.measure.perturbations import share_null
from landscape.measure.perturbations.counterfactual import Counterfactual, check_variants
from landscape.params import ParamLayout
from landscape.results import Variable
from landscape.risk import EmpiricalRisk, RowLosses


def alignment(
    risk: EmpiricalRisk,
    theta: Float[Tensor, "P"],
    *,
    variants: Mapping[str, sam.Variant],
    k: int = 5,
    batch_size: int = 64,
    states: Mapping[str, dict[str, Any]] | None = None,
    certify: str = "float64",
    seed: int,
) -> xr.Dataset:
    """Energy of each variant's perturbation in the top-k eigenspace of the Hessian, ‖Vᵀe‖²/‖e‖².

    Rows along `direction`: "gradient" (of the risk), then each variant's e on one seeded batch.
    cosine_squared(direction, rank) = (v_i·e)²/‖e‖², captured(direction) their sum over the k ranks.
    Two nulls: expected_isotropic = k/P, a random direction; expected_matched = sum_l (‖e_l‖²/‖e‖²)
    ‖V_l‖_F²/n_l, a random direction with the same energy in every tensor. enrichment(direction) =
    captured / expected_matched: against the first null, whatever perturbs norm layers alone would
    look aligned. rayleigh(direction) = eᵀHe/‖e‖². Alignment is not mechanism. Directions without
    energy are NaN. The variants are asked in the BatchNorm mode of the curvature: running
    statistics for a risk with bn="eval", those of their batch for "full_batch". residual_norm(rank)
    in float64 unless certify="none".
    Cost: about 20 k gradients, one for all variants.
    The share of the gradient in the top eigenspace is that of arXiv:1812.04754; the matched null is
    our own definition.

    Example:
        >>> variants = {"sam": sam.sam(0.05), "zsharp": sam.zsharp(0.05)}
        >>> found = measure.alignment(risk, theta, variants=variants, k=2, batch_size=16, seed=0)
        >>> found.direction.values.tolist()
        ['gradient', 'sam', 'zsharp']
        >>> bool((found.captured <= 1).all())
        True
    """
    check_variants("alignment", variants)
    if not variants:
        raise LandscapeError("alignment got no variant; name at least one, such as sam.sam(rho).")
    check_choice("certify", certify, RESIDUALS)
    measuring = Measuring("alignment", risk, theta)
    theta = measuring.theta
    measuring.finite_loss()
    pairs = eigenpairs(measuring, k=k, certify=certify, seed=seed)
    V = pairs.vectors
    here = Counterfactual(risk, theta, batch_size=batch_size, bn=_mode(risk), seed=seed)
    named = {"gradient": risk.gradient(theta)}
    for name, variant in variants.items():
        state = None if states is None else states.get(name)
        named[name] = here.flat(here.perturb(variant, state=state).e)
    X = torch.stack(list(named.values())).double()
    lengths = vectors.row_norms(X)[:, None]
    unit = torch.where(lengths > 0, X / lengths, torch.nan)
    cosines = vectors.gram(unit, V).square()
    curvature = risk.hvp(theta, unit.nan_to_num().to(theta))
    rayleigh = torch.stack([vectors.dot(u, Hu) for u, Hu in zip(unit, curvature, strict=True)])
    matched = _matched(risk.layout, unit, V.double())

    captured = cosines.sum(1)
    units = "nats / parameter²"
    row = ("direction",)
    variables = {
        "cosine_squared": Variable(
            ("direction", "rank"), numbers(cosines), "1", "cos² with the eigenvector"
        ),
        "captured": Variable(row, numbers(captured), "1", "Energy in the top eigenspace"),
        "expected_isotropic": Variable(
            row, np.full(len(X), k / theta.numel()), "1", "Expected of a random direction"
        ),
        "expected_matched": Variable(
            row, numbers(matched), "1", "Expected with the same energy per tensor"
        ),
        "enrichment": Variable(
            row, numbers(captured / matched), "1", "Energy in the top eigenspace over chance"
        ),
        "rayleigh": Variable(row, numbers(rayleigh), units, "Curvature along the direction"),
        "eigenvalue": Variable("rank", numbers(pairs.values), units, "Hessian eigenvalue"),
        "residual_norm": Variable(
            "rank", numbers(pairs.residual_norms), units, "Residual ‖Hv − λv‖"
        ),
        "converged": Variable("rank", numbers(pairs.converged).astype(bool), "1", "Converged"),
    }
    coords = {"direction": np.array(list(named), dtype=object), "rank": np.arange(k)}
    options = {"k": k, "batch_size": here.batch_size, "batch_bn": _mode(risk)}
    options |= {"certify": certify, "seed": seed}
    return measuring.result(variables, coords=coords, options=options)


def _mode(risk: EmpiricalRisk) -> str:
    """The BatchNorm mode of a step that is that of the risk."""
    return "batch" if risk.bn == "full_batch" else "eval"


def enrichment(
    risk: EmpiricalRisk,
    theta: Float[Tensor, "P"],
    *,
    variants: Mapping[str, sam.Variant],
    k: int = 5,
    num_probes: int = 30,
    fisher_examples: int = 128,
    batch_size: int = 64,
    states: Mapping[str, dict[str, Any]] | None = None,
    seed: int,
) -> xr.Dataset:
    """Share of curvature, Fisher information and weight in each variant's mask, over chance.

    For a quantity q and a mask m, captured_<q>(direction) = sum over m of q / sum of q, and
    expected_<q> = sum_l density_l q_l / q, the same density in every tensor placed at random there
    (stratified); enrichment_<q> is their ratio, 1 at chance with standard deviation
    chance_std_<q> (drawing without replacement in each tensor); 95 % of such masks lie between
    chance_low_<q> and chance_high_<q>, skewed where few coordinates hold most of q (quantiles of
    2000 draws). The quantities: `eigenvector`,
    v_1²; `eigenspace`, sum_i v_i² over the top k eigenvectors; `hessian_diagonal`, diag H by
    num_probes Hutchinson probes (its sum is the trace; single terms may be negative); `fisher`,
    mean over `fisher_examples` examples of the squared gradient (empirical Fisher); `weight`,
    theta²; `magnitude`, |theta|. `direction` names the variants, which are asked in the BatchNorm
    mode of the curvature: running statistics for a risk with bn="eval", those of their batch for
    "full_batch". The Fisher information is that of single examples, with running statistics; it is
    left out, NaN, where the risk has others.

    Example:
        >>> variants = {"zsharp": sam.zsharp(0.05, percentile=0.5)}
        >>> options = dict(k=1, num_probes=4, fisher_examples=8, batch_size=16)
        >>> found = measure.enrichment(risk, theta, variants=variants, **options, seed=0)
        >>> ratio = found.captured_weight / found.expected_weight
        >>> bool(np.isclose(found.enrichment_weight, ratio))
        True
    """
    check_variants("enrichment", variants)
    if not variants:
        raise LandscapeError("enrichment got no variant; name at least one with a mask.")
    check_count("num_probes", num_probes, 1)
    check_count("fisher_examples", fisher_examples, 1)
    measuring = Measuring("enrichment", risk, theta)
    theta = measuring.theta
    measuring.finite_loss()
    here = Counterfactual(risk, theta, batch_size=batch_size, bn=_mode(risk), seed=seed)
    masks = [
        here.flat_mask(here.perturb(variant, state=None if states is None else states.get(name)))
        for name, variant in variants.items()
    ]
    pairs = eigenpairs(measuring, k=k, seed=seed)
    quantities = {
        "eigenvector": lambda: pairs.vectors[0].double().square(),
        "eigenspace": lambda: pairs.vectors.double().square().sum(0),
        "hessian_diagonal": lambda: _hessian_diagonal(risk, theta, num_probes, seed),
        "fisher": lambda: _fisher(risk, theta, fisher_examples, seed),
        "weight": lambda: theta.double().square(),
        "magnitude": lambda: theta.double().abs(),
    }
    variables, selected, seen, totals = {}, [], [], []
    for quantity in quantities.values():  # one at a time: each is twice as large as the model
        q = quantity()
        selected.append([_selected(risk.layout, mask, q) for mask in masks])
        seen.append(share_null.summary(split(risk.layout, q)))
        totals.append(_total(q))
        del q
    shares = numbers(selected)
    intervals = _chance_intervals(risk.layout, masks, numbers(seen), numbers(totals), seed)
    for name, rows, ends in zip(quantities, shares, intervals, strict=True):
        captured, expected, spread = rows.T
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio, spread = captured / expected, spread / np.abs(expected)
            low, high = np.sort(ends / expected[:, None], axis=1).T
        title = _TITLES[name]
        variables |= {
            f"captured_{name}": Variable("direction", captured, "1", f"Share of {title} selected"),
            f"expected_{name}": Variable(
                "direction", expected, "1", f"Share of {title} expected by chance"
            ),
            f"enrichment_{name}": Variable(
                "direction", ratio, "1", f"Share of {title} selected over chance"
            ),
            f"chance_std_{name}": Variable(
                "direction", spread, "1", f"SD of that ratio for random masks, {title}"
            ),
            f"chance_low_{name}": Variable(
                "direction", low, "1", f"2.5 % of random masks lie below, {title}"
            ),
            f"chance_high_{name}": Variable(
                "direction", high, "1", f"2.5 % of random masks lie above, {title}"
            ),
        }
    options = {
        "k": k,
        "num_probes": num_probes,
        "fisher_examples": min(fisher_examples, risk.num_examples),
        "batch_size": here.batch_size,
        "batch_bn": _mode(risk),
        "seed": seed,
    }
    coords = {"direction": np.array(list(variants), dtype=object)}
    return measuring.result(variables, coords=coords, options=options)


_TITLES = {
    "eigenvector": "the top eigenvector",
    "eigenspace": "the top eigenspace",
    "hessian_diagonal": "the Hessian's trace",
    "fisher": "the Fisher information",
    "weight": "‖θ‖²",
    "magnitude": "‖θ‖₁",
}


def _fisher(risk: EmpiricalRisk, theta: Tensor, count: int, seed: int) -> Float[Tensor, "P"]:
    """The empirical Fisher information where single examples have the mode of the risk."""
    if risk.has_batchnorm and risk.bn != "eval":
        return torch.full_like(theta, torch.nan, dtype=torch.float64)
    return empirical_fisher(risk, theta, num_examples=count, seed=seed)


def empirical_fisher(
    risk: EmpiricalRisk, theta: Float[Tensor, "P"], *, num_examples: int, seed: int
) -> Float[Tensor, "P"]:
    """Mean of the squared gradient of single examples with their labels, in float64; eval mode."""
    model = risk.model_at(theta)
    losses = RowLosses(risk, model)
    trained = [p for p in model.parameters() if p.requires_grad]
    order = torch.randperm(risk.num_examples, generator=generator(seed))[:num_examples]
    total = torch.zeros(theta.numel(), dtype=torch.float64, device=theta.device)
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    for row in order.split(1):
        gradients = torch.autograd.grad(losses.shares(row).sum(), trained, materialize_grads=True)
        named = dict(zip(names, gradients, strict=True))
        total += risk.layout.flatten(named).double().square()
    risk.spend(len(order) / risk.num_examples)
    return total / len(order)


def _hessian_diagonal(
    risk: EmpiricalRisk, theta: Tensor, num_probes: int, seed: int
) -> Float[Tensor, "P"]:
    """Mean of v * Hv over signs v: E is diag H."""
    product, source = risk.linearized_hvp(theta), generator(seed)
    total = torch.zeros(theta.numel(), dtype=torch.float64, device=theta.device)
    for _ in range(num_probes):
        v = rademacher((theta.numel(),), generator=source, dtype=theta.dtype, device=theta.device)
        total += (v * product(v)).double()
    return total / num_probes


def _selected(
    layout: ParamLayout, mask: Bool[Tensor, "P"], q: Float[Tensor, "P"]
) -> Float[Tensor, "3"]:
    """Share of q in the mask; mean and SD of the share in random masks of the same densities."""
    mean, variance = q.new_zeros(()), q.new_zeros(())
    for m, part in zip(split(layout, mask), split(layout, q), strict=True):
        density = m.double().mean()
        sum_of_squares = vectors.squared_norm(part - part.mean())
        mean = mean + density * part.sum()
        # k draws of n without replacement: k (1 - k/n) S², S² = sum of squares / (n - 1).
        variance = variance + density * (1 - density) * len(m) * sum_of_squares / max(len(m) - 1, 1)
    total = _total(q)
    inside = torch.where(mask, q, 0.0).sum()
    return torch.stack([inside / total, mean / total, variance.sqrt() / total.abs()])


def _total(q: Float[Tensor, "P"]) -> Float[Tensor, ""]:
    """The sum of q; NaN where nothing is to be shared."""
    total = q.sum()
    return torch.where(total == 0, torch.nan, total)


def _chance_intervals(
    layout: ParamLayout, masks: Sequence[Tensor], seen: np.ndarray, totals: np.ndarray, seed: int
) -> np.ndarray:
    """The 2.5 and 97.5 % points (q, mask, 2) of the shares in random masks of the same densities.

    seen: `share_null.summary` of every quantity; totals: what each sums to.
    """
    counts = numbers([[m.sum() for m in split(layout, mask)] for mask in masks]).astype(int)
    sizes = [tensor.numel for tensor in layout.tensors]
    return np.array([
        [
            np.quantile(share_null.drawn_shares(parts, sizes, count, seed=seed), [0.025, 0.975])
            / total
            for count in counts
        ]
        for parts, total in zip(seen, totals, strict=True)
    ])  # fmt: skip


def _matched(
    layout: ParamLayout, unit: Float[Tensor, "r P"], V: Float[Tensor, "k P"]
) -> Float[Tensor, "r"]:
    expected = torch.zeros(len(unit), dtype=torch.float64, device=unit.device)
    for tensor in layout.tensors:
        span = slice(tensor.start, tensor.stop)
        energies = vectors.row_norms(unit[:, span]).square()
        expected += energies * vectors.squared_norm(V[:, span]) / tensor.numel
    return expected
