"""Figures drawn by several processes are those of one, whatever becomes of the others."""

import os
import sys
import tempfile

import numpy as np
import pytest

from landscape.errors import LandscapeError
from landscape.plot import printing
from landscape.plot.drawing import Axis, Drawing, Line, Panel
from landscape.plot.printing import Print, Printing, save_all


def prints(place, count=4):
    x = np.linspace(0, 1, 5)
    panels = [
        Panel(marks=(Line(x, x**k, "a", "#123456"),), x=Axis("x"), y=Axis("y"))
        for k in range(count)
    ]
    drawings = [
        Drawing(name=f"d{i}", title="t", caption="", panels=(p,)) for i, p in enumerate(panels)
    ]
    return [Print(d, place / d.name, (".pdf", ".png")) for d in drawings]


def contents(paths):
    return [path.read_bytes() for written in paths for path in written]


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(printing, "usable_cores", lambda: 1)
        patch.setattr(printing, "_start", lambda *_: pytest.fail("a helper for one core"))
        return contents(save_all(prints(tmp_path_factory.mktemp("one"))))


@pytest.fixture
def two_cores(monkeypatch):
    monkeypatch.setattr(printing, "usable_cores", lambda: 2)
    monkeypatch.setattr(printing, "_WORTH", 1)


@pytest.mark.usefixtures("two_cores")
def test_a_helper_draws_while_the_caller_does_not_and_writes_the_same_bytes(
    one, tmp_path, monkeypatch
):
    monkeypatch.setattr(Print, "save", lambda _: pytest.fail("drawn here"))
    with Printing(4) as printing:
        (helper,) = printing.helpers
        drawn = prints(tmp_path)
        paths = [*printing.begin(drawn[:1]), *printing.begin(drawn[1:])]
        helper.communicate()
        assert helper.returncode == 0
        assert contents(paths) == one


@pytest.mark.usefixtures("two_cores")
def test_two_processes_draw_each_figure_once(one, tmp_path, monkeypatch):
    own, save = [], Print.save
    monkeypatch.setattr(Print, "save", lambda self: (own.append(self.path.name), save(self)))
    with Printing(4) as printing:
        paths = printing.begin(prints(tmp_path))
        os.mkdir(os.path.join(printing.claims, "3"))  # begun by another
    assert contents(paths[:3]) == one[:6]
    assert "d3" not in own
    assert len(set(own)) == len(own)
    assert not paths[3][0].exists()


@pytest.mark.usefixtures("two_cores")
def test_an_error_of_the_caller_ends_the_helpers(tmp_path):
    def fail(printing):
        printing.begin(prints(tmp_path))
        raise RuntimeError("of the caller")

    with pytest.raises(RuntimeError, match="of the caller"), Printing(4) as printing:
        fail(printing)
    assert all(helper.poll() is not None for helper in printing.helpers)


@pytest.mark.thorough
@pytest.mark.usefixtures("two_cores")
@pytest.mark.parametrize("why", ["cannot start", "dies", "no pickle", "no place"])
def test_what_a_helper_does_not_draw_is_drawn_here(why, one, tmp_path, monkeypatch):
    if why == "cannot start":
        monkeypatch.setattr(sys, "executable", str(tmp_path / "nothing"))
    elif why == "dies":
        monkeypatch.setattr(printing, "_HELPER", "import os; os.kill(os.getpid(), 9)")
    elif why == "no place":
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nothing"))
    else:
        monkeypatch.setattr(printing, "_settings", lambda: lambda: None)
    assert contents(save_all(prints(tmp_path / "here"))) == one


@pytest.mark.usefixtures("two_cores")
def test_a_figure_that_cannot_be_written_is_said_as_in_one_process(tmp_path):
    (tmp_path / "d").write_text("a file where a folder should be")
    with pytest.raises(LandscapeError, match="cannot be made there"):
        save_all(prints(tmp_path / "d"))
