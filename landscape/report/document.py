"""A short document of paragraphs and tables: as a page, as Markdown and as JSON."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from landscape.report.markup import markdown
from landscape.storage import write_text


@dataclass(frozen=True)
class Part:
    """Paragraphs and at most one table under a heading."""

    title: str
    text: tuple[str, ...] = ()
    head: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True)
class Document:
    """A title, the answer in a sentence, and parts. data: the numbers behind, for JSON alone."""

    kind: str
    title: str
    answer: str
    parts: tuple[Part, ...]
    data: Mapping[str, object]

    def as_dict(self) -> dict[str, object]:
        """Everything said, and the numbers."""
        return asdict(self)

    def write(self, path: Path) -> list[Path]:
        """Write path.html, path.md and path.json."""
        environment = Environment(
            loader=PackageLoader("landscape.report", "templates"),
            autoescape=lambda name: bool(name) and "html" in name,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        page = environment.get_template("short.html.j2").render(document=self)
        twin = environment.overlay(finalize=markdown).get_template("short.md.j2")
        texts = {
            ".html": page,
            ".md": twin.render(document=self),
            ".json": json.dumps(self.as_dict(), indent=2, ensure_ascii=False) + "\n",
        }
        return [write_text(path.with_name(path.name + end), text) for end, text in texts.items()]


def table_of(rows: Sequence[Sequence[str]]) -> tuple[tuple[str, ...], ...]:
    """Rows as they are kept."""
    return tuple(tuple(row) for row in rows)
