"""Figures of planes and of what lies between solutions: both twins carry the same numbers."""

import numpy as np
import plotly.graph_objects as go
import pytest
import torch
import xarray as xr

from landscape import LandscapeError, measure, plane, results, surfaces
from landscape.plot import drawing as grammar
from landscape.plot import figures, interactive, static, ticks
from tests.figure_checks import check_figure
from tests.measure_problems import cnn_risk, quadratic

VARIANTS = {"sgd": "SGD", "sam": "SAM", "zsharp": "ZSharp"}
SEEDS = (0, 1)


def labels(variant, seed):
    return {
        "run": f"{variant}-s{seed}-x", "variant": variant, "label": VARIANTS[variant],
        "setting": "noisy", "seed": seed,
    }  # fmt: skip


def each(make, *, seeds=SEEDS):
    """One result of `make(risk, theta, seed)` per variant and seed, combined."""
    parts = []
    for offset, variant in enumerate(VARIANTS):
        for seed in seeds:
            risk, _ = cnn_risk(seed=10 * offset + seed)
            parts.append((labels(variant, seed), make(risk, risk.theta, seed)))
    return results.combine(parts)


@pytest.fixture(scope="module")
def planes():
    return each(lambda r, w, _: measure.loss_plane(r, w, points=5, radius=0.5, bn="eval", seed=0))


def marks(drawn, kind):
    return [mark for panel in drawn.panels for mark in panel.marks if isinstance(mark, kind)]


def test_one_unit_of_every_plane_is_as_long_up_as_across(planes):
    page = interactive.loss_plane(planes)
    held = [a for a in (*page.select_xaxes(), *page.select_yaxes()) if a.scaleanchor]
    assert len(held) == len(VARIANTS)
    assert all(axis.matches is None and axis.scaleratio == 1 for axis in held)  # or it is ignored
    assert len({axis.plotly_name[1:] for axis in held}) == len(VARIANTS)


def test_planes_share_levels_show_the_checkpoint_and_both_cuts(planes):
    slices = each(
        lambda r, w, _: measure.loss_slice(r, w, num_directions=3, points=3, bn="eval", seed=0),
        seeds=(0,),
    )
    drawn = check_figure("loss_plane", planes, slices, setting="noisy")
    found = marks(drawn, grammar.Contours)
    assert len(found) == 3
    assert all(np.array_equal(mark.levels, found[0].levels) for mark in found)
    first = planes.loss.isel(run=0)
    np.testing.assert_array_equal(found[0].values, first - first.min())
    assert f"lowest {ticks.short(float(first.min()))}" in drawn.panels[0].title
    np.testing.assert_allclose(np.diff(np.sqrt(found[0].levels), 2), 0, atol=1e-12)
    whole = marks(figures.loss_plane(planes, rise=False), grammar.Contours)
    np.testing.assert_array_equal(whole[0].values, first)
    assert sum(mark.name == "checkpoint" for mark in marks(drawn, grammar.Points)) == 3
    alpha, beta = (panel.marks[0] for panel in drawn.panels[3:])
    np.testing.assert_array_equal(alpha.y, planes.loss.isel(run=0).sel(beta=0.0))
    np.testing.assert_array_equal(beta.y, planes.loss.isel(run=0).sel(alpha=0.0))
    assert "Illustration, not evidence" in drawn.caption
    end = slices.loss.isel(alpha=-1) - slices.loss.sel(alpha=0.0)
    spread = float((end.std("direction", ddof=1) / end.mean("direction")).median())
    assert f"standard deviation of {100 * spread:.0f} % of its mean" in drawn.caption
    assert "standard deviation" not in figures.loss_plane(planes).caption


