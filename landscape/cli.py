"""The command line: thin, and quick to start; the work is imported inside the commands.

Exit codes: 0 all well · 1 some runs failed (the others are done) · 2 bad input, one sentence says
what · 130 stopped by Ctrl-C. Progress goes to stderr; paths and --json to stdout.
"""

import json
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from landscape.errors import LandscapeError

if TYPE_CHECKING:
    from landscape.study import Options, Study, Summary
    from landscape.study.flags import Flags

EPILOG = (
    "Exit codes: 0 all well, 1 some runs failed, 2 bad input, 130 stopped by Ctrl-C. "
    "Every command resumes: run it again and only what is missing is done."
)
app = typer.Typer(
    name="landscape",
    help="Measure and draw the loss landscape of networks trained with SAM and its variants.",
    epilog=EPILOG,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_RUNNING, _OWN, _TRAINING = "How to run", "What to look at", "How to train"
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:<i>.", rich_help_panel=_RUNNING)]
Dtype = Annotated[
    str | None,
    typer.Option(help="float32 (default) or float64.", rich_help_panel=_RUNNING),
]
Workers = Annotated[
    int | None,
    typer.Option(
        help="Worker processes; default one per CPU core. 0: in this process.",
        rich_help_panel=_RUNNING,
    ),
]
Threads = Annotated[
    int,
    typer.Option(
        help="Threads of each worker. Part of what makes runs repeat bit for bit.",
        rich_help_panel=_RUNNING,
    ),
]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="TABLE.KEY=VALUE",
        help="Change a line of the study file, e.g. --set training.epochs=5. May be repeated.",
        rich_help_panel=_RUNNING,
    ),
]
Json = Annotated[
    bool,
    typer.Option("--json", help="Print a summary as JSON on stdout.", rich_help_panel=_RUNNING),
]
Out = Annotated[
    Path | None,
    typer.Option(help="Folder of the study; default studies/<name>.", rich_help_panel=_RUNNING),
]
DataDir = Annotated[
    Path | None,
    typer.Option(help="Where CIFAR's archives lie.", rich_help_panel=_RUNNING),
]
Data = Annotated[
    str | None,
    typer.Option(help="digits, mnist1d, cifar10, cifar100, or yours.", rich_help_panel=_OWN),
]
Model = Annotated[
    str | None,
    typer.Option(help="cnn, cnn1d, mlp, resnet18, resnet20, vit, or yours.", rich_help_panel=_OWN),
]
Loss = Annotated[
    str | None, typer.Option(help="cross_entropy, mse, or yours.", rich_help_panel=_OWN)
]
Variant = Annotated[
    str, typer.Option(help="Recipe of landscape.sam, e.g. sam, zsharp.", rich_help_panel=_OWN)
]
Rho = Annotated[float | None, typer.Option(help="Its radius.", rich_help_panel=_OWN)]
Seed = Annotated[int, typer.Option(help="Seed of weights and data order.", rich_help_panel=_OWN)]
StudyDir = Annotated[Path, typer.Argument(help="Folder of a study.", show_default=False)]


