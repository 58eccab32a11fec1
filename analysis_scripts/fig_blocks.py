"""Which modules curve?

    python analysis_scripts/fig_blocks.py [--study studies/curvature] [--smoke]

Share of the trace of the Hessian per module beside its share of the parameters, and the largest
eigenvalue of each block. Study: `curvature.toml`.
"""

import _figure

from landscape.plot import static


def compute(block_curvature):
    """The runs of the first setting."""
    settings = block_curvature.setting.to_numpy()
    return [block_curvature.isel(run=settings == settings[0])]


def draw(block_curvature):
    """One figure from one result."""
    return static.block_curvature(block_curvature)


if __name__ == "__main__":
    _figure.main(__file__, ["block_curvature"], compute, draw)
