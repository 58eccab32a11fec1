"""Curvature and data: eigenvalues of mini-batches, and a bracket of what more data would give."""

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from landscape.errors import LandscapeError
from landscape.linalg import lanczos
from landscape.measure._common import Measuring, check_count, generator, numbers
from landscape.measure._inside import spend
from landscape.measure.curvature import eigenpairs
from landscape.measure.gauss_newton import TITLES, Operator
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
    which: str = "largest",
    matrix: str = "hessian",
    tolerance: float | None = None,
    failure_probability: float = 1.0,
    max_hvps: int | None = None,
    seed: int,
) -> xr.Dataset:
    """Top eigenvalues of the Hessian of each mini-batch: the max-eigenvalue spectrum.

    A seeded partition of the examples into disjoint batches of one size (the rest is left out; at
    most num_batches of them), and of each the eigenvalue(batch, rank) of its mean loss, descending,
    with residual_norm and converged (arXiv:2202.06709, section 3). lambda_1 of a batch is biased
    upwards against that of all examples, the more the smaller the batch. The loss is the risk's:
    label smoothing is part of it, and its weight decay, which shifts every value by that constant
    (both are in the provenance); BatchNorm in the risk's mode, "full_batch" with the statistics of
    the batch. converged here is inclusion alone: nothing is searched for unless failure_probability
    says so. Cost: about 15 products per batch, each of batch_size / N of a product on all examples.
    """
    measuring = Measuring("minibatch_eigenvalues", risk, theta)
    theta, total = measuring.theta, risk.num_examples
    loss = measuring.finite_loss()
    if not 1 <= batch_size <= total:
        raise LandscapeError(
            f"batch_size={batch_size} was asked of {total} examples; choose 1 to {total}."
        )
    if num_batches is not None:
        check_count("num_batches", num_batches, 1)
    order = torch.randperm(total, generator=generator(seed))
    batches = [rows for rows in order.split(batch_size) if len(rows) == batch_size][:num_batches]
    found = []
    for number, rows in enumerate(batches):
        part = risk.subset(rows)
        operator = Operator.of(part, theta, matrix=matrix)
        found.append(
            lanczos.top(
                operator,
                operator.size,
                k=k,
                which=which,
                tolerance=tolerance,
                failure_probability=failure_probability,
                max_matvecs=max_hvps,
                generator=generator(seed + number),
                dtype=theta.dtype,
                device=theta.device,
            )
        )
        spend(risk, part.cost * len(rows) / total)
    dims = ("batch", "rank")
    variables = {
        "eigenvalue": Variable(
            dims, _rows(found, "values"), _UNITS, f"Mini-batch {TITLES[matrix]} eigenvalue"
        ),
        "residual_norm": Variable(
            dims, _rows(found, "residual_norms"), _UNITS, "Residual ‖Hv − λv‖"
        ),
        "converged": Variable(dims, _rows(found, "converged").astype(bool), "1", "Converged"),
        "num_hvps": Variable(
            "batch", np.array([pairs.num_matvecs for pairs in found]), "1", "Products on the batch"
        ),
        "loss": Variable((), float(loss), "nats", "Loss at theta, all examples"),
    }
    options = {"batch_size": batch_size, "num_batches": len(batches), "k": k, "which": which}
    more = {"matrix": matrix, "failure_probability": failure_probability, "seed": seed}
    coords = {"batch": np.arange(len(batches)), "rank": np.arange(k)}
    return measuring.result(variables, coords=coords, options=options | more)


def _rows(found: list[lanczos.EigenPairs], name: str) -> np.ndarray:
    return np.stack([numbers(getattr(pairs, name)) for pairs in found])


def data_bracket(
    risk: EmpiricalRisk,
    theta: Float[Tensor, "P"],
    *,
    num_folds: int = 4,
    seed: int,
) -> xr.Dataset:
    """The largest eigenvalue of the risk's own distribution, bracketed: no t-interval fits it.

    lambda_1 of a sample is biased upwards, E lambda_1(H_N) >= lambda_1(E H), since the maximum is
    convex. Above: `upper`, lambda_1 of all examples. Below: cross-fitted, for each fold B of a
    seeded partition v_Aᵀ H_B v_A with v_A the top eigenvector of all other examples A; v_A does not
    know B, so lower(fold) has a mean of at most lambda_1(E H), and lower with lower_stderr are mean
    and standard error over folds (whose A overlap: read it as a scale). subset_eigenvalue(fold) is
    lambda_1 of A. The examples must be independent draws; both bounds hold in expectation. Only bn
    "eval", where the Hessian is a mean over examples. Cost: num_folds + 1 searches of 20 products.
    """
    measuring = Measuring("data_bracket", risk, theta)
    theta, total = measuring.theta, risk.num_examples
    check_count("num_folds", num_folds, 2)
    if num_folds > total:
        raise LandscapeError(f"num_folds={num_folds} asked of {total} examples; choose 2-{total}.")
    if risk.has_batchnorm and risk.bn != "eval":
        raise LandscapeError(
            f"data_bracket asked with bn={risk.bn!r}, where examples share statistics and the "
            f"Hessian is no mean over them; use risk.with_bn('eval')."
        )
    loss = measuring.finite_loss()
    whole = eigenpairs(measuring, k=1, seed=seed)
    order = torch.randperm(total, generator=generator(seed))
    folds = torch.tensor_split(order, num_folds)
    lower, inside, fitted = [], [], []
    for number, rows in enumerate(folds):
        rest = risk.subset(torch.cat([*folds[:number], *folds[number + 1 :]]))
        part = Measuring("data_bracket", rest, theta)
        pairs = eigenpairs(part, k=1, start=whole.vectors[0], seed=seed + number + 1)
        held = risk.subset(rows)
        v = pairs.vectors[0]
        lower.append(float(v.double() @ held.hvp(theta, v).double()))
        inside.append(float(pairs.values[0]))
        fitted.append(bool(pairs.converged[0]))
        spend(risk, (rest.cost * rest.num_examples + held.cost * len(rows)) / total)
    lower, inside = np.array(lower), np.array(inside)
    sizes = np.array([total - len(rows) for rows in folds])
    variables = {
        "upper": Variable((), float(whole.values[0]), _UNITS, "λ₁ of all examples"),
        "upper_residual_norm": Variable(
            (), float(whole.residual_norms[0]), _UNITS, "Residual ‖Hv − λv‖"
        ),
        "fold_lower": Variable("fold", lower, _UNITS, "v_Aᵀ H_B v_A, held-out curvature"),
        "lower": Variable((), lower.mean(), _UNITS, "Cross-fitted lower estimate of λ₁"),
        "lower_stderr": Variable(
            (), lower.std(ddof=1) / np.sqrt(num_folds), _UNITS, "Standard error over folds"
        ),
        "subset_eigenvalue": Variable("fold", inside, _UNITS, "λ₁ of the other examples"),
        "converged": Variable("fold", np.array(fitted), "1", "Converged"),
        "subset_size": Variable("fold", sizes, "1", "Examples that gave v_A"),
        "loss": Variable((), float(loss), "nats", "Loss at theta"),
    }
    options = {"num_folds": num_folds, "seed": seed}
    return measuring.result(variables, coords={"fold": np.arange(num_folds)}, options=options)
