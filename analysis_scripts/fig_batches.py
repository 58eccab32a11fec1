"""How sharp is the loss of a single mini-batch?

    python analysis_scripts/fig_batches.py [--study studies/curvature] [--smoke]

The largest eigenvalue on each of eight batches, and on all examples. Study: `curvature.toml`.
"""

import _figure

from landscape.plot import static


def compute(minibatch_eigenvalues):
    """The runs of the first setting."""
    settings = minibatch_eigenvalues.setting.to_numpy()
    return [minibatch_eigenvalues.isel(run=settings == settings[0])]


def draw(minibatch_eigenvalues):
    """One figure from one result."""
    return static.minibatch_eigenvalues(minibatch_eigenvalues)


if __name__ == "__main__":
    _figure.main(__file__, ["minibatch_eigenvalues"], compute, draw)
