"""Labels of axes say where their ticks stand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from landscape.plot import drawing as grammar
from landscape.plot import static
from landscape.plot.ticks import exact, log_ticks, short


@given(st.floats(1e-9, 1e9), st.floats(1.01, 1e4))
def test_every_label_reads_back_as_its_tick_and_no_two_are_equal(low, factor):
    ticks = log_ticks(low, low * factor)
    labels = [exact(tick) for tick in ticks]
    assert [float(text) for text in labels] == pytest.approx(ticks, rel=1e-5)
    assert len(set(labels)) == len(labels)


def test_round_ticks_keep_their_short_labels():
    assert [exact(v) for v in (0.001, 30, 2e4, 3e-5)] == [short(v) for v in (0.001, 30, 2e4, 3e-5)]
    assert [exact(v) for v in (11.125, 2.5e-5, 12500.0)] == ["11.125", "2.5e-5", "1.25e4"]


def test_small_values_on_a_linear_axis_have_whole_labels():
    points = grammar.Points(np.array([0.2e-5, 1.6e-5]), np.array([1.0, 2.0]), "SAM", "#000000")
    drawn = grammar.Drawing(
        "small", "small", "", (grammar.Panel(grammar.Axis("a"), grammar.Axis("b"), (points,)),)
    )
    figure = static.render(drawn)
    figure.canvas.draw()
    axis = figure.axes[0].xaxis
    assert axis.get_offset_text().get_text() == ""
    for label in axis.get_ticklabels():
        assert float(label.get_text()) == pytest.approx(label.get_position()[0], abs=1e-12)
