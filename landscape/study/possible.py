"""What a study file may say, asked of the floors that own it, and how a mistake is named."""

import difflib
import inspect
import unicodedata
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from landscape.checks import LARGEST_SEED, MOST
from landscape.errors import LandscapeError
from landscape.storage import check_name
from landscape.study import user_code
from landscape.study.spec import REDRAWS, Problem


def recipe_names() -> tuple[str, ...]:
    """Names of the recipes of `landscape.sam`."""
    from landscape import sam

    return tuple(sam.recipes())


NO_RECIPE = "none"  # trained elsewhere, by something unknown


def is_free(recipe: str) -> bool:
    """Whether a recipe takes any option: one of the user's own, or none at all."""
    return recipe == NO_RECIPE or user_code.is_callable_name(recipe)


def check_recipe_name(where: str, recipe: Any) -> None:
    """Refuse what is no recipe of ours, no "package.module:callable" and not "none"."""
    if not isinstance(recipe, str) or not is_free(recipe):
        known = [*recipe_names(), NO_RECIPE, '"package.module:callable"']
        choice(f"{where} recipe", recipe, known)


def recipe_options(recipe: str) -> dict[str, Any]:
    """Options of a recipe with their defaults (`inspect.Parameter.empty` where one is required).

    None of a free recipe: nothing of the user's is imported here.
    """
    from landscape import sam

    if is_free(recipe):
        return {}

    return {
        name: list(p.default) if isinstance(p.default, tuple) else p.default
        for name, p in inspect.signature(sam.recipes()[recipe]).parameters.items()
    }


def recipe_numbers(recipe: str) -> frozenset[str]:
    """Options of a recipe that are numbers with a fraction."""
    from landscape import sam

    if is_free(recipe):
        return frozenset()

    known = inspect.signature(sam.recipes()[recipe]).parameters.values()
    return frozenset(p.name for p in known if p.annotation in (float, float | None))


def training_numbers() -> frozenset[str]:
    """Training options that are numbers with a fraction."""
    return frozenset(key for key, value in training_defaults().items() if type(value) is float)


def as_declared(options: Mapping[str, Any], numbers: Collection[str]) -> dict[str, Any]:
    """The options with whole numbers as floats where `numbers` names them: 1 and 1.0 are one."""
    return {k: float(v) if k in numbers and type(v) is int else v for k, v in options.items()}


def check_recipe(where: str, recipe: str, options: Mapping[str, Any]) -> None:
    """Build the variant once, so that a radius below 0 is refused before hours of training."""
    from landscape import sam

    if is_free(recipe):
        return

    try:
        sam.make(recipe, dict(options))
    except LandscapeError as error:
        raise LandscapeError(f"{where} {error}") from None
    except TypeError as error:
        raise LandscapeError(
            f"{where} recipe {recipe} does not accept {options}: {error}."
        ) from None


def training_defaults() -> dict[str, Any]:
    """Every training option with its default."""
    from landscape import training

    return asdict(training.TrainingOptions())


def check_training(where: str, options: Mapping[str, Any]) -> None:
    """Build the training options once: wrong values are named before anything starts."""
    from landscape import training

    try:
        training.TrainingOptions(**options)
    except LandscapeError as error:
        raise LandscapeError(f"{where} {error}") from None
    except TypeError as error:
        raise LandscapeError(f"{where} training options: {error}.") from None


