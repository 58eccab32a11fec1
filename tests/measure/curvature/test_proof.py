"""Both claims of `top_eigenvalues`, from the model to the number: closed forms, and counted cases.

    pytest -m slow -s tests/measure/curvature/test_proof.py

prints in how many of how many drawn cases each claim held.
"""

from collections import Counter

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from landscape import EmpiricalRisk, LandscapeError, measure
from landscape.linalg import lanczos
from tests.linalg.test_lanczos import with_spectrum
from tests.measure_problems import quadratic
from tests.risk.test_closed_forms import ROWS, Scalar, half_square, identity_loss
from tests.risk_problems import F64, randn, rng, settled


def proven(risk, theta, exact, *, k, **options):
    """The k top eigenvalues, each within its bound of the exact one of its rank."""
    ds = measure.top_eigenvalues(risk, theta, k=k, seed=0, **options)
    exact = torch.as_tensor(exact, dtype=F64).sort(descending=True).values[:k].numpy()
    assert ds["converged"].all()
    assert (np.abs(ds["eigenvalue"] - exact) <= ds["bound"] + 1e-6 * abs(exact[0])).all()
    np.testing.assert_allclose(ds["eigenvalue"], exact, rtol=0, atol=2e-6 * abs(exact[0]))
    return ds


# --- closed forms ------------------------------------------------------------------------------


def test_linear_regression():
    """H = XᵀX/n whatever w."""
    X, y = randn(30, 6), randn(30, seed=3)
    risk = EmpiricalRisk(settled(nn.Linear(6, 1, bias=False)), half_square, (X, y))
    exact = torch.linalg.eigvalsh(X.T @ X / 30)
    proven(risk, risk.theta, exact, k=5)
    proven(risk, 7 * risk.theta, exact, k=5)


def test_softmax_regression():
    """H = mean (diag p - ppᵀ) ⊗ xxᵀ, with a zero for every input: shifts change nothing."""
    X, y = randn(25, 4), torch.randint(0, 3, (25,), generator=rng(1))
    risk = EmpiricalRisk(settled(nn.Linear(4, 3, bias=False)), nn.CrossEntropyLoss(), (X, y))
    p = risk.outputs(risk.theta).softmax(1)
    middle = torch.diag_embed(p) - p[:, :, None] * p[:, None]
    H = sum(torch.kron(m, torch.outer(x, x)) for m, x in zip(middle, X, strict=True)) / 25
    values = torch.linalg.eigvalsh(H).flip(0)
    assert values[8:].abs().max() < 1e-14
    proven(risk, risk.theta, values, k=11)


def rotations(count, size):
    return [torch.linalg.qr(randn(size, size, seed=40 + i)).Q for i in range(count)]


@pytest.mark.parametrize("depth", [2, 3, 4])
def test_deep_linear_network_has_its_full_spectrum(depth):
    """At a fit with aligned factors, eigenvalue (i, j) is Σ_l Π_{m>l} s_mi² Π_{m<l} s_mj².

    H = JᵀJ with JJᵀ = Σ_l (W_<lᵀ W_<l) ⊗ (W_>l W_>lᵀ), diagonal where W_l = U_l S_l U_{l-1}ᵀ.
    """
    size, U = 3, rotations(depth + 1, 3)
    s = 0.5 + torch.rand(depth, size, generator=rng(5), dtype=F64)
    W = [U[i + 1] @ torch.diag(s[i]) @ U[i].T for i in range(depth)]
    target = torch.linalg.multi_dot(W[::-1])

    def loss(*layers):
        return 0.5 * (torch.linalg.multi_dot(layers[::-1]) - target).square().sum()

    risk = EmpiricalRisk(Scalar(loss, *W), identity_loss, ROWS)
    squares = s.square()
    exact = torch.zeros(depth * size * size, dtype=F64)
    exact[: size * size] = sum(
        torch.outer(squares[i + 1 :].prod(0), squares[:i].prod(0)) for i in range(depth)
    ).flatten()
    proven(risk, risk.theta, exact, k=size * size + 2)
    dense = torch.linalg.eigvalsh(risk.hvp(risk.theta, torch.eye(len(exact), dtype=F64)))
    torch.testing.assert_close(dense, exact.sort().values, rtol=0, atol=1e-12)


def test_two_layer_network_with_sums_of_squares():
    """{s_i(W1)² + s_j(W2)²} at W2 W1 = T."""
    W1, W2 = randn(3, 4, seed=5), randn(5, 3, seed=6)
    target = W2 @ W1
    model = Scalar(lambda a, b: 0.5 * (b @ a - target).square().sum(), W1, W2)
    risk = EmpiricalRisk(model, identity_loss, ROWS)
    s1, s2 = torch.zeros(4, dtype=F64), torch.zeros(5, dtype=F64)
    s1[:3], s2[:3] = torch.linalg.svdvals(W1) ** 2, torch.linalg.svdvals(W2) ** 2
    sums = (s1[:, None] + s2[None]).flatten()
    proven(risk, risk.theta, torch.cat([sums, torch.zeros(7, dtype=F64)]), k=20)


