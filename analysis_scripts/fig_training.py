"""Does the step or the data decide how sharp the solution gets?

    python analysis_scripts/fig_training.py [--study studies/curvature] [--smoke]

The largest Hessian eigenvalue at every epoch, beside the edges of stability of SGD and SAM.
Study: `curvature.toml`.
"""

import _figure

from landscape.plot import static


def compute(training_curvature):
    """The runs of the first setting."""
    settings = training_curvature.setting.to_numpy()
    return [training_curvature.isel(run=settings == settings[0])]


def draw(training_curvature):
    """One figure from one result."""
    return static.training_curvature(training_curvature)


if __name__ == "__main__":
    _figure.main(__file__, ["training_curvature"], compute, draw)
