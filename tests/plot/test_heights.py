"""Basins of surfaces against counted components; meshes against the cells that they are made of."""

import json
import struct
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from landscape import LandscapeError, measure, persistence, results
from landscape.plot import drawing as grammar
from landscape.plot import figures, files, meshes
from tests.figure_checks import check_figure
from tests.measure_problems import cnn_risk

TOUCHING = np.ones((3, 3), int)  # an edge or a corner


@pytest.fixture(scope="module")
def planes():
    parts = []
    for number, variant in enumerate(("sgd", "sam", "zsharp")):
        risk, _ = cnn_risk(seed=number)
        one = measure.loss_plane(risk, risk.theta, points=7, radius=0.5, bn="eval", seed=0)
        names = {"run": f"{variant}-s0-x", "variant": variant, "label": variant.upper(),
                 "setting": "noisy", "seed": 0}  # fmt: skip
        parts.append((names, one))
    return results.combine(parts)


def fields(draw):
    shape = draw(st.tuples(st.integers(1, 7), st.integers(1, 7)))
    numbers = draw(
        st.lists(st.integers(0, 6), min_size=shape[0] * shape[1], max_size=shape[0] * shape[1])
    )
    return np.array(numbers, float).reshape(shape)


some_field = st.composite(fields)()


@given(some_field)
def test_basins_alive_at_a_level_are_the_components_of_its_sublevel_set(field):
    found = persistence.merge_tree(field)
    for level in np.unique(field):
        alive = (found.birth <= level) & (found.death > level)
        assert alive.sum() == ndimage.label(field <= level, TOUCHING)[1]


@given(some_field, st.integers(0, 2**32 - 1))
def test_a_basin_deeper_than_twice_the_error_is_there_in_every_field_so_near(field, seed):
    d = 0.4
    near = field + np.random.default_rng(seed).uniform(-d, d, field.shape)
    ours, theirs = persistence.merge_tree(field), persistence.merge_tree(near)
    assert (ours.persistence > 2 * d).sum() <= len(theirs.birth)
    assert (theirs.persistence > 2 * d).sum() <= len(ours.birth)


def test_two_wells_and_the_pass_between_them():
    x = np.linspace(-2, 2, 41)
    field = ((x**2 - 1) ** 2 + 0.2 * x)[:, None] + 0 * np.arange(3.0) + np.arange(3.0) ** 2
    found = persistence.merge_tree(field)
    assert len(found.birth) == 2
    assert found.into.tolist() == [-1, 0]
    assert found.cell[:, 1].tolist() == [0, 0]
    inside = field[(x > -1) & (x < 1), 0]
    assert found.death[1] == inside.max()
    assert found.birth[1] == field[x > 0, 0].min()


def test_what_is_not_finite_parts_basins():
    field = np.array([[0.0, np.nan, 1.0], [0.5, np.inf, 2.0]])
    found = persistence.merge_tree(field)
    assert found.birth.tolist() == [0, 1]
    assert np.isinf(found.death).all()
    with pytest.raises(LandscapeError, match="give a grid"):
        persistence.merge_tree(field * np.nan)


def plane_of(values, **more):
    x = np.arange(len(values), dtype=float)
    variables = {"loss": results.Variable(("alpha", "beta"), values, "nats", "Loss")}
    for name, table in more.items():
        variables[name] = results.Variable(("alpha", "beta"), table, "1", name)
    coords = {"alpha": results.Variable("alpha", x, "1", "α"),
              "beta": results.Variable("beta", x, "1", "β")}  # fmt: skip
    return results.make("loss_plane", variables, coords=coords, provenance={"tolerance_of": "loss"})


def test_bounds_come_from_the_errors_of_the_cells():
    values = np.array([[1.0, 4.0, 2.0], [4.0, 4.0, 4.0], [4.0, 4.0, 3.9]])
    exact = persistence.persistence(plane_of(values))
    assert exact.interpolation_bound == 0
    assert np.isnan(exact.sampling_bound)
    assert not exact.certain.any()  # nothing is known of the examples
    small, large = np.full((3, 3), 1e-4), np.full((3, 3), 0.01)
    known = persistence.persistence(plane_of(values, rise_stderr=small, interpolation_error=large))
    assert known.interpolation_bound == pytest.approx(0.04)
    # 2.77 is the normal quantile of 1 - 0.05/18, for nine cells on both sides.
    assert known.sampling_bound == pytest.approx(2.7729e-4, rel=1e-3)
    np.testing.assert_array_equal(known.birth, [1, 2, 3.9])
    assert known.certain.values.tolist() == [True, True, True]
    near = persistence.persistence(
        plane_of(values, rise_stderr=small, interpolation_error=2 * large)
    )
    assert near.certain.values.tolist() == [True, True, False]  # 0.1 is not beyond 2 (0.08 + ...)


