"""The table [comparisons] of a study file: what is compared is said before the numbers are seen."""

from collections.abc import Callable, Collection, Iterable
from typing import Any

from landscape.errors import LandscapeError
from landscape.study import possible
from landscape.study.spec import METRICS, Comparisons, Question, Run, Setting

COMPARISON_KEYS = ("metric", "setting", "references", "questions", "margin")
# Losses of targets that are no classes, or of which the next token is not what one asks for.
_WITHOUT_CLASSES = ("mse", "causal_lm")


def default_metric(settings: Iterable[Setting]) -> str:
    """What is compared where the file does not say: accuracy, or the loss where there is none."""
    losses = [setting.problem.loss for setting in settings]
    none = bool(losses) and all(loss in _WITHOUT_CLASSES for loss in losses)
    return "test_loss" if none else "test_accuracy"


def comparisons(
    given: Any, runs: Collection[Run], setting_called: Callable[[str, Any], Setting]
) -> Comparisons | None:
    """The declared comparisons, checked against the runs that the study has."""
    if given is None:
        return None
    table = possible.table("[comparisons]", given, COMPARISON_KEYS)
    setting = setting_called("[comparisons]", table.get("setting"))
    metric = table.get("metric", default_metric([setting]))
    possible.choice("[comparisons] metric", metric, METRICS)
    here = [run for run in runs if run.setting == setting.name]
    # A variant of the file stands for all of its rows.
    present = list(dict.fromkeys([*(r.family for r in here), *(r.variant for r in here)]))
    references = table.get("references", ["sgd"])
    references = references if isinstance(references, list) else [references]
    if not references:
        raise LandscapeError("[comparisons] references = [] is empty; name what is compared to.")
    for name in references:
        possible.choice("[comparisons] reference", name, present)
    questions = table.get("questions", [])
    if not isinstance(questions, list):
        raise LandscapeError("[[comparisons.questions]] is a list of tables, in double brackets.")
    asked = tuple(_question(one, present) for one in questions)
    return Comparisons(metric, setting.name, tuple(references), asked, _margin(table.get("margin")))


def _margin(given: Any) -> float | None:
    """The declared margin, a share between 0 and 1."""
    if given is None:
        return None
    number = isinstance(given, (int, float)) and not isinstance(given, bool)
    if not number or not 0 < given < 1:
        raise LandscapeError(
            f"[comparisons] margin = {given!r} is not a number between 0 and 1; 0.1 is a tenth of "
            f"the error (of the loss, of a gap's unit), and less counts as no difference."
        )
    return float(given)


def _question(given: Any, present: Collection[str]) -> Question:
    where = "[[comparisons.questions]]"
    table = possible.table(where, given, ("asked", "pairs"))
    pairs = table.get("pairs", [])
    right = isinstance(pairs, list) and all(isinstance(p, list) and len(p) == 2 for p in pairs)
    if not right or not pairs or not table.get("asked"):
        raise LandscapeError(
            f"{where} has asked = {table.get('asked')!r} and pairs = {pairs!r}; give the question "
            f'and its pairs of variants, as in asked = "Does SAM help?", pairs = [["sam", "sgd"]].'
        )
    for name in (name for pair in pairs for name in pair):
        possible.choice(f"{where} variant", name, present)
    for a, b in pairs:
        if a == b:
            raise LandscapeError(f"{where} compares {a!r} with itself; give two variants.")
    return Question(str(table["asked"]), tuple((a, b) for a, b in pairs))
