"""What evaluating a plane reads on the host, which on a GPU would be a wait."""

import pytest
import torch
from torch import nn

from landscape import EmpiricalRisk, measure
from landscape.risk._criterion import errors_of
from landscape.risk._data import Batch
from landscape.risk.along.outcomes import Outcomes
from tests.risk_problems import PROBLEMS, problem
from tests.waiting import Waiting


@pytest.mark.thorough
@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize("bn", ["eval", "recalibrate", "full_batch"])
def test_no_point_of_a_plane_waits_for_the_device(name, bn):
    model, data = problem(name)
    risk = EmpiricalRisk(model, nn.CrossEntropyLoss(), data)
    waits = {}
    for points in (9, 15):
        with Waiting() as waiting:
            measure.loss_plane(risk, risk.theta, points=points, bn=bn, seed=0)
        waits[points] = len(waiting.seen)
    assert waits[15] == waits[9] < 81


@pytest.mark.parametrize("classes", [5, 60], ids=["few classes", "many classes"])
def test_a_nan_among_the_outputs_is_wrong_wherever_it_stands(classes):
    logits = torch.randn(40, classes, generator=torch.Generator().manual_seed(0))
    targets = logits.argmax(1)
    targets[::2] = 1
    logits[5, 1] = logits[6, targets[6]] = logits[7, targets[7]] = torch.nan
    logits[9, 2] = torch.inf
    risk = EmpiricalRisk(nn.Linear(2, classes), nn.CrossEntropyLoss(), (torch.ones(40, 2), targets))
    batch = Batch((torch.ones(40, 2),), {}, targets, 0, 40)
    losses, wrong = Outcomes(risk)(logits, batch)
    assert wrong.dtype == torch.bool
    assert (wrong == errors_of(logits, targets)).all()
    assert wrong[[5, 6, 7]].all()
    assert losses[[5, 6, 7]].isnan().all()
    kept = [i for i in range(40) if i not in (5, 6, 7, 9)]
    expected = nn.functional.cross_entropy(logits, targets, reduction="none")
    torch.testing.assert_close(losses[kept], expected[kept], rtol=1e-5, atol=1e-6)
