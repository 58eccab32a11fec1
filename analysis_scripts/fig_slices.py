"""How does the loss rise along random directions, and how much of that is BatchNorm?

    python analysis_scripts/fig_slices.py [--study studies/demo] [--smoke]

Filter-normalized directions shared by all runs; recalibrated statistics beside frozen ones.
"""

import _figure

from landscape.plot import static

SETTING = "noisy"


def compute(recalibrated, frozen):
    """The runs of the setting that is drawn, in both modes."""
    pair = (recalibrated, frozen)
    return [ds.isel(run=ds.setting.to_numpy() == SETTING)[["loss"]] for ds in pair]


def draw(recalibrated, frozen):
    """Two windows; the two modes in columns of their own."""
    return static.loss_slice(recalibrated, frozen, setting=SETTING)


if __name__ == "__main__":
    _figure.main(__file__, ["loss_slice", "loss_slice_eval"], compute, draw)
