"""Names that find room: beside points, at axes, in small panels; and colours that end."""

import re
import warnings

import numpy as np
import pytest
import xarray as xr

from landscape.plot import derived, figures, interactive, labels, static
from landscape.plot.drawing import (
    Axis,
    Band,
    Drawing,
    Label,
    Line,
    Matrix,
    Panel,
    Points,
    Surface,
    bar_ticks,
)
from landscape.plot.figures._shared import shortened
from landscape.plot.style import PALE

INK = "#222222"


def mean(name, x, y, **more):
    return Points(np.array([x]), np.array([y]), name, INK, size=5, **more)


def scatter(*marks, **axes):
    return Panel(axes.get("x", Axis("x")), axes.get("y", Axis("y")), marks)


def drawing(*panels, **more):
    return Drawing("mine", "Mine", "A caption.", panels, columns=len(panels), **more)


def test_means_apart_are_named_and_those_that_stand_together_are_not():
    near = [mean(f"near {i}", 0.5 + 0.01 * i, 0.5) for i in range(9)]
    found = labels.beside(scatter(mean("low", 0.0, 0.0), mean("high", 1.0, 1.0), *near))
    assert {"low", "high"} <= {label.text for label in found}
    assert len(found) < 9
    # The name of a point at the right end lies to the left of it.
    assert {label.text: label.anchor for label in found}["high"] == "right"


def test_a_name_covers_no_interval():
    bar = {"x_low": np.array([0.0]), "x_high": np.array([1.0])}
    first, second = labels.beside(scatter(mean("a", 0.5, 0.5, **bar), mean("b", 0.5, 0.0)))
    assert first.lift != 0
    assert second.lift == 0


def test_names_that_are_asked_for_are_there_wherever_they_cover_least():
    near = [mean(f"one of many {i}", 0.5, 0.5) for i in range(4)]
    panel = scatter(mean("low", 0.0, 0.0), *near, mean("high", 1.0, 1.0))
    found = labels.beside(panel, [mark.name for mark in near])
    assert [label.text for label in found] == [mark.name for mark in near]
    assert len({(label.anchor, label.lift) for label in found}) == 4


def test_single_runs_and_rows_with_names_have_no_labels():
    runs = [Points(np.array([i]), np.array([i]), "SAM", INK, size=2.2) for i in (0.0, 1.0)]
    assert labels.beside(scatter(*runs)) == []
    rows = Axis(ticks=((0.0, "a"), (1.0, "b")))
    assert labels.beside(scatter(mean("a", 0.0, 0.0), mean("b", 1.0, 1.0), y=rows)) == []
    lost = scatter(mean("a", np.nan, 0.0), mean("b", 1.0, np.nan), x=Axis("x", log=True))
    assert labels.beside(lost) == []


def test_highlighted_means_are_named_and_the_names_of_pale_ones_go():
    marks = [mean(f"v{i}", float(i), float(i % 3)) for i in range(6)]
    panel = scatter(*marks, Label(0.0, 0.0, "v0"))
    shown = derived.highlighting(drawing(panel), ["v3", "v4"], [m.name for m in marks])
    texts = [m.text for m in shown.panels[0].marks if isinstance(m, Label)]
    assert texts == ["v3", "v4"]


def test_a_panel_of_one_variant_is_left_as_it_is():
    x = np.arange(3.0)
    lines = [Line(x, x + i, name, INK, ends=True) for i, name in enumerate(("SGD", "SAM", "ASAM"))]
    own, common = Panel(Axis("x"), Axis("y"), (lines[2],), "ASAM\nlowest 0.1"), scatter(*lines)
    shown = derived.highlighting(drawing(own, common), ["SAM"], ["SGD", "SAM", "ASAM"])
    assert shown.panels[0] == own
    pale = [m for m in shown.panels[1].marks if m.color == PALE]
    # Pale lines have no names at their ends, and one entry in the legend.
    assert len(pale) == 2
    assert not any(m.ends for m in pale)
    assert {m.name for m in pale} == {"others (2)"}


