"""What belongs to the caller is bit-identical afterwards, whatever was asked or failed."""

import contextlib
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from landscape.errors import LandscapeError
from landscape.risk import EmpiricalRisk
from tests.risk_problems import problem, randn, rng, settled

CE = nn.CrossEntropyLoss()


def state_of(model, data):
    return {
        "tensors": {k: v.clone() for k, v in model.state_dict(keep_vars=False).items()},
        "identity": [id(p) for p in model.parameters()],
        "modes": [m.training for m in model.modules()],
        "requires": [p.requires_grad for p in model.parameters()],
        "grads": [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        "data": [t.clone() for t in data],
        "rng": torch.get_rng_state(),
        "numpy": np.random.get_state()[1].copy(),  # noqa: NPY002
        "python": random.getstate(),
        "precision": torch.get_float32_matmul_precision(),
        "fastpath": torch.backends.mha.get_fastpath_enabled(),
        "grad mode": torch.is_grad_enabled(),
    }


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, np.ndarray):
        return np.array_equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return a == b


@pytest.mark.parametrize("name", ["mlp_bn", "cnn_bn", "transformer"])
@pytest.mark.parametrize("training", [True, False])
def test_model_mode_buffers_grads_data_and_rng_are_untouched(name, training):
    model, data = problem(name)
    model.train(training)
    next(model.parameters()).grad = torch.ones_like(next(model.parameters()))
    list(model.parameters())[1].requires_grad_(False)
    before = state_of(model, data)
    risk = EmpiricalRisk(model, CE, data, batch_size=5)
    theta = risk.theta * 1.1
    for bn in ("eval", "full_batch", "recalibrate"):
        twin = risk.with_bn(bn)
        twin.loss(theta), twin.losses(theta), twin.outputs(theta), twin.evaluate(theta)
        if bn != "recalibrate":
            v = torch.ones_like(theta)
            twin.gradient(theta), twin.hvp(theta, v), twin.linearized_hvp(theta)(v)
        with contextlib.suppress(LandscapeError):
            twin.gradient(theta * float("nan"))
    assert same(before, state_of(model, data))
    assert torch.equal(risk.theta * 1.1, theta)


def test_changing_the_callers_model_or_data_afterwards_changes_nothing():
    model, (x, y) = problem("mlp_bn")
    risk = EmpiricalRisk(model, CE, (x, y))
    before = risk.loss(risk.theta)
    with torch.no_grad():
        x.zero_()
        y.zero_()
        for parameter in model.parameters():
            parameter.zero_()
        model[1].running_var.fill_(9.0)
    assert torch.equal(risk.loss(risk.theta), before)
    risk.theta.zero_()
    assert torch.equal(risk.loss(risk.theta), before)


def test_the_risk_is_the_same_in_every_ambient_mode():
    model, data = problem("mlp_bn")
    risk = EmpiricalRisk(model, CE, data, dtype=torch.float32)
    theta, v = risk.theta, randn(risk.layout.num_parameters).float()
    expected = risk.loss(theta), risk.gradient(theta), risk.hvp(theta, v)
    for ambient in (
        torch.no_grad(),
        torch.inference_mode(),
        torch.autocast("cpu", dtype=torch.bfloat16),
    ):
        with ambient:
            found = risk.loss(theta), risk.gradient(theta), risk.hvp(theta * 1.0, v)
            assert same(expected, found)
            made = EmpiricalRisk(model, CE, data, dtype=torch.float32)
            assert same(expected[1], made.gradient(made.theta))


PRECISIONS = """
import warnings; warnings.simplefilter("error")
import torch
from tests.risk_problems import problem
from landscape.risk import EmpiricalRisk

def gradient():
    model, data = problem("mlp_bn")
    risk = EmpiricalRisk(model, torch.nn.CrossEntropyLoss(), data, dtype=torch.float32)
    return risk.gradient(risk.theta)

before = gradient()
torch.set_float32_matmul_precision("medium")
assert torch.equal(gradient(), before)
assert torch.get_float32_matmul_precision() == "medium"
if hasattr(torch.backends.mkldnn, "matmul"):
    torch.backends.mkldnn.matmul.fp32_precision = "bf16"
    torch.backends.cuda.matmul.fp32_precision = "ieee"  # now the older getter raises
    assert torch.equal(gradient(), before)
    assert torch.backends.mkldnn.matmul.fp32_precision == "bf16"
"""


@pytest.mark.thorough
def test_precision_allowed_by_either_interface_is_not_used_and_put_back():
    # A process of its own: torch cannot go back from mixed interfaces.
    subprocess.run([sys.executable, "-c", PRECISIONS], check=True, cwd=Path(__file__).parents[2])


def test_a_first_layer_that_works_in_place_does_not_eat_the_data():
    model = settled(nn.Sequential(nn.ReLU(inplace=True), nn.Linear(4, 3)))
    x, y = randn(9, 4), torch.randint(0, 3, (9,), generator=rng())
    kept = x.clone()
    risk = EmpiricalRisk(model, CE, (x, y))
    first = risk.loss(risk.theta)
    risk.gradient(risk.theta)
    assert torch.equal(risk.loss(risk.theta), first)
    assert torch.equal(x, kept)
    torch.testing.assert_close(first, CE(model(x.clone()), y).detach())


def test_a_model_that_draws_numbers_without_using_them_leaves_the_rng_alone():
    class Draws(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = settled(nn.Linear(4, 3))

        def forward(self, x):
            torch.rand(3)
            return self.inner(x)

    model, state = Draws(), torch.get_rng_state()
    risk = EmpiricalRisk(model, CE, (randn(5, 4), torch.zeros(5, dtype=torch.long)))
    risk.loss(risk.theta)
    risk.hvp(risk.theta, torch.ones_like(risk.theta))
    assert torch.equal(torch.get_rng_state(), state)


def test_dropout_is_off_in_every_mode():
    model = settled(nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5),
                                  nn.Linear(8, 3)))  # fmt: skip
    model.train()
    data = (randn(9, 4), torch.randint(0, 3, (9,), generator=rng()))
    for bn in ("eval", "full_batch", "recalibrate"):
        risk = EmpiricalRisk(model, CE, data, bn=bn)
        assert torch.equal(risk.losses(risk.theta), risk.losses(risk.theta))


def test_provenance_and_fingerprint():
    model, data = problem("mlp_bn")
    risk = EmpiricalRisk(model, CE, data)
    record = risk.provenance()
    assert record["bn"] == "eval"
    assert risk.with_bn("recalibrate").provenance()["bn"] == "recalibrate"
    assert record["num_examples"] == 12
    assert record["dtype"] == "float64"
    assert record["loss"] == "CrossEntropyLoss"
    same_theta, moved = risk.fingerprint(risk.theta), risk.fingerprint(risk.theta + 1e-9)
    assert same_theta == risk.fingerprint(risk.theta.clone())
    assert same_theta != moved
    assert len(moved) == 64
    assert set(risk.buffers) == {k for k, _ in model.named_buffers()}
