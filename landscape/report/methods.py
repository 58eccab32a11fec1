"""How a study was made, as LaTeX for its paper: methods, tables, and the works that both cite."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from landscape.plot import runs, style
from landscape.plot.latex import escape
from landscape.report import words
from landscape.report.axes import axis_tables
from landscape.report.evidence import Cell, table
from landscape.report.family import Family
from landscape.report.study import StudyResults
from landscape.storage import slug

_KNOWN = json.loads(Path(__file__).with_name("references.json").read_text(encoding="utf-8"))
_MADE = "% Written by landscape from the study's files; write it again rather than edit it.\n"
_WIDEST = 92  # characters of a table's row in \footnotesize over 5.5 inches


def methods(study: StudyResults) -> str:
    r"""Paragraphs on data, training, variants and measurements, with \cite for each source."""
    parts = [
        ("Data, models and training", list(_training(study))),
        ("Variants", list(_variants(study))),
        ("Measurements", list(_measurements(study))),
    ]
    said = [f"\\paragraph{{{title}.}} {' '.join(text)}\n" for title, text in parts if text]
    return _MADE + "\n".join(said)


def _training(study: StudyResults) -> Iterator[str]:
    settings = list((study.resolved.get("settings") or {}).values())
    listed = study.resolved.get("runs", [])
    for what in ("data", "model", "loss"):
        found = list(dict.fromkeys(str(s[what]) for s in settings if s.get(what)))
        if found:
            yield escape(f"{what.capitalize()}: {words.listing(found)}.")
    if len(settings) > 1:
        yield escape(f"Settings: {words.listing([study.title(s) for s in study.settings])}.")
    own = [run for run in listed if not run.get("weights")]
    trained = [run.get("training") or {} for run in own]
    shared = {
        key: values[0]
        for key in (trained[0] if trained else {})
        if len(values := list(dict.fromkeys(str(t.get(key)) for t in trained))) == 1
        and values[0] not in ("None", "off", "none")
    }
    if shared:
        yield escape(f"All runs: {_listed(shared)}.")
    unequal = sorted({key for t in trained for key in t} - set(shared))
    for key in unequal:
        of = {str(t.get(key)) for t in trained} - {"None", "off", "none"}
        if len(of) > 1:
            yield escape(f"{key.replace('_', ' ')}: {', '.join(sorted(of))}, by variant or axis.")
    if listed:
        seeds = len({run.get("seed") for run in listed})
        yield escape(
            f"{words.count(len(listed), 'run')} with {words.count(seeds, 'seed')}, which fix "
            f"initial weights and data order and are shared by all variants."
        )
    for setting in study.settings:
        if drawn := study.redrawn(setting):
            yield escape(
                f"Setting {study.title(setting)}: every seed has drawn {drawn} anew, the same for "
                f"all variants; intervals are over these draws as well."
            )
    elsewhere = len(listed) - len(own)
    if elsewhere:
        yield escape(f"{words.count(elsewhere, 'run')} of them trained elsewhere.")
    versions = study.resolved.get("versions") or {}
    if versions:
        yield escape(f"Versions: {', '.join(f'{k} {v}' for k, v in versions.items())}.")


def _variants(study: StudyResults) -> Iterator[str]:
    for own in (study.resolved.get("variants") or {}).values():
        recipe = str(own.get("recipe", ""))
        known = style.RECIPES.get(recipe)
        label = escape(str(own.get("label", recipe)))
        cite = _cite([known["source"]]) if known else ""
        options = _listed(own.get("options") or {})
        training = _listed(own.get("training") or {})
        what = escape(f": {known['equation']}") if known else escape(f" (recipe {recipe})")
        more = "; ".join(part for part in (options, training) if part)
        yield f"\\textbf{{{label}}}{cite}{what}{escape(f' ({more})') if more else ''}."


def _measurements(study: StudyResults) -> Iterator[str]:
    for name in study.data:
        if name == "history":
            continue
        cite = _cite(_KNOWN["measurements"].get(name, []))
        how = measured(study, name)
        yield (
            escape(name.replace("_", " ").capitalize()) + cite + escape(f": {how}." if how else ".")
        )


def _listed(options: dict[str, Any]) -> str:
    shown = {k: v for k, v in options.items() if v is not None}
    return ", ".join(f"{k.replace('_', ' ')} {v}" for k, v in shown.items())


def _cite(sources: Sequence[str]) -> str:
    keys = [_key(source) for source in sources if source]
    return f"~\\cite{{{','.join(keys)}}}" if keys else ""


def _key(source: str) -> str:
    """`arXiv:2010.01412`, or what else tells a source, without what a key may not hold."""
    name = source.removeprefix("arXiv:")
    return f"arXiv:{name}" if name[:1].isdigit() else slug(source)


def cited(study: StudyResults) -> list[str]:
    """Every source that `methods` cites, once."""
    recipes = [str(v.get("recipe")) for v in (study.resolved.get("variants") or {}).values()]
    sources = [style.RECIPES[r]["source"] for r in recipes if r in style.RECIPES]
    sources += [s for name in study.data for s in _KNOWN["measurements"].get(name, [])]
    return list(dict.fromkeys(source.removeprefix("arXiv:") for source in sources if source))


def references(study: StudyResults) -> str:
    """BibTeX of every source cited.

    Where authors and title of a paper are not known here, the entry has its number alone and says
    so: a name made up is worse than none.
    """
    return _MADE + "\n".join(_entry(source) for source in cited(study))


def _entry(source: str) -> str:
    if not source[:1].isdigit():
        fields = _KNOWN["elsewhere"].get(source, {"title": escape(source)})
        return _bibtex(source, fields | {"title": f"{{{fields['title']}}}"})
    fields = {"eprint": source, "archivePrefix": "arXiv", "year": f"20{source[:2]}"}
    fields["url"] = f"https://arxiv.org/abs/{source}"
    if source in _KNOWN["papers"]:
        author, title = _KNOWN["papers"][source]
        fields = {"author": author, "title": f"{{{title}}}", **fields}
    else:
        note = "Authors and title: see the address"
        fields = {"title": f"{{arXiv:{source}}}", "key": "arXiv", "note": note, **fields}
    return _bibtex(source, fields)


def _bibtex(source: str, fields: dict[str, str]) -> str:
    body = ",\n".join(f"  {key} = {{{value}}}" for key, value in fields.items())
    kind = "article" if "journal" in fields else "misc"
    return f"@{kind}{{{_key(source)},\n{body}\n}}\n"


def tables(study: StudyResults, family: Family) -> str:
    r"""The page's evidence as booktabs tables; wide ones are cut, with the variants repeated.

    Needs \usepackage{booktabs}. Bold: better than the reference, as far as it is resolved; italic:
    worse.
    """
    made = [_table(t.head, t.rows, t.title or "All variants", t.notes)
            for t in (table(family, setting) for setting in study.settings)]  # fmt: skip
    for one in axis_tables(study):
        head = [Cell(text) for text in one.head]
        rows = [[Cell(text) for text in row] for row in one.rows]
        made.append(_table(head, rows, one.title, (one.note,)))
    return _MADE + "% Needs \\usepackage{booktabs}.\n" + "\n".join(made)


def _table(
    head: Sequence[Cell], rows: Sequence[Sequence[Cell]], title: str, notes: Sequence[str]
) -> str:
    widths = [max(_width(cell) for cell in column) for column in zip(head, *rows, strict=True)]
    parts = list(_parts(widths))
    out = []
    for number, part in enumerate(parts):
        columns = [0, *part]
        lines = [_line([head[c] for c in columns]), "\\midrule"]
        lines += [_line([row[c] for c in columns]) for row in rows]
        again = f" ({number + 1} of {len(parts)})" if len(parts) > 1 else ""
        last = number == len(parts) - 1
        said = escape(" ".join(notes)) if last else "Notes: under the last part."
        out.append(
            "\\begin{table}[tbp]\n\\centering\\footnotesize\\setlength{\\tabcolsep}{4pt}\n"
            f"\\caption{{{escape(title + again)}. {said}}}\n"
            f"\\begin{{tabular}}{{@{{}}l{'r' * len(part)}@{{}}}}\n\\toprule\n"
            + "\n".join(lines)
            + "\n\\bottomrule\n\\end{tabular}\n\\end{table}\n"
        )
    return "\n".join(out)


def _parts(widths: Sequence[int]) -> Iterator[list[int]]:
    """Columns beside the first, as many together as a page holds."""
    part: list[int] = []
    used = widths[0]
    for column in range(1, len(widths)):
        if part and used + widths[column] > _WIDEST:
            yield part
            part, used = [], widths[0]
        part.append(column)
        used += widths[column] + 2
    if part:
        yield part


def _width(cell: Cell) -> int:
    # A note is set smaller.
    notes = [round(0.8 * len(line)) for line in cell.note.split("\n")]
    return max([len(cell.main), *notes])


def _line(cells: Sequence[Cell]) -> str:
    looks = {"better": "\\textbf{%s}", "worse": "\\textit{%s}"}
    texts = []
    for place, cell in enumerate(cells):
        main = looks.get(cell.emphasis, "%s") % escape(cell.main)
        notes = [f"{{\\scriptsize {escape(line)}}}" for line in cell.note.split("\n") if line]
        side = "l" if place == 0 else "r"
        stacked = "\\\\".join([main, *notes])
        texts.append(
            f"\\begin{{tabular}}[t]{{@{{}}{side}@{{}}}}{stacked}\\end{{tabular}}" if notes else main
        )
    return " & ".join(texts) + " \\\\"


def measured(study: StudyResults, name: str) -> str:
    """BatchNorm mode, examples, precision and options of a measurement, in words."""
    ds = study.data[name]
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
    return ", ".join(part.strip() for part in parts)
