"""How much does the loss rise within a radius, in the worst and in a random direction?

    python analysis_scripts/fig_sharpness.py [--study studies/demo] [--smoke]

Loss increase against the radius, and its ratio to SGD.
"""

import _figure

from landscape.plot import static

SETTING = "noisy"
SHOWN = ("sgd", "sam", "asam", "zsharp")  # the others are pale


def compute(sharpness):
    """The runs of the setting that is drawn."""
    return [sharpness.isel(run=sharpness.setting.to_numpy() == SETTING)]


def draw(sharpness):
    """One figure from one result."""
    return static.sharpness(sharpness, setting=SETTING, highlight=SHOWN)


if __name__ == "__main__":
    _figure.main(__file__, ["sharpness"], compute, draw)