def test_test_loss_and_errors_are_drawn_where_they_were_measured():
    risk, _ = cnn_risk()
    test, _ = cnn_risk(n=30)
    call = {"radius": 0.5, "bn": "eval", "also": {"test": test}, "seed": 0}
    flat = measure.loss_plane(risk, risk.theta, points=5, **call)
    line = measure.loss_slice(risk, risk.theta, points=9, num_directions=3, **call)
    for variable, title in (
        ("error_rate", "Error rate"),
        ("test_loss", "Loss (test)"),
        ("test_error_rate", "Error rate (test)"),
    ):
        drawn = check_figure("loss_plane", flat, variable=variable)
        (mark,) = marks(drawn, grammar.Contours)
        np.testing.assert_array_equal(mark.values, flat[variable] - flat[variable].min())
        name = title[0].lower() + title[1:]
        assert mark.name == f"{name} above the lowest of its plane"
        assert drawn.title.split(" on a")[0] == title
        assert drawn.panels[1].y.label == name
        np.testing.assert_array_equal(
            marks(check_figure("loss_surface", flat, variable=variable), grammar.Surface)[0].values,
            flat[variable],
        )
        drawn = check_figure("loss_slice", line, variable=variable)
        assert drawn.title == f"{title} along random directions"
        np.testing.assert_allclose(
            marks(drawn, grammar.Line)[0].y, line[variable].mean("direction"), rtol=1e-12
        )
    with pytest.raises(LandscapeError, match="This figure needs holdout_loss; the result is loss_"):
        figures.loss_slice(line, variable="holdout_loss")


def test_captions_say_how_the_directions_were_made():
    risk, _ = cnn_risk()
    w = risk.theta

    def caption(directions, name="loss_plane"):
        call = {"directions": directions, "points": 3, "bn": "eval", "seed": 0}
        return getattr(figures, name)(getattr(measure, name)(risk, w, **call)).caption

    draw = lambda n=2, **how: plane.random(risk, w, num_directions=n, seed=0, **how)  # noqa: E731
    assert "(normalized per filter to each model's own weights)" in caption(draw())
    assert "(normalized per tensor to common weights)" in caption(
        draw(normalize="layer", reference=2 * w)
    )
    assert "(of the length of each model's own weights)" in caption(draw(normalize="global"))
    assert "(not normalized, then orthogonalized)" in caption(
        plane.orthogonalized(draw(normalize="none"))
    )
    assert "α = 1 is a different distance in each" in caption(draw(), "loss_slice")
    common = caption(draw(n=3, reference=2 * w), "loss_slice")
    assert "normalized per filter to common weights." in common
    assert "Cosine of two directions at most 0." in common
    assert "speaks about these checkpoints alone" in common
    assert "Objective: mean CrossEntropyLoss, without weight decay" in common
    through = caption(plane.through(w, moved(w, 1), moved(w, 2)))
    assert "Axes: ['a to b', 'a to c']; coordinates are in units of their lengths." in through
    unit = plane.perturbations(w, {"sam": moved(w, 1) - w, "asam": moved(w, 2) - w})
    assert "Axes: ['sam', 'asam']; coordinates are distances." in caption(unit)
    flat = caption(unit, "curvature_map")
    assert "illustration" not in flat
    assert "Cosine of the axes at most 0." in flat
    assert "illustration, not evidence" in caption(draw(), "curvature_map")


def test_values_that_are_not_finite_are_hatched_and_never_interpolated(planes):
    ds = planes.copy(deep=True)
    ds.loss.values[0, 0, 1], ds.loss.values[0, 4, 4] = np.nan, np.inf
    drawn = check_figure("loss_plane", ds)
    (gap,) = marks(drawn, grammar.Gaps)
    assert (~np.isfinite(gap.values)).sum() == 2
    assert "Hatched: the loss is not finite there." in drawn.caption
    page = interactive.loss_plane(ds)
    (heat,) = [trace for trace in page.data if trace.name == "not finite"]
    assert heat.text[1][0] == "NaN"
    assert heat.text[4][4] == "infinity"
    contour = next(trace for trace in page.data if isinstance(trace, go.Contour))
    assert np.isnan(np.asarray(contour.z, float)).sum() == 2
    assert not contour.connectgaps
    paper = static.loss_plane(ds)
    hatched = [c for c in paper.axes[0].collections if getattr(c, "get_hatch", lambda: None)()]
    assert len(hatched) == 1
    np.testing.assert_array_equal(
        np.ma.getmaskarray(hatched[0].get_array()).reshape(5, 5), np.isfinite(gap.values.T)
    )


