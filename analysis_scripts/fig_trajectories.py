"""Which way does each training go, and does its plane show what it saw?

    python analysis_scripts/fig_trajectories.py [--study studies/surfaces] [--smoke]

Principal planes with their random-walk null, residuals and true losses beside drawn ones.
The study: analysis_scripts/surfaces.toml.
"""

import _figure

from landscape.plot import static

SETTING = "noisy"


def compute(trajectory):
    """The runs of the setting that is drawn."""
    return [trajectory.isel(run=trajectory.setting.to_numpy() == SETTING)]


def draw(trajectory):
    """One figure from one result."""
    return static.trajectory(trajectory, setting=SETTING)


if __name__ == "__main__":
    _figure.main(__file__, ["trajectory"], compute, draw)
