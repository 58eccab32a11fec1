"""The page: figures, words and tables put together as HTML, with a Markdown twin."""

import datetime
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from landscape.errors import LandscapeError
from landscape.plot import interactive, runs, static
from landscape.plot.drawing import Drawing
from landscape.report import words
from landscape.report.crosscheck import crosscheck
from landscape.report.evidence import comparisons, table
from landscape.report.findings import answer
from landscape.report.sections import SECTIONS, Entry
from landscape.report.study import Study
from landscape.storage import StudyFolder, slug, write_text

FORMATS = ("png", "pdf")


@dataclass(frozen=True)
class Shown:
    """One figure of the report: its drawing, its setting, and the stem of its files."""

    drawing: Drawing
    setting: str
    stem: str

    @property
    def spec(self) -> Markup:
        """The plotly figure as JSON that is safe inside a script element."""
        text = interactive.render(self.drawing, width=7.2).to_json()
        return Markup(text.replace("<", "\\u003c"))

    @property
    def columns(self) -> int:
        """Columns of panels at the width of a page."""
        return self.drawing.grid(7.2)[1]


@dataclass(frozen=True)
class Section:
    """Figures under one heading."""

    title: str
    figures: tuple[Shown, ...]


def write(folder: StudyFolder, *, formats: tuple[str, ...] = FORMATS) -> Path:
    """Write report.html, report.md and figures/ of a study; return the path of the page.

    The page is self-contained: it opens from disk without a network. `formats`: static figures
    beside it (png is what the Markdown twin shows).
    """
    study = Study.read(folder)
    sections = [_section(study, title, entries) for title, entries in SECTIONS]
    sections = [section for section in sections if section.figures]
    _save([shown for section in sections for shown in section.figures], folder, formats)
    made = comparisons(study)
    context = {
        "study": study,
        "resolved": study.resolved,
        "name": study.resolved.get("name") or folder.root.name,
        "question": study.resolved.get("question") or "What do these models do differently?",
        "answer": answer(study, made),
        "tables": [table(study, made, setting) for setting in study.settings],
        "sections": sections,
        "crosscheck": crosscheck(study),
        "measured": list(_how_measured(study)),
        "facts": list(_facts(study)),
        "runs": study.resolved.get("runs", []),
        "options": [
            (v.get("label", key), v.get("recipe", ""), _options(v.get("options") or {}))
            for key, v in (study.resolved.get("variants") or {}).items()
        ],
        "made": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }
    environment = Environment(
        loader=PackageLoader("landscape.report", "templates"),
        autoescape=lambda name: bool(name) and "html" in name,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["slug"] = slug
    extras = {"plotly": Markup(get_plotlyjs()), "config": Markup(json.dumps(interactive.CONFIG))}
    write_text(
        folder.root / "report.md", environment.get_template("report.md.j2").render(**context)
    )
    page = environment.get_template("report.html.j2").render(**context, **extras)
    return write_text(folder.report, page)


def write_figures(
    folder: StudyFolder, *, formats: tuple[str, ...] = (*FORMATS, "html")
) -> list[Path]:
    """Write the figures of a study to its figures/ folder; return their paths.

    html: interactive twins, which share one plotly.min.js beside them.
    """
    study = Study.read(folder)
    sections = [_section(study, title, entries) for title, entries in SECTIONS]
    return _save([shown for section in sections for shown in section.figures], folder, formats)


def _save(shown: list[Shown], folder: StudyFolder, formats: tuple[str, ...]) -> list[Path]:
    unknown = sorted(set(formats) - {"png", "pdf", "svg", "html"})
    if unknown:
        raise LandscapeError(
            f"Unknown figure format {', '.join(unknown)}; known: png, pdf, svg, html."
        )
    paths = []
    for figure in shown:
        place = folder.figures / figure.stem
        printed = [suffix for suffix in formats if suffix != "html"]
        if printed:
            drawn = static.render(figure.drawing, width=5.5)
            paths += [static.save(drawn, place.with_suffix(f".{suffix}")) for suffix in printed]
        if "html" in formats:
            page = interactive.render(figure.drawing, width=7.2)
            paths.append(interactive.save(page, place.with_suffix(".html"), shared=True))
    return paths


def _section(study: Study, title: str, entries: tuple[Entry, ...]) -> Section:
    shown = []
    for setting in study.settings:
        for entry in entries:
            drawing = entry.draw(study, setting)
            if drawing is not None and any(panel.marks for panel in drawing.panels):
                name = entry.figure
                stem = name if len(study.settings) == 1 else f"{name}-{slug(setting)}"
                shown.append(Shown(drawing, setting, stem))
    return Section(title, tuple(shown))


def _how_measured(study: Study) -> Iterator[tuple[str, str]]:
    """Each measurement with its BatchNorm mode, examples, precision and seed."""
    for name, ds in study.data.items():
        parts = [
            f"{text} {value}"
            for key, text in (
                ("bn", "BatchNorm"),
                ("num_examples", "N ="),
                ("dtype", ""),
                ("normalize", "normalized per"),
                ("num_matvecs", "products"),
                ("tolerance", "tolerance"),
                ("percentile", "percentile"),
            )
            if (value := runs.provenance(ds, key)) and len(value) < 60
        ]
        if study.first_seed_only(name):
            parts.append("one seed per variant")
        yield name.replace("_", " "), ", ".join(part.strip() for part in parts)


def _facts(study: Study) -> Iterator[tuple[str, str]]:
    """Versions, threads, device and size of the study."""
    resolved = study.resolved
    versions = resolved.get("versions") or {}
    if versions:
        yield "Versions", ", ".join(f"{key} {value}" for key, value in versions.items())
    for key in ("device", "dtype", "threads"):
        if key in resolved:
            yield key.capitalize(), str(resolved[key])
    listed = resolved.get("runs", [])
    if listed:
        yield "Runs", words.count(len(listed), "run")
    if "problem" in resolved:
        problem = resolved["problem"]
        yield "Problem", _options(problem) if isinstance(problem, dict) else str(problem)
    if "training" in resolved and isinstance(resolved["training"], dict):
        yield "Training", _options(resolved["training"])


def _options(options: dict[str, Any]) -> str:
    return ", ".join(f"{key} = {value}" for key, value in options.items() if value is not None)
