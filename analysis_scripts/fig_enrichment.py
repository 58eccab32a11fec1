"""Do the masks pick what is curved, informative or large?

    python analysis_scripts/fig_enrichment.py [--study studies/masks] [--smoke]

Share of curvature, Fisher information and weight in each mask over chance, with the interval of
random masks of the same densities; the random mask is a single draw. Study: `masks.toml`.
"""

import _figure

from landscape.plot import static

SETTING = "noisy"


def compute(enrichment):
    """The runs of the setting that is drawn."""
    return [enrichment.isel(run=enrichment.setting.to_numpy() == SETTING)]


def draw(enrichment):
    """One figure from one result."""
    return static.enrichment(enrichment, setting=SETTING)


if __name__ == "__main__":
    _figure.main(__file__, ["enrichment"], compute, draw)
