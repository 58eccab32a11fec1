"""How long does a mask last?

    python analysis_scripts/fig_persistence.py [--study studies/demo] [--smoke]

Cohen's kappa between masks by the number of steps between them; 0 is chance.
"""

import _figure

from landscape.plot import static

SETTING = "noisy"


def compute(mask_persistence):
    """The runs of the setting that is drawn."""
    return [mask_persistence.isel(run=mask_persistence.setting.to_numpy() == SETTING)]


def draw(mask_persistence):
    """One figure from one result."""
    return static.mask_persistence(mask_persistence, setting=SETTING)


if __name__ == "__main__":
    _figure.main(__file__, ["mask_persistence"], compute, draw)
