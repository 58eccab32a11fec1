"""`landscape tune`: the rule of choice, seeds of its own, a grid that is long enough."""

import tomllib
from pathlib import Path

import numpy as np
import pytest

from landscape import results
from landscape.errors import LandscapeError
from landscape.study import Options, parse, tuning
from landscape.study.tuning import Chosen, tune

HERE = Path(__file__).parents[1]
HERE_ONLY = Options(device="cpu", workers=0, quiet=True)
TEXT = """
name = "radius"
[problem]
data = "study_problem:splits"
model = "study_problem:make"
[training]
epochs = 1
batch_size = 16
lr = 0.05
[variants.sam]
label = "SAM"
[variants.zsharp]
percentile = 0.5
[[grid]]
variant = ["sgd"]
seed = [0, 1]
[[grid]]
variant = ["sam", "zsharp"]
rho = [0.1, 0.2, 0.4]
seed = [0, 1]
[comparisons]
references = ["sgd"]
[measure]
examples = 24
measurements = ["top_eigenvalues", "generalization"]
"""


def test_the_value_is_that_of_the_rule_on_seeds_that_the_study_does_not_use(tmp_path):
    found = tune(parse(TEXT, base=HERE), tmp_path / "tune", HERE_ONLY)
    ds = results.load(tmp_path / "tune" / "results" / "generalization.nc")
    assert set(ds.seed.values.tolist()) == {2, 3}
    assert set(ds["family"].values) == {"sam", "zsharp"}  # SGD has nothing to choose
    for each in found.chosen:
        by_hand = {}
        for rho in each.values:
            own = (ds["family"].values == each.variant) & np.isclose(ds.rho.values, rho)
            by_hand[rho] = (
                round(float(ds.val_accuracy.values[own].mean()), 9),
                -float(ds.val_loss.values[own].mean()),
            )
        assert each.value == max(by_hand, key=by_hand.get)
        ends = (min(each.values), max(each.values))
        assert each.inside == (each.value not in ends)
        assert each.inside or len(each.values) == 3 + tuning.EXTENSIONS
    assert found.num_trainings == 2 * sum(len(c.values) for c in found.chosen)
    new = tomllib.loads(found.text)
    assert all("rho" not in grid for grid in new["grid"])
    chosen = {c.variant: c.value for c in found.chosen}
    runs = parse(found.text, base=HERE).runs
    assert {r.variant: r.options["rho"] for r in runs if r.family != "sgd"} == chosen
    assert {r.seed for r in runs} == {0, 1}
    assert new["comparisons"] == {"references": ["sgd"]}


REGRESSION = """
import torch
from torch import nn

def net():
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))

def data():
    x = torch.linspace(-1, 1, 180).reshape(60, 3).sin()
    y = x.sum(1, keepdim=True).tanh()
    return {"train": (x[:20], y[:20]), "val": (x[20:40], y[20:40]), "test": (x[40:], y[40:])}

def no_validation():
    return {part: pair for part, pair in data().items() if part != "val"}
"""


def test_of_a_regression_the_lowest_validation_loss_is_chosen(tmp_path):
    (tmp_path / "tuned_regression.py").write_text(REGRESSION)
    text = (
        TEXT.replace("study_problem:splits", "tuned_regression:data")
        .replace("study_problem:make", 'tuned_regression:net"\nloss = "mse')
        .replace('"sam", "zsharp"', '"sam"')
        .replace("[variants.zsharp]\npercentile = 0.5\n", "")
    )
    found = tune(parse(text, base=tmp_path), tmp_path / "tune", HERE_ONLY)
    (each,) = found.chosen
    ds = results.load(tmp_path / "tune" / "results" / "generalization.nc")
    loss = {rho: float(ds.val_loss.values[np.isclose(ds.rho.values, rho)].mean())
            for rho in each.values}  # fmt: skip
    assert each.by_loss
    assert each.value == min(loss, key=loss.get)
    assert "lowest mean validation loss" in found.text
    none = text.replace(":data", ":no_validation")
    with pytest.raises(LandscapeError, match="has none; give it a part 'val'"):
        tune(parse(none, base=tmp_path), tmp_path / "other", HERE_ONLY)
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("value", "values", "following"),
    [
        (0.4, (0.1, 0.2, 0.4), 0.8),
        (0.1, (0.1, 0.2, 0.4), 0.05),
        (8, (4, 8), 16),
        (4, (4, 8), 2),
        (1, (1, 2), None),
        (0.0, (0.0, 0.1), None),
    ],
)
def test_a_grid_is_extended_by_its_own_factor(value, values, following):
    assert tuning._next(Chosen("sam", value, values, False, 0.0, False)) == following


def test_an_axis_of_the_training_goes_into_the_variants_training(tmp_path):
    text = TEXT.replace("rho = [0.1, 0.2, 0.4]", "lr = [0.05, 0.1]\nrho = 0.2")
    found = tune(parse(text, base=HERE), tmp_path / "tune", HERE_ONLY, axis="lr", seeds=1)
    new = tomllib.loads(found.text)
    assert new["variants"]["sam"]["training"]["lr"] == found.chosen[0].value


def test_what_cannot_be_chosen_is_named(tmp_path):
    plan = parse(TEXT, base=HERE)
    with pytest.raises(LandscapeError, match="--axis 'lr': the study varies rho within a variant"):
        tune(plan, tmp_path / "a", HERE_ONLY, axis="lr")
    with pytest.raises(LandscapeError, match=r"--setting: unknown 'noisy'\. Possible: default"):
        tune(plan, tmp_path / "a", HERE_ONLY, setting="noisy")
    alone = TEXT.replace("study_problem:splits", "study_problem:data")
    with pytest.raises(LandscapeError, match="has none; give it a part 'val'"):
        tune(parse(alone, base=HERE), tmp_path / "b", HERE_ONLY, seeds=1)


@pytest.mark.parametrize(("values", "value", "said"), [
    ((0.1, 0.2, 0.4), 0.2, ""),
    ((0.1, 0.2, 0.4), 0.4, "at the end of the grid"),
    ((0.1, 0.2), 0.2, "of two values, each an end"),
    ((0.1,), 0.1, "the only value"),
])  # fmt: skip
def test_where_a_chosen_value_lies_is_said_where_it_tells_something(values, value, said):
    chosen = Chosen("sam", value, values, said == "", 0.0, False)
    assert chosen.place == said
