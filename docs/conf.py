"""Sphinx: pages in MyST Markdown, tutorials executed while building, reference from docstrings."""

import importlib.metadata

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
exclude_patterns = ["_build", "**/.ipynb_checkpoints"]
html_theme = "furo"
html_title = "landscape"
# The site opens from disk: nothing is fetched, and links name files.
html_static_path: list[str] = []
html_copy_source = False
nitpicky = False


def _as_typed(_app, _what, _name, _object, _options, lines):
    """Docstrings are plain text: formulas such as |g| and ‖e‖ mean what they look like."""
    if lines:
        lines[:] = ["::", "", *(f"   {line}" for line in lines), ""]


def setup(app):
    """Connect the hook; the name is Sphinx's."""
    app.connect("autodoc-process-docstring", _as_typed)
