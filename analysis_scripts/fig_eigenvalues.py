"""How sharp is the sharpest direction, and how sure is that?

    python analysis_scripts/fig_eigenvalues.py [--study studies/demo] [--smoke]

The five leading Hessian eigenvalues per variant with residual bounds; unconverged ones hollow.
"""

import _figure

from landscape.plot import static

SETTING = "noisy"


def compute(top_eigenvalues):
    """The runs of the setting that is drawn."""
    return [top_eigenvalues.isel(run=top_eigenvalues.setting.to_numpy() == SETTING)]


def draw(top_eigenvalues):
    """One figure from one result."""
    return static.top_eigenvalues(top_eigenvalues, setting=SETTING)


if __name__ == "__main__":
    _figure.main(__file__, ["top_eigenvalues"], compute, draw)
