"""Losses are in nats only where they are: a squared error, or a loss of the user's own, is not."""

import dataclasses
import re

import numpy as np
import pytest
import torch
import xarray as xr
from torch import nn
from torch.nn import functional as F

from landscape import EmpiricalRisk, measure, report, results, storage
from landscape.plot import figures
from landscape.results import units
from tests.fixtures_results import write_study
from tests.plot.test_twins import CALLS

NATS = re.compile(r"(?<![A-Za-z])nats(?![A-Za-z])")


def texts(value):
    """Every text within."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for each in value.values():
            yield from texts(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from texts(each)
    elif isinstance(value, np.ndarray) and value.dtype == object:
        yield from texts(value.tolist())
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from texts(getattr(value, field.name))
    elif isinstance(value, xr.Dataset):
        for name in value.variables:
            yield from texts(dict(value[name].attrs))


def own(output, target):
    return (output - target).abs().mean(1)


@pytest.mark.parametrize(
    ("loss", "unit"),
    [
        (nn.MSELoss(), "loss units"),
        (F.l1_loss, "loss units"),
        (own, "loss units"),
        (F.binary_cross_entropy_with_logits, "nats"),
        (nn.BCEWithLogitsLoss(), "nats"),
    ],
)
def test_a_result_says_the_unit_of_its_loss(loss, unit):
    torch.manual_seed(0)
    data = torch.randn(12, 3), torch.rand(12, 2)
    risk = EmpiricalRisk(nn.Linear(3, 2), loss, data, dtype=torch.float64)
    ds = measure.interpolation(risk, risk.theta, end=0 * risk.theta, points=3, bn="eval")
    assert units.of_result(ds) == unit
    assert ds.loss.attrs["units"] == unit
    assert (unit == "nats") == any(map(NATS.search, texts(ds)))
    assert units.of_result(measure.norms(risk, risk.theta)) in (None, unit)


def test_smoothed_and_padded_cross_entropy_stays_in_nats_and_powers_follow():
    assert units.of_loss("CrossEntropyLoss(label_smoothing=0.1)") == "nats"
    said = units.said_in({"a": ("1/nats", "nats²"), "b": ["alternates", "nats / parameter²"]}, "x")
    assert said == {"a": ("1/x", "x²"), "b": ["alternates", "x / parameter²"]}
    assert units.said_in("nats", None) == "nats"


@pytest.fixture(scope="module")
def squared(tmp_path_factory):
    """A study whose results are of another loss."""
    folder = write_study(
        tmp_path_factory.mktemp("squared"), seeds=2, clean=(), noisy=("sgd", "zsharp")
    )
    for path in folder.results.glob("*.nc"):
        results.save(units.said_in(results.load(path), units.OTHER), path)
    return folder


@pytest.mark.parametrize("name", sorted(set(CALLS) - {"mask_overlap", "mask_persistence"}))
def test_no_figure_says_nats_of_another_loss(name, squared):
    data = [results.load(squared.results / f"{each}.nc") for each in CALLS[name]]
    drawing = getattr(figures, name)(*data, setting="noisy")
    assert not [text for text in texts(drawing) if NATS.search(text)]


def test_no_page_says_nats_of_another_loss(squared):
    page = report.write(squared, formats=()).read_text()
    twin = (squared.root / "report.md").read_text()
    assert "loss units" in twin
    for text in (page, twin):
        found = NATS.search(text)
        assert not found, text[found.start() - 80 : found.end() + 40]
    written = report.write_figures(
        squared, report.FigureChoice(only=("sharpness",), formats=("svg",))
    )
    assert written
    for path in squared.figures.glob("*.tex"):
        assert not NATS.search(path.read_text()), path
    assert storage.read_json(squared.resolved)
