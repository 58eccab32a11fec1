"""Adaptive grids keep their tolerance, tell evaluated from interpolated, and give up honestly."""

import numpy as np
import pytest
import torch
from torch import nn

from landscape import EmpiricalRisk, LandscapeError, measure, plane, problems, results
from landscape.measure.surfaces.adaptive_grid import adaptive, coarsest, quartered
from tests.measure_problems import cnn_risk, quadratic

X = np.linspace(-1, 1, 51)


def on(function, *, tolerance=0.01, x=X, y=X, seed=0):
    """The adaptive surface of a function of two numbers, the truth, and the cells asked."""
    asked = []

    def evaluate(cells):
        asked.extend(cells)
        return np.array([[function(x[i], y[j]), 1.0] for i, j in cells])

    truth = np.array([[function(a, b) for b in y] for a in x])
    return adaptive(evaluate, x, y, tolerance=tolerance, seed=seed), truth, asked


@pytest.mark.parametrize("points", [2, 3, 4, 5, 17, 21, 50, 51])
def test_blocks_are_quartered_to_single_cells_that_cover_the_grid(points):
    axis = np.linspace(-1, 2, points)
    axis[np.argmin(np.abs(axis))] = 0
    nodes = coarsest(axis)
    assert 0 in axis[nodes]
    assert (nodes[0], nodes[-1]) == (0, points - 1)
    blocks, corners = [(0, points - 1, 0, 3)], set()
    while blocks:
        a, b, c, d = block = blocks.pop()
        corners |= {(i, j) for i in (a, b) for j in (c, d)}
        parts = quartered(block)
        blocks += [part for part in parts if part != block]
    assert corners == {(i, j) for i in range(points) for j in range(4)}


def test_a_log_cubic_is_exact_from_few_cells():
    surface, truth, asked = on(lambda a, b: np.exp(1 + a**3 - 2 * a * b**2 + b))
    np.testing.assert_allclose(surface.values[..., 0], truth, rtol=1e-10)
    assert len(asked) == len(set(asked)) == surface.evaluated.sum() < 250
    assert surface.notes["evaluated_cells"] == len(asked)
    assert surface.notes["tolerance_of"] == "loss"


def test_only_blocks_in_doubt_are_quartered():
    """A bump in one corner costs cells there, and hardly any elsewhere."""
    surface, truth, _ = on(lambda a, b: 1 + np.exp(-80 * ((a - 0.7) ** 2 + (b - 0.7) ** 2)))
    assert np.mean(np.abs(surface.values[..., 0] / truth - 1) <= 0.01) >= 0.99
    near, far = surface.evaluated[35:, 35:], surface.evaluated[:26, :26]
    assert near.mean() > 0.5 > 0.25 > far.mean()


def test_a_sample_that_fails_is_not_believed():
    """Spikes that the first nodes miss: the sample meets some, and then the rest is doubted."""
    rng = np.random.default_rng(0)
    spikes = {(x, y) for x in rng.choice(X, 30) for y in rng.choice(X, 30)}
    surface, truth, _ = on(lambda a, b: 3.0 if (a, b) in spikes else 1 + a * a)
    assert np.mean(np.abs(surface.values[..., 0] / truth - 1) <= 0.01) >= 0.99


@pytest.mark.parametrize("tolerance", [0.001, 0.01, 0.1])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_random_smooth_surfaces_are_held_to_the_tolerance(tolerance, seed):
    rng = np.random.default_rng(seed)
    waves, phases = rng.normal(0, 2.5, (4, 2)), rng.uniform(0, 6, 4)
    surface, truth, _ = on(
        lambda a, b: np.exp(np.sin(waves @ [a, b] + phases).sum() + 2 * a * a + b * b),
        tolerance=tolerance,
    )
    off = np.abs(surface.values[..., 0] / truth - 1)
    assert np.mean(off <= tolerance) >= 0.99
    assert np.mean(off <= surface.error + 1e-12) >= 0.9


def test_a_valley_as_sharp_as_the_grid_is_evaluated_where_it_lies():
    """|alpha - beta| has a kink across the plane: cells on it are evaluated, the others not all."""
    surface, truth, _ = on(lambda a, b: 0.01 + abs(a - b) ** 1.5)
    off = np.abs(surface.values[..., 0] / truth - 1)
    assert np.mean(off <= 0.01) >= 0.99
    assert surface.evaluated[np.abs(np.subtract.outer(X, X)) < 1e-9].mean() > 0.9


def test_noise_cannot_be_interpolated_so_everything_is_evaluated_and_that_is_said():
    rng = np.random.default_rng(0)
    noise = {(a, b): rng.uniform(1, 2) for a in X for b in X}
    surface, truth, asked = on(lambda a, b: noise[a, b])
    np.testing.assert_array_equal(surface.values[..., 0], truth)
    assert surface.evaluated.all()
    assert surface.notes["evaluated_cells"] == surface.notes["cells"] == len(asked) == 51 * 51
    assert (surface.error == 0).all()


