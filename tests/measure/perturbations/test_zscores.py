"""z-scores of the gradient: laws with known quantiles, the softmax head, flags, kept counts."""

import functools
import tracemalloc
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate
from scipy import stats as laws
from torch import nn

from landscape import EmpiricalRisk, LandscapeError, measure, sam
from landscape.measure.measuring import generator
from landscape.measure.perturbations import zscore_statistics
from landscape.measure.perturbations.counting import counted
from landscape.measure.perturbations.zscore_statistics import (
    LAWS,
    LEVELS,
    PERCENTILES,
    PROBABILITIES,
    SHARES,
    CountedValues,
    captured,
)
from landscape.streams import Grid, Moments, ValueHistogram
from tests.measure_problems import cnn_risk, fingerprint, images, same

GRID = Grid(bins=241)


def row_of(points, percentile, grid=GRID):
    marks = zscore_statistics.Marks.of(percentile, grid, torch.device("cpu"))
    return zscore_statistics.read([zscore_statistics.zscore_row(points, marks)])[0]


def tensor_zscores(g, percentile, grid=GRID):
    return row_of(CountedValues.of(g), percentile, grid)


@pytest.mark.parametrize(
    ("law", "threshold", "energy"),
    [("normal", 1.960, 0.279), ("laplace", 2.118, 0.423), ("t5", 1.992, 0.41)],
)
def test_standardized_laws_have_their_thresholds_and_energies(law, threshold, energy):
    rng = np.random.default_rng(0)
    n = 400_000
    draws = {
        "normal": lambda: rng.normal(size=n),
        "laplace": lambda: rng.laplace(size=n),
        "t5": lambda: rng.standard_t(5, size=n),
    }[law]()
    row = tensor_zscores(torch.from_numpy(3 * draws + 0.01), 0.95, GRID)
    assert row["threshold"] == pytest.approx(threshold, rel=0.01)
    assert row["captured_energy"] == pytest.approx(energy, rel=0.03)
    assert row["kept_share"] == pytest.approx(0.05, rel=1e-4)
    assert row["flag"] == ""
    inside = row["density"].sum() * GRID.width
    assert inside + row["overflow"] == pytest.approx(1.0)
    if law == "normal":
        at_zero = row["density"][GRID.bins // 2]
        assert at_zero == pytest.approx(1 / np.sqrt(2 * np.pi), rel=0.02)
        assert row["excess_kurtosis"] == pytest.approx(0.0, abs=0.05)


@pytest.mark.parametrize("n", [2, 5, 19, 20, 21, 100, 101])
@pytest.mark.parametrize("percentile", [0.0, 0.5, 0.9, 0.95])
def test_kept_count_rule_without_ties(n, percentile):
    g = torch.randn(n, generator=torch.Generator().manual_seed(n), dtype=torch.float64)
    row = tensor_zscores(g, percentile, GRID)
    # |z| of two values is tied by construction.
    kept = 0 if n == 2 else (n - 1) - int(np.floor(percentile * (n - 1)))
    assert round(row["kept_share"] * n) == kept
    z = (g - g.mean()) / g.std()
    assert row["threshold"] == pytest.approx(float(torch.quantile(z.abs(), percentile)))


def test_mask_is_the_one_of_the_zsharp_selector():
    g = torch.randn(37, 11, generator=torch.Generator().manual_seed(0)) ** 3
    from landscape.sam.selectors import above_quantile

    mask = above_quantile((g - g.mean()).abs(), 0.95)
    row = tensor_zscores(g, 0.95, GRID)
    assert row["kept_share"] == pytest.approx(float(mask.double().mean()))
    share = float((g.double() ** 2)[mask].sum() / (g.double() ** 2).sum())
    assert row["captured_energy"] == pytest.approx(share)
    assert sam.recipes()["zsharp"]  # the variant of this selector


def test_z_scores_do_not_see_scale_or_shift():
    g = torch.randn(500, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    rows = [tensor_zscores(x, 0.9, GRID) for x in (g, 1e-9 * g, -3 * g)]
    for other in rows[1:]:
        for name in ("threshold", "kept_share", "captured_energy", "excess_kurtosis"):
            assert other[name] == pytest.approx(rows[0][name], rel=1e-9)
    assert tensor_zscores(g + 7, 0.9, GRID)["threshold"] == pytest.approx(rows[0]["threshold"])
    assert tensor_zscores(g + 7, 0.9, GRID)["topk_jaccard"] < 0.5  # centring matters here


def test_softmax_head_has_mean_zero_and_the_mask_of_the_largest_gradients():
    """Sum over classes of dL/dW_c is 0, so z = g/sigma and both masks are one."""
    risk, model = cnn_risk()
    before = fingerprint(model)
    ds = measure.gradient_zscores(risk, risk.theta, percentile=0.8)
    head = ds.sel(tensor="8.weight")
    assert abs(float(head["mean_over_std"])) < 1e-12
    assert float(head["topk_jaccard"]) == 1.0
    assert (ds["topk_jaccard"] <= 1).all()
    assert list(ds["kind"].values[:2]) == ["conv", "norm"]
    assert ds["density"].dims == ("tensor", "bin")
    same(before, fingerprint(model))


def test_flags_instead_of_divisions_by_zero():
    for g, flag in (
        (torch.zeros(30), "zero gradient"),
        (torch.zeros(0), "zero gradient"),
        (torch.full((30,), 0.1), "zero variance"),
        (torch.tensor([0.3]), "one element"),
        (torch.arange(1.0, 13.0) ** 2, "few elements"),
        (torch.arange(12.0) ** 2, "few elements; exact zeros"),
        (torch.tensor([1.0, -1.0] * 20 + [0.1, 0.3]), "ties"),
        (torch.cat([torch.zeros(90), torch.arange(1.0, 11.0) ** 2]), "exact zeros"),
    ):
        row = tensor_zscores(g, 0.95, GRID)
        assert row["flag"] == flag
        assert np.isnan(row["threshold"]) == (flag.startswith(("zero", "one")))


def test_frozen_layers_are_flagged_in_the_dataset():
    class Dead(nn.Module):
        def __init__(self):
            super().__init__()
            self.used = nn.Linear(64, 4)
            self.gate = nn.Parameter(torch.zeros(()))
            self.dead = nn.Linear(4, 4)

        def forward(self, x):
            return self.used(x.flatten(1)) + self.gate * 0 + self.dead(x.flatten(1)[:, :4]) * 0

    x, y = images()
    risk = EmpiricalRisk(Dead().double(), nn.CrossEntropyLoss(), (x, y))
    ds = measure.gradient_zscores(risk, risk.theta)
    flags = dict(zip(ds["tensor"].values, ds["flag"].values, strict=True))
    assert flags["dead.weight"] == "zero gradient"
    assert flags["gate"] == "one element"
    assert flags["used.weight"] == ""
    # Batches have no gradient at all there (None), which is the same statement.
    ds = measure.gradient_zscores(
        risk, risk.theta, source="mini-batch", batch_size=8, num_batches=2
    )
    assert str(ds["flag"].sel(tensor="dead.weight").values) == "zero gradient"


def test_bad_input_is_refused():
    risk, _ = cnn_risk()
    for percentile in (-0.1, 1.0, 95):
        with pytest.raises(LandscapeError, match=r"is outside \[0, 1\)"):
            measure.gradient_zscores(risk, risk.theta, percentile=percentile)
    with pytest.raises(LandscapeError, match=r"bins=.* give a whole number >= 1"):
        measure.gradient_zscores(risk, risk.theta, grid=Grid(bins=0))
    with pytest.raises(
        LandscapeError, match="choose one of 'full', 'mini-batch', 'example', 'residual"
    ):
        measure.gradient_zscores(risk, risk.theta, source="batch")
    with pytest.raises(LandscapeError, match="choose one of 'tensor', 'channel', 'net"):
        measure.gradient_zscores(risk, risk.theta, grouping="layer")
    with pytest.raises(LandscapeError, match=r"num_batches=4 batches of 8 .* which hold 3"):
        measure.gradient_zscores(risk, risk.theta, source="mini-batch", batch_size=8, num_batches=4)


# --- curves and references -------------------------------------------------------------------


@pytest.mark.parametrize("name", LAWS)
def test_energies_of_the_laws_are_their_integrals(name):
    law = LAWS[name]
    assert law.std() == pytest.approx(1.0)
    for t in (0.0, 0.7, 1.96, 4.0):
        integral = 2 * integrate.quad(lambda z: z * z * law.pdf(z), t, np.inf)[0]
        assert captured(name, t) == pytest.approx(integral, rel=1e-7)


def test_references_are_the_published_values():
    """Threshold and energy at 95 %: normal 1.960 and .279, Laplace 2.118 and .424."""
    found = zscore_statistics.references()
    at = PERCENTILES.index(0.95)
    np.testing.assert_allclose(
        found["reference_threshold"][:, at], [1.960, 2.118, 1.991, 1.837], atol=6e-4
    )
    np.testing.assert_allclose(
        found["reference_energy"][:, at], [0.279, 0.424, 0.412, 0.585], atol=6e-4
    )
    np.testing.assert_allclose(found["reference_exceedance"][:, 0], 1.0)
    np.testing.assert_allclose(found["reference_lorenz"][:, [0, -1]], [[0, 1]] * 4, atol=1e-12)


@pytest.mark.parametrize("law", ["normal", "laplace", "t5"])
def test_curves_of_draws_are_those_of_their_law(law):
    n = 400_000
    row = tensor_zscores(LAWS[law].rvs(n, random_state=3), 0.95)
    index = list(LAWS).index(law)
    reference = {name: values[index] for name, values in zscore_statistics.references().items()}
    # Four standard errors of a share; sampling of sigma adds to it in the tails of t5.
    error = 4 * np.sqrt(reference["reference_exceedance"] / n) + 2e-3
    assert (abs(row["exceedance"] - reference["reference_exceedance"]) < error).all()
    np.testing.assert_allclose(row["lorenz"], reference["reference_lorenz"], atol=0.03)
    np.testing.assert_allclose(row["threshold_at"], reference["reference_threshold"], rtol=0.02)
    middle = abs(PROBABILITIES - 0.5) < 0.48
    np.testing.assert_allclose(
        row["z_quantile"][middle], reference["reference_quantile"][middle], atol=0.02
    )


def test_curves_of_one_tensor_are_their_definitions():
    g = torch.randn(500, generator=torch.Generator().manual_seed(2), dtype=torch.float64) ** 3 + 0.1
    row = tensor_zscores(g, 0.9)
    z = (g - g.mean()) / g.std()
    energy = g[z.abs().argsort(descending=True)] ** 2
    for level, value in zip(LEVELS, row["exceedance"], strict=True):
        assert value == pytest.approx(float((z.abs() > level).double().mean()))
    for share, value in zip(SHARES, row["lorenz"], strict=True):
        whole = share * 500
        if whole == int(whole):
            assert value == pytest.approx(float(energy[: int(whole)].sum() / energy.sum()))
    at = PERCENTILES.index(0.9)
    for name in ("threshold", "kept_share", "captured_energy", "topk_jaccard"):
        assert row[f"{name}_at"][at] == row[name]
    ordered = (g**2).sort().values
    ranks = torch.arange(1, 501, dtype=torch.float64)
    gini = (2 * (ranks * ordered).sum() / (500 * ordered.sum()) - 501 / 500).item()
    assert row["gini"] == pytest.approx(gini)
    assert row["threshold_error"] == 0.0


# --- streams ---------------------------------------------------------------------------------


def within(row, exact):
    return abs(row["threshold"] - exact["threshold"]) <= row["threshold_error"] * (1 + 1e-9)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_streamed_tensor_agrees_with_the_exact_one(dtype):
    x = np.random.default_rng(0).standard_t(3, 200_000)
    g = (1e-5 * x + 2e-6).astype(dtype)
    row = row_of(CountedValues.within(ValueHistogram.of(g)), 0.95)
    exact = tensor_zscores(g, 0.95)
    assert within(row, exact)
    assert 0 < row["threshold_error"] < 0.01
    for name in ("mean", "std", "excess_kurtosis", "zero_share"):
        assert row[name] == pytest.approx(exact[name], rel=1e-9)
    for name in ("captured_energy", "kept_share", "gini", "topk_jaccard"):
        assert row[name] == pytest.approx(exact[name], rel=0.02)
    for name in ("exceedance", "lorenz", "captured_energy_at"):
        np.testing.assert_allclose(row[name], exact[name], atol=0.003)
    np.testing.assert_allclose(row["density"], exact["density"], atol=0.03)


def test_streams_are_flagged_like_tensors():
    """A stream knows exact zeros, but no other ties."""
    for g, flag in (
        (torch.zeros(30), "zero gradient"),
        (torch.full((30,), 0.1), "zero variance"),
        (torch.tensor([0.3]), "one element"),
        (torch.arange(1.0, 13.0) ** 2, "few elements"),
        (torch.cat([torch.zeros(90), torch.arange(1.0, 11.0) ** 2]), "exact zeros"),
        (torch.cat([torch.zeros(98), torch.tensor([1.0, 2.0])]), "ties; exact zeros"),
        (torch.cat([torch.zeros(98), torch.tensor([1.0, -1.0])]), "ties; exact zeros"),
    ):
        row = row_of(CountedValues.within(ValueHistogram.of(g)), 0.95)
        assert row["flag"] == tensor_zscores(g, 0.95)["flag"] == flag
        assert np.isnan(row["threshold"]) == (flag.startswith(("zero", "one")))


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 300), st.integers(0, 2**31), st.lists(st.integers(0, 300), max_size=5))
def test_merged_value_histograms_equal_one_pass_for_any_split(size, seed, cuts):
    rng = np.random.default_rng(seed)
    x = rng.standard_t(2, size) * 10.0 ** rng.integers(-8, 3)
    x[rng.random(size) < 0.1] = 0.0
    whole = ValueHistogram.of(x)
    parts = np.split(x, sorted(min(cut, size) for cut in cuts))
    merged = ValueHistogram.of(x[:0])
    for i in rng.permutation(len(parts)):
        merged = merged.merge(ValueHistogram.of(parts[i]))
    np.testing.assert_array_equal(merged.codes, whole.codes)
    np.testing.assert_array_equal(merged.counts, whole.counts)
    np.testing.assert_allclose(merged.squares, whole.squares, rtol=1e-12)
    assert (merged.zeros, merged.not_finite) == (whole.zeros, whole.not_finite)
    assert merged.moments.std == pytest.approx(whole.moments.std, rel=1e-9)
    low, high = whole.edges
    assert (high - low <= 2**-8 * abs(whole.centres) * 1.01 + 1e-37).all()
    spread = Moments.of(x)
    if spread.std > 0:
        z = abs(x - spread.mean)
        for level in (0.1, 0.5, 0.95):
            below, above = whole.distance_quantile(spread.mean, level)
            exact = np.quantile(z, level)
            assert below * (1 - 1e-12) <= exact <= above * (1 + 1e-12)


