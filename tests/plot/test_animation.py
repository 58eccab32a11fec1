"""Moving pictures: the last one is the figure that stands still, and axes do not move."""

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from landscape import LandscapeError, report, results
from landscape.plot import animation, derived, figures, interactive, static
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
    moments = derived.moments(drawn)
    assert moments == sorted(set(moments))
    for moment in (moments[0], moments[-1]):
        now = derived.until(drawn, moment)
        for panel, whole in zip(now.panels, drawn.panels, strict=True):
            for mark, before in zip(timed(panel), timed(whole), strict=True):
                there = before.when <= moment
                np.testing.assert_array_equal(mark.y[there], before.y[there])
                assert np.isnan(mark.y[~there]).all()


def test_axes_are_those_of_the_whole_at_every_moment(drawn):
    limits = [
        [
            (ax.get_xlim(), ax.get_ylim())
            for ax in static.render(derived.until(drawn, m)).axes
            if ax.get_label() != "<colorbar>"
        ]
        for m in (derived.moments(drawn)[0], derived.moments(drawn)[-1])
    ]
    assert limits[0] == limits[1]


def test_frames_of_the_page_hold_the_numbers_of_their_moment(drawn):
    page = animation.moving(drawn, width=7.2)
    assert [float(frame.name) for frame in page.frames] == derived.moments(drawn)
    for frame, moment in zip(page.frames, derived.moments(drawn), strict=True):
        still = interactive.render(derived.until(drawn, moment), width=7.2)
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
        study,
        report.FigureChoice(only=("trajectory",), setting="noisy", formats=("gif",)),
        out=tmp_path,
    )
    assert path.suffix == ".gif"
    with Image.open(path) as moving:
        assert moving.n_frames == len(derived.moments(drawn))
    again = animation.save(drawn, tmp_path / "again.gif")
    assert again.read_bytes() == animation.save(drawn, tmp_path / "b.gif").read_bytes()


@pytest.mark.slow
def test_a_film_shows_the_pictures_of_its_moments_for_as_long_as_the_gif(study, drawn, tmp_path):
    ffmpeg = pytest.importorskip("imageio_ffmpeg").get_ffmpeg_exe()
    (path,) = report.write_figures(
        study,
        report.FigureChoice(only=("trajectory",), setting="noisy", formats=("mp4",)),
        out=tmp_path,
    )
    assert path.suffix == ".mp4"
    assert path.read_bytes() == animation.save(drawn, tmp_path / "again.mp4").read_bytes()

    stills = [
        np.asarray(animation._picture(derived.until(drawn, moment), "neurips", 120)).astype(int)
        for moment in (derived.moments(drawn)[0], derived.moments(drawn)[-1])
    ]
    high, wide = (side + side % 2 for side in stills[0].shape[:2])
    decode = [ffmpeg, "-loglevel", "error", "-i", path, "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    film = subprocess.run(decode, capture_output=True, check=True).stdout
    shown = np.frombuffer(film, np.uint8).reshape(-1, high, wide, 3)
    times = len(derived.moments(drawn)) + animation._LAST - 1
    assert len(shown) == times * round(animation.SECONDS * animation._RATE)
    for picture, still in zip(shown[[0, -1]], stills, strict=True):
        # Encoding blurs the edges of colours a little; another moment differs by whole marks.
        assert np.abs(picture[: len(still), : still.shape[1]] - still).mean() < 2


def test_without_an_encoder_a_film_is_refused_with_what_to_install(drawn, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LandscapeError, match=r"pip install sam-landscape\[video\]"):
        animation.save(drawn, tmp_path / "path.mp4")


def test_what_has_no_moments_does_not_move(drawn, tmp_path):
    line = grammar.Line(np.arange(2.0), np.arange(2.0), "a", "#000000")
    still = grammar.Drawing(
        "still", "", "", (grammar.Panel(grammar.Axis(), grammar.Axis(), (line,)),)
    )
    with pytest.raises(LandscapeError, match="'still' has 0 moments; a moving picture needs two"):
        animation.save(still, tmp_path / "x.gif")
    with pytest.raises(LandscapeError, match=r"ends in '.avi'; moving pictures are .gif, .mp4"):
        animation.save(drawn, tmp_path / "x.avi")
