"""The gradient's distribution over a training: histograms of known laws, and their picture."""

import numpy as np
import pytest
from scipy import stats as laws

from landscape import LandscapeError, measure, results
from landscape.plot import drawing as grammar
from landscape.snapshots import GRID, Tensors, ZScores
from tests.figure_checks import check_figure

NAMES = ("a.weight", "b.weight", "b.bias")


def recorded(steps=(3, 8, 20, 40), counts=None):
    tensors = Tensors(NAMES, ("conv", "linear", "bias"), (500_000, 1000, 10), (4, 2, 1))
    edges = np.concatenate([[-np.inf], GRID.edges, [np.inf]])
    table = np.zeros((len(steps), 3, GRID.bins + 3), np.uint32)
    for row, step in enumerate(steps):
        law = laws.t(df=3 + step)
        probabilities = np.diff(law.cdf(edges))
        for tensor, size in enumerate(tensors.sizes):
            found = np.round(size * probabilities)
            table[row, tensor] = [*found[1:-1], found[0], found[-1], 0]
    return ZScores(tensors, np.array(steps), table)


def test_the_threshold_is_the_quantile_of_the_absolute_value():
    ds = measure.zscore_history(recorded(), percentile=0.95)
    for row, step in enumerate(ds.step.values):
        exact = laws.t(df=3 + int(step)).ppf(0.975)
        assert ds.threshold.values[row, 0] == pytest.approx(exact, abs=GRID.width / 2)
    whole = (ds.density.sum("bin") * GRID.width + ds.overflow).values[:, :2]
    np.testing.assert_allclose(whole, 1, atol=1e-6)


def test_steps_are_chosen_evenly_with_both_ends():
    ds = measure.zscore_history(recorded(steps=tuple(range(0, 100, 5))), most=5)
    assert ds.step.values.tolist() == [0, 25, 50, 70, 95]


def test_what_lies_beyond_the_grid_has_no_threshold_there():
    one = recorded(steps=(1, 2))
    one.counts[:] = 0
    one.counts[..., -2] = 100  # all of it above the grid
    one.counts[1, 1] = 0
    one.counts[1, 1, -1] = 10  # no spread
    ds = measure.zscore_history(one)
    assert np.isinf(ds.threshold.values[0]).all()
    assert np.isnan(ds.threshold.values[1, 1])
    with pytest.raises(LandscapeError, match="1 snapshots with z-scores; their change"):
        measure.zscore_history(recorded(steps=(1,)))


def test_the_figure_has_a_ridge_per_step_and_says_the_thresholds():
    parts = [
        ({"run": f"{v}-s0-x", "variant": v, "label": v.upper(), "setting": "noisy", "seed": 0},
         measure.zscore_history(recorded()))
        for v in ("sgd", "sam", "zsharp")
    ]  # fmt: skip
    ds = results.combine(parts)
    drawn = check_figure("zscore_history", ds, setting="noisy")
    assert [p.title for p in drawn.panels] == [
        "SAM\na.weight", "SAM\nb.weight", "ZSHARP\na.weight", "ZSHARP\nb.weight",
    ]  # fmt: skip
    assert "Not shown: SGD." in drawn.caption
    first = drawn.panels[0]
    lines = [m for m in first.marks if isinstance(m, grammar.Line) and m.name == "SAM"]
    assert len(lines) == 4
    assert [text for _, text in first.y.ticks] == ["step 3", "step 8", "step 20", "step 40"]
    assert len(lines[0].x) == GRID.bins  # a large tensor fills single bins
    small = [m for m in drawn.panels[1].marks if isinstance(m, grammar.Line) and m.name == "SAM"]
    assert len(small[0].x) < GRID.bins / 2
    said = [m.text for m in first.marks if isinstance(m, grammar.Label)]
    assert said == [f"{t:.2f}" for t in ds.threshold.values[1, :, 0]]
