"""How often does the page find flatness where flatness is the cause?

    python analysis_scripts/fig_power.py [--smoke]

Studies with a planted truth; their data are those of `python -m benchmarks.planted_power`.
"""

import _figure
import numpy as np
from scipy.stats import binomtest

from landscape.plot import static
from landscape.plot.drawing import Axis, Drawing, Line, Panel, Points, Rule

LOOKS = {4: ("#8c8c8c", "circle", "dot"), 8: ("#0072b2", "square", "dash"),
         12: ("#d55e00", "triangle", "solid")}  # fmt: skip
SHIFT = {4: 0.97, 8: 1.0, 12: 1.03}


def compute(planted_power):
    """The shares as they are."""
    return [planted_power]


def draw(planted_power):
    """Power over seeds, a line per number of variants, a panel per simulator."""
    ds, panels = planted_power, []
    least = int(ds.studies.values.min())
    ticks = tuple((float(s), f"{s}") for s in np.unique(ds.seeds.values))
    for simulator in dict.fromkeys(ds.simulator.values):
        marks = [Rule("y", 60, "three studies in five", "dash")]
        for count, (color, symbol, dash) in LOOKS.items():
            here = (ds.simulator.values == simulator) & (ds.variants.values == count)
            seeds, shares = ds.seeds.values[here].astype(float), ds.supported.values[here]
            numbers = ds.studies.values[here].astype(int)
            found = [binomtest(round(n * s), n) for s, n in zip(shares, numbers, strict=True)]
            ends = [one.proportion_ci(method="wilson") for one in found]
            low, high = (100 * np.array([getattr(e, k) for e in ends]) for k in ("low", "high"))
            # Moved apart by three per cent each, or the intervals would lie on one another.
            x, name = seeds * SHIFT[count], f"{count} variants"
            marks += [
                Line(x, 100 * shares, name, color, dash, legend=False),
                Points(x, 100 * shares, name, color, symbol, y_low=low, y_high=high, true_x=seeds),
            ]
        x = Axis("seeds", log=True, ticks=ticks)
        y = Axis("studies that support flatness", "%", limits=(-3, 103))
        panels.append(Panel(x, y, tuple(marks), f"{simulator} simulator"))
    worst = 100 * float(planted_power["false"].max())
    caption = (
        f"{least} simulated studies or more per point, with Wilson's 95 % interval of a share, in "
        "which flatness makes four fifths of the variance between variants. Controls are not "
        f"counted. At most {worst:.0f} % of the studies of a point say anything that is false."
    )
    title, look = "Is flatness found where it is the cause?", {"columns": 2, "panel_height": 2.0}
    drawing = Drawing("power", title, caption, tuple(panels), **look, share_y="grid")
    return static.render(drawing, width="neurips")


if __name__ == "__main__":
    _figure.main(__file__, ["planted_power"], compute, draw)
