"""The loss on lines and planes around the solution."""

import math
from collections.abc import Sequence

import numpy as np
import torch
import xarray as xr

from landscape import measure, plane
from landscape.errors import LandscapeError
from landscape.linalg import lanczos
from landscape.measure.perturbations.counterfactual import BATCH_BN
from landscape.measure.surfaces.paths import perturbations
from landscape.risk import BNMode, EmpiricalRisk
from landscape.study.finished_run import FinishedRun
from landscape.study.measurements.outcome import SPLITS
from landscape.study.measurements.perturbations import has_statistics
from landscape.study.measurements.record import (
    FORWARD,
    PRODUCT,
    Measure,
    Options,
    Record,
    Work,
)
from landscape.study.spec import fingerprint

KINDS = ("random", "eigenvectors", "gradient", "perturbations")


def _slices(name: str, mode: BNMode) -> Measure:
    """loss_slice under a name of its own, because BatchNorm modes are never mixed."""

    def loss_slice(
        done: FinishedRun,
        *,
        num_directions: int,
        points: int,
        fine_points: int = 9,
        radius: float,
        normalize: str,
        one_d: str,
        bn: BNMode = mode,
        also: tuple[str, ...],
    ) -> xr.Dataset:
        """Loss along random directions: two windows, the inner one a quarter as wide."""
        wide = measure.symmetric_grid("alpha", radius, points)
        near = measure.symmetric_grid("alpha", radius / 4, fine_points)
        return measure.loss_slice(
            done.risk(),
            done.theta,
            alphas=np.union1d(wide, near),
            num_directions=num_directions,
            normalize=normalize,
            one_d=one_d,
            bn=bn,
            also=_companions(done, name, also),
            name=name,
            seed=done.seed,
        )

    return loss_slice


def loss_plane(
    done: FinishedRun,
    *,
    kind: str = "random",
    points: int,
    radius: float,
    alpha_range: tuple[float, ...] = (),
    beta_range: tuple[float, ...] = (),
    beta_points: int = 0,
    normalize: str,
    one_d: str,
    bn: BNMode,
    also: tuple[str, ...],
    tolerance: float,
    tiles: bool,
    variants: tuple[str, ...] = (),
) -> xr.Dataset:
    """Loss on a plane.

    kind: two random directions; the top two "eigenvectors"; the "gradient" and what is left of the
    Hessian times it; or the "perturbations" of two `variants`. All but the random ones are
    orthonormal, so that radius and ranges are distances. alpha_range, beta_range: [low, high]
    instead of the radius. also: splits whose loss is drawn as well, ["test"]. tolerance: relative
    error of an adaptive grid, 0 evaluates every cell. tiles: keep finished parts on disk, so that a
    killed grid goes on.
    """
    axes = [
        _axis(name, ends, count, radius)
        for name, ends, count in (
            ("alpha", alpha_range, points),
            ("beta", beta_range, beta_points or points),
        )
    ]
    options = [kind, *(axis.tolist() for axis in axes), normalize, one_d, bn, list(also), tolerance]
    options += [list(variants), done.seed, done.job.spec.examples, done.job.spec.split]
    return measure.loss_plane(
        done.risk(),
        done.theta,
        directions=_directions(done, kind, variants),
        alphas=axes[0],
        betas=axes[1],
        normalize=normalize,
        one_d=one_d,
        bn=bn,
        also=_companions(done, "loss_plane", also),
        tolerance=tolerance or None,
        # Other options have other tiles.
        tiles=done.job.folder / "tiles" / f"loss_plane-{fingerprint(options)}" if tiles else None,
        seed=done.seed,
    )


def curvature_map(
    done: FinishedRun,
    *,
    points: int,
    radius: float,
    normalize: str,
    one_d: str,
    bn: BNMode,
    tolerance: float,
    max_hvps: int,
) -> xr.Dataset:
    """Extreme Hessian eigenvalues over the plane of two random directions."""
    return measure.curvature_map(
        done.risk(),
        done.theta,
        points=points,
        radius=radius,
        normalize=normalize,
        one_d=one_d,
        bn=bn,
        tolerance=tolerance,
        max_hvps=max_hvps,
        seed=done.seed,
    )


