"""Which measurements a study can ask for, with the options it may set.

Each function takes a `Bench` and keyword options; its signature is the list of options of
[measure.<name>] and their defaults.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import xarray as xr

from landscape.study.bench import Bench

Options = Mapping[str, Any]


def _top_eigenvalues(
    bench: Bench, *, k: int = 5, which: str = "largest", tolerance: float = 0.0, max_hvps: int = 0
) -> xr.Dataset:
    from landscape import measure

    return measure.top_eigenvalues(
        bench.risk(),
        bench.theta,
        k=k,
        which=which,
        tolerance=tolerance or None,
        max_hvps=max_hvps or None,
        seed=bench.seed,
    )


def _hessian_trace(bench: Bench, *, num_probes: int = 32) -> xr.Dataset:
    from landscape import measure

    return measure.hessian_trace(bench.risk(), bench.theta, num_probes=num_probes, seed=bench.seed)


def _spectral_density(bench: Bench, *, num_probes: int = 4, num_nodes: int = 40) -> xr.Dataset:
    from landscape import measure

    return measure.spectral_density(
        bench.risk(), bench.theta, num_probes=num_probes, num_nodes=num_nodes, seed=bench.seed
    )


def _sharpness(
    bench: Bench,
    *,
    rho: tuple[float, ...] = (0.05, 0.1, 0.2, 0.4),
    ascent_steps: int = 10,
    restarts: int = 0,
    num_pairs: int = 8,
) -> xr.Dataset:
    from landscape import measure

    return measure.sharpness(
        bench.risk(),
        bench.theta,
        rho=list(rho),
        ascent_steps=ascent_steps,
        restarts=restarts,
        num_pairs=num_pairs,
        seed=bench.seed,
    )


def _slice(
    bench: Bench, name: str, bn: str, radius: float, points: int, fine_points: int, options: Options
) -> xr.Dataset:
    """Two windows in one call: `points` in [-radius, radius], `fine_points` in a quarter of it."""
    from landscape import measure

    wide = measure.symmetric_grid("alpha", radius, points)
    near = measure.symmetric_grid("alpha", radius / 4, fine_points)
    options = {**options, "alphas": np.union1d(wide, near)}
    # Recalibration and full-batch statistics have no meaning without BatchNorm; the risk says so.
    return measure.loss_slice(
        bench.risk(), bench.theta, bn=bn, name=name, seed=bench.seed, **options
    )


def _loss_slice(
    bench: Bench,
    *,
    num_directions: int = 8,
    points: int = 17,
    fine_points: int = 9,
    radius: float = 1.0,
    normalize: str = "filter",
    one_d: str = "zero",
    bn: str = "recalibrate",
) -> xr.Dataset:
    options = {"num_directions": num_directions, "normalize": normalize, "one_d": one_d}
    return _slice(bench, "loss_slice", bn, radius, points, fine_points, options)


def _loss_slice_eval(
    bench: Bench,
    *,
    num_directions: int = 8,
    points: int = 17,
    fine_points: int = 9,
    radius: float = 1.0,
    normalize: str = "filter",
    one_d: str = "zero",
    bn: str = "eval",
) -> xr.Dataset:
    options = {"num_directions": num_directions, "normalize": normalize, "one_d": one_d}
    return _slice(bench, "loss_slice_eval", bn, radius, points, fine_points, options)


def _loss_plane(
    bench: Bench,
    *,
    points: int = 21,
    radius: float = 1.0,
    normalize: str = "filter",
    one_d: str = "zero",
    bn: str = "recalibrate",
) -> xr.Dataset:
    from landscape import measure

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


def _gradient_zscores(bench: Bench, *, percentile: float = 0.95) -> xr.Dataset:
    from landscape import measure

    return measure.gradient_zscores(bench.risk(), bench.theta, percentile=percentile)


def _perturbation(bench: Bench, *, batch_size: int = 256, bn: str = "batch") -> xr.Dataset | None:
    from landscape import measure

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


def _mask_overlap(
    bench: Bench,
    *,
    variants: tuple[str, ...] = ("zsharp", "topk_gradient", "ssam_f", "ssam_d", "random_mask"),
    batch_size: int = 256,
    bn: str = "batch",
) -> xr.Dataset:
    from landscape import measure

    return measure.mask_overlap(
        bench.risk(),
        bench.theta,
        variants=bench.counterfactuals(variants),
        batch_size=bench.at_most(batch_size),
        bn=bn,
        seed=bench.seed,
    )


def _mask_persistence(bench: Bench) -> xr.Dataset | None:
    return bench.history("mask_persistence")


def _history(bench: Bench) -> xr.Dataset | None:
    return bench.history("history")


def _perturbation_history(bench: Bench) -> xr.Dataset | None:
    return bench.history("perturbation_history")


def _generalization(bench: Bench, *, num_bins: int = 15) -> xr.Dataset:
    from landscape import measure

    return measure.generalization(
        bench.split_risks(), bench.theta, clean_targets=bench.clean_targets(), num_bins=num_bins
    )


def _crosscheck(bench: Bench, *, num_probes: int = 30, max_iterations: int = 100) -> xr.Dataset:
    from landscape import measure

    return measure.crosscheck(
        bench.risk(),
        bench.theta,
        num_probes=num_probes,
        max_iterations=max_iterations,
        seed=bench.seed,
    )


MEASUREMENTS: Mapping[str, Callable[..., xr.Dataset | None]] = {
    "generalization": _generalization,
    "history": _history,
    "perturbation_history": _perturbation_history,
    "mask_persistence": _mask_persistence,
    "top_eigenvalues": _top_eigenvalues,
    "hessian_trace": _hessian_trace,
    "spectral_density": _spectral_density,
    "sharpness": _sharpness,
    "gradient_zscores": _gradient_zscores,
    "perturbation": _perturbation,
    "mask_overlap": _mask_overlap,
    "loss_slice": _loss_slice,
    "loss_slice_eval": _loss_slice_eval,
    "loss_plane": _loss_plane,
    "crosscheck": _crosscheck,
}
FIRST_SEED_ONLY = ("spectral_density", "mask_overlap", "loss_plane", "crosscheck")


def options_of(name: str) -> dict[str, Any]:
    """Options of [measure.<name>] with their defaults."""
    parameters = inspect.signature(MEASUREMENTS[name]).parameters.values()
    return {
        p.name: list(p.default) if isinstance(p.default, tuple) else p.default
        for p in parameters
        if p.kind is inspect.Parameter.KEYWORD_ONLY
    }


def measure_run(bench: Bench, name: str, options: Options) -> xr.Dataset | None:
    """One measurement of one run; None where the run has nothing of the kind (masks of SGD)."""
    return MEASUREMENTS[name](bench, **options)
