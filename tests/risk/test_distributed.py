"""Examples spread over two gloo processes: the numbers are those of one process with all."""

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn

from landscape import EmpiricalRisk, LandscapeError, measure
from tests.risk_problems import cnn_bn, problem, randn
from tests.two_processes import in_two_processes, needs_processes

CE = nn.CrossEntropyLoss()
CLOSE = {torch.float64: 1e-12, torch.float32: 1e-5}


def risks(rank, dtype):
    """Shares of five and seven of twelve rows, and the whole."""
    model, (x, y) = problem("cnn_bn")
    own = slice(0, 5) if rank == 0 else slice(5, 12)
    options = {"dtype": dtype, "weight_decay": 1e-3}
    part = EmpiricalRisk(model, CE, (x[own], y[own]), distributed=True, **options)
    return part, EmpiricalRisk(model, CE, (x, y), **options)


def near(a, b, dtype):
    a, b = (torch.as_tensor(np.asarray(t), dtype=torch.float64) for t in (a, b))
    assert float((a - b).norm()) <= CLOSE[dtype] * float(b.norm())


def equal_everywhere(value):
    own = torch.as_tensor(np.asarray(value)).clone()
    both = [torch.empty_like(own) for _ in range(2)]
    dist.all_gather(both, own)
    assert torch.equal(*both)


def the_same_numbers(rank, dtype):
    part, whole = risks(rank, dtype)
    theta = whole.theta
    V = randn(3, len(theta), seed=4)
    assert part.num_examples == 12
    for call in ("loss", "gradient", "error_rate"):
        near(getattr(part, call)(theta), getattr(whole, call)(theta), dtype)
    near(part.hvp(theta, V), whole.hvp(theta, V), dtype)
    near(part.linearized_hvp(theta)(V), whole.hvp(theta, V), dtype)
    near(part.linearized_ggn(theta)(V), whole.linearized_ggn(theta)(V), dtype)
    assert part.evaluate(theta).losses is None
    # Fixed numbers of products: where a search stops is a decision that rounding may tip.
    found, alone = (
        measure.top_eigenvalues(
            risk, theta, k=3, tolerance=1e-9, max_hvps=40, failure_probability=1.0, seed=0
        )
        for risk in (part, whole)
    )
    near(found["eigenvalue"], alone["eigenvalue"], dtype)
    equal_everywhere(found["eigenvalue"].values)
    traces = [measure.hessian_trace(risk, theta, num_probes=4, seed=0) for risk in (part, whole)]
    near(*(ds["trace_sample"] for ds in traces), dtype)
    equal_everywhere(traces[0]["trace_sample"].values)
    density = [
        measure.spectral_density(risk, theta, num_probes=2, num_nodes=5, seed=0)
        for risk in (part, whole)
    ]
    near(*(ds["ritz_value"] for ds in density), dtype)


def refused(rank):
    part, _ = risks(rank, torch.float64)
    theta = part.theta
    for ask, name in (
        (lambda: part.losses(theta), "losses"),
        (lambda: part.outputs(theta), "outputs"),
        (lambda: part.subset(torch.arange(2)), "A subset"),
        (lambda: part.targets, "targets"),
    ):
        with pytest.raises(LandscapeError, match=f"{name} asked of a risk with distributed=True"):
            ask()
    for bn in ("full_batch", "recalibrate"):
        with pytest.raises(LandscapeError, match=f"bn='{bn}' asked with distributed=True"):
            part.with_bn(bn)
    other = cnn_bn()
    with torch.no_grad():
        next(other.parameters()).add_(float(rank))
    _, data = problem("cnn_bn")
    with pytest.raises(LandscapeError, match="The 2 processes hold different weights"):
        EmpiricalRisk(other, CE, data, distributed=True)


def everything(rank):
    the_same_numbers(rank, torch.float64)
    the_same_numbers(rank, torch.float32)
    refused(rank)


@pytest.mark.thorough
@needs_processes
def test_two_processes_give_the_numbers_of_one():
    in_two_processes(everything)


def test_without_a_process_group_it_says_how_to_make_one():
    model, data = problem("cnn_bn")
    with pytest.raises(LandscapeError, match="no process group; start the processes with torchrun"):
        EmpiricalRisk(model, CE, data, distributed=True)
