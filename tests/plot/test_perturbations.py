"""Figures of what is perturbed and of what is learned, on results of the measurements."""

import itertools
import json

import numpy as np
import pytest
import xarray as xr
from matplotlib.backends.backend_agg import FigureCanvasAgg

from landscape import measure, results
from landscape.errors import LandscapeError
from landscape.plot import drawing as grammar
from landscape.plot import figures, interactive, runs, static, style
from landscape.plot.figures import _shared as shared
from landscape.plot.figures.perturbations import zscores
from landscape.results import Variable
from landscape.streams import PackedMasks
from tests.figure_checks import check_figure
from tests.fixtures_perturbations import TENSORS, history, measured, study
from tests.measure_problems import cnn_risk


@pytest.fixture(scope="module")
def data():
    return measured()


def resnet18():
    """Names and kinds of the 62 tensors of a ResNet-18, in depth order."""
    tensors = [("conv1.weight", "conv"), ("bn1.weight", "norm"), ("bn1.bias", "norm")]
    for layer in range(1, 5):
        for block in range(2):
            inside = [("conv1", "bn1"), ("conv2", "bn2")]
            if layer > 1 and block == 0:
                inside.append(("downsample.0", "downsample.1"))
            for conv, norm in inside:
                at = f"layer{layer}.{block}"
                tensors.append((f"{at}.{conv}.weight", "conv"))
                tensors += [(f"{at}.{norm}.{part}", "norm") for part in ("weight", "bias")]
    return [*tensors, ("fc.weight", "linear"), ("fc.bias", "bias")]


def deep_perturbation(seed):
    """A perturbation of those 62 tensors."""
    names, kinds = zip(*resnet18(), strict=True)
    rng = np.random.default_rng(seed)
    sizes = np.array([3e5 if kind == "conv" else 512.0 for kind in kinds])
    energy = rng.dirichlet(np.ones(len(names)))
    values = {"density": np.ones(len(names)), "energy_share": energy,
              "parameter_share": sizes / sizes.sum()}  # fmt: skip
    coords = {
        "tensor": np.array(names, dtype=object),
        "kind": ("tensor", np.array(kinds, dtype=object)),
        "size": ("tensor", sizes),
        "ndim": ("tensor", np.array([4 if kind == "conv" else 1 for kind in kinds])),
    }
    variables = {key: Variable("tensor", value, "1", key) for key, value in values.items()}
    variables["rho_eff"] = Variable((), 0.1, "1", "radius")
    return results.make("perturbation", variables, coords=coords, provenance={})


NAMES = [
    "energy_map", "norm_ratio_map", "energy_over_time", "gradient_zscores", "zscore_tails",
    "mask_overlap", "batch_overlap", "saved_mask_overlap", "mask_persistence", "mask_selection",
    "mask_filters", "enrichment", "perturbation_cosines", "perturbation_controls",
    "gradient_noise", "calibration", "norms", "features", "margins", "robustness", "memorization",
]  # fmt: skip
CALLS = {name: name for name in NAMES} | {
    "energy_map": "perturbation_history",
    "norm_ratio_map": "perturbation_history",
    "energy_over_time": "perturbation_history",
    "zscore_tails": "gradient_zscores",
}


# Their marks are those of the others; they are drawn without being rendered, and rendered by hand.
ALIKE = ("norm_ratio_map", "energy_over_time", "batch_overlap", "saved_mask_overlap",
         "perturbation_cosines", "norms", "features", "margins", "robustness")  # fmt: skip


@pytest.mark.thorough
@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[pytest.mark.slow] if n in ALIKE else []) for n in NAMES],
)
def test_both_twins_show_the_measurement(name, data):
    check_figure(name, data[CALLS[name]])


@pytest.mark.parametrize("name", NAMES)
def test_every_panel_shows_something_and_every_caption_says_it(name, data):
    drawn = getattr(figures, name)(data[CALLS[name]])
    assert drawn.name == name
    assert all(panel.marks for panel in drawn.panels)
    assert len(drawn.caption) > 80
    assert "nan" not in drawn.caption.lower().split()


def marks_of(drawn, kind, panel=0, name=None):
    return [
        mark
        for mark in drawn.panels[panel].marks
        if isinstance(mark, kind) and name in (None, mark.name)
    ]


