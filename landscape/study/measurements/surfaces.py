"""The loss on lines and planes around the solution."""

from collections.abc import Callable, Mapping

import numpy as np
import xarray as xr

from landscape import measure
from landscape.study.bench import Bench


def _slices(name: str, mode: str) -> Callable[..., xr.Dataset]:
    """loss_slice under a name of its own, because BatchNorm modes are never mixed."""

    def loss_slice(
        bench: Bench,
        *,
        num_directions: int = 8,
        points: int = 17,
        fine_points: int = 9,
        radius: float = 1.0,
        normalize: str = "filter",
        one_d: str = "zero",
        bn: str = mode,
    ) -> xr.Dataset:
        """Two windows: `points` in [-radius, radius], `fine_points` in a quarter of it."""
        wide = measure.symmetric_grid("alpha", radius, points)
        near = measure.symmetric_grid("alpha", radius / 4, fine_points)
        return measure.loss_slice(
            bench.risk(),
            bench.theta,
            alphas=np.union1d(wide, near),
            num_directions=num_directions,
            normalize=normalize,
            one_d=one_d,
            bn=bn,
            name=name,
            seed=bench.seed,
        )

    return loss_slice


def loss_plane(
    bench: Bench,
    *,
    points: int = 21,
    radius: float = 1.0,
    normalize: str = "filter",
    one_d: str = "zero",
    bn: str = "recalibrate",
) -> xr.Dataset:
    """Loss on the plane of two random directions."""
    return measure.loss_plane(
        bench.risk(),
        bench.theta,
        points=points,
        radius=radius,
        normalize=normalize,
        one_d=one_d,
        bn=bn,
        seed=bench.seed,
    )


MEASUREMENTS: Mapping[str, Callable[..., xr.Dataset | None]] = {
    "loss_slice": _slices("loss_slice", "recalibrate"),
    "loss_slice_eval": _slices("loss_slice_eval", "eval"),
    "loss_plane": loss_plane,
}
FIRST_SEED_ONLY = ("loss_plane",)
