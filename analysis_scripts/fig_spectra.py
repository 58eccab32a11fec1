"""What does the whole spectrum look like, and how sure is that?

    python analysis_scripts/fig_spectra.py [--study studies/curvature] [--smoke]

Densities of three solutions on one grid with their band over probes, effective dimension, and
negative eigenvalues. Study: `curvature.toml`.
"""

import _figure

from landscape.plot import static


def compute(spectral_density):
    """The runs of the first setting."""
    settings = spectral_density.setting.to_numpy()
    return [spectral_density.isel(run=settings == settings[0])]


def draw(spectral_density):
    """One figure from one result."""
    return static.spectral_views(spectral_density)


if __name__ == "__main__":
    _figure.main(__file__, ["spectral_density"], compute, draw)