def test_energy_map_is_the_mean_over_seeds_in_depth_order(data):
    drawn = figures.energy_map(data["perturbation_history"])
    (mark,) = marks_of(drawn, grammar.Matrix)
    expected = np.mean([history(seed).energy_share.values.T for seed in range(2)], axis=0)
    np.testing.assert_allclose(mark.values, expected)
    assert mark.rows == tuple(name for name, _ in TENSORS)
    assert mark.log
    strip = {bar.name: bar for bar in marks_of(drawn, grammar.Bars)}
    assert {name: bar.color for name, bar in strip.items()} == {
        kind: style.kind(kind) for _, kind in TENSORS
    }
    assert strip["linear"].y.tolist() == [2.0]


def test_logarithmic_colours_are_those_of_the_values_and_nothing_is_blank(data):
    drawn = figures.energy_map(data["perturbation_history"])
    values = marks_of(drawn, grammar.Matrix)[0].values
    trace = next(t for t in interactive.render(drawn).data if t.type == "heatmap")
    np.testing.assert_allclose(10.0 ** np.asarray(trace.z)[[0, 2, 3]], values[[0, 2, 3]], rtol=1e-5)
    image = static.render(drawn).axes[0].images[0]
    np.testing.assert_array_equal(image.get_array().filled(np.nan)[[0, 2, 3]], values[[0, 2, 3]])
    assert np.isnan(np.asarray(trace.z)[1]).all()
    assert np.isnan(image.get_array().filled(np.nan)[1]).all()


