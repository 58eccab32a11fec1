"""Two studies side by side: how they were made, what both measured, what each concludes."""

import json
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from scipy import stats as tests

from landscape import results, stats
from landscape.metrics import METRICS
from landscape.report import words
from landscape.report.document import Document, Part, table_of
from landscape.report.family import Family
from landscape.report.findings import answer
from landscape.report.study import StudyResults
from landscape.stats import LEVEL

# What a study is made of; the rest of resolved.json is where and when it lay.
_MADE = (
    "versions", "platform", "device", "dtype", "threads", "settings", "variants", "comparisons",
    "measure",
)  # fmt: skip


def compare(first: StudyResults, second: StudyResults) -> Document:
    """What differs in how two studies were made, in what they measured, and in what they conclude.

    Values of a variant in a setting that both have are compared without pairing (Welch), with
    intervals for all of them at once (Bonferroni): seeds of two studies need not mean the same.
    first, second: studies, read by `report.StudyResults.read`.

    Example:
        >>> mine = report.StudyResults.read(finished)
        >>> document = report.compare(mine, mine)
        >>> len(document.parts), document.answer[:34]
        (4, '18 values of both: 18 identical, 0')
    """
    names = _names(first, second)
    families = Family.of(first), Family.of(second)
    compared = list(_compared(*families))
    made = list(_unequal(first, second))
    said = [answer(family) for family in families]
    apart = [one for one in compared if one["apart"]]
    alike = sum(not one["unlike"] for one in compared)
    equal = [one for one in compared if one["identical"]]
    parts = [
        Part(
            "What each concludes",
            (f"{names[0]}: {said[0].headline}", f"{names[1]}: {said[1].headline}"),
        ),
        *_verdicts(said, names),
        Part(
            "What both measured",
            (
                "Arithmetic means over seeds. Difference: second minus first, with a Welch "
                f"interval that is {100 * LEVEL:.0f} % for all {alike} rows together that were "
                "measured alike; "
                "where all values are positive and the quantity is compared on the logarithm, the "
                "ratio of geometric means. Identical: the same seeds have the same values to the "
                "last bit. Measured otherwise: of other examples, in another BatchNorm mode, at "
                "another radius or with other options, so that models alike would differ too."
                if compared
                else "Nothing: no variant in a setting of the same name has a quantity in common.",
            ),
            ("setting", "variant", "quantity", *names, "difference", ""),
            table_of([one["row"] for one in compared]),
        ),
        Part(
            "What differs in how they were made" if made else "They were made alike",
            ()
            if made
            else ("Versions, settings, variants, comparisons and measurements are the same.",),
            ("what", *names),
            table_of(made),
        ),
    ]
    text = (
        f"{words.count(len(compared), 'value')} of both: {len(equal)} identical, {len(apart)} "
        f"resolved as different{_otherwise(len(compared) - alike)}. "
        f"{words.count(len(made), 'difference')} in how they were made."
        if compared
        else "The two have no variant in a setting with a quantity in common."
    )
    data = {
        "studies": [str(one.folder.root) for one in (first, second)],
        "compared": [{k: v for k, v in one.items() if k != "row"} for one in compared],
        "made": made,
        "headlines": [one.headline for one in said],
    }
    unit = first.loss_unit or second.loss_unit
    document = Document("compare", f"{names[0]} and {names[1]}", text, tuple(parts), data)
    return results.units.said_in(document, unit)


def _otherwise(number: int) -> str:
    return f", {number} measured otherwise" if number else ""


def _names(first: StudyResults, second: StudyResults) -> tuple[str, str]:
    names = [one.folder.root.name for one in (first, second)]
    if names[0] == names[1]:
        return str(first.folder.root), str(second.folder.root)
    return names[0], names[1]


