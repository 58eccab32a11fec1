"""The risk is torch's own criterion of one batch of all examples, however the data are cut."""

import functools
import itertools

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from landscape.errors import LandscapeError
from landscape.risk import EmpiricalRisk
from tests.risk_problems import F64, dense_hessian, randn, rng, settled

C = 4


class Pixels(nn.Module):
    """(B, 2, *places) -> (B, C, *places), every place by itself, or (B, C)."""

    def __init__(self, squash):
        super().__init__()
        self.first, self.last, self.squash = nn.Linear(2, 3), nn.Linear(3, C), squash

    def forward(self, x):
        z = self.last(torch.tanh(self.first(x.movedim(1, -1)))).movedim(-1, 1)
        return self.squash(z)


SQUASH = {
    "none": lambda z: z,
    "log": lambda z: z.log_softmax(1),
    "unit": torch.sigmoid,
    "positive": F.softplus,
}
# Criterion, its function, what its outputs are, and what its targets are.
CRITERIA = {
    "cross entropy": (nn.CrossEntropyLoss, F.cross_entropy, "none", "classes"),
    "cross entropy of shares": (nn.CrossEntropyLoss, F.cross_entropy, "none", "shares"),
    "nll": (nn.NLLLoss, F.nll_loss, "log", "classes"),
    "multi margin": (nn.MultiMarginLoss, F.multi_margin_loss, "none", "one class"),
    "bce": (nn.BCELoss, F.binary_cross_entropy, "unit", "unit"),
    "bce logits": (
        nn.BCEWithLogitsLoss, F.binary_cross_entropy_with_logits, "none", "unit",
    ),
    "multilabel": (nn.MultiLabelSoftMarginLoss, F.multilabel_soft_margin_loss, "none", "labels"),
    "mse": (nn.MSELoss, F.mse_loss, "none", "real"),
    "l1": (nn.L1Loss, F.l1_loss, "none", "real"),
    "smooth l1": (nn.SmoothL1Loss, F.smooth_l1_loss, "none", "real"),
    "huber": (nn.HuberLoss, F.huber_loss, "none", "real"),
    "poisson": (nn.PoissonNLLLoss, F.poisson_nll_loss, "none", "counts"),
    "kl": (nn.KLDivLoss, F.kl_div, "log", "shares"),
    "soft margin": (nn.SoftMarginLoss, F.soft_margin_loss, "none", "signs"),
    "hinge embedding": (nn.HingeEmbeddingLoss, F.hinge_embedding_loss, "positive", "signs"),
}  # fmt: skip


def options_of(draw, name, targets, generator):
    """Options that the criterion has, drawn."""
    options = {"reduction": draw(st.sampled_from(["mean", "sum", "mean"]))}
    weights = torch.rand(C, generator=generator, dtype=F64) + 0.1
    if name in ("cross entropy", "nll") and draw(st.booleans()):
        options["ignore_index"] = draw(st.sampled_from([-100, 255, 0]))
    if name.startswith(("cross entropy", "nll")) and draw(st.booleans()):
        options["weight"] = weights
    if name.startswith("cross entropy") and draw(st.booleans()):
        options["label_smoothing"] = 0.1
    if name in ("multi margin", "multilabel") and draw(st.booleans()):
        options["weight"] = weights
    if name == "kl" and draw(st.booleans()):
        options["reduction"] = "batchmean"
    if targets == "unit" and name == "bce logits" and draw(st.booleans()):
        options["pos_weight"] = weights
    return options


def targets_of(kind, n, places, ignored, generator):
    if kind in ("classes", "one class"):
        y = torch.randint(0, C, (n, *places), generator=generator)
        if kind == "classes" and ignored is not None:
            y[torch.rand(y.shape, generator=generator) < 0.4] = ignored
            y.view(-1)[0] = 1  # one target at least counts
        return y
    draw = torch.rand(n, C, *places, generator=generator, dtype=F64)
    return {
        "shares": draw / draw.sum(1, keepdim=True),
        "unit": draw,
        "labels": (draw > 0.5).double(),
        "real": 4 * draw - 2,
        "counts": (5 * draw).floor(),
        "signs": torch.where(draw > 0.5, 1.0, -1.0).double(),
    }[kind]


