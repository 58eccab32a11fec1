"""What needs a second device, or types that are only checked on request."""

import pytest
import torch
from torch import nn

from landscape.linalg import _krylov
from landscape.risk import EmpiricalRisk
from tests.risk_problems import PROBLEMS, problem, randn
from tests.waiting import Waiting

CE = nn.CrossEntropyLoss()


@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize("bn", ["eval", "full_batch"])
def test_an_accelerator_agrees_with_the_cpu(name, bn, accelerator):
    model, data = problem(name)
    here = EmpiricalRisk(model, CE, data, bn=bn)
    there = EmpiricalRisk(model, CE, data, bn=bn, device=accelerator, batch_size=5)
    theta, v = here.theta, randn(here.layout.num_parameters, seed=3)
    for call in ("loss", "losses", "gradient"):
        close = getattr(there, call)(theta).cpu()
        torch.testing.assert_close(close, getattr(here, call)(theta), rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(there.hvp(theta, v).cpu(), here.hvp(theta, v), rtol=1e-8, atol=1e-9)


def test_data_that_stay_behind_are_moved_batch_by_batch():
    model, data = problem("mlp_bn")
    whole = EmpiricalRisk(model, CE, data)
    apart = EmpiricalRisk(model, CE, data, batch_size=5, memory=1)
    apart._engine.examples.resident = False
    theta, v = whole.theta, randn(whole.layout.num_parameters, seed=3)
    torch.testing.assert_close(apart.loss(theta), whole.loss(theta), rtol=1e-13, atol=0)
    product = apart.linearized_hvp(theta)
    torch.testing.assert_close(product(v), whole.hvp(theta, v), rtol=1e-10, atol=1e-12)
    twin = apart.with_bn("recalibrate")
    expected = whole.with_bn("recalibrate").loss(theta)
    torch.testing.assert_close(twin.loss(theta), expected, rtol=1e-12, atol=0)


def test_what_waits_for_a_device_is_noticed():
    """The control of the tests below."""
    values = torch.arange(4.0)
    with Waiting() as waiting:
        float(values[0])
        values[values > 1]
        values.nonzero()
        bool(values.sum() > 0)
    assert len(waiting.seen) >= 4


@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize("memory", [None, 1], ids=["kept", "rebuilt"])
def test_products_and_steps_of_lanczos_do_not_wait_for_the_device(name, memory):
    model, data = problem(name)
    options = {} if memory is None else {"memory": memory}
    risk = EmpiricalRisk(model, CE, data, batch_size=5, **options)
    size = risk.layout.num_parameters
    space = _krylov.Krylov(
        risk.linearized_hvp(risk.theta),
        size,
        locked=torch.empty((0, size), dtype=torch.float64),
        scale=0.0,
        generator=torch.Generator().manual_seed(0),
        dtype=torch.float64,
        device=risk.device,
    )
    space.may_look = False  # as on a device
    space.step()  # what is found out once may wait
    with Waiting() as waiting:
        for _ in range(3):
            space.step()
    assert waiting.seen == []
    assert space.settle().values.isfinite().all()


def test_products_do_not_wait_for_an_accelerator(accelerator, no_waiting):
    model, data = problem("mlp_bn")
    risk = EmpiricalRisk(model, CE, data, device=accelerator)
    theta = risk.theta
    product, v = risk.linearized_hvp(theta), randn(len(theta), seed=3).to(theta)
    product(v)
    with no_waiting:
        product(v)
