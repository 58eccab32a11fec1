"""What is counted on a device: the host reads counts, and little more of a longer tensor."""

import pytest
import torch
from torch import nn

from landscape import EmpiricalRisk, measure
from tests.devices import pretend


def linear_risk(size):
    torch.manual_seed(0)
    x = torch.randn(2, size)
    return EmpiricalRisk(
        nn.Linear(size, 1, bias=False), nn.MSELoss(), (x, torch.ones(2, 1)), device=pretend.DEVICE
    )


def of_the_histogram(counts):
    """Those that are not of the risk, which tells theta by a digest of all its bytes."""
    return sum(n for (_, line), n in counts.items() if not line.startswith("landscape/risk/"))


@pytest.mark.thorough
def test_the_histogram_of_a_long_gradient_is_read_as_that_of_a_short_one():
    """As often; only the moments of each further chunk of 2^20 values come with it, 40 bytes."""
    reads, size = [], []
    for length in (2**12, 2**21 + 5):  # one chunk, and three
        risk = linear_risk(length)
        risk.probe()
        with pretend.watch() as seen:
            measure.gradient_zscores(risk, risk.theta, exact_up_to=2**10)
        reads.append(of_the_histogram(seen.reads))
        size.append(of_the_histogram(seen.bytes_read))
    assert reads[0] == reads[1]
    assert size[1] - size[0] == 2 * 40
    assert size[0] < 2**21 + 2**14  # two numbers for each of 2^17 bins, and the statistics
