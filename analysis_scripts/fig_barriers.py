"""Do the variants end in different basins?

    python analysis_scripts/fig_barriers.py [--study studies/surfaces] [--smoke]

Barriers on straight lines between all pairs of runs (arXiv:1912.05671); seed by seed.
The study: analysis_scripts/surfaces.toml.
"""

import _figure

from landscape.plot import static

SETTING = "noisy"


def compute(barrier):
    """The runs of the setting that is drawn."""
    return [barrier.isel(run=barrier.setting.to_numpy() == SETTING)]


def draw(barrier):
    """One figure from one result."""
    return static.barrier(barrier, setting=SETTING)


if __name__ == "__main__":
    _figure.main(__file__, ["barrier"], compute, draw)