def test_streams_of_several_processes_give_one_result():
    rng = np.random.default_rng(1)
    batches = [{"w": rng.normal(size=5000), "b": rng.normal(size=50)} for _ in range(6)]
    streams = {name: ValueHistogram.of([]) for name in ("w", "b")}
    for batch in batches:
        streams = {n: h.merge(ValueHistogram.of(batch[n])) for n, h in streams.items()}
    ds = measure.streamed_zscores(streams, kinds={"w": "conv", "b": "bias"})
    for name in streams:
        pooled = tensor_zscores(np.concatenate([batch[name] for batch in batches]), 0.95)
        at = ds.sel(tensor=name)
        assert abs(float(at["threshold"]) - pooled["threshold"]) <= float(at["threshold_error"])
        assert float(at["std"]) == pytest.approx(pooled["std"])
    assert list(ds["kind"].values) == ["conv", "bias"]
    broken = ValueHistogram.of([1.0, np.nan, np.inf])
    assert (broken.moments.count, broken.not_finite) == (1, 2)
    with pytest.raises(LandscapeError, match="w has 1 finite values and 2 that are NaN"):
        measure.streamed_zscores({"w": broken})
    for streams_of, words in (({}, "no histogram"), ({"w": np.ones(3)}, "ndarray")):
        with pytest.raises(LandscapeError, match=f"got {words}; pass a ValueHistogram for each"):
            measure.streamed_zscores(streams_of)


