"""The loss of a training step is torch's own of that batch."""

import pytest
import torch
from torch import nn

from landscape.errors import LandscapeError
from landscape.training import TrainingOptions
from landscape.training.inputs import per_example

Z = torch.randn(6, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
Y = torch.tensor([0, 1, -100, 2, 1, 1])


@pytest.mark.parametrize(
    "loss",
    [
        None,
        nn.CrossEntropyLoss(),
        nn.CrossEntropyLoss(weight=torch.tensor([1.0, 5.0, 0.2]).double(), label_smoothing=0.1),
        nn.CrossEntropyLoss(reduction="sum"),
    ],
)
@pytest.mark.parametrize("rows", [slice(None), slice(3, None)])
def test_the_mean_of_a_steps_losses_is_the_criterion(loss, rows):
    found = per_example(loss, TrainingOptions())(Z[rows], Y[rows])
    assert found.shape == (len(Z[rows]),)
    truth = (loss or nn.CrossEntropyLoss())(Z[rows], Y[rows])
    torch.testing.assert_close(found.mean(), truth, rtol=1e-12, atol=0)


def test_outputs_that_would_be_broadcast_are_refused():
    with pytest.raises(LandscapeError, match=r"\(6, 1\) against targets of shape \(6,\)"):
        per_example(nn.MSELoss(), TrainingOptions())(Z[:, :1], Z[:, 0])
