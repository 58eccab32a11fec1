"""The curvature measurements together: stored whole, repeatable, and leaving the model alone."""

import numpy as np
import pytest
import torch

from landscape import LandscapeError, measure, results
from tests.measure_problems import cnn_risk, fingerprint, quadratic, same

CALLS = {
    "top_eigenvalues": lambda r, t: measure.top_eigenvalues(
        r, t, k=2, matrix="ggn", select="conv", return_vectors=True, seed=0
    ),
    "hessian_trace": lambda r, t: measure.hessian_trace(
        r, t, num_probes=9, method="hutch++", select=["conv", "norm"], seed=0
    ),
    "spectral_density": lambda r, t: measure.spectral_density(
        r, t, num_probes=2, num_nodes=5, matrix="ggn", select="conv", seed=0
    ),
    "block_curvature": lambda r, t: measure.block_curvature(
        r, t, by="kind", num_probes=2, tolerance=1e-3, seed=0
    ),
    "hessian_diagonal": lambda r, t: measure.hessian_diagonal(r, t, num_probes=2, seed=0),
    "minibatch_eigenvalues": lambda r, t: measure.minibatch_eigenvalues(
        r, t, batch_size=12, seed=0
    ),
    "data_bracket": lambda r, t: measure.data_bracket(r, t, num_folds=2, seed=0),
    "critical_sharpness": lambda r, t: measure.critical_sharpness(r, t),
    "training_curvature": lambda r, t: measure.training_curvature(
        r, [t, 1.01 * t], lr=0.1, rho=0.1, seed=0
    ),
}


@pytest.mark.thorough
@pytest.mark.parametrize("name", CALLS)
def test_it_is_stored_whole_repeated_to_the_last_bit_and_leaves_no_trace(name, tmp_path):
    risk, model = cnn_risk()
    before = fingerprint(model)
    ds = CALLS[name](risk, risk.theta)
    same(before, fingerprint(model))
    assert ds.attrs["measurement"] == name
    for variable in ds.data_vars.values():
        assert variable.attrs["long_name"]
        assert variable.attrs["units"]
    again = results.load(results.save(ds, tmp_path / "result.nc"))
    assert again.attrs == ds.attrs
    for variable in ds.variables:
        np.testing.assert_array_equal(again[variable], ds[variable])
    repeated = CALLS[name](cnn_risk()[0], risk.theta)
    for variable in ds.variables:
        np.testing.assert_array_equal(repeated[variable], ds[variable])
    both = results.combine([({"run": i, "seed": i}, part) for i, part in enumerate([ds, repeated])])
    results.save(both, tmp_path / "combined.nc")
    assert results.provenance(ds)["cost_gradients"] > 0
    with pytest.raises(LandscapeError, match="NaN or infinite"):
        CALLS[name](risk, risk.theta * float("nan"))


def test_a_zero_hessian_is_an_answer():
    risk, _, _ = quadratic([0.0] * 6)
    ds = measure.top_eigenvalues(risk, risk.theta, k=2, seed=0)
    np.testing.assert_array_equal(ds["eigenvalue"], 0)
    np.testing.assert_array_equal(ds["bound"], 0)
    assert ds["converged"].all()
    assert float(measure.hessian_trace(risk, risk.theta, num_probes=2, seed=0)["trace"]) == 0


def test_a_cluster_at_zero_has_no_sign():
    spectrum = [5.0, 1.0, *np.linspace(-1e-4, 1e-4, 30), -1.0]
    risk, _, _ = quadratic(spectrum)
    ds = measure.spectral_density(risk, risk.theta, num_probes=300, num_nodes=5, seed=0)
    assert float(ds["negative_mass_low"]) <= 1 / 33 <= float(ds["negative_mass_high"])
    assert abs(float(ds["negative_mass"]) - 1 / 33) < 0.02
    assert float(ds["zero"]) == pytest.approx(5e-3, rel=1e-3)


def test_density_of_a_block_has_its_moments_and_its_negative_mass():
    spectrum = [5.0, 3.0, 3.0, 1.0, 0.5, 0.0, -0.2, -4.0]
    risk, H, _ = quadratic(spectrum)
    ds = measure.spectral_density(risk, risk.theta, num_probes=300, num_nodes=8, seed=0)
    assert float(ds["negative_mass_low"]) <= 2 / 8 <= float(ds["negative_mass_high"])
    # Every eigenvector is in the space of a probe: no bracket is left, only the draw.
    assert float(ds["negative_mass_high"] - ds["negative_mass_low"]) < 0.06
    z = torch.tensor([0.5, 2.0], dtype=torch.float64)
    values = torch.linalg.eigvalsh(H).clamp(min=0)
    exact = (values[:, None] / (values[:, None] + z)).sum(0)
    found = measure.spectral_density(
        risk, risk.theta, num_probes=300, num_nodes=8, shifts=z.tolist(), seed=0
    )
    low, high = found["effective_dimension_low"].values, found["effective_dimension_high"].values
    assert (low <= exact.numpy()).all()
    assert (exact.numpy() <= high).all()
    assert (high - low < 0.4).all()
    with pytest.raises(LandscapeError, match=r"shifts=\[-1\.0\]"):
        measure.spectral_density(risk, risk.theta, shifts=[-1.0], seed=0)


def test_the_ratio_of_the_ends_is_free_of_the_losss_scale():
    risk, _, _ = quadratic([6.0, 3.0, 2.0, 0.5, 0.1])
    ds = measure.top_eigenvalues(risk, risk.theta, k=3, seed=0)
    assert float(ds["ratio"]) == pytest.approx(3.0)
