"""Which filters of a layer does a mask select?

    python analysis_scripts/fig_filters.py [--study studies/masks] [--smoke]

Share of the snapshots in which a filter is selected, over the layer's mean. Study: `masks.toml`.
"""

import _figure

from landscape.plot import static

SETTING = "noisy"


def compute(mask_filters):
    """The first seeds of the setting."""
    first = (mask_filters.setting == SETTING) & (mask_filters.seed == 0)
    return [mask_filters.isel(run=first.to_numpy())]


def draw(mask_filters):
    """One figure from one result."""
    return static.mask_filters(mask_filters, setting=SETTING)


if __name__ == "__main__":
    _figure.main(__file__, ["mask_filters"], compute, draw)
