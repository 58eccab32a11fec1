"""What computes the risk is in `landscape.risk`; others see its public names and views only."""

import ast
from pathlib import Path

import pytest
import torch
from torch import nn

from landscape import EmpiricalRisk
from landscape.errors import LandscapeError
from landscape.risk import Objective, RowLosses
from tests.measure_problems import cnn_risk

ROOT = Path(__file__).parents[2] / "landscape"
ALONG = {path.stem for path in (ROOT / "risk" / "along").glob("*.py")} - {"__init__"}
F64 = torch.float64


def private(node):
    """What of a node reaches inside, or None."""
    if isinstance(node, ast.Attribute) and node.attr == "_engine":
        return "._engine"
    named = []
    if isinstance(node, ast.ImportFrom) and node.module:
        named = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    if isinstance(node, ast.Import):
        named = [alias.name for alias in node.names]
    inside = [n for n in named if n.startswith("landscape.risk._") or "risk.along." in f"{n}."]
    deep = [n for n in inside if n.startswith("landscape.risk._") or n.count(".") > 2]
    return next((n for n in deep if "._" in n or n.split(".")[3] in ALONG), None)


@pytest.mark.thorough
def test_nobody_outside_reads_the_inside_of_the_risk():
    loose = [
        f"{path.relative_to(ROOT)}:{node.lineno}: {found}"
        for path in sorted(ROOT.rglob("*.py"))
        if path.relative_to(ROOT).parts[0] != "risk"
        for node in ast.walk(ast.parse(path.read_text()))
        if (found := private(node))
    ]
    assert not loose, "Give the risk a view instead:\n" + "\n".join(loose)


@pytest.mark.parametrize(
    ("line", "seen"),
    [
        ("risk._engine.examples", True),
        ("from landscape.risk._criterion import errors_of", True),
        ("import landscape.risk._engine", True),
        ("from landscape.risk.along.folded import Folded", True),
        ("from landscape.risk import EmpiricalRisk, RowLosses", False),
        ("from landscape.risk.along import evaluator", False),
        ("figure.get_layout_engine()", False),
    ],
)
def test_the_rule(line, seen):
    assert any(private(node) for node in ast.walk(ast.parse(line))) is seen


# --- the views --------------------------------------------------------------------------------


def mlp():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3)).double()


def risk_with(loss, **options):
    source = torch.Generator().manual_seed(1)
    x = torch.randn(30, 5, generator=source, dtype=F64)
    y = torch.randint(0, 3, (30,), generator=source)
    y[::7] = -100
    return EmpiricalRisk(mlp(), loss, (x, y), weight_decay=0.01, **options)


LOSSES = [
    nn.CrossEntropyLoss(weight=torch.tensor([1.0, 3.0, 0.5], dtype=F64)),
    nn.CrossEntropyLoss(reduction="sum", label_smoothing=0.1),
]


@pytest.mark.parametrize("loss", LOSSES, ids=["weighted", "sum"])
def test_objectives_of_all_rows_are_the_risk_and_of_some_rows_the_risk_of_a_subset(loss):
    risk = risk_with(loss)
    theta = risk.theta + 0.1
    objective = Objective(risk, risk.theta)
    rows = torch.tensor([3, 1, 20, 11])
    for chosen, other in ((None, risk), (rows, risk.subset(rows))):
        value, gradient = objective.gradient(theta, chosen)
        right, along = other.loss_and_gradient(theta)
        assert value == pytest.approx(float(right), rel=1e-13)
        assert objective.loss(theta, chosen) == pytest.approx(float(right), rel=1e-13)
        torch.testing.assert_close(gradient, along, rtol=1e-12, atol=1e-14)
    seen, truth = objective.evaluate(theta), risk.evaluate(theta)
    torch.testing.assert_close(seen.loss, truth.loss, rtol=1e-13, atol=0)
    torch.testing.assert_close(seen.losses, truth.losses, rtol=1e-13, atol=1e-14)
    assert float(seen.error_rate) == float(truth.error_rate)


@pytest.mark.parametrize("loss", LOSSES, ids=["weighted", "sum"])
def test_transformed_inputs_and_outputs_are_those_of_a_model_that_transforms(loss):
    risk = risk_with(loss)

    class Scaled(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            return 3 * self.inner(x * 0.5)

    (args, _), targets = risk.inputs[0], risk.targets
    twin = EmpiricalRisk(Scaled(mlp()), loss, (args[0], targets), weight_decay=0.01)
    objective = Objective(risk, risk.theta, transform=lambda z: 3 * z, inputs=lambda x: 0.5 * x)
    value, gradient = objective.gradient(risk.theta)
    right, along = twin.loss_and_gradient(twin.theta)
    assert value == pytest.approx(float(right), rel=1e-13)
    torch.testing.assert_close(gradient, along, rtol=1e-12, atol=1e-14)


def test_row_losses_with_weight_decay_average_to_the_risk():
    risk = risk_with(LOSSES[0])
    rows = torch.arange(risk.num_examples)
    losses = RowLosses(risk, risk.model_at(risk.theta), weight_decay=True)(rows)
    torch.testing.assert_close(losses.mean().detach(), risk.loss(risk.theta), rtol=1e-13, atol=0)


@pytest.mark.parametrize("mode", ["recalibrate", "full_batch"])
def test_given_statistics_of_the_own_examples_are_the_own_mode(mode):
    risk = cnn_risk()[0].with_bn("recalibrate" if mode == "recalibrate" else mode)
    theta = risk.theta
    statistics = risk.batchnorm_statistics(theta)
    given = risk.with_bn("eval").evaluate(theta, statistics=statistics)
    torch.testing.assert_close(given.losses, risk.losses(theta), rtol=1e-10, atol=1e-12)


def test_statistics_asked_where_none_are_taken_are_refused():
    risk = cnn_risk()[0].with_bn("eval")
    with pytest.raises(LandscapeError, match=r"bn='eval' of a model with BatchNorm.*with_bn"):
        risk.batchnorm_statistics(risk.theta)


def test_fingerprints_see_every_tensor():
    risk = risk_with(LOSSES[0])
    other = risk.subset(torch.arange(29))
    assert risk.fingerprints() == risk_with(LOSSES[1]).fingerprints()
    assert risk.fingerprints()["data_sha256"] != other.fingerprints()["data_sha256"]
