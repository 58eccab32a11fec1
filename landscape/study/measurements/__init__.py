"""Which measurements a study can ask for, with the options it may set.

Each function takes a `Bench` and keyword options; its signature is the list of options of
[measure.<name>] and their defaults.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import xarray as xr

from landscape import toml
from landscape.study.bench import Bench
from landscape.study.measurements import connections, curvature, outcome, perturbations, surfaces

_TOPICS = (outcome, perturbations, curvature, surfaces, connections)
MEASUREMENTS: Mapping[str, Callable[..., xr.Dataset | None]] = {
    name: function for topic in _TOPICS for name, function in topic.MEASUREMENTS.items()
}
# What a study measures without being asked; a [measure.<name>] table adds any other.
DEFAULT = (
    "generalization",
    "history",
    "perturbation_history",
    "mask_persistence",
    "top_eigenvalues",
    "hessian_trace",
    "spectral_density",
    "sharpness",
    "gradient_zscores",
    "perturbation",
    "mask_overlap",
    "loss_slice",
    "loss_slice_eval",
    "loss_plane",
    "crosscheck",
)
ACROSS_RUNS = (*perturbations.ACROSS_RUNS, *connections.ACROSS_RUNS)
FIRST_SEED_ONLY = tuple(name for topic in _TOPICS for name in topic.FIRST_SEED_ONLY)


def options_of(name: str) -> dict[str, Any]:
    """Options of [measure.<name>] with their defaults."""
    parameters = inspect.signature(MEASUREMENTS[name]).parameters.values()
    return {
        p.name: list(p.default) if isinstance(p.default, tuple) else p.default
        for p in parameters
        if p.kind is inspect.Parameter.KEYWORD_ONLY
    }


def measure_run(bench: Bench, name: str, options: Mapping[str, Any]) -> xr.Dataset | None:
    """One measurement of one run; None where the run has nothing of the kind (masks of SGD)."""
    return MEASUREMENTS[name](bench, **options)


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
        for name, function in topic.MEASUREMENTS.items():
            marks = " ●" * (name in DEFAULT) + " ¹" * (name in FIRST_SEED_ONLY)
            marks += " ²" * (name in ACROSS_RUNS)
            said = (inspect.getdoc(function) or "").split("\n\n")[0].replace("\n", " ")
            options = ", ".join(
                f"`{key} = {toml.value_text(v)}`" for key, v in options_of(name).items()
            )
            lines.append(f"| `{name}`{marks} | {said} | {options} |")
    return "\n".join(lines) + "\n"
