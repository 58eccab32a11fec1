import threading

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset

from landscape import measure
from landscape.errors import LandscapeError
from landscape.risk import EmpiricalRisk
from tests.risk_problems import F64, mlp_bn, problem, randn, rng, settled

CE = nn.CrossEntropyLoss()
X, Y = randn(8, 4), torch.randint(0, 3, (8,), generator=rng())


def linear():
    return settled(nn.Linear(4, 3))


class Plus(nn.Module):
    """A linear layer, then something else."""

    def __init__(self, function):
        super().__init__()
        self.inner, self.extra = linear(), Extra(function)

    def forward(self, x):
        return self.extra(self.inner(x))


class Extra(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**2

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return 2 * x * g


def refused(message, *args, **options):
    with pytest.raises(LandscapeError, match=message):
        EmpiricalRisk(*args, **options)


@pytest.mark.parametrize("data", [[], (X[:0], Y[:0]), [(X[:0], Y[:0])]])
def test_empty_data(data):
    refused("The data are empty", linear(), CE, data)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (X, "data is a Tensor; possible are a DataLoader"),
        (3, "data is a int; possible are"),
        ((X, Y, Y), "Batch 0 has 3 parts; a batch is"),
        ([(X, Y), (X,)], "Batch 1 has 1 parts"),
        ((X, Y[:5]), r"shapes \[\(8, 4\), \(5,\)\]; their first axes must be equal"),
        ((X, torch.tensor(1)), "numbers and single examples are no rows"),
        ((["a"], Y), "Batch 0 holds str"),
        ({"input": X, "label": Y, "labels": 2 - Y}, "under 'labels' and others under 'label'"),
        ({"x": X, "class": Y}, "has the keys 'x', 'class'; the targets must be under one of"),
        ({"a": X, "b": X, "y": Y}, "has the inputs 'a', 'b'; the model's forward takes input"),
    ],
)
def test_data_that_are_no_batches(data, message):
    refused(message, linear(), CE, data)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (X[:, :3], r"Linear with CrossEntropyLoss fails on the first 8 examples \(float64\(8, 3\)"),
        ((X * 255).to(torch.uint8), r"\(uint8\(8, 4\), int64\(8,\)\).*Give the data in the shape"),
        ((X, X), "takes 2 positional arguments but 3 were given"),
    ],
)
def test_data_of_another_model(inputs, message):
    refused(message, linear(), CE, (inputs, Y))


def test_augmenting_data_are_refused():
    class Noisy(Dataset):
        def __len__(self):
            return 8

        def __getitem__(self, i):
            return X[i] + torch.randn(4), Y[i]

    model, state = linear(), torch.get_rng_state()
    refused(r"Noisy\[0\] differs from one reading to the next", model, CE, Noisy())
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("bad", [3, 17, -1])
def test_a_target_outside_of_the_outputs_names_the_example(bad):
    targets = Y.clone()
    targets[5] = bad
    refused(f"Target {bad} of example 5 is out of range: the model has 3 outputs", linear(), CE,
            (X, targets))  # fmt: skip


def test_an_ignored_target_is_no_error():
    targets = Y.clone()
    targets[5] = -100
    risk = EmpiricalRisk(linear(), CE, (X, targets))
    assert float(risk.losses(risk.theta)[5]) == 0.0


def test_an_index_error_of_a_users_loss_is_explained():
    def loss(output, target):
        return -torch.log_softmax(output, 1)[torch.arange(len(target)), target]

    refused("failed on the targets", linear(), loss, (X, Y + 3))


