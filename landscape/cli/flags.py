"""The flags that commands share."""

from pathlib import Path
from typing import Annotated

import typer

RUNNING, OWN, TRAINING = "How to run", "What to look at", "How to train"
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:<i>.", rich_help_panel=RUNNING)]
Dtype = Annotated[
    str | None,
    typer.Option(help="float32 (default) or float64.", rich_help_panel=RUNNING),
]
Workers = Annotated[
    int | None,
    typer.Option(
        help="Worker processes; default one per CPU core. 0: in this process.",
        rich_help_panel=RUNNING,
    ),
]
Threads = Annotated[
    int,
    typer.Option(
        help="Threads of each worker. Part of what makes runs repeat bit for bit.",
        rich_help_panel=RUNNING,
    ),
]
On = Annotated[
    str,
    typer.Option(help="here, slurm (submitit) or ray.", rich_help_panel=RUNNING),
]
Partition = Annotated[str | None, typer.Option(help="Of --on slurm.", rich_help_panel=RUNNING)]
Hours = Annotated[
    float | None,
    typer.Option(
        help="Time limit of each job of --on slurm; 4. One that reaches it goes on in the next.",
        rich_help_panel=RUNNING,
    ),
]
Engine = Annotated[
    list[str] | None,
    typer.Option(
        "--engine",
        metavar="NAME=VALUE",
        help="Of submitit (account, qos, mem_gb, gpus_per_node, ...) or of Ray (address, num_gpus, "
        "...). May be repeated.",
        rich_help_panel=RUNNING,
    ),
]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="TABLE.KEY=VALUE",
        help="Change a line of the study file, e.g. --set training.epochs=5. May be repeated.",
        rich_help_panel=RUNNING,
    ),
]
Json = Annotated[
    bool,
    typer.Option("--json", help="Print a summary as JSON on stdout.", rich_help_panel=RUNNING),
]
Out = Annotated[
    Path | None,
    typer.Option(help="Folder of the study; default studies/<name>.", rich_help_panel=RUNNING),
]
DataDir = Annotated[
    Path | None,
    typer.Option(help="Where archives or folders of images lie.", rich_help_panel=RUNNING),
]
Data = Annotated[
    str | None,
    typer.Option(
        help="digits, mnist1d, cifar10, cifar100, svhn, tiny_imagenet, imagenet, or yours.",
        rich_help_panel=OWN,
    ),
]
Model = Annotated[
    str | None,
    typer.Option(
        help="cnn, cnn1d, mlp, resnet18/20/50/56, wrn28_10, vgg16_bn, vit, vit_s, or yours.",
        rich_help_panel=OWN,
    ),
]
Loss = Annotated[
    str | None, typer.Option(help="cross_entropy, mse, or yours.", rich_help_panel=OWN)
]
Variant = Annotated[
    str, typer.Option(help="Recipe of landscape.sam, e.g. sam, zsharp.", rich_help_panel=OWN)
]
Rho = Annotated[float | None, typer.Option(help="Its radius.", rich_help_panel=OWN)]
Seed = Annotated[int, typer.Option(help="Seed of weights and data order.", rich_help_panel=OWN)]
StudyDir = Annotated[Path, typer.Argument(help="Folder of a study.", show_default=False)]


def names(text: str) -> tuple[str, ...]:
    """The names of a list with commas."""
    return tuple(part.strip() for part in text.split(",") if part.strip())
