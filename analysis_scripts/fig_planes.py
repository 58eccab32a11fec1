"""What does the loss look like on a random plane through each solution?

    python analysis_scripts/fig_planes.py [--study studies/demo] [--smoke]

Filter-normalized planes (arXiv:1712.09913), shared levels. An illustration, not evidence.
"""

import _figure

from landscape.plot import static

SETTING = "noisy"
SHOWN = ("sgd", "sam", "asam", "zsharp")  # the others are pale


def compute(loss_plane):
    """The runs of the setting that is drawn."""
    return [loss_plane.isel(run=loss_plane.setting.to_numpy() == SETTING)]


def draw(loss_plane):
    """One figure from one result."""
    return static.loss_plane(loss_plane, setting=SETTING, highlight=SHOWN)


if __name__ == "__main__":
    _figure.main(__file__, ["loss_plane"], compute, draw)
