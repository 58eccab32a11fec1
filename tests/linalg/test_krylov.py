"""The basis of a Krylov space: orthonormal whatever its length and spectrum, and never copied."""

import pytest
import torch

from landscape import vectors
from landscape.linalg import lanczos
from landscape.linalg._basis import Basis
from landscape.linalg._krylov import Krylov, returning

F64 = torch.float64


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def space_of(diagonal, *, locked=None, dtype=F64, may_look=True, seed=0):
    diagonal = diagonal.to(dtype)
    locked = torch.empty((0, len(diagonal)), dtype=dtype) if locked is None else locked
    space = Krylov(
        returning(lambda v: diagonal * v), len(diagonal), locked=locked, scale=0.0,
        generator=rng(seed), dtype=dtype, device=torch.device("cpu"),
    )  # fmt: skip
    space.may_look = may_look
    return space


def worst(space, num_rows):
    """Largest entry of |QQᵀ - I|."""
    Q = torch.cat(list(space.basis.parts(0, num_rows)))
    return float((vectors.gram(Q) - torch.eye(num_rows, dtype=F64)).abs().max())


SPECTRA = {
    "outliers far away": torch.cat([torch.linspace(0, 1, 500), torch.tensor([50.0, 1e3, 1e5])]),
    "far from zero": 1000 + torch.linspace(-1, 1, 500),  # α is large beside β in every step
    "indefinite": torch.linspace(-3, 3, 500) ** 3,
    "clusters": torch.cat([torch.linspace(0, 1, 480), 5 + 1e-6 * torch.arange(20)]),
}


@pytest.mark.parametrize("dtype", [F64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("name", SPECTRA)
def test_the_basis_is_orthonormal_to_the_precision_of_its_rows(name, dtype):
    """After the recurrence's own two terms one projection keeps what two keep."""
    once, always = (space_of(SPECTRA[name], dtype=dtype, may_look=look) for look in (True, False))
    for _ in range(60):
        once.step()
        always.step()
    eps = torch.finfo(dtype).eps
    assert worst(always, 61) < 20 * eps
    assert worst(once, 61) < 20 * eps


def test_a_second_projection_is_made_only_where_the_first_took_more_than_it_left(monkeypatch):
    made = []
    plain = Basis.without_
    monkeypatch.setattr(
        Basis,
        "without_",
        lambda self, w, a, b, **how: made.append(b - a) or plain(self, w, a, b, **how),
    )
    space = space_of(SPECTRA["indefinite"])
    made.clear()
    for _ in range(40):
        space.step()
    whole = [rows for rows in made if rows > 2]
    assert len(whole) <= 42  # one of each step; the recurrence's own rows are at most two
    made.clear()
    inside = space.basis[3] + 1e-9 * torch.randn(len(SPECTRA["indefinite"]), generator=rng(1))
    left = space.orthogonal_(inside.clone())
    assert made == [40, 40]
    assert float(vectors.project(torch.cat(list(space.basis.parts(0, 40))), left).norm()) < 1e-14


def test_long_float32_rows_are_orthonormal_too():
    """A million elements, with outliers that float32 accumulation would leave in every row."""
    diagonal = torch.cat([torch.rand(10**6, generator=rng()), torch.tensor([30.0, 20.0, 10.0])])
    space = space_of(diagonal, dtype=torch.float32)
    for _ in range(12):
        space.step()
    assert worst(space, 13) < 1e-6


def test_growing_copies_no_row_and_locked_rows_are_read_in_place():
    locked = torch.eye(3, 900, dtype=F64)
    space = space_of(torch.linspace(0, 1, 900), locked=locked)
    for _ in range(10):
        space.step()
    places = [space.basis[row].data_ptr() for row in range(12)]
    for _ in range(60):
        space.step()
    assert [space.basis[row].data_ptr() for row in range(12)] == places
    assert places[0] == locked.data_ptr()
    assert len(space.basis) - (3 + 71) < 16
    assert worst(space, 74) < 1e-14


def test_long_float32_vectors_keep_the_digits_of_eigenvalues_and_certificates():
    """At two million elements; with float32 accumulation α, β and ‖v‖ would be off by 1e-5."""
    size = 2 * 10**6
    diagonal = torch.rand(size, generator=rng())
    diagonal[:3] = torch.tensor([5.0, 4.0, 3.0])
    pairs = lanczos.top(
        lambda v: diagonal * v, size, k=3, generator=rng(1), dtype=torch.float32, tolerance=1e-4,
        failure_probability=1.0,
    )  # fmt: skip
    right = torch.tensor([5.0, 4.0, 3.0], dtype=F64)
    torch.testing.assert_close(pairs.values.double(), right, rtol=2e-6, atol=0)
    assert (pairs.residual_norms <= 1e-4 * 5).all()
    lengths = vectors.row_norms(pairs.vectors)
    torch.testing.assert_close(lengths, torch.ones(3, dtype=F64), rtol=1e-6, atol=0)
