"""The cost model counts what closed forms say, and its file is read."""

import json

import torch
from torch import nn

from benchmarks import cost


def test_a_gradient_of_two_layers_is_counted_by_hand():
    """2 B m n for a product; backward one for each weight, and one for the hidden layer."""

    def make():
        return nn.Sequential(nn.Linear(5, 7, bias=False), nn.Linear(7, 3, bias=False))

    counts = cost.counted(make, torch.zeros(4, 5), torch.zeros(4, dtype=torch.long))
    assert counts["flop"] == 2 * 4 * (2 * 5 * 7 + 3 * 7 * 3)
    assert counts["parameters"] == 5 * 7 + 7 * 3
    # By each product alone, float32: what it reads and writes.
    assert counts["bytes"] > 4 * (4 * 5 + 5 * 7 + 4 * 7 + 4 * 7 + 7 * 3 + 4 * 3)


def test_constants_are_those_of_the_known_networks_alone():
    table = json.loads(cost.RESULTS.read_text())["networks"]
    assert table.keys() == (cost.KNOWN | cost.HELD_OUT).keys()
    before = cost.fitted(table, "gradient")
    for name in cost.HELD_OUT:
        table[name]["seconds"]["gradient"] *= 2
    assert (cost.fitted(table, "gradient") == before).all()
    assert "within 30 %" in cost.markdown(table)
