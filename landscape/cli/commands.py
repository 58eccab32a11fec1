"""The commands: thin; the work is imported inside them, so that --help is quick."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
import typer.core

from landscape.cli import plans
from landscape.cli.flags import (
    OWN,
    RUNNING,
    TRAINING,
    Data,
    DataDir,
    Device,
    Dtype,
    Engine,
    Hours,
    Json,
    Loss,
    Model,
    On,
    Out,
    Partition,
    Rho,
    Seed,
    Set,
    StudyDir,
    Threads,
    Variant,
    Workers,
)
from landscape.errors import LandscapeError

EPILOG = (
    "Exit codes: 0 all well, 1 some runs failed, 2 bad input, 70 an error of ours, 130 stopped by "
    "Ctrl-C. "
    "Every command resumes: run it again and only what is missing is done."
)


class _Listing(typer.core.TyperGroup):
    """The list of commands is plain text: loading what draws boxes takes longer than the rest."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        self.rich_markup_mode = None
        super().format_help(ctx, formatter)


app = typer.Typer(
    name="landscape",
    cls=_Listing,
    help="Measure and draw the loss landscape of networks trained with SAM and its variants.",
    epilog=EPILOG,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _say_version(wanted: bool) -> None:
    if wanted:
        from landscape import __version__

        typer.echo(f"landscape {__version__}")
        raise typer.Exit


@app.callback()
def _landscape(
    version: Annotated[
        bool,
        typer.Option("--version", is_eager=True, callback=_say_version, help="Print the version."),
    ] = False,
) -> None:
    """Measure and draw the loss landscape of networks trained with SAM and its variants."""


@app.command(epilog=EPILOG)
def demo(
    out: Annotated[
        Path | None, typer.Option(help="Folder; default studies/demo.", rich_help_panel=RUNNING)
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="SGD, SAM and ZSharp, one seed: under a minute.")
    ] = False,
    print_study: Annotated[
        bool, typer.Option("--print-study", help="Print the study file that the demo is, and stop.")
    ] = False,
    open_report: Annotated[
        bool, typer.Option("--open/--no-open", help="Open the report in a browser at the end.")
    ] = False,
    device: Device = "auto",
    workers: Workers = None,
    threads: Threads = 1,
    as_json: Json = False,
) -> None:
    """Train SGD and eleven SAM variants, measure, and write a report.

    On handwritten digits: about five minutes on two CPU cores, no download. Run it again and it
    resumes.
    """
    from landscape.study.demo import demo_text, write_scans

    text = demo_text(quick=quick)
    if print_study:
        print(text, end="")
        return
    from landscape import study

    folder = out or Path("studies") / ("demo-quick" if quick else "demo")
    plan = study.parse(text, base=folder.absolute())
    options = study.Options(device=device, workers=workers, threads=threads)
    summary = study.run(plan, folder, options)
    if not quick:
        write_scans(folder)
    plans.finish(summary, as_json=as_json, open_report=open_report)


@app.command(epilog=EPILOG)
def run(
    study_file: Annotated[
        Path,
        typer.Argument(metavar="STUDY", help="A study.toml, or the folder of a study to continue."),
    ],
    out: Out = None,
    data_dir: DataDir = None,
    device: Device = "auto",
    dtype: Dtype = None,
    workers: Workers = None,
    threads: Threads = 1,
    on: On = "here",
    partition: Partition = None,
    hours: Hours = None,
    engine: Engine = None,
    estimate: Annotated[
        bool, typer.Option("--estimate", help="Print what it would cost; run nothing.")
    ] = False,
    tflops: Annotated[
        float | None,
        typer.Option(help="With --estimate: of each worker elsewhere, 10¹² operations a second."),
    ] = None,
    changes: Set = None,
    as_json: Json = False,
) -> None:
    """Train, measure and report a study. What is there already is kept.

    `landscape demo --print-study` prints a study file to start from.

    landscape run study.toml --on slurm --partition gpu --hours 8 --engine gpus_per_node=1
    """
    from landscape import study

    plan, folder = plans.open(study_file, out, data_dir, dtype, changes)
    if tflops is not None and not estimate:
        raise LandscapeError(f"--tflops {tflops:g} is of --estimate.")
    where = plans.engine(on, partition, hours, workers, engine)
    options = study.Options(device=device, workers=workers, threads=threads, on=where)
    if estimate:
        plans.say_estimate(plan, folder, replace(options, device="cpu", on=None), as_json, tflops)
        return
    plans.finish(study.run(plan, folder, options), as_json=as_json)


