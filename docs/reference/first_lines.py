"""The first lines of every example in the reference."""

from pathlib import Path

import numpy as np
import torch
from torch import nn

from landscape import (
    EmpiricalRisk,
    LandscapeError,
    ParamLayout,
    diagnosis,
    linalg,
    measure,
    monitoring,
    params,
    plane,
    plot,
    problems,
    record,
    report,
    results,
    sam,
    snapshots,
    stats,
    storage,
    streams,
    study,
    training,
    vectors,
)
from landscape.plot import figures, interactive, static


def make_data(count=48, seed=0):
    """Three classes of points in four dimensions, a ninth of their labels wrong."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(count) % 3
    x = torch.randn(count, 4, generator=generator) + y[:, None]
    return x, torch.where(torch.arange(count) % 9 == 0, (y + 1) % 3, y)


def make_splits():
    """The same as training, validation and test data of a study."""
    return {"train": make_data(), "val": make_data(24, 1), "test": make_data(24, 2)}


def make_model(seed=0):
    """A network of 83 parameters, its initial weights a function of the seed."""
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3))


def losses(batch):
    """The loss of each example of a batch, forward only."""
    x, y = batch
    return nn.functional.cross_entropy(model(x), y, reduction="none")


model = make_model()
data = make_data()
risk = EmpiricalRisk(model, nn.CrossEntropyLoss(), data, dtype=torch.float64)
theta = risk.theta
other = EmpiricalRisk(make_model(seed=1), nn.CrossEntropyLoss(), data, dtype=torch.float64).theta
