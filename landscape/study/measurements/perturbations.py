"""What the variants perturb."""

from typing import Any

import xarray as xr

from landscape import measure, snapshots
from landscape.errors import LandscapeError
from landscape.measure.perturbations.counterfactual import BATCH_BN
from landscape.measure.perturbations.zscores import GROUPINGS, SOURCES
from landscape.study.finished_run import FinishedRun
from landscape.study.measurements.record import (
    FORWARD,
    LANCZOS,
    PRODUCT,
    Options,
    Record,
    Work,
    nothing,
)


def perturbation_history(done: FinishedRun) -> xr.Dataset | None:
    """What was perturbed, epoch by epoch."""
    return done.history("perturbation_history")


def mask_persistence(done: FinishedRun) -> xr.Dataset | None:
    """Overlap of recorded masks over the steps between them."""
    masks = _recorded(done)
    if masks is None:
        return None
    return measure.mask_persistence(masks, provenance=_said(masks))


def mask_selection(done: FinishedRun) -> xr.Dataset | None:
    """How often each coordinate was selected in the recorded masks."""
    masks = _recorded(done)
    return None if masks is None else measure.mask_selection(masks, provenance=_said(masks))


def mask_filters(done: FinishedRun, *, tensor: str = "") -> xr.Dataset | None:
    """Which filters of one layer were selected.

    tensor: its name; by default the first convolution of several input channels, or else the
    first convolution or matrix.
    """
    masks = _recorded(done)
    if masks is None:
        return None
    wide = [t for t in done.risk().layout.tensors if t.ndim > 1]
    wide = [t for t in wide if t.name == tensor] if tensor else wide
    if not wide:
        names = ", ".join(t.name for t in done.risk().layout.tensors if t.ndim > 1)
        raise LandscapeError(
            f"[measure.mask_filters] tensor = {tensor!r} is no tensor of two axes or more; "
            f"possible: {names or 'none'}."
        )
    convs = [t for t in wide if t.kind == "conv"]
    chosen = next((t for t in convs if t.shape[1] > 1), (convs or wide)[0])
    return measure.mask_filters(
        masks, tensor=chosen.name, shape=chosen.shape, provenance=_said(masks)
    )


def saved_mask_overlap(done: FinishedRun) -> xr.Dataset | None:
    """Overlap of the last recorded masks of a variant's seeds; kept with its first seed."""
    seeds = [run for run in done.job.peers if run.variant == done.run.variant]
    if not seeds or done.run != seeds[0] or done.run.weights is not None:
        return None
    found = {}
    for run in seeds:
        folder = done.recorded(run)
        masks = snapshots.read_masks(folder) if folder.is_dir() else ()
        if len(masks):
            found[f"seed {run.seed}"] = masks[len(masks) - 1]
    if len(found) < 2:
        return None
    kinds = {t.name: t.kind for t in done.risk().layout.tensors}
    return measure.saved_mask_overlap(found, kinds=kinds)


def _recorded(done: FinishedRun) -> snapshots.MaskSeries | None:
    """Masks of the run's training; None where fewer than two were recorded."""
    if done.run.weights is not None:
        return None
    masks = snapshots.read_masks(done.recorded(done.run))
    return masks if len(masks) > 1 else None


def _said(masks: snapshots.MaskSeries) -> dict[str, Any]:
    return {"steps": masks.steps.tolist(), "skipped": list(masks.skipped)}


def zscore_history(done: FinishedRun, *, percentile: float, most: int) -> xr.Dataset | None:
    """The standardized gradient of every tensor over the recorded steps of the training."""
    if done.run.weights is not None:
        return None
    recorded = snapshots.read_zscores(done.recorded(done.run))
    if len(recorded.steps) < 2:
        return None
    return measure.zscore_history(recorded, percentile=percentile, most=most)


