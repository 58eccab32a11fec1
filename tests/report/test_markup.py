"""Names of people in the report's formats: printed as they are, never as markup."""

import csv
import re
from xml.etree import ElementTree

import pytest
import xarray as xr

from landscape import report, results, storage
from landscape.plot import runs
from landscape.plot.latex import escape
from landscape.report.markup import markdown
from tests.fixtures_results import write_study

HOSTILE = "a|b [x](http://y) <img src=x onerror=1>"


def test_markdown_prints_texts_as_they_are():
    assert markdown("the largest |g|") == r"the largest \|g\|"
    assert markdown("[x](http://y)") == r"[x]\(http://y)"
    assert markdown("<b>p < 0.05</b>") == "&lt;b>p < 0.05&lt;/b>"
    assert markdown("two\nlines") == "two lines"
    assert markdown(3) == 3


def test_the_mark_of_what_cannot_be_seen_is_a_letter_that_latex_has():
    assert escape(storage.visible("a\u202eb\x07")) == "a?b?"


@pytest.mark.thorough
@pytest.mark.filterwarnings("ignore:Glyph")
def test_a_hostile_label_breaks_neither_tables_nor_pages(tmp_path):
    folder = write_study(tmp_path)
    for path in folder.results.glob("*.nc"):
        ds = results.load(path)
        if "label" in ds.coords:
            labels = ds.label.values.astype(object)
            labels[ds.variant.values == "sam"] = HOSTILE
            results.save(ds.assign_coords(label=("run", labels)), path)
    report.write(storage.StudyFolder(folder.root), formats=())
    text = (folder.root / "report.md").read_text()
    assert "](http://y)" not in text
    assert "<img src=x" not in text
    tables = re.findall(r"(?:^\|.*\n)+", text, flags=re.M)
    assert any("onerror" in table for table in tables)
    for table in tables:
        cells = {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}
        assert len(cells) == 1, table
    page = (folder.root / "report.html").read_text()
    assert "<img src=x" not in page


@pytest.mark.filterwarnings("ignore:Glyph")
def test_a_label_that_begins_a_formula_is_drawn_as_it_is(tmp_path):
    folder = write_study(tmp_path, noisy=("sgd", "sam"), clean=(), seeds=2)
    for path in folder.results.glob("*.nc"):
        ds = results.load(path)
        if "label" in ds.coords:
            labels = ds.label.values.astype(object)
            labels[ds.variant.values == "sam"] = r"$x_{$ % \frac{"
            results.save(ds.assign_coords(label=("run", labels)), path)
    choice = report.FigureChoice(only=("headline", "sharpness"), formats=("pdf",), letters=True)
    assert report.write_figures(storage.StudyFolder(folder.root), choice, out=tmp_path / "out")
    assert r"$x_{$" not in (tmp_path / "out" / "captions.tex").read_text()


ODD = {
    "sgd": "=1+1|`x` \\",
    "sam": r"$x_{$ % \frac{ \input{/etc/passwd} ^~#&_",
    "zsharp": "<script>alert(1)</script>[x](http://y) \"'&amp;",
    "random_mask": "\u202eabc \N{PARTY POPPER} u\u0308 \x07 " + "long " * 60,
}


@pytest.mark.thorough
@pytest.mark.filterwarnings("ignore:Glyph")
def test_odd_labels_of_other_peoples_results_go_through_every_writer(tmp_path):
    """Pages, Markdown, SVG, LaTeX, CSV, diagnose: what is seen is text, files are well-formed."""
    folder = write_study(tmp_path / "a", noisy=tuple(ODD), clean=(), seeds=2)
    for path in folder.results.glob("*.nc"):
        ds = results.load(path)
        if "label" in ds.coords:
            labels = [ODD[name] for name in ds.variant.values.tolist()]
            results.save(ds.assign_coords(label=("run", labels)), path)
    report.write(folder, formats=())
    out = tmp_path / "out"
    choice = report.FigureChoice(only=("headline",), formats=("svg", "html"))
    report.write_figures(folder, choice, out=out)
    report.diagnose(report.StudyResults.read(folder), "zsharp", "sgd").write(tmp_path / "diagnosed")
    for path in tmp_path.rglob("*"):
        if path.suffix not in (".html", ".md", ".svg", ".tex", ".csv", ".json"):
            continue
        text = path.read_text()
        assert not {"\u202e", "\x07"} & set(text), path
        if path.suffix in (".html", ".md", ".svg"):
            assert "<script>alert" not in text, path
        if path.suffix == ".md":
            assert "](http://y)" not in text, path
        if path.suffix == ".svg":
            ElementTree.fromstring(text)
        if path.suffix == ".tex":
            assert not re.search(r"\\(input|frac)\b", text), path
        if path.suffix == ".csv":
            cells = [cell for row in csv.reader(text.splitlines()) for cell in row]
            assert not [cell for cell in cells if cell[:1] in ("=", "+", "@")], path


def test_labels_that_are_cut_for_a_figure_still_differ():
    long = ["x" * 300, "x" * 299, "a\x07b", "a\x08b", "short"]
    ds = xr.Dataset(coords={"run": list("abcde"), "label": ("run", long)})
    shown = runs.as_runs(ds).label.values.tolist()
    assert len(set(shown)) == 5
    assert max(map(len, shown)) <= 66
    assert shown[-1] == "short"
    assert all(word.isprintable() for word in shown)