@pytest.mark.parametrize("scale", [0.1, 1.0, 30.0])
def test_scale_invariant_network(scale):
    """H(aw) = H(w)/a² and H(w) w = -g."""
    target = randn(6, seed=3)
    model = Scalar(lambda w: ((w / w.norm() - target) ** 2).sum(), randn(6, seed=4))
    risk = EmpiricalRisk(model, identity_loss, ROWS)
    H = risk.hvp(risk.theta, torch.eye(6, dtype=F64))
    proven(risk, scale * risk.theta, torch.linalg.eigvalsh(H) / scale**2, k=4)
    w = scale * risk.theta
    torch.testing.assert_close(risk.hvp(w, w), -risk.gradient(w), rtol=1e-10, atol=1e-13)


def test_quadratics_at_both_ends():
    values = [5.0, 3.0, 3.0, 1.0, 0.5, 0.0, -0.2, -4.0, -4.0]
    risk, _, _ = quadratic(values)
    proven(risk, risk.theta, values, k=4)
    ds = measure.top_eigenvalues(risk, risk.theta, k=4, which="both", seed=0)
    np.testing.assert_allclose(ds["eigenvalue"], [5, 3, -4, -4], atol=1e-6)


# --- dense Hessians by torch.func ---------------------------------------------------------------


class Tied(nn.Module):
    """Embedding tied to the output layer, an unused and a frozen layer, inputs by name."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.mix = nn.Linear(4, 4)
        self.out = nn.Linear(4, 7, bias=False)
        self.out.weight = self.embed.weight
        self.unused = nn.Linear(3, 2)
        self.frozen = nn.LayerNorm(4).requires_grad_(False)

    def forward(self, tokens, weight):
        h = self.frozen(torch.tanh(self.mix(self.embed(tokens).mean(1))))
        return self.out(h) * weight


def tied():
    model = settled(Tied())
    batch = {
        "tokens": torch.randint(0, 7, (20, 3), generator=rng(1)),
        "weight": 0.5 + torch.rand(20, 1, generator=rng(2), dtype=F64),
        "labels": torch.randint(0, 7, (20,), generator=rng(3)),
    }
    return model, batch


# torch.func looks at what torch itself deprecates.
TORCH_FUNC = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
CUTS = [(20,), (10, 10), (7, 13), (1, 4, 15), (3, 3, 3, 3, 3, 5)]


@TORCH_FUNC
@pytest.mark.parametrize("cut", CUTS, ids=str)
def test_tied_unused_and_frozen_parameters_with_dict_batches_cut_five_ways(cut):
    model, whole = tied()
    parts = [dict(zip(whole, values, strict=True))
             for values in zip(*(v.split(cut) for v in whole.values()), strict=True)]  # fmt: skip
    risk = EmpiricalRisk(model, nn.CrossEntropyLoss(), parts)
    trained = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}
    assert [t.name for t in risk.layout.tensors] == list(trained)

    def loss(theta):
        named = risk.layout.unflatten(theta)
        # The output layer reads the same tensor under its second name.
        named = {**named, "out.weight": named["embed.weight"]}
        inputs = {key: whole[key] for key in ("tokens", "weight")}
        output = torch.func.functional_call(model, named, (), inputs, tie_weights=False)
        return nn.functional.cross_entropy(output, whole["labels"])

    H = torch.func.hessian(loss)(risk.theta)
    torch.testing.assert_close(
        risk.hvp(risk.theta, torch.eye(len(H), dtype=F64)), H, rtol=0, atol=1e-12
    )
    proven(risk, risk.theta, torch.linalg.eigvalsh(H), k=5)


# --- what cannot be measured --------------------------------------------------------------------


def test_more_eigenvalues_than_there_are_and_values_that_are_not_numbers():
    risk, _, _ = quadratic([3.0, 2.0, 1.0])
    for k in (4, 10):
        with pytest.raises(LandscapeError, match=rf"k={k} eigenpairs asked .* at most 3"):
            measure.top_eigenvalues(risk, risk.theta, k=k, seed=0)
    bad = risk.theta.clone()
    bad[1] = torch.nan
    with pytest.raises(LandscapeError, match="1 of 3 parameters are NaN"):
        measure.top_eigenvalues(risk, bad, k=1, seed=0)


def test_a_zero_hessian_has_zeros_and_zero_bounds():
    risk, _, _ = quadratic([0.0] * 5)
    for which in ("largest", "both", "magnitude"):
        ds = measure.top_eigenvalues(risk, risk.theta, k=2, which=which, seed=0)
        assert not ds["eigenvalue"].any()
        assert not ds["bound"].any()
    density = measure.spectral_density(risk, risk.theta, num_probes=2, num_nodes=3, seed=0)
    assert float(density["negative_mass"]) == 0.0


class Hard(torch.autograd.Function):
    """A step with the gradient of a straight line that cannot be differentiated again."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.clamp(-1, 1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return gradient * (x.abs() <= 1)


class Clamp(nn.Module):
    def forward(self, x):
        return Hard.apply(x)


