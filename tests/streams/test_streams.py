"""Mergeable summaries: exact against numpy in one pass, for any split; masks against chance."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as laws

from landscape.errors import LandscapeError
from landscape.streams import Grid, Histogram, Moments, Overlap, PackedMasks, persistence


def one_pass(x):
    return (
        x.mean(),
        x.std(ddof=1),
        laws.skew(x),
        laws.kurtosis(x),
    )


def summary(moments):
    return moments.mean, moments.std, moments.skewness, moments.excess_kurtosis


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 400), st.integers(0, 2**31), st.lists(st.integers(0, 400), max_size=6))
def test_merged_moments_equal_one_pass_for_any_split(size, seed, cuts):
    x = np.random.default_rng(seed).standard_t(4, size) * 3 + 5
    parts = np.split(x, sorted(min(cut, size) for cut in cuts))
    merged = Moments()
    for part in np.random.default_rng(seed).permutation(len(parts)):
        merged = merged.merge(Moments.of(parts[part]))
    assert merged.count == size
    np.testing.assert_allclose(summary(merged), one_pass(x), rtol=1e-9, atol=1e-9)


def test_moments_survive_a_large_offset_and_many_blocks():
    x = np.random.default_rng(0).normal(size=3_000_000) + 1e6
    np.testing.assert_allclose(summary(Moments.of(x)), one_pass(x), rtol=1e-6, atol=1e-5)


def test_moments_of_few_or_equal_values_are_nan_not_zero_divisions():
    assert np.isnan(Moments.of([3.0]).std)
    constant = Moments.of(torch.full((7,), 2.0))
    assert constant.std == 0.0
    assert np.isnan(constant.skewness)
    assert np.isnan(constant.excess_kurtosis)
    assert Moments.of(torch.ones(3, dtype=torch.bfloat16)).mean == 1.0


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 300), st.integers(0, 2**31), st.integers(0, 300))
def test_merged_histograms_equal_one_pass_for_any_split(size, seed, cut):
    x = np.random.default_rng(seed).standard_t(2, size) * 4
    grid = Grid(-12, 12, 241)
    whole = Histogram.of(x, grid)
    merged = Histogram.of(x[:cut], grid).merge(Histogram.of(x[cut:], grid))
    np.testing.assert_array_equal(whole.counts, merged.counts)
    assert (whole.below, whole.above, whole.nan) == (merged.below, merged.above, merged.nan)
    assert whole.total == size
    inside = (x >= -12) & (x < 12)
    np.testing.assert_array_equal(whole.counts, np.histogram(x[inside], grid.edges)[0])


def test_histogram_counts_overflow_and_nan_and_integrates_to_the_rest():
    histogram = Histogram.of([np.nan, -np.inf, 13.0, 0.0, 12.0, -12.0], Grid())
    assert (histogram.below, histogram.above, histogram.nan, histogram.total) == (1, 2, 1, 5)
    assert histogram.density.sum() * histogram.grid.width == pytest.approx(2 / 5)
    assert histogram.counts[1200] == 1  # the odd grid has a bin centred at zero
    assert histogram.grid.centres[1200] == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("law", [laws.norm(), laws.laplace(), laws.t(3)])
def test_histogram_quantile_is_within_one_bin_of_the_exact_one(law):
    x = law.rvs(200_000, random_state=1)
    histogram = Histogram.of(x, Grid(-12, 12, 2401))
    for level in (0.01, 0.25, 0.5, 0.95, 0.99):
        assert abs(histogram.quantile(level) - np.quantile(x, level)) <= histogram.grid.width
    assert Histogram.of([20.0, 20.0], Grid()).quantile(0.5) == np.inf
    assert Histogram.of([-20.0, -20.0], Grid()).quantile(0.5) == -np.inf
    assert np.isnan(Histogram.of([], Grid()).quantile(0.5))


def test_histograms_on_different_grids_are_refused():
    with pytest.raises(LandscapeError, match="different grids"):
        Histogram.of([1.0], Grid()).merge(Histogram.of([1.0], Grid(bins=11)))


# --- masks ---------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 70), min_size=1, max_size=6), st.integers(0, 2**31))
def test_packing_round_trips_and_counts(sizes, seed):
    rng = np.random.default_rng(seed)
    masks = {f"t{i}": rng.random(size) < rng.random() for i, size in enumerate(sizes)}
    packed = PackedMasks.of(masks)
    assert packed.bits.size == sum((size + 7) // 8 for size in sizes)
    for name, mask in packed.unpack().items():
        np.testing.assert_array_equal(mask, masks[name])
    np.testing.assert_array_equal(packed.counts(), [mask.sum() for mask in masks.values()])


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 200), st.integers(0, 2**31))
def test_overlap_statistics_equal_their_definitions(size, seed):
    rng = np.random.default_rng(seed)
    a, b = rng.random(size) < rng.random(), rng.random(size) < rng.random()
    overlap = PackedMasks.of({"w": a}).overlap(PackedMasks.of({"w": torch.from_numpy(b)}))
    mirrored = PackedMasks.of({"w": b}).overlap(PackedMasks.of({"w": a}))
    union = (a | b).sum()
    expected = (a & b).sum() / union if union else np.nan
    np.testing.assert_allclose(overlap.jaccard, [expected])
    support = np.arange(size + 1)
    pmf = laws.hypergeom(size, a.sum(), b.sum()).pmf(support)
    mean = (pmf * support).sum()
    variance = (pmf * (support - mean) ** 2).sum()
    np.testing.assert_allclose(overlap.expected_common, [mean], rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(overlap.variance, [variance], rtol=1e-7, atol=1e-9)
    agreement = (a == b).mean()
    chance = a.mean() * b.mean() + (1 - a.mean()) * (1 - b.mean())
    if 0 < a.sum() < size and 0 < b.sum() < size:
        np.testing.assert_allclose(overlap.kappa, [(agreement - chance) / (1 - chance)], atol=1e-9)
    for name in ("jaccard", "kappa", "z_score", "expected_jaccard", "coefficient"):
        np.testing.assert_array_equal(getattr(overlap, name), getattr(mirrored, name))


def test_expected_jaccard_is_d_over_2_minus_d_and_agrees_with_the_exact_null():
    d, n = 0.05, 100_000
    k = np.array([int(d * n)])
    overlap = Overlap(np.array([n]), k, k, np.array([0]))
    assert overlap.expected_jaccard[0] == pytest.approx(d / (2 - d), rel=1e-3)
    k, m, n = 12, 20, 60
    null = laws.hypergeom(n, k, m)
    support = np.arange(0, k + 1)
    exact = (null.pmf(support) * support / (k + m - support)).sum()
    small = Overlap(*(np.array([x]) for x in (n, k, m, 0)))
    assert small.expected_jaccard[0] == pytest.approx(exact, rel=5e-3)


def test_kappa_and_z_are_centred_at_chance_and_the_null_is_stratified():
    """Two tensors of densities 1.0 and 0.05: pooled naively they would look aligned."""
    rng = np.random.default_rng(3)
    n, draws = 4000, 300
    kappas, zs = [], []
    for _ in range(draws):
        masks = [
            PackedMasks.of({"bias": np.ones(500, bool), "w": rng.permutation(n) < 200})
            for _ in range(2)
        ]
        pooled = masks[0].overlap(masks[1]).pooled()
        kappas.append(pooled.kappa)
        zs.append(pooled.z_score)
    assert np.mean(kappas) == pytest.approx(0.0, abs=4 * np.std(kappas) / np.sqrt(draws))
    assert np.mean(zs) == pytest.approx(0.0, abs=0.2)
    assert np.std(zs) == pytest.approx(1.0, abs=0.15)


def test_identical_full_and_empty_masks():
    full = PackedMasks.of({"a": np.ones(9, bool), "b": np.zeros(5, bool)})
    overlap = full.overlap(full)
    np.testing.assert_array_equal(overlap.jaccard, [1.0, np.nan])
    assert np.isnan(overlap.kappa).all()
    dense = full.overlap(PackedMasks.of({"a": np.arange(9) < 3, "b": np.ones(5, bool)}))
    assert np.isnan(dense.kappa).all()  # against all or nothing, chance explains any overlap
    assert np.isnan(dense.pooled().kappa)
    assert np.isnan(overlap.z_score).all()
    half = PackedMasks.of({"a": np.arange(10) < 4})
    assert half.overlap(half).kappa[0] == pytest.approx(1.0)
    assert half.overlap(half).coefficient[0] == 1.0


def test_masks_of_different_models_and_cut_snapshots_are_refused():
    masks = PackedMasks.of({"a": np.ones(9, bool)})
    with pytest.raises(LandscapeError, match=r"different models .* a \(9 and 10\)"):
        masks.overlap(PackedMasks.of({"a": np.ones(10, bool)}))
    with pytest.raises(LandscapeError, match="need 2 bytes and 1 were found"):
        PackedMasks(("a",), (9,), masks.bits[:1])
    with pytest.raises(LandscapeError, match="No mask to pack"):
        PackedMasks.of({})


def test_persistence_pairs_snapshots_by_their_distance_in_steps():
    masks = {step: PackedMasks.of({"w": np.arange(100) >= step}) for step in (0, 10, 20, 40)}
    lags, overlaps = persistence(list(masks.items()), [10, 20, 25, 40])
    np.testing.assert_array_equal(lags, [10, 20, 40])
    assert [overlap.size.shape for overlap in overlaps] == [(2, 1), (2, 1), (1, 1)]
    np.testing.assert_allclose(overlaps[0].jaccard[:, 0], [0.9, 80 / 90])