def test_adaptive_planes_tell_evaluated_cells_from_interpolated_ones():
    risk, _, _ = quadratic([3.0, 1.0, 0.2])
    ds = measure.loss_plane(
        risk, risk.theta, one_d="random", points=31, bn="eval", tolerance=1e-3, seed=0
    )
    drawn = check_figure("loss_plane", ds)
    (dots,) = [m for m in marks(drawn, grammar.Points) if m.name == "evaluated cells"]
    assert len(dots.x) == int(ds.evaluated.sum()) < 31 * 31
    i, j = np.nonzero(ds.evaluated.values)
    np.testing.assert_array_equal(dots.x, ds.alpha.values[i])
    np.testing.assert_array_equal(dots.y, ds.beta.values[j])
    assert "the others are interpolated within 0.001 of the loss" in drawn.caption
    assert "Dots" not in figures.loss_surface(ds).caption


def test_planes_below_zero_are_drawn_on_a_linear_scale():
    risk, _, _ = quadratic([3.0, -1.0, 0.2])
    ds = measure.loss_plane(risk, risk.theta, one_d="random", points=5, bn="eval", seed=0)
    drawn = check_figure("loss_plane", ds, rise=False)
    (mark,) = marks(drawn, grammar.Contours)
    assert not mark.log
    np.testing.assert_allclose(np.diff(mark.levels), np.diff(mark.levels)[0])


def test_surfaces_rotate_in_single_precision_with_the_values_to_hover(planes):
    drawn = check_figure("loss_surface", planes)
    page = interactive.loss_surface(planes)
    traces = [trace for trace in page.data if isinstance(trace, go.Surface)]
    assert len(traces) == 3
    for trace, mark in zip(traces, marks(drawn, grammar.Surface), strict=True):
        assert trace.z.dtype == trace.customdata.dtype == np.float32
        np.testing.assert_allclose(trace.customdata, mark.values.T, rtol=1e-6)
        np.testing.assert_allclose(trace.z, mark.values.T, rtol=1e-5)
        assert trace.contours.z.project.z
        assert "customdata" in trace.hovertemplate
    assert len(page.to_json()) < 60_000
    paper = static.loss_surface(planes)
    assert [ax.name for ax in paper.axes] == ["3d"] * 3
    titles = [ax.get_title(loc="left") or ax.get_title() for ax in paper.axes]
    assert titles == list(VARIANTS.values())


def test_surfaces_have_holes_where_the_loss_is_not_finite(planes):
    ds = planes.copy(deep=True)
    ds.loss.values[:, 0, 0] = np.inf
    assert "Holes" in check_figure("loss_surface", ds).caption
    page = interactive.loss_surface(ds)
    assert np.isnan(page.data[0].z[0, 0])
    assert not page.data[0].connectgaps
    ds.loss.values[:, 0] = ds.loss.values[:, -1] = np.nan
    page = interactive.loss_surface(ds)
    assert page.layout.scene.xaxis.range == (-0.5, 0.5)
    assert figures.loss_plane(ds).panels[3].x.limits == (-0.5, 0.5)


def test_the_difference_marks_the_cells_whose_interval_excludes_zero(planes):
    drawn = check_figure("plane_difference", planes, setting="noisy", reference="sgd")
    assert [panel.title.split("\n")[0] for panel in drawn.panels] == ["SAM", "ZSharp"]
    direct = surfaces.difference(planes, variant="sam", reference="sgd", scale="log_loss")
    field = drawn.panels[0].marks[0]
    np.testing.assert_array_equal(field.values, direct.difference)
    assert field.limits[0] == -field.limits[1]
    surely = (direct.low.values > 0) | (direct.high.values < 0)
    dots = [m for m in drawn.panels[0].marks if isinstance(m, grammar.Points)]
    assert sum(len(m.x) for m in dots) == surely.sum()
    one = planes.isel(run=planes.seed.values == 0)
    assert not figures.plane_difference(one).panels
    for twins in (static, interactive):
        with pytest.raises(
            LandscapeError, match="'plane_difference' has nothing to draw from this"
        ):
            twins.plane_difference(one)


def test_certain_cells_are_dots():
    one = xr.Dataset({"loss": (("alpha", "beta"), np.ones((3, 3)))})
    parts = []
    for variant, shift in (("sgd", 0.0), ("sam", 1.0)):
        for seed in range(4):
            loss = one.loss.values * np.exp(shift * np.eye(3)) * (1 + 1e-3 * seed * (shift + 1))
            values = {"loss": results.Variable(("alpha", "beta"), loss, "nats", "Loss")}
            axes = {k: results.Variable(k, [-1.0, 0.0, 1.0], "1", k) for k in ("alpha", "beta")}
            made = results.make("loss_plane", values, coords=axes, provenance={"bn": "eval"})
            parts.append((labels(variant, seed), made))
    drawn = figures.plane_difference(results.combine(parts))
    (dots,) = marks(drawn, grammar.Points)
    assert {(float(a), float(b)) for a, b in zip(dots.x, dots.y, strict=True)} >= {
        (-1.0, -1.0), (0.0, 0.0), (1.0, 1.0)}  # fmt: skip


