"""The figures of a study for a paper: chosen, in a venue's size, with captions and numbers."""

import csv
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import xarray as xr

from landscape import results
from landscape.errors import LandscapeError
from landscape.plot import animation, derived, interactive, style
from landscape.plot._twins import highlighted
from landscape.plot.drawing import Drawing
from landscape.plot.latex import escape
from landscape.plot.printing import Print, Printing
from landscape.report.family import Family
from landscape.report.methods import measured, methods, references, tables
from landscape.report.sections import SECTIONS, Entry
from landscape.report.study import StudyResults
from landscape.storage import StudyFolder, folder_name, write_atomically, write_text

_ALL = "all"
_MOVING = ("gif", "mp4")
FORMATS = ("pdf", "png", "svg", "pgf", "html", *_MOVING)


@dataclass(frozen=True)
class Selected:
    """One figure of a study: its drawing, setting, file stem, and the measurements it shows.

    printed: the drawing on paper, where no legend can be clicked. Where it has more lines of
    variants on one panel than can be told apart, some stand out and its caption names the others.
    """

    drawing: Drawing
    printed: Drawing
    setting: str
    stem: str
    measurements: tuple[str, ...]
    figure: str = ""  # its name for `--only`


@dataclass(frozen=True)
class Section:
    """Figures under one heading."""

    title: str
    figures: tuple[Selected, ...]


@dataclass(frozen=True)
class FigureChoice:
    """Which figures are drawn, of what, and how.

    only: names of figures (default all). variants: ids; others are left out, and the caption says
    so. highlight: ids that stand out, the others pale; "all" for none of them, and by default, in
    figures with more than six lines of variants on one panel, the references, the best of the
    others and the random mask. setting: one of the study's (default all).
    width: a venue (`style.VENUES`) or inches. letters: a, b, c before the panels. dpi: of PNG.
    formats: "png", "pdf", "svg", "pgf", "html", and "gif" for what has time.

    Example:
        >>> report.FigureChoice(only=("headline",), width="icml-column", formats=("pdf",)).width
        'icml-column'
    """

    only: tuple[str, ...] = ()
    variants: tuple[str, ...] = ()
    highlight: tuple[str, ...] = ()
    setting: str | None = None
    width: str | float = "neurips"
    letters: bool = False
    formats: tuple[str, ...] = ("png", "pdf", "html")
    dpi: int = 200


def select(
    study: StudyResults, choice: FigureChoice, family: Family | None = None
) -> Iterator[Section]:
    """Sections with the figures that the study has data for; unknown names are refused.

    family: the study's differences, if they were decided already. Figures of some of the variants
    show the decisions of the whole study: leaving out a variant does not change what was tested.
    """
    _check(study, choice)
    family = Family.of(study) if family is None else family
    for title, entries in SECTIONS:
        chosen = [e for e in entries if e.figure in choice.only or not (choice.only or e.asked)]
        found = tuple(_figures(study, chosen, choice, family))
        if found:
            yield Section(title, found)


def _check(study: StudyResults, choice: FigureChoice) -> None:
    known = {
        "only": [entry.figure for _, entries in SECTIONS for entry in entries],
        "variants": list(study.recipes),
        "highlight": [*study.recipes, _ALL],
        "formats": list(FORMATS),
    }
    for name, possible in known.items():
        unknown = [value for value in getattr(choice, name) if value not in possible]
        if unknown:
            raise LandscapeError(
                f"{name}: {', '.join(map(repr, unknown))} asked; possible are "
                f"{', '.join(possible)}."
            )
    if choice.setting is not None and choice.setting not in study.settings:
        raise LandscapeError(
            f"setting {choice.setting!r} asked; the study has {', '.join(study.settings)}."
        )
    style.venue(choice.width)
    if not 30 <= choice.dpi <= 1200:
        raise LandscapeError(f"dpi={choice.dpi} asked; give 30 to 1200.")


