"""Choose a value of an axis on validation data, and write the study that has it chosen.

The rule: highest mean validation accuracy over the seeds, ties by lower mean validation loss, which
alone decides where nothing has an accuracy; test data are never read. The grid of a line is
extended by its own factor until the best value lies inside it, so that the choice does not depend
on where somebody let the grid end.
"""

import math
import tomllib
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from landscape import results, toml
from landscape.errors import LandscapeError
from landscape.study import possible, problem
from landscape.study.reading import parse
from landscape.study.running import Options, run
from landscape.study.spec import Study

EXTENSIONS = 4  # times that a grid is extended at most


@dataclass(frozen=True)
class Chosen:
    """The value of one variant. inside: whether it lies between others that were tried."""

    variant: str
    value: Any
    values: tuple[Any, ...]
    inside: bool
    optimism: float  # how much better on validation than what the rule reaches on seeds held out
    by_loss: bool  # nothing has an accuracy: losses decide, and optimism is how much lower it is

    @property
    def place(self) -> str:
        """Where it lies among the values, in words; "" between others."""
        if self.inside:
            return ""
        if len(self.values) > 2:
            return "at the end of the grid"
        return "the only value" if len(self.values) == 1 else "of two values, each an end"


@dataclass(frozen=True)
class Tuned:
    """What was chosen along an axis, and the study file that has it."""

    axis: str
    chosen: tuple[Chosen, ...]
    text: str
    num_trainings: int


def tune(
    study: Study,
    folder: Path,
    options: Options,
    *,
    axis: str | None = None,
    seeds: int | None = None,
    setting: str | None = None,
    say: Callable[[str], None] = lambda _text: None,
) -> Tuned:
    """Train the axis of a study on seeds that it does not use, choose, and write the chosen study.

    axis: by default the one axis that the study has. seeds: how many, as many as the study has by
    default; they follow its highest. setting: where it is chosen, by default that of the
    comparisons, or the first one.
    """
    given = tomllib.loads(study.text)
    axis = _axis(study, axis)
    where = setting or (study.comparisons.setting if study.comparisons else study.settings[0].name)
    possible.choice("--setting", where, [s.name for s in study.settings])
    used = sorted({r.seed for r in study.runs})
    fresh = [used[-1] + 1 + i for i in range(seeds or len(used))]
    values = _values(study, axis, where)
    extra: dict[str, list[Any]] = {}
    for round_ in range(EXTENSIONS + 1):
        tried = {name: [*known, *extra.get(name, [])] for name, known in values.items()}
        plan = parse(_text(given, axis, tried, fresh, where), base=study.base)
        _refuse_without_validation(plan, axis)
        done = run(plan, folder, options)
        path = done.folder.results / f"along_{axis}.nc"
        table = results.load(path) if path.exists() else None
        chosen = _chosen(table, tried)
        wider = {c.variant: _next(c) for c in chosen if not c.inside}
        wider = {name: value for name, value in wider.items() if value is not None}
        if not wider or round_ == EXTENSIONS:
            break
        for name, value in wider.items():
            extra.setdefault(name, []).append(value)
            say(f"{name}: the best {axis} lies at the end of its grid; {value:g} is tried as well.")
    text = _written(given, axis, chosen)
    parse(text, base=study.base)  # what is written can be read
    return Tuned(axis, chosen, text, len(plan.runs))


def _refuse_without_validation(plan: Study, axis: str) -> None:
    for given in {each.problem for each in plan.runs}:
        if problem.load_data(given, plan.base).val is None:
            raise LandscapeError(
                f"{axis} is chosen on validation data, and {given.data!r} has none; give it a part "
                f"'val', which neither training nor test reads."
            )


def _axis(study: Study, axis: str | None) -> str:
    from landscape.study import axes

    known = [key for key in axes.of(study.runs) if any(len(v) > 1 for v in _by_family(study, key))]
    if axis is None and len(known) == 1:
        return known[0]
    if axis is None or axis not in known:
        raise LandscapeError(
            f"--axis {axis!r}: the study varies {', '.join(known) or 'nothing'} within a variant. "
            f"Name one of these, or add values to [grid], as in rho = [0.05, 0.1, 0.2]."
        )
    return axis


def _by_family(study: Study, axis: str) -> list[list[Any]]:
    return list(_values(study, axis, None).values())


