"""Language models whose logits are not held: the loss makes them in pieces of tokens."""

import types

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from landscape import EmpiricalRisk, measure
from landscape.risk import Objective, RowLosses, _tokens
from landscape.risk._head import Deferred
from landscape.risk._pieces import in_pieces
from tests.risk_problems import rng, settled

V, T, N = 40, 7, 6
SMALL = 3 * T * V * 8  # bytes of memory of which the logits of one row are more than a sixteenth


@pytest.fixture(autouse=True)
def little_is_large(monkeypatch):
    monkeypatch.setattr(_tokens, "_LEAST", 0)


class Decoder(nn.Module):
    """Causal: every token sees itself and those before."""

    def __init__(self, *, tied=False, bias=False, returns="logits"):
        super().__init__()
        self.embed, self.up, self.down = nn.Embedding(V, 5), nn.Linear(5, 12), nn.Linear(12, 5)
        self.head, self.returns = nn.Linear(5, V, bias=bias), returns
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, input_ids, attention_mask=None):
        x = self.embed(input_ids)
        x = x.cumsum(1) / torch.arange(1, x.shape[1] + 1, dtype=x.dtype)[:, None]
        x = x + self.down(torch.tanh(self.up(x)))
        logits = self.head(x) if self.returns != "a product" else x @ self.embed.weight.T
        if self.returns == "softcapped":
            logits = 3 * torch.tanh(logits / 3)
        if self.returns == "classes first":
            return logits.transpose(1, 2)
        cast = self.returns == "logits"  # as transformers' models did
        return types.SimpleNamespace(logits=logits.float() if cast else logits)


def text(rows=N):
    ids = torch.randint(0, V, (rows, T), generator=rng())
    mask = (torch.arange(T)[None] < torch.randint(3, T + 1, (rows, 1), generator=rng(1))).long()
    return {"input_ids": ids, "attention_mask": mask, "labels": ids.where(mask > 0, -100)}


def both(model, loss="causal_lm", data=None):
    """Risks with the logits of whole rows, and of a token or few at a time."""
    data = text() if data is None else data
    return [EmpiricalRisk(model, loss, data, memory=m, batch_size=2) for m in (2**30, SMALL)]


def pieces(risk):
    return risk.provenance().get("tokens_at_once")


def agree(dense, chunked):
    assert pieces(dense) is None
    assert pieces(chunked) in (1, 2, 3)
    theta = dense.theta + 0.1 * torch.randn(len(dense.theta), generator=rng(2), dtype=torch.float64)
    V2 = torch.randn(2, len(theta), generator=rng(3), dtype=torch.float64)
    close = {"rtol": 1e-12, "atol": 1e-13}
    for of in (
        lambda risk: risk.loss(theta), lambda risk: risk.losses(theta),
        lambda risk: risk.gradient(theta), lambda risk: risk.hvp(theta, V2),
        lambda risk: risk.linearized_hvp(theta)(V2), lambda risk: risk.linearized_ggn(theta)(V2),
    ):  # fmt: skip
        torch.testing.assert_close(of(chunked), of(dense), **close)
    return theta


@pytest.mark.parametrize("options", [{}, {"tied": True}, {"bias": True}, {"returns": "a product"}])
def test_loss_gradient_and_products_are_those_of_dense_logits(options):
    theta = agree(*(risks := both(settled(Decoder(**options)))))
    torch.testing.assert_close(*(risk.outputs(theta) for risk in risks), rtol=1e-12, atol=1e-13)
    seen = risks[1].probe()
    assert seen.reasons() == seen.reasons("ggn") == ()
    assert not seen.failure


def test_cross_entropy_over_classes_first_with_weights_smoothing_and_ignored_tokens():
    batch = text()
    data = (batch["input_ids"], batch["labels"])
    loss = nn.CrossEntropyLoss(weight=torch.rand(V, generator=rng(5)) + 0.5, label_smoothing=0.1)
    agree(*both(settled(Decoder(returns="classes first")), loss, data))


def test_a_frozen_head_and_a_head_alone():
    for trained in ("head", "up"):
        model = settled(Decoder(bias=True))
        for name, p in model.named_parameters():
            p.requires_grad_(name.startswith(trained))
        agree(*both(model))


@pytest.mark.parametrize("returns", ["softcapped", "adapted"])
def test_logits_that_the_model_computes_with_are_made_whole(returns, caplog):
    model = settled(Decoder(returns=returns))
    if returns == "adapted":
        model.head.register_forward_hook(lambda module, args, out: 2 * out)
    dense, other = both(model)
    assert pieces(dense) is None
    assert pieces(other) is None
    torch.testing.assert_close(other.loss(other.theta), dense.loss(dense.theta))
    assert not caplog.messages
    EmpiricalRisk(model, "causal_lm", text(), memory=T * V * 8 - 1)
    assert f"{T} tokens over as many classes as the largest tensor has rows ({V})" in caplog.text