def _compared(first: Family, second: Family) -> Iterator[dict[str, Any]]:
    """Every quantity of every variant in every setting that both have."""
    places = [
        (setting, key, row)
        for (setting, key), values in first.values.items()
        if (setting, key) in second.values
        for row in values.raw
        if row in second.values[setting, key].raw
    ]
    unlike = {key for _, key, _ in places if _how(first.study, key) != _how(second.study, key)}
    level = 1 - (1 - LEVEL) / max(1, sum(key not in unlike for _, key, _ in places))
    for setting, key, row in places:
        ours, theirs = (f.values[setting, key].raw[row] for f in (first, second))
        a, b = (np.array([v for v in one.values() if math.isfinite(v)]) for one in (ours, theirs))
        metric = METRICS[key]
        both = np.concatenate([a, b])
        log = metric.scale == "log" and len(both) > 0 and bool((both > 0).all())
        identical = list(ours) == list(theirs) and np.array_equal(
            list(ours.values()), list(theirs.values()), equal_nan=True
        )
        low, estimate, high = _welch(np.log(a) if log else a, np.log(b) if log else b, level)
        zero = math.isfinite(low) and not low <= 0 <= high
        means = [words.value(metric, stats.mean_ci(one).estimate) for one in (a, b)]
        if log and math.isfinite(estimate):
            ends = [words.number(math.exp(x), 2) for x in (estimate, low, high)]
            text = f"× {ends[0]}" + (f" [{ends[1]}, {ends[2]}]" if math.isfinite(low) else "")
        elif math.isfinite(estimate):
            text = words.plain_difference(metric, estimate)
            if math.isfinite(low):
                write = words.points if metric.is_share else words.number
                text += f" [{write(low)}, {write(high)}]"
        else:
            text = words.MISSING
        word = "identical" if identical else "different" if zero else "not resolved"
        # Curvature of other examples, or sharpness at another radius, is another quantity.
        word = "measured otherwise" if key in unlike and not identical else word
        study = first.study
        yield {
            "setting": setting, "variant": row, "quantity": key, "identical": identical,
            "apart": word == "different", "unlike": key in unlike, "n": [len(a), len(b)],
            "difference": estimate if math.isfinite(estimate) else None,
            "low": low if math.isfinite(low) else None,
            "high": high if math.isfinite(high) else None, "logarithm": log,
            "row": (
                study.title(setting), study.label(setting, row),
                words.sentence(metric.name) + (" (%)" if metric.is_share else "")
                + _at_radii(first.study, second.study, key),
                *(f"{m} (n = {len(one)})" for m, one in zip(means, (a, b), strict=True)),
                "0" if identical else text, word,
            ),
        }  # fmt: skip


# Options that say how closely a quantity is estimated, and not which quantity that is.
_PRECISION = (
    "k", "tolerance", "max_hvps", "num_probes", "num_pairs", "num_bins", "rho", "first_seed_only",
)  # fmt: skip


def _how(study: StudyResults, key: str) -> set[str]:
    """The ways in which a study measured a quantity: what another way would make another number."""
    measurement = METRICS[key].measurement
    found = set()
    for own in results.provenance(study.data[measurement]).get("runs", []):
        options = {k: v for k, v in (own.get("options") or {}).items() if k not in _PRECISION}
        # How many examples were trained on is of the problem, and not of how it is measured.
        examples = None if measurement == "generalization" else own.get("num_examples")
        found.add(json.dumps([own.get("bn"), examples, options], sort_keys=True, default=str))
    return found | ({str(study.radius)} if measurement == "sharpness" else set())


def _at_radii(first: StudyResults, second: StudyResults, key: str) -> str:
    if METRICS[key].measurement != "sharpness":
        return ""
    radii = dict.fromkeys(words.trimmed(one.radius) for one in (first, second))
    return f" at ρ = {' and '.join(radii)}"


def _welch(a: np.ndarray, b: np.ndarray, level: float) -> tuple[float, float, float]:
    """Interval and estimate of mean(b) - mean(a); NaN ends below two values each."""
    if not len(a) or not len(b):
        return math.nan, math.nan, math.nan
    estimate = float(b.mean() - a.mean())
    if len(a) < 2 or len(b) < 2 or (np.ptp(a) == 0 and np.ptp(b) == 0):
        return math.nan, estimate, math.nan
    ends = tests.ttest_ind(b, a, equal_var=False).confidence_interval(level)
    return float(ends.low), estimate, float(ends.high)


def _verdicts(said: list[Any], names: tuple[str, str]) -> Iterator[Part]:
    """The word that each study has for an explanation, where both weighed it."""
    known = [{(v.setting, v.key): v for v in one.verdicts} for one in said]
    shared = [key for key in known[0] if key in known[1]]
    if shared:
        rows = [
            (known[0][key].claim, *(f"{side[key].word}" for side in known),
             "" if known[0][key].word == known[1][key].word else "differs")
            for key in shared
        ]  # fmt: skip
        yield Part("Each explanation, weighed by each", (), ("explanation", *names, ""),
                   table_of(rows))  # fmt: skip


def _unequal(first: StudyResults, second: StudyResults) -> Iterator[tuple[str, str, str]]:
    """Entries of the two resolved studies that are not equal, down to the option."""
    for name in _MADE:
        yield from _apart(name, first.resolved.get(name), second.resolved.get(name))
    seeds = [sorted({int(run["seed"]) for run in one.resolved.get("runs", []) if "seed" in run})
             for one in (first, second)]  # fmt: skip
    yield from _apart("seeds", *(", ".join(map(str, one)) for one in seeds))


def _apart(path: str, one: Any, other: Any) -> Iterator[tuple[str, str, str]]:
    if isinstance(one, dict) and isinstance(other, dict):
        # The place in the file is no difference.
        for key in dict.fromkeys(k for k in (*one, *other) if k != "order"):
            yield from _apart(f"{path}.{key}", one.get(key), other.get(key))
    elif one != other:
        yield path, _text(one), _text(other)


def _text(value: Any) -> str:
    if value is None:
        return words.MISSING
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:77]}..."
