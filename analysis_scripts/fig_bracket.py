"""How much of the largest eigenvalue is the sample?

    python analysis_scripts/fig_bracket.py [--study studies/curvature] [--smoke]

The largest eigenvalue of subsets against their size, and the curvature that its eigenvector has
on the examples left out. Study: `curvature.toml`.
"""

import _figure

from landscape.plot import static


def compute(data_bracket):
    """The runs of the first setting."""
    settings = data_bracket.setting.to_numpy()
    return [data_bracket.isel(run=settings == settings[0])]


def draw(data_bracket):
    """One figure from one result."""
    return static.data_bracket(data_bracket)


if __name__ == "__main__":
    _figure.main(__file__, ["data_bracket"], compute, draw)
