"""The claims of an eigenvalue search: inclusion always, completeness with its probability."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from landscape.errors import Interrupted, LandscapeError
from landscape.linalg import lanczos
from landscape.linalg._complement import Complement, Union
from landscape.linalg._krylov import Krylov, returning
from landscape.linalg._search import Search

F64 = torch.float64


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def with_spectrum(values, seed=0):
    values = torch.as_tensor(values, dtype=F64)
    Q = torch.linalg.qr(torch.randn(len(values), len(values), generator=rng(seed), dtype=F64)).Q
    return (Q * values) @ Q.T


def test_the_component_along_an_eigenvector_obeys_the_recurrence():
    """(u·q_1) Π_j (λ - θ_j) = β_1⋯β_m (u·q_{m+1}), the identity behind the search's stop."""
    values = [*torch.linspace(-1, 1, 40, dtype=F64).tolist(), 1.2]
    A = with_spectrum(values)
    exact, U = torch.linalg.eigh(A)
    none = torch.empty((0, 41), dtype=F64)
    device = torch.device("cpu")
    space = Krylov(
        returning(A.mv), 41, locked=none, scale=0.0, generator=rng(1), dtype=F64, device=device
    )
    first = space.basis[0].clone()
    for _ in range(8):
        space.step()
    ritz = space.settle()
    left = (U[:, -1] @ first) * (exact[-1] - ritz.values).prod()
    right = ritz.log_betas.exp() * (U[:, -1] @ space.basis[8])
    torch.testing.assert_close(left, right, rtol=1e-10, atol=0)


def test_a_hidden_eigenvalue_is_missed_less_often_than_said():
    """Planted just above the bulk, where few steps do not show it."""
    values = [3.0, *torch.linspace(0, 1, 199, dtype=F64).tolist()]
    values[1] = 1.02
    A, missed, wrong = torch.diag(torch.tensor(values, dtype=F64)), 0, 0
    for seed in range(200):
        pairs = lanczos.top(
            A.mv, 200, k=2, generator=rng(seed), failure_probability=0.2, tolerance=0.02
        )
        assert pairs.failure_probability <= 0.2
        missed += bool(pairs.complete) and float(pairs.values[1]) < 1.02 - 0.02 * 3
        wrong += not pairs.complete
    assert wrong == 0
    assert missed <= 0.2 * 200


@pytest.mark.parametrize("delta", [0.1, 1e-3, 1e-6])
def test_certainty_costs_products_and_is_reported(delta):
    A = with_spectrum([4.0, 3.0, *torch.linspace(0, 1, 98, dtype=F64).tolist()])
    pairs = lanczos.top(A.mv, 100, k=2, generator=rng(0), failure_probability=delta)
    assert 0 < pairs.failure_probability <= delta
    assert pairs.restarts == 1
    assert pairs.search_matvecs > 0


def test_copies_of_an_eigenvalue_are_found_by_starting_again():
    A = with_spectrum([5.0] * 3 + [0.0] * 20)
    pairs = lanczos.top(A.mv, len(A), k=3, generator=rng(0))
    assert pairs.restarts >= 1
    torch.testing.assert_close(pairs.values, torch.full((3,), 5.0, dtype=F64))


def test_without_a_search_no_probability_is_claimed():
    A = with_spectrum([4.0, 3.0, 1.0, 0.0])
    pairs = lanczos.top(A.mv, 4, k=2, generator=rng(0), failure_probability=1.0)
    assert math.isnan(pairs.failure_probability)
    assert pairs.restarts == pairs.search_matvecs == 0