def compare(data):
    """One random pair of criterion and task, cut at random; loss, gradient and a product."""
    draw = data.draw
    name = draw(st.sampled_from(sorted(CRITERIA)))
    module, function, squash, kind = CRITERIA[name]
    generator = rng(draw(st.integers(0, 10**6)))
    options = options_of(draw, name, kind, generator)
    flat = kind in ("one class", "labels") or "pos_weight" in options
    places = () if flat else draw(st.sampled_from([(), (3,), (2, 3)]))
    n = draw(st.integers(1, 9))
    ignored = options.get("ignore_index", -100) if name in ("cross entropy", "nll") else None
    y = targets_of(kind, n, places, ignored, generator)
    x = torch.randn(n, 2, *places, generator=generator, dtype=F64)
    model = settled(Pixels(SQUASH[squash]))
    criterion = module(**options)
    loss = draw(st.sampled_from([criterion, functools.partial(function, **options)]))
    edges = sorted({0, n, *draw(st.lists(st.integers(0, n), max_size=4))})
    cut = [(x[a:b], y[a:b]) for a, b in itertools.pairwise(edges)]
    batch_size = draw(st.one_of(st.none(), st.integers(1, n)))
    risk = EmpiricalRisk(model, loss, cut, batch_size=batch_size, memory=draw(
        st.sampled_from([None, 1, 30_000])))  # fmt: skip

    trained = list(model.parameters())
    truth = criterion(model(x), y)
    grads = torch.autograd.grad(truth, trained, create_graph=True)
    gradient = torch.cat([g.reshape(-1) for g in grads])
    v = torch.randn(len(gradient), generator=generator, dtype=F64)
    theta = risk.theta
    close = functools.partial(torch.testing.assert_close, rtol=1e-12, atol=1e-13)
    close(risk.loss(theta), truth.detach())
    scale = 1 + float(gradient.detach().abs().max())
    close(risk.gradient(theta) / scale, gradient.detach() / scale)
    if name != "multi margin":  # torch has no second derivative of it
        product = torch.autograd.grad(gradient @ v, trained, materialize_grads=True)
        product = torch.cat([p.reshape(-1) for p in product])
        scale = 1 + float(product.abs().max())
        close(risk.hvp(theta, v) / scale, product / scale)
    losses = risk.losses(theta)
    close(losses.sum() if options["reduction"] == "sum" else losses.mean(), truth.detach())


SEARCH = {"deadline": None, "suppress_health_check": list(HealthCheck)}


@pytest.mark.filterwarnings("ignore:reduction. 'mean' divides:UserWarning")
@settings(max_examples=40, **SEARCH)
@given(st.data())
def test_criterion_options_task_and_cut(data):
    compare(data)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:reduction. 'mean' divides:UserWarning")
@settings(max_examples=500, **SEARCH)
@given(st.data())
def test_criterion_options_task_and_cut_500_times(data):
    compare(data)


def test_the_gauss_newton_matrix_is_divided_as_the_criterion_divides():
    model, x = settled(nn.Linear(3, C)), randn(7, 3)
    y = torch.tensor([0, 1, -100, 2, 3, -100, 1])
    weight = torch.tensor([1.0, 4.0, 0.5, 2.0], dtype=F64)
    loss = nn.CrossEntropyLoss(weight=weight)
    risk = EmpiricalRisk(model, loss, [(x[:2], y[:2]), (x[2:], y[2:])], memory=1)

    def function(theta):
        w = risk.layout.unflatten(theta)
        return loss(x @ w["weight"].T + w["bias"], y)

    H = dense_hessian(function, risk.theta)  # of a linear model, where both matrices are one
    ours = risk.linearized_ggn(risk.theta)(torch.eye(len(H), dtype=F64))
    torch.testing.assert_close(ours, H, rtol=0, atol=1e-13)


class Many(nn.Module):
    def __init__(self, count):
        super().__init__()
        self.count, self.inner = count, nn.Linear(3, 4)

    def forward(self, *x):
        z = torch.tanh(self.inner(x[0]))
        return [z, z.roll(1, 1).exp(), torch.tanh(self.inner(x[-1] + 1))][: self.count]


