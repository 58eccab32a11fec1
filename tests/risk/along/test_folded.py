"""Folded BatchNorm gives the risk's own numbers, or is not used."""

import numpy as np
import pytest
import torch
from torch import nn

from landscape import EmpiricalRisk, measure, plane, problems, results
from landscape.risk.along.folded import Folded, evaluator
from tests.measure_problems import cnn, cnn_risk, fingerprint, images, same


class Branching(nn.Module):
    """The convolution is read by its BatchNorm and by a shortcut: it cannot be folded."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 4)

    def forward(self, x):
        h = self.conv(x)
        return self.head((self.norm(h) + h).mean((2, 3)))


class Mixed(nn.Module):
    """Linear + BatchNorm1d, a grouped and a transposed convolution, and a frozen one."""

    def __init__(self):
        super().__init__()
        self.up = nn.ConvTranspose2d(1, 4, 2, stride=2)
        self.first = nn.BatchNorm2d(4)
        self.grouped = nn.Conv2d(4, 8, 3, groups=4, bias=False)
        self.second = nn.BatchNorm2d(8, affine=False)
        self.frozen = nn.Conv2d(8, 6, 3).requires_grad_(False)
        self.third = nn.BatchNorm2d(6)
        self.linear, self.fourth = nn.Linear(6, 5), nn.BatchNorm1d(5)
        self.head = nn.Linear(5, 4)

    def forward(self, x):
        x = torch.tanh(self.first(self.up(x)))
        x = torch.tanh(self.second(self.grouped(x)))
        x = torch.tanh(self.third(self.frozen(x))).mean((2, 3))
        return self.head(torch.tanh(self.fourth(self.linear(x))))


PROBES = ((0.0, 0.0), (1.0, 1.0), (-1.0, 1.0))


def random_plane(risk):
    return plane.random(risk, risk.theta, num_directions=2, seed=0)


def risk_of(model, *, dtype=torch.float64, **options):
    x, y = images()
    with torch.random.fork_rng():
        torch.manual_seed(5)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
                if module.affine:
                    module.weight.data.uniform_(0.5, 2)
                    module.bias.data.normal_()
    loss = nn.CrossEntropyLoss(label_smoothing=0.1)
    return EmpiricalRisk(model, loss, (x.to(dtype), y), dtype=dtype, **options)


@pytest.mark.parametrize("options", [{}, {"weight_decay": 0.1}])
def test_all_kinds_of_layers_fold_to_the_same_losses_everywhere(options):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Mixed().double()
    risk = risk_of(model, **options)
    before = fingerprint(model)
    # All parameters move, those of BatchNorm too.
    axes = plane.random(
        risk, risk.theta, num_directions=2, normalize="none", one_d="random", seed=1
    )
    folded = Folded.of(risk, axes, PROBES)
    # The transposed convolution is left alone.
    assert folded.num_folded == 3
    for point in ((0.0, 0.0), (0.1, 0.0), (0.1, 0.7), (1.0, -1.0), (0.0, 0.3)):
        with folded.session():
            found = folded.evaluate(point)
        truth = risk.evaluate(axes.point(*point))
        torch.testing.assert_close(found.losses, truth.losses, rtol=1e-11, atol=1e-12)
        assert float(found.loss) == pytest.approx(float(truth.loss), rel=1e-12)
        assert float(found.error_rate) == float(truth.error_rate)
    same(before, fingerprint(model))


@pytest.mark.parametrize("name", ["cnn", "mlp", "resnet20", "vit"])
def test_float32_surfaces_equal_direct_evaluation_to_a_millionth(name):
    shape = (1, 8, 8) if name in ("cnn", "mlp") else (3, 8, 8)
    size = {"vit": 16}.get(name, 8)
    shape = (shape[0], size, size)
    model = problems.make_model(name, num_classes=4, input_shape=shape, seed=0).eval()
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(8, *shape, generator=generator)
    y = torch.randint(4, (8,), generator=generator)
    risk = EmpiricalRisk(model, nn.CrossEntropyLoss(), (x, y))
    axes = plane.random(risk, risk.theta, num_directions=2, seed=0)
    folded = Folded.of(risk, axes, PROBES)
    assert "first layer combined" in folded.method
    for point in ((0.0, 0.0), (0.5, -0.3), (-1.0, 1.0)):
        truth = float(risk.evaluate(axes.point(*point)).loss)
        with folded.session():
            assert float(folded.evaluate(point).loss) == pytest.approx(truth, rel=1e-6)


def test_what_does_not_fold_is_found_out():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Branching().double()
    risk = risk_of(model)
    axes = random_plane(risk)
    folded = Folded.of(risk, axes, PROBES)
    assert folded.num_folded == 0
    with folded.session():
        found = folded.evaluate((0.1, 0.4)).losses
    torch.testing.assert_close(found, risk.losses(axes.point(0.1, 0.4)), rtol=1e-12, atol=0)


def test_a_parametrized_convolution_is_left_alone():
    model = cnn()
    nn.utils.parametrizations.weight_norm(model[0])
    risk = risk_of(model)
    axes = random_plane(risk)
    folded = Folded.of(risk, axes, PROBES)
    assert folded.num_folded == 1
    assert "first layer" not in folded.method
    with folded.session():
        found = folded.evaluate((0.1, 0.4)).losses
    torch.testing.assert_close(found, risk.losses(axes.point(0.1, 0.4)), rtol=1e-12, atol=0)


def test_other_modes_few_points_and_batches_are_evaluated_directly():
    risk, _ = cnn_risk()
    axes = random_plane(risk)
    assert "2 BatchNorm folded" in evaluator(risk, axes, probes=PROBES, points=64).method
    for other, points in (
        (risk, 63),
        (risk.with_bn("recalibrate"), 99),
        (risk.with_bn("full_batch"), 99),
        (EmpiricalRisk(cnn(), nn.CrossEntropyLoss(), images(), batch_size=8), 99),
    ):
        assert evaluator(other, axes, probes=PROBES, points=points).method == "direct"


def test_grids_say_how_they_were_evaluated_and_hold_the_checkpoint_to_the_bit():
    risk, _ = cnn_risk()
    ds = measure.loss_plane(risk, risk.theta, points=9, bn="eval", seed=2)
    method = "blocks of 24 rows, 2 BatchNorm folded, first layer combined"
    assert results.provenance(ds)["evaluation"] == method
    assert float(ds.loss[4, 4]) == float(risk.loss(risk.theta)) == float(ds.center_loss)
    axes = plane.random(risk, risk.theta, num_directions=2, seed=2)
    direct = [[float(risk.loss(axes.point(a, b))) for b in ds.beta.values] for a in ds.alpha.values]
    np.testing.assert_allclose(ds.loss, direct, rtol=1e-12)
    again = measure.loss_plane(risk, risk.theta, points=9, bn="eval", seed=2)
    assert ds.equals(again)


@pytest.mark.parametrize("scale", [1e5, 1e158])
def test_what_overflows_is_what_overflows_in_direct_evaluation(scale):
    risk, _ = cnn_risk()
    far = plane.Plane(risk.theta, 1e150 * torch.ones(2, 306).double(), "far", ("u", "v"))
    alphas = scale * np.linspace(-1, 1, 33)
    ds = measure.loss_slice(risk, risk.theta, directions=far, alphas=alphas, bn="eval", seed=0)
    assert np.isfinite(ds.loss.sel(alpha=0)).all()
    for j in (0, 32):
        truth = float(risk.loss(far.point(alphas[j])))
        assert np.isfinite(truth) == (scale == 1e5)
        np.testing.assert_allclose(ds.loss[0, j], truth, rtol=1e-12)
