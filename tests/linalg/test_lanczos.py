import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from landscape.errors import LandscapeError
from landscape.linalg import lanczos

F64 = torch.float64


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def with_spectrum(values, seed=0):
    """A dense symmetric matrix with exactly these eigenvalues, up to rounding."""
    values = torch.as_tensor(values, dtype=F64)
    Q = torch.linalg.qr(torch.randn(len(values), len(values), generator=rng(seed), dtype=F64)).Q
    return (Q * values) @ Q.T


def bulk(n):
    return torch.linspace(-0.3, 1.0, n, dtype=F64).tolist()


SPECTRA = {
    "separated": [9.0, 7.0, 5.0, 4.0, 3.0, *bulk(80)],
    "clustered": [5.0 + 1e-5 * i for i in range(5)] + bulk(60),
    "multiple": [5.0] * 3 + [4.0] * 2 + bulk(60),
    "indefinite": [3.0, 2.5, -8.0, -6.0, *bulk(60)],
    "rank deficient": [4.0, 3.0] + [0.0] * 60,
    "negative definite": [-1.0 - i for i in range(40)],
    "identity": [1.0] * 30,
    "zero": [0.0] * 30,
    "tiny size": [3.0, -1.0, 2.0, 0.5, 0.4, 0.1],
}


def expected(values, k, which):
    order = sorted(values, reverse=True)
    if which == "largest":
        return order[:k]
    if which == "smallest":
        return order[-k:]
    if which == "both":
        upper = math.ceil(k / 2)
        return order[:upper] + order[len(order) - (k - upper) :]
    return sorted(sorted(values, key=abs, reverse=True)[:k], reverse=True)


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_both_ends_have_the_larger_half_above_and_few_products_prove_it(k):
    values = [9.0, 7.0, *torch.linspace(-0.3, 1.0, 300, dtype=F64).tolist(), -5.0, -8.0]
    A = with_spectrum(values)
    pairs = lanczos.top(A.mv, len(values), k=k, which="both", generator=rng(1))
    torch.testing.assert_close(
        pairs.values.tolist(), expected(values, k, "both"), atol=1e-6, rtol=0
    )
    assert pairs.complete
    assert pairs.converged.all()
    assert pairs.num_matvecs < len(values) / 2


@pytest.mark.parametrize("which", lanczos.WHICH)
@pytest.mark.parametrize("name", SPECTRA)
def test_prescribed_spectrum_is_found_with_its_multiplicities(name, which):
    values = SPECTRA[name]
    A = with_spectrum(values)
    pairs = lanczos.top(A.mv, len(values), k=5, which=which, generator=rng(1))
    scale = max(abs(v) for v in values)
    assert pairs.converged.all()
    assert pairs.complete
    torch.testing.assert_close(
        pairs.values, torch.tensor(expected(values, 5, which), dtype=F64),
        rtol=0, atol=1e-6 * scale + 1e-14,
    )  # fmt: skip


@pytest.mark.parametrize("scale", [1e-12, 1e-6, 1.0, 1e6, 1e12])
def test_the_answer_scales_with_the_operator(scale):
    A = with_spectrum(SPECTRA["multiple"])
    plain = lanczos.top(A.mv, len(A), k=5, generator=rng(1))
    scaled = lanczos.top(lambda v: scale * (A @ v), len(A), k=5, generator=rng(1))
    torch.testing.assert_close(scaled.values / scale, plain.values, rtol=1e-9, atol=0)
    assert scaled.num_matvecs == plain.num_matvecs
    assert scaled.converged.all()


@pytest.mark.parametrize("name", SPECTRA)
def test_an_exact_eigenvalue_lies_within_each_residual(name):
    A = with_spectrum(SPECTRA[name])
    exact = torch.linalg.eigvalsh(A)
    for limit in (5, 9, 300):
        pairs = lanczos.top(A.mv, len(A), k=5, generator=rng(2), max_matvecs=limit)
        nearest = (pairs.values[:, None] - exact[None]).abs().min(1).values
        assert (nearest <= pairs.residual_norms + 1e-13 * max(1.0, float(exact.abs().max()))).all()


