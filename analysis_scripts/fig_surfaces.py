"""What do the basins look like as surfaces?

    python analysis_scripts/fig_surfaces.py [--study studies/surfaces] [--smoke]

Filter-normalized random planes in three dimensions. An illustration, not evidence.
The study: analysis_scripts/surfaces.toml.
"""

import _figure

from landscape.plot import static

SETTING = "noisy"


def compute(loss_plane):
    """The first seed in the setting that is drawn."""
    kept = (loss_plane.setting.to_numpy() == SETTING) & (loss_plane.seed.to_numpy() == 0)
    return [loss_plane.isel(run=kept)]


def draw(loss_plane):
    """One figure from one result."""
    return static.loss_surface(loss_plane, setting=SETTING)


if __name__ == "__main__":
    _figure.main(__file__, ["loss_plane"], compute, draw)
