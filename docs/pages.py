"""Pages that are made from what is committed: gallery and notebooks; and which links are dead.

python docs/pages.py docs/_build/html      # which links of the site lead nowhere
"""

import ast
import html.parser
import re
import sys
import textwrap
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat

DOCS = Path(__file__).parent
ROOT = DOCS.parent
MADE = DOCS / "_made"  # not committed
CELL = re.compile(r"^```\{code-cell\}[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def gallery() -> str:
    """Each figure with its question, its caption and the lines that draw it from its data."""
    scripts = sorted((ROOT / "analysis_scripts").glob("fig_*.py"))
    parts = [
        "# Gallery\n\n"
        f"{len(scripts)} figures, each from a small file of results that is committed beside it. "
        "The lines are those of the script in `analysis_scripts/` that draws it, to be run in the "
        "repository's folder; `make figures` draws all of them again, and with `--study` a script "
        "draws those of your study.\n\n"
        "```python\nfrom landscape import results\nfrom landscape.plot import static\n```\n"
    ]
    for script in scripts:
        name = script.stem.removeprefix("fig_")
        source = script.read_text(encoding="utf-8")
        words = (ast.get_docstring(ast.parse(source)) or "").split("\n\n")
        parts.append(
            f"## {words[0]}\n\n"
            f"```{{image}} ../figures/{name}.png\n:alt: {name}\n:width: 620px\n```\n\n"
            f"{words[-1]}\n\n```python\n{_lines(source, name)}\n```\n"
        )
    return "\n".join(parts)


def _lines(source: str, name: str) -> str:
    """The data by name, and the body of `draw`, which is the figure."""
    tree = ast.parse(source)
    draw = next(n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == "draw")
    call = next(n for n in ast.walk(tree) if isinstance(n, ast.Call) and _is_main(n))
    loads = [
        f'{argument.arg} = results.load("figures/data/{name}.{measurement.value}.nc")'
        for argument, measurement in zip(draw.args.args, call.args[1].elts, strict=True)
    ]
    constants = [
        ast.get_source_segment(source, node)
        for node in tree.body
        if isinstance(node, ast.Assign)
        and any(n.id in ast.get_source_segment(source, draw) for n in node.targets)
    ]
    shared = {"_figure", "results", "static"}
    imports = [
        ast.get_source_segment(source, node)
        for node in tree.body
        if isinstance(node, ast.Import | ast.ImportFrom)
        and not {alias.name for alias in node.names} <= shared
    ]
    first = draw.body[1] if ast.get_docstring(draw) else draw.body[0]
    body = textwrap.dedent("\n".join(source.split("\n")[first.lineno - 1 : draw.end_lineno]))
    body = re.sub(r"^return ", "figure = ", body, flags=re.MULTILINE)
    return "\n".join([*imports, *constants, *loads, body, f'static.save(figure, "{name}.pdf")'])


def _is_main(node: ast.Call) -> bool:
    return isinstance(node.func, ast.Attribute) and node.func.attr == "main"


def notebook(page: Path) -> nbformat.NotebookNode:
    """A tutorial as a notebook: its words, and its cells without results."""
    text = page.read_text(encoding="utf-8").split("---\n", 2)[-1]
    book = nbformat.v4.new_notebook()
    book.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3"}
    pieces = CELL.split(text)
    for at, piece in enumerate(pieces):
        if piece.strip():
            words = re.sub(r"\{\w+\}`([^`<]*?)(?: ?<[^>]*>)?`", r"`\1`", piece.strip())
            new = nbformat.v4.new_code_cell if at % 2 else nbformat.v4.new_markdown_cell
            book.cells.append(new(piece.strip() if at % 2 else words, id=f"cell-{at}"))
    nbformat.validate(book)
    return book


def write() -> None:
    """Make what the pages include: called before the sources are read."""
    (MADE / "notebooks").mkdir(parents=True, exist_ok=True)
    _write(MADE / "gallery.md", gallery())
    for page in sorted((DOCS / "tutorials").glob("*.md")):
        if CELL.search(page.read_text(encoding="utf-8")):
            _write(MADE / "notebooks" / f"{page.stem}.ipynb", nbformat.writes(notebook(page)))


def _write(path: Path, text: str) -> None:
    """Write what changed, so that an unchanged page is not built again."""
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")


class _Links(html.parser.HTMLParser):
    """Where a page leads to, and the places within it that can be led to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.targets: list[str] = []
        self.places: set[str] = set()
        self.feed(text)

    def handle_starttag(self, _tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Collect href, src and id."""
        for key, value in attrs:
            if value and key in ("href", "src"):
                self.targets.append(value)
            elif value and key in ("id", "name"):
                self.places.add(value)


def dead_links(site: Path) -> list[str]:
    """Links between the pages of a site to files or places that are not there."""
    pages = {page: _Links(page.read_text(encoding="utf-8")) for page in site.rglob("*.html")}
    dead = []
    for page, links in pages.items():
        for target in links.targets:
            to = urlsplit(target)
            if to.scheme or to.netloc:
                continue
            file = (page.parent / unquote(to.path)).resolve() if to.path else page.resolve()
            known = pages.get(site / file.relative_to(site.resolve())) if file.exists() else None
            if not file.exists() or (to.fragment and known and to.fragment not in known.places):
                dead.append(f"{page.relative_to(site)}: {target}")
    return dead


if __name__ == "__main__":
    found = dead_links(Path(sys.argv[1]))
    print("\n".join(found) or "Every link within the site leads somewhere.")
    sys.exit(bool(found))
