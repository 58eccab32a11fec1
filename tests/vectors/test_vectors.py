"""Long float32 vectors: what float64 says, whatever the length; short ones: what torch says."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from landscape import vectors

F64 = torch.float64


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def long_vectors(size):
    """Gaussian, of one value (its rounding errors all point the same way), heavy-tailed."""
    gauss = torch.randn(size, generator=rng())
    yield "gauss", gauss
    yield "constant", torch.full((size,), 0.1)
    yield "heavy", torch.exp(gauss.mul_(3))


def assert_exact(size, limit):
    """Each formula against one float64 copy of the whole."""
    other = torch.rand(size, generator=rng(1))
    for name, x in long_vectors(size):
        wide, weight = x.double(), other.double()
        length, along = float(wide.square().sum().sqrt()), float((wide * weight).sum())
        rows = torch.stack([x, other])
        products = vectors.gram(rows)
        shown = {
            "norm": (vectors.norm(x), length),
            "l1": (vectors.norm(x, 1), float(wide.abs().sum())),
            "of a list": (vectors.norms([x])[0], length),
            "of rows": (vectors.row_norms(rows)[0], length),
            "dot": (vectors.dot(x, other), along),
            "projected": (vectors.project(rows, x)[0], length**2),
            "across": (vectors.project(rows, x)[1], along),
            "gram": (products[0, 0], length**2),
            "gram across": (products[0, 1], along),
            "gram of two": (vectors.gram(rows, other[None])[0, 0], along),
        }
        for what, (value, right) in shown.items():
            assert value.dtype == F64
            assert abs(float(value) / right - 1) <= limit, (name, what)


def test_a_million_elements():
    assert_exact(10**6 + 7, 1e-11)


@pytest.mark.slow
def test_a_hundred_million_elements():
    assert_exact(10**8, 1e-9)


def test_what_cancels_is_projected_at_half_the_cost():
    Q = torch.randn(20, 10**6, generator=rng())
    w = torch.randn(10**6, generator=rng(1))
    right = Q.double() @ w.double()
    error = (vectors.project(Q, w, small=True) - right).abs()
    assert float(error.max()) < 1e-7 * 10**6  # of ‖q‖‖w‖


def test_a_constant_vector_has_its_closed_form():
    size = 10**7
    x = torch.full((size,), 0.3)
    assert float(vectors.norm(x)) == pytest.approx(math.sqrt(size) * float(x[0]), rel=1e-11)
    assert abs(float(torch.linalg.vector_norm(x)) / float(vectors.norm(x)) - 1) > 1e-6


@given(
    st.lists(st.integers(0, 400_000), min_size=1, max_size=4),
    st.sampled_from([torch.float16, torch.bfloat16, torch.float32, F64, torch.complex64]),
    st.sampled_from([1.0, 2.0, 3.0, math.inf]),
)
@settings(max_examples=20, deadline=None)
def test_norms_of_any_shape_and_precision_are_those_of_float64(sizes, dtype, p):
    if 0 in sizes and p == math.inf:
        return
    tensors = [torch.randn(n, generator=rng(n), dtype=F64).to(dtype) for n in sizes]
    wide = torch.complex128 if dtype.is_complex else F64
    right = [torch.linalg.vector_norm(x.to(wide), p) for x in tensors]
    torch.testing.assert_close(torch.stack(vectors.norms(tensors, p)), torch.stack(right))
    together = torch.linalg.vector_norm(torch.cat(tensors).to(wide), p)
    torch.testing.assert_close(vectors.total_norm(vectors.norms(tensors, p), p), together)


def test_layouts_do_not_matter():
    x = torch.randn(64, 32, 3, 3, generator=rng())
    mirrored = x.to(memory_format=torch.channels_last)
    assert float(vectors.dot(x, mirrored)) == pytest.approx(float(vectors.norm(x)) ** 2, rel=1e-14)
    assert float(vectors.norm(mirrored)) == pytest.approx(float(vectors.norm(x)), rel=1e-14)
    z = torch.randn(50, generator=rng(), dtype=torch.complex64)
    right = torch.vdot(z.to(torch.complex128), z.conj().to(torch.complex128)).real
    torch.testing.assert_close(vectors.dot(z, z.conj()), right)


def test_filters_that_are_many_and_rows_that_are_long():
    for shape in [(3000, 5, 3, 3), (3, 400_000), (70, 20_000), (5, 0), (0, 4)]:
        rows = torch.randn(shape, generator=rng())
        right = torch.linalg.vector_norm(rows.double().flatten(1), dim=1)
        torch.testing.assert_close(vectors.row_norms(rows), right, rtol=1e-12, atol=0)
    unit = vectors.unit_rows(torch.randn(4, 3, 5, generator=rng()))
    assert unit.dtype == torch.float32
    torch.testing.assert_close(vectors.row_norms(unit), torch.ones(4, dtype=F64), rtol=1e-6, atol=0)


def test_combinations_stay_in_their_precision_and_in_their_place():
    Q, C = torch.randn(5, 3 * 2**20 + 11, generator=rng()), torch.randn(3, 5, generator=rng())
    right = C @ Q
    torch.testing.assert_close(vectors.combine(C.double(), Q), right)
    place = Q.data_ptr()
    turned = vectors.combine_(C.double(), Q)
    assert turned.data_ptr() == place
    torch.testing.assert_close(turned, right)
    w = torch.randn(Q.shape[1], generator=rng(2))
    torch.testing.assert_close(vectors.without(w, Q, torch.ones(5, dtype=F64)), w - Q.sum(0))


def test_nothing_is_hidden():
    x = torch.ones(300_000)
    x[-1] = math.nan
    assert vectors.norm(x).isnan()
    assert vectors.dot(x, x).isnan()
    assert vectors.gram(x[None]).isnan().all()
    assert float(vectors.norm(torch.full((300_000,), 1e30))) == pytest.approx(
        1e30 * math.sqrt(300_000), rel=1e-6
    )
    assert float(vectors.total_norm([])) == 0
    assert vectors.cosine(torch.zeros(3), torch.ones(3)).isnan()


def test_where_a_device_has_no_float64_slabs_are_widened_on_the_host(monkeypatch):
    monkeypatch.setattr(vectors, "_WITHOUT_FLOAT64", ("cpu",))
    x = torch.randn(400_000, generator=rng())
    right = x.double().square().sum().sqrt()
    torch.testing.assert_close(vectors.norm(x), right)
    torch.testing.assert_close(vectors.norms([x, x[:5]])[0], right)
    torch.testing.assert_close(vectors.gram(x[None])[0, 0], right.square())


def test_derivatives_go_through():
    x = torch.randn(300_000, generator=rng(), requires_grad=True)
    (g,) = torch.autograd.grad(vectors.norm(x) + vectors.dot(x, x), x)
    right = x.detach() / vectors.norm(x.detach()) + 2 * x.detach()
    torch.testing.assert_close(g, right.to(g))


@pytest.mark.parametrize("scale", [1.0, 1e-25, 1e25, 0.0])
def test_lengths_are_norms_to_a_millionth(scale):
    """Short and long tensors, of several dimensions and strides, and squares beyond float32."""
    g = torch.Generator().manual_seed(0)
    tensors = [
        torch.rand(shape, generator=g) * scale
        for shape in [(3,), (), (0, 4), (700, 300), (200, 1000)]
    ]
    tensors.append(tensors[3].t())
    tensors += [torch.zeros(5), torch.rand(5, generator=g)]
    for x, length in zip(tensors, vectors.lengths(tensors), strict=True):
        assert length.dtype == torch.float64
        exact = float(x.double().square().sum().sqrt())
        assert float(length) == pytest.approx(exact, rel=1e-6, abs=0.0)


@pytest.mark.parametrize("scale", [1.0, 1e-25, 1e25])
def test_dots_are_inner_products_to_a_millionth_of_the_lengths(scale):
    g = torch.Generator().manual_seed(0)
    shapes = [(3,), (), (0, 4), (700, 300)]
    xs = [torch.randn(shape, generator=g) * scale for shape in shapes]
    ys = [torch.randn(shape, generator=g) * scale for shape in shapes]
    xs[3], ys[3] = xs[3].t(), ys[3].t()
    for x, y, found in zip(xs, ys, vectors.dots(xs, ys), strict=True):
        size = float(x.double().norm() * y.double().norm())
        assert abs(float(found) - float((x.double() * y.double()).sum())) <= 1e-6 * size
