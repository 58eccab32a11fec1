"""What a paper takes over as LaTeX: every source cited is listed, every number is the page's."""

import re
import shutil
import subprocess

import pybtex.database
import pytest

from landscape import report
from landscape.plot import style
from landscape.plot.latex import escape
from landscape.report import methods
from landscape.report.evidence import table
from landscape.report.family import Family
from landscape.report.study import StudyResults


@pytest.fixture(scope="module")
def study(folder):
    return StudyResults.read(folder)


def keys(text):
    return {key for part in re.findall(r"\\cite{([^}]*)}", text) for key in part.split(",")}


def test_what_is_cited_is_listed_and_nothing_else(study):
    listed = set(re.findall(r"^@\w+{(.*),$", methods.references(study), re.MULTILINE))
    assert keys(methods.methods(study)) == listed
    sources = {style.RECIPES[recipe]["source"] for recipe in study.recipes.values()}
    assert sources - {""} <= listed
    assert "arXiv:1712.09913" in listed  # the planes that were drawn


def test_a_paper_whose_authors_are_not_known_here_is_given_by_its_number_alone():
    entry = methods._entry("2999.00001")
    assert "author" not in entry
    assert "title = {{arXiv:2999.00001}}" in entry
    assert "url = {https://arxiv.org/abs/2999.00001}" in entry


def test_every_paper_known_here_has_authors_in_the_form_of_bibtex():
    for number, (authors, title) in methods._KNOWN["papers"].items():
        assert re.fullmatch(r"\d{4}\.\d{4,5}", number)
        for author in authors.split(" and "):
            assert re.fullmatch(r"[^,]+, [^,]+|{.+}", author), author
        entry = methods._entry(number)
        assert title in entry
        assert entry.count("{") == entry.count("}")


def parsed(text):
    """Entries as a strict parser reads them: an error is raised, not repaired."""
    return pybtex.database.parse_string(text, "bibtex").entries


def test_a_parser_of_bibtex_finds_author_title_year_and_place_in_every_entry(study):
    sources = [recipe["source"].removeprefix("arXiv:") for recipe in style.RECIPES.values()]
    sources += [s for listed in methods._KNOWN["measurements"].values() for s in listed]
    sources += [*methods._KNOWN["papers"], *methods._KNOWN["elsewhere"]]
    text = "\n".join(methods._entry(source) for source in dict.fromkeys(filter(None, sources)))
    entries = parsed(text)
    assert len(entries) == text.count("\n@") + 1
    assert set(parsed(methods.references(study))) <= set(entries)
    for key, entry in entries.items():
        fields = entry.fields
        assert re.fullmatch(r"20\d\d", fields["year"]), key
        assert {"eprint", "doi", "journal"} & set(fields.keys()), key
        assert fields["title"], key
        people = entry.persons["author"]
        assert people, key
        assert all(person.last_names for person in people), key


def test_every_variant_has_its_equation_and_its_options(study):
    said = methods.methods(study)
    for own in study.resolved["variants"].values():
        assert escape(own["label"]) in said
        assert escape(style.RECIPES[own["recipe"]]["equation"]) in said
        for value in (own.get("options") or {}).values():
            assert escape(str(value)) in said


def test_tables_hold_every_cell_of_the_page(study):
    family = Family.of(study)
    text = methods.tables(study, family)
    for setting in study.settings:
        for row in table(family, setting).rows:
            for cell in row:
                assert escape(cell.main) in text
                assert all(escape(line) in text for line in cell.note.split("\n"))
    assert text.count(r"\toprule") == text.count(r"\bottomrule") == text.count(r"\end{table}")


def test_the_columns_of_a_table_are_cut_and_none_is_lost():
    widths = [10, 40, 40, 40, 200, 5]
    parts = list(methods._parts(widths))
    assert [c for part in parts for c in part] == [1, 2, 3, 4, 5]
    assert parts == [[1], [2], [3], [4], [5]] or all(
        widths[0] + sum(widths[c] for c in part) <= methods._WIDEST or len(part) == 1
        for part in parts
    )


def test_tex_is_balanced(study):
    for text in (methods.methods(study), methods.tables(study, Family.of(study))):
        bare = re.sub(r"\\[{}$%\\]", "", text)
        assert bare.count("{") == bare.count("}")
        assert bare.count("$") % 2 == 0


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no pdflatex on this machine")
def test_a_paper_is_set_from_what_is_written(study, tmp_path):
    report.write_figures(
        study.folder, report.FigureChoice(only=("headline",), formats=("pdf",)), out=tmp_path
    )
    macros = re.findall(r"{(\\caption\w+)}", (tmp_path / "captions.tex").read_text())
    (tmp_path / "paper.tex").write_text(
        r"\documentclass{article}\usepackage[T1]{fontenc}\usepackage{booktabs}\usepackage{url}"
        r"\input{captions}\begin{document}\input{methods}\input{tables}"
        + r"\par ".join(macros)
        + r"\bibliographystyle{plain}\bibliography{references}\end{document}"
    )
    quiet = {"cwd": tmp_path, "capture_output": True, "timeout": 120}
    tex = ["pdflatex", "-interaction=nonstopmode", "-draftmode", "-halt-on-error", "paper"]
    assert subprocess.run(tex, **quiet).returncode == 0
    found = subprocess.run(["bibtex", "paper"], **quiet)
    assert found.returncode == 0, found.stdout
    for _ in range(2):
        last = subprocess.run(tex, **quiet)
    assert last.returncode == 0
    assert b"undefined citations" not in last.stdout
    assert b"undefined references" not in last.stdout
