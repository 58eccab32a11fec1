"""What the model learned and how it was trained."""

from collections.abc import Callable, Mapping

import xarray as xr

from landscape import measure
from landscape.study.bench import Bench


def generalization(bench: Bench, *, num_bins: int = 15) -> xr.Dataset:
    """Loss, accuracy and calibration on every split."""
    return measure.generalization(
        bench.split_risks(), bench.theta, clean_targets=bench.clean_targets(), num_bins=num_bins
    )


def history(bench: Bench) -> xr.Dataset | None:
    """Loss, accuracy and learning rate of every epoch."""
    return bench.history("history")


MEASUREMENTS: Mapping[str, Callable[..., xr.Dataset | None]] = {
    "generalization": generalization,
    "history": history,
}
FIRST_SEED_ONLY = ()
