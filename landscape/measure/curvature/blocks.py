"""Curvature tensor by tensor: eigenvalue and trace of diagonal blocks, the diagonal itself."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import scipy
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from landscape import vectors
from landscape.checks import check_choice, check_count
from landscape.errors import LandscapeError
from landscape.linalg import lanczos
from landscape.linalg.trace import rademacher
from landscape.measure.curvature import certificates
from landscape.measure.curvature.operator import TITLES, Operator
from landscape.measure.measuring import Measuring, generator, interval, numbers
from landscape.params import ParamLayout
from landscape.results import Variable
from landscape.risk import EmpiricalRisk

BY = ("tensor", "module", "kind")
_UNITS = "nats / parameter²"


def block_curvature(
    risk: EmpiricalRisk,
    theta: Float[Tensor, "P"],
    *,
    by: str | int | Mapping[str, str | Sequence[str]] = "tensor",
    num_probes: int = 30,
    matrix: str = "hessian",
    tolerance: float | None = None,
    max_hvps: int | None = None,
    certify: str = "float64",
    seed: int,
) -> xr.Dataset:
    """Largest eigenvalue and trace of every diagonal block H_ll of the Hessian, by one graph.

    Blocks are single tensors, modules (weight and bias together) or kinds ("conv", "norm", ...). by
    may also be a table of patterns on the names of tensors, {"attention": "*attn*", "mlp":
    ["*mlp*", "*fc*"]}, what none of them matches being the block "(rest)"; or a depth, such as 2
    for the blocks "layers.0", "layers.1", ... that the names of modules begin with.
    eigenvalue(block) with residual_norm, bound and converged as `top_eigenvalues` has them.
    trace_sample(block, probe) = v_lᵀ(Hv)_l: one product serves all blocks, and the sums over blocks
    are the samples of `hessian_trace` for the same seed; trace(block), trace_stderr(block) and
    trace_low(block) to trace_high(block), the interval that `hessian_trace` describes.
    scaled_eigenvalue(block) = eigenvalue * ‖w_l‖², which rescaling a scale-invariant layer leaves
    alone (H(aw) = H(w)/a²); a layer is scale-invariant where gradient_cosine(block) = g_l·w_l /
    (‖g_l‖ ‖w_l‖) vanishes, as before BatchNorm in mode "full_batch", never in "eval".
    parameter_share(block) stands beside. matrix: "hessian" or "ggn".
    Cost: num_probes products, and some 15 for each block.
    Definition: block l is H restricted to the coordinates of l, and its extreme eigenvalues are
    found as in `top_eigenvalues`.

    Example:
        >>> found = measure.block_curvature(risk, theta, by="module", num_probes=4, seed=0)
        >>> found.block.values.tolist()
        ['0', '1', '3']
        >>> trace = measure.hessian_trace(risk, theta, num_probes=4, seed=0)
        >>> bool(np.isclose(found.trace.sum(), trace.trace))
        True
    """
    measuring = Measuring("block_curvature", risk, theta)
    check_count("num_probes", num_probes, 2)
    check_choice("certify", certify, certificates.CERTIFY)
    loss, theta = measuring.finite_loss(), measuring.theta
    names, owner = blocks_of(risk.layout, by)
    operator = Operator.of(risk, theta, matrix=matrix)
    exact = None
    if certify != "none" and risk.dtype != torch.float64:
        exact = certificates.float64_products(risk, theta, matrix=matrix, keep=True)
    rows = []
    for number in range(len(names)):
        index = (owner == number).nonzero()[:, 0].to(theta.device)
        pairs = _largest(operator, index, theta, exact, tolerance, max_hvps, seed)
        pairs = certificates.sound(pairs, risk, matrix)
        proof = certificates.certify(pairs, risk, how=certify)
        rows.append(_row(pairs, proof))
    columns = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    samples = _trace_samples(operator, owner, len(names), num_probes, theta, seed)
    by = (
        {k: v if isinstance(v, str) else list(v) for k, v in by.items()}
        if isinstance(by, Mapping)
        else by
    )
    options = {"by": by, "num_probes": num_probes, "matrix": matrix, "certify": certify}
    return measuring.result(
        _variables(columns, samples, TITLES[matrix])
        | _weights(risk, theta, owner, len(names), columns["eigenvalue"])
        | {"loss": Variable((), float(loss), "nats", "Loss at theta")},
        coords={"block": np.array(names, dtype=object), "probe": np.arange(num_probes)},
        options=options | {"tolerance": tolerance, "seed": seed},
    )


def blocks_of(layout: ParamLayout, by: Any) -> tuple[list[str], Tensor]:
    """Names in order of appearance, and the number of the block of each coordinate."""
    labels = _labels(layout, by)
    names = list(dict.fromkeys(labels))
    owner = torch.empty(layout.num_parameters, dtype=torch.long)
    for tensor, label in zip(layout.tensors, labels, strict=True):
        owner[tensor.start : tensor.stop] = names.index(label)
    return [name or "(model)" for name in names], owner


def _labels(layout: ParamLayout, by: Any) -> list[str]:
    """The name of the block of each tensor."""
    if isinstance(by, Mapping):
        return by_patterns(layout, by)
    if isinstance(by, int) and not isinstance(by, bool):
        check_count("by", by, hint=", a depth in the names of modules")
        return [".".join(tensor.module.split(".")[:by]) for tensor in layout.tensors]
    check_choice("by", by, BY)
    label = {"tensor": "name", "module": "module", "kind": "kind"}[by]
    return [getattr(tensor, label) for tensor in layout.tensors]


def by_patterns(layout: ParamLayout, by: Mapping[str, str | Sequence[str]]) -> list[str]:
    """Refused where a pattern matches nothing, or two of them the same tensor."""
    found: dict[str, str] = {}
    for block, patterns in by.items():
        for tensor in layout.select(patterns):
            if tensor.name in found:
                raise LandscapeError(
                    f"by: {tensor.name!r} is matched by the patterns of {found[tensor.name]!r} and "
                    f"of {block!r}; a tensor belongs to one block, so make them disjoint."
                )
            found[tensor.name] = str(block)
    return [found.get(tensor.name, "(rest)") for tensor in layout.tensors]


def _largest(
    operator: Operator,
    index: Tensor,
    theta: Tensor,
    exact: Callable[[Tensor], Tensor] | None,
    tolerance: float | None,
    max_hvps: int | None,
    seed: int,
) -> lanczos.EigenPairs:
    block = operator.block(index)
    dtype, device = theta.dtype, theta.device
    proven = None if exact is None else _within(exact, block)
    if len(index) > 1:
        return lanczos.top(
            block,
            len(index),
            k=1,
            tolerance=tolerance,
            max_matvecs=max_hvps,
            generator=generator(seed),
            dtype=dtype,
            device=device,
            certificate=proven,
        )
    one = torch.ones(1, 1, dtype=dtype, device=device)
    value = (proven or block)(one)[0]
    nothing, sure = torch.zeros_like(value), torch.ones(1, dtype=torch.bool)
    return lanczos.EigenPairs(value, one, nothing, sure, 1, True, 0.0, 0, 0, 0.0)


def _within(exact: Callable[[Tensor], Tensor], block: Operator) -> Callable[[Tensor], Tensor]:
    """The rows and columns of a block."""
    return lambda V: block.chosen(exact(block.embed(V)))


def _row(pairs: lanczos.EigenPairs, proof: certificates.Certificate) -> dict[str, float]:
    return {
        "eigenvalue": float(pairs.values[0]),
        "residual_norm": float(pairs.residual_norms[0]),
        "bound": float(proof.bounds[0]),
        "converged": bool(pairs.converged[0]),
        "num_hvps": pairs.num_matvecs,
    }


def _trace_samples(
    operator: Operator, owner: Tensor, count: int, num_probes: int, theta: Tensor, seed: int
) -> np.ndarray:
    owner, samples = owner.to(theta.device), []
    for v, product in _probed(operator, num_probes, theta, seed):
        sums = torch.zeros(count, dtype=torch.float64, device=theta.device)
        samples.append(sums.index_add_(0, owner, (v * product).double()))
    return numbers(torch.stack(samples, dim=1))


def _probed(
    operator: Operator, num_probes: int, theta: Tensor, seed: int
) -> Iterator[tuple[Tensor, Tensor]]:
    source = generator(seed)
    for _ in range(num_probes):
        v = rademacher(theta.shape, generator=source, dtype=theta.dtype, device=theta.device)
        yield v, operator(v)


def _variables(
    columns: dict[str, np.ndarray], samples: np.ndarray, title: str
) -> dict[str, Variable]:
    error = samples.std(axis=1, ddof=1) / np.sqrt(samples.shape[1])
    return {
        "eigenvalue": Variable(
            "block", columns["eigenvalue"], _UNITS, f"Largest eigenvalue of the {title}'s block"
        ),
        "residual_norm": Variable("block", columns["residual_norm"], _UNITS, "Residual ‖Hv − λv‖"),
        "bound": Variable("block", columns["bound"], _UNITS, "An eigenvalue lies within"),
        "converged": Variable("block", columns["converged"], "1", "Converged"),
        "num_hvps": Variable("block", columns["num_hvps"], "1", "Products for the eigenvalue"),
        "trace_sample": Variable(("block", "probe"), samples, _UNITS, "vᵀHv within the block"),
        "trace": Variable("block", samples.mean(axis=1), _UNITS, f"Trace of the {title}'s block"),
        "trace_stderr": Variable("block", error, _UNITS, "Standard error over probes"),
        **interval("trace", samples.T, "block", _UNITS),
    }


def _weights(
    risk: EmpiricalRisk, theta: Tensor, owner: Tensor, count: int, values: np.ndarray
) -> dict[str, Variable]:
    gradient, owner = risk.gradient(theta).double(), owner.to(theta.device)
    weights = theta.double()

    def per_block(x: Tensor) -> np.ndarray:
        return numbers(torch.zeros(count, dtype=x.dtype, device=x.device).index_add_(0, owner, x))

    squares, slopes = per_block(weights.square()), per_block(gradient.square())
    with np.errstate(divide="ignore", invalid="ignore"):
        cosine = per_block(weights * gradient) / np.sqrt(squares * slopes)
    sizes = per_block(torch.ones_like(weights))
    return {
        "scaled_eigenvalue": Variable("block", values * squares, "nats", "λ‖w‖² of the block"),
        "weight_norm": Variable("block", np.sqrt(squares), "parameter", "‖w‖ of the block"),
        "gradient_cosine": Variable("block", cosine, "1", "cos(gradient, weights)"),
        "size": Variable("block", sizes.astype(int), "1", "Parameters of the block"),
        "parameter_share": Variable("block", sizes / len(weights), "1", "Share of parameters"),
    }


def hessian_diagonal(
    risk: EmpiricalRisk,
    theta: Float[Tensor, "P"],
    *,
    num_probes: int = 100,
    matrix: str = "hessian",
    seed: int,
) -> xr.Dataset:
    """Diagonal of H, the mean of v * Hv over Rademacher probes, with ‖H‖_F and sum_i w_i² H_ii.

    diagonal(parameter) and diagonal_stderr(parameter) over probes; the variance of one probe is
    sum_{j≠i} H_ij² (Bekas, Kokiopoulou & Saad 2007, doi:10.1016/j.apnum.2007.01.003). A
    coordinate's 95 % interval is diagonal ± interval_factor · diagonal_stderr, with Student's
    quantile for the number of probes (it covers 94-96 % from 2 probes on, also beside a dominant
    eigenvalue). <name>_low to <name>_high: that of the two sums below, as of the trace in
    `hessian_trace`.
    frobenius_squared = E‖Hv‖² with its standard error, frobenius_norm its root.
    weighted_trace = sum_i w_i² H_ii, in nats, with its standard error: what rescaling ReLU layers
    leaves alone, unlike the trace. Cost: num_probes products.

    Example:
        >>> found = measure.hessian_diagonal(risk, theta, num_probes=4, seed=0)
        >>> found.diagonal.sizes["parameter"] == len(theta)
        True
    """
    measuring = Measuring("hessian_diagonal", risk, theta)
    check_count("num_probes", num_probes, 2)
    loss, theta = measuring.finite_loss(), measuring.theta
    operator = Operator.of(risk, theta, matrix=matrix)
    mean = torch.zeros_like(theta, dtype=torch.float64)
    spread, squares, weighted = torch.zeros_like(mean), [], []
    for number, (v, product) in enumerate(_probed(operator, num_probes, theta, seed), start=1):
        product = product.double()
        sample = v * product
        change = sample - mean
        mean += change / number
        spread += change * (sample - mean)
        squares.append(vectors.squared_norm(product))
        weighted.append(vectors.dot(theta.double().square(), sample))
    root = np.sqrt(num_probes)
    error = numbers(spread / (num_probes - 1)) ** 0.5 / root
    squares, weighted = numbers(squares), numbers(weighted)
    diagonal, title = numbers(mean), TITLES[matrix]
    squared = f"({_UNITS})²"
    variables = {
        "diagonal": Variable("parameter", diagonal, _UNITS, f"Diagonal of the {title}"),
        "diagonal_stderr": Variable("parameter", error, _UNITS, "Standard error over probes"),
        "frobenius_squared": Variable((), squares.mean(), squared, f"‖H‖_F² of the {title}"),
        "frobenius_squared_stderr": Variable(
            (), squares.std(ddof=1) / root, squared, "Standard error over probes"
        ),
        **interval("frobenius_squared", squares, (), squared),
        "frobenius_norm": Variable((), squares.mean() ** 0.5, _UNITS, f"‖H‖_F of the {title}"),
        "weighted_trace": Variable((), weighted.mean(), "nats", "Σ w² · diagonal"),
        "weighted_trace_stderr": Variable(
            (), weighted.std(ddof=1) / root, "nats", "Standard error over probes"
        ),
        **interval("weighted_trace", weighted, (), "nats"),
        "interval_factor": Variable(
            (), float(scipy.stats.t.ppf(0.975, num_probes - 1)), "1", "95 % interval / error"
        ),
        "loss": Variable((), float(loss), "nats", "Loss at theta"),
    }
    options = {"num_probes": num_probes, "matrix": matrix, "seed": seed}
    return measuring.result(
        variables, coords={"parameter": np.arange(len(diagonal))}, options=options
    )
