"""Sphinx: pages in MyST Markdown, tutorials executed while building, reference from docstrings."""

import importlib.metadata
import re
import sys
import textwrap
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import pages

project = "landscape"
author = "The landscape authors"
release = importlib.metadata.version("sam-landscape")
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
]
myst_enable_extensions = ["dollarmath", "colon_fence", "deflist"]
myst_heading_anchors = 3
nb_execution_mode = "cache"
nb_execution_timeout = 300
nb_execution_raise_on_error = True
nb_execution_show_tb = True
autodoc_typehints = "none"
autodoc_member_order = "bysource"
add_module_names = False
default_role = "code"
exclude_patterns = ["_build", "_made", "**/.ipynb_checkpoints"]
html_theme = "furo"
html_title = "landscape"
# The site opens from disk: nothing is fetched, and links name files.
html_static_path: list[str] = []
html_copy_source = False
nitpicky = False

# How the facts of a recipe begin, each with what follows it indented.
FACTS = ("Source: ", "Published: ", "Paper and code: ", "Cost: ", "Evidence: ")


def _as_rst(_app, _what, _name, _object, _options, lines):
    """Docstrings are plain text: |g| and e_l mean what they look like, `name` is code.

    Paragraphs stay paragraphs, what is indented stays as it is typed, an example becomes one.
    """
    made: list[str] = []
    for paragraph in "\n".join(lines).strip("\n").split("\n\n"):
        if paragraph.startswith("Example:\n"):
            made += [".. rubric:: Example", "", *textwrap.dedent(paragraph[9:]).split("\n")]
        elif paragraph.startswith("    "):
            made += ["::", "", *(f"    {line}" for line in paragraph.split("\n"))]
        elif "\n    " in paragraph:  # a list of facts, or a formula on a line of its own
            facts = paragraph.startswith(FACTS)
            whole = re.sub(r"\n {4,}", " ", paragraph) if facts else paragraph
            made += [f"| {line}" for line in _escaped(whole).split("\n")]
        else:
            made += _escaped(paragraph).split("\n")
        made.append("")
    lines[:] = made


def _escaped(paragraph: str) -> str:
    """Text in which nothing but `code` is markup."""
    parts = paragraph.split("`")
    if len(parts) % 2 == 0:  # a backtick without its partner is one
        return re.sub(r"([\\*|_`])", r"\\\1", paragraph)
    for at, part in enumerate(parts):
        if at % 2:
            before = "\\ " if parts[at - 1][-1:].isalnum() else ""
            after = "\\ " if parts[at + 1][:1].isalnum() else ""
            parts[at] = f"{before}``{part}``{after}"
        else:
            parts[at] = re.sub(r"([\\*|_])", r"\\\1", part)
    return "".join(parts)


def setup(app):
    """Connect the hook; the name is Sphinx's."""
    app.connect("autodoc-process-docstring", _as_rst)
    pages.write()