@pytest.mark.parametrize(
    ("loss", "options", "message"),
    [
        (3, {}, "loss is a int; give a callable"),
        ("cross_entropy", {}, "the named losses are 'model'"),
        (lambda o, t: o.sum(), {}, r"returned shape \(\) for 8 examples; return one loss per"),
        (lambda o, t: o.flatten(), {}, r"returned shape \(24,\) for 8 examples"),
        (lambda o, t: 0.0, {}, "returned a float"),
        (lambda o, t: o.flatten(), {"reduction": "mean"}, r"='mean' but returned shape \(24,\)"),
        (nn.CrossEntropyLoss, {}, r"the class CrossEntropyLoss; give an instance"),
        (lambda o, t: o[:, 0] * 1j, {}, r"complex numbers \(complex128\), and a loss is real"),
        (nn.CosineEmbeddingLoss(), {}, r"2 outputs \(input1, input2\); the model returns 1"),
        (nn.GaussianNLLLoss(), {}, r"2 outputs \(mean, variance\); the model returns 1"),
        (CE, {"reduction": "sum"}, "which has a reduction of its own"),
        (CE, {"reduction": "avg"}, "reduction='avg' declared; possible are None"),
    ],
)
def test_losses_that_cannot_be_used(loss, options, message):
    refused(message, linear(), loss, (X, Y), **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bn": "train"}, "bn='train' asked; possible are eval, full_batch, recalibrate"),
        ({"batch_size": 0}, "batch_size=0 was asked; .* or None"),
        ({"memory": -5}, "memory=-5 was asked; .* of bytes"),
        (
            {"memory": "2 GB"},
            r"memory='2 GB' was asked; give .* of bytes, such as",
        ),
        ({"weight_decay": -0.1}, "weight_decay=-0.1 was asked"),
        ({"dtype": torch.bfloat16}, r"dtype=torch\.bfloat16 asked; possible are"),
        ({"device": "cuda:99"}, "device=cuda:99 asked"),
        ({"device": "teapot"}, "device='teapot' asked"),
    ],
)
def test_options(options, message):
    refused(message, linear(), CE, (X, Y), **options)


def test_models():
    refused("model is a dict; give a torch.nn.Module", {}, CE, (X, Y))
    refused("no trainable parameter", linear().requires_grad_(False), CE, (X, Y))
    odd = linear()
    odd.lock = threading.Lock()
    refused(r"Linear cannot be copied.*borrow=True", odd, CE, (X, Y))
    EmpiricalRisk(odd, CE, (X, Y), borrow=True)


@pytest.mark.parametrize("theta", [torch.zeros(14), torch.zeros(3, 5), [0.0] * 15])
def test_theta_of_another_size(theta):
    risk = EmpiricalRisk(linear(), CE, (X, Y))
    for call in (risk.loss, risk.gradient, risk.linearized_hvp, risk.evaluate):
        with pytest.raises(LandscapeError, match=r"this model has P=15 trainable parameters"):
            call(theta)


def test_vectors_of_another_size():
    risk = EmpiricalRisk(linear(), CE, (X, Y))
    with pytest.raises(LandscapeError, match=r"V of shape \(14,\) given; .* takes \(15,\) or"):
        risk.hvp(risk.theta, torch.zeros(14))


def test_randomness_in_evaluation_mode_is_blamed_on_its_module():
    noisy = Plus(lambda x: nn.functional.dropout(x, 0.5, training=True))
    refused(r"module 'extra' \(Extra\) is not deterministic", noisy, CE, (X, Y))

    def noisy_loss(output, target):
        return CE(output, target) + torch.randn(len(output))

    refused("the loss .*noisy_loss is not deterministic", linear(), noisy_loss, (X, Y))


def test_layers_that_mix_examples_are_refused():
    mixing = Plus(lambda x: x - x.mean(0))
    refused("a layer or the loss mixes examples", mixing, CE, [(X[:5], Y[:5]), (X[5:], Y[5:])])


@pytest.mark.parametrize("what", ["gradient", "hvp", "linearized_hvp"])
def test_a_loss_that_is_not_finite_has_no_derivative_and_names_the_example(what):
    inputs = X.clone()
    inputs[6, 1] = float("inf")
    risk = EmpiricalRisk(linear(), CE, (inputs, Y), batch_size=3)
    assert not torch.isfinite(risk.loss(risk.theta))
    args = (risk.theta, risk.theta) if what == "hvp" else (risk.theta,)
    with pytest.raises(LandscapeError, match="first nan at example 6 of 8"):
        getattr(risk, what)(*args)


