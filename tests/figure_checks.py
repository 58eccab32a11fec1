"""What holds of every figure: two twins with one signature, the same numbers, names and units."""

import inspect

import numpy as np

from landscape.plot import drawing as grammar
from landscape.plot import figures, interactive, static


def check_figure(name, *data, **options):
    """Both twins of figures.<name> carry the marks, axis titles and caption of its drawing."""
    check_signatures(name)
    drawn = getattr(figures, name)(*data, **options)
    paper = getattr(static, name)(*data, **options)
    page = getattr(interactive, name)(*data, **options)
    check_numbers(drawn, paper, page)
    check_words(drawn, paper, page)
    return drawn


def check_signatures(name):
    one = inspect.signature(getattr(static, name)).parameters
    two = inspect.signature(getattr(interactive, name)).parameters
    assert list(one) == list(two)
    assert [p.default for p in one.values()] == [p.default for p in two.values()]
    assert list(inspect.signature(getattr(figures, name)).parameters) == list(one)[:-2]


def check_numbers(drawn, paper, page):
    axes = [ax for ax in paper.axes if ax.get_label() != "<colorbar>"]
    assert len(axes) == len(drawn.panels)
    traces = list(page.data)
    for index, (panel, ax) in enumerate(zip(drawn.panels, axes, strict=True)):
        here = [t for t in traces if place(t) == index]
        expected = [m for m in panel.marks if not isinstance(m, grammar.Rule | grammar.Label)]
        assert len(here) == len(expected)
        lines = [
            line
            for line in ax.lines
            if line.get_linestyle() != "None" and len(line.get_xdata()) > 2
        ]
        drawn_lines = [m for m in expected if isinstance(m, grammar.Line)]
        for mark, trace in zip(expected, here, strict=True):
            assert trace.name == mark.name
            if isinstance(mark, grammar.Line | grammar.Points):
                for drawn, asked in ((trace.x, mark.x), (trace.y, mark.y)):
                    # What is rounding beside the largest is hovered as 0.
                    rounding = 1e-14 * float(np.nanmax(np.abs(asked), initial=0.0))
                    values = np.asarray(drawn, float)
                    np.testing.assert_allclose(values, asked, rtol=1e-6, atol=rounding)
        for mark, line in zip(drawn_lines, lines, strict=False):
            np.testing.assert_array_equal(line.get_xdata(), mark.x)
            np.testing.assert_array_equal(line.get_ydata(), mark.y)


def place(trace):
    """Number of the panel that a trace is in."""
    axes = (trace.scene or "scene") if trace.type == "surface" else (trace.xaxis or "x")
    return int(axes.removeprefix("scene").removeprefix("x") or 1) - 1


def check_words(drawn, paper, page):
    shown = {ax.get_xlabel() for ax in paper.axes} | {ax.get_ylabel() for ax in paper.axes}
    layout = page.to_dict()["layout"]
    named = {
        axis.get("title", {}).get("text") or ""
        for key, axis in layout.items()
        if key.startswith(("xaxis", "yaxis"))
    }
    scenes = [value for key, value in layout.items() if key.startswith("scene")]
    named |= {scene[f"{a}axis"]["title"]["text"] for scene in scenes for a in "xyz"}
    named |= {t.colorbar.title.text for t in page.data if t.type == "surface"}
    shown |= {ax.get_zlabel() for ax in paper.axes if ax.name == "3d"}
    wanted = {axis.title for panel in drawn.panels for axis in (panel.x, panel.y, panel.z) if axis}
    assert wanted - {""} <= named
    assert wanted - {""} <= {text.replace("\n", " ") for text in shown}
    assert drawn.caption
    assert layout["meta"]["caption"] == drawn.caption
