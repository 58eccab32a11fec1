"""A plotly figure as a page of its own, dressed by the script that dresses those of the report."""

import json
from importlib.resources import files

import plotly.graph_objects as go
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from landscape.plot._plotly import CONFIG


def script() -> str:
    """page.js: how a figure follows the page that it is on."""
    return files("landscape.plot").joinpath("page.js").read_text(encoding="utf-8")


def spec(figure: go.Figure) -> Markup:
    """The figure as JSON that is safe inside a script element."""
    return Markup(str(figure.to_json()).replace("<", "\\u003c"))


def single(figure: go.Figure, name: str, *, shared: bool) -> str:
    """HTML of one figure with its title and caption; shared: plotly.min.js lies beside it.

    A figure that was not made by `interactive` is called `name`.
    """
    said = figure.layout.meta or {}
    environment = Environment(
        loader=PackageLoader("landscape", "plot"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html.j2").render(
        title=said.get("title") or name,
        caption=said.get("caption", ""),
        columns=said.get("columns", 1),
        spec=spec(figure),
        plotly="" if shared else Markup(get_plotlyjs()),
        config=Markup(json.dumps(CONFIG)),
        look=Markup(script()),
    )
