import pytest
import torch

from landscape.errors import LandscapeError
from landscape.linalg import density, trace

F64 = torch.float64


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def with_spectrum(values, seed=0):
    values = torch.as_tensor(values, dtype=F64)
    Q = torch.linalg.qr(torch.randn(len(values), len(values), generator=rng(seed), dtype=F64)).Q
    return (Q * values) @ Q.T


def test_hutchinson_is_exact_on_diagonal_operators():
    diagonal = torch.linspace(-1, 3, 17, dtype=F64)
    samples = trace.hutchinson(lambda v: diagonal * v, 17, num_probes=3, generator=rng())
    torch.testing.assert_close(samples, diagonal.sum().expand(3), rtol=1e-13, atol=0)


def test_hutchinson_mean_and_variance_are_those_of_the_theorem():
    A = with_spectrum([10.0, 5.0, *[0.5] * 18])
    samples = trace.hutchinson(A.mv, 20, num_probes=4000, generator=rng())
    off = A - torch.diag(A.diagonal())
    variance = 2 * off.square().sum()
    stderr = (variance / 4000).sqrt()
    assert (samples.mean() - A.trace()).abs() < 4 * stderr
    assert 0.9 < float(samples.var() / variance) < 1.1


def test_hutchpp_is_exact_when_the_rank_is_below_its_sketch():
    A = with_spectrum([7.0, -3.0, 2.0] + [0.0] * 40)
    estimate = trace.hutchpp(A.mv, 43, num_matvecs=15, generator=rng())
    assert estimate.value == pytest.approx(6.0, abs=1e-10)
    assert estimate.num_matvecs == 15
    assert float(estimate.stderr) < 1e-10


def test_hutchpp_beats_hutchinson_at_equal_products_on_a_decaying_spectrum():
    A = with_spectrum([1.0 / (i + 1) ** 2 for i in range(100)])
    exact = float(A.trace())
    plus = [float(trace.hutchpp(A.mv, 100, num_matvecs=30, generator=rng(s)).value) - exact
            for s in range(20)]  # fmt: skip
    plain = [float(trace.hutchinson(A.mv, 100, num_probes=30, generator=rng(s)).mean()) - exact
             for s in range(20)]  # fmt: skip
    assert torch.tensor(plus).square().mean() < 0.1 * torch.tensor(plain).square().mean()


def test_hutchpp_is_unbiased_and_its_stderr_is_of_the_right_size():
    A = with_spectrum(torch.linspace(-1, 2, 60))
    runs = [trace.hutchpp(A.mv, 60, num_matvecs=12, generator=rng(s)) for s in range(300)]
    values = torch.stack([r.value for r in runs])
    assert (values.mean() - A.trace()).abs() < 4 * values.std() / 300**0.5
    stated = torch.stack([r.stderr for r in runs]).square().mean().sqrt()
    assert 0.8 < float(stated / values.std()) < 1.25


def test_slq_weights_sum_to_one_per_probe_and_moments_are_exact():
    A = with_spectrum([5.0, 4.0, -2.0, *torch.linspace(0, 1, 50).tolist()])
    found = density.slq(A.mv, 53, num_probes=4, num_steps=8, generator=rng())
    torch.testing.assert_close(found.weights.sum(1), torch.ones(4, dtype=F64), rtol=0, atol=1e-12)
    assert (found.weights >= 0).all()
    # Gauss quadrature: v'A^p v / v'v is exact for p < 2 * num_steps.
    generator = rng()
    for probe in range(4):
        v = trace.rademacher((53,), generator=generator, dtype=F64, device="cpu")
        for power in range(8):
            moment = v @ torch.linalg.matrix_power(A, power) @ v / 53
            quadrature = (found.weights[probe] * found.nodes[probe] ** power).sum()
            torch.testing.assert_close(quadrature, moment, rtol=1e-9, atol=1e-9)


def test_slq_mean_of_nodes_estimates_the_trace():
    A = with_spectrum(torch.linspace(0, 2, 80))
    found = density.slq(A.mv, 80, num_probes=200, num_steps=5, generator=rng())
    means = (found.weights * found.nodes).sum(1) * 80
    assert (means.mean() - A.trace()).abs() < 4 * means.std() / 200**0.5
    assert found.num_matvecs == 200 * 5


def test_slq_survives_breakdown_without_inventing_mass():
    found = density.slq(lambda v: 3.0 * v, 10, num_probes=2, num_steps=6, generator=rng())
    torch.testing.assert_close(found.weights.sum(1), torch.ones(2, dtype=F64))
    torch.testing.assert_close((found.weights * found.nodes).sum(1), torch.full((2,), 3.0).double())
    assert torch.isfinite(found.nodes).all()


def test_impossible_numbers_are_refused():
    A = torch.eye(4, dtype=F64)
    with pytest.raises(LandscapeError, match="num_probes=0 asked"):
        trace.hutchinson(A.mv, 4, num_probes=0, generator=rng())
    with pytest.raises(LandscapeError, match="num_matvecs=5 asked; Hutch\\+\\+ needs at least 6"):
        trace.hutchpp(A.mv, 4, num_matvecs=5, generator=rng())
    with pytest.raises(LandscapeError, match="num_probes=1 and num_steps=0 asked"):
        density.slq(A.mv, 4, num_probes=1, num_steps=0, generator=rng())