def check_problem(where: str, problem: Problem) -> None:
    """Noise, and names of data, model and loss that can be imported."""
    noise = problem.label_noise
    if isinstance(noise, bool) or not isinstance(noise, (int, float)) or not 0 <= noise <= 1:
        raise LandscapeError(f"{where} label_noise = {noise!r} is not a share between 0 and 1.")
    splits, verify = problem.splits, problem.verify
    if splits is not None and not (
        isinstance(splits, tuple)
        and len(splits) == 3
        and all(type(n) is int and 0 < n <= MOST for n in splits)
    ):
        given = list(splits) if isinstance(splits, tuple) else splits
        raise LandscapeError(
            f"{where} splits = {given!r} must be three whole numbers above 0: training, "
            f"validation and test examples."
        )
    check_seed(f"{where} data_seed", problem.data_seed)
    if problem.noise_seed is not None:
        check_seed(f"{where} noise_seed", problem.noise_seed)
    redraw = problem.redraw
    if not isinstance(redraw, tuple) or any(part not in REDRAWS for part in redraw):
        given = list(redraw) if isinstance(redraw, tuple) else redraw
        raise LandscapeError(
            f"{where} redraw = {given!r} must list what every seed draws anew, of "
            f"{', '.join(map(repr, REDRAWS))}."
        )
    if problem.data_dir is not None and not isinstance(problem.data_dir, str):
        raise LandscapeError(f"{where} data_dir = {problem.data_dir!r} must be a path in quotes.")
    if not isinstance(verify, bool):
        raise LandscapeError(f"{where} verify = {verify!r} must be true or false.")
    choice(f"{where} noise_kind", problem.noise_kind, ("symmetric", "asymmetric"))
    user_code.check_names(where, problem)


def check_seed(where: str, value: Any) -> int:
    """A whole number that a generator takes."""
    if type(value) is not int or not 0 <= value <= LARGEST_SEED:
        raise LandscapeError(f"{where} = {value!r} is not a whole number from 0 to {LARGEST_SEED}.")
    return value


def text(where: str, value: Any) -> str:
    """A text, however empty."""
    if not isinstance(value, str):
        raise LandscapeError(f"{where} = {value!r} must be a text in quotes.")
    return value


def listed(value: Any) -> list[Any]:
    """A value of a grid as the list that it stands for."""
    return value if isinstance(value, list) else [value]


def table(where: str, given: Any, allowed: Collection[str]) -> Mapping[str, Any]:
    """A table whose keys are all allowed."""
    if not isinstance(given, Mapping):
        raise LandscapeError(f"{where} must be a table, not {given!r}.")
    check_keys(where, given, allowed)
    return given


def tables(where: str, given: Any) -> list[Any]:
    """One table, or the list of those in double brackets."""
    if isinstance(given, Mapping):
        return [given]
    if not isinstance(given, list):
        raise LandscapeError(
            f"{where} must be a table, or several in double brackets, not {given!r}."
        )
    return given


def words(where: str, table: Mapping[str, Any], key: str, default: str) -> str:
    """A label or title, of characters that can be seen; `default` where it is not given."""
    return check_name(f"{where} {key}", table[key]) if key in table else default


def check_keys(
    where: str, given: Iterable[str], allowed: Collection[str], *, extra: Collection[str] = ()
) -> None:
    """Refuse a key that is not allowed, with the closest one that is."""
    for key in given:
        if key not in allowed and key not in extra:
            raise LandscapeError(unknown(f"{where} has no entry", key, [*allowed, *extra]))


def choice(what: str, value: Any, choices: Collection[str]) -> None:
    """Refuse a value that is not among the choices."""
    if not isinstance(value, str) or value not in choices:
        raise LandscapeError(unknown(f"{what}: unknown", value, list(choices)))


def unknown(what: str, key: Any, possible: Sequence[str]) -> str:
    """The sentence for a key that is not possible."""
    possible = list(dict.fromkeys(possible))
    close = difflib.get_close_matches(str(key), possible, n=1)
    alike = [each for each in possible if _composed(each) == _composed(str(key))]
    if alike:  # or the hint would show the same name twice
        return (
            f"{what} {key!a}: it looks like {alike[0]!a}, in another form of Unicode; copy that "
            f"name, or write both anew."
        )
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return f"{what} {key!r}.{hint} Possible: {', '.join(possible) or 'none'}."


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)