def test_a_theta_that_is_not_finite_names_the_tensor():
    risk = EmpiricalRisk(linear(), CE, (X, Y))
    theta = risk.theta
    theta[13] = float("nan")
    assert torch.isnan(risk.loss(theta))
    with pytest.raises(LandscapeError, match="1 values that are not finite, the first in 'bias'"):
        risk.gradient(theta)


def test_a_finite_loss_with_an_infinite_gradient():
    risk = EmpiricalRisk(
        settled(nn.Linear(4, 1, bias=False)), lambda o, t: o.abs().sqrt().squeeze(1), (X, Y)
    )
    with pytest.raises(LandscapeError, match="The loss at theta is 0, but its gradient is not fin"):
        risk.gradient(torch.zeros(4, dtype=F64))


@pytest.mark.parametrize("what", ["gradient", "hvp", "linearized_hvp"])
def test_recalibrate_has_no_derivatives(what):
    model, data = problem("mlp_bn")
    risk = EmpiricalRisk(model, CE, data, bn="recalibrate")
    args = (risk.theta, risk.theta) if what == "hvp" else (risk.theta,)
    with pytest.raises(LandscapeError, match=f"{what} asked with bn='recalibrate'.*with_bn"):
        getattr(risk, what)(*args)


@pytest.mark.parametrize("what", ["gradient", "hvp", "linearized_hvp"])
def test_full_batch_that_does_not_fit_is_refused_with_the_ways_out(what):
    model, data = problem("cnn_bn")
    risk = EmpiricalRisk(model, CE, data, bn="full_batch", memory=1000)
    args = (risk.theta, risk.theta) if what == "hvp" else (risk.theta,)
    with pytest.raises(LandscapeError, match=r"N=12 examples at once.*Raise memory, give fewer"):
        getattr(risk, what)(*args)
    assert torch.isfinite(risk.loss(risk.theta))  # values are exact by streaming


def test_full_batch_over_batches_of_different_shapes_has_no_gradient():
    model = settled(nn.Sequential(nn.Conv1d(2, 3, 1), nn.BatchNorm1d(3), nn.AdaptiveAvgPool1d(1),
                                  nn.Flatten()))  # fmt: skip
    a, b = randn(3, 2, 5), randn(2, 2, 7, seed=1)
    risk = EmpiricalRisk(model, CE, [(a, Y[:3]), (b, Y[3:5])], bn="full_batch")
    assert torch.isfinite(risk.loss(risk.theta))
    with pytest.raises(LandscapeError, match="2 batches of different shapes"):
        risk.gradient(risk.theta)


def test_batchnorm_without_running_statistics_has_no_eval_mode():
    model = settled(nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3, track_running_stats=False)))
    refused("layer '1' keeps no running statistics", model, CE, (X, Y))
    risk = EmpiricalRisk(model, CE, (X, Y), bn="full_batch")
    assert torch.isfinite(risk.loss(risk.theta))
    with pytest.raises(LandscapeError, match="keeps no running statistics"):
        risk.with_bn("eval")


def test_a_batchnorm_layer_with_a_forward_of_its_own_is_eval_only():
    class NormAct(nn.BatchNorm1d):
        def forward(self, x):
            return torch.tanh(super().forward(x))

    model = settled(nn.Sequential(nn.Linear(4, 3), NormAct(3)))
    risk = EmpiricalRisk(model, CE, (X, Y))
    assert torch.isfinite(risk.loss(risk.theta))
    with pytest.raises(LandscapeError, match=r"layer '1' \(NormAct\) has a forward of its own"):
        risk.with_bn("full_batch")


class OwnNorm(nn.Module):
    """As many repositories write BatchNorm themselves, or torch's layer read by hand."""

    def __init__(self, layer=None):
        super().__init__()
        self.inner = nn.Linear(4, 3)
        if layer is None:
            self.register_buffer("running_mean", torch.zeros(3))
            self.register_buffer("running_var", torch.ones(3))
        else:
            self.norm = layer

    def forward(self, x):
        kept = getattr(self, "norm", self)
        return nn.functional.batch_norm(
            self.inner(x), kept.running_mean, kept.running_var, training=self.training
        )