def gradient_zscores(
    done: FinishedRun,
    *,
    percentile: float,
    source: str,
    grouping: str,
    batch_size: int,
    num_batches: int,
    bn: str,
) -> xr.Dataset:
    """The standardized gradient of every tensor."""
    return measure.gradient_zscores(
        done.risk(),
        done.theta,
        percentile=percentile,
        source=source,
        grouping=grouping,
        batch_size=done.at_most(batch_size),
        num_batches=num_batches,
        bn=bn,
        state=done.slots() if source == "residual" else None,
        seed=done.seed,
    )


def perturbation(done: FinishedRun, *, batch_size: int, bn: str) -> xr.Dataset | None:
    """What the run's own variant perturbs here; None for plain SGD."""
    variant = done.variant()
    if done.run.recipe == "sgd" or variant is None:
        return None
    return measure.perturbation(
        done.risk(),
        done.theta,
        variant=variant,
        state=done.slots(),
        batch_size=done.at_most(batch_size),
        bn=bn,
        seed=done.seed,
    )


def mask_overlap(
    done: FinishedRun,
    *,
    variants: tuple[str, ...] = ("zsharp", "topk_gradient", "ssam_f", "ssam_d", "random_mask"),
    batch_size: int,
    bn: str,
) -> xr.Dataset:
    """Overlap of the masks that several variants would draw here."""
    return measure.mask_overlap(
        done.risk(),
        done.theta,
        variants=done.counterfactuals(variants),
        batch_size=done.at_most(batch_size),
        bn=bn,
        seed=done.seed,
    )


def batch_overlap(
    done: FinishedRun,
    *,
    variants: tuple[str, ...] = ("zsharp", "topk_gradient", "random_mask"),
    batch_size: int,
    num_batches: int,
    bn: str,
) -> xr.Dataset:
    """Overlap of a variant's masks on different batches, and with that of all the examples."""
    return measure.batch_overlap(
        done.risk(),
        done.theta,
        variants=done.counterfactuals(variants),
        batch_size=done.at_most(batch_size),
        num_batches=num_batches,
        bn=bn,
        seed=done.seed,
    )


def perturbation_controls(
    done: FinishedRun, *, num_draws: int, batch_size: int, bn: str
) -> xr.Dataset | None:
    """The run's own perturbation beside random and top-gradient masks; None for plain SGD."""
    variant = done.variant()
    if done.run.recipe == "sgd" or variant is None:
        return None
    return measure.perturbation_controls(
        done.risk(),
        done.theta,
        variant=variant,
        state=done.slots(),
        num_draws=num_draws,
        batch_size=done.at_most(batch_size),
        bn=bn,
        seed=done.seed,
    )


def perturbation_cosines(
    done: FinishedRun,
    *,
    variants: tuple[str, ...] = ("sam", "zsharp", "topk_gradient", "sam_on", "fsam", "asam"),
    batch_size: int,
    bn: str,
) -> xr.Dataset:
    """Angles between the perturbations that several variants would make here."""
    return measure.perturbation_cosines(
        done.risk(),
        done.theta,
        variants=done.counterfactuals(variants),
        batch_size=done.at_most(batch_size),
        bn=bn,
        seed=done.seed,
    )


def enrichment(
    done: FinishedRun,
    *,
    variants: tuple[str, ...] = ("zsharp", "topk_gradient", "random_mask", "sam_on"),
    k: int,
    num_probes: int,
    fisher_examples: int,
    batch_size: int,
) -> xr.Dataset:
    """What the masks catch of curvature, Fisher information and weight, over chance."""
    return measure.enrichment(
        done.risk(),
        done.theta,
        variants=done.counterfactuals(variants),
        k=k,
        num_probes=num_probes,
        fisher_examples=fisher_examples,
        batch_size=done.at_most(batch_size),
        seed=done.seed,
    )


