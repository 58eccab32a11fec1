"""Which measurements a study can ask for: one `Record` each, from which all else derives."""

from collections.abc import Mapping
from typing import Any

import xarray as xr

from landscape import toml
from landscape.study.finished_run import FinishedRun
from landscape.study.measurements import connections, curvature, outcome, perturbations, surfaces
from landscape.study.measurements.record import Record, Work, agreed, fitted, names_checked

__all__ = [
    "DEFAULT",
    "RECORDS",
    "Record",
    "Work",
    "agreed",
    "fitted",
    "listing",
    "measure_run",
    "names_checked",
]

_TOPICS = (outcome, perturbations, curvature, surfaces, connections)
RECORDS: Mapping[str, Record] = {r.name: r for topic in _TOPICS for r in topic.RECORDS}
# What a study measures without being asked; a [measure.<name>] table adds any other.
DEFAULT = tuple(name for name, record in RECORDS.items() if record.default)


def measure_run(done: FinishedRun, name: str, options: Mapping[str, Any]) -> xr.Dataset | None:
    """One measurement of one run; None where the run has nothing of the kind (masks of SGD)."""
    record = RECORDS[name]
    return record.measure(done, **(record.options | dict(options)))


def listing() -> str:
    """Every measurement with what it is and its options: a Markdown document."""
    lines = [
        "# What a study can measure",
        "",
        "Made by `python -m landscape.study.measurements`. Without a list in `[measure]` a study "
        "makes those marked ●; a table `[measure.<name>]` sets options and adds any other. Marked "
        "¹: by default only for the first seed of each variant (`first_seed_only`). Marked ²: of "
        "several runs, made when they are trained.",
    ]
    for topic in _TOPICS:
        title = (topic.__doc__ or "").splitlines()[0].rstrip(".")
        lines += ["", f"## {title}", "", "| measurement | what it is | options |", "|---|---|---|"]
        for record in topic.RECORDS:
            marks = " ●" * record.default + " ¹" * record.first_seed_only
            marks += " ²" * record.across_runs
            options = ", ".join(
                f"`{key} = {toml.value_text(v)}`" for key, v in record.options.items()
            )
            lines.append(f"| `{record.name}`{marks} | {record.said} | {options} |")
    return "\n".join(lines) + "\n"
