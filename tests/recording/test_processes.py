"""The diagnosis where several processes train: replicas are looked at, cut weights are refused."""

import pytest
import torch
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import landscape
from landscape import sam
from landscape.errors import LandscapeError
from tests import training_problems as small
from tests.recording.test_diagnosis import FirstGradient, Loop, batches, losses_of
from tests.two_processes import in_two_processes, needs_processes

pytestmark = needs_processes


def _replicas(rank):
    parts = [(x[rank::2], y[rank::2]) for x, y in batches()]
    model = DistributedDataParallel(small.model())
    base = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer = sam.SAM(model, base, sam.sam(rho=0.05))
    with landscape.record(model, rho=0.05) as seen:
        for x, y in parts:
            optimizer.step(losses_of(model), (x, y))
    found = seen.diagnosis()
    assert not found.wrong, str(found)
    assert found["length"].verdict == "ok", str(found)
    assert found["second pass"].verdict == "ok", str(found)
    for loop in (Loop(), FirstGradient()):
        loop.model = DistributedDataParallel(loop.model)
        with landscape.record(loop.model, rho=0.05) as seen:
            for x, y in parts:
                loop.step(x, y)
        # Hooks hear the gradient of this process, and the optimizer gets the mean.
        found = seen.diagnosis()
        assert found["descent"].verdict != "ok" or type(loop) is Loop, str(found)
        assert not found.wrong or type(loop) is not Loop, str(found)


def _cut(_):
    model = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 3))
    fully_shard(model)
    with pytest.raises(LandscapeError, match="cut over processes"):
        landscape.record(model)


def _both(rank):
    _replicas(rank)
    _cut(rank)


@pytest.mark.thorough
def test_in_two_processes():
    in_two_processes(_both)
