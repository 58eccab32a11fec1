"""What is claimed of a model with one long float32 tensor is what float64 says of it."""

import pytest
import torch
from torch import nn

from landscape import EmpiricalRisk, measure, plane, sam
from landscape.training.recorder import weight_norms

SIZE = 2 * 10**6
F64 = torch.float64


class Long(nn.Module):
    """A loss whose gradient is one long vector, c."""

    def __init__(self):
        super().__init__()
        source = torch.Generator().manual_seed(0)
        self.w = nn.Parameter(torch.randn(SIZE, generator=source))
        self.c = torch.randn(SIZE, generator=source)

    def forward(self, x):
        return x[:, 0] * (self.c * self.w).mean()


def exact(x):
    return float(x.double().square().sum().sqrt())


def relative(claim, right):
    return abs(float(claim) / right - 1)


@pytest.mark.parametrize("name", ["sam", "asam", "zsharp", "lagnp"])
def test_the_perturbation_has_the_radius_that_is_said(name):
    model = Long()
    variant = getattr(sam, name)(rho=0.05)
    optimizer = sam.SAM(model, torch.optim.SGD(model.parameters(), lr=0.0), variant)

    def closure():
        optimizer.zero_grad()
        loss = model(torch.ones(1, 1)).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    seen = optimizer.perturbation
    e = seen.e["w"]
    assert relative(seen.norm, exact(e)) < 1e-7
    assert relative(seen.cosine, 1.0) < 1e-6
    if name in ("sam", "zsharp"):
        assert relative(exact(e), float(seen.rho)) < 1e-6
    assert relative(weight_norms(model.parameters())[0], exact(model.w.detach())) < 1e-7


def test_sharpness_and_planes_have_the_lengths_that_are_said():
    risk = EmpiricalRisk(Long(), lambda out, _: out, (torch.ones(2, 1), torch.zeros(2)))
    theta = risk.theta
    gradient = risk.gradient(theta)
    found = measure.sharpness(risk, theta, rho=0.05, ascent_steps=1, num_pairs=2, seed=0)
    assert relative(found.gradient_norm, exact(gradient)) < 1e-9
    assert relative(found.one_step_first_order[0], 0.05 * exact(gradient)) < 1e-9
    random = plane.random(risk, theta, num_directions=1, one_d="random", seed=0)
    assert relative(exact(random.directions[0]), exact(theta)) < 1e-7
    assert relative(random.norms[0], exact(theta)) < 1e-7
    axis = plane.gradient(theta, gradient)
    assert relative(exact(axis.directions[0]), 1.0) < 1e-7
    coordinates, distance = axis.coordinates(axis.point(0.5))
    assert relative(coordinates[0], 0.5) < 1e-3  # theta + 0.5 d is rounded to float32
    assert distance < 1e-3 * exact(theta)
