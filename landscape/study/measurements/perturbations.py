"""What the variants perturb."""

from collections.abc import Callable, Mapping

import xarray as xr

from landscape import measure
from landscape.study.bench import Bench


def perturbation_history(bench: Bench) -> xr.Dataset | None:
    """What was perturbed, epoch by epoch."""
    return bench.history("perturbation_history")


def mask_persistence(bench: Bench) -> xr.Dataset | None:
    """Overlap of recorded masks over the steps between them."""
    return bench.history("mask_persistence")


def gradient_zscores(bench: Bench, *, percentile: float = 0.95) -> xr.Dataset:
    """The standardized gradient of every tensor."""
    return measure.gradient_zscores(bench.risk(), bench.theta, percentile=percentile)


def perturbation(bench: Bench, *, batch_size: int = 256, bn: str = "batch") -> xr.Dataset | None:
    """What the run's own variant perturbs here; None for plain SGD."""
    if bench.run.recipe == "sgd":
        return None
    return measure.perturbation(
        bench.risk(),
        bench.theta,
        variant=bench.variant(),
        state=bench.slots(),
        batch_size=bench.at_most(batch_size),
        bn=bn,
        seed=bench.seed,
    )


def mask_overlap(
    bench: Bench,
    *,
    variants: tuple[str, ...] = ("zsharp", "topk_gradient", "ssam_f", "ssam_d", "random_mask"),
    batch_size: int = 256,
    bn: str = "batch",
) -> xr.Dataset:
    """Overlap of the masks that several variants would draw here."""
    return measure.mask_overlap(
        bench.risk(),
        bench.theta,
        variants=bench.counterfactuals(variants),
        batch_size=bench.at_most(batch_size),
        bn=bn,
        seed=bench.seed,
    )


MEASUREMENTS: Mapping[str, Callable[..., xr.Dataset | None]] = {
    "perturbation_history": perturbation_history,
    "mask_persistence": mask_persistence,
    "gradient_zscores": gradient_zscores,
    "perturbation": perturbation,
    "mask_overlap": mask_overlap,
}
FIRST_SEED_ONLY = ("mask_overlap",)
