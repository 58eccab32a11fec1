"""Whatever form the data come in, and however they are cut, the risk is one number."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from landscape.errors import LandscapeError
from landscape.risk import EmpiricalRisk
from tests.risk_problems import F64, cnn_bn, mlp_bn, problem, randn, rng, settled

N = 17
MODEL, (X, Y) = mlp_bn(), problem("mlp_bn", N)[1]
CE = nn.CrossEntropyLoss()
WHOLE = {bn: EmpiricalRisk(MODEL, CE, (X, Y), bn=bn) for bn in ("eval", "full_batch")}
WHOLE["recalibrate"] = WHOLE["eval"].with_bn("recalibrate")
THETA = WHOLE["eval"].theta + 0.1 * randn(WHOLE["eval"].layout.num_parameters, seed=4)
V = randn(2, len(THETA), seed=5)


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)


class Rows(Dataset):
    def __len__(self):
        return N

    def __getitem__(self, i):
        return X[i], Y[i]


def cuts(sizes):
    edges = torch.tensor([0, *sizes]).cumsum(0).tolist()
    return [(X[a:b], Y[a:b]) for a, b in itertools.pairwise(edges)]


FORMS = {
    "tensor dataset": lambda: TensorDataset(X, Y),
    "dataset": Rows,
    "loader": lambda: DataLoader(Rows(), batch_size=5),
    "list batch": lambda: [X, Y],
    "uneven list": lambda: cuts([1, 9, 0, 7]),
    "tuple of batches in a list": lambda: [(X[:3], Y[:3]), [X[3:], Y[3:]]],
    "numpy": lambda: (X.numpy(), Y.numpy()),
    "iterator": lambda: iter(cuts([4, 13])),
    "dict with the target under labels": lambda: {"x": X, "labels": Y},
    "list of dicts": lambda: [{"input": X[:6], "label": Y[:6]}, {"input": X[6:], "label": Y[6:]}],
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_the_data_gives_the_same_losses(form):
    risk = EmpiricalRisk(MODEL, CE, FORMS[form]())
    assert risk.num_examples == N
    close(risk.losses(THETA), WHOLE["eval"].losses(THETA))


@settings(max_examples=20, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 9), min_size=1, max_size=6).filter(lambda s: 0 < sum(s) <= N),
    batch_size=st.one_of(st.none(), st.integers(1, N)),
    memory=st.sampled_from([1, 20_000, None]),
)
def test_the_risk_does_not_depend_on_how_the_data_are_cut(sizes, batch_size, memory):
    sizes = [*sizes, N - sum(sizes)]
    risk = EmpiricalRisk(MODEL, CE, cuts(sizes), batch_size=batch_size, memory=memory)
    whole = WHOLE["eval"]
    close(risk.loss(THETA), whole.loss(THETA))
    close(risk.losses(THETA), whole.losses(THETA))
    close(risk.error_rate(THETA), whole.error_rate(THETA))
    close(risk.gradient(THETA), whole.gradient(THETA))
    close(risk.hvp(THETA, V), whole.hvp(THETA, V))
    close(risk.linearized_hvp(THETA)(V), whole.hvp(THETA, V))


@pytest.mark.parametrize("bn", ["full_batch", "recalibrate"])
@pytest.mark.parametrize("batch_size", [1, 5, 16])
def test_batch_statistics_are_those_of_the_whole_set_under_micro_batches(bn, batch_size):
    risk = EmpiricalRisk(MODEL, CE, (X, Y), batch_size=batch_size, bn=bn)
    close(risk.losses(THETA), WHOLE[bn].losses(THETA))
    if bn == "full_batch":  # one graph, since it fits
        close(risk.gradient(THETA), WHOLE[bn].gradient(THETA))
        close(risk.hvp(THETA, V), WHOLE[bn].hvp(THETA, V))


@pytest.mark.parametrize("bn", ["full_batch", "recalibrate"])
def test_streamed_statistics_of_convolutions(bn):
    model, data = cnn_bn(), problem("cnn_bn", 13)[1]
    whole = EmpiricalRisk(model, CE, data, bn=bn)
    small = EmpiricalRisk(model, CE, data, bn=bn, batch_size=4)
    close(small.losses(whole.theta), whole.losses(whole.theta))
    assert small.cost > 2 * whole.cost  # one pass more for each BatchNorm layer, and it is counted


def test_full_batch_is_training_on_one_batch():
    model = mlp_bn().train()
    risk = EmpiricalRisk(model, CE, (X, Y), bn="full_batch")
    torch.testing.assert_close(risk.loss(risk.theta), CE(model(X), Y).detach(), rtol=1e-13, atol=0)


def test_recalibrate_is_torchs_own_re_estimation_followed_by_eval():
    # One BatchNorm layer: reset, cumulative average over one batch of all rows, then eval.
    model = settled(nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3)))
    risk = EmpiricalRisk(model, CE, (X, Y), bn="recalibrate")
    model[1].reset_running_stats()
    model[1].momentum = None
    model.train()(X)
    model.eval()
    torch.testing.assert_close(risk.loss(risk.theta), CE(model(X), Y).detach(), rtol=1e-13, atol=0)


def test_recalibrate_is_a_fixed_point_layer_by_layer():
    model = mlp_bn()
    risk = EmpiricalRisk(model, CE, (X, Y), bn="recalibrate")
    x = X
    model.eval()
    with torch.no_grad():
        for layer in model:
            if isinstance(layer, nn.BatchNorm1d):
                layer.running_mean.copy_(x.mean(0))
                layer.running_var.copy_(x.var(0, correction=1))
            x = layer(x)
    torch.testing.assert_close(risk.loss(risk.theta), CE(x, Y).detach(), rtol=1e-13, atol=0)


def test_modes_agree_without_batchnorm_and_differ_with_it():
    losses = {float(WHOLE[bn].loss(THETA)) for bn in WHOLE}
    assert len(losses) == 3
    plain = EmpiricalRisk(settled(nn.Linear(4, 3)), CE, (X, Y))
    assert not plain.has_batchnorm
    assert torch.equal(plain.loss(plain.theta), plain.with_bn("full_batch").loss(plain.theta))


def test_a_shuffled_loader_is_read_once_and_its_generators_are_put_back():
    loader = DataLoader(Rows(), batch_size=4, shuffle=True, generator=rng(3))
    before, state = loader.generator.get_state(), torch.get_rng_state()
    risk = EmpiricalRisk(MODEL, CE, loader)
    assert torch.equal(loader.generator.get_state(), before)
    assert torch.equal(torch.get_rng_state(), state)
    close(risk.loss(THETA), WHOLE["eval"].loss(THETA))


def test_batches_of_different_shapes_stay_apart():
    class Mean(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(4, 3)

        def forward(self, x):
            return self.head(x.mean(1))

    model = settled(Mean())
    a, b = randn(3, 5, 4), randn(2, 7, 4, seed=1)
    y = torch.tensor([0, 1, 2, 0, 1])
    risk = EmpiricalRisk(model, CE, [(a, y[:3]), (b, y[3:])])
    out = torch.cat([model(a), model(b)]).detach()
    close(risk.outputs(risk.theta), out)
    close(risk.loss(risk.theta), CE(out, y))


def test_evaluate_is_loss_losses_and_error_rate_in_one_pass():
    risk = WHOLE["eval"]
    before = risk.cost
    found = risk.evaluate(THETA)
    assert risk.cost - before == pytest.approx(1 / 3)
    assert torch.equal(found.loss, risk.loss(THETA))
    assert torch.equal(found.losses, risk.losses(THETA))
    wrong = (risk.outputs(THETA).argmax(1) != Y).double().mean()
    assert torch.equal(found.error_rate, wrong)


def test_dict_batches_reach_forward_by_name_and_extras_are_left_out():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = settled(nn.Linear(4, 3))

        def forward(self, features, scale):
            return self.inner(features) * scale

    scale = torch.rand(N, 1, generator=rng(1), dtype=F64)
    data = {"features": X, "scale": scale, "row": torch.arange(N), "target": Y}
    model = Named()
    risk = EmpiricalRisk(model, CE, data, batch_size=4)
    close(risk.loss(risk.theta), CE(model(X, scale), Y).detach())
    pair = EmpiricalRisk(model, CE, ((X, scale), Y))
    close(pair.loss(pair.theta), risk.loss(risk.theta))


def test_hugging_face_style_outputs_reach_the_loss_as_logits():
    class Output(dict):
        def __init__(self, logits):
            super().__init__(logits=logits)
            self.logits = logits

    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = settled(nn.Linear(4, 3))

        def forward(self, input_ids, labels=None):
            assert labels is None
            return Output(self.inner(input_ids))

    model = Wrapped()
    risk = EmpiricalRisk(model, CE, [{"input_ids": X[:8], "labels": Y[:8]}])
    close(risk.loss(risk.theta), CE(model.inner(X[:8]), Y[:8]).detach())
    close(risk.hvp(risk.theta, V[0, :15]), risk.linearized_hvp(risk.theta)(V[0, :15]))
    assert risk.outputs(risk.theta).shape == (8, 3)


def test_heads_with_several_outputs_go_through_a_users_loss():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = settled(nn.Linear(4, 3)), settled(nn.Linear(4, 1))

        def forward(self, x):
            return {"class": self.a(x), "value": self.b(x)}

    def loss(output, target):
        first = nn.functional.cross_entropy(output["class"], target[0], reduction="none")
        return first + (output["value"].squeeze(1) - target[1]) ** 2

    model, values = Two(), randn(N, seed=6)
    risk = EmpiricalRisk(model, loss, (X, (Y, values)), batch_size=4)
    close(risk.loss(risk.theta), loss(model(X), (Y, values)).mean().detach())
    assert risk.evaluate(risk.theta).error_rate is None


@pytest.mark.parametrize(
    "loss", [nn.CrossEntropyLoss(reduction="sum"), nn.functional.cross_entropy]
)
def test_a_criterion_is_evaluated_per_example_whatever_its_reduction(loss):
    risk = EmpiricalRisk(MODEL, loss, (X, Y), batch_size=5)
    close(risk.losses(THETA), WHOLE["eval"].losses(THETA))


def test_the_criterions_own_reduction_over_the_whole_set():
    model, target = settled(nn.Linear(4, 3)), randn(N, 3, seed=2)
    squares = (model(X) - target).square().detach()
    for reduction, expected in (("mean", squares.mean()), ("sum", squares.sum())):
        risk = EmpiricalRisk(model, nn.MSELoss(reduction=reduction), (X, target), batch_size=5)
        close(risk.loss(risk.theta), expected)


def test_a_declared_mean_is_weighted_by_its_rows():
    def mean_loss(output, target):
        return nn.functional.cross_entropy(output, target)

    risk = EmpiricalRisk(MODEL, mean_loss, (X, Y), batch_size=5, reduction="mean")
    close(risk.loss(THETA), WHOLE["eval"].loss(THETA))
    close(risk.gradient(THETA), WHOLE["eval"].gradient(THETA))
    close(risk.hvp(THETA, V), WHOLE["eval"].hvp(THETA, V))
    assert risk.evaluate(THETA).losses is None
    with pytest.raises(LandscapeError, match="mean_loss tells the mean of a batch only"):
        risk.losses(THETA)


def test_label_smoothing_and_soft_targets():
    smooth = EmpiricalRisk(MODEL, nn.CrossEntropyLoss(label_smoothing=0.1), (X, Y))
    assert "label_smoothing=0.1" in smooth.provenance()["loss"]
    soft = torch.softmax(randn(N, 3, seed=3), 1)
    risk = EmpiricalRisk(MODEL, CE, (X, soft))
    close(risk.loss(THETA), CE(risk.outputs(THETA), soft))
    close(risk.error_rate(THETA), (risk.outputs(THETA).argmax(1) != soft.argmax(1)).double().mean())


def test_a_prediction_that_is_nan_is_an_error_not_class_zero():
    risk = WHOLE["eval"]
    theta = THETA.clone()
    theta[risk.layout.mask("6.bias")] = torch.tensor([float("nan"), 0.0, 0.0], dtype=F64)
    assert float(risk.error_rate(theta)) == 1.0
    assert torch.isnan(risk.loss(theta))


def test_tied_frozen_and_unused_parameters():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
            self.second.weight = self.first.weight
            self.unused, self.frozen = nn.Linear(7, 7), nn.Linear(4, 3).requires_grad_(False)

        def forward(self, x):
            return self.frozen(torch.tanh(self.second(torch.tanh(self.first(x)))))

    model = settled(Odd())
    risk = EmpiricalRisk(model, CE, (X, Y))
    assert risk.layout.num_parameters == 16 + 4 + 4 + 49 + 7
    loss = CE(model(X), Y)
    tied = torch.autograd.grad(loss, model.first.weight)[0]
    parts = risk.layout.unflatten(risk.gradient(risk.theta))
    close(parts["first.weight"], tied)
    assert not parts["unused.weight"].any()
    v = randn(len(risk.theta), seed=7)
    H = risk.hvp(risk.theta, v)
    assert not risk.layout.unflatten(H)["unused.weight"].any()
    close(H, risk.linearized_hvp(risk.theta)(v))
    moved = risk.layout.unflatten(risk.theta)
    moved = {**moved, "first.weight": moved["first.weight"] * 0.5}
    theta = risk.layout.flatten(moved)
    with torch.no_grad():
        model.first.weight.mul_(0.5)
    close(risk.loss(theta), CE(model(X), Y).detach())


def test_float32_by_default_and_float64_on_request():
    model = nn.Sequential(nn.Linear(4, 3))
    assert EmpiricalRisk(model, CE, (X, Y)).dtype == torch.float32
    risk = EmpiricalRisk(model, CE, (X, Y), dtype=torch.float64)
    assert risk.loss(risk.theta).dtype == torch.float64
    assert EmpiricalRisk(model.bfloat16(), CE, (X, Y)).dtype == torch.float32
    assert EmpiricalRisk(model.double(), CE, (X, Y)).dtype == torch.float64


def test_wrapped_models_keep_their_plain_names():
    model = settled(nn.Sequential(nn.Linear(4, 3)))
    wrapped = nn.DataParallel(model)
    assert EmpiricalRisk(wrapped, CE, (X, Y)).layout.names == ("0.weight", "0.bias")
    compiled = nn.Module()  # what torch.compile returns, without the compiler
    compiled._orig_mod = model
    assert EmpiricalRisk(compiled, CE, (X, Y)).layout.names == ("0.weight", "0.bias")
