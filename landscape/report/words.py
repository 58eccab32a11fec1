"""Numbers and lists as words: sensible digits, a real minus sign, intervals, and p-values."""

import math
from collections.abc import Callable, Sequence

from landscape.metrics import Metric
from landscape.plot.runs import count as count
from landscape.plot.runs import sentence as sentence
from landscape.stats import Decision, Interval

MISSING = "–"


def number(value: float, digits: int = 3) -> str:
    """`digits` significant digits without trailing noise: 0.0123, 4.56, 123, 1.2e-5."""
    if not math.isfinite(value):
        return MISSING
    if value == 0:
        return "0"
    if 1e-3 <= abs(value) < 10 ** max(digits, 4):
        decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
        text = f"{value:.{decimals}f}"
    else:
        text = f"{value:.{max(digits - 2, 0)}e}".replace("e-0", "e-").replace("e+0", "e")
    return text.replace("-", "−")


def trimmed(value: float) -> str:
    """A number that a person chose: 0.4, not 0.400."""
    return MISSING if not math.isfinite(value) else f"{value:.3g}".replace("-", "−")


def percent(value: float, decimals: int = 1) -> str:
    """A share as a percentage without the sign: 0.8834 -> 88.3."""
    return MISSING if not math.isfinite(value) else f"{100 * value:.{decimals}f}"


def points(value: float, decimals: int = 1) -> str:
    """A signed difference of shares in percentage points: 0.021 -> +2.1."""
    if not math.isfinite(value):
        return MISSING
    text = f"{100 * value:+.{decimals}f}"
    # A difference that rounds to nothing has no sign.
    return text[1:] if float(text) == 0 else text.replace("-", "−")


def p_value(p: float) -> str:
    """A p-value: p = 0.013, p < 0.001, or that there is none."""
    if not math.isfinite(p):
        return "no p"
    # Four digits where three would hide on which side of 0.05 it lies.
    digits = 4 if f"{p:.3f}" == "0.050" else 3 if p < 0.1 else 2
    return "p < 0.001" if p < 0.001 else f"p = {p:.{digits}f}"


def interval(ci: Interval, write: Callable[[float], str] = number) -> str:
    """[low, high] with the writer of the estimate, or nothing where there is no interval.

    Neither where all values are equal: as many counts can be, which says nothing on their spread.
    """
    return f"[{write(ci.low)}, {write(ci.high)}]" if ci.known and ci.low < ci.high else ""


def listing(items: Sequence[str]) -> str:
    """A, B and C."""
    items = list(items)
    if len(items) < 2:
        return "".join(items)
    return f"{', '.join(items[:-1])} and {items[-1]}"


def value(metric: Metric, number_: float, decimals: int = 1) -> str:
    """A value of a quantity: shares in per cent."""
    return percent(number_, decimals) if metric.is_share else number(number_)


def plain_difference(metric: Metric, difference: float) -> str:
    """A difference in the quantity's own unit: +2.1 points, −0.034 nats."""
    if not math.isfinite(difference):
        return MISSING
    if metric.is_share:
        return f"{points(difference)} points"
    text = number(difference)
    sign = "+" if difference > 0 else ""
    return f"{sign}{text} {metric.units}".rstrip()


def factor(metric: Metric, scaled: float) -> str:
    """A difference on the scale of comparison as a factor: 0.55 of the error."""
    return number(metric.factor(scaled), 2) if math.isfinite(scaled) else "∞"


def effect(metric: Metric, decision: Decision) -> str:
    """The estimate with its adjusted interval: "error × 0.55 [0.42, 0.71]".

    On a linear scale the interval is that of the difference itself.
    """
    ci = decision.interval
    if not math.isfinite(ci.estimate):
        return ""
    if metric.scale == "linear":
        turned = sorted(metric.better * end for end in (ci.low, ci.high))
        write = points if metric.is_share else number
        return f"[{write(turned[0])}, {write(turned[1])}]" if ci.known else ""
    low, high = sorted(_ends(metric, ci))
    inside = f" [{_bound(low)}, {_bound(high)}]" if not math.isnan(low) else ""
    if ci.excludes(0):
        # 1.0 [1.001, 1.01] would leave its own interval.
        return f"{metric.what} × {_bound(metric.factor(ci.estimate))}{inside}"
    return f"{metric.what} × {factor(metric, ci.estimate)}{inside}"


def _ends(metric: Metric, ci: Interval) -> tuple[float, float]:
    ends = []
    for end in (ci.low, ci.high):
        try:
            ends.append(metric.factor(end))
        except OverflowError:
            ends.append(math.inf)
    return ends[0], ends[1]


def _bound(end: float) -> str:
    """An end of a factor's interval; digits enough to tell on which side of 1 it lies."""
    if end > 1e6:
        return "∞"
    shown = (number(end, digits) for digits in (2, 3, 4))
    return next((text for text in shown if float(text.replace("−", "-")) != 1), number(end, 4))


def detectable(metric: Metric, decision: Decision) -> str:
    """The smallest difference that would have been seen, four times in five.

    "an error 0.46 times as large", "a difference of 1.2 points".
    """
    size = decision.detectable
    if not math.isfinite(size):
        return "nothing"
    if metric.scale == "linear":
        shown = plain_difference(metric, size).removeprefix("+")
        return f"a difference of {shown}"
    article = "an" if metric.what[0] in "aeiou" else "a"
    if metric.factor(size) < 0.01:
        return f"{article} {metric.what} a hundredth as large or less"
    return f"{article} {metric.what} {factor(metric, size)} times as large"


def margin(metric: Metric, decision: Decision) -> str:
    """The margin in words: 10 % of the error."""
    if metric.scale == "linear":
        size = decision.margin
        return f"{percent(size)} points" if metric.is_share else number(size)
    share = 100 * (1 - math.exp(-decision.margin))
    return f"{share:.3g} % of the {metric.what}"
