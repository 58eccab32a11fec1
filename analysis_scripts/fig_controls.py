"""Would a random mask, or the largest |g|, have done as well?

    python analysis_scripts/fig_controls.py [--study studies/masks] [--smoke]

Radius and loss increase of each variant's perturbation beside masks of the same density.
Study: `masks.toml`.
"""

import _figure

from landscape.plot import static

SETTING = "noisy"


def compute(perturbation_controls):
    """The runs of the setting that is drawn."""
    return [perturbation_controls.isel(run=perturbation_controls.setting.to_numpy() == SETTING)]


def draw(perturbation_controls):
    """One figure from one result."""
    return static.perturbation_controls(perturbation_controls, setting=SETTING)


if __name__ == "__main__":
    _figure.main(__file__, ["perturbation_controls"], compute, draw)
