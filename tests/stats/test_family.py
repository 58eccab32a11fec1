"""One family of many differences: its error, its intervals, and what cannot matter to it."""

import math

import numpy as np
import pytest
from scipy import stats as laws

from landscape import stats
from landscape.stats import Contrast, row_means, simultaneous


def contrasts(table, **more):
    """One contrast per column of (seeds, contrasts)."""
    seeds = range(len(table))
    return {j: Contrast(seeds, column, "x", **more) for j, column in enumerate(np.asarray(table).T)}


@pytest.mark.parametrize("seeds", [3, 5, 7, 8, 10, 14])
def test_an_interval_never_contradicts_the_decision_beside_it(seeds):
    rng = np.random.default_rng(seeds)
    level = 0.95
    for shift in (0.0, 1.0, 3.0):
        table = rng.normal(size=(seeds, 1)) * 0.5 + rng.normal(size=(seeds, 12)) + shift
        for one in simultaneous(contrasts(table), share=0.4, level=level).values():
            assert one.interval.excludes(0) == (one.p < 1 - level)
            assert one.p >= one.smallest_p


def test_one_difference_of_few_seeds_is_the_paired_t_test():
    d = np.array([0.3, -0.1, 0.4, 0.2, 0.25])
    one = simultaneous({0: Contrast(range(5), d)})[0]
    plain = laws.ttest_1samp(d, 0)
    low, high = plain.confidence_interval(0.95)
    assert one.p == pytest.approx(plain.pvalue, rel=1e-10)
    assert (one.interval.low, one.interval.high) == pytest.approx((low, high), rel=1e-10)
    assert one.method == "Student"


def test_sign_flips_of_one_difference_are_the_exact_test():
    rng = np.random.default_rng(0)
    d = rng.normal(0.6, 1, 9)
    signs = np.array(np.meshgrid(*[[-1, 1]] * 9)).reshape(9, -1)
    means = np.abs(d @ signs)
    exact = np.mean(means >= abs(d.sum()) - 1e-12)
    one = simultaneous({0: Contrast(range(9), d)})[0]
    assert one.method == "sign flips"
    assert one.p == pytest.approx(exact, rel=1e-12)
    assert one.smallest_p == 2 / 2**9


@pytest.mark.parametrize(("seeds", "law"), [(3, "even"), (5, "even"), (5, "uneven"), (10, "even")])
def test_the_familys_error_stays_at_its_level(seeds, law):
    """300 families of 20 null differences to one reference; 5 % and three standard errors."""
    rng = np.random.default_rng(11)
    wrong = 0
    for _ in range(300):
        scale = np.geomspace(0.5, 2, 21)[rng.permutation(21)] if law == "uneven" else np.ones(21)
        values = rng.normal(size=(seeds, 21)) * scale + 5 * rng.normal(size=(seeds, 1))
        found = simultaneous(contrasts(values[:, 1:] - values[:, :1]))
        wrong += any(one.sign for one in found.values())
    assert wrong / 300 <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 300)


def test_the_order_of_the_differences_does_not_matter():
    rng = np.random.default_rng(2)
    for seeds in (5, 9):
        made = contrasts(rng.normal(0.5, 1, (seeds, 7)))
        there = simultaneous(made)
        back = simultaneous(dict(reversed(made.items())))
        for key, one in there.items():
            assert back[key].p == pytest.approx(one.p, rel=1e-12)
            assert back[key].interval.low == pytest.approx(one.interval.low, rel=1e-9)


@pytest.mark.parametrize("seeds", [5, 9])
def test_examples_add_their_own_error(seeds):
    """Predictions that agree over seeds: all error is that of the examples, as with McNemar."""
    rng = np.random.default_rng(1)
    a, b = (rng.random(400) < share for share in (0.9, 0.86))
    rows = np.tile(a.astype(float) - b, (seeds, 1))
    jitter = 1e-9 * rng.normal(size=seeds)
    one = simultaneous(
        {0: Contrast(range(seeds), rows.mean(1) + jitter, examples=rows - rows.mean(1)[:, None])}
    )[0]
    error = rows[0].std(ddof=1) / 20
    factor = laws.t.isf(0.025, seeds - 1) if one.method == "Student" else 1.96
    half = (one.interval.high - one.interval.low) / 2
    # Flipping a difference that is not 0 widens its law a little.
    assert half == pytest.approx(factor * error, rel=0.05 if one.method == "Student" else 0.15)


