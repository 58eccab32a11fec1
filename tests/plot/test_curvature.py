"""Figures of curvature: both twins carry the numbers that were measured, and nothing more."""

import numpy as np
import pytest
from scipy.stats import norm

from landscape.errors import LandscapeError
from landscape.plot import drawing as grammar
from landscape.plot import figures, interactive
from tests.figure_checks import check_figure
from tests.fixtures_curvature import MAKERS, measured
from tests.measure_problems import cnn_risk

CALLS = {
    **{name: (name,) for name in MAKERS},
    "gauss_newton_eigenvalues": ("gauss_newton_eigenvalues", "top_eigenvalues"),
    "critical_sharpness": ("critical_sharpness", "top_eigenvalues"),
    "sharpness_terms": ("sharpness",),
    "spectral_views": ("spectral_density",),
}


@pytest.fixture(scope="module")
def data():
    return measured(*MAKERS)


def draw(data, name, **options):
    return getattr(figures, name)(*(data[key] for key in CALLS[name]), **options)


def marks(panel, kind, name=None):
    return [m for m in panel.marks if isinstance(m, kind) and name in (None, m.name)]


@pytest.mark.thorough
@pytest.mark.parametrize("name", CALLS)
def test_both_twins_carry_the_drawing(data, name):
    drawn = check_figure(name, *(data[key] for key in CALLS[name]))
    assert all(panel.marks for panel in drawn.panels)
    assert "{" not in drawn.caption
    assert "None" not in drawn.caption


def test_bars_of_blocks_are_shares_of_the_trace_beside_those_of_the_parameters(data):
    ds = data["block_curvature"]
    drawn = draw(data, "block_curvature")
    assert [text for _, text in drawn.panels[0].y.ticks] == list(ds["block"].values)
    first = drawn.panels[0]
    (owned,) = marks(first, grammar.Points, "share of the parameters")
    np.testing.assert_allclose(owned.x, ds.parameter_share.isel(run=0))
    (_, shares) = marks(first, grammar.Points, "share of the trace")  # the first is the key
    trace = ds.trace.isel(run=[0, 1])
    share = (trace / trace.sum("block")).mean("run").values
    np.testing.assert_allclose(shares.x, share[share > first.x.limits[0]])
    assert len(shares.x) + sum(len(m.x) for m in marks(first, grammar.Points, "negative trace")) > 2


def test_spectra_stand_on_one_grid_and_integrate_to_one(data):
    drawn = draw(data, "spectral_density", reference="none")
    grids = [marks(panel, grammar.Line)[0].x for panel in drawn.panels]
    np.testing.assert_array_equal(grids[0], grids[1])
    for panel in drawn.panels:
        (line,), bands = marks(panel, grammar.Line), marks(panel, grammar.Band)
        mass = np.nansum(line.y) * (line.x[1] - line.x[0])
        assert mass == pytest.approx(1, abs=0.01)
        shown = np.isfinite(line.y)
        # Bands leave out what the line leaves out.
        np.testing.assert_array_equal(np.concatenate([band.x for band in bands]), line.x[shown])
        low, high = (np.concatenate([getattr(b, end) for b in bands]) for end in ("low", "high"))
        assert (low <= line.y[shown]).all()
        assert (line.y[shown] <= high).all()


def test_the_logarithmic_view_holds_positive_and_negative_parts(data):
    drawn = draw(data, "spectral_views")
    ds = data["spectral_density"].isel(run=0)
    lines = marks(drawn.panels[1], grammar.Line, "SGD")
    for line, sign in zip(lines, (1, -1), strict=True):
        # What a Gaussian of 0.1 decades around each value puts between the ends of the grid.
        size = np.log10(np.maximum(np.abs(ds.ritz_value.values), 1e-9))
        ends = [norm.cdf((np.log10(end) - size) / 0.1) for end in (line.x[0], line.x[-1])]
        part = ds.weight.values * (sign * ds.ritz_value.values > 0)
        expected = float((part * (ends[1] - ends[0])).sum(1).mean())
        found = np.trapezoid(np.nan_to_num(line.y), np.log10(line.x))
        assert found == pytest.approx(expected, abs=0.005)
    dimension = marks(drawn.panels[2], grammar.Line, "SGD")[0]
    np.testing.assert_array_equal(dimension.y, ds.effective_dimension)
    negative = marks(drawn.panels[3], grammar.Line, "SGD")[0]
    share = (ds.weight * (ds.ritz_value < -negative.x[10])).sum("node").mean()
    assert negative.y[10] == pytest.approx(100 * float(share))
    bare = data["spectral_density"].drop_dims("shift")
    assert len(figures.spectral_views(bare).panels) == 3


def test_bounds_of_eigenvalues_are_drawn_and_unconverged_ones_are_hollow(data):
    ds = data["top_eigenvalues"]
    drawn = draw(data, "top_eigenvalues")
    seeds = [m for m in marks(drawn.panels[0], grammar.Points) if m.hollow is not None]
    width = np.concatenate([(m.x_high - m.x_low) / 2 for m in seeds])
    assert sorted(width) == pytest.approx(sorted(ds.bound.values.ravel()), rel=1e-3, abs=1e-15)
    assert sum(int(m.hollow.sum()) for m in seeds) == int((~ds.converged).sum())