@pytest.mark.parametrize(
    "make",
    [
        OwnNorm,
        lambda: OwnNorm(nn.BatchNorm1d(3)),
        lambda: nn.Sequential(
            nn.Linear(4, 6), nn.Unflatten(1, (2, 3)),
            nn.InstanceNorm1d(2, track_running_stats=True), nn.Flatten(), nn.Linear(6, 3),
        ),
    ],
)  # fmt: skip
@pytest.mark.parametrize("bn", ["full_batch", "recalibrate"])
def test_statistics_that_no_batchnorm_layer_of_torch_keeps_are_eval_only(make, bn):
    model = settled(make())
    risk = EmpiricalRisk(model, CE, (X, Y))
    expected = CE(model.eval()(X), Y).detach()
    torch.testing.assert_close(risk.loss(risk.theta), expected)
    told = r"reads (norm\.|2\.)?running_mean, .*use bn='eval'"
    for twin in (risk, risk.with_dtype(torch.float32)):
        with pytest.raises(LandscapeError, match=told):
            twin.with_bn(bn)
    refused(told, model, CE, (X, Y), bn=bn)


def test_a_batchnorm_layer_that_is_called_twice_cannot_be_recalibrated():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.bn, self.head = nn.BatchNorm1d(4), nn.Linear(4, 3)

        def forward(self, x):
            return self.head(self.bn(torch.tanh(self.bn(x))))

    model = settled(Twice())
    risk = EmpiricalRisk(model, CE, (X, Y), bn="full_batch")
    assert torch.isfinite(risk.loss(risk.theta))
    with pytest.raises(LandscapeError, match="layer 'bn' is called twice"):
        risk.with_bn("recalibrate").loss(risk.theta)


def test_batch_statistics_of_one_value_are_refused():
    with pytest.raises(LandscapeError, match=r"at least two examples|one value per channel"):
        EmpiricalRisk(mlp_bn(), CE, (X[:1], Y[:1]), bn="full_batch")


@pytest.mark.parametrize("what", ["hvp", "linearized_hvp"])
def test_a_module_without_second_derivative_is_named(what):
    risk = EmpiricalRisk(Plus(Once.apply), CE, (X, Y))
    assert torch.isfinite(risk.gradient(risk.theta)).all()
    args = (risk.theta, risk.theta) if what == "hvp" else (risk.theta,)
    with pytest.raises(LandscapeError, match=r"module 'extra' \(Extra\) cannot be differentiated"):
        getattr(risk, what)(*args)


def test_a_loss_without_gradient_is_refused():
    risk = EmpiricalRisk(Plus(torch.Tensor.detach), CE, (X, Y))
    with pytest.raises(LandscapeError, match="does not depend on any of the 15 trainable"):
        risk.gradient(risk.theta)


def test_error_rate_of_a_regression_is_refused():
    risk = EmpiricalRisk(settled(nn.Linear(4, 1)), nn.MSELoss(), (X, randn(8, 1)))
    with pytest.raises(LandscapeError, match="error_rate asked of MSELoss"):
        risk.error_rate(risk.theta)


def test_outputs_that_are_no_tensor_are_refused():
    risk = EmpiricalRisk(Plus(lambda x: {"a": x}), lambda o, t: o["a"].sum(1), (X, Y))
    with pytest.raises(LandscapeError, match="The model returns a dict"):
        risk.outputs(risk.theta)


def test_weights_that_are_nan_give_a_loss_that_is_nan_and_no_blame():
    model = settled(nn.Linear(4, 3))
    model.weight.data[0, 0] = float("nan")
    risk = EmpiricalRisk(model, nn.CrossEntropyLoss(), (torch.ones(5, 4), torch.arange(5) % 3))
    assert bool(risk.loss(risk.theta).isnan())
    with pytest.raises(LandscapeError, match="finite"):
        measure.top_eigenvalues(risk, risk.theta, k=1, seed=0)
