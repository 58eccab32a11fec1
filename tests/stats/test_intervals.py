"""Statistics against scipy, against closed forms, and at their edges."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as reference

from landscape import stats
from landscape.errors import LandscapeError
from landscape.metrics import METRICS

RNG = np.random.default_rng(3)


@pytest.mark.parametrize("n", [2, 3, 5, 40])
def test_mean_interval_equals_scipy(n):
    values = RNG.normal(size=n)
    ci = stats.mean_ci(values)
    low, high = reference.t.interval(0.95, n - 1, values.mean(), reference.sem(values))
    assert (ci.estimate, ci.low, ci.high) == pytest.approx((values.mean(), low, high), rel=1e-12)
    assert ci.n == n


def test_one_value_has_no_interval_and_none_has_no_mean():
    one = stats.mean_ci([0.5])
    assert one.estimate == 0.5
    assert not one.known
    assert one.n == 1
    assert not one.excludes(7.0)
    assert math.isnan(stats.mean_ci([]).estimate)


def test_diverged_seeds_are_left_out_and_counted():
    ci = stats.mean_ci([1.0, np.nan, 3.0, np.inf])
    assert (ci.estimate, ci.n, ci.missing) == (2.0, 2, 2)


@pytest.mark.parametrize("n", [2, 3, 5, 12])
def test_paired_equals_scipy(n):
    a, b = RNG.normal(1, 1, n), RNG.normal(size=n)
    ours, theirs = stats.paired(a, b), reference.ttest_rel(a, b)
    assert (ours.t, ours.p) == pytest.approx((theirs.statistic, theirs.pvalue), rel=1e-10)
    interval = theirs.confidence_interval(0.95)
    assert (ours.difference.low, ours.difference.high) == pytest.approx(tuple(interval), rel=1e-10)


def test_pairs_without_spread_have_no_p_but_equal_pairs_have_p_one():
    constant = stats.paired([0.9, 0.8, 0.7], [0.8, 0.7, 0.6])
    assert constant.difference.estimate == pytest.approx(0.1)
    assert math.isnan(constant.p)
    assert not constant.difference.known
    assert stats.paired([0.9, 0.8], [0.9, 0.8]).p == 1.0
    assert math.isnan(stats.paired([0.9], [0.8]).p)


def test_pairs_of_unequal_length_are_refused():
    with pytest.raises(LandscapeError, match="equally many values, got 2 and 3"):
        stats.paired([1, 2], [1, 2, 3])


def test_geometric_ratio_is_the_paired_interval_of_logarithms():
    a, b = RNG.lognormal(1, 0.3, 6), RNG.lognormal(0, 0.3, 6)
    ci = stats.geometric_ratio(a, b)
    logs = stats.mean_ci(np.log(a / b))
    assert (ci.estimate, ci.low, ci.high) == pytest.approx(
        tuple(np.exp([logs.estimate, logs.low, logs.high])), rel=1e-12
    )
    inverse = stats.geometric_ratio(b, a)
    assert ci.estimate * inverse.estimate == pytest.approx(1.0)
    assert stats.geometric_ratio([1, -1, 4], [1, 1, 1]).missing == 1


def test_geometric_mean():
    assert stats.geometric_mean_ci([1.0, 100.0]).estimate == pytest.approx(10.0)
    assert stats.geometric_mean_ci([0.0, 100.0]).missing == 1


def test_wilcoxon_equals_scipy_and_refuses_five():
    differences = RNG.normal(0.5, 1, 9)
    assert stats.wilcoxon(differences) == reference.wilcoxon(differences).pvalue
    assert stats.wilcoxon(np.zeros(6)) == 1.0
    with pytest.raises(LandscapeError, match=r"5 pairs cannot reach p < 0\.05"):
        stats.wilcoxon(np.arange(1.0, 6.0))


def test_holm_on_the_worked_example():
    # Sorted p .005 .01 .03 .04 times 4 3 2 1, then the running maximum.
    adjusted = stats.holm([0.01, 0.04, 0.03, 0.005])
    assert adjusted == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_holm_counts_a_missing_comparison_in_the_family():
    assert stats.holm([0.01, np.nan])[0] == pytest.approx(0.02)
    assert np.isnan(stats.holm([0.01, np.nan])[1])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_holm_lies_between_raw_and_bonferroni(p):
    p = np.array(p)
    adjusted = stats.holm(p)
    assert np.all(adjusted >= p)
    assert np.all(adjusted <= np.minimum(1, p * p.size) + 1e-15)
    order = np.argsort(p, kind="stable")
    assert np.all(np.diff(adjusted[order]) >= 0)


def test_sampling_error_is_the_binomial_one():
    assert stats.sampling_error(0.8, 1000) == pytest.approx(math.sqrt(0.16 / 1000))
    with pytest.raises(LandscapeError, match="num_examples=0"):
        stats.sampling_error(0.5, 0)


@pytest.mark.parametrize("n", [5, 12, 30])
@pytest.mark.parametrize("ties", [False, True])
def test_tau_equals_scipy(n, ties):
    x, y = RNG.normal(size=n), RNG.normal(size=n)
    if ties:
        x, y = np.round(x), np.round(y)
    ours = stats.kendall(x, y, seed=0, num_bootstrap=50, num_permutations=99)
    assert ours.tau == pytest.approx(reference.kendalltau(x, y).statistic, rel=1e-12)


def test_tau_p_is_exact_for_seven_and_close_for_twelve():
    x = np.arange(7.0)
    y = np.array([0, 2, 1, 3, 5, 4, 6.0])
    exact = reference.kendalltau(x, y, method="exact").pvalue
    assert stats.kendall(x, y, seed=0).p == pytest.approx(exact, rel=1e-12)
    x, y = np.arange(12.0), np.arange(12.0) + RNG.normal(0, 4, 12)
    exact = reference.kendalltau(x, y, method="exact").pvalue
    assert stats.kendall(x, y, seed=0).p == pytest.approx(exact, abs=0.01)


def test_rounding_does_not_break_a_tie():
    """Means of the same accuracies, in per cent and as a share."""
    accuracy = np.array([0.97, 0.964, 0.97, 0.9, 0.932, 0.972])
    accuracy[2] = np.nextafter(0.97, 1)
    sharpness = np.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    exact = reference.kendalltau(sharpness, accuracy.round(9)).statistic
    assert reference.kendalltau(sharpness, accuracy).statistic != exact
    for unit in (1, 100):
        found = stats.kendall(sharpness, unit * accuracy, seed=0).tau
        assert found == pytest.approx(exact, rel=1e-12)


def test_tau_of_few_or_tied_configurations_has_no_p():
    assert math.isnan(stats.kendall([1, 2, 3], [1, 2, 3], seed=0).p)
    assert math.isnan(stats.kendall([1, 1, 1, 1], [1, 2, 3, 4], seed=0).tau)
    assert stats.kendall([1], [1], seed=0).n == 1
    with pytest.raises(LandscapeError, match="equally many values, got 2 and 3"):
        stats.kendall([1, 2], [1, 2, 3], seed=0)


def test_bootstrap_interval_repeats_and_holds_the_estimate():
    x = np.arange(15.0)
    y = x + RNG.normal(0, 3, 15)
    first, second = (stats.kendall(x, y, seed=5) for _ in range(2))
    assert first == second
    assert first.low <= first.tau <= first.high


def test_partial_tau_vanishes_where_the_third_variable_explains():
    rng = np.random.default_rng(0)
    z = rng.normal(size=200)
    x, y = z + 0.1 * rng.normal(size=200), z + 0.1 * rng.normal(size=200)
    plain = stats.kendall(x, y, seed=0, num_bootstrap=20, num_permutations=19).tau
    partial = stats.partial_kendall(x, y, z, seed=0, num_bootstrap=50)
    assert plain > 0.8
    assert partial.tau < 0.5
    assert math.isnan(stats.partial_kendall([1, 2, 3], [1, 2, 3], [3, 1, 2], seed=0).tau)
    assert math.isnan(stats.partial_kendall(x, y, x, seed=0, num_bootstrap=5).tau)


def test_an_interval_from_a_bootstrap_needs_ten_variants():
    x = np.arange(9.0)
    assert math.isnan(stats.kendall(x, x**2 % 7, seed=0).low)
    assert math.isnan(stats.partial_kendall(x, x**2 % 7, x**3 % 5, seed=0).low)
    x = np.arange(10.0)
    assert math.isfinite(stats.kendall(x, x**2 % 7, seed=0).low)


def test_a_broadened_spectrum_is_a_density_around_its_nodes():
    grid = np.linspace(-2, 5, 2001)
    density = stats.broaden([[0.0, 3.0]], [[0.75, 0.25]], grid, sigma=0.05)
    assert density.shape == (1, 2001)
    assert np.trapezoid(density[0], grid) == pytest.approx(1.0, abs=1e-9)
    assert np.trapezoid(density[0] * grid, grid) == pytest.approx(0.75, abs=1e-9)


@given(st.lists(st.floats(0, 1), min_size=2, max_size=6))
def test_an_interval_of_a_share_stays_a_share(values):
    for key in ("test_accuracy", "mislabelled_fit", "ece"):
        ci = stats.metric_ci(METRICS[key], values)
        assert 0 <= ci.low <= ci.estimate + 1e-12
        assert ci.estimate - 1e-12 <= ci.high <= 1
    gap = stats.metric_ci(METRICS["accuracy_gap"], [2 * v - 1 for v in values])
    assert -1 <= gap.low <= gap.high <= 1


def test_a_narrow_interval_of_a_share_is_the_t_interval():
    values = [0.90, 0.901, 0.8995, 0.9005]
    plain, share = stats.mean_ci(values), stats.metric_ci(METRICS["test_accuracy"], values)
    assert share.estimate == plain.estimate
    np.testing.assert_allclose([share.low, share.high], [plain.low, plain.high], atol=1e-5)
    # By hand: logit ± half / (y (1 - y)) of an interval that is wide.
    wide = stats.metric_ci(METRICS["test_accuracy"], [0.2, 0.8])
    half = reference.t.ppf(0.975, 1) * 0.3
    np.testing.assert_allclose(wide.high, 1 / (1 + np.exp(-half / 0.25)), rtol=1e-12)


def test_an_interval_of_a_loss_is_positive_and_of_what_is_no_share_plain():
    loss = stats.metric_ci(METRICS["train_loss"], [0.01, 1.0])
    assert loss.low > 0
    assert loss == stats.geometric_mean_ci([0.01, 1.0])
    trace = stats.metric_ci(METRICS["trace"], [-1.0, 2.0])
    assert trace == stats.mean_ci([-1.0, 2.0])
    assert stats.metric_ci(METRICS["test_accuracy"], [88.0, 90.0]) == stats.mean_ci([88.0, 90.0])


def test_bounds_may_be_anywhere():
    values = [0.9, 0.95, 0.99, 0.97]
    one = stats.mean_ci(values, bounds=(0.0, 1.0))
    two = stats.mean_ci([50 + 20 * v for v in values], bounds=(50.0, 70.0))
    np.testing.assert_allclose(
        (two.estimate, two.low, two.high), [50 + 20 * v for v in (one.estimate, one.low, one.high)]
    )