def test_vectors_are_orthonormal_and_residuals_are_those_of_the_vectors():
    A = with_spectrum(SPECTRA["clustered"])
    pairs = lanczos.top(A.mv, len(A), k=5, generator=rng(3))
    V = pairs.vectors
    torch.testing.assert_close(V @ V.T, torch.eye(5, dtype=F64), rtol=0, atol=1e-13)
    direct = torch.linalg.vector_norm(V @ A - pairs.values[:, None] * V, dim=1)
    torch.testing.assert_close(direct, pairs.residual_norms, rtol=0, atol=1e-13)


def test_every_product_is_counted():
    A, calls = with_spectrum(SPECTRA["separated"]), []

    def matvec(v):
        calls.append(1)
        return A @ v

    pairs = lanczos.top(matvec, len(A), k=5, generator=rng(0))
    assert pairs.num_matvecs == len(calls)


def test_without_the_search_fewer_products_are_made():
    A = with_spectrum(SPECTRA["separated"])
    full = lanczos.top(A.mv, len(A), k=5, generator=rng(0))
    quick = lanczos.top(A.mv, len(A), k=5, generator=rng(0), failure_probability=1.0)
    assert quick.num_matvecs < full.num_matvecs
    torch.testing.assert_close(quick.values, full.values, rtol=1e-9, atol=0)


def test_a_spent_budget_is_said_not_hidden():
    A = with_spectrum(bulk(300))
    pairs = lanczos.top(A.mv, 300, k=5, generator=rng(0), max_matvecs=8)
    assert not pairs.converged.any()
    assert not pairs.complete
    assert pairs.num_matvecs == 8 + 5


def test_same_seed_same_answer():
    A = with_spectrum(SPECTRA["separated"])
    first, second = (lanczos.top(A.mv, len(A), k=3, generator=rng(5)) for _ in range(2))
    assert torch.equal(first.vectors, second.vectors)


def test_a_starting_vector_inside_an_invariant_subspace_does_not_trap():
    A = torch.diag(torch.tensor([5.0, 4.0, 3.0, 2.0, 1.0, 0.5], dtype=F64))
    start = torch.tensor([0.0, 0.0, 0.0, 0.0, 1.0, 1.0], dtype=F64)
    pairs = lanczos.top(A.mv, 6, k=3, generator=rng(0), start=start)
    torch.testing.assert_close(pairs.values, torch.tensor([5.0, 4.0, 3.0], dtype=F64))


def test_float32_reaches_its_own_tolerance():
    A = with_spectrum(SPECTRA["separated"]).float()
    pairs = lanczos.top(A.mv, len(A), k=5, generator=rng(0), dtype=torch.float32)
    assert pairs.converged.all()
    torch.testing.assert_close(pairs.values, torch.tensor([9.0, 7, 5, 4, 3]), rtol=1e-5, atol=0)


@settings(max_examples=25, deadline=None)
@given(
    values=st.lists(st.integers(-4, 4), min_size=4, max_size=24),
    k=st.integers(1, 3),
    which=st.sampled_from(lanczos.WHICH),
    seed=st.integers(0, 9),
)
def test_integer_spectra_with_any_multiplicities(values, k, which, seed):
    values = [float(v) for v in values]
    A = with_spectrum(values, seed)
    pairs = lanczos.top(A.mv, len(values), k=k, which=which, generator=rng(seed))
    found, wanted = pairs.values, torch.tensor(expected(values, k, which), dtype=F64)
    if which == "magnitude":  # the sign of a tie in |λ| is free
        found, wanted = found.abs().sort().values, wanted.abs().sort().values
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)
    assert pairs.converged.all()


