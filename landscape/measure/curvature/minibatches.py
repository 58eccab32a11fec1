"""Curvature and data: eigenvalues of mini-batches, and a bracket of what more data would give."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from landscape import vectors
from landscape.checks import check_choice, check_count
from landscape.errors import LandscapeError
from landscape.linalg import lanczos
from landscape.measure.curvature.operator import TITLES
from landscape.measure.curvature.top import eigenpairs
from landscape.measure.measuring import RESIDUALS, Measuring, generator, numbers
from landscape.results import Variable
from landscape.risk import EmpiricalRisk

_UNITS = "nats / parameter²"


def minibatch_eigenvalues(
    risk: EmpiricalRisk,
    theta: Float[Tensor, "P"],
    *,
    batch_size: int = 32,
    num_batches: int | None = None,
    k: int = 1,
    which: lanczos.Which = "largest",
    matrix: str = "hessian",
    tolerance: float | None = None,
    failure_probability: float = 1.0,
    max_hvps: int | None = None,
    certify: str = "float64",
    seed: int,
) -> xr.Dataset:
    """Top eigenvalues of the Hessian of each mini-batch: the max-eigenvalue spectrum.

    A seeded partition of the examples into disjoint batches of one size (the rest is left out; at
    most num_batches of them), and of each the eigenvalue(batch, rank) of its mean loss, descending,
    with residual_norm and converged (arXiv:2202.06709, section 3). lambda_1 of a batch is biased
    upwards against whole_eigenvalue(rank), that of all examples, the more the smaller the batch.
    The loss is the risk's: label smoothing is part of it, and its weight decay, which shifts every
    value by that constant (both are in the provenance); BatchNorm in the risk's mode, "full_batch"
    with the statistics of the batch. Residuals are in float64 unless certify="none". converged here
    is inclusion alone: nothing is searched for unless failure_probability says so.
    Cost: about 15 products per batch, each of batch_size / N of a product on all examples, and 15
    on all.
    k, which, matrix, tolerance, max_hvps: of each search, as in `top_eigenvalues`.

    Example:
        >>> found = measure.minibatch_eigenvalues(risk, theta, batch_size=16, seed=0)
        >>> found.eigenvalue.sizes["batch"], bool(found.converged.all())
        (3, True)
    """
    measuring = Measuring("minibatch_eigenvalues", risk, theta)
    theta, total = measuring.theta, risk.num_examples
    check_choice("certify", certify, RESIDUALS)
    loss = measuring.finite_loss()
    if not 1 <= batch_size <= total:
        raise LandscapeError(
            f"batch_size={batch_size} was asked of {total} examples; choose 1 to {total}."
        )
    if num_batches is not None:
        check_count("num_batches", num_batches, 1)
    order = torch.randperm(total, generator=generator(seed))
    batches = [rows for rows in order.split(batch_size) if len(rows) == batch_size][:num_batches]
    search: dict[str, Any] = {
        "k": k,
        "which": which,
        "matrix": matrix,
        "tolerance": tolerance,
        "failure_probability": failure_probability,
        "max_hvps": max_hvps,
        "certify": certify,
    }
    whole = eigenpairs(measuring, **search, seed=seed)
    found = [
        _on_rows(risk, theta, rows, search, seed + number) for number, rows in enumerate(batches)
    ]
    options = {"batch_size": batch_size, "num_batches": len(batches), "seed": seed, **search}
    variables = _minibatch_variables(found, whole, TITLES[matrix])
    return measuring.result(
        variables | {"loss": Variable((), float(loss), "nats", "Loss at theta, all examples")},
        coords={"batch": np.arange(len(batches)), "rank": np.arange(k)},
        options=options,
    )


def _on_rows(
    risk: EmpiricalRisk, theta: Tensor, rows: Tensor, search: dict, seed: int, **more: Tensor
) -> lanczos.EigenPairs:
    """Eigenpairs of the mean loss of these rows alone; the cost is counted in passes over all."""
    part = risk.subset(rows)
    pairs = eigenpairs(Measuring("subset", part, theta), **search, **more, seed=seed)
    risk.spend(part.cost * len(rows) / risk.num_examples)
    return pairs


def _minibatch_variables(
    found: list[lanczos.EigenPairs], whole: lanczos.EigenPairs, title: str
) -> dict[str, Variable]:
    dims = ("batch", "rank")
    residual = "Residual ‖Hv − λv‖"

    def rows(name: str) -> np.ndarray:
        return np.stack([numbers(getattr(pairs, name)) for pairs in found])

    counts = np.array([pairs.num_matvecs for pairs in found])
    return {
        "eigenvalue": Variable(dims, rows("values"), _UNITS, f"Mini-batch {title} eigenvalue"),
        "residual_norm": Variable(dims, rows("residual_norms"), _UNITS, residual),
        "converged": Variable(dims, rows("converged").astype(bool), "1", "Converged"),
        "num_hvps": Variable("batch", counts, "1", "Products on the batch"),
        "whole_eigenvalue": Variable(
            "rank", numbers(whole.values), _UNITS, f"{title} eigenvalue, all examples"
        ),
        "whole_residual_norm": Variable("rank", numbers(whole.residual_norms), _UNITS, residual),
        "whole_num_hvps": Variable((), whole.num_matvecs, "1", "Products on all examples"),
    }


def data_bracket(
    risk: EmpiricalRisk,
    theta: Float[Tensor, "P"],
    *,
    num_folds: int = 4,
    sizes: Sequence[int] | None = None,
    num_subsets: int = 4,
    certify: str = "float64",
    seed: int,
) -> xr.Dataset:
    """The largest eigenvalue of the risk's own distribution, bracketed: no t-interval fits it.

    lambda_1 of a sample is biased upwards, E lambda_1(H_N) >= lambda_1(E H), since the maximum is
    convex. Above: `upper`, lambda_1 of all examples. Below: cross-fitted, for each fold B of a
    seeded partition v_Aᵀ H_B v_A with v_A the top eigenvector of all other examples A; v_A does not
    know B, so fold_lower(fold) has a mean of at most lambda_1(E H), and lower is the mean over
    folds. lower_spread = SD over folds / √num_folds is a scale and no standard error: the folds
    share most of their A, and simulated over samples of 64 to 256 examples lower varies by 1.0 to
    2.2 times as much (most where lambda_1 has no gap).
    subset_eigenvalue(fold) is lambda_1 of A.
    How both close in on each other: of up to num_subsets disjoint subsets A for every n of `sizes`
    (default N/16, N/8, N/4, N/2), sized_eigenvalue(sample_size, batch) = lambda_1(H_A) and
    sized_held_out(sample_size, batch) = v_Aᵀ H_B v_A with B the examples not in A; NaN where fewer
    subsets fit. The first falls with n to lambda_1(E H) on average, the second stays below it.
    The examples must be independent draws; both bounds hold in expectation. Only bn "eval", where
    the Hessian is a mean over examples. Residuals in float64 unless certify="none".
    Cost: num_folds + 1 searches of 20 products, and num_subsets searches on n of N examples.
    The bounds are Jensen's inequality and the variational definition of lambda_1; their use here is
    our own.

    Example:
        >>> found = measure.data_bracket(risk, theta, num_folds=2, sizes=[12], seed=0)
        >>> bool(found.lower <= found.upper), found.fold_lower.sizes["fold"]
        (True, 2)
    """
    measuring = Measuring("data_bracket", risk, theta)
    theta, total = measuring.theta, risk.num_examples
    check_choice("certify", certify, RESIDUALS)
    check_count("num_folds", num_folds, 2)
    check_count("num_subsets", num_subsets, 1)
    if num_folds > total:
        raise LandscapeError(f"num_folds={num_folds} asked of {total} examples; choose 2-{total}.")
    sizes = _sizes(sizes, total)
    if risk.has_batchnorm and risk.bn != "eval":
        raise LandscapeError(
            f"data_bracket asked with bn={risk.bn!r}, where examples share statistics and the "
            f"Hessian is no mean over them; use risk.with_bn('eval')."
        )
    loss = measuring.finite_loss()
    whole = eigenpairs(measuring, k=1, certify=certify, seed=seed)
    order = torch.randperm(total, generator=generator(seed))
    start = {"start": whole.vectors[0]}
    folds = torch.tensor_split(order, num_folds)
    fitted = [
        _cross_fitted(risk, theta, order, rows, certify, seed + number + 1, **start)
        for number, rows in enumerate(folds)
    ]
    sized = np.full((2, len(sizes), num_subsets), np.nan)
    for row, size in enumerate(sizes):
        for column, rows in enumerate(order.split(size)[: min(num_subsets, total // size)]):
            rest = order[~torch.isin(order, rows)]
            pair = _cross_fitted(risk, theta, order, rest, certify, seed + column, **start)
            sized[:, row, column] = pair.inside, pair.held_out
    coords = {"fold": np.arange(num_folds), "batch": np.arange(num_subsets)}
    coords["sample_size"] = Variable("sample_size", np.array(sizes), "examples", "Examples")
    options = {"num_folds": num_folds, "num_subsets": num_subsets, "certify": certify, "seed": seed}
    return measuring.result(
        _bracket(whole, fitted, sized)
        | {"loss": Variable((), float(loss), "nats", "Loss at theta")},
        coords=coords,
        options=options,
    )


def _sizes(sizes: Sequence[int] | None, total: int) -> list[int]:
    if sizes is None:
        return sorted({max(1, total // part) for part in (16, 8, 4, 2)})
    for size in sizes:
        if not 1 <= size < total:
            raise LandscapeError(
                f"sizes={list(sizes)} asked of {total} examples; choose 1 to {total - 1}, so that "
                f"some are left to hold out."
            )
    return sorted(set(sizes))


@dataclass(frozen=True)
class _Fitted:
    """lambda_1 of the examples that gave v, and vᵀHv on those that did not."""

    inside: float
    held_out: float
    converged: bool
    count: int


def _cross_fitted(
    risk: EmpiricalRisk,
    theta: Tensor,
    order: Tensor,
    held: Tensor,
    certify: str,
    seed: int,
    *,
    start: Tensor,
) -> _Fitted:
    rest = order[~torch.isin(order, held)]
    search = {"k": 1, "certify": certify}
    pairs = _on_rows(risk, theta, rest, search, seed, start=start)
    out, v = risk.subset(held), pairs.vectors[0].to(theta)
    value = float(vectors.dot(v, out.hvp(theta, v)))
    risk.spend(out.cost * len(held) / risk.num_examples)
    return _Fitted(float(pairs.values[0]), value, bool(pairs.converged[0]), len(rest))


def _bracket(
    whole: lanczos.EigenPairs, fitted: list[_Fitted], sized: np.ndarray
) -> dict[str, Variable]:
    def over_folds(name: str) -> np.ndarray:
        return np.array([getattr(fold, name) for fold in fitted])

    lower, dims = over_folds("held_out"), ("sample_size", "batch")
    error = lower.std(ddof=1) / np.sqrt(len(lower))
    residual = float(whole.residual_norms[0])
    return {
        "upper": Variable((), float(whole.values[0]), _UNITS, "λ₁ of all examples"),
        "upper_residual_norm": Variable((), residual, _UNITS, "Residual ‖Hv − λv‖"),
        "fold_lower": Variable("fold", lower, _UNITS, "v_Aᵀ H_B v_A, held-out curvature"),
        "lower": Variable((), lower.mean(), _UNITS, "Cross-fitted lower estimate of λ₁"),
        "lower_spread": Variable((), error, _UNITS, "SD over folds / √folds, no standard error"),
        "subset_eigenvalue": Variable(
            "fold", over_folds("inside"), _UNITS, "λ₁ of the other examples"
        ),
        "converged": Variable("fold", over_folds("converged"), "1", "Converged"),
        "subset_size": Variable("fold", over_folds("count"), "1", "Examples that gave v_A"),
        "sized_eigenvalue": Variable(dims, sized[0], _UNITS, "λ₁ of a subset"),
        "sized_held_out": Variable(
            dims, sized[1], _UNITS, "Curvature of the other examples along its eigenvector"
        ),
    }