@pytest.mark.parametrize(
    ("loss", "count", "call"),
    [
        (nn.TripletMarginLoss(), 3, lambda o, _: F.triplet_margin_loss(*o)),
        (nn.CosineEmbeddingLoss(margin=0.2), 2,
         lambda o, y: F.cosine_embedding_loss(*o, y, margin=0.2)),
        (nn.GaussianNLLLoss(), 2, lambda o, y: F.gaussian_nll_loss(o[0], y, o[1])),
    ],
)  # fmt: skip
def test_criteria_of_several_outputs(loss, count, call):
    model, x = settled(Many(count)), randn(6, 3)
    y = randn(6, 4, seed=2) if isinstance(loss, nn.GaussianNLLLoss) else torch.ones(6, dtype=F64)
    risk = EmpiricalRisk(model, loss, (x, y), batch_size=2)
    truth = call(model(x), y).detach()
    torch.testing.assert_close(risk.loss(risk.theta), truth, rtol=1e-12, atol=0)


def test_ctc_divides_by_the_lengths_of_its_targets():
    class Steps(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(3, 5)

        def forward(self, x):
            return self.inner(x).log_softmax(-1).transpose(0, 1)

    model, x = settled(Steps()), randn(4, 6, 3)
    labels = torch.randint(1, 5, (4, 2), generator=rng())
    target = (labels, torch.full((4,), 6), torch.tensor([2, 1, 2, 2]))
    truth = nn.CTCLoss()(model(x), *target).detach()
    risk = EmpiricalRisk(model, nn.CTCLoss(), (x, target))
    torch.testing.assert_close(risk.loss(risk.theta), truth, rtol=1e-12, atol=0)


@pytest.mark.parametrize("loss", [nn.MSELoss(), nn.L1Loss(), F.smooth_l1_loss])
def test_outputs_and_targets_that_would_be_broadcast_are_refused_with_both_shapes(loss):
    x = randn(64, 3)
    y = torch.zeros(64, dtype=F64)  # equal targets hide it
    y[40:] = randn(24)
    with pytest.raises(LandscapeError, match=r"\(32, 1\) against targets of shape \(32,\)"):
        EmpiricalRisk(settled(nn.Linear(3, 1)), loss, (x, y))


@pytest.mark.filterwarnings("ignore:Using a target size")
@pytest.mark.parametrize(
    ("loss", "reduction"),
    [
        (lambda o, y: (o - y) ** 2, None),
        (lambda o, y: ((o - y) ** 2).mean(), "mean"),
        (lambda o, y: F.mse_loss(o, y, reduction="none"), None),
        (lambda o, y: F.smooth_l1_loss(o, y), "mean"),
    ],
)
def test_a_users_loss_that_broadcasts_outputs_against_targets_is_refused(loss, reduction):
    model, x, y = settled(nn.Linear(4, 1)), randn(8, 4), randn(8)
    shapes = r"outputs of shape \(8, 1\) with targets of shape \(8,\)"
    with pytest.raises(LandscapeError, match=shapes):
        EmpiricalRisk(model, loss, (x, y), reduction=reduction)
    risk = EmpiricalRisk(model, loss, (x, y[:, None]), reduction=reduction)
    expected = loss(model(x), y[:, None]).mean().detach()
    torch.testing.assert_close(risk.loss(risk.theta), expected)


def test_pairs_of_rows_that_a_loss_means_are_no_broadcast():
    model, x, y = settled(nn.Linear(4, 3)), randn(8, 4), torch.arange(8) % 2

    def loss(output, target):
        near = (output[:, None] - output[None]).square().sum(-1)
        return (near * (target[:, None] == target)).mean()

    risk = EmpiricalRisk(model, loss, (x, y), reduction="whole")
    torch.testing.assert_close(risk.loss(risk.theta), loss(model(x), y).detach())


class Uncertain(nn.Module):
    """A loss with a trainable parameter of its own (arXiv:1705.07115)."""

    def __init__(self):
        super().__init__()
        self.s = nn.Parameter(torch.tensor(0.3))

    def forward(self, output, target):
        return F.cross_entropy(output, target, reduction="none") * torch.exp(-self.s) + self.s


def test_trainable_parameters_of_the_loss_are_held_fixed_and_said():
    model, x, y = settled(nn.Linear(4, 3)), randn(8, 4), torch.arange(8) % 3
    loss = Uncertain().double()
    risk = EmpiricalRisk(model, loss, (x, y))
    assert risk.layout.names == ("weight", "bias")
    assert risk.provenance()["frozen_in_loss"] == ["s"]
    torch.testing.assert_close(risk.loss(risk.theta), loss(model(x), y).mean().detach())
    assert loss.s.requires_grad


def test_targets_that_are_all_ignored_are_refused():
    y = torch.full((5,), -100)
    with pytest.raises(LandscapeError, match="All 5 targets are ignored"):
        EmpiricalRisk(settled(nn.Linear(3, C)), nn.CrossEntropyLoss(), (randn(5, 3), y))


def test_ignored_targets_are_neither_right_nor_wrong():
    model, x, y = settled(nn.Linear(3, C)), randn(9, 3), torch.randint(0, C, (9,), generator=rng())
    y[4:] = -100
    risk = EmpiricalRisk(model, nn.CrossEntropyLoss(), (x, y))
    wrong = (model(x)[:4].argmax(1) != y[:4]).double().mean()
    torch.testing.assert_close(risk.error_rate(risk.theta), wrong)


def test_several_real_targets_are_no_classes():
    risk = EmpiricalRisk(settled(nn.Linear(3, C)), nn.MSELoss(), (randn(9, 3), randn(9, C)))
    assert risk.evaluate(risk.theta).error_rate is None


def test_what_divides_is_in_the_provenance():
    weight = torch.tensor([1.0, 2.0, 3.0, 4.0])
    loss = nn.CrossEntropyLoss(weight=weight, ignore_index=3, label_smoothing=0.1)
    x, y = randn(4, 3), torch.tensor([0, 3, 1, 2])
    said = EmpiricalRisk(settled(nn.Linear(3, C)), loss, (x, y)).provenance()
    found = {
        key: said[key]
        for key in (
            "criterion",
            "weight",
            "ignore_index",
            "label_smoothing",
            "reduction",
            "denominator",
        )
    }
    assert found == {
        "criterion": "CrossEntropyLoss", "weight": [1, 2, 3, 4], "ignore_index": 3,
        "label_smoothing": 0.1, "reduction": "mean", "denominator": 6.0,
    }  # fmt: skip


class Focal(nn.Module):
    """A user's own criterion, with the options of torch's."""

    def __init__(self, reduction="mean", ignore_index=-100, over_all=True):
        super().__init__()
        self.reduction, self.ignore_index, self.over_all = reduction, ignore_index, over_all

    def forward(self, output, target):
        log_p = -F.cross_entropy(output, target, reduction="none", ignore_index=self.ignore_index)
        losses = -((1 - log_p.exp()) ** 2) * log_p
        if self.reduction == "none":
            return losses
        count = losses.numel() if self.over_all else (target != self.ignore_index).sum()
        return losses.sum() / (1 if self.reduction == "sum" else count)


@pytest.mark.parametrize("over_all", [True, False])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_a_users_criterion_divides_as_it_says_itself(reduction, over_all):
    model, x = settled(Pixels(SQUASH["none"])), randn(8, 2, 3)
    y = torch.randint(0, C, (8, 3), generator=rng())
    y[2:5, 1:] = 9
    loss = Focal(reduction, 9, over_all)
    risk = EmpiricalRisk(model, loss, (x, y), batch_size=3)
    truth = loss(model(x), y).detach()
    torch.testing.assert_close(risk.loss(risk.theta), truth, rtol=1e-12, atol=0)


# Losses of (model, batch) that return two values --------------------------------------------------


def _ratio(model, batch):
    losses = F.cross_entropy(model(batch["x"]), batch["y"], reduction="none") * batch["w"]
    return losses.sum(), batch["w"].sum()


def _pairs():
    def outputs(model, batch):
        logits = model(batch["x"])
        return F.cross_entropy(logits, batch["y"]), logits

    def detached(model, batch):
        logits = model(batch["x"])
        return F.cross_entropy(logits, batch["y"]), logits.detach()

    def auxiliary(model, batch):
        logits = model(batch["x"])
        return F.cross_entropy(logits, batch["y"]), logits.square().mean()

    def logged(model, batch):
        loss = F.cross_entropy(model(batch["x"]), batch["y"])
        return loss, loss.item()

    def accuracy(model, batch):
        logits = model(batch["x"])
        return F.cross_entropy(logits, batch["y"]), (logits.argmax(1) == batch["y"]).double().mean()

    def correct(model, batch):
        logits = model(batch["x"])
        return F.cross_entropy(logits, batch["y"]), (logits.argmax(1) == batch["y"]).sum()

    def log(model, batch):
        return F.cross_entropy(model(batch["x"]), batch["y"]), {"epoch": 1}

    def learning_rate(model, batch):
        return F.cross_entropy(model(batch["x"]), batch["y"]), 0.1

    return [outputs, detached, auxiliary, logged, accuracy, correct, log, learning_rate]


@pytest.mark.parametrize("loss", _pairs(), ids=lambda f: f.__name__)
def test_a_second_value_that_is_no_denominator_is_refused_and_the_loss_alone_is_right(loss):
    source = rng(3)
    x, y = torch.randn(20, 4, generator=source, dtype=F64), torch.arange(20) % 3
    model, batch = settled(nn.Linear(4, 3)), {"x": x, "y": y}
    with pytest.raises(
        LandscapeError, match=r"two values|returned 2 values.*Return the loss alone"
    ):
        EmpiricalRisk(model, loss, batch)
    risk = EmpiricalRisk(model, lambda model, batch: loss(model, batch)[0], batch)
    torch.testing.assert_close(risk.loss(risk.theta), F.cross_entropy(model(x), y).detach())


def test_sums_and_their_weights_stay_a_ratio_however_they_are_cut():
    source = rng(3)
    x, y = torch.randn(20, 4, generator=source, dtype=F64), torch.arange(20) % 3
    w = torch.rand(20, generator=source, dtype=F64)
    model, batch = settled(nn.Linear(4, 3)), {"x": x, "y": y, "w": w}
    cut = [{k: v[a:b] for k, v in batch.items()} for a, b in ((0, 3), (3, 20))]
    sums = _ratio(model, batch)
    for data in (batch, cut):
        risk = EmpiricalRisk(model, _ratio, data)
        torch.testing.assert_close(risk.loss(risk.theta), (sums[0] / sums[1]).detach())


@pytest.mark.parametrize("cut", [(20,), (7, 13), (1, 1, 18)])
def test_a_declared_mean_over_labels_survives_rows_and_batches_that_are_all_ignored(cut):
    source = rng(3)
    x, y = torch.randn(20, 4, generator=source, dtype=F64), torch.arange(20) % 3
    y[::2] = -100
    model = settled(nn.Linear(4, 3))
    batches = list(zip(x.split(cut), y.split(cut), strict=True))
    risk = EmpiricalRisk(
        model, lambda o, t: F.cross_entropy(o, t), batches, reduction="mean", batch_size=1
    )
    torch.testing.assert_close(risk.loss(risk.theta), F.cross_entropy(model(x), y).detach())
    plain = EmpiricalRisk(model, nn.CrossEntropyLoss(), (x, y))
    v = torch.randn(len(risk.theta), generator=source, dtype=F64)
    torch.testing.assert_close(risk.gradient(risk.theta), plain.gradient(risk.theta))
    torch.testing.assert_close(risk.hvp(risk.theta, v), plain.hvp(risk.theta, v))


def test_a_criterion_of_tensors_says_what_to_do_with_a_tuple():
    class Pair(nn.Linear):
        def forward(self, x):
            return super().forward(x), x

    x, y = torch.randn(8, 4, dtype=F64), torch.arange(8) % 3
    with pytest.raises(LandscapeError, match=r"returns a tuple; give a loss.*output\[0\]"):
        EmpiricalRisk(settled(Pair(4, 3)), nn.CrossEntropyLoss(), (x, y))