@pytest.mark.slow
def test_four_processes_stream_what_one_does():
    x = np.random.default_rng(0).standard_t(3, 2_000_000)
    with ProcessPoolExecutor(4, mp_context=get_context("spawn")) as pool:
        parts = list(pool.map(ValueHistogram.of, np.split(x, 4)))
    merged, whole = functools.reduce(ValueHistogram.merge, parts), ValueHistogram.of(x)
    np.testing.assert_array_equal(merged.codes, whole.codes)
    np.testing.assert_array_equal(merged.counts, whole.counts)
    ds = measure.streamed_zscores({"w": merged}).isel(tensor=0)
    exact = tensor_zscores(x, 0.95)
    assert abs(float(ds["threshold"]) - exact["threshold"]) <= float(ds["threshold_error"])
    assert float(ds["excess_kurtosis"]) == pytest.approx(exact["excess_kurtosis"], rel=1e-9)


def test_the_memory_of_a_stream_does_not_grow_with_the_tensor():
    peaks = []
    for size in (2_000_000, 8_000_000):
        x = np.random.default_rng(0).standard_normal(size, dtype=np.float32)
        tracemalloc.start()
        ValueHistogram.of(x)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.05 * peaks[0]
    assert peaks[0] < 60e6  # chunks of a million float64, whatever the tensor


