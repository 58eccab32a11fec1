"""Commands that read a study: its figures, its page, how it compares, how it stands."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from landscape.cli.flags import Json, StudyDir, names
from landscape.cli.program import EPILOG, app


@app.command(epilog=EPILOG)
def figures(
    folder: StudyDir,
    only: Annotated[str, typer.Option(help="Figures by name, comma-separated; all.")] = "",
    variants: Annotated[str, typer.Option(help="Variants to draw, comma-separated; all.")] = "",
    highlight: Annotated[
        str,
        typer.Option(
            help="Variants that stand out, comma-separated, the others pale; all: none is pale. "
            "Default, of more than six lines on a panel: references, best, random mask."
        ),
    ] = "",
    setting: Annotated[str | None, typer.Option(help="One setting of the study; all.")] = None,
    venue: Annotated[
        str,
        typer.Option(help="neurips, icml, icml-column, iclr, cvpr, cvpr-column or thesis."),
    ] = "neurips",
    width: Annotated[
        float | None, typer.Option(help="Inches, instead of the venue's text width.")
    ] = None,
    letters: Annotated[bool, typer.Option("--letters", help="a, b, c before the panels.")] = False,
    formats: Annotated[
        str,
        typer.Option("--format", help="Of pdf, png, svg, pgf, html, gif, mp4, comma-separated."),
    ] = "pdf,png,html",
    dpi: Annotated[int, typer.Option(help="Of PNG files.")] = 200,
    out: Annotated[Path | None, typer.Option(help="Folder; default STUDY/figures.")] = None,
    as_json: Json = False,
) -> None:
    """Draw the figures of a study in the size of a venue.

    Vector PDF for the paper, HTML for the web; beside them captions.tex, tables.tex, methods.tex,
    references.bib and data/*.csv, every number that is drawn.

    landscape figures studies/demo --venue icml-column --only headline,sharpness --letters
    """
    from landscape import report
    from landscape.storage import StudyFolder

    place = StudyFolder(folder.absolute())
    place.check()
    choice = report.FigureChoice(
        only=names(only), variants=names(variants), highlight=names(highlight), setting=setting,
        width=venue if width is None else width, letters=letters, formats=names(formats), dpi=dpi,
    )  # fmt: skip
    paths = report.write_figures(place, choice, out=out)
    if as_json:
        print(json.dumps({"figures": [str(path) for path in paths]}))
    else:
        print(f"{len(paths)} files of figures in {out or place.figures}")


@app.command(epilog=EPILOG)
def report(folder: StudyDir, as_json: Json = False) -> None:
    """Write report.html and report.md of a study from its results."""
    from landscape import report as reports
    from landscape.storage import StudyFolder

    place = StudyFolder(folder.absolute())
    place.check()
    path = reports.write(place)
    print(json.dumps({"report": str(path)}) if as_json else path)


@app.command(epilog=EPILOG)
def compare(
    first: Annotated[Path, typer.Argument(metavar="STUDY_A", help="The folder of a study.")],
    second: Annotated[Path, typer.Argument(metavar="STUDY_B", help="The folder of another.")],
    out: Annotated[
        Path | None, typer.Option(help="Without suffix; default compare-A-B, in this folder.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Lay two studies side by side: how they were made, what both measured, what each concludes.

    Was a study repeated on another machine, did a new version change a number? Writes a page
    (.html), its Markdown twin (.md) and .json.
    """
    from landscape import report

    one, other = _study(first), _study(second)
    _leave(report.compare(one, other), out or Path(f"compare-{first.name}-{second.name}"), as_json)


@app.command(epilog=EPILOG)
def diagnose(
    folder: StudyDir,
    variant: Annotated[str, typer.Option(help="The variant that is asked about.")],
    against: Annotated[str, typer.Option(help="The variant that it is laid beside.")],
    setting: Annotated[str | None, typer.Option(help="Of the study; default its first.")] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Without suffix; default diagnose-VARIANT-AGAINST, in this folder."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Say what differs between two variants of a study, quantity by quantity, and what that means.

    landscape diagnose studies/demo --variant zsharp --against sam
    """
    from landscape import report
    from landscape.storage import folder_name

    found = report.diagnose(_study(folder), variant, against, setting)
    name = f"diagnose-{folder_name(variant)}-{folder_name(against)}"
    _leave(found, out or Path(name), as_json)


def _study(folder: Path) -> Any:
    from landscape import report
    from landscape.storage import StudyFolder

    return report.StudyResults.read(StudyFolder(folder.absolute()))


def _leave(document: Any, path: Path, as_json: bool) -> None:
    paths = document.write(path)
    print(json.dumps(document.as_dict(), indent=2) if as_json else "\n".join(map(str, paths)))


@app.command(epilog=EPILOG)
def status(folder: StudyDir, as_json: Json = False) -> None:
    """How far is a study, and who works on it?

    Planned, done, running, failed and stopped runs, and the work that is left. Reads the folder
    alone: at any time, from any machine. Exit code 1 where a run failed.
    """
    from landscape import study

    found = study.status(folder)
    print(json.dumps(found.as_dict(), indent=2, default=str) if as_json else found)
    if found.counts["failed"]:
        raise typer.Exit(1)


@app.command(epilog=EPILOG)
def verify(folder: StudyDir, as_json: Json = False) -> None:
    """Compare every file of a study with its digest.

    Is it as it was written, after a copy too? Nothing is run or changed. Exit code 1 where a file
    differs, with what to do about it.
    """
    from landscape import study

    found = study.verify(folder)
    print(json.dumps(found.as_dict(), indent=2) if as_json else found)
    if found.problems:
        raise typer.Exit(1)