def _figures(
    study: StudyResults, entries: Sequence[Entry], choice: FigureChoice, family: Family
) -> Iterator[Selected]:
    left_out = [v for v in study.recipes if choice.variants and v not in choice.variants]
    part = study.of_variants(choice.variants) if choice.variants else study
    for setting in [choice.setting] if choice.setting else study.settings:
        for entry in entries:
            drawing = entry.draw(part, setting, family)
            if drawing is None or not any(panel.marks for panel in drawing.panels):
                continue
            drawing = _saying(drawing, study, setting, left_out)
            shown = [part.get(name, setting) for name in entry.measurements]
            printed = drawing
            if _ALL not in choice.highlight:
                names = choice.highlight or standing(part, family, setting)
                labels = [v.label for v in part.variants(setting)]
                if choice.highlight or derived.crowded(drawing, labels):
                    printed = _before_pale(drawing, names, shown)
                drawing = printed if choice.highlight else drawing
            alone = len(study.settings) == 1
            stem = entry.figure if alone else f"{entry.figure}-{folder_name(setting)}"
            yield Selected(drawing, printed, setting, stem, entry.measurements, entry.figure)


def _before_pale(
    drawing: Drawing, names: Sequence[str], shown: Sequence[xr.Dataset | None]
) -> Drawing:
    present = {str(v) for ds in shown if ds is not None for v in ds.variant.values}
    return highlighted(drawing, [name for name in names if name in present], *shown)


def standing(study: StudyResults, family: Family, setting: str) -> list[str]:
    """Rows that stand out where all are too many: two references, the best other, a random mask."""
    references = [r for name in study.references(setting) for r in study.rows_of(setting, name)]
    values = family.values.get((setting, study.metric))
    others = [
        (values.mean(row), row)
        for row in study.rows(setting)
        if values is not None and row not in references and not study.is_control(row, setting)
    ]
    known = [one for one in others if math.isfinite(one[0])]
    best = [max(known, key=lambda one: one[0])[1]] if known else []
    random = study.controls(setting, "random_mask")[:1]
    return list(dict.fromkeys([*references[:2], *best, *random]))


def _saying(
    drawing: Drawing, study: StudyResults, setting: str, left_out: Sequence[str]
) -> Drawing:
    if not left_out:
        return drawing
    names = ", ".join(study.label(setting, name) for name in left_out)
    return replace(drawing, caption=f"{drawing.caption} Not shown: {names}.")


def write_figures(
    folder: StudyFolder, choice: FigureChoice | None = None, *, out: Path | None = None
) -> list[Path]:
    """Write the figures of a study (to its figures/ folder); return their paths.

    Beside them: data/<figure>.csv, every number drawn; captions.tex, a macro for each caption;
    tables.tex, methods.tex and references.bib of the whole study. html: interactive twins, which
    share one plotly.min.js; with time (trajectory) it moves, as gif and mp4 do.
    choice: a `FigureChoice` of what is drawn (default: all). out: the folder they are written to.

    Example:
        >>> choice = report.FigureChoice(only=("margins",), formats=("pdf",))
        >>> written = report.write_figures(finished, choice, out=Path("paper"))
        >>> sorted(path.name for path in written)
        ['margins.pdf']
    """
    study, choice = StudyResults.read(folder), choice or FigureChoice()
    family = Family.of(study)
    place = Path(out) if out is not None else folder.figures
    shown = [figure for section in select(study, choice, family) for figure in section.figures]
    if not shown:
        asked = ", ".join(choice.only) or "figures"
        raise LandscapeError(
            f"{folder.root} has no results for {asked}; it has {', '.join(study.data)}."
        )
    paths = save(shown, place, choice)
    texts = {
        "captions": "".join(map(lambda f: _caption(study, f), shown)),
        "tables": tables(study, family),
        "methods": methods(study),
    }
    for name, text in results.units.said_in(texts, study.loss_unit).items():
        write_text(place / f"{name}.tex", text)
    write_text(place / "references.bib", references(study))
    return paths


