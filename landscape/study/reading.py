"""Read a study file; every mistake is named with what is possible instead.

Paths and "package.module:callable" names are looked up relative to the study file. A variant
without a table of its own is the recipe of that name, with the options of axes or entry.
"""

import inspect
import itertools
import tomllib
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from landscape import storage, toml
from landscape.errors import LandscapeError
from landscape.storage import check_name
from landscape.study import axes, possible, user_code
from landscape.study.comparisons_table import comparisons
from landscape.study.measure_table import check_checkpoints, check_draws, measure_spec
from landscape.study.spec import Problem, Run, Setting, Study, VariantSpec, fingerprint
from landscape.study.weights_pattern import weights_files

DTYPES = ("float32", "float64")
TOP_KEYS = (
    "name", "question", "base", "dtype", "problem", "training", "settings", "variants", "grid",
    "run", "measure", "comparisons",
)  # fmt: skip
PROBLEM_KEYS = tuple(f.name for f in fields(Problem))
RUN_KEYS = (
    "variant",
    "setting",
    "seed",
    "weights",
    "weights_key",
    "label",
    "model",
    "data",
    "loss",
    "training",
)
AXIS_KEYS = tuple(
    k for k in PROBLEM_KEYS if k not in ("data_dir", "redraw")
)  # a grid may vary them


def load(path: Path, *, overrides: Sequence[str] = (), dtype: str | None = None) -> Study:
    """Read a study file; `overrides` are "training.epochs=5"-like lines that win over the file.

    Example:
        >>> _ = Path("mine.toml").write_text(study.demo_text(quick=True))
        >>> plan = study.load(Path("mine.toml"), overrides=["training.epochs=2"])
        >>> plan.runs[0].training["epochs"]
        2
    """
    path = Path(path)
    if not path.exists():
        raise LandscapeError(
            f"{path} does not exist. `landscape demo --print-study > study.toml` prints one to "
            f"start from."
        )
    return read_file(path, base=path.parent.absolute(), overrides=overrides, dtype=dtype)


def read_file(path: Path, *, base: Path, overrides: Sequence[str], dtype: str | None) -> Study:
    """`parse` the text of a file; every mistake in it is named with its path."""
    if path.is_dir():
        raise LandscapeError(f"{path} is a folder; give the study file, a .toml.")
    try:
        with storage.reading(path):
            text = path.read_text(encoding="utf-8-sig")  # Windows begins a file with a mark
    except UnicodeDecodeError as error:
        raise LandscapeError(
            f"{path} is not a text file in UTF-8 ({error.reason}); save it as UTF-8."
        ) from None
    try:
        plan = parse(text, base=base, overrides=overrides, dtype=dtype)
    except LandscapeError as error:
        raise LandscapeError(f"{path}: {error}") from None
    return replace(plan, file=str(path.absolute()))


def parse(
    text: str, *, base: Path, overrides: Sequence[str] = (), dtype: str | None = None
) -> Study:
    """Turn the text of a study file into a checked `Study`.

    base: the folder that paths and modules of the text are looked up in, where it names none.

    Example:
        >>> plan = study.parse(study.demo_text(quick=True), base=Path.cwd())
        >>> len(plan.runs), len(plan.settings)
        (3, 1)
    """
    try:
        given = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # a number of 5000 digits is no TOML error
        raise LandscapeError(f"not valid TOML: {error}.") from None
    overrides = [*overrides, *([f'dtype="{dtype}"'] if dtype else [])]
    for line in overrides:
        _override(given, line)
    possible.check_keys("the study file", given, TOP_KEYS)
    given.setdefault("name", base.name)
    check_name("name", given["name"])
    base = _base(given["base"]) if "base" in given else base
    dtype = given.get("dtype", "float32")
    possible.choice("dtype", dtype, DTYPES)
    reader = _Reader(given, base, dtype)
    runs = reader.runs()
    trained = {run.family for run in runs}
    known = [*reader.known(runs), *possible.recipe_names()]
    measure = measure_spec(given.get("measure", {}), known, sorted({run.seed for run in runs}))
    check_checkpoints(measure, runs)
    check_draws(measure, runs)
    return Study(
        name=str(given["name"]),
        question=possible.text("question", given.get("question", "")),
        base=base,
        text=_with_overrides(given, overrides) if overrides else text,
        settings=tuple(reader.settings.values()),
        variants=reader.rows(runs),
        families=tuple(v for v in reader.variants.values() if v.name in trained),
        controls=tuple(v for v in reader.variants.values() if v.name not in trained),
        runs=runs,
        measure=measure,
        comparisons=comparisons(given.get("comparisons"), runs, reader.setting),
        dtype=dtype,
    )