def gradient_noise(
    done: FinishedRun,
    *,
    batch_size: int,
    rho: float,
    ema: float,
    lr: float,
) -> xr.Dataset:
    """Full-gradient and noise parts of mini-batch gradients."""
    return measure.gradient_noise(
        done.risk(),
        done.theta,
        batch_size=min(batch_size, done.examples.num_rows // 2),
        rho=rho,
        ema=ema,
        lr=lr,
        seed=done.seed,
    )


def _masks(_options: Options, _work: Work) -> float:
    return 1  # which all variants climb from


def _disjoint(o: Options, examples: int) -> None:
    """Batches that have no example in common."""
    size = min(o["batch_size"], examples)
    if o.get("source", "mini-batch") == "mini-batch" and o["num_batches"] * size > examples:
        raise LandscapeError(
            f"num_batches = {o['num_batches']} batches of {size} asked of {examples} examples, "
            f"which hold {examples // size}; lower num_batches or batch_size, or raise [measure] "
            f"examples."
        )


def has_statistics(o: Options, done: FinishedRun) -> None:
    """One example has no statistics of a batch."""
    mode = o.get("batch_bn", o["bn"])
    if o["batch_size"] == 1 and mode == "batch" and done.risk().has_batchnorm:
        raise LandscapeError(
            "batch_size = 1 asked in BatchNorm mode 'batch', and a layer has no statistics of one "
            "example; raise batch_size, or give the mode 'eval'."
        )


def _has_tensor(o: Options, done: FinishedRun) -> None:
    wide = [name for name, p in done.model.named_parameters() if p.ndim > 1]
    if o["tensor"] and o["tensor"] not in wide:
        raise LandscapeError(
            f"tensor = {o['tensor']!r} is no tensor of two axes or more; possible: "
            f"{', '.join(wide) or 'none'}."
        )


_BN = {"bn": BATCH_BN}
RECORDS = (
    Record(perturbation_history, cost=nothing, default=True),
    Record(mask_persistence, cost=nothing, default=True),
    Record(mask_selection, cost=nothing),
    Record(mask_filters, cost=nothing, fits=_has_tensor),
    Record(saved_mask_overlap, cost=nothing, across_runs=True),
    Record(
        gradient_zscores,
        cost=lambda *_: 1,
        default=True,
        choices={"source": SOURCES, "grouping": GROUPINGS, **_BN},
        below={"percentile": 1},
        agree=_disjoint,
    ),
    Record(
        zscore_history,
        cost=nothing,
        first_seed_only=True,
        least={"most": 2},
        below={"percentile": 1},
    ),
    Record(gradient_noise, cost=lambda *_: 20, above=("rho",), below={"ema": 1}),
    Record(
        perturbation,
        fits=has_statistics,
        cost=lambda *_: 1 + 3 * FORWARD,
        default=True,
        choices=_BN,
        perturbs=True,
    ),
    Record(
        perturbation_controls,
        fits=has_statistics,
        cost=lambda o, _: 1 + (6 + 4 * o["num_draws"]) * 2 * FORWARD,
        choices=_BN,
        perturbs=True,
    ),
    Record(
        perturbation_cosines,
        fits=has_statistics,
        cost=_masks,
        first_seed_only=True,
        choices=_BN,
        variants=("variants",),
    ),
    Record(
        mask_overlap,
        fits=has_statistics,
        cost=_masks,
        default=True,
        first_seed_only=True,
        choices=_BN,
        variants=("variants",),
    ),
    Record(
        batch_overlap,
        fits=has_statistics,
        cost=lambda o, work: _masks(o, work) * (1 + o["num_batches"]),
        least={"num_batches": 2},
        agree=_disjoint,
        first_seed_only=True,
        choices=_BN,
        variants=("variants",),
    ),
    Record(
        enrichment,
        cost=lambda o, work: LANCZOS * o["k"] + PRODUCT * o["num_probes"] + _masks(o, work),
        least={"num_probes": 1},
        first_seed_only=True,
        variants=("variants",),
    ),
)
