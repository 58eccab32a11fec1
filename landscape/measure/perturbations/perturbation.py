"""What a variant would perturb at theta: density, energy, radius and effect, tensor by tensor."""

import itertools
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from landscape import sam, vectors
from landscape.errors import LandscapeError
from landscape.measure.measuring import Measuring, numbers, pair_coords, split, tensor_coords
from landscape.measure.perturbations.counterfactual import Counterfactual, check_variants
from landscape.results import Variable
from landscape.risk import EmpiricalRisk


def perturbation(
    risk: EmpiricalRisk,
    theta: Float[Tensor, "P"],
    *,
    variant: sam.Variant,
    batch_size: int = 64,
    bn: str = "batch",
    state: dict[str, Any] | None = None,
    seed: int,
) -> xr.Dataset:
    """The perturbation e that `variant` would make at theta, on one seeded batch of the data.

    Per tensor l: density, energy_share = ‖e_l‖²/‖e‖², parameter_share = n_l/P, perturbation_norm =
    ‖e_l‖, relative_norm = ‖e_l‖/‖w_l‖, first_order_effect = g_l·e_l (nats, g of the same batch).
    Scalars: rho, rho_eff = ‖e‖, radius_ratio = ‖e‖/rho, total_density, loss_increase on the batch
    (in the mode of the step) and loss_increase_full on the whole risk (in the risk's mode), nats.
    bn="batch": the batch's own statistics, as the optimizer sees it; "eval": running statistics.
    state: slot state of a live optimizer (averages, masks); without it F-SAM's average is the mean
    gradient over all batches of the data, and masks are drawn here (`note` in the provenance).
    Cost: a gradient and a loss of the batch, 2 losses of the risk.
    By definition of each variant (`sam.perturb`). batch_size: examples of that batch.

    Example:
        >>> found = measure.perturbation(risk, theta, variant=sam.sam(0.05), batch_size=16, seed=0)
        >>> round(float(found.rho_eff), 6), round(float(found.energy_share.sum()), 6)
        (0.05, 1.0)
    """
    measuring = Measuring("perturbation", risk, theta)
    theta = measuring.theta
    clean = measuring.finite_loss()
    here = Counterfactual(risk, theta, batch_size=batch_size, bn=bn, seed=seed)
    made = here.perturb(variant, state=state)
    e, g, mask = here.flat(made.e), here.flat_gradient(made), here.flat_mask(made)
    moved = theta + e
    full = risk.loss(moved) - clean
    batch_increase = float(here.loss_at(moved) - made.loss_clean)

    layout = risk.layout
    sizes = np.array([tensor.numel for tensor in layout.tensors])
    norms = _norms(split(layout, e))
    weights = _norms(split(layout, theta))
    effects = [vectors.dot(a, b) for a, b in zip(split(layout, g), split(layout, e), strict=True)]
    total = np.sqrt((norms**2).sum())
    rho = float(made.rho)
    chosen = numbers([part.double().mean() for part in split(layout, mask)])
    with np.errstate(divide="ignore", invalid="ignore"):
        share, relative, ratio = norms**2 / total**2, norms / weights, np.divide(total, rho)
    variables = {
        "density": Variable("tensor", chosen, "1", "Share of coordinates perturbed"),
        "energy_share": Variable("tensor", share, "1", "Share of ‖e‖²"),
        "parameter_share": Variable("tensor", sizes / sizes.sum(), "1", "Share of parameters"),
        "perturbation_norm": Variable("tensor", norms, "1", "‖e‖ of the tensor"),
        "relative_norm": Variable("tensor", relative, "1", "‖e‖/‖w‖ of the tensor"),
        "first_order_effect": Variable("tensor", numbers(effects), "nats", "g·e of the tensor"),
        "rho": Variable((), rho, "1", "Radius ρ asked"),
        "rho_eff": Variable((), total, "1", "Effective radius ‖e‖"),
        "radius_ratio": Variable((), ratio, "1", "‖e‖/ρ"),
        "total_density": Variable(
            (), float(mask.double().mean()), "1", "Share of all coordinates perturbed"
        ),
        "loss_increase": Variable((), batch_increase, "nats", "Loss increase on the batch"),
        "loss_increase_full": Variable((), float(full), "nats", "Loss increase on all examples"),
    }
    options = {
        "variant": variant.name,
        "batch_size": here.batch_size,
        "bn": bn,
        "batch_bn": bn,
        "note": made.note,
        "seed": seed,
    }
    return measuring.result(variables, coords=tensor_coords(layout), options=options)