@app.command(epilog=EPILOG)
def demo(
    out: Annotated[
        Path | None, typer.Option(help="Folder; default studies/demo.", rich_help_panel=_RUNNING)
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
    """Train SGD and eleven SAM variants on handwritten digits, measure, and write a report.

    About five minutes on two CPU cores; no download. Run it again and it resumes.
    """
    from landscape.study.demo import demo_text

    text = demo_text(quick=quick)
    if print_study:
        print(text, end="")
        return
    from landscape import study

    folder = out or Path("studies") / ("demo-quick" if quick else "demo")
    plan = study.parse(text, base=folder.absolute())
    options = study.Options(device=device, workers=workers, threads=threads)
    _finish(study.run(plan, folder, options), as_json=as_json, open_report=open_report)


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
    changes: Set = None,
    as_json: Json = False,
) -> None:
    """Train, measure and report a study. What is there already is kept.

    `landscape demo --print-study` prints a study file to start from.
    """
    from landscape import study

    plan, folder = _open(study_file, out, data_dir, dtype, changes)
    options = study.Options(device=device, workers=workers, threads=threads)
    _finish(study.run(plan, folder, options), as_json=as_json)


@app.command(epilog=EPILOG)
def train(
    data: Data = "digits",
    model: Model = "cnn",
    loss: Loss = None,
    variant: Variant = "sam",
    rho: Rho = None,
    seed: Seed = 0,
    epochs: Annotated[int | None, typer.Option(rich_help_panel=_TRAINING)] = None,
    lr: Annotated[float | None, typer.Option(rich_help_panel=_TRAINING)] = None,
    batch_size: Annotated[int | None, typer.Option(rich_help_panel=_TRAINING)] = None,
    label_noise: Annotated[
        float | None,
        typer.Option(help="Share of wrong training labels.", rich_help_panel=_TRAINING),
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
    plan, folder = _from_flags(flags, out, dtype, changes)
    options = study.Options(device=device, workers=0, threads=threads, measure=False)
    summary = study.run(plan, folder, options)
    _say_summary(summary)
    _leave(summary, as_json, {"checkpoints": [str(p) for p in summary.checkpoints()]})


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
        typer.Option(help="A .pt, .pth or .safetensors file.", rich_help_panel=_OWN),
    ] = None,
    variant: Variant = "sgd",
    rho: Rho = None,
    seed: Seed = 0,
    examples: Annotated[
        int | None, typer.Option(help="Examples to measure on; 256.", rich_help_panel=_OWN)
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
    """Measure trained runs of a study, or a checkpoint of your own, and write the report.

    Your own work: landscape measure --model mine:make --data mine:data --weights a.pt
    --variant sam --rho 0.05

    make() returns the nn.Module, data() a (inputs, targets) pair or train, val and test splits.
    """
    from landscape import study

    if study_file is not None:
        if weights is not None:
            raise LandscapeError(f"Give a study ({study_file}) or --weights {weights}, not both.")
        plan, folder = _open(study_file, out, data_dir, dtype, changes)
    else:
        plan, folder = _from_flags(
            _own_flags(data, model, loss, weights, variant, rho, seed, examples, data_dir),
            out, dtype, changes,
        )  # fmt: skip
    if estimate:
        options = study.Options(device=device, workers=workers, threads=threads)
        _estimate(plan, folder, options, as_json)
        return
    options = study.Options(device=device, workers=workers, threads=threads, train=False)
    _finish(study.run(plan, folder, options), as_json=as_json)


@app.command(epilog=EPILOG)
def figures(
    folder: StudyDir,
    as_json: Json = False,
) -> None:
    """Draw every figure of a study: PDF and PNG for the paper, HTML for the web."""
    from landscape import report
    from landscape.storage import StudyFolder

    place = StudyFolder(folder.absolute())
    place.check()
    paths = report.write_figures(place)
    if as_json:
        print(json.dumps({"figures": [str(path) for path in paths]}))
    else:
        print(f"{len(paths)} figures in {place.figures}")


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
def convert(
    source: Annotated[
        Path, typer.Argument(help="A result (.nc), or a surface of loss-landscape (.h5).")
    ],
    target: Annotated[
        Path, typer.Argument(help="What to write: .csv, .nc, .png, .pdf, .svg or .html.")
    ],
    figure: Annotated[
        str | None, typer.Option(help="Name of the figure; default that of the measurement.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write a result as a table or figure, or bring an old loss surface along.

    landscape convert studies/demo/results/loss_plane.nc plane.csv

    landscape convert old_surface.h5 old.html --figure loss_surface
    """
    from landscape.plot import files

    path = files.convert(source, target, figure=figure)
    print(json.dumps({"file": str(path)}) if as_json else path)


# --- helpers --------------------------------------------------------------------------------------


def _own_flags(
    data: str | None,
    model: str | None,
    loss: str | None,
    weights: Path | None,
    variant: str,
    rho: float | None,
    seed: int,
    examples: int | None,
    data_dir: Path | None,
) -> "Flags":
    from landscape.study.flags import Flags

    if weights is None:
        raise LandscapeError(
            "Nothing to measure: give a study.toml, a study's folder, or --model, --data and "
            "--weights of your own."
        )
    return Flags(
        data=data, model=model, loss=loss, weights=weights, variant=variant, rho=rho, seed=seed,
        examples=examples, data_dir=data_dir,
    )  # fmt: skip


def _open(
    given: Path,
    out: Path | None,
    data_dir: Path | None,
    dtype: str | None,
    changes: list[str] | None,
) -> "tuple[Study, Path]":
    """A study file, or the folder of a study to continue, and the folder to work in."""
    from landscape import study

    overrides = tuple(changes or ())
    if data_dir is not None:
        overrides += (f"problem.data_dir={json.dumps(str(data_dir.absolute()))}",)
    if given.is_dir() and (out is None or out == given):
        return study.reopen(given, overrides=overrides, dtype=dtype), given
    plan = study.load(given, overrides=overrides, dtype=dtype)
    return plan, out or Path("studies") / plan.name


def _from_flags(
    flags: "Flags", out: Path | None, dtype: str | None, changes: list[str] | None
) -> "tuple[Study, Path]":
    from landscape import study
    from landscape.study.flags import default_name, study_text

    plan = study.parse(
        study_text(flags), base=Path.cwd(), overrides=tuple(changes or ()), dtype=dtype
    )
    return plan, out or Path("studies") / default_name(flags)


def _finish(summary: "Summary", *, as_json: bool, open_report: bool = False) -> None:
    """Write the report if anything changed, say what happened, and leave with the right code."""
    from landscape.study.running import report_is_fresh

    _say_summary(summary)
    path = summary.folder.report
    if not summary.has_results():
        _leave(summary, as_json, {"report": None})
        raise LandscapeError(f"{summary.folder.root}: no run has results, so there is no report.")
    if not report_is_fresh(summary.folder):
        from landscape import report as reports

        print("Writing the report ...", file=sys.stderr)
        path = reports.write(summary.folder)
    if not as_json:
        print(path)
    if open_report:
        import webbrowser

        webbrowser.open(path.as_uri())
    _leave(summary, as_json, {"report": str(path)})


def _say_summary(summary: "Summary") -> None:
    say = lambda text: print(text, file=sys.stderr)  # noqa: E731
    say(summary.sentence())
    for name, reason in summary.failed.items():
        say(f"failed: {name}: {reason}")
    if summary.stale:
        say(
            f"Left out of the results, because the study file no longer asks for them: "
            f"{', '.join(summary.stale)} (in {summary.folder.runs})."
        )


def _leave(summary: "Summary", as_json: bool, more: dict[str, Any]) -> None:
    if as_json:
        print(json.dumps(summary.as_dict() | more, indent=2))
    if summary.failed:
        raise typer.Exit(1)


def _estimate(plan: "Study", folder: Path, options: "Options", as_json: bool) -> None:
    from landscape.study.estimate import estimate

    found = estimate(plan, folder, options)
    print(json.dumps(found.as_dict(), indent=2) if as_json else found.table())


def main() -> None:
    """Entry point: one sentence for the user's mistakes, a traceback only for ours."""
    signal.signal(signal.SIGTERM, _terminated)
    try:
        code = app(standalone_mode=False)
    except LandscapeError as error:
        print(f"error: {error}", file=sys.stderr)
        code = error.exit_code
    except KeyboardInterrupt:
        code = 130
    except Exception as error:
        code = _usage_error(error)
        if code is None:
            raise
    if code == 130:  # typer turns Ctrl-C into this code without a word
        print("Stopped. Nothing is lost: the same command continues where it was.", file=sys.stderr)
    sys.exit(code or 0)


def _usage_error(error: Exception) -> int | None:
    """Exit code of the option parser's own errors, which know how to show themselves."""
    if hasattr(error, "show") and hasattr(error, "exit_code"):
        error.show()
        return error.exit_code
    return 130 if type(error).__name__ == "Abort" else None


def _terminated(*_: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
