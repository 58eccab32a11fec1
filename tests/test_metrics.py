"""The table of metrics: directions, scales and what they make of numbers."""

import math

import numpy as np
import pytest

from landscape.errors import LandscapeError
from landscape.metrics import FLATNESS, METRICS, OUTCOMES, Metric, metric
from landscape.plot.compared import Values
from landscape.study.spec import METRICS as DECLARABLE


def test_halving_the_error_is_the_same_step_everywhere():
    accuracy = metric("test_accuracy")
    for low, high in ((0.995, 0.9975), (0.5, 0.75), (0.9, 0.95)):
        step = np.diff(accuracy.scaled([low, high], examples=10**9))[0]
        assert step == pytest.approx(math.log(2), rel=1e-5)
        assert accuracy.factor(step) == pytest.approx(0.5, rel=1e-5)


@pytest.mark.parametrize("key", list(METRICS))
def test_larger_on_the_scale_is_better(key):
    one = METRICS[key]
    low, high = one.scaled([0.2, 0.3], examples=1000)
    assert (high > low) == (one.better > 0)
    assert one.threshold() > 0
    # A factor below 1 shrinks the error (or the quantity, where smaller is better).
    if one.scale != "linear":
        shrinks = one.scale == "log_error" or one.better < 0
        assert (one.factor(0.1) < 1) == shrinks


def test_no_error_at_all_has_a_place_on_the_scale():
    accuracy = metric("test_accuracy")
    perfect, one_wrong = accuracy.scaled([1.0, 0.998], examples=500)
    assert perfect - one_wrong == pytest.approx(math.log(3))
    assert np.isnan(accuracy.scaled([np.nan, 1.2])).all()
    assert np.isnan(metric("lambda1").scaled(-1.0))


def test_slope_is_the_derivative():
    for key in ("test_accuracy", "mislabelled_fit"):
        one, share, step = metric(key), 0.8, 1e-6
        ends = one.scaled([share - step, share + step], examples=200)
        assert one.slope(share, examples=200) == pytest.approx(
            np.diff(ends)[0] / 2 / step, rel=1e-6
        )
    with pytest.raises(LandscapeError, match="no share of examples; its scale is log"):
        metric("test_loss").slope(0.5, examples=10)


def test_losses_and_gaps_are_better_when_lower():
    lower = {"test_loss", "val_loss", "train_loss", "accuracy_gap", "loss_gap", "ece"}
    assert {key for key in OUTCOMES if METRICS[key].better < 0} == lower | {"mislabelled_fit"}
    assert all(METRICS[key].comparative == "flatter" for key in FLATNESS)
    assert DECLARABLE == OUTCOMES
    held_out = {key for key in OUTCOMES if METRICS[key].held_out}
    assert not any("train" in key or "mislabelled" in key for key in held_out)


def test_a_metric_without_a_direction_is_refused():
    with pytest.raises(LandscapeError, match=r"better=0 .* possible: 1 or -1"):
        Metric("x", "generalization", "x", 0, "", "x", "more", "less", "linear")
    with pytest.raises(LandscapeError, match="Unknown metric 'accuracy'; known: test_accuracy"):
        metric("accuracy")


def test_a_quantity_of_either_sign_is_compared_without_a_margin():
    """A sharpness near 0 that is negative once: differences, and never "equal within 10 %"."""
    import xarray as xr

    from landscape.plot.compared import compared
    from landscape.stats import simultaneous

    rows = {
        name: xr.Dataset({"gaussian": ("run", values)}, {"seed": ("run", np.arange(4))})
        for name, values in {
            "a": [1e-5, -1e-5, 2e-5, 0.5e-5], "b": [2e-5, 1e-5, 1.5e-5, 3e-5]
        }.items()
    }  # fmt: skip
    values = compared(metric("gaussian"), rows)
    assert values.metric.scale == "linear"
    one = simultaneous({0: values.contrast("a", "b", "x")})[0]
    assert one.interval.estimate == pytest.approx(1.25e-5, rel=1e-9)
    assert not one.equivalent


def test_what_is_less_than_the_margin_away_is_not_far():
    """All radii but one row's are set; that row's differ by some per cent, as it chooses them."""
    jitter = np.random.default_rng(0).normal(size=(6, 5))
    raw = {f"v{i}": {s: 0.1 * (1 + 1e-6 * jitter[i, s]) for s in range(5)} for i in range(6)}
    raw["own"] = {seed: 0.2 * (1 + 0.01 * seed) for seed in range(5)}
    quantity = metric("rho_eff")

    def far():
        scaled = {row: {s: -math.log(v) for s, v in seeds.items()} for row, seeds in raw.items()}
        return [one[:2] for one in Values(quantity, raw, scaled).outlying]

    assert far() == []
    raw["own"][2] *= 3
    assert far() == [("own", 2)]


@pytest.mark.parametrize(("rows", "seeds"), [(3, 3), (3, 5), (6, 3), (12, 5)])
def test_ordinary_runs_do_not_lie_far_off_however_small_the_table(rows, seeds):
    """Medians of rows and seeds leave nothing of many runs, which says nothing on the others."""
    rng, found, lost = np.random.default_rng(0), 0, 0
    for _ in range(60):
        drawn = rng.normal(size=(rows, seeds)) + 2 * rng.normal(size=(1, seeds))
        scaled = {f"v{i}": dict(enumerate(row)) for i, row in enumerate(drawn.tolist())}
        found += len(Values(metric("gaussian"), scaled, scaled).outlying)
        drawn[0, 0] += 40
        scaled = {f"v{i}": dict(enumerate(row)) for i, row in enumerate(drawn.tolist())}
        far = [one[:2] for one in Values(metric("gaussian"), scaled, scaled).outlying]
        lost += ("v0", 0) not in far
    # Of standard normal runs one in a thousand at the most; 40 standard deviations are seen.
    assert found <= 60 * rows * seeds / 200
    assert lost <= 6
