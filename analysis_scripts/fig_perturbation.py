"""Where does each variant put its perturbation?

    python analysis_scripts/fig_perturbation.py [--study studies/demo] [--smoke]

Per tensor: share of the energy, share of the parameters, density of the mask.
"""

import _figure

from landscape.plot import static

SETTING = "noisy"


def compute(perturbation):
    """The runs of the setting that is drawn."""
    return [perturbation.isel(run=perturbation.setting.to_numpy() == SETTING)]


def draw(perturbation):
    """One figure from one result."""
    return static.perturbation(perturbation, setting=SETTING)


if __name__ == "__main__":
    _figure.main(__file__, ["perturbation"], compute, draw)
