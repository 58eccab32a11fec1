"""The page: figures, words and tables put together as HTML, with a Markdown twin."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from landscape import results
from landscape.plot import interactive, pages, runs
from landscape.report import multiverse, words
from landscape.report.axes import AxisTable, axis_tables
from landscape.report.crosscheck import crosscheck
from landscape.report.evidence import table
from landscape.report.family import Family
from landscape.report.findings import Answer, answer
from landscape.report.markup import markdown
from landscape.report.methods import measured
from landscape.report.overview import overview
from landscape.report.paper import FigureChoice, Section, Selected, begin, printing, select
from landscape.report.rules import RULES
from landscape.report.sources import claims_of, row_anchor, sources, spoken_of
from landscape.report.study import StudyResults
from landscape.report.trainings import arithmetic, trainings
from landscape.report.verdict import Verdict
from landscape.storage import StudyFolder, folder_name, slug, write_text


def _spec(figure: Selected) -> Markup:
    return pages.spec(interactive.render(figure.drawing, width=7.2))


def _columns(figure: Selected) -> int:
    """Columns of panels at the width of a page."""
    return figure.drawing.grid(7.2)[1]


# Symbols of variants as in the figures, in a box from -1 to 1.
_OUTLINES = {
    "circle": "M-1 0a1 1 0 1 0 2 0a1 1 0 1 0-2 0z",
    "square": "M-.9-.9H.9V.9H-.9z",
    "diamond": "M0-1.2L1.2 0L0 1.2L-1.2 0z",
    "triangle": "M0-1.1L1.1 .9H-1.1z",
    "cross": "M-.35-1.1H.35V-.35H1.1V.35H.35V1.1H-.35V.35H-1.1V-.35H-.35z",
    "x": "M-1-.6L-.6-1L0-.4L.6-1L1-.6L.4 0L1 .6L.6 1L0 .4L-.6 1L-1 .6L-.4 0z",
    "bar": "M-.2-1.2H.2V1.2H-.2z",
}


def _symbol(v: runs.VariantRuns) -> Markup:
    """The mark of a variant in the page's legend."""
    return Markup(
        '<svg viewBox="-1 -1 2 2" aria-hidden="true"><path d="{}" fill="{}"/></svg>'
    ).format(_OUTLINES[v.symbol], v.color)


def write(folder: StudyFolder, *, formats: tuple[str, ...] = ("png", "pdf")) -> Path:
    """Write report.html, report.md and figures/ of a study; return the path of the page.

    The page is self-contained: it opens from disk without a network. `formats`: static figures
    beside it (png is what the Markdown twin shows).
    folder: that of a study with results, `storage.StudyFolder(path)`.

    Example:
        >>> small = storage.StudyFolder(Path("small"))
        >>> few = results.load(finished.results / "calibration.nc")
        >>> _ = results.save(few, small.results / "calibration.nc")
        >>> _ = storage.write_json(small.resolved, storage.read_json(finished.resolved))
        >>> report.write(small).name
        'report.html'
    """
    choice = FigureChoice(formats=formats)
    # The other cores begin while this one reads, and draw while it writes.
    with printing(choice, 2 * len(list(folder.results.glob("*.nc")))) as helped:
        study = StudyResults.read(folder)
        family = Family.of(study)
        overviews, sections = list(_overviews(family)), []
        begin(helped, overviews, folder.figures, choice)
        for section in select(study, choice, family):
            begin(helped, section.figures, folder.figures, choice)
            sections.append(section)
        twin, page = _texts(folder, study, family, sections, overviews)
    write_text(folder.root / "report.md", twin)
    return write_text(folder.report, page)


