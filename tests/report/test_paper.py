"""Figures for a paper: chosen, sized, lettered, with captions and numbers that are the figure's."""

import csv
import re

import numpy as np
import pytest

from landscape import report
from landscape.errors import LandscapeError
from landscape.plot import derived, figures, static, style
from landscape.plot.latex import escape
from landscape.report import paper
from landscape.report.study import StudyResults
from tests.fixtures_results import write_study

NAMES = ("headline", "sharpness", "mask_overlap", "loss_plane", "gradient_zscores")


def drawn(folder, **choice):
    study = StudyResults.read(folder)
    return {
        figure.stem: figure
        for section in paper.select(study, paper.FigureChoice(**choice))
        for figure in section.figures
    }


def test_what_is_asked_is_drawn_and_no_more(folder, tmp_path):
    choice = report.FigureChoice(
        only=("headline", "history"), variants=("sgd", "sam"), setting="noisy", formats=("svg",)
    )
    paths = report.write_figures(folder, choice, out=tmp_path)
    assert sorted(p.name for p in paths) == ["headline-noisy.svg", "history-noisy.svg"]
    text = (tmp_path / "headline-noisy.svg").read_text()
    assert "SAM" in text
    assert "ZSharp" not in text
    said = (tmp_path / "captions.tex").read_text()
    assert "Not shown: ZSharp, Random mask." in said
    assert r"\providecommand{\captionHeadlineNoisy}" in said


def test_the_same_data_give_the_same_bytes(folder, tmp_path):
    choice = report.FigureChoice(only=("headline",), formats=("pdf", "png", "svg", "html"))
    one = report.write_figures(folder, choice, out=tmp_path / "one")
    two = report.write_figures(folder, choice, out=tmp_path / "two")
    assert len(one) == 8
    for a, b in zip(one, two, strict=True):
        assert a.read_bytes() == b.read_bytes(), a.name


@pytest.mark.parametrize("name", NAMES)
def test_a_csv_holds_every_number_of_its_figure(folder, name, tmp_path):
    figure = drawn(folder, only=(name,), setting="noisy")[f"{name}-noisy"]
    path = paper.write_csv(figure.drawing, tmp_path / "numbers.csv")
    rows = list(csv.DictReader(path.read_text().splitlines()))
    for number, panel in enumerate(figure.drawing.panels, start=1):
        here = [row for row in rows if row["panel"] == str(number)]
        for mark in panel.marks:
            if not hasattr(mark, "y") or hasattr(mark, "text") or hasattr(mark, "values"):
                continue
            found = [
                r
                for r in here
                if r["name"] == mark.name and r["mark"] == type(mark).__name__.lower()
            ]
            for column in ("x", "y"):
                wanted = np.sort(np.ravel(getattr(mark, column)))
                got = np.array([float(row[column]) for row in found])
                assert np.isin(wanted[np.isfinite(wanted)], got).all(), (name, mark.name, column)


@pytest.mark.thorough
@pytest.mark.parametrize("venue", ["neurips", "icml-column", "thesis"])
def test_no_letter_is_smaller_than_seven_points_and_none_is_outside_of_the_page(folder, venue):
    for figure in drawn(folder, setting="noisy").values():
        if figure.drawing.name in NAMES:
            page = static.render(figure.drawing, width=venue, letters=True)
            assert page.get_size_inches()[0] == style.VENUES[venue].width
            sizes = [
                t.get_fontsize()
                for t in page.findobj(match=lambda a: hasattr(a, "get_fontsize"))
                if t.get_text()
            ]
            assert min(sizes) >= 7


def test_panels_have_letters_where_there_are_several(folder):
    figure = drawn(folder, only=("headline",), setting="noisy")["headline-noisy"]
    page = static.render(figure.drawing, letters=True)
    titles = [ax.get_title(loc="left") for ax in page.axes]
    assert [re.search(r"\\bf{(.)}", title)[1] for title in titles] == ["a", "b", "c"]
    assert not any("bf" in ax.get_title(loc="left") for ax in static.render(figure.drawing).axes)