@app.command(epilog=EPILOG)
def tune(
    study_file: Annotated[Path, typer.Argument(metavar="STUDY", help="A study.toml with an axis.")],
    axis: Annotated[
        str | None, typer.Option(help="What is chosen: rho, lr, ...; default the only axis.")
    ] = None,
    seeds: Annotated[
        int | None, typer.Option(min=1, help="How many; default as many as the study has.")
    ] = None,
    setting: Annotated[
        str | None, typer.Option(help="Where it is chosen; default that of the comparisons.")
    ] = None,
    write: Annotated[
        Path | None, typer.Option(help="The chosen study; default <STUDY>-chosen.toml.")
    ] = None,
    out: Out = None,
    data_dir: DataDir = None,
    device: Device = "auto",
    dtype: Dtype = None,
    workers: Workers = None,
    threads: Threads = 1,
    changes: Set = None,
    as_json: Json = False,
) -> None:
    """Choose rho, or any axis, on validation data.

    Writes the study that has it chosen. Seeds that the study does not use, test data unread. A grid
    whose best value lies at its end is extended. Run it again and it resumes.
    """
    from landscape import study
    from landscape.study.tuning import tune as tuned

    plan, folder = plans.open(study_file, out, data_dir, dtype, changes)
    target = write or study_file.with_name(f"{study_file.stem}-chosen.toml")
    if target.exists() and target.resolve() == study_file.resolve():
        raise LandscapeError(f"--write {target} is the study file itself; give another name.")
    options = study.Options(device=device, workers=workers, threads=threads)
    where = folder if out is not None else folder.with_name(f"{folder.name}-tune")
    found = tuned(plan, where, options, axis=axis, seeds=seeds, setting=setting, say=plans.say)
    plans.finish_tuning(found, target, as_json=as_json)


@app.command(epilog=EPILOG)
def train(
    data: Data = "digits",
    model: Model = "cnn",
    loss: Loss = None,
    variant: Variant = "sam",
    rho: Rho = None,
    seed: Seed = 0,
    epochs: Annotated[int | None, typer.Option(rich_help_panel=TRAINING)] = None,
    lr: Annotated[float | None, typer.Option(rich_help_panel=TRAINING)] = None,
    batch_size: Annotated[int | None, typer.Option(rich_help_panel=TRAINING)] = None,
    label_noise: Annotated[
        float | None,
        typer.Option(help="Share of wrong training labels.", rich_help_panel=TRAINING),
    ] = None,
    out: Out = None,
    data_dir: DataDir = None,
    device: Device = "auto",
    dtype: Dtype = None,
    threads: Threads = 1,
    changes: Set = None,
    as_json: Json = False,
) -> None:
    """Train one model; `landscape measure FOLDER` then measures it.

    Any option of a recipe or of the training is one --set away, e.g. --set training.weight_decay=0
    or --set run.percentile=0.9. Your own data, model or loss: package.module:callable.
    """
    from landscape import study
    from landscape.study.flags import Flags

    flags = Flags(
        data=data, model=model, loss=loss, variant=variant, rho=rho, seed=seed, epochs=epochs,
        lr=lr, batch_size=batch_size, label_noise=label_noise, data_dir=data_dir,
    )  # fmt: skip
    plan, folder = plans.from_flags(flags, out, dtype, changes)
    options = study.Options(device=device, workers=0, threads=threads, measure=False)
    summary = study.run(plan, folder, options)
    plans.say_summary(summary)
    plans.leave(summary, as_json, {"checkpoints": [str(p) for p in summary.checkpoints()]})


@app.command(epilog=EPILOG)
def measure(
    study_file: Annotated[
        Path | None,
        typer.Argument(
            metavar="[STUDY]", help="A study.toml or a study's folder: its trained runs."
        ),
    ] = None,
    data: Data = None,
    model: Model = None,
    loss: Loss = None,
    weights: Annotated[
        Path | None,
        typer.Option(
            help="A file of torch.save, safetensors, or an index of shards.", rich_help_panel=OWN
        ),
    ] = None,
    weights_key: Annotated[
        str | None,
        typer.Option(help="Which of several weights in that file.", rich_help_panel=OWN),
    ] = None,
    variant: Variant = "sgd",
    rho: Rho = None,
    seed: Seed = 0,
    examples: Annotated[
        int | None, typer.Option(help="Examples to measure on; 256.", rich_help_panel=OWN)
    ] = None,
    estimate: Annotated[
        bool,
        typer.Option("--estimate", help="Print gradients, seconds and memory; measure nothing."),
    ] = False,
    out: Out = None,
    data_dir: DataDir = None,
    device: Device = "auto",
    dtype: Dtype = None,
    workers: Workers = None,
    threads: Threads = 1,
    changes: Set = None,
    as_json: Json = False,
) -> None:
    """Measure the runs of a study, or a checkpoint of your own.

    Your own work: landscape measure --model mine:make --data mine:data --weights a.pt
    --variant sam --rho 0.05

    make() returns the nn.Module, data() a (inputs, targets) pair or train, val and test splits.

    A model too large for one device: torchrun --nproc-per-node 4 -m landscape measure ... cuts its
    weights over the processes, which measure together.
    """
    from landscape import study

    if study_file is not None:
        if weights is not None:
            raise LandscapeError(f"Give a study ({study_file}) or --weights {weights}, not both.")
        plans.refuse_own(
            study_file,
            {
                "data": data,
                "model": model,
                "loss": loss,
                "weights-key": weights_key,
                "rho": rho,
                "variant": None if variant == "sgd" else variant,
                "seed": seed or None,
                "examples": examples,
            },
        )
        plan, folder = plans.open(study_file, out, data_dir, dtype, changes)
    else:
        plan, folder = plans.from_flags(
            plans.own_flags(
                data, model, loss, weights, weights_key, variant, rho, seed, examples, data_dir
            ),
            out, dtype, changes,
        )  # fmt: skip
    if estimate:
        options = study.Options(device=device, workers=workers, threads=threads)
        plans.say_estimate(plan, folder, options, as_json)
        return
    options = study.Options(device=device, workers=workers, threads=threads, train=False)
    plans.measured(plan, folder, options, as_json=as_json)