def test_residuals_are_those_of_the_certificate():
    """An inexact product of norm error e leaves residuals of at least what it got wrong."""
    A = with_spectrum([9.0, 7.0, 5.0, *torch.linspace(0, 1, 60, dtype=F64).tolist()])
    off = 1e-3 * with_spectrum(torch.linspace(-1, 1, len(A), dtype=F64), seed=5)
    pairs = lanczos.top(
        (A + off).mv, len(A), k=3, generator=rng(0), certificate=lambda V: V @ A, tolerance=1e-6
    )
    exact = torch.linalg.eigvalsh(A).flip(0)[:3]
    assert ((pairs.values - exact).abs() <= pairs.residual_norms).all()
    assert (pairs.residual_norms > 1e-5).all()
    assert not pairs.converged.any()


@settings(max_examples=340, deadline=None)
@given(
    values=st.lists(st.floats(-1, 1, allow_subnormal=False), min_size=4, max_size=14),
    copies=st.integers(1, 5),
    scale=st.sampled_from([1e-12, 1.0, 1e12]),
    products=st.integers(4, 40),
    seed=st.integers(0, 10_000),
)
def test_inclusion_holds_converged_or_not_one_value_at_a_time_and_together(
    values, copies, scale, products, seed
):
    """Three values each: above 1000 intervals; the pairing of all three is Parlett's 11.5.1."""
    values = [scale * v for v in values + [max(values)] * copies]
    A = with_spectrum(values, seed)
    exact = torch.linalg.eigvalsh(A)
    pairs = lanczos.top(A.mv, len(A), k=3, generator=rng(seed), max_matvecs=products)
    rounding = 100 * torch.finfo(F64).eps * scale
    near = (pairs.values[:, None] - exact[None]).abs()
    assert (near.min(1).values <= pairs.residual_norms + rounding).all()
    inside = near <= pairs.subspace_bound + rounding
    columns = [set(row.nonzero()[:, 0].tolist()) for row in inside]
    assert any(
        len({a, b, c}) == 3 for a in columns[0] for b in columns[1] for c in columns[2]
    )  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(
    copies=st.integers(1, 5),
    top=st.floats(0.5, 2.0),
    bulk=st.lists(st.floats(-0.4, 0.4, allow_subnormal=False), min_size=8, max_size=30),
    seed=st.integers(0, 10_000),
)
def test_completeness_with_multiplicities_up_to_five(copies, top, bulk, seed):
    A = with_spectrum([top] * copies + bulk, seed)
    exact = torch.linalg.eigvalsh(A).flip(0)[:5]
    pairs = lanczos.top(A.mv, len(A), k=5, generator=rng(seed))
    torch.testing.assert_close(pairs.values, exact, rtol=0, atol=1e-5 * top)
    assert pairs.complete


@pytest.mark.parametrize("which", lanczos.WHICH)
@pytest.mark.parametrize("seed", range(4))
def test_a_bounded_basis_restarts_thick_and_finds_the_same(which, seed):
    """Wu & Simon 2000; no more than max_basis + 1 vectors beside those that are found."""
    bulk = torch.linspace(-2, 2, 150, dtype=F64).tolist()
    A = with_spectrum([2.6, 2.4, 2.2, -2.3, -2.5, -2.7, *bulk], seed)
    k = 3 if which in ("largest", "smallest") else 5
    free = lanczos.top(A.mv, len(A), k=k, which=which, generator=rng(seed), tolerance=1e-8)
    bound = lanczos.top(
        A.mv, len(A), k=k, which=which, generator=rng(seed), max_basis=20, max_matvecs=2000,
        failure_probability=1.0, tolerance=1e-8,
    )  # fmt: skip
    torch.testing.assert_close(bound.values, free.values, rtol=1e-9, atol=1e-9)
    assert (bound.residual_norms <= 1e-8 * 2.8).all()


