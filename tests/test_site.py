"""What the pages show runs, the gallery has its lines, notebooks open, and links lead somewhere."""

import importlib.util
import re
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
_SPEC = importlib.util.spec_from_file_location("pages", DOCS / "pages.py")
pages = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(pages)


def python_of(page):
    text = (DOCS / page).read_text(encoding="utf-8")
    blocks = re.findall(r"```(?:\{code-block\} )?python\n(.*?)```", text, re.DOTALL)
    return "\n".join(blocks)


@pytest.mark.parametrize("page", ["start.md", "howto/own_measurement.md", "howto/own_recipe.md"])
def test_the_lines_of_a_page_run_one_after_the_other(page, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    exec(compile(python_of(page), page, "exec"), {})
    if page == "start.md":
        said = capsys.readouterr().out
        assert said.count("certified") == 3
        assert re.search(r"(\d+) questions were asked of them: \1 ok\.", said)  # nothing is wrong
        made = ["plane.pdf", "plane.html", "eigenvalues.pdf"]
        assert all((tmp_path / name).stat().st_size > 5_000 for name in made)


def test_the_gallery_shows_each_figure_with_at_most_ten_lines():
    parts = pages.gallery().split("\n## ")[1:]
    assert len(parts) >= 27
    for part in parts:
        assert (ROOT / re.search(r"\{image\} \.\./(\S+)", part)[1]).exists()
        lines = re.search(r"```python\n(.*?)```", part, re.DOTALL)[1].splitlines()
        by_hand = "landscape.plot.drawing" in part  # no figure function draws it
        assert len(lines) <= 14 or by_hand, part
        compile("\n".join(lines), part.split("\n")[0], "exec")


def test_lines_of_the_gallery_draw(monkeypatch, tmp_path):
    (tmp_path / "figures").symlink_to(ROOT / "figures")
    monkeypatch.chdir(tmp_path)
    head, *parts = pages.gallery().split("\n## ")
    names = {}
    exec(re.search(r"```python\n(.*?)```", head, re.DOTALL)[1], names)
    for part in parts[::10]:
        exec(re.search(r"```python\n(.*?)```", part, re.DOTALL)[1], names)
        name = re.search(r"figures/(\w+)\.png", part)[1]
        assert (tmp_path / f"{name}.pdf").stat().st_size > 5_000


def test_every_tutorial_is_a_notebook_whose_cells_are_python():
    tutorials = [p for p in (DOCS / "tutorials").glob("*.md") if p.stem != "index"]
    assert len(tutorials) == 7
    for page in tutorials:
        book = pages.notebook(page)
        nbformat.validate(book)
        code = [cell.source for cell in book.cells if cell.cell_type == "code"]
        assert code
        for cell in code:
            compile(cell, page.name, "exec")
        assert f"_made/notebooks/{page.stem}.ipynb" in page.read_text(encoding="utf-8")


def test_dead_links_are_found(tmp_path):
    (tmp_path / "a.html").write_text('<a href="b.html#here">b</a><a href="#top">t</a><p id="top">')
    (tmp_path / "b.html").write_text('<p id="there"><a href="c.html">c</a>')
    assert sorted(pages.dead_links(tmp_path)) == ["a.html: b.html#here", "b.html: c.html"]
