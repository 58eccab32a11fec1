"""What do the surfaces around SGD's and SAM's solutions look like?

    python analysis_scripts/fig_hero.py [--study studies/hero] [--smoke]

Every one of the 51 x 51 cells is evaluated and drawn, on one linear scale (arXiv:1712.09913 draws a
logarithm). An illustration, not evidence. The same surfaces as meshes: `landscape convert
studies/hero/results/loss_plane.nc hero.glb` (or `.vts`). The study: analysis_scripts/hero.toml.
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
    return static.surface_pair(loss_plane, setting=SETTING)


if __name__ == "__main__":
    _figure.main(__file__, ["loss_plane"], compute, draw)