def trajectory(done: FinishedRun, *, grid: int = 8, margin: float, bn: BNMode) -> xr.Dataset | None:
    """The training's checkpoints on their principal plane; None where there is but one."""
    if done.run.weights is not None and len(done.run.trail) < 2:
        return None
    if done.run.weights is None and not done.run.training["keep_every"]:
        raise LandscapeError(
            f"[measure.trajectory] needs checkpoints of the training, and {done.run.run_id} kept "
            f"none; set training.keep_every = 1 (epochs between two of them) and train again."
        )
    kept = done.checkpoints()
    return measure.trajectory(
        done.risk(), list(kept.values()), epochs=list(kept), grid=grid, margin=margin, bn=bn
    )


def interpolation(done: FinishedRun, *, points: int, bn: BNMode) -> xr.Dataset | None:
    """The line from a training's initial weights to its solution; None for those from elsewhere."""
    if done.run.weights is not None:
        return None
    start = done.checkpoints()[0]
    return measure.interpolation(done.risk(), start, end=done.theta, points=points, bn=bn)


def perturbation_slice(
    done: FinishedRun,
    *,
    variants: tuple[str, ...] = ("sam", "zsharp"),
    batch_size: int,
    batch_bn: str,
    points: int,
    radius: float,
    bn: BNMode,
) -> xr.Dataset:
    """Loss along what several variants would perturb here, on their batch and on all examples."""
    return measure.perturbation_slice(
        done.risk(),
        done.theta,
        variants=done.counterfactuals(variants),
        batch_size=done.at_most(batch_size),
        batch_bn=batch_bn,
        points=points,
        radius=radius,
        bn=bn,
        seed=done.seed,
    )


def _axis(name: str, ends: Sequence[float], points: int, radius: float) -> np.ndarray:
    """A symmetric grid, or `points` from low to high that hold 0 exactly."""
    if not ends:
        return measure.symmetric_grid(name, radius, points)
    if len(ends) != 2 or not ends[0] <= 0 <= ends[1] or ends[0] == ends[1] or points < 2:
        raise LandscapeError(
            f"[measure.loss_plane] {name}_range = {list(ends)} with {points} points; give [low, "
            f"high] with low <= 0 <= high, of some width, and two points or more."
        )
    grid = np.linspace(ends[0], ends[1], points)
    nearest = int(np.abs(grid).argmin())
    if abs(grid[nearest]) > 1e-9 * (ends[1] - ends[0]):
        raise LandscapeError(
            f"[measure.loss_plane] {points} points in {name}_range = {list(ends)} leave out "
            f"{name} = 0, the checkpoint itself; choose a number of points that meets 0."
        )
    grid[nearest] = 0.0
    return grid


def _companions(done: FinishedRun, name: str, also: Sequence[str]) -> dict[str, EmpiricalRisk]:
    """Risks over whole other splits, by the name of the split."""
    splits = done.split_risks() if also else {}
    unknown = [split for split in also if split not in splits]
    if unknown:
        raise LandscapeError(
            f"[measure.{name}] also = {list(also)}: the data {done.run.problem.data!r} have no "
            f"split {unknown[0]!r}; they have {', '.join(splits)}."
        )
    return {split: splits[split] for split in also}


def _directions(done: FinishedRun, kind: str, variants: Sequence[str]) -> plane.Plane | None:
    """The plane of a kind; None for random directions, which `measure` draws itself."""
    if kind == "random":
        return None
    risk, theta = done.risk(), done.theta
    if kind == "eigenvectors":
        pairs = lanczos.top(
            risk.linearized_hvp(theta),
            theta.numel(),
            k=2,
            generator=torch.Generator().manual_seed(done.seed),
            dtype=risk.dtype,
            device=risk.device,
            like=theta,
        )
        return plane.eigenvectors(theta, pairs.vectors, gradient=risk.gradient(theta))
    if kind == "gradient":
        first = risk.gradient(theta)
        named = {"gradient": first, "Hessian · gradient": risk.hvp(theta, first)}
    else:
        if len(variants) != 2:
            raise LandscapeError(
                f"[measure.loss_plane] kind = 'perturbations' needs two variants, and variants = "
                f"{list(variants)}; name two, such as ['sam', 'zsharp']."
            )
        named, _ = perturbations(
            risk,
            theta,
            variants=done.counterfactuals(variants),
            batch_size=done.at_most(64),
            seed=done.seed,
        )
    return plane.perturbations(theta, named, orthogonalize=True)