def test_a_compressed_space_holds_few_vectors_and_its_projection_is_exact():
    A = with_spectrum([2.6, 2.4, *torch.linspace(-2, 2, 150, dtype=F64).tolist()])
    none, device = torch.empty((0, len(A)), dtype=F64), torch.device("cpu")
    space = Krylov(returning(A.mv), len(A), locked=none, scale=0.0, generator=rng(1), dtype=F64,
                   device=device, max_basis=12)  # fmt: skip
    for _ in range(3):
        while space.num_steps < 12:
            space.step()
        ritz = space.settle()
        Q = torch.cat(list(space.basis.parts(0, 12)))
        torch.testing.assert_close(Q @ Q.T, torch.eye(12, dtype=F64), rtol=0, atol=1e-13)
        torch.testing.assert_close(
            torch.linalg.eigvalsh(Q @ A @ Q.T), ritz.values, rtol=0, atol=1e-12
        )
        V = space.combine(ritz, torch.arange(12))
        exact = (V @ A - ritz.values[:, None] * V).norm(dim=1)
        torch.testing.assert_close(exact, ritz.residuals, rtol=0, atol=1e-12)
        space.compress(ritz, ritz.values.argsort(descending=True)[:6])
    assert len(space.basis) == 13


def test_a_bounded_search_may_be_complete_too():
    A = with_spectrum([9.0, 7.0, 5.0, *torch.linspace(-0.3, 1.0, 80, dtype=F64).tolist()])
    pairs = lanczos.top(A.mv, len(A), k=3, generator=rng(0), max_basis=16)
    assert pairs.converged.all()
    torch.testing.assert_close(pairs.values, torch.tensor([9.0, 7.0, 5.0], dtype=F64))


def test_a_basis_without_room_is_refused():
    with pytest.raises(LandscapeError, match=r"max_basis=8 asked for k=3; .* at least 10"):
        lanczos.top(torch.eye(30, dtype=F64).mv, 30, k=3, generator=rng(), max_basis=8)


def test_a_space_whose_complement_stays_below_decides_how_many_eigenvalues_pass():
    """Haynsworth's inertia: n₊(H - x) = n₊(Θ - x) if λ_max of the rest is below the shifted bar."""
    decided = 0
    for seed in range(60):
        values = [3.0, 2.6, 2.5, 2.0, *torch.linspace(-1, 1, 20, dtype=F64).tolist()]
        A = with_spectrum(values, seed)
        none = torch.empty((0, 24), dtype=F64)
        space = Krylov(returning(A.mv), 24, locked=none, scale=3.0, generator=rng(seed), dtype=F64,
                       device=torch.device("cpu"))  # fmt: skip
        for _ in range(10):
            space.step()
        ritz = space.settle()
        Q = torch.linalg.qr(torch.cat(list(space.basis.parts(0, 10))).T, mode="complete").Q[:, 10:]
        rest = torch.linalg.eigvalsh(Q.T @ A @ Q)[-1]
        search = Search(
            A.mv, 24, 3, "largest", 0.1, 100, 0.01, rng(), F64, torch.device("cpu"), None, False,
            float("inf"), None, torch.zeros(24, dtype=F64),
        )  # fmt: skip
        search.scale = 3.0
        bar = float(ritz.values[-3])
        below = search.asked(1, bar, ritz)
        below = below.at - below.pull
        assert below <= bar + 0.3 + 1e-12
        if rest < below:
            decided += 1
            exact = torch.linalg.eigvalsh(A)
            assert any(
                int((exact > bar + s * 0.3).sum()) == int((ritz.values > bar + s * 0.3).sum())
                for s in (1.0, 0.75, 0.5, 0.25)
            )
    assert decided > 10


def test_few_products_seal_a_space_that_holds_all_that_is_large():
    """Fewer than a search in the complement of the pairs alone would take (nine before)."""
    A = with_spectrum([9.0, 7.0, 5.0, 4.5, 4.0, *torch.linspace(0, 0.5, 295, dtype=F64).tolist()])
    pairs = lanczos.top(A.mv, len(A), k=3, generator=rng(0), tolerance=1e-3)
    assert pairs.complete
    assert pairs.restarts == 1
    assert pairs.search_matvecs <= 6