def test_highlighted_variants_keep_their_look_and_the_others_are_pale_and_named(folder):
    data = StudyResults.read(folder).data["history"]
    plain = figures.history(data, setting="noisy")
    page = static.history(data, setting="noisy", highlight=["sam"])
    pale = derived.highlighting(plain, ["SAM"], ["SGD", "SAM", "ZSharp", "Random mask"])
    for panel, before in zip(pale.panels, plain.panels, strict=True):
        lines = [m for m in panel.marks if hasattr(m, "dash")]
        kept = [m for m in lines if m.name == "SAM"]
        assert [m.color for m in kept] == [style.VARIANTS["sam"][0]]
        assert {m.color for m in lines} == {style.VARIANTS["sam"][0], style.PALE}
        assert {m.name for m in lines} == {"SAM", "others (3)"}
        ys = sorted(m.y.tolist() for m in lines)
        assert ys == sorted(m.y.tolist() for m in before.marks if hasattr(m, "dash"))
    assert "Pale: SGD, ZSharp, Random mask." in pale.caption
    ends = [text.get_text() for ax in page.axes for text in ax.texts]
    assert ends == ["SAM"]
    with pytest.raises(LandscapeError, match="'adam' was asked; the variants here are sgd, sam"):
        static.history(data, setting="noisy", highlight=["adam"])


def test_of_too_many_lines_on_one_panel_some_stand_out_on_paper(tmp_path):
    """The references, the best of the others and the random mask; the page keeps every colour."""
    place = write_study(tmp_path, clean=(), seeds=2, without=("loss_plane", "loss_slice"))
    one = drawn(place, only=("history", "headline", "spectral_density"))
    colours = {m.color for p in one["history"].printed.panels for m in p.marks}
    # Of 11 variants and a control, beside SGD and SAM, F-SAM has the best accuracy.
    kept = {style.VARIANTS[name][0] for name in ("sgd", "sam", "fsam", "random_mask")}
    assert colours == kept | {style.PALE}
    assert "Pale: SGD, stopped early, ASAM, SAM-ON" in one["history"].printed.caption
    assert style.PALE not in {m.color for p in one["history"].drawing.panels for m in p.marks}
    # Rows have names, and panels of single variants are told apart by their titles.
    assert one["headline"].printed == one["headline"].drawing
    assert one["spectral_density"].printed == one["spectral_density"].drawing
    every = drawn(place, only=("history",), highlight=("all",))["history"]
    assert every.printed == every.drawing
    asked = drawn(place, only=("history",), highlight=("zsharp",))["history"]
    assert asked.printed == asked.drawing
    assert {m.color for p in asked.drawing.panels for m in p.marks} == {
        style.PALE, style.VARIANTS["zsharp"][0]
    }  # fmt: skip


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"only": ("headlines",)}, "only: 'headlines' asked; possible are headline, "),
        ({"variants": ("adam",)}, "variants: 'adam' asked; possible are sgd, sam, zsharp"),
        ({"setting": "dirty"}, "setting 'dirty' asked; the study has noisy, clean"),
        (
            {"formats": ("tiff",)},
            "formats: 'tiff' asked; possible are pdf, png, svg, pgf, html, gif",
        ),
        ({"width": "nature"}, "Unknown width 'nature'; known: neurips, "),
        ({"dpi": 5}, "dpi=5 asked; give 30 to 1200"),
        ({"only": ("bezier",)}, "has no results for bezier; it has"),
    ],
)
def test_what_cannot_be_drawn_is_said(folder, choice, message):
    with pytest.raises(LandscapeError, match=message):
        report.write_figures(folder, report.FigureChoice(**choice))


def test_text_for_latex():
    assert escape("50 % of |g|_1 & #1 {a}") == r"50 \% of \textbar{}g\textbar{}\_1 \& \#1 \{a\}"
    assert escape("λ₁ ≤ 2/η") == r"$\lambda_1$ $\leq$ 2/$\eta$"
    assert escape("‖e‖ = ρ·√P") == r"$\|$e$\|$ = $\rho\cdot\surd$P"
    assert escape("αβ") == r"$\alpha\beta$"
    # TeX refuses a second exponent or index beside the first.
    assert escape("T⁻¹, 10⁻¹² and λₘₐₓ") == r"T$^{-1}$, 10$^{-12}$ and $\lambda_{max}$"
    assert escape("\\input{x}\x00") == r"\textbackslash{}input\{x\} "
