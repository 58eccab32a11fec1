"""Commands beside studies: this installation, recordings, files of weights and of results."""

import json
from pathlib import Path
from typing import Annotated

import typer

from landscape.cli.flags import Json, names
from landscape.cli.program import EPILOG, app


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

    paths = files.convert(source, target, figure=figure, setting=setting, variants=names(variants))
    if as_json:
        print(json.dumps({"files": [str(path) for path in paths]}))
    else:
        print("\n".join(map(str, paths)))