@pytest.mark.parametrize("seed", range(5))
def test_the_complement_lifted_by_its_coupling_decides_the_count_exactly(seed):
    """n₊(H - x) = n₊(T - x) + n₊(C + γ qqᵀ - x), γ = Σ r_i²/(x - θ_i): neither more nor less."""
    A = with_spectrum([3.0, 2.6, 2.5, 2.0, *torch.linspace(-1, 1, 20, dtype=F64).tolist()], seed)
    none = torch.empty((0, 24), dtype=F64)
    space = Krylov(returning(A.mv), 24, locked=none, scale=3.0, generator=rng(seed), dtype=F64,
                   device=torch.device("cpu"))  # fmt: skip
    for _ in range(6):
        space.step()
    ritz = space.settle()
    Q = torch.linalg.qr(torch.cat(list(space.basis.parts(0, 6))).T, mode="complete").Q[:, 6:]
    exact = torch.linalg.eigvalsh(A)
    for x in (0.7, 1.5, 2.3, 2.55, 2.8):
        pull = float((ritz.residuals**2 / (x - ritz.values)).sum())
        q = Q.T @ space.next
        rest = torch.linalg.eigvalsh(Q.T @ A @ Q + pull * torch.outer(q, q))
        more = int((rest > x).sum())
        assert int((exact > x).sum()) == int((ritz.values > x).sum()) + more
        seen = Complement(space, pull)
        for _ in range(18):
            seen.step()
        found = seen.settle().values
        torch.testing.assert_close(found.max(), rest.max(), rtol=1e-8, atol=0)


def test_a_complement_needs_no_basis_of_its_own():
    """Its coefficients bound the start's components without orthogonal vectors, to the end."""
    A = with_spectrum([9.0, 7.0, 5.0, *torch.linspace(0, 0.5, 97, dtype=F64).tolist()])
    space = Krylov(returning(A.mv), 100, locked=torch.empty((0, 100), dtype=F64), scale=9.0,
                   generator=rng(1), dtype=F64, device=torch.device("cpu"))  # fmt: skip
    for _ in range(8):
        space.step()
    rows, ritz = len(space.basis), space.settle()
    rest, x = Complement(space, 0.0), 4.0
    start = rest.v.clone()
    for _ in range(60):
        rest.step()
    assert len(space.basis) == rows
    seen = rest.settle()
    Q = torch.linalg.qr(torch.cat(list(space.basis.parts(0, 8))).T, mode="complete").Q[:, 8:]
    values, U = torch.linalg.eigh(Q.T @ A @ Q)
    bound = float((seen.log_betas - (x - seen.values).log().sum()).exp())
    planted = Q @ U[:, -1]  # had it the eigenvalue x, its component would be below the bound
    assert bound < 1e-12 < abs(float(planted @ start))
    assert values[-1] < x < ritz.values[-3]


@pytest.mark.parametrize("which", ["largest", "smallest"])
def test_a_near_neighbour_of_the_last_is_settled_by_one_search(which):
    """An eigenvalue just below the k-th, unconverged in the space, once cost a second search."""
    sign = 1 if which == "largest" else -1
    top = [1.0, 0.6, 0.35, 0.21, 0.2, 0.19, 0.18]
    A = with_spectrum([sign * v for v in [*top, *torch.linspace(-0.05, 0.1, 393).tolist()]])
    pairs = lanczos.top(A.mv, len(A), k=5, which=which, generator=rng(0), tolerance=1e-3)
    assert pairs.complete
    assert pairs.restarts == 1
    exact = sorted((sign * v for v in top[:5]), reverse=True)
    torch.testing.assert_close(pairs.values, torch.tensor(exact, dtype=F64), rtol=0, atol=1e-5)