def _base(given: Any) -> Path:
    """The folder that a file names for its paths and modules."""
    if not isinstance(given, str) or not Path(given).is_absolute() or not Path(given).is_dir():
        raise LandscapeError(
            f"base = {given!r} is no folder with its whole path; it is where the paths and modules "
            f"of this file are looked up. Without the line that is the folder of the file."
        )
    return Path(given)


def _with_overrides(given: Mapping[str, Any], overrides: Sequence[str]) -> str:
    """The file as it was run, so that the study's folder can be continued without the flags."""
    flags = " ".join(f"--set {line}" for line in overrides)
    return f"# Written by landscape: a study file with {flags}\n" + toml.dumps(given)


def _tables(where: str, given: Any) -> Iterable[tuple[str, Any]]:
    """The tables of a table, whose names become folders and labels."""
    if not isinstance(given, Mapping):
        raise LandscapeError(f"{where} must be a table of tables, not {given!r}.")
    forms: dict[str, str] = {}
    for name in given:
        check_name(f"{where} name", name)
        other = forms.setdefault(unicodedata.normalize("NFC", name), name)
        if other != name:
            raise LandscapeError(
                f"{where} has one name written in two ways, {other!a} and {name!a}; they look "
                f"alike. Rename one of them."
            )
    return given.items()