def test_crowded_is_more_lines_than_can_be_told_apart():
    x, names = np.arange(3.0), [f"v{i}" for i in range(7)]
    lines = [Line(x, x + i, name, INK) for i, name in enumerate(names)]
    assert derived.crowded(drawing(scatter(*lines)), names)
    assert not derived.crowded(drawing(scatter(*lines[:4]), scatter(*lines[4:])), names)
    assert not derived.crowded(drawing(scatter(*lines)), ["another"])
    band = Band(x, x, x + 1, "v0", INK)
    assert not derived.crowded(drawing(scatter(*[band] * 9)), names)


LONG = [f"{name} with a name that says every option of it and more than sixty letters in all"
        for name in ("SGD", "SAM")]  # fmt: skip


def lettered(axis):
    rows = Axis(limits=(-0.6, 1.4), ticks=tuple(enumerate(LONG)))
    marks = tuple(mean(name, 1.0, float(i)) for i, name in enumerate(LONG))
    return [Panel(Axis(axis), rows, marks) for _ in range(3)]


@pytest.mark.parametrize("width", ["neurips", "icml-column", 2])
def test_long_names_are_shortened_until_panels_have_room_and_nothing_warns(width):
    one = drawing(*lettered(f"difference to {LONG[0]}"), share_y="grid", panel_height=0.9)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = static.render(one, width=width)
        figure.canvas.draw()
    for ax in figure.axes:
        assert ax.bbox.height / figure.dpi > 0.2
        assert ax.bbox.width / figure.dpi > 0.2
    ticks = [tick.get_text() for tick in figure.axes[0].get_yticklabels()]
    assert all("…" in text for text in ticks)
    assert len(set(ticks)) == 2
    # What is measured is not shortened with the names.
    assert figure.axes[0].get_xlabel().startswith("difference")


def test_names_that_have_room_stay_whole():
    rows = Axis(limits=(-0.6, 0.4), ticks=((0.0, "ZSharp (per-tensor norm)"),))
    figure = static.render(drawing(Panel(Axis("x"), rows, (mean("ZSharp", 1.0, 0.0),))))
    assert figure.axes[0].get_yticklabels()[0].get_text() == "ZSharp (per-tensor norm)"


def test_names_of_vertical_axes_are_no_longer_than_their_panels():
    x = np.arange(3.0)
    axis = Axis("a quantity that has a name of more letters than its panel is high", "nats")
    one = drawing(Panel(Axis("x"), axis, (Line(x, x, "SAM", INK),)), panel_height=1.0)
    figure = static.render(one)
    label = figure.axes[0].yaxis.label
    figure.canvas.draw()
    assert label.get_window_extent().height <= figure.bbox.height


VALUES = np.array([[0.0, 0.1, 1.0], [3.0, 5.0, np.nan]])


def matrix(**more):
    options = {"digits": None, "log": True, "signs": True} | more
    return Matrix(VALUES, ("a", "b"), ("1", "2", "3"), "selected", "1", (0.25, 4.0), **options)


def test_values_beyond_the_colours_are_kept_and_said():
    mark = matrix()
    np.testing.assert_equal(mark.coloured, [[0.25, 0.25, 1.0], [3.0, 4.0, np.nan]])
    assert mark.below.tolist() == [[True, True, False], [False, False, False]]
    assert mark.above.tolist() == [[False, False, False], [False, True, False]]
    assert next(iter(bar_ticks([mark]).values())) == "≤ 0.25"
    assert list(bar_ticks([mark]).values())[-1] == "≥ 4"
    # Without signs a share of 0 is a blank cell, not a small one.
    plain = matrix(signs=False)
    assert np.isnan(plain.coloured[0, 0])
    assert plain.below.sum() == 1
    inside = Matrix(np.eye(2), ("a", "b"), ("a", "b"), "κ", "1", (0.0, 1.0))
    assert bar_ticks([inside]) is None


