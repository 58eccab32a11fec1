"""Rank correlations: what turning a variable round must turn round too."""

import numpy as np
import pytest
from scipy import stats as laws

from landscape import stats


@pytest.mark.parametrize("level", [0.5, 0.95])
def test_turning_a_variable_round_mirrors_the_interval(level):
    rng = np.random.default_rng(0)
    x = rng.normal(size=20)
    y = x + rng.normal(size=20)
    one, other = (stats.kendall(x, sign * y, level=level, seed=3) for sign in (1, -1))
    np.testing.assert_allclose((other.low, other.high), (-one.high, -one.low), rtol=1e-12)
    assert one.low < one.tau < one.high
    np.testing.assert_allclose(one.tau, laws.kendalltau(x, y).statistic, rtol=1e-12)


def test_a_wider_level_is_a_wider_interval():
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(2, 20))
    half, most = (stats.kendall(x, y, level=level, seed=3) for level in (0.5, 0.95))
    assert most.low < half.low < half.high < most.high
