"""Masks against chance: gates, other batches, other runs, other steps, single filters."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as laws

from landscape import LandscapeError, measure, results, sam
from landscape.measure.measuring import generator
from landscape.measure.perturbations.overlap import adjusted
from landscape.measure.perturbations.recorded_masks import occurring_lags
from landscape.streams import Overlap, PackedMasks, half_life
from tests.measure_problems import cnn_risk, fingerprint, same


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 60), st.integers(0, 2**31))
def test_p_value_is_the_share_of_masks_that_overlap_as_much(size, seed):
    rng = np.random.default_rng(seed)
    k, m = rng.integers(0, size + 1, 2)
    common = int(laws.hypergeom(size, k, m).rvs(random_state=seed)) if k and m else 0
    overlap = Overlap(*(np.array([x]) for x in (size, k, m, common)))
    support = np.arange(size + 1)
    pmf = laws.hypergeom(size, k, m).pmf(support)
    if overlap.variance[0] > 0:
        assert overlap.p_value[0] == pytest.approx(pmf[common:].sum(), rel=1e-6, abs=1e-12)
    else:
        assert np.isnan(overlap.p_value[0])


def test_p_values_of_chance_are_uniform_and_holm_keeps_the_family():
    """Independent masks: P(p <= a) <= a; a family of 40 tensors errs in a share 0.05 at most."""
    rng = np.random.default_rng(0)
    n, families, tensors = 400, 300, 40
    common = rng.hypergeometric(40, n - 40, 40, (families, tensors))
    fixed = np.full_like(common, 40)
    p = Overlap(np.full_like(common, n), fixed, fixed, common).p_value
    for level in (0.05, 0.2, 0.5):
        assert (p <= level).mean() <= level + 4 * np.sqrt(level / p.size)
    wrong = np.mean([(adjusted(row) <= 0.05).any() for row in p])
    assert wrong <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / families)


def test_kappa_does_not_grow_with_the_size_of_a_tensor_and_p_does_fall():
    small = Overlap(*(np.array([x]) for x in (1_000, 50, 50, 10)))
    large = Overlap(*(np.array([x]) for x in (100_000, 5_000, 5_000, 1_000)))
    assert small.kappa[0] == pytest.approx(large.kappa[0])
    assert large.p_value[0] < small.p_value[0] < 0.01


def test_overlap_is_gated_over_everything_it_tests():
    risk, _ = cnn_risk(n=40)
    variants = {
        "zsharp": sam.zsharp(rho=0.1, percentile=0.8),
        "top": sam.topk_gradient(rho=0.1, density=0.2),
        "random": sam.random_mask(rho=0.1, density=0.2),
        "norms": sam.sam_on(rho=0.1),
    }
    ds = measure.mask_overlap(risk, risk.theta, variants=variants, seed=0)
    tested = np.isfinite(ds["p_value"].values)
    assert (ds["p_holm"].values[tested] >= ds["p_value"].values[tested]).all()
    smallest = np.nanmin(ds["p_value"].values)
    assert np.nanmin(ds["p_holm"]) == pytest.approx(min(1, smallest * tested.sum()))
    same_mask, by_chance = (ds.sel(pair=f"zsharp | {name}") for name in ("top", "random"))
    assert float(same_mask["p_value_filter_all"]) == 1 / 1000  # no permutation reaches it
    assert float(same_mask["p_holm_filter_all"]) < 0.05
    assert float(by_chance["p_value_filter_all"]) > 0.01
    assert float(same_mask["kappa_filter_all"]) > 0.5
    assert float(same_mask["coefficient"].sel(tensor="8.weight")) > 0.8
    assert np.isnan(ds["p_value"].sel(pair="zsharp | norms")).all()  # all or nothing: no chance
    np.testing.assert_allclose(ds["density"].sel(direction="zsharp", tensor="3.weight"), 0.2,
                               atol=0.01)  # fmt: skip
    again = measure.mask_overlap(risk, risk.theta, variants=variants, seed=0)
    assert ds.identical(again)
    with pytest.raises(LandscapeError, match=r"num_permutations=.* give a whole number >= 1"):
        measure.mask_overlap(risk, risk.theta, variants=variants, num_permutations=0, seed=0)


# --- other data ------------------------------------------------------------------------------


def test_masks_of_batches_are_those_the_variant_draws_on_them():
    risk, model = cnn_risk(n=40)
    before = fingerprint(model)
    variant = sam.topk_gradient(rho=0.1, density=0.2)
    ds = measure.batch_overlap(
        risk, risk.theta, variants={"top": variant}, batch_size=20, num_batches=2, bn="eval", seed=0
    )
    order = torch.randperm(40, generator=generator(0)).split(20)
    parts = [*order, torch.arange(40)]
    masks = []
    for rows in parts:
        g = risk.subset(rows).gradient(risk.theta)
        chosen = {}
        for tensor in risk.layout.tensors:
            size = g[tensor.start : tensor.stop].abs()
            keep = round(0.2 * tensor.numel) if tensor.ndim > 1 else 0
            chosen[tensor.name] = torch.isin(torch.arange(tensor.numel), size.topk(keep).indices)
        masks.append(PackedMasks.of(chosen))
    two = masks[0].overlap(masks[1])
    np.testing.assert_allclose(ds["jaccard"][0, 0], two.jaccard)
    np.testing.assert_allclose(ds["kappa"][0, 0], two.kappa)
    against = [masks[i].overlap(masks[2]) for i in (0, 1)]
    np.testing.assert_allclose(ds["kappa"][0, 1], (against[0].kappa + against[1].kappa) / 2)
    pooled = [float(a.pooled().kappa) for a in against]
    assert float(ds["kappa_all"][0, 1]) == pytest.approx(np.mean(pooled))
    assert float(ds["kappa_all_std"][0, 1]) == pytest.approx(np.std(pooled, ddof=1))
    np.testing.assert_array_equal(ds["num_pairs"], [1, 2])
    same(before, fingerprint(model))


def test_random_masks_of_batches_agree_by_chance_and_fixed_ones_fully():
    risk, _ = cnn_risk(n=40)
    variants = {
        "random": sam.random_mask(rho=0.1, density=0.3),
        "top": sam.topk_gradient(rho=0.1, density=0.3),
        "sam": sam.sam(rho=0.1),
    }
    ds = measure.batch_overlap(
        risk, risk.theta, variants=variants, batch_size=10, num_batches=4, seed=0
    )
    everywhere = ds["kappa_all"].sel(direction="random")
    assert (abs(everywhere) < 0.15).all()
    top = ds["kappa_all"].sel(direction="top")
    assert (top > everywhere).all()
    # A batch is part of all data, so that its mask says more about theirs than about another's.
    assert float(top.sel(comparison="batch and all data")) > float(
        top.sel(comparison="two batches")
    )
    assert np.isnan(ds["kappa_all"].sel(direction="sam")).all()
    assert (ds["jaccard_all"].sel(direction="sam") == 1).all()


def test_bad_input_of_batches_is_refused():
    risk, _ = cnn_risk(n=40)
    one = {"top": sam.topk_gradient(rho=0.1)}
    with pytest.raises(LandscapeError, match="batch_overlap got no variant"):
        measure.batch_overlap(risk, risk.theta, variants={}, seed=0)
    with pytest.raises(LandscapeError, match=r"num_batches=.* give a whole number >= 2"):
        measure.batch_overlap(risk, risk.theta, variants=one, num_batches=1, seed=0)
    with pytest.raises(LandscapeError, match=r"num_batches=3 batches of 20 .* which hold 2"):
        measure.batch_overlap(risk, risk.theta, variants=one, batch_size=20, num_batches=3, seed=0)


@pytest.mark.parametrize(
    "name", ["mask_overlap", "batch_overlap", "perturbation_cosines", "enrichment", "alignment"]
)
def test_variants_that_are_none_are_named(name):
    risk, _ = cnn_risk(n=8)
    ask = getattr(measure, name)
    with pytest.raises(LandscapeError, match=rf"{name} got variants as a list; pass a dictionary"):
        ask(risk, risk.theta, variants=[sam.sam(rho=0.1), sam.sgd()], seed=0)
    with pytest.raises(LandscapeError, match="'zsharp' is a str and no variant; pass one of"):
        ask(risk, risk.theta, variants={"a": "zsharp", "b": "sam"}, seed=0)
    with pytest.raises(LandscapeError, match="'zsharp' is a str and no variant; pass one of"):
        measure.perturbation(risk, risk.theta, variant="zsharp", seed=0)


def test_a_path_is_no_series_of_masks():
    for ask in (measure.mask_persistence, measure.mask_selection):
        with pytest.raises(LandscapeError, match=r"open them with snapshots.read_masks\('runs/a'"):
            ask("runs/a")


# --- other runs ------------------------------------------------------------------------------


def saved(seed, n=3000):
    rng = np.random.default_rng(seed)
    return PackedMasks.of({"conv": rng.random(n) < 0.1, "bias": np.ones(7, bool)})


def test_masks_of_seeds_are_compared_by_name(tmp_path):
    masks = {f"seed {i}": saved(i) for i in range(3)} | {"copy": saved(0)}
    ds = measure.saved_mask_overlap(masks, kinds={"conv": "conv"}, provenance={"step": 9})
    assert ds.sizes["pair"] == 6
    assert list(ds["kind"].values) == ["conv", "other"]
    chance = ds["kappa_all"].where(ds["second"] != "copy", drop=True)
    assert (abs(chance) < 0.1).all()
    same_ = ds.sel(pair="seed 0 | copy")
    assert float(same_["kappa_all"]) == pytest.approx(1.0)
    assert float(same_["p_holm_all"]) < 1e-6
    assert results.load(results.save(ds, tmp_path / "x.nc")).identical(ds)
    with pytest.raises(LandscapeError, match="1 set of saved masks was given"):
        measure.saved_mask_overlap({"one": saved(0)})


def test_added_removed_and_resized_tensors_are_named():
    here = PackedMasks.of({"a": np.ones(3, bool), "b": np.ones(4, bool)})
    added = PackedMasks.of({"a": np.ones(3, bool), "b": np.ones(4, bool), "c": np.ones(5, bool)})
    resized = PackedMasks.of({"a": np.ones(9, bool), "b": np.ones(4, bool)})
    turned = PackedMasks.of({"b": np.ones(4, bool), "a": np.ones(3, bool)})
    for other, words in (
        (added, r"c \(5, only in the second\)"),
        (resized, r"a \(3 and 9\)"),
        (turned, "their order"),
    ):
        with pytest.raises(LandscapeError, match=words):
            measure.saved_mask_overlap({"x": here, "y": other})
    with pytest.raises(LandscapeError, match=r"c \(5, only in the first\)"):
        measure.mask_selection([(0, here), (1, added)])


# --- other steps -----------------------------------------------------------------------------


def test_half_life_of_known_decays():
    lags = np.array([1, 2, 4, 8])
    kappa = np.array([0.9, 0.8, 0.6, 0.2])
    assert half_life(lags, kappa) == pytest.approx(4 + 4 * 0.1 / 0.4)
    assert half_life(lags, np.array([0.1, 0, 0, 0])) == pytest.approx(0.5 / 0.9)
    assert half_life(lags, np.full(4, 0.7)) == np.inf
    assert np.isnan(half_life(lags, np.full(4, np.nan)))
    both = half_life(lags, np.stack([kappa, np.full(4, np.nan)], axis=1))
    np.testing.assert_allclose(both, [5.0, np.nan])


def test_lags_are_those_that_occur_in_a_geometric_series():
    assert occurring_lags([0, 50, 100, 150, 400]) == [50, 100, 150, 300]
    assert occurring_lags([0, 1, 2, 4, 8]) == [1, 2, 4, 8]
    assert occurring_lags([7]) == []
    masks = [(step, saved(step)) for step in (0, 50, 150)]
    np.testing.assert_array_equal(measure.mask_persistence(masks)["lag"], [50, 100, 150])


def test_persistence_has_a_half_life_per_tensor():
    """A tenth of the selected moves per step, a 90th of the others: kappa = (0.9 - 1/90)^lag."""
    rng = np.random.default_rng(0)
    mask, snapshots = rng.permutation(20_000) < 2_000, []
    for step in range(40):
        snapshots.append((step, PackedMasks.of({"w": mask, "b": np.ones(3, bool)})))
        mask = mask.copy()
        out = rng.choice(np.flatnonzero(mask), 200, replace=False)
        into = rng.choice(np.flatnonzero(~mask), 200, replace=False)
        mask[out], mask[into] = False, True
    ds = measure.mask_persistence(snapshots, lags=range(1, 21), kinds={"w": "conv"})
    expected = np.log(0.5) / np.log(0.9 - 0.1 / 9)
    assert float(ds["half_life"]) == pytest.approx(expected, rel=0.05)
    assert float(ds["half_life_tensor"].sel(tensor="w")) == pytest.approx(float(ds["half_life"]))
    assert np.isnan(ds["half_life_tensor"].sel(tensor="b"))
    np.testing.assert_allclose(ds["kappa_tensor"].sel(tensor="w"), ds["kappa"])
    assert list(ds["kind"].values) == ["conv", "other"]
    assert (ds["coefficient"] >= ds["jaccard"]).all()


def test_filters_that_are_selected_more_often_stand_out():
    rng = np.random.default_rng(0)
    shape = (8, 4, 3, 3)
    favoured = np.zeros(shape, bool)
    favoured[2] = favoured[:, 1] = True
    snapshots = []
    for step in range(30):
        mask = rng.random(shape) < np.where(favoured, 0.6, 0.1)
        snapshots.append((step, PackedMasks.of({"conv": mask, "b": np.ones(2, bool)})))
    ds = measure.mask_filters(snapshots, tensor="conv", shape=shape)
    assert ds["frequency"].dims == ("channel", "input")
    assert int(ds["channel_frequency"].values.argmax()) == 2
    assert float(ds["frequency"][5, 1]) == pytest.approx(0.6, abs=0.15)
    assert float(ds["frequency"][5, 0]) == pytest.approx(0.1, abs=0.1)
    assert float(ds["over_dispersion"]) > 20
    even = [(t, PackedMasks.of({"conv": rng.random((400, 2, 3)) < 0.2})) for t in range(20)]
    flat = measure.mask_filters(even, tensor="conv", shape=(400, 2, 3))
    # Variance over 400 filters: relative standard error sqrt(2/400).
    assert float(flat["over_dispersion"]) == pytest.approx(1.0, abs=0.3)
    assert float(flat["expected"]) == pytest.approx(0.2, abs=0.01)
    for name, wrong in (("conv", (8, 4, 3)), ("nothing", shape), ("b", (2,))):
        with pytest.raises(LandscapeError, match=r"snapshots have conv \(288\), b \(2\)"):
            measure.mask_filters(snapshots, tensor=name, shape=wrong)