def test_curvature_maps_show_bounds_gaps_and_what_did_not_converge():
    parts = []
    for i, variant in enumerate(VARIANTS):
        risk, _, _ = quadratic([3.0 + i, 1.0, 0.2, -0.1 * i])
        made = measure.curvature_map(risk, risk.theta, points=3, one_d="random", seed=0)
        parts.append((labels(variant, 0), made))
    ds = results.combine(parts)
    drawn = check_figure("curvature_map", ds)
    fields = marks(drawn, grammar.Field)
    assert [mark.name for mark in fields] == ["λₘₐₓ"] * 3 + ["−λₘᵢₙ"] * 3 + ["|λₘᵢₙ| / |λₘₐₓ|"] * 3
    np.testing.assert_array_equal(fields[4].values, -ds.eigenvalue_min.isel(run=1))
    assert np.isnan(fields[3].values).all()
    assert "within its residual" in drawn.caption
    loose = ds.copy(deep=True)
    loose.converged.values[0, 1, 1] = False
    loose.eigenvalue_max.values[0, 0, 0] = loose.eigenvalue_min.values[0, 0, 0] = np.nan
    drawn = check_figure("curvature_map", loose)
    open_ones = [m for m in marks(drawn, grammar.Points) if m.name == "not converged"]
    assert len(open_ones) == 3
    assert all(m.hollow.all() and (m.x[0], m.y[0]) == (0, 0) for m in open_ones)
    assert len(marks(drawn, grammar.Gaps)) == 2


def test_convexity_is_claimed_only_beyond_the_residual():
    risk, _, _ = quadratic([3.0, 1.0, 0.2])
    ds = measure.curvature_map(risk, risk.theta, points=3, one_d="random", seed=0)
    drawn = check_figure("curvature_map", ds)
    sure = [m for m in marks(drawn, grammar.Points) if m.name.startswith("surely convex")]
    assert len(sure[0].x) == 9
    ds.residual_min.values[...] = 1.0
    drawn = figures.curvature_map(ds)
    assert not [m for m in marks(drawn, grammar.Points) if m.name.startswith("surely convex")]


def moved(theta, seed, size=0.3):
    g = torch.Generator().manual_seed(seed)
    return theta + size * torch.randn(theta.shape, generator=g, dtype=theta.dtype)


def test_three_points_are_named_where_they_lie():
    risk, _ = cnn_risk()
    models = {n: moved(risk.theta, i) for i, n in enumerate(("SGD", "SAM", "ZSharp"))}
    ds = measure.three_points(risk, models, cells=4)
    drawn = check_figure("three_points", ds)
    assert [mark.text for mark in marks(drawn, grammar.Label)] == list(models)
    sides = marks(drawn, grammar.Line)
    assert [side.name for side in sides] == ["SGD to SAM", "SGD to ZSharp", "SAM to ZSharp"]
    line = measure.interpolation(risk, models["SAM"], end=models["ZSharp"], points=5)
    np.testing.assert_allclose(sides[2].y, line.loss, rtol=1e-10)
    (points,) = marks(drawn, grammar.Points)
    assert list(zip(points.x, points.y, strict=True)) == [(0, 0), (1, 0), (0, 1)]