def _texts(
    folder: StudyFolder,
    study: StudyResults,
    family: Family,
    sections: Sequence[Section],
    overviews: Sequence[Selected],
) -> tuple[str, str]:
    """The page in Markdown and in HTML; beside it the specifications, and studies to run next."""
    own = [one for s in study.settings for one in multiverse.specifications(study, s)]
    multiverse.write(own, folder.figures / "data" / "specifications.csv")
    asked = [*own, *multiverse.scans(folder.scans)]
    said = _with_specifications(answer(family), own)
    for verdict in said.verdicts:
        if verdict.experiment is not None and verdict.experiment.text:
            path = folder.root / "next" / f"{verdict.experiment.name}.toml"
            write_text(path, verdict.experiment.text)
    context = {
        "study": study,
        "resolved": study.resolved,
        "name": study.resolved.get("name") or folder.root.name,
        "question": study.resolved.get("question") or "What do these models do differently?",
        "answer": said,
        "overview": overviews,
        "trained": list(_trained(study)),
        "how": {name: measured(study, name) for name in study.data},
        "rests_on": partial(sources, study, sections),
        "claims_of": claims_of,
        "row_anchor": row_anchor,
        "next": list(_next(said)),
        "keys": list({v.label: v for s in study.settings for v in study.variants(s)}.values()),
        "spoken_of": partial(spoken_of, study),
        "files": list(_files(study)),
        "tables": [table(family, setting) for setting in study.settings],
        "rules": RULES,
        "axes": [*_asked_otherwise(study, asked), *axis_tables(study)],
        "trainings": trainings(study),
        "sections": sections,
        "crosscheck": crosscheck(study),
        "measured": list(_how_measured(study)),
        "facts": list(_facts(study)),
        "digests": Markup(json.dumps(study.digests)),
        "runs": study.resolved.get("runs", []),
        "options": [
            (v.get("label", key), v.get("recipe", ""), _options(v.get("options") or {}))
            for key, v in (study.resolved.get("variants") or {}).items()
        ],
        "worked": study.worked,
    }
    loader = PackageLoader("landscape.report", "templates")

    def in_unit(text: Any) -> Any:
        return results.units.said_in(text, study.loss_unit)

    environment = Environment(
        loader=loader,
        autoescape=lambda name: bool(name) and "html" in name,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=in_unit,
    )
    environment.filters |= {
        "slug": slug,
        "folder": folder_name,
        "sentence": words.sentence,
        "spec": _spec,
        "columns": _columns,
        "symbol": _symbol,
    }
    script = loader.get_source(environment, "report.js")[0]
    extras = {
        "plotly": Markup(get_plotlyjs()),
        "config": Markup(json.dumps(interactive.CONFIG)),
        "look": Markup(pages.script()),
        "script": Markup(script),
    }
    twin = environment.overlay(finalize=lambda text: markdown(in_unit(text))).get_template(
        "report.md.j2"
    )
    page = environment.get_template("report.html.j2")
    return twin.render(**context), page.render(**context, **extras)


def _with_specifications(said: Answer, own: Sequence[multiverse.Specification]) -> Answer:
    """The answer, each verdict on flatness with the share of specifications in which it holds."""
    told = []
    for verdict in said.verdicts:
        here = [one for one in own if one.setting == verdict.setting]
        flat = verdict.key.startswith("flatter_")
        held = multiverse.holds(here, verdict.word) if flat else ""
        told.append(replace(verdict, multiverse=held))
    return replace(said, verdicts=tuple(told))


def _asked_otherwise(
    study: StudyResults, asked: Sequence[multiverse.Specification]
) -> Iterator[AxisTable]:
    """The verdict along the axes of this study and in the scans beside it."""
    titles = {s: study.title(s) for s in study.settings} if len(study.settings) > 1 else {}
    found = multiverse.specification_table(asked, titles)
    if found is not None:
        yield found


def _overviews(family: Family) -> Iterator[Selected]:
    """The first picture of each setting."""
    study = family.study
    for setting in study.settings:
        drawing = overview(family, setting)
        if drawing is not None:
            alone = len(study.settings) == 1
            stem = "overview" if alone else f"overview-{folder_name(setting)}"
            said = results.units.said_in(drawing, study.loss_unit)
            yield Selected(said, said, setting, stem, ("generalization",))


def _trained(study: StudyResults) -> Iterator[tuple[str, str]]:
    """What was trained, for the first screen: data, model, size, training, runs."""
    resolved = study.resolved
    settings = list((resolved.get("settings") or {}).values())
    listed = resolved.get("runs", [])
    size = {runs.provenance(ds, "num_parameters") for ds in study.data.values()} - {""}
    weights = f", {int(size.pop()):,} parameters" if len(size) == 1 else ""
    for key, more in (("data", ""), ("model", weights)):
        if found := _all_of(settings, key):
            yield key.capitalize(), found + more
    trainings = [run.get("training") or {} for run in listed]
    words_of = {
        "epochs": "epochs {}", "batch_size": "batches of {}", "lr": "learning rate {}",
        "schedule": "{} schedule", "base": "{}", "momentum": "momentum {}",
        "weight_decay": "weight decay {}",
    }  # fmt: skip
    said = [text.format(v) for key, text in words_of.items() if (v := _all_of(trainings, key))]
    if said:
        yield "Training", ", ".join(said)
    if listed:
        seeds = len({run.get("seed") for run in listed})
        drawn = list(dict.fromkeys(filter(None, map(study.redrawn, study.settings))))
        own = f", each with its own {' or '.join(drawn)}" if drawn else ""
        yield "Runs", f"{len(listed)} ({words.count(seeds, 'seed')}{own})"


