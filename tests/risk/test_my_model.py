"""The table "my model is a ..." of the README, run: five lines each, against torch itself."""

import functools
import types

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from landscape import EmpiricalRisk
from landscape.errors import LandscapeError
from tests.risk_problems import F64, randn, rng, settled


def same(risk, truth):
    """Loss and gradient of the risk are those of torch's own value."""
    model = risk.model_at(risk.theta)
    value = truth(model)
    torch.testing.assert_close(risk.loss(risk.theta), value.detach(), rtol=1e-12, atol=1e-14)
    grads = torch.autograd.grad(value, list(model.parameters()), materialize_grads=True)
    gradient = torch.cat([g.reshape(-1) for g in grads])
    torch.testing.assert_close(risk.gradient(risk.theta), gradient, rtol=1e-9, atol=1e-12)
    risk.hvp(risk.theta, gradient)


class Words(nn.Module):
    """A language model in the way of transformers: logits, and a loss where labels are given."""

    def __init__(self, shift=True):
        super().__init__()
        self.embed, self.out, self.shift = nn.Embedding(11, 5), nn.Linear(5, 11), shift

    def forward(self, input_ids, attention_mask=None, labels=None):
        logits = self.out(torch.tanh(self.embed(input_ids)).cumsum(1))
        loss = None
        if labels is not None:
            z, y = (logits[:, :-1], labels[:, 1:]) if self.shift else (logits, labels)
            loss = F.cross_entropy(z.reshape(-1, 11), y.reshape(-1))
        return types.SimpleNamespace(logits=logits, loss=loss)


def padded(n=12, length=6):
    ids = torch.randint(1, 11, (n, length), generator=rng())
    mask = torch.arange(length)[None] < torch.randint(2, length + 1, (n, 1), generator=rng(1))
    return {"input_ids": ids, "attention_mask": mask.long(), "labels": ids.where(mask, -100)}


def test_a_language_model():
    model, batch = settled(Words()), padded()
    batches = [{k: v[a : a + 5] for k, v in batch.items()} for a in (0, 5, 10)]
    risk = EmpiricalRisk(model, "causal_lm", batches)
    same(risk, lambda m: m(**batch).loss)
    assert risk.provenance()["denominator"] == float((batch["labels"][:, 1:] != -100).sum())
    product = risk.linearized_ggn(risk.theta)(risk.theta)
    assert bool(torch.isfinite(product).all())


def test_a_language_model_without_token_ids_is_told_what_it_was_given():
    given = {"tokens": padded()["input_ids"], "mask": None}
    with pytest.raises(LandscapeError, match=r"a dict with the keys 'tokens', 'mask'; give a dict"):
        EmpiricalRisk(settled(Words()), "causal_lm", [given])


def test_a_language_model_without_labels_masks_what_is_not_attended_to():
    model, batch = settled(Words()), padded()
    labels = batch.pop("labels")
    risk = EmpiricalRisk(model, "causal_lm", batch, batch_size=3)
    same(risk, lambda m: m(batch["input_ids"], labels=labels).loss)


@pytest.mark.parametrize("shift", [True, False])
def test_a_model_that_computes_its_own_loss_is_exact_over_all_labels_that_count(shift):
    model, batch = settled(Words(shift)), padded()
    batches = [{k: v[a : a + 5] for k, v in batch.items()} for a in (0, 5, 10)]
    risk = EmpiricalRisk(model, "model", batches, batch_size=2)
    same(risk, lambda m: m(**batch).loss)
    assert risk.provenance()["mean_over"] == ("next labels" if shift else "labels")


def test_a_segmentation_network_with_ignored_pixels():
    model = settled(nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.SiLU(), nn.Conv2d(4, 3, 1)))
    x, y = randn(6, 1, 5, 5), torch.randint(0, 3, (6, 5, 5), generator=rng())
    y[torch.rand(y.shape, generator=rng(1)) < 0.3] = 255
    loss = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 3.0, 0.5]), ignore_index=255)
    risk = EmpiricalRisk(model, loss, (x, y), batch_size=2)
    same(risk, lambda m: loss.double()(m(x), y))


