"""Sorted by their bits, numbers ascend."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from landscape import vectors


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 3000), st.integers(0, 2**31), st.sampled_from([torch.float32, torch.float64]))
def test_elements_ascend_whatever_their_size_and_sign(size, seed, dtype):
    source = torch.Generator().manual_seed(seed)
    x = torch.randn(size, generator=source, dtype=dtype)
    x = x * 10.0 ** torch.randint(-44, 38, (size,), generator=source)  # subnormal to infinite
    x[torch.rand(size, generator=source) < 0.1] *= 0.0  # of both signs
    x = x.nan_to_num()
    before = x.clone()
    found = vectors.ascending(x)
    assert torch.equal(found, x.sort().values)
    assert torch.equal(x, before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_long_vectors_take_the_radix_sort_and_views_are_read(dtype):
    x = torch.randn(200_000, dtype=dtype, generator=torch.Generator().manual_seed(0))[::2]
    x[:3] = torch.tensor([float("inf"), float("-inf"), float("nan")])
    found = vectors.ascending(x)
    assert torch.equal(found[:-1], x.sort().values[:-1])
    assert found[-1].isnan()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.complex64])
def test_one_element_that_is_not_finite_is_seen(bad, dtype):
    x = torch.full((3, 50_000), torch.finfo(dtype).max, dtype=dtype)  # whose sum is infinite
    assert vectors.is_finite(x)
    for place in (0, 77_777, -1):
        one = x.clone()
        one.view(-1)[place] = bad
        assert not vectors.is_finite(one)
    assert vectors.is_finite(x[:0])
