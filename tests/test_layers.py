"""One table says how the weights of layers lie that are not torch's; four readers follow it."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from landscape import EmpiricalRisk, LandscapeError, measure, plane, sam
from landscape.measure.perturbations.filter_null import Permutations
from landscape.params import LAYERS, Layer, ParamLayout, layer_of
from landscape.plane.filters import Filters

F64 = torch.float64


class InOut(nn.Module):
    """y = x W + b with W in × out, as GPT-2's layers are."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(inputs, outputs, dtype=F64))
        self.bias = nn.Parameter(torch.zeros(outputs, dtype=F64))

    def forward(self, x):
        return x @ self.weight + self.bias


class Experts(nn.Module):
    """Experts × in × out in one tensor."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3, 4, 5, dtype=F64))


@pytest.fixture(autouse=True)
def listed(monkeypatch):
    monkeypatch.setitem(LAYERS, InOut, Layer("linear", outputs=(1,)))
    monkeypatch.setitem(LAYERS, f"{__name__}.Experts", Layer("linear", outputs=(0, 2)))


def twins():
    """The same function with torch's layers and with the other ones, W' beside W."""
    generator = torch.Generator().manual_seed(0)
    plain = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    other = nn.Sequential(InOut(4, 6), nn.Tanh(), InOut(6, 3))
    with torch.no_grad():
        for mine, theirs in ((plain[0], other[0]), (plain[2], other[2])):
            theirs.weight.copy_(mine.weight.T)
            theirs.bias.copy_(mine.bias)
    x = torch.randn(16, 4, generator=generator, dtype=F64)
    y = torch.randint(0, 3, (16,), generator=generator)
    return plain, other, (x, y)


def swapped(layout, flat):
    """A vector of the other layout in the places of the plain one."""
    return torch.cat(
        [part.T.reshape(-1) if part.ndim > 1 else part for part in layout.unflatten(flat).values()]
    )


def test_kinds_and_output_axes_are_those_of_the_table_subclasses_too():
    class Sub(InOut):
        pass

    model = nn.ModuleDict({"a": Sub(2, 3), "b": Experts(), "c": nn.Linear(2, 2)})
    found = {t.name: (t.kind, t.outputs) for t in ParamLayout.of(model).tensors}
    assert found == {
        "a.weight": ("linear", (1,)), "a.bias": ("bias", (0,)),
        "b.weight": ("linear", (0, 2)),
        "c.weight": ("linear", (0,)), "c.bias": ("bias", (0,)),
    }  # fmt: skip
    assert layer_of(nn.Linear(1, 1)) is None
    assert LAYERS["transformers.pytorch_utils.Conv1D"] == Layer("linear", outputs=(1,))


def test_rows_of_a_filter_and_back():
    rule = Filters.of(nn.ModuleDict({"b": Experts()}))
    (tensor,) = rule.layout.tensors
    flat = torch.arange(60.0)
    rows = rule.rows(tensor, flat)
    assert rows.shape == (15, 4)
    whole = flat.view(3, 4, 5)
    assert torch.equal(rows[7], whole[1, :, 2])
    assert torch.equal(rule.flat(tensor, rows), flat)


def test_filter_normalization_is_that_of_the_transposed_weights():
    plain, other, data = twins()
    risks = [EmpiricalRisk(m, nn.CrossEntropyLoss(), data) for m in (plain, other)]
    draw = torch.randn(len(risks[0].theta), generator=torch.Generator().manual_seed(1), dtype=F64)
    given = [swapped(risks[0].layout, draw), draw]  # of the other one, and of the plain one
    mine = Filters.of(risks[0]).normalized(given[1], risks[0].theta)
    theirs = Filters.of(risks[1]).normalized(given[0], risks[1].theta)
    torch.testing.assert_close(swapped(risks[1].layout, theirs), mine, rtol=1e-12, atol=0)
    made = plane.random(risks[1], risks[1].theta, num_directions=1, seed=0)
    rows = Filters.of(risks[1]).rows(risks[1].layout.tensors[0], made.directions[0][:24])
    expected = other[0].weight.detach().norm(dim=0)
    torch.testing.assert_close(rows.norm(dim=1), expected, rtol=1e-12, atol=0)


def test_filter_nulls_permute_output_units():
    plain, other, _ = twins()
    rules = [Filters.of(m) for m in (plain, other)]
    masks = torch.rand(2, rules[0].layout.num_parameters) < 0.3
    mine = Permutations(rules[0], count=20, seed=0).null(*masks)
    theirs = Permutations(rules[1], count=20, seed=0).null(
        *(swapped(rules[0].layout, mask) for mask in masks)
    )
    np.testing.assert_allclose(theirs.mean, mine.mean, rtol=1e-12)
    np.testing.assert_allclose(theirs.variance, mine.variance, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("norm_of", ["raw", "centred"])
def test_gcsam_centres_per_output_unit(norm_of):
    plain, other, (x, y) = twins()
    for model in (plain, other):
        base = torch.optim.SGD(model.parameters(), lr=0.1)
        recipe = sam.gcsam(0.1, norm_of=norm_of, centre_descent=True)
        optimizer = sam.SAM(model, base, recipe)

        def closure(model=model, optimizer=optimizer):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            return loss

        for _ in range(3):
            optimizer.step(closure)
    for mine, theirs in ((plain[0], other[0]), (plain[2], other[2])):
        torch.testing.assert_close(theirs.weight.T, mine.weight, rtol=1e-12, atol=1e-14)


def test_blocks_by_kind_by_patterns_and_by_depth():
    _, other, data = twins()
    model = nn.ModuleDict({"attn": other[0], "act": other[1], "mlp": other[2]})
    wrapped = nn.Sequential(*model.values())
    risk = EmpiricalRisk(wrapped, nn.CrossEntropyLoss(), data)

    def blocks(by):
        return measure.block_curvature(risk, risk.theta, by=by, num_probes=2, seed=0)

    assert set(blocks("kind").block.values) == {"linear", "bias"}
    table = blocks({"first": "0.*", "weights": ["2.weight"]})
    assert list(table.block.values) == ["first", "weights", "(rest)"]
    assert list(table["size"].values) == [30, 18, 3]
    modules, depth = blocks("module"), blocks(1)
    assert list(depth.block.values) == ["0", "2"]
    np.testing.assert_array_equal(depth.eigenvalue, modules.eigenvalue)
    np.testing.assert_allclose(table.eigenvalue[0], modules.eigenvalue[0], rtol=1e-12)
    for by, message in (
        ({"a": "0.*", "b": "*.weight"}, "'0.weight' is matched by the patterns of 'a' and of 'b'"),
        ({"a": "*attn*"}, "'\\*attn\\*' matches no tensor"),
        (0, "by=0 was asked"),
        (True, "by"),
    ):
        with pytest.raises(LandscapeError, match=message):
            blocks(by)
