"""From flags to a study and its folder, and from its summary to words and an exit code."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from landscape.errors import LandscapeError

if TYPE_CHECKING:
    from landscape.study import Options, Ray, Slurm, Study, Summary
    from landscape.study.flags import Flags
    from landscape.study.tuning import Tuned


def own_flags(
    data: str | None,
    model: str | None,
    loss: str | None,
    weights: Path | None,
    weights_key: str | None,
    variant: str,
    rho: float | None,
    seed: int,
    examples: int | None,
    data_dir: Path | None,
) -> "Flags":
    """What the flags of `measure` say; refused without weights."""
    from landscape.study.flags import Flags

    if weights is None:
        raise LandscapeError(
            "Nothing to measure: give a study.toml, a study's folder, or --model, --data and "
            "--weights of your own."
        )
    return Flags(
        data=data, model=model, loss=loss, weights=weights, weights_key=weights_key,
        variant=variant, rho=rho, seed=seed, examples=examples, data_dir=data_dir,
    )  # fmt: skip


def refuse_own(study_file: Path, flags: dict[str, Any]) -> None:
    """Refuse flags of a checkpoint of one's own beside a study, which says all of it itself."""
    for name, value in flags.items():
        if value is not None:
            raise LandscapeError(
                f"--{name} {value} is of --weights, and {study_file} is a study, which says that "
                f"itself; change it there, or with --set, as in --set measure.examples=128."
            )


def open(
    given: Path,
    out: Path | None,
    data_dir: Path | None,
    dtype: str | None,
    changes: list[str] | None,
) -> "tuple[Study, Path]":
    """A study file, or the folder of a study to continue, and the folder to work in."""
    from landscape import study
    from landscape.storage import folder_name

    overrides = tuple(changes or ())
    if data_dir is not None:
        overrides += (f"problem.data_dir={json.dumps(str(data_dir.absolute()))}",)
    if given.is_dir() and (out is None or out == given):
        return study.reopen(given, overrides=overrides, dtype=dtype), given
    plan = study.load(given, overrides=overrides, dtype=dtype)
    return plan, out or Path("studies") / folder_name(plan.name)


def from_flags(
    flags: "Flags", out: Path | None, dtype: str | None, changes: list[str] | None
) -> "tuple[Study, Path]":
    """The study that flags describe, and the folder to work in."""
    from landscape import study
    from landscape.storage import folder_name
    from landscape.study.flags import default_name, study_text

    plan = study.parse(
        study_text(flags), base=Path.cwd(), overrides=tuple(changes or ()), dtype=dtype
    )
    # Two files of one name, such as last.pt of two folders, are two studies.
    plan = replace(plan, file=str(flags.weights.absolute()) if flags.weights else "")
    return plan, out or Path("studies") / folder_name(default_name(flags))


def engine(
    on: str,
    partition: str | None,
    hours: float | None,
    workers: int | None,
    settings: list[str] | None,
) -> "Slurm | Ray | None":
    """The engine that flags mean; None: processes of this machine."""
    from landscape.study import engines

    return engines.named(
        on, partition=partition, hours=hours, workers=workers, settings=settings or ()
    )


def finish(summary: "Summary", *, as_json: bool, open_report: bool = False) -> None:
    """Write the report if anything changed, say what happened, and leave with the right code."""
    from landscape.study.running import report_is_fresh

    say_summary(summary)
    path = summary.folder.report
    if not summary.has_results():
        leave(summary, as_json, {"report": None})
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
    leave(summary, as_json, {"report": str(path)})


def say_summary(summary: "Summary") -> None:
    """Counts, failures and what was left out, on stderr."""
    say = lambda text: print(text, file=sys.stderr)  # noqa: E731
    say(summary.sentence())
    for note in summary.notes:
        say(note)
    for name, reason in summary.failed.items():
        say(f"failed: {name}: {reason}")
    if summary.stale:
        say(
            f"Left out of the results, as the study, by its file and this version, has others: "
            f"{', '.join(summary.stale)} (in {summary.folder.runs})."
        )


def leave(summary: "Summary", as_json: bool, more: dict[str, Any]) -> None:
    """The summary as JSON where asked, and exit code 1 if a run failed."""
    if as_json:
        print(json.dumps(summary.as_dict() | more, indent=2))
    if summary.failed:
        raise typer.Exit(1)


def say_estimate(
    plan: "Study", folder: Path, options: "Options", as_json: bool, tflops: float | None = None
) -> None:
    """Print what a study would cost, here or where each worker keeps up so many TFLOP/s."""
    from landscape.study.estimate import estimate

    found = estimate(plan, folder, options, tflops=tflops)
    print(json.dumps(found.as_dict(), indent=2) if as_json else found.table())


def say(text: str) -> None:
    """A line on stderr."""
    print(text, file=sys.stderr)


def finish_tuning(found: "Tuned", target: Path, *, as_json: bool) -> None:
    """Write the chosen study and print what was chosen, with what it cost."""
    from landscape.storage import write_text

    write_text(target, found.text)
    if as_json:
        table = {c.variant: {found.axis: c.value, "inside": c.inside} for c in found.chosen}
        said = {"study": str(target), "chosen": table, "num_trainings": found.num_trainings}
        print(json.dumps(said, indent=2))
        return
    for each in found.chosen:
        end = f", {each.place}" if each.place else ""
        say(f"{each.variant}: {found.axis} = {each.value} of {list(each.values)}{end}")
    say(f"Chosen on validation data; trainings: {found.num_trainings}.")
    print(target)


def measured(plan: "Study", folder: Path, options: "Options", *, as_json: bool) -> None:
    """Measure, in this process and its workers, or together with all processes of torchrun."""
    from landscape import study
    from landscape.study import together

    if not together.asked():
        finish(study.run(plan, folder, options), as_json=as_json)
        return
    with together.processes(folder, options) as (own, chosen, first):
        summary = study.run(plan, own, chosen)
    if first:
        finish(summary, as_json=as_json)
