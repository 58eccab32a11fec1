"""Brackets of quadrature hold the truth of every probe; Student's intervals cover its mean."""

import numpy as np
import pytest
import torch

from landscape.linalg import density
from landscape.streams import quadrature_bracket, student


def spectra(size):
    """Dense spectra of several shapes; zero-heavy ones are where counts of signs are hard."""
    rng = np.random.default_rng(size)
    return {
        "outliers over noise": np.r_[rng.exponential(5, 10), rng.normal(0, 0.05, size - 10)],
        "two values": np.r_[np.full(size // 4, -1.0), np.full(size - size // 4, 2.0)],
        "power law": np.r_[1 / np.arange(1, size - 9) ** 1.5, -1 / np.arange(1, 11) ** 2],
        "uniform": np.linspace(-1, 3, size),
        "low rank": np.r_[np.zeros(size - 15), np.arange(1.0, 11), -np.arange(1.0, 6)],
    }


def quadrature(values, *, num_probes, num_nodes, seed):
    """SLQ of a dense matrix with these eigenvalues, and the true measure (probe, i)."""
    size = len(values)
    Q = np.linalg.qr(np.random.default_rng(seed).standard_normal((size, size)))[0]
    H, starts = torch.tensor(Q @ np.diag(values) @ Q.T), []

    def matvec(v):
        starts.append(v.numpy())
        return H @ v

    made = density.slq(
        matvec,
        size,
        num_probes=num_probes,
        num_steps=num_nodes,
        generator=torch.Generator().manual_seed(seed),
    )
    first = np.array(starts[:: len(starts) // num_probes]) @ Q
    return made, first**2 / (first**2).sum(1, keepdims=True)


@pytest.mark.parametrize("num_nodes", [3, 8, 16])
@pytest.mark.parametrize("name", list(spectra(40)))
def test_the_truth_of_every_probe_lies_within_its_bracket(name, num_nodes):
    """75 dense matrices in all, 4 probes each: no share and no sum outside, at any threshold."""
    values = spectra(40)[name]
    thresholds = np.quantile(values, [0.05, 0.3, 0.5, 0.9]) + 1e-6
    z = np.array([0.05, 0.5, 5.0])
    for seed in range(5):
        made, measure = quadrature(values, num_probes=4, num_nodes=num_nodes, seed=seed)
        nodes, weights = made.nodes.numpy(), made.weights.numpy()

        def above(x):
            return (x[..., None] >= thresholds).astype(float)

        def filled(x):
            return x.clip(min=0)[..., None] / (x.clip(min=0)[..., None] + z)

        for rise in (above, filled):
            low, high = quadrature_bracket(nodes, weights, rise)
            truth = measure @ rise(values)
            assert (low <= truth + 1e-9).all()
            assert (truth <= high + 1e-9).all()


def test_more_nodes_draw_the_bracket_together():
    values = np.linspace(-1, 3, 200)
    widths = []
    for num_nodes in (4, 16, 64):
        made, _ = quadrature(values, num_probes=2, num_nodes=num_nodes, seed=0)
        low, high = quadrature_bracket(
            made.nodes.numpy(), made.weights.numpy(), lambda x: (x >= 0).astype(float)
        )
        widths.append((high - low).max())
    assert widths[0] > 2 * widths[1] > 4 * widths[2]


def test_a_threshold_between_nodes_leaves_the_mass_of_both_open():
    nodes, weights = [3.0, -1.0, 0.5, 2.0], [0.1, 0.2, 0.3, 0.4]
    # 0 lies between -1 and 0.5: the masses .2 and .3 may lie on either side of it.
    found = quadrature_bracket(nodes, weights, lambda x: (x >= 0).astype(float))
    assert found == pytest.approx((0.5, 1.0))
    # At a node its own mass is open alone: 0.5 and what is above reach it or do not.
    found = quadrature_bracket(nodes, weights, lambda x: (x >= 0.5).astype(float))
    assert found == pytest.approx((0.5, 1.0))
    found = quadrature_bracket(nodes, weights, lambda x: (x > 10).astype(float))
    assert found == pytest.approx((0.0, 0.1))


@pytest.mark.parametrize("num_probes", [2, 4, 6])
def test_students_interval_of_the_brackets_covers_where_that_of_the_sums_does_not(num_probes):
    """On 100 dense matrices with noise about 0; five probes of a few nodes miss a third of them."""
    values = spectra(60)["outliers over noise"]
    truth, covered, naive = (values < -0.01).mean(), 0, 0
    for seed in range(100):
        made, _ = quadrature(values, num_probes=num_probes, num_nodes=12, seed=seed)
        nodes, weights = made.nodes.numpy(), made.weights.numpy()
        low, high = quadrature_bracket(nodes, weights, lambda x: (x >= -0.01).astype(float))
        start, end = student(1 - high, 1 - low)
        covered += start <= truth <= end
        start, end = student((weights * (nodes < -0.01)).sum(1))
        naive += start <= truth <= end
    assert covered >= 93
    assert naive < covered


def test_students_interval_covers_a_trace_from_few_probes():
    """vᵀHv of a semicircle's H: 95 % from two probes on; two standard errors cover 71 %."""
    rng = np.random.default_rng(0)
    H = rng.standard_normal((60, 60))
    H += H.T
    probes = rng.choice([-1.0, 1.0], size=(2, 4000, 60))
    samples = np.einsum("nri,ij,nrj->nr", probes, H, probes)
    low, high = student(samples)
    assert np.mean((low <= np.trace(H)) & (np.trace(H) <= high)) == pytest.approx(0.95, abs=0.015)
    error = samples.std(0, ddof=1) / np.sqrt(2)
    assert np.mean(abs(samples.mean(0) - np.trace(H)) <= 2 * error) < 0.75


def test_one_probe_has_no_interval():
    assert all(np.isnan(end).all() for end in student([[1.0, 2.0]]))