@pytest.mark.parametrize("pull", [0.0, 0.3, -0.2])
def test_a_space_and_its_complement_together_are_one_projection(pull):
    A = with_spectrum([3.0, 2.6, 2.5, 2.0, *torch.linspace(-1, 1, 40, dtype=F64).tolist()])
    space = Krylov(returning(A.mv), 44, locked=torch.empty((0, 44), dtype=F64), scale=3.0,
                   generator=rng(2), dtype=F64, device=torch.device("cpu"))  # fmt: skip
    for _ in range(7):
        space.step()
    ritz, rest = space.settle(), Complement(space, pull)
    for _ in range(5):
        rest.step()
    union = Union(rest, rest.settle(), ritz)
    both = torch.cat([*space.basis.parts(0, 7), *rest.kept.parts(0, 5)])
    torch.testing.assert_close(both @ both.T, torch.eye(12, dtype=F64), rtol=0, atol=1e-13)
    inside = torch.linalg.eigvalsh(both @ A @ both.T)
    torch.testing.assert_close(union.ritz.values, inside, rtol=0, atol=1e-12)
    every = torch.arange(12)
    V = union.combine(union.ritz, every)
    claimed = inside[:, None] * V + union.tails(union.ritz, every) @ union.edges
    torch.testing.assert_close(V @ A, claimed, rtol=0, atol=1e-12)
    exact = (V @ A - inside[:, None] * V).norm(dim=1)
    assert (exact <= union.ritz.residuals + 1e-12).all()
    assert (union.ritz.residuals <= 2 * exact + 1e-12).all()


@pytest.mark.parametrize("which", ["largest", "smallest"])
@pytest.mark.parametrize("sampled", [False, True])
def test_an_eigenvalue_that_the_start_hardly_holds_joins_the_answer_in_one_search(which, sampled):
    """The fifth is not seen by the space, which takes the sixth for it: 14 products, 31 before."""
    sign = 1 if which == "largest" else -1
    top, size = [12.5, 8.0, 5.5, 3.4, 2.13, 2.07], 20_000
    A = sign * torch.cat([torch.tensor(top, dtype=F64), torch.linspace(-1.3, 1, size - 6).double()])
    start = torch.randn(size, generator=rng(0), dtype=F64)
    start[4] *= 1e-3
    pairs = lanczos.top(
        lambda v: A * v, size, k=5, which=which, generator=rng(1), tolerance=1e-3, start=start,
        certificate=lambda V: A * V, sampled=sampled,
    )  # fmt: skip
    assert pairs.converged.all()
    assert pairs.restarts == 1
    assert pairs.search_matvecs <= 20
    exact = torch.tensor(sorted((sign * v for v in top[:5]), reverse=True), dtype=F64)
    torch.testing.assert_close(pairs.values, exact, rtol=0, atol=1e-4)
    R = pairs.vectors * A - pairs.values[:, None] * pairs.vectors
    torch.testing.assert_close(R.norm(dim=1), pairs.residual_norms, rtol=1e-6, atol=1e-12)


def test_a_bounded_basis_is_sealed_from_what_it_keeps():
    A = with_spectrum([9.0, 7.0, 5.0, *torch.linspace(0, 0.5, 297, dtype=F64).tolist()])
    pairs = lanczos.top(A.mv, len(A), k=3, generator=rng(0), tolerance=1e-3, max_basis=14)
    assert pairs.complete
    assert pairs.restarts == 1


@pytest.mark.parametrize("max_basis", [None, 12])
def test_what_was_found_is_kept_where_the_search_is_interrupted(max_basis):
    A = with_spectrum([9.0, 7.0, 5.0, *torch.linspace(-1, 1, 60).tolist()])
    options = {"k": 3, "max_basis": max_basis, "tolerance": 1e-6}
    whole, calls = lanczos.top(A.mv, len(A), generator=rng(0), **options), [0]
    last = whole.num_matvecs - whole.proof_matvecs - whole.search_matvecs + 1

    def stopped(v):
        calls[0] += 1
        if calls[0] > last:
            raise KeyboardInterrupt
        return A @ v

    with pytest.raises(Interrupted) as stop:
        lanczos.top(stopped, len(A), generator=rng(0), **options)
    assert torch.allclose(stop.value.partial.values, whole.values)
    assert not stop.value.partial.complete