@pytest.mark.slow
@pytest.mark.parametrize("law", [laws.t(2), laws.cauchy(), laws.pareto(1.5)])
def test_quantiles_of_ten_million_heavy_tailed_elements_are_within_the_stated_bound(law):
    """The bound is a bin's width, 2^-8 of the distance from zero, on either side of the mean."""
    x = law.rvs(10_000_000, random_state=0)
    histogram = ValueHistogram.of(x)
    moments = histogram.moments
    distance = np.abs(x - moments.mean)
    for level in (0.5, 0.9, 0.95, 0.99, 0.9999):
        exact = np.quantile(distance, level)
        low, high = histogram.distance_quantile(moments.mean, level)
        assert low <= exact <= high
        assert high - low <= 2**-8 * (exact + 2 * abs(moments.mean)) * 1.01


def assert_same_histogram(found, expected):
    """Numbers of values are exact; squares of a bin are positive and added up in any order."""
    np.testing.assert_array_equal(found.codes, expected.codes)
    np.testing.assert_array_equal(found.counts, expected.counts)
    assert (found.zeros, found.not_finite) == (expected.zeros, expected.not_finite)
    assert found.moments.count == expected.moments.count
    np.testing.assert_allclose(found.squares, expected.squares, rtol=1e-12)


def assert_same_moments(found, expected, x):
    """To 1e-12 of the sum of the terms' sizes, which other orders of addition round by about 1e-13.

    For the third moment, whose terms cancel, Cauchy and Schwarz bound that sum by √(m2 m4). A mean
    is rounded by less than 1e-14 of the largest value, which is all that gaps of equal values are.
    """
    sizes = np.abs(x.astype(np.float64)).reshape(-1)
    gaps = 1e-14 * sizes.max(initial=0.0)
    spans = {
        "mean": 1e-12 * sizes.sum() / max(1, x.size),
        "m2": 1e-12 * expected.m2 + x.size * gaps**2,
        "m3": 1e-12 * np.sqrt(expected.m2 * expected.m4) + x.size * gaps**3,
        "m4": 1e-12 * expected.m4 + x.size * gaps**4,
    }
    for name, span in spans.items():
        assert abs(getattr(found, name) - getattr(expected, name)) <= span, name


