"""How far from normal are the gradients that ZSharp filters?

    python analysis_scripts/fig_zscores.py [--study studies/demo] [--smoke]

Density of the standardized gradient per tensor, the normal law, and the threshold.
"""

import _figure

from landscape.plot import static

SETTING = "noisy"


def compute(gradient_zscores):
    """The runs of the setting that is drawn."""
    return [gradient_zscores.isel(run=gradient_zscores.setting.to_numpy() == SETTING)]


def draw(gradient_zscores):
    """One figure from one result."""
    return static.gradient_zscores(gradient_zscores, setting=SETTING)


if __name__ == "__main__":
    _figure.main(__file__, ["gradient_zscores"], compute, draw)