class _Reader:
    """The tables of one file that refer to each other: settings, variants, runs."""

    def __init__(self, given: Mapping[str, Any], base: Path, dtype: str) -> None:
        self.given, self.base, self.dtype = given, base, dtype
        problem = possible.table("[problem]", given.get("problem", {}), PROBLEM_KEYS)
        self.problem = Problem(**_hashable(problem))
        self.training = _training("[training]", given.get("training", {}))
        self.settings = self._settings(given.get("settings", {}))
        self.variants = self._variants(given.get("variants", {}))

    def _settings(self, tables: Mapping[str, Any]) -> dict[str, Setting]:
        if tables == {}:
            return {"default": Setting("default", "", self.problem)}
        settings = {}
        for name, table in _tables("[settings]", tables):
            where = f"[settings.{name}]"
            possible.table(where, table, (*PROBLEM_KEYS, "title", "training"))
            problem = _hashable({k: value for k, value in table.items() if k in PROBLEM_KEYS})
            settings[name] = Setting(
                name=name,
                title=possible.words(where, table, "title", name),
                problem=replace(self.problem, **problem),
                training=_training(where, table.get("training", {})),
            )
        for setting in settings.values():
            possible.check_problem(f"[settings.{setting.name}]", setting.problem)
        _check_told_apart("[settings]", "title", ((s.name, s.title) for s in settings.values()))
        return settings

    def _variants(self, tables: Mapping[str, Any]) -> dict[str, VariantSpec]:
        variants = {}
        for name, table in _tables("[variants]", tables):
            where = f"[variants.{name}]"
            if not isinstance(table, Mapping):
                raise LandscapeError(f"{where} must be a table, not {table!r}.")
            recipe = table.get("recipe", name)
            possible.check_recipe_name(where, recipe)
            reserved = ("recipe", "label", "training")
            options = {key: value for key, value in table.items() if key not in reserved}
            for key in ("weights", "weights_key"):
                if key in options:
                    line = f"{key} = {toml.value_text(options[key])}"
                    raise LandscapeError(
                        f"{where} has the line {line}, which says where runs lie and is no option "
                        f'of a recipe: write it into the [grid] that names variant = ["{name}"].'
                    )
            if not possible.is_free(recipe):
                possible.check_keys(where, options, possible.recipe_options(recipe), extra=reserved)
            training = _training(where, table.get("training", {}))
            label = possible.words(where, table, "label", name)
            variants[name] = VariantSpec(name, recipe, label, options, training)
        return variants

    def variant(self, where: str, name: Any) -> VariantSpec:
        """The variant called `name`; a recipe's own name needs no table."""
        possible.choice(f"{where} variant", name, [*self.variants, *possible.recipe_names()])
        return self.variants.setdefault(name, VariantSpec(name, name, name))

    def setting(self, where: str, name: Any) -> Setting:
        """The setting called `name`; the first one when none is named."""
        if name is None:
            return next(iter(self.settings.values()))
        possible.choice(f"{where} setting", name, list(self.settings))
        return self.settings[name]

    def runs(self) -> tuple[Run, ...]:
        """All runs of the grids and single entries, in the order of the file."""
        grids = self.given.get("grid", [])
        entries = self.given.get("run", [])
        runs = []
        for grid in possible.tables("[grid]", grids):
            runs += self._grid("[grid]", grid)
        for number, entry in enumerate(possible.tables("[[run]]", entries), 1):
            runs.append(self._entry(f"[[run]] number {number}", entry))
        if not runs:
            raise LandscapeError(
                "the study file has no runs; add a [grid] table (variant=[...] seed=[...]) or "
                "[[run]] entries."
            )
        _check_repeated(runs)
        for name in self.settings:
            labels = ((run.family, run.label) for run in runs if run.setting == name)
            _check_told_apart("[variants]", "label", labels)
        drawn = [run.problem for run in runs if "label_noise" in run.problem.redraw]
        if drawn and not any(p.label_noise or user_code.is_callable_name(p.data) for p in drawn):
            raise LandscapeError(
                "redraw = 'label_noise' was asked, and no run has any; set label_noise in [problem]"
                " or in a setting, or leave it out of redraw."
            )
        seen: dict[str, Run] = {}
        for run in runs:
            other = seen.setdefault(run.run_id, run)
            if other.setting != run.setting:
                raise LandscapeError(
                    f"two runs differ in name only: {run.run_id} is in settings "
                    f"{other.setting!r} and {run.setting!r}; remove one of them."
                )
        return axes.with_rows(runs)

    def known(self, runs: Sequence[Run]) -> list[str]:
        """Names of variants and of their rows."""
        return list(dict.fromkeys([*self.variants, *(run.variant for run in runs)]))

    def rows(self, runs: Sequence[Run]) -> tuple[VariantSpec, ...]:
        """Every row that has runs, variants in the order of the file, rows in that of the runs."""
        found: dict[str, VariantSpec] = {}
        for run in runs:
            own = self.variants[run.family]
            row = replace(
                own,
                name=run.variant,
                label=run.label,
                options=run.options,
                family=run.family,
                axes=run.axes,
            )
            found.setdefault(run.variant, row)
        order = list(self.variants)
        return tuple(sorted(found.values(), key=lambda row: order.index(row.family)))

    def _grid(self, where: str, grid: Any) -> Iterable[Run]:
        if not isinstance(grid, Mapping):
            raise LandscapeError(f"{where} must be a table of axes, not {grid!r}.")
        given = {key: possible.listed(value) for key, value in grid.items()}
        empty = [key for key, values in given.items() if not values]
        if empty:
            raise LandscapeError(f"{where} axis {empty[0]!r} is empty; give at least one value.")
        if "variant" not in given:
            raise LandscapeError(f"{where} names no variant; add variant=[...].")
        variants = [self.variant(where, name) for name in given.pop("variant")]
        settings = [self.setting(where, name) for name in given.pop("setting", [None])]
        seeds = given.pop("seed", [0])
        files = {key: given.pop(key)[0] for key in ("weights", "weights_key") if key in given}
        self._check_axes(where, given, variants)
        for setting in settings:
            _check_redraws(where, given, setting)
        common = [key for key in given if key in (*possible.training_defaults(), *AXIS_KEYS)]
        for setting, variant, seed in itertools.product(settings, variants, seeds):
            # A variant without the option meets that axis once: SGD has no rho to vary.
            options = possible.recipe_options(variant.recipe)
            free = possible.is_free(variant.recipe)
            own = [key for key in given if key not in common and (free or key in options)]
            for values in itertools.product(*(given[key] for key in [*common, *own])):
                chosen = dict(zip([*common, *own], values, strict=True))
                problem = {key: chosen[key] for key in common if key in AXIS_KEYS}
                yield self._run(
                    where,
                    replace(setting, problem=replace(setting.problem, **problem)),
                    variant,
                    seed,
                    {key: chosen[key] for key in common if key not in AXIS_KEYS},
                    {key: chosen[key] for key in own},
                    **files,
                )

    def _check_axes(
        self, where: str, given: Mapping[str, Any], variants: Sequence[VariantSpec]
    ) -> None:
        """Refuse an axis that nobody has, and one that means two things."""
        own = {key for variant in variants for key in possible.recipe_options(variant.recipe)}
        training = possible.training_defaults()
        known = ["variant", "setting", "seed", *training, *AXIS_KEYS, *sorted(own)]
        free = any(possible.is_free(variant.recipe) for variant in variants)
        for key in given:
            if key not in known and not free:
                raise LandscapeError(possible.unknown(f"{where} has no axis", key, known))
            if key in own and key in training:
                raise LandscapeError(
                    f"{where} axis {key!r} is an option of a recipe and of the training; set it in "
                    f"[training], or as {key} or training.{key} in a [variants.<name>] each."
                )

    def _entry(self, where: str, entry: Any) -> Run:
        if not isinstance(entry, Mapping):
            raise LandscapeError(f"{where} must be a table, not {entry!r}.")
        if "variant" not in entry:
            raise LandscapeError(f'{where} names no variant; add variant="...".')
        variant = self.variant(where, entry["variant"])
        setting = self.setting(where, entry.get("setting"))
        options = {key: value for key, value in entry.items() if key not in RUN_KEYS}
        if not possible.is_free(variant.recipe):
            known = possible.recipe_options(variant.recipe)
            possible.check_keys(where, options, known, extra=RUN_KEYS)
        problem = {key: entry[key] for key in ("model", "data", "loss") if key in entry}
        setting = replace(setting, problem=replace(setting.problem, **problem))
        return self._run(
            where,
            setting,
            replace(variant, label=possible.words(where, entry, "label", variant.label)),
            entry.get("seed", 0),
            _training(where, entry.get("training", {})),
            options,
            weights=entry.get("weights"),
            weights_key=entry.get("weights_key"),
        )

    def _run(
        self,
        where: str,
        setting: Setting,
        variant: VariantSpec,
        seed: Any,
        training: Mapping[str, Any],
        options: Mapping[str, Any],
        *,
        weights: str | None = None,
        weights_key: str | None = None,
    ) -> Run:
        possible.check_seed(f"{where} seed", seed)
        possible.check_problem(where, setting.problem)
        drawn = setting.problem.drawn(seed)
        drawn = replace(drawn, label_noise=float(drawn.label_noise))
        possible.check_problem(f"{where} seed {seed}: the drawn", drawn)
        chosen = possible.recipe_options(variant.recipe) | dict(variant.options) | dict(options)
        missing = [key for key, value in chosen.items() if value is inspect.Parameter.empty]
        if missing:
            raise LandscapeError(
                f"{where} variant {variant.name!r} (recipe {variant.recipe}) needs "
                f"{' and '.join(missing)}; add it to [variants.{variant.name}] or as an axis."
            )
        possible.check_recipe(f"[variants.{variant.name}]", variant.recipe, chosen)
        merged = {
            **possible.training_defaults(), **self.training, **setting.training, **variant.training,
            **training,
        }  # fmt: skip
        possible.check_training(f"{where} variant {variant.name!r}", merged)
        path, trail = None, {}
        if weights is not None:
            fields = {**asdict(drawn), **merged, **chosen, "variant": variant.name}
            fields |= {"setting": setting.name, "seed": seed}
            path, trail = weights_files(where, weights, fields, self.base)
        elif variant.recipe == possible.NO_RECIPE:
            raise LandscapeError(
                f'{where} variant {variant.name!r} has recipe = "none", which trains nothing; '
                f'give the weights that it left, as in weights = "ckpt/{{variant}}_{{seed}}.pt".'
            )
        if weights_key is not None and (weights is None or not isinstance(weights_key, str)):
            raise LandscapeError(
                f"{where} weights_key = {weights_key!r} names a set of weights in the file that "
                f"`weights` gives; give both, as texts."
            )
        return Run(
            variant=variant.name,
            family=variant.name,
            fixed=tuple(variant.training),
            label=variant.label,
            setting=setting.name,
            seed=seed,
            problem=drawn,
            recipe=variant.recipe,
            options=possible.as_declared(chosen, possible.recipe_numbers(variant.recipe)),
            training=possible.as_declared(merged, possible.training_numbers()),
            dtype=self.dtype,
            weights=path,
            weights_key=weights_key,
            code=user_code.fingerprints(setting.problem, self.base, path, variant.recipe, trail),
            trail=trail,
        )