def test_cells_around_nan_and_infinity_are_evaluated():
    surface, truth, _ = on(lambda a, b: np.inf if a > 0.6 else np.nan if b < -0.8 else 1 + a * a)
    known = np.isfinite(truth)
    found = surface.values[..., 0]
    assert (np.isposinf(found) == np.isposinf(truth)).all()
    assert (np.isnan(found) == np.isnan(truth)).all()
    np.testing.assert_allclose(found[known], truth[known], rtol=0.01)


def test_losses_that_are_not_positive_are_held_to_the_range():
    surface, truth, _ = on(lambda a, b: a * b + a - 0.3 * np.cos(3 * b))
    assert surface.notes["tolerance_of"] == "range of the loss"
    assert np.abs(surface.values[..., 0] - truth).max() <= 0.01 * np.ptp(truth)
    assert surface.evaluated.mean() < 0.5


def test_bad_tolerances_are_refused():
    for tolerance in (0.0, -1.0, np.inf, np.nan):
        with pytest.raises(LandscapeError, match=r"give a relative error such as 0\.01, or None"):
            on(lambda a, b: a, tolerance=tolerance)


# --- of networks --------------------------------------------------------------------------------


def test_plane_of_a_quadratic_bowl_from_few_cells():
    risk, _, _ = quadratic([3.0, 1.0, 0.2])
    axes = plane.eigenvectors(risk.theta, torch.eye(3, dtype=risk.dtype)[:2])
    call = {"directions": axes, "points": 51, "bn": "eval", "seed": 0}
    whole = measure.loss_plane(risk, risk.theta, **call)
    part = measure.loss_plane(risk, risk.theta, tolerance=0.01, **call)
    assert part.evaluated.sum() < 51**2 / 2
    exact = part.evaluated.values
    np.testing.assert_array_equal(part.loss.values[exact], whole.loss.values[exact])
    assert np.abs(part.loss - whole.loss).max() < 0.01 * np.ptp(whole.loss.values)
    assert np.isnan(part.loss_stderr.values[~exact]).all()
    assert np.isfinite(part.loss_stderr.values[exact]).all()
    says = results.provenance(part)
    assert says["evaluated_cells"] == exact.sum()
    assert says["cost_gradients"] < results.provenance(whole)["cost_gradients"] / 2


def test_adaptive_grids_resume_and_are_bound_to_their_tolerance(tmp_path):
    risk, _ = cnn_risk()
    call = {"points": 21, "radius": 0.5, "seed": 0, "tolerance": 0.05}
    whole = measure.loss_plane(risk, risk.theta, **call)
    first = measure.loss_plane(risk, risk.theta, tiles=tmp_path, **call)
    (tmp_path / "tile-0002.npz").unlink()
    again = measure.loss_plane(risk, risk.theta, tiles=tmp_path, **call)
    for ds in (first, again):
        for name in whole.data_vars:
            assert whole[name].values.tobytes() == ds[name].values.tobytes()
    with pytest.raises(LandscapeError, match="it differs in tolerance"):
        measure.loss_plane(risk, risk.theta, tiles=tmp_path, **(call | {"tolerance": 0.01}))


def trained(name, data, *, epochs):
    shape = tuple(data.train.x.shape[1:])
    model = problems.make_model(name, num_classes=10, input_shape=shape, seed=0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    order = torch.Generator().manual_seed(0)
    for _ in range(epochs):
        for rows in torch.randperm(len(data.train.x), generator=order).split(100):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(data.train.x[rows]), data.train.y[rows]).backward()
            optimizer.step()
    return model.eval()


@pytest.mark.parametrize(
    ("name", "points", "epochs"),
    [("mlp", 33, 4), pytest.param("cnn", 33, 4, marks=pytest.mark.slow)],
)
def test_digits_networks_are_held_to_one_percent_at_every_cell(name, points, epochs):
    data = problems.load_data("digits", label_noise=0.2)
    model = trained(name, data, epochs=epochs)
    some = (data.train.x[:200], data.train.y[:200])
    risk = EmpiricalRisk(model, nn.CrossEntropyLoss(), some)
    call = {"points": points, "bn": "eval", "seed": 0}
    whole = measure.loss_plane(risk, risk.theta, **call)
    part = measure.loss_plane(risk, risk.theta, tolerance=0.01, **call)
    off = np.abs(part.loss / whole.loss - 1).values
    assert np.mean(off <= 0.01) >= 0.99
    assert part.evaluated.mean() < 0.5
