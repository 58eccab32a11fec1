"""Names of people in the report's formats: printed as they are, never as markup."""

import re

import pytest

from landscape import report, results, storage
from landscape.report.markup import markdown
from tests.fixtures_results import write_study

HOSTILE = "a|b [x](http://y) <img src=x onerror=1>"


def test_markdown_prints_texts_as_they_are():
    assert markdown("the largest |g|") == r"the largest \|g\|"
    assert markdown("[x](http://y)") == r"[x]\(http://y)"
    assert markdown("<b>p < 0.05</b>") == "&lt;b>p < 0.05&lt;/b>"
    assert markdown("two\nlines") == "two lines"
    assert markdown(3) == 3


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
    choice = report.Choice(only=("headline", "sharpness"), formats=("pdf",), letters=True)
    assert report.write_figures(storage.StudyFolder(folder.root), choice, out=tmp_path / "out")
    assert r"$x_{$" not in (tmp_path / "out" / "captions.tex").read_text()