def _check_repeated(runs: Sequence[Run]) -> None:
    """Refuse one set of weights as several seeds: it would count as that many trainings."""
    first: dict[str, Run] = {}
    for run in runs:
        if run.weights is None:
            continue
        same = {k: v for k, v in run.decisive.items() if k != "seed"}
        if run.problem.redraw:  # what a seed has drawn makes no other training of these weights
            same["problem"] = asdict(replace(run.problem, data_seed=0, noise_seed=None))
        other = first.setdefault(fingerprint([run.family, run.setting, run.weights, same]), run)
        if other.seed != run.seed:
            raise LandscapeError(
                f"the seeds {other.seed} and {run.seed} of {run.family!r} have the same weights, "
                f'{run.weights}; give each its own, as in weights = "ckpt/{{variant}}_{{seed}}.pt".'
            )


def _check_told_apart(where: str, key: str, named: Iterable[tuple[str, str]]) -> None:
    """Refuse one label for two variants: sentences and figures call them by it alone."""
    first: dict[str, str] = {}
    for name, words in named:
        other = first.setdefault(unicodedata.normalize("NFC", words).strip(), name)
        if other != name:
            raise LandscapeError(
                f"{where} {other!r} and {name!r} have the {key} {words!r} in common; what the "
                f"report says of one could be meant of the other. Give each its own {key}."
            )


