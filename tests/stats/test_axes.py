"""Choosing on validation data: the rule, and what the choice costs, against hand-worked cases."""

import numpy as np
import pytest

from landscape.stats import choose


def test_the_highest_mean_wins_and_the_loss_breaks_ties():
    accuracy = np.array([[0.7, 0.9], [0.8, 0.8], [0.6, 0.6]])
    loss = np.array([[1.0, 1.0], [0.5, 0.5], [0.1, 0.1]])
    assert choose(accuracy, loss).index == 1
    assert choose(accuracy, -loss).index == 0


def test_a_value_that_lost_a_seed_is_not_chosen():
    accuracy = np.array([[0.9, np.nan], [0.5, 0.5]])
    assert choose(accuracy, np.zeros((2, 2))).index == 1
    assert choose(*[np.full((2, 2), np.nan)] * 2) is None


def test_the_price_is_what_held_out_seeds_and_the_test_set_show():
    accuracy = np.array([[0.9, 0.5, 0.5], [0.6, 0.6, 0.6]])
    test = np.array([[0.8, 0.8, 0.8], [0.9, 0.9, 0.9]])
    found = choose(accuracy, np.zeros((2, 3)), test)
    # In all seeds row 0 (0.633) is best. Without seed 0 it is row 1, without another row 0.
    assert found.index == 0
    assert found.optimism == pytest.approx(1.9 / 3 - (0.6 + 0.5 + 0.5) / 3)
    assert found.regret == pytest.approx(0.1)


def test_where_nothing_has_an_accuracy_the_lowest_loss_is_chosen_and_prices_are_losses():
    loss, none = np.array([[0.5, 0.9, 0.9], [0.8, 0.8, 0.8]]), np.full((2, 3), np.nan)
    found = choose(none, loss, none, test_loss=np.array([[0.7, 0.7, 0.7], [0.6, 0.6, 0.6]]))
    # In all seeds row 0 (0.767) is lowest. Without seed 0 it is row 1, without another row 0.
    assert (found.index, found.by_loss) == (0, True)
    assert found.optimism == pytest.approx((0.8 + 0.9 + 0.9) / 3 - 2.3 / 3)
    assert found.regret == pytest.approx(0.1)
    assert not choose(1 - loss, loss).by_loss


def test_without_a_second_seed_or_test_data_the_price_is_unknown():
    found = choose(np.array([[0.5], [0.6]]), np.zeros((2, 1)))
    assert found.index == 1
    assert np.isnan([found.optimism, found.regret]).all()


def test_of_noise_the_best_looks_too_good_by_what_held_out_seeds_show():
    """Values that do not differ: the best of the grid is above the truth, held out it is not."""
    rng = np.random.default_rng(0)
    optimism, excess = [], []
    for _ in range(400):
        accuracy = 0.8 + 0.02 * rng.standard_normal((8, 5))
        found = choose(accuracy, np.zeros((8, 5)))
        optimism.append(found.optimism)
        excess.append(accuracy[found.index].mean() - 0.8)
    # The held-out value is unbiased for the rule on one seed fewer, whose truth is 0.8 as well.
    error = np.std(np.array(optimism) - excess, ddof=1) / 20
    assert np.mean(optimism) == pytest.approx(np.mean(excess), abs=4 * error)
