"""Moving pictures: the last one is the figure that stands still, and axes do not move."""

import numpy as np
import pytest
from PIL import Image

from landscape import LandscapeError, report, results
from landscape.plot import animation, figures, interactive, static
from landscape.plot import drawing as grammar
from tests.fixtures_results import write_study
from tests.fixtures_surfaces import write_surfaces


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    place = tmp_path_factory.mktemp("study")
    folder = write_study(place, noisy=("sgd", "sam", "zsharp"), clean=(), seeds=2)
    write_surfaces(folder.root)
    return folder


@pytest.fixture(scope="module")
def drawn(study):
    return figures.trajectory(results.load(study.results / "trajectory.nc"), setting="noisy")


def timed(panel):
    return [m for m in panel.marks if getattr(m, "when", None) is not None]


def test_what_is_there_at_a_moment_is_what_came_before_it(drawn):
    moments = drawn.moments
    assert moments == sorted(set(moments))
    for moment in (moments[0], moments[-1]):
        now = drawn.until(moment)
        for panel, whole in zip(now.panels, drawn.panels, strict=True):
            for mark, before in zip(timed(panel), timed(whole), strict=True):
                there = before.when <= moment
                np.testing.assert_array_equal(mark.y[there], before.y[there])
                assert np.isnan(mark.y[~there]).all()


def test_axes_are_those_of_the_whole_at_every_moment(drawn):
    limits = [
        [
            (ax.get_xlim(), ax.get_ylim())
            for ax in static.render(drawn.until(m)).axes
            if ax.get_label() != "<colorbar>"
        ]
        for m in (drawn.moments[0], drawn.moments[-1])
    ]
    assert limits[0] == limits[1]


def test_frames_of_the_page_hold_the_numbers_of_their_moment(drawn):
    page = animation.moving(drawn, width=7.2)
    assert [float(frame.name) for frame in page.frames] == drawn.moments
    for frame, moment in zip(page.frames, drawn.moments, strict=True):
        still = interactive.render(drawn.until(moment), width=7.2)
        for index, trace in zip(frame.traces, frame.data, strict=True):
            np.testing.assert_array_equal(
                np.asarray(trace.y, float), np.asarray(still.data[index].y, float)
            )
    assert {step.args[0][0] for step in page.layout.sliders[0].steps} == {
        frame.name for frame in page.frames
    }


@pytest.mark.slow
def test_a_gif_has_a_picture_per_moment_and_the_same_bytes(study, drawn, tmp_path):
    (path,) = report.write_figures(
        study, report.Choice(only=("trajectory",), setting="noisy", formats=("gif",)), out=tmp_path
    )
    assert path.suffix == ".gif"
    with Image.open(path) as moving:
        assert moving.n_frames == len(drawn.moments)
    again = animation.save_gif(drawn, tmp_path / "again.gif")
    assert again.read_bytes() == animation.save_gif(drawn, tmp_path / "b.gif").read_bytes()


def test_what_has_no_moments_does_not_move(drawn, tmp_path):
    line = grammar.Line(np.arange(2.0), np.arange(2.0), "a", "#000000")
    still = grammar.Drawing(
        "still", "", "", (grammar.Panel(grammar.Axis(), grammar.Axis(), (line,)),)
    )
    with pytest.raises(LandscapeError, match="'still' has 0 moments; a moving picture needs two"):
        animation.save_gif(still, tmp_path / "x.gif")
    with pytest.raises(LandscapeError, match=r"ends in '.mp4'; moving pictures are .gif"):
        animation.save_gif(drawn, tmp_path / "x.mp4")
