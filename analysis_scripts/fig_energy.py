"""How does the perturbation move between kinds of tensors during training?

    python analysis_scripts/fig_energy.py [--study studies/demo] [--smoke]

Energy share of convolution, linear, norm and bias tensors over epochs.
"""

import _figure

from landscape.plot import static

SETTING = "noisy"


def compute(perturbation_history):
    """The runs of the setting that is drawn."""
    return [perturbation_history.isel(run=perturbation_history.setting.to_numpy() == SETTING)]


def draw(perturbation_history):
    """One figure from one result."""
    return static.energy_over_time(perturbation_history, setting=SETTING)


if __name__ == "__main__":
    _figure.main(__file__, ["perturbation_history"], compute, draw)
