"""Eigenvalues and trace of the Hessian of the risk."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from landscape.checks import check_choice, check_count
from landscape.errors import Interrupted, LandscapeError
from landscape.linalg import lanczos, trace
from landscape.measure.curvature import certificates
from landscape.measure.curvature.operator import TITLES, Operator
from landscape.measure.measuring import Measuring, generator, interval, numbers
from landscape.params import Select
from landscape.results import Variable
from landscape.risk import EmpiricalRisk


def top_eigenvalues(
    risk: EmpiricalRisk,
    theta: Float[Tensor, "P"],
    *,
    k: int = 5,
    which: lanczos.Which = "largest",
    tolerance: float | None = None,
    max_hvps: int | None = None,
    max_basis: int | None = None,
    failure_probability: float = 0.01,
    search: bool = True,
    certify: str = "auto",
    matrix: str = "hessian",
    select: Select | None = None,
    start: Float[Tensor, "*r P"] | None = None,
    return_vectors: bool = False,
    seed: int,
) -> xr.Dataset:
    """Eigenvalues lambda_i of the Hessian H of the risk at theta, with ‖H v_i - lambda_i v_i‖.

    Lanczos with full reorthogonalization; eigenvalue(rank) is in descending order, in loss units
    per squared parameter. Two claims, kept apart:
    Inclusion, a theorem for the v_i found, orthonormal: lambda_i ± bound(rank) holds an eigenvalue
    of H, and k of them, counted with multiplicity, pair off with the lambda_i within
    subspace_bound = ‖HV - V Lambda‖₂ (Parlett, The Symmetric Eigenvalue Problem, ch. 11). bound is
    residual_norm and rounding. certify: the products of the residuals are made in "float64" even
    where the risk is float32 (k of the num_hvps, certificate_hvps); in the "working" precision, the
    residuals then being those of the recurrence and the bounds what they would be if ‖(H₃₂ - H₆₄)V‖
    were √(2/π) / delta times its measured value for one normal combination of the vectors
    (product_error, one product), a theorem but for a probability of delta = failure_probability
    (0.01 without a search); or in the working precision with nothing added, "none". "auto" is
    "float64" for less than ten million parameters times examples, and "working" for ten million
    parameters and more, where k float64 products cost as much as all others; between them one
    product is made, then a second, whose bound is √(2/π) / √delta times the larger measured value,
    with half of delta for each, and it is "working" where residuals and such a bound together keep
    the tolerance, and else "float64", the k products being made whole. A model that fails in
    float64 falls back to "working" with an unknown product_error (nan). certify_reason in the
    provenance says why.
    Completeness: nothing larger than the smallest was overlooked (`complete`), by searches from
    fresh random vectors in the complement (restarts, search_hvps of the products), the last of
    which would have missed it with probability at most search_failure_probability
    (`linalg.lanczos.top`). search_share of the products are theirs, often a quarter to a third;
    search=False (or failure_probability=1) makes none: `complete` is then false, `converged` claims
    the residual alone, and copies of an eigenvalue, which one start does not show, may be missing.
    converged(rank) claims both: residual <= tolerance * max |lambda| (default 1e-6 in float64, 1e-4
    below), and complete. Nothing is converged where a probe before the first product finds that the
    gradient is not the slope of the loss or the product not symmetric: `unsound` in the provenance
    says why and in which tensors, `probe` its numbers (EmpiricalRisk.probe).
    ratio = lambda_1 / lambda_k of these, free of the loss's scale.
    which: "largest", "smallest", "both" (half of k at each end) or "magnitude". matrix: "hessian",
    or "ggn", the generalized Gauss-Newton matrix. select: kinds, names or globs of tensors; then
    the eigenvalues are those of the diagonal block of these coordinates. start: a vector or the
    eigenvector(rank, parameter) of another checkpoint, which return_vectors=True stores (zero
    outside of a selection).
    Cost: num_hvps Hessian products of about 2.5 gradients each; max_hvps bounds them,
    max_basis the vectors (of P numbers) held at once, at the price of more products.
    Ctrl-C raises errors.Interrupted, whose `partial` is this result as far as it is known, with
    interrupted=True among its attributes, nothing converged and no bounds.

    Example:
        >>> found = measure.top_eigenvalues(risk, theta, k=3, seed=0)
        >>> found.eigenvalue.dims, found.eigenvalue.attrs["units"]
        (('rank',), 'nats / parameter²')
        >>> found.converged.values.tolist(), bool((found.bound < 1e-6).all())
        ([True, True, True], True)
    """
    measuring = Measuring("top_eigenvalues", risk, theta)
    certify, reason = certificates.chosen(certify, risk, k)
    loss = measuring.finite_loss()
    product = Operator.of(risk, measuring.theta, matrix=matrix, select=select)
    options = {
        "k": k,
        "which": which,
        "tolerance": tolerance or lanczos.TOLERANCE.get(risk.dtype, 1e-4),
        "failure_probability": failure_probability,
        "search": search and failure_probability < 1,
        "certify": certify,
        **reason,
        "matrix": matrix,
        "select": select and [tensor.name for tensor in risk.layout.select(select)],
        "warm_start": start is not None,
        "seed": seed,
    }

    def result(pairs: lanczos.EigenPairs, options: dict[str, Any]) -> xr.Dataset:
        proof = certificates.certify(pairs, risk, how=certify)
        return measuring.result(
            {
                **_pairs_variables(pairs, proof, TITLES[matrix], product.size),
                **(
                    _vectors(product.embed(pairs.vectors), TITLES[matrix]) if return_vectors else {}
                ),
                "loss": Variable((), float(loss), "nats", "Loss at theta"),
            },
            coords={"rank": np.arange(len(pairs.values))},
            options=options | certificates.made(certify, pairs),
        )

    try:
        pairs = eigenpairs(
            measuring,
            product=product,
            matrix=matrix,
            k=k,
            which=which,
            tolerance=tolerance,
            max_hvps=max_hvps,
            max_basis=max_basis,
            failure_probability=failure_probability if search else 1.0,
            certify=certify,
            start=_warm(start, product),
            seed=seed,
        )
    except Interrupted as stop:
        stop.partial = stop.partial and result(stop.partial, options | {"interrupted": True})
        raise
    return result(pairs, options)


def _pairs_variables(
    pairs: lanczos.EigenPairs, proof: certificates.Certificate, title: str, size: int
) -> dict[str, Variable]:
    units, count = "nats / parameter²", len(pairs.values)
    first, last = float(pairs.values[0]), float(pairs.values[-1])
    ratio = first / last if last else math.nan
    off, probability = "‖(H₃₂ − H₆₄)V g‖, g normal", pairs.failure_probability
    searched = not math.isnan(probability) or count == size
    complete = bool(pairs.complete) and searched
    return {
        "eigenvalue": Variable("rank", numbers(pairs.values), units, f"{title} eigenvalue"),
        "ratio": Variable((), ratio, "1", "λ₁ / λ_k"),
        "residual_norm": Variable(
            "rank", numbers(pairs.residual_norms), units, "Residual ‖Hv − λv‖"
        ),
        "bound": Variable("rank", numbers(proof.bounds), units, "An eigenvalue lies within"),
        "converged": Variable("rank", numbers(pairs.converged).astype(bool), "1", "Converged"),
        "complete": Variable((), complete, "1", "Searched for overlooked eigenvalues"),
        "subspace_bound": Variable((), pairs.subspace_bound, units, "‖HV − VΛ‖₂"),
        "product_error": Variable((), proof.product_error, units, off),
        "num_hvps": Variable((), pairs.num_matvecs, "1", "Hessian-vector products"),
        "certificate_hvps": Variable(
            (), pairs.proof_matvecs, "1", "Products that prove the bounds"
        ),
        "search_hvps": Variable((), pairs.search_matvecs, "1", "Products of the searches"),
        "search_share": Variable(
            (), pairs.search_matvecs / max(1, pairs.num_matvecs), "1", "Share of the searches"
        ),
        "restarts": Variable((), pairs.restarts, "1", "Searches for overlooked eigenvalues"),
        "search_failure_probability": Variable(
            (), probability, "1", "Probability that the last search missed one"
        ),
    }


def _vectors(V: Tensor, title: str) -> dict[str, Variable]:
    name = f"Eigenvector of the {title}"
    return {"eigenvector": Variable(("rank", "parameter"), numbers(V), "1", name)}


def _warm(start: Tensor | None, product: Operator) -> Tensor | None:
    """One vector that holds all that were given, on the coordinates of the operator."""
    if start is None:
        return None
    whole = start.sum(0) if start.ndim == 2 else start
    chosen = product.index is not None and len(whole) == product.num_parameters
    return product.chosen(whole) if chosen else whole


def eigenpairs(
    measuring: Measuring,
    *,
    k: int,
    which: lanczos.Which = "largest",
    tolerance: float | None = None,
    max_hvps: int | None = None,
    max_basis: int | None = None,
    failure_probability: float = 0.01,
    certify: str = "none",
    product: Operator | None = None,
    matrix: str = "hessian",
    start: Float[Tensor, "P"] | None = None,
    seed: int,
) -> lanczos.EigenPairs:
    """Eigenvalues and eigenvectors at the theta of a measurement, as `lanczos.top` returns them."""
    risk, theta = measuring.risk, measuring.theta
    product = Operator.of(risk, theta, matrix=matrix) if product is None else product
    exact, sampled = None, False
    if certify != "none" and risk.dtype != torch.float64:
        exact = certificates.float64_products(
            risk, theta, matrix=matrix, index=product.index, instead=product,
            keep=certify == "auto",
        )  # fmt: skip
        sampled = certify in ("auto", "working") and k > 1 and exact is not None
    pairs = lanczos.top(
        product,
        product.size,
        k=k,
        which=which,
        tolerance=tolerance,
        max_matvecs=max_hvps,
        max_basis=max_basis,
        failure_probability=failure_probability,
        generator=generator(seed),
        dtype=theta.dtype,
        device=theta.device,
        start=start,
        certificate=exact,
        sampled=sampled,
        sampled_within=1.0 if certify == "auto" else math.inf,
        like=product.like(theta),
        into=True,
    )
    return certificates.sound(pairs, risk, matrix)


TRACES = ("hutchinson", "hutch++")
_PILOT = 10  # probes that fix the number of probes


def hessian_trace(
    risk: EmpiricalRisk,
    theta: Float[Tensor, "P"],
    *,
    num_probes: int = 30,
    target_stderr: float | None = None,
    max_probes: int = 10_000,
    method: str = "hutchinson",
    matrix: str = "hessian",
    select: Select | None = None,
    seed: int,
) -> xr.Dataset:
    """Trace of H by Hutchinson's estimate, the mean of vᵀHv over Rademacher probes v.

    trace_sample(probe), trace, trace_stderr = sd / sqrt(num_probes), in loss units per squared
    parameter; Var vᵀHv = 2 (‖H‖_F² - sum_i H_ii²). trace_low to trace_high: Student's 95 % interval
    over the probes. It covers 92-95 % where ten directions or more share the curvature, whatever
    the number of probes; where one eigenvalue makes up half of the trace or more, vᵀHv is as skewed
    as chi-square with one degree of freedom, and it covers 81-87 % at 2 to 10 probes and 91 % at
    30. Probes depend on the seed alone: differences between models of one architecture are paired.
    The number of probes is fixed beforehand, since stopping when the mean looks settled biases it:
    target_stderr asks a pilot of 10 other probes for the number, (sd / target)² of at most
    max_probes, and runs that many.
    method "hutch++" (arXiv:2010.09649) spends a third of num_probes products on a subspace Q and a
    third on its exact trace; trace_sample holds the rest, and trace_stderr is given Q. Better from
    some 30 products on. matrix: "hessian" or "ggn"; select: the block of these tensors.
    Cost: num_probes Hessian products (10 more for a target). Ctrl-C raises errors.Interrupted:
    `partial` is the result of the probes so far, interrupted=True among its attributes (None for
    hutch++, and of less than two probes).

    Example:
        >>> found = measure.hessian_trace(risk, theta, num_probes=4, seed=0)
        >>> found.trace_sample.sizes["probe"], found.trace.attrs["units"]
        (4, 'nats / parameter²')
        >>> bool(found.trace_low < found.trace < found.trace_high)
        True
    """
    measuring = Measuring("hessian_trace", risk, theta)
    check_count("num_probes", num_probes, 2)
    check_choice("method", method, TRACES)
    loss, theta = measuring.finite_loss(), measuring.theta
    operator = Operator.of(risk, theta, matrix=matrix, select=select)
    hutchinson = partial(
        trace.hutchinson, operator, operator.size, dtype=theta.dtype, device=theta.device,
        like=operator.like(theta),
    )  # fmt: skip
    if target_stderr is not None:
        num_probes = _enough_probes(hutchinson, target_stderr, max_probes, method, seed)
    options = {
        "num_probes": num_probes,
        "target_stderr": target_stderr,
        "method": method,
        "matrix": matrix,
        "select": select and [tensor.name for tensor in risk.layout.select(select)],
        "seed": seed,
    }
    title = f"Trace of the {TITLES[matrix]}"

    def result(samples: np.ndarray, options: dict[str, Any]) -> xr.Dataset:
        return measuring.result(
            _trace_variables(samples, title)
            | {"loss": Variable((), float(loss), "nats", "Loss at theta")},
            coords={"probe": np.arange(len(samples))},
            options=options,
        )

    if method == "hutch++":
        found = trace.hutchpp(
            operator, operator.size, num_matvecs=num_probes, generator=generator(seed),
            dtype=theta.dtype, device=theta.device, like=operator.like(theta),
        )  # fmt: skip
        return result(numbers(found.samples), options)
    try:
        samples = hutchinson(num_probes=num_probes, generator=generator(seed))
    except Interrupted as stop:
        known = np.empty(0) if stop.partial is None else numbers(stop.partial)
        cut = options | {"num_probes": len(known), "interrupted": True}
        stop.partial = result(known, cut) if len(known) > 1 else None
        raise
    return result(numbers(samples), options)


def _trace_variables(samples: np.ndarray, title: str) -> dict[str, Variable]:
    units = "nats / parameter²"
    error = samples.std(ddof=1) / np.sqrt(len(samples))
    return {
        "trace_sample": Variable("probe", samples, units, "vᵀHv of one probe"),
        "trace": Variable((), samples.mean(), units, title),
        "trace_stderr": Variable((), error, units, "Standard error of the trace over probes"),
        **interval("trace", samples, (), units),
    }


def _enough_probes(
    hutchinson: Callable[..., Tensor], target: float, most: int, method: str, seed: int
) -> int:
    if method != "hutchinson" or not target > 0:
        raise LandscapeError(
            f"target_stderr={target} asked of method={method!r}; it must be above 0, and of "
            f"'hutchinson', whose error is known from a pilot. For 'hutch++' give num_probes."
        )
    # Of a stream of its own: the probes that count stay those of the seed.
    pilot = hutchinson(num_probes=_PILOT, generator=generator(seed + 1_000_003))
    spread = float(pilot.double().std())
    number = max(2, math.ceil((spread / target) ** 2))
    if number > most:
        raise LandscapeError(
            f"target_stderr={target} asked; a pilot of {_PILOT} probes has sd {spread:.3g}, so it "
            f"takes {number} probes where max_probes={most} are allowed. Raise max_probes or the "
            f"target."
        )
    return number