def _check_redraws(where: str, given: Mapping[str, Any], setting: Setting) -> None:
    """Refuse an axis of draws where every seed of the study has draws of its own."""
    for key in ("data_seed", "noise_seed"):
        if key in given and setting.problem.redraw:
            raise LandscapeError(
                f"{where} axis {key!r} and redraw = {list(setting.problem.redraw)} both say what "
                f"is drawn (setting {setting.name!r}): with redraw every seed of the study adds "
                f"itself to {key}. Remove one of them."
            )


def _training(where: str, table: Any) -> dict[str, Any]:
    name = where if where == "[training]" else f"{where} training"
    return dict(possible.table(name, table, tuple(possible.training_defaults())))


def _override(given: dict[str, Any], line: str) -> None:
    """Apply "a.b=value" (value as in TOML; bare words are strings)."""
    path, separator, value = line.partition("=")
    keys = [key.strip() for key in path.split(".")]
    if not separator or not all(keys):
        raise LandscapeError(f"--set {line!r} is not of the form table.key=value.")
    try:
        parsed = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        parsed = value.strip()
    tables: list[Any] = [given]
    for key in keys[:-1]:
        inner = [table.setdefault(key, {}) for table in tables]
        # "run.rho=0.1" means every [[run]] entry.
        tables = [
            item for value in inner for item in (value if isinstance(value, list) else [value])
        ]
        if not all(isinstance(table, dict) for table in tables):
            raise LandscapeError(f"--set {line!r}: {key!r} is not a table of the study file.")
    for table in tables:
        table[keys[-1]] = parsed


def _hashable(problem: Mapping[str, Any]) -> dict[str, Any]:
    """Lists of the file as tuples."""
    return {k: tuple(v) if isinstance(v, list) else v for k, v in problem.items()}
