"""z-scores of the gradient: laws with known quantiles, the softmax head, flags, kept counts."""

import numpy as np
import pytest
import torch
from torch import nn

from landscape import EmpiricalRisk, LandscapeError, measure, sam
from landscape.measure.zscores import tensor_zscores
from landscape.streams import Grid
from tests.measure_problems import cnn_risk, fingerprint, images, same

GRID = Grid(bins=241)


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
        (torch.zeros(30), "zero variance"),
        (torch.full((30,), 0.1), "zero variance"),
        (torch.tensor([0.3]), "one element"),
        (torch.arange(12.0), "few elements"),
    ):
        row = tensor_zscores(g, 0.95, GRID)
        assert row["flag"] == flag
        assert np.isnan(row["threshold"]) == (flag != "few elements")


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
    assert flags["dead.weight"] == "zero variance"
    assert flags["gate"] == "one element"
    assert flags["used.weight"] == ""


def test_bad_input_is_refused():
    risk, _ = cnn_risk()
    for percentile in (-0.1, 1.0, 95):
        with pytest.raises(LandscapeError, match=r"quantile level in \[0, 1\)"):
            measure.gradient_zscores(risk, risk.theta, percentile=percentile)
    with pytest.raises(LandscapeError, match="bins must be at least 1"):
        measure.gradient_zscores(risk, risk.theta, grid=Grid(bins=0))