def perturbation_cosines(
    risk: EmpiricalRisk,
    theta: Float[Tensor, "P"],
    *,
    variants: Mapping[str, sam.Variant],
    batch_size: int = 64,
    bn: str = "batch",
    states: Mapping[str, dict[str, Any]] | None = None,
    seed: int,
) -> xr.Dataset:
    """Angle between the perturbations of several variants at one theta, on one seeded batch.

    cosine(pair, tensor) = e_a·e_b/(‖e_a‖‖e_b‖) of one tensor and cosine_squared, the overlap of
    what is really perturbed, sizes and signs included; NaN where one of the two leaves the tensor
    alone. expected(tensor) = 1/n_l, the mean square for independent directions. cosine_all(pair),
    cosine_squared_all, expected_all = 1/P: over all tensors. Cost: one gradient of the
    batch for all variants, and one for each that finds an ascent of its own.
    By definition of the cosine. bn: "batch" or "eval", the BatchNorm mode of the batch.

    Example:
        >>> both = {"sam": sam.sam(), "zsharp": sam.zsharp(percentile=0.5)}
        >>> found = measure.perturbation_cosines(risk, theta, variants=both, batch_size=16, seed=0)
        >>> bool((abs(found.cosine_all) <= 1).all())
        True
    """
    check_variants("perturbation_cosines", variants)
    if len(variants) < 2:
        raise LandscapeError(
            f"perturbation_cosines got {len(variants)} variant; it compares two or more, by name."
        )
    measuring = Measuring("perturbation_cosines", risk, theta)
    measuring.finite_loss()
    here = Counterfactual(risk, measuring.theta, batch_size=batch_size, bn=bn, seed=seed)
    found = {}
    for name, variant in variants.items():
        # A seed each: two variants that draw at random must not share their draws.
        made = here.perturb(
            variant,
            state=None if states is None else states.get(name),
            seed=seed + zlib.crc32(name.encode()),
        )
        found[name] = here.flat(made.e)
    pairs = list(itertools.combinations(found, 2))
    layout = risk.layout
    parts = {name: split(layout, e) for name, e in found.items()}
    rows = [[*map(vectors.cosine, parts[a], parts[b]), vectors.cosine(found[a], found[b])]
            for a, b in pairs]  # fmt: skip
    cosines = numbers(rows)
    each, every = cosines[:, :-1], cosines[:, -1]
    sizes = np.array([tensor.numel for tensor in layout.tensors])
    both, title = ("pair", "tensor"), "Cosine of the perturbations"
    variables = {
        "cosine": Variable(both, each, "1", title),
        "cosine_squared": Variable(both, each**2, "1", f"{title}, squared"),
        "expected": Variable("tensor", 1 / sizes, "1", "cos² of independent directions"),
        "cosine_all": Variable("pair", every, "1", f"{title}, all tensors"),
        "cosine_squared_all": Variable("pair", every**2, "1", f"{title}, squared, all tensors"),
        "expected_all": Variable((), 1 / sizes.sum(), "1", "cos² of independent directions, all"),
    }
    options = {
        "variants": {name: variant.name for name, variant in variants.items()},
        "batch_size": here.batch_size,
        "bn": bn,
        "batch_bn": bn,
        "seed": seed,
    }
    return measuring.result(
        variables, coords=tensor_coords(layout) | pair_coords(pairs), options=options
    )


def _norms(parts: list[Tensor]) -> np.ndarray:
    return numbers(vectors.norms(parts))
