"""Do perturbations point where the loss curves?

    python analysis_scripts/fig_alignment.py [--study studies/curvature] [--smoke]

Energy of gradient and perturbations in the top eigenspace, against a random direction with the
same energy per tensor and an isotropic one. Study: `curvature.toml`.
"""

import _figure

from landscape.plot import static


def compute(alignment):
    """The runs of the first setting."""
    settings = alignment.setting.to_numpy()
    return [alignment.isel(run=settings == settings[0])]


def draw(alignment):
    """One figure from one result."""
    return static.alignment(alignment)


if __name__ == "__main__":
    _figure.main(__file__, ["alignment"], compute, draw)