def test_panels_of_one_scale_share_one_colour_bar(data):
    bars = [
        ax
        for ax in static.energy_map(data["perturbation_history"]).axes
        if ax.get_label() == "<colorbar>"
    ]
    assert len(bars) == 1
    page = interactive.energy_map(data["perturbation_history"])
    assert sum(bool(t.showscale) for t in page.data if t.type == "heatmap") == 1


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("perturbation", lambda v, s: deep_perturbation(s)),
        ("energy_map", lambda v, s: history(s, resnet18(), epochs=30)),
    ],
)
def test_sixty_tensors_stay_readable_in_depth_order(name, make):
    """No two row labels overlap on paper, and a row is 15 pixels high or more on a page."""
    ds = study(make)
    drawn = getattr(figures, name)(ds)
    names = [tensor for tensor, _ in resnet18()]
    assert len(names) == 62
    ticks = sorted(drawn.panels[0].y.ticks)
    assert [text for _, text in ticks] == names
    low, high = drawn.panels[0].y.limits
    assert low > high  # downwards: the first tensor is on top
    figure = static.render(drawn)
    renderer = FigureCanvasAgg(figure).get_renderer()
    boxes = sorted(
        (label.get_window_extent(renderer) for label in figure.axes[0].get_yticklabels()),
        key=lambda box: box.y0,
    )
    assert len(boxes) == 62
    # A pixel of 200 dpi: the boxes hold room for accents and descenders that names do not have.
    assert all(b.y0 >= a.y1 - 0.25 * a.height for a, b in itertools.pairwise(boxes))
    page = interactive.render(drawn, width=7.2)
    rows = -(-len(drawn.panels) // 4)
    assert page.layout.height / rows / 62 >= 12
    kinds = dict(resnet18())
    for bar in marks_of(drawn, grammar.Bars):
        if bar.name in style.KINDS:
            assert {kinds[names[int(y)]] for y in bar.y} == {bar.name}


def test_ridges_stand_on_their_rows_with_the_threshold_marked(data):
    ds = data["gradient_zscores"]
    drawn = figures.gradient_zscores(ds)
    filtered = [str(n) for n, d in zip(ds.tensor.values, ds.ndim.values, strict=True) if d > 1]
    assert [text for _, text in drawn.panels[0].y.ticks] == filtered
    (ticks,) = marks_of(drawn, grammar.Points, name="threshold")
    at = next(runs.variants(ds)).ds.sel(tensor=filtered)
    np.testing.assert_allclose(ticks.x[len(filtered) :], at.threshold.median("run"))
    np.testing.assert_allclose(ticks.x[: len(filtered)], -ticks.x[len(filtered) :])
    bands = marks_of(drawn, grammar.Band)
    assert [band.low[0] for band in bands] == [2.0, 1.0, 0.0]
    normal = marks_of(drawn, grammar.Line, name="normal law")[0]
    heights = [band.high - band.low for band in bands]
    # The same scale for the law and for all ridges, and areas of 1 but for what lies beyond 12.
    peak = np.nanmax(normal.y[: len(normal.y) // 3]) - 2.0
    scale = peak / (1 / np.sqrt(2 * np.pi))
    for tall, band in zip(heights, bands, strict=True):
        assert np.trapezoid(tall, band.x) / scale == pytest.approx(1.05, rel=1e-6)
    chosen = figures.gradient_zscores(ds, tensors=("0.weight",), variants=("zsharp",))
    assert len(chosen.panels) == 1
    assert chosen.panels[0].title == "ZSharp"


def test_channels_are_thinned_evenly_and_the_whole_net_is_one_row(monkeypatch):
    risk, _ = cnn_risk(n=24)
    net = measure.gradient_zscores(risk, risk.theta, grouping="net")
    for name in ("gradient_zscores", "zscore_tails"):
        drawn = getattr(figures, name)(net)
        assert marks_of(drawn, grammar.Line, name="all")
    channels = measure.gradient_zscores(risk, risk.theta, grouping="channel")
    wide = [str(n) for n in channels.tensor.values[channels.ndim.values > 1]]
    monkeypatch.setattr(zscores, "MOST", 4)
    drawn = figures.gradient_zscores(channels)
    assert [text for _, text in drawn.panels[0].y.ticks] == wide[::4]
    assert f"{len(wide[::4])} of {len(wide)} rows, evenly." in drawn.caption


def test_labels_stand_in_their_own_panel(data):
    """The thresholds of the second variant are not written over those of the first."""
    drawn = figures.gradient_zscores(data["gradient_zscores"])
    page = interactive.render(drawn)
    for index, panel in enumerate(drawn.panels):
        texts = [mark.text for mark in panel.marks if isinstance(mark, grammar.Label)]
        axis = f"x{index + 1 if index else ''}"
        assert [a.text for a in page.layout.annotations if a.xref == axis] == texts
        assert len(texts) == 3


def test_tails_show_every_law_and_what_is_kept(data):
    ds = data["gradient_zscores"]
    drawn = figures.zscore_tails(ds)
    assert len(drawn.panels) == 6  # two variants, three panels each
    exceedance, quantiles, lorenz = drawn.panels[:3]
    for panel in (exceedance, quantiles, lorenz):
        named = {mark.name for mark in panel.marks}
        assert {"normal law", "Laplace", "t, 5 degrees", "t, 3 degrees"} <= named
    at = ds.sel(tensor="3.weight").isel(run=0)
    line = next(m for m in exceedance.marks if m.name == "3.weight")
    np.testing.assert_allclose(line.y, at.exceedance.where(at.exceedance > 0))
    dots = next(m for m in lorenz.marks if m.name == "kept")
    kept = ds.captured_energy.isel(run=0).sel(tensor=["0.weight", "3.weight"])
    np.testing.assert_allclose(dots.y, kept)
    normal = next(m for m in quantiles.marks if m.name == "normal law")
    np.testing.assert_allclose(normal.x, normal.y, atol=1e-9)


def test_selection_pools_what_is_selected_in_part(data):
    ds = data["mask_selection"]
    drawn = figures.mask_selection(ds)
    found = next(runs.variants(ds)).ds
    line = marks_of(drawn, grammar.Line, name="SAM")[0]
    share = found.share.sel(tensor="conv.weight").mean("run")
    np.testing.assert_allclose(line.y, share.where(share > 0))
    chance = marks_of(drawn, grammar.Line, name="independent draws")[0]
    np.testing.assert_allclose(chance.y, found.expected_share.sel(tensor="conv.weight").mean("run"))
    assert f"dispersion {float(found.over_dispersion.median()):.2g}" in drawn.panels[0].title


def test_selection_weighs_tensors_by_their_size():
    def two(_, seed):
        rng = np.random.default_rng(seed)
        pairs = [
            (t, PackedMasks.of({"a": rng.random(30) < 0.5, "b": rng.random(90) < 0.1}))
            for t in range(6)
        ]
        return measure.mask_selection(pairs)

    ds = study(two, variants=("zsharp",), seeds=1)
    line = marks_of(figures.mask_selection(ds), grammar.Line, name="ZSharp")[0]
    share = ds.share.isel(run=0)
    expected = 0.25 * share.sel(tensor="a") + 0.75 * share.sel(tensor="b")
    np.testing.assert_allclose(line.y, expected.where(expected > 0))


def test_a_mask_that_outlasts_the_record_has_a_hollow_half_life(data):
    drawn = figures.mask_persistence(data["mask_persistence"])
    assert [text for _, text in drawn.panels[0].y.ticks] == ["SAM", "ZSharp"]
    kept, new = marks_of(drawn, grammar.Points)
    assert kept.hollow.all()
    assert set(kept.x) == {float(data["mask_persistence"].lag.max())}
    assert not new.hollow.any()
    low, high = drawn.panels[0].x.limits  # a wide axis, whatever the half-lives
    assert low < 0.5
    assert high > float(data["mask_persistence"].lag.max())
    expected = data["mask_persistence"].half_life.values[2:]
    np.testing.assert_allclose(new.x, expected)
    assert {r.text for r in marks_of(drawn, grammar.Rule, panel=1)} == {"chance", "half"}


def test_enrichment_draws_the_interval_of_random_masks_around_one(data):
    ds = data["enrichment"]
    drawn = figures.enrichment(ds)
    quantities = [name for name in ds.data_vars if name.startswith("enrichment_")]
    assert len(drawn.panels) == len(quantities)  # at theta of SAM, the only reference there is
    names = [str(name) for name in ds.direction.values]
    panel = next(i for i, p in enumerate(drawn.panels) if p.title.endswith("Fisher information"))
    assert drawn.share_x == "all"  # one scale
    assert [r.value for r in marks_of(drawn, grammar.Rule, panel)] == [1.0]
    at = next(runs.variants(ds)).ds
    bars = marks_of(drawn, grammar.Bars, panel)
    np.testing.assert_allclose([float(bar.x[0]) for bar in bars], at.chance_high_fisher.mean("run"))
    low = np.maximum(at.chance_low_fisher.mean("run"), 0.05)
    np.testing.assert_allclose([bar.base for bar in bars], low)
    dot = marks_of(drawn, grammar.Points, panel, names[0])[-1]
    values = at.enrichment_fisher.sel(direction=names[0]).values
    np.testing.assert_allclose(dot.x, np.exp(np.log(values).mean()))


def test_controls_stand_beside_the_variant_with_the_spread_of_draws(data):
    ds = data["perturbation_controls"]
    drawn = figures.perturbation_controls(ds)
    assert [panel.x.label for panel in drawn.panels[:3]] == [
        "‖e‖",
        "rise on the batch",
        "rise on all data",
    ]
    assert [text for _, text in drawn.panels[0].y.ticks] == [str(c) for c in ds.control.values]
    at = next(runs.variants(ds)).ds.sel(support="all tensors")
    values = at.loss_increase_full.sel(control="variant").values
    rule = marks_of(drawn, grammar.Rule, panel=2)[0]
    assert rule.value == pytest.approx(np.exp(np.log(values).mean()))
    random = "random, equal radius"
    row = [str(c) for c in ds.control.values].index(random)
    here = [
        m
        for m in marks_of(drawn, grammar.Points, panel=2, name="all tensors")
        if np.isfinite(m.y[0]) and round(float(m.y[0])) == row
    ]
    seeds = next(m for m in here if m.x_high is not None)
    mean, std = (at[f"loss_increase_full{part}"].sel(control=random) for part in ("", "_std"))
    np.testing.assert_allclose(seeds.x, mean)
    np.testing.assert_allclose(seeds.x_high, mean + 2 * std)
    drawn_ones = [m for m in marks_of(drawn, grammar.Points, panel=2) if not np.isnan(m.x).all()]
    key = [m for m in marks_of(drawn, grammar.Points, panel=2) if np.isnan(m.x).all()]
    assert [(m.name, bool(m.hollow[0]), m.legend) for m in key] == [
        ("all tensors", False, True),
        ("without 1-D tensors", True, True),
    ]
    large = [m for m in drawn_ones if m.x_high is None]
    assert {m.name: bool(m.hollow[0]) for m in large} == {
        "all tensors": False,
        "without 1-D tensors": True,
    }


def test_a_variant_that_selects_everything_has_no_row_of_controls(data):
    ds = data["perturbation_controls"].copy(deep=True)
    ds.radius[:2] = ds.radius[:2].isel(control=[0]).values
    drawn = figures.perturbation_controls(ds)
    assert [panel.title for panel in drawn.panels if panel.title] == ["ZSharp"]
    assert "one and the same for SAM." in drawn.caption


def test_filters_are_named_by_channel_and_shown_on_one_scale(data):
    ds = data["mask_filters"]
    drawn = figures.mask_filters(ds)
    first, second = (marks_of(drawn, grammar.Matrix, panel)[0] for panel in range(2))
    over = ds.frequency.isel(run=0) / float(ds.expected.isel(run=0))
    np.testing.assert_allclose(first.values, over)
    np.testing.assert_allclose(first.coloured, np.clip(over, 0.25, 4))
    assert "triangle that points up or down" in drawn.caption
    assert first.limits == second.limits
    assert drawn.title == "Which filters of conv.weight are selected?"
    spread = float(ds.over_dispersion.isel(run=0))
    assert drawn.panels[0].title.endswith(f"% selected\nspread {spread:.2g} × chance")


def test_noise_scales_are_geometric_means_and_hidden_signals_are_counted(data):
    ds = data["gradient_noise"]
    scale = np.linspace(10.0, 1e4, ds.sizes["run"])
    whole = figures.gradient_noise(ds.assign(noise_scale=("run", scale)))
    assert whole.panels[1].x.log
    big = [m for m in marks_of(whole, grammar.Points, panel=1) if m.size == 4.5]
    mine = scale[ds.variant.values == next(iter(runs.variants(ds))).id]
    assert big[0].x[0] == pytest.approx(np.exp(np.log(mine).mean()))
    assert "hides the signal" not in whole.caption
    hidden = figures.gradient_noise(ds.assign(noise_scale=("run", np.append(scale[:-1], np.nan))))
    assert f"without the 1 of {len(scale)} runs where noise hides the signal" in hidden.caption


def test_one_seed_is_not_called_a_mean(data):
    one = runs.first_seeds(data["batch_overlap"])
    assert "First seed." in figures.batch_overlap(one).caption
    assert "t-interval" not in figures.batch_overlap(one).caption


def test_calibration_leaves_empty_bins_out(data):
    drawn = figures.calibration(data["calibration"])
    line = marks_of(drawn, grammar.Line, panel=1, name="SAM")[0]
    full = data["calibration"]["count"].isel(run=0) > 0
    assert len(line.x) == int(full.sum())
    assert np.isfinite(line.x).all()


def test_robustness_begins_with_what_is_undisturbed(data):
    ds = data["robustness"]
    drawn = figures.robustness(ds)
    line = marks_of(drawn, grammar.Line, name="SAM")[0]
    assert line.x.tolist() == [0, 1, 2, 3, 4, 5]
    clean = ds.clean_accuracy.isel(run=slice(0, 2)).mean()
    assert line.y[0] == pytest.approx(100 * float(clean))


def test_what_can_mislead_says_so(data):
    """Constant densities, correlated coordinates, kept masks, unlike severities, confounders."""
    said = {
        "perturbation": "density is constant by construction",
        "mask_overlap": "Filters are correlated",
        "mask_selection": "kept for longer than they are apart still counts as dispersion",
        "mask_filters": "kept for longer than they are apart still counts as spread",
        "zscore_tails": "any law is rejected",
        "enrichment": "at 1 by construction",
        "perturbation_controls": "not better training",
        "norms": "has the same function at any norm",
        "features": "compare within a row",
        "robustness": "not comparable between panels",
        "memorization": "stopped early fits fewer wrong labels",
        "saved_mask_overlap": "not independent",
    }
    for name, words in said.items():
        ds = (
            study(lambda v, s: deep_perturbation(s))
            if name == "perturbation"
            else data[CALLS[name]]
        )
        assert words in getattr(figures, name)(ds).caption.replace("\n", " "), name


def test_memorization_says_what_it_lacks(data):
    whole = data["memorization"]
    assert len(figures.memorization(whole).panels) == 4
    assert "both fits over them" in figures.memorization(whole).caption
    last = whole.drop_vars([name for name in whole.data_vars if "epoch" in str(whole[name].dims)])
    last = last.drop_vars([name for name in last.data_vars if str(name).startswith("forgetting")])
    drawn = figures.memorization(last)
    assert len(drawn.panels) == 1
    assert "need weights kept on the way (keep_every)" in drawn.caption
    clean = last.assign({n: last[n] * np.nan for n in ("mislabelled_fit", "mislabelled_recovered")})
    assert "no label is known to be wrong" in figures.memorization(clean).caption


def test_a_variant_without_dead_units_has_an_axis_from_zero(data):
    none = data["features"].assign(dead_share=0 * data["features"].dead_share)
    assert figures.features(none).panels[2].x.limits == (-0.1, 1.0)
    assert figures.features(data["features"]).panels[0].x.limits is None


def test_results_without_the_variables_are_named(data):
    without = data["gradient_zscores"].drop_vars(["exceedance", "lorenz"])
    with pytest.raises(LandscapeError, match=r"This figure needs exceedance, lorenz; the result"):
        figures.zscore_tails(without)
    without = data["perturbation_history"].drop_vars("norm_ratio")
    with pytest.raises(LandscapeError, match=r"This figure needs norm_ratio; the result"):
        figures.norm_ratio_map(without)


def test_a_single_result_needs_no_study():
    risk, _ = cnn_risk()
    drawn = figures.norms(measure.norms(risk, risk.theta))
    assert len(drawn.panels) == 1  # no initial weights: no distance
    assert {m.name for m in marks_of(drawn, grammar.Points)} == {"This model"}


def test_a_radius_that_only_rounding_moves_is_drawn_as_a_flat_line(data):
    ds = data["perturbation_history"].copy()
    signs = (-1.0) ** np.arange(ds.sizes["epoch"])
    ds["radius_ratio"] = ("run", "epoch"), np.tile(1 + 1e-7 * signs, (ds.sizes["run"], 1))
    axis = figures.perturbation_over_time(ds).panels[0].y
    assert axis.limits == pytest.approx((0.95, 1.05), abs=1e-3)


def deep(layers, per_layer=4):
    """A result of a deep network: `layers` blocks of attention, two linear layers and a norm."""
    names = [
        f"model.encoder.layer.{i}.{part}"
        for i in range(layers)
        for part in ("attn.qkv.weight", "mlp.0.weight", "mlp.2.weight", "norm.weight")[:per_layer]
    ]
    kinds = ["norm" if "norm" in name else "linear" for name in names]
    sizes = np.array([10 if kind == "norm" else 1000 for kind in kinds])
    rng = np.random.default_rng(0)
    energy = rng.random((2, len(names)))
    energy /= energy.sum(1, keepdims=True)
    density = np.where(np.array(kinds) == "norm", 1.0, rng.random((2, len(names))))
    return xr.Dataset(
        {
            "energy_share": (("run", "tensor"), energy),
            "parameter_share": (("run", "tensor"), np.tile(sizes / sizes.sum(), (2, 1))),
            "density": (("run", "tensor"), density),
            "rho_eff": ("run", [0.1, 0.2]),
        },
        coords={
            "tensor": names, "kind": ("tensor", kinds), "size": ("tensor", sizes),
            "run": ["a", "b"], "variant": ("run", ["sam", "sam"]), "label": ("run", ["SAM"] * 2),
            "setting": ("run", ["", ""]), "seed": ("run", [0, 1]),
        },
    )  # fmt: skip


@pytest.mark.parametrize(("layers", "rows"), [(3, 12), (18, 72), (30, 60), (150, 72)])
def test_many_tensors_become_rows_of_layers_that_lose_no_energy(layers, rows):
    ds = deep(layers)
    shown, words = shared.by_layer(ds)
    assert shown.sizes["tensor"] <= rows
    for name in ("energy_share", "parameter_share"):
        np.testing.assert_allclose(shown[name].sum("tensor"), ds[name].sum("tensor"))
    names = [str(name) for name in shown.tensor.values]
    assert not any(name.startswith("model.encoder") for name in names)
    assert len(set(names)) == len(names)
    assert bool(words) == (ds.sizes["tensor"] > 72)
    drawn = figures.perturbation(ds.assign_coords(place=("run", [0, 0])))
    assert len(drawn.panels[0].y.ticks) == shown.sizes["tensor"]
    assert drawn.panel_height < 8.6


def test_the_density_of_rows_put_together_is_that_of_their_coordinates():
    ds = deep(30)
    shown, _ = shared.by_layer(ds)
    first = [str(n).startswith("0") and k == "linear" for n, k in
             zip(shown.tensor.values, shown.kind.values, strict=True)]  # fmt: skip
    (row,) = np.flatnonzero(first)
    expected = (ds.density * ds["size"]).isel(tensor=[0, 1, 2]).sum("tensor") / 3000
    np.testing.assert_allclose(shown.density.isel(tensor=row), expected)


@pytest.mark.parametrize("name", ["mask_selection", "mask_filters"])
def test_results_that_count_the_snapshots_of_a_burst_say_so(data, name):
    told = json.loads(data[name].attrs["provenance"])
    runs = [{k: v for k, v in run.items() if k != "num_recorded"} for run in told["runs"]]
    older = data[name].assign_attrs(provenance=json.dumps(told | {"runs": runs}))
    drawn = getattr(figures, name)(older)
    assert "masks that are kept for some steps look persistent" in drawn.caption
