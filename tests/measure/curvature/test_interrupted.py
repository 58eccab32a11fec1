"""Ctrl-C keeps what is known and marks it; memory that does not suffice is an error in words."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from landscape import measure, results
from landscape.errors import Interrupted
from landscape.linalg import lanczos
from tests.measure_problems import quadratic

SPECTRUM = [9.0, 7.0, 5.0, 3.0, *np.linspace(-0.2, 0.6, 60)]


class Stopping:
    """A product that is interrupted at its n-th call."""

    def __init__(self, product, calls):
        self.product, self.left = product, calls

    def __call__(self, v, *out):
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return self.product(v, *out)


@pytest.fixture
def stopped(monkeypatch):
    """A risk whose Hessian products are interrupted after a number of calls."""

    def make(calls):
        risk, _, _ = quadratic(SPECTRUM)
        inner = Stopping(risk.linearized_hvp(risk.theta), calls)
        monkeypatch.setattr(type(risk), "linearized_hvp", lambda *_: inner)
        return risk

    return make


@pytest.mark.parametrize("calls", [12, 15])
def test_eigenvalues_known_by_then_are_handed_out_and_nothing_is_claimed(stopped, calls):
    risk = stopped(calls)
    with pytest.raises(KeyboardInterrupt) as caught:
        measure.top_eigenvalues(risk, risk.theta, k=2, seed=0, tolerance=1e-12, max_hvps=400)
    ds = caught.value.partial
    assert isinstance(caught.value, Interrupted)
    assert results.provenance(ds)["interrupted"] is True
    assert not ds["converged"].any()
    assert not bool(ds["complete"])
    assert np.isnan(ds["bound"]).all()
    assert np.isnan(ds["subspace_bound"])
    assert int(ds["num_hvps"]) == calls
    assert int(ds["certificate_hvps"]) == 0
    # Ritz values of a dozen steps lie this close to the separated top.
    np.testing.assert_allclose(ds["eigenvalue"], [9, 7], rtol=1e-3)


def test_before_the_first_step_there_is_nothing(stopped):
    risk = stopped(0)
    with pytest.raises(Interrupted) as caught:
        measure.top_eigenvalues(risk, risk.theta, k=2, seed=0)
    assert caught.value.partial is None


def test_one_step_gives_one_pair(stopped):
    risk = stopped(1)
    with pytest.raises(Interrupted) as caught:
        measure.top_eigenvalues(risk, risk.theta, k=2, seed=0)
    assert caught.value.partial.sizes["rank"] == 1


def test_a_search_and_a_proof_keep_the_pairs_found_before():
    A = torch.diag(torch.tensor(SPECTRUM, dtype=torch.float64))
    whole = lanczos.top(A.mv, len(A), k=3, generator=torch.Generator().manual_seed(0))
    first = whole.num_matvecs - whole.search_matvecs - 3
    for calls in (first + 1, whole.num_matvecs - 1):
        with pytest.raises(Interrupted) as caught:
            lanczos.top(
                Stopping(A.mv, calls), len(A), k=3, generator=torch.Generator().manual_seed(0)
            )
        part = caught.value.partial
        torch.testing.assert_close(part.values, whole.values, rtol=1e-6, atol=0)
        assert part.interrupted
        assert not part.converged.any()


def test_traces_and_densities_keep_whole_probes(stopped):
    risk = stopped(7)
    with pytest.raises(Interrupted) as caught:
        measure.hessian_trace(risk, risk.theta, num_probes=20, seed=0)
    part, risk = caught.value.partial, quadratic(SPECTRUM)[0]
    assert part.sizes["probe"] == 7
    assert results.provenance(part)["interrupted"] is True


def test_the_probes_so_far_are_the_first_of_the_whole(monkeypatch):
    risk, _, _ = quadratic(SPECTRUM)
    whole = measure.hessian_trace(risk, risk.theta, num_probes=5, seed=0)
    density = measure.spectral_density(risk, risk.theta, num_probes=3, num_nodes=4, seed=0)
    product = risk.linearized_hvp(risk.theta)
    for calls, name, ask in (
        (3, "trace_sample", lambda: measure.hessian_trace(risk, risk.theta, num_probes=5, seed=0)),
        (
            9,
            "ritz_value",
            lambda: measure.spectral_density(
                risk, risk.theta, num_probes=3, num_nodes=4, shifts=[0.1], seed=0
            ),
        ),
        (1, None, lambda: measure.hessian_trace(risk, risk.theta, num_probes=5, seed=0)),
        (2, None, lambda: measure.spectral_density(risk, risk.theta, num_nodes=4, seed=0)),
    ):
        monkeypatch.setattr(type(risk), "linearized_hvp", lambda *_, n=calls: Stopping(product, n))
        with pytest.raises(Interrupted) as caught:
            ask()
        part = caught.value.partial
        if name is None:
            assert part is None
            continue
        known = (whole if name == "trace_sample" else density)[name].values
        np.testing.assert_array_equal(part[name], known[: part.sizes["probe"]])
        assert part.sizes["probe"] == (3 if name == "trace_sample" else 2)
        assert results.provenance(part)["interrupted"] is True


TOO_MUCH = """
import resource, torch
from torch import nn
from landscape import EmpiricalRisk, LandscapeError, measure
torch.set_num_threads(1)
def made(side):
    layers = [nn.Conv2d(1, 64, 3, padding=1), nn.Tanh(), nn.Flatten(1), nn.Linear(64 * side**2, 2)]
    data = (torch.randn(2, 1, side, side), torch.tensor([0, 1]))
    return EmpiricalRisk(nn.Sequential(*layers), nn.CrossEntropyLoss(), data)
small, risk = made(4), made(128)
small.hvp(small.theta, small.theta)  # imports what it needs
theta = risk.theta
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 20 * 2**20, resource.RLIM_INFINITY))
try:
    risk.hvp(theta, theta)
except LandscapeError as error:
    print("said:", error)
"""


@pytest.mark.thorough
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="sizes are read from /proc")
def test_too_little_memory_for_one_product_is_said():
    done = subprocess.run(
        [sys.executable, "-c", TOO_MUCH], capture_output=True, text=True, check=False,
        cwd=Path(__file__).parents[3],
    )  # fmt: skip
    assert "said: cpu ran out of memory" in done.stdout, done.stderr[-2000:]
    assert "One example at least has to fit" in done.stdout
