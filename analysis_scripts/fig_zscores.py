"""How far from normal are the gradients that ZSharp filters?

    python analysis_scripts/fig_zscores.py [--study studies/demo] [--smoke]

Density of the standardized gradient per tensor, the normal law, and the threshold.
"""

import _figure

from landscape.plot import static

SETTING = "noisy"


def compute(gradient_zscores):
    """What is drawn, of the runs of the setting, in single precision."""
    runs = gradient_zscores.isel(run=gradient_zscores.setting.to_numpy() == SETTING)
    runs = runs[["density", "threshold", "flag"]]
    return [runs.assign(density=runs.density.astype("float32"))]


def draw(gradient_zscores):
    """One figure from one result."""
    return static.gradient_zscores(gradient_zscores, setting=SETTING)


if __name__ == "__main__":
    _figure.main(__file__, ["gradient_zscores"], compute, draw)