def save(shown: Sequence[Selected], place: Path, choice: FigureChoice) -> list[Path]:
    """Write figures in the formats of the choice, and data/<figure>.csv; paths of the figures."""
    with printing(choice, len(shown)) as helped:
        return begin(helped, shown, place, choice)


def printing(choice: FigureChoice, expected: int) -> Printing:
    """Helpers for so many figures, where the choice has any that they can draw."""
    return Printing(expected if _printed(choice) else 0)


def _printed(choice: FigureChoice) -> tuple[str, ...]:
    return tuple(f".{each}" for each in choice.formats if each not in ("html", *_MOVING))


def begin(
    helped: Printing, shown: Sequence[Selected], place: Path, choice: FigureChoice
) -> list[Path]:
    """`save`, of which the helpers draw their part meanwhile: all are there once they are left."""
    suffixes = _printed(choice)
    paths = helped.begin([
        Print(one.printed, place / one.stem, suffixes, choice.width, choice.letters, choice.dpi)
        for one in shown if suffixes
    ]) or [[] for _ in shown]  # fmt: skip
    for one, written in zip(shown, paths, strict=True):
        written += _save_moving(one, place / one.stem, choice)
        write_csv(one.drawing, place / "data" / f"{one.stem}.csv")
    return [path for written in paths for path in written]


def _save_moving(figure: Selected, path: Path, choice: FigureChoice) -> Iterator[Path]:
    """The interactive twin and the animation, as far as they are wanted."""
    moves = len(derived.moments(figure.drawing)) > 1
    if "html" in choice.formats:
        render = animation.moving if moves else interactive.render
        page = render(figure.drawing, width=7.2)
        yield interactive.save(page, path.with_suffix(".html"), shared=True)
    for suffix in [one for one in choice.formats if one in _MOVING and moves]:
        film = path.with_suffix(f".{suffix}")
        yield animation.save(figure.drawing, film, width=choice.width)


def write_csv(drawing: Drawing, path: Path) -> Path:
    """Every number of the drawing in tidy rows: what a reader needs to draw it again."""
    rows = drawing.rows()
    columns = list(dict.fromkeys(key for row in rows for key in row))

    def write(temporary: Path) -> None:
        with temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(columns)
            writer.writerows([_cell(row.get(key)) for key in columns] for row in rows)

    return write_atomically(path, write)


def _cell(value: str | float | None) -> str | float:
    if value is None:
        return ""
    if isinstance(value, str):
        # A spreadsheet would run it.
        return f"'{value}" if value[:1] in ("=", "+", "@", "\t", "\r") else value
    number = float(value)
    return (
        int(number)
        if number.is_integer() and abs(number) < 2**53
        else number
        if math.isfinite(number)
        else str(number)
    )


def _caption(study: StudyResults, figure: Selected) -> str:
    r"""\providecommand of one caption: title, what is drawn, and how it was measured."""
    how = "; ".join(
        f"{name.replace('_', ' ')}: {words}"
        for name in figure.measurements
        if name in study.data and (words := measured(study, name))
    )
    title = study.title(figure.setting)
    where = f" Setting: {title}." if title and len(study.settings) > 1 else ""
    text = f"{figure.printed.caption}{where}" + (f" Measured with {how}." if how else "")
    macro = "caption" + "".join(
        part.capitalize() for part in figure.stem.replace("-", "_").split("_")
    )
    macro = "".join(_DIGITS.get(letter, letter) for letter in macro if letter.isalnum())
    return (
        f"% {figure.stem}\n\\providecommand{{\\{macro}}}{{\\textbf{{{escape(figure.drawing.title)}"
        f"}} {escape(text)}}}\n"
    )


_DIGITS = dict(zip("0123456789", "ABCDEFGHIJ", strict=True))  # macros have no digits