def test_both_figures_draw_the_same_numbers(planes):
    pair = check_figure("surface_pair", planes, setting="noisy", between=("sam", "zsharp"))
    assert [panel.title for panel in pair.panels] == ["SAM", "ZSHARP"]
    surfaces = [m for p in pair.panels for m in p.marks if isinstance(m, grammar.Surface)]
    assert surfaces[0].limits == surfaces[1].limits
    assert not surfaces[0].log
    np.testing.assert_array_equal(surfaces[0].values, planes.loss.isel(run=1))
    assert "Each of the 7 × 7 cells is a corner" in pair.caption
    bars = check_figure("surface_persistence", planes, setting="noisy")
    found = [m for p in bars.panels for m in p.marks if isinstance(m, grammar.Bars)]
    lowest = sorted(float(b) for m in found for b in np.ravel(m.base) if len(m.x))
    assert lowest[0] == float(planes.loss.min())
    with pytest.raises(LandscapeError, match="give two of sgd, sam, zsharp"):
        check_figure("surface_pair", planes, setting="noisy", between=("sam", "adam"))


def test_a_variant_without_a_finite_cell_is_named_and_the_others_are_drawn(planes):
    lost = planes.copy(deep=True)
    lost.loss[1] = np.nan
    drawn = figures.surface_persistence(lost, setting="noisy")
    assert "SAM no finite cell" in drawn.caption
    names = [text for _, text in drawn.panels[0].y.ticks]
    assert "SAM" not in names
    lost.loss[:] = np.inf
    assert figures.surface_persistence(lost, setting="noisy").panels == ()


def test_a_mesh_has_the_cells_as_corners_on_one_linear_scale(planes, tmp_path):
    kept = planes.isel(run=[0, 1])
    made = meshes.of(kept)
    values = kept.loss.values
    assert (made.low, made.high) == (values.min(), values.max())
    for mesh, own in zip(made.meshes, values, strict=True):
        np.testing.assert_allclose(mesh.heights, made.unit * (own - values.min()))
    holed = kept.copy(deep=True)
    holed.loss[0, 3, 3] = np.inf
    faces = [len(meshes._faces(m)) for m in meshes.of(holed).meshes]
    assert faces == [2 * (6 * 6 - 4), 2 * 6 * 6]


def test_a_structured_grid_holds_points_and_losses_in_the_order_of_vtk(planes, tmp_path):
    source = results.save(planes, tmp_path / "plane.nc")
    paths = files.convert(source, tmp_path / "p.vts", variants=("sgd", "sam"))
    assert [p.name for p in paths] == ["p.sgd.vts", "p.sam.vts"]
    root = ET.parse(paths[1]).getroot()
    arrays = {a.get("Name"): a.text.split() for a in root.iter("DataArray")}
    losses = np.array(arrays["loss"], float).reshape(7, 7)  # beta, then alpha, which runs fastest
    np.testing.assert_array_equal(losses.T, planes.loss.isel(run=1))
    points = np.array(arrays["Points"], float).reshape(7, 7, 3)
    np.testing.assert_array_equal(points[2, :, 0], planes.alpha)
    np.testing.assert_array_equal(points[:, 2, 1], planes.beta)
    unit, low = (float(arrays[k][0]) for k in ("height_of_one_unit", "low"))
    np.testing.assert_allclose(points[..., 2], unit * (losses - low), atol=1e-12)
    assert root.find("StructuredGrid").get("WholeExtent") == "0 6 0 6 0 0"


def test_a_glb_is_a_whole_gltf_with_a_mesh_for_each_variant(planes, tmp_path):
    trimesh = pytest.importorskip("trimesh")
    source = results.save(planes, tmp_path / "plane.nc")
    (path,) = files.convert(source, tmp_path / "p.glb", variants=("sgd", "sam"))
    data = path.read_bytes()
    magic, version, length, size = struct.unpack("<4sIII", data[:16])
    assert (magic, version, length) == (b"glTF", 2, len(data))
    assert {m["name"] for m in json.loads(data[20 : 20 + size])["meshes"]} == {"sgd", "sam"}
    scene = trimesh.load(path, file_type="glb")
    made = meshes.of(planes.isel(run=[0, 1]))
    for mesh in made.meshes:
        corners = scene.geometry[mesh.name].vertices
        np.testing.assert_allclose(corners[:, 1], mesh.heights.ravel(), atol=1e-6)
    files.convert(source, tmp_path / "again.glb", variants=("sgd", "sam"))
    assert (tmp_path / "again.glb").read_bytes() == data


def test_what_has_no_surface_is_said(planes, tmp_path):
    source = results.save(planes, tmp_path / "plane.nc")
    with pytest.raises(LandscapeError, match="variants: 'adam' asked; the result has sgd, sam"):
        files.convert(source, tmp_path / "p.glb", variants=("adam",))
    nowhere = planes.copy(deep=True)
    nowhere.loss[:] = np.nan
    with pytest.raises(LandscapeError, match="No cell of loss is finite"):
        meshes.of(nowhere)
