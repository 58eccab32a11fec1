"""Commands that do work: what trains and measures. Thin: the work is imported inside of them."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

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
    Threads,
    Variant,
    Workers,
)
from landscape.cli.program import EPILOG, app
from landscape.errors import LandscapeError


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
