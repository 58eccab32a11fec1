"""The table [measure] of a study file: measurements with their options, each value checked."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from landscape.checks import MOST
from landscape.errors import LandscapeError
from landscape.study import possible
from landscape.study.spec import Measurement, MeasureSpec, Run

MEASURE_KEYS = ("measurements", "examples", "split", "bn", "seed")
SPLITS = ("train", "val", "test")


def measure_spec(
    table: Mapping[str, Any], variants: Sequence[str], seeds: Collection[int]
) -> MeasureSpec:
    """variants, seeds: what an option of a measurement may name."""
    from landscape.study import measurements

    if not isinstance(table, Mapping):
        raise LandscapeError(f"[measure] must be a table, not {table!r}.")
    options = {key: value for key, value in table.items() if isinstance(value, Mapping)}
    common = {key: value for key, value in table.items() if key not in options}
    possible.check_keys("[measure]", common, MEASURE_KEYS, extra=tuple(measurements.RECORDS))
    known = tuple(measurements.RECORDS)
    for name in (key for key in common if key in known):
        raise LandscapeError(
            f"[measure] {name} = {common[name]!r} is no table; ask for it in the list "
            f"`measurements`, with its options in [measure.{name}]."
        )
    for name in options:
        if name not in known:
            raise LandscapeError(possible.unknown("[measure] has no measurement", name, known))
    names = common.get("measurements", (*measurements.DEFAULT, *options))
    if not isinstance(names, (list, tuple)):
        raise LandscapeError(f"[measure] measurements must be a list, not {names!r}.")
    for name in names:
        possible.choice("[measure] measurement", name, known)
    names = tuple(dict.fromkeys(names))
    unused = [name for name in options if name not in names]
    if unused:
        raise LandscapeError(
            f"[measure.{unused[0]}] has options, but {unused[0]!r} is not in `measurements`; "
            f"add it there or remove the table."
        )
    examples = common.get("examples", 256)
    if type(examples) is not int or not 1 <= examples <= MOST:
        raise LandscapeError(
            f"[measure] examples = {examples!r} is not a whole number from 1 to {MOST}."
        )
    seed = possible.check_seed("[measure] seed", common.get("seed", 0))
    possible.choice("[measure] split", common.get("split", "train"), SPLITS)
    possible.choice("[measure] bn", common.get("bn", "eval"), ("eval", "full_batch"))
    return MeasureSpec(
        examples=examples,
        split=common.get("split", "train"),
        bn=common.get("bn", "eval"),
        seed=seed,
        measurements=tuple(
            measurement(name, options.get(name, {}), variants, seeds, examples) for name in names
        ),
    )


def check_checkpoints(measure: MeasureSpec, runs: Sequence[Run]) -> None:
    """Refuse what follows a training where none of its checkpoints would be kept."""
    from landscape.study import measurements

    for name in (
        m.name for m in measure.measurements if measurements.RECORDS[m.name].along_training
    ):
        none = [r for r in runs if r.weights is None and not r.training["keep_every"]]
        if not none and all(r.weights is not None and len(r.trail) < 2 for r in runs):
            raise LandscapeError(
                f"[measure.{name}] needs weights of several steps of a training; give them by "
                f'pattern, as in weights = "ckpt/{{variant}}_{{seed}}_{{step}}.pt".'
            )
        if none:
            raise LandscapeError(
                f"[measure.{name}] needs checkpoints of the training, and {none[0].variant!r} "
                f"keeps none; set [training] keep_every = 1 (epochs between two of them)."
            )


def check_draws(measure: MeasureSpec, runs: Sequence[Run]) -> None:
    """Refuse a barrier between seeds that have drawn data of their own: which loss would it be."""
    drawn = [run for run in runs if run.problem.redraw]
    several = len({run.seed for run in drawn}) > 1
    for one in measure.measurements:
        if one.name == "barrier" and several and len(one.options["seeds"]) != 1:
            raise LandscapeError(
                f"[measure.barrier] seeds = {list(one.options['seeds'])} goes between runs that "
                f"were trained on different draws of the data (redraw = "
                f"{list(drawn[0].problem.redraw)}), where there is no one loss. Name one seed, as "
                f"in seeds = [{drawn[0].seed}]."
            )


def measurement(
    name: str,
    table: Mapping[str, Any],
    known: Sequence[str],
    seeds: Collection[int],
    examples: int,
) -> Measurement:
    """One measurement with all its options. known, seeds: what an option of it may name."""
    from landscape.study import measurements

    record, where = measurements.RECORDS[name], f"[measure.{name}]"
    possible.check_keys(where, table, record.options, extra=("first_seed_only",))
    given = {key: value for key, value in table.items() if key != "first_seed_only"}
    first = table.get("first_seed_only", record.first_seed_only)
    if not isinstance(first, bool):
        raise LandscapeError(f"{where} first_seed_only = {first!r} is not true or false.")
    options = record.options | record.check(where, given)
    if given:  # our own defaults may name what a study has not
        measurements.names_checked(record, given, known, seeds)
    measurements.agreed(record, options, examples)
    return Measurement(name, options, first, record.across_runs, record.perturbs)