def heavy(size):
    x = 1e-5 * np.random.default_rng(size).standard_t(3, size) + 2e-6
    x[::7] = 0.0
    return x


def every_code():
    """The first number of each bin, NaN and infinite ones too."""
    return (np.arange(2**17, dtype=np.uint32) << 15).view(np.float32)


def edges():
    return every_code()[np.isfinite(every_code())]


ODD = {
    "empty": lambda: np.zeros(0, np.float32),
    "one": lambda: np.array([0.1]),
    "zeros of both signs": lambda: np.array([0.0, -0.0, 0.0, -0.0, -0.0], np.float32),
    "constant": lambda: np.full(2**20 + 7, 0.1, np.float32),
    "constant in float64": lambda: np.full(2**20 + 7, 0.1),
    "edges": edges,
    "below edges": lambda: np.nextafter(edges(), np.float32(0)),
    "beyond edges": lambda: np.nextafter(edges(), np.copysign(np.float32(np.inf), edges())),
    "rounded onto edges": lambda: np.nextafter(edges().astype(np.float64), 0),
    "subnormal": lambda: (1e-42 * np.random.default_rng(0).normal(size=1000)).astype(np.float32),
    "zero only in float32": lambda: np.array([1e-60, -1e-60, 0.0, 1.0]),
    "a whole chunk": lambda: heavy(2**20),
    "three chunks": lambda: heavy(2**21 + 5),
    "three chunks of float32": lambda: heavy(2**21 + 5).astype(np.float32),
    "three levels": lambda: np.repeat([0.3, -1.7, 0.1], [2**20, 2**20, 7]),
    "strided": lambda: heavy(2**20)[1::3],
    "transposed": lambda: heavy(2**16).reshape(2**6, 2**10).T,
    "largest": lambda: np.array([3.4e38, -3.4e38, 3.4e38, 1.0], np.float32),
}