def test_trajectories_state_shares_null_residual_and_both_losses():
    ds = each(
        lambda r, w, seed: measure.trajectory(
            r, [moved(w, seed + i, 0.2 / (i + 1)) for i in range(4)] + [w], grid=2, margin=0.5
        ),
        seeds=(0,),
    )
    drawn = check_figure("trajectory", ds)
    assert len(drawn.panels) == 5
    one = ds.isel(run=0)
    assert drawn.panels[0].title == "SGD\n" + " + ".join(
        f"{100 * share:.0f} %" for share in one.explained_share.values
    )
    points = next(m for m in drawn.panels[0].marks if getattr(m, "name", "") == "checkpoints")
    np.testing.assert_array_equal(np.c_[points.x, points.y], one.coordinate)
    contour = next(m for m in drawn.panels[0].marks if isinstance(m, grammar.Contours))
    assert contour.x[-1] == pytest.approx(1.5 * float(one.alpha_unit))
    assert contour.x[-1] >= points.x.max()
    walk = " + ".join(f"{100 * share:.0f} %" for share in one.random_walk_share.values)
    assert f"would have {walk}" in drawn.caption
    residual, losses = drawn.panels[3:]
    np.testing.assert_array_equal(residual.marks[0].y, one.residual)
    np.testing.assert_array_equal(losses.marks[0].y, one.loss)
    np.testing.assert_array_equal(losses.marks[1].y, one.surface_loss)


def barriers():
    thetas = {
        labels(v, s)["run"]: moved(cnn_risk()[0].theta, 3 * i + s)
        for i, v in enumerate(VARIANTS)
        for s in SEEDS
    }
    names = list(thetas)
    parts = []
    for place, name in enumerate(names):
        risk, _ = cnn_risk()
        others = {n: thetas[n] for n in names[place:]}
        made = measure.barrier(risk, thetas[name], others=others, points=3)
        variant, seed = name.split("-")[0], int(name.split("-s")[1][0])
        parts.append((labels(variant, seed), made))
    return results.combine(parts), thetas


def test_the_barrier_matrix_is_symmetric_and_the_lines_are_by_variant():
    ds, thetas = barriers()
    drawn = check_figure("barrier", ds)
    (matrix,) = marks(drawn, grammar.Matrix)
    assert matrix.rows == matrix.columns
    assert matrix.rows[:3] == ("SGD, 0", "SGD, 1", "SAM, 0")
    np.testing.assert_array_equal(matrix.values, matrix.values.T)
    assert (matrix.values.diagonal() == 0).all()
    risk, _ = cnn_risk()
    names = list(thetas)
    alone = measure.interpolation(risk, thetas[names[1]], end=thetas[names[4]], points=3)
    assert matrix.values[1, 4] == pytest.approx(float(alone.barrier), rel=1e-10)
    shown = {m.name for m in marks(drawn, grammar.Line) if m.legend}
    own = {f"{label} (mean of 1)" for label in VARIANTS.values()}
    assert shown == {"two variants (mean of 6)", "two variants, one seed (mean of 6)", *own}


def test_curves_and_lines_between_models():
    risk, _ = cnn_risk()
    end = moved(risk.theta, 1)
    how = measure.CurveTraining(steps=5, batch_size=8)
    curve = measure.bezier(risk, risk.theta, end=end, training=how, points=5, seed=0)
    drawn = check_figure("bezier", curve)
    straight, bent = drawn.panels[0].marks
    np.testing.assert_array_equal(straight.y, curve.linear_loss)
    np.testing.assert_array_equal(bent.y, curve.loss)
    np.testing.assert_array_equal(drawn.panels[1].marks[0].y, curve.linear_error_rate)
    line = measure.interpolation(risk, risk.theta, end=end, points=5)
    drawn = check_figure("interpolation", line)
    np.testing.assert_array_equal(drawn.panels[0].marks[0].y, line.loss)
    assert list(drawn.panels[0].marks[1].y) == [line.loss.values[0], line.loss.values[-1]]


def test_perturbed_lines_show_the_batch_beside_all_examples():
    from landscape import sam

    risk, _ = cnn_risk()
    variants = {n: sam.make(n, {"rho": 0.1}) for n in ("sam", "zsharp")}
    ds = measure.perturbation_slice(
        risk, risk.theta, variants=variants, batch_size=8, radius=1.0, points=3, seed=0
    )
    drawn = check_figure("perturbation_slice", ds)
    lines = marks(drawn, grammar.Line)
    np.testing.assert_array_equal(lines[0].y, ds.loss.sel(direction="sam"))
    np.testing.assert_array_equal(lines[1].y, ds.batch_loss.sel(direction="sam"))
    assert (lines[0].dash, lines[1].dash) == ("solid", "dot")


