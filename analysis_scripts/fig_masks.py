"""Do the variants select the same weights, beyond chance?

    python analysis_scripts/fig_masks.py [--study studies/demo] [--smoke]

Cohen's kappa between the masks of five variants, each asked at one theta and batch; 0 is chance.
"""

import _figure

from landscape.plot import static

SETTING = "noisy"


def compute(mask_overlap):
    """The runs of the setting that is drawn."""
    return [mask_overlap.isel(run=mask_overlap.setting.to_numpy() == SETTING)]


def draw(mask_overlap):
    """One figure from one result."""
    return static.mask_overlap(mask_overlap, setting=SETTING)


if __name__ == "__main__":
    _figure.main(__file__, ["mask_overlap"], compute, draw)