@app.command(epilog=EPILOG)
def figures(
    folder: StudyDir,
    only: Annotated[str, typer.Option(help="Figures by name, comma-separated; all.")] = "",
    variants: Annotated[str, typer.Option(help="Variants to draw, comma-separated; all.")] = "",
    highlight: Annotated[
        str, typer.Option(help="Variants that stand out, comma-separated; the others pale.")
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
        only=_names(only), variants=_names(variants), highlight=_names(highlight), setting=setting,
        width=venue if width is None else width, letters=letters, formats=_names(formats), dpi=dpi,
    )  # fmt: skip
    paths = report.write_figures(place, choice, out=out)
    if as_json:
        print(json.dumps({"figures": [str(path) for path in paths]}))
    else:
        print(f"{len(paths)} files of figures in {out or place.figures}")


def _names(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


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


@app.command(epilog=EPILOG)
def check(as_json: Json = False) -> None:
    """Check this installation.

    Versions and devices; an eigenvalue beside a dense Hessian; a SAM step beside one written by
    hand; a result written and read; a figure drawn twice; two worker processes. Exit code 1 where
    one fails.
    """
    from landscape.cli.checkup import checkup, say

    if as_json:
        found = list(checkup())
        print(json.dumps([finding._asdict() for finding in found], indent=2))
        holds = all(finding.holds for finding in found)
    else:
        holds = say(checkup())
    if not holds:
        raise typer.Exit(1)


@app.command(epilog=EPILOG)
def doctor(
    folder: Annotated[
        Path, typer.Argument(metavar="RECORD_FOLDER", help="The folder of a landscape.record.")
    ],
    as_json: Json = False,
) -> None:
    """Say whether the recorded steps of a loop were those of SAM.

    with landscape.record(model, folder="theirs", steps_per_epoch=len(loader)): your loop

    Exit code 1 where something is wrong.
    """
    from landscape import diagnosis

    found = diagnosis.read(folder)
    print(json.dumps(found.as_dict(), indent=2) if as_json else found)
    if found.wrong:
        raise typer.Exit(1)


@app.command(epilog=EPILOG)
def weights(
    source: Annotated[Path, typer.Argument(help="A weights file, an index of shards, a folder.")],
    out: Annotated[
        Path | None, typer.Option(help="Write its tensors there, as safetensors with a digest.")
    ] = None,
    trust_pickle: Annotated[
        str | None,
        typer.Option(
            metavar="SHA256",
            help="Run the Python objects of the file with this SHA-256, typed in by you.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Say what a weights file holds; nothing in it is run.

    Or convert it.     landscape weights model.ckpt

    landscape weights whole.pt --trust-pickle 5f0c... --out weights.safetensors
    """
    from landscape.problems.weights import convert as rewrite
    from landscape.problems.weights import held

    if out is not None:
        rewrite(source, out, trust_pickle=trust_pickle)
    found = held(source if out is None else out, trust_pickle=trust_pickle if out is None else None)
    print(json.dumps(found) if as_json else "\n".join(f"{k}: {v}" for k, v in found.items()))


@app.command(epilog=EPILOG)
def convert(
    source: Annotated[
        Path, typer.Argument(help="A result (.nc), or a surface of loss-landscape (.h5).")
    ],
    target: Annotated[
        Path,
        typer.Argument(
            help="What to write: .csv, .parquet, .nc; .png, .pdf, .svg, .pgf, .html, .gif, .mp4; "
            ".glb, .vts."
        ),
    ],
    figure: Annotated[
        str | None, typer.Option(help="Name of the figure; default that of the measurement.")
    ] = None,
    setting: Annotated[
        str | None, typer.Option(help="One setting of a study; figures take the first.")
    ] = None,
    variants: Annotated[str, typer.Option(help="Variants to keep, comma-separated; all.")] = "",
    as_json: Json = False,
) -> None:
    """Write a result as tables, a figure or a mesh.

    Or brings an old loss surface along. Variables of unlike dimensions go into a table each:
    perturbation.run-tensor.csv. Meshes of a surface: .glb for slides and the web, .vts for
    ParaView.

    landscape convert studies/demo/results/loss_plane.nc plane.csv

    landscape convert studies/demo/results/loss_plane.nc two.glb --variants sgd,sam

    landscape convert old_surface.h5 old.html --figure loss_surface
    """
    from landscape.plot import files

    paths = files.convert(source, target, figure=figure, setting=setting, variants=_names(variants))
    if as_json:
        print(json.dumps({"files": [str(path) for path in paths]}))
    else:
        print("\n".join(map(str, paths)))