def test_figures_of_other_results_are_refused(planes):
    for name in ("curvature_map", "three_points", "trajectory", "barrier", "bezier"):
        with pytest.raises(LandscapeError, match=r"This figure needs .*; the result is loss_plane"):
            getattr(figures, name)(planes)


def test_imported_surfaces_are_drawn_like_our_own(tmp_path):
    import h5py

    with h5py.File(tmp_path / "old.h5", "w") as file:
        file["xcoordinates"] = file["ycoordinates"] = np.linspace(-1, 1, 3)
        file["train_loss"] = np.arange(1.0, 10.0).reshape(3, 3)
        file["train_acc"] = np.full((3, 3), 50.0)
    ds = surfaces.read_goldstein(tmp_path / "old.h5")
    drawn = check_figure("loss_plane", ds)
    assert [panel.title for panel in drawn.panels[1:]] == [
        "cross-section β = 0", "cross-section α = 0"]  # fmt: skip
    beside = ds.assign_coords(beta=ds.beta + 0.25)
    assert figures.loss_plane(beside).panels[1].title == "cross-section β = 0.25"
    check_figure("loss_surface", ds)


def _goldstein(path, **held):
    import h5py

    with h5py.File(path, "w") as file:
        for name, values in held.items():
            file[name] = values
    return surfaces.read_goldstein(path)


def test_a_loss_of_minus_one_is_a_loss_where_the_accuracy_says_so(tmp_path):
    x = np.linspace(-1, 1, 3)
    loss, accuracy = np.arange(-1.0, 8.0).reshape(3, 3), np.full((3, 3), 50.0)
    loss[2, 2] = accuracy[2, 2] = -1  # not computed
    grid = {"xcoordinates": x, "ycoordinates": x}
    both = _goldstein(tmp_path / "a.h5", **grid, train_loss=loss, train_acc=accuracy)
    assert float(both.loss[0, 0]) == -1
    assert int(both.loss.isnull().sum()) == int(both.error_rate.isnull().sum()) == 1
    alone = _goldstein(tmp_path / "b.h5", **grid, train_loss=loss)
    assert int(alone.loss.isnull().sum()) == 2


def test_a_surface_of_test_data_alone_is_read_and_says_so(tmp_path):
    x, loss = np.linspace(-1, 1, 3), np.arange(9.0).reshape(3, 3)
    grid = {"xcoordinates": x, "ycoordinates": x}
    ds = _goldstein(tmp_path / "t.h5", **grid, test_loss=loss, test_acc=100 - loss)
    np.testing.assert_array_equal(ds.loss.values, loss.T)
    np.testing.assert_allclose(ds.error_rate.values, loss.T / 100)
    assert results.provenance(ds)["split"] == "test"
    check_figure("loss_plane", ds)


@pytest.mark.parametrize("figure", ["loss_plane", "loss_surface", "surface_persistence"])
def test_what_is_no_plane_is_refused_by_figures_of_planes(figure, tmp_path):
    x = np.linspace(-1, 1, 5)
    line = _goldstein(tmp_path / "line.h5", xcoordinates=x, train_loss=x**2)
    strip = _goldstein(
        tmp_path / "strip.h5", xcoordinates=x, ycoordinates=x[:1], train_loss=(x**2)[:, None]
    )
    for ds in (line, strip):
        with pytest.raises(LandscapeError, match=r"over a plane, at least 2 × 2.*loss_slice"):
            getattr(figures, figure)(ds)


def test_planes_of_eigenvectors_are_not_called_random():
    risk, _, _ = quadratic([3.0, 1.0, 0.2])
    axes = plane.eigenvectors(risk.theta, torch.eye(3, dtype=torch.float64)[:2])
    ds = measure.loss_plane(risk, risk.theta, directions=axes, points=3, bn="eval", seed=0)
    drawn = figures.loss_plane(ds)
    assert drawn.title == "Loss on a plane of eigenvectors"
    assert "Illustration" not in drawn.caption


def test_a_line_without_points_near_the_centre_has_one_window():
    risk, _ = cnn_risk()
    call = {"num_directions": 2, "bn": "eval", "seed": 0}
    coarse = measure.loss_slice(risk, risk.theta, points=3, **call)
    assert len(check_figure("loss_slice", coarse).panels) == 1
    fine = measure.loss_slice(risk, risk.theta, points=9, **call)
    assert len(figures.loss_slice(fine).panels) == 2
