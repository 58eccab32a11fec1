"""Is the surface around SAM's solutions lower than that around SGD's?

    python analysis_scripts/fig_differences.py [--study studies/surfaces] [--smoke]

Log ratio of losses on the same plane, paired over seeds; dots: the interval excludes 0.
The study: analysis_scripts/surfaces.toml.
"""

import _figure

from landscape.plot import static

SETTING = "noisy"


def compute(loss_plane):
    """The runs of the setting that is drawn."""
    return [loss_plane.isel(run=loss_plane.setting.to_numpy() == SETTING)]


def draw(loss_plane):
    """One figure from one result."""
    return static.plane_difference(loss_plane, setting=SETTING)


if __name__ == "__main__":
    _figure.main(__file__, ["loss_plane"], compute, draw)