def test_terms_of_the_step_are_drawn_with_their_ratio(data):
    terms, ratio = draw(data, "sharpness_terms").panels
    ds = data["sharpness"].isel(run=[0, 1])
    first, second = marks(terms, grammar.Line, "SGD")
    for line, name in ((first, "one_step_first_order"), (second, "one_step_second_order")):
        np.testing.assert_allclose(line.y, np.exp(np.log(ds[name]).mean("run")))
    assert (first.dash, second.dash) == ("solid", "dash")
    np.testing.assert_allclose(marks(ratio, grammar.Line, "SGD")[0].y, second.y / first.y)


def test_words_beside_a_rule_stand_at_its_value_on_logarithmic_axes(data):
    for page, axis, value in (
        (interactive.alignment(data["alignment"]), "x", 2 / len(cnn_risk()[0].theta)),
        (interactive.sharpness_terms(data["sharpness"]), "y", 1.0),
    ):
        texts = ("k/P", "curvature counts as much")
        beside = [note for note in page.layout.annotations if note.text in texts]
        assert beside
        for note in beside:
            assert note[axis] == pytest.approx(np.log10(value))
            assert note[f"{'y' if axis == 'x' else 'x'}ref"].endswith(" domain")


def test_batches_lie_beside_the_whole(data):
    ds = data["minibatch_eigenvalues"]
    (panel,) = draw(data, "minibatch_eigenvalues").panels
    whole = np.concatenate([m.x for m in marks(panel, grammar.Points, "all examples")])
    assert sorted(whole) == pytest.approx(sorted(ds.whole_eigenvalue.values.ravel()))
    dots = np.concatenate([m.x for m in marks(panel, grammar.Points, "SAM")])
    assert sorted(dots) == pytest.approx(sorted(ds.eigenvalue.isel(run=[2]).values.ravel()))


def test_the_bracket_ends_in_all_examples(data):
    ds = data["data_bracket"]
    panel = draw(data, "data_bracket").panels[0]
    (upper,) = marks(panel, grammar.Points, "λ₁ of all examples")
    assert upper.x[0] == 24
    assert upper.y[0] == pytest.approx(float(ds.upper.isel(run=[0, 1]).mean()))
    above, below = marks(panel, grammar.Line)
    np.testing.assert_array_equal(above.x, [6, 12, 24])
    np.testing.assert_array_equal(below.x, [6, 12, 12])
    means = ds.sized_eigenvalue.isel(run=[0, 1]).mean(["run", "batch"])
    np.testing.assert_allclose(above.y[:2], means)


def test_edges_of_stability_stand_beside_the_curvature(data):
    ds = data["training_curvature"]
    panel = draw(data, "training_curvature").panels[1]
    (sam_edge,) = marks(panel, grammar.Line, "λ* of SAM")
    mean = ds.sam_edge.isel(run=[2]).mean("run").values
    assert sam_edge.y[0] == pytest.approx(mean[0])
    # At rate 0 nothing diverges: the edge is beyond the panel, along whose upper end it runs.
    assert sam_edge.y[1] == pytest.approx(0.97 * panel.y.limits[1])
    (curve,) = marks(panel, grammar.Line, "SAM")
    assert curve.y[0] == pytest.approx(
        float(np.exp(np.log(ds.eigenvalue.isel(run=[2], rank=0, epoch=0)).mean()))
    )


def test_alignment_is_drawn_against_both_chances(data):
    ds = data["alignment"]
    panel = draw(data, "alignment").panels[0]
    (rule,) = marks(panel, grammar.Rule)
    assert rule.value == pytest.approx(2 / len(cnn_risk()[0].theta))
    assert [text for _, text in panel.y.ticks] == ["gradient", "SAM", "SAM-ON"]
    matched = marks(panel, grammar.Points, "same energy per tensor")[-1]
    expected = np.exp(np.log(ds.expected_matched.isel(run=[0, 1])).mean("run"))
    np.testing.assert_allclose(matched.x, expected)


def test_critical_sharpness_stands_beside_the_eigenvalue_where_that_was_measured(data):
    both = draw(data, "critical_sharpness").panels[0]
    alone = figures.critical_sharpness(data["critical_sharpness"]).panels[0]
    assert len(both.marks) == 2 * len(alone.marks)
    lost = data["critical_sharpness"].copy(deep=True)
    lost["bracketed"].values[0] = False
    assert "Left out: 1 run without a bracket" in figures.critical_sharpness(lost).caption


def test_a_result_of_another_kind_is_refused_by_name(data):
    with pytest.raises(LandscapeError, match="needs captured, expected_isotropic"):
        figures.alignment(data["sharpness"])
    with pytest.raises(LandscapeError, match="needs sized_eigenvalue"):
        figures.data_bracket(data["sharpness"])
