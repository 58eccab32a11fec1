"""Which tensors does the perturbation's energy go to, epoch by epoch?

    python analysis_scripts/fig_energy_map.py [--study studies/masks] [--smoke]

Share of the energy per tensor and epoch, in depth order. Study: `masks.toml`.
"""

import _figure

from landscape.plot import static

SETTING = "noisy"


def compute(perturbation_history):
    """What is drawn, of the runs of the setting."""
    runs = perturbation_history.isel(run=perturbation_history.setting.to_numpy() == SETTING)
    return [runs[["energy_share"]]]


def draw(perturbation_history):
    """One figure from one result."""
    return static.energy_map(perturbation_history, setting=SETTING)


if __name__ == "__main__":
    _figure.main(__file__, ["perturbation_history"], compute, draw)