def _values(study: Study, axis: str, setting: str | None) -> dict[str, list[Any]]:
    """Values on the axis by variant of the file, of variants that have several."""
    found: dict[str, list[Any]] = {}
    for each in study.runs:
        if axis in each.axes and setting in (None, each.setting) and each.weights is None:
            known = found.setdefault(each.family, [])
            known += [each.axes[axis]] if each.axes[axis] not in known else []
    return {name: values for name, values in found.items() if len(values) > 1}


def _text(
    given: Mapping[str, Any],
    axis: str,
    values: Mapping[str, list[Any]],
    seeds: list[int],
    setting: str,
) -> str:
    """A study of the axis alone: one grid per variant, and no measurement but the outcome."""
    new = {k: deepcopy(v) for k, v in given.items() if k not in ("grid", "run", "comparisons")}
    new["name"] = f"{given.get('name', 'study')}-tune-{axis}"
    new["measure"] = {"measurements": ["generalization"]}
    where = {"setting": setting} if "settings" in given else {}
    grids = given.get("grid", [])
    grids = [grids] if isinstance(grids, Mapping) else grids
    # Whatever else a grid says of a variant holds here too.
    rest = {
        name: {k: v for k, v in grid.items() if k not in ("variant", "setting", "seed", axis)}
        for grid in grids
        for name in possible.listed(grid.get("variant", []))
        if axis in grid
    }
    missing = [name for name in values if name not in rest]
    if missing:
        raise LandscapeError(
            f"{missing[0]!r} has its values of {axis} in [[run]] entries; give them in a [grid]."
        )
    new["grid"] = [
        {"variant": [name], **where, **rest[name], axis: sorted(tried), "seed": seeds}
        for name, tried in values.items()
    ]
    return toml.dumps(new)


def _chosen(table: Any, tried: Mapping[str, list[Any]]) -> tuple[Chosen, ...]:
    found = []
    for name, values in tried.items():
        rows = [] if table is None or "chosen" not in table else [
            i for i, (family, c) in enumerate(
                zip(table["family"].values, table.chosen.values, strict=True)
            ) if family == name and c == 1
        ]  # fmt: skip
        if not rows:
            raise LandscapeError(
                f"No value can be chosen for {name!r}: each of {sorted(values)} lost a training "
                f"(see `landscape status`). Give other values."
            )
        if len(rows) > 1:
            raise LandscapeError(
                f"{name!r} has other axes beside this one, so that {len(rows)} values would be "
                f"chosen; choose one axis after the other, the others at one value each."
            )
        value = table.value.values[rows[0]]
        value = next(v for v in values if v == value or str(v) == str(value))
        ordered = sorted(values)
        inside = not _is_number(value) or value not in (ordered[0], ordered[-1])
        optimism = float(table.optimism.values[rows[0]])
        by_loss = bool(table.by_loss.values[rows[0]])
        found.append(Chosen(name, value, tuple(ordered), inside, optimism, by_loss))
    return tuple(found)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _next(chosen: Chosen) -> Any:
    """The value beyond the end of a geometric grid; None where there is none (0, whole numbers)."""
    values = chosen.values
    up = chosen.value == values[-1]
    near, end = (values[-2], values[-1]) if up else (values[1], values[0])
    if near <= 0 or end <= 0:
        return None
    value = end * end / near
    if isinstance(end, int):
        value = math.ceil(value) if up else math.floor(value)
        return None if value < 1 or value in values else value
    return float(f"{value:.6g}")


def _written(given: Mapping[str, Any], axis: str, chosen: tuple[Chosen, ...]) -> str:
    """The study with each variant's value in its own table and without the axis."""
    new = deepcopy(dict(given))
    tables = new.setdefault("variants", {})
    trained = axis in possible.training_defaults()
    for each in chosen:
        own = tables.setdefault(each.variant, {})
        (own.setdefault("training", {}) if trained else own)[axis] = each.value
    grids = new.get("grid", [])
    for grid in [grids] if isinstance(grids, Mapping) else grids:
        grid.pop(axis, None)
    said = "\n".join(
        f"# {c.variant}: {axis} = {toml.value_text(c.value)} of {list(c.values)}"
        + (f" ({c.place})" if c.place else "")
        for c in chosen
    )
    rule = "lowest mean validation loss" if any(c.by_loss for c in chosen) else (
        "highest mean validation accuracy, ties by lower validation loss")  # fmt: skip
    said_rule = (
        f"# Chosen by `landscape tune`: {rule},\n"
        f"# on seeds that this study does not use; test data were not read."
    )
    return f"{said_rule}\n{said}\n{toml.dumps(new)}"