@pytest.mark.parametrize("name", ODD)
def test_a_tensor_is_counted_as_an_array(name):
    x = ODD[name]()
    found, expected = counted(torch.from_numpy(x)), ValueHistogram.of(x)
    assert_same_histogram(found, expected)
    assert_same_moments(found.moments, expected.moments, x)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_counted_as_it_is_read(dtype):
    x = torch.randn(1000, generator=generator(0)).to(dtype)
    found, expected = counted(x), ValueHistogram.of(x)
    assert_same_histogram(found, expected)
    assert_same_moments(found.moments, expected.moments, x.float().numpy())


@pytest.mark.parametrize(
    "values",
    [
        [1.0, np.nan, np.inf, -np.inf, 2.0],
        [1e300, -1e300, 3.4e38, 1e-60, -0.0, 1e-41],
        every_code(),
    ],
)
def test_values_beyond_float32_are_counted_in_no_bin_and_leave_no_moments(values):
    x = np.array(values)
    found, expected = counted(torch.from_numpy(x)), ValueHistogram.of(x)
    assert_same_histogram(found, expected)
    assert found.not_finite
    assert np.isnan([found.moments.mean, found.moments.m2, found.moments.m4]).all()


# --- sources and groups ----------------------------------------------------------------------


def test_mini_batches_are_standardized_one_by_one_and_averaged():
    risk, _ = cnn_risk()
    ds = measure.gradient_zscores(
        risk, risk.theta, source="mini-batch", batch_size=8, num_batches=3, bn="eval", seed=5
    )
    order = torch.randperm(24, generator=generator(5)).split(8)
    name = "3.weight"
    info = next(t for t in risk.layout.tensors if t.name == name)
    rows = [
        tensor_zscores(risk.subset(rows).gradient(risk.theta)[info.start : info.stop], 0.95)
        for rows in order
    ]
    at = ds.sel(tensor=name)
    for key in ("threshold", "captured_energy", "std", "gini"):
        assert float(at[key]) == pytest.approx(np.mean([row[key] for row in rows]), rel=1e-9)
    spread = np.std([row["threshold"] for row in rows], ddof=1)
    assert float(at["threshold_std"]) == pytest.approx(spread)
    np.testing.assert_allclose(at["exceedance"], np.mean([r["exceedance"] for r in rows], axis=0))
    assert np.isnan(measure.gradient_zscores(risk, risk.theta)["threshold_std"]).all()


def test_single_examples_and_the_residual_of_the_average():
    risk, model = cnn_risk()
    before = fingerprint(model)
    one = measure.gradient_zscores(
        risk, risk.theta, source="example", batch_size=8, num_batches=24, seed=0
    )
    g = risk.gradient(risk.theta)
    start = risk.layout.tensors[0].stop
    # The mean over all examples of the mean gradient of a tensor is that of the full gradient.
    assert float(one["mean"][0]) == pytest.approx(float(g[:start].mean()))
    residual = measure.gradient_zscores(
        risk, risk.theta, source="residual", batch_size=8, num_batches=3, bn="eval", seed=0
    )
    # Residuals of the batches of all data add up to nothing.
    assert float(abs(residual["mean"]).max()) < 1e-12
    nothing = risk.layout.unflatten(torch.zeros_like(risk.theta))
    batches = {"batch_size": 8, "num_batches": 3}
    plain = measure.gradient_zscores(risk, risk.theta, source="mini-batch", **batches)
    same_ = measure.gradient_zscores(
        risk, risk.theta, source="residual", state={"source": {"ema": nothing}}, **batches
    )
    np.testing.assert_array_equal(plain["threshold"], same_["threshold"])
    same(before, fingerprint(model))


def test_groups_are_channels_or_the_whole_net():
    risk, _ = cnn_risk()
    g = risk.gradient(risk.theta)
    net = measure.gradient_zscores(risk, risk.theta, grouping="net")
    assert list(net["tensor"].values) == ["all"]
    assert float(net["threshold"][0]) == tensor_zscores(g, 0.95)["threshold"]
    ds = measure.gradient_zscores(risk, risk.theta, grouping="channel")
    info = next(t for t in risk.layout.tensors if t.name == "3.weight")
    rows = g[info.start : info.stop].view(6, -1)
    for i in range(6):
        expected = tensor_zscores(rows[i], 0.95)["threshold"]
        assert float(ds["threshold"].sel(tensor=f"3.weight[{i}]")) == expected
    assert set(ds["owner"].values) == set(risk.layout.names)
    streamed = measure.gradient_zscores(risk, risk.theta, exact_up_to=50)
    exact = measure.gradient_zscores(risk, risk.theta)
    large = exact["size"] > 50
    assert (streamed["threshold_error"] > 0).equals(large)
    assert (abs(streamed["threshold"] - exact["threshold"]) <= streamed["threshold_error"]).all()