@pytest.mark.parametrize("which", lanczos.WHICH)
@pytest.mark.parametrize(
    "values", [[3.0], [-2.0], [0.0], [2.0, -1.0], [1.0, 1.0], [0.0, 0.0], [3.0, 3.0, -1.0]]
)
def test_every_eigenvalue_of_a_small_operator_can_be_asked(values, which):
    A = with_spectrum(values, 3)
    pairs = lanczos.top(A.mv, len(values), k=len(values), which=which, generator=rng(0))
    wanted = torch.tensor(sorted(values, reverse=True), dtype=F64)
    torch.testing.assert_close(pairs.values, wanted, rtol=0, atol=1e-12)
    assert pairs.converged.all()
    assert pairs.complete
    assert pairs.failure_probability == 0


def test_the_one_product_of_one_parameter_is_its_eigenvalue():
    pairs = lanczos.top(lambda v: 5 * v, 1, k=1, generator=rng(0))
    assert pairs.values.tolist() == [5.0]
    assert pairs.residual_norms.tolist() == [0.0]
    with pytest.raises(LandscapeError, match=r"k=2 .* k must be at most 1"):
        lanczos.top(lambda v: 5 * v, 1, k=2, generator=rng(0))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 11}, "k=11 eigenpairs asked of an operator of size P=10, .* k must be at most 10"),
        ({"k": 0}, "k=0 eigenpairs asked"),
        ({"k": 2.5}, "k=2.5 eigenpairs asked; ask for a whole number"),
        (
            {"k": 5, "max_matvecs": 3},
            "k=5 eigenpairs asked of at most 3 products",
        ),
        ({"k": 2, "which": "LA"}, "possible are largest, smallest, both, magnitude"),
        ({"k": 2, "tolerance": -1.0}, "tolerance=-1.0"),
        ({"k": 2, "failure_probability": 0.0}, "failure_probability=0.0"),
        ({"k": 2, "sampled": True}, "asks for one product with a certificate"),
    ],
)
def test_impossible_requests_are_refused(options, message):
    with pytest.raises(LandscapeError, match=message):
        lanczos.top(torch.eye(10, dtype=F64).mv, 10, generator=rng(), **options)


def test_a_product_that_is_not_finite_is_refused():
    with pytest.raises(LandscapeError, match="product number 1 is not finite"):
        lanczos.top(lambda v: v / 0.0, 10, k=2, generator=rng())


def test_a_wrong_starting_vector_is_refused():
    A = torch.eye(10, dtype=F64)
    with pytest.raises(LandscapeError, match="start is zero"):
        lanczos.top(A.mv, 10, k=2, generator=rng(), start=torch.zeros(10))
    with pytest.raises(LandscapeError, match=r"start has shape \(3,\)"):
        lanczos.top(A.mv, 10, k=2, generator=rng(), start=torch.ones(3))


def test_a_product_may_write_what_it_is_given_and_keep_what_it_returns():
    H, kept = with_spectrum([5.0, 3.0, 2.0, 1.0, 0.5, -1.0]), []

    def careless(v):
        product = H @ v
        v.zero_()
        kept.append((product, product.clone()))
        return product

    found = lanczos.top(careless, 6, k=2, generator=rng(), certificate=lambda V: V @ H)
    assert torch.allclose(found.values, torch.tensor([5.0, 3.0], dtype=F64))
    assert all(torch.equal(now, then) for now, then in kept)


@pytest.mark.parametrize("shape", [(), (1, 6), (3,)])
def test_an_operator_that_returns_another_shape_is_refused(shape):
    with pytest.raises(LandscapeError, match="returned a tensor of shape"):
        lanczos.top(lambda _v: torch.ones(shape, dtype=F64), 6, k=2, generator=rng())


def test_an_operator_that_writes_its_product_gives_the_same_pairs():
    H = with_spectrum([5.0, 3.0, 2.0, 1.0, 0.5, -1.0])

    def into(v, out):
        return torch.mv(H, v, out=out)

    made = [
        lanczos.top(f, 6, k=2, generator=rng(), into=i) for f, i in ((H.mv, False), (into, True))
    ]
    assert torch.equal(made[0].values, made[1].values)
    assert torch.equal(made[0].vectors, made[1].vectors)