def test_both_twins_show_the_signs_and_hovering_says_the_number():
    one = drawing(Panel(Axis("input"), Axis("output"), (matrix(),)), legend=False)
    figure = static.render(one)
    points = {line.get_marker(): len(line.get_xdata()) for line in figure.axes[0].lines}
    assert points == {"^": 1, "v": 2}
    ticks = [tick.get_text() for tick in figure.axes[1].get_yticklabels()]
    assert ticks[0] == "≤ 0.25"
    assert ticks[-1] == "≥ 4"
    trace = interactive.render(one).data[0]
    assert [list(row) for row in trace.text] == [["▼", "▼", ""], ["", "▲", ""]]
    assert trace.customdata[1][1] == "b and 2<br>selected: 5"
    assert trace.colorbar.ticktext[-1] == "≥ 4"
    np.testing.assert_allclose(np.asarray(trace.z, float)[1, 1], np.log10(4), rtol=1e-6)
    rows = {(row["row"], row["column"]): row["value"] for row in one.rows()}
    assert rows["a", "1"] == 0.0
    assert rows["b", "2"] == 5.0


def test_the_floor_of_a_surface_has_no_tick():
    x = np.linspace(-1, 1, 5)
    bowl = 1 + x[:, None] ** 2 + 3 * x**2
    mark = Surface(x, x, bowl, (1.0, 5.0), "loss", "nats", log=False)
    axes = (Axis("α"), Axis("β"), (mark,))
    one = drawing(Panel(*axes, z=Axis("loss", "nats")))
    figure = static.render(one)
    figure.canvas.draw()
    ticks = figure.axes[0].zaxis.get_majorticklocs()
    assert len(ticks) >= 2
    assert all(1 <= tick <= 5 for tick in ticks)
    page = interactive.render(one).layout.scene.zaxis
    assert len(page.tickvals) >= 2
    assert min(page.tickvals) >= 1
    assert all(re.fullmatch(r"[\d.]+", text) for text in page.ticktext)


def test_what_nearly_all_names_begin_with_goes_and_a_number_keeps_its_word():
    names = [f"vit.encoder.layer.{i}.mlp.weight" for i in range(20)] + ["classifier.weight"]
    assert shortened(names)[:2] == ["layer.0.mlp.weight", "layer.1.mlp.weight"]
    assert shortened(names)[-1] == "classifier.weight"
    # Of two names none would be told from the other without what both begin with.
    assert shortened(["a.b.weight", "b.weight"]) == ["a.b.weight", "b.weight"]
    assert shortened(["conv1.weight", "conv1.bias", "fc.weight"])[0] == "conv1.weight"


def norms(names):
    """gradient_zscores of one run whose tensors have the squared norms 1, 2, ..."""
    square = np.arange(1.0, len(names) + 1)
    return xr.Dataset(
        {"mean": (("run", "tensor"), np.zeros((1, len(names)))),
         "std": (("run", "tensor"), np.sqrt(square / 4)[None])},
        coords={"tensor": names, "size": ("tensor", np.full(len(names), 4)), "run": ["a"],
                "variant": ("run", ["sam"]), "label": ("run", ["SAM"]), "setting": ("run", [""]),
                "seed": ("run", [0])},
        attrs={"provenance": "{}"},
    )  # fmt: skip


@pytest.mark.parametrize("count", [20, 50, 200])
def test_no_layer_is_left_out_of_a_deep_network(count):
    """Rows of modules or of the others together: squared norms add up to those of all tensors."""
    names = [f"block{i // 2}.{'attn' if i % 2 else 'mlp'}.weight" for i in range(2 * count)]
    drawn = figures.layer_gradients(norms(names))
    (dots,) = drawn.panels[0].marks
    assert len(dots.x) <= 72
    total = len(names) * (len(names) + 1) / 2
    np.testing.assert_allclose((dots.x**2).sum(), total)
    assert ("put together" in drawn.caption) == (len(names) > 72)
    rows = [text for _, text in drawn.panels[0].y.ticks]
    assert (rows[-1] if count < 200 else "the other 129") in rows