def test_gradients_that_are_not_finite_are_refused_by_name():
    class Root(nn.Module):
        def __init__(self):
            super().__init__()
            self.fine = nn.Parameter(torch.ones(3, dtype=torch.float64))
            self.bad = nn.Parameter(torch.zeros(2, dtype=torch.float64))

        def forward(self, x):
            return x @ self.fine + self.bad.sqrt().sum()  # d sqrt at 0 is infinite

    risk = EmpiricalRisk(
        Root(), lambda o, t: (o - t) ** 2, (torch.ones(8, 3).double(), torch.zeros(8).double())
    )
    with pytest.raises(LandscapeError, match=r"gradient of bad has 2 NaN or infinite values of 2"):
        measure.gradient_zscores(risk, risk.theta, source="mini-batch", batch_size=4, num_batches=2)


def by_hand(x, percentile):
    """Threshold, energy kept, Jaccard index of the top-k, Lorenz curve and Gini index, sorted."""
    z = (x - x.mean()) / x.std(ddof=1)
    n, order = len(x), np.argsort(np.abs(z), kind="stable")
    threshold = np.quantile(np.abs(z), percentile)
    rank = int(np.floor(percentile * (n - 1)))
    kept = np.abs(z) > np.abs(z)[order[rank]]
    top = np.abs(x) > np.sort(np.abs(x))[n - kept.sum() - 1]
    energy = np.concatenate([[0], np.cumsum(x[order] ** 2)])
    ascending = np.sort(x**2)
    return {
        "threshold": threshold,
        "kept_share": kept.mean(),
        "captured_energy": (x[kept] ** 2).sum() / (x**2).sum(),
        "topk_jaccard": (kept & top).sum() / (kept | top).sum(),
        "lorenz": 1 - np.interp(n - SHARES * n, np.arange(n + 1), energy) / energy[-1],
        "gini": 2 * (np.arange(1, n + 1) * ascending).sum() / (n * ascending.sum()) - (n + 1) / n,
        "z_quantile": np.quantile(z, PROBABILITIES),
        "exceedance": (np.abs(z)[:, None] > LEVELS).mean(0),
        "density": np.histogram(z[(z >= -12) & (z < 12)], GRID.edges)[0] / (n * GRID.width),
    }


@settings(max_examples=60, deadline=None)
@given(st.integers(3, 400), st.integers(0, 2**31), st.sampled_from([0.0, 0.3, -4.0, 90.0]))
def test_windows_of_sorted_values_are_sorts_by_distance(size, seed, shift):
    """The mean may lie within the values, at their edge, or far from zero."""
    x = np.random.default_rng(seed).standard_t(3, size) + shift
    for percentile in (0.0, 0.5, 0.95):
        row, expected = tensor_zscores(x, percentile), by_hand(x, percentile)
        for name, value in expected.items():
            np.testing.assert_allclose(row[name], value, rtol=1e-9, atol=1e-11, err_msg=name)


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 60), st.integers(0, 2**31))
def test_runs_of_equal_values_are_those_values(size, seed):
    """What is counted in bins is what the same values give one by one: float32 of few bits."""
    rng = np.random.default_rng(seed)
    bins = np.float32(rng.integers(-40, 40, size) * 2.0**-3)
    x = np.repeat(bins, rng.integers(1, 5, size))
    one, together = CountedValues.of(x), CountedValues.within(ValueHistogram.of(x))
    whole = len(np.unique(x))
    assert len(together.x) == whole <= len(one.x) == together.num
    # A bin's centre is not its value, so that what is compared are counts and energies alone.
    places = torch.arange(len(x) + 1)
    np.testing.assert_allclose(one.energy(places), together.energy(places), rtol=1e-12)
    zero = torch.zeros(1)
    assert one.below(one.x, zero) == together.below(together.x, zero.double())
    assert int(one.zeros) == int(together.zeros) == (x == 0).sum()
