"""Tokens that nobody reads are left out, and nothing else is."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from landscape import EmpiricalRisk, plane
from landscape.problems.vit import ViT
from landscape.risk.along.folded import Folded
from landscape.risk.along.traced import LayerTrace

PROBES = ((0.0, 0.0), (1.0, 1.0), (-1.0, 1.0))


class Tokens(nn.Module):
    """Causal attention and a GELU layer over seven tokens; `read` says which of them are used."""

    def __init__(self, read, *, causal=True):
        super().__init__()
        self.read, self.causal = read, causal
        self.embed, self.qkv = nn.Linear(3, 8), nn.Linear(8, 24)
        self.norm, self.up, self.down = nn.LayerNorm(8), nn.Linear(8, 16), nn.Linear(16, 8)
        self.gelu, self.head = nn.GELU(), nn.Linear(8, 4)
        self.scale = nn.Parameter(torch.ones(7, 1))

    def forward(self, x):
        x = self.embed(x) * self.scale
        q, k, v = self.qkv(x).view(*x.shape[:2], 3, 2, 4).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        x = x + mixed.transpose(1, 2).reshape(x.shape)
        x = x + self.down(self.gelu(self.up(self.norm(x))))
        return self.head(self.read(x))


def first(x):
    return x[:, 0]


def last_two(x):
    return x[:, -2:].mean(1)


def mean(x):
    return x.mean(1)


def decided(x):
    return x[:, 0] if bool(x.isfinite().all()) else x[:, 1]


def overwritten(x):
    return x.mul_(2)[:, 0]


def risk_of(model, *, shape=(7, 3), count=10, dtype=torch.float64):
    source = torch.Generator().manual_seed(0)
    x = torch.randn(count, *shape, generator=source, dtype=dtype)
    y = torch.randint(4, (count,), generator=source)
    return EmpiricalRisk(model.to(dtype), nn.CrossEntropyLoss(), (x, y), dtype=dtype)


def seeded(make):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make()


def folded_of(risk):
    axes = plane.random(risk, risk.theta, num_directions=2, one_d="random", seed=1)
    return axes, Folded.of(risk, axes, PROBES)


def check(risk, axes, folded, rtol):
    for point in ((0.0, 0.0), (0.0, 0.4), (0.6, -0.3), (-1.0, 1.0)):
        with folded.session():
            found = folded.evaluate(point)
        truth = risk.losses(axes.point(*point))
        torch.testing.assert_close(found.losses, truth, rtol=rtol, atol=rtol)


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("count", [10, 33])
def test_a_vision_transformer_computes_its_last_block_for_the_class_token(
    monkeypatch, dtype, rtol, count
):
    # 33 rows make blocks of two sizes.
    monkeypatch.setattr("landscape.risk.along.folded._even", lambda total, _: min(total, 16))
    shape = (3, 8, 8)
    vit = seeded(lambda: ViT(image=shape, patch=2, dim=8, depth=2, heads=2, num_classes=4))
    risk = risk_of(vit, shape=shape, count=count, dtype=dtype)
    axes, folded = folded_of(risk)
    assert "tokens in use" in folded.method
    assert "first layer combined" in folded.method
    if count == 33:
        assert set(folded._narrowed) == {16, 1}
    check(risk, axes, folded, rtol)


@pytest.mark.parametrize(("read", "causal"), [(first, True), (first, False), (last_two, False)])
def test_whichever_tokens_are_read(read, causal):
    risk = risk_of(seeded(lambda: Tokens(read, causal=causal)))
    axes, folded = folded_of(risk)
    assert "tokens in use" in folded.method
    check(risk, axes, folded, 1e-12)


@pytest.mark.parametrize("read", [mean, decided, overwritten])
def test_models_that_read_all_that_decide_by_values_or_overwrite_are_left_alone(read):
    risk = risk_of(seeded(lambda: Tokens(read)))
    axes, folded = folded_of(risk)
    assert "tokens in use" not in folded.method
    check(risk, axes, folded, 1e-12)


def test_the_gelu_behind_a_linear_layer_is_found():
    risk = risk_of(seeded(lambda: Tokens(first)))
    buffer = risk.theta.clone()
    model = risk.model_at(risk.theta)
    for tensor in risk.layout.tensors:
        owner, _, name = tensor.name.rpartition(".")
        part = buffer[tensor.start : tensor.stop].view(tensor.shape)
        module = model.get_submodule(owner)
        del module._parameters[name]
        module._parameters[name] = part
    trace = LayerTrace(risk, model, buffer)
    assert trace.gelus == {model.up: model.gelu}
    assert trace.tokens
