"""Figures are tested as data: both renderings carry the numbers, names and units of the drawing."""

import subprocess
import sys
import tomllib
from importlib.resources import files

import numpy as np
import pytest
from matplotlib.backends.backend_pgf import LatexError

from landscape import plot, results
from landscape.errors import LandscapeError
from landscape.plot import drawing as grammar
from landscape.plot import figures, interactive, runs, static, style, ticks
from tests.figure_checks import check_figure, check_signatures
from tests.fixtures_results import write_study

CALLS = {
    "headline": ("generalization",),
    "flatness_vs_accuracy": ("generalization", "top_eigenvalues", "sharpness"),
    "history": ("history",),
    "top_eigenvalues": ("top_eigenvalues",),
    "hessian_trace": ("hessian_trace",),
    "spectral_density": ("spectral_density",),
    "sharpness": ("sharpness",),
    "loss_slice": ("loss_slice", "loss_slice_eval"),
    "loss_plane": ("loss_plane",),
    "gradient_zscores": ("gradient_zscores",),
    "perturbation": ("perturbation",),
    "energy_over_time": ("perturbation_history",),
    "perturbation_over_time": ("perturbation_history",),
    "mask_overlap": ("mask_overlap",),
    "mask_persistence": ("mask_persistence",),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = write_study(
        tmp_path_factory.mktemp("study"),
        noisy=("sgd", "sam", "zsharp", "random_mask"),
        clean=("sgd", "sam"),
        seeds=3,
        clean_seeds=1,
        diverged=(("noisy", "zsharp", 2),),
    )
    return {path.stem: results.load(path) for path in folder.results.glob("*.nc")}


def make(module, name, data, **options):
    return getattr(module, name)(*(data[key] for key in CALLS[name]), setting="noisy", **options)


@pytest.mark.thorough
@pytest.mark.parametrize("name", sorted(CALLS))
def test_twins_carry_the_numbers_names_and_units_of_the_drawing(name, data):
    check_figure(name, *(data[key] for key in CALLS[name]), setting="noisy")


@pytest.mark.parametrize("name", figures.__all__)
def test_every_figure_has_both_twins_with_one_signature(name):
    check_signatures(name)


def test_units_are_written_unless_there_are_none():
    assert grammar.Axis("loss", "nats").title == "loss (nats)"
    assert grammar.Axis("κ").title == "κ"


def test_unconverged_eigenvalues_are_hollow_in_both_twins(data):
    drawn = make(figures, "top_eigenvalues", data)
    hollow = sum(int(m.hollow.sum()) for m in drawn.panels[0].marks if m.hollow is not None)
    assert hollow == 4  # rank 5 of seed 1, four variants
    page = interactive.render(drawn)
    opened = [
        symbol
        for trace in page.data
        if isinstance(trace.marker.symbol, tuple)
        for symbol in trace.marker.symbol
        if symbol.endswith("-open")
    ]
    assert len(opened) == hollow
    paper = static.render(drawn)
    faces = [
        line
        for line in paper.axes[0].lines
        if line.get_marker() == "o" and line.get_markerfacecolor() == "white"
    ]
    assert sum(int(np.isfinite(line.get_xdata()).sum()) for line in faces) == hollow


def test_headline_shows_seeds_and_the_paired_interval(data):
    from landscape import stats

    drawn = make(figures, "headline", data)
    ds = runs.in_setting(data["generalization"], "noisy")
    accuracy = {v.id: 100 * v.ds.test_accuracy.values for v in runs.variants(ds)}
    points = {m.name: m for m in drawn.panels[0].marks if len(m.x) == 1}
    ci = stats.mean_ci(accuracy["sam"], bounds=(0, 100))
    assert points["SAM"].x[0] == pytest.approx(ci.estimate)
    assert points["SAM"].x_low[0] == pytest.approx(ci.low)
    shown = next(m for m in drawn.panels[1].marks if m.name == "SAM")
    logs = {name: -np.log(1 - a / 100) for name, a in accuracy.items()}
    factor = np.exp(-(logs["sam"] - logs["sgd"]).mean())
    assert shown.x[0] == pytest.approx(factor, rel=0.02)
    assert shown.x_low[0] < shown.x[0] < shown.x_high[0] < 1
    # The report hands its own decisions on, which are of a larger family: wider intervals.
    from landscape.stats import Contrast, simultaneous

    apart = logs["sam"] - logs["sgd"]
    one = simultaneous({0: Contrast(range(len(apart)), apart)}, share=0.1)[0]
    given = figures.headline(data["generalization"], setting="noisy", decided={("sam", "sgd"): one})
    drawn = {m.name: m for m in given.panels[1].marks if isinstance(m, grammar.Points)}
    assert set(drawn) == {"SAM"}
    assert drawn["SAM"].x_high[0] == pytest.approx(np.exp(-one.interval.low))


def test_variants_keep_their_colour_in_every_figure(data):
    for name in CALLS:
        if name in ("energy_over_time", "perturbation", "mask_overlap", "loss_plane"):
            continue
        for panel in make(figures, name, data).panels:
            for mark in panel.marks:
                if getattr(mark, "name", "") == "SAM":
                    assert mark.color == style.VARIANTS["sam"][0]


def test_known_variants_differ_in_colour_or_symbol():
    looks = list(style.VARIANTS.values())
    assert len(set(looks)) == len(looks)
    demo = tomllib.loads(files("landscape.study").joinpath("demo.toml").read_text("utf-8"))
    trained = [style.variant(name)[0] for name in demo["variants"]]
    assert len(set(trained)) == len(trained)
    assert style.variant("a_new_one", 2) == style.variant("another", 2)
    others = {style.variant("a_new_one", place) for place in range(12)}
    assert len(others | set(looks)) == 12 + len(looks)
    assert style.kind("no such kind") == style.KINDS["other"]


def test_a_variant_looks_the_same_where_the_others_were_not_measured(data):
    names = [f"mine_{name}" for name in data["generalization"].variant.values]
    order = list(dict.fromkeys(names))
    whole = data["generalization"].assign_coords(
        variant=("run", names), place=("run", [order.index(name) for name in names])
    )
    looks = {v.id: (v.color, v.symbol) for v in runs.variants(whole)}
    assert len(set(looks.values())) == len(order)
    last = whole.isel(run=[name == order[-1] for name in names])
    assert [(v.color, v.symbol) for v in runs.variants(last)] == [looks[order[-1]]]


def test_random_planes_are_called_an_illustration_and_share_their_levels(data):
    drawn = make(figures, "loss_plane", data)
    assert "Illustration, not evidence" in drawn.caption
    found = [mark for panel in drawn.panels for mark in panel.marks if hasattr(mark, "levels")]
    levels = {tuple(mark.levels) for mark in found}
    assert len(levels) == 1


def test_columns_of_a_slice_name_their_batchnorm_mode(data):
    drawn = make(figures, "loss_slice", data)
    assert drawn.panels[0].title.startswith("recalibrate")
    assert drawn.panels[2].title.startswith("eval")
    lines = [m for m in drawn.panels[0].marks if isinstance(m, grammar.Line)]
    whole = data["loss_slice"].loss.sel(run=data["loss_slice"].run[0]).mean("direction")
    inside = np.abs(whole.alpha) <= 1
    assert len(lines[0].x) == int(inside.sum())


def test_a_slice_of_one_seed_says_what_its_band_is(data):
    one = figures.loss_slice(data["loss_slice"], setting="clean")
    assert "over directions, which speaks about these checkpoints alone (one seed)" in one.caption
    assert "over seeds" in make(figures, "loss_slice", data).caption


def test_a_single_result_is_drawn_without_a_study(data):
    one = data["top_eigenvalues"].isel(run=0)
    single = one.drop_vars([n for n in one.coords if n != "rank"])
    single.attrs["provenance"] = '{"bn": "eval"}'
    drawn = figures.top_eigenvalues(single)
    assert "This model" in [text for _, text in drawn.panels[0].y.ticks]
    assert static.render(drawn).axes


def test_figures_leave_matplotlib_as_they_found_it(data):
    import matplotlib

    before = dict(matplotlib.rcParams)
    make(static, "headline", data)
    assert dict(matplotlib.rcParams) == before
    assert "matplotlib.pyplot" not in sys.modules or not matplotlib.pyplot.get_fignums()


def test_pdf_has_truetype_fonts_only(data, tmp_path):
    path = static.save(make(static, "hessian_trace", data), tmp_path / "a.pdf")
    content = path.read_bytes()
    assert b"/Type3" not in content
    assert b"/CIDFontType2" in content or b"/TrueType" in content


def test_a_figure_for_tex_says_which_tex_is_missing_or_cannot_set_it(data, tmp_path, monkeypatch):
    figure = make(static, "headline", data)
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(LandscapeError, match="neither xelatex, lualatex nor pdflatex is installed"):
        static.save(figure, tmp_path / "a.pgf")

    def fails(*_, **__):
        raise LatexError("broken", "This is TeX\n! Font not loadable")

    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(figure, "savefig", fails)
    with pytest.raises(
        LandscapeError, match=r"pdflatex cannot set it .! Font not loadable.; write"
    ):
        static.save(figure, tmp_path / "a.pgf")
    assert list(tmp_path.iterdir()) == []


def test_no_figure_is_higher_than_a_page_of_its_venue(data):
    for width in ("icml-column", "neurips"):
        for name in ("loss_plane", "loss_slice", "perturbation"):
            figure = make(static, name, data, width=width)
            assert figure.get_figheight() <= style.venue(width).height + 1e-9


def test_planes_fill_their_width_and_name_their_axes_once(data):
    ds = data["loss_plane"]
    two = ds.isel(run=np.flatnonzero(np.isin(ds.variant, ["sgd", "sam"])))
    figure = static.loss_plane(two, setting="noisy")
    figure.draw_without_rendering()
    left, right = figure.axes[:2]
    assert left.get_position().width + right.get_position().width > 0.7
    assert left.get_ylabel()
    assert not right.get_ylabel()
    assert left.get_xlabel() == right.get_xlabel() != ""


def test_the_width_of_the_venue_is_the_width_of_the_figure(data):
    for width, inches in (("neurips", 5.5), ("icml-column", 3.25), (4.0, 4.0)):
        assert make(static, "headline", data, width=width).get_figwidth() == inches


def test_narrow_figures_take_fewer_columns(data):
    drawn = make(figures, "loss_plane", data)
    assert drawn.grid(5.5) == (2, 4)
    assert drawn.grid(3.25) == (3, 2)


def test_nothing_is_sent_to_a_cloud_and_arrays_are_single_precision(data):
    assert interactive.CONFIG["showSendToCloud"] is False
    page = make(interactive, "history", data)
    assert all(trace.x.dtype == np.float32 for trace in page.data)


def test_log_ticks_are_decades_or_one_two_five():
    assert ticks.log_ticks(0.9, 11) == [1, 2, 5, 10]
    assert ticks.log_ticks(25, 130) == [30, 50, 100]
    assert ticks.log_ticks(1.0, 1.45) == pytest.approx([1.0, 1.2, 1.4])
    assert ticks.fixed(-0.001, 2) == "0.00"
    assert ticks.log_ticks(1e-4, 1.2) == pytest.approx([1e-4, 1e-3, 1e-2, 1e-1, 1])
    assert [ticks.short(v) for v in (0, 0.001, 30, 2e4, 1e-5)] == [
        "0",
        "0.001",
        "30",
        "2e4",
        "1e-5",
    ]


def test_save_refuses_what_it_cannot_write(data, tmp_path):
    figure = make(static, "hessian_trace", data)
    with pytest.raises(LandscapeError, match=r"figures are written as \.pdf, \.png, \.svg"):
        static.save(figure, tmp_path / "a.jpg")
    with pytest.raises(LandscapeError, match=r"a page is written as \.html"):
        interactive.save(make(interactive, "hessian_trace", data), tmp_path / "a.png")
    page = interactive.save(make(interactive, "hessian_trace", data), tmp_path / "a.html")
    assert page.stat().st_size < 6e6


def test_wrong_settings_widths_and_results_are_named(data):
    with pytest.raises(LandscapeError, match=r"settings noisy, clean; say which one"):
        figures.history(data["history"])
    with pytest.raises(LandscapeError, match="Unknown setting 'loud'; the result has noisy, clean"):
        figures.history(data["history"], setting="loud")
    with pytest.raises(LandscapeError, match=r"This figure needs train_loss, val_accuracy; the re"):
        figures.history(data["sharpness"], setting="noisy")
    with pytest.raises(LandscapeError, match="Unknown width 'nature'; known: neurips, icml"):
        style.venue("nature")
    with pytest.raises(LandscapeError, match=r"width=0\.1 inches; give 1 to 40"):
        style.venue(0.1)
    with pytest.raises(AttributeError, match="no attribute 'colours'"):
        plot.colours


def test_drawing_needs_no_torch():
    code = (
        "import sys, landscape.report, landscape.plot.static, landscape.plot.interactive;"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def _lab(color, seen=np.eye(3)):
    """CIELAB of a colour in linear light, through `seen` (a simulated eye)."""
    srgb = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    linear = seen @ np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array(
        [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750],
         [0.0193339, 0.1191920, 0.9503041]]
    )  # fmt: skip
    ratio = to_xyz @ np.clip(linear, 0, 1) / [0.95047, 1.0, 1.08883]
    f = np.where(ratio > 0.008856, np.cbrt(ratio), 7.787 * ratio + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


# Machado, Oliveira and Fernandes (2009), severity 1, in linear light.
DEUTERANOPIA = np.array(
    [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
     [-0.011820, 0.042940, 0.968881]]
)  # fmt: skip


DEMO = ("sgd", "sgd_early", "sam", "asam", "fsam", "sam_on", "ssam_f", "ssam_d", "zsharp",
        "zsharp_tensor", "lagnp", "random_mask")  # fmt: skip


def _apart(a, b, seen=np.eye(3)):
    return float(np.linalg.norm(_lab(a, seen) - _lab(b, seen)))


def test_kinds_of_tensors_have_colours_of_their_own_for_every_eye():
    kinds = list(style.KINDS.values())
    for i, one in enumerate(kinds):
        assert min(_apart(one, style.variant(name)[0]) for name in DEMO) > 9, one
        for other in kinds[:i]:
            assert min(_apart(one, other), _apart(one, other, DEUTERANOPIA)) > 9, (one, other)


def test_the_variants_of_the_demo_differ_in_colour_or_symbol_for_a_deuteranope():
    looks = {name: style.variant(name) for name in DEMO}
    for i, one in enumerate(DEMO):
        for other in DEMO[:i]:
            (a, mark), (b, shape) = looks[one], looks[other]
            assert mark != shape or _apart(a, b, DEUTERANOPIA) > 12, (one, other)


def test_a_legend_entry_shows_and_hides_all_lines_of_its_kind(data):
    page = make(interactive, "gradient_zscores", data)
    for kind in {trace.name for trace in page.data if trace.showlegend}:
        entry = next(t for t in page.data if t.showlegend and t.name == kind)
        if entry.name in style.KINDS:
            mine = [t for t in page.data if t.legendgroup == kind]
            assert len(mine) > 2


def test_hovering_names_the_variant_and_the_tensor_of_a_point(data):
    page = make(interactive, "perturbation", data)
    names = data["perturbation"].tensor.values.ravel()
    for trace in page.data:
        if trace.name == "conv" and len(trace.x) and np.isfinite(trace.x).any():
            assert f"<br>{trace.meta}<br>%{{text}}" in trace.hovertemplate
            assert set(trace.text) <= set(names)
    energy = make(interactive, "energy_over_time", data)
    line = next(t for t in energy.data if t.name == "conv" and t.hovertemplate)
    assert f"<b>conv</b><br>{line.meta}<br>" in line.hovertemplate


def test_what_is_rounding_beside_the_largest_is_hovered_as_nothing():
    from landscape.plot._plotly_planes import single

    np.testing.assert_array_equal(single([-6.0, -5.9e-16, 6.0]), [-6, 0, 6])
    np.testing.assert_array_equal(single([np.nan, 1e-9, 1.0]), np.float32([np.nan, 1e-9, 1.0]))


def test_hovering_says_where_a_moved_point_belongs(data):
    page = make(interactive, "sharpness", data)
    moved = [t for t in page.data if t.customdata is not None]
    rho = data["sharpness"].rho.values
    assert moved
    for trace in moved:
        np.testing.assert_allclose(trace.customdata, rho, rtol=1e-6)
        assert "customdata" in trace.hovertemplate


def test_a_notebook_shows_a_figure(data):
    assert make(static, "headline", data)._repr_png_().startswith(b"\x89PNG")
    assert "plotly" in make(interactive, "headline", data)._repr_html_()
