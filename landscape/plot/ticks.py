"""Numbers on axes: where ticks stand, and how few digits say them."""

import numpy as np


def log_ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Decades within the limits; 1-3 or 1-2-5 in short ranges, even steps in very short ones."""
    if high < 4 * low:
        even = even_ticks(low, high)
        return even[:: -(-len(even) // most)]
    decades = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
    span = np.log10(high / low)
    steps = (
        (1, 2, 3, 5) if span < 0.9 else (1, 2, 5) if span < 1.3 else (1, 3) if span < 2.5 else (1,)
    )
    ticks = [step * 10.0**decade for decade in decades for step in steps]
    inside = [tick for tick in ticks if low * 0.999 <= tick <= high * 1.001]
    stride = -(-len(inside) // most)
    return inside[::stride] if inside else [low, high]


def fixed(value: float, digits: int) -> str:
    """A number with fixed decimals and a real minus sign; what rounds to zero has none."""
    text = f"{value:.{digits}f}"
    return text.removeprefix("-") if float(text) == 0 else text.replace("-", "−")


def even_ticks(low: float, high: float) -> list[float]:
    """Multiples of 1, 2, 2.5 or 5 of a decade within the limits, about five of them."""
    rough = (high - low) / 4
    decade = 10.0 ** np.floor(np.log10(rough))
    step = decade * next(s for s in (1, 2, 2.5, 5, 10) if s * decade >= rough * 0.999)
    first = np.ceil(low / step - 1e-6)
    count = int(np.floor(high / step + 1e-6) - first) + 1
    return [float(step * (first + index)) for index in range(count)]


def short(value: float) -> str:
    """A tick label with three significant digits at most: 0.001, 30, 2e4."""
    if value == 0 or not np.isfinite(value):
        return "0" if value == 0 else ""
    if 1e-3 <= abs(value) < 1e4:
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    mantissa, exponent = f"{value:.0e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def exact(value: float) -> str:
    """A tick label that says where the tick stands: more digits than `short` where it needs them.

    Ticks of a short range are 11.1 and 11.125, or 2e-5 and 2.5e-5: three digits, or one, would give
    two of them one label.
    """
    text = short(value)
    if not text or abs(float(text) - value) <= 1e-6 * abs(value):
        return text
    if 1e-3 <= abs(value) < 1e4:
        return f"{value:.6g}"
    mantissa, exponent = f"{value:.5e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"
