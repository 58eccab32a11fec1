"""Are the same coordinates selected again and again?

    python analysis_scripts/fig_selection.py [--study studies/masks] [--smoke]

How often coordinates are in the mask over the snapshots, beside the binomial law of independent
draws. Study: `masks.toml`.
"""

import _figure

from landscape.plot import static

SETTING = "noisy"


def compute(mask_selection):
    """The runs of the setting that is drawn."""
    return [mask_selection.isel(run=mask_selection.setting.to_numpy() == SETTING)]


def draw(mask_selection):
    """One figure from one result."""
    return static.mask_selection(mask_selection, setting=SETTING)


if __name__ == "__main__":
    _figure.main(__file__, ["mask_selection"], compute, draw)
