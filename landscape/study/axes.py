"""The axes of a study: what differs between runs of one variant, and the row each run belongs to.

A row is a variant with a value of each of its axes. Seeds of a row are repetitions; two rows are
never averaged. An axis is anything that a file can vary within a variant: an option of the recipe,
of the training, or of the problem.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from landscape import toml
from landscape.errors import LandscapeError
from landscape.study.spec import Run, Study

LETTERS = {"rho": "ρ", "alpha": "α", "beta": "β"}
_PLACES = ("data_dir",)  # where files lie decides no number
_DRAWS = ("data_seed", "noise_seed", "redraw")  # what a seed of the study has drawn is no axis


def with_rows(runs: Sequence[Run]) -> tuple[Run, ...]:
    """The runs with `axes`, and with the name and label of their row instead of their variant's.

    Two runs of one row and seed are refused: nothing could tell them apart.
    """
    named = _named(runs)
    seen: dict[Any, Run] = {}
    for run in named:
        key = (run.setting, run.variant, run.seed)
        other = seen.setdefault(key, run)
        if other is not run:
            raise LandscapeError(_twice(other, run))
    return named


def _named(runs: Sequence[Run]) -> tuple[Run, ...]:
    varying = _varying(runs)
    every = sorted({key for keys in varying.values() for key in keys}, key=_order)
    named = []
    for run in runs:
        own = _choices(run)
        apart = {key: own[key] for key in varying[run.family] if key in own}
        # What a variant's own table says of its training makes it what it is: SGD stopped early.
        # How weights from elsewhere were trained, no table of ours can say.
        unknown = run.fixed if run.weights is None else tuple(run.training)
        has = {key: own[key] for key in every if key in own and key not in unknown} | apart
        named.append(
            replace(
                run,
                variant=row_name(run.family, apart),
                label=row_label(run.label, apart),
                axes={key: column(has[key]) for key in every if key in has},
            )
        )
    return tuple(named)


def _varying(runs: Sequence[Run]) -> dict[str, tuple[str, ...]]:
    """Axes of each variant: what differs between its runs within a setting."""
    found: dict[str, dict[str, None]] = {run.family: {} for run in runs}
    first: dict[tuple[str, str], dict[str, Any]] = {}
    for run in runs:
        own = _choices(run)
        base = first.setdefault((run.setting, run.family), own)
        found[run.family] |= {key: None for key in own if own[key] != base.get(key)}
    return {family: tuple(sorted(keys, key=_order)) for family, keys in found.items()}


def _choices(run: Run) -> dict[str, Any]:
    """Everything that can be an axis, options first; one name never means two things."""
    apart = {*_PLACES, *(_DRAWS if run.problem.redraw else ("redraw",))}
    problem = {key: value for key, value in asdict(run.problem).items() if key not in apart}
    return {**problem, **run.training, **run.options}


def _order(key: str) -> tuple[bool, str]:
    return key != "rho", key


def row_name(family: str, axes: Mapping[str, Any]) -> str:
    """Name of a row: "sam", or "sam rho=0.05, lr=0.1" where the variant has axes."""
    said = ", ".join(f"{key}={_text(value)}" for key, value in axes.items())
    return f"{family} {said}" if said else family


def row_label(label: str, axes: Mapping[str, Any]) -> str:
    """Words for a row: "SAM, ρ = 0.05"."""
    said = [f"{LETTERS.get(key, key)} = {_text(value)}" for key, value in axes.items()]
    return ", ".join([label, *said])


def _text(value: Any) -> str:
    return value if isinstance(value, str) else toml.value_text(value)


def _twice(first: Run, second: Run) -> str:
    what = f"{second.variant!r}, seed {second.seed}, setting {second.setting!r}"
    if first.weights != second.weights:
        files = f"{first.weights or 'a training'} and {second.weights or 'a training'}"
        return (
            f"two runs are both {what}: {files}. Give them different seeds, or variants of their "
            f"own ([variants.<name>] with a recipe)."
        )
    return (
        f"the run {what} is asked for twice; remove one (in the lists of one grid, 1 and 1.0 are "
        f"the same value, and grids that overlap ask twice)."
    )


def of(runs: Iterable[Run]) -> dict[str, list[Any]]:
    """Every axis of the study with its values in the order of the runs."""
    found: dict[str, list[Any]] = {}
    for run in runs:
        for key, value in run.axes.items():
            values = found.setdefault(key, [])
            if value not in values:
                values.append(value)
    return found


def column(value: Any) -> Any:
    """A value of an axis as a coordinate holds it: numbers as numbers, all else in words."""
    if isinstance(value, (list, tuple, bool)):
        return toml.value_text(value)
    return value


def labels(study: Study, run: Run) -> dict[str, object]:
    """Labels of a run; `place` of its variant in the study gives it one look in all figures."""
    names = [variant.name for variant in study.variants]
    place = {"place": names.index(run.variant)} if run.variant in names else {}
    return {**run.labels, **place}