def test_a_module_that_cannot_be_differentiated_twice_is_named():
    model = settled(nn.Sequential(nn.Linear(3, 4), Clamp(), nn.Linear(4, 2)))
    data = (randn(8, 3), torch.arange(8) % 2)
    risk = EmpiricalRisk(model, nn.CrossEntropyLoss(), data)
    for call in (
        lambda: measure.top_eigenvalues(risk, risk.theta, k=1, seed=0),
        lambda: measure.hessian_trace(risk, risk.theta, seed=0),
        lambda: measure.block_curvature(risk, risk.theta, seed=0),
    ):
        with pytest.raises(LandscapeError, match="Clamp"):
            call()
    # Losses alone are enough for this one.
    assert measure.critical_sharpness(risk, risk.theta)["critical_sharpness"] > 0


class Rows(torch.utils.data.Dataset):
    """Twelve rows, counted when read; noisy ones differ at every reading."""

    def __init__(self, *, noise):
        self.x, self.noise, self.source, self.reads = randn(12, 3), noise, rng(9), 0

    def __len__(self):
        return 12

    def __getitem__(self, index):
        self.reads += 1
        noise = self.noise * torch.randn(3, generator=self.source, dtype=F64)
        return self.x[index] + noise, index % 2


def test_data_that_change_between_passes_are_refused_and_others_are_read_once():
    model = settled(nn.Linear(3, 2))
    loaders = [
        torch.utils.data.DataLoader(Rows(noise=noise), batch_size=5, shuffle=True)
        for noise in (0.1, 0.0)
    ]
    with pytest.raises(LandscapeError, match=r"Rows\[0\] differs from one reading to the next"):
        EmpiricalRisk(model, nn.CrossEntropyLoss(), loaders[0])
    risk = EmpiricalRisk(model, nn.CrossEntropyLoss(), loaders[1])
    reads = loaders[1].dataset.reads
    first = measure.top_eigenvalues(risk, risk.theta, k=2, seed=0)
    again = measure.top_eigenvalues(risk, risk.theta, k=2, seed=0)
    np.testing.assert_array_equal(first["eigenvalue"], again["eigenvalue"])
    assert loaders[1].dataset.reads == reads


# --- counted cases -------------------------------------------------------------------------------

SCALES = st.sampled_from([1e-12, 1e-6, 1.0, 1e6, 1e12])
BULK = st.lists(st.floats(-1, 1, allow_subnormal=False), min_size=6, max_size=30)
COUNTED = settings(
    max_examples=1000, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)


def counted(name, check, **strategies):
    counts = Counter()

    @COUNTED
    @given(**strategies)
    def cases(**drawn):
        counts["cases"] += 1
        counts["held"] += bool(check(**drawn))

    cases()
    print(f"\n{name}: held in {counts['held']} of {counts['cases']} cases")
    assert counts["held"] == counts["cases"] >= 1000


@pytest.mark.slow
def test_inclusion_in_every_case():
    """One by one within ‖r_i‖ and paired within ‖R‖₂, converged or not (Parlett, 11.5.1)."""

    def holds(values, copies, scale, products, seed):
        values = [scale * v for v in values + [max(values)] * copies]
        A = with_spectrum(values, seed)
        exact = torch.linalg.eigvalsh(A)
        pairs = lanczos.top(A.mv, len(A), k=3, generator=rng(seed), max_matvecs=products)
        rounding = 100 * torch.finfo(F64).eps * scale
        near = (pairs.values[:, None] - exact[None]).abs()
        inside = near <= pairs.subspace_bound + rounding
        columns = [set(row.nonzero()[:, 0].tolist()) for row in inside]
        paired = any(
            len({a, b, c}) == 3 for a in columns[0] for b in columns[1] for c in columns[2]
        )
        return paired and bool((near.min(1).values <= pairs.residual_norms + rounding).all())

    counted(
        "inclusion",
        holds,
        values=BULK,
        copies=st.integers(0, 4),
        scale=SCALES,
        products=st.integers(4, 60),
        seed=st.integers(0, 10_000),
    )


@pytest.mark.slow
def test_completeness_with_multiplicities_up_to_five_in_every_case():
    """Something is missed no more often than is said, and multiplicities are right."""
    said, missed = [], []

    def holds(values, copies, scale, seed):
        tops = [1.0 + 0.3 * i for i in range(len(copies))]
        spectrum = [t for t, c in zip(tops, copies, strict=True) for _ in range(c)] + values
        A = with_spectrum([scale * v for v in spectrum], seed)
        exact = torch.linalg.eigvalsh(A).flip(0)[:5]
        pairs = lanczos.top(A.mv, len(A), k=5, generator=rng(seed))
        off = (pairs.values - exact).abs().max()
        said.append(pairs.failure_probability)
        missed.append(bool(off > 1e-5 * exact.abs().max()))
        return pairs.complete

    counted(
        "completeness claimed",
        holds,
        values=BULK,
        copies=st.lists(st.integers(1, 5), min_size=1, max_size=3),
        scale=SCALES,
        seed=st.integers(0, 10_000),
    )
    allowed = scipy.stats.poisson.isf(1e-6, sum(said))
    print(f"missed: {sum(missed)}, said to be: {sum(said):.2g}")
    assert sum(missed) <= allowed