def _slice(o: Options, _work: Work) -> float:
    # The two windows share about half of the fine one's points.
    points = o["points"] + o["fine_points"] // 2
    return (o["num_directions"] * (points - 1) + 1) * FORWARD


def _plane(o: Options, _work: Work) -> float:
    return o["points"] * (o["beta_points"] or o["points"]) * FORWARD


def _two_windows(o: Options, _examples: int) -> None:
    measure.symmetric_grid("alpha", o["radius"], o["points"])
    measure.symmetric_grid("alpha", o["radius"] / 4, o["fine_points"])


def _both_axes(o: Options, _examples: int) -> None:
    for name, count in (("alpha", o["points"]), ("beta", o["beta_points"] or o["points"])):
        _axis(name, o[f"{name}_range"], count, o["radius"])
    if o["kind"] == "perturbations" and len(o["variants"]) != 2:
        raise LandscapeError(
            f"kind = 'perturbations' needs two variants, and variants = {list(o['variants'])}; "
            f"name two, such as ['sam', 'zsharp']."
        )


def _symmetric(o: Options, _examples: int) -> None:
    measure.symmetric_grid("alpha", o["radius"], o["points"])


def _has_splits(o: Options, done: FinishedRun) -> None:
    for split in o["also"]:
        if getattr(done.data, split) is None:
            raise LandscapeError(
                f"also = {list(o['also'])}: the data {done.run.problem.data!r} have no {split!r}."
            )


_AXES = {"normalize": plane.NORMALIZATIONS, "one_d": plane.ONE_D}
RECORDS = (
    Record(
        _slices("loss_slice", "recalibrate"),
        cost=_slice,
        named="loss_slice",
        above=("radius",),
        agree=_two_windows,
        fits=_has_splits,
        default=True,
        choices={**_AXES, "also": SPLITS},
    ),
    Record(
        _slices("loss_slice_eval", "eval"),
        cost=_slice,
        named="loss_slice_eval",
        above=("radius",),
        agree=_two_windows,
        fits=_has_splits,
        of=(measure.loss_slice,),
        differs={"bn": "the slice with frozen statistics stands beside the recalibrated one"},
        default=True,
        choices={**_AXES, "also": SPLITS},
    ),
    Record(
        loss_plane,
        cost=_plane,
        above=("radius",),
        agree=_both_axes,
        fits=_has_splits,
        default=True,
        first_seed_only=True,
        choices={"kind": KINDS, **_AXES, "also": SPLITS},
        least={"alpha_range": -math.inf, "beta_range": -math.inf},
        variants=("variants",),
    ),
    Record(
        curvature_map,
        above=("radius", "tolerance"),
        least={"max_hvps": 2},  # of two eigenvalues a point
        below={"tolerance": 1},
        agree=_symmetric,
        cost=lambda o, _: o["points"] ** 2 * PRODUCT * min(o["max_hvps"], 60),
        first_seed_only=True,
        choices={"bn": ("eval", "full_batch"), **_AXES},
    ),
    Record(
        trajectory,
        cost=lambda o, work: (
            4 * (o["grid"] * (1 + o["margin"])) ** 2 * FORWARD + 2 * work.checkpoints * FORWARD
        ),
        along_training=True,
        most={"margin": 10},
        first_seed_only=True,
        differs={"grid": "a study draws the plane; a call may project on more than two axes"},
    ),
    Record(
        interpolation,
        cost=lambda o, _: 2 * o["points"] * FORWARD,
        first_seed_only=True,
    ),
    Record(
        perturbation_slice,
        fits=has_statistics,
        above=("radius",),
        agree=_symmetric,
        cost=lambda o, _: len(o["variants"]) * (2 + o["points"] * FORWARD),
        first_seed_only=True,
        choices={"batch_bn": BATCH_BN},
        variants=("variants",),
    ),
)