def _all_of(entries: list[dict[str, Any]], key: str) -> str:
    """The values of a key, each once, in the order of their first use."""
    return " or ".join(dict.fromkeys(str(e[key]) for e in entries if e.get(key) is not None))


def _next(said: Answer) -> Iterator[Verdict]:
    """Verdicts whose experiment can be run, each experiment once."""
    seen = set()
    for verdict in said.verdicts:
        one = verdict.experiment
        if one is not None and one.text and one.name not in seen:
            seen.add(one.name)
            yield verdict


def _files(study: StudyResults) -> Iterator[tuple[str, str]]:
    """Each result that the page was made from, with the SHA-256 it was read with."""
    for name, digest in study.digests.items():
        yield f"results/{name}.nc", digest or "none: written elsewhere"


def _how_measured(study: StudyResults) -> Iterator[tuple[str, str]]:
    """Each measurement with its BatchNorm mode, examples, precision and seed."""
    for name in study.data:
        yield name.replace("_", " "), measured(study, name) or "written down by the trainings"


def _facts(study: StudyResults) -> Iterator[tuple[str, str]]:
    """Versions, threads, device and size of the study."""
    resolved = study.resolved
    versions = resolved.get("versions") or {}
    if versions:
        yield "Versions", ", ".join(f"{key} {value}" for key, value in versions.items())
    for key in ("device", "dtype", "threads"):
        if key in resolved:
            yield f"{key.capitalize()} of the last call", str(resolved[key])
    found = arithmetic(study.trainings)
    if found:
        yield "Arithmetic of the trainings", found
    unknown = [v for v in (resolved.get("variants") or {}).values() if v.get("recipe") == "none"]
    if unknown:
        names = words.listing(list(dict.fromkeys(str(v.get("label")) for v in unknown)))
        yield (
            "Left out",
            f"what {names} perturb: they were trained elsewhere, and no recipe is known",
        )
    listed = resolved.get("runs", [])
    if listed:
        yield "Runs", words.count(len(listed), "run")
    yield from _weights_files(study)
    yield from _without_influence(study)
    for run, own in _of_runs(study, "frozen_in_loss").items():
        yield f"Parameters of the loss, held fixed in {run}", ", ".join(own["frozen_in_loss"])
    yield from _digests(study)
    if "problem" in resolved:
        problem = resolved["problem"]
        yield "Problem", _options(problem) if isinstance(problem, dict) else str(problem)
    if "training" in resolved and isinstance(resolved["training"], dict):
        yield "Training", _options(resolved["training"])


def _digests(study: StudyResults) -> Iterator[tuple[str, str]]:
    """What tells these results from others: the first digits of their SHA-256."""
    known = [f"{name} {digest[:12]}" for name, digest in study.digests.items() if digest]
    if known:
        yield "Results read (SHA-256)", ", ".join(known)
    foreign = [name for name, digest in study.digests.items() if not digest]
    if foreign:
        yield "Results without a digest", ", ".join(foreign)


def _of_runs(study: StudyResults, key: str) -> dict[str, dict[str, Any]]:
    """Run to its provenance, for the runs whose provenance has an entry."""
    return {
        str(run): own
        for ds in study.data.values()
        for run, own in zip(ds.run.values, results.provenance(ds).get("runs", []), strict=False)
        if own.get(key)
    }


def _without_influence(study: StudyResults) -> Iterator[tuple[str, str]]:
    """Trainable tensors that the loss does not reach, once for each run that has some."""
    for run, own in _of_runs(study, "without_influence").items():
        names = own["without_influence"]
        more = int(own.get("num_without_influence", len(names))) - len(names)
        said = ", ".join(names) + (f" and {more} more" if more > 0 else "")
        yield f"Without influence on the loss in {run}", said


def _weights_files(study: StudyResults) -> Iterator[tuple[str, str]]:
    """What was found in weights files from elsewhere, once for each run."""
    for run, own in _of_runs(study, "weights_found").items():
        yield f"Weights of {run}", own["weights_found"]


def _options(options: dict[str, Any]) -> str:
    return ", ".join(f"{key} = {value}" for key, value in options.items() if value is not None)