def test_crossed_effects_are_not_counted_twice():
    """With independent luck for each seed and example the spread over seeds holds everything."""
    rng = np.random.default_rng(4)
    ratios = []
    for _ in range(200):
        rows = rng.normal(size=(6, 300))
        with_examples, without = (
            simultaneous({0: Contrast(range(6), rows.mean(1), examples=examples)})[0].interval
            for examples in (rows - rows.mean(1)[:, None], None)
        )
        ratios.append((with_examples.high - with_examples.low) / (without.high - without.low))
    assert np.mean(ratios) < 1.1
    assert min(ratios) >= 1


def test_failed_runs_are_counted_and_have_no_interval():
    """The runs that are left went well: nothing is decided by them, in words or in a picture."""
    d = np.array([1.0, 1.1, np.nan, 0.9, 1.05])
    one = simultaneous({0: Contrast(range(5), d, failed=1)})[0]
    assert one.interval.estimate == pytest.approx(1.0125)
    assert not one.interval.known
    assert (one.tested, one.sign, one.interval.missing, one.equivalent) == (False, 0, 1, False)


def test_names_of_seeds_change_nothing():
    """Also where signs are drawn at random, by seed and by test example."""
    rng = np.random.default_rng(4)
    rows = rng.normal(0.3, 1, (14, 3))
    examples = rng.normal(size=(14, 60))
    examples -= examples.mean(1, keepdims=True)
    names = rng.permutation(14) + 100
    found = [
        simultaneous({
            j: Contrast(seeds, rows[order, j], examples=examples[order])
            for j in range(3)
        })
        for seeds, order in ((range(14), np.arange(14)), (names, rng.permutation(14)))
    ]  # fmt: skip
    for j in range(3):
        a, b = (one[j] for one in found)
        assert a.p == b.p
        assert (a.interval.low, a.interval.high) == pytest.approx((b.interval.low, b.interval.high))


def test_nothing_is_decided_by_one_seed_or_without_spread():
    one = simultaneous({0: Contrast([0], np.array([0.5]))})[0]
    assert not one.tested
    assert one.sign == 0
    flat = simultaneous({0: Contrast(range(3), np.full(3, 0.5))})[0]
    assert not flat.tested
    assert simultaneous({0: Contrast(range(3), np.zeros(3), margin=0.1)})[0].equivalent
    assert simultaneous({}) == {}


def test_equivalence_is_an_interval_within_the_margin():
    rng = np.random.default_rng(5)
    near = simultaneous({0: Contrast(range(9), 0.01 * rng.normal(size=9), margin=0.1)})[0]
    wide = simultaneous({0: Contrast(range(9), rng.normal(size=9), margin=0.1)})[0]
    assert near.equivalent
    assert not wide.equivalent
    assert wide.detectable > wide.interval.high - wide.interval.estimate


def test_five_seeds_cannot_be_decided_by_flips_and_eight_say_their_smallest_p():
    table = np.random.default_rng(0).normal(10, 0.1, (8, 3))
    found = simultaneous(contrasts(table), share=0.3)
    assert {one.smallest_p for one in found.values()} == {2 / 256 / 0.3}
    assert all(one.sign == 1 for one in found.values())
    # A hundredth of the error is less than the smallest p: nothing can be resolved, and it shows.
    tight = simultaneous(contrasts(table), share=0.1)
    assert all(one.sign == 0 and math.isinf(one.interval.high) for one in tight.values())


def test_dose_and_response_given_a_confounder():
    rng = np.random.default_rng(7)
    hits = {"plain": 0, "given": 0, "cause": 0}
    for _ in range(100):
        z = rng.normal(size=12)
        x, y = z + 0.4 * rng.normal(size=12), z + 0.4 * rng.normal(size=12)
        hits["plain"] += stats.dose_response([x], y)[0].p < 0.05
        hits["given"] += stats.dose_response([x], y, [z])[0].p < 0.05
        hits["cause"] += stats.dose_response([x], x + 0.4 * rng.normal(size=12), [z])[0].p < 0.05
    assert hits["plain"] > 80
    assert hits["given"] <= 12
    assert hits["cause"] > 40


def test_partial_correlation_equals_that_of_residuals():
    rng = np.random.default_rng(3)
    x, y, z = rng.normal(size=(3, 11))
    one = stats.dose_response([x], y, [z])[0]

    def left(v):
        design = np.stack([np.ones(11), z], 1)
        return v - design @ np.linalg.lstsq(design, v, rcond=None)[0]

    assert one.r == pytest.approx(np.corrcoef(left(x), left(y))[0, 1], rel=1e-10)
    assert one.df == 8


