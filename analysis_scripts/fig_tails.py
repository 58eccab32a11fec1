"""How heavy are the tails that a z-score filter keeps?

    python analysis_scripts/fig_tails.py [--study studies/masks] [--smoke]

Exceedance, normal quantiles and Lorenz curve of the gradient per tensor. Study: `masks.toml`.
"""

import _figure

from landscape.plot import static

SETTING = "noisy"


def compute(gradient_zscores):
    """What is drawn, of the first seeds of three variants."""
    first = (gradient_zscores.setting == SETTING) & (gradient_zscores.seed == 0)
    shown = first & gradient_zscores.variant.isin(["sgd", "sam", "zsharp"])
    runs = gradient_zscores.isel(run=shown.to_numpy())
    drawn = [
        "exceedance", "z_quantile", "lorenz", "threshold", "kept_share", "captured_energy", "flag",
        "reference_exceedance", "reference_quantile", "reference_lorenz",
    ]  # fmt: skip
    return [runs[drawn]]


def draw(gradient_zscores):
    """One figure from one result."""
    return static.zscore_tails(gradient_zscores, setting=SETTING)


if __name__ == "__main__":
    _figure.main(__file__, ["gradient_zscores"], compute, draw)