class Graph(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(3, 5), nn.Linear(5, 4)

    def forward(self, x, edges):
        h = torch.tanh(self.first(x))
        return self.last(h + torch.zeros_like(h).index_add(0, edges[1], h[edges[0]]))


def test_a_graph_network_on_one_graph():
    x, edges = randn(9, 3), torch.randint(0, 9, (2, 20), generator=rng())
    y = torch.randint(0, 4, (9,), generator=rng(1))
    y[6:] = -100  # not in the training mask
    risk = EmpiricalRisk(
        settled(Graph()), nn.CrossEntropyLoss(), ((x, edges), y), reduction="whole"
    )
    same(risk, lambda m: F.cross_entropy(m(x, edges), y))
    with pytest.raises(LandscapeError, match=r"their first axes must be equal.*reduction='mean'"):
        EmpiricalRisk(settled(Graph()), nn.CrossEntropyLoss(), ((x, edges), y))


def test_a_physics_informed_network():
    def residual(model, batch):
        x = batch.requires_grad_()
        u = model(x)
        (du,) = torch.autograd.grad(u.sum(), x, create_graph=True)
        return ((du - torch.cos(x)) ** 2)[:, 0]

    model, x = settled(nn.Sequential(nn.Linear(1, 6), nn.Tanh(), nn.Linear(6, 1))), randn(20, 1)
    risk = EmpiricalRisk(model, residual, x, batch_size=7)
    same(risk, lambda m: residual(m, x.clone()).mean())


def test_a_policy():
    def surrogate(model, batch):
        chosen = model(batch["state"]).log_softmax(1).gather(1, batch["action"][:, None])[:, 0]
        return -batch["advantage"] * chosen

    model = settled(nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2)))
    batch = {"state": randn(15, 4), "advantage": randn(15, seed=1),
             "action": torch.randint(0, 2, (15,), generator=rng())}  # fmt: skip
    risk = EmpiricalRisk(model, surrogate, batch, batch_size=4)
    same(risk, lambda m: surrogate(m, batch).mean())


def contrastive(model, batch):
    a, b = (F.normalize(model(view), dim=1) for view in batch)
    return F.cross_entropy(a @ b.T / 0.5, torch.arange(len(a)))


@pytest.mark.parametrize("options", [{}, {"batch_size": 3}, {"memory": 1}])
def test_contrastive_pairs(options):
    model = settled(nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)))
    a, b = randn(16, 5), randn(16, 5, seed=1)
    batches = [(a[:8], b[:8]), (a[8:], b[8:])]
    risk = EmpiricalRisk(model, contrastive, batches, **options)
    same(risk, lambda m: sum(contrastive(m, batch) for batch in batches) / 2)
    assert risk.provenance()["units"] == {"batches": 2, "examples": [8]}
    whole = EmpiricalRisk(model, contrastive, batches, reduction="whole", **options)
    same(whole, lambda m: contrastive(m, (a, b)))
    with pytest.raises(LandscapeError, match="only whole batches can be taken: 2 of 8"):
        risk.subset(torch.arange(5))
    torch.testing.assert_close(
        risk.subset(torch.arange(8, 16)).loss(risk.theta),
        contrastive(model, batches[1]).detach(),
    )


def test_an_auxiliary_loss_beside_the_logits():
    class Experts(nn.Module):
        def __init__(self):
            super().__init__()
            self.out, self.gate = nn.Linear(3, 4), nn.Linear(3, 1)

        def forward(self, x):
            return {"logits": self.out(x), "aux": self.gate(x)[:, 0] ** 2}

    def loss(output, y):
        return F.cross_entropy(output["logits"], y, reduction="none") + 0.1 * output["aux"]

    model, x, y = settled(Experts()), randn(9, 3), torch.randint(0, 4, (9,), generator=rng())
    risk = EmpiricalRisk(model, loss, (x, y), batch_size=4)
    same(risk, lambda m: loss(m(x), y).mean())
    same(EmpiricalRisk(model, nn.CrossEntropyLoss(), (x, y)),
         lambda m: F.cross_entropy(m(x)["logits"], y))  # fmt: skip


def test_a_numerator_and_its_denominator():
    def weighted(model, batch):
        squares = (model(batch["x"])[:, 0] - batch["y"]) ** 2
        return (batch["w"] * squares).sum(), batch["w"].sum()

    model = settled(nn.Linear(3, 1))
    batch = {
        "x": randn(11, 3),
        "y": randn(11, seed=1),
        "w": torch.rand(11, generator=rng()).double(),
    }
    risk = EmpiricalRisk(model, weighted, batch, batch_size=4)
    same(risk, lambda m: weighted(m, batch)[0] / batch["w"].sum())
    part = risk.subset(torch.tensor([1, 5, 6]))
    few = {k: v[[1, 5, 6]] for k, v in batch.items()}
    same(part, lambda m: weighted(m, few)[0] / few["w"].sum())


