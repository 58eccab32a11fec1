"""Counterfactual perturbations and masks against what each variant is defined to do."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn

from landscape import EmpiricalRisk, LandscapeError, measure, plane, results, sam
from landscape.measure.measuring import generator
from landscape.measure.perturbations.filter_null import Permutations, filter_mean
from landscape.streams import PackedMasks
from tests.measure_problems import cnn, cnn_risk, fingerprint, images, same


@pytest.fixture
def risk():
    return cnn_risk(n=40)[0]


def test_sam_perturbs_everything_by_rho_along_the_gradient(risk):
    ds = measure.perturbation(
        risk, risk.theta, variant=sam.sam(rho=0.1), batch_size=40, bn="eval", seed=0
    )
    g = risk.gradient(risk.theta)
    np.testing.assert_allclose(ds["density"], 1.0)
    for tensor in risk.layout.tensors:
        part = g[tensor.start : tensor.stop]
        at = ds.sel(tensor=tensor.name)
        share = float((part.norm() / g.norm()) ** 2)
        assert float(at["energy_share"]) == pytest.approx(share, rel=1e-9)
        effect = 0.1 * float(part.norm() ** 2 / g.norm())
        assert float(at["first_order_effect"]) == pytest.approx(effect, rel=1e-9)
    assert float(ds["radius_ratio"]) == pytest.approx(1.0)
    assert float(ds["energy_share"].sum()) == pytest.approx(1.0)
    assert float(ds["parameter_share"].sum()) == pytest.approx(1.0)
    e = 0.1 * g / g.norm()
    increase = float(risk.loss(risk.theta + e) - risk.loss(risk.theta))
    # The batch is the whole set here, in the mode of the risk.
    assert float(ds["loss_increase"]) == pytest.approx(increase, rel=1e-9)
    assert float(ds["loss_increase_full"]) == pytest.approx(increase, rel=1e-9)
    weight = risk.theta[risk.layout.tensors[0].start : risk.layout.tensors[0].stop]
    relative = ds["relative_norm"][0] * float(weight.norm())
    assert float(relative) == pytest.approx(float(ds["perturbation_norm"][0]))


def test_norm_only_and_random_masks_show_their_support(risk):
    on = measure.perturbation(risk, risk.theta, variant=sam.sam_on(rho=0.5), seed=0)
    assert float(on["energy_share"].where(on["kind"] == "norm").sum()) == pytest.approx(1.0)
    np.testing.assert_array_equal(on["density"], (on["kind"] == "norm").astype(float))
    random = measure.perturbation(
        risk, risk.theta, variant=sam.random_mask(rho=0.5, density=0.25), seed=0
    )
    weights = random["ndim"] > 1
    np.testing.assert_allclose(random["density"].where(weights, 0.25), 0.25, atol=0.03)
    assert float(random["rho_eff"]) == pytest.approx(0.5)


def test_zsharps_per_tensor_norm_has_its_own_radius(risk):
    """‖e‖ = rho sqrt(K + s1): K tensors of ndim > 1, s1 the share of the 1-D ones in ‖g‖²."""
    variant = sam.zsharp(rho=0.05, percentile=0.9, norm_scope="tensor")
    ds = measure.perturbation(risk, risk.theta, variant=variant, batch_size=40, bn="eval", seed=0)
    g = risk.gradient(risk.theta)
    one_d = sum(
        float(g[t.start : t.stop].square().sum()) for t in risk.layout.tensors if t.ndim == 1
    )
    expected = math.sqrt(3 + one_d / float(g.square().sum()))
    assert float(ds["radius_ratio"]) == pytest.approx(expected, rel=1e-6)


def test_the_batch_is_seeded_and_the_model_untouched():
    risk, model = cnn_risk(n=40)
    before = fingerprint(model)
    variant = sam.zsharp(rho=0.05)
    make = lambda seed: measure.perturbation(  # noqa: E731
        risk, risk.theta, variant=variant, batch_size=16, seed=seed
    )
    first = make(0)
    np.testing.assert_array_equal(first["perturbation_norm"], make(0)["perturbation_norm"])
    assert not np.allclose(first["perturbation_norm"], make(1)["perturbation_norm"])
    loss = risk.loss(risk.theta)
    same(before, fingerprint(model))
    assert float(loss) == float(risk.loss(risk.theta))


def test_batch_statistics_are_what_the_optimizer_sees(risk):
    """One SAM step in training mode on the same rows climbs by the same e."""
    ds = measure.perturbation(
        risk, risk.theta, variant=sam.sam(rho=0.1), batch_size=16, bn="batch", seed=3
    )
    rows = torch.randperm(40, generator=generator(3))[:16]
    model = cnn_risk(n=40)[1].train()
    x, y = images(40)
    optimizer = sam.SAM(model, torch.optim.SGD(model.parameters(), lr=0.1), sam.sam(rho=0.1))
    per_example = nn.CrossEntropyLoss(reduction="none")
    optimizer.step(lambda batch: per_example(model(x[batch]), y[batch]), rows)
    made = optimizer.perturbation
    for name, e in made.e.items():
        expected = float(e.norm())
        assert float(ds["perturbation_norm"].sel(tensor=name)) == pytest.approx(expected, rel=1e-9)
    increase = float(made.loss_perturbed - made.loss_clean)
    assert float(ds["loss_increase"]) == pytest.approx(increase, rel=1e-9)


def test_f_sam_climbs_along_what_the_batch_adds_to_the_mean_gradient(risk):
    """u = g_B - sigma * mean over batches, arXiv:2403.12350, when no average was recorded."""
    variant = sam.fsam(rho=0.1, sigma=1.0)
    ds = measure.perturbation(risk, risk.theta, variant=variant, batch_size=20, bn="eval", seed=0)
    rows = torch.randperm(40, generator=generator(0))[:20]
    x, y = images(40)
    batch = EmpiricalRisk(cnn(), nn.CrossEntropyLoss(), (x[rows], y[rows]))
    u = batch.gradient(risk.theta) - risk.gradient(risk.theta)
    for tensor in risk.layout.tensors:
        expected = 0.1 * float(u[tensor.start : tensor.stop].norm() / u.norm())
        found = float(ds["perturbation_norm"].sel(tensor=tensor.name))
        assert found == pytest.approx(expected, rel=1e-8)
    assert "mean gradient" in results.provenance(ds)["note"]


def test_every_variant_of_the_demo_can_be_asked(risk):
    for name in [
        "sgd",
        "sam",
        "asam",
        "fsam",
        "ssam_f",
        "ssam_d",
        "sam_on",
        "zsharp",
        "lagnp",
        "random_mask",
    ]:
        options = {} if name == "sgd" else {"rho": 0.1}
        ds = measure.perturbation(risk, risk.theta, variant=sam.make(name, options), seed=0)
        if name == "sgd":
            assert float(ds["rho_eff"]) == 0.0
            assert np.isnan(ds["energy_share"]).all()
        else:
            assert float(ds["energy_share"].sum()) == pytest.approx(1.0)


def test_data_of_unequal_shapes_and_unused_tensors_are_served():
    class Pooled(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(3, 2)
            self.unused = nn.Linear(2, 2)

        def forward(self, x):
            return self.head(x.mean(1))

    g = torch.Generator().manual_seed(0)
    batches = [
        (torch.randn(n, length, 3, generator=g), torch.arange(n) % 2)
        for n, length in ((5, 4), (3, 7))
    ]
    risk = EmpiricalRisk(Pooled().double(), nn.CrossEntropyLoss(), batches)
    ds = measure.perturbation(risk, risk.theta, variant=sam.sam(rho=0.1), batch_size=8, seed=0)
    gradient = risk.gradient(risk.theta)
    assert float(ds["first_order_effect"].sum()) == pytest.approx(0.1 * float(gradient.norm()))
    assert float(ds["energy_share"].sel(tensor="unused.weight")) == 0.0


# --- masks -----------------------------------------------------------------------------------


def test_overlap_of_variants_against_chance(risk):
    variants = {
        "zsharp": sam.zsharp(rho=0.1, percentile=0.8),
        "top": sam.topk_gradient(rho=0.1, density=0.2),
        "random": sam.random_mask(rho=0.1, density=0.2),
        "sam": sam.sam(rho=0.1),
    }
    ds = measure.mask_overlap(risk, risk.theta, variants=variants, seed=0)
    assert ds.sizes["pair"] == 6
    assert (ds["first"].values[0], ds["second"].values[0]) == ("zsharp", "top")
    head = ds.sel(tensor="8.weight")
    assert float(head["jaccard"][0]) > 0.6  # softmax head: one mask but for ties and rounding
    wide = ds.sel(tensor="3.weight")
    assert float(wide["kappa"][0]) > 0.5
    assert abs(float(wide["kappa"][1])) < 0.25
    density = 0.2
    assert float(wide["expected_jaccard"][1]) == pytest.approx(density / (2 - density), rel=0.05)
    assert float(wide["jaccard"][2]) == pytest.approx(0.2, abs=0.01)  # against everything: d
    assert np.isnan(wide["kappa"][2])
    for name in ("jaccard_all", "expected_jaccard_all", "kappa_all", "z_score_all"):
        assert ds[name].dims == ("pair",)
    assert abs(float(ds["z_score_all"][3])) < 4


def test_filter_null_has_the_moments_of_random_permutations():
    risk, _ = cnn_risk()
    rule = plane.Filters.of(risk)
    g = torch.Generator().manual_seed(0)
    first, second = (torch.rand(risk.theta.numel(), generator=g) < 0.3 for _ in range(2))
    # Whole filters on: what the hypergeometric null takes for many independent coordinates.
    info = next(t for t in risk.layout.tensors if t.name == "3.weight")
    for mask in (first, second):
        mask[info.start : info.start + 72] = True
    null = Permutations(rule, count=400, seed=0).null(first, second)
    np.testing.assert_allclose(filter_mean(rule, first, second), null.mean)
    columns = zip(risk.layout.tensors, null.mean, null.variance, null.drawn, strict=True)
    for tensor, mean, variance, drawn in columns:
        span = slice(tensor.start, tensor.stop)
        shape = tensor.shape if tensor.ndim > 1 else (-1, 1)
        a, b = (mask[span].view(shape).flatten(1) for mask in (first, second))
        orders = list(itertools.permutations(range(len(a))))
        overlaps = [float((a & b[list(order)]).sum()) for order in orders]
        assert mean == pytest.approx(np.mean(overlaps))
        assert variance == pytest.approx(np.var(overlaps), abs=1e-9)
        assert set(drawn) <= set(overlaps)
        # Mean of 400 draws, within 5 of its standard errors.
        assert drawn.mean() == pytest.approx(mean, abs=5 * np.sqrt(variance / 400) + 1e-9)


def test_overlap_of_whole_filters_is_significant_only_for_the_hypergeometric_null():
    """3 of 6 filters each, two in common: likely for filters, not for single weights."""
    risk, _ = cnn_risk()
    info = next(t for t in risk.layout.tensors if t.name == "3.weight")
    masks = []
    for chosen in ([0, 1, 2], [1, 2, 3]):
        mask = torch.zeros(risk.theta.numel(), dtype=torch.bool)
        mask[info.start : info.stop].view(6, -1)[chosen] = True
        masks.append(mask)
    overlap = PackedMasks.of({"w": masks[0][info.start : info.stop]}).overlap(
        PackedMasks.of({"w": masks[1][info.start : info.stop]})
    )
    assert overlap.z_score[0] > 4
    index = [t.name for t in risk.layout.tensors].index("3.weight")
    null = Permutations(plane.Filters.of(risk), count=999, seed=0).null(*masks)
    assert (72 - null.mean[index]) / null.variance[index] ** 0.5 < 1.5
    assert (null.drawn[index] >= 72).mean() > 0.2  # 10 of 20 choices share two or more filters


def test_overlap_needs_two_variants(risk):
    with pytest.raises(LandscapeError, match="compares two or more"):
        measure.mask_overlap(risk, risk.theta, variants={"sam": sam.sam(rho=0.1)}, seed=0)


def test_persistence_of_half_kept_masks_falls_towards_chance():
    rng = np.random.default_rng(0)
    n, k = 4000, 400
    mask = rng.permutation(n) < k
    snapshots = []
    for step in range(0, 100, 10):
        snapshots.append((step, PackedMasks.of({"w": mask, "b": np.ones(3, bool)})))
        chosen = np.flatnonzero(mask)
        mask = mask.copy()
        mask[rng.choice(chosen, k // 2, replace=False)] = False
        mask[rng.choice(np.flatnonzero(~mask), k // 2, replace=False)] = True
    ds = measure.mask_persistence(snapshots, lags=[10, 20, 30, 35], provenance={"run": "r"})
    np.testing.assert_array_equal(ds["lag"], [10, 20, 30])
    np.testing.assert_array_equal(ds["num_pairs"], [9, 8, 7])
    assert float(ds["kappa"][0]) == pytest.approx(0.5, abs=0.06)
    assert float(ds["kappa"][1]) == pytest.approx(0.25, abs=0.06)
    assert (ds["kappa"].diff("lag") < 0).all()
    assert float(ds["expected_jaccard"][0]) == pytest.approx(43 / (806 - 43), rel=0.01)


def test_selection_of_independent_and_of_frozen_masks():
    """Independent draws: over-dispersion 1 and the binomial law; one mask kept: T times that."""
    rng = np.random.default_rng(0)
    frozen = rng.random(5000) < 0.1
    snapshots = [
        (t, PackedMasks.of({"free": rng.random(5000) < 0.1, "frozen": frozen, "all": [True] * 9}))
        for t in range(20)
    ]
    ds = measure.mask_selection(snapshots)
    free, kept, full = (ds.sel(tensor=name) for name in ("free", "frozen", "all"))
    assert float(free["over_dispersion"]) == pytest.approx(1.0, abs=0.1)
    assert float(kept["over_dispersion"]) == pytest.approx(20.0, rel=1e-3)
    assert np.isnan(full["over_dispersion"])
    np.testing.assert_allclose(free["share"], free["expected_share"], atol=0.02)
    assert float(kept["share"].sel(bin=20)) == pytest.approx(frozen.mean())
    assert float(kept["effective_support"]) == pytest.approx(frozen.mean())
    assert float(full["effective_support"]) == pytest.approx(1.0)
    np.testing.assert_allclose(ds["share"].sum("bin"), 1.0)
    np.testing.assert_allclose(ds["expected_share"].sum("bin"), 1.0)
    with pytest.raises(LandscapeError, match="1 mask snapshot was given"):
        measure.mask_selection(snapshots[:1])
    other = PackedMasks.of({"free": np.ones(3, bool)})
    with pytest.raises(LandscapeError, match="different models"):
        measure.mask_selection([*snapshots, (20, other)])


def test_persistence_without_pairs_is_refused():
    snapshots = [(0, PackedMasks.of({"w": np.ones(4, bool)}))]
    with pytest.raises(LandscapeError, match=r"1 mask snapshots at steps \[0\] hold no two"):
        measure.mask_persistence(snapshots)


def test_bad_input_is_refused(risk):
    with pytest.raises(LandscapeError, match="choose one of 'batch', 'eval"):
        measure.perturbation(risk, risk.theta, variant=sam.sam(rho=0.1), bn="train", seed=0)
    with pytest.raises(LandscapeError, match=r"batch_size=.* give a whole number >= 1"):
        measure.perturbation(risk, risk.theta, variant=sam.sam(rho=0.1), batch_size=0, seed=0)


def test_what_is_read_of_a_null_does_not_grow_with_the_filters(monkeypatch):
    """Tables of filters stay where the masks are: of wide layers they are larger than the model."""
    risk, _ = cnn_risk()
    seen, plain = [], Permutations._seen
    monkeypatch.setattr(
        Permutations, "_seen", lambda *given: seen.append(plain(*given)) or seen[-1]
    )
    masks = torch.rand(3, risk.layout.num_parameters, generator=generator(0)) < 0.3
    nulls = Permutations(plane.Filters.of(risk), count=5, seed=0)
    found = nulls.nulls([(masks[0], masks[1]), (masks[1], masks[2])])
    assert {len(part) for part in seen} == {2, 2 + 5}
    assert [each.drawn.shape for each in found] == [(len(risk.layout.tensors), 5)] * 2
