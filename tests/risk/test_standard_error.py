"""The standard error of a loss covers what redrawing the rows does to it, whatever they weigh."""

import math

import pytest
import torch
from torch import nn

from landscape import EmpiricalRisk

CLASS_WEIGHTS = torch.tensor([1.0, 10.0, 0.2])


def population(n, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 3, generator=generator)
    y = torch.randint(0, 3, (n,), generator=generator)
    return x, y.where(torch.rand(n, generator=generator) > 0.2, torch.tensor(-100))


@pytest.mark.parametrize(
    "loss",
    [nn.CrossEntropyLoss(), nn.CrossEntropyLoss(weight=CLASS_WEIGHTS),
     nn.CrossEntropyLoss(weight=CLASS_WEIGHTS, reduction="sum")],
    ids=["ignored", "weighted", "sum"],
)  # fmt: skip
def test_it_is_what_redrawing_the_rows_does(loss):
    torch.manual_seed(0)
    model = nn.Linear(3, 3)
    found, errors = [], []
    for seed in range(300):
        x, y = population(80, seed)
        with torch.no_grad():
            found.append(float(loss(model(x), y)))
        if seed < 12:
            risk = EmpiricalRisk(model, loss, (x, y))
            errors.append(float(risk.standard_error(risk.losses(risk.theta))))
    truth = torch.tensor(found).std().item()
    # 300 draws know the spread to 4 %, twelve estimates of it from 80 rows each to about 5 %.
    assert sum(errors) / len(errors) == pytest.approx(truth, rel=0.25)


def test_rows_that_weigh_alike_have_the_usual_one():
    x, _ = population(40, 0)
    y = torch.zeros(40, dtype=torch.long)
    torch.manual_seed(0)
    risk = EmpiricalRisk(nn.Linear(3, 3), nn.CrossEntropyLoss(), (x, y), dtype=torch.float64)
    losses = risk.losses(risk.theta)
    usual = losses.std(correction=1) / math.sqrt(40)
    torch.testing.assert_close(risk.standard_error(losses), usual, rtol=1e-12, atol=0)
