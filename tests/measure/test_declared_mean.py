"""A loss that tells only the mean of a batch gives every measurement the numbers of its twin."""

import inspect

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from landscape import EmpiricalRisk, measure, sam
from landscape.measure import CurveTraining

X = torch.randn(24, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
Y = torch.randint(0, 3, (24,), generator=torch.Generator().manual_seed(2))


def model():
    net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randn(p.shape, generator=generator, dtype=torch.float64) * 0.6)
    return net


def mean(output, target):
    return F.cross_entropy(output, target)


EACH = EmpiricalRisk(model(), nn.CrossEntropyLoss(), (X, Y))
MEAN = EmpiricalRisk(model(), mean, (X, Y), reduction="mean")
T = EACH.theta
OTHER = T + 0.3 * torch.linspace(-1, 1, len(T), dtype=torch.float64)
THIRD = T - 0.2 * torch.linspace(-1, 1, len(T), dtype=torch.float64).square()
TWO = {"variants": {"z": sam.zsharp(0.1), "t": sam.topk_gradient(0.1)}, "batch_size": 8}
CALLS = {
    "adaptive_sharpness": {"rho": [0.01], "ascent_steps": 3, "num_pairs": 2, "seed": 0},
    "alignment": {**TWO, "k": 2, "seed": 0},
    "barrier": {"others": {"b": OTHER}, "points": 3},
    "barrier_matrix": {"models": {"a": T, "b": OTHER}, "points": 3},
    "batch_overlap": {**TWO, "num_batches": 2, "seed": 0},
    "bezier": {"end": OTHER, "training": CurveTraining(steps=3, batch_size=8), "points": 3,
               "seed": 0},
    "block_curvature": {"num_probes": 3, "seed": 0},
    "calibration": {},
    "correct_examples": {},
    "critical_sharpness": {},
    "crosscheck": {"num_probes": 3, "max_iterations": 5, "seed": 0},
    "curvature_map": {"points": 3, "seed": 0},
    "data_bracket": {"num_folds": 2, "num_subsets": 2, "sizes": [8], "seed": 0},
    "directional_sharpness": {},
    "enrichment": {**TWO, "k": 1, "num_probes": 2, "fisher_examples": 4, "seed": 0},
    "features": {"num_examples": 16, "seed": 0},
    "gradient_noise": {"batch_size": 8, "seed": 0},
    "gradient_zscores": {"batch_size": 8, "num_batches": 2, "seed": 0},
    "hessian_diagonal": {"num_probes": 3, "seed": 0},
    "hessian_trace": {"num_probes": 3, "seed": 0},
    "interpolation": {"end": OTHER, "points": 3},
    "loss_plane": {"points": 3, "seed": 0},
    "loss_slice": {"num_directions": 2, "points": 3, "seed": 0},
    "m_sharpness": {"rho": [0.1], "batch_sizes": [1, 8, 24], "seed": 0},
    "margins": {},
    "memorization": {},
    "minibatch_eigenvalues": {"batch_size": 8, "num_batches": 2, "seed": 0},
    "norms": {},
    "perturbation": {"variant": sam.sam(0.1), "batch_size": 8, "seed": 0},
    "perturbation_controls": {"variant": sam.zsharp(0.1), "num_draws": 2, "batch_size": 8,
                              "seed": 0},
    "perturbation_cosines": {**TWO, "seed": 0},
    "perturbation_slice": {**TWO, "points": 3, "seed": 0},
    "mask_overlap": {**TWO, "num_permutations": 9, "seed": 0},
    "robustness": {"num_draws": 2, "seed": 0},
    "sharpness": {"rho": [0.1], "num_pairs": 2, "seed": 0},
    "spectral_density": {"num_probes": 2, "num_nodes": 8, "seed": 0},
    "three_points": {"models": {"a": T, "b": OTHER, "c": THIRD}, "cells": 2, "seed": 0},
    "top_eigenvalues": {"k": 2, "seed": 0},
    "training_curvature": {"checkpoints": [T, OTHER], "lr": 0.1, "seed": 0},
    "trajectory": {"checkpoints": [T, OTHER, THIRD]},
    "generalization": {},
}  # fmt: skip
# What needs a loss for every example and has none to say of a mean: NaN, and nothing else.
PER_EXAMPLE = ("stderr", "standard_error")


def called(name, risk, options):
    function, options = getattr(measure, name), dict(options)
    if name == "generalization":
        return function({"train": risk, "test": risk}, T)
    parameters = list(inspect.signature(function).parameters)
    theta = (T,) if parameters[1] == "theta" else (options.pop(parameters[1]),)
    return function(risk, *theta, **options)


def test_every_measurement_of_a_risk_is_asked():
    known = {
        name
        for name in measure.__all__
        if inspect.isfunction(getattr(measure, name))
        and next(iter(inspect.signature(getattr(measure, name)).parameters)) in ("risk", "risks")
    }
    assert known == set(CALLS)


@pytest.mark.parametrize("name", sorted(CALLS))
def test_a_mean_gives_the_numbers_of_its_twin(name):
    expected = called(name, EACH, CALLS[name])
    found = called(name, MEAN, CALLS[name])
    if isinstance(expected, np.ndarray):
        np.testing.assert_array_equal(found, expected)
        return
    for key, values in expected.data_vars.items():
        if key == "test_losses":  # a loss for each example: a mean has none
            assert key not in found
            continue
        ours = found[key].values
        if values.dtype.kind != "f":
            np.testing.assert_array_equal(ours, values.values, err_msg=key)
            continue
        if any(word in key for word in PER_EXAMPLE) and np.isnan(ours).all():
            continue
        finite = values.values[np.isfinite(values.values)]
        slack = 1e-9 * max(1.0, float(np.abs(finite).max(initial=0.0)))
        np.testing.assert_allclose(ours, values.values, rtol=1e-7, atol=slack, err_msg=key)