def test_dose_and_response_do_not_know_the_order_of_variants():
    rng = np.random.default_rng(9)
    x, y, z = rng.normal(size=(3, 10))
    order = rng.permutation(10)
    first = stats.dose_response([x, x**2], y, [z])
    second = stats.dose_response([x[order], x[order] ** 2], y[order], [z[order]])
    for a, b in zip(first, second, strict=True):
        assert (a.r, a.p) == pytest.approx((b.r, b.p), rel=1e-9)


def test_few_variants_have_no_dose_and_response():
    one = stats.dose_response([[1.0, 2, 3, 4]], [1.0, 2, 3, 5])[0]
    assert math.isnan(one.p)
    missing = stats.dose_response([[1, 2, 3, 4, 5, np.nan, 7.0]], np.arange(7.0))[0]
    assert missing.n == 6


@pytest.mark.parametrize("seeds", [5, 9])
def test_an_error_that_no_example_shows_is_an_error(seeds):
    """Differences of 0 in every seed are equal where models are, and not where examples are few."""
    nothing, rows = np.zeros(seeds), np.zeros((seeds, 40))
    same = simultaneous({"a": Contrast(range(seeds), nothing, "x", 0.1)})["a"]
    assert same.equivalent
    for least, equal in ((0.02**2, True), (0.5**2, False), (np.inf, False)):
        one = Contrast(range(seeds), nothing, "x", 0.1, rows, least_variance=least)
        found = simultaneous({"a": one})["a"]
        assert found.equivalent == equal
        assert found.sign == 0
        if np.isfinite(least):
            # At the least the normal quantile times the error that was given.
            assert found.interval.high > 1.9 * np.sqrt(least)


def test_means_of_rows_do_not_depend_on_which_seeds_a_row_lacks():
    """Exact where value = row + seed; plain where nothing is missing, or nothing is shared."""
    rng = np.random.default_rng(0)
    row, seed = rng.normal(size=6), 3 * rng.normal(size=5)
    whole = {f"v{i}": {s: row[i] + seed[s] for s in range(5)} for i in range(6)}
    part = {name: dict(seeds) for name, seeds in whole.items()}
    for name, s in (("v0", 1), ("v3", 4), ("v3", 0), ("v5", 2)):
        del part[name][s]
    expected = row + seed.mean()
    for values in (whole, part):
        found = row_means(values)
        assert list(found) == list(values)
        np.testing.assert_allclose(list(found.values()), expected, rtol=1e-12)
    noisy = {name: {s: v + rng.normal() for s, v in seeds.items()} for name, seeds in whole.items()}
    plain = [np.mean(list(seeds.values())) for seeds in noisy.values()]
    assert list(row_means(noisy).values()) == plain
    apart = {"a": {0: 1.0, 1: 2.0}, "b": {5: 7.0, 6: 9.0}}
    assert row_means(apart) == {"a": 1.5, "b": 8.0}
    lost = row_means({"a": {0: 1.0, 1: np.nan}, "b": {0: 1.0, 1: 2.0}, "c": {}})
    assert np.isnan(lost["a"])
    assert np.isnan(lost["c"])
    assert lost["b"] == 1.5


def test_one_and_the_same_model_has_p_1():
    assert simultaneous({0: Contrast(range(3), np.zeros(3))})[0].p == 1


def test_beyond_the_margin_is_an_interval_that_lies_outside():
    d = np.array([0.9, 1.0, 1.1, 1.05, 0.95])
    for sign in (1, -1):
        for margin, beyond in ((0.5, sign), (1.0, 0), (5.0, 0)):
            one = simultaneous({0: Contrast(range(5), sign * d, margin=margin)})[0]
            assert (one.sign, one.beyond) == (sign, beyond)


def test_an_interval_over_seeds_and_examples_is_that_of_crossed_effects():
    """Two-way table: var = s²/n + max(0, MS_examples/n - MS_both/n)/examples, by hand."""
    rng = np.random.default_rng(6)
    n, count = 4, 7
    rows = rng.normal(size=(1, count)) * 3 + rng.normal(size=(n, 1)) + rng.normal(size=(n, count))
    means = rows.mean(1)
    both = rows - means[:, None] - rows.mean(0) + rows.mean()
    mean_square = (both**2).sum() / ((n - 1) * (count - 1))
    of_examples = rows.mean(0).var(ddof=1) - mean_square / n
    variance = means.var(ddof=1) / n + of_examples / count
    made = Contrast(range(n), means, examples=rows - means[:, None])
    interval = simultaneous({0: made})[0].interval
    half = laws.t.isf(0.025, n - 1) * math.sqrt(variance)
    assert of_examples > 0
    np.testing.assert_allclose(interval.high - interval.estimate, half, rtol=1e-10)