def test_a_mean_that_is_none_of_its_parts_is_not_believed():
    weight = torch.tensor([1.0, 9.0, 0.1], dtype=F64)

    def mean(output, target):
        return F.cross_entropy(output, target, weight=weight)

    model, x, y = (
        settled(nn.Linear(4, 3)),
        randn(12, 4),
        torch.randint(0, 3, (12,), generator=rng()),
    )
    risk = EmpiricalRisk(model, mean, (x, y), reduction="mean", batch_size=5, memory=1)
    same(risk, lambda m: mean(m(x), y))
    assert risk.provenance()["units"] == {"batches": 1, "examples": [12]}
    plain = EmpiricalRisk(model, lambda o, t: F.cross_entropy(o, t), (x, y), reduction="mean")
    assert "units" not in plain.provenance()


def test_a_sum_that_is_declared_a_mean_is_refused():
    model, x, y = settled(nn.Linear(4, 3)), randn(12, 4), torch.arange(12) % 3
    batches = [(x[:5], y[:5]), (x[5:], y[5:])]

    def total(output, target):
        return F.cross_entropy(output, target, reduction="sum")

    with pytest.raises(LandscapeError, match=r"the sum .* of their halves .*reduction='sum'"):
        EmpiricalRisk(model, functools.partial(lambda o, t: total(o, t)), batches, reduction="mean")
    risk = EmpiricalRisk(model, lambda o, t: total(o, t), batches, reduction="sum")
    same(risk, lambda m: total(m(x), y))


CALLS = {"of the module": 0, "log": []}
NUMBER_OF_CALLS = 0


class Annealed:
    """Its weight grows with every call, which it counts in an attribute, and logs."""

    def __init__(self):
        self.calls, self.log = 4, []

    def __call__(self, output, target):
        self.calls += 1
        self.log.append(self.calls)
        return self.calls * F.cross_entropy(output, target, reduction="none")


class Centers(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("centers", torch.zeros(3, 3))

    def forward(self, output, target):
        losses = (output - self.centers[target]).square().sum(1)
        self.centers.lerp_(output.detach().mean(0), 0.1)
        return losses


def late(output, target):
    global NUMBER_OF_CALLS
    NUMBER_OF_CALLS += 1
    CALLS["of the module"] += 1
    CALLS["log"].append(NUMBER_OF_CALLS)
    seen = NUMBER_OF_CALLS + CALLS["of the module"]
    return (1.0 if seen < 14 else 2.0) * F.cross_entropy(output, target, reduction="none")


def enclosed():
    calls, log = 0, []

    def loss(output, target):
        nonlocal calls
        calls += 1
        log.append(calls)
        return (1.0 if len(log) < 7 else 2.0) * F.cross_entropy(output, target, reduction="none")

    return loss


def test_what_a_loss_keeps_between_calls_is_as_before_the_first():
    model, x, y = settled(nn.Linear(4, 3)), randn(12, 4), torch.arange(12) % 3

    def of_first(scale):
        return lambda m: scale * F.cross_entropy(m(x), y)

    annealed = Annealed()
    cases = [
        (annealed, of_first(5), ["calls", "log"]),
        (annealed.__call__, of_first(5), ["calls", "log"]),
        (Centers(), lambda m: m(x).square().sum(1).mean(), ["centers"]),
        (late, of_first(1), ["CALLS", "NUMBER_OF_CALLS"]),
        (enclosed(), of_first(1), ["calls", "log"]),
    ]
    for loss, truth, names in cases:
        risk = EmpiricalRisk(model, loss, (x, y))
        for _ in range(20):
            risk.loss(risk.theta)
        same(risk, truth)
        single = risk.with_dtype(torch.float32)
        assert float(single.loss(single.theta)) == pytest.approx(float(risk.loss(risk.theta)))
        assert risk.provenance()["kept_by_loss"] == names
    assert (annealed.calls, annealed.log, NUMBER_OF_CALLS) == (4, [], 0)
    annealed.calls = 9  # of further training: the risk stays, and so does the count
    risk = EmpiricalRisk(model, annealed, (x, y))
    annealed.calls = 30
    same(risk, of_first(10))
    assert annealed.calls == 30


def test_coupling_that_begins_in_late_rows_is_seen():
    def loss(output, target):
        losses = F.cross_entropy(output, target, reduction="none")
        return losses * (1 + (target == 2).double().mean())

    y = torch.zeros(64, dtype=torch.long)
    y[50:] = 2
    x = randn(64, 4)
    batches = [(x[:32], y[:32]), (x[32:], y[32:])]
    with pytest.raises(LandscapeError, match="depend on their company"):
        EmpiricalRisk(settled(nn.Linear(4, 3)), loss, batches)


def test_a_dataset_has_no_batches_that_coupled_rows_could_belong_to():
    data = torch.utils.data.TensorDataset(randn(8, 5), randn(8, 5, seed=1))
    with pytest.raises(LandscapeError, match="a Dataset has no batches of its own"):
        EmpiricalRisk(settled(nn.Linear(5, 3)), contrastive, data)