def test_a_label_beyond_the_vocabulary_is_named():
    batch = text()
    batch["labels"][2, 1] = V
    with pytest.raises(Exception, match=f"Target {V} of example 2 is out of range: .* has {V} out"):
        EmpiricalRisk(settled(Decoder()), "causal_lm", batch, memory=SMALL)


def test_a_slice_and_chosen_rows_are_those_of_dense_logits():
    risks = both(settled(Decoder(returns="no cast")))
    theta = risks[0].theta
    slices = [measure.loss_slice(risk, theta, num_directions=1, points=3, seed=0)["loss"].values
              for risk in risks]  # fmt: skip
    torch.testing.assert_close(*map(torch.as_tensor, slices), rtol=1e-11, atol=0)
    rows = torch.tensor([4, 1, 5])
    chosen = [RowLosses(risk, risk.model_at(theta)).shares(rows) for risk in risks]
    torch.testing.assert_close(*chosen, rtol=1e-12, atol=0)
    torch.testing.assert_close(chosen[0], risks[1].losses(theta)[rows], rtol=1e-12, atol=0)
    found = [Objective(risk, theta).gradient(theta)[1] for risk in risks]
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-14)


def test_eigenvalues_are_those_of_dense_logits():
    found = [
        measure.top_eigenvalues(risk, risk.theta, k=2, seed=0)["eigenvalue"].values
        for risk in both(settled(Decoder()))
    ]
    torch.testing.assert_close(*map(torch.as_tensor, found), rtol=1e-9, atol=0)


class Largest(torch.overrides.TorchFunctionMode):
    """The most elements of a tensor that is made with a vocabulary as one axis."""

    def __init__(self):
        super().__init__()
        self.tokens = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        made = found if isinstance(found, tuple | list) else [found]
        here = [t for t in made if isinstance(t, torch.Tensor) and not isinstance(t, Deferred)]
        sizes = [len(t) for t in here if t.ndim == 2 and t.shape[1] == V]
        self.tokens = max([self.tokens, *sizes])
        return found


def test_no_more_tokens_than_a_piece_have_logits_at_once():
    _, risk = both(settled(Decoder()))
    v = torch.randn(len(risk.theta), generator=rng(3), dtype=torch.float64)
    with Largest() as seen:
        risk.hvp(risk.theta, v)
        risk.linearized_ggn(risk.theta)(v)
    assert seen.tokens <= pieces(risk)


def test_of_long_sequences_few_rows_are_tried_and_of_pictures_of_bytes_as_many_as_of_others():
    rows = {2**11: 2, 2**8: 16, 4: 32}
    for length, count in rows.items():
        ids = torch.zeros(40, length, dtype=torch.long)
        model = nn.Sequential(nn.Embedding(3, 2), nn.Linear(2, 3))
        risk = EmpiricalRisk(model, "causal_lm", ids)
        assert risk._engine.examples.most_to_try(32) == count
    picture = nn.Sequential(Widened(), nn.Flatten(), nn.Linear(75, 3))
    pixels = torch.zeros(40, 3, 5, 5, dtype=torch.uint8)
    risk = EmpiricalRisk(picture, nn.CrossEntropyLoss(), (pixels, torch.arange(40) % 3))
    assert risk._engine.examples.most_to_try(32) == 32


class Widened(nn.Module):
    def forward(self, x):
        return x.float() / 255


def test_little_logits_are_not_cut_whatever_the_memory(monkeypatch):
    monkeypatch.undo()
    assert pieces(EmpiricalRisk(settled(Decoder()), "causal_lm", text(), memory=1)) is None


def test_pieces_have_all_derivatives():
    h, W, b = (torch.randn(*shape, generator=rng(), dtype=torch.float64, requires_grad=True)
               for shape in ((7, 3), (5, 3), (5,)))  # fmt: skip
    y = torch.randint(0, 5, (7,), generator=rng())

    def chunked(h, W, b):
        def of_piece(rows, shared):
            return [F.cross_entropy(F.linear(rows[0], *shared), rows[1], reduction="none")], []

        return in_pieces(of_piece, [h, y], [W, b], 3)[0]

    torch.autograd.gradcheck(chunked, (h, W, b))
    torch.autograd.gradgradcheck(chunked, (h, W, b))
